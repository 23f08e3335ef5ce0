"""A file is answered as evaluation answered it, on a machine with three packages; what is broken is one line."""

import csv
import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exported as parts
import predict
from kd import errors, metrics, onnx_model
from kd.edge import bundle
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz
from kd.run_folder import Run

ROOT = Path(__file__).resolve().parent.parent
ALONE = ("predict.py", *(f"kd/{name}.py" for name in ("__init__", "errors", "files", "image", "image_files", "metrics",
                                                     "onnx_model")))


@pytest.fixture
def model(exported):
    return exported[0] / "exports" / "model.onnx"


def answered(capsys, *argv):
    """(bad, rows of --format jsonl)."""
    bad = predict.main([*map(str, argv), "--format", "jsonl"])
    return bad, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_test_images_file_gives_the_logits_of_the_predictions_whatever_its_kind(exported, model):
    run, root = exported
    predictions, network = read_npz(run / "predictions" / "test.npz"), onnx_model.Model(model)
    kinds = {name.split("_", 1)[1] for name in predictions["ids"]}
    assert kinds >= {kind for kind in parts.KINDS if kind != "plain.bmp"}, kinds
    for name, logits in zip(predictions["ids"], predictions["logits"]):
        assert np.abs(network.logits(network.pixels(root / name)[None])[0] - logits).max() < 1e-4, name


def test_probabilities_are_those_of_the_predictions_after_temperature(exported, model, capsys):
    run, root = exported
    predictions = read_npz(run / "predictions" / "test.npz")
    temperature = read_json(run / "metrics.json")["calibration"]["temperature"] or 1
    bad, rows = answered(capsys, model, *(root / name for name in predictions["ids"]), "--batch", 4)
    assert bad == 0 and [row["file"] for row in rows] == [str(root / name) for name in predictions["ids"]]
    probabilities = [[row["probabilities"][name] for name in predictions["class_names"]] for row in rows]
    expected = metrics.softmax(predictions["logits"].astype(np.float64) / temperature)
    assert np.abs(np.array(probabilities) - expected).max() < 1e-4
    most_probable = predictions["class_names"][predictions["logits"].argmax(1)]
    assert [row["most_probable"] for row in rows] == most_probable.tolist()


