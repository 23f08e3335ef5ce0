"""Each benchmark that needs no data runs to its end at its smallest, and its last line is a JSON object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SMALLEST = {
    "bootstrap": [],
    "corruptions": [],
    "epoch": ["--size", "32", "--images", "60", "--batch", "8", "--rounds", "1"],
    "inference": ["--size", "32"],
    "input": ["--size", "32", "--images", "160", "--rounds", "1"],
    "methods": ["--rounds", "1"],
    "pixels": ["--images", "1", "--rounds", "1"],
    "processes": ["--steps", "1", "--rounds", "1", "--batch", "4", "--size", "32"],
    "step": ["--size", "32", "--batch", "4", "--rounds", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_ends_with_its_figures(name, tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", *SMALLEST[name]], capture_output=True, text=True,
                          cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)
