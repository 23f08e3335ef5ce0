"""Two models are compared image by image and replicate by replicate."""

import itertools

import numpy as np
import pytest

from kd import bootstrap, metrics, paired

NAMES = ["a", "b", "c"]


def models(n=300, groups=200, shift=.8, seed=0):
    """Labels, the probabilities of a reference and of a model better by `shift`, groups; errors are shared."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    common = rng.normal(size=(n, 3))
    common[np.arange(n), labels] += 1
    better = common + .3 * rng.normal(size=(n, 3))
    better[np.arange(n), labels] += shift
    return labels, metrics.softmax(common), metrics.softmax(better), rng.integers(groups, size=n)


def replicates(labels, groups, *probabilities, b=400):
    index, count = bootstrap.clusters(groups)
    weights = bootstrap.resample(count, b)
    return [bootstrap.replicate(labels, p, index, weights, NAMES) for p in probabilities]


def test_a_paired_difference_is_taken_replicate_by_replicate():
    labels, reference, model, groups = models()
    a, b = replicates(labels, groups, reference, model)
    for name in ("accuracy", "macro_f1", "nll", "auroc/b"):
        gap = paired.paired(a[name], b[name])
        assert gap["value"] == b[name][0] - a[name][0]
        expected = np.quantile(b[name][1:] - a[name][1:], [.025, .975])
        np.testing.assert_allclose([gap["lo"], gap["hi"]], expected, atol=1e-12)
        apart = [bootstrap.interval(values) for values in (a[name], b[name])]
        widths = [metric["hi"] - metric["lo"] for metric in apart]
        assert gap["hi"] - gap["lo"] < (widths[0] ** 2 + widths[1] ** 2) ** .5 * .9, name


def test_a_model_against_itself_differs_by_nothing_and_means_nothing():
    labels, reference, _, groups = models()
    a, = replicates(labels, groups, reference)
    for row in paired.compare(a, a):
        assert (row["difference"], row["lo"], row["hi"], row["p"]) == (0, 0, 0, 1), row["metric"]
        assert row["retention"] == 1 or row["reference_value"] == 0


def test_p_is_small_just_where_the_interval_leaves_zero():
    for seed, shift in itertools.product(range(3), (0, .1, .3)):
        labels, reference, model, groups = models(shift=shift, seed=seed)
        for row in paired.compare(*replicates(labels, groups, reference, model)):
            if not .04 < row["p"] < .06:
                assert (row["p"] < .05) == (not row["lo"] <= 0 <= row["hi"]), row


def test_p_by_hand():
    values = np.append(1., np.r_[np.full(5, -1.), np.full(3, 0.), np.full(91, 2.)])  # 99 replicates
    assert paired.paired(np.zeros(100), values)["p"] == pytest.approx(2 * (1 + 8) / 100)
    assert paired.paired(values, np.zeros(100))["p"] == pytest.approx(2 * (1 + 8) / 100)
    assert paired.paired(np.zeros(100), np.ones(100))["p"] == 2 / 100  # never 0
    assert np.isnan(paired.paired(np.zeros(100), np.full(100, np.nan))["p"])


def test_p_of_no_difference_is_below_five_percent_about_that_often():
    small = 0
    for seed in range(200):
        labels, reference, model, groups = models(n=200, groups=10 ** 6, seed=seed)
        swap = np.random.default_rng(seed).random(200) < .5  # which model is which is a coin's choice
        first, second = np.where(swap[:, None], model, reference), np.where(swap[:, None], reference, model)
        index, count = bootstrap.clusters(groups)
        weights = bootstrap.resample(count, 200, seed)
        a, b = (metrics.accuracy(bootstrap.confusions(labels, p.argmax(1), 3, index, weights)) for p in (first, second))
        small += paired.paired(a, b)["p"] < .05
    assert 2 <= small <= 22  # of 200; 10 expected


def test_retention_is_the_share_kept():
    reference, model = np.array([.8, .5, 0, .9]), np.array([.4, .4, .1, .9])
    metric = paired.retention(reference, model)
    assert metric["value"] == .5 and metric["undefined"] == 1
    np.testing.assert_allclose([metric["lo"], metric["hi"]], np.quantile([.8, 1], [.025, .975]))


def test_a_table_has_each_metric_once_in_the_order_of_the_reference():
    labels, reference, model, groups = models()
    a, b = replicates(labels, groups, reference, model, b=100)
    rows = paired.compare(a, {name: values for name, values in b.items() if name != "brier"})
    assert [row["metric"] for row in rows] == [name for name in a if name != "brier"]
    row = next(row for row in rows if row["metric"] == "f1/b")
    assert row["reference_value"] == a["f1/b"][0] and row["model_value"] == b["f1/b"][0]
    assert row["retention"] == pytest.approx(row["model_value"] / row["reference_value"])


def test_the_difference_of_calibration_errors_has_no_bias_left_from_either():
    rng = np.random.default_rng(0)
    values = [
        np.append(0.05, np.abs(0.09 + 0.01 * rng.normal(size=500))),
        np.append(0.02, np.abs(0.03 + 0.01 * rng.normal(size=500))),
    ]
    gap = paired.paired(*values, corrected=bootstrap.biased("ece"))
    expected = np.subtract(*(bootstrap.unbias(v, 2) for v in values[::-1]))
    np.testing.assert_allclose([gap["lo"], gap["hi"]], np.quantile(expected[1:], [.025, .975]))
    assert gap["value"] == pytest.approx(-.03)


# ---- McNemar and Holm

@pytest.mark.parametrize("lost, won", [(0, 0), (0, 1), (1, 1), (0, 6), (3, 10), (10, 3), (40, 60), (700, 900)])
def test_mcnemar_is_scipys_exact_binomial_test(lost, won):
    stats = pytest.importorskip("scipy.stats")
    reference = np.r_[np.ones(lost), np.zeros(won), np.ones(5), np.zeros(4)].astype(bool)
    model = np.r_[np.zeros(lost), np.ones(won), np.ones(5), np.zeros(4)].astype(bool)
    result = paired.mcnemar(reference, model)
    assert (result["reference_only"], result["model_only"]) == (lost, won)
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1
    assert result["p"] == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_images_neither_overflows_nor_underflows():
    result = paired.mcnemar(np.arange(20000) < 9000, np.arange(20000) >= 9000)
    assert 0 < result["p"] < 1e-30


def test_holm_by_hand():
    # Sorted .01 .02 .03 .5: times 4, 3, 2, 1 is .04 .06 .06 .5, never falling.
    np.testing.assert_allclose(paired.holm([.03, .01, .5, .02]), [.06, .04, .5, .06])
    np.testing.assert_allclose(paired.holm([.03, np.nan, .01]), [.03, np.nan, .02])
    np.testing.assert_allclose(paired.holm([.9, .8]), [1, 1])
    assert paired.holm([]).shape == (0,)


def test_holm_rejects_just_what_holms_own_procedure_does():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(6) ** 3
        rejected, order = np.zeros(6, bool), np.argsort(p)
        for rank, k in enumerate(order):
            if p[k] > .05 / (6 - rank):
                break
            rejected[k] = True
        np.testing.assert_array_equal(paired.holm(p) <= .05, rejected)


# ---- agreement

def test_agreement_and_the_three_ways_to_disagree():
    labels = np.array([0, 0, 0, 1, 1, 2])
    reference = np.array([0, 0, 1, 1, 2, 0])
    model = np.array([0, 1, 0, 2, 2, 1])
    assert paired.agreement(labels, reference, model) == pytest.approx(
        {"agreement": 2 / 6, "right_to_wrong": 2 / 6, "wrong_to_right": 1 / 6, "wrong_to_wrong": 1 / 6})


def test_agreement_adds_up_in_every_replicate():
    labels, reference, model, _ = models()
    weights = bootstrap.resample(300, 50)
    shares = paired.agreement(labels, reference.argmax(1), model.argmax(1), weights)
    np.testing.assert_allclose(sum(shares.values()), 1)
    gain = metrics.accuracy(bootstrap.confusions(labels, model.argmax(1), 3, np.arange(300), weights)) - (
        metrics.accuracy(bootstrap.confusions(labels, reference.argmax(1), 3, np.arange(300), weights)))
    np.testing.assert_allclose(shares["wrong_to_right"] - shares["right_to_wrong"], gain, atol=1e-12)
