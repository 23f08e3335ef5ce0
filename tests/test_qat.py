"""Quantisation-aware training: the graph in training rounds as its file does, and training repairs what that costs."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import export
import registry
from kd import onnx_model
from kd.data import augment, batching
from kd.edge import checked_export, convert, parity, qat, quantize
from kd.edge.onnx_network import OnnxNetwork, RoundActivation
from kd.errors import UserError
from kd.files import read_json
from kd.run_folder import Run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def source(exported):
    return checked_export.open_run(Run(exported[0]), registry)


@pytest.fixture(scope="module")
def folded(source):
    """(folded float model, its Activations)."""
    model = quantize.fold(convert.to_onnx(source.network, source.size, source.metadata))
    return model, quantize.observe(model, source.pixels("train", 32), lambda content: onnx_model.session(content, 1))


def ranges_of(activations, factor=1.0):
    return {name: tuple(factor * bound for bound in quantize.minmax(activation))
            for name, activation in activations.items()}


def normalised(source, split="test"):
    mean, std = (source.metadata["input"][key] for key in ("mean", "std"))
    batches = batching.evaluation_batches(source.data, split, batch=64, device="cpu")
    return torch.cat([augment.normalise(images, mean, std) for images in batches])


@torch.no_grad()
def test_the_graph_in_torch_gives_the_logits_of_onnxruntime(source, folded):
    model, activations = folded
    keep = quantize.float_nodes(model)
    quantized = quantize.quantize(model, ranges_of(activations), keep=keep)
    images, pixels = normalised(source), source.pixels("test")
    theirs = {name: onnx_model.session(file.SerializeToString(), 1).run(["logits"], {"image": pixels})[0]
              for name, file in (("float", model), ("int8", quantized))}
    # a code that is one lower or higher where a float is near half-way is what is left
    lost = np.abs(theirs["int8"] - theirs["float"]).mean()
    assert np.abs(OnnxNetwork(model, quantized)(images).numpy() - theirs["int8"]).mean() < 0.1 * lost
    assert np.abs(OnnxNetwork(model, model)(images).numpy() - theirs["float"]).max() < 1e-4


@pytest.mark.skipif(not find_spec("executorch"), reason="executorch is not installed")
def test_the_graph_for_executorch_has_the_weights_and_ranges_of_the_file(source, folded):
    """Also where these are such that no calibration would choose them."""
    from kd.edge import executorch
    model, activations = folded
    quantized = quantize.quantize(model, ranges_of(activations, 0.5), keep=quantize.float_nodes(model))
    pixels = source.pixels("test")
    theirs = onnx_model.session(quantized.SerializeToString(), 1).run(["logits"], {"image": pixels})[0]
    network = convert.deployed(executorch.Int8Network(model, quantized), source.metadata)
    graph = executorch.as_trained(network, source.size)
    lost = np.abs(theirs - convert.logits(source.network, pixels)).mean()
    assert np.abs(convert.logits(graph, pixels, 8) - theirs).mean() < 0.1 * lost
    scales = {onnx.numpy_helper.to_array(tensor).item() for tensor in quantized.graph.initializer
              if tensor.name in {node.input[1] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}}
    operators = [node for node in graph.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    assert {node.args[1] for node in operators} == scales and len(scales) >= 6
    assert all(len(node.users) == 1 for node in operators)  # else XNNPACK takes no kernel on integers


def test_weights_and_ranges_that_were_not_trained_are_those_before(folded):
    model, activations = folded
    keep, ranges = quantize.float_nodes(model), ranges_of(activations)
    quantized = quantize.quantize(model, ranges, keep=keep)
    network = OnnxNetwork(model, quantized)
    again = quantize.quantize(qat._with_weights(model, network.weights()), {**ranges, **network.ranges()}, keep=keep)
    ours, theirs = ({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
                    for file in (again, quantized))
    assert ours.keys() == theirs.keys() and len(network.ranges()) >= 6
    for name, values in theirs.items():
        assert np.allclose(ours[name], values, rtol=1e-5, atol=0 if values.dtype == np.int8 else 1e-7), name


@pytest.mark.parametrize("zero_point", [0, 7, 128])
def test_gradients_of_rounding_are_those_of_learned_step_sizes(zero_point):
    """Against torch's own operator for learned scales."""
    torch.manual_seed(0)
    x = (torch.randn(3, 4, 5) * 3).requires_grad_()
    scale = torch.tensor([0.013], requires_grad=True)
    weights = torch.randn(3, 4, 5)
    (RoundActivation.apply(x, scale, zero_point) * weights).sum().backward()
    ours = x.grad.clone(), scale.grad.clone()
    x.grad = scale.grad = None
    theirs = torch._fake_quantize_learnable_per_tensor_affine(
        x, scale, torch.tensor([float(zero_point)]), 0, 255, 1.0)
    (theirs * weights).sum().backward()
    assert torch.allclose(ours[0], x.grad) and torch.allclose(ours[1], scale.grad, rtol=1e-4)
    clipped = (x < -zero_point * scale) | (x > (255 - zero_point) * scale)
    assert clipped.any() and (ours[0][clipped] == 0).all()


