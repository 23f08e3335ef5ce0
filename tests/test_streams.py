"""Every script runs whatever its standard streams are: a notebook's, a file's, of a small encoding, closed, or none."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tqdm

import kd
from kd import errors

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("[!_]*.py"))


class Notebook(io.StringIO):
    """As ipykernel's OutStream: no terminal, no descriptor, no reconfigure()."""

    __module__ = "ipykernel.iostream"
    encoding = "UTF-8"

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


class Bare:
    """An object with write() alone, as programs put in the place of a stream."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode("ascii").decode()  # and an encoding that it does not name

    def getvalue(self):
        return self.text


class Ascii(io.TextIOWrapper):
    """As a pipe on Windows, of another encoding than UTF-8."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")

    def getvalue(self):
        self.flush()
        return self.buffer.getvalue().decode("ascii")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"notebook": Notebook, "text": io.StringIO, "bare": Bare, "ascii": Ascii, "closed": closed,
           "none": lambda: None}
each_stream = pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)


def output(stream):
    """What was written; None where there is nothing to write to."""
    return None if stream is None or getattr(stream, "closed", False) else stream.getvalue()


def run(main, make, monkeypatch, *argv):
    """(exit status, standard output, standard error) of errors.run() with streams of `make`."""
    out, err = make(), make()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *map(str, argv)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            errors.run(main)
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
    return status, output(out), output(err)


@each_stream
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_shown_on_any_stream(script, make, monkeypatch):
    status, out, err = run(importlib.import_module(script).main, make, monkeypatch, "--help")
    assert status == 0 and not err
    assert out is None or f"usage: {script}.py" in out


@each_stream
def test_a_mistake_is_said_on_any_stream(make, monkeypatch):
    status, out, err = run(importlib.import_module("evaluate").main, make, monkeypatch, "łuska.npz")
    assert status == 2 and not out
    assert err is None or err.startswith("error: ") and re.search(r"(ł|\\u0142)uska.npz", err)


@each_stream
def test_predictions_are_evaluated_on_any_stream(make, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "theirs.npz", y_true=rng.integers(0, 3, 60), logits=rng.normal(size=(60, 3)),
             class_names=["naevus", "łuska \x1b[2J", "other"])
    status, out, err = run(importlib.import_module("evaluate").main, make, monkeypatch, tmp_path / "theirs.npz",
                           "--out", tmp_path / "results", "--replicates", "100")
    assert status == 0 and not err and "\x1b" not in (out or "")
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["split"]["test"]["images"] == 60


@pytest.mark.parametrize("make", [Notebook, lambda: None], ids=["notebook", "none"])
def test_a_teacher_is_trained_in_a_notebook_and_without_streams(make, tmp_path, monkeypatch):
    import train_teacher
    status, out, err = run(train_teacher.main, make, monkeypatch, "--data=lesions,images=70", "--size=16", "--teacher",
                           "tiny", "--epochs=1", "--train-only", "--out", tmp_path, "--cache", tmp_path)
    assert status == 0 and not err and (out is None or "data: lesions" in out)
    assert len(list(tmp_path.glob("*/teacher_tiny/seed_0/predictions/test.npz"))) == 1


def test_what_a_stream_cannot_write_is_written_as_escapes():
    for make, expected in ((Ascii, "caf\\xe9 \\u0142 \\udc80"), (io.StringIO, "café ł \\udc80"),
                           (Bare, "caf\\xe9 \\u0142 \\udc80")):
        stream = make()
        assert errors._Output(stream).write("café ł \udc80") == 8
        assert stream.getvalue() == expected


def test_a_full_disk_behind_a_stream_is_no_silence():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        errors._Output(Full()).write("x")


# ---- descriptors of the system

def process(body, **options):
    return subprocess.run([sys.executable, "-c", f"import os, sys\nfrom kd import errors\ndef main():\n    {body}\n"
                           "errors.run(main)"], cwd=ROOT, timeout=60, **options)


