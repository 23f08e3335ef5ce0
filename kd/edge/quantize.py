"""INT8 by static quantisation: weights of 8 bits with a scale for each channel, activations of 8 bits.

The graph gets pairs of QuantizeLinear and DequantizeLinear (QDQ), which ONNX Runtime fuses into integer kernels.
Activations are unsigned, weights are signed and symmetric, because the fast x86 kernels of ONNX Runtime are made for
that. The ranges of activations come from histograms over training images; a recipe is a function from a histogram to
a range, and recipes differ in nothing else. Needs onnx.

The same file computes the same on every processor, by three measures:
- No sum of products saturates: see codes().
- Sums of two tensors, which x86 computes in float and ARM in fixed point, are never near half-way between two codes:
  see round_alike().
- The last pooling, which differs likewise, is in float, as is all behind it.
- Nothing that is computed in float is rounded to integers if its last bits differ between processors: see unlike().
"""

import contextlib
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import errors

BINS = 2048
SAMPLE = 2 ** 15  # values of a tensor that a batch adds to its histogram; minimum and maximum are taken of all values
BATCH = 8         # images at a time: all their activations are in memory together
LEVELS = 255
UNITS = 511       # of the largest scale in a sum: an odd number; see round_alike()


@dataclass
class Activation:
    """The values of one tensor over all calibration images."""

    lo: float
    hi: float
    counts: np.ndarray        # [BINS], a histogram from lo to hi
    means: np.ndarray = None  # [C], the mean of each channel, for tensors [N, C, H, W]


def minmax(activation):
    """The whole range (lo, hi) of an Activation."""
    return activation.lo, activation.hi


def percentile(activation, share=0.9999):
    """The range (lo, hi) of an Activation without the (1 - share) / 2 lowest and as many of the highest values."""
    cumulated = np.cumsum(activation.counts) / activation.counts.sum()
    edges = np.linspace(activation.lo, activation.hi, BINS + 1)
    return (float(edges[np.searchsorted(cumulated, (1 - share) / 2, "right")]),
            float(edges[np.searchsorted(cumulated, (1 + share) / 2) + 1]))


def least_error(activation):
    """The range (lo, hi) of an Activation with the least mean square of rounding and clipping errors.

    Candidates are the whole range, shrunk towards 0 by the same factor at both ends, from 0.3 to 1.
    """
    edges = np.linspace(activation.lo, activation.hi, BINS + 1)
    values, shares = (edges[:-1] + edges[1:]) / 2, activation.counts / activation.counts.sum()
    factors = np.linspace(0.3, 1, 71)[:, None]
    lo, hi = factors * min(activation.lo, 0), factors * max(activation.hi, 0)
    clipped = np.maximum(values - hi, 0) + np.maximum(lo - values, 0)
    square_errors = np.where(clipped > 0, clipped ** 2, ((hi - lo) / LEVELS) ** 2 / 12) @ shares
    k = int(square_errors.argmin())
    return float(lo[k, 0]), float(hi[k, 0])


WEIGHT_RANGES = ("portable", "full")  # see codes()
RECIPES = {"minmax": minmax, "percentile 99.99": percentile, "least error": least_error}


def fold(model):
    """An onnx.ModelProto with batch normalisation and constants folded, as inference would fold them."""
    onnx = errors.need("onnx", "edge")
    from onnxruntime.quantization.shape_inference import quant_pre_process
    with tempfile.TemporaryDirectory() as folder, quiet():
        original, folded = Path(folder, "original.onnx"), Path(folder, "folded.onnx")
        onnx.save(model, original)
        quant_pre_process(str(original), str(folded), skip_symbolic_shape=True)
        return onnx.load(folded)


def observe(model, images, session):
    """{tensor name: Activation} of all float tensors of a folded float model, in two passes over the images.

    images: uint8 [N, H, W, 3]. session: a function from a serialised model to an object with run(names, inputs).
    """
    import onnx
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(model)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    names = [name for node in model.graph.node for name in node.output if types.get(name) == onnx.TensorProto.FLOAT]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    del instrumented.graph.output[:]
    instrumented.graph.output.extend(outputs)
    runtime = session(instrumented.SerializeToString())

    def batches():
        for start in range(0, len(images), BATCH):
            yield from zip(names, runtime.run(names, {"image": images[start:start + BATCH]}))

    activations = {name: Activation(np.inf, -np.inf, np.zeros(BINS, np.int64)) for name in names}
    for name, values in batches():
        activation = activations[name]
        activation.lo = min(activation.lo, float(values.min()))
        activation.hi = max(activation.hi, float(values.max()))
        if values.ndim == 4:
            share = values.mean((2, 3), dtype=np.float64).sum(0) / len(images)
            activation.means = (0 if activation.means is None else activation.means) + share
    for activation in activations.values():  # a range above 0, also of a tensor that is constant
        least_width = max(1e-3 * abs(activation.lo), 1e-12)
        activation.hi = max(activation.hi, activation.lo + least_width)
    rng = np.random.default_rng(0)
    for name, values in batches():
        activation, values = activations[name], values.reshape(-1)
        if values.size > SAMPLE:
            values = values[rng.integers(values.size, size=SAMPLE)]
        activation.counts += np.histogram(values, BINS, (activation.lo, activation.hi))[0]
    return activations


