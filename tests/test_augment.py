"""Every draw follows from (seed, epoch, image); batches hold each training image once."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from kd import image
from kd.data import augment, batching, loader
from kd.data.dataset import Dataset
from kd.errors import UserError

rng = np.random.default_rng(0)
MIDDLE = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "erase": 1.0}
WHOLE = {"scale": 1.0, "ratio": np.log(4 / 3) / np.log(16 / 9), "left": 0.0, "top": 0.0}  # the square as it is


def draws(count=1, **fixed):
    """Draws of 0.5 and no erasing, except for the values in `fixed`."""
    values = {**dict.fromkeys(augment.DRAWS, 0.5), **MIDDLE, **fixed}
    return {name: np.resize(np.asarray(value, float), count) for name, value in values.items()}


def views(data, seed=0, epoch=1, **options):
    """{image: pixels} of an epoch's batches."""
    result = {}
    if "kind" in options:
        options["views"] = batching.Views(options.pop("kind"))
    for images, labels, index, *_ in batching.training_batches(data, seed=seed, epoch=epoch, device="cpu", **options):
        for k, i in enumerate(index.tolist()):
            assert i not in result and labels[k] == data.labels[data.where("train")][i]
            result[i] = images[k].clone()
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """50 images, 30 of them (every other one and more) for training."""
    pixels = np.random.default_rng(1).integers(0, 256, (50, 24, 24, 3), dtype=np.uint8)
    split = ["train", "val", "train", "test", "train"] * 10
    dataset = Dataset("noise", ["a", "b"], list(pixels), range(50), np.arange(50) % 2, split=split)
    return loader.prepare(dataset, size=24, cache_folder=tmp_path_factory.mktemp("cache"))


# The generator


def test_a_draw_depends_on_seed_epoch_and_image_alone():
    whole = augment.draw(3, 7, np.arange(100))
    for index in ([5], [99, 0, 42], np.arange(100)[::-1], np.array([7, 7], np.uint8)):
        part = augment.draw(3, 7, np.asarray(index))
        assert all(np.array_equal(part[name], whole[name][index]) for name in augment.DRAWS)
    for other in (
        augment.draw(4, 7, np.arange(100)), augment.draw(3, 8, np.arange(100)), augment.draw(7, 3, np.arange(100)),
    ):
        assert not any(np.any(other[name] == whole[name]) for name in augment.DRAWS)


def test_draws_stay_what_they_were():
    """Runs are resumed and targets kept on disk: the generator may never change. By hand in Python's integers."""
    mask = 2 ** 64 - 1

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    for seed, epoch, index in ((0, 0, 0), (1, 2, 3), (2 ** 40, 300, 99_999)):
        for k, name in enumerate(augment.DRAWS):
            state = 0
            for part in (seed, epoch, index, k):
                state = mix(state + part + 0x9E3779B97F4A7C15 & mask)
            assert augment.draw(seed, epoch, np.array([index]))[name][0] == (state >> 11) / 2 ** 53
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's first output from seed 0, as published


