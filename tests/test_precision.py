"""Training in half precision: in fp16 the loss is scaled, so that small gradients are not lost, and the scale goes on
with a run; a run in bf16 goes on on a processor without it."""

import numpy as np
import pytest
import torch

import small
from kd.errors import UserError
from kd.files import read_csv
from kd.train import engine, loop
from kd.train.weights import safe_load

CPU = torch.device("cpu")


def step_of(precision, data):
    options = {**small.options("--alpha", "0.5"), "precision": precision}
    return engine.Step(small.network(options, data), small.network(options, data, seed=1), small.terms(options), data,
                       options, CPU, precision)


def gradients(precision, data, share):
    """The gradients, a flat float64 array, of `share` of the loss of a batch, without the scale."""
    step = step_of(precision, data)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((16, 3, 32, 32), np.float32))
    batch = small.batch(images, torch.from_numpy(rng.integers(0, 3, 16)), torch.arange(16))
    loss, *_ = loop.loss_of(step, batch, 1)
    step.scaler.scale(share * loss).backward()
    step.scaler.unscale_(step.optimizer)
    return np.concatenate([parameter.grad.double().numpy().ravel() for parameter in step.parameters])


@pytest.mark.parametrize("share", [1.0, 1e-5])  # many would be below 6e-8, which is the least number of fp16
def test_gradients_of_fp16_are_those_of_fp32(tmp_path, share):
    data = small.data(folder=tmp_path)
    exact, half = gradients("fp32", data, share), gradients("fp16", data, share)
    assert np.linalg.norm(half - exact) < 0.05 * np.linalg.norm(exact)


def train(folder, cache, epochs_of_this_call=4, precision="fp16"):
    """Train for four epochs, or stop before. In fp16 the scale is far too large at first."""
    data = small.data(folder=cache)
    options = {**small.options("--epochs", "4", "--alpha", "1", "--lr", "3e-3"), "precision": precision}
    student, write = small.network(options, data), engine.Journal.write

    def stopping(self, row):
        write(self, row)
        if row["epoch"] == epochs_of_this_call:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        usual = torch.amp.GradScaler
        patch.setattr(torch.amp, "GradScaler", lambda device, enabled: usual(device, 2.0 ** 24, enabled=enabled))
        if epochs_of_this_call < 4:
            patch.setattr(engine.Journal, "write", stopping)
        engine.run(folder, student, small.terms(options), data, options, seed=0, role="student", provenance={})
    return read_csv(folder / "history.csv")


def without_time(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_a_step_whose_gradients_are_too_large_is_left_out_and_a_stopped_run_keeps_its_scale(tmp_path):
    whole = train(tmp_path / "whole", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", tmp_path, epochs_of_this_call=1)
    scale = safe_load(tmp_path / "stopped" / "last.pt")["scaler"]["scale"]
    assert scale < 2 ** 24
    again = train(tmp_path / "stopped", tmp_path)
    assert without_time(again) == without_time(whole)
    assert float(whole[-1]["loss"]) < float(whole[0]["loss"])  # it learned, when the scale had become usual


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # said where oneDNN is switched off
def test_a_run_in_bf16_goes_on_on_a_processor_without_it(tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "whole", tmp_path, precision="bf16")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", tmp_path, 1, precision="bf16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    capsys.readouterr()
    with torch.backends.mkldnn.flags(enabled=False):  # the arithmetic of torch alone, as there
        again = train(tmp_path / "stopped", tmp_path, precision="bf16")
    printed = capsys.readouterr().out
    assert "going on after epoch 1" in printed
    assert printed.count("bf16 (no instructions for it found here: slower)") == 1
    assert again[0] == whole[0] | {"seconds": again[0]["seconds"]}
    for here, there in zip(whole, again, strict=True):
        assert float(there["loss"]) == pytest.approx(float(here["loss"]), rel=0.02)
    auto = {**small.options("--alpha", "1"), "precision": "auto", "device": "cpu"}
    assert engine.device_and_precision(auto) == (CPU, "fp32")
    with pytest.raises(UserError) as other:  # what `auto` is there
        train(tmp_path / "stopped", tmp_path, precision="fp32")
    assert other.value.hint.startswith("With --precision bf16 it goes on as it began.")


@pytest.mark.parametrize("state", [{}, {"scale": "1"}, None], ids=["none", "text", "infinite"])
def test_a_damaged_scale_is_a_one_line_error(tmp_path, state):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tmp_path, epochs_of_this_call=1)
    content = safe_load(tmp_path / "run" / "last.pt")
    content["scaler"] = {**content["scaler"], "scale": float("inf")} if state is None else state
    torch.save(content, tmp_path / "run" / "last.pt")
    with pytest.raises(UserError, match="last.pt is not the state of this run"):
        train(tmp_path / "run", tmp_path)