def correct(model, activations, *, keep=(), full=False):
    """A folded float model with biases that cancel what the rounding of weights adds to the mean of each channel.

    bias += sum over the kernel of (w - rounded w) times the mean of its input; padding is not taken into account.
    Rounding errors of a kernel do not cancel if all inputs are positive, as after ReLU; the effect is largest in
    depthwise convolutions, which have few weights. Nagel et al. 2019 (1906.04721), section 4.2, with measured means.
    activations: as observe() returns them. keep: names of nodes that stay in float, whose weights are not rounded.
    full: as for codes().
    """
    onnx = errors.need("onnx", "edge")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type != "Conv" or node.name in keep or len(node.input) < 3:
            continue
        means = getattr(activations.get(node.input[0]), "means", None)
        if means is None:
            continue
        weights, bias = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[1:3])
        groups = len(means) // weights.shape[1]
        inputs = np.repeat(means.reshape(groups, -1), len(weights) // groups, 0)  # [out, in / groups]
        rounded = np.multiply(*codes(weights, depthwise=is_depthwise(node, weights), full=full))
        rounding_errors = (weights - rounded).sum((2, 3))
        corrected = (bias + (rounding_errors * inputs).sum(1)).astype(np.float32)
        tensors[node.input[2]].CopyFrom(onnx.numpy_helper.from_array(corrected, node.input[2]))
    return result


def codes(weights, *, depthwise=False, full=False):
    """(codes, scales) of weights [out, in, ...]: integers from -127 to 127, a scale [out, 1, ...] for each output.

    x86 processors without VNNI add the products of two neighbouring weights in 16 bits (vpmaddubsw), which saturate. So
    codes of neighbours that have the same sign sum to 128 at most: their products with activations of up to 255 then
    sum to 32640, below 32767. ONNX Runtime has the weights of an output in the order of the kernel's positions, and at
    each position of the input channels; the first and second are neighbours, the third and fourth, and so on. VNNI, AMX
    and ARM are exact with any weights, and so are all kernels for depthwise convolutions.

    full: codes up to 127 without this condition; they are finer.
    """
    rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
    largest = np.abs(rows).max(1)
    if not depthwise and not full:
        pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        largest = np.maximum(np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2)).max(1)
    scale = np.where(largest == 0, 1, largest / 127).reshape(-1, *[1] * (weights.ndim - 1))
    return np.round(weights / scale), scale


def is_depthwise(node, weights):
    """Whether a Conv node with weights [out, in / groups, ...] has one input channel for each output channel."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return weights.shape[1] == 1 and groups == len(weights)


def round_weights(model):
    """A folded float model whose convolutions have weights of 8 bits, an onnx.ModelProto. It computes in float.

    The file is as small as one with rounded activations, and as fast as one in float: a runtime folds Cast and Mul of
    constants when it loads them, but not DequantizeLinear. This is for networks whose weights bear 8 bits, but whose
    activations range too widely for it (EfficientNet: single values are a hundred times the usual one).
    """
    onnx = errors.need("onnx", "edge")
    from onnx import helper, numpy_helper
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = []
    for name in dict.fromkeys(node.input[1] for node in result.graph.node if node.op_type == "Conv"):
        integers, scale = codes(numpy_helper.to_array(tensors[name]), full=True)
        result.graph.initializer.remove(tensors[name])
        result.graph.initializer.extend([numpy_helper.from_array(integers.astype(np.int8), f"{name}_quantized"),
                                         numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale")])
        nodes += [helper.make_node("Cast", [f"{name}_quantized"], [f"{name}_whole"], f"{name}_cast",
                                   to=onnx.TensorProto.FLOAT),
                  helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], f"{name}_mul")]
    nodes += result.graph.node
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def round_alike(model, ranges):
    """Ranges with which every processor rounds the sum of two tensors to the same code.

    The code of a sum is c = round((k_a (a - z_a) + k_b (b - z_b)) / k_c) + z_c, where scales are k times a unit.
    Kernels compute this in float or in fixed point, and round half to even or away from zero, so that they differ where
    it is near half-way between two integers. If all k are odd, it is never nearer to half-way than 1 / (2 k_c), because
    no multiple of 1 / k_c is. With k up to UNITS, this is more than the kernels err; see tests/test_portable.py.

    ranges: {tensor name: (lo, hi)} of a folded float model. Those of tensors that meet in sums are returned a little
    wider, so that their scales are odd multiples of a common unit; the others as they are.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    meeting = []  # disjoint sets of tensors
    for node in model.graph.node:
        if node.op_type != "Add" or not ranges.keys() >= {*node.input, *node.output}:
            continue
        names = {node.output[0]}
        for name in node.input:
            while name in producers and producers[name].op_type == "MaxPool":  # has the scale of its input
                name = producers[name].input[0]
            names.add(name)
        for following in model.graph.node:
            if following.op_type in ("Relu", "Clip") and following.input[0] == node.output[0]:
                names.add(following.output[0])  # the activation is fused into the sum, and its range is that of both
        names = names.union(*(others for others in meeting if others & names))
        meeting = [others for others in meeting if not others & names] + [names]
    result = dict(ranges)
    for names in meeting:
        bounds = {name: (min(ranges[name][0], 0), max(ranges[name][1], 0)) for name in names}
        unit = max(hi - lo for lo, hi in bounds.values()) / LEVELS / UNITS
        for name, (lo, hi) in bounds.items():
            multiple = (hi - lo) / LEVELS / unit
            scale = unit * (2 * math.ceil((multiple - 1) / 2 - 1e-6) + 1)  # the next odd multiple
            zero_point = round(-lo / scale)
            result[name] = (-zero_point * scale, (LEVELS - zero_point) * scale)
    return result


