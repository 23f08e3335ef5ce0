"""A network as ExecuTorch programs (.pte) for XNNPACK: float, and INT8 by torchao's quantisation of exported graphs, or
by quantisation-aware training, whose graph is that of the ONNX file.

XNNPACK has integer kernels for activations of 8 bits with one scale a tensor, and weights of 8 bits with one scale for
each channel (executorch, docs: backends/xnnpack/xnnpack-quantization). There are none for activations of 16 bits, for
activations with a scale for each channel, nor for rounded weights alone. Products are summed in 32 bits on every
processor, so that weights of 8 bits saturate on none.
"""

import dataclasses

import torch

from kd import errors
from kd.edge import convert, parity
from kd.edge.onnx_network import OnnxNetwork
from kd.errors import progress
from kd.executorch_model import BATCH

RANGES = {"minmax": "MinMaxObserver", "least error": "HistogramObserver"}  # of activations: torchao's classes


def to_executorch(network, size):
    """A kd.edge.convert.Deployed, or the graph of quantize(), as the bytes of a program for 1 to BATCH images.

    size: the side of its images in pixels. UserError without executorch.
    """
    errors.need("executorch", "executorch")
    with convert.silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        program = to_edge_transform_and_lower(_export(network, size), partitioner=[XnnpackPartitioner()])
        return bytes(program.to_executorch().buffer)


def _export(network, size):
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("N", min=1, max=BATCH)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)


def int8(checks, calibration, max_flips, trained=None):
    """(program as bytes, {"recipe", "recipes"}) of the INT8 network whose probabilities on validation are nearest to
    the checkpoint's, of those that change at most `max_flips` of the labels if there are any.

    checks: a kd.edge.checked_export._Checks. calibration: how many training images the ranges are taken from. trained:
    what checked_export.int8() returns of quantisation-aware training: a further recipe. The others differ in how ranges
    are chosen, and where there are gates (squeeze-and-excitation) in whether these stay in float.
    """
    network, size = checks.source.network, checks.source.size
    images, reference, attempts = checks.source.pixels("train", calibration), checks.reference["val"], []
    gates = [node.name for node in _export(network, size).module().graph.nodes if is_gate(node)]

    def judge(quantized, **recipe):
        logits = convert.logits(quantized, checks.images["val"], BATCH)
        attempts.append(({**recipe, "val_flips": parity.flips(reference, logits),
                          "val_divergence": parity.divergence(reference, logits)}, quantized))
        bar.update()

    with progress(description="INT8 recipes of ExecuTorch", leave=False) as bar:
        for in_float in [[], gates] if gates else [[]]:
            for ranges in RANGES:
                judge(quantize(network, size, images, ranges, in_float), ranges=ranges, float=in_float)
        if trained:
            recipe, *models = trained
            judge(as_trained(convert.deployed(Int8Network(*models), checks.source.metadata), size), **recipe)
    recipe, quantized = min(attempts, key=lambda attempt: (attempt[0]["val_flips"] > max_flips,
                                                           attempt[0]["val_divergence"]))
    return to_executorch(quantized, size), {"recipe": recipe, "recipes": [recipe for recipe, _ in attempts]}


def quantize(network, size, images, ranges, in_float=()):
    """The INT8 network as a torch.fx.GraphModule with pairs of operators that quantise and dequantise.

    network, size: as for to_executorch(). images: uint8 [n, S, S, 3], from which the ranges of activations are taken,
    in the way called `ranges`, one of RANGES. in_float: names of nodes of the exported graph that stay in float. So do
    normalisation and linear layers always, as in the ONNX file.
    """
    errors.need("executorch", "executorch")
    with convert.silent():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        observer = getattr(pt2e, RANGES[ranges]).with_args(eps=2 ** -12)
        activations = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
        config = dataclasses.replace(config, input_activation=activations, output_activation=activations)
        graph = _export(network, size).module()
        in_float = {*float_nodes(graph), *in_float}
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
        quantizer.set_filter_function(lambda node: node.name not in in_float)
        prepared = prepare_pt2e(graph, quantizer)
        convert.logits(prepared, images, BATCH)
        return convert_pt2e(prepared)


class Int8Network(OnnxNetwork):
    """The quantised graph with torch's operators that quantise and dequantise; weights and ranges are the file's.

    model, quantized: as for OnnxNetwork. Codes of activations are 128 lower than in ONNX, where they are unsigned.
    """

    def __init__(self, model, quantized):
        super().__init__(model, quantized)
        errors.need("executorch.exir", "executorch")  # registers the operators
        onnx = errors.need("onnx", "edge")
        tensors = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
                   for tensor in quantized.graph.initializer}
        self.steps = {scale: tensors[scale].item() for scale in self.scale_of}
        for name, k in self.parameter_of.items():
            codes = tensors.get(f"{name}_quantized")
            if codes is not None and codes.dtype == torch.int8:
                self.register_buffer(f"codes_{k}", codes)
                self.register_buffer(f"scales_{k}", tensors[f"{name}_scale"].reshape(-1))
                self.register_buffer(f"zeros_{k}", torch.zeros(len(codes), dtype=torch.int64))

    def _rounded(self, x, scale):
        step, zero_point = self.steps[scale], self.zero_points[scale] - 128
        codes = torch.ops.quantized_decomposed.quantize_per_tensor(x, step, zero_point, -128, 127, torch.int8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(codes, step, zero_point, -128, 127, torch.int8)

    def _rounded_weight(self, name):
        k = self.parameter_of[name]
        if not hasattr(self, f"codes_{k}"):  # a bias, which XNNPACK rounds to 32 bits
            return self.trained[k]
        codes, scales, zeros = (getattr(self, f"{what}_{k}") for what in ("codes", "scales", "zeros"))
        return torch.ops.quantized_decomposed.dequantize_per_channel(codes, scales, zeros, 0, -127, 127, torch.int8)


def as_trained(network, size):
    """A Deployed of an Int8Network as a torch.fx.GraphModule for to_executorch(): XNNPACK has kernels for patterns that
    begin with operators that dequantise, and so each reader of a tensor gets one of its own.
    """
    graph = _export(network, size).module()
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            for reader in list(node.users)[1:]:
                with graph.graph.inserting_before(reader):
                    reader.replace_input_with(node, graph.graph.node_copy(node))
    graph.recompile()
    return graph


def float_nodes(graph):
    """The names of the nodes of an exported torch.fx.GraphModule that always stay in float."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]  # not the weights, which come first
    first = next((k for k, node in enumerate(nodes) if node.target is torch.ops.aten.conv2d.default), 0)
    return [node.name for k, node in enumerate(nodes) if k < first or node.target is torch.ops.aten.linear.default]


def is_gate(node):
    """Whether a node of an exported graph belongs to squeeze-and-excitation: it computes, or multiplies a map with, one
    value for each channel.
    """
    inputs = [tuple(tensor.meta["val"].shape[2:]) for tensor in node.all_input_nodes if "val" in tensor.meta]
    if node.target is torch.ops.aten.conv2d.default:
        return inputs[0] == (1, 1)
    return node.target is torch.ops.aten.mul.Tensor and len(set(inputs)) > 1 and (1, 1) in inputs
