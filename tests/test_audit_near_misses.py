"""What looks like one of the faults and is honest: the audit does not take it for one."""

from dataclasses import replace

import numpy as np
import pytest

import honest
import test_audit
import test_audit_faults
from audited import (  # noqa: F401  for fixtures
    RUN,
    answers,
    copied_study,
    edit,
    evaluated_again,
    evaluated_once,
    findings,
    honest_study,
    put,
    rows_of,
    summarise,
    with_logits,
    write_split,
)
from kd import perceptual_hash
from kd.audit import rules
from kd.files import read_csv, read_json, read_yaml, write_csv, write_json, write_yaml
from kd.run_folder import Run
from test_audit_faults import jpeg, photographs, tables

NEAR_MISSES = []


def near_miss(*of_rules):
    """Decorator of a function that changes a study in a way about which these rules have nothing to say."""
    def add(change):
        NEAR_MISSES.append(pytest.param(change, of_rules, id=change.__name__))
        return change
    return add


@pytest.mark.parametrize("change, of_rules", NEAR_MISSES)
def test_a_near_miss_is_no_finding(root, change, of_rules):
    change(root)
    found = findings(root)
    assert not set(of_rules) & set(found), found


def test_every_rule_has_an_example_and_a_near_miss():
    examples = {(parameter.values[1], parameter.values[2]) for parameter in test_audit.EXAMPLES}
    for fires, parameters in ((True, test_audit_faults.FAULTS), (False, NEAR_MISSES)):
        examples |= {(name, fires) for parameter in parameters for name in parameter.values[1]}
    assert examples == {(rule.name, fires) for rule in rules.RULES for fires in (True, False)}


@near_miss("other-than-recomputed", "another-version", "outside-its-interval")
def figures_that_another_machine_rounds_otherwise(root):
    def change(content):
        for metric in content["test"].values():
            metric.update({key: value + 1e-9 for key, value in metric.items() if isinstance(value, float)})
        content["test"]["accuracy"].update(value=content["test"]["accuracy"]["value"] + 1e-10)
    edit(root, change)


@near_miss("other-than-recomputed", "mean-of-seeds", "two-figures")
def a_student_whose_teacher_was_left_behind(root):
    (root / "teacher_a/seed_0/predictions/test.npz").unlink()
    (root / "comparison.csv").unlink()


@near_miss("other-than-recomputed", "another-version")
def a_metrics_json_from_before_fidelity_and_the_rarest_class(root):
    def change(content):
        del content["fidelity"], content["conventions"]["rarest_class"]
        for split in ("val", "test"):
            del content[split]["macro_f1_without_rarest"]
    edit(root, change)


@near_miss("auroc-below-half", "test-far-below-val")
def a_network_that_knows_next_to_nothing(root):
    def change(part):
        rng = np.random.default_rng(len(part.labels))
        return with_logits(part, rng.normal(size=part.logits.shape) + .1 * np.eye(7)[part.labels])
    put(root, RUN, change(Run(root / RUN).val), "val")
    evaluated_again(root, change)


@near_miss("test-far-below-val")
def a_test_score_that_is_a_little_below(root):
    def change(part):
        wrong = np.random.default_rng(0).random(len(part.labels)) < .08
        return with_logits(part, np.where(wrong[:, None], part.logits[:, ::-1], part.logits))
    evaluated_again(root, change)


@near_miss("no-share-of-images", "auroc-below-half")
def means_and_rounded_accuracies_of_another_system(root):
    tables(root, **{"more.csv": "model,accuracy_mean,macro_auroc\na,0.853123456789123,.47\n",
                    "rounded.csv": "model,accuracy\nb,0.8531\nc,0.852\n"})


@near_miss("no-share-of-images")
def an_accuracy_of_another_test_set_whose_size_is_stated(root):
    tables(root, **{"more.csv": f"model,accuracy,images\na,{571 / 1003},1003\n"})


@near_miss("val-is-test", "same-predictions", "image-counted-twice")
def two_classes_and_few_images(root):
    images = None, None
    for name, skill in (("b_alone/seed_0", 2), (RUN, 2.5)):
        images = val, test = honest.pair(np.random.default_rng(int(10 * skill)), 60, images, shares={"a": .5, "b": .5},
                                         skill=skill)
        honest.write(root / name, val, test)


@near_miss("image-counted-twice")
def one_image_twice(root):
    evaluated_again(root, lambda part: with_logits(part, part.logits[np.r_[0, 0, 2:len(part.labels)]]))


@near_miss("another-epoch")
def a_best_epoch_in_which_one_image_fell_otherwise(root):
    rows = read_csv(root / RUN / "history.csv")
    rows[-1].update(val_accuracy=float(rows[-1]["val_accuracy"]) + 1 / 150, val_macro_f1=float(
        rows[-1]["val_macro_f1"]) + .002)
    write_csv(root / RUN / "history.csv", rows)


