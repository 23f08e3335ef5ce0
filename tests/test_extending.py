"""The plugins that docs/extending.md prints train, resume, export and show in the report as they are printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distill
import evaluate
import registry
import report
import robustness
import train_teacher
from kd.files import read_csv, read_npz
from kd.run_folder import Run

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """{file name: path} of the plugins of the page."""
    folder, found = tmp_path_factory.mktemp("plugins"), {}
    for name, block in re.findall(r"Save this as `(\w+\.py)`:\n\n((?:    .*\n|\n)+)", PAGE):
        found[name] = folder / name
        found[name].write_text(re.sub(r"^    ", "", block, flags=re.M), encoding="utf-8")
    return found


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(60):
        pixels = rng.integers(0, 100, (40, 40, 3)).astype(np.uint8)
        pixels[..., k % 2] += 100
        Image.fromarray(pixels).save(folder / f"p{k // 2 % 15}_{'ab'[k % 2]}_{k}.png")
    return folder


def test_the_page_has_a_file_of_each_kind(plugins):
    assert set(plugins) == {"my_network.py", "my_data.py", "my_loss.py", "my_corruption.py"}
    kinds = {re.search(r'@register\("(\w+)"', path.read_text(encoding="utf-8"))[1] for path in plugins.values()}
    assert kinds == set(registry.KINDS)


def script(name, *words):
    """A script in a process of its own, in which no plugin is loaded yet."""
    return subprocess.run([sys.executable, ROOT / name, *map(str, words)], capture_output=True, text=True)


def test_a_network_and_a_data_set_of_the_page_go_all_the_way(plugins, images, tmp_path):
    """Scripts that load the run take its plugins from where they were, and no changed ones."""
    own = {name: shutil.copy(plugins[name], tmp_path) for name in ("my_network.py", "my_data.py")}
    files = ["--plugin", *map(str, own.values())]
    common = ["--data", "my_data", "--root", str(images), "--size", "32", "--epochs", "1", "--batch", "8", "--out",
              str(tmp_path), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu", *files]
    train_teacher.main([*common, "--teacher", "tiny", "--train-only"])
    run, = distill.main([*common, "--student", "my_network", "--beta", "100", "--train-only"])
    assert float(read_csv(run / "history.csv")[0]["at"]) > 0  # its stages were read
    groups = {split: {row["group"] for row in Run(run).split if row["split"] == split} for split in ("train", "test")}
    assert groups["train"] and not groups["train"] & groups["test"] and read_npz(run / "predictions/test.npz")
    evaluate.main([str(run)])
    report.main([str(run.parents[1])])
    assert "my_network" in (run.parents[1] / "report.html").read_text(encoding="utf-8")
    assert registry.get("dataset", "my_data").path == Path(own["my_data.py"]).resolve()

    exported = script("export.py", run, "--formats", "onnx")
    assert (run / "exports" / "model.onnx").exists(), exported.stderr
    for path in own.values():
        assert f"plugin: {Path(path).resolve()}, as in the training of {run}" in exported.stderr
    timed = script("benchmark.py", run / "best.pt", "--backends", "eager", "--seconds", "0", "--queries", "64")
    assert timed.returncode == 0 and (run / "benchmark.csv").exists(), timed.stderr

    with open(own["my_network.py"], "a") as file:
        file.write("print('changed')\n")
    refused = script("export.py", run, "--formats", "onnx")
    assert refused.returncode == 2 and "changed" not in refused.stdout
    assert f"the plugin {own['my_network.py']} has changed since" in refused.stderr
    way_out = shlex.split(refused.stderr.splitlines()[-1].split(": ")[-1])
    again = script("export.py", run, "--formats", "onnx", *way_out)
    assert again.returncode == 0 and "changed" in again.stdout, again.stderr


def test_a_loss_and_a_corruption_of_the_page_are_used(plugins, tmp_path):
    common = ["--data", "lesions,images=150", "--size", "16", "--epochs", "1", "--out", str(tmp_path), "--cache",
              str(tmp_path / "cache"), "--workers", "0", "--device", "cpu", "--train-only"]
    teacher, = train_teacher.main([*common, "--teacher", "tiny"])
    common += ["--student", "tiny", "--teacher", str(teacher), "--plugin", str(plugins["my_loss.py"])]
    values = {}
    for margin in ("0", "1"):
        run, = distill.main([*common, "--name", f"m{margin}", "--soft", f"my_loss,margin={margin}"])
        values[margin] = float(read_csv(run / "history.csv")[0]["my_loss"])
    assert values["0"] > values["1"] >= 0
    evaluate.main([str(run)])
    robustness.main([str(run), "--plugin", str(plugins["my_corruption.py"]), "--corruption", "finger", "--replicates",
                     "100", "--cache", str(tmp_path / "cache")])
    rows = [row for row in read_csv(run / "robustness.csv") if row["corruption"] == "finger"]
    assert len(rows) == 5 and 0 < float(rows[0]["pixel_change"]) < float(rows[4]["pixel_change"])
