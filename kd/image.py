"""From an image file to pixels: decode, apply the rotation tag, make RGB, resize the short side, crop the centre.

The cache, evaluation, robustness, the INT8 calibration and predict.py all call these functions, so that a file
gives the same pixels wherever it is read.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # only these: some decoders of Pillow start other programs
INTERPOLATION = "bilinear"  # antialiased, as in Pillow
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB channels in [0, 1], which pretrained weights expect
STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # a larger image is refused before it is decoded
LONGEST = 8  # if an image is more than this many times as long as wide, its ends are cut off before it is resized

# Pillow warns about large images and odd metadata: the former are refused here, the latter are not used.
warnings.filterwarnings("ignore", module=r"PIL\.")


def find(folder):
    """The sorted paths of the image files in and below `folder`. Links are followed; hidden files are left out."""
    paths, visited = [], set()
    for top, folders, names in os.walk(folder, followlinks=True):
        target = os.path.realpath(top)
        if target in visited:  # a link to a folder above would lead round for ever
            folders.clear()
            continue
        visited.add(target)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(top, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
    return sorted(paths)


def decode(source):
    """The image in a file (a path or its bytes) as a Pillow RGB image, upright. UserError if it cannot be read."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise ValueError("it is empty")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        reason = "it is not a JPEG, PNG, BMP, TIFF, WebP or GIF image"
    except Exception as error:  # for broken files Pillow raises anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    name = "the image" if isinstance(source, bytes) else source
    raise UserError(f"cannot read {name}: {' '.join(reason.split())}")


def to_rgb(image):
    """A Pillow image of any mode as RGB: grey is repeated, transparency becomes white, 16 bits are scaled to 8.

    Raises ValueError for floating-point and 32-bit values, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("an image of floating-point values has no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("an image of 32-bit values has no known range")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255, rounded
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def square(source, side):
    """The pixels of an image, uint8 [side, side, 3]: its short side is resized to `side`, then its centre is cut out.

    source: a path, the bytes of a file, or a uint8 array [H, W] or [H, W, 3]. UserError if it cannot be used.
    """
    if isinstance(source, np.ndarray):
        is_image = source.ndim >= 2 and source.shape[2:] in ((), (3,)) and source.size
        if source.dtype != np.uint8 or not is_image:
            raise UserError(f"an image is uint8 [H, W] or [H, W, 3], not {source.dtype} {list(source.shape)}")
        image = Image.fromarray(source).convert("RGB")
    else:
        image = decode(source)
    short = min(image.size)
    ends = [max(0, length - LONGEST * short) // 2 for length in image.size]
    if any(ends):  # otherwise an image of one row of pixels would be scaled up to gigabytes
        image = image.crop((*ends, image.width - ends[0], image.height - ends[1]))
    width, height = image.size
    scale = side / short
    size = max(side, round(width * scale)), max(side, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return centre_crop(np.asarray(image)[None], side)[0]


def resize_for(size):
    """The side, in px, that files are resized to for networks of input `size`.

    It is an eighth larger than `size`, so that random crops differ.
    """
    return size + 2 * round(size / 16)


def evaluation_pixels(source, resize, size):
    """The pixels uint8 [size, size, 3] that a network gets of an image, in evaluation and in use.

    source: as for square(). resize: the side that it is resized to before its centre of `size` px is cut out.
    """
    return centre_crop(square(source, resize)[None], size)[0]


def centre_crop(images, side):
    """The centre [N, side, side, 3] of a batch of images [N, H, W, 3]."""
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    return images[:, top:top + side, left:left + side]
