"""Ways to a good table that is not true, put into an honest study one at a time: the audit finds each of them."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import honest
from audited import (  # noqa: F401  for fixtures
    RUN,
    SETTINGS,
    answers,
    copied_study,
    edit,
    evaluated_again,
    evaluated_once,
    findings,
    honest_study,
    put,
    relabelled,
    rows_of,
    summarise,
    with_logits,
    write_split,
)
from kd import perceptual_hash
from kd.audit import examine
from kd.evaluation import protocol, subgroups
from kd.files import read_csv, read_json, read_yaml, write_csv, write_json, write_yaml
from kd.run_folder import Run
from test_other_tables import TABLES

FAULTS = []


def test_the_honest_study_has_no_findings(root):
    assert examine.audit_paths([root]) == []


def fault(*rules):
    """Decorator of a function that puts a fault into a study; one of `rules` finds it."""
    def add(change):
        FAULTS.append(pytest.param(change, rules, id=change.__name__))
        return change
    return add


@pytest.mark.parametrize("change, rules", FAULTS)
def test_each_fault_is_found(root, change, rules):
    change(root)
    assert set(rules) & set(findings(root, notes=rules == ("another-version",)))


# ---- edits by hand of metrics.json

EDITS = {
    "balanced_accuracy": .91, "macro_auroc": .99, "ece": .001, "nll": .1, "brier": .05, "weighted_f1": .95, "aurc": .01,
    "rms_ce_debiased": .0001, "recall/mel": .97, "f1/df": .9, "nll_calibrated": .2, "accuracy": .97, "macro_f1": .93,
    "macro_f1_without_rarest": .94,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_figure_is_found(root, name):
    def change(content):
        content["test"][name].update(value=EDITS[name], lo=EDITS[name] - .01, hi=EDITS[name] + .01)
    edit(root, change)
    text, = findings(root)["other-than-recomputed"]
    assert f"test/{name}/value: {EDITS[name]:.6g} stated" in text


@fault("other-than-recomputed")
def an_interval_that_is_narrower(root):
    edit(root, lambda content: content["test"]["accuracy"].update(
        lo=content["test"]["accuracy"]["value"] - .001, hi=content["test"]["accuracy"]["value"] + .001))


@fault("outside-its-interval")
def an_interval_that_excludes_its_value(root):
    edit(root, lambda content: content["test"]["accuracy"].update(lo=.97, hi=.99))


@fault("other-than-recomputed")
def another_class_that_is_left_out(root):
    edit(root, lambda content: content["conventions"].update(rarest_class="nv"))


@pytest.mark.parametrize("name, value", [("agreement", .99), ("agreement_where_teacher_wrong", .9),
                                         ("kl_teacher_student", .01)])
def test_an_edited_fidelity_is_found(root, name, value):
    edit(root, lambda content: content["fidelity"]["test"][name].update(value=value, lo=value - .005, hi=value + .005))
    text, = findings(root)["other-than-recomputed"]
    assert f"fidelity/test/{name}/value: {value:.6g} stated" in text


@fault("other-than-recomputed")
def a_fidelity_edited_in_what_says_that_it_is_of_an_older_version(root):
    def change(content):
        of_another_version(content)
        content["fidelity"]["test"]["agreement"].update(value=.99, lo=.98, hi=1.)
    edit(root, change)


@fault("other-than-recomputed")
def a_fidelity_to_another_teacher_than_is_stated(root):
    """The teacher was trained again after its student."""
    evaluated_again(root, lambda part: with_logits(part, part.logits[:, ::-1].copy()), "teacher_a/seed_0")


@fault("other-than-recomputed")
def a_fidelity_of_a_student_that_has_no_teacher(root):
    content = read_json(root / RUN / "metrics.json")["fidelity"]
    edit(root, lambda other: other.update(fidelity=content), "b_alone/seed_0")


@fault("mean-of-seeds")
def a_fidelity_over_seeds(root):
    path = root / "b_kd/seeds.json"
    content = read_json(path)
    content["fidelity"]["test"]["agreement"].update(mean=.97, lo=.9, hi=.99)
    write_json(path, content)


@fault("other-than-recomputed")
def a_confusion_matrix(root):
    def change(content):
        content["confusion"][4][4] += content["confusion"][4][5]
        content["confusion"][4][5] = 0
    edit(root, change)


@fault("other-than-recomputed")
def an_operating_point(root):
    edit(root, lambda content: content["operating_points"][4]["test"]["specificity"].update(value=.93, lo=.9, hi=.95))


@fault("other-than-recomputed")
def a_threshold(root):
    edit(root, lambda content: content["operating_points"][4].update(threshold=.31))


@fault("other-than-recomputed")
def a_temperature(root):
    edit(root, lambda content: content["calibration"].update(temperature=2.7))


def fitted_on_test(root, *keys):
    """metrics.json in which these parts were chosen on test, and say validation."""
    run = Run(root / RUN)
    cheat = protocol.evaluate(run.test, run.test, SETTINGS).result
    edit(root, lambda content: content.update({key: cheat[key] for key in keys}))


@fault("other-than-recomputed")
def a_temperature_fitted_on_test(root):
    fitted_on_test(root, "calibration", "test")


@fault("other-than-recomputed")
def thresholds_from_test(root):
    fitted_on_test(root, "operating_points")


@fault("other-than-recomputed")
def another_level(root):
    edit(root, lambda content: content["conventions"].update(level=.5))


@fault("other-than-recomputed")
def settings_that_nobody_can_have_used(root):
    edit(root, lambda content: content["conventions"].update(replicates=10 ** 12))


@fault("other-than-recomputed")
def an_edited_figure_that_says_it_is_of_an_older_version(root):
    def change(content):
        of_another_version(content)
        content["test"]["macro_auroc"].update(value=.99, lo=.98, hi=1.)
    edit(root, change)


@fault("another-version")
def a_file_of_another_version(root):
    edit(root, of_another_version)


def of_another_version(content):
    content["conventions"]["interval"] = "percentile, bias-corrected for calibration errors"


def test_a_file_of_another_version_is_called_that_and_not_tampered_with(root):
    def change(content):
        of_another_version(content)
        for metric in content["test"].values():
            metric.update(lo=(metric["lo"] or 0) - .01)
        content["test"]["ece"].update(lo=0., hi=content["test"]["ece"]["value"] / 2)
    edit(root, change)
    assert list(findings(root, notes=True)) == ["another-version"]


# ---- the test set


@fault("other-than-split")
def labels_that_are_shuffled(root):
    rng = np.random.default_rng(0)
    evaluated_again(root, lambda part: relabelled(part, np.where(rng.random(len(part.labels)) < .4, rng.permutation(
        part.labels), part.labels)))


@fault("test-far-below-val")
def rows_that_do_not_belong_together_without_a_split(root):
    (root / RUN / "split.csv").unlink()
    evaluated_again(root, lambda part: with_logits(part, np.roll(part.logits, 100, 0)))


@fault("other-than-split")
def images_that_are_dropped(root):
    evaluated_again(root, lambda part: rows_of(part, np.arange(len(part.labels)) % 4 > 0))


@fault("other-than-split")
def half_of_the_wrong_ones_dropped(root):
    evaluated_again(root, without_half_of_the_wrong)


def without_half_of_the_wrong(part):
    wrong = answers(part) != part.labels
    return rows_of(part, ~wrong | (np.cumsum(wrong) % 2 == 0))


@fault("other-than-split")
def a_class_dropped_that_the_split_lists(root):
    evaluated_again(root, lambda part: rows_of(part, part.labels != 3))


@fault("other-than-data")
def images_dropped_from_the_split_too(root):
    evaluated_again(root, without_half_of_the_wrong)
    ids = set(Run(root / RUN).test.ids)
    write_split(root / RUN, [row for row in read_csv(root / RUN / "split.csv") if row["split"] != "test" or
                             row["id"] in ids], honest_fingerprint=False)


@fault("other-class-names")
def class_names_that_are_rolled(root):
    def change(part):
        return replace(part, class_names=[*part.class_names[1:], part.class_names[0]])
    put(root, RUN, change(Run(root / RUN).val), "val")
    evaluated_again(root, change)


@fault("other-than-split")
def labels_that_differ_from_the_split(root):
    evaluated_again(root, with_labels_from_the_model)


def with_labels_from_the_model(part, count=30):
    return relabelled(part, np.where(np.arange(len(part.labels)) < count, answers(part), part.labels))


@fault("other-than-data")
def labels_that_differ_from_the_data(root):
    evaluated_again(root, with_labels_from_the_model)
    test = Run(root / RUN).test
    label_of = {name: test.class_names[label] for name, label in zip(test.ids, test.labels)}
    rows = read_csv(root / RUN / "split.csv")
    write_split(root / RUN, [{**row, "label": label_of.get(row["id"], row["label"])} for row in rows],
                honest_fingerprint=False)


@fault("val-is-test")
def validation_is_a_copy_of_test_under_other_ids(root):
    test = Run(root / RUN).test
    order = np.random.default_rng(0).permutation(len(test.labels))
    ids = np.array([f"val_{i}" for i in order])
    put(root, RUN, replace(rows_of(test, order), ids=ids, groups=ids), "val")
    (root / RUN / "split.csv").unlink()
    summarise(root, RUN)


# ---- copies


def copied(root, change=lambda part: part, history=False):
    """b_kd/seed_0 under the name of the baseline, with its own split and settings."""
    source, target = Run(root / RUN), "b_alone/seed_0"
    for split in ("val", "test"):
        put(root, target, change(getattr(source, split)), split)
    if not history:
        (root / target / "history.csv").unlink()
    summarise(root, target)


@fault("same-predictions")
def one_run_under_two_names(root):
    copied(root)


@fault("same-predictions")
def in_another_order(root):
    copied(root, lambda part: rows_of(part, np.random.default_rng(0).permutation(len(part.labels))))


@fault("same-predictions")
def under_other_ids_in_another_order(root):
    def change(part):
        part = rows_of(part, np.random.default_rng(0).permutation(len(part.labels)))
        return replace(part, ids=np.char.add("x", part.ids), groups=np.char.add("x", part.groups))
    copied(root, change)


@fault("same-predictions")
def with_noise(root):
    copied(root, noisy)


def noisy(part, size=1e-6):
    return with_logits(part, part.logits + size * np.random.default_rng(0).normal(size=part.logits.shape))


@fault("same-predictions")
def with_more_noise(root):
    copied(root, lambda part: noisy(part, .01))


@fault("same-predictions")
def scaled(root):
    copied(root, lambda part: with_logits(part, part.logits * 1.0001))


@fault("same-predictions")
def after_a_temperature_and_a_bias(root):
    copied(root, lambda part: with_logits(part, part.logits / 1.7 + np.linspace(-1, 1, 7)))


@fault("same-predictions")
def the_teacher_as_student(root):
    source = Run(root / "teacher_a/seed_0")
    for split in ("val", "test"):
        put(root, RUN, getattr(source, split), split)
    (root / RUN / "history.csv").unlink()
    summarise(root, RUN)


# ---- foreign tables, and answers


def tables(root, **changed):
    shutil.rmtree(root)
    root.mkdir()
    for name, text in {**TABLES, **changed}.items():
        (root / name).write_text(text, encoding="utf-8")


@fault("no-share-of-images")
def an_accuracy_that_is_no_share_of_images(root):
    tables(root, **{"calibration.csv": TABLES["calibration.csv"].replace("0.8517964071856288", "0.8531234567891234")})


@fault("no-share-of-images")
def an_accuracy_of_four_digits_that_is_no_share_of_the_images_of_the_others(root):
    tables(root, **{"calibration.csv": TABLES["calibration.csv"].replace("0.8517964071856288", "0.8515")})


@fault("constant-predictions")
def one_class_for_all_images(root):
    shutil.rmtree(root)
    val, test = honest.pair(np.random.default_rng(0), 2004)
    certain = 9 * np.eye(7)[np.full(2004, 5)] + np.random.default_rng(1).normal(size=(2004, 7)) * .1
    honest.write(root / RUN, val, with_logits(test, certain))
    assert "error" in {finding["severity"] for finding in examine.audit_paths([root])
                       if finding["rule"] == "constant-predictions"}


@fault("auroc-below-half")
def answers_that_are_turned_round(root):
    def change(part):
        return with_logits(part, -.5 * part.logits)
    put(root, RUN, change(Run(root / RUN).val), "val")
    (root / RUN / "history.csv").unlink()
    evaluated_again(root, change)


@fault("auroc-below-half")
def aurocs_below_half_in_a_foreign_table(root):
    tables(root, **{"more.csv": "model,accuracy,macro_auroc\na,.70,.36\n"})


# ---- ten more ways to a good table


def jpeg(pixels, quality=70):
    file = io.BytesIO()
    Image.fromarray(pixels).resize((90, 90)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB").resize(pixels.shape[1::-1]))


def photographs(count):
    """Smooth random pictures, as different from each other as photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 20, 20, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(pixels).resize((64, 64), Image.BICUBIC)) for pixels in coarse]


