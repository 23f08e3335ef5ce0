"""Suites: which corruptions at which severities are measured together."""

from dataclasses import dataclass

from kd import errors
from kd.errors import UserError

# What a dermatoscope and a cheap camera do. The families `colour` and `framing` are left out: training against
# corruptions uses these two, and every training turns, crops and tints its images a little.
DEFAULT = ("gaussian_noise", "shot_noise", "defocus_blur", "motion_blur", "jpeg", "pixelate", "brightness_up",
           "brightness_down", "contrast_down", "vignette", "black_corner", "hair", "ruler", "bubbles", "ink")

MEDMNIST_C = ("pixelate", "jpeg", "gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise", "defocus_blur",
              "motion_blur", "zoom_blur", "brightness_up", "brightness_down", "contrast_up", "contrast_down",
              "black_corner", "characters")
# (corruption, severity) -> parameters, where those of MedMNIST-C differ from the five severities of this project
MEDMNIST_C_PARAMETERS = {("pixelate", 5): {"factor": .25}, ("motion_blur", 1): {"radius": 10, "sigma": 5},
                         ("defocus_blur", 5): {"radius": 8, "soft": .5}}

# (name in its tags, corruption, parameter, values)
PHASE1 = [("gaussian", "gaussian_noise", "sigma", (.1, .2, .3)), ("jpeg", "jpeg", "quality", (90, 70, 50)),
          ("contrast", "contrast_down", "factor", (.8, .6))]

OF_SIZES = {"jpeg": "JPEG's blocks are 8 px at any image size", "pixelate": "pixelate rounds to whole pixels"}


def of_sizes(corruptions):
    """Which of some corruptions depend on the image size, in words, or None."""
    clauses = [clause for name, clause in OF_SIZES.items() if name in corruptions]
    if not clauses:
        return None
    whose = "its effect depends" if len(clauses) == 1 else "their effect depends"
    return f"{' and '.join(clauses)}: {whose} on the model's input size. Other lengths scale with the image."


SIZES = of_sizes(OF_SIZES)
NOTES = {
    "default": SIZES,
    "medmnist-c": "Severities of MedMNIST-C for DermaMNIST, in order: its black corners 4 and 5 are swapped, which "
    "changes no mean. Its motion blurs 1 and 2 are nearly the same. " + SIZES,
    "phase1": "`gaussian` is additive normal noise, not a blur; its number is the standard deviation as a share of "
    "the range, that of jpeg the quality, that of contrast the factor. " + SIZES,
}


def note(suite, corruptions):
    """A note on a suite for its reader, or None. corruptions: names, for a suite of the user's own."""
    return NOTES.get(suite) or of_sizes(corruptions)


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity (1 to 5), or with parameters of its own (then severity is its place, from 1)."""

    tag: str
    corruption: str
    severity: int
    parameters: dict = None


def cells(suite, get):
    """The Cells of a suite, in order. get: name -> the registry's entry of a corruption.

    Raises UserError for an unknown suite.
    """
    if suite == "phase1":
        return [Cell(f"{tag}_{value}", get(name).name, place, {parameter: value})
                for tag, name, parameter, values in PHASE1 for place, value in enumerate(values, 1)]
    if suite not in NOTES:
        raise UserError(f"unknown suite {suite!r}", errors.nearest(suite, NOTES) or f"There are: {', '.join(NOTES)}.")
    names, parameters = (DEFAULT, {}) if suite == "default" else (MEDMNIST_C, MEDMNIST_C_PARAMETERS)
    result = []
    for name in names:
        for severity in range(1, len(get(name).info["severities"]) + 1):
            result.append(Cell(f"{name}_{severity}", name, severity, parameters.get((name, severity))))
    return result
