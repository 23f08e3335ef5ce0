"""Two models are compared image by image and replicate by replicate."""

import itertools

import numpy as np
import pytest

from kd import bootstrap, calibration, metrics, paired

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
    draws = bootstrap.draws(labels, groups, 3, b)
    return [bootstrap.replicate(p, draws, NAMES, rarest=1) for p in probabilities]


def test_a_paired_difference_is_narrower_than_that_of_independent_models():
    labels, reference, model, groups = models()
    a, b = replicates(labels, groups, reference, model)
    rows = {row["metric"]: row for row in paired.compare(a, b)}
    for name in ("accuracy", "macro_f1", "nll", "auroc/b"):
        row = rows[name]
        assert row["difference"] == b[name].value - a[name].value
        widths = [row[f"{side}_hi"] - row[f"{side}_lo"] for side in ("reference", "model")]
        assert row["hi"] - row["lo"] < (widths[0] ** 2 + widths[1] ** 2) ** .5 * .9, name


def test_a_model_against_itself_differs_by_nothing_and_means_nothing():
    labels, reference, _, groups = models()
    a, = replicates(labels, groups, reference)
    binned = ("ece", "ece_equal_mass", "ece_classwise", "mce")
    for row in paired.compare(a, a):
        assert row["difference"] == 0
        if row["metric"] in binned:
            assert np.isnan([row["lo"], row["hi"], row["p"]]).all()
        elif row["metric"] == "rms_ce_debiased":
            assert row["p"] == pytest.approx(1)
        else:
            assert (row["lo"], row["hi"], row["p"]) == (0, 0, 1), row["metric"]
        assert row["retention"] == 1 or row["reference_value"] == 0


def test_p_is_small_just_where_the_interval_leaves_zero():
    for seed, shift in itertools.product(range(3), (0, .1, .3)):
        labels, reference, model, groups = models(shift=shift, seed=seed)
        for row in paired.compare(*replicates(labels, groups, reference, model)):
            if np.isfinite(row["lo"]) and not .04 < row["p"] < .06:
                assert (row["p"] < .05) == (not row["lo"] <= 0 <= row["hi"]), row


def test_a_table_has_each_metric_once_in_the_order_of_the_reference():
    labels, reference, model, groups = models()
    a, b = replicates(labels, groups, reference, model, b=100)
    rows = paired.compare(a, {name: values for name, values in b.items() if name != "brier"})
    assert [row["metric"] for row in rows] == [name for name in a if name != "brier"]
    row = next(row for row in rows if row["metric"] == "f1/b")
    assert row["reference_value"] == a["f1/b"].value and row["model_value"] == b["f1/b"].value
    assert row["retention"] == pytest.approx(row["model_value"] / row["reference_value"])


def test_p_of_calibration_errors_of_equally_calibrated_models_is_seldom_small():
    small, trials = 0, 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        labels, tables = rng.integers(3, size=200), []
        for _ in range(2):
            scores = rng.normal(size=(200, 3))
            scores[np.arange(200), labels] += 1.5
            tables.append(metrics.softmax(1.5 * scores))  # the posterior of equal classes
        a, b = (calibration.debiased(labels, table, np.arange(200)) for table in tables)
        small += b.minus(a).p() < .05
    assert small <= 15  # of 200; 10 expected, 12 promised


# ---- Holm

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
    shares = paired.agreement(labels, reference, model, bootstrap.draws(labels, np.arange(6), 3, 100))
    assert {name: share.value for name, share in shares.items()} == pytest.approx(
        {"agreement": 2 / 6, "right_to_wrong": 2 / 6, "wrong_to_right": 1 / 6, "wrong_to_wrong": 1 / 6})
    assert paired.disagreements(reference == labels, model == labels) == {"reference_only": 2, "model_only": 1}


def test_agreement_of_all_images_is_not_certain_of_the_next():
    labels, reference, _, groups = models()
    draws = bootstrap.draws(labels, groups, 3, 400)
    metric = paired.agreement(labels, reference.argmax(1), reference.argmax(1), draws)["agreement"].metric()
    assert metric["value"] == metric["hi"] == 1 and .95 < metric["lo"] < .99
