"""Scalars and images from TensorBoard event files of any system. Needs tensorboard, but not TensorFlow.

A folder is read with everything below it. Tags of a file in a subfolder begin with its path, as in
`train/epoch_loss`. All files of one folder form one history, in the order of their first events. As in
TensorBoard, a later file replaces an earlier one: where it logs a tag from a step on, or restarts at a step,
the earlier values from that step on are dropped.

tensorboard's EventAccumulator is not used: it orders files by their names, and it says neither that a file is
damaged nor where.
"""

import math
import re
from pathlib import Path

import numpy as np

from kd.errors import UserError, need
from kd.files import open_regular

LARGEST = 2 ** 25  # bytes of a file that are read: tensorboard checks 6 MB a second
VALUES = 100_000  # of a file that are read
FRAME = 16  # bytes around a record: its length and two checksums
PICTURES = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # the first bytes of PNG and JPEG files
HIGHER = {
    "accuracy", "acc", "f1", "auroc", "auc", "precision", "recall", "sensitivity", "specificity", "dice", "iou",
    "kappa",
}
LOWER = {"loss", "error", "nll", "brier", "ece", "mce", "aurc", "mae", "mse", "rmse", "perplexity", "ce", "kd", "at"}


def read(path, problems=None):
    """Read the scalars and images of an event file or a folder; each file is read once.

    path: a file or a folder. problems: a list to which one line is appended for each file that is cut short, damaged
    or unreadable; what stands before the damage is returned.
    Returns (scalars, images), both empty where there are no event files. scalars: {tag: (steps, values)}, arrays of
    int64 and float64 [N]. images: {tag: [(step, bytes of a PNG or JPEG)]}. Steps ascend.
    Raises UserError without tensorboard.
    """
    scalars, images = {}, {}
    for tag, contents in sorted(_histories(path, [] if problems is None else problems).items()):
        steps = sorted(contents)
        values = [contents[step] for step in steps]
        if isinstance(values[0], bytes):
            images[tag] = list(zip(steps, values))
        else:
            scalars[tag] = np.array(steps, np.int64), np.array(values, np.float64)
    return scalars, images


def table(histories):
    """Summarise the scalars of runs, one row for each run and tag.

    histories: {run: scalars as read() returns them}.
    Returns dicts with run, tag, last, best and best_step. best is the highest value where a word of the tag is in
    HIGHER, the lowest where one is in LOWER, at its first step; otherwise, and where all values are NaN, None.
    """
    rows = []
    for run, scalars in histories.items():
        for tag, (steps, values) in scalars.items():
            words = set(re.findall(r"[a-z0-9]+", tag.lower()))
            sign = 1 if words & HIGHER else -1 if words & LOWER else 0
            row = {"run": run, "tag": tag, "last": float(values[-1]), "best": None, "best_step": None}
            if sign and not np.isnan(values).all():
                best = np.nanargmax(sign * values)
                row.update(best=float(values[best]), best_step=int(steps[best]))
            rows.append(row)
    return rows


def _histories(path, problems):
    """{tag: {step: number, or bytes of an image}} of all event files at or below `path`."""
    path, files = Path(path), []
    for file in [path] if path.is_file() else sorted(path.rglob("*tfevents*")):
        if not file.is_dir() and _is_regular(file, problems):
            events = _events(file, problems)
            first = next(events, None)
            if first is not None:
                files.append((first.wall_time, file, first, events))
    histories = {}  # folder -> {tag: {step: content}}
    for _, file, first, events in sorted(files, key=lambda entry: entry[:2]):
        at_top = path.is_file() or file.parent == path
        prefix = "" if at_top else file.parent.relative_to(path).as_posix() + "/"
        _add_events(histories.setdefault(prefix, {}), (first, *events))
    return {
        prefix + tag: contents for prefix, history in histories.items() for tag, contents in history.items() if contents
    }


def _is_regular(file, problems):
    try:
        open_regular(file, 2 ** 40).close()
        return True
    except UserError as error:
        problems.append(error.message)
        return False


def _add_events(history, events):
    """Add the events of one file to the history {tag: {step: content}} of its folder."""
    tags_of_file, is_first = set(), True
    for event in events:
        restart = event.HasField("session_log") and event.session_log.status == event.session_log.START
        if restart and event.step > 0 and is_first:  # a file has one: each further one would cost the whole history
            is_first = False
            for tag, contents in history.items():
                history[tag] = _before(contents, event.step)
        for value in event.summary.value:
            content = _number(value)
            if content is None:
                content = _image(value)
            if content is None:
                continue
            if value.tag not in tags_of_file:
                tags_of_file.add(value.tag)
                history[value.tag] = _before(history.get(value.tag, {}), event.step)
            history[value.tag][event.step] = content


def _before(contents, limit):
    return {step: content for step, content in contents.items() if step < limit}


def _events(file, problems):
    """The Event messages of a file, up to its end or to the first damaged record."""
    loader = need("tensorboard.backend.event_processing.event_file_loader", "report").RawEventFileLoader
    parse = need("tensorboard.compat.proto.event_pb2", "report").Event.FromString
    decode_error = need("google.protobuf.message", "report").DecodeError
    count, values, position = 0, 0, 0
    try:
        size = file.stat().st_size
        for record in loader(str(file)).Load():
            event = parse(record)
            values, position = values + 1 + len(event.summary.value), position + len(record) + FRAME
            if values > VALUES or position > LARGEST:
                problems.append(f"{file} is too large: only its first {count} events are read")
                return
            yield event
            count += 1
        if position < size:  # the loader stops at an incomplete record without an error
            raise ValueError
    except OSError as error:
        problems.append(f"cannot read {file}: {error.strerror}")
    except (ValueError, OverflowError, MemoryError, decode_error):
        problems.append(f"{file} is cut short or damaged after {count} events; the events before are read")


def _number(value):
    """The scalar of a summary value, or None. TensorFlow 2 stores a scalar as a tensor of one element."""
    if value.HasField("simple_value"):
        return value.simple_value
    types = need("tensorboard.compat.proto.types_pb2", "report")
    tensor = value.tensor
    numeric = tensor.dtype in (types.DT_FLOAT, types.DT_DOUBLE, types.DT_INT32, types.DT_INT64)
    if not numeric or math.prod(dimension.size for dimension in tensor.tensor_shape.dim) != 1:
        return None
    try:
        return float(need("tensorboard.util.tensor_util", "report").make_ndarray(tensor).item())
    except ValueError:  # shape and content disagree
        return None


def _image(value):
    """The first image of a summary value, or None. TensorFlow 2 stores width, height and images as strings."""
    data = value.image.encoded_image_string if value.HasField("image") else b"".join(value.tensor.string_val[2:3])
    return data if data.startswith(PICTURES) else None
