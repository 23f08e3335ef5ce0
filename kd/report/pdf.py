"""A PDF of plain blocks: no markup, no HTML; whatever stands in a block is text.

write(path, document) takes a list of dicts, each with its `kind` and:

    title      text, subtitle=""        the head of the page, and the name of the document; comes first
    heading    text, level=1            1 to 3; a bookmark
    paragraph  text
    note       text                     small print
    bullet     text, level=1
    code       text                     line breaks and spaces are kept
    finding    severity, text, lines=[] severity: error | warning | note; lines: further paragraphs, smaller
    table      columns, rows, caption="", keys=1
                                        cells are shown as str() gives them; a column of numbers is flush right. A table that
                                        is too wide is set smaller, then in parts, each with the first `keys` columns
    figure     svg or png, caption="", scale=0.56
                                        svg: text as matplotlib writes it; png: bytes of a PNG or JPEG; scale: points per unit
                                        or pixel, less where it would leave the page
    figures    figures, caption=""      several of the above from left to right, as many a line as fit
    page                                a new page

Letters are DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic, Arabic, Hebrew, arrows, some
emoji. What it lacks is a box. Right-to-left text stands in the order of its letters.
"""

import functools
import io
import re
import textwrap
from xml.sax.saxutils import escape

from kd.errors import need
from kd.files import atomic
from kd.report.figures import LIGHT
from kd.report.figures_robustness import standalone
from kd.text import one_line

REGULAR, BOLD, MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"
MARGIN, WIDTH, HEIGHT = 51, 493, 740  # points, on A4 (595 x 842)
CELL = 160  # points that a column of long texts gets at most
SIZES = 7.6, 7, 6.4  # of letters in tables, in points: as large as fits
PADDING = 4  # on either side of a cell
MOST = 240  # characters in a cell
TONES = {"error": LIGHT["error"], "warning": LIGHT["teacher"], "note": LIGHT["muted"]}


def write(path, document):
    """Write the blocks as an A4 PDF; the same blocks give the same bytes. Raises UserError without reportlab."""
    need("reportlab", "report")
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate
    _register_fonts()
    title = one_line(next((block["text"] for block in document if block["kind"] == "title"), ""), 120)
    file = io.BytesIO()
    frame = Frame(MARGIN, MARGIN, WIDTH, HEIGHT, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)
    template = BaseDocTemplate(file, pagesize=(595, 842), title=title, author="", lang="en", invariant=1)
    template.addPageTemplates(PageTemplate(frames=[frame]))
    template.build(_story(document), canvasmaker=functools.partial(_canvas(), foot=one_line(title, 90)))
    with atomic(path) as target:
        target.write(file.getvalue())


@functools.cache
def _register_fonts():
    """Make matplotlib's DejaVu fonts known to reportlab, and to svglib as the font of all texts in drawings."""
    from reportlab.pdfbase import pdfmetrics, ttfonts
    fonts = need("svglib.fonts", "report")
    folder = need("matplotlib", "report").get_data_path() + "/fonts/ttf/"
    for name in (REGULAR, BOLD, MONO):
        pdfmetrics.registerFont(ttfonts.TTFont(name, folder + name + ".ttf"))
    for weight, name in (("normal", REGULAR), ("bold", BOLD)):
        fonts.register_font(REGULAR, folder + name + ".ttf", weight=weight, rlgFontName=name)


def _drawing(svg):
    """reportlab's Drawing of an inline SVG: in the light colours, its text in DejaVu Sans."""
    from svglib.svglib import svg2rlg
    svg = svg if "xmlns=" in svg else standalone(svg)
    svg = re.sub(r"var\(--sans,[^()]*\)", REGULAR, svg).replace("font-weight: 700", "font-weight: bold")
    svg = re.sub(r"var\(--[\w-]+,\s*([^()]*)\)", r"\1", svg)  # a CSS variable's fallback
    svg = re.sub(r"(?<=[\s\";])opacity: ([\d.]+)", r"fill-opacity: \1; stroke-opacity: \1", svg)  # svglib knows these two
    for name, ground in re.findall(r'<pattern id="(\w+)"[^>]*>\s*<rect[^>]*fill="([^"]+)"', svg):
        svg = svg.replace(f"url(#{name})", ground)  # svglib draws no hatches, and this their ground
    drawing = svg2rlg(io.BytesIO(svg.encode()))
    width, height = map(float, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg).groups())
    drawing.scale(width / drawing.width, height / drawing.height)  # to the SVG's own units
    drawing.width, drawing.height = width, height
    return drawing


