"""One step of a study: the command line of a script, in a process that ends with the process that started it.

    python kd/study/step.py ERROR.txt SCRIPT.py ARGUMENTS
    python kd/study/step.py                                 steps that arrive on the standard input, each in a fork

Imports the standard library alone: Ray and Slurm carry this code to machines that import nothing of the project for it.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field

LAUNCH = [sys.executable, "-u", os.path.abspath(__file__)]  # -u: the log of a process that is killed is complete
# Signals by which a process ends through a fault of its own, and would again; others come from outside.
FAULTS = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGSYS")}


@dataclass
class Step:
    """command: [SCRIPT.py, arguments]. folder: the working directory. environment: variables that it sets. log: file to
    which the output is added; None: the terminal. gpu: whether it may compute on a GPU."""

    command: list
    folder: str
    environment: dict = field(default_factory=dict)
    log: str = None
    gpu: bool = False


class Process:
    """The running process of a Step."""

    def __init__(self, step):
        self.error_file = empty_file()
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(open(os.path.join(step.folder, step.log), "ab")) if step.log else None
            stack.enter_context(without_interrupt())
            self.process = subprocess.Popen(
                [*LAUNCH, self.error_file, *step.command], cwd=step.folder, env=place(step)[1],
                stdin=subprocess.PIPE, stdout=output, stderr=output)

    def poll(self):
        """None while it runs; then (error as text or '', whether the process was ended from outside)."""
        status = self.process.poll()
        if status is None:
            return None
        self.process.stdin.close()
        return result(status, self.error_file)

    def stop(self):
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self.poll()


class Worker:
    """A process that carries out one Step after another, each in a fork of itself, after the imports of its script.

    Most of a short step is imports, of torch above all. A fork begins with what a new process has after them, and no
    step finds what another one has left.
    """

    possible = sys.platform == "linux"  # Windows has no fork, and macOS has libraries that fail in one

    def __init__(self, step):
        """For steps in the folder and with the environment of this one."""
        self.place, self.error_file = place(step), None
        self.socket, other = socket.socketpair()
        with other, without_interrupt():
            self.process = subprocess.Popen(LAUNCH, cwd=step.folder, env=self.place[1], stdin=other)
        weakref.finalize(self, end, self.socket, self.process)

    def takes(self, step):
        """Whether it can carry out a Step now."""
        return not self.error_file and self.place == place(step) and self.process.poll() is None

    def start(self, step):
        """Begin a Step. Returns itself."""
        self.error_file, self.received = empty_file(), b""
        with contextlib.suppress(ConnectionError):  # it was killed just now, as poll() finds
            self.socket.sendall(json.dumps([self.error_file, *step.command]).encode() + b"\n")
        return self

    def poll(self):
        """As Process.poll(), of the fork."""
        ended = self.process.poll()
        with contextlib.suppress(OSError):  # nothing has arrived
            self.received += self.socket.recv(100, socket.MSG_DONTWAIT)
        status = (*self.numbers(), ended, ended)[1]
        if status is None:
            return None
        if ended is not None:
            self.socket.close()  # so the fork ends, too
        error_file, self.error_file = self.error_file, None
        return result(status, error_file)

    def numbers(self):
        """What has arrived from serve(): the number of the fork's process, and its status when it has ended."""
        return [int(line) for line in self.received.split(b"\n")[:-1]]

    def stop(self):
        """End the fork at once."""
        while self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill((*self.numbers(), self.process.pid)[0], signal.SIGKILL)
            time.sleep(0.01)


def place(step):
    """The folder and the environment of a Step's process."""
    return step.folder, {**os.environ, **step.environment}


def end(connection, process):
    """End the process of a Worker, which carries out nothing, as a program ends."""
    connection.close()
    process.wait()


def empty_file():
    handle, name = tempfile.mkstemp()
    os.close(handle)
    return name


def result(status, error_file):
    """What Process.poll() returns for a status as subprocess.Popen has it, and the file with the error."""
    with open(error_file, encoding="utf-8") as file:
        error = file.read()
    os.unlink(error_file)
    if status < 0:
        error = f"its process was ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    elif status and not error:
        error = f"its process ended with status {status}"
    return error, status < 0 and -status not in FAULTS


def run(step):
    """Carry out a Step. Returns what Process.poll() does at the end."""
    process = Process(step)
    process.process.wait()
    return process.poll()


@contextlib.contextmanager
def without_interrupt():
    """In this context Ctrl-C waits, and a process that is started never receives it: not while it imports, either."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the process


def main(error_file, script, *arguments):
    """Run a script as `python SCRIPT.py` does; its error goes into a file as well, as one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the study
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    from tqdm import tqdm
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, which a kill leaves behind
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        error = getattr(end, "error", None)
        write(error_file, error.one_line if error else "")
        raise
    except Exception as error:
        write(error_file, f"{type(error).__name__}: {error}")
        raise


def serve():
    """Fork for each step that arrives, and answer with the number of the fork's process, and with its status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in arriving():
        error_file, script, *arguments = json.loads(line)
        sys.path[0] = os.path.dirname(script)
        with contextlib.suppress(Exception, SystemExit):  # the fork says it
            runpy.run_path(script)
            if "torch" in sys.modules:
                importlib.import_module("torchvision")  # the architectures import it
        fork = os.fork()
        if not fork:
            return main(error_file, script, *arguments)
        with contextlib.suppress(ConnectionError):  # the study has ended, and so does the fork
            os.write(0, b"%d\n" % fork)
            os.write(0, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))


def arriving():
    """The lines of the standard input, until the process that holds the other end is gone."""
    with contextlib.suppress(ConnectionError):  # it was killed before it had read everything
        yield from sys.stdin


def write(error_file, error):
    with open(error_file, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(error)


def end_with_parent():
    """End at once, as a kill would, when the process that holds the other end of the standard input is gone."""
    with contextlib.suppress(ConnectionError):  # it was killed before it had read everything
        while os.read(0, 1):
            pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else serve()
