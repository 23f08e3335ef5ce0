"""Stems, feature extraction, folding of batch normalisation, devices, size and cost of a network."""

import hashlib
from dataclasses import dataclass

import torch
import torch.fx
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from kd.errors import UserError
from kd.image import MEAN, STD


@dataclass
class Network:
    """A model with its registered name, its stages and head as the registry names them, and its normalisation."""

    model: torch.nn.Module
    arch: str
    stem: str
    stages: tuple = ()       # module paths; empty where they are not known
    head: str = None         # module path of the last linear layer; None where it is not known
    fingerprint: str = None  # of the weights of the checkpoint that the model comes from, if it comes from one
    mean: tuple = MEAN       # of the three channels of pixels in [0, 1], as its weights expect them
    std: tuple = STD
    tau: float = None        # of the logit adjustment that it was trained with; None where that is not known
    size: int = None         # px, of its input; None for that of the data
    is_foreign: bool = False  # trained elsewhere: which images it saw is not known

    @property
    def members(self):
        """The networks of which it consists: itself."""
        return [self]


@dataclass
class Ensemble:
    """Several teachers as one: its logits are the logarithm of the mean of their probabilities.

    It has no features: losses on logits alone can read it.
    """

    members: list  # of Network

    arch, stages, head, size, is_foreign = "ensemble", (), None, None, False

    @property
    def fingerprint(self):
        """Sixteen hex digits that depend on those of all members."""
        return hashlib.sha256(" ".join(member.fingerprint for member in self.members).encode()).hexdigest()[:16]

    @property
    def tau(self):
        """That of all members; None where they differ."""
        taus = {member.tau for member in self.members}
        return taus.pop() if len(taus) == 1 else None


SMALL = 32  # px: inputs up to this size are not reduced before the first stage


def resolve_stem(stem, size, small=True):
    """The stem, "small" or "imagenet", for inputs of `size` px; a stem other than "auto" is returned as it is.

    "auto" is the small stem up to 32 px, where an ImageNet stem leaves one pixel in the last stage.
    small: whether the architecture has a small stem.
    """
    if stem != "auto":
        return stem
    return "small" if small and size <= SMALL else "imagenet"


def refuse_small_stem(stem, arch):
    """UserError for the stem "small", of an architecture that has none."""
    if stem == "small":
        raise UserError(f"{arch} has no small stem", "Give --stem imagenet, or a larger --size.")


def unit_stride(*convolutions):
    """Set the stride of convolutions to 1, in place, so that they keep the resolution."""
    for convolution in convolutions:
        convolution.stride = (1, 1)


class _Tracer(torch.fx.Tracer):
    """Traces each convolution as one call, also one of a subclass with a forward of its own."""

    def is_leaf_module(self, module, path):
        return isinstance(module, torch.nn.Conv2d) or super().is_leaf_module(module, path)


def fold_batch_norm(model, stages=()):
    """Fold each batch normalisation after a convolution into that convolution, in place; for eval mode only.

    The model computes the same with fewer passes over memory (Jacob et al. 2018, 1712.05877, sec. 3.2). A model that
    torch.fx cannot trace is left unchanged, and so are convolutions whose outputs are read: stages, module paths.
    Returns the number of folded layers.
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
        if getattr(before, "op", None) != "call_module" or before.target in stages:
            continue
        convolution, norm = modules[before.target], modules[node.target]
        if not isinstance(convolution, torch.nn.Conv2d) or not isinstance(norm, torch.nn.BatchNorm2d):
            continue
        if len(before.users) == 1 and calls.count(node.target) == calls.count(before.target) == 1:
            _replace(model, before.target, fuse_conv_bn_eval(convolution, norm))
            _replace(model, node.target, torch.nn.Identity())
            folded += 1
    return folded


def _replace(model, path, module):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


class FeatureExtractor:
    """Runs a model and keeps, by forward hooks, the features of its stages and the pooled input of its head.

    stages: module paths whose outputs [N, C, H, W] are in `features` after a call. head: module path whose input
    [N, D] is in `pooled`. compiled: the batch size for which the model is compiled; batches of other sizes run
    without compilation. A call of the model itself keeps nothing.
    """

    def __init__(self, model, stages=(), head=None, compiled=None):
        self.model, self.features, self.pooled, self._extracting = model, [], None, False
        self._compiled_batch = compiled
        self._compiled_forward = torch.compile(self._forward, dynamic=False) if compiled else None
        modules = dict(model.named_modules())
        self._hooks = [modules[path].register_forward_hook(self._keep_feature) for path in stages]
        if head is not None:
            self._hooks.append(modules[head].register_forward_pre_hook(self._keep_pooled))

    def close(self):
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def _keep_feature(self, module, inputs, output):
        if self._extracting:
            self.features.append(output)

    def _keep_pooled(self, module, inputs):
        if self._extracting:
            self.pooled = inputs[0].flatten(1)

    def _forward(self, images):
        self.features = []
        return self.model(images), self.features, self.pooled

    def __call__(self, images):
        """Logits [N, C] of normalised images [N, 3, H, W]; sets `features` and `pooled`."""
        self._extracting = True
        try:
            forward = self._compiled_forward if len(images) == self._compiled_batch else self._forward
            logits, self.features, self.pooled = forward(images)
            return logits
        finally:
            self._extracting = False


def device(name):
    """The torch.device called `name`. "auto" is cuda, mps or cpu, the first that is available.

    Raises UserError for a device that is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available() or name == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"there is no {name} device here", "Leave out --device, or give --device cpu.")
    return torch.device(name)


def check_compiler(device):
    """Compile and run a small function on a device; raises UserError where torch.compile cannot work."""
    try:
        torch.compile(lambda x: (x * x).relu())(torch.ones(8, device=device))
    except Exception as error:  # each backend has errors of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"torch.compile finds nothing to compile with: {reason[:200]}",
            "On a CPU it needs a C++ compiler (g++, clang, or Visual Studio's Build Tools), on a GPU triton; "
            "or do not ask for it.") from error


def check_input(model, arch, size, classes):
    """Run two images of `size` px through a model; raises UserError if it fails or returns no logits [2, classes].

    arch: the name of the architecture for the message.
    """
    try:
        logits = outputs_of_black(model, size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{arch} cannot take images of {size} px: {reason}",
                        "Give a larger --size, or --stem small.") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        output = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{arch} gives {output} for two images, not logits [2, {classes}]",
                        "An architecture returns one number for each image and class.")


@torch.no_grad()
def outputs_of_black(model, size):
    """The output of a model for two black images of `size` px, in eval mode; the mode is restored."""
    training = model.training
    try:
        return model.eval()(torch.zeros(2, 3, size, size))
    finally:
        model.train(training)


def parameters(model):
    """Number of parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_in_bytes(model):
    """Bytes of all parameters and buffers in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


MAC_OPERATIONS = ("aten.convolution", "aten.addmm", "aten.mm")  # of convolutions and linear layers


def count_macs(model, size):
    """Multiply-accumulates of all convolutions and linear layers for one image of `size` px: an int.

    Activations, normalisation, pooling and the products inside attention are not counted, as in most papers; other
    tools count some of them. One multiply-accumulate is two floating-point operations.
    """
    training = model.training
    device = next(model.parameters()).device
    try:  # with gradients, because transformers use one fused operation without them
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
    flops = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in flops.items() if str(operation) in MAC_OPERATIONS) // 2


def facts(model, size):
    """{"parameters", "params_bytes", "macs"} of a model for images of `size` px."""
    return {"parameters": parameters(model), "params_bytes": size_in_bytes(model), "macs": count_macs(model, size)}
