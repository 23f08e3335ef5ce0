"""Pixels go one way: decode, apply the rotation tag, make RGB, resize the short side, crop.

The cache, evaluation and prediction all come through here, so that a file gives the
same pixels wherever it is read.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # Pillow knows others, and some start programs
INTERPOLATION = "bilinear"  # antialiased, as Pillow does it
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which pretrained weights expect
STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded
LONGEST = 8  # of a picture this many times as long as wide, only the middle is scaled

# Pillow warns of large pictures and of odd metadata: the former are refused here, the latter not used
warnings.filterwarnings("ignore", module=r"PIL\.")


def find(folder):
    """The image files in and below `folder`, sorted; links are followed, hidden names left out."""
    found, seen = [], set()
    for top, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(top)
        if place in seen:  # a link back to where we came from
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
    return sorted(found)


def decode(source):
    """The file (a path or its bytes) as a Pillow RGB image, upright."""
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
    except Exception as error:  # on broken files Pillow raises anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    name = "the image" if isinstance(source, bytes) else source
    raise UserError(f"cannot read {name}: {' '.join(reason.split())}")


def to_rgb(image):
    """Grey is repeated, transparency laid on white, 16 bits scaled to 8."""
    if image.mode == "F":
        raise ValueError("an image of floating-point values has no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("an image of 32-bit values has no known range")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255, rounded
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def square(source, side):
    """A path, bytes, or a uint8 array [H, W] or [H, W, 3], as uint8 [side, side, 3].

    The short side is resized to `side` pixels and the centre square is cut out.
    """
    if isinstance(source, np.ndarray):
        shaped = source.ndim >= 2 and source.shape[2:] in ((), (3,)) and source.size
        if source.dtype != np.uint8 or not shaped:
            raise UserError(f"an image is uint8 [H, W] or [H, W, 3], not {source.dtype} {list(source.shape)}")
        image = Image.fromarray(source).convert("RGB")
    else:
        image = decode(source)
    short = min(image.size)
    ends = [max(0, length - LONGEST * short) // 2 for length in image.size]
    if any(ends):  # else one row of pixels would be scaled up to gigabytes
        image = image.crop((*ends, image.width - ends[0], image.height - ends[1]))
    width, height = image.size
    scale = side / short
    size = max(side, round(width * scale)), max(side, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return centre_crop(np.asarray(image)[None], side)[0]


def resize_for(size):
    """The side that files are resized to for crops of `size` px: an eighth larger, so that a random crop has pixels to choose from."""
    return size + 2 * round(size / 16)


def evaluation_pixels(source, resize, size):
    """A path, bytes, or a uint8 array, as the uint8 [size, size, 3] that evaluation sees of it."""
    return centre_crop(square(source, resize)[None], size)[0]


def centre_crop(images, side):
    """The centre of a batch [N, H, W, 3] as [N, side, side, 3]."""
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    return images[:, top:top + side, left:left + side]
