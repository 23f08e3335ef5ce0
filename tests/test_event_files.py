"""TensorBoard event files of this project and of other systems, whole and damaged."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorboard")

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: E402
from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: E402

from kd import event_writer  # noqa: E402
from kd.report import event_files


def event(step, wall_time=1.0, **values):
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(step=step, wall_time=wall_time, summary=Summary(value=scalars))


def file_of(path, *events):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for message in events:
            RecordWriter(file).write(message.SerializeToString())
    return path


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(file, "PNG")
    return file.getvalue()


def masked_crc(data):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    return masked_crc32c(data)


def scalars(path, problems=None):
    return event_files.read(path, problems)[0]


def images(path):
    return event_files.read(path)[1]


def lists(history):
    return {tag: (steps.tolist(), values.tolist()) for tag, (steps, values) in history.items()}


def test_our_own_files_are_read_back_and_a_restart_replaces_what_came_after_it(tmp_path):
    for done, rows in ((0, [(1, 2.25), (2, 2.0), (3, 1.75)]), (1, [(2, 1.0)])):
        with event_writer.opened(tmp_path, done) as log:
            for epoch, loss in rows:
                log({"epoch": epoch, "loss": loss, "val_macro_f1": loss / 4})
        time.sleep(.002)
    assert lists(scalars(tmp_path)) == {"train/loss": ([1, 2], [2.25, 1.0]), "val/macro_f1": ([1, 2], [.5625, .25])}


def test_files_of_torch_are_read_with_their_images_and_subfolders(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as log:
        for step in (5, 10):
            log.add_scalar("val/accuracy", step / 16, step)
            log.add_image("sample", np.full((4, 6, 3), step, np.uint8), step, dataformats="HWC")
        log.add_scalars("losses", {"kd": .5}, 10)
        log.add_histogram("weights", np.arange(9.), 10)
    assert lists(scalars(tmp_path)) == {"losses_kd/losses": ([10], [.5]), "val/accuracy": ([5, 10], [.3125, .625])}
    [(tag, pictures)] = images(tmp_path).items()
    assert tag == "sample" and [step for step, _ in pictures] == [5, 10]
    assert np.asarray(Image.open(io.BytesIO(pictures[1][1]))).tolist() == np.full((4, 6, 3), 10).tolist()


def test_tensors_of_tensorflow_two_are_scalars_and_images(tmp_path):
    message = Event(step=3, wall_time=1.0)
    for tag, kind, field, content in (("content", 1, None, struct.pack("<f", .25)), ("field", 2, "double_val", .5),
                                      ("whole", 9, "int64_val", 7)):
        value = message.summary.value.add(tag=tag)
        value.tensor.dtype = kind
        if field:
            getattr(value.tensor, field).append(content)
        else:
            value.tensor.tensor_content = content
    histogram = message.summary.value.add(tag="histogram")
    histogram.tensor.dtype = 2
    histogram.tensor.tensor_shape.dim.add(size=4)
    histogram.tensor.double_val.extend([1, 2, 3, 4])
    image = message.summary.value.add(tag="image")
    image.tensor.dtype = 7
    image.tensor.string_val.extend([b"3", b"2", picture("red"), picture("blue")])
    text = message.summary.value.add(tag="text")
    text.tensor.dtype = 7
    text.tensor.string_val.extend([b"a", b"b", b"<script>"])
    file = file_of(tmp_path / "train" / "a.tfevents.1", message)
    assert lists(scalars(tmp_path)) == {
        "train/content": ([3], [0.25]), "train/field": ([3], [0.5]), "train/whole": ([3], [7.0]),
    }
    assert images(file) == {"image": [(3, picture("red"))]}


def test_files_are_taken_in_the_order_of_their_beginnings_and_a_later_one_replaces(tmp_path):
    file_of(tmp_path / "b.tfevents", event(1, 10, loss=4), event(2, 11, loss=3), event(3, 12, loss=2, other=5))
    file_of(tmp_path / "a.tfevents", event(2, 20, loss=7))  # begun later, whatever its name
    assert lists(scalars(tmp_path)) == {"loss": ([1, 2], [4, 7]), "other": ([3], [5])}
    restart = Event(step=2, wall_time=30, session_log=SessionLog(status=SessionLog.START))
    file_of(tmp_path / "c.tfevents", Event(wall_time=29, file_version="brain.Event:2"), restart)
    assert lists(scalars(tmp_path)) == {"loss": ([1], [4])}


@pytest.mark.parametrize("cut", [1, 5, 13, 30])
def test_a_file_cut_short_gives_what_stands_before_and_says_so(tmp_path, cut):
    file = file_of(tmp_path / "x.tfevents", *(event(k, k, loss=k) for k in range(1, 6)))
    whole, problems = file.read_bytes(), []
    file.write_bytes(whole[:-cut])
    assert lists(scalars(tmp_path, problems)) == {"loss": ([1, 2, 3, 4], [1, 2, 3, 4])}
    assert len(problems) == 1 and "cut short or damaged after 4 events" in problems[0] and "x.tfevents" in problems[0]
    file.write_bytes(whole)
    assert len(scalars(tmp_path, problems)["loss"][0]) == 5 and len(problems) == 1


def test_hostile_files_are_problems_and_never_errors(tmp_path):
    good = file_of(tmp_path / "good.tfevents", event(1, loss=1)).read_bytes()
    header = struct.pack("<Q", 2 ** 63)
    rng = np.random.default_rng(0)
    for k, data in enumerate((header + struct.pack("<I", masked_crc(header)) + b"x" * 99, b"\x00" * 64,
                              rng.bytes(500), good[:12] + rng.bytes(len(good)), b"PK\x03\x04 no events")):
        (tmp_path / f"{k}.tfevents").write_bytes(data)
    (tmp_path / "empty.tfevents").touch()
    (tmp_path / "folder.tfevents").mkdir()
    problems = []
    assert lists(scalars(tmp_path, problems)) == {"loss": ([1], [1])} and images(tmp_path) == {}
    assert len(problems) == 5
    for position in range(0, len(good), 3):  # one byte at a time
        broken = bytearray(good)
        broken[position] ^= 0x55
        (tmp_path / "0.tfevents").write_bytes(broken)
        scalars(tmp_path / "0.tfevents", [])


def test_nothing_there_is_nothing(tmp_path):
    assert scalars(tmp_path) == scalars(tmp_path / "missing") == images(tmp_path) == {}


def test_the_table_has_the_last_the_best_and_its_step(tmp_path):
    steps = np.array([1, 2, 3, 4])
    history = {
        "train/loss": (steps, np.array([3.0, 1.0, 1.0, 2.0])),
        "val/macro_f1": (steps, np.array([0.1, 0.4, np.nan, 0.2])),
        "train/lr": (steps, np.array([1.0, 2.0, 3.0, 4.0])),
        "val/acc": (steps[:1], np.array([np.nan])),
    }
    rows = event_files.table({"a": history})
    assert [tuple(row.values())[1:] for row in rows[:3]] == [
        ("train/loss", 2, 1, 2), ("val/macro_f1", 0.2, 0.4, 2), ("train/lr", 4, None, None),
    ]
    assert rows[3]["best"] is rows[3]["best_step"] is None and all(row["run"] == "a" for row in rows)
    assert list(rows[0]) == ["run", "tag", "last", "best", "best_step"]


def test_two_hundred_runs_are_quick(tmp_path):
    for run in range(200):
        file_of(tmp_path / f"run_{run}" / "x.tfevents", *(event(k, loss=k, f1=k / 9, lr=k) for k in range(10)))
    began = time.process_time()
    assert len(scalars(tmp_path)) == 600
    assert time.process_time() - began < 2
