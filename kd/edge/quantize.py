"""INT8 by static quantisation: 8-bit weights a channel, 8-bit activations with ranges seen on training images.

The graph gets pairs of QuantizeLinear and DequantizeLinear (QDQ), which ONNX Runtime fuses into integer
kernels. Activations are unsigned, weights signed and symmetric: on x86 its fast kernels are made for that.
What ranges a recipe takes from the same histograms is the only thing in which recipes differ. Needs onnx.
"""

import contextlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import errors

BINS = 2048
SAMPLE = 2 ** 15  # values a tensor and batch that its histogram counts; minimum and maximum see all
BATCH = 8         # images at a time: every activation of them is held
LEVELS = 255


@dataclass
class Activation:
    """What one tensor held over all calibration images: its extremes, counts [BINS] between them, means a channel."""

    lo: float
    hi: float
    counts: np.ndarray
    means: np.ndarray = None  # [C], of tensors [N, C, H, W]


def minmax(seen):
    """All that was seen."""
    return seen.lo, seen.hi


def percentile(seen, share=0.9999):
    """Without the (1 - share) / 2 lowest and the same of the highest values."""
    passed = np.cumsum(seen.counts) / seen.counts.sum()
    edges = np.linspace(seen.lo, seen.hi, BINS + 1)
    return (float(edges[np.searchsorted(passed, (1 - share) / 2, "right")]),
            float(edges[np.searchsorted(passed, (1 + share) / 2) + 1]))


def least_error(seen):
    """The range, shrunk towards 0 at both ends alike, with the least mean square of rounding and clipping errors."""
    edges = np.linspace(seen.lo, seen.hi, BINS + 1)
    values, shares = (edges[:-1] + edges[1:]) / 2, seen.counts / seen.counts.sum()
    shrink = np.linspace(0.3, 1, 71)[:, None]
    lo, hi = shrink * min(seen.lo, 0), shrink * max(seen.hi, 0)
    beyond = np.maximum(values - hi, 0) + np.maximum(lo - values, 0)
    errors_ = np.where(beyond > 0, beyond ** 2, ((hi - lo) / LEVELS) ** 2 / 12) @ shares
    k = int(errors_.argmin())
    return float(lo[k, 0]), float(hi[k, 0])


RECIPES = {"minmax": minmax, "percentile 99.99": percentile, "least error": least_error}


def fold(model):
    """`model` (an onnx.ModelProto) with batch normalisation and constants folded, as inference would do."""
    onnx = errors.need("onnx", "edge")
    from onnxruntime.quantization.shape_inference import quant_pre_process
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, folded = Path(folder, "given.onnx"), Path(folder, "folded.onnx")
        onnx.save(model, given)
        quant_pre_process(str(given), str(folded), skip_symbolic_shape=True)
        return onnx.load(folded)


def observe(model, images, session):
    """{tensor: Activation} of a folded float model on images [N, H, W, 3] uint8, in two passes.

    session: makes something with run(names, inputs) of a serialised model.
    """
    import onnx
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    names = [name for node in model.graph.node for name in node.output if kinds.get(name) == onnx.TensorProto.FLOAT]
    del wider.graph.output[:]
    wider.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    ready = session(wider.SerializeToString())

    def batches():
        for start in range(0, len(images), BATCH):
            yield from zip(names, ready.run(names, {"image": images[start:start + BATCH]}))

    seen = {name: Activation(np.inf, -np.inf, np.zeros(BINS, np.int64)) for name in names}
    for name, values in batches():
        one = seen[name]
        one.lo, one.hi = min(one.lo, float(values.min())), max(one.hi, float(values.max()))
        if values.ndim == 4:
            one.means = (0 if one.means is None else one.means) + values.mean((2, 3), dtype=np.float64).sum(0) / len(images)
    for one in seen.values():
        one.hi = max(one.hi, one.lo + max(1e-3 * abs(one.lo), 1e-12))  # also of a tensor that never changes
    rng = np.random.default_rng(0)
    for name, values in batches():
        one, values = seen[name], values.reshape(-1)
        if values.size > SAMPLE:
            values = values[rng.integers(values.size, size=SAMPLE)]
        one.counts += np.histogram(values, BINS, (one.lo, one.hi))[0]
    return seen


