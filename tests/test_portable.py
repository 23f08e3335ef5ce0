"""INT8 computes the same on every processor: no sum of products saturates, and all kernels round alike."""

from fractions import Fraction

import numpy as np
import pytest

from kd import onnx_model
from kd.edge import quantize

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto


# ---- sums of products

def in_order(weights):
    """Weights [out, in, ...] as [out, K] in the order in which ONNX Runtime multiplies: position, then channel."""
    return np.moveaxis(weights, 1, -1).reshape(len(weights), -1)


def vpmaddubsw(activations, weights):
    """Dot products as x86 without VNNI computes them: [n, K] unsigned times [out, K] signed, pairs saturate to 16 bits.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: PMADDUBSW.
    """
    odd = activations.shape[1] % 2
    activations, weights = (np.pad(a.astype(np.int64), ((0, 0), (0, odd))) for a in (activations, weights))
    products = activations[:, None] * weights
    return np.clip(products[..., 0::2] + products[..., 1::2], -2 ** 15, 2 ** 15 - 1).sum(-1)


def worst(weights, sign):
    """Activations of which the products with the weights [K] of one output are as far on one side as can be."""
    return np.where(sign * weights > 0, 255, 0)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 16, 1, 1), (4, 5, 3, 3), (6, 58, 1, 1), (16, 1, 3, 3), (3, 7)])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "equal", "one large", "zero"])
def test_sums_of_products_saturate_nowhere_with_portable_weights(shape, kind):
    rng = np.random.default_rng(0)
    weights = {"normal": rng.normal(size=shape), "heavy tails": rng.standard_t(1, size=shape),
               "equal": np.full(shape, -0.3), "one large": 1e-3 * rng.normal(size=shape), "zero": np.zeros(shape)}[kind]
    if kind == "one large":
        weights.reshape(shape[0], -1)[:, 1] = 5
    codes, scales = quantize.codes(weights.astype(np.float32))
    assert np.abs(codes).max() <= 127 and np.allclose(codes * scales, weights, atol=0.501 * scales.max())
    for row in in_order(codes):
        for sign in (1, -1):
            activations = worst(row, sign)[None]
            assert vpmaddubsw(activations, row[None]) == activations @ row
    full = in_order(quantize.codes(weights, full=True)[0])
    if kind == "equal":
        assert vpmaddubsw(worst(full[0], -1)[None], full[:1]) > worst(full[0], -1) @ full[0]  # saturates


def test_portable_weights_are_nearly_as_fine_as_those_of_the_full_range():
    weights = np.random.default_rng(0).normal(size=(64, 64, 3, 3))
    scales = {full: quantize.codes(weights, full=full)[1] for full in (False, True)}
    assert (scales[False] < 1.7 * scales[True]).all()  # the largest weight's neighbour is seldom as large
    assert np.array_equal(quantize.codes(weights, depthwise=True)[1], scales[True])


