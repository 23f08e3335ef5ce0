"""The figure of a sweep: the metric on validation over each option that was tried."""

import math

from kd.report.figures import LIGHT, MARKERS, drawing, plain
from kd.text import one_line

WIDTH, HEIGHT = 280, 220  # of a panel, px
IN_A_ROW = 3              # panels beside each other in 840 px


@drawing
def sweep(figure, panels, title, role, narrow=False):
    """One panel for each option: a dot for each try, and a line through those that differ in this option alone.

    panels: (option, values, tries, chosen); values: of the option, in the order of the plan; tries: (index of the
    value, metric, whether the try is on the line); chosen: the index into `tries`. title: of the metric's axis. role:
    of the model. narrow: panels below each other, for a telephone.
    """
    columns = 1 if narrow else min(IN_A_ROW, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure.set_size_inches((400 if narrow else max(WIDTH * columns, 400)) / 72, HEIGHT * rows / 72)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (option, values, tries, chosen) in zip(grid, panels):
        positions = _axis(axes, values)
        axes.scatter([positions[k] for k, _, _ in tries], [value for _, value, _ in tries], s=22, zorder=2,
                     color=LIGHT["muted"], linewidths=0)
        line = sorted((positions[k], value) for k, value, on_line in tries if on_line)
        axes.plot(*zip(*line), color=LIGHT[role], marker=".", zorder=3)
        k, value, _ = tries[chosen]
        axes.plot([positions[k]], [value], MARKERS[role], color=LIGHT[role], markersize=10, markeredgewidth=2,
                  markerfacecolor=LIGHT["paper"], zorder=4)
        axes.set_xlabel(one_line(option, 32))
        axes.margins(.12)
        plain(axes, "y")
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(title)


def _axis(axes, values):
    """Give the x axis a tick at each value, and return where the values are on it.

    Numbers are on a line, in powers where the largest is ten times the smallest or more; texts side by side.
    """
    from matplotlib.ticker import NullLocator
    if not all(isinstance(value, (int, float)) for value in values):
        longest = max(len(str(value)) for value in values)
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if longest * len(values) > 24 else {}
        axes.set_xticks(range(len(values)), [one_line(str(value), 24) for value in values], **slant)
        return list(range(len(values)))
    scale, ordered = (lambda value: value), sorted(values)
    if ordered[0] > 0 and ordered[-1] >= 10 * ordered[0]:
        axes.set_xscale("log")
        scale = math.log
    width = scale(ordered[-1]) - scale(ordered[0])
    labelled = ordered[:1]
    for value in ordered[1:]:
        if scale(value) - scale(labelled[-1]) >= .12 * width:  # labels would lie on each other
            labelled.append(value)
    axes.set_xticks(labelled, [f"{value:g}" for value in labelled])
    axes.xaxis.set_minor_locator(NullLocator())
    return values
