"""Latencies are measured as they are, and percentiles say no more than the number of queries can carry."""

import subprocess
import sys
import time
from math import comb
from pathlib import Path

import numpy as np
import pytest

from kd import machine, timing


class Clock:
    """Time that passes only while a query runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def backend(self, draw):
        def run():
            self.now += draw()
        return timing.stopwatch(run, self)


def test_a_known_distribution_is_measured_within_two_percent():
    clock, rng = Clock(), np.random.default_rng(0)
    draw = {"gamma": lambda: 1e-3 + 4e-3 * rng.gamma(2.0, 0.1), "uniform": lambda: rng.uniform(1e-3, 2e-3)}
    taken = timing.measure({name: clock.backend(query) for name, query in draw.items()}, seconds=20, clock=clock)
    for name, query in draw.items():
        truth = 1e3 * np.array([query() for _ in range(200_000)])
        columns = timing.describe(taken[name], batch=4)
        assert columns["lat_ms_mean"] == pytest.approx(truth.mean(), rel=0.02)
        for share in (50, 90, 99):
            assert columns[f"lat_ms_p{share}"] == pytest.approx(np.percentile(truth, share), rel=0.02)
        assert columns["lat_ms_std"] == pytest.approx(truth.std(), rel=0.05)
        assert columns["throughput_fps"] == pytest.approx(4e3 / truth.mean(), rel=0.02)


def exact(n, percentile_of_100):
    """Early stopping with whole numbers: the largest t >= 1 with P[Binomial(n, 1 - p) <= t] <= 1 %, else 0."""
    p, total, t = percentile_of_100, 0, -1
    for k in range(n + 1):
        total += comb(n, k) * (100 - p) ** k * p ** (n - k)
        if 100 * total > 100 ** n:
            break
        t = k
    return max(t, 0)


@pytest.mark.parametrize("percentile, least", [(90, 64), (95, 130), (99, 662)])
def test_early_stopping_is_mlperfs(percentile, least):
    assert timing.discarded(least - 1, percentile / 100) == 0
    assert timing.discarded(least, percentile / 100) == 1
    for n in (2, 10, least, 2 * least, 1000, 1001):
        assert timing.discarded(n, percentile / 100) == exact(n, percentile), n


def test_early_stopping_on_a_case_worked_by_hand():
    # n = 64, p = .9: .9^64 + 64 * .1 * .9^63 = .00957 <= .01, and a second would make it .0367: one is discarded
    values = np.random.default_rng(0).permutation(np.arange(1, 65)) / 1e3
    assert timing.early_stopping(values, 0.9) == 0.064
    assert np.isnan(timing.early_stopping(values[:63], 0.9)) and np.isnan(timing.early_stopping(values, 0.99))
    assert timing.discarded(1000, 0.9) == 78 and timing.early_stopping(np.arange(1000.0), 0.9) == 922


def test_the_estimate_bounds_the_percentile_as_often_as_it_promises():
    rng = np.random.default_rng(0)
    covered = [timing.early_stopping(rng.exponential(size=200), 0.9) >= np.log(10) for _ in range(2000)]
    assert np.mean(covered) >= 0.985


def test_models_take_turns_until_each_has_its_queries():
    clock, order = Clock(), []

    def backend(name, seconds):
        def run():
            order.append(name)
            clock.now += seconds
        return timing.stopwatch(run, clock)

    taken = timing.measure({"a": backend("a", 1e-3), "b": backend("b", 3e-3)}, seconds=0.1, least=20, clock=clock)
    assert taken["a"].seconds.shape == taken["b"].seconds.shape and taken["a"].seconds.size >= 20
    turns = "".join(order[taken["a"].warmup + taken["b"].warmup:])
    once = "a" * (timing.TURN + 1) + "b" * (timing.TURN + 1)
    assert turns == once * (len(turns) // len(once))
    assert timing.speedup(taken["b"], taken["a"])[0] == pytest.approx(3)


def test_warm_up_ends_when_two_turns_agree_or_time_is_up():
    clock = Clock()
    falling = iter([10.0] * timing.TURN + [5.0] * timing.TURN + [1.0] * 1000)
    taken = timing.measure({"m": clock.backend(lambda: next(falling))}, seconds=1, least=8, warmup=1000, clock=clock)[
        "m"
    ]
    assert taken.warmup == 4 * timing.TURN and taken.steady and set(taken.seconds.ravel()) == {1.0}
    clock, state = Clock(), [1.0]

    def slower():
        state[0] *= 1.1
        return state[0]
    never = timing.measure({"m": clock.backend(slower)}, seconds=1, least=8, warmup=100, clock=clock)["m"]
    assert not never.steady and timing.describe(never)["noisy"]


def test_drift_of_the_machine_leaves_ratios_alone():
    clock, rng = Clock(), np.random.default_rng(0)

    def backend(seconds):
        return clock.backend(lambda: seconds * (1 + clock.now / 20) * rng.uniform(0.99, 1.01))
    taken = timing.measure({"slow": backend(4e-3), "fast": backend(1e-3)}, seconds=20, clock=clock)
    times, lo, hi = timing.speedup(taken["slow"], taken["fast"])
    assert times == pytest.approx(4, rel=0.02) and lo <= times <= hi
    assert timing.describe(taken["slow"])["noisy"]  # and the absolute figures are flagged


def test_a_quiet_series_is_not_called_noisy():
    quiet = timing.Latencies(
        np.random.default_rng(0).normal(5e-3, 1e-4, (10, timing.TURN)), np.ones((10, timing.TURN)), 16, True
    )
    loud = timing.Latencies(
        np.random.default_rng(0).normal(5e-3, 1e-3, (10, timing.TURN)), np.ones((10, timing.TURN)), 16, True
    )
    assert not timing.describe(quiet)["noisy"] and timing.describe(loud)["noisy"]


@pytest.mark.parametrize("share, times", [(.2, 6), (.2, 1.4), (.2, .5), (.06, 3), (.02, 6), (.3, 1.3), (.01, 30)])
def test_a_series_of_which_a_part_is_slower_or_faster_is_noisy(share, times):
    seconds = np.random.default_rng(0).normal(5e-3, 1e-4, 800)
    seconds[:int(share * 800)] *= times
    for values in (seconds, np.random.default_rng(1).permutation(seconds)):  # at once, or now and then
        latencies = timing.Latencies(values.reshape(-1, timing.TURN), np.ones((100, timing.TURN)), 16, True)
        assert timing.describe(latencies)["noisy"]


def test_a_few_slow_queries_of_a_quiet_machine_are_no_noise():
    seconds = np.random.default_rng(0).gamma(400, 5e-3 / 400, 800)  # a little skewed
    seconds[::100] *= 3
    latencies = timing.Latencies(seconds.reshape(-1, timing.TURN), np.ones((100, timing.TURN)), 16, True)
    assert not timing.describe(latencies)["noisy"]


def test_the_machine_is_described():
    state = machine.describe()
    assert state["cpu"] and state["cores"] >= 1 and state["numpy"]


def test_peak_memory_grows_with_what_a_process_holds():
    # in a process of its own, since a peak never falls, and that of the tests may be high already
    script = ("import numpy as np; from kd import machine; before = machine.peak_memory(); "
              "block = np.ones(40_000_000, np.uint8); print(before and machine.peak_memory() - before)")
    grown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert grown.stdout.strip() == "None" or int(grown.stdout) > 30_000_000, grown.stderr


def test_the_processor_time_is_that_of_the_same_queries():
    taken = timing.measure({"sleeps": timing.stopwatch(lambda: time.sleep(.002)),
                            "works": timing.stopwatch(lambda: sum(range(100000)))}, seconds=0, least=8)
    columns = {name: timing.describe(latencies) for name, latencies in taken.items()}
    assert columns["sleeps"]["cpu_ms_p50"] < 1 < 2 <= columns["sleeps"]["lat_ms_p50"]
    assert columns["works"]["cpu_ms_p50"] > .2 and taken["works"].worked.shape == taken["works"].seconds.shape