def test_draws_are_uniform_and_unrelated():
    count = 20_000
    table = np.stack(list(augment.draw(0, 1, np.arange(count)).values()), 1)
    assert table.min() >= 0 and table.max() < 1
    assert np.abs(table.mean(0) - 1 / 2).max() < 4.5 * np.sqrt(1 / 12 / count)
    assert np.abs(table.var(0) - 1 / 12).max() < 4.5 * np.sqrt(1 / 180 / count)
    tenths = np.stack([np.histogram(column, 10, (0, 1))[0] for column in table.T])
    assert ((tenths - count / 10) ** 2 / (count / 10)).sum(1).max() < 33.7  # chi-squared, 9 degrees: 1 in 10,000
    others = [table, np.roll(table, 1, 0), np.stack(list(augment.draw(0, 2, np.arange(count)).values()), 1),
              np.stack(list(augment.draw(1, 1, np.arange(count)).values()), 1)]
    correlation = np.corrcoef(np.concatenate(others, 1).T) - np.eye(4 * table.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(count)  # of about 1,500 pairs


# The crop


def test_the_whole_square_is_left_as_it_is():
    pixels = rng.integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    assert np.array_equal(augment.crop(pixels, draws(**WHOLE, flip=0.9, turn=0.0), 20), pixels)


def test_both_flips_and_all_four_turns_occur():
    pixels = np.arange(16 * 16 * 3).reshape(1, 16, 16, 3).astype(np.uint8)
    for flip in (0.0, 0.499, 0.5, 0.999):
        for turn in (0.0, 0.249, 0.25, 0.5, 0.75, 0.999):
            seen = augment.crop(pixels, draws(**WHOLE, flip=flip, turn=turn), 16)[0]
            expected = pixels[0][:, ::-1] if flip < 0.5 else pixels[0]
            assert np.array_equal(seen, np.rot90(expected, int(turn * 4)))


def test_a_crop_keeps_the_area_and_shape_that_were_drawn():
    """On ramps: the colours of a view tell where its box lay."""
    side, count = 100, 300
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp, ramp[:, None]
    drawn = {**augment.draw(0, 1, np.arange(count)), **draws(count, flip=0.9, turn=0.0)}
    drawn.update({name: augment.draw(0, 1, np.arange(count))[name] for name in ("scale", "ratio", "left", "top")})
    seen = augment.crop(pixels, drawn, 50).astype(float) / 255
    left, right = seen[:, :, 0, 0].mean(1), seen[:, :, -1, 0].mean(1)
    top, bottom = seen[:, 0, :, 1].mean(1), seen[:, -1, :, 1].mean(1)
    width, height = (right - left) * 50 / 49, (bottom - top) * 50 / 49
    area, ratio = 0.5 + 0.5 * drawn["scale"], 3 / 4 * (16 / 9) ** drawn["ratio"]
    fits = (area * ratio < 1) & (area / ratio < 1)
    assert fits.sum() > 150
    assert np.abs(width * height - area)[fits].max() < 0.03 and np.abs(width / height - ratio)[fits].max() < 0.06
    assert left.min() < 0.03 and right.max() > 0.97 and top.min() < 0.03 and bottom.max() > 0.97


@pytest.mark.parametrize("side, size", [(72, 64), (252, 64), (50, 96)])
def test_a_crop_is_what_pillow_makes_of_the_same_box(side, size):
    pixels = rng.integers(0, 256, (20, side // 4, side // 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    drawn = {**augment.draw(0, 1, np.arange(20)), "flip": np.full(20, 0.9), "turn": np.zeros(20)}
    for view, image_, (left, top, width, height) in zip(
        augment.crop(pixels, drawn, size), pixels, zip(*augment._boxes(pixels.shape[1], drawn))
    ):
        box = Image.fromarray(image_[top:top + height, left:left + width])
        expected = np.asarray(box.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(view - expected).max() <= 1


def test_no_draw_leaves_the_picture():
    extremes = [0.0, 0.5, 1 - 2.0 ** -53]
    table = np.array(np.meshgrid(*[extremes] * 4)).reshape(4, -1)
    count = table.shape[1]
    batch = draws(count, **dict(zip(("scale", "ratio", "left", "top"), table)))
    for side in (9, 28, 63, 72, 252):
        many = augment.draw(side, 0, np.arange(200))
        assert augment.crop(np.full((count, side, side, 3), 200, np.uint8), batch, 8).min() == 200
        assert augment.crop(np.full((200, side, side, 3), 200, np.uint8), many, 8).min() == 200


# Colour


def test_middle_draws_leave_the_colours_alone():
    images = torch.rand(4, 3, 10, 12)
    before = images.clone()
    assert torch.allclose(augment.colour(images, draws(4)), images, atol=1e-6)
    assert torch.equal(images, before)


def test_brightness_contrast_and_saturation_are_what_they_are_called():
    images = torch.rand(1, 3, 10, 12) * 0.5 + 0.25
    brighter = augment.colour(images.clone(), draws(brightness=1.0))
    assert torch.allclose(brighter, images * 1.2, atol=1e-6)
    flatter = augment.colour(images.clone(), draws(contrast=0.0))
    assert flatter.mean().item() == pytest.approx(images.mean().item(), abs=1e-6)
    assert flatter.std().item() == pytest.approx(0.8 * images.std().item(), rel=1e-5)
    paler = augment.colour(images.clone(), draws(saturation=0.0))
    grey = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]  # ITU-R BT.601, as Pillow's mode L
    assert torch.allclose(paler, 0.8 * images + 0.2 * grey[:, None], atol=1e-6)
    hue = [colorsys.rgb_to_hsv(*x[0, :, 4, 5].tolist())[0] for x in (images, paler)]
    assert hue[0] == pytest.approx(hue[1], abs=1e-4)


def test_all_three_together_are_brightness_then_contrast_then_saturation():
    images, drawn = torch.rand(6, 3, 9, 7), {**augment.draw(0, 1, np.arange(6)), "erase": np.ones(6)}
    bright, contrast, saturation = (torch.from_numpy(0.8 + 0.4 * drawn[name]).float().view(-1, 1, 1, 1)
                                    for name in ("brightness", "contrast", "saturation"))
    expected = images * bright
    mean = expected.mean((1, 2, 3), keepdim=True)
    expected = mean + contrast * (expected - mean)
    grey = 0.299 * expected[:, :1] + 0.587 * expected[:, 1:2] + 0.114 * expected[:, 2:]
    expected = (grey + saturation * (expected - grey)).clamp(0, 1)
    assert torch.allclose(augment.colour(images, drawn), expected, atol=1e-6)


def test_colours_stay_in_range():
    count = 500
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8)) / 255).float()
    images[:50], images[50:100] = 0, 1
    result = augment.colour(images.clone(), augment.draw(0, 1, np.arange(count)))
    assert result.min() >= 0 and result.max() <= 1 and torch.isfinite(result).all()


