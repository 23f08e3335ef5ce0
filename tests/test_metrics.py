"""Metrics agree with scikit-learn and with hand counts."""

import warnings

import numpy as np
import pytest

from kd import metrics

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
                "macro_f1": sk.f1_score(labels, predicted, labels=np.unique(labels), average="macro"),
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


def test_macro_f1_has_one_denominator_whatever_is_predicted():
    labels = np.array([0, 0, 1, 1])
    one_wrong, of_an_absent_class = np.array([0, 1, 1, 1]), np.array([0, 2, 1, 1])
    first, second = (metrics.macro_f1(metrics.confusion(labels, p, 3)) for p in (one_wrong, of_an_absent_class))
    assert first == pytest.approx((2 / 3 + 4 / 5) / 2) and second == pytest.approx((2 / 3 + 1) / 2)


def test_the_area_of_a_class_is_the_mean_of_its_placements():
    labels, scores = np.random.default_rng(0).integers(4, size=90), np.random.default_rng(1).random((90, 4)).round(1)
    places = metrics.placements(labels, scores)
    for c in range(4):
        assert places[labels == c].mean() == pytest.approx(sk.roc_auc_score(labels == c, scores[:, c]))
    assert (metrics.placements(np.zeros(3, int), scores[:3]) == .5).all()


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


@pytest.mark.parametrize("n, classes, present", CASES)
def test_nll_and_brier_are_scikit_learns(n, classes, present):
    for seed in range(3):
        labels, probabilities = draw(n, classes, seed, present)
        expected = sk.log_loss(labels, probabilities, labels=np.arange(classes))
        assert metrics.nll(labels, probabilities) == pytest.approx(expected, abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class that is always there
            each = [sk.brier_score_loss(labels == k, probabilities[:, k]) for k in range(classes)]
        assert metrics.brier(labels, probabilities) == pytest.approx(sum(each), abs=1e-9)


def test_sure_and_wrong_is_the_worst_there_is_and_still_a_number():
    labels, wrong, right = np.array([0, 1]), np.array([[0., 1.], [1., 0.]]), np.eye(2)
    assert (metrics.brier(labels, wrong), metrics.brier(labels, right)) == (2, 0)
    assert metrics.nll(labels, wrong) == pytest.approx(sk.log_loss(labels, wrong)) and metrics.nll(labels, right) == 0
    assert metrics.nll([1], [[.5, .5]]) == pytest.approx(np.log(2))
