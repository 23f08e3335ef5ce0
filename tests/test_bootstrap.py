"""The bootstrap agrees with a plain loop over the same replicates; its intervals say what they promise."""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from kd import bootstrap, calibration, metrics, operating_points

sk = pytest.importorskip("sklearn.metrics")

NAMES = ["a", "b", "c", "d"]


def study(n=150, lesions=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    logits = rng.normal(size=(n, 4))
    logits[np.arange(n), labels] += rng.uniform(0, 2)
    probabilities = metrics.softmax(logits)
    groups = np.random.default_rng(seed + 1).integers(0, lesions, n)
    return labels, probabilities, np.char.add("lesion", groups.astype(str))


def draws_of(labels, groups, classes=4, replicates=400):
    index, _ = bootstrap.clusters(groups)
    return bootstrap.Draws(np.asarray(labels), index, classes, replicates)


def test_replicates_without_smoothing_are_a_plain_loop_over_the_same_draws(monkeypatch):
    monkeypatch.setattr(bootstrap, "PSEUDO", 0)
    labels, probabilities, groups = study()
    draws = draws_of(labels, groups, replicates=40)
    estimates = bootstrap.replicate(probabilities, draws, NAMES)
    names = sorted(set(groups.tolist()))
    loop = {name: [] for name in ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "macro_auroc", "nll",
                                  "brier", "aurc", *(f"{m}/{c}" for m in ("f1", "recall", "auroc") for c in NAMES))}
    for weights in draws.weights[1:]:
        chosen = np.concatenate([np.flatnonzero(groups == name) for name, times in zip(names, weights)
                                 for _ in range(times)])
        y, p = labels[chosen], probabilities[chosen]
        guess = p.argmax(1)
        _, recall, f1, support = sk.precision_recall_fscore_support(y, guess, labels=range(4), zero_division=0)
        areas = [sk.roc_auc_score(y == c, p[:, c]) for c in range(4)]
        loop["nll"].append(metrics.nll(y, p))
        loop["brier"].append(metrics.brier(y, p))
        loop["aurc"].append(operating_points.aurc(guess == y, p.max(1)))
        loop["accuracy"].append(sk.accuracy_score(y, guess))
        loop["weighted_f1"].append((f1 * support).sum() / len(y))
        loop["macro_f1"].append(f1.mean())
        loop["balanced_accuracy"].append(recall.mean())
        loop["macro_auroc"].append(np.mean(areas))
        for c, name in enumerate(NAMES):
            for metric, value in (("f1", f1[c]), ("recall", recall[c]), ("auroc", areas[c])):
                loop[f"{metric}/{name}"].append(value)
    for name, values in loop.items():
        np.testing.assert_allclose(estimates[name].drawn, values, rtol=0, atol=1e-9, err_msg=name)
        assert estimates[name].center == pytest.approx(estimates[name].value, abs=1e-12)


def test_values_are_those_of_the_sample_itself_and_lie_in_their_intervals():
    labels, probabilities, groups = study()
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    predicted = probabilities.argmax(1)
    assert measured["macro_f1"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro"))
    assert measured["macro_auroc"]["value"] == pytest.approx(
        sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))
    for name, metric in measured.items():
        assert metric["lo"] <= metric["value"] <= metric["hi"] or metric["withheld"], name


def test_the_centre_of_the_smoothed_sample_is_what_its_replicates_scatter_around():
    labels, probabilities, groups = study(n=600, lesions=300)
    draws = draws_of(labels, groups, replicates=4000)
    sample, center, drawn = draws.confusions(probabilities.argmax(1))
    np.testing.assert_array_equal(sample, metrics.confusion(labels, probabilities.argmax(1), 4))
    np.testing.assert_allclose(drawn.mean(0), center, rtol=.05, atol=.15)
    np.testing.assert_allclose(center.sum(1), sample.sum(1))
    areas, center, drawn = draws.areas(probabilities)
    np.testing.assert_allclose(areas, metrics.auroc(labels, probabilities))
    np.testing.assert_allclose(drawn.mean(0), center, atol=.01)


