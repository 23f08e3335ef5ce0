"""Corruptions of uint8 images: what a plugin is given, what its answer is held against, and random draws.

A corruption is a function of a batch that treats each image alone; what is drawn for an image follows from the
seed, the image's id and the corruption, so that order, batch size and subset change nothing, bit for bit.
Severities of one corruption share their draws: the hairs of severity 2 are those of severity 1 and more.
"""

import difflib
import hashlib
import inspect
import math
from numbers import Real

import numpy as np

from kd.errors import UserError

REFERENCE = 224  # px: the side at which lengths are given


def apply(entry, images, ids, severity=None, parameters=None, seed=0):
    """The batch uint8 [N, H, W, 3] under a corruption, as a new array of the same shape and type.

    entry: what registry.get("corruption", name) returns. ids: N names of images. Either severity (1 to 5) or
    parameters, {name: number} for all or some of the corruption's own; the others keep their values of severity 3.
    Raises UserError for parameters that do not exist or are out of range, and where a plugin fails, returns another
    shape or type, or NaN.
    """
    given = settings(entry, severity, parameters)
    if "rngs" in inspect.signature(entry.make).parameters:
        given["rngs"] = [generator(seed, entry.name, each) for each in ids]
    images = images.view()
    images.flags.writeable = False  # the next corruption starts from the same pixels
    try:
        result = entry.make(images, **given)
    except UserError:
        raise
    except Exception as error:  # a plugin raises anything
        raise UserError(f"the corruption {entry.name} failed: {type(error).__name__}: {error}", _place(entry)) from error
    if not isinstance(result, np.ndarray):
        wrong = f"a {type(result).__name__}"
    elif result.dtype.kind == "f" and not np.isfinite(result).all():
        wrong = "NaN or infinity"
    elif result.dtype != np.uint8 or result.shape != images.shape:
        wrong = f"{result.dtype} {list(result.shape)}"
    else:
        return result
    raise UserError(f"the corruption {entry.name} returned {wrong}, not uint8 {list(images.shape)}", _place(entry))


def _place(entry):
    return f"It stands in {entry.path}, line {entry.line}."


def settings(entry, severity=None, parameters=None):
    """The parameters that the corruption is called with: {name: number}. Raises UserError, see `apply`."""
    levels = entry.info["severities"]
    if parameters is None:
        if severity not in range(1, len(levels) + 1):
            raise UserError(f"the corruption {entry.name} has no severity {severity!r}",
                            f"Give a whole number from 1 to {len(levels)}.")
        return dict(levels[int(severity) - 1])
    middle = levels[len(levels) // 2]
    for name, value in parameters.items():
        if name not in middle:
            near = difflib.get_close_matches(str(name), middle, n=1, cutoff=0.5)
            raise UserError(f"the corruption {entry.name} has no parameter {name!r}"
                            + (f"; did you mean {near[0]}?" if near else ""), f"It has: {', '.join(middle)}.")
        least, most = entry.info.get("ranges", {}).get(name, (-math.inf, math.inf))
        whole = isinstance(middle[name], int)
        number = isinstance(value, Real) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not
        if not number or not least <= value <= most or whole and value != int(value):
            raise UserError(f"{name} of the corruption {entry.name} cannot be {value!r}",
                            f"Give a {'whole ' if whole else ''}number from {least} to {most}.")
    return {**middle, **{name: int(value) if isinstance(middle[name], int) else float(value)
                         for name, value in parameters.items()}}


def generator(seed, corruption, image):
    """A NumPy Generator of its own for each seed, corruption and image id."""
    text = f"{seed}\0{corruption}\0{image}".encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.SFC64(key))


def pixels(images, length):
    """A length in pixels of a REFERENCE image, in pixels of these."""
    return length * min(images.shape[1:3]) / REFERENCE


def each(operation, images, *further):
    """A batch of operation(image, ...) of every image, `further` being lists that run beside the images."""
    result = np.empty_like(images)
    for into, *arguments in zip(result, images, *further):
        into[...] = operation(*arguments)
    return result


def is_grey(image):
    """Whether the channels of [H, W, 3] are equal; one row tells most colour images apart."""
    def equal(part):
        return (part == part[..., :1]).all()
    return bool(equal(image[len(image) // 2]) and equal(image))
