"""Metrics agree with scikit-learn and with hand counts; the bootstrap with a plain loop."""

import time
import warnings

import numpy as np
import pytest

from kd import bootstrap, metrics

sk = pytest.importorskip("sklearn.metrics")


def draw(n, classes, seed, present=None, decimals=None):
    """Labels and probabilities; `present` limits the labels, `decimals` makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(present or np.arange(classes), n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += rng.uniform(0, 2)
    probabilities = metrics.softmax(logits)
    return labels, probabilities if decimals is None else np.round(probabilities, decimals)


CASES = [(1, 2, None), (2, 3, None), (7, 7, None), (40, 3, None), (500, 7, None), (300, 5, [0, 2]),
         (50, 4, [3]), (200, 2, None)]


@pytest.mark.parametrize("n, classes, present", CASES)
@pytest.mark.parametrize("decimals", [None, 1])
def test_every_metric_is_scikit_learns_where_that_is_defined(n, classes, present, decimals):
    for seed in range(3):
        labels, probabilities = draw(n, classes, seed, present, decimals)
        predicted = probabilities.argmax(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            counts = metrics.confusion(labels, predicted, classes)
            ours = {f.__name__: f(counts) for f in (
                metrics.accuracy, metrics.macro_f1, metrics.weighted_f1, metrics.balanced_accuracy,
                metrics.precision, metrics.recall, metrics.f1)}
            areas = metrics.auroc(labels, probabilities)
        every = np.arange(classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = {
                "accuracy": sk.accuracy_score(labels, predicted),
                "macro_f1": sk.f1_score(labels, predicted, average="macro"),
                "weighted_f1": sk.f1_score(labels, predicted, average="weighted"),
                "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted)}
            for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score),
                                ("f1", sk.f1_score)):
                theirs[name] = score(labels, predicted, labels=every, average=None, zero_division=np.nan)
            counted = sk.confusion_matrix(labels, predicted, labels=every)
        assert (counts == counted).all()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9, err_msg=name)
        for c in every:
            if 0 < (labels == c).sum() < n:
                assert abs(areas[c] - sk.roc_auc_score(labels == c, probabilities[:, c])) < 1e-9
            else:
                assert np.isnan(areas[c])


def test_auroc_with_image_weights_is_scikit_learns():
    labels, probabilities = draw(120, 4, 0, decimals=2)
    weights = np.random.default_rng(1).integers(0, 4, (12, 120))
    areas = metrics.auroc(labels, probabilities, weights)
    for b, c in np.ndindex(areas.shape):
        expected = sk.roc_auc_score(labels == c, probabilities[:, c], sample_weight=weights[b])
        assert abs(areas[b, c] - expected) < 1e-9


def test_auroc_does_not_depend_on_how_replicates_are_chunked(monkeypatch):
    labels, probabilities = draw(60, 3, 0, decimals=1)
    weights = np.random.default_rng(1).integers(0, 3, (17, 60))
    whole = metrics.auroc(labels, probabilities, weights)
    monkeypatch.setattr(metrics, "CHUNK", 100)
    np.testing.assert_array_equal(metrics.auroc(labels, probabilities, weights), whole)


def test_hand_counts():
    counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])  # the third class never occurs
    assert metrics.accuracy(counts) == pytest.approx(5 / 6)
    np.testing.assert_allclose(metrics.precision(counts), [1, 2 / 3, np.nan])
    np.testing.assert_allclose(metrics.recall(counts), [3 / 4, 1, np.nan])
    np.testing.assert_allclose(metrics.f1(counts), [6 / 7, 4 / 5, np.nan])
    assert metrics.macro_f1(counts) == pytest.approx((6 / 7 + 4 / 5) / 2)
    assert metrics.weighted_f1(counts) == pytest.approx((4 * 6 / 7 + 2 * 4 / 5) / 6)
    assert metrics.balanced_accuracy(counts) == pytest.approx(7 / 8)


def test_auroc_by_hand_counts_a_tie_half():
    labels = np.array([1, 1, 0, 0])
    scores = np.array([[.5, .5], [.1, .9], [.5, .5], [.8, .2]])
    # pairs (positive, negative) of class 1: tie, won, won, won
    np.testing.assert_allclose(metrics.auroc(labels, scores), [3.5 / 4, 3.5 / 4])


def test_undefined_is_nan_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = np.zeros((3, 3))
        for metric in (metrics.accuracy, metrics.macro_f1, metrics.weighted_f1,
                       metrics.balanced_accuracy, metrics.precision, metrics.recall, metrics.f1):
            assert np.isnan(metric(empty)).all()
        assert np.isnan(metrics.mean_defined(np.full((2, 3), np.nan))).all()


def test_replicates_are_scored_as_each_alone():
    stack = np.random.default_rng(0).integers(0, 5, (2, 6, 4, 4))
    for metric in (metrics.accuracy, metrics.macro_f1, metrics.weighted_f1,
                   metrics.balanced_accuracy, metrics.precision, metrics.recall, metrics.f1):
        for place in np.ndindex(2, 6):
            np.testing.assert_array_equal(metric(stack)[place], metric(stack[place]))


def test_softmax_is_stable_and_in_double_precision():
    np.testing.assert_allclose(metrics.softmax(np.log([[1, 2, 5]])), [[1 / 8, 2 / 8, 5 / 8]])
    np.testing.assert_array_equal(metrics.softmax([[1e4, -1e4], [-1e4, -1e4]]), [[1, 0], [.5, .5]])
    assert metrics.softmax(np.zeros((2, 3), np.float16)).dtype == np.float64


# ---- bootstrap

NAMES = ["a", "b", "c", "d"]


def study(n=150, lesions=60, seed=0):
    labels, probabilities = draw(n, 4, seed)
    groups = np.random.default_rng(seed + 1).integers(0, lesions, n)
    return labels, probabilities, np.char.add("lesion", groups.astype(str))


def test_intervals_equal_a_plain_loop_over_the_same_replicates():
    labels, probabilities, groups = study()
    labels[labels == 3] = 0
    labels[[5, 80]] = 3  # so rare that some replicates lack it
    measured = bootstrap.measure(labels, probabilities, groups, NAMES, replicates=60)
    names = sorted(set(groups.tolist()))
    loop = {name: [] for name in measured}
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
    for metric in measured.values():
        assert metric["lo"] <= metric["value"] <= metric["hi"]


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
    assert (bootstrap.measure(labels[order], probabilities[order], groups[order], NAMES, replicates=100)
            == bootstrap.measure(labels, probabilities, groups, NAMES, replicates=100))


def test_k_copies_in_one_group_weigh_as_one_image_and_ignoring_groups_narrows_the_interval():
    labels, probabilities, _ = study(n=80)
    ids = np.array([f"{i:03d}" for i in range(80)])
    once = bootstrap.measure(labels, probabilities, ids, NAMES, replicates=500)
    four = np.repeat(np.arange(80), 4)
    grouped = bootstrap.measure(labels[four], probabilities[four], ids[four], NAMES, replicates=500)
    alone = bootstrap.measure(labels[four], probabilities[four], np.arange(320), NAMES, replicates=500)
    for name in once:
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
    labels, probabilities = draw(2017, 7, 0)
    groups = np.random.default_rng(1).integers(0, 1500, 2017).astype(str)
    start = time.perf_counter()
    bootstrap.measure(labels, probabilities, groups, list("abcdefg"))
    assert time.perf_counter() - start < 3
