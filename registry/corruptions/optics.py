"""Shading by the lens and its tube."""

import numpy as np

from kd.corruptions import each, pixels
from registry import register


def distance(images):
    """The distance of each pixel from the pixel in the middle, in pixels: [H, W]."""
    down, across = (np.arange(side) - side // 2 for side in images.shape[1:3])
    return np.hypot(down[:, None], across)


@register("corruption", "vignette", family="optics", ranges={"loss": (0, 1)},
          severities=[{"loss": loss} for loss in (.3, .45, .6, .75, .9)])
def vignette(images, *, loss):
    """Light falls off with the square of the distance from the centre, by a share `loss` in the corners."""
    from_middle = distance(images)
    light = (1 - loss * (from_middle / from_middle.max()) ** 2).astype(np.float32)[..., None]
    return each(lambda image: np.rint(image * light), images)


@register("corruption", "black_corner", family="optics", ranges={"radius": (0, 2)},
          severities=[{"radius": radius} for radius in (1.1, 1.05, 1., .95, .9)])
def black_corner(images, *, radius):
    """Black outside a circle of `radius` half sides: the tube is visible.

    Severities: those of MedMNIST-C for DermaMNIST, with the last two exchanged.
    """
    outside = distance(images) > pixels(images, int(112 * radius))
    return np.where(outside[..., None], np.uint8(0), images)
