"""Figures of robustness.csv: curves against severity, a heat map; and a sheet of what the corruptions look like."""

import io

import numpy as np

from kd.errors import need
from kd.files import parse_number
from kd.report.figures import LIGHT, MARKERS, STYLE, dashes, drawing, plain
from kd.text import one_line

ACROSS = 5  # panels, or thumbnails' columns, that 840 px hold
FEW, MOST = 6, 8  # lines that curves show with those of exported files, and at all


def lines(rows):
    """{(model, file): its rows}, of the first seed of each model: other seeds would be lines on lines."""
    found, seeds = {}, {}
    for row in rows:
        if seeds.setdefault(row["model"], row["seed"]) == row["seed"]:
            found.setdefault((row["model"], row.get("file") or "best.pt"), []).append(row)
    return found


def names_of(keys):
    """What (model, file) are called where they stand together: the file is said where it is an exported one."""
    return [model if file == "best.pt" else f"{model} {'INT8' if 'int8' in file else 'ONNX'}" for model, file in keys]


def legible(rows):
    """(the rows of as many lines as curves can show, [what is left out]): of many lines those of checkpoints, the first of them."""
    keys = list(lines(rows))
    held = [key for key in keys if key[1] == "best.pt"] or keys if len(keys) > FEW else keys
    told = ["Exported files are not drawn; the tables have them."] if len(held) < len(keys) else []
    if len(held) > MOST:
        told.append(f"{len(held) - MOST} more not drawn; the tables have all of them.")
    return [row for row in rows if (row["model"], row.get("file") or "best.pt") in held[:MOST]], told


def seeds(rows):
    """Words after "models": of several seeds the first is drawn."""
    several = len({(row["model"], row["seed"]) for row in rows}) > len({row["model"] for row in rows})
    return " (the first seed of each)" if several else ""


def corruptions(rows):
    """The corruptions of rows in order, clean left out."""
    return [name for name in dict.fromkeys(row["corruption"] for row in rows) if name != "clean"]


def spoken(name):
    return name.replace("_", " ")


