"""Predictions in whatever layout chance builds: the right labels and probabilities, or one line; no other figures."""

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

from kd import metrics, prediction_files, score_kinds  # noqa: E402
from kd.errors import UserError  # noqa: E402
from kd.predictions import read  # noqa: E402

NAMES = {"words": ["nævus", "mel", "bkl", "b c c", "akiec", "vasc", "df", "scc"], "numbers": list("01234567"),
         "cases": [f"Class {k}" for k in range(8)], "isic": ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]}
FEW = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def layouts(draw):
    """Choices of how a set of predictions is saved."""
    def one(*choices):
        return draw(st.sampled_from(choices))

    classes = draw(st.integers(2, 8))
    return {"classes": classes, "images": draw(st.integers(classes, 40)), "seed": draw(st.integers(0, 10 ** 6)),
            "kind": one("logits", "probabilities", "percent", "logarithms", "sigmoids", "folds", "rounded", "whole"),
            "column": one("p_{}", "prob_{}", "{}_prob", "logit_{}", "{}", "{} score", "P({})", "pred_{}", "output_{}"),
            "names": one(*NAMES), "truth": one("index", "name", "one-hot", "bare one-hot"),
            "place": one("same", "by id", "in order", "npy"), "separator": one(",", ";", "\t"),
            "encoding": one("utf-8", "utf-8-sig", "utf-16", "cp1252"), "comma": draw(st.booleans()),
            "label": one("label", "dx", "y_true", "target", "diagnosis", "Truth"), "suffix": one(".jpg", ""),
            "id": one("id", "image_id", "File Name", "path"), "folder": one("", "a/b/", "C:\\x\\"),
            "others": draw(st.lists(st.sampled_from(["confidence", "age", "sex", "pred"]), unique=True)),
            "file": one("csv", "npz")}


def predictions(layout):
    """(class names, labels, scores as they are saved, probabilities that they stand for)."""
    rng, classes, count = np.random.default_rng(layout["seed"]), layout["classes"], layout["images"]
    labels = rng.permutation(np.arange(count) % classes)
    logits = 2 * rng.normal(size=(count, classes)) + 2 * np.eye(classes)[labels]
    p, s = metrics.softmax(logits), 1 / (1 + np.exp(-logits))
    scores = {"logits": logits, "probabilities": p, "percent": 100 * p, "logarithms": np.log(p), "sigmoids": s,
              "folds": 5 * p, "rounded": np.round(p, 2), "whole": np.round(100 * p)}[layout["kind"]]
    return (NAMES[layout["names"]][:classes], labels, scores,
            s / s.sum(1, keepdims=True) if layout["kind"] == "sigmoids" else p)


def save(folder, layout, names, labels, scores):
    """(path, path of the labels or None) of the files of a layout."""
    count = len(labels)
    one_hot = np.eye(len(names), dtype=int)[labels]
    truth = {"index": {layout["label"]: labels.tolist()}, "name": {layout["label"]: [names[k] for k in labels]},
             "one-hot": {f"true_{name}": one_hot[:, k].tolist() for k, name in enumerate(names)},
             "bare one-hot": {name: one_hot[:, k].tolist() for k, name in enumerate(names)}}[layout["truth"]]
    ids = [f"{layout['folder']}im{k}{layout['suffix']}" for k in range(count)]
    if layout["file"] == "npz":
        path, content = folder / "x.npz", {"y_prob": scores, "class_names": np.array(names)}
        if layout["place"] == "same":
            values = next(iter(truth.values()))
            content["labels"] = one_hot if "one-hot" in layout["truth"] else np.array(values)
        elif layout["place"] == "by id":
            content["ids"] = np.array(ids)
        np.savez(path, **content)
    else:
        path = folder / "x.csv"
        columns = {layout["id"]: ids, **{name: [names[0] if name in ("sex", "pred") else 30.5] * count
                                         for name in layout["others"]}}
        columns |= {layout["column"].format(name): scores[:, k].tolist() for k, name in enumerate(names)}
        if layout["place"] == "same":
            hypothesis.assume(not set(truth) & set(columns))
            columns |= truth
        elif layout["place"] != "by id":
            del columns[layout["id"]]
        write(path, layout, columns)
    if layout["place"] == "npy":
        np.save(folder / "y.npy", one_hot if "one-hot" in layout["truth"] else labels)
        return path, folder / "y.npy"
    if layout["place"] == "in order":
        return path, write(folder / "y.csv", layout, truth)
    if layout["place"] == "by id":
        order = np.random.default_rng(1).permutation(count)
        return path, write(folder / "y.csv", layout, {
            "image": [f"im{k}" for k in order], **{name: [cells[k] for k in order] for name, cells in truth.items()}})
    return path, None