def convolution(codes, groups=1, stride=1, padding=1):
    """A model of one convolution with weight codes [out, in / groups, k, k], input `image` [N, in, H, W] of codes.

    All scales are 1 but the output's, output_scale(codes), and all zero points are 0 but the output's, which is 128.
    """
    def constant(name, value):
        return numpy_helper.from_array(value, name)

    size = codes.shape[-1]
    nodes = [helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["x"]),
             helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["a"]),
             helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["b"], axis=0),
             helper.make_node("Conv", ["a", "b"], ["c"], group=groups, strides=[stride] * 2,
                              pads=[padding if size > 1 else 0] * 4),
             helper.make_node("QuantizeLinear", ["c", "large", "middle"], ["y"]),
             helper.make_node("DequantizeLinear", ["y", "large", "middle"], ["z"])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", codes.shape[1] * groups, "H", "W"])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    out = len(codes)
    constants = [constant("one", np.float32(1)), constant("zero", np.uint8(0)), constant("w", codes.astype(np.int8)),
                 constant("ones", np.ones(out, np.float32)), constant("zeros", np.zeros(out, np.int8)),
                 constant("large", np.float32(output_scale(codes))), constant("middle", np.uint8(128))]
    graph = helper.make_graph(nodes, "convolution", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def output_scale(codes):
    """A power of two that is large enough that no output of the convolution is clipped."""
    return 2 ** int(np.ceil(np.log2(255 * np.abs(codes).reshape(len(codes), -1).sum(1).max() / 120)))


def exact_convolution(codes, image, groups=1, stride=1, padding=1):
    """The same in integers: the output's values, rounded to a multiple of the output's scale, half to even."""
    size = codes.shape[-1]
    padding = padding if size > 1 else 0
    image = np.pad(image.astype(np.int64), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), (2, 3))[:, :, ::stride, ::stride]
    n, channels, height, width = windows.shape[:4]
    windows = windows.reshape(n, groups, channels // groups, height, width, size, size)
    kernels = codes.astype(np.int64).reshape(groups, -1, *codes.shape[1:])
    sums = np.einsum("ngchwij,gocij->ngohw", windows, kernels).reshape(n, -1, height, width)
    return np.rint(sums / output_scale(codes)) * output_scale(codes)


@pytest.mark.parametrize("out, channels, size, groups, stride", [
    (16, 3, 3, 1, 2), (16, 16, 3, 1, 1), (8, 6, 1, 1, 1), (24, 32, 1, 1, 1), (32, 4, 5, 1, 2), (16, 8, 3, 4, 1),
    (32, 32, 3, 32, 1), (24, 24, 3, 24, 2), (32, 16, 3, 16, 1), (10, 10, 5, 10, 1)])
def test_convolutions_of_this_machine_are_exact_at_the_worst(out, channels, size, groups, stride):
    rng = np.random.default_rng(0)
    depthwise = groups == channels == out
    for kind in ("equal", "signs", "normal"):
        shape = (out, channels // groups, size, size)
        weights = {"equal": np.ones(shape), "signs": rng.choice([-1.0, 1.0], shape), "normal": rng.normal(size=shape)}
        codes, _ = quantize.codes(weights[kind], depthwise=depthwise)
        session = onnx_model.session(convolution(codes, groups, stride), 1)
        for image in (np.full((1, channels, 9, 9), 255), rng.integers(0, 256, (2, channels, 9, 9))):
            z, = session.run(["z"], {"image": image.astype(np.float32)})
            assert np.array_equal(z, exact_convolution(codes, image, groups, stride)), kind


def test_a_machine_that_saturates_computes_full_weights_exactly_if_asked_to():
    codes = np.full((16, 16, 3, 3), 127)
    image = np.full((1, 16, 5, 5), 255)
    z, = onnx_model.session(convolution(codes), 1, exact=True).run(["z"], {"image": image.astype(np.float32)})
    assert np.array_equal(z, exact_convolution(codes, image))


def test_the_file_that_asks_whether_products_saturate_is_what_it_says(monkeypatch):
    def vector(name, kind, *shape):
        return helper.make_tensor_value_info(name, kind, shape)

    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "g", [vector("a", TensorProto.UINT8, "M", "K"),
                                            vector("b", TensorProto.INT8, "K", "N")],
                              [vector("y", TensorProto.INT32, "M", "N")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=4)
    assert onnx.load_from_string(onnx_model.PRODUCT) == model

    class Saturating:
        def run(self, names, inputs):
            return [vpmaddubsw(inputs["a"], inputs["b"].T)]

    monkeypatch.setattr(onnx_model, "session", lambda *_: Saturating())
    assert onnx_model.saturates.__wrapped__()


def convolutions(path):
    """(name, weight codes, whether it is depthwise) of the integer convolutions of a file."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in producers:
            codes = tensors[producers[node.input[1]].input[0]]
            yield node.name, codes, quantize.is_depthwise(node, codes)


def test_no_convolution_of_an_exported_file_saturates(exported):
    found = list(convolutions(exported[0] / "exports" / "model.int8.onnx"))
    assert len(found) == 5
    for name, codes, depthwise in found:
        for row in in_order(codes) if not depthwise else []:
            pairs = np.pad(row.astype(int), (0, len(row) % 2)).reshape(-1, 2)
            for part in (np.maximum(pairs, 0), np.minimum(pairs, 0)):
                assert np.abs(255 * part.sum(1)).max() < 2 ** 15, name


# ---- sums of two tensors

A, B = (codes.ravel() for codes in np.meshgrid(np.arange(256), np.arange(256)))


def in_float(a, b, scales, zero_points, fused):
    """Codes of a sum as x86 computes them in float32: with AVX2 (fused) or SSE. Rounds half to even."""
    one = np.float32
    ratios = [one(scale) / one(scales[2]) for scale in scales[:2]]
    offset = one(zero_points[2]) - (ratios[0] * one(zero_points[0]) + ratios[1] * one(zero_points[1]))

    def multiply_add(x, y, z):
        product = x.astype(np.float64) * y if fused else x.astype(one) * y
        return (product + z).astype(one)

    sums = multiply_add(a, ratios[0], multiply_add(b, ratios[1], offset))
    return np.clip(np.rint(sums), 0, 255)


def in_fixed_point(a, b, scales, zero_points):
    """Codes of a sum as ARM computes them, with multipliers of 22 bits. Rounds half away from zero."""
    ratios = [np.float32(scale) / np.float32(scales[2]) for scale in scales[:2]]
    shift = 21 - int(np.floor(np.log2(max(ratios))))
    multipliers = [int(np.rint(float(ratio) * 2 ** shift)) for ratio in ratios]
    sums = (a - zero_points[0]) * multipliers[0] + (b - zero_points[1]) * multipliers[1]
    sums = sums - (sums < 0)
    return np.clip((sums + 2 ** (shift - 1) >> shift) + zero_points[2], 0, 255)


def exactly(a, b, multiples, zero_points):
    """Codes of a sum in integers, for scales that are odd multiples of a unit: it is never half-way."""
    sums = (a - zero_points[0]) * multiples[0] + (b - zero_points[1]) * multiples[1]
    return np.clip((2 * sums + multiples[2]) // (2 * multiples[2]) + zero_points[2], 0, 255)


def addition(relu=False, pooled=False):
    """A float model c = a + b, of two [N, C, H, W]; with relu d = max(c, 0); where pooled, a is the maximum of `p`."""
    nodes = [helper.make_node("MaxPool", ["p"], ["a"], kernel_shape=[1, 1])] * pooled
    nodes += [helper.make_node("Add", ["a", "b"], ["c"])]
    nodes += [helper.make_node("Relu", ["c"], ["d"])] * relu
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def quantised(ranges):
    """[(scale, zero point)] of ranges (lo, hi), as onnxruntime's quantiser computes them."""
    result = []
    for lo, hi in ranges:
        scale = np.float32((np.float64(np.float32(hi)) - np.float32(lo)) / 255)
        result.append((scale, int(np.rint(-np.float32(lo) / scale))))
    return result


def wide_ranges():
    """Ranges of a, b and c whose widths differ by a factor of up to 100; a list of dicts."""
    rng = np.random.default_rng(0)
    return [{name: (-width * share, width * (1 - share))
             for name, width, share in zip("abc", 10 ** rng.uniform(-1.5, 0.5, 3), rng.choice([0, 0.1, 0.5, 0.9], 3))}
            for _ in range(30)]


@pytest.mark.parametrize("ranges", wide_ranges())
def test_all_kernels_round_every_sum_alike(ranges):
    widened = quantize.round_alike(addition(), ranges)
    scales, zero_points = zip(*quantised(widened[name] for name in "abc"))
    multiples = [round(float(scale / max(scales)) * quantize.UNITS) for scale in scales]
    assert all(multiple % 2 for multiple in multiples) and max(multiples) == quantize.UNITS
    expected = exactly(A, B, multiples, zero_points)
    for fused in (True, False):
        assert np.array_equal(in_float(A, B, scales, zero_points, fused), expected)
    if max(scales[:2]) / scales[2] < 256:  # the others are done in float on ARM, too
        assert np.array_equal(in_fixed_point(A, B, scales, zero_points), expected)
    for name, (lo, hi) in widened.items():
        width = ranges[name][1] - ranges[name][0]
        assert width <= 1.0001 * (hi - lo) and hi - lo <= width + 2.001 * max(scales) * 255 / quantize.UNITS


def test_the_kernels_differ_for_scales_as_they_come():
    """Else the test above would show nothing: with ranges as they are, single pairs of codes get different sums."""
    differ = 0
    for ranges in wide_ranges():
        scales, zero_points = zip(*quantised(ranges[name] for name in "abc"))
        if max(scales[:2]) / scales[2] < 256:
            differ += (in_float(A, B, scales, zero_points, True) != in_fixed_point(A, B, scales, zero_points)).sum()
    assert differ > 5


def test_sums_of_this_machine_are_exact():
    ranges = {"a": (-1.0, 1.3), "b": (0.0, 0.4), "c": (-0.7, 1.9)}
    (sa, za), (sb, zb), (sc, zc) = quantised(quantize.round_alike(addition(), ranges).values())
    constants = [numpy_helper.from_array(value, name) for name, value in (
        ("sa", sa), ("za", np.uint8(za)), ("sb", sb), ("zb", np.uint8(zb)), ("sc", sc), ("zc", np.uint8(zc)))]
    nodes = [helper.make_node("DequantizeLinear", ["a", "sa", "za"], ["x"]),
             helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["y"]),
             helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("QuantizeLinear", ["z", "sc", "zc"], ["c"])]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 1, 256, 256]) for name in "abc"]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shaped = [codes.astype(np.uint8).reshape(1, 1, 256, 256) for codes in (A, B)]
    c, = onnx_model.session(model.SerializeToString(), 1).run(["c"], dict(zip("ab", shaped)))
    multiples = [round(float(scale / max(sa, sb, sc)) * quantize.UNITS) for scale in (sa, sb, sc)]
    assert np.array_equal(c.ravel(), exactly(A, B, multiples, (za, zb, zc)))


