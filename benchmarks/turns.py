"""Measurements in turns: each side of a comparison is a process of its own, and the processes run one after another.

Other load on the machine affects all sides equally, and no side uses the memory or the allocator of another.
"""

import contextlib
import io
import multiprocessing
import os
import sys
import time

import numpy as np

from kd import machine


class Side:
    """A process that has the functions {name: function} that make(*arguments) returns; a context manager.

    make: a function of a module, since the process imports it.
    """

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, make, arguments))
        self.process.start()
        other_end.close()

    def call(self, name):
        """Call the function `name`: (wall seconds, processor seconds of the process and its children)."""
        self.pipe.send(name)
        return self.pipe.recv()

    def peak_memory(self):
        """The peak memory so far in bytes, of the GPU if one is used; None if unknown."""
        self.pipe.send("peak_memory")
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.pipe.send(None)
        self.process.join()


def _processor_seconds():
    """Seconds of processor time of this process and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def _serve(pipe, make, arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        functions = make(*arguments)
    torch = sys.modules.get("torch")  # a side that needs none does without
    cuda = torch and torch.cuda.is_available() and torch.cuda
    for name in iter(pipe.recv, None):
        if name == "peak_memory":
            pipe.send(cuda and cuda.max_memory_allocated() or machine.peak_memory())
            continue
        wall, processor = time.perf_counter(), _processor_seconds()
        functions[name]()
        if cuda:
            cuda.synchronize()
        pipe.send((time.perf_counter() - wall, _processor_seconds() - processor))


def measure(sides, rounds, names=("step",)):
    """{(side, name): seconds [rounds, 2], wall and processor} of the functions `names` of all sides.

    sides: {side: Side}. A first round is not counted.
    """
    seconds = {(side, name): [] for side in sides for name in names}
    for _ in range(rounds + 1):
        for side, name in seconds:
            seconds[side, name].append(sides[side].call(name))
    return {key: np.array(values[1:]) for key, values in seconds.items()}


def ratio(reference, other):
    """(median, least, most) over rounds of how many times faster `other` is than `reference` in the same round.

    reference, other: seconds [rounds].
    """
    times = np.asarray(reference) / np.asarray(other)
    return float(np.median(times)), float(times.min()), float(times.max())


def print_table(seconds, items=1, unit="ms"):
    """Print a row for each side: milliseconds an item, and how many times faster than the first side it is.

    seconds: {side: seconds [rounds]}. items: number of items in these seconds. unit: heading of the milliseconds.
    Returns {side: times faster}.
    """
    width = max(map(len, seconds)) + 2
    print(f"{'':{width}}{unit:>14}{'times':>8}   least to most")
    reference = next(iter(seconds.values()))
    result = {}
    for side, values in seconds.items():
        median, least, most = ratio(reference, values)
        milliseconds = 1e3 * np.median(values) / items
        print(f"{side:{width}}{milliseconds:>14.2f}{median:>8.2f}   {least:.2f} to {most:.2f}", flush=True)
        result[side] = round(median, 2)
    return result


def print_peaks(sides):
    """Print the peak memory of {side: Side} in a line, and return {side: bytes}; {} if one is unknown."""
    peaks = {name: side.peak_memory() for name, side in sides.items()}
    if not all(peaks.values()):
        return {}
    print("peak memory, MB: " + ", ".join(f"{name} {peak / 1e6:,.0f}" for name, peak in peaks.items()))
    return peaks