def write(path, layout, columns):
    def text(cell):
        number = f"{cell:.7f}" if isinstance(cell, float) else str(cell)
        return number.replace(".", ",") if isinstance(cell, float) and layout["comma"] and separator != "," else number

    separator = layout["separator"]
    lines = [separator.join(map(text, row)) for row in [columns, *zip(*columns.values())]]
    path.write_bytes("\n".join(lines).encode(layout["encoding"]))
    return path


@settings(max_examples=100, **FEW)
@given(layouts())
def test_every_layout_has_the_right_labels_and_probabilities_or_asks_what_the_scores_are(tmp_path_factory, layout):
    names, labels, scores, probabilities = predictions(layout)
    path, truth = save(tmp_path_factory.mktemp("x", numbered=True), layout, names, labels, scores)
    try:
        found = read(path, labels=truth)
    except UserError as error:  # two images, or sigmoids under the name of logits
        assert "cannot be told" in error.message and "--scores" in error.hint
        assert layout["images"] < 3 or layout["column"] == "logit_{}"
        return
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=.04)
    assert layout["kind"] in ("rounded", "whole") or np.abs(found.probabilities - probabilities).max() < 1e-4


COUNT = st.sampled_from([(4,), (4, 1), (4, 2), (4, 3), (3,), (), (0,), (2, 2, 2)])
ARRAYS = st.one_of(
    arrays.arrays("f8", COUNT, elements=st.floats(-3, 3) | st.just(np.nan)), arrays.arrays("?", COUNT),
    arrays.arrays("i1", COUNT, elements=st.integers(-1, 3)),
    arrays.arrays("U3", COUNT, elements=st.sampled_from(["a", "b", "0", "1", ""])), arrays.arrays("c8", COUNT))
WORDS = st.sampled_from([*prediction_files.LABELS[:3], *prediction_files.MAYBE_LABELS, "logits", "y_prob", "scores",
                         "preds", "ids", "groups", "class_names", "arr_0", "arr_1", "p_a", "p_b", "true_a", ""])
CELLS = st.sampled_from(["", "0", "1", "0.5", "nan", "nv", "1e400", "-3", "50%", "0,5", '"', "True"]) | st.text(
    max_size=3)
TABLES = st.tuples(st.lists(WORDS | st.text(max_size=3), max_size=5), st.lists(st.lists(CELLS, max_size=5), max_size=5),
                   st.sampled_from(",;\t ")).map(lambda t: "\n".join(map(t[2].join, [t[0], *t[1]])).encode())
FILES = st.one_of(st.dictionaries(WORDS.filter(bool), ARRAYS, min_size=1, max_size=5), ARRAYS, TABLES,
                  st.binary(max_size=50))


@settings(max_examples=100, **FEW)
@given(FILES, st.none() | FILES, st.none() | st.sampled_from(score_kinds.KINDS))
def test_whatever_stands_in_the_files_gives_predictions_or_one_line(tmp_path_factory, content, labels, kind):
    folder = tmp_path_factory.mktemp("x", numbered=True)

    def put(stem, content):
        if isinstance(content, bytes):
            (folder / f"{stem}.csv").write_bytes(content)
            return folder / f"{stem}.csv"
        if isinstance(content, dict):
            np.savez(folder / f"{stem}.npz", **content)
            return folder / f"{stem}.npz"
        np.save(folder / f"{stem}.npy", content)
        return folder / f"{stem}.npy"

    try:
        found = read(put("x", content), labels=labels if labels is None else put("y", labels), scores=kind)
    except UserError as error:
        assert "\n" not in error.message and len(error.message) < 1100
        return
    assert np.abs(found.probabilities.sum(1) - 1).max() < 1e-6 and found.probabilities.min() >= 0
    assert 0 <= found.labels.min() <= found.labels.max() < len(found.class_names) == found.probabilities.shape[1]
