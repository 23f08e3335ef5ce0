"""Few labels (--labelled): what has none teaches nothing by its label, and who knows more is named."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

import distill
import evaluate
import study
import train_teacher
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml, write_csv, write_npz, write_yaml
from kd.report import study_files
from kd.report.sections import overview
from kd.run_folder import Run
from kd.study.plan import read_plan
from kd.train import setup
from kd.train.weights import safe_load

pytestmark = pytest.mark.usefixtures("no_report")
COMMON = ["--data", "lesions,images=150", "--size", "32", "--epochs", "2", "--batch", "16", "--workers", "0",
          "--device", "cpu", "--precision", "fp32", "--train-only"]
FEW = ["--labelled", "0.3"]
METHODS = {"alone": ["--alpha", "1"], "kd": [], "rest": ["--unlabelled", "rest", "--unlabelled-ratio", "2"]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a teacher that was given few labels."""
    return train_teacher.main([*COMMON, *FEW, "--teacher", "tiny", "--out", str(tmp_path_factory.mktemp("few"))])[0]


def student(out, teacher, method, *words):
    words = [*COMMON, *FEW, *METHODS[method], *words, "--student", "tiny", "--out", str(out)]
    return distill.main([*words, *([] if method == "alone" else ["--teacher", str(teacher)])])[0]


def same_weights(run, other):
    ours, theirs = (safe_load(folder / "best.pt")["state_dict"] for folder in (run, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def without_seconds(run):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_csv(run / "history.csv")]


@pytest.mark.parametrize("method", METHODS)
def test_the_labels_of_the_rest_of_train_and_of_val_change_nothing(method, teacher, tmp_path, monkeypatch):
    """Not the weights, not the curves of training and validation, and so not the best epoch."""
    first = student(tmp_path / "first", teacher, method)
    load = setup.load_data

    def with_other_labels(options, registry):
        data = load(options, registry)
        rest = np.isin(data.split, ("unlabelled", "unused"))
        assert len(set(data.split[rest])) == 2
        data.labels = np.where(rest, (data.labels + 1) % len(data.class_names), data.labels)
        return data

    monkeypatch.setattr(setup, "load_data", with_other_labels)
    second = student(tmp_path / "second", teacher, method)
    assert same_weights(first, second) and without_seconds(first) == without_seconds(second)


def test_the_rest_teaches_by_the_teacher_s_answers(teacher, tmp_path):
    """Without it the same student is another; val.npz has the labelled images of validation alone."""
    kd, rest = (student(tmp_path, teacher, method) for method in ("kd", "rest"))
    assert (kd.parent.name, rest.parent.name) == ("tiny_kd_labelled_0.3", "tiny_kd_labelled_0.3_unlabelled")
    assert not same_weights(kd, rest)
    counts = read_json(rest / "environment.json")["data"]["labelled"]["images"]
    rows = read_csv(rest / "split.csv")
    assert counts == {part: sum(row["split"] == part for row in rows)
                      for part in ("train", "unlabelled", "val", "unused")}
    assert read_json(rest / "environment.json")["data"]["unlabelled"][0]["images"] == counts["unlabelled"]
    assert sorted(read_npz(rest / "predictions" / "val.npz")["ids"].tolist()) == sorted(
        row["id"] for row in rows if row["split"] == "val")


def test_a_share_of_1_is_the_run_without_the_option(tmp_path):
    plain, = distill.main([*COMMON, *METHODS["alone"], "--student", "tiny", "--out", str(tmp_path / "a")])
    whole, = distill.main([*COMMON, *METHODS["alone"], "--student", "tiny", "--out", str(tmp_path / "b"),
                           "--labelled", "1"])
    assert plain.relative_to(tmp_path / "a") == whole.relative_to(tmp_path / "b")
    assert same_weights(plain, whole) and (plain / "split.csv").read_bytes() == (whole / "split.csv").read_bytes()
    ours, theirs = (read_yaml(run / "config.yaml") for run in (plain, whole))
    assert {key for key in ours if ours[key] != theirs[key]} == {"out"}


def test_a_student_takes_the_teacher_with_its_labels_and_trains_it_where_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "default_teacher", lambda options, registry: options["teacher"] or "tiny")
    words = [*COMMON, "--student", "tiny", "--out", str(tmp_path)]
    train_teacher.main([*COMMON, "--teacher", "tiny", "--out", str(tmp_path)])
    for labelled, seed in (("0.3", 0), ("0.3,seed=1", 1)):
        run, = distill.main([*words, "--labelled", labelled, "--seeds", str(seed)])
        assert run.parent.name == "tiny_kd_labelled_0.3"
        assert Run(run).options["teacher"].endswith(f"teacher_tiny_labelled_0.3/seed_{seed}")
        assert (run / "split.csv").read_bytes() == (Run(run).teachers[0].folder / "split.csv").read_bytes()
    assert capsys.readouterr().out.count("no teacher in") == 2
    assert Run(distill.main(words)[0]).options["teacher"].endswith("teacher_tiny/seed_0")


