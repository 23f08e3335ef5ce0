"""A picture taken askew, beside the lesion, or from too near. What comes into view is the mirror picture of the skin."""

import math

import numpy as np
from PIL import Image

from kd.corruptions import each
from registry import register


def mirrored(image, share):
    """The image with a mirrored margin of a share of its side; the margin's width in pixels."""
    margin = math.ceil(share * max(image.shape[:2]))
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"), margin


@register("corruption", "rotation", family="framing", ranges={"degrees": (0, 180)},
          severities=[{"degrees": degrees} for degrees in (4., 8., 13., 20., 30.)])
def rotation(images, *, rngs, degrees):
    """Turned about the middle, to the left or to the right."""
    def turn(image, rng):
        wide, margin = mirrored(image, .25)  # a turned square reaches .207 of its side beyond the upright one
        angle = math.radians(math.copysign(degrees, rng.random() - .5))
        cos, sin, x, y = math.cos(angle), math.sin(angle), image.shape[1] / 2, image.shape[0] / 2
        affine = (cos, sin, margin + x - cos * x - sin * y, -sin, cos, margin + y + sin * x - cos * y)
        picture = Image.fromarray(wide).transform(image.shape[1::-1], Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        return np.asarray(picture)
    return each(turn, images, rngs)


@register("corruption", "off_centre", family="framing", ranges={"share": (0, .5)},
          severities=[{"share": share} for share in (.05, .1, .15, .2, .25)])
def off_centre(images, *, rngs, share):
    """Moved by a share of the side, in any direction, to whole pixels."""
    def move(image, rng):
        wide, margin = mirrored(image, share)
        turn = rng.uniform(0, 2 * math.pi)
        top, left = (margin + round(share * side * part) for side, part in zip(image.shape, (math.sin(turn), math.cos(turn))))
        return wide[top:top + image.shape[0], left:left + image.shape[1]]
    return each(move, images, rngs)


@register("corruption", "zoom", family="framing", ranges={"factor": (1, 10)},
          severities=[{"factor": factor} for factor in (1.1, 1.2, 1.35, 1.5, 1.75)])
def zoom(images, *, factor):
    """From too near: the middle, enlarged by `factor`."""
    height, width = images.shape[1:3]
    trim = (1 - 1 / factor) / 2
    box = (width * trim, height * trim, width * (1 - trim), height * (1 - trim))
    return each(lambda image: np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box)),
                images)
