"""Figures about how good models are: F1 of each class, reliability, risk over coverage, quality over latency."""

import numpy as np

from kd.report.figures import LIGHT, MARKERS, apart, dashes, drawing, plain
from kd.text import one_line


@drawing
def per_class(figure, names, model, reference, kind, title):
    """Bars of a model's F1 of each class [C], each METRIC; its reference as a mark on the bar.

    names: classes. reference: METRICs [C], or None. kind: the model's role. title: the reference's name.
    """
    figure.set_size_inches(420 / 72, (26 * len(names) + 84) / 72)
    axes = figure.add_subplot()
    places = np.arange(len(names))
    for y, metric in enumerate(model):
        if np.isfinite(metric["value"]):
            axes.barh(y, metric["value"], height=.56, color=LIGHT[kind], alpha=.32, linewidth=0)
            axes.plot([metric["lo"], metric["hi"]], [y, y], color=LIGHT[kind], linewidth=2.25)
            axes.plot([metric["value"]], [y], "|", color=LIGHT[kind], markersize=13, markeredgewidth=2.25)
        axes.annotate(f"{metric['value']:.3f}" if np.isfinite(metric["value"]) else "n/a", (1, y), xytext=(8, 0),
                      xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=11)
    for y, metric in enumerate(reference or ()):
        if np.isfinite(metric["value"]):
            axes.plot([metric["value"]], [y - .02], MARKERS["teacher"], color=LIGHT["teacher"], markersize=6.5,
                      markeredgecolor=LIGHT["paper"], markeredgewidth=1.25, clip_on=False, zorder=5)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - .45, -.55)
    axes.set_yticks(places, [one_line(name, 18) for name in names], color=LIGHT["ink"])
    axes.set_xticks([0, .25, .5, .75, 1], ["0", ".25", ".5", ".75", "1"])
    plain(axes, "x")
    axes.set_xlabel("F1 on the test split", loc="left")
    if reference:
        axes.annotate(f"■ {one_line(title, 26)}", (1, 0), xytext=(0, -26), xycoords="axes fraction", textcoords="offset points",
                      ha="right", va="top", color=LIGHT["teacher"])


@drawing
def reliability(figure, raw, calibrated, kind, eces):
    """Accuracy over confidence, a mark a bin whose area is its share of the images; on the diagonal they agree.

    raw, calibrated: bins {"count", "confidence", "accuracy"} of metrics.json, or None. eces: (raw, calibrated).
    """
    figure.set_size_inches(330 / 72, 346 / 72)
    axes = figure.add_subplot(aspect="equal")
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    for rows, look, line in ((raw, {"facecolor": LIGHT["paper"], "edgecolor": LIGHT["alone"], "linewidth": 1.75}, LIGHT["alone"]),
                             (calibrated, {"facecolor": LIGHT[kind], "edgecolor": LIGHT["paper"], "linewidth": .75}, LIGHT[kind])):
        held = [row for row in rows or () if row["count"] and row["confidence"] is not None and row["accuracy"] is not None]
        if held:
            x, y, n = (np.array([row[key] for row in held], dtype=float) for key in ("confidence", "accuracy", "count"))
            axes.plot(x, y, color=line, linewidth=1, alpha=.5)
            axes.scatter(x, y, s=14 + 240 * n / n.sum(), zorder=3, **look)
    told = [(f"{mark}, ECE {ece:.3f}", colour) for mark, ece, colour, rows in (
        ("○ raw", eces[0], LIGHT["alone"], raw), ("● calibrated", eces[1], LIGHT[kind], calibrated)) if rows and np.isfinite(ece)]
    for k, (words, colour) in enumerate(told):
        axes.text(.03, .96 - .085 * k, words, color=colour, transform=axes.transAxes, va="top", fontsize=11)
    ticks = [0, .25, .5, .75, 1], ["0", ".25", ".5", ".75", "1"]
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid()
    axes.tick_params(length=0)
    axes.set_xlabel("confidence (mean of the bin)")
    axes.set_ylabel("accuracy of the bin")


