"""Pixels and targets are mapped, not loaded: a larger data set needs hardly more memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINING = '''
import contextlib, io, json, re, sys, threading, time, zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

count, folder, step = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.path.insert(0, sys.argv[4])
from kd.data import batching, cache, loader, splits
from kd.data.dataset import Dataset
from kd.files import write_csv, write_json
from kd.train import checkpoint, setup, teacher_cache

SIDE = 256  # of the cached images; their views have 224 px
ARRAYS = {"logits": (7,), **{f"attention_{k}": (56 >> k, 56 >> k) for k in range(4)}}


def sparse(path, shape, kind):
    """A file of zeros that takes no room on the disk."""
    np.lib.format.open_memmap(path, "w+", kind, shape)


def build(dataset, resize, interpolation, pixels, limits, eight_bits):
    """In the place of cache._build(): black images, which all have contents of their own."""
    sparse(pixels, (count, SIDE, SIDE, 3), np.uint8)
    digits = np.array([f"{k:02x}".encode() for k in range(256)])
    contents, looks = (digits[np.random.default_rng(k).integers(0, 256, (count, 32))].view("S64")[:, 0] for k in (0, 1))
    np.savez(pixels.with_suffix(".npz"), sha256=contents, perceptual_hash=looks,
             crc32=np.full(count, zlib.crc32(bytes(SIDE * SIDE * 3)), np.uint32), marks=np.frombuffer(b"[]", np.uint8))


def memory():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024


seconds, peak = {}, 0

@contextlib.contextmanager
def timed(name):
    start = time.perf_counter(), time.thread_time()
    yield
    seconds[name] = round(time.perf_counter() - start[0], 2), round(time.thread_time() - start[1], 2)  # processor time
    print(name, *seconds[name], peak // 10 ** 6, file=sys.stderr, flush=True)


def watch():
    global peak
    while True:
        peak = max(peak, memory())
        time.sleep(0.02)


base = memory()
threading.Thread(target=watch, daemon=True).start()
files = Path(sys.argv[5]) if len(sys.argv) > 5 else None
with timed("Dataset"):
    draw = lambda: np.zeros((SIDE, SIDE, 3), np.uint8)
    images = [files / f"{k // 10000:03}" / f"img_{k:07}.jpg" if files else draw for k in range(count)]
    data = Dataset("million", list("abcdefg"), images, [f"set_{k % 9}/ISIC_{k:07}" for k in range(count)],
                   np.random.default_rng(0).choice(7, count, p=[.5, .2, .1, .1, .05, .03, .02]), version="1")
if step == "make":
    cache._build = build
    loader.cache.open_cache(data, SIDE, folder=folder)
teacher = SimpleNamespace(stages="1234", fingerprint="f", mean=(0, 0, 0), std=(1, 1, 1), size=None)
teacher.members = [teacher]
needs, views = {"teacher_logits", "teacher_attention"}, batching.Views("light", kept=2)
if step == "make":
    loader.image.resize_for = lambda size: SIDE
with timed("opening, split and checks"):
    data = loader.prepare(data, size=SIDE if not files else 224, cache_folder=folder)
data.size = 224
checksums = teacher_cache.Targets._checksums  # a checksum in each row would take room on the disk
teacher_cache.Targets._checksums = lambda self, records: checksums(self, records) * np.uint32(0)
with timed("targets"):
    targets = teacher_cache.Targets(folder / "targets", teacher, data, views, needs=needs, precision="fp32")
    if step == "make":
        for number in (1, 2):
            for array, shape in ARRAYS.items():
                sparse(targets.path(number, array), (targets.count,), teacher_cache._rows(shape))
            write_json(targets._whole(number), targets.key_checksum)
        sys.exit()
    targets.build(None, batch=1, device="cpu", workers=0)  # there is nothing to build


def first_batch(epoch, sampling):
    views = batching.Views("light", sampling=sampling, kept=2)
    batches = batching.training_batches(data, batch=64, seed=0, epoch=epoch, device="cpu", workers=2, views=views)
    batch = next(batches)
    outputs = targets(batch.index.numpy(), batch.views, "cpu")
    assert len(batch.labels) == 64 and len(outputs["teacher_attention"]) == 4
    return batches

for epoch, sampling in ((1, "natural"), (2, "natural"), (1, "sqrt")):
    with timed(f"first batch of epoch {epoch}, {sampling}"):
        batches = first_batch(epoch, sampling)
    if sampling == "natural":
        batches.close()  # an epoch ends before the next begins, and with it the batches that were loaded ahead
with timed("50 batches"):
    for _ in range(50):
        next(batches)
training = peak
with timed("fingerprints"):
    del data.fingerprint, data.split_fingerprint
    data.fingerprint, data.split_fingerprint
with timed("split.csv"):
    write_csv(folder / "split.csv", data.table())
with timed("seen_by"):
    seen = splits.seen_by(data)
with timed("its part of best.pt, written"):
    checkpoint.save(folder / "best.pt", torch.nn.Linear(1, 1), arch="x", stem="small", class_names=data.class_names,
                    input={**data.input(), "mean": [0.5] * 3, "std": [0.5] * 3}, provenance={"seen": seen})
with timed("and read"):
    assert setup.seen(checkpoint.read(folder / "best.pt"), "best.pt") == seen
with timed("refuse_leak"):
    splits.refuse_leak(seen, data, "the teacher")
print(json.dumps({"base": base, "training": training, "all": peak, "seconds": seconds}))
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a process holds beside its maps")
def test_a_training_on_a_million_images_of_256_px_holds_less_than_a_gigabyte(tmp_path):
    """196 GB of pixels and 17 GB of targets; what the start of a run takes is printed, for docs/scaling.md."""
    for step in ("make", "measure"):
        done = subprocess.run([sys.executable, "-c", TRAINING, "1000000", str(tmp_path), step, str(ROOT)],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    assert found["training"] < 1e9
