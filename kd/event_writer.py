"""Scalars and images for TensorBoard, written as they come.

TensorBoard's own writer leaves the writing to a thread, whose error on a full disk is a
traceback beside the run. Here it is an OSError of the run, and its events files are the same.
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
    """A function that logs a row of history; it does nothing where TensorBoard is not installed.

    What an earlier, broken run logged after `epochs_done` is no longer shown.
    """
    with _events(folder) as write:
        if not write:
            yield lambda row: None
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog

        def log(row):
            write(row["epoch"], [{"tag": f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}", "simple_value": value}
                                 for key, value in row.items() if key != "epoch"])

        write(epochs_done + 1, session_log=SessionLog(status=SessionLog.START))
        yield log


def image(folder, tag, step, images):
    """Log uint8 images [K, H, W, 3] side by side as one; nothing where TensorBoard is not installed."""
    with _events(folder) as write:
        if write:
            from PIL import Image
            file, row = io.BytesIO(), np.concatenate(list(images), axis=1)
            Image.fromarray(row).save(file, "PNG")
            write(step, [{"tag": tag, "image": {"height": row.shape[0], "width": row.shape[1], "colorspace": 3,
                                                "encoded_image_string": file.getvalue()}}])


@contextlib.contextmanager
def _events(folder):
    """write(step, values, ...) into a new events file; None without TensorBoard."""
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
