"""Tasks in processes of their own, several at once; the processes end when this one does, however it ends."""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time

from tqdm import tqdm


def run(tasks, work, *, count, threads, begin, end):
    """Carry out `tasks` in up to `count` processes, each in the first that is free.

    tasks: objects with `name` and `needs`, the name of another of them or None. work(task): a function of a module,
    called in a worker; returns '' or what went wrong, as does a worker that dies. threads: of a worker, or None for what
    it takes by itself. begin(task) and end(task, trouble, seconds) are called here. Where what a task needs went
    wrong, it ends so without having begun.
    """
    waiting, workers, wrong = list(tasks), [], set()
    try:
        while waiting or any(worker.task for worker in workers):
            unable = next((task for task in waiting if task.needs in wrong), None)
            if unable:
                waiting.remove(unable)
                wrong.add(unable.name)
                end(unable, f"it needs {unable.needs}", 0.0)
                continue
            open_ = {task.name for task in waiting} | {worker.task.name for worker in workers if worker.task}
            task = next((task for task in waiting if task.needs not in open_), None)
            worker = next((worker for worker in workers if not worker.task), None)
            if task and (worker or len(workers) < count):
                if not worker:
                    workers.append(worker := Worker(work, threads))
                waiting.remove(task)
                begin(task)
                worker.give(task)
                continue
            busy = [worker for worker in workers if worker.task]
            ready = multiprocessing.connection.wait([worker.answers for worker in busy]) if busy else []
            for worker in [worker for worker in busy if worker.answers in ready]:
                task, trouble, seconds = worker.take()
                if not worker.alive:
                    workers.remove(worker)
                    worker.stop()
                if trouble:
                    wrong.add(task.name)
                end(task, trouble, seconds)
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process that carries out one task after another."""

    def __init__(self, work, threads):
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        orders, self.orders = context.Pipe(duplex=False)
        self.answers, answers = context.Pipe(duplex=False)
        self.process = context.Process(target=obey, args=(work, orders, answers))
        before = os.environ.get("OMP_NUM_THREADS")
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when NumPy and torch are imported
        try:
            self.process.start()
        finally:
            if threads:
                os.environ.pop("OMP_NUM_THREADS")
                if before is not None:
                    os.environ["OMP_NUM_THREADS"] = before
        orders.close()
        answers.close()
        self.task, self.alive = None, True

    def give(self, task):
        self.task, self.begun = task, time.monotonic()
        self.orders.send(task)

    def take(self):
        """(task, what went wrong or '', seconds)."""
        task, self.task = self.task, None
        try:
            trouble = self.answers.recv()
        except (EOFError, OSError):
            self.process.join()
            self.alive, code = False, self.process.exitcode
            trouble = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with status {code}"
            trouble += " (out of memory?)" if code == -9 else ""
        return task, trouble, time.monotonic() - self.begun

    def stop(self):
        """An idle worker ends as a program does, a busy one at once."""
        if not self.task and self.alive:
            self.orders.send(None)
            self.answers.close()
            self.process.join()
        self.orders.close()
        self.process.join()


def obey(work, orders, answers):
    """Main function of a worker."""
    tqdm.set_lock(threading.RLock())  # by default it has a lock of all processes, which a kill leaves behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that gives the orders
    given = queue.SimpleQueue()
    threading.Thread(target=listen, args=(orders, given), daemon=True).start()
    while task := given.get():
        answers.send(work(task))


def listen(orders, given):
    """Take orders until whoever gives them is gone; then end at once, as a kill would."""
    try:
        while True:
            given.put(orders.recv())
    except (EOFError, OSError):
        os._exit(1)
