"""Augmentation whose every draw follows from (seed, epoch, image): any view can be drawn again.

Crops are cut and resized in uint8, one image at a time, by Pillow; colour and erasing are
done on the whole batch. On a CPU that is several times faster than resampling a batch.
"""

import numpy as np
import torch
from PIL import Image

SCALE = (0.5, 1.0)      # share of the area that a crop keeps: lesions fill much of the frame
RATIO = (3 / 4, 4 / 3)  # width over height of a crop
BRIGHTNESS = CONTRAST = SATURATION = 0.2  # a factor within 1 -+ this
ERASE = 0.25            # probability of erasing a rectangle
ERASE_SCALE = (0.02, 0.2)

_turn = Image.Transpose
TURNS = (None, _turn.ROTATE_90, _turn.ROTATE_180, _turn.ROTATE_270,  # and after a flip, left to right:
         _turn.FLIP_LEFT_RIGHT, _turn.TRANSPOSE, _turn.FLIP_TOP_BOTTOM, _turn.TRANSVERSE)

DRAWS = ("scale", "ratio", "top", "left", "flip", "turn", "brightness", "contrast",
         "saturation", "erase", "erase_scale", "erase_ratio", "erase_top", "erase_left")


def uniform(seed, epoch, index, count):
    """[N, count] numbers in [0, 1) that depend on seed, epoch and each image's index alone.

    A counter-based generator: the finaliser of SplitMix64 (Steele et al. 2014) over
    the four numbers, so that order and batch size change nothing.
    """
    with np.errstate(over="ignore"):
        state = np.zeros((len(index), count), np.uint64)
        for part in (np.uint64(seed), np.uint64(epoch), np.asarray(index, np.uint64)[:, None],
                     np.arange(count, dtype=np.uint64)[None]):
            state = _mix(state + part + np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)) * 2.0 ** -53


def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(seed, epoch, index):
    """The augmentation parameters of each image: a dict of [N] arrays in [0, 1), see DRAWS."""
    numbers = uniform(seed, epoch, index, len(DRAWS))
    return {name: numbers[:, k] for k, name in enumerate(DRAWS)}


def crop(images, draws, size):
    """Random resized crop, flip and quarter turn: uint8 [N, R, R, 3] -> uint8 [N, size, size, 3]."""
    side = images.shape[1]
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * draws["scale"]
    ratio = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * draws["ratio"])
    width = np.minimum(1, np.sqrt(area * ratio)) * side
    height = np.minimum(1, np.sqrt(area / ratio)) * side
    left, top = draws["left"] * (side - width), draws["top"] * (side - height)
    boxes = np.stack([left, top, left + width, top + height], 1).tolist()
    turns = (draws["turn"] * 4).astype(int) + 4 * (draws["flip"] < 0.5)
    result = np.empty((len(images), size, size, 3), np.uint8)
    for view, pixels, box, turn in zip(result, images, boxes, turns):
        picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box)
        if turn:
            picture = picture.transpose(TURNS[turn])
        view[:] = np.asarray(picture)
    return result


def settings():
    """All that a view depends on beside its draws and the pixels, for whoever keeps results of views."""
    return [list(SCALE), list(RATIO), BRIGHTNESS, CONTRAST, SATURATION, ERASE, list(ERASE_SCALE)]


def colour(images, draws):
    """Brightness, contrast, saturation and erasing on a float batch [N, 3, H, W] in [0, 1]."""
    count, _, height, width = images.shape

    def factor(name, strength):
        values = 1 + strength * (2 * draws[name] - 1)
        return torch.as_tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1, 1)

    images = images * factor("brightness", BRIGHTNESS)  # a copy; the rest is done in place
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images.sub_(mean).mul_(factor("contrast", CONTRAST)).add_(mean)
    red, green, blue = images.split(1, 1)
    grey = (red * 0.299 + green * 0.587 + blue * 0.114).expand_as(images)
    grey = grey.contiguous(memory_format=torch.channels_last)  # broadcasting along channels is slower
    images.sub_(grey).mul_(factor("saturation", SATURATION)).add_(grey).clamp_(0, 1)
    area = (ERASE_SCALE[0] + (ERASE_SCALE[1] - ERASE_SCALE[0]) * draws["erase_scale"]) * height * width
    ratio = np.exp(np.log(1 / 3) + np.log(9) * draws["erase_ratio"])
    rows = np.minimum(height, np.sqrt(area * ratio)).astype(int)
    columns = np.minimum(width, np.sqrt(area / ratio)).astype(int)
    top = (draws["erase_top"] * (height - rows + 1)).astype(int)
    left = (draws["erase_left"] * (width - columns + 1)).astype(int)
    for n in np.flatnonzero(draws["erase"] < ERASE):
        images[n, :, top[n]:top[n] + rows[n], left[n]:left[n] + columns[n]] = images[n].mean()
    return images


def to_float(images, device):
    """uint8 [N, H, W, 3] in memory -> float [N, 3, H, W] in [0, 1], channels last, on `device`."""
    batch = torch.from_numpy(images).to(device)
    return batch.permute(0, 3, 1, 2).to(dtype=torch.float32).div_(255)


def normalise(images, mean, std):
    """(x - mean) / std by channel, for a float batch [N, 3, H, W] in [0, 1]; channels last."""
    count, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(count * height, width * channels)  # long rows are fast
    mean = torch.tensor(mean, dtype=images.dtype, device=images.device).repeat(width)
    std = torch.tensor(std, dtype=images.dtype, device=images.device).repeat(width)
    return rows.sub(mean).div_(std).view(count, height, width, channels).permute(0, 3, 1, 2)
