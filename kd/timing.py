"""Latency as a distribution: warm-up, models in turns, and percentiles only where there are enough queries.

The speed of a machine changes while it is measured. Models take turns, so that the changes affect all of them
equally, and the ratio of two models is taken turn by turn.
"""

import time
from dataclasses import dataclass

import numpy as np

TURN = 8            # queries of one model before the turn of the next
STEADY = 0.05       # the warm-up ends when the medians of two successive turns differ by less than this share
# A series is noisy if one of these, as shares of its median, is larger: each misses what the others find.
NOISY = 0.1         # the interquartile range: the half of the queries that is most usual
NOISY_TAILS = 0.3   # from the 5th to the 95th percentile: a fifth of the queries that is slower, or faster
NOISY_MEAN = 0.05   # how far the mean is from the median: few queries that are much slower
CONFIDENCE = 0.99   # of MLPerf's early stopping


@dataclass
class Latencies:
    """The queries of one model after its warm-up."""

    seconds: np.ndarray  # [turns, TURN] of each query, by the timer of the model
    worked: np.ndarray   # [turns, TURN] processor seconds of the same queries in all threads, without other processes
    warmup: int          # number of queries before these
    steady: bool         # the warm-up ended because its medians were steady, not because its time was up


def stopwatch(run, clock=time.perf_counter):
    """A timer: a function that calls run() once and returns the seconds that it took by a monotonic clock."""
    def timer():
        start = clock()
        run()
        return clock() - start
    return timer


def measure(timers, *, seconds=5.0, least=64, warmup=3.0, clock=time.perf_counter):
    """Measure models in turns: {name: Latencies}.

    timers: {name: function that runs one query and returns its seconds}. Each model is warmed up until two turns
    agree, or for `warmup` seconds. Then the models take turns of TURN queries, until each has had `least` queries and
    `seconds` have passed for each. One query before each turn is not counted, because the caches then contain the data
    of the last model.
    """
    warmups = {name: _warm_up(timer, warmup, clock) for name, timer in timers.items()}
    turns = {name: [] for name in timers}

    def query(timer):
        start = time.process_time()
        return timer(), time.process_time() - start

    end = clock() + seconds * len(timers)
    queries = 0
    while queries < least or clock() < end:
        for name, timer in timers.items():
            timer()
            turns[name].append([query(timer) for _ in range(TURN)])
        queries += TURN
    return {name: Latencies(*np.moveaxis(np.array(turns[name]), 2, 0), *warmups[name]) for name in timers}


def _warm_up(timer, seconds, clock):
    """(number of queries, whether their medians became steady)."""
    end, last_median, count = clock() + seconds, None, 0
    while True:
        median = float(np.median([timer() for _ in range(TURN)]))
        count += TURN
        if last_median is not None and abs(median - last_median) <= STEADY * last_median:
            return count, True
        if clock() >= end:
            return count, False
        last_median = median


def discarded(n, percentile, confidence=CONFIDENCE):
    """The rank t, from the largest, of MLPerf's early-stopping estimate among n latencies; 0 if n is too small.

    percentile, confidence: in (0, 1). t is the largest t >= 1 with P[Binomial(n, 1 - percentile) <= t] <=
    1 - confidence: with this confidence at most 1 - percentile of all queries take longer than the t-th largest of
    these n. The smallest possible n is 64 for .90, 130 for .95 and 662 for .99 (MLPerf inference rules, early
    stopping; loadgen, SingleStream).
    """
    mean = int(n * (1 - percentile)) + 1  # of the binomial: no tail beyond it is small
    if n < 2:
        return 0
    k = np.arange(1, min(mean, n) + 1)
    log_binomial = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
    k = np.concatenate([[0], k])
    tail = np.exp(log_binomial + k * np.log1p(-percentile) + (n - k) * np.log(percentile)).cumsum()
    return max(int(np.searchsorted(tail, 1 - confidence, "right")) - 1, 0)


def early_stopping(seconds, percentile):
    """MLPerf's upper estimate of a percentile, in (0, 1), of latencies [n] in seconds; NaN if n is too small."""
    t = discarded(len(seconds), percentile)
    return float(np.sort(seconds)[len(seconds) - t]) if t else float("nan")


def describe(latencies, batch=1):
    """The columns of benchmark.csv for Latencies, a dict: times in milliseconds, throughput in images per second.

    batch: images in a query.
    """
    values = latencies.seconds.reshape(-1)
    p5, p25, p50, p75, p90, p95, p99 = np.percentile(values, [5, 25, 50, 75, 90, 95, 99])
    spread = (p75 - p25) / p50
    noisy = spread > NOISY or (p95 - p5) / p50 > NOISY_TAILS or abs(values.mean() / p50 - 1) > NOISY_MEAN
    return {
        "lat_ms_mean": 1e3 * values.mean(), "lat_ms_std": 1e3 * values.std(ddof=1), "lat_ms_p50": 1e3 * p50,
        "lat_ms_p90": 1e3 * p90, "lat_ms_p99": 1e3 * p99, "throughput_fps": batch / values.mean(),
        "lat_ms_p90_mlperf": 1e3 * early_stopping(values, 0.9),
        "lat_ms_p99_mlperf": 1e3 * early_stopping(values, 0.99), "cpu_ms_p50": 1e3 * np.median(latencies.worked),
        "queries": len(values), "warmup_queries": latencies.warmup, "warm": latencies.steady,
        "iqr_over_median": spread, "noisy": bool(noisy or not latencies.steady),
    }


def speedup(reference, model):
    """(ratio, lo, hi): how many times faster `model` is than `reference`, both Latencies from one call of measure().

    In each turn the ratio of their medians is taken: the median of these ratios over the turns, and their quartiles.
    """
    ratios = np.median(reference.seconds, 1) / np.median(model.seconds, 1)
    return tuple(float(q) for q in np.percentile(ratios, [50, 25, 75]))
