"""From a checkpoint to files that run elsewhere: ONNX, and TorchScript as a legacy."""

import contextlib
import copy
import io
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from kd import errors, onnx_model
from kd.errors import UserError
from kd.train import networks
from kd.train.weights import fingerprint

LEAST = (2, 6)  # of torch: before it the exporter could not write one file


class Deployed(torch.nn.Module):
    """uint8 [N, S, S, 3] -> logits [N, C]: a network with its normalisation inside."""

    def __init__(self, model, mean, std, size):
        super().__init__()
        self.model = model
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # a whole row each: ONNX Runtime multiplies rows quickly, and pixels of three numbers ten times slower
        self.register_buffer("scale", (1 / (255 * std)).float().repeat(size).view(1, 1, size, 3))
        self.register_buffer("shift", (-mean / std).float().repeat(size).view(1, 1, size, 3))
        self.layout = torch.contiguous_format  # not as the permutation leaves it: pooling would be exported as a dozen nodes

    def forward(self, image):
        pixels = image.float() * self.scale + self.shift
        return self.model(pixels.permute(0, 3, 1, 2).contiguous(memory_format=self.layout))

    def to_channels_last(self):
        self.layout = torch.channels_last
        for parameter in self.model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def deployed(model, content, size=None):
    """Deployed of a network and the content of its checkpoint, in eval mode on the CPU. size: another than its own."""
    given = content["input"]
    return Deployed(model.cpu(), given["mean"], given["std"], size or given["size"]).eval().requires_grad_(False)


def describe(model, content, evaluated=None):
    """The metadata of an exported file.

    evaluated: the content of metrics.json, whose temperature and thresholds go along, or None.
    """
    evaluated = evaluated or {}
    size = content["input"]["size"]
    keys = ("name", "kind", "class", "threshold", "promised")
    return {
        "format": onnx_model.FORMAT, "class_names": content["class_names"], "input": content["input"],
        "temperature": (evaluated.get("calibration") or {}).get("temperature"),
        "operating_points": [{key: point.get(key) for key in keys} for point in evaluated.get("operating_points", ())],
        "provenance": {**{key: value for key, value in content["provenance"].items() if key != "seen"},
                       "arch": content["arch"], "weights": fingerprint(content["state_dict"])},
        "parameters": networks.parameters(model), "params_bytes": networks.size_in_bytes(model), "macs": networks.count_macs(model, size)}


def to_onnx(network, size, metadata):
    """Deployed as an onnx.ModelProto with a dynamic batch."""
    errors.need("onnxscript", "edge")
    onnx = errors.need("onnx", "edge")
    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST:
        raise UserError(f"torch {torch.__version__} cannot export to ONNX as this needs it", "Install torch 2.6 or newer.")
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with silent():
        program = torch.onnx.export(network, (example,), dynamo=True, input_names=["image"], output_names=["logits"],
                                    dynamic_shapes={"image": {0: "N"}}, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder, "model.onnx"), external_data=False)
        model = onnx.load(Path(folder, "model.onnx"))
    strip(model)
    pool(model)
    label(model, metadata)
    onnx.checker.check_model(model)
    return model


def label(model, metadata):
    """Write metadata, as kd.onnx_model.encode takes it, into an onnx.ModelProto, in place of any other."""
    del model.metadata_props[:]
    for key, value in onnx_model.encode(metadata).items():
        model.metadata_props.add(key=key, value=value)


def strip(model):
    """Leave out what the exporter notes about each node: where on this machine its source stands."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def pool(model):
    """Means over height and width become GlobalAveragePool, which has an integer kernel."""
    import onnx
    from onnx import helper, numpy_helper
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    for k, node in reversed(list(enumerate(model.graph.node))):
        given = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants or ranks.get(node.input[0]) != 4:
            continue
        axes = sorted(axis % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist())
        if axes != [2, 3]:
            continue
        flat = not given.get("keepdims", 1)
        pooled = f"{node.output[0]}_pooled" if flat else node.output[0]
        new = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)]
        if flat:
            new.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1))
        model.graph.node.remove(node)
        for one in reversed(new):
            model.graph.node.insert(k, one)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.CopyFrom(inferred)


def to_torchscript(network, size, metadata):
    """Deployed as the bytes of a TorchScript file; metadata in its extra file `metadata.json`."""
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with silent(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(network, example))
        torch.jit.save(traced, buffer, _extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def to_fx(network, images, size, metadata):
    """Deployed as the bytes of a TorchScript file with integer kernels of x86.

    images: uint8 [n, S, S, 3] that the ranges are taken from. Normalisation and linear layers stay in float, as in
    the ONNX file. torch has deprecated FX quantisation; a torch that cannot do it is a UserError.
    """
    try:
        from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
    except ImportError:
        raise UserError(f"torch {torch.__version__} has no FX quantisation any more", "Use --formats int8.") from None
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UserError("this torch has no integer kernels of x86, which FX quantisation needs", "Use --formats int8.")
    prepared = copy.deepcopy(network)
    recipe = get_default_qconfig_mapping("x86").set_object_type(torch.nn.Linear, None)
    with silent():
        prepared.model = quantize_fx.prepare_fx(prepared.model, recipe, (torch.zeros(2, 3, size, size),))
        logits(prepared, images)
        prepared.model = quantize_fx.convert_fx(prepared.model)
        return to_torchscript(prepared.eval(), size, metadata)


@torch.no_grad()
def logits(network, images, batch=64):
    """[N, C] float32 of a Deployed, or of TorchScript, on uint8 images [N, S, S, 3]."""
    return np.concatenate([network(torch.from_numpy(np.ascontiguousarray(images[k:k + batch]))).float().numpy()
                           for k in range(0, len(images), batch)])


@contextlib.contextmanager
def silent():
    """Without the progress and the deprecations that the exporters print."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