def changed(model, path, **metadata):
    """A copy of an exported file with other metadata; None removes a field."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(model)
    texts = {prop.key: prop.value for prop in proto.metadata_props}
    texts.update(
        {key: value if value is None or key == "format" else json.dumps(value) for key, value in metadata.items()}
    )
    del proto.metadata_props[:]
    for key, value in texts.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    return path


def test_thresholds_are_of_raw_probabilities_and_abstention_leaves_the_label_out(exported, model, tmp_path, capsys):
    run, root = exported
    predictions = read_npz(run / "predictions" / "test.npz")
    raw = metrics.softmax(predictions["logits"].astype(np.float64))
    keep, bar = float(np.median(raw.max(1))), float(np.median(raw[:, 1]))
    points = [{"name": "a", "kind": "abstention", "class": None, "threshold": keep, "promised": 0.1},
              {"name": "s", "kind": "sensitivity", "class": "green", "threshold": bar, "promised": 0.95}]
    file = changed(model, tmp_path / "m.onnx", operating_points=points, temperature=5.0)
    _, rows = answered(capsys, file, *(root / name for name in predictions["ids"]))
    clear = np.abs(raw.max(1) - keep) > 1e-4
    assert [row["label"] is None for row, c in zip(rows, clear) if c] == (raw.max(1) < keep)[clear].tolist()
    assert [row["abstains"] for row in rows] == [row["label"] is None for row in rows]
    clear = np.abs(raw[:, 1] - bar) > 1e-4
    assert [row["called"] == ["green"] for row, c in zip(rows, clear) if c] == (raw[:, 1] >= bar)[clear].tolist()


def test_the_three_formats_say_the_same(exported, model, capsys):
    _, root = exported
    files = [str(path) for path in sorted((root / "red").iterdir())[:3]]
    _, rows = answered(capsys, model, *files)
    predict.main([str(model), *files, "--format", "csv"])
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(line["p_red"]) for line in table] == [row["probabilities"]["red"] for row in rows]
    assert [line["label"] or None for line in table] == [row["label"] for row in rows]
    assert [line["abstains"] for line in table] == [str(row["abstains"]) for row in rows]
    predict.main([str(model), *files])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [row["label"] or "abstains" for row in rows]


def test_names_neither_calculate_nor_act_on_the_terminal(exported, model, tmp_path, capsys, monkeypatch):
    names = sorted(["=1+1.png", "@a.png", "-x.png"] + ["\x1b[31m.png", "two\nlines.png"] * (sys.platform != "win32"))
    for name in names:
        shutil.copy(sorted((exported[1] / "red").glob("*.png"))[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    predict.main([str(model), ".", "--format", "csv"])
    out = capsys.readouterr().out
    (tmp_path / "answers.csv").write_text(out, encoding="utf-8", newline="")
    assert [row["file"] for row in read_csv(tmp_path / "answers.csv")] == names
    assert all(f"\n'{name}" in out for name in ("=1+1.png", "@a.png", "-x.png"))
    outputs = [subprocess.run([sys.executable, ROOT / "predict.py", model, ".", "--format", kind], capture_output=True,
                              text=True).stdout for kind in ("table", "jsonl")]
    assert all("\x1b" not in out for out in outputs)
    assert [json.loads(line)["file"] for line in outputs[1].splitlines()] == names
    explained = onnx_model.Model(model).explain().count("\n") + 1
    assert outputs[0].count("\n") == 1 + len(names) + explained  # a name does not make a row of its own


def huge(side):
    """A PNG whose header promises a square of `side` pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def test_bad_files_are_marked_and_passed_over(exported, model, tmp_path, capsys):
    _, root = exported
    good = sorted((root / "red").iterdir())[0]
    (tmp_path / "a_text.jpg").write_text("no image")
    (tmp_path / "b_empty.png").touch()
    (tmp_path / "c_cut.jpg").write_bytes((root / "red" / "06_plain.jpg").read_bytes()[:200])
    shutil.copy(good, tmp_path / f"d_good{good.suffix}")
    (tmp_path / "e_folder.jpg").mkdir()
    (tmp_path / "f_huge.png").write_bytes(huge(50_000))
    bad, rows = answered(
        capsys, model, tmp_path, tmp_path / "missing.jpg", tmp_path / "e_folder.jpg" / "x.png", "--batch", 2
    )
    assert [("error" in row, Path(row["file"]).name[0]) for row in rows] == [
        (True, "a"), (True, "b"), (True, "c"), (False, "d"), (True, "f"), (True, "m"), (True, "x")]
    assert "2500000000 pixels" in rows[4]["error"]
    assert bad == 6 and all("\n" not in row["error"] for row in rows if "error" in row)
    with pytest.raises(UserError, match="not one image could be read"):
        predict.main([str(model), str(tmp_path / "a_text.jpg")])


def deep(folder, **files):
    """{name: values} as images of more than 8 bits in a new folder."""
    folder.mkdir()
    for name, values in files.items():
        Image.fromarray(values).save(folder / (name.replace("_", ".")))
    return folder


GREY = np.random.default_rng(0).random((40, 40))


