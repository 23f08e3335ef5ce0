"""Latency and memory of a GPU: events against the clock, memory of a query alone, the benchmark of the GPU."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmark
import train_teacher
from kd.edge import convert, torch_model
from kd.files import read_csv
from kd.image import MEAN, STD

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
import gpu as gpu_benchmark  # noqa: E402


@pytest.fixture
def ready(gpu):
    """A kd.edge.torch_model.Ready of three wide convolutions, of milliseconds a query."""
    wide = [torch.nn.Conv2d(k, 512, 3, padding=1) for k in (3, 512, 512)]
    model = torch.nn.Sequential(*wide, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 7))
    network = torch_model.prepare(convert.Deployed(model, MEAN, STD, 224).eval(), "eager", gpu)
    return torch_model.Ready(network, gpu, {"size": 224}, {})


def test_events_measure_what_the_clock_does(ready):
    timer = ready.timer(np.zeros((8, 224, 224, 3), np.uint8))
    timer()
    start = time.perf_counter()
    events = sum(timer() for _ in range(20))
    clock = time.perf_counter() - start
    assert 0.5 * clock < events <= clock


def test_the_peak_memory_is_that_of_a_query_after_the_first(ready):
    images = np.zeros((8, 224, 224, 3), np.uint8)
    held = torch.empty(2 ** 30, dtype=torch.uint8, device="cuda")  # of another owner, freed before the query
    del held
    peak = ready.peak_memory(images)
    assert 8 * 512 * 224 * 224 * 4 < peak < 2 ** 30 + 8 * 512 * 224 * 224 * 4 * 2


def test_the_benchmark_of_a_checkpoint_has_the_memory_of_the_gpu(gpu, tmp_path, no_report):
    train_teacher.main(["--data", "lesions,images=300", "--size", "32", "--epochs", "1", "--teacher", "tiny",
                        "--device", "cuda", "--out", str(tmp_path)])
    run = tmp_path / "lesions_32px" / "teacher_tiny" / "seed_0"
    benchmark.main([str(run), "--device", "cuda", "--backends", "eager", "bf16", "--seconds", "0", "--queries", "8"])
    for row in read_csv(run / "benchmark.csv"):
        assert float(row["peak_cuda_mib"]) > 0 and row["device"] == "cuda"


def test_the_benchmark_of_the_gpu_ends_with_its_figures(gpu, capsys):
    gpu_benchmark.main(["--size", "64", "--batch", "16", "--images", "100", "--steps", "5"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["live_of_peak"] < 1 and 0 < result["cached_of_peak"] < 1
    assert result["input_2"] > 0 and result["latency_resnet18"]["graph"][0] > 0
