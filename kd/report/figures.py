"""What all figures of a report share, and the simplest of them, as text to put into a page.

A drawing is an inline SVG. Its text stays text. Its colours are CSS variables with the light colour as fallback, so
that one drawing serves light pages, dark pages and print. One unit is one CSS px. Photographs are PNG data URIs. Names
come from the user: they are never read as mathtext, and characters that XML does not allow are removed.

A colour stands for the role of a model. It never stands alone: marker and label say the same.
"""

import base64
import functools
import hashlib
import io
import re
import warnings
from xml.etree import ElementTree

import numpy as np

from kd.errors import need
from kd.text import one_line, short_labels

# Vermilion and blue of Okabe & Ito (2008), which colour-blind readers can distinguish, and greys.
LIGHT = {"paper": "#ffffff", "ink": "#1a2026", "muted": "#5b6670", "rule": "#d8dde1",
         "teacher": "#d55e00", "alone": "#66727c", "student": "#0072b2",
         "shade": "#0072b3", "note": "#fdf1d3", "error": "#b00020"}
DARK = {"paper": "#14181c", "ink": "#e5e9ec", "muted": "#9ba7b0", "rule": "#39424a",
        "teacher": "#f28a45", "alone": "#a7b1b9", "student": "#5ab4ea",
        "shade": "#1f80c2", "note": "#3b3013", "error": "#ff8a8f"}
MARKERS = {"teacher": "s", "alone": "o", "student": "o"}
DASHES = ["-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (9, 2)), (0, (5, 2, 1, 1, 1, 2))]  # of one role

FONT = 12  # px

STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False,
    # No text is smaller: at the widths of a paper it must not fall below 7 points (kd/report/paper.py).
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "figure.labelsize", "legend.fontsize",
                     "xtick.labelsize", "ytick.labelsize"), FONT),
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["muted"], "axes.edgecolor": LIGHT["rule"],
    "xtick.color": LIGHT["rule"], "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"], "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.pad": 6,  # the first label stands below the lowest of the other axis
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 1,
    "grid.color": LIGHT["rule"], "grid.linewidth": .75, "axes.axisbelow": True,
    "lines.linewidth": 1.75, "lines.solid_capstyle": "round",
}


def drawing(draw):
    """Decorator: makes of `draw(figure, ...)` a function that returns inline SVG.

    The function takes what `draw` takes after `figure`, and alt, the description for those who cannot see the drawing.
    It raises UserError without matplotlib.
    """
    @functools.wraps(draw)
    def inline_svg(*args, alt, **options):
        return to_svg(draw, args, options, alt)
    return inline_svg


def to_svg(draw, args, options, alt):
    """Inline SVG of what draw(figure, *args, **options) draws, in the style of the report."""
    matplotlib = need("matplotlib", "report")
    figure_class = need("matplotlib.figure", "report").Figure
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing in DejaVu Sans; the browser has other fonts
        matplotlib.rcdefaults()  # the user's matplotlibrc could require LaTeX
        matplotlib.rcParams.update(STYLE)
        figure, file = figure_class(layout="constrained", dpi=72), io.StringIO()
        draw(figure, *args, **options)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), alt, draw.__name__)


