"""The figure of the scalars that runs log while they are trained."""

import math

import numpy as np

from kd.report.figures import LIGHT, MARKERS, dashes, drawing, plain
from kd.text import one_line, short_labels

FRAME_HEIGHT = 132   # px, with the tag above it and the steps below it
MAX_POINTS = 200     # of a line


@drawing
def scalars(figure, models, frames, narrow=False):
    """Small multiples: a frame for each scalar, in it a line for each run, over its steps.

    models: (name, role) of each line in the legend. frames: (tag, lines), of which each is (index of the model, steps
    [N], values [N], step of the mark or None). narrow: two frames beside each other, not four.
    """
    from matplotlib.ticker import MaxNLocator
    width, columns = (400, 2) if narrow else (840, 4)
    columns = min(columns, max(len(frames), 2))
    rows = math.ceil(len(frames) / columns)
    in_a_row = 1 if narrow else 3
    legend = 20 * math.ceil(len(models) / in_a_row) + 12  # px
    height = legend + FRAME_HEIGHT * rows
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    styles = dashes([role for _, role in models])
    cell, left, right, above, below = width / columns, 46, 10, 22, 26
    for k, (tag, lines) in enumerate(frames):
        row, column = divmod(k, columns)
        top = legend + FRAME_HEIGHT * row
        axes = figure.add_axes((
            (cell * column + left) / width, 1 - (top + FRAME_HEIGHT - below) / height,
            (cell - left - right) / width, (FRAME_HEIGHT - above - below) / height,
        ))
        for model, steps, values, mark in lines:
            colour = LIGHT[models[model][1]]
            steps, values = _thinned(steps, values)
            axes.plot(steps, values, color=colour, linestyle=styles[model], linewidth=1.4,
                      marker="." if len(steps) == 1 else None)
            if mark in steps:
                axes.plot([mark], values[steps == mark], MARKERS[models[model][1]], color=colour, markersize=6,
                          markerfacecolor=LIGHT["paper"], markeredgewidth=1.5)
        axes.text(0, 1.06, one_line(tag, 24), transform=axes.transAxes, va="bottom")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-"))
        plain(axes, "y")
    handles = [figure.axes[0].plot([], [], color=LIGHT[role], linestyle=style)[0]
               for (_, role), style in zip(models, styles)]
    figure.legend(handles, short_labels([name for name, _ in models], 34), loc="upper left", ncols=in_a_row,
                  frameon=False, handlelength=3, bbox_to_anchor=(0, 1), borderaxespad=0)


def _thinned(steps, values):
    """At most about MAX_POINTS of the points, evenly spread, with the first and the last; without infinities."""
    steps, values = np.asarray(steps), np.asarray(values, float)
    every = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int))
    return steps[every], np.where(np.isfinite(values[every]), values[every], np.nan)
