"""From an image file to pixels: decode, apply the rotation tag, make RGB, resize the short side, crop the centre.

The cache, evaluation, robustness, the INT8 calibration and predict.py all call these functions, so that a file
gives the same pixels wherever it is read. How it is resized has a name in INTERPOLATIONS, which a checkpoint records:
networks keep the way that they were trained with. Images of more than 8 bits are scaled by the range that was chosen
for the whole set that a network was trained on (see kd.data.values).
"""

import contextlib
import functools
import io
import os
import sys
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd import image_files
from kd.errors import UserError
from kd.files import open_regular

# Only these formats: some decoders of Pillow start other programs. TGA has no signature, so it goes by the suffix.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "PCX", "SGI")
# How images are resized. "bilinear": in one step, antialiased. "box-bilinear": first to the means of squares of pixels,
# so far that the short side stays GAP times the final one or more, then as "bilinear"; in place of the first step, a
# JPEG is decoded at a half, a quarter or an eighth of its size, within the same bound. Below 2 GAP times the final size
# both give the same pixels.
INTERPOLATIONS = ("bilinear", "box-bilinear")
INTERPOLATION = "box-bilinear"  # of new trainings
GAP = 4       # the pixels of large JPEGs differ half as much as with 3 (docs/speed.md)
SQUARE = 128  # px, the largest side of a square: Pillow's means of some larger ones are too dark
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB channels in [0, 1], which pretrained weights expect
STD = (0.229, 0.224, 0.225)
LONGEST = 8  # if an image is more than this many times as long as wide, its ends are cut off before it is resized

# What an image may cost, whoever made the file: a training process stays below 1.5 GB, and an image below 5 s. Measured
# with Pillow 13. So images have up to 65 megapixels, those in WebP up to 32; cameras have 61.
MEMORY = 650_000_000        # bytes for the pixels of all images that are being decoded, on however many cores
PIXEL_BYTES = {"WEBP": 20, "AVIF": 20, "JPEG2000": 25}  # of a pixel while it is decoded: some have several copies,
ANY_PIXEL_BYTES = 10        # and a progressive JPEG has its coefficients
MAX_BYTES = 2 ** 29         # of a file: more than the most pixels have if they are not compressed
HEADER_BYTES = 64_000_000   # read before the pixels: text, colour profiles, previews; of WebP the whole file
READS = 300_000             # pieces in which a file is read; a hostile one has millions of empty parts
SCANS = 30                  # passes over the most pixels of a JPEG; a usual progressive one has ten
SLOW_PIXELS = {"BMP": 10_000_000, "JPEG2000": 6_000_000, "PPM": 1_500_000}  # if a BMP is compressed, a PPM is text
TILE_PIXELS = 25_000_000    # of a TIFF tile, which may be larger than its image
EXIF_BYTES = 1_000_000
LARGE = 2 ** 21             # pixels of an image from which on its memory counts
STRIP = 2 ** 20             # pixels that are converted to RGB at a time

# What Image.info has of a file in addition: three flags of its header, and an image of the lower 8 bits of 16 (and of
# that: whether its colours are the four bytes of grey and alpha)
WHITE_IS_ZERO, SEVERAL_FRAMES, UNSIGNED, LOWER_BITS = "white is zero", "several frames", "unsigned", "lower bits"
FOUR_BYTES = "four bytes"
FRAME = "frame"  # (left, top, right, bottom) of the picture in the pixels of a JPEG decoded at a fraction; else None

# Of a range, from which on values do not fit it: as resampling does not go beyond it, and as 12 bits lie in 16.
BEYOND, NARROW = 1 / 100, 1 / 16

# Pillow warns about large images and odd metadata: the former are refused here, the latter are not used.
warnings.filterwarnings("ignore", module=r"PIL\.")


class OtherDepth(UserError):
    """An image has more than 8 bits, and the network was trained on images of 8 bits."""


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


@functools.cache
def _threads():
    """The threads that decode large images, because glibc keeps up to 64 MB of freed memory for each thread."""
    from concurrent.futures import ThreadPoolExecutor  # here and below, because predict.py starts sooner without
    return ThreadPoolExecutor(4)


