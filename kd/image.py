"""From an image file to pixels: decode, apply the rotation tag, make RGB, resize the short side, crop the centre.

The cache, evaluation, robustness, the INT8 calibration and predict.py all call these functions, so that a file
gives the same pixels wherever it is read.
"""

import contextlib
import ctypes
import io
import os
import struct
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd.errors import UserError
from kd.files import open_regular

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # only these: some decoders of Pillow start other programs
INTERPOLATION = "bilinear"  # antialiased, as in Pillow
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB channels in [0, 1], which pretrained weights expect
STD = (0.229, 0.224, 0.225)
LONGEST = 8  # if an image is more than this many times as long as wide, its ends are cut off before it is resized

# What an image may cost, whoever made the file: a training process stays below 1.5 GB, and an image below 5 s. Measured
# with Pillow 13. So images have up to 65 megapixels, those in WebP up to 32; cameras have 61.
MEMORY = 650_000_000        # bytes for the pixels of all images that are being decoded, on however many cores
PIXEL_BYTES = {"WEBP": 20}  # memory that a pixel needs while it is decoded: WebP's decoder has several copies,
ANY_PIXEL_BYTES = 10        # and a progressive JPEG has its coefficients
MAX_BYTES = 2 ** 29         # of a file: more than the most pixels have if they are not compressed
HEADER_BYTES = 64_000_000   # read before the pixels: text, colour profiles, previews; of WebP the whole file
READS = 300_000             # pieces in which a file is read; a hostile one has millions of empty parts
SCANS = 30                  # passes over the most pixels of a JPEG; a usual progressive one has ten
RUN_LENGTH_PIXELS = 10_000_000  # of a compressed BMP, whose decoder is slow
TAG_VALUES = 50_000         # of a TIFF tag, such as the places of its strips: each becomes an object
TILE_PIXELS = 25_000_000    # of a TIFF tile, which may be larger than its image
EXIF_BYTES = 1_000_000
LARGE = 2 ** 21             # pixels of an image from which on its memory counts
STRIP = 2 ** 20             # pixels that are converted to RGB at a time

# Pillow warns about large images and odd metadata: the former are refused here, the latter are not used.
warnings.filterwarnings("ignore", module=r"PIL\.")


def find(folder):
    """The sorted paths of the image files in and below `folder`. Links are followed; hidden files are left out.

    UserError where a folder cannot be listed, and for a link that leads nowhere: images below it would be missing.
    """
    def cannot_list(error):
        raise unlisted(error.filename, error)

    paths, visited = [], set()
    for top, folders, names in os.walk(folder, followlinks=True, onerror=cannot_list):
        target = os.path.realpath(top)
        if target in visited:  # a link to a folder above would lead round for ever
            folders.clear()
            continue
        visited.add(target)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in SUFFIXES:
                paths.append(Path(top, name))
            else:
                check_link(Path(top, name))
    return sorted(paths)


def unlisted(folder, error):
    """The UserError for a folder that cannot be listed. error: the OSError."""
    return UserError(f"cannot list the folder {folder}: {(error.strerror or str(error)).lower()}",
                     "Its images would be missing. Make it readable, or move it elsewhere.")


def check_link(path):
    """UserError if `path` is a link that leads nowhere, round in a circle, or where nothing can be read."""
    if path.is_symlink():
        try:
            path.stat()
        except OSError as error:
            raise UserError(f"the link {path} leads nowhere: {(error.strerror or str(error)).lower()}",
                            "If it was to be a folder, its images would be missing. Mend it or delete it.") from None


class _Share:
    """An amount that threads share: each waits until what it needs is free."""

    def __init__(self, amount):
        self.amount = self.free = amount
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount):
        """Hold this amount, or all there is."""
        amount = min(amount, self.amount)
        with self.changed:
            self.changed.wait_for(lambda: amount <= self.free)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()


_headers, _memory = _Share(2 * HEADER_BYTES), _Share(MEMORY)
_threads = ThreadPoolExecutor(4)  # that decode large images, because glibc keeps up to 64 MB of freed memory a thread


