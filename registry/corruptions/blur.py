"""A lens out of focus, a hand that moves. Lengths are pixels of a 224 px image, scaled with the image.

Severities: MedMNIST-C's for DermaMNIST, which has no Gaussian blur, but for two: its first motion, (10, 5), is its second
in all but name, and its fifth defocus, (8, .5), brightens as well.
"""

import numpy as np

from kd import filters
from kd.corruptions import each, pixels
from registry import register


@register("corruption", "gaussian_blur", family="blur", ranges={"sigma": (0, 100)},
          severities=[{"sigma": sigma} for sigma in (3., 4., 5., 6., 8.)])
def gaussian_blur(images, *, sigma):
    """A Gaussian of standard deviation sigma."""
    return each(lambda image: filters.gaussian(image, pixels(images, sigma)), images)


@register("corruption", "defocus_blur", family="blur", ranges={"radius": (0, 100), "soft": (0, 10)},
          severities=[{"radius": radius, "soft": soft} for radius, soft in ((4., .1), (5., .2), (6., .3), (7., .4), (8., .1))])
def defocus_blur(images, *, radius, soft):
    """A lens out of focus: the mean over a disk of `radius`, its rim softened by `soft`."""
    kernel = filters.disk(radius, soft, pixels(images, 1))
    return each(lambda image: filters.correlate(image, kernel), images)


@register("corruption", "motion_blur", family="blur", ranges={"radius": (1, 100), "sigma": (.1, 100)},
          severities=[{"radius": radius, "sigma": sigma}
                      for radius, sigma in ((10., 3.), (15., 5.), (15., 8.), (15., 12.), (20., 15.))])
def motion_blur(images, *, rngs, radius, sigma):
    """A hand that moved: a trail of 2 radius + 1 that fades by sigma, within 45 degrees of horizontal."""
    def blur(image, rng):
        return filters.correlate(image, filters.trail(radius, sigma, rng.uniform(-45, 45), pixels(images, 1)), "edge")
    return each(blur, images, rngs)


@register("corruption", "zoom_blur", family="blur", ranges={"zoom": (1, 4), "step": (.001, 1)},
          severities=[{"zoom": zoom, "step": step}
                      for zoom, step in ((1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03))])
def zoom_blur(images, *, zoom, step):
    """Moved towards the skin while exposing: the mean of enlargements from 1 to `zoom` by `step`."""
    factors = np.arange(1, zoom, step)
    return each(lambda image: filters.zoom(image, factors), images)
