"""Weights: read safely, checked whole, taken from pretrained networks."""

import hashlib
import pickle
import urllib.error
import zipfile
from pathlib import Path

import torch

from kd.errors import UserError, listing


def fingerprint(state):
    """Sixteen hex digits of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def safe_load(path):
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
        state = safe_load(weights)
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
