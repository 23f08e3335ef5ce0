"""Writes scalars and images for TensorBoard: of a run while it is training, and what other scripts measure of it.

TensorBoard's own writer writes from a thread: on a full disk, the error there is a traceback that does not stop the
run. Here it is an OSError of the run. The event files are the same.
"""

import contextlib
import io
import math
import os
import socket
import time
from pathlib import Path

import numpy as np

from kd.files import atomic


@contextlib.contextmanager
def opened(folder, epochs_done):
    """Open a new event file in `folder`; yields a function that logs one row of the history, {column: number}.

    `epoch` of a row is the step; other columns become `val/NAME` and `train/NAME`. What a stopped run has logged after
    `epochs_done` is no longer shown. Without TensorBoard, nothing is written. Raises OSError.
    """
    with _writer(folder) as write:
        if not write:
            yield lambda row: None
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog

        def log(row):
            values = [{"tag": tag(key), "simple_value": value} for key, value in row.items() if key != "epoch"]
            write(row["epoch"], values)

        write(epochs_done + 1, session_log=SessionLog(status=SessionLog.START))
        yield log


def tag(column):
    """The tag of a column of the history."""
    return f"val/{column[4:]}" if column.startswith("val_") else f"train/{column}"


def image(folder, tag, step, images):
    """Log uint8 images [K, H, W, 3] side by side as one. Without TensorBoard, nothing is written. Raises OSError."""
    with _writer(folder) as write:
        if write:
            from PIL import Image
            row, file = np.concatenate(list(images), axis=1), io.BytesIO()
            Image.fromarray(row).save(file, "PNG")
            height, width, _ = row.shape
            content = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": file.getvalue()}
            write(step, [{"tag": tag, "image": content}])


def results(run_folder, script, scalars):
    """Write what `script` measured of a finished run; it replaces what this script wrote before.

    run_folder: whose `tb` has the events of its training; without that folder, or without TensorBoard, nothing is
    written. scalars: {tag: {step: number}}; None and NaN are left out. Raises OSError.
    """
    folder = Path(run_folder) / "tb"
    if not folder.is_dir() or _messages() is None:
        return
    before = list(folder.glob(f"*tfevents*.{script}"))
    by_step = {}
    for tag, values in scalars.items():
        for step, value in values.items():
            if value is not None and math.isfinite(value):
                by_step.setdefault(step, []).append({"tag": tag, "simple_value": value})
    # A new name, so that a TensorBoard that is running reads it; the file is moved into place when it is whole.
    with atomic(_new_file(folder, script)) as file:
        write = _write_to(file)
        for step, values in sorted(by_step.items()):
            write(step, values)
    for path in before:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(folder):
    """A function write(step, values) for a new event file in `folder`; None without TensorBoard."""
    if _messages() is None:
        yield None
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(_new_file(folder), "ab") as file:
        yield _write_to(file)


def _new_file(folder, *suffix):
    """The path of a new event file. TensorBoard reads the files of a folder in the order of their names."""
    host, process = socket.gethostname(), str(os.getpid())
    return Path(folder) / ".".join(["events.out.tfevents", str(time.time_ns() // 10 ** 6), host, process, *suffix])


def _messages():
    """(Event, Summary, RecordWriter) of TensorBoard, or None without it."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return None
    return Event, Summary, RecordWriter


def _write_to(file):
    """A function write(step, values) that adds an event to an open file, whose first event it has written."""
    event_class, summary_class, record_writer = _messages()
    records = record_writer(file)

    def write(step=0, values=(), **event):
        if values:
            event["summary"] = summary_class(value=[summary_class.Value(**value) for value in values])
        records.write(event_class(wall_time=time.time(), step=step, **event).SerializeToString())
        file.flush()

    write(file_version="brain.Event:2")
    return write