def _return_memory():
    """Give freed memory back to the system; glibc keeps most of it."""
    import ctypes
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


def decode(source, range=None):
    """The image in a file (a path, its bytes or an open file) as a Pillow RGB image, upright.

    range: as for to_rgb(). UserError if it cannot be read.
    """
    return _decoded(source, lambda image: to_rgb(image, range).copy())


def _decoded(source, use, least=None):
    """use(image) of the loaded, upright image in a file, of any mode; waits until there is enough memory for it.

    least: px of the short side that are enough; a JPEG may be decoded at a fraction of its size.
    """
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
            tags = image_files.tiff_tags(file)
            file.seek(0)
            reader = _Reader(file)
            try:
                image = _opened(reader, getattr(source, "name", source if is_path else ""))
            except UnidentifiedImageError:
                raise ValueError(image_files.unread(file, tags)) from None
            pixels, pixel_bytes = image.width * image.height, PIXEL_BYTES.get(image.format, ANY_PIXEL_BYTES)
            if pixels * pixel_bytes > MEMORY:
                raise ValueError(f"{image.width} x {image.height} pixels are too many, "
                                 f"{_smaller(image.format, MEMORY // pixel_bytes)}")
            _check_cost(image, file)
            image.info[SEVERAL_FRAMES] = _has_several_frames(image, file)
            reader.begin_pixels(image)
            lower = _lower_bits(image, file)
            stack.enter_context(_memory.take(pixels * pixel_bytes * (1 if lower is None else 2)))
            if pixels <= LARGE:
                return _use_pixels(image, lower, use, least)
            return _threads().submit(_use_pixels, image, lower, use, least).result()
    except OtherDepth as error:
        raise OtherDepth(f"{source if is_path else 'the image'} {error.message}", error.hint) from None
    except UserError:
        raise
    except Exception as error:  # for broken files Pillow raises anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UserError(f"cannot read {source if is_path else 'the image'}: {' '.join(reason.split())}")


def _smaller(form, pixels):
    """What to do with an image of more pixels than are read of this format, as the end of a sentence."""
    return f"of {form} up to {pixels / 1e6:g} megapixels are read: make it smaller"


def _opened(reader, name):
    """The Pillow image in a file of one of FORMATS; TGA where it is called so. UnidentifiedImageError otherwise."""
    formats = (*FORMATS, "TGA") if str(name).lower().endswith(".tga") else FORMATS
    Image.preinit()  # the decoders of the usual formats; those of all take a tenth of the time to the first answer
    try:
        return Image.open(reader, formats=[form for form in formats if form in Image.OPEN])
    except UnidentifiedImageError:
        if not Image.init():
            raise
    reader.seek(0)
    return Image.open(reader, formats=[form for form in formats if form in Image.OPEN])


def _lower_bits(image, file):
    """For an opened Pillow image with 16 bits a colour, of which Pillow reads the upper 8: one of the lower 8, or None.

    It is the same image, read as if its bytes were in the other order. Pillow has no such reader for grey and alpha,
    whose four bytes are read as the colours of RGBA: green is the lower one of the grey.
    """
    tiles = []
    for tile in image.tile:
        args = tile[3]
        rawmode, *rest = [args] if isinstance(args, str) else args or [""]
        colours, _, order = str(rawmode).partition(";16")
        if colours not in ("RGB", "RGBA", "RGBX", "LA") or order not in ("L", "B", "N"):
            return None
        is_little = order == "L" or order == "N" and sys.byteorder == "little"
        other = "RGBA" if colours == "LA" else f"{colours};16{'B' if is_little else 'L'}"
        args = other if isinstance(args, str) else (other, *rest)
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args))  # Pillow before 11.1
    if not tiles:
        return None
    file.seek(0)
    reader = _Reader(file)
    lower = Image.open(reader, formats=[image.format])
    lower.tile = tiles
    lower.info[FOUR_BYTES] = other == "RGBA"
    if other == "RGBA":
        lower._mode = other
    reader.begin_pixels(lower)
    return lower


