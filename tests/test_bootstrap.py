"""The bootstrap agrees with a plain loop over the same replicates; its intervals say what they promise."""

import time
import warnings

import numpy as np
import pytest

from kd import bootstrap, metrics

sk = pytest.importorskip("sklearn.metrics")

NAMES = ["a", "b", "c", "d"]
PROBABILISTIC = ("nll", "brier", *bootstrap.BIASED, "aurc")


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
    loop = {name: [] for name in measured if name not in PROBABILISTIC}
    for weights in bootstrap.resample(len(names), 60)[1:]:
        chosen = np.concatenate([np.flatnonzero(groups == name) for name, times in zip(names, weights)
                                 for _ in range(times)])
        y, p = labels[chosen], probabilities[chosen]
        guess, here = p.argmax(1), np.isin(range(4), y)
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            y, guess, labels=range(4), zero_division=0)
        areas = [sk.roc_auc_score(y == c, p[:, c]) if here[c] else np.nan for c in range(4)]
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
        expected = np.nanquantile(values, [.025, .975])
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
    always = bootstrap.constant(labels, 0, np.arange(10), 3, replicates=200)
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


def test_two_thousand_images_take_less_than_three_seconds():
    labels = np.random.default_rng(0).integers(7, size=2017)
    probabilities = metrics.softmax(np.random.default_rng(2).normal(size=(2017, 7)))
    groups = np.random.default_rng(1).integers(0, 1500, 2017).astype(str)
    start = time.perf_counter()
    bootstrap.measure(labels, probabilities, groups, list("abcdefg"))
    assert time.perf_counter() - start < 3
