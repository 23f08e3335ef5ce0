"""benchmarks/cold_start.py starts predict.py of bundles in turns, and says what is no bundle."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from kd.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the memory of a process that has ended")


def test_each_bundle_has_a_row_and_the_first_is_the_result(exported, tmp_path, capsys, monkeypatch):
    cold_start = importlib.import_module("cold_start")
    box = shutil.copytree(exported[0].parent / "bundle", tmp_path / "bundle")  # Python writes compiled files into it
    real = cold_start.start  # its memory is not that of the process where this one, with torch, is the larger
    monkeypatch.setattr(cold_start, "start", lambda command, cwd: (
        *real(command, cwd)[:2], 100.0 if "predict.py" in command else 50.0))
    cold_start.main([str(box), "--rounds", "1", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["bundle", "imports"]
    result = json.loads(lines[-1])
    assert result["megabytes"] == 100 and 0 < result["processor_seconds"] and 0 < result["seconds"]


@pytest.mark.parametrize("name", ["none", "empty", "."])
def test_what_is_no_bundle_is_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="is no bundle"):
        importlib.import_module("cold_start").main([str(tmp_path / name)])