@fault("near-duplicates")
def training_images_saved_again_among_the_test_images(root):
    pictures = photographs(7)
    rows = read_csv(root / RUN / "split.csv")
    for part, images in (("train", pictures), ("test", [jpeg(image) for image in pictures])):
        for row, looks in zip([row for row in rows if row["split"] == part], perceptual_hash.hashes(images)):
            row["perceptual_hash"] = looks
    write_split(root / RUN, rows)


@fault("another-epoch")
def the_epoch_that_is_best_on_test(root):
    rows = read_csv(root / RUN / "history.csv")
    rows[1]["val_macro_f1"] = float(rows[-1]["val_macro_f1"]) + .04
    write_csv(root / RUN / "history.csv", rows)


@fault("test-in-curves")
def the_test_score_of_each_epoch(root):
    rows = read_csv(root / RUN / "history.csv")
    write_csv(root / RUN / "history.csv", [{**row, "test_accuracy": .5 + .01 * k} for k, row in enumerate(rows)])


@fault("missing-seeds")
def the_best_of_three_seeds(root):
    for name in ("b_kd/seed_0", "b_kd/seed_1"):
        shutil.rmtree(root / name)
    (root / "b_kd/seeds.json").unlink()


@fault("missing-seeds")
def the_best_of_many_seeds_under_the_name_of_the_first(root):
    options = read_yaml(root / RUN / "config.yaml")
    write_yaml(root / RUN / "config.yaml", {**options, "seeds": [17]})


