"""--compile changes the speed of a step, and its results only by rounding."""

import numpy as np
import pytest
import torch

import distill
import small
from kd.errors import UserError
from kd.files import read_csv
from kd.train import checkpoint, engine, loop, networks


def test_without_a_compiler_the_error_names_what_is_missing_and_nothing_is_written(tmp_path, monkeypatch):
    def broken(function, **options):
        raise RuntimeError("No working C++ compiler found in cl\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="nothing to compile with: No working C") as caught:
        distill.main(["--student", "tiny", "--compile", "--out", str(tmp_path / "runs")])
    assert "Build Tools" in caught.value.hint and "more lines" not in caught.value.message
    assert not (tmp_path / "runs").exists()


def test_only_whole_batches_are_compiled_and_features_are_kept_there_too(monkeypatch):
    compiled_batches = []

    def compile(forward, **options):
        return lambda images: compiled_batches.append(len(images)) or forward(images)

    monkeypatch.setattr(torch, "compile", compile)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                torch.nn.Linear(4, 2))
    plain = networks.FeatureExtractor(model, ("0",), "3")
    compiled = networks.FeatureExtractor(model, ("0",), "3", compiled=5)
    for count in (5, 3, 5, 10):
        images = torch.rand(count, 3, 8, 8)
        assert torch.equal(plain(images), compiled(images))
        assert torch.equal(plain.features[0], compiled.features[0]) and torch.equal(plain.pooled, compiled.pooled)
    assert compiled_batches == [5, 5]


def train(folder, cache, *flags, epochs="2", dropout=0.0):
    data = small.data(folder=cache)  # its last batch is a small one
    options = small.options("--epochs", epochs, "--beta", "100", *flags)
    student, teacher = small.network(options, data, seed=0), small.network(options, data, seed=7)
    student.model.flatten = torch.nn.Sequential(student.model.flatten, torch.nn.Dropout(dropout))
    networks.fold_batch_norm(teacher.model.eval())
    engine.run(folder, student, small.terms(options), data, options, seed=0, teacher=teacher, role="student",
               provenance={})
    return read_csv(folder / "history.csv")


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_one_that_is_not(tmp_path, capsys):
    plain, compiled = train(tmp_path / "a", tmp_path), train(tmp_path / "b", tmp_path, "--compile")
    assert ", not compiled, the teacher live" in capsys.readouterr().out
    for name in ("loss", "kd", "at", "val_loss"):
        assert np.allclose([float(row[name]) for row in plain], [float(row[name]) for row in compiled], rtol=2e-3), name


@pytest.mark.slow
def test_a_compiled_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    train(tmp_path / "whole", tmp_path, "--compile", epochs="3", dropout=0.3)
    validate, calls = loop.validate, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "validate", interrupted)
        train(tmp_path / "again", tmp_path, "--compile", epochs="3", dropout=0.3)
    assert len(train(tmp_path / "again", tmp_path, "--compile", epochs="3", dropout=0.3)) == 3
    states = [checkpoint.read(tmp_path / name / "best.pt")["state_dict"] for name in ("whole", "again")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
