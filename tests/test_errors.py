"""A user's mistake is one line, a way out and exit status 2: never a traceback, nothing half-written."""

import importlib
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import distill
import registry
import train_teacher
from kd import errors, runs
from kd.data import loader
from kd.errors import Parser, UserError, listing, nearest
from kd.train import engine

ROOT = Path(__file__).parent.parent


def start(*command, **options):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, **options)


def run_in_a_process(body):
    """A script whose main() does `body`."""
    return start(
        "-c",
        f"import os, sys, errno\nfrom kd import errors\n\ndef main():\n    {body}\n\nerrors.run(main, LookupError)",
    )


# ---- every mistake on the two command lines, in this process

BOTH = [
    (["--epoch", "3"], "--epoch 3\ndid you mean --epochs"),
    (["--seedz=3"], "--seedz=3\ndid you mean --seeds"),
    (["--seeds"], "--seeds: expected at least one"),
    (["--data", "ham1000"], "unknown dataset 'ham1000'; did you mean ham10000"),
    (["--data", "lesions,imges=5"], "lesions has no option 'imges'\ndid you mean images"),
    (["--data", "lesions,images=many"], "images is a whole number, not 'many'"),
    (["--data", "lesions,images=60.5"], "images is a whole number, not 60.5"),
    (["--data", "ham10000"], "needs its folder"),
    (["--data", "folder"], "needs the folder"),
    (["--data", "folder", "--root", "nowhere"], "no such folder: nowhere"),
    (["--data", "ham10000", "--root", "nowhere"], "nowhere"),
    (["--data", "medmnist", "--root", "no.npz"], "no.npz"),
    (["--root", "x"], "--root has no meaning for --data lesions"),
    (["--hard", "focl"], "unknown loss 'focl'; did you mean focal"),
    (["--hard", "focal,gama=2"], "did you mean gamma"),
    (["--hard", "focal,gamma=["], "cannot read 'gamma=\\['"),
    (["--hard", "kd"], "--hard kd reads a teacher"),
    (["--seeds", "-1"], "--seeds: '-1' is not a whole number from 0"),
    (["--seeds", "0", "x"], "'x' is not a whole"),
    (["--seeds", "9" * 20], "is not a whole number"),
    (["--split-seed", "-1"], "'-1' is not a whole number"),
    (["--epochs", "0"], "'0' is not a whole number from 1 to"),
    (["--epochs", "2.5"], "'2.5' is not a whole number"),
    (["--batch", "x"], "'x' is not a whole number from 1"),
    (["--lr", "fast"], "'fast' is not a number from 0 on"),
    (["--lr", "nan"], "'nan' is not a number"),
    (["--lr=-1"], "'-1' is not a number"),
    (["--clip", "inf"], "'inf' is not"),
    (["--warmup", "1.5"], "'1.5' is not a number from 0 to 1"),
    (["--size", "0"], "'0' is not a whole number"),
    (["--stem", "smal"], "invalid choice: 'smal'"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--plugin", "gone.py"], "no such plugin file: .*gone.py"),
    (["--config", "gone.yaml"], "no such file: gone.yaml"),
    (["--study", "a/b"], "--study becomes a folder's name"),
    (["--name", ".."], "--name becomes a folder's name"),
    (["--hard", "ce,smoothing=5"], "the loss ce: smoothing is a number from 0 to below 1, not 5"),
    (["--hard", "class_balanced,beta=1"], "the loss class_balanced: beta is a number"),
    (["--hard", "focal,gamma=-1"], "gamma of the focal loss is a number from 0 on"),
    (["--study", ""], "--study is empty"),
    (["--name", ""], "--name is empty"),
    (["--study=-x"], "--study x would"),
    (["--name=-x"], "--name x would"),
    (["--name", "CON"], "--name my_CON would"),
    (["--study", "nul.2"], "--study my_nul.2 would"),
    (["--out", "/dev/null"], "cannot write to .*null"),
]
DISTILL = [
    ([], "no student named"),
    (["--student", "tini"], "unknown architecture 'tini'; did you mean tiny"),
    (["--student", "tiny", "resnet81"], "unknown architecture 'resnet81'"),
    (["--student", "tiny", "--alpha", "2"], "'2' is not a number from 0 to 1"),
    (["--student", "tiny", "--alpha", "nan"], "'nan' is not a number from 0 to 1"),
    (["--student", "tiny", "--soft", "kdd"], "unknown loss 'kdd'; did you mean kd"),
    (["--student", "tiny", "--soft", "ce"], "--soft ce reads no teacher"),
    (
        ["--student", "tiny", "--soft", "kd,temperature=2"],
        "temperature of kd has an option of its own\nGive --temperature",
    ),
    (["--student", "tiny", "--term", "rkd"], "cannot read a weight above 0 in --term rkd"),
    (["--student", "tiny", "--term", "kd=1"], "the loss kd is named twice"),
    (["--student", "tiny", "--beta", "-1"], "'-1' is not a number"),
    (["--student", "tiny", "--stage-weights", "1", "2"], "--stage-weights: expected 4"),
    (["--student", "torchvision:squeezenet1_0"], "squeezenet1_0 cannot take images of 16 px"),
    (
        ["--student", "torchvision:shufflenet_v2_x0_5", "--size", "32", "--beta", "1"],
        "stages of torchvision:shufflenet_v2_x0_5 are not known",
    ),
    (
        ["--student", "torchvision:squeezenet1_1", "--size", "32", "--head-lr", "1"],
        "head of torchvision:squeezenet1_1 is not known",
    ),
    (["--student", "tiny", "--teacher", "nowhere"], "no checkpoint at nowhere"),
]


@pytest.mark.parametrize("script, argv, words", [
    *[(train_teacher, *case) for case in BOTH],
    (train_teacher, ["tiny"], "unrecognized arguments: tiny"),
    (train_teacher, ["--teacher", "resnet51"], "unknown architecture 'resnet51'"),
    *[(distill, ["--student", "tiny", *argv], words) for argv, words in BOTH],
    *[(distill, *case) for case in DISTILL],
], ids=lambda value: None if isinstance(value, str) else " ".join(value) if isinstance(value, list) else value.__name__)
def test_a_mistake_is_named_before_anything_is_written(script, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "run", lambda *args, **options: pytest.fail("training began"))
    with pytest.raises((UserError, registry.RegistryError), match=f"(?s){words}"):
        script.main(["--data=lesions,images=70", "--size=16", *argv])
    assert not list(tmp_path.iterdir())


def test_the_name_that_is_suggested_would_do():
    for name in ("", "-x", "..", "CON", "con.txt", "a/b", "lpt1", "é ü", "_-._", "x" * 79 + "-.y", "my_aux"):
        safe = runs.safe(name)
        assert runs.safe(safe) == safe and safe[0] not in "-." and 0 < len(safe) <= 90


def test_a_dataset_function_that_gives_something_else_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from registry import register\n@register('dataset', 'gives_a_list')\n"
                                      "def mine(): return [1, 2]\n")
    with pytest.raises(
        UserError, match="the dataset gives_a_list gave list, not a kd.data.dataset.Dataset\nSee .*mine.py"
    ):
        train_teacher.main(["--data", "gives_a_list", "--plugin", "mine.py"])
    registry._entries["dataset"].pop("gives_a_list")