@fault("other-test-set")
def a_subset_without_a_split(root):
    (root / RUN / "split.csv").unlink()
    evaluated_again(root, lambda part: rows_of(part, np.arange(len(part.labels)) % 10 > 0))


@fault("other-test-set")
def another_split_of_the_same_name(root):
    val, test = honest.pair(np.random.default_rng(9), 500)
    test = replace(test, ids=np.char.replace(test.ids, "test_", "test_1"), groups=np.char.add("other", test.groups))
    shutil.rmtree(root / RUN)
    honest.write(root / RUN, val, test, options={"epochs": 5, "split_seed": 0})
    summarise(root, RUN)


@fault("teacher-saw-test")
def a_teacher_that_saw_the_test_split(root):
    rows = read_csv(root / "teacher_a/seed_0/split.csv")
    tested = [row for row in rows if row["split"] == "test"]
    for row in tested[:50]:
        row["split"] = "train"
    write_split(root / "teacher_a/seed_0", rows)


@fault("teacher-saw-test")
def a_teacher_that_saw_the_test_split_without_its_labels(root):
    """--unlabelled rest, in a split whose rest is the test images of the student."""
    rest_of_the_teacher_is_tested(root)
    path = root / "teacher_a/seed_0/environment.json"
    environment = read_json(path)
    environment["data"]["unlabelled"] = [{"name": "toy", "images": 50, "left_out": {}, "groups": True}]
    write_json(path, environment)


