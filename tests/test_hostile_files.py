"""Files that are damaged, hostile or huge: one line that names the file, within seconds and a gigabyte."""

import copy
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import registry
from kd import errors, files, objective, predictions
from kd.errors import UserError
from kd.report import event_files, notes
from kd.study import plan
from kd.text import align_columns
from kd.train import distributed, engine, options, setup, weights

ROOT = Path(__file__).parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="a system without named pipes")
READERS = {
    "json": files.read_json, "yaml": files.read_yaml, "csv": files.read_csv, "npz": predictions.read,
    "pt": weights.safe_load, "md": notes.read, "txt": notes.read, "docx": notes.read,
}


def refused(read, *arguments):
    """The UserError that read(*arguments) raises, of one line, within five seconds."""
    began = time.process_time()  # since other programs may take the processor meanwhile
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert time.process_time() - began < 5
    assert "\n" not in caught.value.message and len(caught.value.message) < 1100
    return str(caught.value)


# ---- what is not a file, or cannot be opened


@pytest.fixture(params=["folder", "pipe", "socket", "device", "loop", "dangling", "gone", "long"])
def not_a_file(request, tmp_path):
    """(a function from a suffix to a path that is no file, words of the error)."""
    if os.name == "nt" and request.param not in ("folder", "gone"):
        pytest.skip("a system without named pipes")

    def make(suffix):
        path = tmp_path / f"x.{suffix}"
        if request.param == "folder":
            path.mkdir()
        elif request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            os.chdir(tmp_path)  # because the path of a socket may have a hundred characters only
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        elif request.param in ("loop", "dangling"):
            path.symlink_to(path.name if request.param == "loop" else "nowhere")
        return path if request.param != "long" else tmp_path / ("x" * 300 + f".{suffix}")

    words = {"folder": "is a folder", "pipe": "is a pipe, not a file", "socket": "is a socket, not a file",
             "device": "is a device, not a file", "loop": "a symbolic link that leads back to itself",
             "dangling": "no such file", "gone": "no such file", "long": "ame too long"}[request.param]
    before = os.getcwd()
    yield make, words
    os.chdir(before)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_file_is_named_and_waits_for_nothing(kind, not_a_file):
    make, words = not_a_file
    path = make(kind)
    assert words in refused(READERS[kind], path) and path.name[:200] in refused(READERS[kind], path)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_without_permission_is_not_called_damaged(kind, tmp_path, monkeypatch):
    def no_permission(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / f"x.{kind}").touch()
    monkeypatch.setattr(os, "open", no_permission)
    error = refused(READERS[kind], tmp_path / f"x.{kind}")
    assert "no permission to read" in error and "Nothing is wrong with the file" in error and "delete" not in error


@pytest.mark.parametrize("raised, words", [
    (RecursionError(), "nested too deeply"), (MemoryError(), "not enough memory"), (OSError(5, "Bad disk"), "Bad disk"),
    (OverflowError("too large"), "too large"), (KeyError(), "KeyError"),
    (UnicodeDecodeError("utf-8", b"", 0, 1, ""), "not text in UTF-8"),
])
def test_whatever_a_reader_raises_is_one_line(raised, words):
    def read():
        with files.reading_errors("the_file"):
            raise raised

    assert words in refused(read) and "the_file" in refused(read)


def test_a_path_with_a_null_character_or_half_a_pair_is_no_file():
    for name in ("a\0b", "a\ud800"):
        assert "no such file" in refused(files.read_json, name)
    assert "no such path" in str(errors.of_user(ValueError("embedded null byte")))


# ---- bounds


@pytest.mark.parametrize("kind, limit", [
    ("json", files.JSON), ("yaml", files.YAML), ("csv", files.CSV), ("npz", predictions.FILE), ("md", notes.LARGEST),
    ("pt", weights.LARGEST), ("docx", notes.WORD)])
