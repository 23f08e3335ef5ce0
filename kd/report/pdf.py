"""Sets a list of blocks as an A4 PDF. A block holds no markup: whatever stands in it is text.

write(path, document) takes a list of dicts, each with its `kind` and:

    title      text, subtitle=""        the head of the first page, and the document's name; comes first
    heading    text, level=1            level 1 to 3; becomes a bookmark
    paragraph  text
    note       text                     small print
    bullet     text, level=1
    code       text                     keeps line breaks and spaces
    finding    severity, text, lines=[] severity: error | warning | note; lines: more paragraphs, smaller
    table      columns, rows, caption="", keys=1
                                        Cells are set as str() gives them, columns of numbers flush right. A table that
                                        is too wide is set in smaller letters, then in parts; each part repeats the
                                        first `keys` columns
    figure     svg or png, caption="", scale=0.56
                                        svg: text as matplotlib writes it; png: bytes of a PNG or JPEG; scale: points
                                        per unit or pixel, smaller where the figure would leave the page
    figures    figures, caption=""      several of the above from left to right, as many on a line as fit
    page                                a new page

The font is DejaVu Sans, which matplotlib contains: Latin, Greek, Cyrillic, Arabic, Hebrew, arrows, some emoji. Other
characters are set as boxes. Right-to-left text is set in the order of its characters.
"""

import functools
import io
import re
import textwrap
from xml.sax.saxutils import escape

from kd.errors import need
from kd.files import atomic
from kd.report.figures import LIGHT, standalone
from kd.text import one_line

REGULAR, BOLD, MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"
MARGIN, WIDTH, HEIGHT = 51, 493, 740  # points, on A4 (595 x 842)
CODE_WIDTH = 112  # characters on a line of code
CELL_WIDTH = 160  # points that a column of long texts gets at most
CELL_LENGTH = 240  # characters in a cell
SIZES = 7.6, 7, 6.4  # font sizes of tables, in points; the largest that fits is taken
PADDING = 4  # points on either side of a cell
FIRST_ROWS = 4  # of a table, its head included, that stay together
TONES = {"error": LIGHT["error"], "warning": LIGHT["teacher"], "note": LIGHT["muted"]}


def write(path, document):
    """Write the blocks as an A4 PDF; the same blocks give the same bytes.

    path: the file, replaced only when the new one is complete. document: a list of blocks, as described above.
    Raises UserError without reportlab, svglib or matplotlib.
    """
    need("reportlab", "report")
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate
    _register_fonts()
    title = one_line(next((block["text"] for block in document if block["kind"] == "title"), ""), 120)
    file = io.BytesIO()
    frame = Frame(MARGIN, MARGIN, WIDTH, HEIGHT, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)
    template = BaseDocTemplate(file, pagesize=(595, 842), title=title, author="", lang="en", invariant=1)
    template.addPageTemplates(PageTemplate(frames=[frame]))
    template.build(_story(document), canvasmaker=functools.partial(_canvas_class(), footer=one_line(title, 90)))
    with atomic(path) as target:
        target.write(file.getvalue())


def write_drawing(path, svg, width):
    """Write an SVG text, as of kd/report/figures.py, as a PDF of one page of its size, `width` points wide."""
    need("reportlab", "report")
    from reportlab.graphics import renderPDF
    from reportlab.pdfgen.canvas import Canvas
    _register_fonts()
    picture, file = _drawing(svg), io.BytesIO()
    scale = width / picture.width
    canvas = Canvas(file, pagesize=(width, scale * picture.height), invariant=1, initialFontName=REGULAR)
    canvas.scale(scale, scale)
    renderPDF.draw(picture, canvas, 0, 0)
    canvas.save()
    with atomic(path) as target:
        target.write(file.getvalue())


@functools.cache
def _register_fonts():
    """Register matplotlib's DejaVu fonts with reportlab, and with svglib as the font of all text in drawings."""
    from reportlab.pdfbase import pdfmetrics, ttfonts
    shapes = need("reportlab.graphics.shapes", "report")
    fonts = need("svglib.fonts", "report")
    shapes.STATE_DEFAULTS["fontName"] = REGULAR  # else a PDF names Helvetica, which is not in it
    folder = need("matplotlib", "report").get_data_path() + "/fonts/ttf/"
    for name in (REGULAR, BOLD, MONO):
        pdfmetrics.registerFont(ttfonts.TTFont(name, folder + name + ".ttf"))
    for weight, name in (("normal", REGULAR), ("bold", BOLD)):
        fonts.register_font(REGULAR, folder + name + ".ttf", weight=weight, rlgFontName=name)


