"""The plugins that docs/extending.md prints train, resume, export and show in the report as they are printed."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distill
import evaluate
import export
import registry
import report
from kd.files import read_csv, read_npz
from kd.run_folder import Run

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")


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


def test_a_network_and_a_data_set_of_the_page_go_all_the_way(plugins, images, tmp_path):
    assert set(plugins) == {"my_network.py", "my_data.py"}
    files = ["--plugin", *map(str, plugins.values())]
    common = ["--data", "my_data", "--root", str(images), "--size", "32", "--epochs", "1", "--batch", "8", "--out",
              str(tmp_path), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu", *files]
    import train_teacher
    train_teacher.main([*common, "--teacher", "tiny", "--train-only"])
    run, = distill.main([*common, "--student", "my_network", "--beta", "100", "--train-only"])
    assert float(read_csv(run / "history.csv")[0]["at"]) > 0  # its stages were read
    groups = {split: {row["group"] for row in Run(run).split if row["split"] == split} for split in ("train", "test")}
    assert groups["train"] and not groups["train"] & groups["test"] and read_npz(run / "predictions/test.npz")
    evaluate.main([str(run)])
    export.main([str(run), "--formats", "onnx", "--plugin", *map(str, plugins.values())])
    assert (run / "exports" / "model.onnx").exists()
    report.main([str(run.parents[1])])
    assert "my_network" in (run.parents[1] / "report.html").read_text(encoding="utf-8")
    assert registry.get("dataset", "my_data").path == plugins["my_data.py"].resolve()