@near_miss("test-in-curves")
def a_curve_whose_name_begins_alike(root):
    rows = read_csv(root / RUN / "history.csv")
    write_csv(root / RUN / "history.csv", [{**row, "testosterone": k} for k, row in enumerate(rows)])


@near_miss("missing-seeds")
def one_seed_that_is_not_the_first(root):
    (root / "b_alone/seed_0").rename(root / "b_alone/seed_3")
    options = read_yaml(root / "b_alone/seed_3/config.yaml")
    write_yaml(root / "b_alone/seed_3/config.yaml", {**options, "seeds": [3]})
    (root / "comparison.csv").unlink()
    for name in ("b_kd/seed_1", "b_kd/seed_2"):
        (root / name).rename(root / name.replace("seed_", "old"))
    (root / "b_kd/seeds.json").unlink()
    (root / "teacher_a/seed_0").rename(root / "teacher_a/first")
    (root / "b_kd/seed_0").rename(root / "b_kd/best")


@near_miss("unequal-training")
def another_network_that_is_trained_for_longer(root):
    options = read_yaml(root / RUN / "config.yaml")
    for seed in range(3):
        write_yaml(root / f"b_kd/seed_{seed}/config.yaml", {**options, "seeds": [seed], "epochs": 50})
        path = root / f"b_kd/seed_{seed}/environment.json"
        write_json(path, {**read_json(path), "arch": "large"})


@near_miss("near-duplicates")
def pictures_alike_in_one_split_and_a_single_one_across(root):
    pictures = photographs(6)
    rows = read_csv(root / RUN / "split.csv")
    for part, images in (("train", pictures), ("test", [jpeg(pictures[0]), *map(np.flipud, 2 * photographs(9)[6:])])):
        for row, looks in zip([row for row in rows if row["split"] == part], perceptual_hash.hashes(images)):
            row["perceptual_hash"] = looks
    write_split(root / RUN, rows)


@near_miss("other-than-split", "other-test-set", "other-than-data", "other-class-names")
def rows_in_another_order(root):
    evaluated_again(root, lambda part: rows_of(part, np.random.default_rng(0).permutation(len(part.labels))))


@near_miss("other-than-data", "other-class-names")
def an_environment_of_another_system(root):
    path = root / RUN / "environment.json"
    write_json(path, {**read_json(path), "data": {"name": "toy", "fingerprint": "f1f2f3", "split": 1}})


@near_miss("other-test-set")
def another_split_that_the_options_declare(root):
    val, test = honest.pair(np.random.default_rng(9), 300)
    for name in ("b_kd/seed_1", "b_kd/seed_2"):
        (root / name / "predictions/test.npz").rename(root / name / "old.npz")
    test = replace(test, ids=np.char.add("other", test.ids), groups=np.char.add("other", test.groups))
    honest.write(root / RUN, val, test, options={"epochs": 5, "split_seed": 1})


@near_miss("teacher-saw-test")
def a_teacher_with_what_its_student_has_in_training(root):
    rows = read_csv(root / "teacher_a/seed_0/split.csv")
    trained = [row for row in rows if row["split"] == "train"]
    for row in rows:
        if row["split"] == "test":
            row.update(sha256=trained[0]["sha256"])
            break
    write_split(root / RUN, rows)


@near_miss("teacher-saw-test")
def a_teacher_whose_training_left_out_what_its_student_is_tested_on(root):
    test_audit_faults.rest_of_the_teacher_is_tested(root)


@near_miss("teacher-with-more-labels", "other-test-set")
def a_teacher_with_the_few_labels_of_its_student(root):
    test_audit_faults.without_labels(root, RUN, "teacher_a/seed_0")


@near_miss("shared-by-splits", "near-duplicates", "teacher-with-more-labels")
def a_group_of_which_validation_uses_nothing(root):
    rows = read_csv(root / RUN / "split.csv")
    tested = next(row for row in rows if row["split"] == "test")
    rows.append({**tested, "id": "more", "split": "unused"})
    write_split(root / RUN, rows)


@near_miss("mean-of-seeds")
def a_mean_that_is_rounded(root):
    rows = read_csv(root / "comparison.csv")
    for row in rows:
        if row["metric"] == "accuracy":
            row["model_value"] = f"{float(row['model_value']):.3f}"
    write_csv(root / "comparison.csv", rows)


@near_miss("subgroups-that-do-not-add-up")
def subgroups_as_they_are(root):
    test_audit_faults.with_subgroups(root)


@near_miss("not-best-on-validation", "other-than-chosen", "unequal-tries")
def a_student_and_its_baseline_that_were_tuned_alike(root):
    for model in ("b_kd", "b_alone"):
        test_audit_faults.swept(root, model, .1, {.1: .6, .2: .5})
        for path in root.glob(f"{model}/*/config.yaml"):
            write_yaml(path, {**read_yaml(path), "lr": .1})


@near_miss("not-best-on-validation", "unequal-tries")
def a_temperature_that_was_tuned_and_two_equal_tries(root):
    test_audit_faults.swept(root, "b_kd", 2., {1.: .6, 2.: .6, 4.: .5}, option="temperature")
