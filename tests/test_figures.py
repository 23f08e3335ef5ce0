"""Drawings of a report: also of odd data, with labels apart and colours that every reader can distinguish."""

import base64
import io
import itertools
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kd.report import figures, figures_latency, figures_quality, figures_scalars
from reported import words

NAN = float("nan")


def texts(svg):
    """The texts of a drawing."""
    return words(ElementTree.fromstring(svg))


def test_scalars_of_one_step_of_nan_and_of_many_runs_are_drawn_each_in_its_frame():
    steps = np.arange(1, 4)
    frames = [("val/macro_f1", [(k, steps, np.array([.1, NAN, .3 + k]), 3) for k in range(9)]),
              ("train/loss", [(0, steps[:1], np.array([2.]), None), (1, steps, np.array([NAN, float("inf"), NAN]), 2)]),
              ("long", [(0, np.arange(10_000), np.arange(10_000.), None)])]
    models = [("teacher_big", "teacher"), *((f"m{k}", "student") for k in range(8))]
    svg = figures_scalars.scalars(models, frames, alt="s")
    assert {"val/macro_f1", "train/loss", "long", *(name for name, _ in models)} <= set(texts(svg))
    assert len(svg) < 60_000  # long histories are thinned


def test_a_drawing_drawn_again_is_the_same_to_the_letter():
    first, second = (figures.forest([("a", "student", .5, .4, .6)], alt="a \x1b") for _ in range(2))
    assert first == second and ElementTree.fromstring(first).get("aria-label") == "a"


def test_names_that_no_encoding_holds_are_texts():
    assert "<svg" in figures.forest([("run", "student", .5, .4, .6)], alt="a folder called \udcff")


def test_a_forest_of_undefined_values_is_texts():
    assert "undefined" in texts(figures.forest([("a", "student", NAN, NAN, NAN)], alt="nothing"))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_confusion_matrices_of_any_number_of_classes_are_texts(count):
    names = texts(figures.confusion(np.diag(np.arange(1, count + 1)), [f"c{i}" for i in range(count)], alt="m"))
    assert f"c{count - 1}" in names and ("1" in names) == (count <= 15)


def test_bars_name_the_classes_and_their_values_and_the_reference():
    nothing = {"value": NAN, "lo": NAN, "hi": NAN}
    model = [{"value": .25, "lo": .1, "hi": .4}, nothing]
    classes, reference = ["mel", "$x$"], [nothing, nothing]
    svg = figures_quality.per_class(classes, model, reference, "student", "teacher_big", alt="bars")
    assert {"mel", "$x$", "0.250", "n/a", "■ teacher_big"} <= set(texts(svg))


def test_reliability_is_drawn_with_empty_bins_and_without_a_temperature():
    bins = [{"count": 0, "confidence": None, "accuracy": None}, {"count": 3, "confidence": .7, "accuracy": .5}]
    for calibrated, eces, key in ((None, (.2, NAN), "○ raw, ECE 0.200"), (bins, (.2, .1), "● calibrated, ECE 0.100")):
        shown = texts(figures_quality.reliability(bins, calibrated, "student", eces, alt="r"))
        assert {key, "3", "images"} <= set(shown)
    assert "images" in texts(figures_quality.reliability([], None, "student", (NAN, NAN), alt="r"))


def test_bins_of_few_images_are_joined_and_lose_none():
    bins = [{"count": count, "confidence": confidence, "accuracy": accuracy} for count, confidence, accuracy in (
        (4, .1, .25), (0, None, None), (6, .2, .5), (30, .5, .4), (8, .9, .75), (1, 1., 0))]
    assert figures_quality.joined(bins) == [
        (pytest.approx(.16), pytest.approx(.4), 10), (pytest.approx((15 + 7.2 + 1) / 39), pytest.approx(18 / 39), 39),
    ]
    assert figures_quality.joined(bins[:1]) == [(pytest.approx(.1), pytest.approx(.25), 4)]
    assert figures_quality.joined([]) == figures_quality.joined(bins[1:2]) == []


Mark = figures_latency.Mark


def test_quality_over_latency_names_every_model_with_its_latency_and_size():
    models = [("big", "teacher", Mark(50., .8, .7, .9, 44.7), Mark(20., .79, .68, .91, 11.2)),
              ("small_alone", "alone", Mark(1., .5, NAN, NAN, None), None),
              ("$x$", "student", Mark(1., .5, .4, .6, .4), None)]
    svg = figures_latency.quality_latency(models, [(1, .45), (1, .55)], alt="p")
    assert {"big", "50 ms, 45 MB", "small_alone", "1 ms", "$x$", "1 ms, 0.4 MB", "macro-F1 on the test split",
            "median latency, ms an image, log scale"} <= set(texts(svg))
    assert svg.split('viewBox="')[1].startswith("0 0 400 ")  # legible on a telephone as it is


ALIKE = [f"a_student_with_a_long_name_{method}_fold1of5" for method in ("alone", "kd", "kd_at")]


