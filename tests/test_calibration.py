"""Calibration errors are torchmetrics' off the bin edges, a plain loop's everywhere; temperature is fitted honestly."""

import numpy as np
import pytest

from kd import calibration, metrics

BY_HAND = (np.array([0, 1, 2, 0]),
           np.array([[.25, .20, .55], [.55, .05, .40], [.10, .30, .60], [.90, .05, .05]]))


def draw(n, classes, seed, sharp=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) * sharp
    logits[np.arange(n), labels] += 1
    return labels, logits


def binary(confidence, correct):
    """Labels and probabilities of two classes with these top confidences (.5 to 1), the first predicted."""
    confidence, correct = np.array(confidence, dtype=float), np.array(correct, dtype=bool)
    return np.where(correct, 0, 1), np.stack([confidence, 1 - confidence], 1)


def loop(labels, probabilities, bins):
    """The four binned errors, image by image, from their definitions."""
    n, classes = probabilities.shape

    def place(p):
        return next(b for b in range(bins) if p <= (b + 1) / bins + 1e-15)

    def gaps(values, hits, places):
        rows = []
        for b in sorted(set(places)):
            inside = [i for i in range(len(values)) if places[i] == b]
            mean, rate = (sum(x[i] for i in inside) / len(inside) for x in (values, hits))
            rows.append((len(inside), abs(mean - rate), rate))
        return rows

    top = [max(row) for row in probabilities.tolist()]
    hit = [int(row.index(max(row)) == label) for row, label in zip(probabilities.tolist(), labels)]
    rows = gaps(top, hit, [place(p) for p in top])
    ends = [part[-1] for part in np.array_split(sorted(top), min(bins, n))]
    mass = gaps(top, hit, [next(e for e in ends if p <= e) for p in top])
    per_class = [gaps(probabilities[:, k].tolist(), [int(y == k) for y in labels],
                      [place(p) for p in probabilities[:, k]]) for k in range(classes)]
    return {"ece": sum(m * g for m, g, _ in rows) / n, "mce": max(g for _, g, _ in rows),
            "ece_equal_mass": sum(m * g for m, g, _ in mass) / n,
            "ece_classwise": sum(m * g for rows in per_class for m, g, _ in rows) / n / classes}


DEGENERATE = {
    "one image": ([1], [[.3, .7]]),
    "one image, sure and wrong": ([1], [[1., 0.]]),
    "confidences 0, .5 and 1": ([0, 1, 0, 1, 1], [[1., 0], [.5, .5], [0, 1], [.5, .5], [0, 1]]),
    "all equal": ([0, 1, 2, 0, 0], [[.6, .3, .1]] * 5),
    "ties across the ends of bins": ([0, 0, 1, 1, 0, 1, 1], [[.8, .2]] * 4 + [[.4, .6]] * 2 + [[.9, .1]]),
    "one class": ([2, 2, 2], [[.2, .3, .5], [.1, .1, .8], [.4, .4, .2]]),
    "a class that never occurs": ([0, 1, 0, 1], [[.5, .25, .25], [.25, .5, .25], [1., 0, 0], [.2, .2, .6]]),
    "every bin edge": ([0, 1] * 5, [[k / 10, 1 - k / 10] for k in range(1, 11)]),
}


@pytest.mark.parametrize("bins", [1, 2, 3, 10, 15])
@pytest.mark.parametrize("name", [*DEGENERATE, "two hundred images"])
def test_each_error_is_that_of_a_plain_loop(name, bins):
    labels, probabilities = DEGENERATE.get(name) or (lambda y, z: (y, metrics.softmax(z)))(*draw(200, 4, 0))
    labels, probabilities = np.array(labels), np.array(probabilities, dtype=float)
    for error, expected in loop(labels, probabilities, bins).items():
        assert getattr(calibration, error)(labels, probabilities, bins) == pytest.approx(expected, abs=1e-12), error


