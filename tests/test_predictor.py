"""kd.onnx_model.Model in a program: what it takes, what it answers, what it says of itself; examples run as printed."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exported as parts
import predict
from kd import metrics
from kd.data.dataset import SYNTHETIC, Dataset
from kd.edge import bundle
from kd.errors import UserError
from kd.files import read_json
from kd.onnx_model import Model
from kd.run_folder import Run
from test_predict import blocked, changed

ROOT = Path(__file__).resolve().parent.parent
KEYS = ["label", "confidence", "most_probable", "called", "abstains", "probabilities", "problem", "caution"]


@pytest.fixture(scope="module")
def file(exported):
    return exported[0] / "exports" / "model.onnx"


@pytest.fixture(scope="module")
def model(file):
    return Model(file, 1)


@pytest.fixture
def picture():
    """A picture of colours, RGB, whose size and shape are not the model's."""
    return np.asarray(parts.draw("plain.png", (250, 20, 20), np.random.default_rng(3)))


def encoded(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def near(one, other):
    assert one.keys() == other.keys()
    return one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


# ---- what it takes

def test_an_image_has_one_answer_in_whatever_form_it_comes(model, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture))
    answer = model.predict(tmp_path / "a.png")
    assert list(answer) == KEYS
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    forms = [str(tmp_path / "a.png"), encoded(picture), bytearray(encoded(picture)), io.BytesIO(encoded(picture)),
             Image.open(tmp_path / "a.png"), Image.fromarray(picture), picture, np.asfortranarray(picture),
             np.dstack([picture, alpha]), Image.fromarray(np.dstack([picture, alpha]))]
    for form in forms:
        assert near(model.predict(form), answer), type(form)
    with open(tmp_path / "a.png", "rb") as opened:
        assert near(model.predict(opened), answer)
    assert all(near(one, answer) for one in model.predict_all(forms, batch=3))


def test_frames_of_opencv_are_answered_as_their_colours_are(model, picture):
    answer, turned = model.predict(picture), model.predict(picture[..., ::-1])
    assert not near(answer, turned)  # else nothing were tested here
    frame = np.ascontiguousarray(picture[..., ::-1])
    with_alpha = np.dstack([frame, np.full(frame.shape[:2], 90, np.uint8)])
    assert near(model.predict(frame, bgr=True), answer)
    assert near(model.predict(with_alpha, bgr=True), model.predict(with_alpha[..., [2, 1, 0, 3]]))
    batch = np.stack([frame, frame[::-1]])
    first, second = model.predict_all(batch, bgr=True)
    assert near(first, answer) and near(second, model.predict(picture[::-1]))
    assert near(model.predict(Image.fromarray(picture), bgr=True), answer)  # Pillow images know their colours


def test_grey_comes_in_two_dimensions_or_in_one_channel_and_a_rotation_tag_is_applied(model, picture, tmp_path):
    grey = picture[..., 0]
    answer = model.predict(np.dstack([grey] * 3))
    assert near(model.predict(grey), answer) and near(model.predict(grey[..., None]), answer)
    assert near(model.predict(grey[..., None], bgr=True), answer)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert near(model.predict(Image.open(tmp_path / "turned.png")), model.predict(tmp_path / "turned.png"))
    assert near(model.predict(Image.open(tmp_path / "turned.png")), model.predict(np.rot90(picture, -1)))


