"""The table of costs: reference columns first, one process a model, and figures that are counted, not guessed."""

import shutil
from pathlib import Path

import pytest
import torch

import benchmark
import registry
from kd.errors import UserError
from kd.files import read_csv
from kd.train import networks

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--seconds", "0.05", "--queries", "16"]
REPORT = ["ckpt", "model", "seed", "device", "batch", "imsz", "lat_ms_mean", "lat_ms_std", "lat_ms_p50", "lat_ms_p90",
          "lat_ms_p99", "throughput_fps"]


@pytest.mark.parametrize("arch, giga, parameters, size_in_bytes", [
    ("resnet18", 1.8136, 11_180_103, 44_758_972), ("mobilenetv2", 0.2995, 2_232_839, 9_068_220),
    ("efficientnetb0", 0.3845, 4_016_515, 16_234_516)])
def test_macs_parameters_and_bytes_are_those_known(arch, giga, parameters, size_in_bytes):
    model = registry.create("architecture", arch, num_classes=7, stem="imagenet", weights=None)
    assert networks.count_macs(model, 224) == pytest.approx(giga * 1e9, rel=1e-3)
    assert networks.parameters(model) == parameters and networks.size_in_bytes(model) == size_in_bytes
    assert model.training  # it is left as it was


def test_macs_of_a_network_counted_by_hand():
    from torch import nn
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert networks.count_macs(model, 10) == 8 * 3 * 9 * 25 + 8 * 2 * 9 * 25 + 8 * 5


def test_macs_of_attention_are_those_of_its_linear_layers():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = torch.nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, images):
            tokens = images.reshape(1, -1, 12)
            return self.attend(tokens, tokens, tokens, need_weights=False)[0]

    with torch.no_grad():  # where torch would take one fused operation, that nothing counts
        assert networks.count_macs(Attention(), 8) == 16 * 12 * (3 * 12 + 12)


def test_a_run_and_its_exports_stand_in_one_table_with_the_reference_columns_first(exported, tmp_path, capsys):
    run = shutil.copytree(exported[0], tmp_path / "study" / "tiny_alone" / "seed_0")
    rows = benchmark.main([str(run), *QUICK, "--no-memory", "--batch", "1", "3", "--out", str(tmp_path / "all.csv"),
                           "--backends", "eager", "channels_last", "bf16", "onnxruntime"])
    assert list(rows[0])[:len(REPORT)] == REPORT
    assert [(row["backend"], Path(row["ckpt"]).name, row["batch"]) for row in rows] == [
        (backend, name, batch) for batch in (1, 3) for backend, name in (
            ("eager", "best.pt"), ("channels_last", "best.pt"), ("bf16", "best.pt"), ("onnxruntime", "model.int8.onnx"),
            ("onnxruntime", "model.onnx"))]
    assert {(row["model"], row["seed"], row["parameters"], row["macs"]) for row in rows} == {
        ("tiny_alone", "seed_0", rows[0]["parameters"], rows[0]["macs"])}
    assert all(row["queries"] >= 16 and row["lat_ms_p50"] > 0 and row["cpu_ms_p50"] > 0 for row in rows)
    table = read_csv(run / "benchmark.csv")
    assert len(table) == 10 and table == read_csv(tmp_path / "all.csv")
    assert table[0]["lat_ms_p99_mlperf"] == ""  # 16 queries say nothing about a 99th percentile
    printed = capsys.readouterr().out
    assert "MACs in convolutions and linear layers (tools that count more" in printed
    again = benchmark.main([str(run / "exports" / "model.onnx"), *QUICK, "--no-memory"])
    assert again[0]["speedup"] == 1
    rewritten = read_csv(run / "benchmark.csv")  # the row that was measured again, and the nine others as they were
    assert rewritten[0]["lat_ms_mean"] == str(again[0]["lat_ms_mean"])
    assert rewritten[1:] == [row for row in table if (Path(row["ckpt"]).name, row["batch"]) != ("model.onnx", "1")]


def test_each_run_is_compared_with_its_own_first_line(exported, tmp_path):
    both = [shutil.copytree(exported[0], tmp_path / name / "seed_0") for name in ("a", "b")]
    rows = benchmark.main([*map(str, both), *QUICK, "--no-memory", "--backends", "eager", "onnxruntime"])
    assert [row["speedup"] == 1 for row in rows] == [True, False, False] * 2


def test_a_device_or_a_compiler_that_is_not_there_is_one_line(exported, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="there is no cuda device here"):
        benchmark.main([str(exported[0]), *QUICK, "--no-memory", "--device", "cuda"])

    def broken(function):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="nothing to compile with: no C"):
        benchmark.main([str(exported[0]), *QUICK, "--no-memory", "--backends", "compiled"])


def test_memory_and_cold_start_are_of_a_process_of_its_own_without_torch(exported):
    row, = benchmark.main([str(exported[0] / "exports" / "model.int8.onnx"), *QUICK])
    assert 10 < row["peak_rss_mib"] < 200  # with torch it would be 300 or more
    assert row["cold_start_ms"] > row["load_ms"] > 0 and row["first_ms"] > 0


def test_end_to_end_includes_the_file(exported):
    file = next((exported[1] / "red").glob("*plain.jpg"))
    plain, = benchmark.main([str(exported[0] / "exports" / "model.onnx"), *QUICK, "--no-memory"])
    (whole,) = benchmark.main(
        [str(exported[0] / "exports" / "model.onnx"), *QUICK, "--no-memory", "--end-to-end", str(file)]
    )
    assert whole["measured"] == "file to label" and whole["lat_ms_p50"] > plain["lat_ms_p50"]


def test_other_sizes_are_timed(exported, tmp_path):
    run = shutil.copytree(exported[0], tmp_path / "seed_0")
    usual, = benchmark.main([str(run / "best.pt"), *QUICK, "--no-memory"])
    row, = benchmark.main([str(run / "best.pt"), *QUICK, "--no-memory", "--size", "64"])
    assert row["imsz"] == 64 and row["macs"] > 3.9 * usual["macs"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["missing.onnx"], "no such file"), (["missing"], "no such file|no such folder"),
        (["model.onnx", "--size", "99"], "takes images of 32 px"),
        (["model.onnx", "--backends", "eager"], "none of --backends"), (["model.onnx", "--batch", "0"], "--batch"),
        (["model.onnx", "--end-to-end", "missing.jpg"], "cannot read|no such file"),
    ],
)
def test_wrong_use_is_one_line(exported, argv, words, monkeypatch):
    monkeypatch.chdir(exported[0] / "exports")
    with pytest.raises(UserError, match=words) as error:
        benchmark.main([*argv, *QUICK, "--no-memory"])
    assert "\n" not in error.value.message
