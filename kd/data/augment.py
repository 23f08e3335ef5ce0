"""Augmentation whose random draws depend only on (seed, epoch, image), so that any view can be drawn again.

A view is an image as a network gets it in one epoch. There are four kinds:
heavy: random resized crops, flips, quarter turns, colour and erasing. On a CPU, crops are cut and resized in uint8,
one image at a time, in threads ahead of use, and the rest is done on batches of floats. On a GPU, the same draws
resample a whole batch of floats (benchmarks/input.py measures both).
light: a shifted window and flips. corruption: heavy, with a corruption of half of the crops. none: the centre, as it is
evaluated.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from kd import corruptions

KINDS = ("heavy", "light", "corruption", "none")
PLAIN = ("light", "none")  # without crops of other shapes, colour and erasing

SCALE = (0.5, 1.0)      # share of the area that a crop keeps; not less, because lesions fill much of the frame
RATIO = (3 / 4, 4 / 3)  # width over height of a crop
BRIGHTNESS = CONTRAST = SATURATION = 0.2  # the factors are within 1 -+ this
ERASE = 0.25            # probability of erasing a rectangle
ERASE_SCALE = (0.02, 0.2)  # share of the area that is erased
CORRUPT = 0.5           # probability of a corruption
CACHE = 2 ** 23         # bytes of a part of a batch; parts are processed one by one and stay in the cache of a core

DRAWS = (
    "scale", "ratio", "top", "left", "flip", "turn", "brightness", "contrast", "saturation", "erase", "erase_scale",
    "erase_ratio", "erase_top", "erase_left", "corrupt", "corruption", "severity",
)


def uniform(seed, epoch, index, count):
    """Random numbers [N, count] in [0, 1) that depend only on seed, epoch (a number, or [N]) and the index [N].

    A counter-based generator, so that order and batch size have no effect: the finaliser of SplitMix64
    (Steele et al. 2014) over seed, epoch, index and the number of the column.
    """
    with np.errstate(over="ignore"):
        state = np.zeros((len(index), count), np.uint64)
        epochs = np.broadcast_to(np.asarray(epoch, np.uint64), len(index))[:, None]
        for part in (np.uint64(seed), epochs, np.asarray(index, np.uint64)[:, None],
                     np.arange(count, dtype=np.uint64)[None]):
            state = _mix(state + part + np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)) * 2.0 ** -53


def _mix(x):
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(seed, epoch, index):
    """The random draws of images [N]: {name in DRAWS: [N] numbers in [0, 1)}.

    epoch: a number, or one for each image [N]. index: positions in the data set.
    """
    numbers = uniform(seed, epoch, index, len(DRAWS))
    return {name: numbers[:, k] for k, name in enumerate(DRAWS)}


def _boxes(side, draws):
    """(left, top, width, height) of the crops, [N] ints each, in px of images of `side` px."""
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * draws["scale"]
    ratio = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * draws["ratio"])
    width, height = (
        np.clip(np.rint(np.sqrt(share) * side), 1, side).astype(int) for share in (area * ratio, area / ratio)
    )
    left, top = ((draws[name] * (side - length + 1)).astype(int) for name, length in (("left", width), ("top", height)))
    return left, top, width, height


def crop(images, draws, size):
    """Random resized crop, flip and quarter turn: uint8 [N, R, R, 3] -> uint8 [N, size, size, 3].

    draws: from draw().
    """
    turn, flip = (draws["turn"] * 4).astype(int), draws["flip"] < 0.5
    result = np.empty((len(images), size, size, 3), np.uint8)
    views = result.view("V3")[..., 0]  # copies a pixel of three bytes as one item
    for n, (left, top, width, height) in enumerate(zip(*_boxes(images.shape[1], draws))):
        pixels = images[n:n + 1, top:top + height, left:left + width].copy()  # a copy by torch would start threads
        view = _resized(pixels, size).view("V3")[0, ..., 0]
        views[n] = np.rot90(view[:, ::-1] if flip[n] else view, turn[n])
    return result


def _resized(images, size):
    """uint8 [N, H, W, 3] -> uint8 [N, size, size, 3]: torch's antialias, which is Pillow's bilinear filter."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def resample(images, draws, size):
    """Like crop(), on the device of `images`: a uint8 tensor [N, R, R, 3] -> float [N, 3, size, size] in [0, 1].

    The pixels differ slightly from those of crop(), which rounds them to uint8, averages neighbours where this function
    interpolates (if a crop is larger than `size`, by an eighth at most), and does not use pixels outside the crop.
    """
    side = images.shape[1]
    left, top, width, height = _boxes(side, draws)
    turn = (draws["turn"] * 4).astype(int)
    cosine, sine = np.array([1, 0, -1, 0])[turn], np.array([0, 1, 0, -1])[turn]
    mirror = np.where(draws["flip"] < 0.5, -1, 1)
    # maps a point of the view, in [-1, 1], to a point of the image: turn, mirror, then scale and shift to the box
    across = np.stack([mirror * cosine * width, -mirror * sine * width, 2 * left + width - side], 1)
    down = np.stack([sine * height, cosine * height, 2 * top + height - side], 1)
    theta = to_device((np.stack([across, down], 1) / side).astype(np.float32), images.device)
    grid = F.affine_grid(theta, (len(images), 3, size, size), align_corners=False)
    floats = images.permute(0, 3, 1, 2).float()
    views = F.grid_sample(floats, grid, padding_mode="border", align_corners=False).div_(255)
    return views.contiguous(memory_format=torch.channels_last)


