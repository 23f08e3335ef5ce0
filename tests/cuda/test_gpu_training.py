"""Training on a GPU: precisions, copies, augmentation, compiled networks, targets from disk, kills, two processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
import registry
import small
import train_teacher
from kd.data import augment, batching
from kd.files import read_csv, read_json, read_npz
from kd.train import checkpoint, engine

ROOT = Path(__file__).resolve().parent.parent.parent
COMMON = ["--data", "lesions,images=300", "--size", "32", "--batch", "32", "--lr", "3e-3", "--device", "cuda"]


@pytest.fixture
def train(tmp_path, no_report):
    """A function from further arguments to the folder of the seed that distill.py has trained from a tiny teacher."""
    common = [*COMMON, "--cache", str(tmp_path / "cache")]
    train_teacher.main([*common, "--epochs", "2", "--teacher", "tiny", "--out", str(tmp_path)])
    teacher = tmp_path / "lesions_32px" / "teacher_tiny" / "seed_0"

    def run(out, *further):
        distill.main([*common, "--epochs", "3", "--student", "tiny", "--teacher", str(teacher), "--name", "student",
                      "--out", str(tmp_path / out), *further])
        return tmp_path / out / "lesions_32px" / "student" / "seed_0"

    return run


def losses(run):
    return [float(row["loss"]) for row in read_csv(run / "history.csv")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_student_learns_in_each_precision(train, gpu, precision):
    run = train("runs", "--precision", precision, "--beta", "100")
    assert losses(run)[-1] < losses(run)[0]
    assert read_json(run / "environment.json")["device"].startswith("cuda")
    model, _ = checkpoint.load(run / "best.pt", registry)
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())


def test_auto_is_bf16_where_the_gpu_has_it_and_fp16_where_not(gpu, monkeypatch):
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        assert engine.device_and_precision({"device": "cuda", "precision": "auto"})[1] == expected


def test_precisions_end_near_each_other(train):
    scores = {precision: losses(train(precision, "--precision", precision))[-1]
              for precision in ("fp32", "bf16", "fp16")}
    assert np.ptp(list(scores.values())) < 0.2 * scores["fp32"]


def test_copies_from_pinned_memory_are_whole(gpu):
    arrays = [np.random.default_rng(k).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8) for k in range(50)]
    copies = [augment.to_device(array, gpu) for array in arrays]  # no wait between them
    assert all(np.array_equal(copy.cpu().numpy(), array) for copy, array in zip(copies, arrays))


def test_the_augmentation_of_the_gpu_is_that_of_the_processor(gpu):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 72, 72, 3), dtype=np.uint8)
    draws = augment.draw(0, 1, np.arange(16))
    views = {}
    for device in (torch.device("cpu"), gpu):
        images = augment.resample(augment.to_device(pixels, device), draws, 64)
        views[device.type] = augment.colour(images, draws).cpu()
    assert torch.allclose(views["cpu"], views["cuda"], atol=1e-4)
    for kind in ("light", "none"):
        one, other = (augment.finish(augment.begin(pixels, draws, 64, kind, device), draws, 64, kind, device).cpu()
                      for device in (torch.device("cpu"), gpu))
        assert torch.allclose(one, other, atol=1e-6), kind


def test_batches_of_the_gpu_are_on_it_and_augmented_there(gpu, tmp_path):
    data = small.data(folder=tmp_path)
    for batch in batching.training_batches(data, batch=16, seed=0, epoch=1, device=gpu, workers=2,
                                           views=batching.Views("heavy")):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert 0 <= float(batch.images.min()) and float(batch.images.max()) <= 1


def test_targets_from_disk_train_as_the_live_teacher(train):
    live, disk = train("live", "--precision", "fp32"), train("disk", "--precision", "fp32", "--teacher-cache", "3")
    assert np.allclose(losses(live), losses(disk), rtol=2e-2)


def test_a_compiled_run_has_the_losses_of_one_that_is_not(train):
    plain, compiled = train("plain", "--precision", "fp32"), train("compiled", "--precision", "fp32", "--compile")
    assert np.allclose(losses(plain), losses(compiled), rtol=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_that_is_killed_goes_on(train, tmp_path, precision):
    whole = train("whole", "--precision", precision, "--teacher-cache", "3")
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
from kd.train import engine
write, epochs = engine.Journal.write, []
def killing(self, row):
    write(self, row)
    if row["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
engine.Journal.write = killing
import distill
distill.main(sys.argv[1:])
"""
    config = ["--config", str(whole / "config.yaml"), "--out", str(tmp_path / "killed")]
    killed = subprocess.run([sys.executable, "-c", script, *config], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    distill.main(config)
    again = tmp_path / "killed" / "lesions_32px" / "student" / "seed_0"
    assert [row["epoch"] for row in read_csv(again / "history.csv")] == ["1", "2", "3"]
    assert np.allclose(losses(whole), losses(again), rtol=2e-2)  # sums of a GPU have no fixed order


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_over_nccl_train_as_one(train, tmp_path):
    one = train("one", "--precision", "fp32", "--teacher-cache", "3")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "distill.py"), "--config", str(one / "config.yaml"), "--out", str(tmp_path / "two")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two" / "lesions_32px" / "student" / "seed_0"
    assert read_json(two / "environment.json")["processes"] == 2
    assert np.allclose(losses(one), losses(two), rtol=0.1)  # batch normalisation sees half a batch in each process
    assert read_npz(two / "predictions" / "test.npz")["logits"].shape == read_npz(
        one / "predictions" / "test.npz")["logits"].shape
