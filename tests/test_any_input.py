"""Random folders, tables and predictions: the count is right, or one line says why not; nothing is lost in silence."""

import contextlib
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

import evaluate  # noqa: E402
import registry  # noqa: E402
from kd.data import layout  # noqa: E402
from kd.errors import UserError  # noqa: E402

settings = hypothesis.settings(max_examples=100, deadline=None, derandomize=True,
                               suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])

FOLDERS = ["a", "b", "c", "A", "train", "Test", "valid", "test_set", "images", "masks", "p1", "p2", "x y", "part_1",
           "__MACOSX", ".hidden"]
FILES = ["1.png", "2.JPG", "3.jfif", "4", "5.gif", "6.dat", "notes.txt", "x.dcm", "._1.png", ".h.png", "t.csv"]
IMAGES = set(FILES[:6])
content = {}
for k, name in enumerate(FILES[:6]):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (40 * k, 9, 9)).save(buffer, ["PNG", "JPEG", "JPEG", "PNG", "GIF", "TIFF"][k])
    content[name] = buffer.getvalue()

noise = st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=3).map(tuple), st.sampled_from(FILES))
trees = st.lists(noise, min_size=1, max_size=24, unique=True)
# trees that people have, with something odd among them: below each upper folder the same lower ones
usual = st.tuples(
    st.sampled_from([("",), ("train", "Test"), ("train", "valid", "test_set"), ("a", "b"), ("p1", "p2", "x y"),
                     ("set",)]),
    st.sampled_from([("a", "b"), ("a", "b", "c"), ("train", "Test"), ("images", "masks"), ("a",)]),
    st.sets(st.sampled_from(FILES), min_size=1, max_size=4), st.lists(noise, max_size=3, unique=True)).map(
    lambda of: sorted({(tuple(filter(None, (upper, lower))), file) for upper in of[0] for lower in of[1]
                       for file in sorted(of[2])} | set(of[3])))


@pytest.fixture
def place(tmp_path):
    """A function that empties a folder for the next example, and returns it."""
    def empty():
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (tmp_path / "set").mkdir()
        return tmp_path / "set"
    return empty


@pytest.fixture
def accepted():
    """The outcomes of all examples of a test; at least a fifth must be no error, or the test says little."""
    outcomes = []
    yield outcomes
    assert sum(outcomes) > 0.2 * len(outcomes)