def test_a_quarter_of_the_images_lose_a_rectangle():
    count, height, width = 2000, 20, 30
    images = torch.rand(count, 3, height, width)
    drawn = {
        **augment.draw(0, 1, np.arange(count)),
        **{name: np.full(count, 0.5) for name in ("brightness", "contrast", "saturation")},
    }
    result = augment.colour(images.clone(), drawn)
    changed = ((result - images).abs() > 1e-5).any(1).numpy()
    hit = changed.any((1, 2))
    assert np.array_equal(hit, drawn["erase"] < 0.25) and abs(hit.mean() - 0.25) < 0.04
    corners = np.zeros((height, width), int)
    for n in np.flatnonzero(hit):
        rows, columns = np.flatnonzero(changed[n].any(1)), np.flatnonzero(changed[n].any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert changed[n][box].mean() > 0.99 and changed[n].sum() <= 0.2 * height * width
        assert result[n][(slice(None), *box)].unique().numel() == 1  # one grey: the mean of the image
        assert abs(result[n][(0, *box)].flatten()[0] - images[n].mean()) < 1e-4
        corners[box] += 1
    assert corners[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 0  # it reaches every corner


def test_erasing_never_fails_on_tiny_images():
    for size in (1, 2, 3, 5):
        drawn = {**augment.draw(0, 1, np.arange(100)), "erase": np.zeros(100)}
        assert augment.colour(torch.rand(100, 3, size, size), drawn).shape == (100, 3, size, size)


def test_no_images_are_no_floats():
    assert augment.to_float(np.empty((0, 8, 8, 3), np.uint8), "cpu").shape == (0, 3, 8, 8)


def test_floats_are_scaled_and_normalised_by_channel():
    pixels = rng.integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    scaled = augment.to_float(pixels, "cpu")
    assert np.array_equal(scaled.permute(0, 2, 3, 1).numpy(), pixels.astype(np.float32) / np.float32(255))
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    expected = (pixels / 255 - np.array(image.MEAN)) / np.array(image.STD)
    for batch in (scaled, scaled.contiguous()):
        result = augment.normalise(batch, image.MEAN, image.STD)
        assert np.allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)
    assert scaled.max() <= 1  # the input is left as it was


# Batches


def test_an_epoch_shows_every_training_image_once(data):
    for epoch in (1, 2):
        seen = views(data, epoch=epoch, batch=7)
        assert sorted(seen) == list(range(30))
        assert all(view.shape == (3, 24, 24) and view.dtype == torch.float32 for view in seen.values())


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 30}, {"batch": 2}, {"batch": 7, "workers": 0}, {"batch": 7, "workers": 3},
        {"batch": 1000, "workers": 2},
    ],
)
def test_pixels_do_not_depend_on_batch_size_or_workers(data, options):
    expected, seen = views(data, batch=8), views(data, **options)
    assert sorted(seen) == sorted(expected)
    assert all(torch.equal(seen[i], expected[i]) for i in expected)


def test_pixels_do_not_depend_on_the_batch_at_larger_sizes():
    """Where torch may split its sums over threads."""
    images = torch.rand(6, 3, 200, 200).contiguous(memory_format=torch.channels_last)
    drawn = augment.draw(0, 1, np.arange(6))
    whole = augment.colour(images.clone(), drawn)
    for part in ([0, 1], [5, 2, 3]):
        assert torch.equal(
            augment.colour(images[part], {name: values[part] for name, values in drawn.items()}), whole[part]
        )


