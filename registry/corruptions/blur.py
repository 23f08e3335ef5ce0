"""Blur by a lens out of focus or by movement. Lengths are in pixels of a 224 px image, and scale with the image.

Severities: those of MedMNIST-C for DermaMNIST, which has no Gaussian blur, with two exceptions: its first motion,
(10, 5), is almost equal to its second, and its fifth defocus, (8, .5), also brightens the image. Outside its border the
image is continued by its mirror image (reflection about the outermost pixel), unless a function says otherwise.
"""

import functools
import math

import numpy as np
from PIL import Image

from kd.corruptions import each, pixels
from registry import register

TAILS = 4     # standard deviations at which a Gaussian is cut off
ROWS = 16     # rows of a banded matrix that are multiplied at a time


def gaussian(image, sigma):
    """The image under a Gaussian of `sigma` px (sampled, cut off at 4 sigma), uint8, correct to one grey level.

    A wide Gaussian is the product of two narrower ones, and between these two each d-th pixel is enough: reduce, then
    enlarge. Aliasing adds at most exp(-(pi sigma / d)^2 / 2) of the contrast: .001 for the d that is chosen.
    """
    height, width, _ = image.shape
    reduce, enlarge = gaussian_bands(height, sigma)
    reduce_columns, enlarge_columns = gaussian_bands(width, sigma)
    lines = multiply(reduce, image.reshape(height, -1).astype(np.float32), transposed=True)  # [width * 3, fewer rows]
    lines = multiply(enlarge_columns, multiply(reduce_columns, lines.reshape(width, -1)))
    lines += .5  # the rows of the last matrix sum to 1, so that this rounds the result
    return multiply(enlarge, lines.reshape(width * 3, -1).T).astype(np.uint8).reshape(image.shape)


@functools.lru_cache(32)
def gaussian_bands(length, sigma):
    """(reduce, enlarge): banded matrices whose product blurs `length` mirrored samples by `sigma` px."""
    step = max(1, int(.85 * sigma))
    half = sigma / math.sqrt(2) if step > 1 else sigma
    reach = math.ceil(TAILS * half)
    margin = math.ceil(reach / step) if step > 1 else 0
    centres = np.arange(-margin, math.ceil(length / step) + margin) * step
    taps = np.arange(-reach, reach + 1)
    period = max(1, 2 * length - 2)
    mirrored = (centres[:, None] + taps) % period
    reduce = np.zeros((len(centres), length))
    np.add.at(reduce, (np.arange(len(centres))[:, None], np.minimum(mirrored, period - mirrored)), bell(taps, half))
    enlarge = bell(np.arange(length)[:, None] - centres, half if step > 1 else 0)
    return tuple(bands(matrix / matrix.sum(1, keepdims=True)) for matrix in (reduce, enlarge))


def bell(distance, sigma):
    """A Gaussian of height 1, cut off at TAILS; at sigma 0 it is 1 at 0 and 0 elsewhere."""
    return np.where(np.abs(distance) <= TAILS * sigma, np.exp(-(distance / max(sigma, 1e-9)) ** 2 / 2), 0)


def bands(matrix):
    """A banded matrix as [(rows, columns, float32 block)], two slices and a block of ROWS rows; the rest is zero."""
    blocks = []
    for top in range(0, len(matrix), ROWS):
        block = matrix[top:top + ROWS]
        used = np.flatnonzero(block.any(0))
        columns = slice(used[0], used[-1] + 1)
        blocks.append((slice(top, top + len(block)), columns, np.ascontiguousarray(block[:, columns], np.float32)))
    return blocks


def multiply(blocks, matrix, transposed=False):
    """The product of a matrix from bands() and a dense one, float32; `transposed` returns its transpose."""
    shape = blocks[-1][0].stop, matrix.shape[1]
    result = np.empty(shape[::-1], np.float32).T if transposed else np.empty(shape, np.float32)
    for rows, columns, block in blocks:
        np.matmul(block, matrix[columns], out=result[rows])
    return result.T if transposed else result


def scatter(points, weights, scale):
    """A kernel [K, K] of weighted points for an image that is `scale` times as large as the reference image.

    points: (dy, dx) in pixels of the reference image. They are spread linearly, as a picture is resized: at scale 1
    whole numbers stay in one pixel.
    """
    points, spread = np.asarray(points) * scale, max(1., scale)
    reach = math.ceil(np.abs(points).max() + spread)
    grid = np.arange(-reach, reach + 1)
    down, across = (np.maximum(0, 1 - np.abs(grid - points[:, k, None]) / spread) for k in (0, 1))
    kernel = (weights[:, None] * down).T @ across
    return kernel * (np.sum(weights) / kernel.sum())


