"""evaluate.py --ensemble: the mean of the probabilities of several runs, a run of the study without a network."""

import shlex
import shutil

import pytest

import distill
import evaluate
import export
import train_teacher
from kd import metrics, runs
from kd.errors import UserError
from kd.evaluation import compare, protocol
from kd.files import read_json, read_npz, write_npz
from kd.run_folder import Run

pytestmark = pytest.mark.usefixtures("no_report")
COMMON = ["--data", "lesions,images=150", "--size", "32", "--epochs", "4", "--lr", "3e-3", "--batch", "32",
          "--workers", "0", "--device", "cpu", "--precision", "fp32", "--train-only", "--teacher", "tiny"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of two teachers."""
    out = tmp_path_factory.mktemp("two")
    for name, seed in (("a", "0"), ("b", "1")):
        train_teacher.main([*COMMON, "--out", str(out), "--name", name, "--seeds", seed])
    return out / "lesions_32px"


@pytest.fixture
def study(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "lesions_32px")


def members(study):
    return [str(study / "a" / "seed_0"), str(study / "b")]


def probabilities(run, split="test"):
    content = read_npz(run / "predictions" / f"{split}.npz")
    return dict(zip(content["ids"].tolist(), metrics.softmax(content["logits"])))


def test_its_answers_are_the_mean_of_the_probabilities_image_by_image(study):
    path = study / "b" / "seed_1" / runs.TEST
    content = dict(read_npz(path))
    write_npz(path, **{key: value[::-1] if key in ("ids", "labels", "groups", "logits") else value
                       for key, value in content.items()})  # the same answers in another order
    evaluate.main([*members(study), "--ensemble", "both"])
    for split in ("val", "test"):
        a, b, both = (probabilities(run, split) for run in (
            study / "a" / "seed_0", study / "b" / "seed_1", study / "both" / "seed_0"))
        for name, mean in both.items():
            assert mean == pytest.approx((a[name] + b[name]) / 2, abs=1e-12)
        assert a.keys() == b.keys() == both.keys()
    result = read_json(study / "both" / "seed_0" / "metrics.json")
    assert result["calibration"]["temperature"] and result["operating_points"]
    assert not [finding for finding in result["audit"] if finding["severity"] == "error"], result["audit"]


def test_it_is_a_model_of_the_study_and_no_network(study, capsys):
    evaluate.main([*members(study), "--ensemble", "both"])
    evaluate.main([*members(study), "--ensemble", "both"])  # again: its own place is free
    evaluate.main([str(study)])
    evaluate.main(["--compare", str(study)])
    assert "both" in capsys.readouterr().out
    evaluate.main([str(study / "both"), "--target", "mel"])
    with pytest.raises(UserError, match="no network of its own"):
        export.main([str(study / "both" / "seed_0")])
    shutil.rmtree(study / "b")
    options = {"out": str(study.parent), "study": study.name, "fold": None, "labelled": None}
    assert distill.study_teacher(study, options) == study / "a" / "seed_0"  # it is no teacher to train with


def test_it_follows_its_members_and_a_student_is_compared_with_its_own_teacher(study, capsys):
    distill.main([*COMMON[:-2], "--out", str(study.parent), "--student", "tiny", "--teacher", str(study / "b/seed_1")])
    evaluate.main([*members(study), "--ensemble", "all"])
    compared = compare.compare(compare.models([study]), protocol.Settings(replicates=100))
    assert [(pair["reference"], pair["model"]) for pair in compared["pairs"]] == [
        ("a", "b"), ("a", "all"), ("a", "tiny_kd"), ("b", "tiny_kd")]


@pytest.mark.parametrize("arguments", [[], ["--compare"]])
def test_one_whose_members_were_trained_again_is_refused_until_it_is_made_again(study, arguments):
    evaluate.main([*members(study), "--ensemble", "both"])
    evaluate.main([str(study), *arguments])
    path = study / "b" / "seed_1" / runs.TEST
    content = read_npz(path)
    write_npz(path, **{**content, "logits": -content["logits"]})
    with pytest.raises(UserError, match="its members have other answers by now") as caught:
        evaluate.main([str(study), *arguments])
    evaluate.main(shlex.split(caught.value.hint)[2:])
    evaluate.main([str(study), *arguments])


def test_of_joined_folds_it_is_joined_and_has_no_validation_split(study):
    evaluate.main([*members(study), "--ensemble", "both"])
    assert Run(study / "both" / "seed_0").predictions()[0] is not None
    for run in (study / "a" / "seed_0", study / "b" / "seed_1"):
        (run / "predictions" / "val.npz").unlink()
        (run / runs.RECORD).write_text('{"folds": []}')
    evaluate.main([*members(study), "--ensemble", "both"])
    assert Run(study / "both" / "seed_0").predictions()[0] is None


def test_without_the_split_of_a_member_nothing_is_written(study):
    (study / "a" / "seed_0" / "split.csv").unlink()
    with pytest.raises(UserError, match="no such file: .*split.csv"):
        evaluate.main([*members(study), "--ensemble", "both"])
    assert not (study / "both").exists()


@pytest.mark.parametrize("change, message", [
    (lambda paths: [*paths, "--compare"], "each do something else"),
    (lambda paths: paths[:1], "takes the mean of several runs"),
    (lambda paths: [paths[0], paths[0]], "takes the mean of several runs"),
    (lambda paths: [paths[0], paths[0] + "/" + str(runs.TEST)], "a predictions file is none"),
    (lambda paths: [paths[0], str(runs.study(paths[0]))], "there are 2 runs at or below"),
])
def test_what_is_no_set_of_runs_is_refused(study, change, message):
    with pytest.raises(UserError, match=message):
        evaluate.main([*change(members(study)), "--ensemble", "both"])
    assert not (study / "both").exists()


def test_a_run_is_not_overwritten_and_other_images_are_refused(study):
    with pytest.raises(UserError, match="is a run of its own"):
        evaluate.main([*members(study), "--ensemble", "a"])
    path = study / "b" / "seed_1" / runs.TEST
    content = dict(read_npz(path))
    write_npz(path, **{key: value[1:] if key in ("ids", "labels", "groups", "logits") else value
                       for key, value in content.items()})
    with pytest.raises(UserError, match="answer to different test images"):
        evaluate.main([*members(study), "--ensemble", "both"])
    assert not (study / "both").exists()