def test_deep_arrays_and_pictures_are_scaled_and_judged_as_their_files(file, tmp_path):
    spec = Model(file).metadata["input"]
    model = Model(changed(file, tmp_path / "m.onnx", input={**spec, "range": [0, 4095]}))
    grey = np.random.default_rng(0).random((40, 50))
    for name, values, problem in (("a.png", (grey * 4095).astype(np.uint16), None),
                                  ("b.tif", (grey * 4095).astype(np.float32), None),
                                  ("c.png", (grey * 65535).astype(np.uint16), "beyond"),
                                  ("d.png", (grey * 200).astype(np.uint16), "narrow")):
        Image.fromarray(values).save(tmp_path / name)
        answer = model.predict(tmp_path / name)
        assert answer["problem"] == problem and bool(answer["caution"]) == bool(problem)
        if problem:
            assert answer["values"] == [values.min(), values.max()] and "0..4,095" in answer["caution"]
        for form in (values, values[..., None], Image.fromarray(values), Image.open(tmp_path / name)):
            assert model.predict(form) == answer
    Image.fromarray((grey * 4095).astype(np.uint16)).save(tmp_path / "w.tif", tiffinfo={262: 0})
    with pytest.raises(UserError, match="white is zero") as caught:
        model.predict(Image.open(tmp_path / "w.tif"))
    assert caught.value.hint == "Give its path." and model.predict(tmp_path / "w.tif")["label"]
    eight = Model(changed(file, tmp_path / "8.onnx", input={key: spec[key] for key in spec if key != "range"}))
    values = (grey * 4095).astype(np.uint16)
    with pytest.raises(UserError, match="the image has more than 8 bits"):
        eight.predict(values)
    bad, good = eight.predict_all([values, (grey * 255).astype(np.uint8)])
    assert bad["problem"] == "deep" and bad["label"] is None and good["label"]


@pytest.mark.parametrize("wrong, words", [
    (np.zeros((8, 8, 3)), "not float64"), (np.zeros((8, 8, 3), np.uint16), "not uint16"),
    (np.zeros((8, 8, 3), bool), "not bool"), (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]"),
    (np.zeros((8, 8, 5), np.uint8), r"\[8, 8, 5\]"), (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]"),
    (np.zeros(8, np.uint8), r"\[8\]"), (np.uint8(3), "not a uint8"), (np.array("a.png"), "not <U5"),
    (None, "not a NoneType"), (3, "not a int"), ([1, 2], "not a list"), (b"", "it is empty"), (b"text", "not a JPEG"),
    ("gone.jpg", "no such file: gone.jpg"), (io.StringIO("text"), "cannot read the image"), ("a\0b", "no such file")])
