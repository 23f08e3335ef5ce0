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


def test_intervals_equal_a_plain_loop_over_the_same_replicates():
    labels, probabilities, groups = study()
    labels[labels == 3] = 0
    labels[[5, 80]] = 3  # so rare that some replicates lack it
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=60)
    names = sorted(set(groups.tolist()))
    alike = {"nll": metrics.nll, "brier": metrics.brier, "ece": calibration.ece, "mce": calibration.mce,
             "ece_classwise": calibration.ece_classwise, "rms_ce_debiased": calibration.rms_ce_debiased}
    edges = [part[-1] for part in np.array_split(np.sort(probabilities.max(1)), calibration.BINS)]
    loop = {name: [] for name in measured}
    for weights in bootstrap.resample(len(names), 60)[1:]:
        chosen = np.concatenate([np.flatnonzero(groups == name) for name, times in zip(names, weights)
                                 for _ in range(times)])
        y, p = labels[chosen], probabilities[chosen]
        guess, here = p.argmax(1), np.isin(range(4), y)
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            y, guess, labels=range(4), zero_division=0)
        areas = [sk.roc_auc_score(y == c, p[:, c]) if here[c] else np.nan for c in range(4)]
        for name, metric in alike.items():
            loop[name].append(metric(y, p))
        loop["aurc"].append(operating_points.aurc(guess == y, p.max(1)))
        gaps = [(p.max(1) - (guess == y))[np.searchsorted(edges, p.max(1)) == k].sum() for k in range(len(edges))]
        loop["ece_equal_mass"].append(np.abs(gaps).sum() / len(y))
        loop["accuracy"].append(sk.accuracy_score(y, guess))
        loop["weighted_f1"].append((f1 * support).sum() / len(y))
        loop["macro_f1"].append(f1.mean() if here.all() else np.nan)
        loop["balanced_accuracy"].append(recall.mean() if here.all() else np.nan)
        loop["macro_auroc"].append(np.mean(areas))
        for c, name in enumerate(NAMES):
            loop[f"auroc/{name}"].append(areas[c])
            loop[f"f1/{name}"].append(f1[c] if here[c] else np.nan)
            loop[f"recall/{name}"].append(recall[c] if here[c] else np.nan)
            defined = here[c] and c in guess
            loop[f"precision/{name}"].append(precision[c] if defined else np.nan)
    assert measured["macro_f1"]["undefined"] > 3
    for name, values in loop.items():
        metric = measured[name]
        assert (metric["replicates"], metric["undefined"]) == (60, np.isnan(values).sum()), name
        lowered = bootstrap.unbias(np.append(metric["value"], values), bootstrap.biased(name))[1:]
        expected = np.nanquantile(lowered, [.025, .975])
        np.testing.assert_allclose([metric["lo"], metric["hi"]], expected, rtol=0, atol=1e-9,
                                   err_msg=name)


def test_values_are_those_of_the_sample_itself():
    labels, probabilities, groups = study()
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    predicted = probabilities.argmax(1)
    assert measured["macro_f1"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro"))
    assert measured["macro_auroc"]["value"] == pytest.approx(
        sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))
    for name, metric in measured.items():
        assert metric["lo"] <= metric["value"] <= metric["hi"] or bootstrap.biased(name)


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


def test_the_order_of_the_images_changes_nothing():
    labels, probabilities, groups = study()
    order = np.random.default_rng(9).permutation(len(labels))
    shuffled = bootstrap.measure(labels[order], probabilities[order], groups[order], NAMES, replicates=100)
    for name, metric in bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100).items():
        assert shuffled[name] == pytest.approx(metric, abs=1e-12), name


def test_k_copies_in_one_group_weigh_as_one_image_and_ignoring_groups_narrows_the_interval():
    labels, probabilities, _ = study(n=80)
    ids = np.array([f"{i:03d}" for i in range(80)])
    once = bootstrap.measure(labels, probabilities, ids, NAMES, replicates=500)
    four = np.repeat(np.arange(80), 4)
    grouped = bootstrap.measure(labels[four], probabilities[four], ids[four], NAMES, replicates=500)
    alone = bootstrap.measure(labels[four], probabilities[four], np.arange(320), NAMES, replicates=500)
    for name in once.keys() - {"ece_equal_mass", "rms_ce_debiased", "aurc"}:  # these know how many images there are
        for end in ("value", "lo", "hi"):
            assert grouped[name][end] == pytest.approx(once[name][end], abs=1e-12), name
    for name in ("accuracy", "macro_f1", "macro_auroc"):
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
    labels = np.array([0] * 6 + [1] * 3 + [2])
    always = bootstrap.constant(labels, 0, 3, np.arange(10), bootstrap.resample(10, 200))
    assert always["accuracy"]["value"] == pytest.approx(.6)
    assert always["macro_f1"]["value"] == pytest.approx(.75 / 3)
    assert always["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert always["accuracy"]["undefined"] == 0 < always["macro_f1"]["undefined"]


def test_a_class_missing_from_the_split_is_undefined_and_harms_no_other_figure():
    labels, probabilities, groups = study()
    labels[labels == 2] = 0
    probabilities = probabilities * [1, 1, 0, 1]  # nor is it predicted
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100)
    for name in ("f1/c", "recall/c", "precision/c", "auroc/c"):
        assert np.isnan([measured[name][k] for k in ("value", "lo", "hi")]).all()
        assert measured[name]["undefined"] == 100
    assert measured["macro_f1"]["undefined"] == 0 and measured["macro_f1"]["hi"] > 0