def correct(model, seen, *, keep=(), reduce_range=False):
    """A folded float model whose biases make up for what rounding its weights adds to the mean of each channel.

    bias += sum over the kernel of (w - rounded w) times the mean of its input; padding is left aside. Rounding errors
    of a kernel do not cancel where inputs are all positive, as after ReLU: worst in depthwise convolutions of few
    weights. Nagel et al. 2019 (1906.04721), section 4.2, with means seen instead of derived. keep: names of nodes that
    stay in float, whose weights are not rounded.
    """
    onnx = errors.need("onnx", "edge")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        means = getattr(seen.get(node.input[0]), "means", None) if node.op_type == "Conv" and node.name not in keep else None
        if means is None or len(node.input) < 3:
            continue
        weights, bias = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[1:3])
        groups = len(means) // weights.shape[1]
        inputs = np.repeat(means.reshape(groups, -1), len(weights) // groups, 0)  # [out, in / groups]
        lost = (weights - rounded(weights, reduce_range)).sum((2, 3))
        tensors[node.input[2]].CopyFrom(onnx.numpy_helper.from_array(
            (bias + (lost * inputs).sum(1)).astype(np.float32), node.input[2]))
    return result


def codes(weights, reduce_range=False):
    """(codes [out, ...], scales [out, 1, ...]) of weights in 8 (or 7) signed bits and a scale for each output."""
    levels = 64 if reduce_range else 127
    scale = np.abs(weights).reshape(len(weights), -1).max(1) / levels
    scale = np.where(scale == 0, 1, scale).reshape(-1, *[1] * (weights.ndim - 1))
    return np.round(weights / scale), scale


def rounded(weights, reduce_range=False):
    """Weights [out, ...] as the nearest values that such codes can say."""
    return np.multiply(*codes(weights, reduce_range))


def round_weights(model):
    """A folded float model whose convolutions have weights of 8 bits, an onnx.ModelProto; it computes in float.

    As small a file as with rounded activations, at the speed of float: a runtime folds Cast and Mul of constants when
    it loads them, and would not fold DequantizeLinear. For networks whose activations range too widely
    for 8 bits a tensor (EfficientNet: single values a hundred times the usual one), and whose weights do not.
    """
    onnx = errors.need("onnx", "edge")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = []
    for name in dict.fromkeys(node.input[1] for node in result.graph.node if node.op_type == "Conv"):
        whole, scale = codes(onnx.numpy_helper.to_array(tensors[name]))
        result.graph.initializer.remove(tensors[name])
        result.graph.initializer.extend([onnx.numpy_helper.from_array(whole.astype(np.int8), f"{name}_quantized"),
                                         onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale")])
        nodes += [onnx.helper.make_node("Cast", [f"{name}_quantized"], [f"{name}_whole"], f"{name}_cast", to=onnx.TensorProto.FLOAT),
                  onnx.helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], f"{name}_mul")]
    nodes += result.graph.node
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def quantize(model, ranges, *, keep=(), reduce_range=False):
    """A folded float model as QDQ INT8, an onnx.ModelProto.

    ranges: {tensor: (lo, hi)} of its activations. keep: names of nodes that stay in float. reduce_range:
    weights of 7 bits, for x86 without VNNI, where sums of two products of 8 bits saturate.
    """
    onnx = errors.need("onnx", "edge")
    from onnxruntime import quantization

    class One(quantization.CalibrationDataReader):  # its ranges are overridden, all of them
        def __init__(self):
            shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
            self.left = [{"image": np.zeros(shape, np.uint8)}]

        def get_next(self):
            return self.left.pop() if self.left else None

    overrides = {name: [{"rmin": np.float32(lo), "rmax": np.float32(hi)}] for name, (lo, hi) in ranges.items()}
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, done = Path(folder, "folded.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, given)
        quantization.quantize_static(
            str(given), str(done), One(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            reduce_range=reduce_range, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8, nodes_to_exclude=list(keep),
            extra_options={"TensorQuantOverrides": overrides})
        return onnx.load(done)


def float_nodes(model):
    """Names of the nodes that always stay in float: normalisation, since an 8-bit mean and deviation would be rounded
    twice, and linear layers, since an 8-bit grid of logits is coarser than what decides between them."""
    nodes = list(model.graph.node)
    first = next((k for k, node in enumerate(nodes) if node.op_type == "Conv"), 0)
    return [node.name for k, node in enumerate(nodes) if k < first or node.op_type in ("Gemm", "MatMul")]


def groups(model, count):
    """The names of all convolutions in up to `count` runs of neighbours."""
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return [part.tolist() for part in np.array_split(names, min(count, len(names)))]


@contextlib.contextmanager
def quiet():
    """Without the advice that the quantiser logs."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
