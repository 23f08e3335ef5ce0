"""ONNX Runtime: the oldest version that is promised runs a bundle; none writes files of its own or tells anybody."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import emulated
from kd import onnx_model
from kd.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
OLDEST = re.search(r"onnxruntime>=([\d.]+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))[1]


def test_the_guide_of_a_bundle_names_the_oldest_version(exported):
    guide = (exported[0].parent / "bundle" / "RUN.md").read_text(encoding="utf-8")
    assert f"onnxruntime {OLDEST} or newer" in guide


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest version has no wheel for this Python")
def test_the_oldest_version_runs_a_bundle(exported, tmp_path):
    emulated.install(tmp_path / "packages", f"onnxruntime=={OLDEST}.0", "numpy<2", "pillow", platforms=())
    folder = shutil.copytree(exported[0].parent / "bundle", tmp_path / "box")
    machine = emulated.here(tmp_path / "packages")
    version = machine.run("-c", "import onnxruntime; print(onnxruntime.__version__)", folder=folder)
    assert version.startswith(f"{OLDEST}.")
    assert "all labels are the same" in machine.run("predict.py", "model.int8.onnx", "--check", folder=folder)
    machine.run("predict.py", "model.int8.onnx", exported[1], folder=folder)


def test_a_version_that_is_older_than_the_file_is_to_be_updated(exported, monkeypatch):
    """The message of ONNX Runtime 1.17, whose end is what matters."""
    reason = ("[ONNXRuntimeError] : 1 : FAIL : Load model from model.int8.onnx failed:/onnxruntime_src/onnxruntime/core"
              "/graph/model.cc:179 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&, const "
              "onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::logging::Logger&, const "
              "onnxruntime::ModelOptions&) Unsupported model IR version: 10, max supported IR version: 9")

    def fail(path, threads):
        raise RuntimeError(reason)

    monkeypatch.setattr(onnx_model, "session", fail)
    with pytest.raises(UserError) as caught:
        onnx_model.Model(exported[0] / "exports" / "model.onnx")
    assert caught.value.hint == "Update onnxruntime, which is older than this file."


@pytest.mark.skipif(sys.platform == "win32", reason="Windows collects events of its own")
def test_a_prediction_leaves_nothing_in_the_home_folder(exported, tmp_path):
    """ONNX Runtime 1.29 and newer make an identifier of the machine and a database of events to be sent."""
    hidden = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL")  # no events
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, ROOT / "predict.py", exported[0] / "exports" / "model.onnx", exported[1]]
    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []
