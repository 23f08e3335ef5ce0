"""Latency as a distribution: warm-up, models in turns, percentiles that the number of queries can carry.

A machine slows down and speeds up while it is measured. Models take turns, so that this meets all of them alike,
and their ratio is taken turn by turn.
"""

import time
from dataclasses import dataclass

import numpy as np

TURN = 8            # queries of one model before the next has its turn
STEADY = 0.05       # two successive turns of the warm-up whose medians differ by less are steady
NOISY = 0.1         # interquartile range over median
CONFIDENCE = 0.99   # of MLPerf's early stopping


@dataclass
class Latencies:
    """Of one model: seconds [turns, TURN] by its timer and of the processor, and what its warm-up was."""

    seconds: np.ndarray
    worked: np.ndarray  # processor time of the same queries, of all threads: others' turns do not count
    warmup: int    # queries before those counted
    steady: bool   # whether it ended with steady medians, not for want of time


def stopwatch(run, clock=time.perf_counter):
    """A function that runs `run` once and returns the seconds that it took by a monotonic clock."""
    def once():
        start = clock()
        run()
        return clock() - start
    return once


def measure(timers, *, seconds=5.0, least=64, warmup=3.0, clock=time.perf_counter):
    """{name: Latencies} of {name: function that runs one query and returns its seconds}.

    Each is warmed up until two turns agree, for `warmup` seconds at most. Then they take turns of TURN
    queries, and one before it that is not counted (the last model's data fill the caches), until each has been
    given `least` queries, and `seconds` for each have passed.
    """
    warm = {name: _warm_up(timer, warmup, clock) for name, timer in timers.items()}
    taken = {name: [] for name in timers}

    def query(timer):
        start = time.process_time()
        return timer(), time.process_time() - start

    end = clock() + seconds * len(timers)
    turns = 0
    while turns * TURN < least or clock() < end:
        for name, timer in timers.items():
            timer()
            taken[name].append([query(timer) for _ in range(TURN)])
        turns += 1
    return {name: Latencies(*np.moveaxis(np.array(taken[name]), 2, 0), *warm[name]) for name in timers}


def _warm_up(timer, most, clock):
    """(queries, steady)."""
    end, before, count = clock() + most, None, 0
    while True:
        median = float(np.median([timer() for _ in range(TURN)]))
        count += TURN
        if before is not None and abs(median - before) <= STEADY * before:
            return count, True
        if clock() >= end:
            return count, False
        before = median


def discarded(n, percentile, confidence=CONFIDENCE):
    """How many of n sorted latencies lie above MLPerf's early-stopping estimate, itself among them; 0: n is too small.

    The largest t >= 1 with P[Binomial(n, 1 - percentile) <= t] <= 1 - confidence: with that confidence no
    more than 1 - percentile of all queries take longer than the t-th largest of these n. The least n is 64
    for .90, 130 for .95, 662 for .99 (MLPerf inference rules, early stopping; loadgen, SingleStream).
    """
    most = int(n * (1 - percentile)) + 1  # the mean of the binomial: beyond it no tail is small
    if n < 2:
        return 0
    k = np.arange(1, min(most, n) + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    k = np.concatenate([[0], k])
    tail = np.exp(ways + k * np.log1p(-percentile) + (n - k) * np.log(percentile)).cumsum()
    return max(int(np.searchsorted(tail, 1 - confidence, "right")) - 1, 0)


def early_stopping(seconds, percentile):
    """MLPerf's upper estimate of a percentile of latencies [n]; NaN of too few."""
    t = discarded(len(seconds), percentile)
    return float(np.sort(seconds)[len(seconds) - t]) if t else float("nan")


def describe(latencies, batch=1):
    """The columns of a table of latencies, in milliseconds; throughput in images a second."""
    values = latencies.seconds.reshape(-1)
    p25, p50, p75, p90, p99 = np.percentile(values, [25, 50, 75, 90, 99])
    spread = (p75 - p25) / p50
    return {"lat_ms_mean": 1e3 * values.mean(), "lat_ms_std": 1e3 * values.std(ddof=1), "lat_ms_p50": 1e3 * p50,
            "lat_ms_p90": 1e3 * p90, "lat_ms_p99": 1e3 * p99, "throughput_fps": batch / values.mean(),
            "lat_ms_p90_mlperf": 1e3 * early_stopping(values, 0.9), "lat_ms_p99_mlperf": 1e3 * early_stopping(values, 0.99),
            "cpu_ms_p50": 1e3 * np.median(latencies.worked),
            "queries": len(values), "warmup_queries": latencies.warmup, "warm": latencies.steady,
            "iqr_over_median": spread, "noisy": bool(spread > NOISY or not latencies.steady)}


def speedup(reference, model):
    """(times, lo, hi): how many times faster `model` is than `reference`, both Latencies of one measure().

    The median over turns of the ratio of their medians in that turn, and the quartiles of these ratios.
    """
    ratios = np.median(reference.seconds, 1) / np.median(model.seconds, 1)
    return tuple(float(q) for q in np.percentile(ratios, [50, 25, 75]))
