"""Figures of robustness.csv: curves against severity, a heat map, and a sheet of example images."""

import io

import numpy as np

from kd.errors import need
from kd.files import parse_number
from kd.report.figures import LIGHT, MARKERS, STYLE, dashes, drawing, plain
from kd.text import one_line, short_labels

COLUMNS, NARROW = 5, 2  # panels beside each other in 840 px, and in 400
MANY_LINES, MAX_LINES = 6, 8  # beyond MANY_LINES, curves leave out exported files; they never draw more than MAX_LINES


def lines(rows):
    """{(model, file): its rows} of the first seed of each model; further seeds would lie on top of its lines."""
    rows_of, seeds = {}, {}
    for row in rows:
        if seeds.setdefault(row["model"], row["seed"]) == row["seed"]:
            rows_of.setdefault((row["model"], _file(row)), []).append(row)
    return rows_of


def _file(row):
    return row.get("file") or "best.pt"


def names_of(keys):
    """The names of (model, file) pairs in a legend. Checkpoints have the model's name alone."""
    return [model if file == "best.pt" else f"{model} {'INT8' if 'int8' in file else 'ONNX'}" for model, file in keys]


def legible(rows):
    """(rows, sentences about what is left out), of as many lines as curves can show.

    If there are many lines, those of checkpoints are kept, and of these the first MAX_LINES.
    """
    keys, omissions = list(lines(rows)), []
    if len(keys) > MANY_LINES:
        checkpoints = [key for key in keys if key[1] == "best.pt"] or keys
        if len(checkpoints) < len(keys):
            omissions.append("Exported files are not drawn; the tables have them.")
        keys = checkpoints
    if len(keys) > MAX_LINES:
        omissions.append(f"{len(keys) - MAX_LINES} more not drawn; the tables have all of them.")
    return [row for row in rows if (row["model"], _file(row)) in keys[:MAX_LINES]], omissions


def seeds(rows):
    """Words that follow "models" in a caption: where models have several seeds, only the first is drawn."""
    seeds_of_models, models = {(row["model"], row["seed"]) for row in rows}, {row["model"] for row in rows}
    return " (the first seed of each)" if len(seeds_of_models) > len(models) else ""


def corruptions(rows):
    """The names of the corruptions in rows, in order, without clean."""
    return [name for name in dict.fromkeys(row["corruption"] for row in rows) if name != "clean"]


def spoken(name):
    """A name with blanks in the place of underscores."""
    return name.replace("_", " ")


