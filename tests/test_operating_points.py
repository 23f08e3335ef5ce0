"""Operating points keep on validation what they promise, and undefined rates are NaN."""

import itertools

import numpy as np
import pytest

import evaluate
from kd import metrics, operating_points
from kd.errors import UserError
from kd.estimate import wilson


def draw(n=300, classes=4, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.array([.6, .2, .15, .05])[:classes] / sum([.6, .2, .15, .05][:classes]))
    logits = rng.normal(size=(n, classes)) + np.log([.6, .2, .15, .05])[:classes]
    logits[np.arange(n), labels] += 1.5
    probabilities = metrics.softmax(logits)
    return labels, probabilities if decimals is None else np.round(probabilities, decimals)


# ---- one class against the rest

@pytest.mark.parametrize("sensitivity", [.5, .8, .9, .95])
@pytest.mark.parametrize("assurance", [.5, .8, .9, .99])
def test_the_threshold_is_the_tolerance_bound_of_wilks(sensitivity, assurance):
    stats = pytest.importorskip("scipy.stats")
    for m in (1, 5, 14, 45, 130, 1000, 40000):
        scores = np.random.default_rng(m).random(m)
        threshold, promised = operating_points.threshold_for(sensitivity, np.ones(m, bool), scores, assurance)
        r = int((scores <= threshold).sum())  # the threshold is the r-th lowest
        # P(the sensitivity in the population is below s) = P(Binomial(m, 1 - s) <= r - 1)
        if promised == sensitivity:
            assert stats.binom.cdf(r - 1, m, 1 - sensitivity) <= 1 - assurance + 1e-9
            assert r == m or stats.binom.cdf(r, m, 1 - sensitivity) > 1 - assurance - 1e-9
        else:
            assert r == 1 and promised < sensitivity and promised ** m == pytest.approx(1 - assurance)


def test_a_promise_is_kept_by_the_population_as_often_as_the_assurance_says():
    rng = np.random.default_rng(0)
    kept, at_half = 0, 0
    for _ in range(2000):
        scores = rng.random(60)
        kept += operating_points.threshold_for(.9, np.ones(60, bool), scores, .9)[0] <= .1
        at_half += operating_points.threshold_for(.9, np.ones(60, bool), scores, .5)[0] <= .1
    assert kept >= .885 * 2000 and .45 * 2000 < at_half < .7 * 2000  # steps of one positive make both a little larger


def test_images_of_one_lesion_promise_no_more_than_one_image():
    scores = np.random.default_rng(0).random(40)
    one = operating_points.threshold_for(.9, np.ones(40, bool), scores)
    four = operating_points.threshold_for(.9, np.ones(160, bool), np.repeat(scores, 4), groups=np.repeat(range(40), 4))
    assert one == four
    assert operating_points.threshold_for(.9, np.ones(160, bool), np.repeat(scores, 4))[0] > four[0]


def test_without_positives_there_is_no_threshold():
    assert np.isnan(operating_points.threshold_for(.9, [False, False], [.1, .2])).all()


