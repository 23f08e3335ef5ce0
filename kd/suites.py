"""Which corruptions at which severities are measured together."""

from dataclasses import dataclass

from kd import errors
from kd.errors import UserError

# Families `colour` and `framing` are left out on purpose: what is trained against them was not trained on these.
DEFAULT = ("gaussian_noise", "shot_noise", "jpeg", "pixelate", "brightness_up", "brightness_down", "contrast_down")

MEDMNIST_C = ("pixelate", "jpeg", "gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise", "brightness_up",
              "brightness_down", "contrast_up", "contrast_down")

PHASE1 = [("gaussian", "gaussian_noise", "sigma", (.1, .2, .3)), ("jpeg", "jpeg", "quality", (90, 70, 50)),
          ("contrast", "contrast_down", "factor", (.8, .6))]

SIZES = ("JPEG's blocks are 8 px at any image size and pixelate rounds to whole pixels: their effect depends on the "
         "model's input size. Other lengths scale with the image.")
NOTES = {"default": SIZES,
         "medmnist-c": SIZES,
         "phase1": "`gaussian` is additive normal noise, not a blur; its number is the standard deviation as a share of "
                   "the range, that of jpeg the quality, that of contrast the factor. " + SIZES}


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity (1 to 5), or with parameters of its own (then severity is its place, from 1)."""

    tag: str
    corruption: str
    severity: int
    parameters: dict = None


def cells(suite, get):
    """The Cells of a suite, in order. get: name -> the registry's entry of a corruption."""
    if suite == "phase1":
        return [Cell(f"{tag}_{value}", get(name).name, place, {parameter: value})
                for tag, name, parameter, values in PHASE1 for place, value in enumerate(values, 1)]
    if suite not in NOTES:
        raise UserError(f"unknown suite {suite!r}", errors.nearest(suite, NOTES) or f"There are: {', '.join(NOTES)}.")
    names = DEFAULT if suite == "default" else MEDMNIST_C
    return [Cell(f"{name}_{place}", name, place) for name in names
            for place in range(1, len(get(name).info["severities"]) + 1)]
