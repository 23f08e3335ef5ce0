"""The embedded data set: the same images on every machine, with the proportions of HAM10000."""

from collections import Counter

import numpy as np
import pytest

import registry
from kd.errors import UserError
from registry.datasets.lesions import COUNTS


@pytest.fixture(scope="module")
def data():
    return registry.create("dataset", "lesions", size=64, images=2000)


def two_of_each(data):
    """The positions of two images of each class."""
    return [i for label in range(7) for i in np.flatnonzero(data.labels == label)[:2]]


def test_it_is_registered_and_marked_as_synthetic(data):
    assert data.name == "lesions" and data.synthetic
    assert data.class_names == sorted(data.class_names) == list(COUNTS)
    assert data.split is None and len(set(data.ids)) == len(data.images) == 2000
    assert len({registry.create("dataset", "lesions", **options).version
                for options in ({}, {"size": 28}, {"images": 500}, {"seed": 1})}) == 4


def test_an_image_is_the_same_in_any_order_and_in_another_data_set_object(data):
    chosen = two_of_each(data)
    forward = [data.images[i]() for i in chosen]
    again = registry.create("dataset", "lesions", size=64, images=2000)
    backward = [again.images[i]() for i in reversed(chosen)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward))
    assert len({image.tobytes() for image in forward}) == len(forward)


def test_another_seed_is_another_set_of_lesions(data):
    other = registry.create("dataset", "lesions", seed=1, size=64)
    assert not np.array_equal(data.images[0](), other.images[0]())


def test_classes_have_the_frequencies_of_ham10000():
    large = registry.create("dataset", "lesions", size=64, images=5000)
    share = np.bincount(large.labels, minlength=7) / len(large.labels)
    assert np.allclose(share, np.array(list(COUNTS.values())) / 10015, atol=0.002)


def test_in_a_small_set_rare_classes_have_three_percent():
    counts = np.bincount(registry.create("dataset", "lesions", images=740).labels, minlength=7)
    assert counts.sum() == 740 and counts[3] == counts[6] == 22  # df and vasc
    assert np.allclose(counts[[1, 2, 4]] / 740, np.array([514, 1099, 1113]) / 10015, atol=0.002)


def test_a_quarter_of_the_lesions_has_two_to_six_images_of_one_class(data):
    images = Counter(data.groups)
    share = np.mean([count > 1 for count in images.values()])
    assert 0.22 < share < 0.31 and max(images.values()) <= 6
    assert 1.28 < len(data.groups) / len(images) < 1.40
    assert len(set(zip(data.groups, data.labels))) == len(images)


@pytest.mark.parametrize("images", [56, 100, 700, 2000])
def test_every_class_has_lesions_for_three_splits(images):
    data = registry.create("dataset", "lesions", images=images)
    lesions = Counter(label for _, label in set(zip(data.groups, data.labels)))
    assert len(data.images) == images and len(lesions) == 7 and min(lesions.values()) >= 8


def test_images_of_one_lesion_differ_yet_share_its_colours(data):
    """Another view, not another lesion: the colours are nearer than those of other lesions."""
    lesions = [group for group, count in Counter(data.groups).items() if count > 1][:60]
    pairs = [np.flatnonzero(np.array(data.groups) == group)[:2] for group in lesions]
    first, second = (np.stack([data.images[pair[k]]() for pair in pairs]) for k in (0, 1))
    assert all(np.abs(a - b.astype(float)).mean() > 1 for a, b in zip(first, second))
    middle = [np.median(views[:, 16:48, 16:48], axis=(1, 2)) for views in (first, second)]
    same_lesion = np.abs(middle[0] - middle[1]).mean()
    other_lesion = np.abs(middle[0] - np.roll(middle[1], 1, axis=0)).mean()
    assert same_lesion < 0.7 * other_lesion


@pytest.mark.parametrize("size", [28, 29, 64, 97, 224, 450])
def test_any_size_can_be_drawn(size):
    data = registry.create("dataset", "lesions", size=size)
    for draw in data.images[:3]:
        image = draw()
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert image.std() > 5


def shrink(image, size):
    """The mean over the area of each target pixel."""
    edges = np.linspace(0, len(image), size + 1)
    at = np.arange(len(image))
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    weight = np.maximum(overlap, 0) / (len(image) / size)
    return np.einsum("ia,jb,abc->ijc", weight, weight, image.astype(float), optimize=True)


@pytest.mark.parametrize("small", [28, 64])
def test_it_is_the_same_scene_at_any_size(data, small):
    large = registry.create("dataset", "lesions", size=224)
    data = registry.create("dataset", "lesions", size=small)
    chosen = two_of_each(data)
    drawn = [data.images[i]().astype(float) for i in chosen]
    shrunk = [shrink(large.images[i](), small) for i in chosen]
    same_image = [np.abs(a - b).mean() for a, b in zip(drawn, shrunk)]
    next_image = [np.abs(a - b).mean() for a, b in zip(drawn, shrunk[1:])]
    assert max(same_image) < 4 and np.mean(same_image) < 2.5 < 10 < np.mean(next_image)


@pytest.mark.parametrize("options", [{"images": 20}, {"size": 0}, {"seed": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match="lesions"):
        registry.create("dataset", "lesions", **options)
