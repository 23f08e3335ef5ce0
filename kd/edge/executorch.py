"""A network as ExecuTorch programs (.pte) for XNNPACK: float, and INT8 by torchao's quantisation of exported graphs.

XNNPACK has integer kernels for activations of 8 bits with one scale a tensor, and weights of 8 bits with one scale for
each channel (executorch, docs: backends/xnnpack/xnnpack-quantization). There are none for activations of 16 bits, for
activations with a scale for each channel, nor for rounded weights alone. Products are summed in 32 bits on every
processor, so that weights of 8 bits saturate on none.
"""

import dataclasses

import torch

from kd import errors
from kd.edge import convert, parity
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
    the network after quantisation-aware training, a Deployed, if there was one; then it is the one that is quantised.
    Recipes differ in how ranges are chosen, and where there are gates (squeeze-and-excitation) in whether these stay in
    float.
    """
    network, size = trained or checks.source.network, checks.source.size
    images, reference, attempts = checks.source.pixels("train", calibration), checks.reference["val"], []
    gates = [node.name for node in _export(network, size).module().graph.nodes if is_gate(node)]
    with progress(description="INT8 recipes of ExecuTorch", leave=False) as bar:
        for in_float in [[], gates] if gates else [[]]:
            for ranges in RANGES:
                quantized = quantize(network, size, images, ranges, in_float)
                logits = convert.logits(quantized, checks.images["val"], BATCH)
                recipe = {"ranges": ranges, "float": in_float, "trained": trained is not None,
                          "val_flips": parity.flips(reference, logits),
                          "val_divergence": parity.divergence(reference, logits)}
                attempts.append((recipe, quantized))
                bar.update()
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