def test_what_is_no_image_is_one_line_and_in_a_batch_an_answer_without_label(model, picture, wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        model.predict(wrong)
    assert "\n" not in caught.value.message
    answers = list(model.predict_all([picture, wrong, picture]))
    assert near(answers[0], answers[2]) and list(answers[1]) == [*KEYS[:6], "error", *KEYS[6:]]
    assert re.search(words, answers[1]["error"]) and answers[1]["problem"] == "unreadable"
    assert answers[1]["abstains"] is answers[1]["label"] is answers[1]["confidence"] is None


def test_an_array_of_another_type_is_told_what_is_taken_and_how_to_get_there(model, picture):
    with pytest.raises(UserError, match=r"uint16 or float32 \[H, W\], not float64 \[44, 36, 3\]") as caught:
        model.predict(np.zeros((44, 36, 3)))
    share = picture / 255
    assert near(model.predict(eval(caught.value.hint.split("so: ")[1], {"array": share, "numpy": np})),
                model.predict(picture))
    text = " ".join(Model.predict.__doc__.split())
    assert '"unreadable"' in text and '"deep"' in text


def test_a_picture_whose_file_is_cut_short_is_one_line(model, picture):
    data = io.BytesIO()
    Image.fromarray(picture.repeat(9, 0)).save(data, "JPEG")
    with pytest.raises(UserError, match="cannot read the image: image file is truncated"):
        model.predict(Image.open(io.BytesIO(data.getvalue()[:-300])))


@pytest.mark.parametrize("wrong, words", [
    (np.zeros((8, 8, 3), np.uint8), r"a batch is an array \[N, H, W, 3\], not \[8, 8, 3\]"),
    ("a.png", "several images"), (Path("a.png"), "several images"), (b"", "several images"),
    (Image.new("RGB", (8, 8)), "several images"), (io.BytesIO(), "several images"),
    (None, "several images, not NoneType"), (3, "several images, not int")])
def test_one_image_for_several_is_refused_at_once(model, wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        model.predict_all(wrong)
    assert caught.value.hint == "predict() takes a single image."


def test_no_image_has_no_answer(model):
    size = model.size
    assert list(model.predict_all([])) == list(model.predict_all(np.zeros((0, 9, 9, 3), np.uint8))) == []
    assert model.logits(np.zeros((0, size, size, 3), np.uint8)).shape == (0, 3)
    for wrong in (np.zeros((1, size, size, 3)), np.zeros((size, size, 3), np.uint8),
                  np.zeros((1, size + 1, size, 3), np.uint8)):
        with pytest.raises(UserError, match=rf"uint8 \[N, {size}, {size}, 3\], not {wrong.dtype}"):
            model.logits(wrong)


@pytest.mark.parametrize("wrong", [-1, 1025, 1.5, "2", None])
def test_threads_and_batch_are_whole_numbers(file, model, wrong):
    assert Model(file, 0).predict(np.zeros((9, 9, 3), np.uint8))["most_probable"]
    with pytest.raises(UserError, match="threads is a whole number from 0 to 1,024"):
        Model(file, wrong)
    for batch in (0, wrong if wrong != 1025 else -1):
        with pytest.raises(UserError, match="batch is a whole number from 1 to 65,536"):
            model.predict_all([], batch=batch)


def test_no_more_images_than_a_batch_are_taken_before_they_are_answered(model, picture):
    taken = []

    def camera():
        for k in range(5):
            taken.append(k)
            yield picture

    answers = model.predict_all(camera(), batch=2)
    assert not taken
    next(answers)
    assert taken == [0, 1]
    assert len(list(answers)) == 4


# ---- what it answers, and says of its answers

POINTS = [{"name": "r", "kind": "sensitivity", "class": "red", "threshold": 0.3, "promised": 0.8, "asked": 0.95,
           "assurance": 0.9},
          {"name": "g", "kind": "sensitivity", "class": "green", "threshold": 0.05, "promised": 0.95, "asked": 0.95,
           "assurance": 0.9},
          {"name": "a", "kind": "abstention", "class": None, "threshold": 0.6, "promised": 0.1, "assurance": 0.9}]


def test_an_answer_follows_from_the_logits(file, tmp_path, picture):
    model = Model(changed(file, tmp_path / "m.onnx", operating_points=POINTS, temperature=2.5))
    logits = model.logits(model.pixels(picture)[None])[0].astype(float)
    raw, calibrated = np.exp(logits) / np.exp(logits).sum(), np.exp(logits / 2.5) / np.exp(logits / 2.5).sum()
    answer = model.predict(picture)
    names = model.class_names
    assert answer["probabilities"] == pytest.approx(dict(zip(names, calibrated)))
    assert answer["most_probable"] == names[raw.argmax()] and answer["confidence"] == pytest.approx(calibrated.max())
    assert answer["label"] == (names[raw.argmax()] if raw.max() >= 0.6 else None)
    assert answer["called"] == [name for name, p in zip(names, raw) if p >= {"red": .3, "green": .05}.get(name, 2)]


def test_explain_has_the_words_for_each_threshold_and_promise(file, tmp_path):
    text = Model(changed(file, tmp_path / "m.onnx", operating_points=POINTS, temperature=2.5)).explain()
    assert "blue, green, red; an image of any other kind" in text and "with temperature 2.50" in text
    assert "for a sensitivity of 0.95: red 0.3 (promised: 0.80), green 0.05\n" in text
    assert "reaches 0.6, chosen on validation images for at most 10% errors" in text
    assert "a share of 0.9 chooses a threshold that keeps its promise" in text
    old = [{key: point[key] for key in point if key not in ("asked", "assurance")} for point in POINTS]
    model = Model(changed(file, tmp_path / "m.onnx", operating_points=old))
    model.temperature = None
    text = model.explain()
    assert "for a sensitivity: red 0.3 (promised: 0.80), green 0.05 (promised: 0.95)\n" in text
    assert "not calibrated" in text and "share" not in text
    never = [{**point, "threshold": None} for point in POINTS]
    text = Model(changed(file, tmp_path / "m.onnx", operating_points=never)).explain()
    assert "abstains: never, since no threshold gave at most 10% errors" in text and "called:" not in text
    text = Model(changed(file, tmp_path / "m.onnx", operating_points=[])).explain()
    assert "abstains" not in text and "promise" not in text
    assert text.endswith("\nResearch software, not a medical device.")


@pytest.mark.parametrize("point", [{"asked": "x"}, {"asked": 2}, {"assurance": []}])
def test_a_promise_that_is_no_share_is_refused(file, tmp_path, point):
    with pytest.raises(UserError, match="damaged: operating_points"):
        Model(changed(file, tmp_path / "m.onnx", operating_points=[{**POINTS[0], **point}]))


def test_an_export_records_what_was_asked_for(exported, model):
    evaluated = read_json(exported[0] / "metrics.json")["operating_points"]
    for key in ("asked", "assurance"):
        assert [point[key] for point in model.points] == [point.get(key) for point in evaluated]
    assert "for a sensitivity of 0.95" in model.explain()


# ---- other images than photographs

def test_a_data_set_says_what_its_images_are(tmp_path):
    import registry
    from kd.data.loader import Data
    from registry.datasets import medmnist
    assert registry.create("dataset", "lesions", images=100, size=16).caution == SYNTHETIC
    assert Dataset("d", ["a"], ["a.png"], ["a"], [0]).caution == ""
    assert Dataset("d", ["a"], ["a.png"], ["a"], [0], synthetic=True, caution="of a phantom").caution == "of a phantom"
    arrays = {f"{split}_{part}": np.zeros((2, 28, 28), np.uint8) if part == "images" else np.array([[0], [1]])
              for split in ("train", "val", "test") for part in ("images", "labels")}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    assert "scaled them to 28 x 28 px" in medmnist.medmnist(tmp_path / "pneumoniamnist.npz").caution
    assert "caution" in Data.__dataclass_fields__


def test_the_loader_and_the_export_pass_it_on(exported, tmp_path, monkeypatch):
    import registry
    from kd.data import loader
    from kd.edge import checked_export
    from kd.train import setup
    lesions = registry.create("dataset", "lesions", images=100, size=16)
    assert loader.prepare(lesions, size=16, cache_folder=tmp_path).caution == SYNTHETIC
    of_run = setup.data_of_run
    monkeypatch.setattr(setup, "data_of_run", lambda *args: dataclasses.replace(of_run(*args), caution=SYNTHETIC))
    assert checked_export.open_run(Run(exported[0]), registry).metadata["caution"] == SYNTHETIC


def test_every_answer_of_a_model_of_drawn_images_says_so_in_each_format(file, tmp_path, picture, capsys):
    caution = "the model was trained on drawn images"
    drawn = changed(file, tmp_path / "m.onnx", caution=caution)
    model = Model(drawn)
    assert model.predict(picture)["caution"] == caution and caution in model.explain()
    assert [answer["caution"] for answer in model.predict_all([picture, b"", picture])] == [caution] * 3
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    out = {}
    for kind in ("table", "csv", "jsonl"):
        predict.main([str(drawn), *files, "--format", kind])
        out[kind] = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["caution"] for line in out["jsonl"]] == [caution] * 3
    assert out["csv"][0].endswith(",error,caution") and all(line.endswith(caution) for line in out["csv"][1:])
    labels = [line.split()[0] for line in out["table"][1:4]]
    assert labels[0] == labels[2] == (model.predict(picture)["label"] or "abstains") + "*" and labels[1] == "unreadable"
    assert f"* CAUTION: {caution}" in out["table"]
    predict.main([str(file), files[0]])
    assert "*" not in capsys.readouterr().out


def test_the_bundle_of_a_model_of_drawn_images_says_so(exported, file, tmp_path):
    drawn = changed(file, tmp_path / "model.onnx", caution="the model was trained on drawn images")
    bundle.write(Run(exported[0]), drawn, np.zeros((1, 32, 32, 3), np.uint8), tmp_path / "box")
    for name in ("RUN.md", "MODEL_CARD.md"):
        assert "CAUTION: the model was trained on drawn images.\n" in (tmp_path / "box" / name).read_text("utf-8")
        assert "CAUTION" not in (exported[0].parent / "bundle" / name).read_text("utf-8")


@pytest.mark.parametrize("caution", [3, "two\nlines", "\x1b[2J", "x" * 1001, ["a"]])
def test_a_caution_that_is_no_line_of_text_is_refused(file, tmp_path, caution):
    with pytest.raises(UserError, match="damaged: caution"):
        Model(changed(file, tmp_path / "m.onnx", caution=caution))


# ---- the examples, as they are printed

def examples(text):
    """The blocks of Python in a Markdown text that begin with the import of Model, without their indent."""
    blocks = re.findall(r"(?m)^    from kd\.onnx_model import Model\n(?:(?: {4}.*)?\n)*", text)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in blocks]


