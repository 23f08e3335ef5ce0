"""An ExecuTorch program gives the checkpoint's logits and has its metadata; a damaged or hostile one is one line."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

import benchmark
import export
import predict
import registry
from kd import executorch_model, onnx_model
from kd.errors import UserError
from kd.files import read_json, read_npz, write_json
from kd.train import checkpoint

RUNTIME = pytest.mark.skipif(not find_spec("executorch"), reason="executorch is not installed")


def describe(run):
    from kd.edge import convert
    model, content = checkpoint.load(run / "best.pt", registry)
    return convert.describe(model, content, read_json(run / "metrics.json"))


# ---- without the runtime

@pytest.fixture
def beside(exported, tmp_path):
    """A file that begins as a program does, with its metadata."""
    program = b"\x3c\0\0\0ET12" + bytes(200)
    (tmp_path / "model.pte").write_bytes(program)
    executorch_model.write_metadata(tmp_path / "model.pte", program, describe(exported[0]))
    return tmp_path / "model.pte"


def test_the_metadata_beside_a_program_are_those_of_the_onnx_file(exported, beside):
    in_onnx = onnx_model.Model(exported[0] / "exports" / "model.onnx").metadata
    content = json.loads(beside.with_suffix(".json").read_text(encoding="utf-8"))
    assert {**content, "format": onnx_model.FORMAT} == {**in_onnx, "sha256": content["sha256"]}


@pytest.mark.skipif(bool(find_spec("executorch")), reason="executorch is installed")
def test_without_the_runtime_the_extra_is_named(beside):
    with pytest.raises(UserError, match="needs the package executorch") as error:
        predict.main([str(beside), "x.png"])
    assert "[executorch]" in error.value.hint


def damaged(path):
    """{how: words of the error}, each a function that damages a program or its metadata."""
    sidecar = path.with_suffix(".json")

    def edit(**changes):
        write_json(sidecar, {**read_json(sidecar), **changes})

    def replace(content):
        path.write_bytes(content)
        edit(sha256=executorch_model.hashlib.sha256(content).hexdigest())

    program = path.read_bytes()
    return {
        "no metadata": (sidecar.unlink, "has no metadata"),
        "no JSON": (lambda: sidecar.write_bytes(b"{"), "has no metadata"),
        "deep JSON": (lambda: sidecar.write_bytes(b"[" * 10 ** 6), "has no metadata"),
        "a list": (lambda: sidecar.write_text("[]"), "is not what export.py writes"),
        "another format": (lambda: edit(format="x"), "is not what export.py writes"),
        "another digest": (lambda: edit(sha256="0" * 64), "is not the program that"),
        "digest of a wrong type": (lambda: edit(sha256=["x"]), "is not the program that"),
        "cut": (lambda: path.write_bytes(program[:100]), "is not the program that"),
        "text": (lambda: replace(b"hello"), "is not an ExecuTorch program"),
        "a pickle": (lambda: replace(b"\x80\x04cos\nsystem\n" * 9), "is not an ExecuTorch program"),
    }


@pytest.mark.parametrize("how", [
    "no metadata", "no JSON", "deep JSON", "a list", "another format", "another digest", "digest of a wrong type",
    "cut", "text", "a pickle"])
def test_a_damaged_or_foreign_program_is_not_loaded(beside, how, monkeypatch):
    monkeypatch.setattr(executorch_model.errors, "need", lambda *_: None)
    monkeypatch.setattr(executorch_model, "_try", lambda *_: pytest.fail("it was loaded"))
    damage, words = damaged(beside)[how]
    damage()
    with pytest.raises(UserError, match=words) as error:
        onnx_model.Model(beside)
    assert "\n" not in error.value.message and "export.py RUN --formats executorch" in error.value.hint


# ---- with it

@pytest.fixture(scope="module")
def programs(exported, tmp_path_factory):
    """(run, root): a copy of the exported run, with model.pte and model.int8.pte."""
    run = shutil.copytree(exported[0], tmp_path_factory.mktemp("executorch") / "study" / "model" / "seed_0")
    export.main([str(run), "--formats", "executorch", "--max-flips", "0.5", "--calibration", "32"])
    return run, exported[1]


def pixels(run, root, split):
    ids = read_npz(run / "predictions" / f"{split}.npz")["ids"]
    model = onnx_model.Model(run / "exports" / "model.onnx")
    return np.stack([model.pixels(root / name) for name in ids])


@pytest.mark.slow
@RUNTIME
def test_programs_give_the_logits_of_the_predictions_at_any_batch(programs):
    run, root = programs
    expected, images = read_npz(run / "predictions" / "test.npz")["logits"], pixels(run, root, "test")
    model, int8 = (onnx_model.Model(run / "exports" / name, 1) for name in ("model.pte", "model.int8.pte"))
    for batch in (1, 5, len(images)):
        logits = np.concatenate([model.logits(images[k:k + batch]) for k in range(0, len(images), batch)])
        assert np.abs(logits - expected).max() < 1e-4
    assert len(images) > executorch_model.BATCH
    assert 0 < np.abs(int8.logits(images) - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.slow
@RUNTIME
def test_parity_and_metadata_of_programs(programs):
    run, root = programs
    parity = read_json(run / "exports" / "parity.json")["formats"]
    assert list(parity) == ["onnx", "int8", "executorch", "executorch_int8"]
    assert parity["executorch"]["test"]["flips"] == 0
    int8 = parity["executorch_int8"]
    logits = onnx_model.Model(run / "exports" / "model.int8.pte").logits(pixels(run, root, "test"))
    expected = read_npz(run / "predictions" / "test.npz")["logits"]
    assert int8["test"]["flips"] == pytest.approx((logits.argmax(1) != expected.argmax(1)).mean())
    assert int8["recipe"] in int8["recipes"] and len(int8["recipes"]) == 2
    # in so small a network much else than kernels has bytes
    assert int8["bytes"] < 0.5 * parity["executorch"]["bytes"]
    ours, theirs = (onnx_model.Model(run / "exports" / name).metadata for name in ("model.pte", "model.onnx"))
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.slow
@RUNTIME
def test_predict_and_benchmark_take_programs(programs, capsys):
    run, root = programs
    image = next((root / "red").iterdir())
    for name in ("model.onnx", "model.pte"):
        assert predict.main([str(run / "exports" / name), str(image), "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split(",")[:2] == lines[3].split(",")[:2]
    rows = benchmark.main([str(run), "--seconds", "0.05", "--queries", "16", "--no-memory"])
    assert [(row["backend"], row["ckpt"].rsplit("/")[-1]) for row in rows] == [
        ("eager", "best.pt"), ("onnxruntime", "model.int8.onnx"), ("onnxruntime", "model.onnx"),
        ("executorch", "model.int8.pte"), ("executorch", "model.pte")]


@pytest.mark.slow
@RUNTIME
def test_programs_that_the_runtime_refuses_or_that_crash_it_are_one_line(programs, tmp_path):
    program = (programs[0] / "exports" / "model.pte").read_bytes()
    metadata = describe(programs[0])
    rng = np.random.default_rng(0)

    def attempt(content):
        (tmp_path / "model.pte").write_bytes(content)
        executorch_model.write_metadata(tmp_path / "model.pte", content, metadata)  # as a forger would
        return onnx_model.Model(tmp_path / "model.pte", 1)

    for cut in (8, 60, 1000, len(program) // 2):
        with pytest.raises(UserError, match="cannot be run|is not an ExecuTorch program"):
            attempt(program[:cut])
    for _ in range(4):
        content = bytearray(program)
        for k in rng.integers(8, 2000, 40):
            content[k] = rng.integers(256)
        with pytest.raises(UserError) as error:
            attempt(bytes(content))
        assert "\n" not in error.value.message
    metadata["input"] = {**metadata["input"], "size": 64, "resize": 64}
    with pytest.raises(UserError, match="its input is not what it should be"):
        attempt(program)


@pytest.mark.slow
@RUNTIME
def test_a_crash_of_the_runtime_is_met_in_a_process_of_its_own(programs, monkeypatch):
    monkeypatch.setattr(executorch_model.sys, "executable", "/bin/sh")
    monkeypatch.setattr(executorch_model.subprocess, "run", lambda command, **options: original(
        ["/bin/sh", "-c", "kill -ABRT $$"], **options))
    with pytest.raises(UserError, match="it crashes the runtime"):
        onnx_model.Model(programs[0] / "exports" / "model.pte")


@RUNTIME
def test_a_trial_that_is_ended_from_outside_says_nothing_of_the_program(beside, monkeypatch):
    monkeypatch.setattr(executorch_model.subprocess, "run", lambda command, **options: original(
        ["/bin/sh", "-c", "kill -KILL $$"], **options))
    with pytest.raises(UserError, match="was ended from outside"):
        onnx_model.Model(beside)


@RUNTIME
def test_metadata_that_are_no_json_are_one_line(beside, monkeypatch):
    ends = [executorch_model.SimpleNamespace(name="image", type="", shape=[])]
    monkeypatch.setattr(executorch_model, "_try", lambda *_: None)
    monkeypatch.setattr(executorch_model.Session, "__init__", lambda self, program, threads, metadata: setattr(
        self, "_metadata", metadata))
    monkeypatch.setattr(executorch_model.Session, "get_inputs", lambda self: ends)
    text = beside.with_suffix(".json").read_text(encoding="utf-8").replace('"caution": ""', '"caution": NaN')
    assert "NaN" in text
    beside.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="the metadata of .* cannot be read"):
        onnx_model.Model(beside)


original = executorch_model.subprocess.run


@pytest.mark.slow
@RUNTIME
def test_int8_that_changes_too_many_labels_is_left_out_and_float_is_written(programs, monkeypatch, tmp_path, capsys):
    from kd.edge import executorch
    run = shutil.copytree(programs[0], tmp_path / "study" / "model" / "seed_0")
    shutil.rmtree(run / "exports")
    monkeypatch.setattr(executorch, "int8", lambda checks, *_: (
        executorch.to_executorch(Backwards(checks.source.network), checks.source.size), {}))
    export.main([str(run), "--formats", "executorch"])
    assert "note: model.int8.pte is not written: it would change the label of" in capsys.readouterr().out
    assert {path.name for path in (run / "exports").glob("model*")} == {"model.pte", "model.json"}


@pytest.mark.slow
@RUNTIME
@pytest.mark.parametrize("names", [["model.pte", "model.int8.pte"], ["model.pte"]])
def test_the_programs_that_a_bundle_leaves_out_are_named_and_run_elsewhere(
        programs, names, tmp_path, capsys, monkeypatch):
    from kd.edge import executorch
    run = shutil.copytree(programs[0], tmp_path / "study" / "model" / "seed_0")
    if len(names) == 1:
        monkeypatch.setattr(executorch, "int8", lambda checks, *_: (
            executorch.to_executorch(Backwards(checks.source.network), checks.source.size), {}))
    export.main([str(run), "--formats", "onnx", "executorch", "--max-flips", "0.5", "--calibration", "32",
                 "--bundle", str(tmp_path / "box")])
    assert not list((tmp_path / "box").rglob("*.pte"))
    assert (f"note: a bundle runs without torch, and so has no {' or '.join(names)}: copy it from {run / 'exports'}, "
            "with the .json beside it") in capsys.readouterr().out
    for name in names:
        folder = tmp_path / "elsewhere" / name
        folder.mkdir(parents=True)
        for part in (name, name.replace(".pte", ".json")):
            shutil.copy(run / "exports" / part, folder)
        assert predict.main([str(folder / name), str(next(programs[1].glob("red/*.png")))]) == 0


@pytest.mark.slow
@RUNTIME
def test_after_training_with_rounding_the_program_gives_the_answers_of_the_trained_file(
        programs, tmp_path, monkeypatch, capsys):
    from kd.edge import executorch
    run, trained = shutil.copytree(programs[0], tmp_path / "study" / "model" / "seed_0"), []
    int8, quantize = executorch.int8, executorch.quantize
    monkeypatch.setattr(executorch, "quantize", lambda network, size, images, *others: quantize(
        network, size, images * 0, *others))  # ranges of black images: of the recipes the trained one is nearest
    monkeypatch.setattr(executorch, "int8", lambda *arguments: trained.append(arguments[-1]) or int8(*arguments))
    export.main([str(run), "--formats", "int8", "executorch", "--qat", "1", "--max-flips", "0.5",
                 "--calibration", "32"])
    assert "executorch_int8: ranges by training, chosen on validation" in capsys.readouterr().out
    images, expected = pixels(run, programs[1], "test"), read_npz(run / "predictions" / "test.npz")["logits"]
    theirs = onnx_model.session(trained[0][2].SerializeToString(), 1).run(["logits"], {"image": images})[0]
    logits = onnx_model.Model(run / "exports" / "model.int8.pte").logits(images)
    assert np.abs(logits - theirs).mean() < 0.01 * np.abs(theirs - expected).mean()


def Backwards(network):
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            return -self.network(image)
    return Module().eval()
