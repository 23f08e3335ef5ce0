"""The checkpoint `best.pt`: weights and plain metadata, read without running any code."""

import math

import torch

from kd.errors import UserError, listing
from kd.files import atomic
from kd.train.weights import check_keys, safe_load

FORMAT = "medmnist-edgeai/1"
FIELDS = ("format", "arch", "stem", "class_names", "input", "state_dict", "provenance")


def save(path, model, *, arch, stem, class_names, input, provenance):
    """Write a checkpoint atomically. All but the weights is plain strings, numbers, lists, dicts."""
    save_tensors(path, {
        "format": FORMAT, "arch": arch, "stem": stem, "class_names": list(class_names),
        "input": input, "state_dict": model.state_dict(), "provenance": provenance})


def save_tensors(path, content):
    """torch.save, atomically."""
    with atomic(path) as file:
        torch.save(content, file)


def read(path):
    """The content of a checkpoint file, its fields checked."""
    content = safe_load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project",
                        "Pretrained weights of other origin go to --weights FILE.")
    missing = [field for field in FIELDS if field not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    kinds = {"arch": str, "stem": str, "class_names": list, "input": dict, "state_dict": dict, "provenance": dict}
    wrong = [field for field, kind in kinds.items() if not isinstance(content[field], kind)] or _wrong(content)
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} is not what it should be")
    return content


def _wrong(content):
    """The fields of right kind whose content cannot be."""
    classes, given = content["class_names"], content["input"]
    kinds = {"resize": int, "size": int, "interpolation": str, "mean": list, "std": list}
    fits = (given.keys() == kinds.keys() and all(type(given[key]) is kind for key, kind in kinds.items())
            and 1 <= given["size"] <= given["resize"]
            and all(len(given[key]) == 3 and all(type(x) in (int, float) and math.isfinite(x) for x in given[key])
                    for key in ("mean", "std")) and min(given["std"]) > 0)
    right = {"stem": content["stem"] in ("imagenet", "small"), "input": fits,
             "class_names": classes and all(type(name) is str for name in classes) and len(set(classes)) == len(classes)}
    return [field for field, good in right.items() if not good]


def load(path, build, *, arch=None, class_names=None):
    """The network in a checkpoint, in eval mode, and the checkpoint's content.

    build: called as build("architecture", name, num_classes=, stem=, weights=None), as
    registry.create is. arch, class_names: what is expected, where something is; any
    difference, and any missing or unexpected key, is an error.
    """
    content = read(path)
    if arch is not None and content["arch"] != arch:
        raise UserError(f"{path} holds a {content['arch']}, not a {arch}")
    if class_names is not None and list(class_names) != content["class_names"]:
        raise UserError(f"{path} knows the classes {listing(content['class_names'], 12)}, "
                        f"the data have {listing(class_names, 12)}",
                        "The same classes in the same order are needed.")
    model = build("architecture", content["arch"], num_classes=len(content["class_names"]),
                  stem=content["stem"], weights=None)
    load_state(model, content["state_dict"], path)
    return model.eval(), content


def load_state(model, state, source):
    """Load a state dict whose keys and shapes must match exactly."""
    check_keys(model.state_dict(), state, source)
    model.load_state_dict(state)
