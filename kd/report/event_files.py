"""Scalars and images from TensorBoard event files of any system; needs tensorboard's message types, not TensorFlow.

A folder is read with everything below it; a file in a subfolder has its path before its tags, as in
`train/epoch_loss`. Several files of one folder are one history in the order of their beginnings: where a
later file takes up a tag at a step that an earlier one has passed, or says that it restarts there, what the
earlier one holds from that step on is dropped, as TensorBoard does.
"""

import math
import re
import struct
from pathlib import Path

import numpy as np

from kd.errors import need

LONGEST = 2 ** 26  # bytes of a record; what claims to be longer is damage
PICTURES = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # how PNG and JPEG begin
HIGHER = {"accuracy", "acc", "f1", "auroc", "auc", "precision", "recall", "sensitivity", "specificity", "dice", "iou", "kappa"}
LOWER = {"loss", "error", "nll", "brier", "ece", "mce", "aurc", "mae", "mse", "rmse", "perplexity", "ce", "kd", "at"}


def scalars(path, problems=None):
    """{tag: (steps, values)} of a file or folder: two arrays of one length, int64 and float64, steps ascending.

    problems: a list that gets a line for every file that is cut short, damaged or unreadable; what stands before the
    damage is returned. Empty where there are no event files.
    """
    return {tag: (np.array(sorted(held), np.int64), np.array([held[step] for step in sorted(held)], np.float64))
            for tag, held in sorted(_gather(path, _number, problems).items())}


def images(path, problems=None):
    """{tag: [(step, bytes of a PNG or JPEG)]}, steps ascending; see scalars()."""
    return {tag: sorted(held.items()) for tag, held in sorted(_gather(path, _picture, problems).items())}


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


def _gather(path, wanted, problems):
    """{tag: {step: value}} of what `wanted` takes out of a message's values; None is not taken."""
    path, files = Path(path), []
    for file in [path] if path.is_file() else sorted(path.rglob("*tfevents*")):
        if file.is_file():
            events = _events(file, problems if problems is not None else [])
            first = next(events, None)
            if first is not None:
                files.append((first.wall_time, file, first, events))
    folders = {}
    for _, file, first, events in sorted(files, key=lambda entry: entry[:2]):
        folder = "" if path.is_file() or file.parent == path else file.parent.relative_to(path).as_posix() + "/"
        held, begun = folders.setdefault(folder, {}), set()
        for event in (first, *events):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START and event.step > 0:
                held.update({tag: _before(values, event.step) for tag, values in held.items()})
            for value in event.summary.value:
                taken = wanted(value)
                if taken is None:
                    continue
                if value.tag not in begun:
                    begun.add(value.tag)
                    held[value.tag] = _before(held.get(value.tag, {}), event.step)
                held[value.tag][event.step] = taken
    return {folder + tag: values for folder, held in folders.items() for tag, values in held.items() if values}


def _before(values, step):
    return {key: value for key, value in values.items() if key < step}


def _events(file, problems):
    """The messages of a file, up to its end or to where it is damaged."""
    messages = need("tensorboard.compat.proto.event_pb2", "report")
    decode_error = need("google.protobuf.message", "report").DecodeError
    count = 0
    try:
        with open(file, "rb") as stream:
            while header := stream.read(12):
                length, check = struct.unpack("<QI", header) if len(header) == 12 else (LONGEST + 1, 0)
                if length > LONGEST or _masked_crc(header[:8]) != check:
                    raise ValueError
                record = stream.read(length + 4)  # its own checksum is not held against it: that would be slow in Python
                if len(record) < length + 4:
                    raise ValueError
                yield messages.Event.FromString(record[:length])
                count += 1
    except OSError as error:
        problems.append(f"cannot read {file}: {error.strerror}")
    except (ValueError, decode_error):
        problems.append(f"{file} is cut short or damaged after {count} events; what stands before is read")


def _masked_crc(data):
    """CRC-32C, rotated and offset as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
