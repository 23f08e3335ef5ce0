"""Intervals, differences and means of estimates have the shapes and limits that statistics texts give them."""

import numpy as np
import pytest

from kd.estimate import Estimate, t_quantile, t_tails, wilson


def share(value, sd, center=None, freedom=np.inf, seed=0, count=4001):
    noise = np.random.default_rng(seed).normal(size=count)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    center = value if center is None else center
    return Estimate(value, center + sd * noise, center, "share", freedom)


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 7.3, 30, 999, 1e9])
def test_t_is_scipys(freedom):
    stats = pytest.importorskip("scipy.stats")
    for level in (0.6, 0.9, 0.975, 0.995):
        assert t_quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-5)
    for t in (0, 0.3, 1, 2.5, 8):
        assert t_tails(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=2e-3)


@pytest.mark.parametrize("hits, size", [(0, 5), (22, 22), (7, 31), (950, 1000)])
def test_wilson_is_statsmodels_by_hand(hits, size):
    z = 1.959964
    lo, hi = wilson(hits / size, size, z)
    for bound in (lo, hi):  # the bounds solve |p - hits/size| = z sqrt(p (1 - p) / size)
        distance = z * (bound * (1 - bound) / size) ** .5
        assert min(bound, 1 - bound) < 1e-12 or abs(bound - hits / size) == pytest.approx(distance)
    if hits == size:
        assert (lo, hi) == pytest.approx((size / (size + z * z), 1))


def test_a_share_of_independent_images_has_the_interval_of_wilson():
    metric = share(.8, (.8 * .2 / 50) ** .5).metric()
    assert [metric["lo"], metric["hi"]] == pytest.approx(wilson(.8, 50, 1.959964), abs=1e-6)


def test_a_share_never_leaves_0_to_1_and_its_value_lies_inside():
    for value in (0, .003, .5, .997, 1):
        for sd in (1e-6, .01, .2, .5):
            metric = share(value, sd, center=min(max(value, .02), .98)).metric()
            assert 0 <= metric["lo"] <= value <= metric["hi"] <= 1


def test_a_loss_is_symmetric_in_its_logarithm_and_a_difference_on_its_own_scale():
    noise = share(0, 1).drawn
    loss = Estimate(.4, .4 + .1 * noise, .4, "loss").metric()
    assert loss["lo"] * loss["hi"] == pytest.approx(.16) and loss["hi"] == pytest.approx(.4 * np.exp(1.96 * .25), 1e-3)
    difference = Estimate(-.1, -.1 + .1 * noise, -.1, "difference")
    metric = difference.metric()
    assert (metric["lo"], metric["hi"]) == pytest.approx((-.1 - .196, -.1 + .196), abs=1e-4)
    assert difference.p() == pytest.approx(.31731, abs=1e-4)  # one standard error


def test_bias_of_the_replicates_is_taken_off_once():
    noise = share(0, 1).drawn
    metric = Estimate(.5, .3 + .1 * noise, .25, "difference").metric()  # they lie .05 above what they were drawn from
    assert (metric["lo"] + metric["hi"]) / 2 == pytest.approx(.45)


def test_p_has_no_floor_and_is_small_just_where_the_interval_leaves_zero():
    noise = share(0, 1, count=100).drawn
    assert 0 < Estimate(1., 1 + .1 * noise, 1., "difference").p() < 1e-20
    for value in np.linspace(-.4, .4, 41):
        for freedom in (3, np.inf):
            estimate = Estimate(value, value + .1 * noise, value, "difference", freedom)
            metric = estimate.metric()
            assert (estimate.p() < .05) == (not metric["lo"] <= 0 <= metric["hi"])


def test_a_difference_from_itself_is_nothing_for_sure():
    estimate = share(.7, .1)
    metric = estimate.minus(estimate).metric()
    assert (metric["value"], metric["lo"], metric["hi"], estimate.minus(estimate).p()) == (0, 0, 0, 1)


def test_paired_differences_are_narrower_than_those_of_independent_models():
    common, own = (share(0, 1, seed=seed).drawn for seed in (1, 2))
    a = Estimate(.7, .7 + .05 * common, .7, "share")
    b = Estimate(.72, .72 + .05 * common + .01 * own, .72, "share")
    metric = b.minus(a).metric()
    assert metric["hi"] - metric["lo"] == pytest.approx(2 * 1.96 * .01, rel=.01)


def test_one_training_adds_nothing_and_several_add_students_t():
    still = [Estimate(value, np.full(100, value), value, "difference") for value in (.78, .80, .83)]
    metric = Estimate.mean(still, trainings=True).metric()
    half = 4.302653 * np.std([.78, .80, .83], ddof=1) / 3 ** .5  # of two degrees of freedom
    assert (metric["lo"], metric["hi"]) == pytest.approx((.80333 - half, .80333 + half), abs=1e-4)
    assert Estimate.mean(still[:1], trainings=True).metric()["lo"] == pytest.approx(.78)
    noisy = [Estimate(e.value, e.value + .02 * share(0, 1).drawn, e.value, "difference") for e in still]
    both, images = (Estimate.mean(noisy, trainings=flag).metric() for flag in (True, False))
    assert both["hi"] - both["lo"] > images["hi"] - images["lo"] == pytest.approx(2 * 1.96 * .02, rel=1e-3)


