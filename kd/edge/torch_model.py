"""The ways in which torch runs a network, as something that benchmark.py can time."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kd import image, timing
from kd.edge import convert
from kd.errors import UserError
from kd.train import checkpoint, networks


@dataclass
class Ready:
    """A network on its device: `network` maps uint8 [N, S, S, 3] to logits."""

    network: object
    device: torch.device
    size: int
    resize: int
    facts: dict  # parameters, params_bytes, macs; None where they are not known

    @torch.inference_mode()
    def logits(self, images):
        """[N, C] float32 of a uint8 array [N, S, S, 3]."""
        return self.network(torch.from_numpy(np.ascontiguousarray(images)).to(self.device)).float().cpu().numpy()

    def pixels(self, source):
        return image.evaluation_pixels(source, self.resize, self.size)

    def timer(self, images):
        """A function that runs one query, its images already on the device, and returns its seconds."""
        images = torch.from_numpy(images).to(self.device)
        if self.device.type == "cuda":
            return lambda: _by_events(self.network, images)
        return torch.inference_mode()(timing.stopwatch(lambda: self.network(images)))

    def peak_memory(self, images):
        """The largest memory that tensors held on a CUDA device during a query, bytes; None on others."""
        if self.device.type != "cuda":
            return None
        timer = self.timer(images)
        timer()
        torch.cuda.reset_peak_memory_stats(self.device)
        timer()
        return torch.cuda.max_memory_allocated(self.device)


@torch.inference_mode()
def _by_events(network, images):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(images.device)
    begin.record()
    network(images)
    end.record()
    torch.cuda.synchronize(images.device)
    return begin.elapsed_time(end) / 1e3


def open_file(path, backend, registry, *, device="cpu", threads=1, size=None):
    """Ready of a checkpoint, or of a TorchScript file that export.py wrote. size: another than the checkpoint's."""
    torch.set_num_threads(threads)
    device = networks.device(device)
    if backend == "compiled":
        networks.check_compiler(device)
    if backend == "torchscript":
        return _torchscript(Path(path), device, size)
    model, content = checkpoint.load(path, registry.create)
    given = content["input"]
    size = size or given["size"]
    networks.check_input(model, content["arch"], size, len(content["class_names"]))
    facts = {"parameters": networks.parameters(model), "params_bytes": networks.size_in_bytes(model), "macs": networks.count_macs(model, size)}
    network = prepare(convert.deployed(model, content, size), backend, device)
    resize = given["resize"] if size == given["size"] else image.resize_for(size)
    return Ready(network, device, size, resize, facts)


def prepare(network, backend, device):
    """A kd.edge.convert.Deployed made ready for a backend."""
    network = network.to(device)
    if backend in ("channels_last", "bf16"):
        network.to_channels_last()
    if backend == "bf16":
        return _Bf16(network, device)
    return torch.compile(network) if backend == "compiled" else network


class _Bf16:
    def __init__(self, network, device):
        self.network, self.kind = network, device.type

    def __call__(self, images):
        with torch.autocast(self.kind, torch.bfloat16):
            return self.network(images)


def _torchscript(path, device, size):
    extra = {"metadata.json": ""}
    try:
        with convert.silent():
            network = torch.jit.load(path, map_location=device, _extra_files=extra)
        told = json.loads(extra["metadata.json"])
        own = told["input"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load {path}: {str(error).strip().splitlines()[0] if str(error) else 'it is empty'}",
                        "Export it anew with export.py --formats torchscript.") from None
    if size not in (None, own["size"]):
        raise UserError(f"{path} takes images of {own['size']} px", "Leave out --size, or name the checkpoint.")
    return Ready(network.eval(), device, own["size"], own["resize"],
                 {key: told.get(key) for key in ("parameters", "params_bytes", "macs")})
