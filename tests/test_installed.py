"""A wheel has one folder with all that the scripts need, and its command does from any place what a clone does."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from kd import errors

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("[!_]*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", "70.1")  # makes wheels without the package wheel
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("kd", "registry", "configs"):
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    scripts = [f"{name}.py" for name in ("__main__", *SCRIPTS)]
    for name in [*scripts, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copyfile(ROOT / name, folder / "clone" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "clone")
    return next(folder.glob("*.whl"))


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_a_wheel_has_one_folder_with_the_scripts_and_all_that_they_need(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    parts = [path for folder in ("kd", "registry", "configs") for path in (ROOT / folder).rglob("*")
             if path.is_file() and "__pycache__" not in path.parts]
    needed = {"LICENSE", "__main__.py", *(f"{name}.py" for name in SCRIPTS),
              *(path.relative_to(ROOT).as_posix() for path in parts)}
    assert names == {f"medmnist_edgeai/{name}" for name in needed}


def test_the_command_lists_every_script_in_a_line():
    done = subprocess.run([sys.executable, ROOT], capture_output=True, text=True, check=True)
    lines = dict(re.findall(r"^  (\w+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert sorted(lines) == SCRIPTS and lines["distill"] == "Train small networks from a large one."
    done = subprocess.run([sys.executable, ROOT, "destill"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: there is no command 'destill'\ndid you mean distill?\n"


@pytest.mark.parametrize("text, typed", [
    ("next: python distill.py --student tiny", "next: medmnist-edgeai distill --student tiny"),
    ('pip install -e ".[edge]"', 'pip install "medmnist-edgeai[edge]"'),
    ("python look.py, distill.py", "python look.py, distill.py"),  # a script of the user, a name
])
def test_messages_have_the_commands_of_the_place(text, typed, monkeypatch, capsys):
    for installed, expected in ((False, text), (True, typed)):
        monkeypatch.setattr(errors, "INSTALLED", installed)
        with errors.safe_output():
            print(text)
            print(text, file=sys.stderr)
        assert capsys.readouterr() == (expected + "\n", expected + "\n")


@pytest.mark.slow
def test_the_command_does_all_that_scripts_do_from_an_empty_folder(wheel, tmp_path):
    environment, here = tmp_path / "environment", tmp_path / "here"
    venv.create(environment, with_pip=False)
    at = sysconfig.get_paths("venv", {"base": str(environment), "platbase": str(environment)})
    Path(at["purelib"], "others.pth").write_text(sysconfig.get_path("purelib"))  # torch and all others, but no clone
    python = Path(at["scripts"], "python.exe" if os.name == "nt" else "python")
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    here.mkdir()

    def run(*words, status=0):
        command = [Path(at["scripts"], "medmnist-edgeai"), *words]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        assert "python " not in done.stdout + done.stderr  # no command of a clone
        return done.stdout + done.stderr

    for name in SCRIPTS:
        assert f"usage: medmnist-edgeai {name} " in run(name, "--help")
    assert "resnet18" in run("distill", "--list")
    assert "`medmnist-edgeai distill --help` lists" in run("distill", "--qqq", status=2)
    small = ("--data", "lesions,images=300", "--size", "32", "--epochs", "1", "--study", "s")
    assert "next: medmnist-edgeai distill" in run("train_teacher", "--teacher", "tiny", *small)
    run("distill", "--student", "tiny", "--unlabelled", *small)
    run("evaluate", "runs/s/tiny_kd/seed_0")
    assert "next: medmnist-edgeai predict" in run("export", "runs/s/tiny_kd/seed_0", "--bundle", "box",
                                                  "--max-flips", "1", "--calibration", "32")
    assert (here / "box" / "kd" / "errors.py").is_file()
    run("predict", "box/model.int8.onnx", "--check")
    run("benchmark", "box/model.int8.onnx", "--seconds", "0.1")
    run("robustness", "runs/s/tiny_kd/seed_0", "--quick")
    run("report", "runs/s")
    page = (here / "runs" / "s" / "report.html").read_text(encoding="utf-8")
    assert "medmnist-edgeai evaluate" in page and "python evaluate.py" not in page
    (here / "plan.yaml").write_text("study: p\ndata: lesions,images=300\nsize: 32\nepochs: 1\n"
                                    "train_teacher: {teacher: tiny}\n"
                                    "distill: {student: tiny, methods: {kd: {alpha: 0.5}}}\n")
    assert "medmnist-edgeai distill" in run("study", "plan.yaml", "--dry-run")
    assert "steps done" in run("study", "plan.yaml", "--jobs", "2")  # workers are processes of their own