PLUGIN = """
import torch
from torch import nn
from registry import register

@register("architecture", "three_too_many")
def wide(num_classes, stem, weights):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes + 3))

class Two(nn.Linear):
    def forward(self, images):
        return super().forward(images.mean((2, 3))), images

@register("architecture", "two_outputs")
def two(num_classes, stem, weights):
    return Two(3, num_classes)

@register("loss", "failing")
def failing(student_logits, labels):
    return student_logits[:, 99].mean()

@register("loss", "unbuildable")
class Unbuildable(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.layer = nn.Linear(shapes["teacher_pooled"][1], shapes["no_such"][1])
    def forward(self, student_pooled, teacher_pooled):
        return self.layer(student_pooled).mean()
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    yield tmp_path / "mine.py"
    registry._forget(tmp_path / "mine.py")


@pytest.mark.parametrize("argv, error, words", [
    (["three_too_many"], UserError, r"three_too_many gives \[2, 10\] for two images, not logits \[2, 7\]"),
    (["two_outputs"], UserError, r"two_outputs gives tuple for two images"),
    (["tiny", "--hard", "failing"], RuntimeError, "the loss failing failed: IndexError"),
    (["tiny", "--term", "unbuildable=1"], RuntimeError, "the loss unbuildable failed: KeyError: 'no_such'"),
])
def test_a_part_that_does_not_fit_is_named_before_a_teacher_is_trained(
    argv, error, words, plugin, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "run", lambda *args, **options: pytest.fail("training began"))
    common = ["--data=lesions,images=70", "--size=16", "--plugin", str(plugin), "--out", str(tmp_path / "runs")]
    with pytest.raises(error, match=f"(?s){words}") as caught:
        distill.main([*common, "--student", *argv])
    if error is RuntimeError:  # a fault of the plugin's: its line is shown
        assert f'File "{plugin}", line' in "".join(traceback.format_exception(caught.value))
    if argv[1:2] != ["--term"]:
        with pytest.raises(error, match=f"(?s){words}"):
            train_teacher.main([*common, "--teacher", *argv])
    assert not (tmp_path / "runs").exists()


def test_an_out_that_cannot_be_written_is_found_before_images_are_decoded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(loader, "prepare", lambda *args, **options: pytest.fail("decoding began"))
    with pytest.raises(UserError, match="cannot write to"):
        train_teacher.main(["--data=lesions,images=70", "--size=16", "--out", str(tmp_path / "file")])


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="there is no cuda device here"):
        train_teacher.main(["--device", "cuda"])


# ---- the same through processes, where a traceback or a wrong status would show

@pytest.mark.parametrize("script, argv, words", [
    ("distill.py", ["--student", "mobilnetv2"], "did you mean mobilenetv2?"),
    ("evaluate.py", ["--replicats", "5", "x"], "did you mean --replicates?"),
    ("report.py", ["nowhere"], "no such folder: nowhere"),
])
def test_a_script_stops_with_status_2_and_a_way_out(script, argv, words, tmp_path):
    done = start(ROOT / script, *argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: ") and words in done.stderr and "Traceback" not in done.stderr


def test_a_users_error_is_its_message_and_hint_with_status_2():
    done = run_in_a_process("raise errors.UserError('this is wrong', 'Do that.')")
    assert (done.returncode, done.stderr) == (2, "error: this is wrong\nDo that.\n")
    done = run_in_a_process("raise LookupError('also of the user')")
    assert (done.returncode, done.stderr) == (2, "error: also of the user\n")


def test_a_fault_of_the_program_keeps_its_traceback():
    for fault in ("raise ValueError('ours')", "open('no such file')"):
        done = run_in_a_process(fault)
        assert done.returncode == 1 and "Traceback" in done.stderr


def test_ctrl_c_is_status_130_without_a_traceback():
    done = run_in_a_process(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); signal.raise_signal(signal.SIGINT)"
    )
    assert done.returncode == 130 and "stopped" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("second, status", [
    ("sys.stderr = SimpleNamespace(write=interrupt, flush=lambda: None)", 130),  # while the first is reported
    ("Thread(target=late).start()", -signal.SIGINT)])  # while the interpreter waits for threads
def test_a_second_ctrl_c_shows_no_traceback_either(second, status):
    done = subprocess.run([sys.executable, "-c", f"""