@functools.cache
def _canvas_class():
    from reportlab.lib.colors import HexColor
    from reportlab.pdfgen.canvas import Canvas

    class NumberedCanvas(Canvas):
        """Stores its pages until their number is known, and then adds the footer to each."""

        def __init__(self, *args, footer, **options):
            super().__init__(*args, **options)
            self.footer, self.pages = footer, []

        def showPage(self):
            self.pages.append(dict(self.__dict__))
            self._startPage()

        def save(self):
            for page in self.pages:
                self.__dict__.update(page)
                self.setFont(REGULAR, 7)
                self.setFillColor(HexColor(LIGHT["muted"]))
                self.drawString(MARGIN, 30, self.footer)
                self.drawRightString(MARGIN + WIDTH, 30, f"{self._pageNumber} / {len(self.pages)}")
                super().showPage()
            super().save()

    return NumberedCanvas


@functools.cache
def _painting_class():
    from reportlab.platypus import Flowable

    class Painting(Flowable):
        """width, height: in points. paint: a function that draws on a canvas with its origin at the lower left."""

        def __init__(self, width, height, paint):
            super().__init__()
            self.width, self.height, self.paint = width, height, paint

        def draw(self):
            self.paint(self.canv)

    return Painting


# ---- blocks


def _story(document):
    """The flowables of all blocks. A heading, and notes below it, stay on the page of what follows them."""
    from reportlab.platypus import CondPageBreak, PageBreak, Spacer
    story, waiting, level = [], [], 0  # waiting: flowables that stay with what follows them
    for number, block in enumerate(document):
        kind = block["kind"]
        if kind == "heading":
            level = max(1, min(block.get("level", 1), level + 1, 3))  # an outline skips no level
            waiting += _heading(block["text"], level, f"heading{number}")
        elif kind == "note" and waiting:
            waiting += _MAKERS[kind](block)
        elif kind == "page":
            story += [*waiting, PageBreak()]
            waiting = []
        elif kind == "table":
            story += _table(block, waiting)
            waiting = []
        else:
            flowables = _MAKERS[kind](block)
            if waiting and flowables:
                count = 3 if isinstance(flowables[0], CondPageBreak) else 1  # a last line of figures, and its caption
                flowables = [*_together(waiting + flowables[:count]), *flowables[count:]]
                waiting = []
            story += flowables
    return story + waiting or [Spacer(0, 1)]  # a document without blocks still has a page


def _together(flowables, further=0):
    """`flowables`, after a page break where they, and `further` points below them, have no room.

    Not KeepTogether: it leaves out the space around its flowables, and then divides them.
    """
    from reportlab.platypus import CondPageBreak
    heights = [flowable.wrap(WIDTH, HEIGHT)[1] + flowable.getSpaceBefore() + flowable.getSpaceAfter()
               for flowable in flowables]
    return [CondPageBreak(min(sum(heights) + further, HEIGHT)), *flowables]


def _style(name, **options):
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle
    defaults = {
        "fontName": REGULAR, "fontSize": 8.6, "leading": 12.6, "spaceAfter": 6, "textColor": HexColor(LIGHT["ink"]),
    }
    return ParagraphStyle(name, **{**defaults, **options})


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


def _line(text, limit=100_000):
    """`text` on one line without control characters; no line break may divide an interval in it."""
    return re.sub(r"\[[^\[\]]{1,40}\]", lambda match: match[0].replace(" ", "\u00a0"), one_line(text, limit))


def _text(text, style, **options):
    """A Paragraph in which nothing is markup. style: a key of _styles(), or a ParagraphStyle."""
    from reportlab.platypus import Paragraph
    return Paragraph(escape(_line(text)), _styles().get(style, style), **options)


def _heading(text, level, key):
    """A bookmark in front of the heading's text."""
    def bookmark(canvas):
        canvas.bookmarkHorizontal(key, 0, 24)
        canvas.addOutlineEntry(one_line(text, 120), key, level - 1)

    return [_painting_class()(0, 0, bookmark), _text(one_line(text, 300), level)]


def _title(block):
    return [_text(one_line(block["text"], 300), "title"), _text(block.get("subtitle", ""), "subtitle")]


def _bullet(block):
    indent = 12 * max(1, min(block.get("level", 1), 6))
    style = _style(
        f"bullet{indent}", leftIndent=indent, bulletIndent=indent - 11, bulletFontName=REGULAR, bulletFontSize=8.6,
        spaceAfter=3,
    )
    return [_text(block["text"], style, bulletText="•")]


def _code(block):
    from reportlab.platypus import Preformatted
    lines = []
    for line in block["text"].splitlines():
        line = "".join(c if c.isprintable() else " " for c in line.expandtabs(4))
        lines += textwrap.wrap(line, CODE_WIDTH, drop_whitespace=False, subsequent_indent="  ") or [""]
    return [Preformatted("\n".join(lines), _styles()["code"])] if lines else []