@functools.cache
def _canvas():
    from reportlab.lib.colors import HexColor
    from reportlab.pdfgen.canvas import Canvas

    class Numbered(Canvas):
        """Pages are kept until their number is known, and then get a foot."""

        def __init__(self, *args, foot, **options):
            super().__init__(*args, **options)
            self.foot, self.kept = foot, []

        def showPage(self):
            self.kept.append(dict(self.__dict__))
            self._startPage()

        def save(self):
            for page in self.kept:
                self.__dict__.update(page)
                self.setFont(REGULAR, 7)
                self.setFillColor(HexColor(LIGHT["muted"]))
                self.drawString(MARGIN, 30, self.foot)
                self.drawRightString(MARGIN + WIDTH, 30, f"{self._pageNumber} / {len(self.kept)}")
                super().showPage()
            super().save()

    return Numbered


@functools.cache
def _drawn():
    from reportlab.platypus import Flowable

    class Drawn(Flowable):
        """width, height: in points. paint: draws on a canvas whose origin is the lower left corner."""

        def __init__(self, width, height, paint):
            super().__init__()
            self.width, self.height, self.paint = width, height, paint

        def draw(self):
            self.paint(self.canv)

    return Drawn


# ---- blocks


def _story(document):
    """The flowables of all blocks. A heading stays with what follows it."""
    from reportlab.platypus import CondPageBreak, KeepTogether, PageBreak, Spacer
    story, heads, level = [], [], 0
    for number, block in enumerate(document):
        kind = block["kind"]
        if kind == "heading":
            level = max(1, min(block.get("level", 1), level + 1, 3))  # an outline skips no level
            heads += _heading(block["text"], level, f"heading{number}")
        elif kind == "page":
            story += [*heads, PageBreak()]
            heads = []
        elif kind == "table":
            story += [CondPageBreak(20 * len(heads) + 90), *heads, *_table(block)]
            heads = []
        else:
            made = _MAKERS[kind](block)
            story += [KeepTogether([*heads, made[0]]), *made[1:]] if heads and made else made
            heads = [] if made else heads
    return story + heads or [Spacer(0, 1)]  # a document has a page


def _style(name, **given):
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle
    values = {"fontName": REGULAR, "fontSize": 8.6, "leading": 12.6, "spaceAfter": 6, "textColor": HexColor(LIGHT["ink"])}
    return ParagraphStyle(name, **{**values, **given})


@functools.cache
def _styles():
    from reportlab.lib.colors import HexColor
    muted = HexColor(LIGHT["muted"])
    return {
        "paragraph": _style("paragraph"),
        "title": _style("title", fontName=BOLD, fontSize=19, leading=24, spaceAfter=4),
        "subtitle": _style("subtitle", fontSize=9.5, leading=14, textColor=muted, spaceAfter=14),
        1: _style("h1", fontName=BOLD, fontSize=13.5, leading=18, spaceBefore=16, spaceAfter=6),
        2: _style("h2", fontName=BOLD, fontSize=10, leading=14, spaceBefore=10, spaceAfter=4),
        3: _style("h3", fontName=BOLD, fontSize=8.6, leading=12, spaceBefore=6, spaceAfter=3),
        "note": _style("note", fontSize=7.2, leading=10.4, textColor=muted),
        "caption": _style("caption", fontSize=7.4, leading=10.4, textColor=muted, spaceAfter=4),
        "bullet": _style("bullet", spaceAfter=3),
        "code": _style("code", fontName=MONO, fontSize=7, leading=9.6, spaceAfter=8),
    }


def _line(text, most=100_000):
    """`text` without what cannot be printed; an interval in it stays on one line."""
    return re.sub(r"\[[^\[\]]{1,40}\]", lambda hit: hit[0].replace(" ", "\u00a0"), one_line(text, most))


def _text(text, style, **options):
    """A Paragraph in which nothing is markup. style: a name, or a ParagraphStyle."""
    from reportlab.platypus import Paragraph
    return Paragraph(escape(_line(text)), _styles().get(style, style), **options)


