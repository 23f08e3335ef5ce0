"""Tasks in processes: one after another, several at once, and never longer than the process that started them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.study import workers

HERE = Path(__file__).parent


@dataclass
class Task:
    name: str
    does: str = ""
    needs: tuple = ()


def work(task):
    """Do what `task.does` says, in the worker."""
    if task.does == "die":
        os._exit(7)
    if task.does.startswith("wait for "):  # until another task has run beside it
        end = time.monotonic() + 60
        while not Path(task.does[9:]).exists() and time.monotonic() < end:
            time.sleep(0.01)
    if task.does.startswith("write "):
        Path(task.does[6:]).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
    return "an error" if task.does == "fail" else ""


def carry_out(tasks, count=1, threads=None):
    log = []
    workers.run(tasks, work, count=count, threads=threads, begin=lambda task: log.append(f"{task.name} begins"),
                end=lambda task, error, seconds: log.append(f"{task.name}: {error or 'well'}"))
    return log


def test_one_process_does_one_task_after_another_and_says_what_went_wrong():
    assert carry_out([Task("a"), Task("b", "fail"), Task("c")]) == [
        "a begins", "a: well", "b begins", "b: an error", "c begins", "c: well"]


def test_what_needs_a_failed_task_does_not_begin_and_the_others_go_on():
    log = carry_out([Task("child", needs=("other", "a")), Task("a", "fail"), Task("grandchild", needs=("child",)),
                     Task("other", needs=("done earlier",))])
    assert log == ["a begins", "a: an error", "child: it needs a", "grandchild: it needs child",
                   "other begins", "other: well"]


def test_several_run_at_once_and_share_the_threads(tmp_path):
    file = tmp_path / "sign"
    before = os.environ.get("OMP_NUM_THREADS")
    log = carry_out([Task("first", f"wait for {file}"), Task("second", f"write {file}")], count=2, threads=3)
    assert log[:2] == ["first begins", "second begins"] and sorted(log[2:]) == ["first: well", "second: well"]
    assert file.read_text().split()[1] == "3" and os.environ.get("OMP_NUM_THREADS") == before


def test_a_worker_that_dies_fails_its_task_alone():
    assert carry_out([Task("a", "die"), Task("b")]) == [
        "a begins", "a: its process ended with status 7", "b begins", "b: well"]


PARENT = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_workers as t
t.carry_out([t.Task("pid", "write " + sys.argv[3]), t.Task("endless", "wait for " + sys.argv[3] + ".never")])
"""


@pytest.mark.skipif(os.name == "nt", reason="asks for processes as POSIX has them")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    file = tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(HERE), str(HERE.parent), str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        end = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.02)
        worker = int(file.read_text().split()[0])
        time.sleep(0.1)  # until it is at the endless task
        parent.kill()
    end = time.monotonic() + 10
    while alive(worker):
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.02)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_an_interrupt_stops_the_workers_at_once(tmp_path):
    def interrupt(task, error, seconds):
        raise KeyboardInterrupt
    before, begin = signal.getsignal(signal.SIGINT), time.monotonic()  # ignored in a background job
    with pytest.raises(KeyboardInterrupt):
        workers.run([Task("a", f"wait for {tmp_path / 'never'}"), Task("b")], work, count=2, threads=None,
                    begin=lambda task: None, end=interrupt)
    assert time.monotonic() - begin < 30
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signals can be blocked here")
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2])
def test_workers_that_are_still_starting_say_nothing_at_ctrl_c(seconds, tmp_path):
    code = ("import signal\n\nimport test_workers\nfrom kd import errors\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
            "if __name__ == '__main__':\n"
            f"    tasks = [test_workers.Task(name, 'wait for {tmp_path / 'never'}') for name in 'ab']\n"
            "    errors.run(lambda: test_workers.workers.run(tasks, test_workers.work, count=2, threads=1,\n"
            "               begin=lambda task: print(task.name, flush=True), end=lambda *_: None))\n")
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"})
    process.stdout.readline(), process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and text == "\nstopped\n"
