"""A bundle gives the same answers on other processors: an x86 without VNNI, and ARM cores with a system of their own.

On demand: python -m pytest -m slow tests/test_emulated.py downloads 70 MB (Debian's Python for arm64 and wheels) and
takes minutes. Without qemu-user-static there is nothing to run.
"""

import csv
import io
import re
import shutil

import numpy as np
import pytest

from benchmarks import emulated
from kd import onnx_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(emulated.missing()), reason=f"no {emulated.missing()}")]

MODEL = "model.int8.onnx"
RUNTIMES = {"oldest": ("onnxruntime==1.18.0", "numpy<2"), "newest": ("onnxruntime==1.27.0", "numpy")}  # under QEMU 7.2
WRITING = {"mkdirat", "mknodat", "unlinkat", "renameat", "renameat2", "linkat", "symlinkat", "truncate", "fchmodat",
           "fchownat", "utimensat", "creat"}


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debian")
    emulated.unpack(folder)
    return folder


@pytest.fixture(scope="module", params=RUNTIMES)
def packages(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm") / "packages"
    emulated.install(folder, *RUNTIMES[request.param], "pillow")
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy of the bundle: Python writes __pycache__ into it."""
    return shutil.copytree(exported[0].parent / "bundle", tmp_path / "bundle")


def passes(machine, bundle, images):
    """The check passes on an emulated Machine, and a folder of images is answered as on this machine."""
    assert "all labels are the same" in machine.run("predict.py", MODEL, "--check", folder=bundle)
    words = ("predict.py", MODEL, images, "--format", "csv", "--threads", "1")
    there, here = (list(csv.DictReader(io.StringIO(box.run(*words, folder=bundle))))
                   for box in (machine, emulated.here()))
    assert len(here) == 90 and not any(row["error"] for row in here)
    names = [name for name in here[0] if name.startswith("p_") or name == "confidence"]
    numbers = [np.array([[float(row.pop(name)) for name in names] for row in rows]) for rows in (there, here)]
    assert there == here  # files, labels, calls
    assert np.abs(numbers[0] - numbers[1]).max() < onnx_model.CLOSE


def test_an_x86_without_vnni_gives_the_same_answers(exported, bundle):
    passes(emulated.x86(), bundle, exported[1])


@pytest.mark.parametrize("core", emulated.ARM)
def test_arm_gives_the_same_answers(core, exported, bundle, debian, packages):
    passes(emulated.arm(debian, packages, core), bundle, exported[1])


def test_arm_writes_no_file_elsewhere(exported, bundle, debian, packages, tmp_path, monkeypatch):
    """Of what the emulator lists of the calls to the system, those that could write a file name none outside."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # what Python writes is to be seen, too
    log, core = tmp_path / "calls", next(iter(emulated.ARM))
    machine = emulated.arm(debian, packages, core, "-strace", "-D", log)
    machine.run("predict.py", MODEL, exported[1], folder=bundle)
    calls = re.findall(r"^\d+ (\w+)\((.*)", log.read_text(errors="replace"), re.MULTILINE)
    writing = [arguments for name, arguments in calls
               if name in WRITING or name == "openat" and re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", arguments)]
    paths = [(bundle / path).resolve() for arguments in writing for path in re.findall(r'"([^"]*)"', arguments)]
    assert len(calls) > 1000 and paths
    inside = [folder.resolve() for folder in (debian, packages, bundle)]
    assert [path for path in paths if not any(folder in path.parents for folder in inside)] == []
