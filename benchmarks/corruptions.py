"""The time of corruptions, compared with the published method and with Pillow.

    python benchmarks/corruptions.py

kd.corruptions.apply() gets batches of 16 images at 224 px, with one thread; the random draws for each image are
included. The two sides of a ratio take turns, so that other load affects both. It needs no data and takes half a
minute.

`noise`: compared with normal noise as imagecorruptions and MedMNIST-C publish it, image by image in float64 with
NumPy's global generator; their packages import on few machines, so that the method is repeated here. `blur`: a
Gaussian, correct to one grey level, compared with one pass of Pillow's box blur of the same variance; the least ratio
of the five severities. `jpeg`, `contrast`: compared with a plain loop over Pillow with the same result.
The last line is one JSON object of these ratios, times as fast, each the median of the rounds. In four runs on one
core at 2.5 GHz that others used too, this median was from 5.8 to 7.3 (noise), 1.23 to 1.36 (blur), .83 to 1.03 (jpeg)
and 1.00 to 1.12 (contrast). JPEG uses Pillow's encoder on both sides, so 1 is the expected ratio.
"""

import io
import json
import math
import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # set before NumPy starts its threads; one, because Pillow uses one

import numpy as np  # noqa: E402
from PIL import Image, ImageEnhance, ImageFilter  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import registry  # noqa: E402
from kd import corruptions  # noqa: E402

IMAGES, SIDE, ROUNDS = 16, 224, 25


def published_noise(image, sigma):
    """Normal noise of standard deviation sigma, a share of the range, as in imagecorruptions."""
    values = image / 255.
    return (np.clip(values + np.random.normal(size=values.shape, scale=sigma), 0, 1) * 255).astype(np.uint8)


def box_blur(image, sigma):
    """One pass of Pillow's box blur with the variance of a Gaussian of sigma px."""
    radius = (math.sqrt(12 * sigma ** 2 + 1) - 1) / 2  # a box of 2 radius + 1 has the variance sigma^2
    return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(radius)))


def pillow_gaussian(image, sigma):
    """Pillow's Gaussian blur of sigma px."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def pillow_jpeg(image, quality):
    """The image after JPEG compression by Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pillow_contrast(image, factor):
    """Pillow's ImageEnhance.Contrast."""
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def main():
    """Measure, and print the tables and the JSON object."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (IMAGES, 28, 28, 3), np.uint8)
    images = np.stack([Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in small])
    ratios = {}
    print(f"milliseconds an image at {SIDE} px, median of {ROUNDS} rounds in turns")
    print(f"{'':36}{'here':>8}{'other':>9}{'ratio':>8}   quartiles")
    for key, name, severities, other, label in (
            ("noise", "gaussian_noise", (3,), published_noise, "published, image by image"),
            ("blur", "gaussian_blur", (1, 2, 3, 4, 5), box_blur, "Pillow's box blur"),
            (None, "gaussian_blur", (3,), pillow_gaussian, "Pillow's Gaussian: three box blurs"),
            ("jpeg", "jpeg", (3,), pillow_jpeg, "Pillow"),
            ("contrast", "contrast_down", (3,), pillow_contrast, "Pillow")):
        for severity in severities:
            ratio = compare(images, name, severity, other, label)
            if key:
                ratios[key] = min(ratio, ratios.get(key, math.inf))
    print("\nevery corruption at severity 3, milliseconds an image")
    for name in registry.names("corruption"):
        entry = registry.get("corruption", name)
        corruptions.apply(entry, images, range(IMAGES), 3)
        fastest = min(seconds_applied(entry, images, 3) for _ in range(3))
        print(f"{name:20}{1e3 * fastest:8.2f}")
    print(json.dumps({key: round(ratio, 2) for key, ratio in ratios.items()}))


def compare(images, name, severity, other, label):
    """Print a row, and return the median over rounds of how many times faster a corruption is than other().

    other: a function of an image and the parameter of the corruption. label: its name in the table.
    """
    entry = registry.get("corruption", name)
    value, = entry.info["severities"][severity - 1].values()
    corruptions.apply(entry, images, range(IMAGES), severity)
    other(images[0], value)
    times = np.array([(seconds_applied(entry, images, severity), seconds_looped(other, images, value))
                      for _ in range(ROUNDS)])
    ratios = times[:, 1] / times[:, 0]
    ours, others = 1e3 * np.median(times, 0)
    low, median, high = np.quantile(ratios, (.25, .5, .75))
    short, long = (label, "") if len(label) < 15 else ("", f"  {label}")
    print(f"{name:15}{value:>4g}  {short:15}{ours:8.2f}{others:9.2f}{median:8.2f}   {low:.2f} to {high:.2f}{long}")
    return float(median)


def seconds_applied(entry, images, severity):
    """Seconds an image of kd.corruptions.apply()."""
    start = time.perf_counter()
    corruptions.apply(entry, images, range(IMAGES), severity)
    return (time.perf_counter() - start) / IMAGES


def seconds_looped(other, images, value):
    """Seconds an image of a loop over other()."""
    result = np.empty_like(images)
    start = time.perf_counter()
    for output, image in zip(result, images):
        output[...] = other(image, value)
    return (time.perf_counter() - start) / IMAGES


if __name__ == "__main__":
    main()
