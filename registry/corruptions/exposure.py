"""Wrong exposure and contrast, computed as in Pillow's ImageEnhance.

Severities: those of MedMNIST-C for DermaMNIST.
"""

import numpy as np
from PIL import Image

from kd.corruptions import each
from registry import register


def brightness(image, factor):
    """Grey levels times `factor`."""
    picture = Image.fromarray(image)
    return np.asarray(Image.blend(Image.new("RGB", picture.size), picture, factor))


def contrast(image, factor):
    """Differences from the mean grey level times `factor`."""
    picture = Image.fromarray(image)
    mean = int(np.asarray(picture.convert("L")).mean() + .5)
    return np.asarray(Image.blend(Image.new("RGB", picture.size, (mean,) * 3), picture, factor))


@register("corruption", "brightness_up", family="exposure", ranges={"factor": (1, 10)},
          severities=[{"factor": factor} for factor in (1.1, 1.2, 1.3, 1.4, 1.5)])
def brightness_up(images, *, factor):
    """Over-exposed: grey levels times `factor`, clipped at white."""
    return each(lambda image: brightness(image, factor), images)


@register("corruption", "brightness_down", family="exposure", ranges={"factor": (0, 1)},
          severities=[{"factor": factor} for factor in (.9, .8, .7, .6, .5)])
def brightness_down(images, *, factor):
    """Under-exposed: grey levels times `factor`."""
    return each(lambda image: brightness(image, factor), images)


@register("corruption", "contrast_up", family="exposure", ranges={"factor": (1, 10)},
          severities=[{"factor": factor} for factor in (1.1, 1.2, 1.3, 1.4, 1.6)])
def contrast_up(images, *, factor):
    """Contrast too strong: differences from the mean grey level times `factor`, clipped."""
    return each(lambda image: contrast(image, factor), images)


@register("corruption", "contrast_down", family="exposure", ranges={"factor": (0, 1)},
          severities=[{"factor": factor} for factor in (.8, .7, .6, .5, .4)])
def contrast_down(images, *, factor):
    """Contrast too weak, by stray light or a dirty lens: differences from the mean grey level times `factor`."""
    return each(lambda image: contrast(image, factor), images)
