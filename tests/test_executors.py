"""A study on this machine, on Ray and on Slurm: the same tables, and a lost worker costs a restart."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import study
from kd.errors import UserError
from kd.study import executors
from kd.study.step import Step
from test_study import PLAN, real, tables

has_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="the extra ray is not installed")
has_submitit = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="the extra slurm is not installed")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks for processes as Linux has them")
# a teacher, two students of three seeds, and two tries before three further ones: 12 trainings
TWELVE = {**PLAN, "epochs": 3, "distill": {"student": "tiny", "seeds": [0, 1, 2], "methods": {
    "alone": {"alpha": 1}, "kd": {"alpha": 0.5}, "swept": {"temperature": [1, 4]}}}}


@pytest.mark.parametrize("named, count, expected", [
    (None, 0, []), (None, 2, ["0", "1"]), ("3", 1, ["3"]), ("2, 0", 2, ["2", "0"]), ("", 0, []),
    ("GPU-8932f937,MIG-41b3", 2, ["GPU-8932f937", "MIG-41b3"]), ("1,-1,0", 1, ["1"]),  # CUDA stops at what is none
    ("0,1", 0, []),
])
def test_devices_are_called_as_the_user_has_named_them(named, count, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert executors.visible_devices() == expected
    assert executors.Local().devices(2) == (expected * 2 or None)


def carried_out(folder, *more, content=TWELVE):
    """The tables of a study with two jobs, and what it printed."""
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    process = real(folder, "--jobs", "2", *more)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return tables(folder / "runs" / "plan"), printed


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The tables of TWELVE on this machine."""
    return carried_out(tmp_path_factory.mktemp("local") / "study")[0]


def kill_first(folder, found):
    """Kill the first process for which found(command line) holds, when a network has an epoch. Returns its number."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if list(folder.rglob("tiny_alone/*/last.pt")):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if found(process, process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()):
                        os.kill(int(process.name), signal.SIGKILL)
                        return int(process.name)
                except OSError:
                    continue
        time.sleep(0.01)
    raise AssertionError("nothing to kill")


def with_a_kill(folder, found, *more, content=TWELVE):
    """(tables, printed) of a study of which a process is killed with SIGKILL."""
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    process = real(folder, "--jobs", "2", *more)
    kill_first(folder, found)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return tables(folder / "runs" / "plan"), printed


def trains(folder):
    """found() of the process that trains the student tiny_alone of a folder."""
    return lambda process, line: ("step.py" in line and "--name=tiny_alone" in line
                                  and os.readlink(process / "cwd") == str(folder))


@linux
@pytest.mark.slow
def test_a_training_that_is_killed_costs_a_restart_and_nothing_else(tmp_path, local):
    found, printed = with_a_kill(tmp_path / "killed", trains(tmp_path / "killed"))
    assert found == local and printed.count("it starts again (1 of 3)") == 1


@has_ray
@linux
@pytest.mark.slow
def test_ray_gives_the_tables_of_local(tmp_path, local):
    found, printed = carried_out(tmp_path / "ray", "--executor", "ray")
    assert len([name for name in found if name.endswith("metrics.json")]) == 10  # of the 12, two are tries
    assert found == local and "starts again" not in printed
    logs = {file.stem for file in (tmp_path / "ray/runs/plan/logs").iterdir()}
    assert {"teacher_tiny_seed_0", "tiny_swept_choice", "tiny_kd_seed_2", "report"} <= logs


@has_ray
@linux
@pytest.mark.slow
def test_a_killed_worker_of_ray_costs_its_task_a_restart_and_nothing_else(tmp_path, local):
    def worker(process, line):  # the parent of the process that trains
        if not trains(folder)(process, line):
            return False
        parent = re.search(r"PPid:\s+(\d+)", (process / "status").read_text())[1]
        assert "ray::" in Path(f"/proc/{parent}/cmdline").read_text()
        killed.append(int(process.name))
        os.kill(int(parent), signal.SIGKILL)
        return True

    folder, killed = tmp_path / "killed", []
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(TWELVE), encoding="utf-8")
    process = real(folder, "--jobs", "2", "--executor", "ray")
    trained = wait_for(folder, worker)
    end = time.monotonic() + 10
    while Path(f"/proc/{trained}").exists():  # it ends with its worker
        assert time.monotonic() < end
        time.sleep(0.02)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert tables(folder / "runs" / "plan") == local
    assert printed.count("its worker was lost (WorkerCrashedError); it starts again (1 of 3)") == 1