@pytest.mark.skipif(os.name == "nt", reason="a closed descriptor cannot be handed on in this way on Windows")
def test_a_closed_descriptor_is_not_taken_by_a_file(tmp_path):
    file = tmp_path / "result.csv"
    body = (f"f = open({str(file)!r}, 'w'); f.write('a,b'); print('noise'); "
            "[os.write(k, b'noise') for k in (1, 2)]; f.close()")
    done = process(body, preexec_fn=lambda: [os.close(k) for k in range(3)])
    assert done.returncode == 0 and file.read_text() == "a,b"


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_the_status_of_a_mistake_stands_where_nobody_reads_the_message():
    read, write = os.pipe()
    os.close(read)
    assert process("raise errors.UserError('x', 'y')", stderr=write, stdout=subprocess.DEVNULL).returncode == 2
    os.close(write)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_its_version(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--version"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main()
    assert not stopped.value.code and capsys.readouterr().out == f"MedMNIST-EdgeAI {kd.__version__}\n"


def test_the_version_stands_in_one_place(monkeypatch):
    from setuptools import Distribution
    monkeypatch.chdir(ROOT)
    package = Distribution()
    package.parse_config_files(["setup.cfg"])
    assert package.metadata.version == kd.__version__
    assert kd.__version__ not in (ROOT / "setup.cfg").read_text() + (ROOT / "pyproject.toml").read_text()


# ---- the progress bar

class Terminal(io.StringIO):
    encoding = "UTF-8"

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever tqdm looks at the time."""
    now = iter(range(10 ** 6))
    monkeypatch.setattr(tqdm.std, "time", lambda: next(now))


@pytest.mark.parametrize("make, drawn", [(Terminal, True), (Notebook, True), (io.StringIO, False), (Bare, False),
                                         (closed, False), (lambda: None, False)])
@pytest.mark.parametrize("safe", [True, False])
def test_a_bar_is_drawn_on_a_terminal_and_in_a_notebook(make, drawn, safe, clock, monkeypatch):
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)
    with errors.safe_output() if safe else monkeypatch.context():
        assert list(errors.progress(range(9), "counting")) == list(range(9))
        with errors.progress(description="moving", total=9) as bar:
            for k in range(9):
                bar.set_postfix(k=k, refresh=False)
                bar.update()
    assert bool(output(stream)) == drawn
    assert not drawn or "counting" in output(stream) and "moving" in output(stream)
    assert "\x1b" not in (output(stream) or "")


def test_where_no_bar_can_be_drawn_there_is_a_line_a_minute(monkeypatch):
    """In the log of a batch system; nothing of a loop that ends within a minute."""
    now = iter(range(0, 10 ** 6, 10))
    monkeypatch.setattr(tqdm.std, "time", lambda: next(now))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with errors.progress(description="decoding", total=60) as bar:
        for _ in range(60):
            bar.update()
    lines = sys.stderr.getvalue().split("\n")
    assert len(lines) in range(4, 12) and lines.pop() == ""
    assert all(re.fullmatch(r"decoding: \d+ of 60, \d\d:\d\d gone, \d\d:\d\d left", line) for line in lines)


@pytest.mark.parametrize("out, err, lines", [
    (io.StringIO, io.StringIO, 2), (io.StringIO, Terminal, 2), (Terminal, io.StringIO, 2), (Terminal, Terminal, 0)])
def test_an_epoch_is_a_line_where_no_terminal_shows_the_bar_and_the_text(out, err, lines, tmp_path, monkeypatch):
    import small
    from kd.train import engine
    data, options = small.data(), small.options("--alpha", "1")
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setattr(sys, "stderr", err())
    engine.run(tmp_path / "model" / "seed_0", small.network(options, data), small.terms(options), data, options, seed=0,
               role="student", provenance={})
    printed = [line for line in sys.stdout.getvalue().splitlines() if ": epoch " in line]
    assert len(printed) == lines and ("epoch" not in sys.stderr.getvalue())
    for number, line in enumerate(printed, 1):
        assert re.fullmatch(rf"model/seed_0: epoch {number}/2  loss \d\.\d+  val_loss \S+  val_accuracy \S+  "
                            r"val_macro_f1 \S+  .*  [\d.]+ s  \d+ s left(  best so far)?", line)


def test_there_is_one_bar_at_a_time(clock, monkeypatch):
    stream = Notebook()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in errors.progress(range(5), "outer"):
        assert list(errors.progress("abcde", "inner")) == list("abcde")
    assert "outer" in stream.getvalue() and "inner" not in stream.getvalue()
    list(errors.progress(range(5), "afterwards"))
    assert "afterwards" in stream.getvalue()


def test_without_tqdm_there_is_no_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert errors.progress([1, 2], "x") == [1, 2]


def test_a_bar_is_drawn_by_progress_alone():
    """tqdm fails where there is no stream, and is silent in a notebook."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "kd").rglob("*.py"), *(ROOT / "registry").rglob("*.py")]:
        assert path.name == "errors.py" or not re.search(r"\btqdm\(", path.read_text(encoding="utf-8")), path


# ---- a real notebook

@pytest.mark.slow
def test_scripts_run_in_a_notebook(tmp_path):
    """Needs `pip install -e ".[notebook]"`."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    train = f"%run {ROOT / 'train_teacher.py'} --data lesions,images=300 --size 32 --teacher tiny --epochs"
    sources = [f"{train} 1", f"%run {ROOT / 'evaluate.py'} --help", f"{train} 1 --early-stop 3", f"{train} 60 --name x",
               "print('still here')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, allow_errors=True,
                            resources={"metadata": {"path": str(tmp_path)}}).execute()

    def text(cell, name):
        return "".join(part.text for part in cell.outputs if part.output_type == "stream" and part.name == name)

    first, helped, mistaken, long, last = notebook.cells
    assert "next: python distill.py" in text(first, "stdout") and not text(first, "stderr")
    assert "usage: evaluate.py" in text(helped, "stdout")
    assert text(mistaken, "stderr").endswith("did you mean --patience?\n")
    assert [part.ename for part in mistaken.outputs if part.output_type == "error"] == ["SystemExit"]
    assert "\r" in text(long, "stderr") and "x:" in text(long, "stderr") and "\x1b" not in text(long, "stderr")
    assert text(last, "stdout") == "still here\n"
    assert not any(part.output_type == "error" for cell in (first, helped, long, last) for part in cell.outputs)
