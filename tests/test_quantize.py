"""INT8: what recipes take from histograms, what correction restores, and how the best is chosen on validation."""

import numpy as np
import pytest

from kd import onnx_model
from kd.edge import checked_export, parity, quantize
from kd.errors import UserError
from kd.run_folder import Run

onnx = pytest.importorskip("onnx")


def activation(values):
    values = np.asarray(values, dtype=np.float64)
    lo, hi = values.min(), values.max()
    return quantize.Activation(lo, hi, np.histogram(values, quantize.BINS, (lo, hi))[0])


def test_ranges_of_a_known_distribution():
    values = np.append(np.linspace(-1, 1, 100_001), [-50, 50])  # two values in 100,003 are outliers
    step = 100 / quantize.BINS
    assert quantize.minmax(activation(values)) == (-50, 50)
    lo, hi = quantize.percentile(activation(values))
    assert -1 - step <= lo <= -1 + step and 1 - step <= hi <= 1 + step


def test_least_error_finds_the_range_that_a_search_over_rounded_values_finds():
    values = np.random.default_rng(0).standard_t(3, 20_000)
    seen = activation(values)
    lo, hi = quantize.least_error(seen)
    assert seen.lo < lo < 0 < hi < seen.hi

    def error(share):
        a, b = share * seen.lo, share * seen.hi
        scale = (b - a) / 255
        return ((np.clip(np.round((values - a) / scale), 0, 255) * scale + a - values) ** 2).mean()
    shares = np.linspace(0.05, 1, 96)
    assert error(hi / seen.hi) < 1.1 * min(map(error, shares[shares >= 0.3]))


def sessions(content):
    return onnx_model.session(content, 1)


