"""Several processes train as one: the same order and loss curve; a lost process costs one epoch."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import distill
import small
import train_teacher
from kd.data import batching
from kd.files import read_csv, read_json, read_npz
from kd.train import checkpoint

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PLUGIN = '''
import os
import signal

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from registry import register


@register("architecture", "plain", stages=(), head="4")
def plain(num_classes, stem, weights):
    """Two convolutions without batch normalisation, which would differ between a share and a batch."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), pool, nn.Linear(16, num_classes))


@register("loss", "fatal")
def fatal(student_logits, labels, epoch):
    """Kills the second process in epoch 2, if the environment says so."""
    if epoch == 2 and os.environ.get("FATAL") and dist.is_initialized() and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(student_logits, labels) * 0
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The file of PLUGIN, one for all tests, since its names are registered once."""
    path = tmp_path_factory.mktemp("plugin") / "plain.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path, no_report, plugin):
    """(folder of a study with a teacher, function from the name of an output folder to a student's arguments)."""
    common = ["--data", "lesions,images=300", "--size", "32", "--epochs", "3", "--batch", "30", "--device", "cpu",
              "--precision", "fp32", "--workers", "0", "--cache", str(tmp_path / "cache")]
    train_teacher.main([*common, "--out", str(tmp_path), "--teacher", "tiny"])
    teacher = tmp_path / "lesions_32px" / "teacher_tiny" / "seed_0"
    of_student = ["--plugin", str(plugin), "--student", "plain", "--teacher", str(teacher),
                  "--term", "fatal=1", "--name", "plain_kd_fatal", "--unlabelled", "--teacher-cache", "3",
                  "--lr", "1e-3", "--hard", "logit_adjusted"]
    return tmp_path, lambda out: [*common, *of_student, "--out", str(tmp_path / out)]


def torchrun(arguments, **environment):
    """Run distill.py in two processes; returns the finished process of torchrun."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(ROOT / "distill.py"), *arguments], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def student(root, out):
    return root / out / "lesions_32px" / "plain_kd_fatal" / "seed_0"


@pytest.mark.parametrize("further", [[], [
    "--mixup", "0.4", "--cutmix", "1", "--ema", "0.8", "--sampling", "sqrt", "--size-from", "16", "--alpha", "0.5:0.1",
    "--unlabelled", "lesions,images=200", "--unlabelled-ratio", "0.3"]], ids=["usual", "further"])
def test_two_processes_give_the_loss_curve_of_one(study, further):
    root, arguments = study
    distill.main([*arguments("one"), *further])
    process = torchrun([*arguments("two"), *further])
    assert process.returncode == 0, process.stderr
    single, double = (read_csv(student(root, out) / "history.csv") for out in ("one", "two"))
    assert len(single) == len(double) == 3
    for name in ("loss", "logit_adjusted", "kd", "val_loss", *(["ema_val_loss"] if further else [])):
        curves = [[float(row[name]) for row in history] for history in (single, double)]
        assert np.allclose(*curves, atol=1e-4), name
    assert read_json(student(root, "two") / "environment.json")["processes"] == 2
    logits = [read_npz(student(root, out) / "predictions" / "test.npz")["logits"] for out in ("one", "two")]
    assert logits[0].shape == logits[1].shape and np.allclose(*logits, atol=1e-3)
    assert process.stdout.count("\nnext: ") == 1  # only one process prints the result


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_the_same_command_goes_on_to_the_same_weights(study):
    root, arguments = study
    assert torchrun(arguments("two")).returncode == 0
    lost = torchrun(arguments("lost"), FATAL="1")
    assert lost.returncode != 0 and len(read_csv(student(root, "lost") / "history.csv")) == 1
    again = torchrun(arguments("lost"))
    assert again.returncode == 0 and "going on after epoch 1" in again.stdout, again.stderr
    states = [checkpoint.read(student(root, out) / "best.pt")["state_dict"] for out in ("two", "lost")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_shares_of_all_processes_are_the_batches_of_one_in_their_order(tmp_path):
    data = small.data(folder=tmp_path)

    def indices(**share):
        batches = batching.training_batches(data, batch=20, seed=1, epoch=2, device=CPU, **share)
        return [batch.index for batch in batches]

    whole, shares = indices(), [indices(share=(rank, 3)) for rank in range(3)]
    assert [len(batch) for batch in whole] == [20, 20, 20, 6]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(torch.equal(batch[rank::3], part) for rank, part in enumerate(parts))


def test_a_last_batch_too_small_for_every_process_is_left_out():
    def sizes(count, *world):
        return batching.batch_sizes(SimpleNamespace(train=range(count), unlabelled=None), 10, *world)

    assert sizes(23) == [(10, 10), (10, 10), (3, 3)]
    assert sizes(23, 2) == sizes(21) == [(10, 10), (10, 10)]
