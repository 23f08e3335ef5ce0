"""Noise of the sensor and of its electronics. Severities: MedMNIST-C's for DermaMNIST."""

import numpy as np

from kd import noise
from kd.corruptions import each
from registry import register


@register("corruption", "gaussian_noise", family="noise", ranges={"sigma": (0, 2)},
          severities=[{"sigma": sigma} for sigma in (.04, .08, .12, .18, .26)])
def gaussian_noise(images, *, rngs, sigma):
    """Normal noise of standard deviation sigma, as a share of the range; dim light at a high gain."""
    table = np.rint(255 * sigma * noise.normal_quantiles()).astype(np.int16)
    return each(lambda image, rng: noise.add_normal(image, rng, table), images, rngs)


@register("corruption", "speckle_noise", family="noise", ranges={"sigma": (0, 2)},
          severities=[{"sigma": sigma} for sigma in (.05, .15, .2, .35, .45)])
def speckle_noise(images, *, rngs, sigma):
    """Normal noise of standard deviation sigma times the grey level; coherent light."""
    return each(lambda image, rng: noise.multiply_normal(image, rng, sigma), images, rngs)


@register("corruption", "shot_noise", family="noise", ranges={"photons": (1, 10000)},
          severities=[{"photons": photons} for photons in (60., 25., 18., 10., 5.)])
def shot_noise(images, *, rngs, photons):
    """Poisson noise of a sensor that counts `photons` where the image is white."""
    table = noise.photon_levels(photons)
    return each(lambda image, rng: noise.photon_noise(image, rng, table), images, rngs)


@register("corruption", "impulse_noise", family="noise", ranges={"amount": (0, 1)},
          severities=[{"amount": amount} for amount in (.01, .03, .06, .09, .17)])
def impulse_noise(images, *, rngs, amount):
    """Salt and pepper on a share `amount` of the samples; broken cells, a disturbed line."""
    return each(lambda image, rng: noise.salt_and_pepper(image, rng, amount), images, rngs)
