"""Pixels and targets are mapped, not loaded: a larger data set needs no more memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EPOCH = '''
import json, re, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

count, folder = int(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from kd.data import batching, loader
from kd.train import teacher_cache

def sparse(path, shape, kind):
    """A file of zeros that takes no room on the disk, as a cache is opened."""
    np.lib.format.open_memmap(path, "w+", kind, shape)
    return np.lib.format.open_memmap(path, "r")

names = np.array([f"image_{k}" for k in range(count)])
pixels = sparse(folder / "pixels.npy", (count, 256, 256, 3), np.uint8)
data = loader.Data("sparse", ["a", "b"], pixels, np.arange(count), names, np.arange(count) % 2, names, False,
                   np.full(count, "train"), [f"{k:064}" for k in range(count)], 32, True, [])
teacher = SimpleNamespace(stages="1234", fingerprint="f", mean=(0, 0, 0), std=(1, 1, 1), size=None)
teacher.members = [teacher]
needs = {"teacher_logits", "teacher_attention"}
targets = teacher_cache.Targets(folder / "targets", teacher, data, batching.Views("light", kept=1), needs=needs,
                                precision="fp32")
for kind, shape in {"logits": (2,), **{f"attention_{k}": (56 >> k, 56 >> k) for k in range(4)}}.items():
    sparse(targets.path(1, kind), (count, *shape), np.float16)

def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

peak = 0
batches = batching.training_batches(data, batch=64, seed=0, epoch=1, device="cpu", views=batching.Views("light"))
for k, batch in enumerate(batches):
    outputs = targets(batch.index.numpy(), batch.views, torch.device("cpu"))
    assert len(outputs["teacher_attention"]) == 4 and not outputs["teacher_logits"].any()
    if k % 50 == 0:
        peak = max(peak, memory())
print(json.dumps(peak))
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a process holds beside its maps")
def test_an_epoch_of_100_000_images_of_256_px_holds_no_more_than_one_of_10_000(tmp_path):
    def peak_memory(count):
        folder = tmp_path / str(count)
        (folder / "targets").mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-c", EPOCH, str(count), str(folder), str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    small, large = peak_memory(10_000), peak_memory(100_000)  # 2 GB and 20 GB of pixels
    print(f"in memory: {small / 1e6:.0f} MB and {large / 1e6:.0f} MB")
    assert large - small < 120e6  # what is known of each image, its names, its label, its checksum
