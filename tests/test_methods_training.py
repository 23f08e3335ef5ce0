"""Each method trains two students through distill.py, refuses before anything is written, and goes on after a stop."""

import numpy as np
import pytest
import torch
from PIL import Image

import distill
import registry
import small
import train_teacher
from kd.errors import UserError
from kd.files import read_csv, read_npz
from kd.train import checkpoint
from kd.train.step import dry_run
from kd.train.weights import safe_load

pytestmark = pytest.mark.usefixtures("no_report")
DATA = ["--data", "lesions,images=72", "--size", "16", "--epochs", "1", "--batch", "10", "--workers", "0"]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """The run of a teacher that is trained once for all."""
    run, = train_teacher.main([*DATA, "--teacher", "tiny", "--out", str(tmp_path_factory.mktemp("teacher")),
                               "--train-only"])
    return run


def train(folder, teacher, *argv):
    return distill.main([*DATA, "--teacher", str(teacher), "--out", str(folder), "--train-only", *argv])


@pytest.mark.parametrize("argv", [
    ["--soft", "dkd", "--term", "dist=1", "logit_std=1", "rld=1", "wttm=1"],
    ["--soft", "ltkd", "--hard", "logit_adjusted,tau=0.5", "--term", "bkd=1", "prior_kd=1", "rkd=25", "fitnet=5",
     "--teacher-cache", "1"],
    ["--soft", "logit_std,of=dkd", "--term", "sp=3000", "crd=0.8", "fitnet=100,stage=3"],
])
def test_each_loss_trains_a_resnet_and_a_mobilenet(tmp_path, teacher, argv, capsys):
    runs = train(tmp_path, teacher, "--student", "resnet18", "mobilenetv2", *argv)
    specs = [argv[1], *argv[argv.index("--term") + 1:]]
    names = {spec.split(",")[0].split("=")[0] for spec in specs if spec[0] != "-" and not spec.isdecimal()}
    assert len(runs) == 2
    for run in runs:
        row, = read_csv(run / "history.csv")
        assert names <= row.keys() and all(np.isfinite(float(row[name])) for name in names)
        content = checkpoint.read(run / "best.pt")  # nothing of the losses: the names of a fresh network, and no more
        fresh = registry.create("architecture", content["arch"], len(content["class_names"]), content["stem"], None)
        assert set(content["state_dict"]) == set(fresh.state_dict())
    output = capsys.readouterr().out
    assert all(f"* {name}(" in output for name in names)


LEARNABLE = ["--student", "tiny", "--epochs", "3", "--soft", "ltkd", "--term", "crd=0.8", "fitnet=5"]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_what_a_loss_learns_is_kept_and_a_stopped_run_ends_the_same(tmp_path, teacher, stop_at, monkeypatch):
    """In steps of two an epoch: before the first epoch ends, at its end, and in the middle of the last but one."""
    unbroken, = train(tmp_path / "a", teacher, *LEARNABLE)
    steps, step = 0, torch.optim.AdamW.step

    def counted(self, *arguments, **options):
        nonlocal steps
        steps += 1
        if steps > stop_at:
            raise Stopped
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    with pytest.raises(Stopped):
        train(tmp_path / "b", teacher, *LEARNABLE)
    monkeypatch.undo()
    last = next((tmp_path / "b").rglob("last.pt"), None)
    if stop_at > 1:
        kept = {key.rpartition(".")[2] for key in safe_load(last)["objective"]}
        assert {"student_memory", "teacher_memory", "labels", "z", "running_mean", "weight", "state"} <= kept
    stopped, = train(tmp_path / "b", teacher, *LEARNABLE)
    weights, others = (checkpoint.read(run / "best.pt")["state_dict"] for run in (unbroken, stopped))
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(unbroken / "history.csv")] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_csv(stopped / "history.csv")]
    first, second = (read_npz(run / "predictions" / "test.npz")["logits"] for run in (unbroken, stopped))
    assert (first == second).all()


@pytest.fixture
def two_classes(tmp_path):
    """A folder of images of two classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for k in range(4):
                pixels = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{name}{k}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("argv, words", [
    (["--soft", "dist"], "the loss dist: cannot learn from two classes"),
    (["--term", "logit_std=9"], "the loss logit_std: cannot learn from two classes"),
    (["--soft", "dkd,temperature=0"], "the loss dkd: temperature is a number above 0, not 0.0"),
    (["--term", "fitnet=1,stage=7"], "the loss fitnet: stage is a whole number from 1 to 4, not 7"),
])
def test_what_a_loss_cannot_do_is_refused_before_anything_is_written(tmp_path, two_classes, argv, words):
    common = ["--data", "folder", "--root", str(two_classes), "--size", "16", "--epochs", "1", "--batch", "8",
              "--workers", "0", "--student", "tiny", "--out", str(tmp_path / "runs"), "--train-only"]
    with pytest.raises(UserError) as caught:
        distill.main([*common, *argv])
    assert caught.value.message == words or caught.value.message.startswith(words)
    assert not (tmp_path / "runs").exists()


def test_a_stage_of_the_teacher_is_refused_with_kept_targets_and_pooled_features_are_not(tmp_path, teacher):
    for term in ("sp=3000", "fitnet=100,stage=3"):
        with pytest.raises(UserError, match="reads teacher_features, which --teacher-cache does not keep"):
            train(tmp_path, teacher, "--student", "tiny", "--teacher-cache", "1", "--term", term)


def test_the_dry_run_leaves_the_random_numbers_as_they_were(tmp_path):
    data = small.data(folder=tmp_path)
    options = small.options("--term", "crd=1", "fitnet=1")
    network = small.network(options, data)
    before = torch.get_rng_state()
    dry_run(network, small.terms(options), data, options)
    assert torch.equal(before, torch.get_rng_state())