def test_a_teacher_with_more_labels_gets_a_note_and_a_finding(teacher, tmp_path, capsys):
    run = student(tmp_path, teacher, "kd")
    assert "have no label here" not in capsys.readouterr().out
    whole, = train_teacher.main([*COMMON, "--teacher", "tiny", "--out", str(tmp_path), "--name", "whole"])
    more = student(tmp_path, whole, "kd", "--name", "more")
    hidden = sum(row["split"] in ("unlabelled", "unused") for row in read_csv(more / "split.csv"))
    assert f"/whole/seed_0/best.pt was trained or selected on {hidden} images that have no label here" in (
        capsys.readouterr().out)
    evaluate.main([str(teacher), str(whole), str(run), str(more)])
    assert "note: more was trained with few labels: 30%, " in capsys.readouterr().out

    def rules(folder):
        return {finding["rule"] for finding in read_json(folder / "metrics.json")["audit"]}

    assert "teacher-with-more-labels" in rules(more) and "teacher-with-more-labels" not in rules(run)


def test_the_report_counts_the_labels(teacher):
    """The classes have all images of each part as before, and beside them those that have labels."""
    read = study_files.read_study(teacher.parents[1])
    counts = Counter(row["split"] for row in read.runs[0].split)
    train, val = counts["train"] + counts["unlabelled"], counts["val"] + counts["unused"]
    assert (f"{train} train, {val} validation, {counts['test']} test; labels for 30% of the groups of train and "
            "validation;") in overview.lead(read)
    text = re.sub("<[^>]*>", " ", str(overview.roles(read)))
    assert f"30%, {counts['train']} of {train} images" in text
    records = overview.split_table(read)[0]["records"]
    assert [records[-1][key] for key in ("train", "val", "train_0.3", "val_0.3")] == [
        train, val, counts["train"], counts["val"]]


def test_answers_of_a_teacher_are_needed_of_the_labelled_images_alone(teacher, tmp_path):
    rows = [row for row in read_csv(teacher / "split.csv") if row["split"] == "train"]
    names = Run(teacher).class_names
    file = tmp_path / "answers.npz"
    write_npz(file, ids=np.array([row["id"] for row in rows]), class_names=np.array(names),
              logits=np.eye(len(names), dtype=np.float32)[[names.index(row["label"]) for row in rows]])
    words = [*COMMON, *FEW, "--student", "tiny", "--out", str(tmp_path), "--augment", "none",
             "--teacher-predictions", str(file)]
    run, = distill.main(words)
    assert run.parent.name == "tiny_kd_none_labelled_0.3"
    with pytest.raises(UserError, match="is for images with labels, and --unlabelled has others"):
        distill.main([*words, "--unlabelled", "rest"])


