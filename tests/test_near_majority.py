"""A network that is little better than the majority rule is named, with what its files say of the reason."""

import math

import pytest

import registry
from kd import runs
from kd.evaluation import near_majority
from kd.files import write_csv, write_json, write_yaml
from kd.run_folder import Run


def metric(value, lo=math.nan, hi=math.nan):
    return {"value": value, "lo": lo, "hi": hi}


@pytest.mark.parametrize("value, lo, base, near", [
    (0.114, 0.05, 0.114, True), (0.24, 0.18, 0.114, True), (0.45, 0.38, 0.114, False),
    (0.45, 0.10, 0.114, True),             # as good, but the test split cannot tell
    (0.45, math.nan, 0.114, False), (0.2, math.nan, 0.114, True), (0.05, 0.01, 0.114, True),
    (0.55, 0.50, 0.40, False), (0.45, 0.42, 0.40, True),
    (math.nan, math.nan, 0.114, False), (1.0, 1.0, 1.0, False), (0.3, 0.2, math.nan, False),
])
def test_near_is_little_of_the_way_to_no_error_or_an_interval_with_the_rule(value, lo, base, near):
    assert near_majority.is_near(metric(value, lo), metric(base)) == near


def result_of(value, lo=None, groups=120):
    return {"test": {"macro_f1": metric(value, value - 0.05 if lo is None else lo, value + 0.05)},
            "majority": {"macro_f1": metric(0.114, 0.11, 0.12)}, "conventions": {"majority_class": "nv"},
            "class_names": ["nv", "mel"],
            "split": {"test": {"groups": groups}}}


@pytest.fixture
def make(tmp_path):
    """Writes a run with these options, and rows of history; returns its folder."""
    def run(name="tiny_kd", role="student", best=2, epochs=5, labels=("nv", "mel") * 300, environment=(), **options):
        folder = tmp_path / "s" / name / "seed_0"
        write_yaml(folder / "config.yaml", {"lr": 1e-3, "epochs": epochs, "batch": 32, "weights": "none", "init": None,
                                            "teacher": None, **options})
        write_json(folder / "environment.json", {"role": role, **dict(environment)})
        write_csv(folder / "history.csv", [{"epoch": k, "loss": 1, "val_macro_f1": 0.2 + (k == best) / 10, "seconds": 1}
                                           for k in range(1, epochs + 1)])
        write_csv(folder / "split.csv", [{"id": k, "group": k, "label": name, "split": "train"}
                                         for k, name in enumerate(labels)])
        return folder
    return run


def test_the_reasons_come_from_the_run(make):
    assert "19 steps" not in near_majority.notes({make(): result_of(0.5)})
    text = near_majority.notes({make(): result_of(0.2)})
    assert text.startswith("note: tiny_kd/seed_0 is near the majority rule: macro F1 0.200 [0.150, 0.250]; the rule, "
                           "always nv, has 0.114")
    why = " ".join(text.split("why: ")[1].split("try:")[0].split())
    assert why == ("it began with random weights; 95 steps of training (5 epochs of 19) are few: from random weights "
                   "2,000 and more are usual")
    counted = near_majority.notes({make(environment={"steps_per_epoch": 7}): result_of(0.2)})
    assert "35 steps" in counted
    tuned = near_majority.notes({make(weights="imagenet", best=5, labels=["nv"] * 90 + ["df"] * 3): result_of(0.2)})
    tuned = " ".join(tuned.split())
    assert "random weights" not in tuned
    assert "15 steps of training (5 epochs of 3) are few: from trained weights 200 and more" in tuned
    assert "--epochs 50 --name tiny_kd_50" in tuned
    enough = near_majority.notes({make(weights="imagenet", epochs=20): result_of(0.2)})
    assert "steps" not in enough and "--epochs" not in enough
    assert "its best epoch is the last" in tuned and "few training images of df 3" in tuned
    wild = near_majority.notes({make(lr=1.0): result_of(0.2)})
    assert "the learning rate 1 is far from" in wild and "--lr 0.001 --name tiny_kd_usual_lr" in wild


def test_a_small_test_split_is_no_fault_of_the_training(make):
    text = near_majority.notes({make(): result_of(0.5, lo=0.1, groups=12)})
    assert "a test split of 12 groups is too small" in text and "python" not in text


def test_a_student_of_such_a_teacher_is_not_what_to_train_first(make):
    teacher = make("teacher_tiny", "teacher")
    content = result_of(0.13)
    write_json(teacher / "metrics.json", content)
    text = near_majority.notes({make(teacher=str(teacher)): result_of(0.2)})
    assert "its teacher is near the majority rule, too" in text and "python" not in text
    text = near_majority.notes({teacher: content})
    assert "as a teacher it has nothing to teach\n" in text and "python train_teacher.py --config" in text


def test_a_model_of_several_seeds_is_named_once(make):
    folder = make()
    assert near_majority.notes({folder: result_of(0.2), folder.with_name("seed_1"): result_of(0.2)}).count("note:") == 1


@pytest.mark.parametrize("options", [{"lr": "x"}, {"lr": None}, {"batch": 0}, {"batch": [3]}])
def test_files_of_another_system_are_not_read_for_reasons(make, options):
    assert "why" not in near_majority.notes({make(**options): result_of(0.2)})
    assert "why" not in near_majority.notes({make(role=["student"]): result_of(0.2)})
    folder = make()
    (folder / "config.yaml").write_text("lr: [")
    assert "why" not in near_majority.notes({folder: result_of(0.2)})


def test_the_networks_that_are_advised_exist_and_their_weights_come_in_a_package(make, monkeypatch):
    for role, (_, arch) in near_majority.PRETRAINED.items():
        assert registry.get("architecture", arch).name == arch
        folder = make("m", role)
        for installed in (True, False):
            monkeypatch.setattr(near_majority.importlib.util, "find_spec", lambda name: installed or None)
            commands = near_majority.instead(Run(folder))
            assert all(f"python {runs.SCRIPTS[role]} --config" in command for command in commands)
            assert any("--weights imagenet" in command for command in commands) == installed
            assert "--epochs 50 --name m_50" in commands[-1]
