"""Scalars for TensorBoard, written as they come.

TensorBoard's own writer leaves the writing to a thread, whose error on a full disk is a
traceback beside the run. Here it is an OSError of the run, and its events files are the same.
"""

import contextlib
import os
import socket
import time
from pathlib import Path


@contextlib.contextmanager
def opened(folder, epochs_done):
    """A function that logs a row of history; it does nothing where TensorBoard is not installed.

    What an earlier, broken run logged after `epochs_done` is no longer shown.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        yield lambda row: None
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns() // 10 ** 6}.{socket.gethostname()}.{os.getpid()}"
    with open(Path(folder) / name, "ab") as file:
        records = RecordWriter(file)

        def write(**event):
            records.write(Event(wall_time=time.time(), **event).SerializeToString())
            file.flush()

        def log(row):
            tags = {f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}": value
                    for key, value in row.items() if key != "epoch"}
            write(step=row["epoch"], summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)
                                                            for tag, value in tags.items()]))

        write(file_version="brain.Event:2")
        write(step=epochs_done + 1, session_log=SessionLog(status=SessionLog.START))
        yield log