@drawing
def risk_coverage(figure, curves, narrow=False):
    """Share of wrong answers among the most confident images; curves: (label, kind, coverage, risk)."""
    width = 400 if narrow else 760
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, (330 + (22 * len(curves) if narrow else 0)) / 72)
    bottom = (58 + 22 * len(curves)) / (330 + 22 * len(curves)) if narrow else .16
    axes = figure.add_axes((58 / width, bottom, (.97 if narrow else .70) - 58 / width, .96 - bottom))
    top = max([max(risk) for *_, risk in curves if len(risk)], default=1)
    ends = []
    for (name, kind, coverage, risk), style in zip(curves, dashes([curve[1] for curve in curves])):
        axes.plot(coverage, risk, color=LIGHT[kind], linestyle=style)
        ends.append((risk[-1], len(ends), kind, style, name))
    ends.sort()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08 * top or 1)
    for k, (height, (_, _, kind, style, name)) in enumerate(zip(apart([end[0] for end in ends], .07 * top), ends)):
        if narrow:
            y = (14 + 22 * k) / (330 + 22 * len(curves))
            line = [figure.transFigure, [58 / width, 84 / width], [y, y], 92 / width, y]
        else:
            line = [axes.get_yaxis_transform(), [1.015, 1.05], [height, height], 1.062, height]
        transform, xs, ys, x, y = line
        axes.plot(xs, ys, color=LIGHT[kind], linestyle=style, transform=transform, clip_on=False)
        axes.text(x, y, one_line(name, 34), transform=transform, va="center", fontsize=11)
    plain(axes, "y")
    axes.set_xlabel("coverage (share of the images that are answered)")
    axes.set_ylabel("risk (share of these that is wrong)")