@pytest.fixture
def box(exported, picture, tmp_path):
    """A copy of the bundle, with images of the names that the examples use."""
    box = shutil.copytree(exported[0].parent / "bundle", tmp_path / "box")
    for name in ("image.jpg", "other.png", "lesion.jpg"):
        Image.fromarray(picture).save(box / name, "PNG")
    return box


@pytest.mark.parametrize("name", ["README.md", "RUN.md", "MODEL_CARD.md"])
def test_the_example_runs_in_a_bundle_as_printed_without_torch(box, name):
    folder = ROOT if name == "README.md" else box
    example, = examples((folder / name).read_text(encoding="utf-8"))
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    (box / "mine.py").write_text(example, encoding="utf-8")
    done = blocked(box, "mine.py")
    assert done.returncode == 0, done.stderr
    model = Model(box / "model.int8.onnx", 1)
    answers = list(model.predict_all([box / "image.jpg"] * (2 if name == "RUN.md" else 1)))
    lines = [f"{one['label']} {one['confidence']} {one['called']} " for one in answers]
    assert done.stdout == "\n".join([model.explain(), *lines, ""])


def test_run_md_states_the_input_of_its_model(box):
    model, text = Model(box / "model.int8.onnx"), (box / "RUN.md").read_text(encoding="utf-8")
    assert f"uint8 [N, {model.size}, {model.size}, 3]" in text and "float32 [N, 3]" in text
    assert f"short side to {model.metadata['input']['resize']} px" in text
    assert "$" not in text.split("```")[0].replace("$PWD", "")