def _return_memory():
    """Give freed memory back to the system; glibc keeps most of it."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda padding: 0)(0)  # other C libraries have none and need none


class _Reader:
    """A binary file for a decoder: reading ends in a ValueError where it would last too long or need too much."""

    def __init__(self, file):
        self.file, self.reads, self.bytes, self.limit = file, 0, 0, HEADER_BYTES

    def read(self, size=-1):
        self.reads += 1
        data = self.file.read(size if 0 <= size <= self.limit else self.limit + 1)
        self.bytes += len(data)
        if self.reads > READS:
            raise ValueError(f"it has more than {READS:,} parts")
        if self.bytes > self.limit:
            raise ValueError(f"more than {self.limit / 1e6:.0f} MB of it would have to be in memory at once")
        return data

    def begin_pixels(self, image):
        """From now on the pixels of an opened image are read: those of BMP and TIFF piece by piece, some repeatedly."""
        self.bytes, self.limit = 0, MAX_BYTES // 2
        if image.format in ("BMP", "TIFF"):
            self.bytes = -MAX_BYTES * READS

    def __getattr__(self, name):
        return getattr(self.file, name)


def decode(source):
    """The image in a file (a path, its bytes or an open file) as a Pillow RGB image, upright.

    UserError if it cannot be read.
    """
    return _decoded(source, Image.Image.copy)


def _decoded(source, use):
    """use(image) of the image that decode() returns, but in less memory; waits until there is enough of it."""
    is_path = isinstance(source, (str, os.PathLike))
    try:
        with contextlib.ExitStack() as stack:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            if is_path:
                file = stack.enter_context(open_regular(source, MAX_BYTES))
            size = file.seek(0, os.SEEK_END)
            if not size:
                raise ValueError("it is empty")
            stack.enter_context(_headers.take(size))
            _check_tags(file)
            file.seek(0)
            reader = _Reader(file)
            image = Image.open(reader, formats=FORMATS)
            pixels, pixel_bytes = image.width * image.height, PIXEL_BYTES.get(image.format, ANY_PIXEL_BYTES)
            if pixels * pixel_bytes > MEMORY:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            _check_cost(image, file)
            stack.enter_context(_memory.take(pixels * pixel_bytes))
            reader.begin_pixels(image)
            if pixels <= LARGE:
                return _use_pixels(image, use)
            return _threads.submit(_use_pixels, image, use).result()
    except UserError:
        raise
    except UnidentifiedImageError:
        reason = "it is not a JPEG, PNG, BMP, TIFF, WebP or GIF image"
    except Exception as error:  # for broken files Pillow raises anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UserError(f"cannot read {source if is_path else 'the image'}: {' '.join(reason.split())}")


def _use_pixels(image, use):
    image.load()
    result = use(to_rgb(_upright(image)))
    if image.width * image.height > LARGE:
        image.close()
        _return_memory()
    return result


def _check_tags(file):
    """ValueError if a tag of a TIFF's first directory has more values than Pillow can make objects of in time."""
    file.seek(0)
    start = file.read(16)
    if start[:2] not in (b"II", b"MM"):
        return
    order, big = "<" if start[:2] == b"II" else ">", 43 in start[2:4]
    entry = order + ("HHQ8s" if big else "HHI4s")
    file.seek(struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)[0])
    count, = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    data = file.read(min(count, 65535) * struct.calcsize(entry))
    data = data[:len(data) // struct.calcsize(entry) * struct.calcsize(entry)]
    for tag, kind, values, _ in struct.iter_unpack(entry, data):
        if kind not in (1, 2, 7) and values > TAG_VALUES:  # bytes and text stay as they are
            raise ValueError(f"its tag {tag} has {values:,} values")


def _check_cost(image, file):
    """ValueError for an opened Pillow image whose pixels would take too long, or a tile too much memory."""
    pixels = image.width * image.height
    if image.format == "BMP" and image.tile and image.tile[0][0] == "bmp_rle" and pixels > RUN_LENGTH_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many for a compressed BMP")
    if image.format in ("JPEG", "MPO"):
        file.seek(0)
        scans = sum(block.count(b"\xff\xda") for block in iter(lambda: file.read(2 ** 20), b""))
        if scans * pixels > SCANS * MEMORY / ANY_PIXEL_BYTES:
            raise ValueError(f"it has {scans} scans")
    if image.format == "TIFF":
        tile = image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0)
        if tile > TILE_PIXELS:
            raise ValueError(f"it has tiles of {tile:,} pixels")
    if len(image.info.get("exif") or b"") > EXIF_BYTES:
        raise ValueError("its EXIF metadata are too large")


_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}


def _upright(image):
    """A loaded Pillow image after the turn that its rotation tag asks for; without one the image itself, no copy."""
    turn = _TURNS.get(image.getexif().get(0x0112))
    return image if turn is None else image.transpose(turn)


def to_rgb(image):
    """A Pillow image of any mode as RGB: grey is repeated, transparency becomes white, 16 bits are scaled to 8.

    Raises ValueError for floating-point and 32-bit values, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("an image of floating-point values has no known range")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.width * image.height <= STRIP:
        return _strip_to_rgb(image)
    result = Image.new("RGB", image.size)
    columns = min(image.width, STRIP)
    rows = STRIP // columns
    for top in range(0, image.height, rows):  # the copies of a step are those of a strip, not of the whole image
        for left in range(0, image.width, columns):
            right, bottom = min(image.width, left + columns), min(image.height, top + rows)
            result.paste(_strip_to_rgb(image.crop((left, top, right, bottom))), (left, top))
    return result


def _strip_to_rgb(image):
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

    source: a path, the bytes of a file, an open binary file, or a uint8 array [H, W] or [H, W, 3]. UserError if it
    cannot be used.
    """
    if not isinstance(source, np.ndarray):
        return _decoded(source, lambda image: _square(image, side))
    is_image = source.ndim >= 2 and source.shape[2:] in ((), (3,)) and source.size
    if source.dtype != np.uint8 or not is_image:
        raise UserError(f"an image is uint8 [H, W] or [H, W, 3], not {source.dtype} {list(source.shape)}")
    return _square(Image.fromarray(source).convert("RGB"), side)


def _square(image, side):
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
