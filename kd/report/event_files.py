"""Scalars and images from TensorBoard event files of any system; needs tensorboard's message types, not TensorFlow.

A folder is read with everything below it; a file in a subfolder has its path before its tags, as in
`train/epoch_loss`. Several files of one folder are one history in the order of their beginnings: where a
later file takes up a tag at a step that an earlier one has passed, or says that it restarts there, what the
earlier one holds from that step on is dropped, as TensorBoard does.
"""

import math
import re
from pathlib import Path

import numpy as np

from kd.errors import need

FRAME = 16  # bytes around a record: its length and two checksums
PICTURES = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # how PNG and JPEG begin
HIGHER = {"accuracy", "acc", "f1", "auroc", "auc", "precision", "recall", "sensitivity", "specificity", "dice", "iou", "kappa"}
LOWER = {"loss", "error", "nll", "brier", "ece", "mce", "aurc", "mae", "mse", "rmse", "perplexity", "ce", "kd", "at"}


def read(path, problems=None):
    """(scalars, images) of a file or folder, each file read once.

    scalars: {tag: (steps, values)}, two arrays of one length, int64 and float64, steps ascending. images: {tag: [(step,
    bytes of a PNG or JPEG)]}, steps ascending. problems: a list that gets a line for every file that is cut short,
    damaged or unreadable; what stands before the damage is returned. Both are empty where there are no event files.
    """
    numbers, pictures = {}, {}
    for tag, steps in sorted(_histories(path, problems if problems is not None else []).items()):
        ordered = sorted(steps)
        if isinstance(steps[ordered[0]], bytes):
            pictures[tag] = [(step, steps[step]) for step in ordered]
        else:
            numbers[tag] = np.array(ordered, np.int64), np.array([steps[step] for step in ordered], np.float64)
    return numbers, pictures


def table(histories):
    """Rows of run, tag, last, best, best_step, for {run: scalars()}.

    best is the lowest or the highest value, as the words of the tag say (loss, accuracy ...), at its first step;
    None where they do not say it, or where there is no number.
    """
    rows = []
    for run, history in histories.items():
        for tag, (steps, values) in history.items():
            words = set(re.findall(r"[a-z0-9]+", tag.lower()))
            sign = 1 if words & HIGHER else -1 if words & LOWER else 0
            best = int(np.nanargmax(sign * values)) if sign and not np.isnan(values).all() else None
            rows.append({"run": run, "tag": tag, "last": float(values[-1]), "best": None if best is None else float(values[best]),
                         "best_step": None if best is None else int(steps[best])})
    return rows


def _histories(path, problems):
    """{tag: {step: number, or bytes of a picture}} of all event files at or below `path`."""
    path, files = Path(path), []
    for file in [path] if path.is_file() else sorted(path.rglob("*tfevents*")):
        if file.is_file():
            events = _events(file, problems)
            first = next(events, None)
            if first is not None:
                files.append((first.wall_time, file, first, events))
    folders = {}
    for _, file, first, events in sorted(files, key=lambda entry: entry[:2]):
        in_path = path.is_file() or file.parent == path
        tags = folders.setdefault("" if in_path else file.parent.relative_to(path).as_posix() + "/", {})
        begun = set()
        for event in (first, *events):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START and event.step > 0:
                tags.update({tag: _before(steps, event.step) for tag, steps in tags.items()})
            for value in event.summary.value:
                content = _number(value)
                content = _picture(value) if content is None else content
                if content is None:
                    continue
                if value.tag not in begun:
                    begun.add(value.tag)
                    tags[value.tag] = _before(tags.get(value.tag, {}), event.step)
                tags[value.tag][event.step] = content
    return {folder + tag: steps for folder, tags in folders.items() for tag, steps in tags.items() if steps}


def _before(steps, step):
    return {key: value for key, value in steps.items() if key < step}


def _events(file, problems):
    """The messages of a file, up to its end or to where it is damaged."""
    loader = need("tensorboard.backend.event_processing.event_file_loader", "report").RawEventFileLoader
    messages = need("tensorboard.compat.proto.event_pb2", "report")
    decode_error = need("google.protobuf.message", "report").DecodeError
    count, position = 0, 0
    try:
        size = file.stat().st_size
        for record in loader(str(file)).Load():
            yield messages.Event.FromString(record)
            count, position = count + 1, position + len(record) + FRAME
        if position < size:  # the loader ends without a word where a record is not whole
            raise ValueError
    except OSError as error:
        problems.append(f"cannot read {file}: {error.strerror}")
    except (ValueError, OverflowError, MemoryError, decode_error):
        problems.append(f"{file} is cut short or damaged after {count} events; what stands before is read")


# TensorFlow 2 writes scalars and images as tensors: type number -> (field, how its bytes are read)
_NUMBERS = {1: ("float_val", "<f4"), 2: ("double_val", "<f8"), 3: ("int_val", "<i4"), 9: ("int64_val", "<i8")}


def _number(value):
    if value.HasField("simple_value"):
        return value.simple_value
    tensor = value.tensor
    if not value.HasField("tensor") or tensor.dtype not in _NUMBERS or math.prod(d.size for d in tensor.tensor_shape.dim) != 1:
        return None
    field, kind = _NUMBERS[tensor.dtype]
    content = tensor.tensor_content
    if content:
        return float(np.frombuffer(content, kind)[0]) if len(content) == np.dtype(kind).itemsize else None
    held = getattr(tensor, field)
    return float(held[0]) if len(held) == 1 else None


def _picture(value):
    """The first image of a value: TensorFlow 2 stores width, height and then each image as strings."""
    data = value.image.encoded_image_string if value.HasField("image") else b"".join(value.tensor.string_val[2:3])
    return data if data.startswith(PICTURES) else None
