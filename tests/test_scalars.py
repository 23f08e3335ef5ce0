"""What evaluate.py, robustness.py and benchmark.py measure of a run stands beside its training in TensorBoard."""

import time

import numpy as np
import pytest

import benchmark
import evaluate
import reported
import robustness
from kd import event_writer, scalars
from kd.files import read_csv, read_json, write_csv

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture
def run(tmp_path):
    """A run's folder with events of a training of two epochs."""
    folder = tmp_path / "toy/small_kd/seed_0"
    reported.write_run(folder)
    with event_writer.opened(folder / "tb", 0) as log:
        for epoch in (1, 2):
            log({"epoch": epoch, "loss": 1 / epoch})
    return folder


def shown(run):
    """{tag: [(step, value)]} as TensorBoard's own reader has it."""
    events = reader.EventAccumulator(str(run / "tb"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_evaluation_is_beside_the_training_and_the_next_one_replaces_it(run):
    for replicates in (100, 200):
        time.sleep(.002)
        evaluate.main([str(run), "--replicates", str(replicates)])
    content, tags = read_json(run / "metrics.json"), shown(run)
    assert tags["train/loss"] == [(1, 1.0), (2, .5)]
    metric = content["test"]["macro_f1"]
    for tag, number in (
        ("core/macro_f1", metric["value"]), ("core/macro_f1_lo", metric["lo"]), ("core/macro_f1_hi", metric["hi"]),
        ("calibration/ece_calibrated", content["test"]["ece_calibrated"]["value"]),
        ("calibration/temperature", content["calibration"]["temperature"]),
        *((f"operating_point/sensitivity/{point['class']}", point["test"]["sensitivity"]["value"])
          for point in content["operating_points"] if point["kind"] == "sensitivity"),
        *(("operating_point/macro_f1_opt", point["test"]["macro_f1"]["value"])
          for point in content["operating_points"] if point["kind"] == "macro_f1"),
    ):
        assert tags[tag] == [(0, pytest.approx(number))]
    assert len(list((run / "tb").iterdir())) == 2


def test_a_corruption_is_a_curve_over_its_severities(run):
    rows = [{"suite": suite, "file": file, "tag": tag, "corruption": name, "severity": severity, "macro_f1": value}
            for suite, file, tag, name, severity, value in (
                ("default", "best.pt", "clean", "", 0, .75), ("default", "best.pt", "jpeg_1", "jpeg", 1, .5),
                ("default", "best.pt", "jpeg_3", "jpeg", 3, .25), ("phase1", "model.int8.onnx", "clean", "", 0, .625),
                ("phase1", "model.int8.onnx", "jpeg_90", "jpeg", 1, float("nan")))]
    model_file = type("ModelFile", (), {"folder": run})
    robustness.write(None, [model_file], [[{**row, "images": 9} for row in rows]], [])
    tags = shown(run)
    assert tags["robustness/macro_f1/jpeg"] == [(0, .75), (1, .5), (3, .25)]
    assert tags["robustness/phase1/model.int8.onnx/macro_f1/jpeg"] == [(0, .625)]


def test_a_latency_stands_at_its_batch_size_and_the_newest_row_counts(run):
    options = benchmark.parser().parse_args(["x"])
    for rows in reported.benchmark_rows("small_kd", 0, np.random.default_rng(0)), [
        {**row, "lat_ms_p50": 7.5, "threads": 2, "batch": batch}
        for row in reported.benchmark_rows("small_kd", 0, np.random.default_rng(0)) for batch in (1, 8)
    ]:
        benchmark.write([{**row, "ckpt": str(run / row["ckpt"].split("seed_0/")[1])} for row in rows], options)
        time.sleep(.002)
    tags = shown(run)
    assert tags["benchmark/cpu/onnxruntime/model.int8.onnx/lat_ms_p50"] == [(1, 7.5), (8, 7.5)]
    assert tags["benchmark/cpu/eager/best.pt/peak_rss_mib"] == [(1, 70.5), (8, 70.5)]
    assert len(read_csv(run / "benchmark.csv")) == 9 and "train/loss" in tags
    assert not any(tag.endswith("peak_cuda_mib") for tag in tags)  # not measured


def test_every_tag_begins_with_its_group(run):
    evaluate.main([str(run), "--replicates", "100"])
    write_csv(run / "benchmark.csv", reported.benchmark_rows("small_kd", 0, np.random.default_rng(0)))
    tags = scalars.of_metrics(read_json(run / "metrics.json")) | scalars.of_benchmark(read_csv(run / "benchmark.csv"))
    assert {tag.split("/")[0] for tag in tags} == set(scalars.GROUPS) - {"robustness"}


def test_where_nothing_was_trained_no_events_are_written(tmp_path):
    folder = tmp_path / "toy/theirs/seed_0"
    reported.write_run(folder)
    evaluate.main([str(folder), "--replicates", "100"])
    assert (folder / "metrics.json").exists() and not (folder / "tb").exists()


def test_a_write_that_fails_leaves_what_stood_before(run, monkeypatch):
    event_writer.results(run, "evaluate", {"core/accuracy": {0: .5}})

    def fail(*arguments):
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        event_writer.results(run, "evaluate", {"core/accuracy": {0: .75}})
    assert shown(run)["core/accuracy"] == [(0, .5)] and len(list((run / "tb").iterdir())) == 2
