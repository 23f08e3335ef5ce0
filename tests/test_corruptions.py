"""A corruption changes what it names, more with each severity, and the same way however images are grouped."""

import functools
import inspect
import io
import math
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import registry
from kd import corruptions, image
from kd.errors import UserError
from kd.robustness import suites
from registry.corruptions import blur, noise

NAMES = registry.names("corruption")
SIZES = (28, 64, 225)  # px
OF_COLOUR = {"saturation_up", "saturation_down"}  # they have nothing to change in a grey image


def get(name):
    return registry.get("corruption", name)


def apply(name, images, severity=None, **parameters):
    return corruptions.apply(get(name), images, range(len(images)), severity, parameters or None)


@functools.cache
def lesions(size, count=8, grey=False):
    """Dark blots on textured skin of many tones: uint8 [N, size, size, 3]."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:160, :160] / 160 - .5
    images = []
    for _ in range(count):
        blot = np.exp(
            -((((x - rng.normal(0, 0.08)) / rng.uniform(0.15, 0.3)) ** 2 + ((y - rng.normal(0, 0.08)) / 0.2) ** 2) ** 2)
        )
        fine, coarse = (
            np.asarray(Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).resize((160, 160), 3)) - 128.0
            for side in (80, 12)
        )
        skin = np.array([205, 155, 140]) + rng.normal(0, 15, 3) - blot[..., None] * rng.uniform(30, 130, 3)
        pixels = np.clip(skin + (fine * .15 + coarse * .15)[..., None], 0, 255).astype(np.uint8)
        images.append(np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)))
    images = np.array(images)
    return np.repeat(images[..., :1], 3, -1) if grey else images


# ---- all of them

@pytest.mark.parametrize("size, count, grey", [(28, 8, False), (64, 6, True), (144, 2, False)])
@pytest.mark.parametrize("name", NAMES)
def test_every_severity_changes_pixels_and_more_than_the_last(name, size, count, grey):
    images = lesions(size, count, grey)
    before, levels = images.copy(), [apply(name, images, severity) for severity in range(1, 6)]
    distance = [np.abs(level.astype(int) - images).mean() for level in levels]
    assert all(level.dtype == np.uint8 and level.shape == images.shape for level in levels)
    assert (images == before).all()
    if grey and name in OF_COLOUR:
        assert not any(distance)
    else:
        assert 0 < distance[0] and (np.diff(distance) > 0).all(), distance
    if grey and name != "colour_cast":
        assert all((level == level[..., :1]).all() for level in levels)


@pytest.mark.slow
def test_every_severity_changes_pixels_and_more_than_the_last_on_real_images(real_data):
    files = sorted((real_data / "ham10000" / "images").iterdir())
    for size in (28, 224, 450):
        images = np.stack([image.square(file, size) for file in files[::len(files) // 16]])
        for name in NAMES:
            distance = [np.abs(apply(name, images, severity).astype(int) - images).mean() for severity in range(1, 6)]
            assert 0 < distance[0] and (np.diff(distance) > 0).all(), (name, size, distance)


@pytest.mark.parametrize("name", NAMES)
def test_order_batch_and_subset_change_no_bit_and_seed_id_and_corruption_do(name):
    images, ids = lesions(48, 6), [f"ISIC_{k}" for k in range(6)]
    whole = corruptions.apply(get(name), images, ids, 3, seed=5)
    order = [4, 0, 3]
    assert (corruptions.apply(get(name), images[order], [ids[k] for k in order], 3, seed=5) == whole[order]).all()
    assert (corruptions.apply(get(name), images[2:3], ids[2:3], 3, seed=5) == whole[2:3]).all()
    draws = "rngs" in inspect.signature(get(name).make).parameters
    same = np.repeat(images[:1], 6, 0)
    others = [corruptions.apply(get(name), same, ids, 3, seed=seed) for seed in (5, 6)]
    assert (others[0] != others[0][:1]).any() == draws and (others[0] != others[1]).any() == draws


def test_draws_of_two_corruptions_are_not_one():
    streams = [corruptions.generator(0, corruption, "a").random(4).tolist() for corruption in NAMES]
    assert len({tuple(stream) for stream in streams}) == len(NAMES)


def test_registered_severities_are_five_and_within_the_ranges():
    for name in NAMES:
        info = get(name).info
        assert len(info["severities"]) == 5 and info["family"]
        for level in info["severities"]:
            assert level == corruptions.settings(get(name), None, level)


# ---- noise

FLAT = np.full((4, 128, 128, 3), 120, np.uint8)
FLAT[..., 2] = 121  # not grey: each channel has draws of its own
SAMPLES = FLAT.size


@pytest.mark.parametrize("name, parameters, deviation", [
    ("gaussian_noise", {"sigma": .08}, .08 * 255),
    ("speckle_noise", {"sigma": .15}, .15 * 120),
    ("shot_noise", {"photons": 60}, math.sqrt(120 / 255 / 60) * 255),
    ("impulse_noise", {"amount": .06}, math.sqrt(.03 * (120 ** 2 + 135 ** 2) - (.03 * 15) ** 2)),
])
def test_noise_has_the_stated_moments(name, parameters, deviation):
    change = apply(name, FLAT, **parameters).astype(float) - FLAT
    mean = .03 * (135 - 120) if name == "impulse_noise" else 0
    spread = math.sqrt(deviation ** 2 + (0 if name == "impulse_noise" else 1 / 12))  # 1/12: whole grey levels
    assert abs(change.mean() - mean) < 4.5 * spread / math.sqrt(SAMPLES)
    assert change.std() == pytest.approx(spread, rel=.012)
    flat = change.reshape(-1)
    assert abs(np.corrcoef(flat[1:], flat[:-1])[0, 1]) < 4.5 / math.sqrt(SAMPLES)      # channels of a pixel
    assert abs(np.corrcoef(change[0].flat, change[1].flat)[0, 1]) < 9 / math.sqrt(SAMPLES)  # images


def test_normal_noise_is_normal():
    sample = (apply("gaussian_noise", FLAT, sigma=.1).astype(float) - FLAT) / 25.5
    for bound, share in ((1, .6827), (2, .9545), (3, .9973)):  # a whole level lies to either side of a bound
        assert (np.abs(sample) < bound).mean() == pytest.approx(share, abs=.008)
    assert (sample ** 3).mean() == pytest.approx(0, abs=.03) and (sample ** 4).mean() == pytest.approx(3, abs=.06)


def test_salt_and_pepper_are_alike_often():
    changed = apply("impulse_noise", FLAT, amount=.1)
    for extreme in (0, 255):
        assert (changed == extreme).mean() == pytest.approx(.05, abs=.003)
    assert np.isin(changed, (0, 120, 121, 255)).all()


def test_photons_are_counted_as_poisson_says():
    levels = np.repeat(np.array([0, 40, 128, 230], np.uint8), 3).reshape(4, 1, 1, 3) * np.ones((1, 96, 96, 1), np.uint8)
    table = noise.photon_levels(12.)
    for level, seen in zip((0, 40, 128, 230), apply("shot_noise", levels, photons=12.)):
        rate = 12 * level / 255
        for count in range(12):
            expected = math.exp(-rate) * rate ** count / math.factorial(count)
            value = round(count * 255 / 12)
            assert (seen == value).mean() == pytest.approx(expected, abs=.012)
            assert (table.reshape(256, -1)[level] == value).mean() == pytest.approx(expected, abs=1e-4)


# ---- blur

def true_gaussian(pixels, sigma):
    """Float64, tap by tap, 6 standard deviations, mirrored about the outermost pixel."""
    reach = math.ceil(6 * sigma)
    weights = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-reach, reach + 1)]
    result = pixels.astype(np.float64)
    for axis in (0, 1):
        length = pixels.shape[axis]
        period = 2 * length - 2
        total = np.zeros_like(result)
        for k, weight in zip(range(-reach, reach + 1), weights):
            index = [min((i + k) % period, period - (i + k) % period) for i in range(length)]
            total += weight * result.take(index, axis)
        result = total / sum(weights)
    return result


def hard_images(size):
    """Noise of black and white, steps, and stripes of many widths: where an approximation would show."""
    rng = np.random.default_rng(0)
    yield rng.integers(0, 2, (size, size, 3)).astype(np.uint8) * 255
    steps = np.zeros((size, size, 3), np.uint8)
    steps[:, size // 3:] = 255
    steps[size // 2:] = 255 - steps[size // 2:]
    yield steps
    for period in (3, 6, 11):
        stripes = (np.arange(size) % period < period / 2) * np.uint8(255)
        yield np.repeat(np.broadcast_to(stripes[:, None, None], (size, size, 1)), 3, -1)


@pytest.mark.parametrize(
    "size, sigma", [(28, 0.4), (64, 1), (100, 2.3), (100, 2.4), (99, 3.6), (90, 5), (90, 8), (30, 12)]
)
def test_blur_is_a_true_gaussian_to_one_level(size, sigma):
    for pixels in hard_images(size):
        assert np.abs(blur.gaussian(pixels, sigma) - true_gaussian(pixels, sigma)).max() < 1


def test_a_flat_image_stays_flat_under_every_blur_and_sigma_0_changes_nothing():
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "zoom", "rotation", "off_centre"):
        for severity in (1, 3, 5):
            assert np.abs(apply(name, FLAT[:1], severity).astype(int) - FLAT[:1]).max() == 0, name
    picture = lesions(40, 1)
    assert (apply("gaussian_blur", picture, sigma=0) == picture).all()


def test_a_point_out_of_focus_is_a_disk_of_the_stated_radius_at_any_size():
    for size in (112, 224, 448):
        point = np.zeros((1, size, size, 3), np.uint8)
        point[0, size // 2 - 2:size // 2 + 3, size // 2 - 2:size // 2 + 3] = 255
        seen = apply("defocus_blur", point, radius=16, soft=0)[0, ..., 0].astype(float)
        y, x = np.mgrid[:size, :size] - size // 2
        second_moment = (seen * (x ** 2 + y ** 2)).sum() / seen.sum()
        assert math.sqrt(2 * second_moment) == pytest.approx(16 * size / 224, abs=1.1)  # of a disk: radius^2 / 2


def test_motion_leaves_a_trail_along_a_line_within_45_degrees():
    point = np.zeros((8, 225, 225, 3), np.uint8)
    point[:, 112, 112] = 255
    for seen in apply("motion_blur", point, radius=20, sigma=30):
        y, x = np.nonzero(seen[..., 0])
        x, y = x - 112, y - 112
        along = np.hypot(x, y).max()
        far = np.hypot(x, y).argmax()
        across = np.abs(x * y[far] - y * x[far]) / along
        assert abs(y[far]) <= abs(x[far]) and across.max() <= 1.5 and 36 <= along <= 42 and (x <= 0).all()


def test_convolution_by_fourier_is_the_sum_over_the_kernel():
    rng = np.random.default_rng(3)
    pixels, kernel = rng.integers(0, 256, (20, 23, 3), np.uint8), rng.random((5, 5)) / 13
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge").astype(float)
    expected = sum(kernel[dy, dx] * padded[dy:dy + 20, dx:dx + 23] for dy in range(5) for dx in range(5))
    assert np.abs(blur.correlate(pixels, kernel, "edge") - expected.clip(0, 255)).max() <= .501


# ---- what Pillow computes

def pillow_jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def pillow_pixelate(picture, factor):
    small = picture.resize([int(side * factor) for side in picture.size], Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BOX)


@pytest.mark.parametrize("name, pillow", [
    ("jpeg", pillow_jpeg), ("pixelate", pillow_pixelate),
    ("brightness_up", lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor)),
    ("brightness_down", lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor)),
    ("contrast_up", lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor)),
    ("contrast_down", lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor)),
    ("saturation_up", lambda picture, factor: ImageEnhance.Color(picture).enhance(factor)),
    ("saturation_down", lambda picture, factor: ImageEnhance.Color(picture).enhance(factor)),
])
def test_what_pillow_has_equals_pillow(name, pillow):
    for size in SIZES:
        images = lesions(size, 2)
        for severity, level in enumerate(get(name).info["severities"], 1):
            expected = [np.asarray(pillow(Image.fromarray(pixels), *level.values())) for pixels in images]
            assert (apply(name, images, severity) == expected).all()


# ---- geometry and drawing

def test_what_is_outside_the_tube_is_black_and_the_rest_is_untouched():
    images = lesions(224, 1)
    dark = apply("black_corner", images, radius=.9)[0]
    y, x = np.mgrid[:224, :224] - 112
    inside = x ** 2 + y ** 2 <= 100 ** 2
    assert (dark[inside] == images[0][inside]).all() and not dark[~inside].any()


def test_a_vignette_leaves_the_middle_and_takes_its_share_of_the_corner():
    seen = apply("vignette", np.full((1, 64, 64, 3), 200, np.uint8), loss=.75)[0, ..., 0]
    assert seen[32, 32] == 200 and seen[0, 0] == 50 and seen[32, 0] == round(200 * (1 - .75 / 2))


def test_a_turn_by_half_a_circle_and_a_zoom_by_two_are_what_they_say():
    images = lesions(64, 2)
    assert np.abs(apply("rotation", images, degrees=180).astype(int) - images[:, ::-1, ::-1]).max() <= 1
    middle = [Image.fromarray(pixels[16:48, 16:48]).resize((64, 64), Image.Resampling.BICUBIC) for pixels in images]
    near = apply("zoom", images, factor=2)
    assert np.abs(near[:, 8:-8, 8:-8].astype(int) - np.stack(middle)[:, 8:-8, 8:-8]).max() <= 1


def test_off_centre_is_moved_by_the_stated_share_of_the_side():
    images = lesions(80, 4)
    for pixels, moved in zip(images, apply("off_centre", images, share=.2)):
        fits = [(dy, dx) for dy in range(-17, 18) for dx in range(-17, 18)
                if (moved[20:60, 20:60] == pixels[20 + dy:60 + dy, 20 + dx:60 + dx]).all()]
        assert [round(math.hypot(*fit) / 80, 1) for fit in fits] == [.2]


@pytest.mark.parametrize("name", ["hair", "ruler", "bubbles", "ink", "characters"])
def test_a_drawing_is_the_same_at_every_size(name):
    small, large = (np.full((3, size, size, 3), 170, np.uint8) for size in (56, 224))
    reduced = apply(name, large, 4).reshape(3, 56, 4, 56, 4, 3).mean((2, 4))
    difference = np.abs(apply(name, small, 4) - reduced)  # where two layers cover one pixel, means do not commute
    assert difference.max() <= 10 and difference.mean() < .3


@pytest.mark.parametrize("name", ["hair", "bubbles", "ink"])
def test_a_further_severity_keeps_what_the_last_one_drew(name):
    plain = np.full((3, 96, 96, 3), 170, np.uint8)
    fewer, more = (apply(name, plain, severity) != 170 for severity in (2, 3))
    assert (more | ~fewer).mean() > .999 and more.sum() > fewer.sum()


# ---- suites

def test_the_default_suite_has_fifteen_corruptions_at_five_severities_and_leaves_families_to_train_on():
    cells = suites.cells("default", get)
    assert len({cell.corruption for cell in cells}) == 15 and len({cell.tag for cell in cells}) == len(cells) == 75
    measured = {get(cell.corruption).info["family"] for cell in cells}
    assert {"colour", "framing"} == {get(name).info["family"] for name in NAMES} - measured


def test_phase1_says_that_its_gaussian_is_noise():
    cells = {cell.tag: (cell.corruption, cell.parameters) for cell in suites.cells("phase1", get)}
    assert list(cells) == [
        "gaussian_0.1", "gaussian_0.2", "gaussian_0.3", "jpeg_90", "jpeg_70", "jpeg_50", "contrast_0.8",
        "contrast_0.6",
    ]
    assert cells["gaussian_0.2"] == ("gaussian_noise", {"sigma": .2}) and cells["jpeg_70"] == ("jpeg", {"quality": 70})
    assert cells["contrast_0.6"] == ("contrast_down", {"factor": .6})
    assert "not a blur" in suites.NOTES["phase1"] and all("JPEG" in note for note in suites.NOTES.values())


def test_every_cell_of_a_suite_runs():
    images = lesions(32, 1)
    for suite in ("medmnist-c", "phase1"):  # the default's cells are the severities, which are tested above
        for cell in suites.cells(suite, get):
            changed = corruptions.apply(get(cell.corruption), images, ["a"], cell.severity, cell.parameters)
            assert cell.corruption == "characters" or (changed != images).any(), cell


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(UserError) as caught:
        suites.cells("medmnist", get)
    assert str(caught.value) == "error: unknown suite 'medmnist'\ndid you mean medmnist-c?"


def test_the_severities_are_those_that_medmnist_c_computes():
    """To one level, where nothing is drawn; theirs cuts fractions off, ours rounds."""
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    theirs = pytest.importorskip("medmnistc.corruptions.registry", exc_type=ImportError).CORRUPTIONS_DS["dermamnist"]
    images = lesions(224, 3)
    rng = random.Random(0)
    swapped = {("black_corner", 4): 5, ("black_corner", 5): 4}
    for cell in suites.cells("medmnist-c", get):
        corruptor = theirs.get(cell.corruption) or theirs["jpeg_compression"]
        place = swapped.get((cell.corruption, cell.severity), cell.severity) - 1
        ours = corruptions.apply(get(cell.corruption), images, "abc", cell.severity, cell.parameters)
        corruptor.rng = np.random.default_rng(0)
        np.random.seed(0)
        random.seed(0)
        if cell.corruption == "motion_blur":
            radius, sigma = corruptor.severity_params[place]
            angle = rng.uniform(-45, 45)
            ours = np.stack([blur.correlate(each, blur.trail(radius, sigma, angle, 1), "edge") for each in images])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(np.random, "uniform", lambda low, high: angle)
                patch.setattr(np, "fromstring", np.frombuffer)  # NumPy 2 has no binary fromstring
                expected = [corruptor.apply(Image.fromarray(each), place) for each in images]
        else:
            expected = [np.asarray(corruptor.apply(Image.fromarray(each), place)) for each in images]
        change = [np.abs(each - images.astype(int)).mean() for each in (ours, expected)]
        if cell.corruption == "characters":
            assert max(change) < .5
        elif cell.corruption.endswith("_noise"):
            assert change[0] == pytest.approx(change[1], rel=.03)
        else:
            assert np.abs(ours.astype(int) - expected).max() <= 1, cell


# ---- what is wrong is said in a line

@pytest.mark.parametrize(
    "name, severity, parameters, words",
    [
        ("jpeg", 6, None, "the corruption jpeg has no severity 6\nGive a whole number from 1 to 5."),
        ("jpeg", None, None, "the corruption jpeg has no severity None"),
        (
            "jpeg", None, {"qualty": 3},
            "the corruption jpeg has no parameter 'qualty'; did you mean quality?\nIt has: quality.",
        ),
        (
            "jpeg", None, {"quality": 0},
            "quality of the corruption jpeg cannot be 0\nGive a whole number from 1 to 100.",
        ),
        ("jpeg", None, {"quality": 30.5}, "quality of the corruption jpeg cannot be 30.5"),
        (
            "gaussian_noise", None, {"sigma": math.nan},
            "sigma of the corruption gaussian_noise cannot be nan\nGive a number from 0 to 2.",
        ),
        ("gaussian_noise", None, {"sigma": "strong"}, "sigma of the corruption gaussian_noise cannot be 'strong'"),
        ("hair", None, {"count": 10**400}, "count of the corruption hair cannot be 1000"),
    ],
)
def test_bad_parameters_are_an_error(name, severity, parameters, words):
    with pytest.raises(UserError) as caught:
        corruptions.apply(get(name), FLAT, range(4), severity, parameters)
    assert str(caught.value).startswith("error: " + words)


def fails(images):
    raise ValueError("no such luck")


def writes(images):
    images[:] = 0
    return images


@pytest.mark.parametrize("make, words", [
    (lambda images: images[:, :-1], "returned uint8 [4, 127, 128, 3], not uint8 [4, 128, 128, 3]"),
    (lambda images: images / 2, "returned float64 [4, 128, 128, 3]"),
    (lambda images: images * math.nan, "returned NaN or infinity"),
    (lambda images: None, "returned a NoneType"),
    (fails, "failed: ValueError: no such luck"),
    (writes, "failed: ValueError: assignment destination is read-only"),
])
def test_a_plugin_that_is_wrong_is_named_with_its_place(make, words, tmp_path):
    entry = registry.Entry("corruption", "mine", (), make, tmp_path / "mine.py", 7, {"severities": [{}] * 5})
    with pytest.raises(UserError) as caught:
        corruptions.apply(entry, FLAT, range(4), 1)
    assert str(caught.value).startswith(f"error: the corruption mine {words}")
    assert caught.value.hint == f"It stands in {tmp_path / 'mine.py'}, line 7."


def test_an_unknown_corruption_names_the_nearest():
    with pytest.raises(registry.UnknownName, match="unknown corruption 'gausian_noise'; did you mean gaussian_noise"):
        get("gausian_noise")


def test_the_page_has_every_corruption_with_its_severities_and_suite():
    page = (Path(registry.__file__).parent.parent / "docs" / "corruptions.md").read_text(encoding="utf-8")
    for name in NAMES:
        levels = get(name).info["severities"]
        values = "; ".join(f"{key} " + " ".join(f"{level[key]:g}" for level in levels) for key in levels[0])
        marks = ["●"] * (name in suites.DEFAULT) + ["M"] * (name in suites.MEDMNIST_C)
        assert f"| `{name}` | {values} | {' '.join(marks) + ' ' if marks else ''}|" in page


def test_the_pages_own_corruption_runs(tmp_path):
    page = (Path(registry.__file__).parent.parent / "docs" / "corruptions.md").read_text(encoding="utf-8")
    code = page.split("anywhere with `--plugin`:\n")[1].split("\n`images` is")[0]
    names = {
        "register": lambda kind, name, **info: lambda make: registry.Entry(kind, name, (), make, tmp_path, 1, info)
    }
    exec(textwrap.dedent(code).replace("from registry import register", ""), names)
    changed = corruptions.apply(names["dead_rows"], FLAT, range(4), 3)
    assert 1 <= (changed == 0).all((2, 3)).sum(1).min() <= 4
