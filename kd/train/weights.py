"""Weights: safe reading of files, checks of keys and shapes, pretrained weights for new networks."""

import contextlib
import hashlib
import math
import os
import pickle
import struct
import sys
import urllib.error
import warnings
import zipfile
from pathlib import Path

import torch

from kd.errors import UserError, draws, is_memory, listing
from kd.files import check_archive, open_regular, parse_json, reading_errors
from kd.text import quoted

LARGEST = 2 ** 33   # bytes of a file of weights
OBJECTS = 2 ** 23   # bytes of the part of it that is not tensors, and steps to read them in the format before torch 1.6


def fingerprint(state):
    """Sixteen hexadecimal digits that identify the names and values of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def safe_load(path):
    """The content of a file of torch.save(), or of .safetensors, on the CPU. No code of the file is run; the checksums
    of the former are checked.

    Raises UserError if the file is missing, damaged, or has other things than tensors, numbers and strings.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(
            f"{path} is a folder, not a checkpoint file", f"Name the file in it: {(path / 'best.pt').as_posix()}"
        )
    hint = "Bring a whole copy of it; or make it again: a run starts again once its folder is deleted."
    with open_regular(path, LARGEST) as file, reading_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is an error of one line, and no warning before it
        try:
            if path.suffix.lower() == ".safetensors":
                return _safetensors(file, path, hint)
            if zipfile.is_zipfile(file):  # the format of torch since 1.6, whose reader ignores the checksums
                _check_zip(file, path, hint)
            else:
                file.seek(0)
                file = _Steps(file)
            with _brief_errors():
                return torch.load(file, map_location="cpu", weights_only=True)
        except (UserError, OSError, RecursionError, MemoryError):
            raise  # reading_errors() has words for each
        except pickle.UnpicklingError as error:
            raise UserError(f"{path} is refused: it is no checkpoint, or holds code to run",
                            "Only tensors, numbers and strings are loaded. Of a whole model, save the weights where it "
                            "was made: torch.save(model.state_dict(), FILE).") from error
        except Exception as error:  # damaged pickles raise anything
            if is_memory(error):
                raise MemoryError from error
            raise UserError(f"cannot read {path}: it is truncated or no checkpoint", hint) from error


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


def _safetensors(file, path, hint):
    """{name: tensor} of an open file in the format of timm and Hugging Face: the length of a header, in 8 bytes; the
    header in JSON, {name: {"dtype", "shape", "data_offsets": [begin, end] after the header}}; the values."""
    length, = struct.unpack("<Q", file.read(8))
    if length > OBJECTS:
        raise UserError(f"{path} is refused: its header is larger than {OBJECTS >> 20} MiB", hint)
    header = parse_json(file.read(length).decode())
    data, result = memoryview(file.read()), {}
    if sum(end - begin for begin, end in (entry["data_offsets"] for name, entry in header.items()
                                          if name != "__metadata__")) > len(data):
        raise UserError(f"{path} is damaged: its parts are longer than the file", hint)
    for name, entry in header.items():
        if name == "__metadata__":  # texts
            continue
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (*shape, begin)) or not (
                end - begin == math.prod(shape) * dtype.itemsize and end <= len(data)):
            raise UserError(f"{path} is damaged: {name} in it is not as long as its header says", hint)
        part = bytearray(data[begin:end])
        result[name] = (torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)).reshape(shape)
    return result


@contextlib.contextmanager
def _brief_errors():
    """Cut what torch says of a refused pickle to 1000 characters, which may quote a name of megabytes from the file.

    torch searches this text for words in a time that grows with the square of its length.
    """
    readers = {name: getattr(torch.serialization, name) for name in ("_load", "_legacy_load")
               if hasattr(torch.serialization, name)}

    def brief(read):
        def reader(*args, **options):
            try:
                return read(*args, **options)
            except pickle.UnpicklingError as error:
                raise pickle.UnpicklingError(str(error)[:1000]) from None
        return reader

    for name, read in readers.items():
        setattr(torch.serialization, name, brief(read))
    try:
        yield
    finally:
        for name, read in readers.items():
            setattr(torch.serialization, name, read)


def _check_zip(file, path, hint):
    """UserError where a zip archive is damaged, or is not as torch.save() writes one: then it could be of any size."""
    archive = check_archive(file, path, os.fstat(file.fileno()).st_size, members=2 ** 16)
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} is refused: {member.filename} in it is compressed, which torch never does")
        if member.filename.endswith(".pkl") and member.file_size > OBJECTS:
            raise UserError(f"{path} is refused: {member.filename} in it is larger than {OBJECTS >> 20} MiB")
    damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged: {damaged} in it is not what was written", hint)
    file.seek(0)


