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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_and_a_link_to_nowhere_do_not_stop_it(watched, folder, jpeg):
    def write():
        os.mkfifo(folder / "pipe.jpg")
        (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
        (folder / "round").symlink_to(folder)
        (folder / "a.jpg").write_bytes(jpeg)

    assert watched(write, *[None] * (LOOKS + 2)) == [("a.jpg", True), ("pipe.jpg", False)]


def test_a_folder_below_that_cannot_be_listed_is_noted_once_and_the_rest_is_answered(
        watched, folder, jpeg, monkeypatch, model, capsys):
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(folder / "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors, printed = [], print
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: errors.append(args[0]) if kwargs.get("file")
                        else printed(*args, **kwargs))
    assert watched(lambda: (folder / "a.jpg").write_bytes(jpeg), None, None) == [("a.jpg", True)]
    assert [line for line in errors if "closed" in line] == [
        f"note: images in {folder / 'closed'} are not seen: permission denied"]


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