@pytest.mark.parametrize("n, classes, bins", [(1, 2, 15), (30, 3, 10), (500, 7, 15), (2000, 2, 20)])
def test_the_errors_are_torchmetrics_off_the_edges(n, classes, bins):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    for seed in range(3):
        labels, logits = draw(n, classes, seed)
        probabilities = metrics.softmax(logits)
        y, p = torch.from_numpy(labels), torch.from_numpy(probabilities)
        for norm, ours in (("l1", calibration.ece), ("max", calibration.mce)):
            expected = theirs.multiclass_calibration_error(p, y, classes, n_bins=bins, norm=norm).item()
            assert ours(labels, probabilities, bins) == pytest.approx(expected, abs=1e-6)
        each = [theirs.binary_calibration_error(p[:, k].contiguous(), (y == k).int(), n_bins=bins, norm="l1").item()
                for k in range(classes)]
        assert calibration.ece_classwise(labels, probabilities, bins) == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize("bins, used", [(1, 1), (3, 3), (15, 6)])  # at least ten images are in each
def test_the_debiased_error_is_the_mean_over_pairs_of_images(bins, used):
    labels, logits = draw(60, 3, 0)
    probabilities = metrics.softmax(logits)
    order = np.argsort(probabilities.max(1))
    residual = (probabilities.max(1) - (probabilities.argmax(1) == labels))[order]
    expected = 0
    for part in np.array_split(np.arange(60), used):  # two different images have no noise in common
        products = [residual[i] * residual[j] for i in part for j in part if i != j]
        expected += len(part) / 60 * np.mean(products)
    error = calibration.debiased(labels, probabilities, np.arange(60), bins)
    assert error.square == pytest.approx(expected, abs=1e-12)
    assert error.value == pytest.approx(max(expected, 0) ** .5)


def test_copies_of_an_image_in_one_lesion_do_not_look_miscalibrated():
    labels, logits = draw(300, 3, 5)
    four = np.repeat(np.arange(300), 4)
    probabilities = metrics.softmax(logits)
    once = calibration.debiased(labels, probabilities, np.arange(300))
    grouped = calibration.debiased(labels[four], probabilities[four], four)
    assert grouped.square == pytest.approx(once.square, abs=2e-4)
    assert grouped.metric() == pytest.approx(once.metric(), abs=5e-3)
    assert calibration.debiased(labels[four], probabilities[four], np.arange(1200)).value > once.value


@pytest.mark.parametrize("factor", [1, 1.3, 2.5])
def test_its_interval_holds_the_truth_whether_calibrated_or_not(factor):
    rng = np.random.default_rng(0)

    def sample(n):
        labels = rng.integers(3, size=n)
        scores = rng.normal(size=(n, 3))
        scores[np.arange(n), labels] += 1.5
        return labels, metrics.softmax(factor * 1.5 * scores)

    truth = 0 if factor == 1 else calibration.rms_ce_debiased(*sample(400000))
    metrics_ = [calibration.debiased(*sample(300), np.arange(300)).metric() for _ in range(200)]
    assert all(metric["lo"] <= metric["value"] <= metric["hi"] for metric in metrics_)
    held = sum(metric["lo"] <= truth <= metric["hi"] for metric in metrics_)
    assert 182 <= held <= 198, held


