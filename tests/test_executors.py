"""A study on this machine, on Ray and on Slurm: the same tables, and a lost worker costs a restart."""

import importlib.util
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

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


def begun(folder, *more, content=TWELVE, **options):
    """The process of a study with two jobs in a new folder."""
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return real(folder, "--jobs", "2", *more, **options)


def ended(process, folder):
    """The tables of a study, and what it printed, when it has ended well."""
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return tables(folder / "runs" / "plan"), printed


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The tables of TWELVE on this machine."""
    folder = tmp_path_factory.mktemp("local") / "study"
    return ended(begun(folder), folder)[0]


def wait_until(holds, seconds=300):
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def training(folder):
    """(number of a process that trains the student tiny_alone in a folder, and has written an epoch; its parent's)."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = place.joinpath("cmdline").read_text(errors="replace")
            seed = re.search(r"step\.py.*--seeds=(\d).*--name=tiny_alone\0", line)
            if seed and os.readlink(place / "cwd") == str(folder) and (
                    folder / f"runs/plan/tiny_alone/seed_{seed[1]}/last.pt").exists():
                return int(place.name), int(re.search(r"PPid:\s+(\d+)", (place / "status").read_text())[1])
        except OSError:  # it has ended
            continue
    return None


def working_in(folder):
    """Command lines of the processes that work in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(place / "cwd") == str(folder) and "step.py" in (place / "cmdline").read_text():
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    return found


@linux
@pytest.mark.slow
def test_a_training_that_is_killed_costs_a_restart_and_nothing_else(tmp_path, local):
    process = begun(tmp_path / "killed")
    os.kill(wait_until(lambda: training(tmp_path / "killed"))[0], signal.SIGKILL)
    found, printed = ended(process, tmp_path / "killed")
    assert found == local and printed.count("signal 9 (out of memory?); it starts again (1 of 3)") == 1


@has_ray
@linux
@pytest.mark.slow
def test_ray_gives_the_tables_of_local(tmp_path, local):
    found, printed = ended(begun(tmp_path / "ray", "--executor", "ray"), tmp_path / "ray")
    assert len([name for name in found if name.endswith("metrics.json")]) == 10  # of the 12, two are tries
    assert found == local and "starts again" not in printed
    logs = {file.stem for file in (tmp_path / "ray/runs/plan/logs").iterdir()}
    assert {"teacher_tiny_seed_0", "tiny_swept_choice", "tiny_kd_seed_2", "report"} <= logs


@has_ray
@linux
@pytest.mark.slow
def test_a_killed_worker_of_ray_costs_its_task_a_restart_and_nothing_else(tmp_path, local):
    process = begun(tmp_path / "killed", "--executor", "ray")
    trains, worker = wait_until(lambda: training(tmp_path / "killed"))
    assert "ray::" in Path(f"/proc/{worker}/cmdline").read_text()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{trains}").exists(), seconds=10)  # no second writer
    found, printed = ended(process, tmp_path / "killed")
    assert found == local and printed.count("its worker was lost (WorkerCrashedError); it starts again (1 of 3)") == 1


@has_ray
@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_runs_on_ray_ends_with_the_study(tmp_path, number):
    process = begun(tmp_path / "stopped", "--executor", "ray", content={**TWELVE, "epochs": 1000})
    wait_until(lambda: training(tmp_path / "stopped"))
    os.kill(process.pid, number)
    printed = process.communicate()[0]
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert number == signal.SIGKILL or printed.endswith("\nstopped; the same command goes on from here\n")
    wait_until(lambda: not working_in(tmp_path / "stopped"), seconds=30)


@has_ray
def test_a_ray_cluster_that_does_not_answer_is_an_error_of_one_line(monkeypatch):
    import ray
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda address, **settings: (_ for _ in ()).throw(ConnectionError(address)))
    with pytest.raises(UserError, match="Ray does not start: 127.0.0.1:1") as caught:
        executors.Ray().threads(2)
    assert "Without RAY_ADDRESS" in caught.value.hint


@pytest.mark.parametrize("name, extra", [("ray", "ray"), ("submitit", "slurm")])
def test_an_executor_that_is_not_installed_names_its_extra(name, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"needs the package {name}") as caught:
        executors.Ray() if name == "ray" else executors.Slurm(tmp_path, {})
    assert f".[{extra}]" in caught.value.hint


# ---- Slurm: the commands sbatch, srun, sacct and scancel, imitated by what they do with one job

SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
folder, script = Path({folder!r}), Path(sys.argv[1]).read_text()
number = 100 + len(list(folder.glob("*.job")))
(folder / f"{{number}}.job").write_text(script)
names = dict(SLURM_JOB_ID=number, SLURM_NTASKS=1, SLURM_JOB_NUM_NODES=1, SLURM_NODEID=0, SLURM_JOB_NODELIST="here",
             SLURM_PROCID=0, SLURM_LOCALID=0)
job = subprocess.Popen(["bash", sys.argv[1]], start_new_session=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL,
                       env={{**os.environ, **{{name: str(value) for name, value in names.items()}}}})
(folder / f"{{number}}.pid").write_text(str(job.pid))
print("Submitted batch job", number)
"""
SRUN = """#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[1 if "=" in words[0] or words[0] == "--unbuffered" else 2:]
os.execvp(words[0], words)
"""
SACCT = """#!{python}
import sys
from pathlib import Path
print("JobID|State|NodeList")
for number in sys.argv[sys.argv.index("-j") + 1::2]:
    pid = (Path({folder!r}) / f"{{number}}.pid").read_text()
    status = Path(f"/proc/{{pid}}/stat")
    runs = status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    print(f"{{number}}|{{'RUNNING' if runs else 'NODE_FAIL'}}|here")
"""
SCANCEL = """#!{python}
import os, signal, sys
from pathlib import Path
os.killpg(int((Path({folder!r}) / f"{{sys.argv[1]}}.pid").read_text()), signal.SIGKILL)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with commands that stand for those of Slurm; each job has its script there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@has_submitit
@linux
@pytest.mark.slow
def test_slurm_gives_the_tables_of_local_and_a_lost_job_is_submitted_again(tmp_path, slurm):
    plain = begun(tmp_path / "local", content={**PLAN, "epochs": 3})
    expected = ended(plain, tmp_path / "local")[0]
    process = begun(tmp_path / "slurm", "--executor", "slurm", "--slurm", "partition=gpu", "gpus_per_node=1",
                    content={**PLAN, "epochs": 3})
    trains, _ = wait_until(lambda: training(tmp_path / "slurm"))
    os.killpg(os.getsid(trains), signal.SIGKILL)  # all of its job, as when a node is lost
    found, printed = ended(process, tmp_path / "slurm")
    assert found == expected and printed.count("its worker was lost (NODE_FAIL); it starts again (1 of 3)") == 1
    scripts = [file.read_text() for file in sorted(slurm.glob("*.job"))]
    assert all("#SBATCH --partition=gpu\n" in script and "#SBATCH --time=60\n" in script for script in scripts)
    assert ["--gpus-per-node=1" in script for script in scripts].count(True) == 4  # three trainings, one of them twice
    assert (tmp_path / "slurm/runs/plan/logs/teacher_tiny_seed_0.log").read_text()


@has_submitit
@pytest.mark.parametrize("options, words, hint", [
    ({"partitoin": "gpu"}, "no option 'partitoin'", "did you mean partition?"),
    ({"nodes": 2}, "no option 'nodes'", "did you mean nodelist?"),
    ({"xyzzy": 1}, "no option 'xyzzy'", "There are account"),
    ({"mem_gb": "much"}, "mem_gb=much", "For instance"),
])
def test_wrong_options_of_slurm_are_errors_of_one_line(options, words, hint, slurm, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        executors.Slurm(tmp_path / "logs", options)
    assert hint in caught.value.hint and "\n" not in caught.value.message and not (tmp_path / "logs").exists()


@has_submitit
def test_without_slurm_its_executor_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Slurm here"):
        executors.Slurm(tmp_path / "logs", {})


@has_submitit
def test_a_job_of_submitit_says_how_its_step_ended(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nprint('here')\nif sys.argv[1] == 'fail':\n    sys.exit(4)\n"
                                        "if sys.argv[1] == 'wait':\n    import time\n    time.sleep(60)\n")
    executor = executors.Slurm(tmp_path / "logs", {}, cluster="local")

    def start(word):
        return executor.start(Step([str(tmp_path / "script.py"), word], str(tmp_path), log=f"{word}.log"))
    good, bad = start("well"), start("fail")
    assert wait_until(lambda: executor.poll(good)) == ("", False)
    assert wait_until(lambda: executor.poll(bad)) == ("its process ended with status 4", False)
    assert (tmp_path / "well.log").read_text() == "here\n"
    lost = start("wait")
    wait_until(lambda: (tmp_path / "wait.log").exists() and (tmp_path / "wait.log").read_text())
    lost._process.kill()
    error, again = wait_until(lambda: executor.poll(lost))
    assert again and "its worker was lost" in error