@pytest.fixture(scope="module")
def folded(exported):
    model = quantize.fold(onnx.load(exported[0] / "exports" / "model.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), dtype=np.uint8)
    return model, images, quantize.observe(model, images, sessions)


def outputs(model, names, images):
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    del wider.graph.output[:]
    wider.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return dict(zip(names, sessions(wider.SerializeToString()).run(names, {"image": images})))


def test_what_is_observed_is_what_the_tensors_hold(folded):
    model, images, seen = folded
    assert "logits" in seen and len(seen) >= len(model.graph.node) - 2
    for name, values in outputs(model, list(seen), images).items():
        assert seen[name].lo == values.min() and seen[name].hi >= values.max()
        if values.ndim == 4:
            assert np.allclose(seen[name].means, values.mean((0, 2, 3)), atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("reduce_range", [False, True])
def test_weights_are_rounded_as_onnxruntime_rounds_them(folded, reduce_range):
    model, _, seen = folded
    ranges = {name: quantize.minmax(one) for name, one in seen.items()}
    made = quantize.quantize(model, ranges, keep=quantize.float_nodes(model), reduce_range=reduce_range)
    ours, theirs = ({t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, made))
    convolutions = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for name in convolutions:
        said = theirs[f"{name}_quantized"] * theirs[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert np.allclose(said, quantize.rounded(ours[name], reduce_range), atol=1e-6)


def test_correction_restores_the_mean_of_each_channel(folded):
    model, images, seen = folded
    tensors = {t.name: t for t in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    last = nodes[-1]  # its input is the same in all three, for only its own weights are rounded

    def with_weights(source):
        result = onnx.ModelProto()
        result.CopyFrom(source)
        for tensor in result.graph.initializer:
            if tensor.name == last.input[1]:
                coarse = onnx.numpy_helper.to_array(tensors[last.input[1]])
                tensor.CopyFrom(onnx.numpy_helper.from_array(quantize.rounded(coarse, True).astype(np.float32), tensor.name))
        return result

    only_last = {last.input[0]: seen[last.input[0]]}
    true = outputs(model, [last.output[0]], images)[last.output[0]].mean((0, 2, 3))
    plain = outputs(with_weights(model), [last.output[0]], images)[last.output[0]].mean((0, 2, 3))
    corrected = outputs(with_weights(quantize.correct(model, only_last, reduce_range=True)), [last.output[0]], images)[last.output[0]]
    before, after = np.abs(plain - true).mean(), np.abs(corrected.mean((0, 2, 3)) - true).mean()
    assert after < 0.5 * before  # not to zero: padding is left aside, and here it is a third of what a kernel sees
    assert quantize.correct(model, only_last, keep=[last.name]) == model  # a layer in float has nothing to make up for
    assert quantize.correct(model, only_last) != model


def test_the_recipe_is_chosen_on_validation_and_a_hopeless_one_writes_nothing(exported, monkeypatch):
    import registry
    monkeypatch.setattr(checked_export, "GROUPS", 1)
    source = checked_export.open_run(Run(exported[0]), registry)
    folder = exported[0] / "exports"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
    touched = []
    monkeypatch.setattr(checked_export.Source, "pixels", lambda self, split, count=None, old=checked_export.Source.pixels:
                        touched.append(split) or old(self, split, count))
    with pytest.raises(UserError, match=r"INT8 changes the label of .* in each of 4 recipes"):
        checked_export.write(source, folder, ["onnx", "int8"], calibration=8, reduce_range=False, most_flips=-1)
    assert touched.count("train") == 1
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_weights_alone_are_rounded_to_what_codes_can_say_and_the_rest_is_float(folded):
    model, images, _ = folded
    made = quantize.round_weights(model)
    onnx.checker.check_model(made)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in made.graph.node}  # nothing folds these
    assert len(made.SerializeToString()) < .45 * len(model.SerializeToString())  # of so small a network much is not kernels
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(model)
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in by_hand.graph.initializer:
        if tensor.name in kernels:
            values = quantize.rounded(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    found, expected, before = (outputs(one, ["logits"], images)["logits"] for one in (made, by_hand, model))
    assert np.allclose(found, expected, atol=1e-4) and not np.allclose(found, before, atol=1e-4)


def test_a_network_that_bears_no_rounded_activations_keeps_its_labels_by_rounded_weights(exported, monkeypatch):
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    monkeypatch.setattr(checked_export.quantize, "quantize", lambda model, *given, **options: quantize.round_weights(
        with_noise(model)))
    folder = exported[0] / "elsewhere"
    told = checked_export.write(source, folder, ["int8"], calibration=8, reduce_range=False, most_flips=.03)["formats"]["int8"]
    assert told["recipe"]["ranges"] == checked_export.WEIGHTS and told["val"]["flips"] <= .03
    assert len(told["recipes"]) == len(quantize.RECIPES) + 1


def with_noise(model):
    """A model that answers at random."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rng = np.random.default_rng(0)
    for tensor in result.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(rng.normal(size=tuple(tensor.dims)).astype(np.float32), tensor.name))
    return result


def test_a_recipe_that_changes_few_labels_comes_before_one_that_is_nearer(exported, monkeypatch):
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    made = []  # recipes in their order: the nearest changes too many labels, the last too few to matter
    monkeypatch.setattr(checked_export.parity, "divergence", lambda reference, logits: made.append(0) or .1 * len(made))
    monkeypatch.setattr(checked_export.parity, "flips", lambda reference, logits: .5 if len(made) == 1 else .01)
    images = {split: source.pixels(split) for split in ("val", "test")}
    run = checked_export._Checks(source, images, images)
    model = checked_export.convert.to_onnx(source.network, source.size, source.metadata)
    _, told = checked_export.int8(run, model, 8, False, .03)
    assert told["recipe"] == told["recipes"][1] and len(told["recipes"]) == len(quantize.RECIPES)


def test_pooling_has_an_integer_kernel(exported):
    kinds = [node.op_type for node in onnx.load(exported[0] / "exports" / "model.onnx").graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and "ReduceMean" not in kinds


def test_divergence_and_flips_by_hand():
    even, sure = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert parity.divergence(even, even) == 0
    assert parity.divergence(even, sure + 7) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert parity.flips(np.eye(4), np.eye(4)[[0, 1, 3, 3]]) == 0.25