def test_a_class_that_is_always_right_may_be_missed_by_the_next_lesion():
    labels = np.repeat([0, 1], [200, 22])
    sure = np.eye(2)[labels] * .9 + .05
    measured = bootstrap.measure(labels, sure, np.arange(222), ["a", "b"])
    lo, hi = (measured["recall/b"][bound] for bound in ("lo", "hi"))
    assert hi == 1 and .8 < lo < .9  # the exact lower bound of 22 of 22 is .846, that of Wilson .851
    wrong = sure[:, ::-1]
    assert .1 < bootstrap.measure(labels, wrong, np.arange(222), ["a", "b"])["recall/b"]["hi"] < .2


def test_a_rate_of_all_or_none_is_that_of_wilson_with_lesions_for_images():
    labels = np.zeros(44, int)
    draws = draws_of(labels, np.arange(44) // 2, 2, 4000)
    all_right = draws.rate(np.ones(44, bool)).metric()
    assert all_right["value"] == all_right["hi"] == 1 and all_right["lo"] == pytest.approx(.851, abs=.02)
    none = draws.rate(np.zeros(44, bool)).metric()
    assert none["value"] == none["lo"] == 0 and none["hi"] == pytest.approx(1 - all_right["lo"], abs=.02)
    assert np.isnan(draws.rates({"x": (labels == 0, labels == 1)})["x"].metric()["value"])


def test_below_five_lesions_nothing_is_said_about_a_class():
    labels, probabilities, groups = study()
    labels[labels == 3] = 0
    labels[:8] = 3
    groups[:8] = np.repeat(["p", "q", "r", "s"], 2)
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    for name in ("recall/d", "f1/d", "auroc/d"):
        assert measured[name]["withheld"] == "too few independent images (4)" and np.isnan(measured[name]["lo"])
    assert np.isfinite(measured["macro_f1"]["lo"]) and np.isfinite(measured["recall/a"]["lo"])


def test_every_replicate_has_every_class():
    labels = np.r_[np.zeros(50, int), 1]
    draws = draws_of(labels, np.arange(51), 2, 500)
    assert (draws.weights[:, 50] > 0).all() and (draws.drawn >= 1).all()


def test_a_replicate_draws_as_many_clusters_as_there_are_each_equally_often():
    weights = bootstrap.resample(50, 2000)
    assert (weights[0] == 1).all() and (weights.sum(1) == 50).all()
    # A cluster's total is binomial(2000 * 50, 1 / 50): mean 2000, standard deviation 44.
    assert abs(weights[1:].sum(0).astype(int) - 2000).max() < 200
    assert weights[1:].var() == pytest.approx(1 - 1 / 50, rel=.05)


def test_replicates_are_reproducible_and_more_of_them_begin_with_the_same():
    np.testing.assert_array_equal(bootstrap.resample(30, 50), bootstrap.resample(30, 90)[:51])
    assert (bootstrap.resample(30, 50, seed=1) != bootstrap.resample(30, 50)).any()
    first, second = (bootstrap.measure(*study(), NAMES, replicates=100) for _ in range(2))
    assert first == second


def test_the_order_of_the_images_changes_next_to_nothing():
    labels, probabilities, groups = study()
    order = np.random.default_rng(9).permutation(len(labels))
    shuffled = bootstrap.measure(labels[order], probabilities[order], groups[order], NAMES)
    for name, metric in bootstrap.measure(labels, probabilities, groups, NAMES).items():
        assert shuffled[name]["value"] == pytest.approx(metric["value"], abs=1e-12, nan_ok=True), name
        for bound in ("lo", "hi"):  # other images stand for those that were not seen
            assert shuffled[name][bound] == pytest.approx(metric[bound], abs=.01, nan_ok=True), name


def test_k_copies_in_one_group_weigh_as_one_image_and_ignoring_groups_narrows_the_interval():
    labels, probabilities, _ = study(n=80)
    ids = np.array([f"{i:03d}" for i in range(80)])
    once = bootstrap.measure(labels, probabilities, ids, NAMES)
    four = np.repeat(np.arange(80), 4)
    grouped = bootstrap.measure(labels[four], probabilities[four], ids[four], NAMES)
    alone = bootstrap.measure(labels[four], probabilities[four], np.arange(320), NAMES)
    for name in ("accuracy", "macro_f1", "weighted_f1", "recall/a", "nll", "brier", "macro_auroc"):
        for end in ("value", "lo", "hi"):
            assert grouped[name][end] == pytest.approx(once[name][end], abs=.02), name
        narrow, wide = (m[name]["hi"] - m[name]["lo"] for m in (alone, grouped))
        assert .35 < narrow / wide < .7, name  # a half, since there are four times as many


def test_two_models_meet_the_same_replicates():
    labels, _, groups = study()
    seen = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(len(labels))
        index, count = bootstrap.clusters(groups[order])
        support = np.zeros((count, 4))
        np.add.at(support, (index, labels[order]), 1)
        seen.append(bootstrap.sums(bootstrap.resample(count, 200), support))
    np.testing.assert_array_equal(*seen)


def test_always_one_class_scores_its_share():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    estimates = bootstrap.constant(0, draws_of(labels, np.arange(100), 3))
    always = {name: estimate.metric() for name, estimate in estimates.items()}
    assert always["accuracy"]["value"] == pytest.approx(.6)
    assert always["macro_f1"]["value"] == pytest.approx(.75 / 3)
    assert always["balanced_accuracy"] == pytest.approx({bound: 1 / 3 for bound in ("value", "lo", "hi")})
    assert always["macro_f1"]["hi"] - always["macro_f1"]["lo"] < .1


def test_a_class_missing_from_the_split_is_undefined_and_harms_no_other_figure():
    labels, probabilities, groups = study()
    labels[labels == 2] = 0
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    for name in ("f1/c", "recall/c", "auroc/c"):
        assert np.isnan([measured[name][k] for k in ("lo", "hi")]).all()
    assert np.isfinite([measured["macro_f1"][k] for k in ("value", "lo", "hi")]).all()


def test_one_more_answer_of_a_class_that_the_test_set_lacks_moves_macro_f1_by_one_answer():
    labels, probabilities, groups = study(n=400, lesions=300)
    labels[labels == 2] = 0
    draws, answers = draws_of(labels, groups), probabilities.argmax(1)
    answers[answers == 2] = 0
    wrong = np.flatnonzero(answers != labels)[0]
    one_more = answers.copy()
    one_more[wrong] = 2
    before, after = (bootstrap.overall(a, draws)["macro_f1"] for a in (answers, one_more))
    assert 0 <= after.value - before.value < .005
    metric = after.minus(before).metric()
    assert metric["lo"] <= 0 and metric["hi"] - metric["lo"] < .03


def test_one_cluster_or_one_class_gives_values_and_no_false_certainty():
    labels, probabilities, groups = study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = bootstrap.measure(labels, probabilities, ["x"] * len(labels), NAMES, replicates=100)
        image = bootstrap.measure(labels[:1], probabilities[:1], groups[:1], NAMES, replicates=100)
        pure = bootstrap.measure(labels * 0, probabilities, groups, NAMES, replicates=100)
    assert single["accuracy"]["value"] > 0
    for measured in (single, image):
        assert np.isnan(measured["accuracy"]["lo"])
        assert measured["accuracy"]["withheld"] == "too few independent images (1)"
    assert np.isnan(pure["macro_auroc"]["value"]) and pure["accuracy"]["hi"] > 0


def test_two_thousand_images_take_less_than_three_seconds_of_a_processor():
    labels = np.random.default_rng(0).integers(7, size=2017)
    probabilities = metrics.softmax(np.random.default_rng(2).normal(size=(2017, 7)))
    groups = np.random.default_rng(1).integers(0, 1500, 2017).astype(str)
    start = time.process_time()
    bootstrap.measure(labels, probabilities, groups, list("abcdefg"))
    assert time.process_time() - start < 3


def test_calibrated_probabilities_are_measured_beside_the_raw():
    labels, probabilities, groups = study()
    calibrated = metrics.softmax(np.log(probabilities) / 2)
    both = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100, calibrated=calibrated)
    raw = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    alone = bootstrap.measure(labels, calibrated, groups, NAMES, replicates=100)
    names = ["nll", "brier", "aurc", "ece", "ece_equal_mass", "ece_classwise", "mce", "rms_ce_debiased"]
    expected = {**raw, **{f"{name}_calibrated": alone[name] for name in names}}
    assert both.keys() == expected.keys()
    for name in both:
        assert both[name] == pytest.approx(expected[name], nan_ok=True), name