def test_folds_with_few_labels_are_joined(tmp_path, capsys):
    """Each image is tested once, also those whose labels are hidden in the other folds."""
    for k in (1, 2):
        words = [*COMMON, *FEW, "--fold", f"{k}/2", "--out", str(tmp_path)]
        train_teacher.main([*words, "--teacher", "tiny"])
        distill.main([*words, "--student", "tiny", *METHODS["rest"]])
    folder = tmp_path / "lesions_32px"
    capsys.readouterr()
    evaluate.main([str(folder)])
    assert "note: tiny_kd_labelled_0.3_unlabelled was trained with few labels: 30%\n" in capsys.readouterr().out
    for model in ("teacher_tiny_labelled_0.3", "tiny_kd_labelled_0.3_unlabelled"):
        result = read_json(folder / model / "seed_0" / "metrics.json")
        assert result["split"]["test"]["images"] == 150
        assert not [finding for finding in result["audit"] if finding["rule"] == "teacher-with-more-labels"]
    fold = folder / "folds" / "tiny_kd_labelled_0.3_unlabelled_fold2of2" / "seed_0"
    write_yaml(fold / "config.yaml", {**Run(fold).options, "labelled": "0.5"})
    write_npz(fold / "predictions/test.npz", **{key: array[::-1] if key != "class_names" else array for key, array
                                               in read_npz(fold / "predictions/test.npz").items()})
    with pytest.raises(UserError, match="differ in labelled"):
        evaluate.main([str(folder)])


def test_a_plan_gives_teacher_and_students_the_same_labels(tmp_path):
    write_yaml(tmp_path / "few.yaml", {
        "data": "lesions", "labelled": 0.3, "train_teacher": {"teacher": "tiny"}, "distill": {
            "student": ["tiny"], "methods": {"alone": {"alpha": 1}, "kd": {}, "rest": {"unlabelled": ["rest"]}}}})
    parsers = study.script_parsers()
    tasks = read_plan(tmp_path / "few.yaml", parsers).training
    assert [task.name for task in tasks] == [f"{name}/seed_0" for name in (
        "teacher_tiny", "tiny_alone", "tiny_kd", "tiny_rest")]
    assert {vars(parsers[task.script].parse_args(task.arguments))["labelled"] for task in tasks} == {"0.3"}


@pytest.mark.parametrize("text", ["0", "2", "-0.1", "nan", "inf", "", ",", "a", "0.1,", "0.1,seed=x", "0.1,seed=-1",
                                  "0.1,seed", "0.1,foo=1", "0.1,seed=1,seed=2"])
def test_a_share_that_is_none_is_refused(text, tmp_path):
    with pytest.raises(UserError, match="is not SHARE or SHARE,seed=N") as caught:
        distill.main([*COMMON, f"--labelled={text}", "--student", "tiny", "--out", str(tmp_path / "out")])
    assert "\n" not in caught.value.message and not (tmp_path / "out").exists()


def test_rest_needs_images_without_labels(tmp_path):
    with pytest.raises(UserError, match="and here all have theirs") as caught:
        distill.main([*COMMON, "--student", "tiny", "--unlabelled", "rest", "--out", str(tmp_path / "out")])
    assert "--labelled a share such as 0.1" in caught.value.hint and not list(tmp_path.glob("out/*/*"))


def test_other_labels_in_the_folder_of_a_run_are_refused(teacher, tmp_path):
    student(tmp_path, teacher, "alone", "--name", "mine")
    with pytest.raises(UserError, match="labelled"):
        student(tmp_path, teacher, "alone", "--name", "mine", "--labelled", "0.5")


def test_a_split_file_with_few_labels_is_trained_as_the_option_is(teacher, tmp_path):
    """The words of split.csv are all that a run needs."""
    first = student(tmp_path / "a", teacher, "rest")
    write_csv(tmp_path / "split.csv", read_csv(first / "split.csv"))
    second, = distill.main([*COMMON, *METHODS["rest"], "--student", "tiny", "--out", str(tmp_path / "b"), "--split",
                            str(tmp_path / "split.csv"), "--teacher", str(teacher)])
    assert same_weights(first, second)
    words = ["--config", str(first / "config.yaml"), "--split", str(tmp_path / "split.csv"),
             "--out", str(tmp_path / "c"), "--train-only"]
    with pytest.raises(UserError, match="says already which images have labels") as caught:
        distill.main(words)
    assert "give --labelled 1" in caught.value.hint
    third, = distill.main([*words, "--labelled", "1"])
    assert same_weights(first, third)
