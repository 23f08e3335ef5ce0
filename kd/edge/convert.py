"""Conversion of a network to a file that runs on other machines: ONNX."""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from kd import errors, onnx_model
from kd.errors import UserError
from kd.train import networks
from kd.train.weights import fingerprint

MINIMUM_TORCH = (2, 6)  # older exporters cannot write a single file


class Deployed(torch.nn.Module):
    """A network with its normalisation inside: uint8 images [N, S, S, 3] -> logits [N, C].

    mean, std: three numbers each, of pixels in [0, 1]. size: S, in pixels.
    """

    def __init__(self, model, mean, std, size):
        super().__init__()
        self.model = model
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # one value for each number of an image row: ONNX Runtime multiplies whole rows ten times faster than pixels
        self.register_buffer("scale", (1 / (255 * std)).float().repeat(size).view(1, 1, size, 3))
        self.register_buffer("shift", (-mean / std).float().repeat(size).view(1, 1, size, 3))
        # set explicitly: in the layout that permute() leaves, pooling is exported as a dozen nodes
        self.layout = torch.contiguous_format

    def forward(self, image):
        pixels = image.float() * self.scale + self.shift
        return self.model(pixels.permute(0, 3, 1, 2).contiguous(memory_format=self.layout))

    def to_channels_last(self):
        """Store weights and activations in the layout channels last, in place."""
        self.layout = torch.channels_last
        for parameter in self.model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def deployed(model, content, size=None):
    """Deployed of a network and the content of its checkpoint, in eval mode, on the CPU, without gradients.

    size: the side of the images in pixels, if it is not that of the checkpoint.
    """
    input = content["input"]
    network = Deployed(model.cpu(), input["mean"], input["std"], size or input["size"])
    return network.eval().requires_grad_(False)


def describe(model, content, evaluated=None, caution=""):
    """The metadata of an exported file: a dict of plain values.

    content: of the checkpoint. evaluated: the content of metrics.json, which has temperature and thresholds, or None.
    caution: of the data set (see kd.data.dataset.Dataset).
    """
    evaluated = evaluated or {}
    keys = ("name", "kind", "class", "threshold", "promised", "asked", "assurance")
    points = evaluated.get("operating_points", ())
    provenance = _without_local_paths({key: value for key, value in content["provenance"].items() if key != "seen"})
    provenance.update(arch=content["arch"], weights=fingerprint(content["state_dict"]))
    return {
        "format": onnx_model.FORMAT,
        "class_names": content["class_names"],
        "input": content["input"],
        "temperature": (evaluated.get("calibration") or {}).get("temperature"),
        "operating_points": [{key: point.get(key) for key in keys} for point in points],
        "provenance": provenance,
        "caution": caution,
        **networks.facts(model, content["input"]["size"]),
    }


def _without_local_paths(value, key=""):
    """What a provenance says, its teacher and the file of --init by name: an exported file goes to other people."""
    if isinstance(value, dict):
        return {key: _without_local_paths(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_local_paths(part, key) for part in value]
    return _name(value) if key in ("teacher", "file") and isinstance(value, str) else value


def _name(path):
    """STUDY/MODEL/SEED and what is below, of a path that has these; else its last part. Windows' paths are paths too.
    """
    parts = [part for part in re.split(r"[/\\]", path) if part]
    seeds = [k for k, part in enumerate(parts) if re.fullmatch(r"seed_\d+", part)]
    return "/".join(parts[max(seeds[-1] - 2, 0):] if seeds else parts[-1:])


def to_onnx(network, size, metadata):
    """A Deployed as an onnx.ModelProto with a dynamic batch size.

    size: the side of its images in pixels. metadata: as describe() returns it. Raises UserError without onnxscript or
    onnx, and for torch before MINIMUM_TORCH.
    """
    errors.need("onnxscript", "edge")
    onnx = errors.need("onnx", "edge")
    if tuple(map(int, torch.__version__.split(".")[:2])) < MINIMUM_TORCH:
        raise UserError(f"torch {torch.__version__} is too old for this export to ONNX",
                        "Install torch 2.6 or newer.")
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
    """Replace the metadata of an onnx.ModelProto by `metadata`, a dict as kd.onnx_model.encode() takes it."""
    del model.metadata_props[:]
    for key, value in onnx_model.encode(metadata).items():
        model.metadata_props.add(key=key, value=value)


def strip(model):
    """Remove the exporter's notes from an onnx.ModelProto: they name source files of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def pool(model):
    """Replace means over height and width by GlobalAveragePool, which has an integer kernel, in an onnx.ModelProto."""
    import onnx
    from onnx import helper, numpy_helper
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    for k, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
            continue
        if len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        flat = not attributes.get("keepdims", 1)
        pooled = f"{node.output[0]}_pooled" if flat else node.output[0]
        nodes = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)]
        if flat:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1))
        model.graph.node.remove(node)
        for new in reversed(nodes):
            model.graph.node.insert(k, new)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.CopyFrom(inferred)


@torch.no_grad()
def logits(network, images, batch=64):
    """Logits [N, C] float32 of a Deployed, or of another torch module, for uint8 images [N, S, S, 3]."""
    outputs = []
    for k in range(0, len(images), batch):
        part = torch.from_numpy(np.ascontiguousarray(images[k:k + batch]))
        outputs.append(network(part).float().numpy())
    return np.concatenate(outputs)


@contextlib.contextmanager
def silent():
    """Suppress the progress messages and deprecation warnings of the exporters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