def test_scales_of_a_chain_of_sums_have_one_unit_and_others_stay():
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"]),
             helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[1, 1]), helper.make_node("Add", ["e", "f"], ["g"]),
             helper.make_node("Add", ["g", "weights"], ["h"]), helper.make_node("Add", ["k", "k"], ["l"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    ranges = {name: (0.0, width) for name, width in zip("abcdefghkl", (1, 2, 3, 2.9, 2.9, 0.11, 2.5, 7, 5, 9))}
    result = quantize.round_alike(model, ranges)
    largest = max(result[name][1] for name in "abcdfg")
    multiples = [Fraction(result[name][1] / largest).limit_denominator(2000) * quantize.UNITS for name in "abcdfg"]
    assert all(multiple.denominator == 1 and multiple.numerator % 2 for multiple in multiples), multiples
    assert [result[name] for name in "eh"] == [ranges[name] for name in "eh"]  # e has d's scale; h is no sum of two
    assert result["l"][1] / result["k"][1] == pytest.approx(511 / 285)


def folded_network(arch):
    """(folded float model, ranges) of an untrained network for images of 32 px."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import registry
    from kd.edge import convert
    torch.manual_seed(0)
    network = registry.create("architecture", arch, num_classes=3, stem="imagenet", weights=None).eval()
    exported = convert.to_onnx(convert.Deployed(network, [0.5] * 3, [0.2] * 3, 32).eval(), 32, {"format": "x"})
    folded = quantize.fold(exported)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    activations = quantize.observe(folded, images, lambda content: onnx_model.session(content, 1))
    return folded, {name: quantize.minmax(activation) for name, activation in activations.items()}


def test_scales_at_the_sums_of_an_exported_file_are_odd_multiples():
    """Of a ResNet: in the file the pooled input of the first block has the scale of the convolution before it."""
    folded, ranges = folded_network("resnet18")
    graph = quantize.quantize(folded, ranges, keep=quantize.float_nodes(folded)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    sums = [node for node in graph.node if node.op_type == "Add" and {*node.input} <= producers.keys()
            and producers[node.input[1]].op_type == "DequantizeLinear"]
    assert len(sums) == 8
    for node in sums:
        after = next(other for other in graph.node if node.output[0] in other.input)
        assert after.op_type == "QuantizeLinear"  # the activation is in its range
        scale = tensors[after.input[1]].item()
        for name in node.input:
            ratio = Fraction(tensors[producers[name].input[1]].item() / scale).limit_denominator(quantize.UNITS)
            assert ratio.numerator % 2 and ratio.denominator % 2
            assert float(ratio) * scale == pytest.approx(tensors[producers[name].input[1]].item(), rel=1e-6)
    pooled = next(node for node in graph.node if node.op_type == "GlobalAveragePool").output[0]
    assert [node.op_type for node in graph.node if pooled in node.input] != ["QuantizeLinear"]


# ---- what is computed in float and then rounded

OTHERS = ("mobilenetv2", "mobilenetv3large", "shufflenetv2", "efficientnetb0", "efficientnetlite0", "regnety400mf")


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3small",
                                  *(pytest.param(arch, marks=pytest.mark.slow) for arch in OTHERS)])
def test_nothing_that_differs_between_processors_is_rounded(arch):
    folded, ranges = folded_network(arch)
    model = quantize.quantize(folded, ranges, keep=quantize.float_nodes(folded))
    assert quantize.unlike(model) == []
    first = next(node.name for node in folded.graph.node if node.op_type == "Conv")
    model = quantize.quantize(folded, ranges, keep=[*quantize.float_nodes(folded), first])
    assert quantize.unlike(model) == ["Conv"]


def test_a_network_with_layer_normalisation_between_convolutions_rounds_what_differs():
    folded, ranges = folded_network("convnexttiny")
    model = quantize.quantize(folded, ranges, keep=quantize.float_nodes(folded))
    assert {"LayerNormalization", "MatMul"} < {*quantize.unlike(model)}


def test_operators_that_differ_are_found_by_hand():
    def model(*nodes):
        return helper.make_model(helper.make_graph([helper.make_node(*node) for node in nodes], "g", [], []))

    start = [("QuantizeLinear", ["image", "s", "z"], ["a"]), ("DequantizeLinear", ["a", "s", "z"], ["b"])]
    integer = [("Sigmoid", ["b"], ["c"]), ("QuantizeLinear", ["c", "s", "z"], ["d"])]
    assert quantize.unlike(model(*start, *integer)) == []
    twice = [("Sigmoid", ["b"], ["c"]), ("Erf", ["c"], ["e"]), ("Mul", ["e", "b"], ["f"]),
             ("QuantizeLinear", ["f", "s", "z"], ["d"])]
    assert quantize.unlike(model(*start, *twice)) == ["Erf", "Sigmoid"]  # its sigmoid is not rounded at once
    after = [*integer, ("DequantizeLinear", ["d", "s", "z"], ["g"]), ("Softmax", ["g"], ["logits"])]
    assert quantize.unlike(model(*start, *after)) == []  # nothing is rounded after it