@pytest.mark.parametrize("draw", [
    lambda: figures_latency.quality_latency([(name, "student", Mark(1., .5, .4, .6, .4), None) for name in ALIKE],
                                            alt="p"),
    lambda: figures.forest([(name, "student", .5, .4, .6) for name in ALIKE], alt="f"),
    lambda: figures_quality.risk_coverage([(name, "student", [.1, 1.], [0., .2]) for name in ALIKE], alt="r"),
    lambda: figures_quality.stages([(name, "student", *[np.full(4, .5)] * 3) for name in ALIKE], alt="s"),
    lambda: figures_scalars.scalars([(name, "student") for name in ALIKE],
                                    [("loss", [(k, np.arange(3), np.arange(3.), None) for k in range(3)])], alt="c"),
])
def test_long_names_that_begin_and_end_alike_stay_apart(draw):
    shown = [text for text in texts(draw()) if text.startswith("a_student")]
    assert len(set(shown)) == len(ALIKE)


@pytest.mark.parametrize("costs", [(.037, .04, .4, 1.3), (.01, .05, .05), (.0311, .0467, .0481), (3, 4), (2, 900)])
def test_the_labels_of_ticks_do_not_touch(costs):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    models = [(f"a model with a long name {k}", "student", Mark(cost, .5 + k / 9, .4, .9, 1.), None)
              for k, cost in enumerate(costs)]
    figure = Figure(dpi=72)
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(figures.STYLE):
        figures_latency.quality_latency.__wrapped__(figure, models)
        figure.canvas.draw()
        for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
            boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
            assert len(boxes) > 1 and not any(a.padded(2).overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_front_is_of_the_marks_that_no_other_equals_in_both():
    marks = [Mark(x, y, NAN, NAN, 1.) for x, y in ((1, .5), (2, .4), (3, .7), (3, .6), (4, .7), (5, .9))]
    assert figures_latency._front(marks, 9) == ([1, 3, 3, 5, 5, 9], [.5, .5, .7, .7, .9, .9])


@pytest.mark.parametrize("narrow", [False, True])
def test_risk_over_coverage_labels_every_line(narrow):
    curves = [(f"m{k}", "student", [.1, 1.], [0., risk]) for k, risk in enumerate((.2, .2, 0.))]
    assert {"m0", "m1", "m2"} <= set(texts(figures_quality.risk_coverage(curves, narrow, alt="r")))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("with_cam", [False, True])
def test_attention_is_drawn_beside_its_image_with_grad_cam_where_the_file_has_it(narrow, with_cam):
    maps = np.linspace(0, 1, 64).reshape(4, 4, 4).astype(np.float16)
    cams = {"teacher_cam": maps[0], "student_cam": maps[1]} if with_cam else {}
    rows = [figures_quality.Maps(np.zeros((8, 8, 3), np.uint8), maps, maps, words="true $mel$", **cams)]
    svg = figures_quality.attention(rows, narrow, alt="a")
    assert svg.count("<image ") == (3 if narrow else 9) + 2 * with_cam
    headings = texts(svg)
    assert {"image", "teacher", "student", "stage 3", "true $mel$"} <= set(headings)
    assert headings.count("Grad-CAM") == 2 * with_cam and headings.count("stage 4") == 2 * (not narrow)


def test_labels_stand_apart_in_order_and_move_no_more_than_they_must():
    assert figures.apart([.1, .5], .1) == [.1, .5]
    assert figures.apart([.5, .5], .1) == pytest.approx([.45, .55])
    heights = figures.apart([.1, .12, .13, .9], .1)
    assert np.diff(heights).min() >= .1 - 1e-9 and heights[-1] == .9
    assert np.mean(heights[:3]) == pytest.approx(np.mean([.1, .12, .13]))


def test_thumbnails_hold_the_pixels_and_shrink_what_is_large():
    def opened(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    small = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(figures.thumbnail(small))), small)
    assert opened(figures.thumbnail(np.zeros((400, 200, 3), np.uint8), 192)).size == (96, 192)


# ---- colours

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
SIGHT = {"all cones": np.eye(3),
         "no long cones": [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
         "no middle cones": [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
         "no short cones": [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}


def linear(colour):
    channels = np.array([int(colour[k:k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(channels <= .04045, channels / 12.92, ((channels + .055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [.9505, 1, 1.089]
    x, y, z = np.where(xyz > .008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour, other):
    """The contrast ratio of WCAG 2, from 1 to 21."""
    low, high = sorted(float(np.dot([.2126, .7152, .0722], linear(rgb))) for rgb in (colour, other))
    return (high + .05) / (low + .05)


@pytest.mark.parametrize("palette", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
def test_roles_are_told_apart_by_every_kind_of_colour_vision_and_seen_on_the_paper(palette):
    for matrix in SIGHT.values():
        colours = [lab(np.array(matrix) @ linear(palette[role])) for role in ("teacher", "alone", "student")]
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)]
        assert min(distances) > 18  # 2.3 is just noticeable
    for role in ("teacher", "alone", "student"):
        assert contrast(palette[role], palette["paper"]) >= 3
    for text_colour in ("ink", "muted", "error"):
        assert contrast(palette[text_colour], palette["paper"]) >= 4.5