def test_a_file_of_any_size_is_refused_unread(kind, limit, tmp_path):
    path = tmp_path / f"x.{kind}"
    with open(path, "wb") as file:
        file.truncate(limit + 1)  # takes no space
    assert "is too large" in refused(READERS[kind], path)


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_archive_that_unpacks_hugely_is_refused_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "FILE", 2 ** 25)
    path = tmp_path / "x.npz"
    rows = npy(np.zeros(2 ** 20, np.uint8))
    zipped(path, [("labels.npy", rows), *((f"a{k}.npy", bytes(2 ** 24)) for k in range(4))])
    assert path.stat().st_size < 2 ** 21
    assert "65.0 MiB unpacked, and at most 32.0 MiB" in refused(predictions.read, path)
    zipped(tmp_path / "x.pt", [("x/data.pkl", pickle.dumps({})), ("x/data/0", bytes(2 ** 24))])
    assert "too large" in refused(weights.safe_load, tmp_path / "x.pt")
    zipped(path, [(f"{k}.npy", b"") for k in range(files.MEMBERS + 1)])
    assert "more than 1000 parts" in refused(files.read_npz, path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(path, [("labels.npy", rows), ("labels.npy", rows)])
    assert "two of one name" in refused(files.read_npz, path)


def test_the_header_of_an_array_may_promise_anything(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10 ** 13,)})
    zipped(tmp_path / "x.npz", [("labels.npy", header.getvalue())])
    refused(predictions.read, tmp_path / "x.npz")


