"""Corruptions of uint8 images: how a plugin is called, how its result is checked, and where its random draws come from.

A corruption is a function of a batch that changes each image independently. The random draws for an image depend only
on the seed, the image's id and the corruption, so order, batch size and subset have no effect, bit for bit.
The severities of a corruption share their draws: severity 2 has the hairs of severity 1 and more.
"""

import hashlib
import inspect
import math
from numbers import Real

import numpy as np

from kd.errors import UserError, nearest

REFERENCE = 224  # px: the side of the image for which lengths are specified


def apply(entry, images, ids, severity=None, parameters=None, seed=0):
    """A batch of images uint8 [N, H, W, 3] with a corruption, as a new array of the same shape and type.

    entry: what registry.get("corruption", name) returns. ids: the N names of the images. Give either a severity from 1
    to 5, or parameters, {name: number}; parameters of the corruption that are not in this dict get their values of
    severity 3. Raises UserError for parameters that do not exist or are out of range, and if the plugin fails or
    returns another shape, another type or NaN.
    """
    arguments = settings(entry, severity, parameters)
    if "rngs" in inspect.signature(entry.make).parameters:
        arguments["rngs"] = [generator(seed, entry.name, image) for image in ids]
    images = images.view()
    images.flags.writeable = False  # the next corruption starts from the same pixels
    try:
        result = entry.make(images, **arguments)
    except UserError:
        raise
    except Exception as error:  # a plugin raises anything
        raise UserError(f"the corruption {entry.name} failed: {type(error).__name__}: {error}",
                        _location(entry)) from error
    if not isinstance(result, np.ndarray):
        wrong = f"a {type(result).__name__}"
    elif result.dtype.kind == "f" and not np.isfinite(result).all():
        wrong = "NaN or infinity"
    elif result.dtype != np.uint8 or result.shape != images.shape:
        wrong = f"{result.dtype} {list(result.shape)}"
    else:
        return result
    raise UserError(f"the corruption {entry.name} returned {wrong}, not uint8 {list(images.shape)}", _location(entry))


def _location(entry):
    return f"It stands in {entry.path}, line {entry.line}."


def settings(entry, severity=None, parameters=None):
    """The parameters with which the corruption is called, {name: number}. Arguments and errors as for apply()."""
    levels = entry.info["severities"]
    if parameters is None:
        if severity not in range(1, len(levels) + 1):
            raise UserError(f"the corruption {entry.name} has no severity {severity!r}",
                            f"Give a whole number from 1 to {len(levels)}.")
        return dict(levels[int(severity) - 1])
    result = dict(levels[len(levels) // 2])
    for name, value in parameters.items():
        if name not in result:
            suggestion = nearest(name, result)
            raise UserError(f"the corruption {entry.name} has no parameter {name!r}"
                            + (f"; {suggestion}" if suggestion else ""), f"It has: {', '.join(result)}.")
        lower, upper = entry.info.get("ranges", {}).get(name, (-math.inf, math.inf))
        is_whole = isinstance(result[name], int)
        is_number = isinstance(value, Real) and not isinstance(value, bool) and abs(value) < 1e300  # False for NaN
        if not is_number or not lower <= value <= upper or is_whole and value != int(value):
            raise UserError(f"{name} of the corruption {entry.name} cannot be {value!r}",
                            f"Give a {'whole ' if is_whole else ''}number from {lower} to {upper}.")
        result[name] = int(value) if is_whole else float(value)
    return result


def generator(seed, corruption, image):
    """A NumPy Generator that depends on the seed, the name of the corruption and the id of the image alone."""
    text = f"{seed}\0{corruption}\0{image}".encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.SFC64(key))


def pixels(images, length):
    """A length that is specified in px of an image of REFERENCE px, in px of these images [N, H, W, 3]."""
    return length * min(images.shape[1:3]) / REFERENCE


def each(operation, images, *further):
    """The results of operation(image, ...) for a batch of images, as a batch of the same shape and type.

    further: lists of N values, further arguments of the operation.
    """
    result = np.empty_like(images)
    for output, *arguments in zip(result, images, *further):
        output[...] = operation(*arguments)
    return result


def is_grey(image):
    """Whether the three channels of an image [H, W, 3] are equal."""
    def equal(part):
        return (part == part[..., :1]).all()
    # the middle row alone is enough for most colour images
    return bool(equal(image[len(image) // 2]) and equal(image))
