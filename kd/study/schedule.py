"""When the tasks of a study begin: after those that they need, some at once; and again, where a worker was lost."""

import time
from dataclasses import dataclass

from kd.study.step import Step

RESTARTS = 3  # of a task whose worker is lost each time, without progress between: the task itself may be at fault


@dataclass
class Running:
    """A task that an executor is at. job: what its start() returned. restarts: since the last progress."""

    task: object
    device: str
    step: Step
    job: object
    begun: float
    progress: object
    restarts: int = 0


def run(tasks, executor, *, count, devices, begin, again, end, progress):
    """Carry out `tasks` with an executor (kd/study/executors.py), up to `count` at once.

    tasks: objects with `name`, `needs`, the names of other tasks, and `gpu`, whether they compute on a GPU if they can.
    devices: names of GPUs, each as many times as it may have tasks at once; a task with `gpu` waits for one of them.
    None: such tasks wait for none.
    begin(task, device): called when a task begins; returns its Step. device: None or a name.
    again(task, error, number): called when a task is started once more, because its worker was lost.
    end(task, error, seconds): called when it has ended; error is '' or a text. A task that needs a failed one ends with
    an error and without begin().
    progress(task): a value that changes as the task gets on.
    """
    waiting, running, failed, free = list(tasks), [], set(), list(devices or ())
    try:
        while waiting or running:
            # a task that can no longer begin
            blocked = next((task for task in waiting if not failed.isdisjoint(task.needs)), None)
            if blocked:
                waiting.remove(blocked)
                failed.add(blocked.name)
                end(blocked, f"it needs {next(name for name in blocked.needs if name in failed)}", 0.0)
                continue
            # the next task that needs none of the unfinished ones, and for which there is a place
            unfinished = {task.name for task in [*waiting, *(one.task for one in running)]}
            task = next((task for task in waiting if unfinished.isdisjoint(task.needs)
                         and (free or devices is None or not task.gpu)), None) if len(running) < count else None
            if task:
                waiting.remove(task)
                device = max(free, key=free.count) if free and task.gpu else None  # the one with the fewest tasks
                if device is not None:
                    free.remove(device)
                step = begin(task, device)
                running.append(Running(task, device, step, executor.start(step), time.monotonic(), progress(task)))
                continue
            # nothing can begin: wait until something ends
            ended = [(one, result) for one in running if (result := executor.poll(one.job)) is not None]
            for one, (error, lost) in ended:
                if lost and progress(one.task) != one.progress:
                    one.progress, one.restarts = progress(one.task), 0
                if lost and one.restarts < RESTARTS:
                    one.restarts += 1
                    again(one.task, error, one.restarts)
                    one.job = executor.start(one.step)
                    continue
                running.remove(one)
                if one.device is not None:
                    free.append(one.device)
                if error:
                    failed.add(one.task.name)
                end(one.task, error, time.monotonic() - one.begun)
            if not ended:
                time.sleep(executor.pause)
    finally:
        for one in running:
            executor.stop(one.job)