import os, signal, sys, time
from threading import Thread
from types import SimpleNamespace
from kd import errors

def interrupt(*text):
    signal.raise_signal(signal.SIGINT)

def late():
    for _ in range(100):
        time.sleep(0.05 * (signal.getsignal(signal.SIGINT) is not signal.SIG_DFL))
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)

signal.signal(signal.SIGINT, signal.default_int_handler)
{second}
errors.run(interrupt)
"""], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.replace("stopped", "").strip()) == (status, "")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("where", ["sys.ps1 = 'In : '", "main.__module__ = 'another'"])
def test_ctrl_c_stays_as_it_was_where_the_interpreter_goes_on(where):
    done = subprocess.run([sys.executable, "-c", f"""
import contextlib, signal, sys
from kd import errors

def main():
    raise errors.UserError("this is wrong")

signal.signal(signal.SIGINT, signal.default_int_handler)
{where}
with contextlib.suppress(SystemExit):
    errors.run(main)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("script, goes_on", [("train_teacher", True), ("robustness", True), ("study", True),
                                             ("evaluate", False), ("benchmark", False)])
def test_a_script_that_is_stopped_says_whether_the_same_command_goes_on(script, goes_on, monkeypatch, capsys):
    module = importlib.import_module(script)

    def main():
        raise KeyboardInterrupt

    main.__module__ = module.__name__
    with pytest.raises(SystemExit) as stopped:
        errors.run(main)
    message = capsys.readouterr().err
    assert stopped.value.code == 130 and "stopped" in message and ("the same command goes on" in message) == goes_on


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
@pytest.mark.parametrize(
    "body", ["print('x' * 10)", "print('x' * 10**6)"], ids=["flushed at the end", "while it prints"]
)
def test_a_closed_pipe_is_silent(body):
    code = f"from kd import errors\ndef main():\n    input(); {body}\nerrors.run(main)"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=buffered, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as `| head` does
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait() == 141
    process.stderr.close()