def test_the_error_of_several_seeds_is_that_of_the_mean_square_and_a_difference_has_no_interval():
    labels, logits = draw(400, 3, 1)
    seeds = [calibration.debiased(labels, metrics.softmax(f * logits), np.arange(400)) for f in (1.5, 2, 3)]
    mean = calibration.DebiasedError.mean(seeds, trainings=True)
    assert mean.square == pytest.approx(np.mean([seed.square for seed in seeds]))
    wide, narrow = (e.metric() for e in (mean, calibration.DebiasedError.mean(seeds)))
    assert wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"]
    gap = seeds[2].minus(seeds[0])
    assert gap.value == pytest.approx(seeds[2].value - seeds[0].value) and gap.p() < 1e-6
    assert np.isnan(gap.metric()["lo"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", [0, 1e-12, 1e-9])  # the other answers of an exported file
def test_models_that_are_equal_up_to_rounding_have_no_other_calibration(noise):
    for seed in range(30):
        labels, logits = draw(200, 4, seed)
        others = logits + noise * np.random.default_rng(seed).normal(size=logits.shape)
        model, other = (calibration.debiased(labels, metrics.softmax(z), np.arange(200)) for z in (logits, others))
        assert other.minus(model).p() > 0.9


def test_consistency_finds_miscalibration_and_nothing_where_there_is_none():
    small = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = rng.integers(3, size=200)
        scores = rng.normal(size=(200, 3))
        scores[np.arange(200), labels] += 1.5
        small += calibration.consistency(labels, metrics.softmax(1.5 * scores), np.arange(200), draws=200)["p"] < .05
    assert small <= 12  # of 100; 5 expected
    found = calibration.consistency(labels, metrics.softmax(5 * scores), np.arange(200))
    assert found["p"] < .002 and found["ece"] == calibration.ece(labels, metrics.softmax(5 * scores))
    assert 0 < found["expected"] < found["ece"]


def test_reliability_is_scikit_learns_calibration_curve():
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    labels, logits = draw(800, 5, 1)
    probabilities = metrics.softmax(logits)
    rows = calibration.reliability(labels, probabilities, 12)
    assert [row["lo"] for row in rows[1:]] == [row["hi"] for row in rows[:-1]] and rows[-1]["hi"] == 1
    assert sum(row["count"] for row in rows) == 800
    filled = [row for row in rows if row["count"]]
    accuracy, confidence = curve(probabilities.argmax(1) == labels, probabilities.max(1), n_bins=12)
    np.testing.assert_allclose([row["accuracy"] for row in filled], accuracy, atol=1e-12)
    np.testing.assert_allclose([row["confidence"] for row in filled], confidence, atol=1e-12)
    assert all(np.isnan(row["accuracy"]) for row in rows if not row["count"])


def test_published_vectors():
    assert calibration.ece(*BY_HAND, bins=3) == pytest.approx(.2, abs=1e-12)
    assert calibration.mce(*BY_HAND, bins=3) == pytest.approx(.7 / 3, abs=1e-12)
    rows = [row for row in calibration.reliability(*BY_HAND, bins=3) if row["count"]]
    plain = sum(row["count"] / 4 * (row["confidence"] - row["accuracy"]) ** 2 for row in rows) ** .5
    assert plain == pytest.approx(.2082, abs=5e-5)
    # Two bins are left of ten: (.9, 1] holds both images, and there is no eleventh for 1.0 itself.
    assert calibration.ece(*binary([.95, 1.], [1, 0]), bins=10) == pytest.approx(.475, abs=1e-12)


def test_bins_are_closed_on_the_right_and_the_first_holds_zero():
    labels, probabilities = binary([.8, .8000001], [1, 1])
    counts = [row["count"] for row in calibration.reliability(labels, probabilities, 5)]
    assert counts == [0, 0, 0, 1, 1]
    # p_k of exactly 0 is counted: two images, class 1 never has mass and occurs once.
    assert calibration.ece_classwise(np.array([0, 1]), np.array([[1., 0], [1., 0]]), 4) == pytest.approx(.5)


def test_equal_mass_bins_are_as_many_as_images_allow_and_even():
    confidence = np.linspace(.55, .99, 10)
    correct = np.arange(10) % 2
    three = [slice(0, 4), slice(4, 7), slice(7, 10)]  # ten images in three: 4, 3, 3
    expected = sum(abs(confidence[s].sum() - correct[s].sum()) for s in three) / 10
    assert calibration.ece_equal_mass(*binary(confidence, correct), bins=3) == pytest.approx(expected, abs=1e-12)
    each = np.abs(confidence - correct).mean()  # a bin an image
    assert calibration.ece_equal_mass(*binary(confidence, correct), bins=50) == pytest.approx(each, abs=1e-12)


def test_a_confidence_that_rounding_lifts_above_one_is_in_the_last_bin():
    labels, probabilities = binary([1 + 2e-16, .7], [1, 1])
    assert [row["count"] for row in calibration.reliability(labels, probabilities)][-1] == 1


# ---- temperature

@pytest.mark.parametrize("scale", [.25, 1, 3, 5])
def test_the_temperature_is_the_optimum_another_search_finds(scale):
    optimise = pytest.importorskip("scipy.optimize")
    labels, logits = draw(600, 5, 3)
    logits = logits * scale
    fitted = calibration.fit_temperature(logits, labels)

    def nll(log_t):
        return metrics.nll(labels, metrics.softmax(logits / np.exp(log_t)))

    best = optimise.minimize_scalar(nll, bounds=np.log(calibration.BOUNDS), method="bounded",
                                    options={"xatol": 1e-10})
    assert fitted.ok and not fitted.reason
    assert np.log(fitted.value) == pytest.approx(best.x, abs=1e-6)
    assert fitted.nll_after == pytest.approx(best.fun, abs=1e-10)
    assert fitted.nll_before == pytest.approx(metrics.nll(labels, metrics.softmax(logits)), abs=1e-10)
    assert fitted.nll_after <= fitted.nll_before


def test_a_known_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40000, 4)) * 2
    labels = (metrics.softmax(logits).cumsum(1) < rng.random((40000, 1))).sum(1)
    assert calibration.fit_temperature(2.5 * logits, labels).value == pytest.approx(2.5, rel=.03)