@drawing
def curves(figure, rows, kinds, metric="macro_f1"):
    """A panel a corruption: a metric against severity, 0 being clean, with its 95% interval as a band; a line a model.

    rows: of robustness.csv, of one suite, texts or numbers. kinds: {model: teacher, alone or student}.
    """
    held, panels = lines(rows), corruptions(rows)
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure.set_size_inches(840 / 72, (150 * down + 40 + 20 * -(-len(held) // 3)) / 72)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    roles, drawn = [kinds.get(model, "student") for model, _ in held], []
    for own, kind, style in zip(held.values(), roles, dashes(roles)):
        clean = [row for row in own if row["corruption"] == "clean"]
        for axes, name in zip(grid.flat, panels):
            cells = sorted((parse_number(row["severity"]), *(parse_number(row[f"{metric}{end}"]) for end in ("", "_lo", "_hi")))
                           for row in [*clean, *(row for row in own if row["corruption"] == name)])
            x, y, lo, hi = np.array(cells).T
            axes.fill_between(x, lo, hi, color=LIGHT[kind], alpha=.13, linewidth=0)
            line, = axes.plot(x, y, color=LIGHT[kind], linestyle=style, linewidth=1.5,
                              marker=MARKERS[kind], markersize=3, markerfacecolor=LIGHT["paper"] if kind == "alone" else LIGHT[kind])
        drawn.append(line)
    last = max(parse_number(row["severity"]) for row in rows)
    for axes, name in zip(grid.flat, panels):
        axes.set_title(spoken(name), fontsize=12, color=LIGHT["ink"], loc="left", pad=4)
        axes.set_xticks(range(int(last) + 1), ["clean", *map(str, range(1, int(last) + 1))])
        plain(axes, "y")
        axes.tick_params(labelsize=11)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    for k in range(len(panels) - across, len(panels)):
        grid.flat[k].tick_params(labelbottom=True)
    grid[0, 0].set_ylim(bottom=0)
    grid[0, 0].set_xlim(-.2, last + .2)
    figure.supylabel(spoken(metric).replace("macro f1", "macro-F1"), color=LIGHT["muted"], fontsize=12)
    figure.supxlabel("severity", color=LIGHT["muted"], fontsize=12)
    figure.legend(drawn, [one_line(name) for name in names_of(held)], loc="outside upper left", ncols=min(3, len(held)), frameon=False,
                  handlelength=3, fontsize=12)


@drawing
def heatmap(figure, rows, kinds, metric="macro_f1"):
    """Models by corruptions: a metric, mean over severities; the darker, the more of the clean figure is lost.

    rows, kinds: as for curves().
    """
    from matplotlib.patches import Rectangle
    held, columns = lines(rows), corruptions(rows)
    names = [one_line(name, 30) for name in names_of(held)]
    longest = max(len(spoken(name)) for name in columns)
    figure.set_size_inches(840 / 72, (34 * len(held) + 5 * longest + 60) / 72)
    axes = figure.add_subplot()
    for y, own in enumerate(held.values()):
        values = [[parse_number(row[metric]) for row in own if row["corruption"] == name] for name in ["clean", *columns]]
        means = [np.mean(value) if value else np.nan for value in values]
        for x, value in enumerate(means):
            lost = np.clip(1 - value / means[0], 0, 1) if np.isfinite(value) and means[0] else 0
            # at three quarters of full colour the ink is legible on it, in light and in dark
            axes.add_patch(Rectangle((x - .5, y - .5), 1, 1, linewidth=0, facecolor=(LIGHT["teacher"], .75 * lost)))
            axes.text(x, y, f"{value:.2f}".lstrip("0") if np.isfinite(value) else "", ha="center", va="center", fontsize=11,
                      fontweight="bold" if not x else None)
    for edge in np.arange(-.5, len(held)):
        axes.axhline(edge, color=LIGHT["rule"], linewidth=.75)
    axes.axvline(.5, color=LIGHT["rule"], linewidth=1.5)
    axes.set_xlim(-.5, len(columns) + .5)
    axes.set_ylim(len(held) - .5, -.5)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns) + 1), ["clean", *map(spoken, columns)], color=LIGHT["ink"], rotation=45, ha="left",
                    rotation_mode="anchor")
    axes.set_yticks(range(len(held)), names)
    for tick, (model, _) in zip(axes.get_yticklabels(), held):
        tick.set_color(LIGHT[kinds.get(model, "student")])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def sheet(rows):
    """PNG bytes: a row a corruption, a column a severity, of one image.

    rows: [(corruption, [(caption, uint8 [S, S, 3])])].
    """
    matplotlib = need("matplotlib", "report")
    figure = need("matplotlib.figure", "report").Figure
    across = max(len(cells) for _, cells in rows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn = figure(figsize=(1.3 * across + 1.7, 1.47 * len(rows) + .1), dpi=110, facecolor="white")
        grid = drawn.subplots(len(rows), across, squeeze=False, gridspec_kw={
            "left": 1.65 / (1.3 * across + 1.7), "right": .995, "top": 1 - .25 / (1.47 * len(rows)), "bottom": .002, "wspace": .04, "hspace": .17})
        for line, (name, cells) in zip(grid, rows):
            for axes in line:
                axes.set_axis_off()
            for axes, (caption, pixels) in zip(line, cells):
                axes.imshow(pixels, interpolation="nearest")
                axes.set_title(caption, fontsize=9, color=LIGHT["muted"], pad=2)
            line[0].text(-.06, .5, one_line(spoken(name), 22), transform=line[0].transAxes, ha="right", va="center", fontsize=11)
        file = io.BytesIO()
        drawn.savefig(file, format="png")
    return file.getvalue()


def standalone(svg):
    """An inline drawing as an SVG file of its own."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
