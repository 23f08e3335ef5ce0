"""A picture that is rotated, not centred on the lesion, or taken from too near.

Outside its border the image is continued by its mirror image.
"""

import math

import numpy as np
from PIL import Image

from kd.corruptions import each
from registry import register


def mirrored(image, share):
    """(the image with a mirrored margin, width of the margin in pixels). share: the width as a share of the side."""
    margin = math.ceil(share * max(image.shape[:2]))
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"), margin


@register("corruption", "rotation", family="framing", ranges={"degrees": (0, 180)},
          severities=[{"degrees": degrees} for degrees in (4., 8., 13., 20., 30.)])
def rotation(images, *, rngs, degrees):
    """Rotated by `degrees` about the centre, to the left or to the right."""
    def turn(image, rng):
        wide, margin = mirrored(image, .25)  # a rotated square extends by up to .207 of its side beyond the upright one
        angle = math.radians(math.copysign(degrees, rng.random() - .5))
        cos, sin, x, y = math.cos(angle), math.sin(angle), image.shape[1] / 2, image.shape[0] / 2
        affine = (cos, sin, margin + x - cos * x - sin * y, -sin, cos, margin + y + sin * x - cos * y)
        size = image.shape[1::-1]
        return np.asarray(Image.fromarray(wide).transform(size, Image.Transform.AFFINE, affine,
                                                          Image.Resampling.BICUBIC))
    return each(turn, images, rngs)


@register("corruption", "off_centre", family="framing", ranges={"share": (0, .5)},
          severities=[{"share": share} for share in (.05, .1, .15, .2, .25)])
def off_centre(images, *, rngs, share):
    """Moved by `share` of the side in any direction, by whole pixels."""
    def move(image, rng):
        wide, margin = mirrored(image, share)
        turn = rng.uniform(0, 2 * math.pi)
        height, width, _ = image.shape
        top = margin + round(share * height * math.sin(turn))
        left = margin + round(share * width * math.cos(turn))
        return wide[top:top + height, left:left + width]
    return each(move, images, rngs)


@register("corruption", "zoom", family="framing", ranges={"factor": (1, 10)},
          severities=[{"factor": factor} for factor in (1.1, 1.2, 1.35, 1.5, 1.75)])
def zoom(images, *, factor):
    """Taken from too near: the centre, enlarged by `factor`."""
    height, width = images.shape[1:3]
    trim = (1 - 1 / factor) / 2
    box = (width * trim, height * trim, width * (1 - trim), height * (1 - trim))

    def enlarge(image):
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box))
    return each(enlarge, images)