@drawing
def robustness_curves(figure, rows, roles, narrow=False, metric="macro_f1"):
    """A panel for each corruption: a metric against severity, 0 being clean; its 95% interval as a band.

    rows: of robustness.csv, of one suite, texts or numbers; each model and file becomes a line.
    roles: {model: teacher, alone or student}. narrow: for a telephone.
    """
    rows_of, panels = lines(rows), corruptions(rows)
    width = min(NARROW if narrow else COLUMNS, len(panels))
    height = -(-len(panels) // width)
    legend_columns = 1 if narrow else min(3, len(rows_of))
    legend_lines = -(-len(rows_of) // legend_columns)
    figure.set_size_inches((400 if narrow else 840) / 72, (150 * height + 40 + 20 * legend_lines) / 72)
    grid = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False)
    line_roles = [roles.get(model, "student") for model, _ in rows_of]
    handles = []  # a line of each model, for the legend
    for line_rows, role, linestyle in zip(rows_of.values(), line_roles, dashes(line_roles)):
        for axes, name in zip(grid.flat, panels):
            points = [_point(row, metric) for row in line_rows if row["corruption"] in ("clean", name)]
            x, y, lo, hi = np.array(sorted(points)).T
            axes.fill_between(x, lo, hi, color=LIGHT[role], alpha=.13, linewidth=0)
            (line,) = axes.plot(
                x, y, color=LIGHT[role], linestyle=linestyle, linewidth=1.5, marker=MARKERS[role], markersize=3,
                markerfacecolor=LIGHT["paper"] if role == "alone" else LIGHT[role],
            )
        handles.append(line)
    last = max(parse_number(row["severity"]) for row in rows)
    for axes, name in zip(grid.flat, panels):
        axes.set_title(spoken(name), color=LIGHT["ink"], loc="left", pad=4)
        axes.set_xticks(range(int(last) + 1), ["clean", *map(str, range(1, int(last) + 1))])
        plain(axes, "y")
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    for k in range(len(panels) - width, len(panels)):
        grid.flat[k].tick_params(labelbottom=True)
    grid[0, 0].set_ylim(bottom=0)
    grid[0, 0].set_xlim(-.2, last + .2)
    figure.supylabel(spoken(metric).replace("macro f1", "macro-F1"), color=LIGHT["muted"])
    figure.supxlabel("severity", color=LIGHT["muted"])
    names = short_labels(names_of(rows_of), 32)
    figure.legend(
        handles, names, loc="outside upper left", ncols=legend_columns, frameon=False, handlelength=3,
    )


def _point(row, metric):
    """(severity, value, lo, hi) of a row."""
    keys = ("severity", metric, f"{metric}_lo", f"{metric}_hi")
    return tuple(parse_number(row[key]) for key in keys)


@drawing
def robustness_heatmap(figure, rows, roles, metric="macro_f1"):
    """Models by corruptions: a metric, mean over severities; the darker, the more of the clean value is lost.

    rows, roles: as for robustness_curves().
    """
    from matplotlib.patches import Rectangle
    rows_of, columns = lines(rows), corruptions(rows)
    names = short_labels(names_of(rows_of), 44)
    longest = max(len(spoken(name)) for name in columns)
    figure.set_size_inches(840 / 72, (34 * len(rows_of) + 5 * longest + 60) / 72)
    axes = figure.add_subplot()
    for y, line_rows in enumerate(rows_of.values()):
        means = [_mean(line_rows, name, metric) for name in ("clean", *columns)]
        for x, mean in enumerate(means):
            loss = np.clip(1 - mean / means[0], 0, 1) if np.isfinite(mean) and means[0] else 0
            # At three quarters of full colour the ink is legible on it, in light and in dark.
            axes.add_patch(Rectangle((x - .5, y - .5), 1, 1, linewidth=0, facecolor=(LIGHT["teacher"], .75 * loss)))
            label = f"{mean:.2f}".lstrip("0") if np.isfinite(mean) else ""
            axes.text(x, y, label, ha="center", va="center", fontweight=None if x else "bold")
    for edge in np.arange(-.5, len(rows_of)):
        axes.axhline(edge, color=LIGHT["rule"], linewidth=.75)
    axes.axvline(.5, color=LIGHT["rule"], linewidth=1.5)
    axes.set_xlim(-.5, len(columns) + .5)
    axes.set_ylim(len(rows_of) - .5, -.5)
    axes.xaxis.tick_top()
    axes.set_xticks(
        range(len(columns) + 1), ["clean", *map(spoken, columns)], color=LIGHT["ink"], rotation=45, ha="left",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows_of)), names)
    for tick, (model, _) in zip(axes.get_yticklabels(), rows_of):
        tick.set_color(LIGHT[roles.get(model, "student")])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _mean(rows, corruption, metric):
    """The mean of a metric over the severities of a corruption; NaN without rows."""
    values = [parse_number(row[metric]) for row in rows if row["corruption"] == corruption]
    return np.mean(values) if values else np.nan


def sheet(rows):
    """PNG bytes of example images: a row for each corruption, a column for each severity.

    rows: [(corruption, [(caption, uint8 [S, S, 3])])]. Raises UserError without matplotlib.
    """
    matplotlib = need("matplotlib", "report")
    figure_class = need("matplotlib.figure", "report").Figure
    columns = max(len(cells) for _, cells in rows)
    width, height = 1.3 * columns + 1.7, 1.47 * len(rows)  # inches
    margins = {
        "left": 1.65 / width, "right": .995, "top": 1 - .25 / height, "bottom": .002, "wspace": .04, "hspace": .17,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = figure_class(figsize=(width, height + .1), dpi=110, facecolor="white")
        grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=margins)
        for row_axes, (name, cells) in zip(grid, rows):
            for axes in row_axes:
                axes.set_axis_off()
            for axes, (caption, pixels) in zip(row_axes, cells):
                axes.imshow(pixels, interpolation="nearest")
                axes.set_title(caption, fontsize=9, color=LIGHT["muted"], pad=2)
            row_axes[0].text(
                -.06, .5, one_line(spoken(name), 22), transform=row_axes[0].transAxes, ha="right", va="center",
                fontsize=11,
            )
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()
