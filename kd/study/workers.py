"""Tasks in processes of their own, several at once; the processes end when this one does, however it ends."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from multiprocessing import resource_tracker

from tqdm import tqdm


def run(tasks, work, *, count, threads, begin, end):
    """Carry out `tasks` in up to `count` processes, each in the first that is free.

    tasks: objects with `name` and `needs`, the names of other tasks.
    work: work(task) is called in a worker; a function of a module that returns '' or an error as text.
    threads: of a worker; None: its own choice.
    begin, end: begin(task) and end(task, error, seconds) are called in this process.
    A worker that dies is an error of its task. A task that needs a failed one ends with an error and without begin().
    """
    waiting, workers, failed = list(tasks), [], set()
    try:
        while waiting or any(worker.task for worker in workers):
            # a task that can no longer begin
            blocked = next((task for task in waiting if not failed.isdisjoint(task.needs)), None)
            if blocked:
                waiting.remove(blocked)
                failed.add(blocked.name)
                end(blocked, f"it needs {next(name for name in blocked.needs if name in failed)}", 0.0)
                continue
            # the next task that needs none of the unfinished ones, and a free worker for it
            unfinished = {task.name for task in waiting} | {worker.task.name for worker in workers if worker.task}
            task = next((task for task in waiting if unfinished.isdisjoint(task.needs)), None)
            worker = next((worker for worker in workers if not worker.task), None)
            if task and (worker or len(workers) < count):
                if not worker:
                    workers.append(worker := Worker(work, threads))
                waiting.remove(task)
                begin(task)
                worker.start(task)
                continue
            # nothing can begin: wait until a worker is done
            busy = [worker for worker in workers if worker.task]
            ready = multiprocessing.connection.wait([worker.results for worker in busy]) if busy else []
            for worker in [worker for worker in busy if worker.results in ready]:
                task, error, seconds = worker.finish()
                if not worker.alive:
                    workers.remove(worker)
                    worker.stop()
                if error:
                    failed.add(task.name)
                end(task, error, seconds)
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process that carries out one task after another. task: the one that it is at, or None."""

    def __init__(self, work, threads):
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        tasks, self.tasks = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(work, tasks, results))
        before = os.environ.get("OMP_NUM_THREADS")
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when NumPy and torch are imported
        try:
            with without_interrupt():
                self.process.start()
        finally:
            if threads:
                os.environ.pop("OMP_NUM_THREADS")
                if before is not None:
                    os.environ["OMP_NUM_THREADS"] = before
        tasks.close()
        results.close()
        self.task, self.alive = None, True

    def start(self, task):
        """Send a task to the process."""
        self.task, self.begun = task, time.monotonic()
        self.tasks.send(task)

    def finish(self):
        """(task, error as text or '', seconds) of the task that has ended, or whose process has."""
        task, self.task = self.task, None
        try:
            error = self.results.recv()
        except (EOFError, OSError):
            self.process.join()
            self.alive, code = False, self.process.exitcode
            ending = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
            error = f"its process {ending}" + (" (out of memory?)" if code == -9 else "")
        return task, error, time.monotonic() - self.begun

    def stop(self):
        """End the process: an idle one as a program ends, a busy one at once."""
        if not self.task and self.alive:
            self.tasks.send(None)
            self.results.close()
            self.process.join()
        self.tasks.close()
        self.process.join()


@contextlib.contextmanager
def without_interrupt():
    """In this context Ctrl-C waits, and a process that is started never receives it: not while it imports, either."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when the first process starts, this would end the wait
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(work, tasks, results):
    """Main function of a worker: send the result of each task that arrives, until None does."""
    tqdm.set_lock(threading.RLock())  # by default it has a lock of all processes, which a kill leaves locked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that sends the tasks
    received = queue.SimpleQueue()
    threading.Thread(target=listen, args=(tasks, received), daemon=True).start()
    while task := received.get():
        results.send(work(task))


def listen(tasks, received):
    """Receive tasks until the process that sends them is gone; then end this one at once, as a kill would."""
    try:
        while True:
            received.put(tasks.recv())
    except (EOFError, OSError):
        os._exit(1)