def onnxruntime_for_cpp(folder):
    """Make folder/ORT with include/ and lib/ as a release of ONNX Runtime has them; skip where there is no compiler or
    no header (Debian 13: libonnxruntime-dev; CPLUS_INCLUDE_PATH names another place)."""
    import os
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    places = [*os.environ.get("CPLUS_INCLUDE_PATH", "").split(os.pathsep), "/usr/include/onnxruntime",
              "/usr/local/include/onnxruntime", "/usr/include"]
    include = next((place for place in places if place and Path(place, "onnxruntime_cxx_api.h").is_file()), None)
    if include is None:
        pytest.skip("needs the headers of ONNX Runtime")
    import onnxruntime
    (folder / "ORT" / "lib").mkdir(parents=True)
    (folder / "ORT" / "include").symlink_to(include)
    found = [*Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"),
             *Path("/usr/lib").glob(f"{sysconfig.get_config_var('MULTIARCH')}/libonnxruntime.so")]
    if not found:
        pytest.skip("needs the library of ONNX Runtime")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "ORT" / "lib" / name).symlink_to(found[0].resolve())


def test_the_links_of_run_md_make_a_library_of_the_wheel(box):
    import onnxruntime
    found = list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*"))
    if not found:
        pytest.skip("needs the wheel of ONNX Runtime for Linux")
    place = box / "env/lib/python3.11/site-packages/onnxruntime"
    place.mkdir(parents=True)
    (place / "capi").symlink_to(found[0].parent)
    commands = re.findall(r"(?m)^    ((?:mkdir|ln) .*)$", (box / "RUN.md").read_text(encoding="utf-8"))
    subprocess.run("\n".join(commands), shell=True, cwd=box, check=True)
    assert [(box / "ORT/lib" / name).resolve() for name in ("libonnxruntime.so", "libonnxruntime.so.1")] == found * 2


