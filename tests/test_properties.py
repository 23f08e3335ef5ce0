"""What no metric may depend on, and where each must stay, on whatever hypothesis thinks of."""

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

from kd import calibration, metrics, operating_points, paired  # noqa: E402

CALIBRATION = (calibration.ece, calibration.ece_equal_mass, calibration.ece_classwise, calibration.mce,
               calibration.rms_ce_debiased)
BY_CLASS = (metrics.recall, metrics.precision, metrics.f1)
OVERALL = (metrics.accuracy, metrics.macro_f1, metrics.weighted_f1, metrics.balanced_accuracy)


@st.composite
def predictions(draw, ties=True):
    """Labels [n] and probabilities [n, C]; coarse ones are full of ties, zeros and ones."""
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    labels = rng.integers(draw(st.integers(1, classes)), size=n)
    probabilities = rng.dirichlet(np.full(classes, draw(st.sampled_from([.1, 1., 10.]))), n)
    if ties and draw(st.booleans()):
        probabilities = np.round(probabilities * 4)
        probabilities[:, 0] += probabilities.sum(1) == 0
        probabilities /= probabilities.sum(1, keepdims=True)
    return labels, probabilities


def every(labels, probabilities):
    """All single numbers of a set of predictions."""
    counts = metrics.confusion(labels, probabilities.argmax(1), probabilities.shape[1])
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    return {**{f.__name__: f(counts) for f in OVERALL}, "nll": metrics.nll(labels, probabilities),
            "brier": metrics.brier(labels, probabilities), "aurc": operating_points.aurc(correct, confidence),
            **{f.__name__: f(labels, probabilities) for f in CALIBRATION},
            "macro_auroc": metrics.mean_defined(metrics.auroc(labels, probabilities))}


def same(a, b):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-9, err_msg=name)


settings = hypothesis.settings(max_examples=50, deadline=None, derandomize=True)


@settings
@hypothesis.given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_images_changes_nothing(sample, random):
    labels, probabilities = sample
    order = np.array(random.sample(range(len(labels)), len(labels)))
    same(every(labels, probabilities), every(labels[order], probabilities[order]))
    np.testing.assert_allclose(operating_points.macro_f1_multipliers(labels, probabilities),
                               operating_points.macro_f1_multipliers(labels[order], probabilities[order]), rtol=1e-9)


@settings
@hypothesis.given(predictions(ties=False), st.randoms(use_true_random=False))
def test_the_order_of_classes_changes_no_overall_figure_and_carries_along_those_of_a_class(sample, random):
    labels, probabilities = sample
    classes = probabilities.shape[1]
    order = np.array(random.sample(range(classes), classes))  # new class k is old class order[k]
    moved, columns = np.argsort(order)[labels], probabilities[:, order]
    same(every(labels, probabilities), every(moved, columns))
    counts = metrics.confusion(labels, probabilities.argmax(1), classes)
    permuted = metrics.confusion(moved, columns.argmax(1), classes)
    for metric in BY_CLASS:
        np.testing.assert_allclose(metric(counts)[order], metric(permuted))
    np.testing.assert_allclose(metrics.auroc(labels, probabilities)[order], metrics.auroc(moved, columns))


@settings
@hypothesis.given(predictions())
def test_metrics_stay_in_their_ranges(sample):
    labels, probabilities = sample
    values = every(labels, probabilities)
    for name, value in values.items():
        top = {"nll": 36.05, "brier": 2}.get(name, 1)
        assert np.isnan(value) or -1e-12 <= value <= top + 1e-12, name
    assert values["ece"] <= values["mce"] + 1e-12
    confidence = probabilities.max(1).mean()
    for name in ("ece", "ece_equal_mass"):  # many bins can only add to the gap of a single one
        assert values[name] >= abs(confidence - values["accuracy"]) - 1e-12
    assert calibration.ece(labels, probabilities, 1) == pytest.approx(abs(confidence - values["accuracy"]), abs=1e-9)


