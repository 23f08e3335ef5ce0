"""Pixels go one way: decode, apply the rotation tag, make RGB, resize the short side, crop.

The cache, evaluation and prediction all come through here, so that a file gives the
same pixels wherever it is read.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kd.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
INTERPOLATION = "bilinear"  # antialiased, as Pillow does it
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which pretrained weights expect
STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded


def decode(source):
    """The file (a path or its bytes) as a Pillow RGB image, upright."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        name = "the image" if isinstance(source, bytes) else source
        raise UserError(f"cannot read {name}: {error}") from error


def to_rgb(image):
    """Grey is repeated, transparency laid on white, 16 bits scaled to 8."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("an image of floating-point values has no known range")
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
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)):
            raise UserError(f"an image is uint8 [H, W] or [H, W, 3], not {source.dtype} {source.shape}")
        image = Image.fromarray(source).convert("RGB")
    else:
        image = decode(source)
    width, height = image.size
    scale = side / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return centre_crop(np.asarray(image)[None], side)[0]


def centre_crop(images, side):
    """The centre of a batch [N, H, W, 3] as [N, side, side, 3]."""
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    return images[:, top:top + side, left:left + side]
