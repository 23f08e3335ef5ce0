"""How often an epoch shows an image, and mixed views: both follow from seed, image and number alone."""

import numpy as np
import pytest
import torch

import small
from kd.data import augment, batching, mixing, sampling
from kd.data.batching import Views
from kd.data.mixing import Mixing
from kd.train import engine, teacher_cache

LABELS = np.repeat([0, 1, 2], [100, 9, 3])
CPU = torch.device("cpu")


# ---- sampling

@pytest.mark.parametrize("kind, expected", [
    ("natural", [100, 9, 3]),
    ("sqrt", [76, 23, 13]),  # 112 * (10, 3, 1.732) / 14.732 = 76.03, 22.81, 13.17
    ("balanced", [38, 37, 37]),
])
def test_the_images_of_each_class_in_an_epoch(kind, expected):
    assert sampling.class_counts(LABELS, 3, kind).tolist() == expected
    for epoch in (1, 2):
        positions, _ = sampling.labelled(LABELS, 3, kind, 0, epoch)
        assert np.bincount(LABELS[positions], minlength=3).tolist() == expected


def test_a_class_without_images_stays_without():
    assert sampling.class_counts(np.array([0, 0, 2]), 4, "balanced").tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_images_of_a_class_take_turns_and_no_view_comes_twice(kind):
    seen = set()
    for epoch in range(1, 6):
        positions, visits = sampling.labelled(LABELS, 3, kind, 7, epoch)
        of_epoch = np.bincount(positions, minlength=len(LABELS))
        for k in range(3):
            assert np.ptp(of_epoch[LABELS == k]) <= 1  # shown alike, but for one
        pairs = set(zip(positions.tolist(), visits.tolist()))
        assert len(pairs) == len(positions) and not pairs & seen and visits.min() >= 1
        seen |= pairs


def test_natural_sampling_is_a_permutation_whose_visits_are_the_epochs():
    positions, visits = sampling.labelled(LABELS, 3, "natural", 3, 4)
    assert np.array_equal(positions, np.random.default_rng((3, 4)).permutation(112)) and (visits == 4).all()


def test_images_without_labels_come_all_once_before_one_comes_again():
    shown = [sampling.unlabelled(10, 4, 0, epoch) for epoch in range(1, 6)]
    positions, visits = (np.concatenate(parts) for parts in zip(*shown))
    for number in (1, 2):
        assert sorted(positions[visits == number]) == list(range(10))
    assert np.array_equal(sampling.unlabelled(10, 4, 0, 3)[0], positions[8:12])


def test_losses_get_the_counts_of_the_classes_as_they_are_sampled(tmp_path):
    data, options = small.data(folder=tmp_path, count=90), small.options("--sampling", "balanced", "--alpha", "1")
    data.labels[data.train[:20]] = 0
    step = engine.Step(small.network(options, data), None, small.terms(options), data, options, CPU, "fp32")
    counts = step.class_counts.tolist()
    assert max(counts) - min(counts) <= 1 and sum(counts) == len(data.train)
    step.close()


# ---- Beta(A, A)

def test_quantiles_of_beta_are_those_of_its_closed_forms():
    p = np.linspace(0, 1, 1001)
    assert np.allclose(mixing.quantile(p, 1.0), p, atol=1e-7)
    assert np.allclose(mixing.quantile(p, 0.5), np.sin(np.pi * p / 2) ** 2, atol=1e-6)
    x = mixing.quantile(p, 2.0)
    assert np.allclose(3 * x ** 2 - 2 * x ** 3, p, atol=1e-6)
    for a in (0.1, 0.2, 3.0):
        assert np.allclose(mixing.quantile(p, a), 1 - mixing.quantile(1 - p, a), atol=1e-9)


def test_shares_have_the_moments_of_beta():
    for a in (0.2, 1.0, 4.0):
        share = Mixing(mixup=a).draw(0, 1, np.arange(20_000))["share"]
        assert share.mean() == pytest.approx(0.5, abs=0.01)
        assert share.var() == pytest.approx(1 / (4 * (2 * a + 1)), abs=0.004)


# ---- mixed views

def epoch(data, views, **options):
    """{position: (view, shares of the classes)} of an epoch."""
    result = {}
    for batch in batching.training_batches(data, seed=3, epoch=2, device="cpu", views=views,
                                           **{"batch": 16, **options}):
        result.update(zip(batch.index.tolist(), zip(batch.images.clone(), batch.labels.clone())))
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.data(folder=tmp_path_factory.mktemp("cache"))


