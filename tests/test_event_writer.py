"""Scalars and images that a run writes for TensorBoard, also on a full disk."""

import io
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from kd import event_writer
from kd.report import event_files

ROW = {"epoch": 1, "lr": 0.5, "loss": 2.25, "val_macro_f1": 0.125}


def test_rows_are_read_back_by_tensorboard_and_a_restart_replaces_what_came_after_it(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with event_writer.opened(tmp_path / "tb", 0) as log:
        for epoch in (1, 2, 3):
            log({**ROW, "epoch": epoch})
    with event_writer.opened(tmp_path / "tb", 1) as log:  # killed, and gone on after epoch 1
        log({**ROW, "epoch": 2, "loss": 1.0})
    events = reader.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/lr", "val/macro_f1"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.25), (2, 1.0)]
    assert [event.value for event in events.Scalars("val/macro_f1")] == [0.125, 0.125]


def test_images_stand_side_by_side_as_one_that_is_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    images = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    event_writer.image(tmp_path, "samples", 7, images)
    [(step, data)] = event_files.read(tmp_path)[1]["samples"]
    assert step == 7 and np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.hstack(images))


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with event_writer.opened(tmp_path / "tb", 0) as log:
        log(ROW)
    event_writer.image(tmp_path / "tb", "samples", 0, np.zeros((2, 4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_here_and_not_in_a_thread(full_disk, monkeypatch):
    pytest.importorskip("tensorboard")
    loose = []
    monkeypatch.setattr(threading, "excepthook", loose.append)
    (full_disk / "tb").mkdir()
    with pytest.raises(OSError, match="No space left"), open(full_disk / "filler", "wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    with pytest.raises(OSError, match="No space left"):
        with event_writer.opened(full_disk / "tb", 0) as log:
            log(ROW)
    assert not loose
