"""The checkpoint `best.pt`: weights and plain metadata, written atomically and read without running any code."""

import math
from pathlib import Path

import numpy as np
import torch

from kd import image, plugins
from kd.errors import UserError, listing
from kd.files import atomic
from kd.train.weights import check_keys, safe_load

FORMAT = "medmnist-edgeai/1"
FIELDS = ("format", "arch", "stem", "class_names", "input", "state_dict", "provenance")


def save(path, model, *, arch, stem, class_names, input, provenance):
    """Write a checkpoint of a model atomically. All arguments but path and model are plain values.

    arch: the registered name. stem: "imagenet" or "small". class_names: in the order of the logits. input: {"resize",
    "size": px, "interpolation": one of kd.image.INTERPOLATIONS, "mean", "std": three numbers each, of pixels in [0, 1];
    "range": [low, high] of values of more than 8 bits, where there are any, as kd.image.to_rgb() takes it}.
    provenance: a dict; its `seen`, where it has that, is what kd.data.splits.seen_by() gives. The lists in it are
    written as tensors, which may be of any length: of what is no tensor, weights.OBJECTS bytes are read.
    """
    if "seen" in provenance:
        provenance = {**provenance, "seen": {split: {what: _as_tensor(texts) for what, texts in lists.items()}
                                             for split, lists in provenance["seen"].items()}}
    save_tensors(path, {
        "format": FORMAT, "arch": arch, "stem": stem, "class_names": list(class_names),
        "input": input, "state_dict": model.state_dict(), "provenance": provenance})


def _as_tensor(texts):
    """The characters of ASCII texts, a line each."""
    return torch.from_numpy(np.array(bytearray("\n".join(texts).encode("ascii"))))


def texts(part):
    """The list of texts that save() wrote as this tensor; an older version wrote the list. ValueError if it did not."""
    if not isinstance(part, torch.Tensor):
        return part
    if part.dtype != torch.uint8:
        raise ValueError("no characters")
    return part.numpy().tobytes().decode("ascii").splitlines()


def save_tensors(path, content):
    """torch.save() of any content, atomically."""
    with atomic(path) as file:
        torch.save(content, file)


def read(path):
    """The content of a checkpoint file, a dict of FIELDS. Raises UserError if a field is missing or invalid."""
    content = safe_load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project",
                        "As a teacher of distill.py it needs --teacher-arch NAME. "
                        "Weights of other origin start a training: python train_teacher.py --weights FILE")
    missing = [field for field in FIELDS if field not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    kinds = {"arch": str, "stem": str, "class_names": list, "input": dict, "state_dict": dict, "provenance": dict}
    invalid = [field for field, kind in kinds.items() if not isinstance(content[field], kind)]
    if not invalid:
        valid = {"stem": content["stem"] in ("imagenet", "small"), "input": _is_valid_input(content["input"]),
                 "class_names": _are_valid_classes(content["class_names"])}
        invalid = [field for field, is_valid in valid.items() if not is_valid]
    if invalid:
        raise UserError(f"{path} is damaged: {', '.join(invalid)} is not what it should be")
    return content


def _is_valid_input(input):
    kinds = {"resize": int, "size": int, "interpolation": str, "mean": list, "std": list}
    if input.keys() - {"range"} != kinds.keys() or not all(type(input[key]) is kind for key, kind in kinds.items()):
        return False
    if "range" in input and not image.is_range(input["range"]) or input["interpolation"] not in image.INTERPOLATIONS:
        return False
    numbers = [*input["mean"], *input["std"]]
    return (1 <= input["size"] <= input["resize"] and len(input["mean"]) == len(input["std"]) == 3
            and all(type(x) in (int, float) and math.isfinite(x) for x in numbers) and min(input["std"]) > 0)


def _are_valid_classes(names):
    return names and all(type(name) is str for name in names) and len(set(names)) == len(names)


def load(path, registry, *, arch=None, class_names=None):
    """(model in eval mode, content) of a checkpoint file.

    registry: an object with get, create and load_plugin; plugins of the run beside the file are loaded where they are
    needed (kd/plugins.py). arch, class_names: the expected values, or None for any. Raises UserError if they differ, if
    the file is damaged, and if a key of the state dict is missing or unexpected.
    """
    content = read(path)
    if arch is not None and content["arch"] != arch:
        raise UserError(f"{path} holds a {content['arch']}, not a {arch}")
    if class_names is not None and list(class_names) != content["class_names"]:
        raise UserError(f"{path} knows the classes {listing(content['class_names'], 12)}, "
                        f"the data have {listing(class_names, 12)}",
                        "The same classes in the same order are needed.")
    plugins.provide("architecture", content["arch"], Path(path).parent, registry)
    model = registry.create("architecture", content["arch"], num_classes=len(content["class_names"]),
                            stem=content["stem"], weights=None)
    load_state(model, content["state_dict"], path)
    return model.eval(), content


def load_state(model, state, source):
    """Load a state dict into a model. Raises UserError unless all keys and shapes match. source: for the message."""
    check_keys(model.state_dict(), state, source)
    model.load_state_dict(state)