def test_training_repairs_ranges_that_clip_too_much(source, folded):
    model, activations = folded
    keep, ranges = quantize.float_nodes(model), ranges_of(activations, 0.8)
    images = source.pixels("val")
    reference = convert.logits(source.network, images)

    def divergence(model, ranges):
        file = quantize.quantize(model, ranges, keep=keep).SerializeToString()
        return parity.divergence(reference, onnx_model.session(file, 1).run(["logits"], {"image": images})[0])

    before = divergence(model, ranges)
    trained = qat.train(source, model, ranges, full=False, keep=keep, epochs=10, max_flips=0.03)
    assert divergence(*trained) < 0.3 * before
    assert divergence(model, ranges) == before  # what was given is as it was


def test_what_cannot_be_trained_is_named(folded):
    model, activations = folded
    quantized = quantize.quantize(model, ranges_of(activations), keep=quantize.float_nodes(model))
    strange = onnx.ModelProto()
    strange.CopyFrom(quantized)
    strange.graph.node[-1].op_type = "Einsum"
    with pytest.raises(UserError, match="cannot be trained with rounding: it has the operators Einsum"):
        OnnxNetwork(model, strange)


def test_a_trained_file_is_one_of_the_recipes(exported, tmp_path, capsys):
    run = shutil.copytree(exported[0], tmp_path / "study" / "model" / "seed_0")
    export.main([str(run), "--formats", "int8", "--qat", "1", "--max-flips", "0.5", "--calibration", "32"])
    int8 = read_json(run / "exports" / "parity.json")["formats"]["int8"]
    assert [recipe["ranges"] for recipe in int8["recipes"]] == [*quantize.RECIPES, checked_export.TRAINED]
    assert int8["recipe"] == min(int8["recipes"], key=lambda recipe: recipe["val_divergence"])
    assert int8["other_range"]["weight_range"] == "full"
    shown, trained = capsys.readouterr().out, int8["recipes"][-1]
    steps = len(batching.batch_sizes(checked_export.open_run(Run(run), registry).data, 16))
    assert f"quantisation-aware training: 1 epoch, {steps} steps of 16 images, on " in shown
    assert (f"with training: on val {trained['val_flips']:.2%} of the labels changed, divergence "
            f"{trained['val_divergence']:.2g} nats\n") in shown
    with pytest.raises(UserError, match="--qat trains the INT8 file"):
        export.main([str(run), "--formats", "onnx", "--qat", "1"])


@pytest.mark.parametrize("flips, divergence, chosen", [(.02, .001, True), (.02, .9, False), (.04, .001, False)])
def test_the_file_is_compared_with_the_one_without_training(flips, divergence, chosen):
    recipes = [{"ranges": "minmax", "val_flips": .11, "val_divergence": .002},  # too many labels
               {"ranges": "entropy", "val_flips": .025, "val_divergence": .5},
               {"ranges": checked_export.TRAINED, "val_flips": flips, "val_divergence": divergence}]
    recipe = min(recipes, key=lambda recipe: checked_export.rank(recipe, .03))
    lines = export.effect_of_training({"recipe": recipe, "recipes": recipes}, .03)
    too_many = " (more than --max-flips)" if flips > .03 else ""
    assert lines[:2] == [
        f"  with training: on val {flips:.2%} of the labels changed{too_many}, divergence {divergence:g} nats",
        "  without, the best (ranges by entropy): on val 2.50% of the labels changed, divergence 0.5 nats"]
    assert lines[2].startswith(f"  the trained one is {'chosen' if chosen else 'not chosen'}: of those that change at "
                               "most 3.00% of the labels")
    assert export.effect_of_training({"recipe": recipes[0], "recipes": recipes[:2]}, .03) == []
    assert export.effect_of_training({}, .03) == []  # the float file
