"""An exported file computes the checkpoint's logits, has its metadata, and is written whole or not at all."""

import re
import shutil

import numpy as np
import pytest

import export
import registry
from kd import image, onnx_model
from kd.edge import convert, quantize
from kd.errors import UserError
from kd.files import read_json, read_npz, read_yaml, write_yaml
from kd.train import checkpoint


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the run with its exports, which a test may change."""
    run, _ = exported
    return shutil.copytree(run, tmp_path / "study" / "model" / "seed_0")


def pixels(run, root, split):
    ids = read_npz(run / "predictions" / f"{split}.npz")["ids"]
    spec = checkpoint.read(run / "best.pt")["input"]
    return np.stack([image.evaluation_pixels(root / name, spec) for name in ids])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_float_file_gives_the_logits_of_the_predictions_at_any_batch(exported, split, batch):
    run, root = exported
    predictions = read_npz(run / "predictions" / f"{split}.npz")
    model, images = onnx_model.Model(run / "exports" / "model.onnx"), pixels(run, root, split)
    logits = np.concatenate([model.logits(images[k:k + batch]) for k in range(0, len(images), batch)])
    assert np.abs(logits - predictions["logits"]).max() < 1e-4


def test_the_int8_file_is_near_and_in_integers(exported):
    onnx = pytest.importorskip("onnx")
    run, root = exported
    expected = read_npz(run / "predictions" / "test.npz")["logits"]
    logits = onnx_model.Model(run / "exports" / "model.int8.onnx").logits(pixels(run, root, "test"))
    assert np.abs(logits - expected).max() < 0.2 * np.abs(expected).max()
    graph = onnx.load(run / "exports" / "model.int8.onnx").graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    convolutions = [tensor.data_type for tensor in weights if tensor.dims[0] > 1]
    normalisation = [list(tensor.dims) for tensor in weights if tensor.dims[0] == 1]
    assert convolutions == [onnx.TensorProto.INT8] * 5 and normalisation == [[1, 1, 32, 3]] * 2


def test_a_file_has_its_classes_input_temperature_thresholds_and_origin(exported):
    run, _ = exported
    content, evaluated = checkpoint.read(run / "best.pt"), read_json(run / "metrics.json")
    for name in ("model.onnx", "model.int8.onnx"):
        model = onnx_model.Model(run / "exports" / name)
        assert model.class_names == content["class_names"]
        assert model.metadata["input"] == content["input"]
        assert model.temperature == evaluated["calibration"]["temperature"]
        assert [(p["name"], p["threshold"]) for p in model.points] == [
            (p["name"], p["threshold"]) for p in evaluated["operating_points"]]
        assert model.metadata["provenance"]["arch"] == "tiny"
        assert model.metadata["provenance"]["run"] == content["provenance"]["run"]
        assert "seen" not in model.metadata["provenance"]  # no ids of patients' images leave the site


def test_a_file_has_no_path_of_the_machine_that_made_it(exported):
    run, _ = exported
    for name in ("model.onnx", "model.int8.onnx"):
        content = (run / "exports" / name).read_bytes()
        assert not re.search(rb"site-packages|\w{4}\.py", content) and str(run.parents[3]).encode() not in content


@pytest.mark.parametrize("path, name", [
    ("/home/someone/runs/study/teacher_resnet18/seed_0", "study/teacher_resnet18/seed_0"),
    (r"C:\Users\someone\runs\study\tiny\seed_12\best.pt", "study/tiny/seed_12/best.pt"),
    ("/home/someone/weights.pt", "weights.pt"), ("../seed_3/", "../seed_3"), ("resnet18", "resnet18")])
def test_a_teacher_and_a_start_are_named_without_the_folders_of_the_trainers_machine(exported, path, name):
    model, content = checkpoint.load(exported[0] / "best.pt", registry)
    content["provenance"].update(teacher=path, init={"file": path, "weights": "f", "init": {"file": path}})
    provenance = convert.describe(model, content)["provenance"]
    assert provenance["teacher"] == name and "someone" not in str(provenance)
    assert provenance["init"] == {"file": name, "weights": "f", "init": {"file": name}}
    content["provenance"].update(teacher=[path, "tiny"])
    assert convert.describe(model, content)["provenance"]["teacher"] == [name, "tiny"]
    content["provenance"].update(teacher=None)  # an alone student
    assert convert.describe(model, content)["provenance"]["teacher"] is None


def test_parity_has_the_differences_from_the_checkpoint(exported):
    run, root = exported
    parity = read_json(run / "exports" / "parity.json")
    int8, onnx = parity["formats"]["int8"], parity["formats"]["onnx"]
    expected = read_npz(run / "predictions" / "test.npz")["logits"]
    logits = onnx_model.Model(run / "exports" / "model.int8.onnx").logits(pixels(run, root, "test"))
    assert int8["test"]["flips"] == pytest.approx((logits.argmax(1) != expected.argmax(1)).mean())
    assert onnx["test"]["flips"] == 0
    assert max(parity["predictions"].values()) < 1e-4
    difference = int8["test"]["macro_f1"]["difference"]
    assert difference["lo"] <= difference["value"] <= difference["hi"]
    assert int8["recipe"] == min(int8["recipes"], key=lambda recipe: recipe["val_divergence"])
    assert {recipe["ranges"] for recipe in int8["recipes"]} == set(quantize.RECIPES)


def test_a_failed_check_writes_nothing_and_deletes_nothing(copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in (copy / "exports").iterdir() if path.name[0] != "."}

    def wrong(network, size, metadata):
        with_noise = convert.Deployed(network.model, [0.4] * 3, [0.3] * 3, size).eval()
        return original(with_noise, size, metadata)

    original = convert.to_onnx
    monkeypatch.setattr(convert, "to_onnx", wrong)
    with pytest.raises(UserError, match="gives other logits than it should"):
        export.main([str(copy), "--formats", "onnx"])
    assert before == {path.name: path.read_bytes() for path in (copy / "exports").iterdir() if path.name[0] != "."}


def test_other_images_than_the_runs_are_refused(exported, copy, tmp_path):
    root = shutil.copytree(exported[1], tmp_path / "images")
    file = next((root / "red").glob("*plain.jpg"))
    shutil.copy(next((root / "green").glob("*plain.jpg")), file)
    with pytest.raises(UserError, match="these are not the images of"):
        export.main([str(copy), "--root", str(root), "--cache", str(tmp_path / "cache")])


def test_missing_images_are_an_error_that_names_root(exported, copy, tmp_path):
    options = read_yaml(copy / "config.yaml")
    write_yaml(copy / "config.yaml", {**options, "root": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="no such folder") as error:
        export.main([str(copy)])
    assert "--root" in error.value.hint


def test_wrong_use_is_one_line(exported, copy, tmp_path):
    with pytest.raises(UserError, match="--bundle wants a file in ONNX"):
        export.main([str(copy), "--formats", "executorch", "--bundle", str(tmp_path / "box")])
    shutil.copytree(copy, copy.parent / "seed_1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for argv, message in (
            ([copy.parent], "has 2 runs"), ([tmp_path / "none"], "no such folder"),
            ([copy, "--formats", "coreml"], "invalid choice"), ([copy, "--max-flips", "3"], "from 0 to 1"),
            ([copy, "--bundle", tmp_path / "full"], "is not an empty folder")):
        with pytest.raises(UserError, match=message):
            export.main(list(map(str, argv)))
    (copy / "best.pt").unlink()
    with pytest.raises(UserError, match="has no best.pt"):
        export.main([str(copy)])