def _inline(svg, alt, name):
    """matplotlib's SVG file as an element of an HTML page: no namespaces, no global style, ids of its own.

    name: of the drawing, which names its file among the figures for papers.
    """
    root = ElementTree.fromstring(svg)
    prefix = "f" + hashlib.sha256((alt + svg).encode(errors="replace")).hexdigest()[:8]
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    for element in root.iter():
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")) or child.tag.endswith("}path") and not child.get("d"):
                element.remove(child)
        element.tag = element.tag.split("}")[-1]
        attributes = {key.split("}")[-1]: value for key, value in element.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id" and value not in referenced:
                continue
            if key == "style":
                value = _with_variables(value)
            elif key == "id":
                value = prefix + value
            elif key in ("href", "clip-path"):
                value = value.replace("#", "#" + prefix)
            element.set(key, value)
    _ungroup(root)
    width, height = root.get("viewBox").split()[2:]
    root.attrib.update({"width": width, "height": height, "role": "img", "aria-label": one_line(alt, 10 ** 6),
                        "style": "stroke-linejoin: round", "data-figure": name})
    return ElementTree.tostring(root, encoding="unicode")


_VARIABLES = {colour: f"var(--{name}, {colour})" for name, colour in LIGHT.items()}


def _with_variables(style):
    """A style attribute whose font and whose colours of LIGHT are CSS variables."""
    style = re.sub(r"(font: [^;]*?px|font-family:) [^;]+", r"\1 var(--sans, sans-serif)", style)
    return re.sub("#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), style)


def _ungroup(element):
    """Replace groups without attributes by their children: matplotlib writes thousands of such groups."""
    children = []
    for child in element:
        _ungroup(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children


@drawing
def forest(figure, rows, reference=None, narrow=False):
    """Macro-F1 of models as dots with intervals, one row for each model, from top to bottom.

    rows: (label, role, value, lo, hi); role is teacher | alone | student; NaN where undefined.
    reference: (label, value), drawn as a vertical line, or None.
    narrow: for a telephone, with each label above its row.
    """
    width, row_height = (400, 46) if narrow else (840, 30)
    figure.set_size_inches(width / 72, (row_height * len(rows) + 76) / 72)
    axes = figure.add_subplot()
    for y, (_, role, value, lo, hi) in enumerate(rows):
        colour = LIGHT[role]
        axes.plot([lo, hi], [y, y], color=colour, linewidth=2.25)
        axes.plot([value], [y], MARKERS[role], color=colour, markersize=8, markeredgewidth=2,
                  markerfacecolor=LIGHT["paper"] if role == "alone" else colour)
        axes.annotate(f"{value:.3f}" if np.isfinite(value) else "undefined", (1, y),
                      xycoords=("axes fraction", "data"), xytext=(10, 0), va="center",
                      textcoords="offset points")
    names = short_labels([row[0] for row in rows], 44)
    numbers = [number for row in rows for number in row[2:]]
    if reference:
        name, value = reference
        numbers.append(value)
        for y in range(len(rows)) if narrow else ():  # between the labels
            axes.plot([value] * 2, [y - .15, y + .35], color=LIGHT["muted"], linewidth=1.25, zorder=.5)
        if not narrow:
            axes.axvline(value, color=LIGHT["muted"], linewidth=1.25, linestyle=(0, (4, 3)), zorder=.5)
        axes.annotate(f"{name} {value:.3f}", (value, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, 6), textcoords="offset points", color=LIGHT["muted"])
    numbers = [number for number in numbers if np.isfinite(number)] or [0, 1]
    margin = .06 * (max(numbers) - min(numbers)) + .01
    axes.set_xlim(max(0, min(numbers) - margin), min(1, max(numbers) + margin))
    axes.set_ylim(len(rows) - .4, -.6 - .2 * narrow)
    if narrow:
        axes.set_yticks([])
        for y, name in enumerate(names):
            axes.annotate(name, (0, y), xycoords=("axes fraction", "data"), xytext=(0, 10),
                          textcoords="offset points",
                          bbox={"facecolor": LIGHT["paper"], "linewidth": 0, "pad": 1})
    else:
        axes.set_yticks(range(len(rows)), names, color=LIGHT["ink"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("macro-F1 on the test split")


@drawing
def confusion(figure, matrix, class_names):
    """A confusion matrix of counts [C, C]: rows are true classes, columns predicted ones; shaded by share of the row.

    Zeros are left blank, and so are all counts of more than 15 classes, where they would not be legible.
    """
    from matplotlib.patches import Rectangle
    matrix, names = np.asarray(matrix), short_labels(class_names, 18)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count, longest = len(matrix), max(map(len, names))
    side = min(max(42 * count, 190), 588)
    label_width = 7 * longest
    figure.set_size_inches((side + label_width + 40) / 72, (side + label_width * (longest > 5) + 50) / 72)
    axes = figure.add_subplot(aspect="equal")
    for row, column in zip(*np.nonzero(matrix)):
        # At three quarters of full blue the ink is legible on it, in light and in dark.
        axes.add_patch(Rectangle((column - .5, row - .5), 1, 1, linewidth=0,
                                 facecolor=(LIGHT["shade"], .75 * shares[row, column])))
        if count <= 15:
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center",
                      fontweight="bold" if row == column else None)
    for edge in np.arange(-.5, count):
        axes.axhline(edge, color=LIGHT["rule"], linewidth=.75)
        axes.axvline(edge, color=LIGHT["rule"], linewidth=.75)
    axes.set_xlim(-.5, count - .5)
    axes.set_ylim(count - .5, -.5)
    slant = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"} if longest > 5 else {}
    axes.set_xticks(range(count), names, color=LIGHT["ink"], **slant)
    axes.set_yticks(range(count), names, color=LIGHT["ink"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def dashes(roles):
    """The line style of each of several lines; it differs between lines of one role."""
    return [DASHES[list(roles[:k]).count(role) % len(DASHES)] for k, role in enumerate(roles)]


def plain(axes, grid):
    """Remove the ticks and the left spine of axes, and draw a grid. grid: "x", "y" or "both"."""
    axes.grid(axis=grid)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def apart(heights, gap):
    """Sorted heights, moved as little as possible so that neighbours are at least `gap` apart."""
    blocks = []  # [sum of heights, count] of labels that touch; they move together
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1:
            (a, n), (b, m) = blocks[-2:]
            if b / m - a / n >= gap * (n + m) / 2:
                break
            blocks[-2:] = [[a + b, n + m]]
    return [total / n + gap * (i - (n - 1) / 2) for total, n in blocks for i in range(n)]


def thumbnail(image, limit=192):
    """A uint8 image [H, W, 3] as a PNG data URI, its longer side at most `limit` px."""
    from PIL import Image
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def standalone(svg, width=None):
    """An inline drawing as an SVG file of its own, in the light colours. width: in points; default: its own, in px."""
    svg = re.sub(r"var\(--[\w-]+, ([^()]*)\)", r"\1", svg)  # a CSS variable: its fallback
    if width:
        old_width, old_height = size(svg)
        svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)
        svg = svg.replace("<svg ", f'<svg width="{width:g}pt" height="{width * old_height / old_width:g}pt" ', 1)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def size(svg):
    """(width, height) of an inline drawing, in px."""
    return tuple(map(float, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg).groups()))
