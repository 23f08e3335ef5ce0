"""Noise of the sensor and of its electronics. Severities: those of MedMNIST-C for DermaMNIST.

Grey levels are whole numbers, so that noise has few different values: a table maps 16 random bits to the noise of one
sample. This takes a quarter of the bits of a float32 normal, and no arithmetic; each probability is correct to 2^-16.
A grey image has one draw for each pixel and stays grey, a colour image has one for each channel.
"""

import functools
import math
from statistics import NormalDist

import numpy as np

from kd.corruptions import each, is_grey
from registry import register

WORDS = 1 << 16   # number of values of a 16-bit word
COARSE = 1 << 14  # quantiles of the photon counts of one grey level, so that 256 tables fit into 4 MB


def words(image, rng):
    """Uniform 16-bit integers [H, W, 3], or [H, W, 1] for a grey image."""
    shape = (*image.shape[:2], 1 if is_grey(image) else 3)
    count = math.prod(shape)
    return rng.bit_generator.random_raw((count + 3) // 4).view(np.uint16)[:count].reshape(shape)


@functools.lru_cache(1)
def normal_quantiles():
    """A standard normal as WORDS equally probable values: float32 [WORDS] of variance 1."""
    upper = [NormalDist().inv_cdf((k + .5) / WORDS) for k in range(WORDS // 2, WORDS)]
    values = np.array([-value for value in reversed(upper)] + upper)
    return (values / values.std()).astype(np.float32)


def add_normal(image, rng, table):
    """The image plus table[16 random bits], clipped. table: int16 [WORDS]."""
    noise = table.take(words(image, rng), mode="clip")  # without this mode each index is checked first
    return np.clip(noise + image, 0, 255)


def multiply_normal(image, rng, sigma):
    """image * (1 + sigma z) with a standard normal z, rounded and clipped."""
    factor = normal_quantiles().take(words(image, rng), mode="clip")
    factor *= sigma
    factor += 1
    return np.clip(np.rint(factor * image), 0, 255)


def salt_and_pepper(image, rng, amount):
    """A share `amount` of the samples becomes 0 or 255, with equal probability."""
    drawn, count = words(image, rng), round(amount * WORDS / 2)
    return np.where(drawn < count, 0, np.where(drawn >= WORDS - count, 255, image))


@functools.lru_cache(5)
def photon_levels(photons):
    """For each grey level v the quantiles of Poisson(photons * v / 255), as grey levels: uint8 [256 * COARSE]."""
    counts = np.arange(math.ceil(photons + 12 * math.sqrt(photons) + 30))
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    rates = np.maximum(photons * np.arange(256)[:, None] / 255, 1e-300)  # above 0, since black has no photon
    cumulated = np.cumsum(np.exp(counts * np.log(rates) - rates - log_factorial), 1)
    below = np.floor(cumulated * COARSE + .5).astype(int).clip(max=COARSE)
    below[:, -1] = COARSE
    levels = np.minimum(np.rint(counts * (255 / photons)), 255).astype(np.uint8)
    return np.repeat(np.tile(levels, 256), np.diff(below, prepend=0).reshape(-1))


def photon_noise(image, rng, table):
    """The image with each sample replaced by a random quantile. table: from photon_levels()."""
    index = words(image, rng).astype(np.int32) >> 2
    index = index + image.astype(np.int32) * COARSE
    return table.take(index, mode="clip")


@register("corruption", "gaussian_noise", family="noise", ranges={"sigma": (0, 2)},
          severities=[{"sigma": sigma} for sigma in (.04, .08, .12, .18, .26)])
def gaussian_noise(images, *, rngs, sigma):
    """Normal noise of standard deviation sigma, as a share of the range: dim light at a high gain."""
    table = np.rint(255 * sigma * normal_quantiles()).astype(np.int16)
    return each(lambda image, rng: add_normal(image, rng, table), images, rngs)


@register("corruption", "speckle_noise", family="noise", ranges={"sigma": (0, 2)},
          severities=[{"sigma": sigma} for sigma in (.05, .15, .2, .35, .45)])
def speckle_noise(images, *, rngs, sigma):
    """Normal noise of standard deviation sigma times the grey level: coherent light."""
    return each(lambda image, rng: multiply_normal(image, rng, sigma), images, rngs)


@register("corruption", "shot_noise", family="noise", ranges={"photons": (1, 10000)},
          severities=[{"photons": photons} for photons in (60., 25., 18., 10., 5.)])
def shot_noise(images, *, rngs, photons):
    """Poisson noise of a sensor that counts `photons` where the image is white."""
    table = photon_levels(photons)
    return each(lambda image, rng: photon_noise(image, rng, table), images, rngs)


@register("corruption", "impulse_noise", family="noise", ranges={"amount": (0, 1)},
          severities=[{"amount": amount} for amount in (.01, .03, .06, .09, .17)])
def impulse_noise(images, *, rngs, amount):
    """Salt and pepper on a share `amount` of the samples: broken cells, a disturbed line."""
    return each(lambda image, rng: salt_and_pepper(image, rng, amount), images, rngs)