def predictions_file(path, **changes):
    arrays = {"labels": np.array([0, 1, 1]), "logits": 4 * np.eye(3), "class_names": np.array(["a", "b", "c"])}
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize("changes, words", [
    ({"labels": np.array([0, 1, 10 ** 10])}, "labels go from 0 to 1e+10"),
    ({"labels": np.array([0, 1, -1])}, "labels go from -1 to 1"),
    ({"labels": np.array([0, 1, 2 ** 64 - 1], np.uint64)}, "1.84467e+19"),
    ({"logits": np.zeros((3, 20_000)), "class_names": np.arange(20_000)}, "3 images of 20,000 classes; at most 100"),
    ({"class_names": np.frombuffer("a".encode("utf-32-le") + struct.pack("<II", 0xD800, 0x110000), "<U1")}, "not text"),
    ({"class_names": np.array(["a", "b", "\ud800"])}, "not text"),
    ({"class_names": np.zeros(3, [("x", "i4")])}, "not"),
])
def test_predictions_keep_to_what_can_be_computed(tmp_path, changes, words):
    assert words in refused(predictions.read, predictions_file(tmp_path / "x.npz", **changes))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize("text, words", [
    ("lr: 1\nsize: 2\nlr: 3\n", "the key 'lr' is given twice, in lines 1 and 3"),
    ("distill: {a: 1}\n\ndistill: {b: 1}\n", "the key 'distill' is given twice, in lines 1 and 3"),
    ("distill:\n  methods:\n    kd: {alpha: 0}\n    kd: {alpha: 1}\n", "'kd' is given twice, in lines 3 and 4"),
    ("yes: 1\ntrue: 2\n", "twice"), (BOMB, "line 2 has the alias *a"), ("a: &a [*a]", "alias *a"),
    ('out: "a\\0b"', "line 1 has a character that no name can have"), ('out: "\\ud800"', "line 1"),
    ("lr: 0x" + "f" * 10_000, "the number in line 1 is too large"),
    ("a: " + "[" * 60_000, "nested too deeply"), ("? " * 5000, "cannot read"), ("!!timestamp x", "cannot read"),
], ids=range(12))
def test_yaml_drops_nothing_and_stands_for_nothing_larger(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    assert words in refused(files.read_yaml, tmp_path / "x.yaml")


def test_two_spellings_of_an_option_are_twice_the_option():
    assert "split_seed is there twice" in refused(options.underscored, {"split-seed": 1, "split_seed": 2}, "x.yaml")


def test_what_is_written_with_one_list_twice_is_read_back(tmp_path):
    shared = [0, 1]
    files.write_yaml(tmp_path / "x.yaml", {"seeds": shared, "others": shared})
    assert files.read_yaml(tmp_path / "x.yaml") == {"seeds": [0, 1], "others": [0, 1]}


@pytest.mark.parametrize("text, words", [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"), ("[" * 100_000, "nested too deeply"),
    ('{"a": ' * 100_000, "nested too deeply"), ("9" * 20, "a whole number of 20 digits"),
    ('["\\ud800"]', "cannot read"),
], ids=range(5))
def test_json_likewise(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    assert words in refused(files.read_json, tmp_path / "x.json")


@pytest.mark.parametrize("text, words", [
    ("id,group,id\n1,2,3\n", "has the column 'id' twice"), ("id\n" + "x\n" * 500_001, "more than 500,000 rows"),
    ("id\n" + "," * 5_000_001, "5,000,000 cells"), ('id\n"' + "x" * 200_000, "field larger"),
], ids=range(4))
def test_csv_has_bounds_and_one_column_of_a_name(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    assert words in refused(files.read_csv, tmp_path / "x.csv")


@pytest.mark.parametrize("spec", ["kd,x=" + "[" * 2000, "kd,x=[&a [1], *a]", "kd,x=!!timestamp x", "kd,x=!!bool x"],
                         ids=range(4))
def test_the_options_of_a_part_are_as_yaml(spec):
    assert "cannot read" in refused(objective.parse_spec, spec)


@pytest.mark.parametrize("name, text, words", [
    ("x.md", "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "b\n" * 1000, "and 1,000 columns, and at most 20,000"),
    ("x.md", "-" * 60_000, "a line of 60,000 characters"), ("x.txt", "a " + "-" * 60_000 + " a", "a line of 60,004"),
    ("x.md", "# a\n" * 30_000, "30,000 headings"), ("x.md", "# a\n" * 100_000, "is too large: 390.6 KiB"),
    ("x.txt", "a\n\n" * 40_000, "40,000 headings"), ("x.md", "[a\n" * 20_000, ""),
], ids=range(7))
def test_notes_have_bounds(tmp_path, name, text, words):
    pytest.importorskip("markdown_it")
    (tmp_path / name).write_text(text)
    if words:
        assert words in refused(notes.read, tmp_path / name)
    else:  # the slowest text that was found
        notes.read(tmp_path / name)


W = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'


@pytest.mark.parametrize("body, words", [
    ("<w:tbl><w:tr>" + "<w:tc/>" * 2000 + "</w:tr>" + "<w:tr><w:tc/></w:tr>" * 2000 + "</w:tbl>",
     "2,001 rows and 2,000"),
    ("<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 100_000, "100,000 headings"), (" " * 2 ** 23, "unpacks to more than 8 MiB"),
    ("<w:tbl><w:tr><w:tc>" * 20_000 + "<w:p><w:t>x</w:t></w:p>" + "</w:tc></w:tr></w:tbl>" * 20_000, None),
], ids=range(4))
def test_word_files_have_bounds(tmp_path, body, words):
    zipped(tmp_path / "x.docx", [("word/document.xml", W + body + "</w:body></w:document>")])
    if words:
        assert words in refused(notes.read, tmp_path / "x.docx")
    else:  # tables in tables: the time is not the square of their depth
        assert [block["kind"] for block in notes.read(tmp_path / "x.docx")] == ["table"]


@POSIX
def test_event_files_are_read_up_to_a_bound_and_only_from_files(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from kd import event_writer
    with event_writer.opened(tmp_path / "tb", 0) as log:
        for epoch in (1, 2, 3):
            log({"epoch": epoch, "loss": 1.0})
    os.mkfifo(tmp_path / "tb" / "x.tfevents")
    monkeypatch.setattr(event_files, "VALUES", 5)
    problems = []
    scalars, _ = event_files.read(tmp_path / "tb", problems)
    assert scalars["train/loss"][0].tolist() == [1]
    assert "x.tfevents is a pipe, not a file" in problems[0] and "only its first 3 events are read" in problems[1]


def test_a_plan_of_three_thousand_seeds_is_refused(tmp_path):
    import study
    content = {"distill": {"student": ["tiny"], "seeds": list(range(3000)), "methods": {"alone": {"alpha": 1}}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    assert "trains more than 1000 networks" in refused(plan.read_plan, tmp_path / "p.yaml", study.script_parsers())


@pytest.mark.parametrize("script, argv", [
    ("benchmark", ["x", "--threads", "1000000"]), ("benchmark", ["x", "--threads", "-1"]),
    ("benchmark", ["x", "--batch", "1000000000"]), ("benchmark", ["x", "--size", "100000"]),
    ("benchmark", ["x", "--seconds", "nan"]), ("predict", ["x", "--threads", "1000000"]),
    ("predict", ["x", "--threads=-1"]), ("predict", ["x", "--batch", "10000000"]),
    ("study", ["x", "--jobs", "1000000"]),
    ("train_teacher", ["--workers", "1000000"]), ("train_teacher", ["--workers=-1"]),
    ("train_teacher", ["--batch", "1" + "0" * 400]), ("train_teacher", ["--size", "9" * 5000]),
    ("train_teacher", ["--epochs", "10000000000"]), ("distill", ["--student", "tiny", "--size", "100000"]),
])
def test_numbers_have_an_upper_bound_too(script, argv):
    import importlib
    assert "is not a " in refused(importlib.import_module(script).main, argv)


# ---- checkpoints, plugins, processes


def test_a_checkpoint_is_stored_plainly_and_its_lists_are_short(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(3), "b": list(range(1000))}, path)
    assert weights.safe_load(path)["b"][-1] == 999
    torch.save({"a": torch.zeros(3), "b": list(range(1000))}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert weights.safe_load(tmp_path / "old.pt")["a"].tolist() == [0, 0, 0]
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    zipped(path, [*members, ("x/stored", bytes(10 ** 4))], zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/packed", b"1234", zipfile.ZIP_DEFLATED)
    assert "in it is compressed, which torch never does" in refused(weights.safe_load, path)
    monkeypatch.setattr(weights, "OBJECTS", 1000)
    zipped(path, members, zipfile.ZIP_STORED)
    assert "is refused: x/data.pkl in it is larger than" in refused(weights.safe_load, path)
    assert "is refused" in refused(weights.safe_load, tmp_path / "old.pt")


@pytest.mark.parametrize("old", [False, True])
def test_a_name_of_megabytes_in_a_checkpoint_is_refused_in_time(tmp_path, old):
    """torch searches its own error, which quotes the name, in a time that grows with the square of its length."""
    path, name = tmp_path / "x.pt", b"x" * 2_000_000
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=not old)
    if old:
        numbers = io.BytesIO()
        for value in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}):
            pickle.dump(value, numbers, protocol=2)
        path.write_bytes(numbers.getvalue() + b"\x80\x02cmodule\n" + name + b"\n.")
    else:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, b"\x80\x02cmodule\n" + name + b"\n." if member.endswith(".pkl") else data)
    assert "it is no checkpoint, or holds code to run" in refused(weights.safe_load, path)


@pytest.mark.parametrize("seen", [
    None, [], {}, {"train": []}, {"train": {"images": [["a"]], "groups": []}, "val": {"images": [], "groups": []}},
    {"train": {"images": [], "groups": [1]}, "val": {"images": [], "groups": []}},
    *({"train": {"images": tensor, "groups": []}, "val": {"images": [], "groups": []}}
      for tensor in (torch.zeros(2), torch.full((2,), 255, dtype=torch.uint8)))])
def test_what_a_network_has_seen_are_lists_of_text(seen):
    assert "does not say which images" in refused(setup.seen, {"provenance": {"seen": seen}}, "x.pt")


@pytest.mark.parametrize("change", [
    lambda state: state["param_groups"][0].update(betas="ab"), lambda state: state["param_groups"][0].update(eps=1.0),
    lambda state: state["state"][0].update(exp_avg=torch.zeros(7)), lambda state: state["state"][0].pop("exp_avg"),
    lambda state: state["state"][0].update(step=[1])])
def test_the_state_of_another_optimiser_is_not_loaded(change):
    def optimizer():
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        return torch.optim.AdamW([parameter], lr=0.1)

    stepped = optimizer()
    stepped.step()
    state = stepped.state_dict()
    engine._load_optimizer(optimizer(), copy.deepcopy(state))
    change(state)
    with pytest.raises(Exception):  # kd.train.engine.Journal makes one line of it
        engine._load_optimizer(optimizer(), state)


def test_too_little_memory_is_one_line():
    assert "not enough memory" in str(errors.of_user(MemoryError()))
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2 ** 62, dtype=torch.uint8)
    assert "not enough memory" in str(errors.of_user(caught.value))
    with pytest.raises(MemoryError) as caught:
        np.empty(2 ** 62, np.uint8)
    assert "not enough memory for another 4.00 EiB" in str(errors.of_user(caught.value))
    assert errors.of_user(ValueError("a fault of the program")) is None


@POSIX
def test_a_plugin_is_a_file(tmp_path):
    (tmp_path / "loop.py").symlink_to("loop.py")
    os.mkfifo(tmp_path / "pipe.py")
    for name in ("loop.py", "pipe.py"):
        with pytest.raises(registry.RegistryError, match=name):
            registry.load_plugin(tmp_path / name)


@POSIX
def test_a_folder_behind_a_loop_is_not_written(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "a"):
        assert "a symbolic link that leads nowhere" in refused(files.check_writable, path)


@pytest.mark.parametrize("changes, words", [
    ({}, "WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is missing"),
    ({"WORLD_SIZE": "x", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE is")])
def test_half_an_environment_of_torchrun_is_named(monkeypatch, changes, words):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert words in refused(distributed.begin, "cpu")


# ---- text that acts


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''-x", "-",
            "+1 555"]
PLAIN = ["a", "", "-0.5", "+1", "-1e-3", "'quoted'", "'", "a=b", " =1", "-1,5", 'say "=1"']


def test_a_spreadsheet_runs_no_cell_and_the_text_comes_back(tmp_path):
    rows = [{"=id": text, "n": -0.5} for text in FORMULAS + PLAIN]
    files.write_csv(tmp_path / "x.csv", rows)
    assert files.read_csv(tmp_path / "x.csv") == [{"=id": text, "n": "-0.5"} for text in FORMULAS + PLAIN]
    lines = [files.csv_line([text]).rstrip("\n") for text in FORMULAS]
    assert all(line.lstrip('"')[0] == "'" for line in lines)
    assert files.csv_line(["-0.5", -0.5, None, "a,b"]) == '-0.5,-0.5,,"a,b"\n'


SEQUENCES = ["\x1b[2J", "\x9b31m", "a\rb", "\x07", "\u202egpj", "\u2066", "\x00", "\x7f"]


@pytest.mark.parametrize("text", SEQUENCES, ids=ascii)
def test_names_do_not_act_on_the_terminal(text, tmp_path):
    assert errors.printable(text).isprintable()
    error = UserError(f"no such file: {text}\n{text}", text)
    assert str(error).replace("\n", "").isprintable() and "\n" not in error.message
    assert align_columns([[text, "b"]]).isprintable()
    code = f"from kd import errors\nerrors.run(lambda: print({text!r}, 'é\\tü', flush=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=60,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    out = done.stdout.decode().replace("\r\n", "\n")
    assert out == errors.printable(text) + " é\tü\n" and done.returncode == 0


def test_the_output_is_a_stream_like_any_other(capsys):
    with errors.safe_output():
        print("a\x1bb", "ü")
        assert sys.stdout.encoding and sys.stdout.isatty() is False
    assert capsys.readouterr().out == "a\\x1bb ü\n"


def test_every_kind_is_exit_status_two_and_no_traceback(tmp_path):
    (tmp_path / "x.yaml").write_text(BOMB)
    np.savez(tmp_path / "x.npz", labels=np.array([0, 1, 10 ** 10]), logits=np.eye(3))
    for command in (["study.py", "x.yaml"], ["evaluate.py", "x.npz"]):
        done = subprocess.run([sys.executable, ROOT / command[0], tmp_path / command[1]], capture_output=True,
                              text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
