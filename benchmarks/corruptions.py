"""What corruptions cost here, beside the published way and beside Pillow.

    python benchmarks/corruptions.py

Batches of 16 images at 224 px, through kd.corruptions.apply, draws of their own for each image included; one thread.
The two sides of a ratio run in turn, so that whatever else the machine does meets both. No data; half a minute.

`noise`: normal noise as imagecorruptions and MedMNIST-C publish it, image by image in float64 with NumPy's global
generator; their packages import on few machines, so the method is written out here. `blur`: a Gaussian that is right
to one grey level, beside one pass of Pillow's box blur of the same variance; the least of the five severities' ratios.
`jpeg`, `contrast`: the same pixels by a plain loop over Pillow.
The last line is one JSON object of these ratios: times as fast as the other, the median of the rounds.
From run to run, four on one core at 2.5 GHz that others used too, that median went from 5.8 to 7.3 (noise), 1.23 to 1.36
(blur), .83 to 1.03 (jpeg) and 1.00 to 1.12 (contrast). JPEG is Pillow's own encoder on both sides: its 1 is no gain.
"""

import io
import json
import math
import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy starts its threads: Pillow has one

import numpy as np  # noqa: E402
from PIL import Image, ImageEnhance, ImageFilter  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import registry  # noqa: E402
from kd import corruptions  # noqa: E402

IMAGES, SIDE, ROUNDS = 16, 224, 25


def published_noise(image, sigma):
    values = image / 255.
    return (np.clip(values + np.random.normal(size=values.shape, scale=sigma), 0, 1) * 255).astype(np.uint8)


def box_blur(image, sigma):
    radius = (math.sqrt(12 * sigma ** 2 + 1) - 1) / 2  # a box of 2 radius + 1 has the variance sigma^2
    return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(radius)))


def pillow_gaussian(image, sigma):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def pillow_jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pillow_contrast(image, factor):
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def main():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (IMAGES, 28, 28, 3), np.uint8)
    images = np.stack([Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in small])
    result = {}
    print(f"milliseconds an image at {SIDE} px, median of {ROUNDS} rounds run in turn")
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
                result[key] = min(ratio, result.get(key, math.inf))
    print("\nevery corruption at severity 3, milliseconds an image")
    for name in registry.names("corruption"):
        entry = registry.get("corruption", name)
        corruptions.apply(entry, images, range(IMAGES), 3)
        print(f"{name:20}{1e3 * min(once(entry, images, 3) for _ in range(3)):8.2f}")
    print(json.dumps({key: round(value, 2) for key, value in result.items()}))


def compare(images, name, severity, other, label):
    """Prints a row; the median of the rounds' ratios."""
    entry = registry.get("corruption", name)
    value, = entry.info["severities"][severity - 1].values()
    once(entry, images, severity), other(images[0], value)
    times = np.array([(once(entry, images, severity), plain(other, images, value)) for _ in range(ROUNDS)])
    ratios = times[:, 1] / times[:, 0]
    here, there = 1e3 * np.median(times, 0)
    low, middle, high = np.quantile(ratios, (.25, .5, .75))
    print(f"{name:15}{value:>4g}  {label if len(label) < 15 else '':15}{here:8.2f}{there:9.2f}{middle:8.2f}   "
          f"{low:.2f} to {high:.2f}{'  ' + label if len(label) >= 15 else ''}")
    return float(middle)


def once(entry, images, severity):
    start = time.perf_counter()
    corruptions.apply(entry, images, range(IMAGES), severity)
    return (time.perf_counter() - start) / IMAGES


def plain(other, images, value):
    result = np.empty_like(images)
    start = time.perf_counter()
    for into, image in zip(result, images):
        into[...] = other(image, value)
    return (time.perf_counter() - start) / IMAGES


if __name__ == "__main__":
    main()
