"""Wrong colour: by the white balance of the camera, and by its processing of colours."""

import math

import numpy as np
from PIL import Image

from kd.corruptions import each
from registry import register


def saturation(image, factor):
    """The difference of each pixel from its grey level times `factor`, as in Pillow's ImageEnhance.Color."""
    picture = Image.fromarray(image)
    return np.asarray(Image.blend(picture.convert("L").convert("RGB"), picture, factor))


@register("corruption", "saturation_up", family="colour", ranges={"factor": (1, 10)},
          severities=[{"factor": factor} for factor in (1.15, 1.3, 1.5, 1.75, 2.1)])
def saturation_up(images, *, factor):
    """Colours too strong: differences from grey times `factor`, clipped. A grey image does not change."""
    return each(lambda image: saturation(image, factor), images)


@register("corruption", "saturation_down", family="colour", ranges={"factor": (0, 1)},
          severities=[{"factor": factor} for factor in (.8, .6, .4, .2, 0.)])
def saturation_down(images, *, factor):
    """Colours too weak: differences from grey times `factor`. A grey image does not change."""
    return each(lambda image: saturation(image, factor), images)


@register("corruption", "colour_cast", family="colour", ranges={"strength": (0, 2)},
          severities=[{"strength": strength} for strength in (.05, .1, .15, .21, .28)])
def colour_cast(images, *, rngs, strength):
    """A wrong white balance: channels times exp(strength * a direction between yellow-blue and green-magenta)."""
    def tint(image, rng):
        turn = rng.uniform(0, 2 * math.pi)
        direction = (math.cos(turn) * np.array([1, 0, -1]) / math.sqrt(2)
                     + math.sin(turn) * np.array([1, -2, 1]) / math.sqrt(6))
        return np.minimum(np.rint(image * np.exp(strength * direction).astype(np.float32)), 255)
    return each(tint, images, rngs)
