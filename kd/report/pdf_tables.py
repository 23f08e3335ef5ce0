"""The layout of tables in a PDF: font size, widths of columns, parts of what is too wide, and lines in a cell."""

import functools

from kd.report.blocks import breakable
from kd.report.figures import LIGHT

REGULAR, BOLD = "DejaVuSans", "DejaVuSans-Bold"
CELL_WIDTH = 160  # points that a column of long texts gets at most
SIZES = 7.6, 7, 6.4  # font sizes, in points; the largest that fits is taken
PADDING = 4  # points on either side of a cell


def grids(columns, rows, keys, page):
    """The tables, one below the other, that show columns and rows of texts; a single one where it fits.

    keys: the number of first columns that every part repeats; fewer where they would take more than half of the page.
    page: its width in points. A line breaks at blanks and where blocks.breakable() says.
    """
    size, (least, compact, full) = _fitting_size(columns, rows, page)
    keys = min(keys, len(columns) - 1)
    while keys > 1 and sum(least[:keys]) > page / 2:
        keys -= 1
    result = []
    for part in _parts(least, keys, page):
        widths = [least[k] for k in part]
        for targets in (compact, full):
            widths = _widened(widths, [targets[k] for k in part], page)
        result.append(_grid([columns[k] for k in part], [[row[k] for k in part] for row in rows], widths, size))
    return result


def _fitting_size(columns, rows, page):
    """The font size of a table, and the (least, compact, full) widths of its columns at this size, as by _widths().

    The largest size at which the compact widths fit the page; else the least widths; else the smallest.
    """
    widths = {}
    for size in SIZES:
        of_columns = [_widths(name, [row[k] for row in rows], size) for k, name in enumerate(columns)]
        widths[size] = list(zip(*of_columns))
    fitting = [size for kind in (1, 0) for size in SIZES if sum(widths[size][kind]) <= page]
    size = fitting[0] if fitting else SIZES[-1]
    return size, widths[size]


def _widths(name, cells, size):
    """(least, compact, full) width of a column: breaks no word of up to CELL_WIDTH / 2; no word and no cell of up to
    CELL_WIDTH; no cell."""
    words = {word.rstrip(" ") for text in (name, *cells) for word in _words(text)}
    word_widths = [_text_width(word, BOLD if word in name else REGULAR, size) for word in words]
    least = max((min(width, CELL_WIDTH / 2) for width in word_widths), default=0)
    cell_widths = [_text_width(cell, REGULAR, size) for cell in set(cells)]
    full = max([least, *cell_widths])
    unbroken = [width for width in cell_widths if width <= CELL_WIDTH] or [min(full, CELL_WIDTH)]
    compact = max([least, *unbroken, *(width for width in word_widths if width <= CELL_WIDTH)])
    return [width + 2 * PADDING + .5 for width in (least, compact, full)]


def _words(text):
    """The parts of a text between which a line may be broken, each with the blank that follows it."""
    parts = [breakable(word) for word in text.split(" ")]
    return [part for of_word in parts for part in (*of_word[:-1], f"{of_word[-1]} ")]


@functools.lru_cache(100_000)
def _text_width(text, font, size):
    from reportlab.pdfbase.pdfmetrics import stringWidth
    return stringWidth(text, font, size)


def _parts(least, keys, page):
    """Lists of column numbers, each list as wide as fits the page; each begins with the first `keys` columns."""
    room = page - sum(least[:keys])
    parts, left = [], -1
    for k in range(keys, len(least)):
        if not parts or least[k] > left:
            parts.append(list(range(keys)))
            left = room
        parts[-1].append(k)
        left -= least[k]
    return parts


def _widened(widths, targets, page):
    """`widths` moved as near to `targets` as the page allows."""
    growth = sum(targets) - sum(widths)
    share = min(1, max(0, page - sum(widths)) / growth) if growth else 0
    widths = [width + share * (target - width) for width, target in zip(widths, targets)]
    return [width * min(1, page / sum(widths)) for width in widths]


def _wrapped(text, width, font, size):
    """`text` in lines of at most `width` points, broken between _words(), and inside those that are wider."""
    if _text_width(text, font, size) <= width:
        return text
    lines = [""]
    for word in _words(text):
        if _text_width((lines[-1] + word).rstrip(" "), font, size) <= width:
            lines[-1] += word
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _text_width((lines[-1] + letter).rstrip(" "), font, size) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(line.strip(" ") for line in lines)


def _grid(columns, rows, widths, size):
    """A table of texts; its head is repeated on every page."""
    from reportlab.lib.colors import HexColor
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
    return _grid_class()(cells, colWidths=widths, repeatRows=has_head, hAlign="LEFT", spaceAfter=12, style=style)


def _numeric(cells):
    return all(cell in ("", "n/a", "–") or cell.lstrip("+-−<≤≥.")[:1].isdigit() for cell in cells)


@functools.cache
def _grid_class():
    from reportlab.platypus import LongTable, PageBreak

    class Grid(LongTable):
        """A table of which no page has the last row alone."""

        def split(self, width, height):
            parts = super().split(width, height)
            if len(parts) == 2 and parts[1]._nrows - self.repeatRows == 1 and parts[0]._nrows - self.repeatRows > 2:
                above, below = super().split(width, sum(self._rowHeights[:-2]) + .01)
                return [above, PageBreak(), below]  # else the two rows could begin on this page
            return parts

    return Grid