def _use_pixels(image, lower, use, least):
    is_large = image.width * image.height > LARGE
    drafted = least and image.draft(None, (least, least))  # None of other formats than JPEG
    image.load()
    tags = image.tag_v2 if image.format == "TIFF" else {}
    white_is_zero = tags.get(262) == 0
    upright = _upright(image, drafted and drafted[1][2:])
    # Pillow has integers with a sign alone
    upright.info[UNSIGNED] = upright.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    upright.info[WHITE_IS_ZERO] = white_is_zero and is_deep(upright)  # of others Pillow gives the inverse itself
    if lower is not None:
        lower.load()
        lower, are_four = _upright(lower), lower.info[FOUR_BYTES]
        upright.info[LOWER_BITS] = lower.getchannel("G").convert("RGB") if are_four else lower
    result = use(upright)
    if is_large:
        image.close()
        _return_memory()
    return result


def _check_cost(image, file):
    """ValueError for an opened Pillow image whose pixels would take too long, or a tile too much memory."""
    pixels = image.width * image.height
    decoder = image.tile[0][0] if image.tile else ""
    if pixels > SLOW_PIXELS.get(image.format, pixels) and decoder in ("bmp_rle", "jpeg2k", "ppm_plain"):
        raise ValueError(f"{image.width} x {image.height} pixels are too many for a {image.format} of this kind, "
                         f"{_smaller(image.format, SLOW_PIXELS[image.format])}, or save it as PNG")
    if image.format in ("JPEG", "MPO"):
        scans = _scans(file)
        if scans * pixels > SCANS * MEMORY / ANY_PIXEL_BYTES:
            raise ValueError(f"it has {scans} scans")
    if image.format == "TIFF":
        tile = image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0)
        if tile > TILE_PIXELS:
            raise ValueError(f"it has tiles of {tile:,} pixels")
    if len(image.info.get("exif") or b"") > EXIF_BYTES:
        raise ValueError("its EXIF metadata are too large")


def _scans(file):
    """How many scans begin in an open JPEG file; five times as fast as bytes.count()."""
    file.seek(0)
    count, last = 0, b""
    while block := file.read(2 ** 18):
        values = np.frombuffer(last + block, np.uint8)
        count += np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))
        last = block[-1:]
    return count


def _has_several_frames(image, file):
    """Whether an opened Pillow image is the first of several pages or frames in its file."""
    if image.format == "TIFF":
        return bool(image.tag_v2.next)
    if image.format == "GIF":  # it does not say so at its start; Pillow goes through the parts of a copy
        with contextlib.suppress(Exception):
            file.seek(0)
            return Image.open(_Reader(file), formats=["GIF"]).is_animated
    return image.format != "MPO" and getattr(image, "is_animated", False)  # a telephone's second picture is a preview


# By rotation tag: the turn that makes an image upright, and whether the corner of the first stored pixel is then on the
# right, and whether it is below
_TURNS = {2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False), 3: (Image.Transpose.ROTATE_180, True, True),
          4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True), 5: (Image.Transpose.TRANSPOSE, False, False),
          6: (Image.Transpose.ROTATE_270, True, False), 7: (Image.Transpose.TRANSVERSE, True, True),
          8: (Image.Transpose.ROTATE_90, False, True)}


def _upright(image, size=None):
    """A loaded Pillow image after the turn that its rotation tag asks for; without one the image itself, no copy.

    size: width and height, before the turn, of a picture that does not fill its last pixels; info[FRAME] is its place.
    """
    tag = image.getexif().get(0x0112)
    turn, is_right, is_below = _TURNS.get(tag, (None, False, False))
    upright = image if turn is None else image.transpose(turn)
    upright.info[FRAME] = None
    if size:
        width, height = size[::-1] if tag in (5, 6, 7, 8) else size
        left, top = is_right * (upright.width - width), is_below * (upright.height - height)
        upright.info[FRAME] = left, top, left + width, top + height
    return upright