def quantize(model, ranges, *, keep=(), full=False):
    """A folded float model as QDQ INT8, an onnx.ModelProto.

    ranges: {tensor name: (lo, hi)} of all activations. keep: names of nodes that stay in float. full: weights that are
    finer and saturate on some processors, see codes().
    """
    onnx = errors.need("onnx", "edge")
    from onnxruntime import quantization

    class SingleImage(quantization.CalibrationDataReader):
        """One black image: quantize_static() demands calibration data, but `overrides` replaces all its ranges."""

        def __init__(self):
            shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
            self.images = [{"image": np.zeros(shape, np.uint8)}]

        def get_next(self):
            return self.images.pop() if self.images else None

    overrides = {name: [{"rmin": np.float32(lo), "rmax": np.float32(hi)}]
                 for name, (lo, hi) in round_alike(model, ranges).items()}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name not in keep and node.input[1] in tensors:
            weights = onnx.numpy_helper.to_array(tensors[node.input[1]])
            _, scales = codes(weights, depthwise=is_depthwise(node, weights), full=full)
            overrides[node.input[1]] = [
                {"quant_type": quantization.QuantType.QInt8, "axis": 0, "symmetric": True,
                 "rmin": np.float32(-127 * scale), "rmax": np.float32(127 * scale)} for scale in scales.ravel()]
    with tempfile.TemporaryDirectory() as folder, quiet():
        folded, quantized = Path(folder, "folded.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, folded)
        quantization.quantize_static(
            str(folded), str(quantized), SingleImage(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(keep), extra_options={"TensorQuantOverrides": overrides})
        return onnx.load(quantized)


def float_nodes(model):
    """Names of the nodes of a model that always stay in float: normalisation, linear layers, and all from the last
    pooling on.

    Mean and deviation of 8 bits would be rounded twice; a grid of 8 bits for logits is coarser than the differences
    that decide between classes.
    """
    kinds = [node.op_type for node in model.graph.node]
    first, last = (kinds.index("Conv"), len(kinds) - kinds[::-1].index("Conv")) if "Conv" in kinds else (0, 0)
    head = kinds.index("GlobalAveragePool", last) if "GlobalAveragePool" in kinds[last:] else len(kinds)
    return [node.name for k, node in enumerate(model.graph.node)
            if k < first or k >= head or node.op_type in ("Gemm", "MatMul")]


# Operators in float whose results are the same on all processors: they round each number once, or move it.
ALIKE = {"Abs", "Add", "Cast", "Clip", "Concat", "Constant", "DequantizeLinear", "Div", "Flatten", "Gather",
         "HardSigmoid", "Identity", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Range", "Relu", "Reshape", "Shape",
         "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
# Those for which ONNX Runtime has kernels on integers, where they stand between DequantizeLinear and QuantizeLinear.
INTEGER = {"Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Sigmoid"}


def unlike(model):
    """The kinds of operators of a quantised model that compute in float what is then rounded to integers, and whose
    last bits differ between processors: a sorted list of names, best empty.

    Where a number is near half-way between two integers, the last bit decides which it becomes, and what follows makes
    as much of that as of rounding itself. A convolution that sums in another order is an example.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    kinds, found = {}, set()  # {name of a tensor: operators that its last bits depend on}

    def has_integer_kernel(node):
        computed = [producers[name].op_type for name in node.input if name in producers]
        return (node.op_type in INTEGER and {*computed} == {"DequantizeLinear"}
                and all({*readers.get(name, ())} == {"QuantizeLinear"} for name in node.output))

    for node in model.graph.node:
        before = set().union(*(kinds.get(name, ()) for name in node.input))
        if node.op_type == "QuantizeLinear":
            found |= before
        elif not has_integer_kernel(node):
            kinds.update(dict.fromkeys(node.output, before if node.op_type in ALIKE else before | {node.op_type}))
    return sorted(found)


@contextlib.contextmanager
def quiet():
    """Suppress the advice that the quantiser logs."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