def outcome(call):
    """(result, what was printed), or (None, the error) after checking that it is one line with a hint."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return call(), printed.getvalue()
    except UserError as error:
        assert "\n" not in error.message and len(error.message) < 1100
        return None, error


def count(pattern, text):
    return sum(map(int, re.findall(pattern, text)))


@settings
@hypothesis.given(st.one_of(trees, usual, usual, usual), st.booleans())
def test_of_any_tree_each_image_is_read_or_counted(place, accepted, tree, testing):
    root = place()
    for folders, name in tree:
        (root.joinpath(*folders)).mkdir(parents=True, exist_ok=True)
        root.joinpath(*folders, name).write_bytes(content.get(name, b"text"))
    hidden = [name for folders, name in tree if {"__MACOSX", ".hidden"} & set(folders)]
    visible = [(folders, name) for folders, name in tree
               if name in IMAGES and not {"__MACOSX", ".hidden"} & set(folders)]
    found, said = outcome(lambda: layout.read(root, testing=testing))
    accepted.append(found is not None)
    if found is None:
        return
    notes = "\n".join(found.notes)
    copies = re.search(r"(.*) holds the other folders once more", notes)
    copied = sum(folders[:1] == (top,) for top in (copies[1].split(", ") if copies else ()) for folders, _ in visible)
    assert len(found.images) + count(r"(\d+) images are in no class folder", notes) + copied == len(visible)
    in_hidden = sum(name in ("1.png", "2.JPG", "3.jfif", "5.gif", ".h.png") for name in hidden)
    assert count(r"(\d+) in (?:__MACOSX|\.hidden)", notes) >= in_hidden
    level = {i.split("/").index(name) for i, name in zip(found.ids, found.classes)}
    assert all(name in i.split("/")[:-1] for i, name in zip(found.ids, found.classes)) and len(level) <= 2
    assert testing or len(set(found.classes)) > 1
    if found.split:
        assert all({layout.split_of(part) for part in i.split("/")[:-1]} >= {split}
                   for i, split in zip(found.ids, found.split))


cells = st.sampled_from(["{}", "{}.png", "images/{}.png", "images\\{}.png", " {} ", "{}.jpg", "", "gone{}"])
# mostly each image has the class and the patient of its number
rows_of_tables = st.tuples(st.integers(0, 9), cells, st.sampled_from(["", "", "", "", "nv", "NA"]),
                           st.sampled_from(["", "", "", "p9"])).map(
    lambda of: (of[0], of[1], of[2] or ["mel", "nv", "bkl"][of[0] % 3], of[3] or f"p{of[0] // 2}"))
tables = st.lists(rows_of_tables, min_size=1, max_size=12)


@settings
@hypothesis.given(tables, st.sampled_from([",", ";", "\t"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
                  st.sampled_from(["images", "deep/images", "."]), st.booleans())
def test_of_any_table_each_row_and_each_image_is_used_or_counted(place, accepted, rows, separator, encoding, folder,
                                                                 testing):
    root = place()
    (root / folder).mkdir(parents=True, exist_ok=True)
    for k in range(8):
        (root / folder / f"i{k}.png").write_bytes(content["1.png"] + bytes([k]))
    lines = [["image", "dx", "patient_id"], *([cell.format(f"i{k}"), dx, patient] for k, cell, dx, patient in rows)]
    (root / "t.csv").write_bytes("\n".join(separator.join(line) for line in lines).encode(encoding))
    found, said = outcome(lambda: registry.create("dataset", "csv", root / "t.csv", testing=testing))
    accepted.append(found is not None)
    if found is None:
        return
    left = count(r"(\d+) rows have no (?:image|class)", said) + count(r"(\d+) rows name an image again", said)
    assert len(found.ids) + left == len(rows)
    used = {source for source in found.images if not isinstance(source, UserError)}
    assert len(used) + count(r"(\d+) images below", said) == 8
    of = {cell.format(f"i{k}").strip(): dx for k, cell, dx, _ in rows if dx != "NA"}
    assert all(found.class_names[label] == of[i] for i, label in zip(found.ids, found.labels))


@settings
@hypothesis.given(st.integers(2, 4), st.integers(3, 9), st.sampled_from(
    ["logits", "probabilities", "percent", "sigmoids", "one column", "log"]), st.sampled_from(
    ["y_prob", "logits", "scores"]), st.sampled_from(["index", "column", "one-hot", "names", "bool"]),
    st.sampled_from(["npz", "csv"]), st.integers(0, 99))
def test_of_any_predictions_the_answers_are_those_of_the_scores(place, accepted, classes, n, kind, name, truth, form,
                                                                seed):
    root, rng = place(), np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, classes, n)
    scores = {"logits": logits, "probabilities": p, "percent": 100 * p, "sigmoids": 1 / (1 + np.exp(-logits)),
              "one column": p[:, 1], "log": np.log(p)}[kind]
    names = np.array(["mel", "nv", "bkl", "df"])[:classes]
    y = {"index": labels, "column": labels[:, None], "one-hot": np.eye(classes)[labels],
         "bool": np.eye(classes)[labels] > 0, "names": names[labels]}[truth]
    if form == "npz":
        np.savez(root / "f.npz", **{name: scores, "y_true": y, "class_names": names})
    else:
        columns = list(names) if scores.ndim == 2 else ["score"]
        rows = [",".join([*columns, "label"])]
        rows += [",".join([*(f"{v:.9g}" for v in np.atleast_1d(row)), names[k] if truth == "names" else str(k)])
                 for row, k in zip(scores, labels)]
        (root / "f.csv").write_text("\n".join(rows))
    command = [str(root / f"f.{form}"), "--out", str(root / "out"), "--replicates", "200"]
    found, said = outcome(lambda: evaluate.main(command))
    accepted.append(isinstance(said, str))
    if isinstance(said, UserError):
        assert not (root / "out").exists()
        return
    from kd.files import read_json
    written = read_json(root / "out" / "metrics.json")
    assert sum(written["split"]["test"]["support"].values() if "test" in written["split"] else [n]) == n
    right = ((scores > 0.5) if kind == "one column" else scores.argmax(1)) == labels
    assert written["test"]["accuracy"]["value"] == pytest.approx(np.mean(right), abs=1e-9)