def is_deep(image):
    """Whether the values of a Pillow image have more than 8 bits, so that a range says which become black and white."""
    return image.mode.startswith("I") or image.mode == "F" or LOWER_BITS in image.info


def extremes(image):
    """(least, largest, whether they are floats) of the values of a deep Pillow image; ValueError for NaN, infinity."""
    lows, highs = zip(*((values.min().item(), values.max().item()) for values, _ in _strips(image, _values)))
    return min(lows), max(highs), image.mode == "F"


def to_rgb(image, range=None):
    """A Pillow image of any mode as RGB: grey is repeated, transparency becomes white, deep values get 8 bits.

    range: (low, high), the deep values that become 0 and 255; those beyond are clipped. None is that of a network that
    was trained on images of 8 bits: which deep values would look like those is not known, and they are an OtherDepth.
    """
    if image.mode == "RGB" and "transparency" not in image.info and not is_deep(image):
        return image
    if image.width * image.height <= STRIP:
        return _strip_to_rgb(image, range)
    if is_deep(image) and range is None:
        _refuse(image)
    result = Image.new("RGB", image.size)
    for strip, corner in _strips(image, lambda strip: _strip_to_rgb(strip, range)):
        result.paste(strip, corner)
    return result


def misfit(extremes, range):
    """How the values of a deep image do not fit the range of a network: "beyond" its ends, "narrow", or "" if they do.

    extremes: as of extremes(). range: as for to_rgb(). Narrow are those in a 16th of the range: nearly one grey.
    """
    (least, largest, _), (low, high) = extremes, range
    span = high - low
    if least < low - BEYOND * span or largest > high + BEYOND * span:
        return "beyond"
    return "narrow" if largest - least < NARROW * span else ""


def is_range(values):
    """Whether this is a range as to_rgb() takes it, [low, high], whoever wrote it."""
    return (isinstance(values, list) and [type(value) in (int, float) for value in values] == [True, True]
            and all(abs(value) < 1e300 for value in values) and values[0] < values[1])


def _strips(image, use):
    """Yield use(part) and the upper left corner of each part of an image: copies are those of STRIP pixels at most."""
    columns = min(image.width, STRIP)
    rows = STRIP // columns
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            right, bottom = min(image.width, left + columns), min(image.height, top + rows)
            strip = image.crop((left, top, right, bottom))
            if LOWER_BITS in image.info:
                strip.info[LOWER_BITS] = image.info[LOWER_BITS].crop((left, top, right, bottom))
            yield use(strip), (left, top)


def _values(image):
    """The values of a deep image, an array [H, W], or [H, W, 3] without transparency. ValueError for NaN."""
    if LOWER_BITS in image.info:
        upper, lower = (np.asarray(part)[..., :3] for part in (image, image.info[LOWER_BITS]))
        return upper.astype(np.uint16) << 8 | lower
    values = np.asarray(image)
    if image.info.get(UNSIGNED):
        values = values.view(np.uint32)
    if image.mode == "F" and not np.isfinite(values).all():
        raise ValueError("it has values that are not numbers")
    return values