def test_folds_pool_by_their_size_and_know_the_spread_of_trainings():
    noise = [share(0, .01, seed=k).drawn for k in range(4)]

    def folds(values):
        return [Estimate(v, v + n, v, "difference") for v, n in zip(values, noise)]

    pooled = Estimate.pooled(folds([.1, .1, .1, .1]), [10, 10, 10, 30])
    metric = pooled.metric()
    assert pooled.value == pytest.approx(.1)
    assert (metric["hi"] - metric["lo"]) / 2 == pytest.approx(t_quantile(.975, 3) * .01 * (12 / 36) ** .5, rel=.01)
    assert Estimate.pooled(folds([.0, .0, .0, .4]), [1, 1, 1, 1]).value == pytest.approx(.1)
    wide = Estimate.pooled(folds([-.1, .3, 0, .2]), [1, 1, 1, 1]).metric()
    assert wide["lo"] < 0 < wide["hi"]


def test_a_ratio_is_the_share_kept_and_undefined_over_nothing():
    a, b = share(.8, .01), share(.4, .01)
    assert b.over(a).metric()["value"] == .5
    assert a.over(a).metric() == pytest.approx({"value": 1, "lo": 1, "hi": 1})
    assert np.isnan(b.over(share(0, .01)).metric()["value"])


def test_what_is_withheld_has_a_value_and_says_why():
    estimate = Estimate(.8, share(.8, .1).drawn, .8, "share", withheld="too few independent images (3)")
    metric = estimate.metric()
    assert metric["value"] == .8 and np.isnan([metric["lo"], metric["hi"]]).all()
    assert metric["withheld"] == estimate.minus(share(.5, .1)).metric()["withheld"] == "too few independent images (3)"
    assert np.isnan(estimate.minus(share(.5, .1)).p())


def test_a_gap_between_other_images_is_that_of_newcombe():
    """56 of 70 less 48 of 80: 0.2000 [0.0524, 0.3339] (Newcombe 1998, Statistics in Medicine 17, 873, table II)."""
    def binomial(hits, n):
        p = hits / n
        half = np.sqrt(p * (1 - p) / n)
        drawn = np.array([p - half, p + half] * 500)
        return Estimate(p, drawn, p, "share")

    metric = binomial(56, 70).gap(binomial(48, 80))
    assert metric["value"] == pytest.approx(.2)
    assert (metric["lo"], metric["hi"]) == (pytest.approx(.0524, abs=3e-4), pytest.approx(.3339, abs=3e-4))
    a, b = binomial(56, 70), binomial(48, 80)
    p = a.gap_p(b)
    assert .001 < p < .05 and a.gap(b, 1 - p)["lo"] == pytest.approx(0, abs=1e-6)
    assert b.gap_p(a) == pytest.approx(p) and a.gap_p(a) == pytest.approx(1)
    assert np.isnan(a.gap_p(Estimate(.5, None, .5, "share", withheld="too few")))


def trainings(*values, sd=.02):
    noise = share(0, 1).drawn
    return Estimate.mean([Estimate(value, value + sd * noise, value, "share") for value in values], trainings=True)


def test_two_trainings_that_differ_too_much_have_no_interval_and_both_figures():
    metric = trainings(.8, .7).metric()
    assert metric["value"] == pytest.approx(.75) and np.isnan([metric["lo"], metric["hi"]]).all()
    assert metric["withheld"] == "two seeds: no interval; 0.800, 0.700"
    near = trainings(.76, .74).metric()
    assert near["lo"] < .74 and near["hi"] > .76 and "withheld" not in near
    assert "withheld" not in trainings(.8, .7, .75).metric()  # three


def test_a_difference_and_a_ratio_over_two_trainings_give_both_where_they_have_no_interval():
    reference = Estimate(.5, .5 + .02 * share(0, 1).drawn, .5, "share")
    model = trainings(.9, .7)
    difference = model.minus(reference)
    assert difference.metric()["withheld"] == "two seeds: no interval; +0.400, +0.200"
    assert .05 < difference.p() <= 1  # p is computed as always
    assert reference.minus(model).metric()["withheld"] == "two seeds: no interval; -0.400, -0.200"
    assert trainings(.9, .1).over(reference).metric()["withheld"] == "two seeds: no interval; 180%, 20%"
    paired = Estimate.mean([trainings(.6).minus(reference), trainings(.1).minus(reference)], trainings=True)
    assert paired.metric()["withheld"] == "two seeds: no interval; +0.100, -0.400"
