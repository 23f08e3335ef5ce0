"""Steps in processes: after those that they need, several at once, never longer than the process that began them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kd.study import schedule
from kd.study.executors import Local
from kd.study.step import Step, Worker

HERE = Path(__file__).parent


@dataclass
class Task:
    name: str
    does: str = ""
    needs: tuple = ()
    gpu: bool = False


def carry_out(tasks, executor, count=1, devices=None, progress=lambda task: None, step=lambda task, device: task):
    """Lines on what happened."""
    log = []

    def begin(task, device):
        log.append(f"{task.name} begins" + (f" on {device}" if device is not None else ""))
        return step(task, device)
    schedule.run(tasks, executor, count=count, devices=devices, begin=begin, progress=progress,
                 again=lambda task, error, number: log.append(f"{task.name} again {number}: {error}"),
                 end=lambda task, error, seconds: log.append(f"{task.name}: {error or 'well'}"))
    return log


class Imagined:
    """An executor whose steps are Tasks: each ends at the second look, as often lost as `does` says."""

    pause = 0

    def __init__(self):
        self.lost, self.stopped = {}, []

    def start(self, task):
        return [task, 2]

    def poll(self, job):
        job[1] -= 1
        task, left = job
        if left:
            return None
        self.lost[task.name] = self.lost.get(task.name, 0) + 1
        if task.does.startswith("lose") and self.lost[task.name] <= int(task.does[4:]):
            return "gone", True
        return ("an error" if task.does == "fail" else ""), False

    def stop(self, job):
        self.stopped.append(job[0].name)


def test_one_after_another_and_what_went_wrong():
    assert carry_out([Task("a"), Task("b", "fail"), Task("c")], Imagined()) == [
        "a begins", "a: well", "b begins", "b: an error", "c begins", "c: well"]


def test_what_needs_a_failed_task_does_not_begin_and_the_others_go_on():
    log = carry_out([Task("child", needs=("other", "a")), Task("a", "fail"), Task("grandchild", needs=("child",)),
                     Task("other", needs=("done earlier",))], Imagined())
    assert log == ["a begins", "a: an error", "child: it needs a", "grandchild: it needs child",
                   "other begins", "other: well"]


def test_a_task_begins_after_those_that_it_needs_and_beside_the_others():
    log = carry_out([Task("a"), Task("b", needs=("a",)), Task("c"), Task("d")], Imagined(), count=2)
    assert log == ["a begins", "c begins", "a: well", "c: well", "b begins", "d begins", "b: well", "d: well"]


def test_a_lost_worker_costs_its_task_a_restart_and_the_others_nothing():
    assert carry_out([Task("a", "lose2"), Task("b", needs=("a",))], Imagined()) == [
        "a begins", "a again 1: gone", "a again 2: gone", "a: well", "b begins", "b: well"]


def test_a_task_that_loses_every_worker_fails_unless_it_gets_on_between():
    log = carry_out([Task("a", "lose99")], Imagined())
    assert log == ["a begins", *(f"a again {k}: gone" for k in (1, 2, 3)), "a: gone"]
    steps = iter(range(1000))
    log = carry_out([Task("a", "lose9")], Imagined(), progress=lambda task: next(steps))
    assert log == ["a begins", *["a again 1: gone"] * 9, "a: well"]


def test_each_device_has_no_more_tasks_than_it_may_and_a_task_without_a_gpu_has_none():
    tasks = [Task(name, gpu=name != "c") for name in "abcdef"]
    log = carry_out(tasks, Imagined(), count=6, devices=["0", "1"])
    assert log[:3] == ["a begins on 0", "b begins on 1", "c begins"]
    assert log[3:] == ["a: well", "b: well", "c: well", "d begins on 0", "e begins on 1", "d: well", "e: well",
                       "f begins on 0", "f: well"]
    log = carry_out(tasks, Imagined(), count=3, devices=["0", "1", "0", "1"])
    assert log[:3] == ["a begins on 0", "b begins on 1", "c begins"]
    assert [line for line in carry_out(tasks[:2], Imagined(), count=2) if " on " in line] == []


def test_what_runs_is_stopped_at_an_error_of_the_study():
    executor = Imagined()
    with pytest.raises(ZeroDivisionError):
        carry_out([Task("a"), Task("b"), Task("c")], executor, count=3, progress=lambda task: 1 / (task.name != "c"))
    assert executor.stopped == ["a", "b"]


# ---- with processes

SCRIPT = """
import os, signal, sys, time
from pathlib import Path

