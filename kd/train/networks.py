"""Around networks: the stem for small images, pretrained weights, and reading stages."""

from dataclasses import dataclass

import torch
import torch.fx
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from kd.errors import UserError
from kd.image import MEAN, STD


@dataclass
class Network:
    """A model with its registered name, and what the registry knows of its inside and its input.

    mean, std: by channel, of pixels in [0, 1], as its weights expect them. fingerprint: of the weights that it came with, where it came from a checkpoint.
    """

    model: torch.nn.Module
    arch: str
    stem: str
    stages: tuple = ()
    head: str = None
    fingerprint: str = None
    mean: tuple = MEAN
    std: tuple = STD


SMALL = 32  # inputs up to this many pixels keep their resolution in the first stage


def resolve_stem(stem, size, small=True):
    """`auto` is `small` up to 32 px, where an ImageNet stem leaves one pixel in the last stage.

    small: whether the architecture has a small stem.
    """
    if stem != "auto":
        return stem
    return "small" if small and size <= SMALL else "imagenet"


def unit_stride(*convolutions):
    """Let these convolutions keep their resolution."""
    for convolution in convolutions:
        convolution.stride = (1, 1)


class _Tracer(torch.fx.Tracer):
    """Convolutions of any kind are one step, whatever their forward does."""

    def is_leaf_module(self, module, path):
        return isinstance(module, torch.nn.Conv2d) or super().is_leaf_module(module, path)


def fold_batch_norm(model):
    """Put each batch normalisation that follows a convolution into that convolution, in place; for eval mode alone.

    The network computes the same with fewer passes over memory (Jacob et al. 2018, 1712.05877, sec. 3.2).
    Where its graph cannot be followed it is left as it is. Returns the number of folded layers.
    """
    modules = dict(model.named_modules())
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception:  # tracing runs any user's forward on symbols, and may raise anything
        return 0
    calls = [node.target for node in nodes if node.op == "call_module"]
    folded = 0
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if (getattr(before, "op", None) == "call_module" and isinstance(modules[node.target], torch.nn.BatchNorm2d)
                and isinstance(modules[before.target], torch.nn.Conv2d) and len(before.users) == 1
                and calls.count(node.target) == calls.count(before.target) == 1):
            for path, new in ((before.target, fuse_conv_bn_eval(modules[before.target], modules[node.target])),
                              (node.target, torch.nn.Identity())):
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, new)
            folded += 1
    return folded


class FeatureExtractor:
    """Runs a network and keeps what passed its stages and went into its head.

    stages: module paths whose outputs [N, C, H, W] are kept in `features`.
    head: module path whose input [N, D] is kept in `pooled`.
    compiled: the number of images for which the network is compiled, in each of its modes; other numbers run as they are.
    Nothing is kept when the network is called by itself.
    """

    def __init__(self, model, stages=(), head=None, compiled=None):
        self.model, self.features, self.pooled, self._reading = model, [], None, False
        self._size, self._compiled = compiled, torch.compile(self._look, dynamic=False) if compiled else None
        modules = dict(model.named_modules())
        self._hooks = [modules[path].register_forward_hook(self._keep_feature) for path in stages]
        if head is not None:
            self._hooks.append(modules[head].register_forward_pre_hook(self._keep_pooled))

    def close(self):
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()

    def _keep_feature(self, module, inputs, output):
        if self._reading:
            self.features.append(output)

    def _keep_pooled(self, module, inputs):
        if self._reading:
            self.pooled = inputs[0].flatten(1)

    def _look(self, images):
        self.features = []
        return self.model(images), self.features, self.pooled

    def __call__(self, images):
        self._reading = True
        try:
            look = self._compiled if len(images) == self._size else self._look
            logits, self.features, self.pooled = look(images)
            return logits
        finally:
            self._reading = False


def device(name):
    """The torch.device of this name; `auto` is the fastest kind here, and one that is not here an error."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available() or name == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"there is no {name} device here", "Leave out --device, or give --device cpu.")
    return torch.device(name)


def check_compiler(device):
    """An error where torch.compile cannot work: a few lines are compiled and run."""
    try:
        torch.compile(lambda x: (x * x).relu())(torch.ones(8, device=device))
    except Exception as error:  # each backend has errors of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"torch.compile finds nothing to compile with: {reason[:200]}",
                        "On a CPU it needs a C++ compiler (g++, clang, or Visual Studio's Build Tools), on a GPU triton; "
                        "or do not ask for it.") from error


def check_input(model, arch, size, classes):
    """Run one batch through a new network; one that cannot take `size` px, or gives no logits, is an error here."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{arch} cannot take images of {size} px: {reason}",
                        "Give a larger --size, or --stem small.") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{arch} gives {shape} for two images, not logits [2, {classes}]",
                        "An architecture returns one number for each image and class.")


def parameters(model):
    """Number of parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_in_bytes(model):
    """Bytes of all parameters and buffers, as they are in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


MAC_OPERATIONS = ("aten.convolution", "aten.addmm", "aten.mm")  # what convolutions and linear layers call


def count_macs(model, size):
    """Multiply-accumulates of all convolutions and linear layers for one image of `size` px: an int.

    Activations, normalisation, pooling and the products inside attention are not counted, as in most papers; other
    tools count some of them. One multiply-accumulate is two floating-point operations.
    """
    training = model.training
    device = next(model.parameters()).device
    try:  # with gradients, since transformers take one fused operation without
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
    return sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if str(operation) in MAC_OPERATIONS) // 2
