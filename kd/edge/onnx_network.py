"""An ONNX graph as a torch module, so that a quantised one can be trained: the operators of convolutional networks.

A pair of QuantizeLinear and DequantizeLinear rounds as the file does. Gradients pass the rounding as if it were not
there (straight-through estimator, Bengio et al. 2013, 1308.3432). The scales of activations are learned (LSQ, Esser et
al. 2020, 1902.08153); those of weights follow from the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kd import errors
from kd.edge import quantize
from kd.errors import UserError


class RoundActivation(torch.autograd.Function):
    """x rounded to scale * (code - zero_point) with codes from 0 to 255. scale: [1]; zero_point: an int."""

    @staticmethod
    def forward(ctx, x, scale, zero_point):
        steps = x / scale  # torch.fake_quantize_per_tensor_affine() is several times slower
        codes = steps.round().clamp_(-zero_point, 255 - zero_point)
        ctx.save_for_backward(steps, codes)
        ctx.zero_point = zero_point
        return codes * scale

    @staticmethod
    def backward(ctx, gradient):
        steps, codes = ctx.saved_tensors
        inside = steps.clamp(-ctx.zero_point, 255 - ctx.zero_point) == steps
        # d rounded / d scale (LSQ, eq. 3): the rounding error in steps, or the code where x is clipped
        slope = torch.where(inside, codes - steps, codes)
        return gradient * inside, (gradient * slope).sum().reshape(1), None


class OnnxNetwork(torch.nn.Module):
    """A graph behind the normalisation. The weights and biases of the float graph are its parameters.

    model: a float graph, an onnx.ModelProto, folded. quantized: what kd.edge.quantize.quantize() made of it, which is
    computed instead of it; full: as there. UserError for a graph with operators that are not in OPERATORS.
    """

    def __init__(self, model, quantized, full=False):
        super().__init__()
        onnx = errors.need("onnx", "edge")
        nodes = [Node(node.op_type, list(node.input), list(node.output), {
            attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute})
            for node in quantized.graph.node]
        first = next(node for node in model.graph.node if node.op_type == "Conv")
        self.entry = first.input[0]  # the tensor behind the normalisation
        nodes = _without_ancestors(nodes, self.entry)
        strange = sorted({node.kind for node in nodes} - {*OPERATORS, "QuantizeLinear", "DequantizeLinear"})
        if strange:
            raise UserError(f"this network cannot be trained with rounding: it has the operators {', '.join(strange)}",
                            "Leave out --qat.")
        self.full = full
        constants, weights = ({tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
                               for tensor in graph.initializer} for graph in (quantized.graph, model.graph))
        self.depthwise = {node.input[1] for node in model.graph.node
                          if node.op_type == "Conv" and quantize.is_depthwise(node, weights[node.input[1]])}
        self.nodes, self.constants = [], {}
        self.zero_points = {}  # {name of a scale: int}
        self.parameter_of, self.scale_of = {}, {}  # {name in the float graph, of a scale: position in the lists}
        self.trained, self.log_scales = torch.nn.ParameterList(), torch.nn.ParameterList()
        for node in nodes:
            name = node.inputs[0]
            if node.kind == "QuantizeLinear":
                scale = node.inputs[1]
                if scale not in self.scale_of:
                    self.scale_of[scale] = len(self.log_scales)
                    self.log_scales.append(torch.nn.Parameter(constants[scale].reshape(1).log()))
                    self.zero_points[scale] = int(constants[node.inputs[2]])
            elif node.kind == "DequantizeLinear" and name in constants:  # a weight or a bias
                self._add_parameter(name.removesuffix("_quantized"), weights)
            else:
                for name in constants.keys() & node.inputs:
                    if name in weights and weights[name].is_floating_point() and weights[name].dim():
                        self._add_parameter(name, weights)
                    else:  # a shape, a bound
                        self.constants[name] = constants[name]
            self.nodes.append(node)

    def _add_parameter(self, name, weights):
        if name not in self.parameter_of:
            self.parameter_of[name] = len(self.trained)
            self.trained.append(torch.nn.Parameter(weights[name]))

    def forward(self, images):
        """Logits [N, C] of normalised images float [N, 3, S, S]."""
        values = {self.entry: images, "": None}
        for node in self.nodes:
            if node.kind == "QuantizeLinear":
                values[node.outputs[0]] = self._rounded(values[node.inputs[0]], node.inputs[1])
            elif node.kind == "DequantizeLinear":
                name = node.inputs[0]
                values[node.outputs[0]] = values[name] if name in values else self._rounded_weight(
                    name.removesuffix("_quantized"))
            else:
                inputs = [values[name] if name in values else self._constant(name, images.device)
                          for name in node.inputs]
                result = OPERATORS[node.kind](node.attributes, *inputs)
                values.update(zip(node.outputs, result if isinstance(result, (list, tuple)) else [result]))
        return values["logits"]

    def _constant(self, name, device):
        return self.trained[self.parameter_of[name]] if name in self.parameter_of else self.constants[name].to(device)

    def _rounded(self, x, scale):
        return RoundActivation.apply(x, self.log_scales[self.scale_of[scale]].exp(), self.zero_points[scale])

    def _rounded_weight(self, name):
        """A weight, rounded as kd.edge.quantize.codes() does; a bias, whose 32 bits are as good as float, as it is."""
        weight = self.trained[self.parameter_of[name]]
        if weight.dim() < 2:
            return weight
        _, scales = quantize.codes(weight.detach().cpu().numpy(), depthwise=name in self.depthwise, full=self.full)
        scales = torch.from_numpy(scales.ravel()).to(weight)
        return torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros_like(scales, dtype=torch.int32), 0,
                                                      -127, 127)

    def weights(self):
        """{name in the float graph: array}."""
        return {name: self.trained[k].detach().cpu().numpy().copy() for name, k in self.parameter_of.items()}

    def ranges(self):
        """{name of a tensor: (lo, hi)} of the activations that are rounded."""
        result = {}
        for name, k in self.scale_of.items():
            scale, zero_point = self.log_scales[k].exp().item(), self.zero_points[name]
            result[name.removesuffix("_scale")] = (-zero_point * scale, (255 - zero_point) * scale)
        return result


@dataclass
class Node:
    """An operator of a graph, with the names of its inputs and outputs."""

    kind: str
    inputs: list
    outputs: list
    attributes: dict


def _without_ancestors(nodes, tensor):
    """The nodes of which this tensor does not depend, in their order."""
    needed = {tensor}
    kept = []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
        else:
            kept.append(node)
    return kept[::-1]


def _padded(x, attributes, value=0.0):
    """(x, padding) for a window: padded by F.pad where its ends differ."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(attributes, x, weight, bias=None):
    x, padding = _padded(x, attributes)
    return F.conv2d(x, weight, bias, attributes.get("strides", (1, 1)), padding, attributes.get("dilations", (1, 1)),
                    attributes.get("group", 1))


