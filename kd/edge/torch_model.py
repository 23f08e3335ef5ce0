"""A checkpoint as a network that benchmark.py can time, for each way in which torch runs it."""

from dataclasses import dataclass

import numpy as np
import torch

from kd import image, timing
from kd.edge import convert
from kd.train import checkpoint, networks


@dataclass
class Ready:
    """A network on its device: `network` maps uint8 images [N, S, S, 3] to logits [N, C]."""

    network: object
    device: torch.device
    input: dict  # how pixels are made of an image file, as kd.image.evaluation_pixels() takes it
    facts: dict  # parameters, params_bytes, macs, as networks.facts() has them; None for one that is not known

    @property
    def size(self):
        """S: the side of the images, in pixels."""
        return self.input["size"]

    @torch.inference_mode()
    def logits(self, images):
        """Logits [N, C] float32 of a uint8 array [N, S, S, 3]."""
        return self.network(torch.from_numpy(np.ascontiguousarray(images)).to(self.device)).float().cpu().numpy()

    def pixels(self, source):
        """uint8 [S, S, 3] of an image file, as training and evaluation see it."""
        return image.evaluation_pixels(source, self.input)

    def timer(self, images):
        """A function that runs one query, whose images are on the device already, and returns its seconds."""
        images = torch.from_numpy(images).to(self.device)
        if self.device.type == "cuda":
            return lambda: _seconds_by_events(self.network, images)
        return torch.inference_mode()(timing.stopwatch(lambda: self.network(images)))

    def peak_memory(self, images):
        """The peak memory of tensors on a CUDA device during a query, in bytes; None for other devices."""
        if self.device.type != "cuda":
            return None
        timer = self.timer(images)
        timer()
        torch.cuda.reset_peak_memory_stats(self.device)
        timer()
        return torch.cuda.max_memory_allocated(self.device)


@torch.inference_mode()
def _seconds_by_events(network, images):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(images.device)
    begin.record()
    network(images)
    end.record()
    torch.cuda.synchronize(images.device)
    return begin.elapsed_time(end) / 1e3


def open_file(path, backend, registry, *, device="cpu", threads=1, size=None):
    """Ready of a checkpoint.

    backend: "eager", "channels_last", "bf16" or "compiled". size: the side of the images in pixels, if it is not that
    of the checkpoint. Raises UserError for a damaged file, a device that is not available, a missing compiler, and a
    size that the network cannot take.
    """
    torch.set_num_threads(threads)
    device = networks.device(device)
    if backend == "compiled":
        networks.check_compiler(device)
    model, content = checkpoint.load(path, registry)
    input = content["input"]
    size = size or input["size"]
    networks.check_input(model, content["arch"], size, len(content["class_names"]))
    facts = networks.facts(model, size)
    network = prepare(convert.deployed(model, content, size), backend, device)
    resize = input["resize"] if size == input["size"] else image.resize_for(size)
    return Ready(network, device, {**input, "size": size, "resize": resize}, facts)


def prepare(network, backend, device):
    """A kd.edge.convert.Deployed on a device, laid out, cast or compiled for a backend (see open_file)."""
    network = network.to(device)
    if backend in ("channels_last", "bf16"):
        network.to_channels_last()
    if backend == "bf16":
        return _Bf16(network, device)
    return torch.compile(network) if backend == "compiled" else network


class _Bf16:
    def __init__(self, network, device):
        self.network, self.device_type = network, device.type

    def __call__(self, images):
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network(images)
