"""TensorBoard's plots in a report: every scalar of every run, from event files or from history.csv."""

import shutil

import numpy as np
import pytest

from kd import event_writer
from kd.files import read_npz, write_npz
from kd.report import study_files
from kd.report.sections import students, tensorboard

pytest.importorskip("tensorboard")


@pytest.fixture
def root(reported_study, tmp_path):
    shutil.copytree(reported_study[0], tmp_path / "toy")
    return tmp_path / "toy"


def frames(root, monkeypatch):
    """{tag: [(model, steps, values, mark)]} of the drawn frames."""
    drawn = {}

    def keep(draw, models, ordered, alt, caption):
        for tag, lines in ordered:
            drawn[tag] = [(models[k][0], list(steps), list(values), mark) for k, steps, values, mark in lines]
        return {"kind": "figure"}

    monkeypatch.setattr(tensorboard, "responsive_figure", keep)
    return drawn, tensorboard.boards(study_files.read_study(root))


def test_teacher_and_students_share_the_frame_of_a_scalar(root, monkeypatch):
    drawn, _ = frames(root, monkeypatch)
    assert {"train/loss", "val/macro_f1"} <= drawn.keys()
    assert {model for model, *_ in drawn["train/loss"]} == {"teacher_big", "small_alone", "small_kd"}
    assert [values for model, _, values, _ in drawn["val/macro_f1"] if model == "small_kd"][0] == [.25, .125]


def test_a_run_without_event_files_is_drawn_from_its_history(root, monkeypatch):
    for folder in root.glob("*/*/tb"):
        shutil.rmtree(folder)
    drawn, _ = frames(root, monkeypatch)
    runs = {(run.model, run.seed): run for run in study_files.read_study(root).runs}
    assert len(drawn["val/macro_f1"]) == len(runs) == 5
    model, steps, values, mark = drawn["val/macro_f1"][0]
    history = runs[model, "seed_0"].history
    assert steps == [row["epoch"] for row in history] and values == [row["val_macro_f1"] for row in history]
    assert mark == history[int(np.argmax(values))]["epoch"]


def test_results_are_in_the_csv_and_not_drawn_again(root, monkeypatch):
    event_writer.results(root / "small_kd/seed_0", "robustness", {"robustness/macro_f1/jpeg": {0: .5, 1: .25}})
    drawn, blocks = frames(root, monkeypatch)
    table = next(block for block in blocks if block["kind"] == "table")
    assert not any(tag.startswith("robustness") for tag in drawn)
    assert "robustness/macro_f1/jpeg" in {row["tag"] for row in table["export"]}
    assert "robustness/macro_f1/jpeg" not in {row["tag"] for row in table["records"]}


def test_the_caption_of_attention_says_how_its_images_were_chosen_and_older_files_still_draw(root):
    run, = (run for run in study_files.read_study(root).runs if run.attention)
    block = students.attention_figure(run, run.samples)
    assert "of 120 test images, those on which the probabilities of teacher and student differ most" in block["caption"]
    assert "0.75, 0.50, 0.25, 0.12" in block["caption"] and "; teacher " in block["alt"]
    path = run.folder / "attention.npz"
    old = {key: value for key, value in read_npz(path).items()
           if key not in ("images", "difference", "candidates", "student_cam", "teacher_cam")}
    write_npz(path, **old)
    run, = (run for run in study_files.read_study(root).runs if run.attention)
    block = students.attention_figure(run, run.samples)
    assert block["caption"] == f"{run.model}, seed 0" and "Grad-CAM" not in block["svg"]
