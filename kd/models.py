"""Around networks: the stem for small images, pretrained weights, and reading stages."""

import hashlib
import pickle
import urllib.error
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.fx
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd.errors import UserError, listing
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


def fingerprint(state):
    """Sixteen hex digits of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def unit_stride(*convolutions):
    """Let these convolutions keep their resolution."""
    for convolution in convolutions:
        convolution.stride = (1, 1)


def read(path):
    """torch.load that runs no code from the file, `weights_only=True`, and checks its sums; errors in one line."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint file", f"Name the file in it: {(path / 'best.pt').as_posix()}")
    way_out = "Bring a whole copy of it; or make it anew: a run begins again once its folder is deleted."
    try:
        if zipfile.is_zipfile(path):  # as torch has written since 1.6; its reader passes over the checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path} is damaged: {damaged} in it is not what was written", way_out)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is no checkpoint, or holds code to run",
                        "Only tensors, numbers and strings are loaded.") from error
    except Exception as error:  # damaged pickles raise anything
        raise UserError(f"cannot read {path}: it is truncated or no checkpoint", way_out) from error


def load_pretrained(model, weights, *, imagenet=None, head, first=None, drop=()):
    """Fill `model` with pretrained weights, in place.

    weights: None, "imagenet" or the path of a state dict. imagenet: what "imagenet" stands for, the
    weights enum of torchvision or a function that returns a state dict. `head`, and the first
    convolution where a small stem gives it another shape, keep their fresh values; what begins with
    one of `drop`, heads that this network does without, is left out; both are printed. A file in which
    the same tensors have other names (timm's) is matched by order. Any other difference in keys or
    shapes is an error, and so is a checkpoint of this project, whose head and history `--init` takes
    along.
    """
    if weights in (None, "none"):
        return model
    if weights == "imagenet":
        state = imagenet() if callable(imagenet) else _download(imagenet)
    else:
        state = read(weights)
        if isinstance(state, dict) and str(state.get("format", "")).startswith("medmnist-edgeai"):
            raise UserError(f"{weights} is a checkpoint of this project", f"Give it with --init {weights}.")
        for wrapper in ("state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
                state = state[wrapper]
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise UserError(f"{weights} is not a state dict: names with tensors")
    own = model.state_dict()
    dropped = [key for key in state if key.startswith(tuple(drop))]
    state = {key: value for key, value in state.items() if key not in dropped}
    state = _renamed(state, own, weights)
    fresh = [key for key in own if key in state and (
        key.rsplit(".", 1)[0] == head
        or key.rsplit(".", 1)[0] == first and state[key].shape != own[key].shape)]
    # counters of batch normalisation are missing from old files, and count nothing here
    state = {**{key: own[key] for key in own if key.endswith(COUNTER)}, **state}
    state = {key: value for key, value in state.items() if key not in fresh}
    check_keys(own, {**{key: own[key] for key in fresh}, **state}, weights)
    model.load_state_dict(state, strict=False)
    print(f"weights: {weights}; not taken from it: {listing(fresh + dropped) or 'nothing'}")
    return model


COUNTER = "num_batches_tracked"


def _renamed(state, own, source):
    """`state` under the names of `own`, where it holds the same tensors in the same order by other names.

    Both list their tensors in the order of computation, so that the n-th answers to the n-th. They must
    agree in number, in the last part of each name (weight, bias, running_mean ...) and in shape, of
    which only the head's may differ; otherwise `state` is returned as it is.
    """
    theirs, ours = ([key for key in keys if not key.endswith(COUNTER)] for keys in (state, own))
    if set(theirs) == set(ours) or len(theirs) != len(ours):
        return state
    last = len(ours) - 2  # weight and bias of the head
    for k, (a, b) in enumerate(zip(theirs, ours)):
        if a.rpartition(".")[2] != b.rpartition(".")[2] or (state[a].shape != own[b].shape and k < last):
            return state
    print(f"weights: {source} has other names; its {len(ours)} tensors are matched by order and shape")
    return {b: state[a] for a, b in zip(theirs, ours)}


def check_keys(own, state, source):
    """An error that lists the keys and shapes in which `state` differs from `own`, or what in it is no number."""
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if not all(isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
               and not value.is_quantized for value in state.values()):
        raise UserError(f"{source} holds other things than plain tensors among its weights")
    shapes = [f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
              for key in own if key in state and state[key].shape != own[key].shape]
    parts = [f"{name} {len(keys)} ({listing(keys, 3)})" for name, keys in
             (("missing", missing), ("unexpected", extra), ("other shapes", shapes)) if keys]
    if parts:
        raise UserError(f"{source} does not fit this network: {'; '.join(parts)}",
                        "Weights are loaded whole or not at all; name the architecture they belong to.")
    broken = [key for key in own if not state[key].isfinite().all()]
    if broken:
        raise UserError(f"{source} holds weights that are no finite numbers: {listing(broken)}",
                        "Its training went wrong; a lower --lr often helps.")


def _download(weights):
    if weights is None:
        raise UserError("there are no ImageNet weights for this architecture",
                        "Give a file with --weights FILE.")
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download the ImageNet weights ({reason})",
                        f"Fetch {weights.url} elsewhere and give it with --weights FILE.") from error


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


class Reader:
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