def _max_pool(attributes, x):
    x, padding = _padded(x, attributes, float("-inf"))
    return F.max_pool2d(x, attributes["kernel_shape"], attributes.get("strides", (1, 1)), padding,
                        attributes.get("dilations", (1, 1)), bool(attributes.get("ceil_mode", 0)))


def _average_pool(attributes, x):
    x, padding = _padded(x, attributes)
    return F.avg_pool2d(x, attributes["kernel_shape"], attributes.get("strides", (1, 1)), padding,
                        bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0)))


def _reshape(attributes, x, shape):
    return x.reshape([x.shape[k] if side == 0 else side for k, side in enumerate(shape.tolist())])


def _gemm(attributes, a, b, c=None):
    a, b = (matrix.T if attributes.get(flag, 0) else matrix for matrix, flag in ((a, "transA"), (b, "transB")))
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _split(attributes, x, sizes=None):
    axis = attributes.get("axis", 0)
    if sizes is None:
        return torch.tensor_split(x, attributes["num_outputs"], axis)
    return torch.split(x, sizes.tolist(), axis)


# Operators of ONNX (github.com/onnx/onnx, docs/Operators.md): functions of the attributes and the inputs.
OPERATORS = {
    "Add": lambda _, a, b: a + b,
    "AveragePool": _average_pool,
    "Clip": lambda _, x, least=None, largest=None: torch.clamp(x, least, largest),
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gelu": lambda attributes, x: F.gelu(x, approximate=attributes.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda attributes, x: torch.clamp(
        attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0, 1),
    "HardSwish": lambda _, x: F.hardswish(x),
    "LayerNormalization": lambda attributes, x, weight, bias=None: F.layer_norm(
        x, weight.shape, weight, bias, attributes.get("epsilon", 1e-5)),
    "MatMul": lambda _, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda _, a, b: a * b,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Split": _split,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
}
