"""Damage by storage and transmission.

Severities: those of MedMNIST-C for DermaMNIST, except for its fifth pixelate, .25, which at 28 px is almost equal to
its fourth.
"""

import io

import numpy as np
from PIL import Image

from kd.corruptions import each
from registry import register


@register("corruption", "jpeg", family="digital", ranges={"quality": (1, 100)},
          severities=[{"quality": quality} for quality in (30, 20, 15, 10, 7)])
def jpeg(images, *, quality):
    """JPEG at Pillow's `quality` (1 to 100), with chroma at half the resolution. Blocks are 8 px at any image size."""
    def compress(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))
    return each(compress, images)


@register("corruption", "pixelate", family="digital", ranges={"factor": (.01, 1)},
          severities=[{"factor": factor} for factor in (.7, .5, .4, .3, .2)])
def pixelate(images, *, factor):
    """Reduced to `factor` of the side by averaging, and enlarged again without interpolation."""
    small = [max(1, int(side * factor)) for side in images.shape[2:0:-1]]

    def reduce(image):
        picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
        return np.asarray(picture.resize(image.shape[1::-1], Image.Resampling.BOX))
    return each(reduce, images)
