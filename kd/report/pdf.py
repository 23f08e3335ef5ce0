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
from kd.report import pdf_tables
from kd.report.figures import LIGHT, standalone
from kd.report.pdf_tables import BOLD, REGULAR
from kd.text import one_line

MONO = "DejaVuSansMono"
MARGIN, WIDTH, HEIGHT = 51, 493, 740  # points, on A4 (595 x 842)
CODE_WIDTH = 112  # characters on a line of code
CELL_LENGTH = 240  # characters in a cell of a table
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
    story, caption = [], block.get("caption", "")
    grids = pdf_tables.grids(columns, rows, block.get("keys", 1), WIDTH)
    for number, grid in enumerate(grids, 1):
        if len(grids) > 1:
            caption = caption if number == 1 else re.split("[;:.] ", block.get("caption", ""))[0]  # not all of it again
            caption += f" (part {number} of {len(grids)})"
        if caption:
            above = [*above, _text(caption, "caption")]
        grid.wrap(WIDTH, HEIGHT)
        story += [*_together(above, sum(grid._rowHeights[:FIRST_ROWS])), grid]
        above = []
    return story