def test_order_and_pixels_follow_seed_and_epoch(data):
    first = views(data, seed=5, epoch=2, batch=8)
    again = views(data, seed=5, epoch=2, batch=8)
    assert list(first) == list(again) and all(torch.equal(first[i], again[i]) for i in first)
    for other in (views(data, seed=5, epoch=3, batch=8), views(data, seed=6, epoch=2, batch=8)):
        assert list(other) != list(first)
        assert not any(torch.equal(first[i], other[i]) for i in first)


def test_a_view_can_be_drawn_again(data):
    rows = data.where("train")
    drawn = augment.draw(5, 2, rows[[11]])
    view = augment.to_float(augment.crop(data.pixels(rows[[11]]), drawn, 24), "cpu")
    assert torch.allclose(augment.colour(view, drawn)[0], views(data, seed=5, epoch=2, batch=8)[11], atol=1e-6)


def test_a_last_batch_of_one_image_is_left_out(data):
    seen = [len(batch.index) for batch in batching.training_batches(data, batch=29, seed=0, epoch=1, device="cpu")]
    assert seen == [29]
    with pytest.raises(UserError, match="no batch of 2 labelled images"):
        views(data, batch=1)


def test_a_fault_in_a_worker_is_not_swallowed(data, monkeypatch):
    def broken(*args):
        raise RuntimeError("broken crop")

    monkeypatch.setattr(augment, "crop", broken)
    for workers in (0, 1, 3):
        with pytest.raises(RuntimeError, match="broken crop"):
            views(data, batch=8, workers=workers)


def test_evaluation_sees_the_centre_in_the_order_of_the_images(tmp_path):
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / f"{k:02}.png")
    paths = sorted(tmp_path.glob("*.png"))
    dataset = Dataset("files", ["a", "b"], paths, [p.name for p in paths], np.arange(12) % 2,
                      split=["test", "train", "val"] * 4)
    data = loader.prepare(dataset, size=32, cache_folder=tmp_path)
    assert data.input()["resize"] == 36
    seen = torch.cat(list(batching.evaluation_batches(data, "test", batch=3, device="cpu")))
    expected = np.stack([image.centre_crop(image.square(paths[k], 36)[None], 32)[0] for k in (0, 3, 6, 9)])
    assert torch.equal(seen, augment.to_float(expected, "cpu"))


# Other ways to the same view


def test_a_batch_resampled_as_a_gpu_does_it_shows_what_pillow_shows():
    smooth = np.stack([np.cumsum(np.cumsum(rng.normal(size=(40, 40, 3)), 0), 1) for _ in range(64)])
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    pixels = (255 * (smooth - low) / (high - low)).astype(np.uint8)
    drawn = augment.draw(0, 1, np.arange(64))
    assert {(f, t) for f, t in zip(drawn["flip"] < 0.5, (drawn["turn"] * 4).astype(int))} == {
        (f, t) for f in (0, 1) for t in range(4)
    }
    expected = augment.to_float(augment.crop(pixels, drawn, 36), "cpu")
    seen = augment.resample(torch.from_numpy(pixels), drawn, 36)
    assert seen.shape == (64, 3, 36, 36) and seen.is_contiguous(memory_format=torch.channels_last)
    assert (seen - expected).abs().amax((1, 2, 3)).max() < 0.05 and (seen - expected).abs().mean() < 1 / 255


def test_a_light_view_is_a_window_of_its_image_or_its_mirror():
    pixels = rng.integers(0, 256, (80, 12, 12, 3), dtype=np.uint8)
    drawn = augment.draw(0, 1, np.arange(80))
    places, ways = set(), set()
    for image_, view in zip(pixels, augment.window(pixels, drawn, 9)):
        matches = [(i, j, down, across) for i in range(4) for j in range(4) for down in (1, -1) for across in (1, -1)
                 if np.array_equal(image_[i:i + 9, j:j + 9][::down, ::across], view)]
        assert len(matches) == 1
        places.add(matches[0][:2])
        ways.add(matches[0][2:])
    assert len(places) == 16 and len(ways) == 4  # each of them occurs
    assert augment.window(pixels, drawn, 12).shape == (80, 12, 12, 3)


def test_light_views_can_be_drawn_again_and_are_whole_pixels(data):
    first, again, heavy = (
        views(data, batch=8, kind="light"), views(data, batch=7, kind="light", workers=0), views(data, batch=8),
    )
    assert all(torch.equal(first[i], again[i]) and not torch.equal(first[i], heavy[i]) for i in first)
    rows = data.where("train")
    assert all(
        torch.equal((first[i] * 255).round().sum(), torch.tensor(float(data.pixels(rows[[i]]).sum()))) for i in first
    )