def rest_of_the_teacher_is_tested(root):
    """--labelled takes the labels of images from the teacher that the student is tested on."""
    rows = read_csv(root / "teacher_a/seed_0/split.csv")
    for row in [row for row in rows if row["split"] == "test"][:50]:
        row["split"] = "unlabelled"
    write_split(root / "teacher_a/seed_0", rows)


def without_labels(root, *names):
    """Of these runs, three training images and ten of validation have no label."""
    for name in names:
        rows = read_csv(root / name / "split.csv")
        for part, rest, count in (("train", "unlabelled", 3), ("val", "unused", 10)):
            for row in [row for row in rows if row["split"] == part][:count]:
                row["split"] = rest
        write_split(root / name, rows)


@fault("teacher-with-more-labels")
def a_teacher_that_knows_labels_which_its_student_was_not_given(root):
    without_labels(root, RUN)


@fault("other-test-set", "other-than-split")
def labels_from_the_model(root):
    (root / RUN / "split.csv").unlink()
    evaluated_again(root, lambda part: relabelled(part, answers(part)))


@fault("mean-of-seeds")
def a_mean_of_means(root):
    path = root / "b_kd/seeds.json"
    content = read_json(path)
    values = content["test"]["accuracy"]["values"]
    content["test"]["accuracy"]["mean"] = (max(values) + sum(values) / 3) / 2
    write_json(path, content)


@fault("mean-of-seeds")
def a_comparison_of_the_best_seed(root):
    rows = read_csv(root / "comparison.csv")
    best = max(read_json(root / "b_kd/seeds.json")["test"]["accuracy"]["values"])
    for row in rows:
        if row["model"] == "b_kd" and row["metric"] == "accuracy":
            row["model_value"] = f"{best:.6g}"
    write_csv(root / "comparison.csv", rows)


