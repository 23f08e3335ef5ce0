"""INT8: the ranges of the recipes, the correction of biases, and the choice of a recipe on validation."""

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
    whole = activation(values)
    lo, hi = quantize.least_error(whole)
    assert whole.lo < lo < 0 < hi < whole.hi

    def error(share):
        a, b = share * whole.lo, share * whole.hi
        scale = (b - a) / 255
        return ((np.clip(np.round((values - a) / scale), 0, 255) * scale + a - values) ** 2).mean()
    shares = np.linspace(0.05, 1, 96)
    assert error(hi / whole.hi) < 1.1 * min(map(error, shares[shares >= 0.3]))


def sessions(content):
    return onnx_model.session(content, 1)


@pytest.fixture(scope="module")
def folded(exported):
    model = quantize.fold(onnx.load(exported[0] / "exports" / "model.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), dtype=np.uint8)
    return model, images, quantize.observe(model, images, sessions)


def outputs(model, names, images):
    """{name: values} of tensors of a model for images."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return dict(zip(names, sessions(result.SerializeToString()).run(names, {"image": images})))


def test_observed_extremes_and_means_are_those_of_the_tensors(folded):
    model, images, activations = folded
    assert "logits" in activations and len(activations) >= len(model.graph.node) - 2
    for name, values in outputs(model, list(activations), images).items():
        assert activations[name].lo == values.min() and activations[name].hi >= values.max()
        if values.ndim == 4:
            means = values.mean((0, 2, 3))
            assert np.allclose(activations[name].means, means, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("full", [False, True])
def test_weights_are_rounded_as_onnxruntime_rounds_them(folded, full):
    model, _, activations = folded
    ranges = {name: quantize.minmax(activation) for name, activation in activations.items()}
    int8 = quantize.quantize(model, ranges, keep=quantize.float_nodes(model), full=full)
    ours, theirs = ({t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, int8))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for node in convolutions:
        name = node.input[1]
        codes, scales = quantize.codes(ours[name], depthwise=quantize.is_depthwise(node, ours[name]), full=full)
        assert np.array_equal(theirs[f"{name}_quantized"], codes)
        assert np.allclose(theirs[f"{name}_scale"], scales.ravel())


def rounded(weights, full=False):
    """Weights of a convolution that is not depthwise, as their codes represent them, float32."""
    return np.multiply(*quantize.codes(weights, full=full)).astype(np.float32)


def test_correction_restores_the_mean_of_each_channel(folded):
    model, images, activations = folded
    tensors = {t.name: t for t in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    last = nodes[-1]  # its input is the same in all three models, because only its own weights are rounded

    def with_rounded_weights(source):
        result = onnx.ModelProto()
        result.CopyFrom(source)
        weights = rounded(onnx.numpy_helper.to_array(tensors[last.input[1]]))
        for tensor in result.graph.initializer:
            if tensor.name == last.input[1]:
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
        return result

    def channel_means(source):
        return outputs(source, [last.output[0]], images)[last.output[0]].mean((0, 2, 3))

    only_last = {last.input[0]: activations[last.input[0]]}
    exact = channel_means(model)
    plain = channel_means(with_rounded_weights(model))
    corrected = channel_means(with_rounded_weights(quantize.correct(model, only_last)))
    # not to zero, because padding is not taken into account: here it is a third of the inputs of a kernel
    assert np.abs(corrected - exact).mean() < 0.5 * np.abs(plain - exact).mean()
    assert quantize.correct(model, only_last, keep=[last.name]) == model  # a layer in float has no rounding error
    assert quantize.correct(model, only_last) != model


def test_the_recipe_is_chosen_on_validation_and_a_hopeless_one_writes_nothing(exported, monkeypatch):
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    folder = exported[0] / "exports"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
    splits, original = [], checked_export.Source.pixels

    def pixels(self, split, count=None):
        splits.append(split)
        return original(self, split, count)

    monkeypatch.setattr(checked_export.Source, "pixels", pixels)
    with pytest.raises(UserError, match=r"INT8 changes the label of .* in each of 4 recipes"):
        checked_export.write(source, folder, ["onnx", "int8"], calibration=8, weight_range="portable", max_flips=-1)
    assert splits.count("train") == 1
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_weights_alone_are_rounded_to_values_of_codes_and_the_rest_is_float(folded):
    model, images, _ = folded
    small = quantize.round_weights(model)
    onnx.checker.check_model(small)
    types = {node.op_type for node in small.graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & types  # no runtime folds these
    # in so small a network much else than kernels has bytes
    assert len(small.SerializeToString()) < 0.45 * len(model.SerializeToString())
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(model)
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in by_hand.graph.initializer:
        if tensor.name in kernels:
            values = rounded(onnx.numpy_helper.to_array(tensor), full=True)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    logits, expected, exact = (outputs(m, ["logits"], images)["logits"] for m in (small, by_hand, model))
    assert np.allclose(logits, expected, atol=1e-4) and not np.allclose(logits, exact, atol=1e-4)


def test_a_network_that_bears_no_rounded_activations_keeps_its_labels_by_rounded_weights(exported, monkeypatch):
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    monkeypatch.setattr(checked_export.quantize, "quantize",
                        lambda model, *_, **options: quantize.round_weights(with_noise(model)))
    folder = exported[0] / "elsewhere"
    parity = checked_export.write(source, folder, ["int8"], calibration=8, weight_range="portable", max_flips=0.03)
    int8 = parity["formats"]["int8"]
    assert int8["recipe"]["ranges"] == checked_export.WEIGHTS and int8["val"]["flips"] <= .03
    assert len(int8["recipes"]) == len(quantize.RECIPES) + 1


def test_activations_stay_in_float_where_processors_would_round_them_differently(exported, monkeypatch):
    import export
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    monkeypatch.setattr(checked_export.quantize, "unlike", lambda model: ["Erf", "LayerNormalization"])
    options = {"calibration": 8, "max_flips": 1}
    parity = checked_export.write(source, exported[0] / "unlike", ["int8"], weight_range="portable", **options)
    int8 = parity["formats"]["int8"]
    assert int8["recipe"]["ranges"] == checked_export.WEIGHTS and int8["recipes"] == [int8["recipe"]]
    assert "of weights only; its Erf, LayerNormalization would compute in float between integers" in (
        export.parity_table(parity, 1))
    parity = checked_export.write(source, exported[0] / "full", ["int8"], weight_range="full", **options)
    int8 = parity["formats"]["int8"]
    assert int8["recipe"]["weight_range"] == "full" and int8["other_range"]["weight_range"] == "portable"
    table = export.parity_table(parity, 1)
    assert f"weight range full (this file): on val {int8['recipe']['val_flips']:.2%} of the labels" in table
    assert f"weight range portable: on val {int8['other_range']['val_flips']:.2%} of the labels" in table


def with_noise(model):
    """The model with random weights."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rng = np.random.default_rng(0)
    for tensor in result.graph.initializer:
        if len(tensor.dims) == 4:
            weights = rng.normal(size=tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    return result


def test_a_recipe_that_changes_few_labels_comes_before_one_that_is_nearer(exported, monkeypatch):
    import registry
    source = checked_export.open_run(Run(exported[0]), registry)
    judged = []  # recipes in their order: the first is the nearest and changes too many labels
    monkeypatch.setattr(checked_export.parity, "divergence", lambda *_: judged.append(0) or .1 * len(judged))
    monkeypatch.setattr(checked_export.parity, "flips", lambda *_: .5 if len(judged) == 1 else .01)
    images = {split: source.pixels(split) for split in ("val", "test")}
    checks = checked_export._Checks(source, images, {split: np.zeros((len(images[split]), 3)) for split in images})
    model = checked_export.convert.to_onnx(source.network, source.size, source.metadata)
    _, figures, _ = checked_export.int8(checks, model, 8, "portable", .03)
    assert figures["recipe"] == figures["recipes"][1] and len(figures["recipes"]) == len(quantize.RECIPES)


def test_pooling_has_an_integer_kernel(exported):
    kinds = [node.op_type for node in onnx.load(exported[0] / "exports" / "model.onnx").graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and "ReduceMean" not in kinds


def test_divergence_and_flips_by_hand():
    even, sure = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert parity.divergence(even, even) == 0
    assert parity.divergence(even, sure + 7) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert parity.flips(np.eye(4), np.eye(4)[[0, 1, 3, 3]]) == 0.25