def test_intervals_hold_the_truth_where_percentiles_of_a_plain_bootstrap_do_not():
    rng = np.random.default_rng(0)
    shares = np.array([.75, .2, .03, .02])

    def draw(n):
        labels = rng.choice(4, n, p=shares)
        logits = rng.normal(size=(n, 4))
        logits[np.arange(n), labels] += 2
        return labels, logits.argmax(1)

    truth = metrics.recall(metrics.confusion(*draw(400000), 4))
    covered, plain, trials = 0, 0, 150
    for _ in range(trials):
        labels, answers = draw(100)
        present = np.bincount(labels, minlength=4) > 0
        metric = bootstrap.overall(answers, draws_of(labels, np.arange(100)))["balanced_accuracy"].metric()
        covered += metric["lo"] <= truth[present].mean() <= metric["hi"]
        counts = bootstrap.confusions(labels, answers, 4, np.arange(100), bootstrap.resample(100, 200))
        lo, hi = np.nanquantile(metrics.balanced_accuracy(counts), [.025, .975])
        plain += lo <= truth[present].mean() <= hi
    assert plain < .85 * trials and .92 * trials <= covered <= .995 * trials, (plain, covered)


def test_p_of_no_difference_is_below_five_percent_about_that_often():
    small, trials = 0, 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, 150, p=[.7, .25, .05])
        common = rng.normal(size=(150, 3))
        common[np.arange(150), labels] += 1.5
        answers = [(common + .7 * rng.normal(size=(150, 3))).argmax(1) for _ in range(2)]
        draws = draws_of(labels, np.arange(150), 3, 200)
        a, b = (bootstrap.overall(answer, draws)["macro_f1"] for answer in answers)
        small += b.minus(a).p() < .05
    assert small <= 18, small  # of 200; 10 expected, at most 12 promised, and the standard error is 3


