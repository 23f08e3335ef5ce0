"""Each reader on files that chance has damaged or built: a value or a UserError, within seconds and a gigabyte.

On demand: KD_FUZZ_SECONDS=600 python -m pytest -m slow tests/test_fuzz.py gives each reader ten minutes.
"""

import io
import json
import os
import sys
import time
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

import registry  # noqa: E402
import small  # noqa: E402
import study  # noqa: E402
import train_teacher  # noqa: E402
from kd import errors, files, objective, onnx_model, predictions  # noqa: E402
from kd.data import cache  # noqa: E402
from kd.data.dataset import Dataset  # noqa: E402
from kd.report import event_files, notes  # noqa: E402
from kd.run_folder import Run, StudyFolder  # noqa: E402
from kd.study import plan  # noqa: E402
from kd.train import checkpoint, setup, weights  # noqa: E402
from kd.train.options import to_arguments  # noqa: E402

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("KD_FUZZ_SECONDS", 10))  # for each reader
LONGEST, LARGEST = 5, 2 ** 30  # seconds and bytes of memory


def fuzz(strategy, read, path):
    """Write what `strategy` draws to `path` and read it, for SECONDS: a value or a UserError comes out, and soon."""
    @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def once(data):
        path.write_bytes(data)
        before, began = peak(), time.process_time()
        try:
            read(path)
        except Exception as error:
            user_error = errors.of_user(error, registry.RegistryError)
            if user_error is None:
                raise
            assert "\n" not in user_error.message and len(user_error.message) < 1100
        assert time.process_time() - began < LONGEST
        assert peak() - before < LARGEST

    end = time.monotonic() + SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while time.monotonic() < end:
            once()


def peak():
    """The largest memory of this process so far, in bytes; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- strategies: bytes of files

TOKENS = st.sampled_from([
    b"\0", b"\xff" * 8, b"\n", b",", b'"', b"'", b"[", b"{", b"}", b":", b"&a ", b"*a ", b"- ", b"# ", b"|", b"9" * 400,
    b"-1", b"NaN", b"1e999", b"null", b"\xed\xa0\x80", b"\\ud800", b"=", b"\x1b[2J"])


@st.composite
def damaged(draw, content):
    """The bytes `content` with parts turned over, cut, doubled, moved and put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "put", "put", "cut", "end", "double"]))
        length = draw(st.integers(1, 40))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "put":
            data[at:at] = draw(TOKENS | st.binary(max_size=12)) * draw(st.sampled_from([1, 1, 1, 2, 2000]))
        elif kind == "cut":
            del data[at:at + length]
        elif kind == "end":
            del data[at:]
        else:
            data[at:at] = data[at:at + length] * draw(st.sampled_from([1, 2, 100]))
    return bytes(data)