class _Steps:
    """A file in the format before torch 1.6, of which at most OBJECTS pieces are read."""

    def __init__(self, file):
        self.seek, self.tell, self.readinto, self.file, self.steps = file.seek, file.tell, file.readinto, file, 0

    def read(self, size=-1):
        self.steps += 1
        if self.steps > OBJECTS:
            raise pickle.UnpicklingError("too many objects")
        return self.file.read(size)

    def readline(self):
        self.steps += 1
        return self.file.readline(OBJECTS)


def load_pretrained(model, weights, *, imagenet=None, head, first=None, drop=()):
    """Load pretrained weights into a model, in place; returns the model.

    weights: None, "imagenet" or the path of a state dict (.pt, .pth, .safetensors), which may lack the head. imagenet:
    the weights enum of torchvision, or a function that returns a state dict, for "imagenet". head: the module path of
    the head, or a tuple of several, which keep their initial values. first: that of the first convolution, which keeps
    them if a small stem gives it another shape. drop: prefixes of further heads in the file that this model does not
    have. What is not taken from the file is printed.
    A file with the same tensors under other names (timm's) is matched by order. Raises UserError for any other
    difference in keys or shapes, and for a checkpoint of this project: --init loads one with its head and history.
    """
    if weights in (None, "none"):
        return model
    if weights == "imagenet":
        state = imagenet() if callable(imagenet) else _download(imagenet)
    else:
        state = _foreign_state(weights, f"Give it so: {quoted('--init', weights)}")
    initial, heads = model.state_dict(), (head,) if isinstance(head, str) else head
    dropped = [key for key in state if key.startswith(tuple(drop))]
    state = {key: value for key, value in state.items() if key not in dropped}
    prefix = _prefix(state, initial, heads)
    dropped += [key for key in state if not key.startswith(prefix)]
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = _renamed(state, initial, weights, first, heads)
    stem = f"{first}.weight"
    if stem in state and state[stem].ndim == 4 and state[stem].shape[1] == 1:  # of grey images, which are repeated here
        state[stem] = state[stem].repeat(1, 3, 1, 1) / 3
    fresh = []  # keys that keep their initial values
    for key in initial:
        module = key.rsplit(".", 1)[0]
        if module in heads or module == first and key in state and state[key].shape != initial[key].shape:
            fresh.append(key)
    absent = [key for key in fresh if key not in state]  # of a network that was saved without its head
    # old files lack the counters of batch normalisation, which have no effect here
    state = {**{key: initial[key] for key in initial if key.endswith(COUNTER)}, **state}
    state = {key: value for key, value in state.items() if key not in fresh}
    check_keys(initial, {**{key: initial[key] for key in fresh}, **state}, weights)
    model.load_state_dict(state, strict=False)
    not_taken = [key for key in fresh if key not in absent] + dropped
    print(f"weights: {weights}; not taken from it: {listing(not_taken) or 'nothing'}"
          + (f"; it has no head ({listing(absent)}), which starts fresh" if absent else ""))
    return model


def _foreign_state(file, way_out):
    """The state dict of a file from elsewhere; UserError, with this hint, for a checkpoint of this project."""
    content = safe_load(file)
    if isinstance(content, dict) and str(content.get("format", "")).startswith("medmnist-edgeai"):
        raise UserError(f"{file} is a checkpoint of this project", way_out)
    return unwrapped(content, file)


def load_whole(model, file):
    """Load a state dict from elsewhere into a model, in place, its head with it; returns the state dict as loaded.

    Its names may have wrappers and prefixes, or be other ones in the same order. UserError for anything missing, and
    for a checkpoint of this project, which would get round what is known of its training.
    """
    state = _foreign_state(file, "It says what it is and what it saw. Leave out --teacher-arch of distill.py.")
    initial = model.state_dict()
    prefix = _prefix(state, initial, ())
    state = _renamed({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
                     initial, file, None, ())
    state = {**{key: initial[key] for key in initial if key.endswith(COUNTER)}, **state}
    check_keys(initial, state, file)
    model.load_state_dict(state)
    return state


def _prefix(state, target, heads):
    """The prefix under which `state` has all names of `target` but the heads': a file may hold further parts beside
    the network, such as the projection of self-supervised training. '' if there is none."""
    body = [key for key in target if not key.endswith(COUNTER) and key.rsplit(".", 1)[0] not in heads]
    prefixes = [key.removesuffix(body[0]) for key in state if key.endswith(f".{body[0]}")]
    return next((prefix for prefix in prefixes if all(prefix + key in state for key in body)), "")


COUNTER = "num_batches_tracked"

# Under which names training programs save a state dict, beside optimiser and epoch; averaged weights first, since they
# are the ones that were evaluated: timm, torchvision, MedMNIST (net), YOLO, BasicSR (params), DINO and other
# self-distillation (teacher: the average), MoCo (encoder), Lightning (state_dict).
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "state_dict",
            "model_state_dict", "model_state", "model", "net_state_dict", "net_state", "net", "network_state_dict",
            "network", "params", "weights", "module", "teacher", "student", "encoder", "backbone")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")  # of all names in a file