def test_validation_that_is_all_right_runs_into_the_lower_bound_and_says_so():
    labels, logits = draw(50, 3, 0)
    logits[np.arange(50), labels] = 9
    fitted = calibration.fit_temperature(logits, labels)
    assert not fitted.ok and fitted.value == fitted.lo == calibration.BOUNDS[0]
    assert "down to T = 0.05" in fitted.reason
    for scale in (50, 1e4):  # the slope has underflowed to 0 at this bound, and at last at both
        assert not calibration.fit_temperature(scale * logits, labels).ok


def test_worse_than_chance_runs_into_the_upper_bound_and_says_so():
    labels, logits = draw(50, 3, 0)
    logits[np.arange(50), labels] = -9
    fitted = calibration.fit_temperature(logits, labels)
    assert not fitted.ok and fitted.value == fitted.hi and "up to T = 20" in fitted.reason


def test_a_bound_just_short_of_the_optimum_is_reached_and_one_just_beyond_is_not():
    labels, logits = draw(300, 3, 2)
    best = calibration.fit_temperature(logits, labels).value
    assert not calibration.fit_temperature(logits, labels, (best * 1.001, 20)).ok
    assert not calibration.fit_temperature(logits, labels, (.05, best * .999)).ok
    assert calibration.fit_temperature(logits, labels, (best * .999, best * 1.001)).ok


def test_logits_that_say_nothing_leave_the_temperature_at_one():
    fitted = calibration.fit_temperature(np.zeros((20, 4)), np.arange(20) % 4)
    assert not fitted.ok and fitted.value == 1 and "same" in fitted.reason


def test_bounds_that_keep_out_no_correction_and_would_raise_the_nll_are_refused():
    labels, logits = draw(400, 4, 5)
    optimum = calibration.fit_temperature(logits, labels).value
    logits = logits / optimum  # now T = 1 is best
    fitted = calibration.fit_temperature(logits, labels, (3, 20))
    assert not fitted.ok and fitted.nll_after > fitted.nll_before


def test_a_temperature_needs_validation_images_of_two_classes():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    fit = calibration.fit_temperature(logits, np.ones(50, int))
    assert not fit.ok and fit.reason == "all validation images are of one class"
