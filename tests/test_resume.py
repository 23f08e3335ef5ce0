"""A run that is killed and started again ends as the unbroken run does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distill
import train_teacher
from kd import runs
from kd.data import splits
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, write_json
from kd.train import checkpoint

pytestmark = pytest.mark.usefixtures("no_report")

COMMON = ["--data", "lesions,images=120", "--size", "32", "--epochs", "1", "--batch", "32", "--workers", "0",
          "--alpha", "1", "--student", "tiny"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that many restarts take seconds")
@pytest.mark.parametrize("setting", ["usual", "further", "rest"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_points_end_with_bitwise_the_same_weights(tmp_path, setting, kills):
    script = Path(__file__).parent / "kill_and_resume.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), str(kills), setting], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["repeatable"]
    assert len(results["points"]) == kills
    assert all(results["points"].values()), results


def test_a_finished_run_is_left_as_it_is_and_said_to_be_finished(tmp_path, capsys):
    run, = distill.main([*COMMON, "--out", str(tmp_path)])
    before = {
        path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix in (".pt", ".npz")
    }
    capsys.readouterr()
    distill.main([*COMMON, "--out", str(tmp_path)])
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_files_of_a_run_are_those_of_the_design(tmp_path):
    run, = distill.main([*COMMON, "--out", str(tmp_path)])
    present = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert present >= {"config.yaml", "environment.json", "split.csv", "history.csv", "best.pt", "predictions/val.npz",
                       "predictions/test.npz", "samples.npz", "metrics.json"}
    assert not [name for name in present if name.endswith(".tmp")] and "last.pt" not in present
    content = checkpoint.read(run / "best.pt")
    assert set(content) == set(checkpoint.FIELDS)


def test_other_options_on_the_same_folder_are_an_error_that_names_them(tmp_path):
    distill.main([*COMMON, "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"other options: epochs was 1, now 2; lr was 0.001, now 0.01"):
        distill.main([*COMMON, "--out", str(tmp_path), "--epochs", "2", "--lr", "0.01"])


def test_config_yaml_fed_back_repeats_the_run(tmp_path):
    run, = distill.main([*COMMON, "--out", str(tmp_path / "a"), "--hard", "focal,gamma=1.5"])
    again, = distill.main(["--config", str(run / "config.yaml"), "--out", str(tmp_path / "b")])
    first, second = (read_npz(folder / "predictions" / "test.npz")["logits"] for folder in (run, again))
    assert (first == second).all()
    teacher, = train_teacher.main(["--data", "lesions,images=120", "--size", "32", "--epochs", "1", "--teacher", "tiny",
                                   "--out", str(tmp_path / "a")])
    again, = train_teacher.main(["--config", str(teacher / "config.yaml"), "--out", str(tmp_path / "b")])
    assert again.name == teacher.name


def test_all_seeds_share_one_test_set(tmp_path):
    first, second = distill.main([*COMMON, "--out", str(tmp_path), "--seeds", "0", "1"])
    assert (first / "split.csv").read_bytes() == (second / "split.csv").read_bytes()
    weights = [checkpoint.read(run / "best.pt")["state_dict"]["head.weight"] for run in (first, second)]
    assert not (weights[0] == weights[1]).all()


def test_changed_data_stop_a_run_that_was_begun_with_others(tmp_path, monkeypatch):
    run, = distill.main([*COMMON, "--out", str(tmp_path)])
    (run / "predictions" / "test.npz").unlink()
    rows = read_csv(run / "split.csv")
    begun = (run / "environment.json").read_text()
    environment = read_json(run / "environment.json")
    environment["data"]["fingerprint"] = "0" * 16
    write_json(run / "environment.json", environment)
    with pytest.raises(UserError, match="begun with other data"):
        distill.main([*COMMON, "--out", str(tmp_path)])
    (run / "environment.json").write_text(begun)
    usual = splits.stratified
    monkeypatch.setattr(splits, "stratified", lambda *given, **options: usual(*given, **{**options, "seed": 5}))
    with pytest.raises(UserError, match="begun with other groups or split"):
        distill.main([*COMMON, "--out", str(tmp_path)])
    assert rows == read_csv(run / "split.csv")


def test_a_study_that_was_moved_or_is_named_otherwise_goes_on(tmp_path, monkeypatch, capsys):
    common = [*COMMON[:-4], "--study", "s", "--teacher", "tiny"]
    student = [*COMMON[:-4], "--study", "s", "--student", "tiny", "--split", "split.csv"]
    monkeypatch.chdir(tmp_path)
    train_teacher.main([*common, "--out", "runs"])
    (tmp_path / "split.csv").write_bytes((tmp_path / "runs/s/teacher_tiny/seed_0/split.csv").read_bytes())
    run, = distill.main([*student, "--out", "runs"])
    monkeypatch.chdir(tmp_path / "runs")
    capsys.readouterr()
    student[-1] = "../split.csv"
    for out in (".", str(tmp_path / "runs")):
        distill.main([*student, "--out", out])
        assert "tiny_kd/seed_0: finished already" in capsys.readouterr().out
    (tmp_path / "runs").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    student[-1] = "split.csv"
    (tmp_path / "moved/s/tiny_kd/seed_0/predictions/test.npz").unlink()
    again, = distill.main([*student, "--out", "moved"])
    assert runs.finished(again)
    with pytest.raises(
        UserError, match="made with other options: teacher was tiny, now resnet18"
    ):  # here it is a network
        train_teacher.main([*common[:-1], "resnet18", "--name", "teacher_tiny", "--out", "moved"])


def test_another_teacher_under_the_same_path_stops_a_run(tmp_path):
    common = [*COMMON[:-4], "--out", str(tmp_path)]
    teacher, = train_teacher.main([*common, "--teacher", "tiny"])
    arguments = [*common, "--student", "tiny", "--teacher", str(teacher)]
    run, = distill.main(arguments)
    (run / "predictions" / "test.npz").unlink()
    other, = train_teacher.main([*common, "--teacher", "tiny", "--seeds", "1"])
    (teacher / "best.pt").write_bytes((other / "best.pt").read_bytes())
    with pytest.raises(UserError, match="begun with another teacher"):
        distill.main(arguments)