@pytest.mark.parametrize(
    "body, words",
    [
        (
            "raise OSError(errno.ENOSPC, 'No space left on device', 'runs/best.pt')",
            "error: no space left on device: runs/best.pt\nFree",
        ),
        (
            "raise OSError(errno.EROFS, 'Read-only file system', 'runs')",
            "error: read-only file system: runs\nCheck that place",
        ),
        ("raise PermissionError(errno.EACCES, 'Permission denied', 'runs')", "error: permission denied: runs\n"),
        ("open(os.path.join(sys.executable, 'x'), 'w')", "error: not a directory: "),
        ("os.makedirs(sys.executable)", "error: file exists: "),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_with_status_2(body, words):
    done = run_in_a_process(body)
    assert done.returncode == 2 and done.stderr.startswith(words) and "Traceback" not in done.stderr


def test_names_that_the_terminal_cannot_show_stop_nothing():
    code = "from kd import errors\nerrors.run(lambda: print('klasa: \\u0142uska'))"
    done = start("-X", "utf8=0", "-c", code)
    ascii_only = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                                env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and ascii_only.stdout.split() == [b"klasa:", b"\\u0142uska"]


# ---- parts

def test_the_nearest_of_what_there_is_is_suggested():
    assert nearest("mobilnet", ["resnet", "mobilenet"]) == "did you mean mobilenet?"
    assert nearest("KD", ["kd", "at"]) == "did you mean kd?"
    assert nearest("--lr", ["--lr", "--lrs"]) == "did you mean --lr?"
    assert nearest("resume", ["workers", "seeds"]) == nearest("metric", ["device"]) == ""
    assert nearest("zzz", ["resnet", "mobilenet"]) == nearest("x", []) == nearest(3, ["a"]) == ""


def test_a_listing_shows_some_and_counts_the_rest():
    assert listing(range(3)) == "0, 1, 2" and listing(range(5)) == "0, 1, 2, 3, 4" and listing([]) == ""
    assert listing(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_the_wrong_flag_is_named_wherever_it_stands():
    parser = Parser(prog="script.py")
    parser.add_argument("--student")
    for argv in (["--studen", "x"], ["y", "--studen=x"]):
        with pytest.raises(UserError, match="did you mean --student"):
            parser.parse_args(argv)
    with pytest.raises(UserError, match="python script.py --help"):
        parser.parse_args(["--qqqqqqqqq"])
    with pytest.raises(UserError, match="unrecognized"):
        parser.parse_args(["--stud", "x"])  # no abbreviations: they change meaning when options are added


def test_help_says_each_default_once(capsys):
    parser = Parser(prog="script.py")
    parser.add_argument("--alpha", default=0.5, help="100 %% of it")
    parser.add_argument("--seed", default=0, help="a number")
    parser.add_argument("--size", help="default: the file's own")
    parser.add_argument("--name", help="a name")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "None" not in text and "100 % of it (default: 0.5)" in text
    assert "a number (default: 0)" in text and text.count("default: the file's own") == text.count("own") == 1


def test_an_optional_package_that_is_missing_names_the_extra_that_brings_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for module in ("jinja2", "jinja2.sandbox"):
        with pytest.raises(UserError) as caught:
            errors.need(module, "report")
        assert "needs the package jinja2" in str(caught.value) and 'pip install -e ".[report]"' in str(caught.value)
    assert errors.need("json", "report").dumps


def test_an_optional_package_that_is_broken_speaks_for_itself(monkeypatch, tmp_path):
    (tmp_path / "brokenpackage.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="something_it_needs"):
        errors.need("brokenpackage", "report")
