"""Files are whole or not there, what cannot be read is one line, and a folder has one writer."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kd import files, machine, runs
from kd.errors import UserError
from kd.files import (
    _replace,
    atomic,
    check_writable,
    lock,
    read_csv,
    read_json,
    read_npz,
    read_yaml,
    write_csv,
    write_json,
    write_npz,
    write_text,
    write_yaml,
)

ROOT = Path(__file__).parent.parent


def python(code, *words, **options):
    """A process that runs `code` with `words` as sys.argv[1:]."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], cwd=ROOT, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, **options)


def finish(process):
    """Kill it as the system would, without a chance to tidy up."""
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


# ---- writing

@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "file", "old")
    with pytest.raises(error):
        with atomic(tmp_path / "file", "w") as file:
            file.write("new")
            raise error
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "other.json", {"value": object()})
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    write_text(tmp_path / "file", "old")
    with atomic(tmp_path / "file") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file", "old")
    process = python("import sys\nfrom kd import files\nwith files.atomic(sys.argv[1]) as file:\n"
                     "    file.write(b'new'); file.flush(); print('writing', flush=True); input()", tmp_path / "file")
    assert process.stdout.readline() == "writing\n"
    finish(process)
    assert (tmp_path / "file").read_text() == "old"


def test_a_written_file_has_the_usual_rights_and_new_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "a" / "b" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_another_program_has_open_for_a_moment_is_replaced_when_it_is_closed(tmp_path, monkeypatch):
    replace, refusals = os.replace, [PermissionError(13, "in use"), PermissionError(13, "in use")]

    def replace_or_refuse(source, target):
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace_or_refuse)
    monkeypatch.setattr(files, "WINDOWS", True)
    handle = os.open(tmp_path / "temporary", os.O_CREAT)
    os.close(handle)
    _replace(str(tmp_path / "temporary"), str(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"] and not refusals


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_half_written(full_disk):
    import torch

    from kd.train import checkpoint
    values = np.random.default_rng(0).random(30_000)
    (full_disk / "history.csv").write_text("old")
    writers = {"test.npz": lambda path: write_npz(path, values=values),
               "history.csv": lambda path: write_csv(path, [{"value": value} for value in values]),
               "metrics.json": lambda path: write_json(path, values),
               "best.pt": lambda path: checkpoint.save_tensors(path, {"values": torch.from_numpy(values)})}
    for name, write in writers.items():
        with pytest.raises(OSError) as caught:
            write(full_disk / name)
        assert caught.value.filename == str(full_disk / name) and caught.value.strerror == "No space left on device"
        assert os.listdir(full_disk) == ["history.csv"] and (full_disk / "history.csv").read_text() == "old"
    code = ("import sys\nfrom kd import errors, files\n"
            "errors.run(lambda: files.write_text(sys.argv[1], 'x' * 10**6))")
    done = subprocess.run(
        [sys.executable, "-c", code, str(full_disk / "a.txt")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no space left on device: {full_disk / 'a.txt'}\nFree some space")


def test_a_place_that_cannot_be_written_is_found_without_making_anything(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    places = [tmp_path / "file", tmp_path / "file" / "study"]
    places += [Path("/proc/nope/study")] if Path("/proc/self").exists() else []
    for place in places:
        with pytest.raises(UserError, match="cannot write to .*\nChoose another place with --out"):
            check_writable(place)


# ---- what is written reads back

def test_an_undefined_number_is_null_in_json(tmp_path):
    data = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], 3: np.float32("nan"), "n": np.int64(7), "t": np.bool_(True),
            "x": np.array([[1.0, np.nan]]), "s": "é", "none": None, "pair": (1, 2)}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "é" in text
    assert read_json(tmp_path / "a.json") == {
        "a": None, "b": [None, None, 1.5], "3": None, "n": 7, "t": True, "x": [[1.0, None]], "s": "é", "none": None,
        "pair": [1, 2]}


def test_csv_reads_back_as_text(tmp_path):
    rows = [
        {"id": "a,b", "text": 'say "yes"\nor\tno'}, {"id": "Łódź ☃", "text": ""},
        {"id": " x ", "text": None, "more": 0.1},
    ]
    write_csv(tmp_path / "a.csv", rows)
    assert read_csv(tmp_path / "a.csv", ("id", "text")) == [
        {"id": "a,b", "text": 'say "yes"\nor\tno', "more": ""}, {"id": "Łódź ☃", "text": "", "more": ""},
        {"id": " x ", "text": "", "more": "0.1"}]
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


def test_files_as_windows_programs_save_them_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,group\r\nx,1\r\n\r\ny,2,\r\n")
    assert read_csv(tmp_path / "a.csv", ("id", "group")) == [{"id": "x", "group": "1"}, {"id": "y", "group": "2"}]
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_yaml_and_npz_read_back(tmp_path):
    options = {"none": None, "yes": True, "list": [0, 1.5, "x"], "text": "no", "number as text": "1_000", "small": 1e-5}
    write_yaml(tmp_path / "a.yaml", options)
    assert read_yaml(tmp_path / "a.yaml") == options and list(read_yaml(tmp_path / "a.yaml")) == list(options)
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    arrays = {"ids": np.array(["a", "é"]), "logits": np.eye(2, dtype=np.float32)}
    write_npz(tmp_path / "a.npz", **arrays)
    read = read_npz(tmp_path / "a.npz", ("ids",))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and (read[name] == array).all()


# ---- what cannot be read

READERS = {"json": read_json, "yaml": read_yaml, "csv": read_csv, "npz": read_npz}


def refused(kind, path, words):
    with pytest.raises(UserError) as caught:
        READERS[kind](path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message and len(caught.value.message) < 600
    assert words in caught.value.message


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_missing_or_a_folder_or_binary_is_refused_in_one_line(kind, tmp_path):
    refused(kind, tmp_path / "gone", "no such file")
    refused(kind, tmp_path, "is a folder, not a file")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 9)
    refused(kind, tmp_path / "binary", "cannot read")
    (tmp_path / "utf16").write_bytes("id,group\n1,2\n".encode("utf-16"))
    if kind == "csv":  # spreadsheet programs write it
        assert READERS[kind](tmp_path / "utf16") == [{"id": "1", "group": "2"}]
    else:
        refused(kind, tmp_path / "utf16", "cannot read")


@pytest.mark.parametrize("kind, content", [
    ("json", b""), ("json", b'{"a": '), ("json", b"[" * 100_000), ("json", b"9" * 5000),
    ("yaml", b"a: [1"), ("yaml", b"a: b: c"), ("yaml", b"\tb"), ("yaml", b"a: 2020-13-45"), ("yaml", b"[" * 600),
    ("yaml", b"a: !!python/object/apply:os.getpid []"), ("yaml", b"? [a]\n: 1"), ("yaml", b"a: " + b"9" * 5000),
    ("csv", b'id\n"' + b"x" * 200_000 + b'"'), ("npz", b""), ("npz", b"PK\x03\x04"), ("npz", b"ids,labels\n1,2\n"),
    ("npz", pickle.dumps([1, 2])),
])
def test_a_damaged_file_is_refused_in_one_line(kind, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(kind, tmp_path / "file", "cannot read")


def test_a_mapping_is_needed_where_options_are_read(tmp_path):
    for text in ("- a\n- b", "text", "3"):
        (tmp_path / "a.yaml").write_text(text)
        refused("yaml", tmp_path / "a.yaml", "is not a list of `option: value` lines")


def test_what_a_table_lacks_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id;group\n1;2\n")
    with pytest.raises(UserError) as caught:
        read_csv(path, ("id", "group"))
    assert (
        caught.value.message.endswith("no column id, group")
        and "separated by ';'; save it again with commas" in caught.value.hint
    )
    path.write_text("id,grp\n1,2\n")
    with pytest.raises(UserError, match="no column group\nIt has: id, grp"):
        read_csv(path, ("id", "group"))
    path.write_bytes("id,group\nmélanome,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not text in UTF-8\nSave it again in UTF-8"):
        read_csv(path, ("id", "group"))
    path.write_text("")
    with pytest.raises(UserError, match="no column id\nIt has: nothing"):
        read_csv(path, ("id",))
    path.write_text("id,group\n1,2\n3\n")
    with pytest.raises(UserError, match="shorter than its header"):
        read_csv(path, ("id", "group"))
    path.write_text("id,label\n1,nevus, dysplastic\n")  # a shifted column is worse than none
    with pytest.raises(UserError, match="longer than its header"):
        read_csv(path)


def test_npz_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, ids=np.array([{"a": 1}], dtype=object))
    refused("npz", path, "pickled objects, which can run code")
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    refused("npz", path, "no .npz of named arrays")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ids", "text")
    refused("npz", path, "other files than arrays")
    write_npz(path, labels=np.arange(3))
    with pytest.raises(UserError, match="no array ids\nIt has: labels"):
        read_npz(path, ("ids", "labels"))


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_code_hidden_in_an_npz_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", ids=np.array([Trap()], dtype=object))
    refused("npz", "a.npz", "pickled objects")
    assert os.listdir() == ["a.npz"]


def test_no_damage_to_an_npz_gives_a_traceback(tmp_path):
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    write_npz(path, ids=np.array(["a", "b"] * 20), logits=rng.random((40, 3)))
    whole = path.read_bytes()
    intact = 0
    for _ in range(400):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken[:rng.integers(1, len(whole) + 200)])
        try:
            intact += len(read_npz(path)) > 0
        except UserError:
            pass
    assert intact < 400


def test_an_npz_that_claims_to_be_huge_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("ids.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10 ** 15,)})
    refused("npz", path, "cannot read")


# ---- one writer at a time

HOLD = """
import sys
from kd import files
with files.lock(sys.argv[1]):
    print("locked", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = python(HOLD, tmp_path / ".lock")
    assert process.stdout.readline() == "locked\n"
    yield process
    if process.poll() is None:
        finish(process)


def test_a_second_writer_gets_an_error_that_names_the_first(holder, tmp_path):
    with pytest.raises(UserError) as caught:
        with lock(tmp_path / ".lock", what="runs/study"):
            pytest.fail("two writers")
    assert f"runs/study is being written by process {holder.pid} on " in caught.value.message
    assert holder.poll() is None  # and the first goes on


def test_a_killed_holder_leaves_no_lock(holder, tmp_path):
    finish(holder)
    with lock(tmp_path / ".lock"):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock.owner").read_text()
    assert not (tmp_path / ".lock.owner").exists()


def test_who_waits_gets_the_lock_when_it_is_free(holder, tmp_path):
    process = python("import sys\nfrom kd import files\nwith files.lock(sys.argv[1], wait=True, what='the cache'):\n"
                     "    print('mine')", tmp_path / ".lock")
    assert (
        process.stdout.readline()
        == f"waiting for {(tmp_path / '.lock.owner').read_text()}, which is writing the cache\n"
    )
    time.sleep(0.2)
    assert process.poll() is None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert process.stdout.readline() == "mine\n" and process.wait() == 0
    finish(process)


def test_a_lock_ends_with_its_block_even_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError):
            with lock(tmp_path / ".lock"):
                raise ValueError
    with lock(tmp_path / ".lock"):
        with pytest.raises(UserError, match="is being written by process"):
            with lock(tmp_path / ".lock"):
                pass


# ---- run folders

def test_a_run_is_found_by_its_test_predictions(tmp_path):
    seeds = [tmp_path / "study" / "resnet18_kd" / name for name in ("seed_0", "seed_1", "seed_2")]
    for seed in seeds:
        seed.mkdir(parents=True)
    assert not runs.is_run(tmp_path) and not runs.finished(seeds[0])
    with pytest.raises(UserError, match="no finished run at or below"):
        runs.find(tmp_path)
    for seed in seeds[:2]:
        write_npz(seed / "predictions" / "test.npz", ids=np.arange(2))
    assert runs.find(tmp_path) == runs.find(tmp_path / "study") == seeds[:2] and runs.find(seeds[1]) == [seeds[1]]
    assert runs.is_run(tmp_path) and runs.is_run(seeds[0]) and not runs.is_run(seeds[2])
    assert runs.finished(seeds[0]) and not runs.finished(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        runs.find(tmp_path / "gone")
    for file in (seeds[0] / "predictions" / "test.npz", seeds[0] / "best.pt", tmp_path / "file"):
        file.touch()
        with pytest.raises(UserError, match=f"{file.name} is a file, and a run is a folder") as error:
            runs.find(file)
        assert error.value.hint == (f"Name its folder: {seeds[0]}" if seeds[0] in file.parents else "")
    assert not runs.is_run(tmp_path / "gone") and not runs.is_run(seeds[0] / "predictions" / "test.npz")


def test_a_folders_place_tells_study_model_and_seed(tmp_path, monkeypatch):
    folder = tmp_path / "study" / "resnet18_kd" / "seed_0"
    folder.mkdir(parents=True)
    assert runs.describe(folder) == ("study", "resnet18_kd", "seed_0")
    monkeypatch.chdir(folder)
    assert runs.describe(".") == ("study", "resnet18_kd", "seed_0")
    root = Path(folder.anchor)
    assert runs.describe(root / "seed_0")[2] == "seed_0" and len(runs.describe(root)) == 3


# ---- what a result depends on

def test_the_environment_is_plain_values_and_a_missing_package_is_null(monkeypatch):
    monkeypatch.setattr(machine, "ENVIRONMENT_PACKAGES", ("numpy", "no-such-package"))
    environment = machine.environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["numpy"] == np.__version__ and environment["no-such-package"] is None
    assert environment["cpu"] and environment["threads"] >= 1


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_revision_is_that_of_the_projects_own_history(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True,
                       capture_output=True)

    (tmp_path / "own.py").write_text("1")
    (tmp_path / "copied.py").write_text("1")
    assert machine.git_revision(tmp_path / "own.py") is None
    git("init")
    git("add", "own.py")
    git("commit", "-m", "first")
    revision = machine.git_revision(tmp_path / "own.py")
    assert len(revision) == 12 and machine.git_revision(tmp_path / "copied.py") is None
    (tmp_path / "own.py").write_text("2")
    assert machine.git_revision(tmp_path / "own.py") == f"{revision}+changes"