def _scaled(values, low, high):
    """Values of any type as uint8: low becomes 0 and high 255."""
    values = np.clip(np.asarray(values, np.float64), low, high)
    return np.floor((values - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _table(low, high):
    """_scaled() of all values of 16 bits: to look them up is several times as fast."""
    return _scaled(np.arange(65536), low, high)


def _refuse(image):
    _, high, is_float = extremes(image)
    kind = "floating-point values" if is_float else "more than 8 bits, with values"
    raise OtherDepth(f"has {kind} up to {high:,.6g}, and the network was trained on images of 8 bits",
                     "Save it in 8 bits, with the scale of the training images.")


def _strip_to_rgb(image, range):
    if is_deep(image):
        if range is None:
            _refuse(image)
        values, (low, high) = _values(image), range
        scaled = _table(low, high)[values] if values.dtype.itemsize == 2 else _scaled(values, low, high)
        if image.mode == "RGBA":
            scaled = np.dstack([scaled, np.asarray(image)[..., 3]])
        image = Image.fromarray(255 - scaled if image.info.get(WHITE_IS_ZERO) else scaled)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def square(source, side, range=None, interpolation=INTERPOLATION):
    """The pixels of an image, uint8 [side, side, 3]: its short side is resized to `side`, then its centre is cut out.

    source: a path, the bytes of a file, an open binary file, or a uint8 array [H, W] or [H, W, 3]. range: as for
    to_rgb(). interpolation: one of INTERPOLATIONS. UserError if it cannot be used.
    """
    gap = _gap(interpolation)
    if not isinstance(source, np.ndarray):
        return _decoded(source, lambda image: _square(image, side, range, gap), gap * side)
    is_image = source.ndim >= 2 and source.shape[2:] in ((), (3,)) and source.size
    if source.dtype != np.uint8 or not is_image:
        raise UserError(f"an image is uint8 [H, W] or [H, W, 3], not {source.dtype} {list(source.shape)}")
    return _square(Image.fromarray(source), side, range, gap)


def examine(source, side, range=None, interpolation=INTERPOLATION):
    """(pixels, extremes, whether it has several frames, short) of an image: as square() and extremes() give them.

    extremes is None for an image of 8 bits; without a range, pixels is None for a deep one. short: px of the short side
    as decoded, a fraction of the true one only in a large JPEG. source, interpolation: as for square(). UserError if it
    cannot be used.
    """
    gap = _gap(interpolation)

    def use(image):
        values = extremes(image) if is_deep(image) else None
        pixels = None if values and range is None else _square(image, side, range, gap)
        return pixels, values, image.info[SEVERAL_FRAMES], min(image.size)

    if isinstance(source, np.ndarray):
        return square(source, side, range, interpolation), None, False, min(source.shape[:2])
    return _decoded(source, use, gap * side)


def way_of(interpolation):
    """What pixels depend on, as a text: the interpolation and, where there is a first step, how far it goes."""
    gap = _gap(interpolation)
    return f"{interpolation} {gap}" if gap else interpolation


def _gap(interpolation):
    """How many times the final size the first step leaves; 0 where there is none."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"unknown interpolation {str(interpolation)[:40]!r}", f"Known are {', '.join(INTERPOLATIONS)}.")
    return 0 if interpolation == "bilinear" else GAP


def _square(image, side, range, gap):
    """square() of an upright Pillow image."""
    frame = image.info.get(FRAME)
    left, top, right, bottom = frame or (0, 0, *image.size)
    image, short = to_rgb(image, range), min(right - left, bottom - top)
    ends = [max(0, int(length - LONGEST * short)) // 2 for length in image.size]
    if any(ends):  # otherwise an image of one row of pixels would be scaled up to gigabytes
        image = image.crop((*ends, image.width - ends[0], image.height - ends[1]))
        left, right = max(0, left - ends[0]), min(image.width, right - ends[0])
        top, bottom = max(0, top - ends[1]), min(image.height, bottom - ends[1])
    width, height = right - left, bottom - top
    scale = side / short
    size = max(side, round(width * scale)), max(side, round(height * scale))
    factor = min(short // (gap * side), SQUARE) if gap and not frame else 1
    if factor > 1:
        image = image.reduce(factor)
        right, bottom = right / factor, bottom / factor
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))
    return centre_crop(np.asarray(image)[None], side)[0]


def resize_for(size):
    """The side, in px, that files are resized to for networks of input `size`.

    It is an eighth larger than `size`, so that random crops differ.
    """
    return size + 2 * round(size / 16)


def evaluation_pixels(source, input):
    """The pixels uint8 [S, S, 3] that a network gets of an image, in evaluation and in use.

    source: as for square(). input: what its checkpoint records, {"resize": the side that it is resized to, "size": S,
    of the centre that is cut out of that, "interpolation", and "range" where it has one}.
    """
    pixels = square(source, input["resize"], input.get("range"), input["interpolation"])
    return centre_crop(pixels[None], input["size"])[0]


def centre_crop(images, side):
    """The centre [N, side, side, 3] of a batch of images [N, H, W, 3]."""
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    return images[:, top:top + side, left:left + side]
