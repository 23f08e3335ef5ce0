"""Figures of the quality of models: F1 of each class, calibration, risk, CKA and attention."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from kd.estimate import wilson
from kd.report.figures import LIGHT, MARKERS, apart, dashes, drawing, plain
from kd.text import one_line, short_labels

QUARTERS = [0, .25, .5, .75, 1], ["0", ".25", ".5", ".75", "1"]  # ticks and their labels


@drawing
def per_class(figure, names, model, reference, role, title):
    """Bars of a model's F1 of each class, and a mark on each for its reference.

    names: the C classes. model: C METRICs. reference: C METRICs, or None. role: of the model. title: the reference's
    name.
    """
    figure.set_size_inches(400 / 72, (26 * len(names) + 84) / 72)
    axes = figure.add_subplot()
    for y, metric in enumerate(model):
        value = metric["value"]
        if np.isfinite(value):
            axes.barh(y, value, height=.56, color=LIGHT[role], alpha=.32, linewidth=0)
            axes.plot([metric["lo"], metric["hi"]], [y, y], color=LIGHT[role], linewidth=2.25)
            axes.plot([value], [y], "|", color=LIGHT[role], markersize=13, markeredgewidth=2.25)
        axes.annotate(f"{value:.3f}" if np.isfinite(value) else "n/a", (1, y), xytext=(8, 0),
                      xycoords=("axes fraction", "data"), textcoords="offset points", va="center")
    for y, metric in enumerate(reference or ()):
        if np.isfinite(metric["value"]):
            axes.plot([metric["value"]], [y - .02], MARKERS["teacher"], color=LIGHT["teacher"], markersize=6.5,
                      markeredgecolor=LIGHT["paper"], markeredgewidth=1.25, clip_on=False, zorder=5)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - .45, -.55)
    axes.set_yticks(np.arange(len(names)), short_labels(names, 18), color=LIGHT["ink"])
    axes.set_xticks(*QUARTERS)
    plain(axes, "x")
    axes.set_xlabel("F1 on the test split", loc="left")
    if reference:
        axes.annotate(
            f"■ {short_labels([title], 26)[0]}", (1, 0), xytext=(0, -26), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="top", color=LIGHT["teacher"],
        )


LEAST = 10  # images of a bin that is drawn: fewer are joined with the next bin


def joined(bins):
    """Bins of a reliability diagram with at least LEAST images each: [(confidence, accuracy, images)].

    bins: {"count", "confidence", "accuracy"} in ascending order. A bin with fewer is joined with the next ones, the
    last with the one before.
    """
    groups = []
    for row in bins:
        if row["count"] and row["confidence"] is not None and row["accuracy"] is not None:
            if not groups or sum(other["count"] for other in groups[-1]) >= LEAST:
                groups.append([])
            groups[-1].append(row)
    if len(groups) > 1 and sum(row["count"] for row in groups[-1]) < LEAST:
        groups[-2:] = [groups[-2] + groups[-1]]
    points = []
    for group in groups:
        counts = [row["count"] for row in group]
        means = [np.average([row[key] for row in group], weights=counts) for key in ("confidence", "accuracy")]
        points.append((*map(float, means), int(sum(counts))))
    return points


@drawing
def reliability(figure, raw, calibrated, role, eces):
    """Accuracy over confidence with its interval (Wilson), and below it the images of each bin. Ideal is the diagonal.

    raw, calibrated: bins of metrics.json, or None, drawn as joined() makes them. role: of the model.
    eces: (raw, calibrated), NaN where undefined.
    """
    figure.set_layout_engine("none")
    width, height, left, side = 340, 404, 58, 270
    figure.set_size_inches(width / 72, height / 72)
    axes = figure.add_axes((left / width, 1 - (12 + side) / height, side / width, side / height))
    images = figure.add_axes((left / width, 50 / height, side / width, 60 / height), sharex=axes)
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    legend, most = [], 1
    for k, (bins, name) in enumerate(((raw, "○ raw"), (calibrated, "● calibrated"))):
        colour = LIGHT[role] if k else LIGHT["alone"]
        points = joined(bins or ())
        for confidence, accuracy, count in points:
            axes.plot([confidence] * 2, wilson(accuracy, count, NormalDist().inv_cdf(.975)), color=colour,
                      linewidth=1.5, alpha=.8, zorder=2 + k)
            axes.plot([confidence], [accuracy], "o", color=colour, markersize=6.5, markeredgewidth=1.5, zorder=4 + k,
                      markerfacecolor=colour if k else LIGHT["paper"], clip_on=False)
            images.plot([confidence] * 2, [0, count], color=colour, linewidth=3 if k else 5, alpha=1 if k else .45,
                        solid_capstyle="butt")
            most = max(most, count)
        if points and np.isfinite(eces[k]):
            legend.append((f"{name}, ECE {eces[k]:.3f}", colour))
    for k, (words, colour) in enumerate(legend):
        axes.text(.03, .97 - .075 * k, words, color=colour, transform=axes.transAxes, va="top")
    axes.set_yticks(*QUARTERS)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid()
    axes.tick_params(length=0, labelbottom=False)
    axes.set_ylabel("accuracy of the bin")
    images.set_xticks(*QUARTERS)
    images.set_ylim(0, 1.1 * most)
    images.set_yticks([0, most], ["0", f"{most:,}"])
    plain(images, "x")
    images.set_xlabel("confidence (mean of the bin)")
    images.set_ylabel("images")
    for both in (axes, images):
        both.yaxis.set_label_coords(-40 / side, .5)


@drawing
def risk_coverage(figure, curves, narrow=False):
    """Share of wrong answers among the most confident images.

    curves: (label, role, coverage [N], risk [N]), both in 0 to 1. narrow: with the labels below the axes.
    """
    width, legend_height = (400, 22 * len(curves)) if narrow else (760, 0)
    height = 330 + legend_height
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    bottom = (58 + legend_height) / height if narrow else .16
    axes = figure.add_axes((58 / width, bottom, (.97 if narrow else .70) - 58 / width, .96 - bottom))
    top = max([max(risk) for *_, risk in curves if len(risk)], default=1)
    labels = []  # (risk at the end of the line, index, role, linestyle, name)
    for (name, role, coverage, risk), linestyle in zip(curves, dashes([curve[1] for curve in curves])):
        axes.plot(coverage, risk, color=LIGHT[role], linestyle=linestyle)
        labels.append((risk[-1], len(labels), role, linestyle, name))
    labels.sort()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08 * top or 1)
    heights = apart([label[0] for label in labels], .07 * top)
    names = short_labels([name for *_, name in labels], 34)
    for k, (y, (_, _, role, linestyle, _), name) in enumerate(zip(heights, labels, names)):
        transform, line, x = axes.get_yaxis_transform(), [1.015, 1.05], 1.062
        if narrow:
            transform, line, x, y = figure.transFigure, [58 / width, 84 / width], 92 / width, (14 + 22 * k) / height
        axes.plot(line, [y, y], color=LIGHT[role], linestyle=linestyle, transform=transform, clip_on=False)
        axes.text(x, y, name, transform=transform, va="center")
    plain(axes, "y")
    axes.set_xlabel("coverage (share of the images that are answered)")
    axes.set_ylabel("risk (share of these that is wrong)")


@drawing
def stages(figure, models, narrow=False):
    """Linear CKA with the teacher by stage, with its interval as a band.

    models: (label, role, values, lo, hi), the last three of one value in 0 to 1 for each stage.
    """
    figure.set_size_inches((400 if narrow else 820) / 72, 290 / 72)
    axes = figure.add_subplot()
    count = max(len(values) for _, _, values, *_ in models)
    labels = []  # (value of the last stage, index, name)
    for (name, role, values, lo, hi), linestyle in zip(models, dashes([model[1] for model in models])):
        numbers = range(1, 1 + len(values))
        axes.fill_between(numbers, lo, hi, color=LIGHT[role], alpha=.13, linewidth=0)
        axes.plot(numbers, values, color=LIGHT[role], linestyle=linestyle, marker="o", markersize=5)
        labels.append((float(values[-1]), len(labels), name))
    labels.sort()
    names = short_labels([name for *_, name in labels], 24)
    for y, name in zip(apart([label[0] for label in labels], .085), names):
        axes.annotate(
            name, (count, y), xytext=(10, 0), textcoords="offset points", va="center",
            annotation_clip=False,
        )
    axes.set_xticks(range(1, 1 + count))
    axes.set_xlim(.85, count + .05)
    axes.set_ylim(0, 1)
    plain(axes, "y")
    axes.set_xlabel("stage")
    axes.set_ylabel("linear CKA with the teacher")


class Maps(NamedTuple):
    """An image uint8 [H, W, 3] and, of teacher and student each, attention [stages, h, w] and Grad-CAM [h, w] or None.

    words: below it.
    """

    image: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    teacher_cam: np.ndarray = None
    student_cam: np.ndarray = None
    words: str = ""


@drawing
def attention(figure, rows, narrow=False):
    """Test images beside the attention of each stage and the Grad-CAM of teacher and student, one row for each image.

    rows: of Maps. Grad-CAM is drawn over the image. narrow: of the attention only the last stage but one, because those
    of the last may have no more than 2 x 2 positions.
    """
    stage_count = len(rows[0].teacher)
    stages = [max(0, stage_count - 2)] if narrow else range(stage_count)
    panels = [("image", "", None)]  # (field of Maps, heading, stage)
    for role in ("teacher", "student"):
        panels += [(role, f"stage {stage + 1}", stage) for stage in stages]
        if rows[0].teacher_cam is not None:
            panels.append((f"{role}_cam", "Grad-CAM", None))
    side, gap, top = (72, 8, 44) if narrow else (68, 5, 44)
    below = 20 if any(row.words for row in rows) else 0
    apart_by = 0 if narrow else 14  # px between teacher and student
    width, pitch = len(panels) * (side + gap) - gap + 2 * apart_by, side + gap + below
    height = len(rows) * pitch + top
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 72, height / 72)
    for k, row in enumerate(rows):
        bottom = top + k * pitch + side
        for column, (field, heading, stage) in enumerate(panels):
            role = field.removesuffix("_cam")
            left = column * (side + gap) + apart_by * ("image", "teacher", "student").index(role)
            axes = figure.add_axes((left / width, 1 - bottom / height, side / width, side / height))
            axes.set_axis_off()
            _map(axes, row, field, stage)
            if k == 0:
                axes.text(0, 1.06, heading or "image", transform=axes.transAxes, color=LIGHT["muted"])
                if role != "image" and panels[column - 1][0].removesuffix("_cam") != role:
                    axes.text(0, 1.3, role, transform=axes.transAxes, fontweight="bold", color=LIGHT[role])
        figure.text(0, 1 - (bottom + 4) / height, one_line(row.words, 62 if narrow else 140), va="top")


def _map(axes, row, field, stage):
    """Draw a field of Maps: the image, the attention of a stage, or Grad-CAM over the image in grey."""
    pixels = getattr(row, field)
    if field == "image":
        axes.imshow(pixels, interpolation="nearest")
    elif stage is not None:
        axes.imshow(pixels[stage].astype(np.float32), cmap="cividis", interpolation="nearest")
    else:
        height, width = row.image.shape[:2]
        cam = pixels.astype(np.float32)
        axes.imshow(row.image.mean(2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.imshow(cam, cmap="inferno", vmin=0, vmax=1.15, alpha=.8 * np.clip(cam, 0, 1), interpolation="bilinear",
                    extent=(-.5, width - .5, height - .5, -.5))
