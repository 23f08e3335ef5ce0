"""One step of a study: the command line of a script, in a process that ends with the process that started it.

    python kd/study/step.py ERROR.txt SCRIPT.py ARGUMENTS

Imports the standard library alone: Ray and Slurm carry this code to machines that import nothing of the project for it.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
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
        handle, self.error_file = tempfile.mkstemp()
        os.close(handle)
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(open(os.path.join(step.folder, step.log), "ab")) if step.log else None
            stack.enter_context(without_interrupt())
            self.process = subprocess.Popen(
                [*LAUNCH, self.error_file, *step.command], cwd=step.folder, env={**os.environ, **step.environment},
                stdin=subprocess.PIPE, stdout=output, stderr=output)

    def poll(self):
        """None while it runs; then (error as text or '', whether the process was ended from outside)."""
        status = self.process.poll()
        if status is None:
            return None
        self.process.stdin.close()
        with open(self.error_file, encoding="utf-8") as file:
            error = file.read()
        os.unlink(self.error_file)
        if status < 0:
            error = f"its process was ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
        elif status and not error:
            error = f"its process ended with status {status}"
        return error, status < 0 and -status not in FAULTS

    def stop(self):
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self.poll()


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


def write(error_file, error):
    with open(error_file, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(error)


def end_with_parent():
    """End at once, as a kill would, when the process that holds the other end of the standard input is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