def window(images, draws, size, side=None):
    """The light augmentation, a random window and flips: uint8 [N, R, R, 3] -> uint8 [N, size, size, 3].

    draws: from draw(); without top and left, the window is in the centre. side: of the window, px, which is resized to
    `size`; None for the same.
    """
    side = side or size
    room = images.shape[1] - side + 1
    top, left = ((np.full(len(images), (room - 1) // 2) if draws[name] is None else draws[name] * room).astype(int)
                 for name in ("top", "left"))
    result = np.empty((len(images), side, side, 3), np.uint8)
    pixels, views = images.view("V3")[..., 0], result.view("V3")[..., 0]  # copies a pixel of three bytes as one item
    for n, (i, j, across, down) in enumerate(zip(top, left, draws["flip"] < 0.5, draws["turn"] < 0.5)):
        views[n] = pixels[n, i:i + side, j:j + side][::-1 if down else 1, ::-1 if across else 1]
    return result if side == size else np.concatenate([_resized(view[None], size) for view in result])


def corrupt(images, draws, entries):
    """Corrupt the share CORRUPT of the views uint8 [N, S, S, 3], in place; returns them.

    entries: corruptions, from registry.get(). Each chosen view gets one of them at one of five severities, both drawn.
    What the corruption draws itself depends on the draws of the image, too.
    """
    which, severity = (draws["corruption"] * len(entries)).astype(int), 1 + (draws["severity"] * 5).astype(int)
    chosen = draws["corrupt"] < CORRUPT
    for k, level in sorted(set(zip(which[chosen].tolist(), severity[chosen].tolist()))):
        rows = np.flatnonzero(chosen & (which == k) & (severity == level))
        ids = [float(draws["corruption"][n]).hex() for n in rows]
        images[rows] = corruptions.apply(entries[k], images[rows], ids, level)
    return images


def _resamples(kind, device):
    """Whether whole batches are resampled on the device, instead of crops cut in threads."""
    return device.type == "cuda" and kind == "heavy"


def settings(kind, device):
    """What a view depends on beside its draws and its pixels, a list of plain values: the key of stored targets."""
    if kind in PLAIN:
        return [kind]
    numbers = [list(SCALE), list(RATIO), BRIGHTNESS, CONTRAST, SATURATION, ERASE, list(ERASE_SCALE)]
    return numbers + ["resampled"] if _resamples(kind, device) else numbers


def begin(images, draws, size, kind, device, side=None):
    """The part of an augmentation that threads do ahead of use: uint8 [N, R, R, 3] -> uint8 [N, S, S, 3], in memory.

    side: as for window().
    """
    if kind == "none":
        draws = {**draws, **{name: np.full(len(images), 0.5) for name in ("flip", "turn")}, "top": None, "left": None}
    if kind in PLAIN:
        return window(images, draws, size, side)
    return images if _resamples(kind, device) else crop(images, draws, size)


def finish(pixels, draws, size, kind, device):
    """The rest of an augmentation, on the device: what begin() returned -> float [N, 3, size, size] in [0, 1]."""
    if kind in PLAIN:
        return to_float(pixels, device)
    if _resamples(kind, device):
        return colour(resample(to_device(pixels, device), draws, size), draws)
    views = to_float(pixels, device)
    for part in _parts(views):
        views[part] = colour(views[part], {name: values[part] for name, values in draws.items()})
    return views


def _parts(floats):
    """Slices of a batch that are processed one after the other; on a GPU a single one.

    On a CPU the images of a slice fit in a core's cache. There are at least two, because torch computes a sum over a
    single image in several threads, which rounds it differently.
    """
    size = max(1, len(floats))
    if floats.device.type == "cpu":
        size = max(2, CACHE * len(floats) // max(1, floats.nbytes))
    edges = np.linspace(0, len(floats), max(1, len(floats) // size) + 1).astype(int).tolist()
    return [slice(*ends) for ends in zip(edges, edges[1:])]


def colour(images, draws):
    """Brightness, contrast, saturation and erasing of a float batch [N, 3, H, W] in [0, 1]; channels last.

    Each of the first three is linear in the colours of a pixel, except for the mean of the image, and so is their
    sequence: one matrix and one offset for each image.
    """
    count, _, height, width = images.shape
    device = images.device

    def factor(name, strength):
        return to_device((1 + strength * (2 * draws[name] - 1)).astype(np.float32), device).view(-1, 1, 1)

    bright, contrast, saturation = (
        factor("brightness", BRIGHTNESS), factor("contrast", CONTRAST), factor("saturation", SATURATION),
    )
    identity, grey = _colour_matrices(images.dtype, device)
    matrix = bright * contrast * (saturation * identity + (1 - saturation) * grey)
    offset = bright * (1 - contrast) * images.mean(dim=(1, 2, 3)).view(-1, 1, 1)
    pixels = images.permute(0, 2, 3, 1).reshape(count, height * width, 3)
    result = torch.bmm(pixels, matrix).add_(offset).clamp_(0, 1)
    images = result.view(count, height, width, 3).permute(0, 3, 1, 2)
    # erase: a rectangle gets the mean of the image
    area = (ERASE_SCALE[0] + (ERASE_SCALE[1] - ERASE_SCALE[0]) * draws["erase_scale"]) * height * width
    ratio = np.exp(np.log(1 / 3) + np.log(9) * draws["erase_ratio"])
    rows = np.minimum(height, np.sqrt(area * ratio)).astype(int)
    columns = np.minimum(width, np.sqrt(area / ratio)).astype(int)
    top = (draws["erase_top"] * (height - rows + 1)).astype(int)
    left = (draws["erase_left"] * (width - columns + 1)).astype(int)
    for n in np.flatnonzero(draws["erase"] < ERASE):
        images[n, :, top[n]:top[n] + rows[n], left[n]:left[n] + columns[n]] = images[n].mean()
    return images


def to_device(array, device):
    """A NumPy array as a tensor on `device`; to a GPU from pinned memory, so that the CPU does not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_float(images, device):
    """Images uint8 [N, H, W, 3] in memory -> float [N, 3, H, W] in [0, 1], channels last, on `device`."""
    batch = to_device(images, torch.device(device))
    floats = torch.empty(batch.shape, dtype=torch.float32, device=batch.device)
    for part in _parts(floats):
        floats[part].copy_(batch[part]).div_(255)
    return floats.permute(0, 3, 1, 2)


def normalise(images, mean, std):
    """(x - mean) / std for each channel of a float batch [N, 3, H, W] in [0, 1]; channels last. mean, std: [3]."""
    count, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(count * height, width * channels)  # operations on long rows are fast
    scale = tuple(1 / s for s in std)
    shift = tuple(-m * factor for m, factor in zip(mean, scale))
    scale, shift = (_repeated(values, width, images.dtype, images.device) for values in (scale, shift))
    result = torch.empty_like(rows)
    size = 256 if images.device.type == "cpu" else len(rows)  # rows that fit in a core's cache
    for part, out in zip(rows.split(size), result.split(size)):
        torch.addcmul(shift, part, scale, out=out)
    return result.view(count, height, width, channels).permute(0, 3, 1, 2)


@functools.lru_cache(16)
def _colour_matrices(dtype, device):
    """Two matrices [3, 3] that are applied to pixels as rows: the identity, and the grey of ITU-R BT.601."""
    grey = torch.tensor([0.299, 0.587, 0.114], dtype=dtype, device=device)
    return torch.eye(3, dtype=dtype, device=device), grey[:, None].expand(3, 3)


@functools.lru_cache(16)  # because a copy to a GPU in each step would make the GPU wait
def _repeated(values, width, dtype, device):
    """The values of the channels, repeated for each of `width` pixels of a row; a tensor."""
    return torch.tensor(values, dtype=dtype, device=device).repeat(width)
