"""The figure of quality against latency, or against parameters, by which a model is chosen."""

from typing import NamedTuple

import numpy as np

from kd.report.figures import LIGHT, MARKERS, apart, drawing, plain
from kd.text import short_labels

TICKS = [digit * 10 ** power for power in range(-3, 5) for digit in (1, 2, 5)]  # of costs
LARGEST, SMALLEST = 560, 80  # areas of marks, in square points
SMALLEST_INT8 = 22           # within a mark of the same place
ROW = 15                     # px between lines of text
DIGIT, SPACE = 7, 8          # px: the widths of a digit, and between the labels of ticks


class Mark(NamedTuple):
    """A file of a model, or a model. cost: latency in ms, or millions of parameters; score with its interval, NaN
    without one; size in MB, or None."""

    cost: float
    score: float
    lo: float
    hi: float
    size: float


@drawing
def quality_latency(figure, models, values=()):
    """Macro-F1 with its interval over latency; the area of a mark is the size of the file.

    models: (name, role, Mark, Mark of its INT8 file or None). values: (index of a model, score of one of its seeds),
    drawn as dashes. The line joins the files that no other file equals in both.
    """
    _draw(figure, models, values, "median latency, ms an image", "ms")


@drawing
def quality_parameters(figure, models, values=()):
    """Macro-F1 with its interval over the number of parameters, as quality_latency()."""
    _draw(figure, models, values, "parameters, millions", "M")


def _draw(figure, models, values, label, unit):
    """A drawing 400 px wide. label: of the axis of costs; unit: of a cost beside the axes."""
    width, left, bottom = 400, 56, 50
    height = max(240, 2.2 * ROW * len(models) + bottom + 14)
    names = short_labels([name for name, *_ in models], 25)
    beside = 22 + 6.4 * max(17, *map(len, names))  # px for the labels
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + beside) / width, 1 - (bottom + 14) / height))
    marks = [mark for model in models for mark in model[2:] if mark]
    largest = max([mark.size or 0 for mark in marks], default=0) or 1
    _cost_axis(axes, [mark.cost for mark in marks], label, width - left - beside)
    _score_axis(axes, [*(number for mark in marks for number in mark[1:4]), *(score for _, score in values)])
    axes.plot(*_front(marks, axes.get_xlim()[1]), color=LIGHT["muted"], linewidth=.9, linestyle=(0, (3, 2)), zorder=1)
    for _, role, mark, int8 in models:
        colour = LIGHT[role]
        if int8:
            axes.plot([mark.cost, int8.cost], [mark.score, int8.score], color=colour, linewidth=.75, zorder=2)
        for file, marker, least in ((mark, MARKERS[role], SMALLEST), (int8, "D", SMALLEST_INT8)):
            if file:
                is_open = (role == "alone") != (file is int8)  # each stands out from the other of its model
                axes.plot([file.cost] * 2, [file.lo, file.hi], color=colour, linewidth=1.5, alpha=.7, zorder=3)
                axes.scatter([file.cost], [file.score], s=max(least, LARGEST * (file.size or 0) / largest),
                             marker=marker, facecolor=LIGHT["paper"] if is_open else colour, edgecolor=colour,
                             linewidth=1.5, zorder=4)
    for k, score in values:
        axes.plot([models[k][2].cost], [score], "_", color=LIGHT[models[k][1]], markersize=11, markeredgewidth=1.5)
    _labels(axes, models, names, unit, 2.2 * ROW / (height - bottom - 14))


def _cost_axis(axes, costs, label, width):
    """From 0, or logarithmic where the largest is eight times the smallest. width: in px."""
    from matplotlib.ticker import MaxNLocator, NullLocator
    largest, smallest = max(costs), min(costs)
    if largest > 8 * smallest > 0:
        first = max((tick for tick in TICKS if tick <= smallest / 1.2), default=smallest / 1.6)
        last, scale, ticks = largest * 1.6, np.log, TICKS
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        label += ", log scale"
    else:
        first, last, scale = 0, 1.15 * largest or 1, float
        ticks = MaxNLocator(5).tick_values(first, last)
    axes.set_xlim(first, last)
    per_px = (scale(last) - scale(first)) / width
    ticks = legible([tick for tick in ticks if first <= tick <= last], lambda tick: scale(tick) / per_px)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(label)


def legible(ticks, place):
    """Those of ascending ticks whose labels have room beside each other. place: a function, tick -> px."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if place(tick) - place(kept[-1]) >= DIGIT * (len(f"{tick:g}") + len(f"{kept[-1]:g}")) / 2 + SPACE:
            kept.append(tick)
    return kept


def _score_axis(axes, numbers):
    from matplotlib.ticker import MaxNLocator
    numbers = [number for number in numbers if np.isfinite(number)] or [0, 1]
    margin = .08 * (max(numbers) - min(numbers)) + .01
    axes.set_ylim(max(0, min(numbers) - margin), min(1, max(numbers) + margin))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.set_ylabel("macro-F1 on the test split")
    plain(axes, "both")


def _front(marks, last):
    """(costs, scores) of the steps along the marks that no other equals in both; the last one ends at `last`."""
    x, y, best = [], [], -np.inf
    for mark in sorted(marks, key=lambda mark: (mark.cost, -mark.score)):
        if mark.score > best:
            x += [mark.cost] * (2 if y else 1)
            y += [*y[-1:], mark.score]
            best = mark.score
    return [*x, last], [*y, *y[-1:]]


def _labels(axes, models, names, unit, gap):
    """The name of each model beside the axes, in the order of their scores. gap: least distance, in heights."""
    low, high = axes.get_ylim()
    order = sorted(range(len(models)), key=lambda k: models[k][2].score)
    heights = np.array(apart([(models[k][2].score - low) / (high - low) for k in order], gap))
    heights += max(0, gap / 2 - heights[0]) - max(0, heights[-1] - 1 + gap / 2)
    for k, y in zip(order, heights):
        _, role, mark, _ = models[k]
        axes.annotate("", (mark.cost, mark.score), xytext=(1.02, y), xycoords="data", textcoords="axes fraction",
                      arrowprops={"arrowstyle": "-", "color": LIGHT["rule"], "linewidth": .75, "shrinkB": 0}, zorder=1)
        size = f", {short(mark.size)} MB" if mark.size else ""
        for words, colour, up in ((names[k], LIGHT[role], 1), (f"{short(mark.cost)} {unit}{size}", LIGHT["muted"], -1)):
            axes.annotate(words, (1.04, y), xytext=(0, up * ROW / 2), textcoords="offset points", color=colour,
                          xycoords="axes fraction", va="center")


def short(number):
    """A number with two digits, or with all before the point."""
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"
