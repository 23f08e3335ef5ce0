"""predict.py --watch: each new image once, when it is whole; what is damaged does not end it, and Ctrl-C does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import predict
from kd.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LOOKS = int(predict.PATIENCE / predict.POLL)


@pytest.fixture(scope="module")
def model(exported):
    return exported[0] / "exports" / "model.onnx"


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    """The bytes of an image."""
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def output(model, folder, capsys, monkeypatch):
    """A function that runs predict.py on `folder` and does one of `steps` before each look, a function or None; after
    the last one Ctrl-C is pressed. Returns what is printed."""
    def run(*steps, images=(), kind="table"):
        todo, clock = iter(steps), [0.0]

        def sleep(seconds):
            clock[0] += seconds
            try:
                step = next(todo)
            except StopIteration:
                raise KeyboardInterrupt from None
            if step:
                step()

        monkeypatch.setattr(predict, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
        predict.main([str(model), *map(str, images), "--watch", str(folder), "--format", kind])
        return capsys.readouterr().out
    return run


@pytest.fixture
def notes(monkeypatch):
    """The notes that predict.py prints, a list of lines."""
    lines, printed = [], print
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: lines.append(args[0])
                        if kwargs.get("file") and args[0].startswith("note:") else printed(*args, **kwargs))
    return lines


@pytest.fixture
def watched(output, folder):
    """The same, but it returns [(name, whether it has an answer)] in the order of the answers."""
    def run(*steps, images=()):
        rows = [json.loads(line) for line in output(*steps, images=images, kind="jsonl").splitlines()]
        return [(Path(row["file"]).relative_to(folder).as_posix(), "error" not in row) for row in rows]
    return run


def test_an_image_that_is_new_is_answered_once_and_one_that_was_there_is_not(watched, folder, jpeg):
    (folder / "old.jpg").write_bytes(jpeg)
    below = folder / "below" / "deep"
    assert watched(
        lambda: (folder / "a.jpg").write_bytes(jpeg), None, None, lambda: (folder / "b.jpg").write_bytes(jpeg), None,
        lambda: (below.mkdir(parents=True), (below / "c.jpg").write_bytes(jpeg)), None, None, None,
    ) == [("a.jpg", True), ("b.jpg", True), ("below/deep/c.jpg", True)]


def test_images_that_are_named_are_answered_first_and_not_again(watched, folder, jpeg):
    (folder / "old.jpg").write_bytes(jpeg)
    assert watched(None, lambda: (folder / "new.jpg").write_bytes(jpeg), None, None, images=[folder]) == [
        ("old.jpg", True), ("new.jpg", True)]


def test_a_file_that_grows_is_waited_for(watched, folder, jpeg):
    def written(path, piece):
        def step():
            with open(path, "ab") as file:
                file.write(piece)
        return step

    pieces = [jpeg[k:k + len(jpeg) // 5 + 1] for k in range(0, len(jpeg), len(jpeg) // 5 + 1)]
    steps = [written(folder / "a.jpg", piece) for piece in pieces]
    assert watched(*steps) == []  # never twice the same
    (folder / "a.jpg").unlink()
    assert watched(*steps, None) == [("a.jpg", True)]
    (folder / "a.jpg").unlink()
    with_pauses = [step for one in steps for step in (one, None, None, None)]
    assert watched(*with_pauses, None) == [("a.jpg", True)]  # a half is no answer, and no error either


def test_what_cannot_be_read_for_long_is_an_error_once_and_answered_when_it_is_written_anew(watched, folder, jpeg):
    first = lambda: (folder / "a.jpg").write_bytes(jpeg[:len(jpeg) // 2])  # noqa: E731
    again = lambda: (folder / "a.jpg").write_bytes(jpeg)  # noqa: E731
    other = lambda: (folder / "b.jpg").write_bytes(jpeg)  # noqa: E731
    wait = [None] * (LOOKS + 1)
    assert watched(first, *wait[:LOOKS - 1]) == []
    (folder / "a.jpg").unlink()
    assert watched(first, other, *wait, *wait, again, None) == [("b.jpg", True), ("a.jpg", False), ("a.jpg", True)]


def test_a_file_under_the_same_name_is_new(watched, folder, jpeg):
    write = lambda: (folder / "live.jpg").write_bytes(jpeg)  # noqa: E731
    other = lambda: (folder / "live.jpg").write_bytes(jpeg + b"\0")  # noqa: E731
    assert watched(write, None, None, other, None, None, (folder / "live.jpg").unlink, None, write, None, None) == [
        ("live.jpg", True)] * 3


def test_a_file_that_changes_while_it_is_read_is_read_again(watched, folder, jpeg, monkeypatch):
    whole, todo = predict.onnx_model.Model.predict_all, [jpeg + b"\0"]

    def slow(self, sources, batch):
        for answer in whole(self, sources, batch):
            if todo:
                (folder / "a.jpg").write_bytes(todo.pop())
            yield answer

    monkeypatch.setattr(predict.onnx_model.Model, "predict_all", slow)
    assert watched(lambda: (folder / "a.jpg").write_bytes(jpeg), None) == []
    (folder / "a.jpg").unlink()
    todo.append(jpeg + b"\0")
    assert watched(lambda: (folder / "a.jpg").write_bytes(jpeg), None, None, None) == [("a.jpg", True)]


def test_hidden_names_and_other_files_are_passed_over_and_content_decides_without_suffix(watched, folder, jpeg):
    def write():
        for name in (".part.jpg", ".hidden/x.jpg", "__MACOSX/x.jpg", "scan0001", "a.dng"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(jpeg)
        (folder / "settings.xml").write_text("<xml/>")
        (folder / "gone.jpg").write_bytes(jpeg)

    assert watched(write, (folder / "gone.jpg").unlink, lambda: (folder / ".part.jpg").rename(folder / "whole.jpg"),
                   *[None] * (LOOKS + 2)) == [("scan0001", True), ("whole.jpg", True)]


def test_a_file_that_has_its_full_size_before_its_content_is_waited_for(watched, folder, jpeg):
    def written(share):
        def step():
            with open(folder / "a.jpg", "wb") as file:
                file.write(jpeg[:int(share * len(jpeg))])
                file.truncate(len(jpeg) + 2 * predict.TAIL)
        return step

    steps = [step for share in (0, .3, .6) for step in (written(share), None, None, None)]
    assert watched(*steps, (lambda: (folder / "a.jpg").write_bytes(jpeg)), None) == [("a.jpg", True)]
    (folder / "a.jpg").unlink()
    assert watched(written(1), *[None] * (LOOKS - 1)) == []
    (folder / "a.jpg").unlink()
    assert watched(written(1), *[None] * (LOOKS + 1)) == [("a.jpg", True)]  # then the zeros are its content


def test_what_is_no_image_is_noted_once_of_each_kind(watched, folder, jpeg, notes):
    def write():
        for name in ("a.xml", "b.xml", "c.x\x1b[2J\n", "scan"):
            (folder / name).write_bytes(b"\0" * 128 + b"DICM")
        (folder / "image").write_bytes(b"")  # and no word of what becomes an image

    assert watched(write, lambda: (folder / "image").write_bytes(jpeg), *[None] * (LOOKS + 2)) == [("image", True)]
    first, *others = sorted(notes)
    assert first.startswith(f"note: {folder}{os.sep}") and ".xml is not read as an image, and no further" in first
    assert others == [f"note: {folder / name} is not read as an image, and no further file of its kind is: {kind}"
                      for name, kind in (("c.x\\x1b[2J\\n", ".x\\x1b[2j\\n"), ("scan", "DICOM"))]


def test_an_image_that_is_taken_away_is_answered_if_it_was_read_and_noted_if_not(
        watched, folder, jpeg, notes, monkeypatch):
    whole = predict.onnx_model.Model.predict_all

    def take_away(self, sources, batch):
        (folder / "b.jpg").unlink(missing_ok=True)
        for answer in whole(self, sources, batch):
            (folder / "a.jpg").unlink(missing_ok=True)
            yield answer

    monkeypatch.setattr(predict.onnx_model.Model, "predict_all", take_away)
    write = lambda: [(folder / name).write_bytes(jpeg) for name in ("a.jpg", "b.jpg")]  # noqa: E731
    assert watched(write, None, None, None) == [("a.jpg", True)]
    assert notes == [f"note: {folder / 'b.jpg'} was gone before it was read"]


def test_many_images_at_once_are_looked_up_and_not_searched_for(folder, monkeypatch):
    class Counted(type(folder)):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return super().__eq__(other)
        __hash__ = type(folder).__hash__

    files = {Counted(f"{k}.jpg"): (1, 1) for k in range(500)}
    looks = iter([files, files])
    monkeypatch.setattr(predict, "scan", lambda *_: next(looks))
    monkeypatch.setattr(predict, "state", lambda _: (1, 1))
    monkeypatch.setattr(predict, "ends_in_zeros", lambda _: False)
    clock = iter(range(10 ** 6))
    monkeypatch.setattr(predict, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(clock)))
    model = SimpleNamespace(predict_all=lambda images, batch: ({} for _ in images))
    with pytest.raises(RuntimeError):  # of the third look
        list(predict.watch(model, folder, 8, {}))
    assert Counted.compared < 20 * len(files)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_and_a_link_do_not_stop_it_and_are_not_passed_over_in_silence(watched, folder, jpeg, notes):
    def write():
        os.mkfifo(folder / "pipe.jpg")
        (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
        (folder / "round").symlink_to(folder)
        (folder / "a.jpg").write_bytes(jpeg)

    assert watched(write, *[None] * (LOOKS + 2)) == [("a.jpg", True), ("pipe.jpg", False)]
    assert notes == [f"note: images in {folder / 'round'} are not seen: it is a link to a folder",
                     f"note: {folder / 'nowhere.jpg'}, and what is like it in its folder, is not seen: no such file or "
                     "directory", "note: 1 of 2 files could not be read"]


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_what_cannot_be_seen_for_a_moment_is_not_answered_again(watched, folder, jpeg, notes, monkeypatch, call):
    (folder / "share").mkdir()
    real, fails = getattr(os, call), []

    def fail(path, **options):
        if fails and "share" in os.fspath(path) and (call == "scandir" or os.fspath(path).endswith("jpg")):
            raise OSError(5, "Input/output error", os.fspath(path))
        return real(path, **options)

    monkeypatch.setattr(os, call, fail)
    write = lambda: (folder / "share" / "a.jpg").write_bytes(jpeg)  # noqa: E731
    other = lambda: [(folder / name).write_bytes(jpeg) for name in ("share/b.jpg", "c.jpg")]  # noqa: E731
    assert watched(write, None, lambda: fails.append(1), other, None, fails.clear, None, None) == [
        ("share/a.jpg", True), ("c.jpg", True), ("share/b.jpg", True)]
    assert len(notes) == 1 and notes[0].endswith("not seen: input/output error")


def test_files_that_may_not_be_looked_at_are_noted_once(watched, folder, jpeg, notes, monkeypatch):
    (folder / "closed").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / "closed" / name).write_bytes(jpeg)
    look = os.stat

    def refuse(path, **options):
        if os.fspath(path).startswith(str(folder / "closed") + os.sep):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", refuse)  # as in a folder that may be listed and not entered
    assert watched(None, None, None) == []
    line, = notes
    assert line.startswith(f"note: {folder / 'closed'}{os.sep}") and line.endswith(
        ".jpg, and what is like it in its folder, is not seen: permission denied")


def test_a_folder_below_that_cannot_be_listed_is_noted_once_and_the_rest_is_answered(
        watched, folder, jpeg, monkeypatch, notes):
    closed = folder / "closed\n\x1b[2J"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert watched(lambda: (folder / "a.jpg").write_bytes(jpeg), None, None) == [("a.jpg", True)]
    assert notes == [f"note: images in {folder}{os.sep}closed\\n\\x1b[2J are not seen: permission denied"]


@pytest.mark.parametrize("name, reason", [("none", "no such file or directory"), ("file", "not a directory"),
                                          ("n" * 300, "file name too long")])
def test_what_is_no_folder_is_one_line_and_there_is_a_way_out(model, tmp_path, name, reason, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot watch .*: {reason}") as caught:
        predict.main([str(model), "--watch", str(tmp_path / name)])
    assert caught.value.hint.startswith("Make that folder, or name another with --watch")
    if name == "none":
        (tmp_path / name).mkdir()
        monkeypatch.setattr(predict.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
        assert predict.main([str(model), "--watch", str(tmp_path / name)]) == 0


def test_a_folder_that_is_removed_ends_it_in_one_line_after_the_answers(watched, folder, jpeg, capsys):
    with pytest.raises(UserError, match="cannot watch .*in: no such file"):
        watched(lambda: (folder / "a.jpg").write_bytes(jpeg), None, lambda: shutil.rmtree(folder), None)
    assert json.loads(capsys.readouterr().out)["file"] == str(folder / "a.jpg")


def test_a_table_begins_with_what_its_columns_mean_and_csv_with_their_names(output, model, folder, jpeg):
    steps = (lambda: (folder / "a.jpg").write_bytes(jpeg), None)
    table = output(*steps)
    explained = predict.onnx_model.Model(model).explain()
    assert table.startswith(f"{explained}\nlabel ") and table.endswith("a.jpg\n")
    (folder / "a.jpg").unlink()
    header, row = output(*steps, kind="csv").splitlines()
    assert header.startswith("file,label,confidence") and row.startswith(str(folder / "a.jpg"))


def test_lines_come_as_images_do_and_ctrl_c_ends_it_cleanly(model, folder, jpeg):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C, and
    process = subprocess.Popen(  # so would the program that is started here
        [sys.executable, ROOT / "predict.py", model, "--watch", folder, "--format", "jsonl", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGINT, before)
    guard = threading.Timer(100, process.kill)  # where a line is kept back, reading it would wait for ever
    guard.start()
    try:
        assert "watching" in process.stderr.readline()
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(jpeg)
            row = json.loads(process.stdout.readline())
            assert row["file"] == str(folder / name) and row["most_probable"]
        process.send_signal(signal.SIGINT if os.name != "nt" else signal.CTRL_C_EVENT)
        out, errors = process.communicate()
        assert (process.returncode, out, errors) == (0, "", "")
    finally:
        guard.cancel()
        process.kill()