def correlate(image, kernel, outside="reflect"):
    """The sum over (dy, dx) of kernel[dy, dx] * image[y + dy, x + dx] by FFT, rounded. outside: a mode of np.pad()."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=outside).astype(np.float32)
    shape = [32 * math.ceil(side / 32) for side in padded.shape[:2]]  # the FFT is fast for lengths of small factors
    transfer = np.fft.rfft2(kernel[::-1, ::-1].astype(np.float32), shape)
    result = np.empty_like(image)
    for channel in range(3):
        blurred = np.fft.irfft2(np.fft.rfft2(padded[..., channel], shape) * transfer, shape)
        blurred = blurred[2 * reach:, 2 * reach:][:image.shape[0], :image.shape[1]]
        result[..., channel] = np.clip(np.rint(blurred), 0, 255)
    return result


def disk(radius, soft, scale):
    """The kernel of a lens out of focus: a disk of `radius` whose rim is softened by 3 taps of deviation `soft`.

    As in MedMNIST-C, the grid ends at 8 px and is mirrored there: a disk of 8 px softened by .5 sums to 1.013.
    scale: as for scatter().
    """
    side = max(8, math.ceil(radius))
    grid = np.arange(-side, side + 1)
    kernel = (grid[:, None] ** 2 + grid ** 2 <= radius ** 2).astype(float)
    kernel /= kernel.sum()
    tap = math.exp(-1 / (2 * soft ** 2)) if soft else 0
    for _ in range(2):
        padded = np.pad(kernel, ((1, 1), (0, 0)), mode="reflect")
        kernel = ((padded[:-2] + padded[2:]) * tap + kernel).T / (1 + 2 * tap)
    return scatter(np.argwhere(kernel) - side, kernel[kernel > 0], scale)


def trail(radius, sigma, degrees, scale):
    """The kernel of a movement: half a Gaussian of `sigma` on 2 radius + 1 px along a line, as in ImageMagick.

    scale: as for scatter().
    """
    along = np.arange(2 * math.ceil(radius) + 1)
    angle = math.radians(degrees)
    points = np.ceil(np.outer(along, (math.sin(angle), math.cos(angle))) - .5)
    weights = np.exp(-along ** 2 / (2 * sigma ** 2))
    return scatter(points, weights / weights.sum(), scale)


def zoom_mean(image, factors):
    """The mean of the image and of its centre enlarged by each factor, linearly, as scipy.ndimage.zoom() does it."""
    picture, side = Image.fromarray(image), np.array(image.shape[1::-1])
    total = image.astype(np.float32)
    for factor in factors:
        crop = np.ceil(side / factor)
        large = np.round(crop * factor)
        step = (crop - 1) / np.maximum(1, large - 1)  # the corner pixels keep their centres
        start = (side - crop) // 2 + .5 - .5 * step + (large - side) // 2 * step
        box = (*start, *(start + side * step))
        total += np.asarray(picture.resize(tuple(side), Image.Resampling.BILINEAR, box))
    return np.rint(total / (len(factors) + 1)).astype(np.uint8)


@register("corruption", "gaussian_blur", family="blur", ranges={"sigma": (0, 100)},
          severities=[{"sigma": sigma} for sigma in (3., 4., 5., 6., 8.)])
def gaussian_blur(images, *, sigma):
    """A Gaussian of standard deviation sigma."""
    return each(lambda image: gaussian(image, pixels(images, sigma)), images)


@register("corruption", "defocus_blur", family="blur", ranges={"radius": (0, 100), "soft": (0, 10)},
          severities=[{"radius": radius, "soft": soft}
                      for radius, soft in ((4., .1), (5., .2), (6., .3), (7., .4), (8., .1))])
def defocus_blur(images, *, radius, soft):
    """A lens out of focus: the mean over a disk of `radius`, its rim softened by `soft`."""
    kernel = disk(radius, soft, pixels(images, 1))
    return each(lambda image: correlate(image, kernel), images)


@register("corruption", "motion_blur", family="blur", ranges={"radius": (1, 100), "sigma": (.1, 100)},
          severities=[{"radius": radius, "sigma": sigma}
                      for radius, sigma in ((10., 3.), (15., 5.), (15., 8.), (15., 12.), (20., 15.))])
def motion_blur(images, *, rngs, radius, sigma):
    """A hand that moved: a trail of 2 radius + 1 px that fades by sigma, within 45 degrees of horizontal."""
    def blur(image, rng):
        return correlate(image, trail(radius, sigma, rng.uniform(-45, 45), pixels(images, 1)), "edge")
    return each(blur, images, rngs)


@register("corruption", "zoom_blur", family="blur", ranges={"zoom": (1, 4), "step": (.001, 1)},
          severities=[{"zoom": zoom, "step": step}
                      for zoom, step in ((1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03))])
def zoom_blur(images, *, zoom, step):
    """A camera that moved towards the skin during the exposure: the mean of enlargements from 1 to `zoom` by `step`."""
    factors = np.arange(1, zoom, step)
    return each(lambda image: zoom_mean(image, factors), images)
