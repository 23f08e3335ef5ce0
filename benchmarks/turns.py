"""Sides that are compared take turns, each in a process of its own: what else the machine does meets all of them, and
the memory and the allocator of one are none of another's.
"""

import contextlib
import io
import multiprocessing
import os
import time

import numpy as np
import torch

from kd import machine


class Side:
    """A process that holds what make(*arguments), a function of a module, returns: {name: function}; a context manager."""

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()

    def ask(self, what):
        """(wall seconds, processor seconds of it and its children) of the function `what`, or what `peak` is in bytes."""
        self.pipe.send(what)
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.pipe.send(None)
        self.process.join()


def _used():
    """Seconds of processor time of this process and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def _serve(pipe, make, arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        runs = make(*arguments)
    for what in iter(pipe.recv, None):
        if what == "peak":
            cuda = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
            pipe.send(cuda or machine.peak_memory())
            continue
        start, used = time.perf_counter(), _used()
        runs[what]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start, _used() - used))


def measure(sides, rounds, names=("step",)):
    """{(side, name): seconds [rounds, 2], wall and processor} of {side: Side}; a first round is not counted."""
    taken = {(side, name): [] for side in sides for name in names}
    for _ in range(rounds + 1):
        for side, name in taken:
            taken[side, name].append(sides[side].ask(name))
    return {key: np.array(values[1:]) for key, values in taken.items()}


def ratio(reference, other):
    """(median, least, most) over rounds of how many times faster `other` was than `reference` in the same round."""
    times = np.asarray(reference) / np.asarray(other)
    return float(np.median(times)), float(times.min()), float(times.max())


def table(seconds, per=1, unit="ms"):
    """Print a row a side: median milliseconds a `per`, and times faster than the first; returns {side: times}."""
    width = max(map(len, seconds)) + 2
    print(f"{'':{width}}{unit:>14}{'times':>8}   least to most")
    result = {}
    for side, values in seconds.items():
        middle, least, most = ratio(next(iter(seconds.values())), values)
        print(f"{side:{width}}{1e3 * np.median(values) / per:>14.2f}{middle:>8.2f}   {least:.2f} to {most:.2f}", flush=True)
        result[side] = round(middle, 2)
    return result