def _finding(block):
    """Severity and text in their colour, the lines below them, with a coloured rule at the left."""
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table
    tone = HexColor(TONES[block["severity"]])
    bold = _style("finding", fontName=BOLD, textColor=tone, spaceAfter=0)
    rows = [[_text(f"{block['severity']}: {block['text']}", bold)]]
    rows += [[_text(line, "note")] for line in block.get("lines", ())]
    style = [
        ("LINEBEFORE", (0, 0), (0, -1), 2.5, tone), ("LEFTPADDING", (0, 0), (-1, -1), 10),
        ("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
    ]
    return [Table(rows, colWidths=[WIDTH], spaceAfter=8, splitInRow=1, style=style)]


# ---- figures


def _figure(block):
    """A Painting of a figure and its caption, at most as wide as the page and seven tenths of it high."""
    from reportlab.graphics import renderPDF
    from reportlab.lib.utils import ImageReader
    if "svg" in block:
        picture = _drawing(block["svg"])
        picture_width, picture_height = picture.width, picture.height
    else:
        picture = ImageReader(io.BytesIO(block["png"]))
        picture_width, picture_height = picture.getSize()
    scale = min(block.get("scale", 0.56), WIDTH / picture_width, 0.7 * HEIGHT / picture_height)
    total_width, caption, caption_height = scale * picture_width, None, 0
    if block.get("caption"):
        caption = _text(one_line(block["caption"], 300), "caption")
        total_width = max(total_width, 64)
        caption_height = caption.wrap(total_width, HEIGHT)[1] + 5

    def paint(canvas):
        if "svg" in block:
            canvas.saveState()
            canvas.translate(0, caption_height)
            canvas.scale(scale, scale)
            renderPDF.draw(picture, canvas, 0, 0)
            canvas.restoreState()
        else:
            canvas.drawImage(picture, 0, caption_height, scale * picture_width, scale * picture_height, mask="auto")
        if caption:
            caption.drawOn(canvas, 0, 0)

    painting = _painting_class()(total_width, scale * picture_height + caption_height, paint)
    painting.spaceAfter = 10
    return painting


@functools.lru_cache(maxsize=100)  # the report and the figures for papers show the same drawings
def _drawing(svg):
    """A reportlab Drawing of an SVG text, in the light colours. First replaces what svglib does not support."""
    from svglib.svglib import svg2rlg
    svg = re.sub(r"var\(--sans,[^()]*\)", REGULAR, svg).replace("font-weight: 700", "font-weight: bold")
    svg = svg if "xmlns=" in svg else standalone(svg)
    svg = re.sub(r"(?<=[\s\";])opacity: ([\d.]+)", r"fill-opacity: \1; stroke-opacity: \1", svg)
    for name, background in re.findall(r'<pattern id="(\w+)"[^>]*>\s*<rect[^>]*fill="([^"]+)"', svg):
        svg = svg.replace(f"url(#{name})", background)  # a hatch: its background
    drawing = svg2rlg(io.BytesIO(svg.encode()))
    width, height = map(float, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg).groups())
    drawing.scale(width / drawing.width, height / drawing.height)  # points to the SVG's own units
    drawing.width, drawing.height = width, height
    return drawing