def test_rates_are_scikit_learns_and_by_hand():
    sk = pytest.importorskip("sklearn.metrics")
    labels, probabilities = draw()
    positive, called = labels == 2, probabilities[:, 2] > .2
    rates = operating_points.binary(positive, called)
    assert rates["sensitivity"] == pytest.approx(sk.recall_score(positive, called), abs=1e-12)
    assert rates["specificity"] == pytest.approx(sk.recall_score(~positive, ~called), abs=1e-12)
    assert rates["ppv"] == pytest.approx(sk.precision_score(positive, called), abs=1e-12)
    assert rates["npv"] == pytest.approx(sk.precision_score(~positive, ~called), abs=1e-12)
    assert operating_points.binary([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == {
        "sensitivity": 2 / 3, "specificity": 1 / 2, "ppv": 2 / 3, "npv": 1 / 2}


def test_what_has_nothing_to_divide_by_is_nan_and_not_one():
    nothing_called = operating_points.binary([True, False], [False, False])
    assert nothing_called["sensitivity"] == 0 and np.isnan(nothing_called["ppv"])
    no_positive = operating_points.binary([False, False], [True, False])
    assert np.isnan(no_positive["sensitivity"]) and no_positive["ppv"] == 0
    no_negative = operating_points.binary([True, True], [True, True])
    assert np.isnan(no_negative["specificity"]) and np.isnan(no_negative["npv"])


def repeated(weights, *arrays):
    return [np.repeat(a, weights, axis=0) for a in arrays]


def test_weights_count_each_image_as_often_as_copies_would():
    labels, probabilities = draw(80, decimals=1)
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    weights = np.random.default_rng(1).integers(0, 4, (30, 80)).astype(np.uint8)
    weights[0] = 0
    weights[0, 5] = 1  # a single image is left
    areas = operating_points.aurc(correct, confidence, weights)
    for b, w in enumerate(weights):
        np.testing.assert_allclose(areas[b], operating_points.aurc(*repeated(w, correct, confidence)), atol=1e-12)


# ---- multipliers

def score(labels, probabilities, multipliers):
    predicted = (multipliers * probabilities).argmax(1)
    return metrics.macro_f1(metrics.confusion(labels, predicted, probabilities.shape[1]))


@pytest.mark.parametrize("seed", range(4))
def test_two_classes_reach_the_best_macro_f1_there_is(seed):
    labels, probabilities = draw(100, 2, seed)
    best_score = score(labels, probabilities, operating_points.macro_f1_multipliers(labels, probabilities))
    ratios = np.sort(probabilities[:, 0] / probabilities[:, 1])
    tried = [score(labels, probabilities, np.array([1, r])) for r in
             np.concatenate([[ratios[0] / 2], (ratios[1:] + ratios[:-1]) / 2, [ratios[-1] * 2]])]
    assert best_score == pytest.approx(max(tried), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_more_classes_are_at_least_as_good_as_a_grid(seed):
    labels, probabilities = draw(150, 3, seed)
    best_score = score(labels, probabilities, operating_points.macro_f1_multipliers(labels, probabilities))
    grid = np.geomspace(.1, 10, 13)
    tried = max(score(labels, probabilities, np.array([1, a, b])) for a, b in itertools.product(grid, grid))
    assert best_score >= tried - .01  # coordinate ascent is local: near enough, and usually above
    assert best_score >= score(labels, probabilities, np.ones(3))


def test_multipliers_stay_at_one_where_nothing_can_be_gained():
    labels = np.arange(30) % 3
    np.testing.assert_array_equal(operating_points.macro_f1_multipliers(labels, np.eye(3)[labels]), [1, 1, 1])
    multipliers = operating_points.macro_f1_multipliers(np.array([1]), np.array([[.2, .8]]))
    np.testing.assert_array_equal(multipliers, [1, 1])


def test_a_class_without_labels_keeps_its_multiplier_and_zero_probabilities_do_no_harm():
    labels, probabilities = draw(100, 3, 1)
    probabilities = np.hstack([probabilities, np.zeros((100, 1))])
    multipliers = operating_points.macro_f1_multipliers(labels, probabilities)
    assert multipliers[3] == 1 and np.isfinite(multipliers).all() and (multipliers > 0).all()
    probabilities[::9, 3] = .9  # it is even predicted
    assert operating_points.macro_f1_multipliers(labels, probabilities)[3] == 1


def test_prior_correction_is_bayes_rule_for_other_shares():
    support, target = np.array([80, 15, 5]), np.array([.2, .3, .5])
    rng = np.random.default_rng(0)
    likelihood = rng.random((50, 3))
    before, after = likelihood * support / support.sum(), likelihood * target
    before, after = before / before.sum(1, keepdims=True), after / after.sum(1, keepdims=True)
    turned = before * operating_points.prior_multipliers(support, target)
    np.testing.assert_allclose(turned / turned.sum(1, keepdims=True), after, atol=1e-12)
    np.testing.assert_allclose(operating_points.prior_multipliers([10, 10]), [1, 1])
    np.testing.assert_allclose(operating_points.prior_multipliers([9, 0, 1]), [1 / 2.7, 1, 1 / .3])


# ---- abstention

def brute_aurc(correct, confidence):
    """Mean over many orders of ties of the trapezoid over single images."""
    rng, areas = np.random.default_rng(0), []
    n = len(correct)
    for _ in range(4000 if len(set(confidence)) < n else 1):
        order = np.lexsort((rng.random(n), -np.asarray(confidence)))
        risk = np.cumsum(~np.asarray(correct)[order]) / np.arange(1, n + 1)
        areas.append(sum((a + b) / 2 for a, b in zip(risk, risk[1:])) / (n - 1))
    return np.mean(areas)


def test_published_risk_coverage():
    p, y = np.array([.1, .2, .3, .4, .2]), np.array([0, 0, 1, 1, 0])
    correct, confidence = (p > .5) == y, np.maximum(p, 1 - p)
    coverage, risk = operating_points.risk_coverage(correct, confidence)
    np.testing.assert_allclose(coverage, [.2, .4, .6, .8, 1])
    np.testing.assert_allclose(risk, [0, 0, 0, 1 / 4, 2 / 5])
    assert operating_points.aurc(correct, confidence) == pytest.approx(.1125, abs=1e-12)
    assert risk.mean() == pytest.approx(.13)  # Geifman & El-Yaniv's


def test_aurc_is_the_trapezoid_of_its_curve():
    for seed, decimals in itertools.product(range(5), (None, 1)):
        labels, probabilities = draw(90, seed=seed, decimals=decimals)
        correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
        coverage, risk = operating_points.risk_coverage(correct, confidence)
        area = ((risk[1:] + risk[:-1]) / 2 * np.diff(coverage)).sum() / (1 - 1 / 90)
        assert operating_points.aurc(correct, confidence) == pytest.approx(area, abs=1e-12)


def test_ties_count_as_the_mean_over_their_orders():
    confidence = [.9, .9, .7, .7, .7, .5]
    for correct in ([1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0]):
        correct = np.array(correct, dtype=bool)
        assert operating_points.aurc(correct, confidence) == pytest.approx(brute_aurc(correct, confidence), abs=.01)
    distinct = np.array([.9, .8, .7, .6, .5, .4])
    assert operating_points.aurc(correct, distinct) == pytest.approx(brute_aurc(correct, distinct), abs=1e-12)
    assert operating_points.aurc([True, False, False, True], [.5] * 4) == pytest.approx(.5)


def test_the_ends_of_aurc():
    assert operating_points.aurc([True] * 5, [.5, .6, .7, .8, .9]) == 0
    assert operating_points.aurc([False] * 5, [.5, .6, .7, .8, .9]) == pytest.approx(1)
    assert np.isnan(operating_points.aurc([True], [.9]))


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3])
def test_coverage_at_a_risk_is_the_largest_whose_upper_bound_keeps_it(risk):
    for seed in range(4):
        labels, probabilities = draw(200, seed=seed, decimals=2)
        correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
        tried = []
        for threshold in np.unique(confidence):
            answered = confidence >= threshold
            upper = wilson((~correct[answered]).mean(), answered.sum(), 1.2815515655)[1]  # 90%, one-sided
            tried.append((answered.mean(), threshold, upper))
        possible = [(coverage, threshold) for coverage, threshold, upper in tried if upper <= risk]
        expected = max(possible, default=(0, np.inf))
        assert operating_points.coverage_at(risk, correct, confidence) == pytest.approx(expected)


def test_a_risk_that_cannot_be_kept_is_answered_by_silence():
    coverage, threshold = operating_points.coverage_at(.1, [False, False, True], [.9, .8, .7])
    assert (coverage, threshold) == (0, float("inf"))
    assert np.isnan(operating_points.selective([True], [.9], threshold)["risk"])


@pytest.mark.parametrize("option, values", [
    ("--assurance", ("0", "1", "1e-300", "0.9999999999999999", "nan", "-1", "x")),
    ("--bins", ("0", "1", "1001", "1000000000", "nan", "1e3"))])
def test_promises_and_bins_that_cannot_be_computed_are_refused_in_one_line(option, values):
    for value in values:
        with pytest.raises(UserError, match=f"argument {option}: '{value}' is not a") as error:
            evaluate.parse(["test.npz", f"{option}={value}"])
        assert "\n" not in error.value.message


@pytest.mark.parametrize("assurance", [.5, .999])
@pytest.mark.parametrize("sensitivity", [0, 1e-300, .5, 1 - 1e-16, 1])
def test_every_promise_that_can_be_asked_for_has_a_threshold(assurance, sensitivity):
    scores = np.linspace(.1, .9, 30)
    threshold, promised = operating_points.threshold_for(sensitivity, np.ones(30, bool), scores, assurance)
    assert threshold in scores and 0 <= promised <= sensitivity
    for risk in (0, .5, 1):
        coverage, _ = operating_points.coverage_at(risk, scores > .3, scores, assurance)
        assert 0 <= coverage <= 1