@pytest.mark.slow
def test_the_benchmark_ends_in_ratios_that_keep_the_promise():
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "bootstrap.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert ratios["macro_f1"] >= 50 and ratios["auroc"] >= 50 and ratios["five_models_seconds"] < 6


def test_losses_of_few_right_answers_have_no_interval_and_one_cluster_no_debiased_error():
    labels, probabilities = np.zeros(60, int), np.tile([1e-4, 1 - 1e-4], (60, 1))
    measured = bootstrap.measure(labels, probabilities, np.arange(60), ["a", "b"], 200)
    for name in ("nll", "brier", "aurc", "rms_ce_debiased"):
        assert measured[name]["withheld"] == "too few right answers (0)" and np.isnan(measured[name]["lo"])
    measured = bootstrap.measure(labels, probabilities, np.zeros(60), ["a", "b"], 200)
    assert np.isnan(measured["rms_ce_debiased"]["value"]) and measured["ece"]["value"] > .9


def test_what_no_sample_can_change_has_no_interval_and_a_rule_keeps_its_own():
    labels = np.repeat([0, 1, 2], 20)
    equal = bootstrap.measure(labels, np.full((60, 3), 1 / 3), np.arange(60), ["a", "b", "c"], 200)
    for name in ("macro_auroc", "auroc/b", "nll", "brier"):
        assert equal[name]["withheld"] == bootstrap.FIXED and np.isnan([equal[name]["lo"], equal[name]["hi"]]).all()
    assert equal["accuracy"]["lo"] < 1 / 3 < equal["accuracy"]["hi"]
    sure = np.eye(3)[np.arange(60) % 3] * .9 + .1 / 3
    one_class = bootstrap.measure(labels * 0, sure, np.arange(60), ["a", "b", "c"], 200)
    assert one_class["precision/a"]["withheld"] == bootstrap.FIXED and one_class["recall/a"]["lo"] < 1 / 3


def test_a_debiased_error_of_one_cluster_is_undefined_and_so_is_what_is_made_of_it():
    labels = np.zeros(40, int)
    probabilities = np.tile([.6, .4], (40, 1))
    error = calibration.debiased(labels, probabilities, np.zeros(40, int))
    sound = calibration.debiased(labels, probabilities, np.arange(40))
    assert np.isnan(error.value) and sound.value == pytest.approx(.4, abs=.05)
    for undefined in (error, error.minus(error), calibration.DebiasedError.mean([error, error])):
        metric = undefined.metric()
        assert np.isnan([undefined.value, undefined.p(), metric["value"], metric["lo"], metric["hi"]]).all()
    assert np.isnan(error.over(error).value) and np.isfinite(sound.p())