@settings
@hypothesis.given(predictions(), st.integers(1, 5))
def test_repeating_every_image_changes_no_mean(sample, times):
    labels, probabilities = sample
    once, more = every(labels, probabilities), every(np.repeat(labels, times), np.repeat(probabilities, times, 0))
    depends_on_n = {"ece_equal_mass", "rms_ce_debiased", "aurc"}
    same({k: v for k, v in once.items() if k not in depends_on_n}, more)


@settings
@hypothesis.given(st.integers(1, 40), st.integers(2, 6), st.floats(.2, 5), st.integers(0, 2 ** 32))
def test_temperature_moves_no_decision_and_of_two_classes_no_ranking(n, classes, temperature, seed):
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(classes, size=n), 2 * rng.normal(size=(n, classes))
    raw, calibrated = metrics.softmax(logits), metrics.softmax(logits / temperature)
    np.testing.assert_array_equal(raw.argmax(1), calibrated.argmax(1))
    if classes == 2:
        same(*({"aurc": operating_points.aurc(p.argmax(1) == labels, p.max(1))} for p in (raw, calibrated)))


@settings
@hypothesis.given(predictions())
def test_temperature_never_raises_the_nll_it_vouches_for(sample):
    labels, probabilities = sample
    fitted = calibration.fit_temperature(np.log(np.maximum(probabilities, 1e-12)), labels)
    assert fitted.lo <= fitted.value <= fitted.hi
    assert fitted.ok == (not fitted.reason)
    assert not fitted.ok or fitted.nll_after <= fitted.nll_before + 1e-12


@settings
@hypothesis.given(predictions())
def test_multipliers_never_lower_macro_f1_where_they_were_chosen(sample):
    labels, probabilities = sample
    multipliers = operating_points.macro_f1_multipliers(labels, probabilities)
    before, after = (metrics.macro_f1(metrics.confusion(labels, (w * probabilities).argmax(1), probabilities.shape[1]))
                     for w in (1, multipliers))
    assert after >= before - 1e-12 and (multipliers > 0).all() and np.isfinite(multipliers).all()


@settings
@hypothesis.given(predictions(), st.floats(0, 1))
def test_a_threshold_is_a_positive_and_promises_no_more_than_was_asked_for(sample, sensitivity):
    labels, probabilities = sample
    positive, scores = labels == 0, probabilities[:, 0]
    hypothesis.assume(positive.any())
    threshold, promised = operating_points.threshold_for(sensitivity, positive, scores)
    assert threshold in scores[positive] and 0 <= promised <= sensitivity
    # with an assurance of .9 for the population, more than half of the time the sample has to have a margin
    reached = operating_points.binary(positive, scores >= threshold)["sensitivity"]
    assert reached >= promised - 1 / positive.sum() - 1e-9
    assert promised == sensitivity or threshold == scores[positive].min()


@settings
@hypothesis.given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_nor_turns_their_order(p):
    corrected = paired.holm(p)
    assert (corrected >= np.array(p) - 1e-15).all() and (corrected <= 1).all()
    order = np.argsort(p)
    assert (np.diff(corrected[order]) >= 0).all()


def test_errors_of_perfect_calibration_go_to_zero_and_the_debiased_one_faster():
    rng = np.random.default_rng(0)
    mean = {}
    for n in (200, 2000, 20000):
        errors = []
        for _ in range(10):
            probabilities = rng.dirichlet(np.ones(4), n)
            labels = (probabilities.cumsum(1) < rng.random((n, 1))).sum(1)
            places = calibration.reliability(labels, probabilities)
            plain = sum(row["count"] / n * (row["confidence"] - row["accuracy"]) ** 2
                        for row in places if row["count"]) ** .5
            errors.append([calibration.ece(labels, probabilities), calibration.ece_equal_mass(labels, probabilities),
                           calibration.ece_classwise(labels, probabilities), plain,
                           calibration.rms_ce_debiased(labels, probabilities)])
        mean[n] = np.mean(errors, 0)
    assert (mean[2000] < .5 * mean[200])[:4].all() and (mean[20000] < .5 * mean[2000])[:4].all()  # as 1 / sqrt(n)
    for n in mean:
        assert mean[n][4] < .6 * mean[n][3]  # debiased beside plain, root mean square both
    assert mean[20000][4] < .005