@fault("other-than-split")
def lesions_forgotten_so_that_intervals_are_narrow(root):
    evaluated_again(root, lambda part: replace(part, groups=part.ids))


@fault("image-counted-twice")
def easy_images_counted_twice(root):
    (root / RUN / "split.csv").unlink()

    def change(part):
        right = np.flatnonzero(answers(part) == part.labels)[:100]
        more = rows_of(part, np.concatenate([np.arange(len(part.labels)), right]))
        more.ids = np.array([f"i{k}" for k in range(len(more.ids))])
        return more
    evaluated_again(root, change)


@fault("unequal-training")
def a_baseline_that_is_trained_for_a_shorter_time(root):
    options = read_yaml(root / "b_alone/seed_0/config.yaml")
    write_yaml(root / "b_alone/seed_0/config.yaml", {**options, "epochs": 2})


@fault("other-than-recomputed")
def figures_of_another_run(root):
    shutil.copy(root / "teacher_a/seed_0/metrics.json", root / RUN / "metrics.json")


def test_a_baseline_with_other_views_is_noted(root):
    for name, share in (("b_alone/seed_0", 0.2), (RUN, 0.0)):
        path = root / name / "config.yaml"
        write_yaml(path, {**read_yaml(path), "mixup": share})
    found, = (finding for finding in examine.audit_paths([root]) if finding["rule"] == "unequal-training")
    assert found["severity"] == "note" and "mixup of " in found["saw"]


# ---- subgroups, whose table is not there to compute them again

def with_subgroups(root, change=lambda content: None):
    """Figures of three sites in metrics.json, and a change of them by hand."""
    run = Run(root / RUN)
    sites = np.array(list("abc"))[np.arange(len(run.test.labels)) % 3]
    content = subgroups.evaluate(run.test, {"site": sites}, [], SETTINGS)
    change(content["site"])
    edit(root, lambda metrics: metrics.update(subgroups=content))


SUBGROUP_EDITS = {
    "accuracy": lambda content: content["subgroups"][0]["test"]["accuracy"].update(value=.9, lo=.8, hi=.95),
    "images": lambda content: content["subgroups"][0].update(images=content["subgroups"][0]["images"] + 1),
    "groups": lambda content: content["subgroups"][0].update(groups=10 ** 9),
    "gap": lambda content: content["gaps"][0].update(value=.001, lo=-.01, hi=.01),
    "interval": lambda content: content["gaps"][0].update(lo=.9, hi=.95),
    "p": lambda content: content["gaps"][0].update(p=.8, p_corrected=.01),
    "removed": lambda content: content["subgroups"].pop(),
}


@pytest.mark.parametrize("what", SUBGROUP_EDITS)
def test_subgroups_add_up(root, what):
    with_subgroups(root, SUBGROUP_EDITS[what])
    assert "subgroups-that-do-not-add-up" in findings(root)


@fault("subgroups-that-do-not-add-up")
def a_subgroup_that_is_left_out(root):
    with_subgroups(root, lambda content: content["subgroups"].pop())


# ---- choices among several tries


def swept(root, model, chosen, values, option="lr", **changes):
    """A sweep.json of a model over `option`: {value: macro-F1 on validation}."""
    tries = [{"options": {option: value}, "value": score, "epoch": 2} for value, score in values.items()]
    write_json(root / model / "sweep.json", {"chosen_on": "val", "metric": "macro_f1", "seed": 0, "tries": tries,
                                             "chosen": {option: chosen}, **changes})


@fault("not-best-on-validation")
def a_try_that_was_chosen_on_test(root):
    swept(root, "b_kd", .1, {.1: .6, .2: .5}, chosen_on="test")


@fault("not-best-on-validation")
def a_try_that_was_not_the_best(root):
    swept(root, "b_kd", .2, {.1: .6, .2: .5})


@fault("other-than-chosen")
def a_run_of_other_options_than_the_chosen(root):
    swept(root, "b_kd", .1, {.1: .6, .2: .5})
    path = root / RUN / "config.yaml"
    write_yaml(path, {**read_yaml(path), "lr": .2})


@fault("unequal-tries")
def a_student_that_alone_was_tuned(root):
    swept(root, "b_kd", .1, {.1: .6, .2: .5})


@fault("unequal-tries")
def a_student_that_was_tuned_in_earlier_plans(root):
    swept(root, "b_alone", .1, {.1: .6, .2: .5})
    swept(root, "b_kd", .1, {.1: .6, .2: .5}, earlier=[{"options": {"lr": .3}, "value": .1, "epoch": 1}])