@drawing
def pareto(figure, points, unit, narrow=False):
    """Quality over latency; the area of a mark is the file's size, a hollow mark is dominated.

    points: ((label, details), kind, "fp32" or "int8", latency in ms, score, lo, hi, bytes, whether dominated, place of
    the point it was quantised from, or None). unit: what the latency is of. narrow: without the details.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
    width, height = (400, 400) if narrow else (820, 430)
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    right = .53 if narrow else .66
    axes = figure.add_axes((58 / width, .14, right - 58 / width, .82))
    latencies = np.array([point[3] for point in points])
    numbers = np.array([n for point in points for n in point[4:7] if np.isfinite(n)])
    room = .06 * np.ptp(numbers) + .01
    low, high = max(0, numbers.min() - room), min(1, numbers.max() + room)
    logarithmic = latencies.max() > 8 * latencies.min() > 0
    largest = max(point[7] or 0 for point in points) or 1
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(latencies.min() / 1.35, latencies.max() * 1.35)
        ticks = [t for t in (.01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
                 if latencies.min() / 1.35 <= t <= latencies.max() * 1.35]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    else:
        axes.set_xlim(0, latencies.max() * 1.12)
    for _, kind, precision, x, y, lo, hi, size, dominated, origin in points:
        if origin is not None:
            axes.plot([points[origin][3], x], [points[origin][4], y], color=LIGHT["muted"], linewidth=.75, zorder=1)
        axes.plot([x, x], [lo, hi], color=LIGHT[kind], linewidth=1.25, alpha=.7, zorder=2)
        axes.scatter([x], [y], s=36 + 380 * (size or 0) / largest, marker="D" if precision == "int8" else "o", zorder=3,
                     facecolor=LIGHT["paper"] if dominated else LIGHT[kind], edgecolor=LIGHT[kind], linewidth=1.75)
    axes.set_ylim(low, high)
    order = sorted(range(len(points)), key=lambda k: points[k][4])
    gap = (14 if narrow else 17) / (.82 * height) * (high - low)
    beside = axes.get_yaxis_transform()
    heights = apart([points[k][4] for k in order], gap)
    shift = max(0, low + gap / 2 - min(heights)) - max(0, max(heights) - high + gap / 2)
    for k, y in zip(order, heights):
        (name, details), _, _, x, score, *_ = points[k]
        axes.annotate("", (x, score), xytext=(1.03, y + shift), xycoords="data", textcoords=beside, zorder=1,
                      arrowprops={"arrowstyle": "-", "color": LIGHT["rule"], "linewidth": .75, "shrinkB": 0})
        axes.text(1.045, y + shift, one_line(name, 27) if narrow else f"{one_line(name, 36)}, {details}", transform=beside,
                  va="center", fontsize=10 if narrow else 11)
    plain(axes, "both")
    axes.set_xlabel(f"{unit}{', logarithmic' if logarithmic else ''}")
    axes.set_ylabel("macro-F1 on the test split")


@drawing
def stages(figure, models, narrow=False):
    """Linear CKA with the teacher by stage; models: (label, kind, values [stages], lo, hi)."""
    figure.set_size_inches((400 if narrow else 820) / 72, 290 / 72)
    axes = figure.add_subplot()
    count = max(len(values) for _, _, values, *_ in models)
    ends = []
    for (name, kind, values, lo, hi), style in zip(models, dashes([model[1] for model in models])):
        steps = range(1, 1 + len(values))
        axes.fill_between(steps, lo, hi, color=LIGHT[kind], alpha=.13, linewidth=0)
        axes.plot(steps, values, color=LIGHT[kind], linestyle=style, marker="o", markersize=5)
        ends.append((float(values[-1]), len(ends), name))
    ends.sort()
    for y, (_, _, name) in zip(apart([end[0] for end in ends], .085), ends):
        axes.annotate(one_line(name, 24), (count, y), xytext=(10, 0), textcoords="offset points", va="center", fontsize=11,
                      annotation_clip=False)
    axes.set_xticks(range(1, 1 + count))
    axes.set_xlim(.85, count + .05)
    axes.set_ylim(0, 1)
    plain(axes, "y")
    axes.set_xlabel("stage")
    axes.set_ylabel("linear CKA with the teacher")


@drawing
def attention(figure, rows, narrow=False):
    """Test images beside the maps of teacher and student, a row an image.

    rows: (image uint8 [H, W, 3], teacher [stages, h, w], student [stages, h, w]). narrow: the last stage but one alone, for the
    last may have four positions.
    """
    stages = [max(0, len(rows[0][1]) - 2)] if narrow else range(len(rows[0][1]))
    columns = [("image", None, None), *((who, place, s) for place, who in ((1, "teacher"), (2, "student")) for s in stages)]
    side, gap = (104, 8) if narrow else (80, 6)
    width = len(columns) * (side + gap) + (0 if narrow else 28)
    height = len(rows) * (side + gap) + 44
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    for row, held in enumerate(rows):
        for column, (who, place, stage) in enumerate(columns):
            x = column * (side + gap) + (0 if narrow else 14 * (place or 0))
            axes = figure.add_axes((x / width, 1 - (44 + (row + 1) * (side + gap) - gap) / height, side / width, side / height))
            axes.set_axis_off()
            axes.imshow(held[0] if place is None else held[place][stage].astype(np.float32), cmap="cividis", interpolation="nearest")
            if row == 0:
                words = who if place is None else f"{who}, stage {stage + 1}" if narrow else f"stage {stage + 1}"
                axes.text(.5, 1.05, words, transform=axes.transAxes, ha="center", fontsize=11, color=LIGHT["muted"])
                if not narrow and place and stage == 0:
                    axes.text(0, 1.28, who, transform=axes.transAxes, fontsize=12, fontweight="bold",
                              color=LIGHT["teacher" if who == "teacher" else "student"])