@st.composite
def damaged_zip(draw, content, compression=zipfile.ZIP_STORED):
    """A zip archive with one or two damaged members, whose checksums are right; or the archive itself damaged."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in draw(st.lists(st.sampled_from(sorted(members)), min_size=1, max_size=2)):
        members[name] = draw(damaged(members[name]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


SCALARS = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
           | st.sampled_from(["kd", "tiny", "1e-3", "\x1b[2J", "a\0b", "x" * 2000, 10 ** 18, -1]))


def values(keys, scalars=SCALARS):
    """Nested lists and dicts, with `keys` as well as any others."""
    keys = st.sampled_from(sorted(keys)) | st.text(max_size=5)
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
                        max_leaves=25)


@st.composite
def changed(draw, content, scalars=SCALARS):
    """A structure of dicts and lists in which a few values, at any depth, are others."""
    if draw(st.integers(0, 3)) == 0:
        return draw(values(content if isinstance(content, dict) and len(content) else ["a"], scalars))
    if isinstance(content, dict) and len(content):
        key = draw(st.sampled_from(sorted(content)))
        return {**content, key: draw(changed(content[key], scalars))}
    if isinstance(content, list) and len(content):
        at = draw(st.integers(0, len(content) - 1))
        return [*content[:at], draw(changed(content[at], scalars)), *content[at + 1:]]
    return draw(scalars)


def as_json(value):
    return json.dumps(value, default=str).encode()


def as_yaml(value):
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return b""


def as_npz(content):
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


# ---- readers


def run_attributes(path):
    """Read everything in the run folder in which `path` is, as the report does."""
    folder = next(parent for parent in path.parents if parent.name == "seed_0")
    run = Run(folder)
    run.tolerate(*(name for name, part in vars(Run).items() if type(part).__name__ == "_File"))
    for name in ("name", "kind", "network", "is_stale", "evaluation", "stated_accuracy", "best_epoch"):
        getattr(run, name)
    run.metric("accuracy")


METRIC = {"value": 0.5, "lo": 0.4, "hi": 0.6, "replicates": 100, "undefined": 0}
METRICS = {
    "class_names": ["a", "b"], "conventions": {"level": 0.95, "bins": 15}, "split": {"test": {"images": 3}},
    "test": {"accuracy": METRIC, "f1/a": METRIC}, "val": {"accuracy": METRIC}, "confusion": [[1, 0], [1, 1]],
    "calibration": {"temperature": 1.5, "bounds": [1, 2], "reliability": {
        "test": [{"confidence": 0.5, "accuracy": 0.5, "count": 3}]}},
    "operating_points": [{"name": "x", "kind": "sensitivity", "class": "a", "threshold": 0.5, "promised": 0.9,
                          "test": {"sensitivity": METRIC}}],
    "risk_coverage": {"coverage": [0.5, 1], "risk": [0, 0.1]}}
ENVIRONMENT = {"role": "student", "arch": "tiny", "teacher": "abc", "parameters": 3, "precision": "fp32", "data": {
    "name": "x", "images": 3, "classes": ["a", "b"], "groups": 2, "fingerprint": "f", "split": "s", "skipped": []}}
OPTIONS = {"lr": 0.001, "seeds": [0, 1], "data": "lesions,images=70", "teacher": "tiny", "plugin": [],
           "download": False}
PLAN = {"size": 16, "out": "runs", "train_teacher": {"teacher": "tiny"}, "distill": {
    "student": ["tiny"], "seeds": [0, 1], "methods": {"kd": {"alpha": 0.5, "soft": "kd"}}}, "evaluate": {"bins": 10},
    "robustness": {"corruption": ["jpeg"]}, "report": {"notes": ["x.md"]}}
TABLE = b"id,group,label,split,epoch,loss,val_macro_f1,seconds\na,g,x,train,1,0.5,0.25,1\nb,h,y,test,2,0.25,0.5,1\n"
MARKDOWN = (b"# A *title*\n\nText with [a link](http://x.y), `code` and **more**.\n\n- one\n  1. two\n\n> quoted\n\n"
            b"| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n<b>html</b>\n\n[r]: http://z\n")
PREDICTIONS = {"labels": np.array([0, 1, 1]), "logits": np.array([[3.0, 1], [0, 2], [1, 5]]),
               "ids": np.array(["a", "b", "c"]), "groups": np.array(["g", "g", "h"]),
               "class_names": np.array(["x", "y"])}


def any_arrays():
    kinds = st.sampled_from(["<i8", "<u8", "<f4", "<f8", "<f2", "|b1", "<U3", "|S3", "<c16", "<M8[s]", ">i2"])
    any_array = kinds.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4,
                                                                                     min_side=0)))
    return st.fixed_dictionaries({}, optional={name: any_array | st.just(value) for name, value in PREDICTIONS.items()})


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "study" / "tiny_kd" / "seed_0"
    for name in ("predictions", "exports"):
        (folder / name).mkdir(parents=True)
    return folder


def test_predictions(run_folder):
    strategy = damaged_zip(as_npz(PREDICTIONS)) | any_arrays().map(as_npz)
    fuzz(strategy, predictions.read, run_folder / "predictions" / "test.npz")


@pytest.mark.parametrize("name, content", [
    ("metrics.json", METRICS), ("environment.json", ENVIRONMENT),
    ("exports/parity.json", {"formats": {"onnx": {"bytes": 3, "test": {
        "flips": 1, **{name: {"model": 0.5, "difference": METRIC} for name in ("macro_f1", "accuracy")}}}}})])
def test_json_of_a_run(run_folder, name, content):
    (run_folder / "predictions" / "test.npz").write_bytes(as_npz(PREDICTIONS))
    fuzz(damaged(as_json(content)) | changed(content).map(as_json), run_attributes, run_folder / name)


def test_json_of_a_study(run_folder):
    content = {"seeds": [0, 1], "test": {"accuracy": {**METRIC, "mean": 0.5, "values": [0.5, 0.5]}}}
    fuzz(damaged(as_json(content)) | changed(content).map(as_json),
         lambda path: StudyFolder(run_folder.parent.parent).seeds("tiny_kd"), run_folder.parent / "seeds.json")


def test_yaml_as_a_config(run_folder):
    parser = train_teacher.parser()

    def read(path):
        to_arguments(parser, files.read_yaml(path), path)
        run_attributes(path)

    fuzz(damaged(as_yaml(OPTIONS)) | changed(OPTIONS).map(as_yaml), read, run_folder / "config.yaml")


def test_yaml_as_a_plan(tmp_path):
    parsers = study.script_parsers()
    fuzz(damaged(as_yaml(PLAN)) | changed(PLAN).map(as_yaml), lambda path: plan.read_plan(path, parsers),
         tmp_path / "p.yaml")


def test_the_options_of_a_part(tmp_path):
    def read(path):
        objective.parse_spec(path.read_bytes().decode("latin-1"))

    fuzz(damaged(b"kd,alpha=1,beta=[1, 2],temperature=4e-1"), read, tmp_path / "spec")


@pytest.mark.parametrize("name", ["history.csv", "split.csv", "robustness.csv", "benchmark.csv"])
def test_csv(run_folder, name):
    fuzz(damaged(TABLE), lambda path: (files.read_csv(path, separators=",;\t"), run_attributes(path)),
         run_folder / name)


@pytest.mark.parametrize("suffix", ["md", "txt"])
def test_notes(tmp_path, suffix):
    pytest.importorskip("markdown_it")
    fuzz(damaged(MARKDOWN) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
         notes.read, tmp_path / f"x.{suffix}")


def test_word_files(tmp_path):
    docx = pytest.importorskip("docx")
    from PIL import Image
    image, file, document = io.BytesIO(), io.BytesIO(), docx.Document()
    Image.new("RGB", (4, 3)).save(image, "PNG")
    document.add_heading("A", 1)
    document.add_paragraph("b", style="List Bullet 2")
    document.add_table(2, 2).cell(0, 0).text = "c"
    document.add_picture(io.BytesIO(image.getvalue()))
    document.save(file)
    fuzz(damaged_zip(file.getvalue(), zipfile.ZIP_DEFLATED), notes.read, tmp_path / "x.docx")


def test_event_files(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    event = Event(step=1, wall_time=1.0, summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.5)]))
    value = event.summary.value.add(tag="x")
    value.tensor.dtype = 2
    value.tensor.tensor_shape.dim.add(size=1)
    value.tensor.double_val.append(0.5)
    event.summary.value.add(tag="y").image.encoded_image_string = b"\x89PNG\r\n\x1a\n123"
    start = Event(step=2, wall_time=1.0, session_log={"status": 1})

    def framed(messages):  # with checksums that are right
        records = []
        for message in messages:
            length = len(message).to_bytes(8, "little")
            records += [length, masked_crc32c(length).to_bytes(4, "little"), message,
                        masked_crc32c(message).to_bytes(4, "little")]
        return b"".join(records)

    messages = [event.SerializeToString(), start.SerializeToString()]
    strategy = st.lists(st.sampled_from(messages).flatmap(damaged), max_size=4).map(framed) | damaged(framed(messages))
    path = tmp_path / "x.tfevents"
    fuzz(strategy, lambda path: event_files.table({"run": event_files.read(path, [])[0]}), path)


def test_checkpoints(tmp_path):
    torch.manual_seed(0)
    model = registry.create("architecture", "tiny", num_classes=2, stem="small", weights=None)
    lists = {"images": ["a"], "groups": ["b"]}
    checkpoint.save(tmp_path / "valid.pt", model, arch="tiny", stem="small", class_names=["a", "b"], input={
        "resize": 32, "size": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        provenance={"seen": {"train": lists, "val": lists}})
    content, valid = weights.safe_load(tmp_path / "valid.pt"), (tmp_path / "valid.pt").read_bytes()
    old = io.BytesIO()
    torch.save(content, old, _use_new_zipfile_serialization=False)

    def saved(value):
        file = io.BytesIO()
        try:
            torch.save(value, file)
        except Exception:  # a value that torch cannot save
            return b""
        return file.getvalue()

    def read(path):
        if path.stat().st_size % 2:
            weights.load_pretrained(model, path, head="head")
        _, content = setup.load_network(path, registry)
        setup.seen(content, path)

    tensors = SCALARS | st.sampled_from([torch.zeros(0), torch.ones(3, 2), torch.tensor(float("nan")),
                                         torch.zeros(1).expand(10 ** 9), torch.ones(2).to_sparse()])
    strategy = damaged_zip(valid) | damaged(old.getvalue()) | changed(content, tensors).map(saved)
    fuzz(strategy, read, tmp_path / "x.pt")


def test_metadata_of_onnx(tmp_path):
    content = {
        "format": onnx_model.FORMAT, "class_names": ["a", "b"], "temperature": 1.5, "provenance": {}, "parameters": 3,
        "input": {"resize": 32, "size": 32, "interpolation": onnx_model.image.INTERPOLATION},
        "operating_points": [{"name": "x", "kind": "sensitivity", "class": "a", "threshold": 0.5, "promised": 0.9}]}
    ends = {"get_inputs": [SimpleNamespace(name="image", type="tensor(uint8)", shape=["N", 32, 32, 3])],
            "get_outputs": [SimpleNamespace(name="logits", type="tensor(float)", shape=["N", 2])]}

    def read(path):
        texts = dict(line.split(b"\t", 1) for line in path.read_bytes().split(b"\n\t\n") if b"\t" in line)
        metadata = SimpleNamespace(custom_metadata_map={
            key.decode("latin-1"): value.decode("utf-8", "replace") for key, value in texts.items()})
        onnx_model._metadata(path, SimpleNamespace(
            get_modelmeta=lambda: metadata, **{name: lambda end=end: end for name, end in ends.items()}))

    def as_texts(content):
        content = content if isinstance(content, dict) else {}
        return b"\n\t\n".join(str(key).encode("utf-8", "replace") + b"\t" + (
            value.encode("utf-8", "replace") if key == "format" and isinstance(value, str) else as_json(value))
            for key, value in content.items())

    fuzz(damaged(as_texts(content)) | changed(content).map(as_texts), read, tmp_path / "x.onnx")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_pixel_cache(tmp_path, suffix):
    images = [np.full((8, 8, 3), k, np.uint8) for k in range(4)]
    data = Dataset("x", ["a", "b"], images=images, ids=list("abcd"), labels=[0, 1, 0, 1], version="1")
    cache.open_cache(data, 8, folder=tmp_path)
    [path] = tmp_path.glob(f"*{suffix}")

    def read(path):
        pixels, *_ = cache.open_cache(data, 8, folder=tmp_path)
        assert (np.array(pixels) == np.stack(images)).all()  # of a damaged one, made again

    fuzz(damaged(path.read_bytes()), read, path)


@pytest.mark.parametrize("name", ["key.json", "view_1.json", "view_1_logits.npy"])
def test_the_teachers_targets(tmp_path, name):
    import test_teacher_cache as parts
    data, options = small.data(folder=tmp_path), small.options("--alpha", "0.5")
    student, teacher = small.network(options, data), small.network(options, data, seed=1)
    teacher.fingerprint = "of the teacher"
    setting = data, options, student, teacher
    targets, _ = parts.build(tmp_path / "targets", setting, views=1)
    expected = targets(np.arange(4), np.ones(4, int), "cpu")["teacher_logits"]

    def read(path):
        targets, _ = parts.build(tmp_path / "targets", setting, views=1)
        assert torch.equal(targets(np.arange(4), np.ones(4, int), "cpu")["teacher_logits"], expected)

    fuzz(damaged((tmp_path / "targets" / name).read_bytes()), read, tmp_path / "targets" / name)