def test_a_mixed_view_is_that_share_of_two_views(data):
    plain, mixed = epoch(data, Views()), epoch(data, Views(mixing=Mixing(mixup=1.0)))
    count, partners = len(data.train), set()
    assert set(mixed) == set(plain)
    for position, (view, shares) in mixed.items():
        own = data.labels[data.train[position]]
        assert float(shares.sum()) == pytest.approx(1)
        share = Mixing(mixup=1.0).draw(3, 2, data.train[[position]])["share"][0]
        partner = [k for k in plain if torch.allclose(
            view, torch.lerp(plain[position][0], plain[k][0], float(share)), atol=1e-5)]
        assert len(partner) == 1
        other = data.labels[data.train[partner[0]]]
        expected = np.zeros(3)
        expected[own] += 1 - share
        expected[other] += share
        assert np.allclose(shares, expected, atol=1e-6)
        partners.add(partner[0])
    assert len(partners) > count / 3


def test_cutmix_pastes_a_rectangle_whose_share_of_the_area_is_that_of_the_label(data):
    plain, mixed = epoch(data, Views()), epoch(data, Views(mixing=Mixing(cutmix=1.0)))
    off = []
    for position, (view, shares) in mixed.items():
        changed = (view != plain[position][0]).any(0)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if len(rows):
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            assert any(torch.equal(view[:, top:bottom, left:right], other[0][:, top:bottom, left:right])
                       for other in plain.values())
            if np.count_nonzero(shares) == 2:
                own = float(shares[data.labels[data.train[position]]])
                off.append((bottom - top) * (right - left) / 32 ** 2 - (1 - own))
    assert len(off) > 20 and np.abs(off).max() < 0.06 and abs(np.mean(off)) < 0.01  # up to the rounding to a pixel


def test_with_both_half_of_the_views_are_mixed_in_each_way():
    box = Mixing(mixup=0.2, cutmix=1.0).draw(0, 1, np.arange(4000))["box"]
    assert box.any(1).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["heavy", "light", "none"])
def test_a_mixed_view_depends_neither_on_its_batch_nor_on_threads(data, kind):
    views = Views(kind, Mixing(0.4, 1.0), "sqrt")
    first = epoch(data, views)
    for options in ({"batch": 7, "workers": 3}, {"batch": 64, "workers": 0}):
        again = epoch(data, views, **options)
        assert all(torch.equal(first[k][0], again[k][0]) for k in again if k in first)


def test_partners_of_images_are_sampled_as_the_images_are(data):
    partners = batching._Partners(data, "balanced")(np.zeros(30_000, int), np.arange(30_000) / 30_000)
    shown = np.bincount(data.labels[data.train][partners], minlength=3) / 30_000
    assert np.allclose(shown, 1 / 3, atol=0.02)


def test_kept_targets_of_mixed_views_are_the_teachers_answers_to_them(tmp_path):
    data = small.data(folder=tmp_path / "cache")
    data.unlabelled = small.unlabelled(data)
    options = small.options("--mixup", "0.4", "--cutmix", "1", "--sampling", "sqrt", "--teacher-cache", "2",
                            "--epochs", "6")
    teacher, student = (small.network(options, data, seed=seed) for seed in (1, 2))
    teacher.fingerprint = "abc"
    targets = teacher_cache.kept(tmp_path / "targets", teacher, data, options, {"teacher_logits"})
    step = engine.Step(student, teacher, small.terms(options), data, options, CPU, "fp32", targets)
    targets.build(step.teacher_forward, batch=16, device=CPU, workers=0)
    compared = 0
    for number in (1, 2, 5):
        for batch in batching.training_batches(data, batch=16, seed=9, epoch=number, device=CPU, views=step.views,
                                               unlabelled_ratio=1.0):
            online, disk = step.teacher_forward(batch.crops), step.teacher_outputs(batch)
            assert torch.allclose(online["teacher_logits"], disk["teacher_logits"], rtol=2e-3, atol=2e-3)
            compared += len(batch.index) - len(batch.labels)
    assert compared > 100
    step.close()


# ---- none

def test_without_augmentation_a_view_is_what_is_evaluated(data):
    views = epoch(data, Views("none"))
    order = data.split.copy()
    for position, (view, _) in views.items():
        data.split = np.where(np.arange(len(order)) == data.train[position], "val", "test")
        image = next(batching.evaluation_batches(data, "val", batch=1, device="cpu"))[0]
        data.split = order
        assert torch.equal(view, image)


def test_crops_of_another_size_show_the_same_part(data):
    batch = next(batching.training_batches(data, batch=16, seed=0, epoch=1, device="cpu", size=16, other_sizes=(32,)))
    assert batch.images.shape[2:] == (16, 16) and set(batch.crops) == {16, 32}
    smaller = torch.nn.functional.interpolate(batch.crops[32], (16, 16), mode="area")
    assert float((smaller - batch.images).abs().mean()) < 0.05
    assert augment.KINDS == ("heavy", "light", "corruption", "none")