def _figures(block):
    """Lines of figures, each as many as fit; the caption stands below the last."""
    from reportlab.platypus import Table
    gap, lines, room = 14, [], 0  # points
    for painting in map(_figure, block["figures"]):
        if not lines or room < painting.width + gap:
            lines.append([])
            room = WIDTH + gap
        lines[-1].append(painting)
        room -= painting.width + gap
    style = [
        ("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
        ("VALIGN", (0, 0), (-1, -1), "BOTTOM"),
    ]
    story = []
    for line in lines:
        widths = [painting.width + gap for painting in line]
        story.append(Table([line], colWidths=widths, hAlign="LEFT", spaceAfter=6, style=style))
    if block.get("caption") and lines:
        story += _together([story.pop(), _text(block["caption"], "caption")])
    return story


_MAKERS = {
    "title": _title,
    "paragraph": lambda block: [_text(block["text"], "paragraph")],
    "note": lambda block: [_text(block["text"], "note")],
    "bullet": _bullet,
    "code": _code,
    "finding": _finding,
    "figure": lambda block: [_figure(block)],
    "figures": _figures,
}


# ---- tables


def _table(block, above):
    """Captions and tables; a table that is too wide even in the smallest letters is divided into parts.

    above: flowables that stay on the page of the table's first rows, as its caption does.
    """
    columns = [_line(column, CELL_LENGTH) for column in block["columns"]]
    rows = [[_line(cell, CELL_LENGTH) for cell in row] for row in block["rows"]]
    if not columns or not any(columns) and not rows:
        return above
    size, (least, compact, full) = _fitting_size(columns, rows)
    keys = min(block.get("keys", 1), len(columns) - 1)
    while keys > 1 and sum(least[:keys]) > WIDTH / 2:
        keys -= 1
    parts = _parts(least, keys)
    story = []
    for number, part in enumerate(parts, 1):
        caption = block.get("caption", "") + (f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
        widths = [least[k] for k in part]
        for targets in (compact, full):
            widths = _widened(widths, [targets[k] for k in part])
        if caption:
            above = [*above, _text(caption, "caption")]
        grid = _grid([columns[k] for k in part], [[row[k] for k in part] for row in rows], widths, size)
        grid.wrap(WIDTH, HEIGHT)
        story += [*_together(above, sum(grid._rowHeights[:FIRST_ROWS])), grid]
        above = []
    return story


def _fitting_size(columns, rows):
    """The font size of a table, and the (least, compact, full) widths of its columns at this size, as by _widths().

    The largest size at which the compact widths fit the page; else the least widths; else the smallest.
    """
    widths = {}
    for size in SIZES:
        of_columns = [_widths(name, [row[k] for row in rows], size) for k, name in enumerate(columns)]
        widths[size] = list(zip(*of_columns))
    fitting = [size for kind in (1, 0) for size in SIZES if sum(widths[size][kind]) <= WIDTH]
    size = fitting[0] if fitting else SIZES[-1]
    return size, widths[size]


def _widths(name, cells, size):
    """(least, compact, full) width of a column: breaks no word; breaks no cell up to CELL_WIDTH; breaks no cell."""
    words = {word for text in (name, *cells) for word in text.split(" ")}
    word_widths = [_text_width(word, BOLD if word in name else REGULAR, size) for word in words]
    least = max((min(width, CELL_WIDTH / 2) for width in word_widths), default=0)
    full = max([least, *(_text_width(cell, REGULAR, size) for cell in set(cells))])
    compact = max(least, min(full, CELL_WIDTH))
    return [width + 2 * PADDING + .5 for width in (least, compact, full)]


@functools.lru_cache(100_000)
def _text_width(text, font, size):
    from reportlab.pdfbase.pdfmetrics import stringWidth
    return stringWidth(text, font, size)


def _parts(least, keys):
    """Lists of column numbers, each list as wide as fits the page; each begins with the first `keys` columns."""
    room = WIDTH - sum(least[:keys])
    parts, left = [], -1
    for k in range(keys, len(least)):
        if not parts or least[k] > left:
            parts.append(list(range(keys)))
            left = room
        parts[-1].append(k)
        left -= least[k]
    return parts


def _widened(widths, targets):
    """`widths` moved as near to `targets` as the page allows."""
    growth = sum(targets) - sum(widths)
    share = min(1, max(0, WIDTH - sum(widths)) / growth) if growth else 0
    widths = [width + share * (target - width) for width, target in zip(widths, targets)]
    return [width * min(1, WIDTH / sum(widths)) for width in widths]


def _wrapped(text, width, font, size):
    """`text` in lines of at most `width` points, broken at blanks, and inside words that are wider."""
    if _text_width(text, font, size) <= width:
        return text
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip(" ")
        if _text_width(joined, font, size) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _text_width(lines[-1] + letter, font, size) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def _grid(columns, rows, widths, size):
    """A table of texts; its head is repeated on every page."""
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import LongTable
    leading = 1.35 * size
    rule, ink = HexColor(LIGHT["rule"]), HexColor(LIGHT["ink"])
    cells = [[_wrapped(text, width - 2 * PADDING, REGULAR, size) for text, width in zip(row, widths)] for row in rows]
    has_head = int(any(columns))
    style = [
        ("FONT", (0, 0), (-1, -1), REGULAR, size, leading), ("TEXTCOLOR", (0, 0), (-1, -1), ink),
        ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), PADDING),
        ("RIGHTPADDING", (0, 0), (-1, -1), PADDING), ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.6), ("LINEBELOW", (0, has_head), (-1, -1), .4, rule),
    ]
    if has_head:
        cells.insert(0, [_wrapped(text, width - 2 * PADDING, BOLD, size) for text, width in zip(columns, widths)])
        style += [
            ("FONT", (0, 0), (-1, 0), BOLD, size, leading), ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
            ("LINEBELOW", (0, 0), (-1, 0), .9, ink),
        ]
    for k in range(len(columns)):
        if rows and _numeric(row[k] for row in rows):
            style.append(("ALIGN", (k, 0), (k, -1), "RIGHT"))
    return LongTable(cells, colWidths=widths, repeatRows=has_head, hAlign="LEFT", spaceAfter=12, style=style)


def _numeric(cells):
    return all(cell in ("", "n/a", "–") or cell.lstrip("+-−<≤≥.")[:1].isdigit() for cell in cells)