def unwrapped(state, source):
    """The state dict, {name: tensor}, in the content of a file: without what is around it and before its names.

    Names lose a prefix that all of them have (`module.` of DataParallel, `_orig_mod.` of torch.compile ...). UserError
    where there is no state dict. What was taken is printed where it is not the whole file.
    """
    found = _search(state, [])
    if found is None:
        holds = f"; it holds {listing(map(repr, state))}" if isinstance(state, dict) and state else ""
        raise UserError(f"{source} is not a state dict: names with tensors{holds}",
                        "Save the network's state_dict() alone: torch.save(network.state_dict(), FILE).")
    state, path = found
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        path, state = [*path, prefix], {key.removeprefix(prefix): value for key, value in state.items()}
    if path:
        print(f"weights: {source}: taken from {' '.join(path)}")
    return state


def _search(content, path):
    """(state dict, names that lead to it) of the first of WRAPPERS that leads to one; None without."""
    if _is_state(content):
        return content, path
    if isinstance(content, dict) and len(path) < 4:
        for name in WRAPPERS:
            found = _search(content.get(name), [*path, name])
            if found:
                return found
    return None


def _is_state(content):
    return isinstance(content, dict) and bool(content) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())


def _renamed(state, target, source, first, heads):
    """The state dict under the names of another, `target`, if both have the same tensors in the same order.

    Both list their tensors in the order of computation, so that the n-th of one matches the n-th of the other. They
    must agree in number, in the last part of each name (weight, bias, running_mean ...) and in shape, except for the
    shapes of the head and of the first convolution, `first`; otherwise `state` is returned unchanged. heads: module
    paths, which the file may lack.
    """
    theirs, ours = ([key for key in keys if not key.endswith(COUNTER)] for keys in (state, target))
    body = len(ours) - 2  # without weight and bias of the head
    without_head = [key for key in ours if key.rsplit(".", 1)[0] not in heads]
    if len(theirs) == len(without_head):
        ours, body = without_head, len(theirs)
    if set(theirs) == set(ours) or len(theirs) != len(ours):
        return state
    for k, (a, b) in enumerate(zip(theirs, ours)):
        if a.rpartition(".")[2] != b.rpartition(".")[2] or (
                state[a].shape != target[b].shape and k < body and b != f"{first}.weight"):
            return state
    print(f"weights: {source} has other names; its {len(ours)} tensors are matched by order and shape")
    return {b: state[a] for a, b in zip(theirs, ours)}


def check_keys(expected, state, source):
    """Raise UserError if a state dict does not have exactly the keys and shapes of `expected`, or has NaN or infinity.

    source: the file or network that the state dict comes from, for the message.
    """
    if not all(map(_is_plain_tensor, state.values())):
        raise UserError(f"{source} holds other things than plain tensors among its weights")
    differences = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "other shapes": [f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
                         for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    parts = [f"{name} {len(keys)} ({listing(keys, 3)})" for name, keys in differences.items() if keys]
    if parts:
        raise UserError(f"{source} does not fit this network: {'; '.join(parts)}",
                        "Weights are loaded whole or not at all; name the architecture they belong to.")
    not_finite = [key for key in expected if not state[key].isfinite().all()]
    if not_finite:
        raise UserError(f"{source} holds weights that are no finite numbers: {listing(not_finite)}",
                        "Its training went wrong; a lower --lr often helps.")


def _is_plain_tensor(value):
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _download(weights):
    if weights is None:
        raise UserError("there are no ImageNet weights for this architecture",
                        "Give a file with --weights FILE.")
    try:
        return weights.get_state_dict(progress=draws(sys.stderr), check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download the ImageNet weights ({reason})",
                        f"Fetch {weights.url} elsewhere and give it with --weights FILE.") from error
