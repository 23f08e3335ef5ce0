"""benchmarks/gpu.py runs to its end on a CPU as well, which has no graphs and whose figures say nothing of a GPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import gpu  # noqa: E402


def test_all_tables_have_their_figures(capsys):
    options = SimpleNamespace(size=32, batch=4, root=None, images=60, steps=1)
    result = gpu.measure(torch.device("cpu"), options, matrix=64)
    assert all(result[key] > 0 for key in ("live", "cached", "live_of_peak", "cached_of_peak", "input_1", "input_2"))
    for arch in ("resnet50", "resnet18"):
        assert all(events > 0 and clock > 0 for events, clock in result[f"latency_{arch}"].values())
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(("live", "cached", "1 t", "2 t"))] == [
        "live", "cached", "1", "2"]


def test_without_a_gpu_the_benchmark_names_that_of_a_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU") as caught:
        gpu.main([])
    assert "benchmarks/step.py" in caught.value.hint