def test_the_program_in_cpp_gives_the_same_probabilities_as_python(box, exported):
    onnxruntime_for_cpp(box)
    text = (box / "RUN.md").read_text(encoding="utf-8")
    code = text.split("```cpp\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 66
    (box / "classify.cpp").write_text(code)
    compile_, run = re.search(r"^    (g\+\+ .*)\n    (\./classify .*)$", text, re.MULTILINE).groups()
    to_ppm = re.search(r"(?m)^    from PIL import Image\n    .*image\.ppm.*$", text)[0].replace("\n    ", "\n").strip()
    (box / "mine.py").write_text(f"{examples(text)[0]}\n{to_ppm}\n", encoding="utf-8")
    assert blocked(box, "mine.py").returncode == 0
    done = subprocess.run(f"{compile_} -Wall -Wextra -Werror", shell=True, cwd=box, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(run, shell=True, cwd=box, capture_output=True, text=True)
    model = Model(box / "model.int8.onnx", 1)
    assert done.returncode == 0, done.stderr
    caution, names, probabilities = done.stdout.splitlines()
    assert caution == 'caution: ""' and json.loads(names.removeprefix("class_names: ")) == model.class_names
    expected = model.predict(box / "image.jpg")["probabilities"].values()
    assert list(map(float, probabilities.split())) == pytest.approx(list(expected), abs=1e-4)
    assert metrics.softmax(model.logits(model.pixels(box / "image.jpg")[None])).shape == (1, 3)
    for argv, words in ((["model.int8.onnx", "image.jpg"], "no PPM of the model's size"), ([], "usage"),
                        (["none.onnx", "image.ppm"], "none.onnx"), (["model.int8.onnx", "cut.ppm"], "cut short")):
        (box / "cut.ppm").write_bytes((box / "image.ppm").read_bytes()[:-1])
        done = subprocess.run(["./classify", *argv], cwd=box, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr


def test_the_class_is_enough_with_five_modules_and_none_that_a_box_lacks(box):
    """What is imported decides how soon the first answer comes."""
    code = ("import sys; from kd.onnx_model import Model; m = Model('model.int8.onnx', 1); m.predict('image.jpg')\n"
            "print(*sorted(name for name in sys.modules))")
    (box / "mine.py").write_text(code)
    done = blocked(box, "mine.py")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("kd.")} == {
        f"kd.{name}" for name in ("errors", "files", "image", "image_files", "metrics", "onnx_model")}
    late = {"zipfile", "csv", "socket", "tempfile", "difflib", "concurrent.futures", "PIL.PdfImagePlugin",
            "PIL.EpsImagePlugin", "tqdm", "yaml", "torch"}
    assert not loaded & late - set(sys.builtin_module_names)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bytes", "picture", "array", "rgba"])
@pytest.mark.parametrize("size, is_small", [((15, 90), True), ((90, 15), True), ((16, 16), False), ((800, 700), False)])
def test_an_image_of_less_than_half_the_input_is_answered_with_a_caution(model, tmp_path, kind, size, is_small):
    assert model.size == 32
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    data = io.BytesIO()
    image.save(data, "JPEG" if kind == "jpeg" else "PNG")
    (tmp_path / "a").write_bytes(data.getvalue())
    answer = model.predict({"bytes": data.getvalue(), "picture": image, "array": np.asarray(image),
                            "rgba": np.asarray(image.convert("RGBA"))}.get(kind, tmp_path / "a"))
    assert (answer["problem"] == "small") == is_small
    assert ("15 px is less than half of the 32 px" in answer["caution"]) == is_small


def test_small_images_are_counted_in_a_note(file, tmp_path, capsys):
    for name, side in (("a.png", 8), ("b.png", 40)):
        Image.new("RGB", (side, side), "red").save(tmp_path / name)
    predict.main([str(file), str(tmp_path)])
    found = capsys.readouterr()
    assert "note: 1 of 2 files is less than half as large as the 32 px" in found.err and "b.png" not in found.err
