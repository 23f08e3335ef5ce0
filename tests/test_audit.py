"""Each rule of the audit fires on an example of its fault, and is silent on a near miss."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import honest
from kd import metrics
from kd.audit import class_order, evidence, examine, rules
from kd.errors import UserError
from kd.files import read_csv, write_csv, write_json
from kd.predictions import Predictions

RNG = np.random.default_rng(0)
VAL, TEST = honest.pair(RNG, 900, skill=3.0)
RESULT = honest.result(VAL, TEST)
EXAMPLES = []


def example(rule, fires):
    """Decorator of a function that returns findings, among which is one of `rule` (or none, for a near miss)."""
    def add(make):
        EXAMPLES.append(pytest.param(make, rule, fires, id=f"{rule}:{make.__name__}"))
        return make
    return add


@pytest.mark.parametrize("make, rule, fires", EXAMPLES)
def test_a_rule_fires_where_it_should_and_only_there(make, rule, fires, tmp_path):
    findings = [finding for finding in make(tmp_path) if finding["rule"] == rule]
    assert bool(findings) == fires, findings
    for finding in findings:
        assert set(finding) == {"rule", "severity", "saw", "why", "do"} and all(map(str.strip, finding.values()))
        assert finding["severity"] in rules.SEVERITIES


def test_honest_predictions_have_no_findings():
    assert examine.audit_metrics(RESULT, VAL, TEST) == []


def only_finding(findings, rule):
    finding, = (finding for finding in findings if finding["rule"] == rule)
    return finding


def judged(result=None, val=VAL, test=TEST, **tests):
    """Findings about a metrics.json with some test figures replaced by values without much else."""
    result = copy.deepcopy(RESULT if result is None else result)
    for name, value in tests.items():
        result["test"][name] = {"value": value, "lo": value - .01, "hi": value + .01}
    return examine.audit_metrics(result, val, test)


def answered(answers, base=TEST, sure=4.0):
    """Predictions in which image i is called answers[i]."""
    rng = np.random.default_rng(1)
    logits = sure * np.eye(len(base.class_names))[answers] + rng.normal(size=base.logits.shape) * .1
    return Predictions(base.labels, logits, metrics.softmax(logits), base.ids, base.groups, base.class_names)


def study(folder, *runs):
    """Findings about a study of runs: (model, seed, role, val, test)."""
    return examine.audit_study([honest.write(folder / "toy" / model / f"seed_{seed}", val, test, role, seed=seed)
                                for model, seed, role, val, test in runs])


# ---- calibration

WRONG = 1 - float(np.mean(TEST.labels == TEST.probabilities.argmax(1)))


@example("ece-is-error-rate", True)
def every_confidence_is_one(_):
    return judged(ece=WRONG - 2e-4, ece_equal_mass=WRONG, brier=2 * WRONG)


@example("ece-is-error-rate", True)
def every_calibrated_confidence_is_one(_):
    return judged(ece_calibrated=WRONG, ece_equal_mass_calibrated=WRONG, brier_calibrated=2 * WRONG)


@example("ece-is-error-rate", False)
def equal_by_chance_since_brier_is_not_twice_as_much(_):
    return judged(ece=WRONG, ece_equal_mass=WRONG, brier=1.5 * WRONG)


@example("ece-is-error-rate", False)
def very_overconfident(_):
    return judged(ece=WRONG - .003, ece_equal_mass=WRONG - .003, brier=2 * WRONG - .004)


@example("nll-beyond-reason", True)
def zero_in_all_but_name(_):
    return judged(nll=312.0)


@example("nll-beyond-reason", False)
def much_overconfident(_):
    return judged(nll=20 * WRONG)


def temperature(**changed):
    result = copy.deepcopy(RESULT)
    result["calibration"].update(changed)
    return judged(result)


@example("temperature-at-bound", True)
def at_the_lower_bound(_):
    return temperature(temperature=.05, bounds=[.05, 20])


@example("temperature-at-bound", True)
def at_the_upper_bound(_):
    return temperature(temperature=19.99, bounds=[.05, 20])


@example("temperature-at-bound", True)
def nll_rises(_):
    return temperature(temperature=1.5, nll_val_before=.5, nll_val_after=.6)


@example("temperature-at-bound", True)
def refused_with_a_reason(_):
    return temperature(temperature=None, reason="the NLL falls all the way down to T = 0.05", nll_val_after=None)


@example("temperature-at-bound", False)
def near_the_bound(_):
    return temperature(temperature=.06, bounds=[.05, 20])


@example("temperature-at-bound", False)
def never_fitted(_):
    return judged({**RESULT, "calibration": None})


# ---- operating points


def with_point(point):
    return judged({**RESULT, "operating_points": [point]})


@example("idle-threshold", True)
def weights_that_change_nothing(_):
    return with_point({"name": "w", "kind": "macro_f1", "chosen_on": "val",
                       "threshold": {**dict.fromkeys(TEST.class_names, 1.0), "df": 1.0 + 1e-7}})


@example("idle-threshold", True)
def every_image_is_called_positive(_):
    return with_point({"name": "mel", "kind": "sensitivity", "class": "mel", "threshold": 1e-9,
                       "test": {"sensitivity": {"value": 1.0}, "specificity": {"value": 0.0}}})


@example("idle-threshold", True)
def a_threshold_of_zero(tmp_path):
    return table(tmp_path, "operating_points.csv", "model,tau,macro_f1_opt\na,0.0,0.656\n")


@example("idle-threshold", False)
def weights_that_change_something(_):
    return with_point({"name": "w", "kind": "macro_f1",
                       "threshold": {**dict.fromkeys(TEST.class_names, 1.0), "nv": .2}})


@example("idle-threshold", False)
def equal_weights_of_equal_priors(_):
    return with_point({"name": "prior correction", "kind": "prior", "threshold": dict.fromkeys(TEST.class_names, 1.0)})


@example("idle-threshold", False)
def nearly_every_image_is_called_positive(_):
    return with_point({"name": "mel", "kind": "sensitivity", "threshold": .001,
                       "test": {"sensitivity": {"value": 1.0}, "specificity": {"value": .01}}})


@example("chosen-on-test", True)
def chosen_where_it_is_tested(_):
    return with_point({"name": "mel", "kind": "sensitivity", "chosen_on": "test", "threshold": .2})


@example("chosen-on-test", False)
def chosen_on_validation(_):
    return with_point({"name": "mel", "kind": "sensitivity", "chosen_on": "val", "threshold": .2})


# ---- corruptions


def table(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return examine.audit_tables(folder)


def robust(folder, *lines):
    return table(folder, "robustness.csv", "\n".join(("model,tag,acc,macro_f1", *lines, "")))


def everywhere(accuracy):
    """The same accuracy of three models, clean and blurred."""
    return [f"{model},{tag},{accuracy},.656" for model in "abc" for tag in ("clean", "blur_1")]


@example("idle-corruption", True)
def a_level_scores_as_the_clean_images(tmp_path):
    return robust(tmp_path, "a,clean,0.810379241516966,.6561234", "a,blur_1,0.810379241516966,.6561234")


@example("idle-corruption", True)
def a_level_scores_as_another(tmp_path):
    return robust(tmp_path, "a,blur_2,0.810379241516966,.656", "a,blur_1,0.810379241516966,.656")


@example("idle-corruption", False)
def as_many_right_and_others(tmp_path):
    return robust(tmp_path, "a,jpeg_90,0.8158682634730539,.663", "a,jpeg_50,0.8158682634730539,.659")


@example("idle-corruption", False)
def equal_when_rounded(tmp_path):
    return robust(tmp_path, "a,clean,0.810,.656", "a,blur_1,0.810,.656")


@example("idle-corruption", False)
def equal_where_one_is_rounded(tmp_path):
    return robust(tmp_path, "a,clean,0.810379241516966,.656", "a,blur_1,0.810,.656",
                  "b,clean,0.810,.656", "b,blur_1,0.810379241516966,.656")


@example("idle-corruption", False)
def two_different_corruptions(tmp_path):
    return robust(tmp_path, "a,jpeg_1,0.810379241516966,.656", "a,blur_1,0.810379241516966,.656")


@pytest.mark.parametrize("lines, severity", [
    (everywhere("0.810379241516966"), "error"),        # of 2,004 images
    (everywhere("0.816666666666667"), "note"),         # of 60
    (everywhere("0.810379241516966")[:2], "warning"),  # of one model
])
def test_equal_counts_under_a_corruption_are_an_error_only_beyond_chance(tmp_path, lines, severity):
    finding = only_finding(robust(tmp_path, *lines), "idle-corruption")
    assert finding["severity"] == severity, finding["saw"]


def test_an_equal_sum_of_logarithms_is_beyond_chance(tmp_path):
    findings = table(tmp_path, "robustness.csv", "model,tag,nll\na,clean,.6561234567\na,blur,.6561234567\n")
    assert only_finding(findings, "idle-corruption")["severity"] == "error"


@example("unclear-corruption", True)
def gaussian_what(tmp_path):
    return robust(tmp_path, "a,gaussian_0.1,.5,.5")


@example("unclear-corruption", False)
def gaussian_noise(tmp_path):
    return robust(tmp_path, "a,gaussian_noise_0.1,.5,.5")


# ---- runs that are one run


@example("same-curve", True)
def one_history_for_two_runs(tmp_path):
    study(tmp_path, ("a_kd", 0, "student", VAL, TEST), ("b_kd", 0, "student", *honest.pair(RNG, 300)))
    (tmp_path / "toy/b_kd/seed_0/history.csv").write_bytes((tmp_path / "toy/a_kd/seed_0/history.csv").read_bytes())
    return examine.audit_paths([tmp_path])


@example("same-curve", True)
def one_score_for_two_runs_of_different_losses(tmp_path):
    return curves(tmp_path, [.1, .2, .3, .4, .5])


@example("same-curve", False)
def two_collapsed_runs_score_alike(tmp_path):
    return curves(tmp_path, [.115] * 5)


def curves(tmp_path, scores):
    study(tmp_path, ("a_kd", 0, "student", VAL, TEST), ("b_kd", 0, "student", VAL, answered(TEST.labels)))
    for model in ("a_kd", "b_kd"):
        path = tmp_path / "toy" / model / "seed_0" / "history.csv"
        write_csv(path, [{**row, "val_macro_f1": score, "val_accuracy": score}
                         for row, score in zip(read_csv(path), scores)])
    return examine.audit_paths([tmp_path])


@example("two-figures", False)
def one_name_in_two_studies(tmp_path):
    study(tmp_path / "a", ("teacher_x", 0, "teacher", VAL, TEST))
    study(tmp_path / "b", ("teacher_x", 0, "teacher", *honest.pair(np.random.default_rng(5), 300)))
    return examine.audit_paths([tmp_path])


@example("same-predictions", True)
def one_network_under_two_names(tmp_path):
    return study(tmp_path, ("a_kd", 0, "student", VAL, TEST), ("b_kd", 0, "student", VAL, TEST))


@example("same-predictions", False)
def two_networks_that_always_agree(tmp_path):
    other = answered(TEST.probabilities.argmax(1))
    return study(tmp_path, ("a_kd", 0, "student", VAL, TEST), ("b_kd", 0, "student", VAL, other))


# ---- predictions

NV = TEST.class_names.index("nv")


@example("constant-predictions", True)
def every_image_is_called_nv(_):
    return judged(test=answered(np.full(len(TEST.labels), NV)))


@example("constant-predictions", False)
def two_images_in_a_hundred_are_not(_):
    return judged(test=answered(np.where(np.arange(len(TEST.labels)) % 50, NV, 0)))


def test_the_same_probabilities_for_all_are_an_error_and_the_same_answer_a_warning():
    logits = np.tile(TEST.logits[:1], (len(TEST.labels), 1))
    same = Predictions(TEST.labels, logits, metrics.softmax(logits), TEST.ids, TEST.groups, TEST.class_names)
    for test, severity in ((same, "error"), (answered(np.full(len(TEST.labels), NV)), "warning")):
        assert only_finding(judged(test=test), "constant-predictions")["severity"] == severity


@example("accuracy-is-majority-share", True)
def the_share_of_nv(_):
    return judged(test=answered(np.full(len(TEST.labels), NV)))


@example("accuracy-is-majority-share", False)
def one_image_more(_):
    answers = np.full(len(TEST.labels), NV)
    answers[np.flatnonzero(TEST.labels != NV)[0]] = TEST.labels[TEST.labels != NV][0]
    return judged(test=answered(answers))


@example("accuracy-is-majority-share", False)
def equal_by_chance_in_a_network_that_knows_other_classes(_):
    answers = TEST.labels.copy()
    answers[np.flatnonzero(TEST.labels == NV)[:int((TEST.labels != NV).sum())]] = 4
    return judged(test=answered(answers))


@example("far-below-majority", True)
def worse_than_guessing(_):
    return judged(test=answered((TEST.labels + 1 + (np.arange(len(TEST.labels)) % 20 == 0) * 6) % 7))


@example("far-below-majority", False)
def priors_thrown_away(_):
    places = np.arange(len(TEST.labels))
    return judged(test=answered(np.where(places % 3, places % 7, TEST.labels)))


def reordered(part, order):
    return replace(part, logits=part.logits[:, order], probabilities=part.probabilities[:, order])


@example("label-order", True)
def another_class_list(_):
    order = [TEST.class_names.index(name) for name in "nv mel bkl bcc akiec vasc df".split()]
    return judged(val=reordered(VAL, order), test=reordered(TEST, order))


@example("label-order", True)
def two_rare_classes_exchanged(_):
    val, test = honest.pair(np.random.default_rng(5), 2000, skill=5.0)
    return examine.audit_metrics({}, val, reordered(test, [0, 1, 2, 6, 4, 5, 3]))


@example("label-order", False)
def a_network_that_misses_the_rare_classes(_):
    answers = np.where(np.isin(TEST.labels, (0, 3, 6)), NV, TEST.labels)
    return judged(test=answered(answers))


@example("label-order", False)
def guesses(_):
    return judged(test=answered(np.random.default_rng(3).integers(0, 7, len(TEST.labels))))


@pytest.mark.parametrize("counts, cycles", [
    ([[10, 50], [50, 10]], [[0, 1]]),
    ([[0, 9], [9, 0]], []),                              # too few: they may be of two lesions
    ([[5, 7], [7, 5]], []),                              # a dozen images each: chance
    ([[9600, 10400], [10400, 9600]], []),                # no chance, and next to nothing
    ([[3, 57, 0, 0], [0, 3, 57, 0], [0, 0, 3, 57], [3, 0, 0, 1]], [[0, 1, 2, 3]]),  # the last is too small to tell,
    ([[10, 30, 0], [0, 10, 30], [3, 0, 1]], []),                                    # and here it could undo the rest
])
def test_another_order_is_found_beyond_chance_only(counts, cycles):
    assert class_order.better_order(np.array(counts)) == cycles


def test_assignment_is_the_best_of_all():
    for size in (1, 2, 5, 6):
        for seed in range(20):
            cost = np.random.default_rng([size, seed]).integers(0, 5, (size, size)).astype(float)  # with ties
            best = min(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(size)))
            columns = class_order.assignment(cost)
            assert sorted(columns) == list(range(size)) and cost[np.arange(size), columns].sum() == best


def words(folder, text):
    return table(folder, "notes.md", f"On HAM10000: {text}")


@example("class-number", True)
def vasc_is_not_3(tmp_path):
    return words(tmp_path, "Class 3 (“VASC” in HAM10000 taxonomy) is underrepresented")


@example("class-number", True)
def not_even_in_a_table(tmp_path):
    return table(tmp_path, "ham10000.csv", "class_id,class_name,f1\n0,akiec,.7\n3,vasc,.8\n")


@example("class-number", False)
def vasc_is_6(tmp_path):
    return words(tmp_path, "class 3 (df) and class 6 (VASC) are rare, class 0 (small lesion type) is not")


@example("class-number", False)
def who_counts_from_one(tmp_path):
    return words(tmp_path, "class 4 (DF) and class 7 (VASC) are rare")


# ---- splits


def split(tmp_path, change):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    rows = read_csv(folder / "split.csv")
    change({part: [row for row in rows if row["split"] == part] for part in ("train", "val", "test")})
    write_csv(folder / "split.csv", rows)
    return examine.audit_run(folder)


@example("shared-by-splits", True)
def a_lesion_in_train_and_test(tmp_path):
    return split(tmp_path, lambda part: part["train"][0].update(group=part["test"][0]["group"]))


@example("shared-by-splits", True)
def an_image_in_train_and_test(tmp_path):
    return split(tmp_path, lambda part: part["train"][0].update(sha256=part["test"][0]["sha256"]))


@example("shared-by-splits", True)
def predictions_that_share_lesions(_):
    return judged(val=replace(VAL, groups=np.resize(TEST.groups, len(VAL.labels))))


@example("shared-by-splits", False)
def a_lesion_with_two_images_in_one_split(tmp_path):
    return split(tmp_path, lambda part: part["test"][0].update({k: part["test"][1][k] for k in ("group", "sha256")}))


@example("shared-by-splits", False)
def no_groups_and_no_hashes(tmp_path):
    return split(tmp_path, lambda rows: [row.update(group="", sha256="") for part in rows.values() for row in part])


def test_few_identical_images_are_a_warning_and_many_an_error(tmp_path):
    def share(count):
        def change(part):
            for k in range(count):
                part["val"][k]["sha256"] = part["test"][k]["sha256"]
        return split(tmp_path, change)
    for count, severity in ((8, "warning"), (9, "error")):  # of 900
        finding = only_finding(share(count), "shared-by-splits")
        assert finding["severity"] == severity and f"{count} identical images" in finding["saw"]


@example("split-not-seen", True)
def split_is_gone(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    (folder / "split.csv").unlink()
    return examine.audit_run(folder)


@example("split-not-seen", True)
def split_without_training_images(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    write_csv(folder / "split.csv", [row for row in read_csv(folder / "split.csv") if row["split"] != "train"])
    return examine.audit_run(folder)


def test_a_split_that_cannot_be_read_is_damaged_and_not_said_to_be_missing(tmp_path):
    for text in ("id,group,label,split\n", "id,group,label,split\na,b,nv,Train\n"):
        folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
        (folder / "split.csv").write_text(text)
        found = {finding["rule"] for finding in examine.audit_run(folder)}
        assert "damaged-file" in found and "split-not-seen" not in found


@example("split-not-seen", False)
def split_is_there(tmp_path):
    return examine.audit_run(honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST))


def only(part, rows):
    names = ("labels", "logits", "probabilities", "ids", "groups")
    return replace(part, **{name: getattr(part, name)[rows] for name in names})


@example("absent-class", True)
def no_test_image_of_df(_):
    return judged(test=only(TEST, TEST.labels != 3))


@example("absent-class", True)
def no_training_image_of_df(tmp_path):
    return split(tmp_path, lambda part: part["train"][3].update(label="nv"))


@example("absent-class", False)
def one_test_image_of_df(_):
    return judged(test=only(TEST, (TEST.labels != 3) | (np.cumsum(TEST.labels == 3) == 1)))


# ---- scores that do not fit together


@example("test-above-val", True)
def the_test_images_were_in_training(_):
    return examine.audit_metrics({}, VAL, answered(TEST.labels))


@example("test-above-val", False)
def a_little_above(_):
    rng = np.random.default_rng(4)
    val, test = (answered(np.where(rng.random(len(p.labels)) < share, p.labels, NV), p)
                 for p, share in ((VAL, .60), (TEST, .65)))
    return examine.audit_metrics({}, val, test)


@example("test-above-val", False)
def a_handful_of_lesions(_):
    val, test = (only(p, slice(8)) for p in (answered(np.full(len(VAL.labels), NV), VAL), answered(TEST.labels)))
    return examine.audit_metrics({}, val, test)


@example("other-preprocessing", True)
def another_size_was_evaluated(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated={**RESULT, "input": {"size": 96}})
    return examine.audit_run(folder)


@example("other-preprocessing", True)
def validation_is_not_what_it_was(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    honest.write(folder, answered(np.where(np.arange(len(VAL.labels)) % 10, VAL.probabilities.argmax(1), 3), VAL), TEST,
                 history=False)
    return examine.audit_run(folder)


@example("other-preprocessing", False)
def the_same_size_and_nearly_the_same_validation(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated={**RESULT, "input": {"size": 64}})
    answers = VAL.probabilities.argmax(1)
    answers[:4] = (answers[:4] + 1) % 7  # as another machine may round
    honest.write(folder, answered(answers, VAL), TEST, history=False)
    return examine.audit_run(folder)


@example("two-figures", True)
def metrics_of_another_day(tmp_path):
    result = copy.deepcopy(RESULT)
    result["test"]["accuracy"]["value"] -= .03
    return examine.audit_run(honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated=result))


@example("two-figures", True)
def seeds_of_another_day(tmp_path):
    return over(tmp_path, "seeds.json", {"seeds": ["0"], "test": {"accuracy": {"values": [.5]}}})


@example("two-figures", False)
def seeds_of_today(tmp_path):
    return over(tmp_path, "seeds.json", {"seeds": ["0"], "test": {"accuracy": {"values": [1 - WRONG]}}})


@example("two-figures", False)
def the_same_figure_rounded(tmp_path):
    (tmp_path / "more.csv").write_text("model,accuracy\na,0.81\n", encoding="utf-8")
    return table(tmp_path, "calibration.csv", "model,seed,accuracy\na,seed_0,0.810379241516966\n")


def over(tmp_path, name, content):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated=RESULT)
    write_json(folder.parent / name, content)
    return examine.audit_study([folder])


# ---- what a reader should know


@example("teacher-below-student", True)
def a_weak_teacher(tmp_path):
    return study(tmp_path, ("teacher_a", 0, "teacher", VAL, TEST), ("b_kd", 0, "student", VAL, answered(TEST.labels)))


@example("teacher-below-student", False)
def a_strong_teacher(tmp_path):
    return study(tmp_path, ("teacher_a", 0, "teacher", VAL, answered(TEST.labels)), ("b_kd", 0, "student", VAL, TEST))


@example("no-interval", True)
def a_single_lesion(tmp_path):
    result = copy.deepcopy(RESULT)
    for metric in result["test"].values():
        metric.update(lo=None, hi=None)
    return judged(result)


@example("no-interval", False)
def intervals_beside_the_figures(tmp_path):
    return table(tmp_path, "students.csv", "model,accuracy_mean,accuracy_lo,accuracy_hi\na,.8,.7,.9\n")


@example("run-not-found", True)
def figures_without_predictions(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated=RESULT)
    (folder / "predictions/test.npz").unlink()
    return examine.audit_run(folder)


@example("run-not-found", True)
def a_seed_that_is_gone(tmp_path):
    return over(tmp_path, "seeds.json", {"seeds": ["0", "1"], "test": {"accuracy": {"values": [1 - WRONG, .7]}}})


@example("run-not-found", True)
def a_compared_model_that_is_gone(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated=RESULT)
    write_csv(tmp_path / "toy/comparison.csv", [{"reference": "teacher_x", "model": "a_kd", "metric": "accuracy",
                                                 "reference_value": .9, "model_value": f"{1 - WRONG:.6g}"}])
    return examine.audit_study([folder])


@example("run-not-found", False)
def a_compared_model_beside_the_one_that_is_asked_about(tmp_path):
    folder, other = (honest.write(tmp_path / f"toy/{model}/seed_0", VAL, TEST) for model in ("a_kd", "b_kd"))
    write_csv(tmp_path / "toy/comparison.csv", [{"reference": "b_kd", "model": "a_kd", "metric": "accuracy",
                                                 "reference_value": .9, "model_value": f"{1 - WRONG:.6g}"}])
    return examine.audit_study([folder])


@example("run-not-found", False)
def a_table_beside_its_runs(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST, evaluated=RESULT)
    (tmp_path / "calibration.csv").write_text(f"model,seed,accuracy\na_kd,seed_0,{1 - WRONG}\n", encoding="utf-8")
    return examine.audit_study([folder], [tmp_path])


@example("damaged-file", True)
def half_a_file(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    (folder / "metrics.json").write_text('{"test": ', encoding="utf-8")
    return examine.audit_run(folder)


@example("damaged-file", False)
def a_file_that_is_not_there(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    (folder / "config.yaml").unlink()
    return examine.audit_run(folder)


# ---- odd input

NAMES = ["config.yaml", "environment.json", "history.csv", "metrics.json", "split.csv", "robustness.csv",
         "predictions/val.npz", "predictions/test.npz", "../seeds.json", "../../comparison.csv"]
GARBAGE = [b"", b"\x00\xff\xfe", b"[]", b"{}", b"3", b"a: [", b'"x"', b"epoch\n1\n",
           b'{"test": 3, "data": 3, "input": 3}',
           b"epoch,loss,val_macro_f1,val_accuracy\n,1,nan,1\n", b"epoch,loss,val_macro_f1,val_accuracy\nx,1,inf,1\n1\n",
           b'{"test": {"accuracy": {"value": "x", "lo": [], "hi": {}}, "nll": 3, "ece": {"value": 1e999}}}',
           b'{"test": {"accuracy": {"value": 1e400}}, "confusion": [[1], [1, 2]], "class_names": [1]}',
           b'{"class_names": ["a", "b"], "confusion": [[0, 0], [0, 0]]}',
           b'{"calibration": {"bounds": [1], "temperature": {}}}',
           b'{"class_names": {}, "confusion": [[1]], "calibration": 3, "operating_points": [3, {"threshold": []}]}',
           b'{"operating_points": [{"name": [], "kind": 3, "threshold": {"mel": null}, "test": [], "chosen_on": 3}]}',
           b'{"operating_points": 3, "conventions": [], "calibration": {"bounds": 3, "temperature": "x"}}',
           b'{"seeds": 3, "test": []}', b'{"seeds": [[], {}], "test": {"a": {"values": [null, "x"]}, "b": 3}}',
           b"id,group,label,split,sha256\n1\n", b"id,group,label,split,sha256\na,,zz,nowhere,\n",
           b"model,metric,model_value,reference\n,,,\na,accuracy,x,\n../..,accuracy,1,../..\n",
           b"tag,accuracy\n,\nclean,x\n\xc3\xa4_1,1e999\n", b"corruption,severity,acc\njpeg,1,.5\njpeg,,.5\n"]


@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_file_is_a_traceback(tmp_path, name):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", *honest.pair(np.random.default_rng(0), 60), evaluated=RESULT)
    (folder / "split.csv").unlink()
    for garbage in GARBAGE:
        (folder / name).write_bytes(garbage)
        for finding in examine.audit_study([folder]):
            assert "Traceback" not in finding["saw"] and "\n" not in finding["saw"]


def test_hostile_names_are_text(tmp_path):
    names = ["<script>alert(1)</script>", "{x}%s\\", "class 3 (vasc)", "nv"]
    rng = np.random.default_rng(0)
    val, test = (honest.predictions(rng, 200, shares=dict.fromkeys(names, 1.0), part=part) for part in ("val", "test"))
    test = answered(np.zeros(200, int), test)
    folder = honest.write(tmp_path / "toy/{a}/seed_0", val, test, evaluated=honest.result(val, test))
    assert any("<script>alert(1)</script>" in finding["saw"] for finding in examine.audit_run(folder))


@pytest.mark.parametrize("call, error", [
    (lambda p: examine.audit_run(p / "nowhere"), "no such folder"),
    (lambda p: examine.audit_tables(p / "nowhere"), "no such folder"),
    (lambda p: examine.audit_tables(p), "no tables in"),
    (lambda p: examine.audit_paths([p]), "nothing to audit"),
    (lambda p: examine.audit_paths([p / "nowhere"]), "no such folder"),
    (lambda p: examine.audit_paths([p / "file"]), "is no folder"),
])
def test_a_folder_with_nothing_in_it_is_one_line(tmp_path, call, error):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=error) as caught:
        call(tmp_path)
    assert "\n" not in caught.value.message


def test_findings_come_worst_first_with_the_names_of_the_rules_that_were_applied(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, answered(np.full(len(TEST.labels), NV)))
    (folder / "split.csv").unlink()
    findings, applied = examine.apply_rules(examine.gather_cases([folder]))
    ranks = [rules.SEVERITIES.index(finding["severity"]) for finding in findings]
    assert ranks == sorted(ranks) and len(set(ranks)) > 1
    assert {finding["rule"] for finding in findings} <= set(applied) <= {rule.name for rule in rules.RULES}
    assert "constant-predictions" in applied and "same-curve" not in applied and "idle-corruption" not in applied


def test_an_empty_case_has_no_findings():
    assert examine.apply_rules([evidence.Case("a")])[0] == []


def test_a_predictions_file_is_evaluated_and_audited_with_every_note(tmp_path, capsys):
    import evaluate
    from kd.files import read_json, write_npz
    turned = -TEST.logits
    write_npz(tmp_path / "theirs.npz", labels=TEST.labels, logits=turned, class_names=np.array(TEST.class_names))
    evaluate.main([str(tmp_path / "theirs.npz"), "--out", str(tmp_path / "out"), "--audit", "--replicates", "100"])
    shown = capsys.readouterr().out
    assert "error: auroc-below-half" in shown and f"written: {tmp_path / 'out' / 'metrics.json'}" in shown
    assert [f for f in read_json(tmp_path / "out" / "metrics.json")["audit"] if f["rule"] == "auroc-below-half"]
    honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    with pytest.raises(UserError, match="--out takes the metrics of one predictions file"):
        evaluate.main([str(tmp_path / "toy"), str(tmp_path / "theirs.npz"), "--out", str(tmp_path / "x"), "--audit"])
    assert not (tmp_path / "x").exists()


def test_findings_about_a_predictions_file_name_no_files_of_a_run():
    for finding in judged(nll=9.0, ece=.5, ece_equal_mass=.5, test=answered((TEST.labels + 1) % 7)):
        assert "predictions/" not in finding["saw"] and "metrics.json" not in finding["saw"]


@pytest.mark.parametrize("key, value", [("assurance", "x"), ("assurance", 0), ("assurance", True), ("sensitivity", 2),
                                        ("risk", -1), ("bins", 2.5), ("bins", 10 ** 9), ("replicates", None)])
def test_settings_of_a_metrics_json_with_which_nothing_can_be_computed_are_named(key, value):
    written = copy.deepcopy(RESULT)
    written["conventions"][key] = value
    case = evidence.of_metrics(written, VAL, TEST)
    case.written = written
    finding = only_finding(examine.apply_rules([case])[0], "other-than-recomputed")
    assert f"nothing can be computed: {key} is {json.dumps(value)}" in finding["saw"]


def test_a_split_of_other_classes_is_described_without_the_notation_of_a_program(tmp_path):
    folder = honest.write(tmp_path / "toy/a_kd/seed_0", VAL, TEST)
    rows = [{**row, "id": ""} for row in read_csv(folder / "split.csv")]
    changed = next(row for row in rows if row["split"] == "test" and row["label"] == "nv")
    changed["label"] = "mel"
    write_csv(folder / "split.csv", rows)
    saw = only_finding(examine.audit_run(folder), "other-than-split")["saw"]
    assert not set("{}'[]") & set(saw) and f"{np.sum(TEST.labels == TEST.class_names.index('nv')):,} nv" in saw


def test_of_two_classes_of_one_size_the_majority_is_the_one_that_is_predicted():
    for predicted in (0, 1):
        counts = np.zeros((3, 3), int)
        counts[0, predicted] = counts[1, predicted] = 6
        case = evidence.Case("x", class_names=["a", "b", "c"], confusions={"test": counts})
        evidence._add_majority(case)
        assert case.majority == (case.class_names[predicted], 0.5, True)
