"""Writes scalars and images for TensorBoard while a run is training.

TensorBoard's own writer writes from a thread: on a full disk, the error there is a traceback that does not stop the
run. Here it is an OSError of the run. The event files are the same.
"""

import contextlib
import io
import os
import socket
import time
from pathlib import Path

import numpy as np


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
            values = [{"tag": _tag(key), "simple_value": value} for key, value in row.items() if key != "epoch"]
            write(row["epoch"], values)

        write(epochs_done + 1, session_log=SessionLog(status=SessionLog.START))
        yield log


def _tag(column):
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


@contextlib.contextmanager
def _writer(folder):
    """A function write(step, values) for a new event file in `folder`; None without TensorBoard."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        yield None
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns() // 10 ** 6}.{socket.gethostname()}.{os.getpid()}"
    with open(Path(folder) / name, "ab") as file:
        records = RecordWriter(file)

        def write(step=0, values=(), **event):
            if values:
                event["summary"] = Summary(value=[Summary.Value(**value) for value in values])
            records.write(Event(wall_time=time.time(), step=step, **event).SerializeToString())
            file.flush()

        write(file_version="brain.Event:2")
        yield write