def test_one_cluster_or_one_class_gives_values_and_no_false_certainty():
    labels, probabilities, groups = study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = bootstrap.measure(labels, probabilities, ["x"] * len(labels), NAMES, replicates=100)
        image = bootstrap.measure(labels[:1], probabilities[:1], groups[:1], NAMES, replicates=100)
        pure = bootstrap.measure(labels * 0, probabilities, groups, NAMES, replicates=100)
    assert single["accuracy"]["value"] > 0 and np.isnan(single["accuracy"]["lo"])
    assert single["accuracy"]["undefined"] == image["accuracy"]["undefined"] == 100
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
    names = ["nll", "brier", *bootstrap.BIASED, "aurc"]
    assert both == {**raw, **{f"{name}_calibrated": alone[name] for name in names}}


def test_an_interval_of_a_calibration_error_is_lowered_by_its_bias_and_no_further_than_zero():
    values = np.append(.05, np.linspace(.05, .09, 401))  # the mean of the replicates is .02 too high
    twice = bootstrap.interval(values, corrected=2)
    np.testing.assert_allclose([twice["lo"], twice["hi"]], np.quantile(values[1:], [.025, .975]) - .04)
    assert bootstrap.interval(values - .03, corrected=2)["lo"] == 0
    once = bootstrap.interval(values, corrected=1)
    np.testing.assert_allclose((once["lo"] + once["hi"]) / 2, .05)
    assert [bootstrap.biased(name) for name in ("ece", "mce_calibrated", "rms_ce_debiased", "accuracy")] == [2, 2, 1, 0]


def test_intervals_of_calibration_errors_hold_the_truth_where_percentiles_do_not():
    rng = np.random.default_rng(0)

    def draw(n):
        logits = rng.normal(size=(n, 3)) * 2
        labels = (metrics.softmax(logits).cumsum(1) < rng.random((n, 1))).sum(1)
        return labels, metrics.softmax(logits * 2)  # too sure by a temperature of 2

    names = ("ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased")
    truth = {name: getattr(calibration, name)(*draw(400000)) for name in names}
    covered = dict.fromkeys([(name, corrected) for name in names for corrected in (False, True)], 0)
    for trial in range(60):
        labels, probabilities = draw(500)
        index, weights = np.arange(500), bootstrap.resample(500, 200, trial)
        values = bootstrap.replicate(labels, probabilities, index, weights, ["a", "b", "c"])
        for name, corrected in covered:
            metric = bootstrap.interval(values[name], corrected=corrected * bootstrap.biased(name))
            covered[name, corrected] += metric["lo"] <= truth[name] <= metric["hi"]
    assert all(covered[name, True] >= 50 for name in names), covered
    assert covered["ece_classwise", False] < 40, covered


# ---- without clusters, and over seeds

def test_a_confusion_matrix_alone_gives_the_intervals_of_its_images():
    labels, probabilities, _ = study(n=400)
    predicted = probabilities.argmax(1)
    alone = bootstrap.from_confusion(metrics.confusion(labels, predicted, 4))
    images = bootstrap.measure(labels, probabilities, np.arange(400), NAMES)
    assert set(alone) == {"accuracy", "macro_f1", "weighted_f1", "balanced_accuracy"}
    for name, metric in alone.items():
        assert metric["value"] == pytest.approx(images[name]["value"], abs=1e-12)
        for end in ("lo", "hi"):  # other draws of the same distribution
            assert metric[end] == pytest.approx(images[name][end], abs=.006), name


def test_one_seed_tells_nothing_about_seeds():
    alone = bootstrap.over_seeds(np.array([[.8, .7, .9]]))
    assert (alone["mean"], alone["values"]) == (.8, [.8]) and np.isnan([alone[k] for k in ("sd", "lo", "hi")]).all()


def test_over_seeds_carries_images_and_seeds():
    rng = np.random.default_rng(0)
    images = .03 * rng.normal(size=4001)
    images[0] = 0
    same = bootstrap.over_seeds(.8 + np.tile(images, (3, 1)))  # seeds that agree: the images' interval
    expected = np.quantile(.8 + images[1:], [.025, .975])
    np.testing.assert_allclose([same["lo"], same["hi"]], expected, atol=1e-12)
    assert same["sd"] == pytest.approx(0)
    seeds = np.array([.78, .80, .83])
    apart = bootstrap.over_seeds(np.tile(seeds[:, None], (1, 1001)))  # images that tell all: Student's t
    assert (apart["mean"], apart["sd"]) == pytest.approx((seeds.mean(), seeds.std(ddof=1)))
    half = 4.302653 * seeds.std(ddof=1) / 3 ** .5
    np.testing.assert_allclose([apart["lo"], apart["hi"]], [seeds.mean() - half, seeds.mean() + half], atol=.005)
    both = bootstrap.over_seeds(seeds[:, None] + images)
    assert both["hi"] - both["lo"] > max(same["hi"] - same["lo"], apart["hi"] - apart["lo"])


def test_over_seeds_of_a_calibration_error_averages_before_it_corrects():
    rng = np.random.default_rng(0)
    values = np.abs(.07 + .01 * rng.normal(size=(3, 2001)))
    values[:, 0] = .05
    summary = bootstrap.over_seeds(values, corrected=2)
    np.testing.assert_allclose((summary["lo"] + summary["hi"]) / 2, .03, atol=.001)


def test_undefined_replicates_are_left_out_of_the_interval_over_seeds():
    values = np.array([[.5, np.nan, .4, .6], [.5, .9, .4, .6]])
    assert .59 < bootstrap.over_seeds(values)["hi"] <= .6
    assert np.isnan(bootstrap.over_seeds(np.full((2, 4), np.nan))["mean"])


@pytest.mark.slow
def test_the_benchmark_ends_in_ratios_that_keep_the_promise():
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "bootstrap.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert ratios["plain"] >= 800 and ratios["auroc"] >= 50 and ratios["five_models_seconds"] < 3