def _heading(text, level, key):
    def bookmark(canvas):
        canvas.bookmarkHorizontal(key, 0, 24)
        canvas.addOutlineEntry(one_line(text, 120), key, level - 1)

    return [_drawn()(0, 0, bookmark), _text(one_line(text, 300), level)]


def _title(block):
    return [_text(one_line(block["text"], 300), "title"), _text(block.get("subtitle", ""), "subtitle")]


def _bullet(block):
    indent = 12 * max(1, min(block.get("level", 1), 6))
    style = _style(f"bullet{indent}", leftIndent=indent, bulletIndent=indent - 11, bulletFontName=REGULAR, bulletFontSize=8.6, spaceAfter=3)
    return [_text(block["text"], style, bulletText="•")]


def _code(block):
    from reportlab.platypus import Preformatted
    wide = 112  # letters of the monospaced font on a line
    lines = [part for line in block["text"].splitlines() for part in
             textwrap.wrap("".join(c if c.isprintable() else " " for c in line.expandtabs(4)), wide,
                           drop_whitespace=False, subsequent_indent="  ") or [""]]
    return [Preformatted("\n".join(lines), _styles()["code"])] if lines else []


def _finding(block):
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table
    tone = HexColor(TONES[block["severity"]])
    head = _style("finding", fontName=BOLD, textColor=tone, spaceAfter=0)
    cells = [_text(f"{block['severity']}: {block['text']}", head), *(_text(line, "note") for line in block.get("lines", ()))]
    return [Table([[cell] for cell in cells], colWidths=[WIDTH], spaceAfter=8, splitInRow=1, style=[
        ("LINEBEFORE", (0, 0), (0, -1), 2.5, tone), ("LEFTPADDING", (0, 0), (-1, -1), 10),
        ("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)])]


# ---- figures


def _figure(block, width=WIDTH):
    """A Flowable of a drawing or a picture with its caption, at most `width` wide and seven tenths of a page high."""
    from reportlab.graphics import renderPDF
    from reportlab.lib.utils import ImageReader
    picture = _drawing(block["svg"]) if "svg" in block else ImageReader(io.BytesIO(block["png"]))
    wide, high = (picture.width, picture.height) if "svg" in block else picture.getSize()
    scale = min(block.get("scale", 0.56), width / wide, 0.7 * HEIGHT / high)
    across, below, caption = scale * wide, 0, None
    if block.get("caption"):
        caption = _text(one_line(block["caption"], 300), "caption")
        across = max(across, min(width, 64))
        below = caption.wrap(across, HEIGHT)[1] + 5

    def paint(canvas):
        if "svg" in block:
            canvas.saveState()
            canvas.translate(0, below)
            canvas.scale(scale, scale)
            renderPDF.draw(picture, canvas, 0, 0)
            canvas.restoreState()
        else:
            canvas.drawImage(picture, 0, below, scale * wide, scale * high, mask="auto")
        if caption:
            caption.drawOn(canvas, 0, 0)

    made = _drawn()(across, scale * high + below, paint)
    made.spaceAfter = 10
    return made


def _figures(block):
    """Lines of figures, each as many as fit; the caption stands below the last."""
    from reportlab.platypus import Table
    lines, room = [], 0
    for made in map(_figure, block["figures"]):
        if not lines or room < made.width + 14:
            lines.append([])
            room = WIDTH + 14
        lines[-1].append(made)
        room -= made.width + 14
    story = [Table([line], colWidths=[made.width + 14 for made in line], hAlign="LEFT", spaceAfter=6, style=[
        ("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "BOTTOM"),
        ("TOPPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 0)]) for line in lines]
    return story + ([_text(block["caption"], "caption")] if block.get("caption") and lines else [])


_MAKERS = {"title": _title, "bullet": _bullet, "code": _code, "finding": _finding, "figures": _figures,
           "figure": lambda block: [_figure(block)],
           **{kind: lambda block: [_text(block["text"], block["kind"])] for kind in ("paragraph", "note")}}


# ---- tables


def _table(block):
    """A caption and a table; one that is too wide even in small letters comes in parts."""
    columns = [_line(column, MOST) for column in block["columns"]]
    rows = [[_line(cell, MOST) for cell in row] for row in block["rows"]]
    if not columns or not any(columns) and not rows:
        return []
    widths = {size: list(zip(*(_widths(name, [row[k] for row in rows], size) for k, name in enumerate(columns))))
              for size in SIZES}
    size = next((size for kind in (1, 0) for size in SIZES if sum(widths[size][kind]) <= WIDTH), SIZES[-1])
    least, best, whole = widths[size]
    parts = _parts(least, min(block.get("keys", 1), len(columns) - 1))
    story = []
    for number, part in enumerate(parts, 1):
        caption = block.get("caption", "") + (f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
        widths = [least[k] for k in part]
        for wanted in (best, whole):
            widths = _towards([wanted[k] for k in part], widths)
        story += [_text(caption, "caption")] if caption else []
        story.append(_grid([columns[k] for k in part], [[row[k] for k in part] for row in rows], widths, size))
    return story


def _widths(name, cells, size):
    """Widths of a column: for unbroken words; for unbroken cells, up to CELL; for unbroken cells."""
    words = {word for text in (name, *cells) for word in text.split(" ")}
    least = max((min(_measure(word, BOLD if word in name else REGULAR, size), CELL / 2) for word in words), default=0)
    whole = max([least, *(_measure(cell, REGULAR, size) for cell in set(cells))])
    return [width + 2 * PADDING + .5 for width in (least, max(least, min(whole, CELL)), whole)]


@functools.lru_cache(100_000)
def _measure(text, font, size):
    from reportlab.pdfbase.pdfmetrics import stringWidth
    return stringWidth(text, font, size)


def _parts(least, keys):
    """Lists of columns that fit the page beside the first `keys`, which each of them begins with."""
    room = WIDTH - sum(least[:keys])
    parts, left = [], -1
    for k in range(keys, len(least)):
        if not parts or least[k] > left:
            parts.append(list(range(keys)))
            left = room
        parts[-1].append(k)
        left -= least[k]
    return parts


def _towards(wanted, widths):
    """Widths as near to the wanted ones as the page allows."""
    lacking = sum(wanted) - sum(widths)
    part = min(1, max(0, WIDTH - sum(widths)) / lacking) if lacking else 0
    widths = [a + part * (b - a) for a, b in zip(widths, wanted)]
    return [width * min(1, WIDTH / sum(widths)) for width in widths]


def _wrapped(text, width, font, size):
    """`text` in lines of at most `width` points, broken at blanks, and inside words that are wider."""
    if _measure(text, font, size) <= width:
        return text
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip(" ")
        if _measure(joined, font, size) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _measure(lines[-1] + letter, font, size) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def _grid(columns, rows, widths, size):
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import LongTable
    leading = 1.35 * size
    right = [bool(rows) and _numeric(row[k] for row in rows) for k in range(len(columns))]
    rule, ink = HexColor(LIGHT["rule"]), HexColor(LIGHT["ink"])
    head = int(any(columns))  # headings that are all empty are none
    grid = [[_wrapped(text, width - 2 * PADDING, BOLD if row is columns else REGULAR, size) for text, width in zip(row, widths)]
            for row in [columns, *rows][1 - head:]]
    flush = [("ALIGN", (k, 0), (k, -1), "RIGHT") for k in range(len(columns)) if right[k]]
    heading = [("FONT", (0, 0), (-1, 0), BOLD, size, leading), ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
               ("LINEBELOW", (0, 0), (-1, 0), .9, ink)] if head else []
    return LongTable(grid, colWidths=widths, repeatRows=head, hAlign="LEFT", spaceAfter=12, style=[
        ("FONT", (0, 0), (-1, -1), REGULAR, size, leading), ("TEXTCOLOR", (0, 0), (-1, -1), ink), ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), PADDING), ("RIGHTPADDING", (0, 0), (-1, -1), PADDING),
        ("TOPPADDING", (0, 0), (-1, -1), 2), ("BOTTOMPADDING", (0, 0), (-1, -1), 2.6),
        ("LINEBELOW", (0, head), (-1, -1), .4, rule), *heading, *flush])


def _numeric(cells):
    return all(cell in ("", "n/a") or cell.lstrip("+-−<≤≥.")[:1].isdigit() for cell in cells)