import once


def main(verb, value):
    if verb == "die":
        os._exit(int(value))
    if verb == "fall":
        os.kill(os.getpid(), int(value))
    if verb == "raise":
        raise ValueError(value)
    if verb in ("lose", "orphan") and not Path(value).exists():  # once
        Path(value).write_text(str(os.getpid()))
        print("unbuffered", end="")
        os.kill(os.getpid() if verb == "lose" else os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if verb == "write":
        Path(value).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
        print("written")
    if verb == "leave":  # what another step must not find
        with open(value, "a") as file:
            print(os.getppid(), os.getcwd(), os.environ.get("LEFT"), once.left, len(sys.argv), sys.path.count("left"),
                  signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, file=file)
        os.environ["LEFT"] = once.left = "left"
        os.chdir("..")
        sys.path.append("left")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + 60
    while verb == "wait" and not Path(value).exists() and time.monotonic() < end:  # until another has run beside it
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""
# a module of the script; each import of it adds a line to a file
ONCE = """
from pathlib import Path
with Path(__file__).with_name("imports").open("a") as file:
    print("import", file=file)
left = "nothing"
"""


@pytest.fixture
def step(tmp_path):
    """step(task, device): the Step of a Task whose `does` is `verb value`."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "once.py").write_text(ONCE)
    return lambda task, device=None: Step([str(tmp_path / "script.py"), *task.does.split(" ", 1)], str(tmp_path),
                                          {"OMP_NUM_THREADS": "3"}, f"{task.name}.log")


@pytest.fixture
def terminal(step):
    """As step(), with the output of this process; a task with a `gpu` has another environment."""
    def of_task(task, device=None):
        return replace(step(task), log=None, environment={"OMP_NUM_THREADS": "2" if task.gpu else "3"})
    return of_task


def test_several_run_at_once_with_their_variables_and_logs(tmp_path, step):
    file = tmp_path / "sign"
    before = os.environ.get("OMP_NUM_THREADS")
    log = carry_out([Task("first", f"wait {file}"), Task("second", f"write {file}")], Local(), count=2, step=step)
    assert log[:2] == ["first begins", "second begins"] and sorted(log[2:]) == ["first: well", "second: well"]
    assert file.read_text().split()[1] == "3" and os.environ.get("OMP_NUM_THREADS") == before
    assert (tmp_path / "second.log").read_text() == "written\n" and (tmp_path / "first.log").read_text() == ""


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize("place", ["log", "terminal"])
def test_a_killed_process_is_started_again_and_one_that_fails_is_not(place, tmp_path, request, capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    step = request.getfixturevalue("step" if place == "log" else place)
    log = carry_out([Task("a", "die 7"), Task("b", f"lose {tmp_path / 'lost'}"), Task("c", "raise no\u20ac"),
                     Task("d", f"fall {int(signal.SIGSEGV)}")], Local(), step=step)
    assert log == [
        "a begins", "a: its process ended with status 7",
        "b begins", "b again 1: its process was ended by signal 9 (out of memory?)", "b: well",
        "c begins", "c: ValueError: no\u20ac", "d begins", "d: its process was ended by signal 11"]
    if place == "log":
        assert "Traceback" in (tmp_path / "c.log").read_text() and (tmp_path / "b.log").read_text() == "unbuffered"
    else:
        printed = capfd.readouterr()
        assert printed.err.count("Traceback") == 1 and printed.out == "unbuffered"


forks = pytest.mark.skipif(not Worker.possible, reason="steps have a new process each here")


@forks
def test_one_worker_imports_once_and_no_step_finds_what_another_has_left(tmp_path, terminal):
    executor, file = Local(), tmp_path / "left"
    log = carry_out([Task("a", f"leave {file}"), Task("b", f"leave {file}"), Task("c", "raise x"),
                     Task("d", f"fall {int(signal.SIGSEGV)}"), Task("e", f"leave {file}")], executor, step=terminal)
    assert log.count("c: ValueError: x") == 1 and [line for line in log if line.endswith("well")] == [
        "a: well", "b: well", "e: well"]
    assert file.read_text() == f"{executor.worker.process.pid} {tmp_path} None nothing 3 0 True\n" * 3
    assert (tmp_path / "imports").read_text() == "import\n"
    before = executor.worker.process
    carry_out([Task("f", f"leave {file}", gpu=True)], executor, step=terminal)  # another environment
    assert file.read_text().splitlines()[3].split()[0] == str(executor.worker.process.pid) != str(before.pid)
    assert before.returncode == 0


@forks
def test_a_script_whose_imports_fail_says_so_once(tmp_path, terminal, capfd):
    (tmp_path / "once.py").write_text("import no_such_module")
    assert carry_out([Task("a", "x y")], Local(), step=terminal) == [
        "a begins", "a: ModuleNotFoundError: No module named 'no_such_module'"]
    assert capfd.readouterr().err.count("Traceback") == 1


@forks
def test_a_killed_worker_costs_its_step_a_restart_and_its_fork_ends_with_it(tmp_path, terminal):
    worker = Worker(terminal(Task("a", f"orphan {tmp_path / 'fork'}")))
    job = worker.start(terminal(Task("a", f"orphan {tmp_path / 'fork'}")))
    wait_until(lambda: job.poll() is not None)
    wait_until(lambda: not alive(int((tmp_path / "fork").read_text())), seconds=20)  # it would wait a minute
    executor, file = Local(), tmp_path / "orphan"
    log = carry_out([Task("a", f"orphan {file}"), Task("b", f"write {tmp_path / 'b'}")], executor, step=terminal)
    assert log == ["a begins", "a again 1: its process was ended by signal 9 (out of memory?)", "a: well",
                   "b begins", "b: well"]
    executor.worker.process.kill()  # between two steps
    executor.worker.process.wait()
    assert carry_out([Task("c", f"write {tmp_path / 'c'}")], executor, step=terminal) == ["c begins", "c: well"]


@forks
@pytest.mark.parametrize("begun", [False, True])
def test_a_step_that_is_stopped_is_gone_at_once(begun, tmp_path, terminal):
    step = terminal(Task("a", f"wait {tmp_path / 'never'}"))
    if begun:
        step.command[1:] = ["write", str(tmp_path / "pid")]
        (tmp_path / "script.py").write_text(SCRIPT + "    time.sleep(60)\n")
    worker = Local().start(step)
    if begun:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(int((tmp_path / "pid").read_text().split()[0]), signal.SIGSTOP)  # it can no longer end by itself
    worker.stop()
    assert not begun or not alive(int((tmp_path / "pid").read_text().split()[0]))


PARENT = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_schedule as t
from kd.study.step import Step
step = Step([sys.argv[4], "write", sys.argv[3]], sys.argv[5], log="log" if sys.argv[6] == "log" else None)
if sys.argv[6] == "unread":
    job = t.Local().start(step)
    t.time.sleep(60)
t.carry_out([t.Task("endless")], t.Local(), step=lambda task, device: step)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks for processes as Linux has them")
@pytest.mark.parametrize("output", ["terminal", "log", "unread"])
def test_a_process_ends_with_the_one_that_started_it(output, tmp_path, step):
    """unread: the one that started it has not read what its worker said, by which a connection ends as an error."""
    step(Task("script", "x"))
    (tmp_path / "script.py").write_text(SCRIPT + "    time.sleep(60)\n")
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(HERE), str(HERE.parent), str(pid), str(tmp_path / "script.py"),
               str(tmp_path), output]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        wait_until(lambda: pid.exists() and pid.read_text())
        parent.kill()
        assert parent.communicate(timeout=30)[1] == ""  # at the end of the worker, too
    wait_until(lambda: not alive(int(pid.read_text().split()[0])), seconds=20)  # it would wait a minute


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signals can be blocked here")
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2, 1])
def test_processes_that_are_still_starting_say_nothing_at_ctrl_c(seconds, tmp_path, step):
    step(Task("script", "x"))
    code = ("import signal\n\nimport test_schedule as t\nfrom kd import errors\nfrom kd.study import schedule\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
            "if __name__ == '__main__':\n"
            "    def begin(task, device):\n"
            "        print(task.name, flush=True)\n"
            f"        return t.Step(['{tmp_path / 'script.py'}', 'wait', 'never'], '.')\n"
            "    errors.run(lambda: schedule.run([t.Task(name) for name in 'ab'], t.Local(), count=2, devices=None,\n"
            "               begin=begin, again=None, end=lambda *_: None, progress=lambda task: None))\n")
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, cwd=tmp_path,
                               env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"})
    process.stdout.readline(), process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and text == "\nstopped\n"