def test_a_model_of_8_bits_refuses_deeper_files_and_their_8_bits_are_answered(exported, model, tmp_path, capsys):
    run, root = exported
    spec = onnx_model.Model(model).metadata["input"]
    file = changed(model, tmp_path / "m.onnx", input={key: spec[key] for key in spec if key != "range"})
    folder = deep(tmp_path / "x", a_png=(GREY * 4095).astype(np.uint16), b_tif=GREY.astype(np.float32),
                  c_png=(GREY * 255).astype(np.uint8))
    assert predict.main([str(file), str(folder), "--format", "csv"]) == 2
    out, err = capsys.readouterr()
    first, second, third = csv.DictReader(io.StringIO(out))
    assert first["error"].endswith("a.png has more than 8 bits, with values up to 4,092, and the network was trained "
                                   "on images of 8 bits") and not first["most_probable"]
    assert "b.tif has floating-point values up to" in second["error"] and third["most_probable"]
    assert err.splitlines()[-1].startswith("note: 2 of 3 files have more than 8 bits, and the model was trained on "
                                           "images of 8 bits:") and "Save them in 8 bits" in err
    with pytest.raises(UserError, match="not one image could be read") as caught:
        predict.main([str(file), str(folder / "a.png")])
    assert "8 bits" in caught.value.hint
    Image.fromarray((GREY * 255).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray((GREY * 255).astype(np.uint8)).save(folder / "b.png")
    (folder / "b.tif").unlink()
    capsys.readouterr()
    bad, rows = answered(capsys, file, folder)
    assert bad == 0 and rows[0]["probabilities"] == rows[1]["probabilities"] == rows[2]["probabilities"]


def test_values_that_do_not_fit_the_range_of_the_model_are_named_in_a_line_for_each_kind(
        exported, model, tmp_path, capsys):
    run, root = exported
    spec = onnx_model.Model(model).metadata["input"]
    file = changed(model, tmp_path / "m.onnx", input={**spec, "range": [0, 4095]})
    folder = deep(tmp_path / "x", a_png=(GREY * 4095).astype(np.uint16), b_tif=GREY.astype(np.float32),
                  c_png=(GREY * 65535).astype(np.uint16), d_png=(GREY * 255).astype(np.uint16),
                  e_png=(GREY * 255).astype(np.uint8))
    bad = predict.main([str(file), str(folder), "--format", "jsonl"])
    out, err = capsys.readouterr()
    beyond, narrow = err.splitlines()
    assert bad == 0 and len(out.splitlines()) == 5
    assert beyond.startswith("note: the values of 1 of 5 files go beyond 0..4,095,") and "c.png" in beyond
    assert narrow.startswith("note: the values of 2 of 5 files lie in a 16th of 0..4,095,") and "to 254 (" in narrow
    assert "b.tif" in narrow and "d.png" in narrow and "a.png" not in err and "e.png" not in err
    for name, scale in (("b.tif", 4095), ("c.png", 1 / 16), ("d.png", 16)):  # as it says
        values = np.asarray(Image.open(folder / name)) * np.float32(scale)
        Image.fromarray(values.astype(np.uint16)).save(folder / name.replace("tif", "png"))
    (folder / "b.tif").unlink()
    predict.main([str(file), str(folder)])
    assert not capsys.readouterr().err


def broken_models(model, folder):
    content = model.read_bytes()
    (folder / "cut.onnx").write_bytes(content[:len(content) // 2])
    (folder / "empty.onnx").touch()
    (folder / "text.onnx").write_text("hello")
    changed(model, folder / "foreign.onnx", format=None)
    changed(model, folder / "no_classes.onnx", class_names=None)
    changed(model, folder / "few_classes.onnx", class_names=["a", "b"])
    changed(model, folder / "no_size.onnx", input={"resize": 36})
    changed(model, folder / "other_size.onnx", input={"resize": 64, "size": 64, "interpolation": "bilinear"})
    changed(model, folder / "cold.onnx", temperature=0)
    changed(model, folder / "points.onnx", operating_points=[{"kind": "abstention"}])
    point = {"name": "abstention", "kind": "abstention", "class": None, "threshold": .5, "promised": .1}
    changed(model, folder / "words.onnx", operating_points=[{**point, "threshold": "0.5"}])
    changed(model, folder / "stranger.onnx", operating_points=[{**point, "kind": "sensitivity", "class": ["x"]}])
    changed(model, folder / "certain.onnx", operating_points=[{**point, "threshold": 1.5}])
    changed(model, folder / "promise.onnx", operating_points=[{**point, "promised": -1}])
    changed(model, folder / "twice.onnx", operating_points=[point, point])
    changed(model, folder / "classes_twice.onnx", class_names=["red", "red", "blue"])
    changed(model, folder / "no_name.onnx", class_names=["red", " ", "blue"])
    changed(model, folder / "lines.onnx", class_names=["red", "green\n", "blue"])
    changed(model, folder / "terminal.onnx", class_names=["red", "\x1b[2J", "blue"])
    changed(model, folder / "huge.onnx", input={"resize": 60000, "size": 32, "interpolation": "bilinear"})
    changed(model, folder / "newer.onnx", input={"resize": 36, "size": 32, "interpolation": "lanczos"})
    changed(model, folder / "how.onnx", input={"resize": 36, "size": 32, "interpolation": ["bilinear"]})
    import onnx
    proto = onnx.load(model)
    proto.opset_import[0].version = 9999
    onnx.save(proto, folder / "opset.onnx")
    proto = onnx.load(model)
    proto.ir_version = 99
    onnx.save(proto, folder / "ir.onnx")
    return {"cut.onnx": "cannot load", "empty.onnx": "cannot load", "text.onnx": "cannot load",
            "foreign.onnx": "is no model that export.py wrote", "no_classes.onnx": "lacks metadata: class_names",
            "few_classes.onnx": "its output", "no_size.onnx": "input", "other_size.onnx": "its input",
            "cold.onnx": "temperature", "points.onnx": "operating_points", "words.onnx": "operating_points",
            "stranger.onnx": "operating_points", "certain.onnx": "operating_points", "promise.onnx": "operating_points",
            "twice.onnx": "operating_points", "classes_twice.onnx": "damaged: class_names is",
            "no_name.onnx": "class_names", "lines.onnx": "class_names", "terminal.onnx": "class_names",
            "huge.onnx": "damaged: input", "newer.onnx": "damaged: input is", "how.onnx": "damaged: input is",
            "opset.onnx": "cannot load", "ir.onnx": "cannot load", ".": "is a folder", "missing.onnx": "no such file"}


def test_a_broken_or_foreign_model_is_one_line(exported, model, tmp_path):
    pytest.importorskip("onnx")
    image = next((exported[1] / "red").iterdir())
    for name, words in broken_models(model, tmp_path).items():
        with pytest.raises(UserError, match=words) as error:
            predict.main([str(tmp_path / name), str(image)])
        assert "\n" not in error.value.message, name


def test_a_model_of_a_newer_version_says_where_its_program_is(exported, model, tmp_path):
    image = str(next((exported[1] / "red").iterdir()))
    for number, words in ((2, "a newer version of this project wrote"), (10, "newer"), (0, "is no model that")):
        changed(model, tmp_path / "m.onnx", format=f"medmnist-edgeai/onnx/{number}")
        with pytest.raises(UserError, match=words) as caught:
            predict.main([str(tmp_path / "m.onnx"), image])
        assert ("Take predict.py and kd/ of the bundle" in caught.value.hint) == (number > 1)
    assert not onnx_model.is_newer(None, onnx_model.FORMAT) and not onnx_model.is_newer(2, onnx_model.FORMAT)
    assert not onnx_model.is_newer("medmnist-edgeai/executorch/2", onnx_model.FORMAT)


def test_what_is_no_model_is_told_what_comes_first(exported, model, tmp_path):
    image = next((exported[1] / "red").glob("*.jpg"))
    (tmp_path / "notes.txt").write_text("words")
    shutil.copy(model, tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:1000])
    for path, way in ((image, "The model comes first, then the images: predict.py MODEL IMAGE"),
                      (exported[0] / "best.pt", "python export.py RUN"), (tmp_path / "notes.txt", "Name a model that"),
                      (tmp_path / "cut.onnx", "Bring a complete copy")):
        with pytest.raises(UserError, match="cannot load") as caught:
            predict.main([str(path), str(model)])
        assert way in caught.value.hint


@pytest.mark.parametrize(
    "argv, words",
    [
        (["MODEL"], "no image named"), (["MODEL", "EMPTY"], "no image at or below"),
        (["MODEL", "x.png", "--batch", "0"], "--batch"), (["MODEL", "--check"], "no such file"),
    ],
)
def test_wrong_use_is_one_line(model, tmp_path, argv, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        predict.main(
            [str(model) if word == "MODEL" else str(tmp_path / "empty") if word == "EMPTY" else word for word in argv]
        )


BLOCKED = """
import runpy, sys
class Refuse:
    allowed = set(sys.stdlib_module_names) | {"numpy", "PIL", "onnxruntime", "kd", "defusedxml"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path[:] = [Refuse(), *(finder for finder in sys.meta_path if "editable" not in repr(finder).lower())]
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def blocked(folder, *words, without=""):
    """A script of `folder` run with nothing but the standard library and three packages, or two of them."""
    code = BLOCKED.replace(f'"{without}"', '"nothing"') if without else BLOCKED
    return subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, words)], cwd=folder, capture_output=True, text=True
    )


def test_eight_files_and_a_model_in_an_empty_folder_are_enough_without_torch(exported, model, tmp_path):
    for name in ALONE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(model, tmp_path / "model.onnx")
    image = next((exported[1] / "red").iterdir())
    done = blocked(tmp_path, "predict.py", "model.onnx", image)
    assert done.returncode == 0, done.stderr
    assert str(image) in done.stdout


def test_a_bundle_runs_alone_proves_itself_and_finds_what_is_wrong(exported, tmp_path):
    box = shutil.copytree(exported[0].parent / "bundle", tmp_path / "box")
    assert {path.relative_to(box).as_posix() for path in box.rglob("*") if path.is_file()} == {
        *bundle.FILES, "model.int8.onnx", "check.npz", "RUN.md", "MODEL_CARD.md", "SHA256SUMS"}
    done = blocked(box, "predict.py", "model.int8.onnx", "--check")
    assert done.returncode == 0 and "8 images: logits agree" in done.stdout, done.stderr
    assert "`check.npz` holds 8 validation images" in (box / "RUN.md").read_text(encoding="utf-8")
    assert "`check.npz` holds 6 validation images" in bundle.how_to_run(onnx_model.Model(box / "model.int8.onnx"), 6)
    done = blocked(box, "predict.py", "model.int8.onnx", next((exported[1] / "red").iterdir()), "--format", "jsonl")
    assert done.returncode == 0 and json.loads(done.stdout)["most_probable"], done.stderr
    done = blocked(box, "benchmark.py", "model.int8.onnx", "--seconds", "0.05", "--queries", "16", "--no-memory")
    assert done.returncode == 0 and "onnxruntime" in done.stdout, done.stderr
    with np.load(box / "check.npz") as arrays:
        np.savez(box / "check.npz", images=arrays["images"], logits=arrays["logits"] + 0.5)
    done = blocked(box, "predict.py", "model.int8.onnx", "--check")
    assert done.returncode == 2 and "check.npz is not the file that SHA256SUMS lists" in done.stderr
    sum_up(box)
    done = blocked(box, "predict.py", "model.int8.onnx", "--check")
    assert done.returncode == 2 and "computes other logits" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def box(exported, tmp_path):
    """A copy of the bundle, which a test may change."""
    return shutil.copytree(exported[0].parent / "bundle", tmp_path / "box")


def sum_up(box):
    """Write SHA256SUMS anew, as somebody does who changed the bundle."""
    names = [line.split("  ")[1] for line in (box / "SHA256SUMS").read_text().splitlines()]
    (box / "SHA256SUMS").write_text("".join(
        f"{hashlib.sha256((box / name).read_bytes()).hexdigest()}  {name}\n" for name in names))


def checked(box):
    return onnx_model.check(box / "model.int8.onnx", box / "check.npz")


def test_check_says_what_it_compared(box):
    lines = checked(box).splitlines()
    assert lines[0] == f"{len(bundle.FILES) + 4} files are as SHA256SUMS lists them"
    assert lines[1].startswith("8 images: logits agree") and len(lines) == 4
    assert lines[2].startswith("computed by ") and lines[2].count(f"with onnxruntime {VERSION}") == 2
    assert lines[3] == (
        "as in check.npz: class_names, thresholds, metadata, labels, probabilities, called, abstains")


VERSION = onnx_model.errors.need("onnxruntime", "edge").__version__


def rewritten(box, **arrays):
    """Other arrays in a bundle's check file; None removes one."""
    with np.load(box / "check.npz") as file:
        arrays = {**file, **arrays}
    np.savez(box / "check.npz", **{name: array for name, array in arrays.items() if array is not None})
    sum_up(box)


@pytest.mark.parametrize("made_on, words, way_out", [
    (["a Cortex", VERSION], f"made by a Cortex, with onnxruntime {VERSION}; this is ", "pip install -U onnxruntime"),
    (["a Xeon", "1.2.3"], "made by a Xeon, with onnxruntime 1.2.3; this is ", "pip install onnxruntime==1.2.3. Or"),
    (None, "made by an older version on an unknown machine; this is ", "products saturated on the machine")])
def test_other_logits_name_both_machines_and_a_way_out(box, made_on, words, way_out):
    with np.load(box / "check.npz") as arrays:
        logits = arrays["logits"] + 0.5
    rewritten(box, logits=logits, machine=None if made_on is None else np.array(made_on))
    with pytest.raises(UserError, match="computes other logits: they differ by up to 0.5 ") as caught:
        checked(box)
    here = "saturate" if onnx_model.saturates() else "are exact"
    assert words in caught.value.message and caught.value.message.endswith(
        f"where sums of 8-bit products {here}, with onnxruntime {VERSION}")
    assert way_out in caught.value.hint and caught.value.hint.endswith("python export.py RUN --bundle DIR")


@pytest.mark.parametrize("machine", [np.array(["a", "1; rm -r"]), np.array("a"), np.array([1, 2]),
                                     np.array(["a", "1.0", "b"])])
def test_a_machine_in_a_check_file_that_is_none_is_refused(box, machine):
    rewritten(box, machine=machine)
    with pytest.raises(UserError, match="does not say which machine made it"):
        checked(box)


def test_checksums_are_compared_before_the_model_is_loaded(box, monkeypatch):
    (box / "model.int8.onnx").write_bytes(b"crafted")
    monkeypatch.setattr(onnx_model, "Model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="model.int8.onnx is not the file that SHA256SUMS lists"):
        checked(box)
    with pytest.raises(UserError, match="no such file: .*SHA256SUMS"):
        predict.main([".", "--check"])


@pytest.mark.parametrize("change", [
    lambda texts: {"class_names": texts["class_names"][::-1]},
    lambda texts: {"temperature": 1 + texts["temperature"]},
    *(lambda texts, kind=kind, value=value: {"operating_points": [
        {**point, "threshold": value} if point["kind"] == kind else point for point in texts["operating_points"]]}
      for kind in ("sensitivity", "abstention") for value in (0, 0.5, 1, None)),
    lambda texts: {"operating_points": [p for p in texts["operating_points"] if p["kind"] != "abstention"]},
    lambda texts: {"operating_points": []}])
def test_a_model_with_other_names_thresholds_or_temperature_does_not_pass(box, change):
    model = box / "model.int8.onnx"
    points = [{"name": "s", "kind": "sensitivity", "class": "green", "threshold": 0.3, "promised": 0.95},
              {"name": "a", "kind": "abstention", "class": None, "threshold": 0.6, "promised": 0.1}]
    changed(model, model, operating_points=points, temperature=1.5)
    with np.load(box / "check.npz") as arrays:
        np.savez(box / "check.npz", **onnx_model.expected(onnx_model.Model(model), arrays["images"]))
    sum_up(box)
    checked(box)
    changed(model, model, **change(onnx_model.Model(model).metadata))
    with pytest.raises(UserError, match="model.int8.onnx is not the file that SHA256SUMS lists"):
        checked(box)
    sum_up(box)
    with pytest.raises(UserError, match="has or gives other .* than .*check.npz has"):
        checked(box)


@pytest.mark.parametrize("name", ["class_names", "thresholds", "labels", "probabilities", "called", "abstains"])
def test_a_check_file_with_another_answer_does_not_pass(box, name):
    with np.load(box / "check.npz") as file:
        arrays = dict(file)
    values = arrays[name]
    values.flat[0] = {"U": "another", "b": not values.flat[0], "f": 0.123}[values.dtype.kind]
    np.savez(box / "check.npz", **arrays)
    sum_up(box)
    with pytest.raises(UserError, match=f"other {name} than"):
        checked(box)


def test_every_file_of_a_bundle_is_checked_and_no_program_may_be_added(box):
    for name in ("predict.py", "MODEL_CARD.md", "kd/metrics.py"):
        content = (box / name).read_bytes()
        (box / name).write_bytes(content + b"#")
        with pytest.raises(UserError, match=f"{name} is not the file that SHA256SUMS lists"):
            checked(box)
        (box / name).write_bytes(content)
    for name in ("numpy.py", "kd/text.py"):
        (box / name).touch()
        with pytest.raises(UserError, match=f"SHA256SUMS does not list {name}"):
            checked(box)
        (box / name).unlink()
    sums = (box / "SHA256SUMS").read_text()
    digest = hashlib.sha256(b"").hexdigest()
    for content, words in (("", "is not listed"), ("words\n", "is damaged"), (f"{digest}  ../x\n", "elsewhere"),
                           (f"{digest}  /x\n", "elsewhere"), (sums + f"{digest}  absent\n", "no such file"),
                           (sums + sums, "is damaged"),
                           (b"\xff" + sums.encode(), "SHA256SUMS is damaged"),
                           (sums.replace("predict.py", "."), "a folder")):
        (box / "SHA256SUMS").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=words):
            checked(box)
    (box / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="no such file: .*SHA256SUMS"):
        checked(box)


def test_a_bundle_of_an_older_version_says_what_it_does_not_compare(box):
    with np.load(box / "check.npz") as arrays:
        np.savez(box / "check.npz", images=arrays["images"], logits=arrays["logits"])
    sum_up(box)
    lines = checked(box).splitlines()
    assert lines[2].endswith("; the check was made by an older version on an unknown machine")
    assert lines[3] == (
        "not in check.npz, which is older, and so not compared: class_names, thresholds, metadata, labels, "
        "probabilities, called, abstains")


def test_a_check_file_lacks_nothing_of_its_version_and_the_input_is_checked(box):
    with np.load(box / "check.npz") as arrays:
        content = dict(arrays)
    np.savez(box / "check.npz", **{name: array for name, array in content.items() if name != "called"})
    sum_up(box)
    with pytest.raises(UserError, match="lacks called"):
        checked(box)
    np.savez(box / "check.npz", **content)
    model = box / "model.int8.onnx"
    texts = onnx_model.Model(model).metadata
    changed(model, model, input={**texts["input"], "resize": texts["input"]["resize"] + 9})
    sum_up(box)
    with pytest.raises(UserError, match="has or gives other metadata"):
        checked(box)


@pytest.mark.parametrize("arrays", [{"images": np.zeros((0, 32, 32, 3), np.uint8), "logits": np.zeros((0, 3))},
                                    {"images": np.zeros((99, 32, 32, 3), np.uint8), "logits": np.zeros((99, 3))},
                                    {"images": np.zeros((2, 32, 32, 3), np.uint8), "logits": np.zeros((2, 4))},
                                    {"images": np.zeros((2, 9, 9, 3), np.uint8), "logits": np.zeros((2, 3))},
                                    {"images": np.array(["a", "b"]), "logits": np.zeros((2, 3))},
                                    {"images": np.zeros((), np.uint8), "logits": np.zeros((2, 3))},
                                    {"images": np.zeros((2, 32, 32, 3), np.uint8), "logits": np.array([["a"] * 3] * 2)},
                                    {"images": np.zeros((2, 32, 32, 3), np.uint8)}])
def test_a_check_file_of_other_arrays_is_one_line(box, arrays):
    np.savez(box / "check.npz", **arrays)
    sum_up(box)
    with pytest.raises(UserError) as caught:
        checked(box)
    assert "\n" not in caught.value.message


def test_the_checksums_of_a_bundle_are_those_of_its_files(exported):
    box = exported[0].parent / "bundle"
    lines = (box / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == len(bundle.FILES) + 4
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((box / name).read_bytes()).hexdigest() == digest


def test_the_card_says_data_metrics_with_intervals_and_limits(exported):
    text = (exported[0].parent / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    accuracy = read_json(exported[0] / "metrics.json")["test"]["accuracy"]
    assert f"| accuracy | {accuracy['value']:.3f} | {accuracy['lo']:.3f} to {accuracy['hi']:.3f} |" in text
    assert "not a medical device" in text and "## Limits" in text and "at sensitivity 0.95" in text
    assert str(exported[1]) not in text


@pytest.mark.parametrize("place", ["full", "file", "file/below", "link", "n" * 300, "nul\0", "link/below"])
def test_a_place_where_no_bundle_can_be_is_refused_before_the_export(tmp_path, place, monkeypatch):
    import export
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(export, "single_run", lambda run: pytest.fail("the run was opened"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        export.main(["run", "--bundle", str(tmp_path / place)])
    assert "\n" not in error.value.message and error.value.hint and "--out" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["new", "new/below", "empty", "n" * 250])
def test_a_bundle_can_be_in_a_new_or_empty_folder(tmp_path, place):
    (tmp_path / "empty").mkdir()
    bundle.check_free(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_logits_of_a_check_file_that_are_not_finite_are_refused(box):
    with np.load(box / "check.npz") as arrays:
        content = dict(arrays)
    for value in (np.inf, np.nan):
        logits = content["logits"].copy()
        logits[0, 0] = value
        np.savez(box / "check.npz", **{**content, "logits": logits})
        sum_up(box)
        with pytest.raises(UserError, match="logits that are not finite"):
            checked(box)


def test_a_bundle_is_not_laid_over_other_files(exported, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        bundle.write(
            Run(exported[0]), exported[0] / "exports" / "model.onnx", np.zeros((8, 32, 32, 3), np.uint8), tmp_path
        )
    with pytest.raises(UserError, match="no such file"):
        bundle.write(
            Run(exported[0]), exported[0] / "exports" / "none.onnx", np.zeros((8, 32, 32, 3), np.uint8),
            tmp_path / "new",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("script", ["predict.py", "benchmark.py"])
@pytest.mark.parametrize("package", ["numpy", "PIL", "onnxruntime"])
def test_a_box_without_a_package_is_told_what_to_install(box, script, package):
    done = blocked(box, script, "model.int8.onnx", "x.jpg", without=package)
    name = package.replace("PIL", "pillow")
    assert done.returncode == 2
    assert done.stderr == (f"error: this needs the package {name}, which is not installed\n"
                           "pip install numpy pillow onnxruntime\n")


def test_a_checkpoint_is_not_measured_in_a_bundle(exported, box):
    shutil.copy(exported[0] / "best.pt", box)
    done = blocked(box, "benchmark.py", "best.pt")
    assert done.returncode == 2 and "a bundle has nothing that runs one\nName an exported file" in done.stderr


def test_the_way_out_of_a_missing_package_is_that_of_the_place(monkeypatch):
    for module in ("onnxruntime", "executorch"):
        monkeypatch.setitem(sys.modules, module, None)
    for in_bundle, hints in ((True, [errors.BOX, "pip install executorch"]), (False, ['pip install -e ".[edge]"'] * 2)):
        monkeypatch.setattr(errors, "IN_BUNDLE", in_bundle)
        for module, hint in zip(("onnxruntime", "executorch"), hints):
            with pytest.raises(UserError) as caught:
                errors.need(module, "edge")
            assert caught.value.hint == hint


def test_an_abstention_in_the_csv_is_no_unreadable_file_and_its_columns_give_the_thresholds(exported, model, tmp_path,
                                                                                           capsys):
    """As RUN.md says: the columns to the power of the temperature are the probabilities of the thresholds."""
    never = changed(model, tmp_path / "m.onnx", temperature=1.7, operating_points=[
        {"name": "abstain", "kind": "abstention", "class": "", "threshold": 1.0, "promised": 0.05}])
    (tmp_path / "bad.png").touch()
    image = next((exported[1] / "red").iterdir())
    predict.main([str(never), str(image), str(tmp_path / "bad.png"), "--format", "csv"])
    good, bad = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (good["label"], good["abstains"], good["error"]) == ("", "True", "")
    assert bad["label"] == bad["abstains"] == "" and bad["error"]
    text = (exported[0].parent / "bundle" / "RUN.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in good if not name.startswith("p_")) and "`p_CLASS`" in text
    opened = onnx_model.Model(never)
    raw = opened.probabilities(opened.logits(opened.pixels(image)[None]))[0][0]
    powers = np.array([float(good[f"p_{name}"]) for name in opened.class_names]) ** opened.temperature
    np.testing.assert_allclose(powers / powers.sum(), raw, atol=1e-6)


@pytest.mark.parametrize("names, status", [(["good"], 0), (["good", "bad"], 0), (["bad"], 2), ([], 2)])
def test_the_exit_status_is_as_run_md_says(exported, model, tmp_path, names, status):
    for name in names:
        if name == "good":
            shutil.copy(next((exported[1] / "red").iterdir()), tmp_path)
        else:
            (tmp_path / "bad.png").touch()
    done = subprocess.run([sys.executable, ROOT / "predict.py", model, tmp_path], capture_output=True)
    assert done.returncode == status
