"""The image cache: every image is decoded once, into a uint8 memory map that all later runs share.

Each image has a checksum, which is compared whenever the cache is opened. For HAM10000 this takes 0.2 s at 64 px and
0.8 s at 224 px, less than 0.5% of an epoch of a ResNet-18 on two cores.
"""

import contextlib
import hashlib
import math
import os
import re
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from kd import image, machine
from kd.data import values
from kd.errors import UserError, listing, progress
from kd.files import atomic, lock, open_regular, read_csv, write_csv

FORMAT = 2  # to be raised when the same file would give other pixels
CHUNK = 256         # images decoded at a time, and
CHUNK_BYTES = 2 ** 26  # the bytes of their pixels at most; both limit the memory of a build
COLUMNS = ("id", "sha256", "error", "facts", "crc32")  # of the index; facts: see kd.data.values


def open_cache(dataset, resize, *, interpolation=image.INTERPOLATION, folder=None, root=None, skip_bad=False,
               range=None, eight_bits=False, again=False):
    """The images of a Dataset from its cache, which is built if there is none.

    resize: side of the images in px. interpolation: one of kd.image.INTERPOLATIONS. folder: where the cache is; None
    for beside the data in `root`, or in the user's cache folder if that place cannot be written. The file name contains
    a key of the interpolation and of every image's name, size and time of change, so that changed data get a new cache.
    Old ones are not deleted, because another program may be reading them.
    range: (low, high) of the network that the images are for, to which deep values are scaled; None to choose one that
    suits all images of the set. eight_bits: the network was trained on images of 8 bits alone, and deep ones, whose
    scale it does not have, cannot be used. again: the same images were opened at another size before.

    Returns (images, sha256, bad, range): images is a memory map uint8 [N, resize, resize, 3]; sha256 are N strings, of
    the bytes of each file, or of the pixels if an image is no file; bad is a list of (position, reason) for images that
    cannot be read, whose pixels are 0; range is None if no image is deep. Lines say what values the images have where
    these are not the usual ones, unless `again`. Without `skip_bad` such images are a UserError. A cache that is
    damaged, or of an older version without checksums, is built again, and a line says so; a UserError where nothing can
    be written.
    """
    stamps = [_stamp(dataset, i) for i, _ in enumerate(dataset.ids)]
    scale = "" if range is None else f" {range[0]}..{range[1]}"
    text = "\n".join([f"{FORMAT} {dataset.name} {dataset.version} {resize} {interpolation}{scale}", *stamps])
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", dataset.name)[:40]  # names that become equal here differ in the key
    stem = f"{name}_{resize}px_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    places = [Path(folder)] if folder is not None else _places(root)
    found, damage = _find(dataset, resize, places, stem)
    if found is None:
        place = _writable(places, damage)
        if damage:
            print(f"note: {damage}; it is made again")
        found = _built(dataset, resize, interpolation, place, stem, range, eight_bits)
    images, rows = found
    deep = values.deep_extremes(rows) if eight_bits else {}
    rows = [{**row, "facts": "", "error": f"values up to {deep[row['id']][1]:,.6g}, in more than 8 bits"}
            if row["id"] in deep else row for row in rows]
    bad = [(i, row["error"]) for i, row in enumerate(rows) if row["error"]]
    if bad and not skip_bad:
        names = listing([f"{dataset.ids[i]} ({reason})" for i, reason in bad])
        used = np.delete(dataset.labels, [i for i, _ in bad])
        lost = [name for k, name in enumerate(dataset.class_names) if k in dataset.labels and k not in used]
        hint = ", or leave them out with --skip-bad" if not lost else f"; without them {listing(lost)} has no image"
        in_8_bits = "ave them in 8 bits, with the scale of the images that the network was trained on"
        mend = f"S{in_8_bits}" if len(deep) == len(bad) else "Repair them" + (
            f" (those of more than 8 bits: s{in_8_bits})" if deep else "")
        of_8_bits = " by a network that was trained on images of 8 bits" if len(deep) == len(bad) else ""
        raise UserError(f"{len(bad)} of {len(rows)} images cannot be used{of_8_bits}: {names}", f"{mend}{hint}.")
    extremes = values.deep_extremes(rows)
    used = (range or values.choose_range(extremes)) if extremes else None
    if not again:
        index = Path(images.filename).with_suffix(".csv")
        for line in values.notes(rows, used, range is not None or eight_bits, index):
            print(f"note: {line}")
    return images, [row["sha256"] for row in rows], bad, used


def _find(dataset, resize, places, stem):
    """((images, rows of the index) of the first whole cache in `places` or None, what is wrong with the one before)."""
    damage = ""
    for place in places:
        if _is_complete(place, stem):
            try:
                found = _load(dataset, resize, place, stem)
            except UserError as error:
                damage = damage or error.message
                continue
            if not _bad_became_readable(dataset, found[1]):
                return found, damage
    return None, damage


def _built(dataset, resize, interpolation, place, stem, limits, eight_bits):
    """(images, rows of the index) of a cache that is built here, unless another process builds it at this moment."""
    pixels = place / f"{stem}.npy"
    with lock(place / f"{stem}.lock", wait=True, what=f"the image cache {pixels}"):
        found, _ = _find(dataset, resize, [place], stem)
        if found is None:
            _build(dataset, resize, interpolation, pixels, place / f"{stem}.csv", limits, eight_bits)
    return found or _load(dataset, resize, place, stem)


def _load(dataset, resize, place, stem):
    """(images, rows of the index) of a cache. UserError unless images and index are what was written."""
    pixels, index = place / f"{stem}.npy", place / f"{stem}.csv"
    shape = (len(dataset.ids), resize, resize, 3)
    try:
        rows = read_csv(index, required=COLUMNS)
        if [row["id"] for row in rows] != dataset.ids:
            raise ValueError(f"{index.name} lists other images")
        with open_regular(pixels, math.prod(shape) + 4096) as file:
            images = np.lib.format.open_memmap(pixels, mode="r")
            if images.dtype != np.uint8 or images.shape != shape:
                raise ValueError(f"it contains {images.dtype} {list(images.shape)}")
            file.seek(images.offset)  # what is read through the map would be counted as memory of this process
            size = math.prod(shape[1:])
            changed = [row["id"] for row in rows if row["crc32"] != _checksum(row, zlib.crc32(file.read(size)))]
        if changed:
            raise ValueError(f"{len(changed)} of {len(rows)} images are not what was written: {listing(changed)}")
    except Exception as error:  # of a damaged header NumPy raises what the parser of Python raises
        reason = " ".join(getattr(error, "message", str(error)).split())
        raise UserError(f"the image cache {pixels} is damaged: {reason}") from error
    return images, rows


def _checksum(row, of_pixels):
    """CRC-32, eight hex digits, of a row of the index after that of its image's pixels: finds damage, not intent."""
    text = "\n".join(row[column] for column in COLUMNS[:-1])
    return f"{zlib.crc32(text.encode(), of_pixels):08x}"


def _stamp(dataset, position):
    """A line of text that changes when the pixels of an image may have changed."""
    source, name = dataset.images[position], dataset.ids[position]
    if isinstance(source, (str, Path)):
        try:
            status = os.stat(source)
            return f"{name} {status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):  # the latter for a name that no file can have
            return f"{name} missing"
    if isinstance(source, UserError):
        return f"{name} {source.message}"
    if isinstance(source, np.ndarray) and not dataset.version:
        return f"{name} {source.shape} {_sha256(source)}"
    return name


def _sha256(data):
    return hashlib.sha256(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data).hexdigest()


def _places(root):
    """The folders for a cache, in order of preference: beside the data in `root`, then the user's cache folder."""
    places = [machine.cache_folder()]
    if root is not None:
        root = Path(root)
        places.insert(0, (root if root.is_dir() else root.parent) / ".kd_cache")
    return places


def _is_complete(place, stem):
    """Whether both files of a cache are there: the pixels, and the index, which is written last."""
    return all(os.path.exists(place / f"{stem}{suffix}") for suffix in (".npy", ".csv"))


def _writable(places, damage=""):
    """The first of the places in which a file can be written. UserError if there is none.

    damage: why the cache that is there cannot be used, for the error.
    """
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError as error:
            reason = error.strerror
    cannot = f"cannot be written to {place}: {reason.lower()}"
    raise UserError(f"{damage}; a new one {cannot}" if damage else f"the image cache {cannot}",
                    "Make that place writable, or choose another with --cache, which the training scripts, export.py "
                    "and robustness.py have.")


def _bad_became_readable(dataset, rows):
    """Whether an image that could not be read now can be, though its size and time are unchanged.

    This happens when a permission is given or a drive is connected again.
    """
    return any(row["error"] and not _read(source, 8, image.INTERPOLATION, (0, 1))[3]
               for row, source in zip(rows, dataset.images))


def _read(source, resize, interpolation, limits):
    """(pixels, sha256, facts, "") of an image, or (0, "", [], the reason why it cannot be read).

    pixels is 0, too, for a deep image without `limits`, its range. facts: the words of kd.data.values on the file.
    """
    try:
        if isinstance(source, UserError):
            raise source
        if callable(source):
            source = source()
        if isinstance(source, np.ndarray):
            return image.square(source, resize, None, interpolation), _sha256(source), [], ""
        with open_regular(source, image.MAX_BYTES) as file:
            digest = hashlib.sha256()
            while block := file.read(2 ** 20):
                digest.update(block)
            pixels, extremes, has_several_frames = image.examine(file, resize, limits, interpolation)
        facts = ([values.deep_word(*extremes)] if extremes else []) + ["frames"] * has_several_frames
        return 0 if pixels is None else pixels, digest.hexdigest(), facts, ""
    except UserError as error:
        reason = error.message.removeprefix("cannot read the image: ")
        return 0, "", [], reason.replace(f": {source}", "").replace(str(source), "it")
    except OSError as error:
        return 0, "", [], error.strerror or str(error) or "unreadable"


def _build(dataset, resize, interpolation, pixels, index, limits, eight_bits):
    """Decode all images, in threads, and write both files of the cache.

    limits: the range of deep images; without one they are decoded twice, since it is known when all have been read.
    eight_bits: as for open_cache(). Deep images that have no common range are then left black, as nobody uses them.
    """
    for remnant in pixels.parent.glob(f".{pixels.stem}.*.tmp"):  # of a build that was killed
        with contextlib.suppress(OSError):
            remnant.unlink()
    with contextlib.suppress(FileNotFoundError):
        index.unlink()
    count, size = len(dataset.ids), resize * resize * 3
    rows, sums, looks = [{}] * count, [0] * count, values.Looks(count)
    with atomic(pixels) as file, ThreadPoolExecutor() as pool, \
            progress(description="decoding images once", total=count, unit="image") as bar:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, resize, resize, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        begin, step = file.tell(), max(1, min(CHUNK, CHUNK_BYTES // size))

        def decode(part, limits):
            """Decode and write the images at the positions `part`."""
            chunk = np.zeros((len(part), resize, resize, 3), np.uint8)
            sources = [dataset.images[i] for i in part]
            results = pool.map(_read, sources, repeat(resize), repeat(interpolation), repeat(limits))
            for k, (square, sha256, facts, error) in enumerate(results):
                chunk[k] = square
                rows[part[k]] = {"id": dataset.ids[part[k]], "sha256": sha256, "error": error, "facts": facts}
            for i, square, words in zip(part, chunk, looks.words(part, chunk)):
                rows[i]["facts"] = "" if rows[i]["error"] else " ".join(rows[i]["facts"] + words)
                sums[i] = zlib.crc32(square)
            for first, squares in [(part[0], chunk)] if isinstance(part, range) else zip(part, chunk):
                file.seek(begin + first * size)
                file.write(squares)
            bar.update(len(part))

        def in_parts(positions):
            return (positions[start:start + step] for start in range(0, len(positions), step))

        for part in in_parts(range(count)):
            decode(part, limits)
        extremes = values.deep_extremes(rows)
        if extremes and limits is None:
            deep = [i for i, name in enumerate(dataset.ids) if name in extremes]
            try:
                limits = values.choose_range(extremes)
            except UserError:
                if not eight_bits:
                    raise
                deep = []
            bar.total += len(deep)
            for part in in_parts(deep):
                decode(part, limits)
    for i in looks.inverted():
        rows[i]["facts"] += " inverted"
    rows = [{**row, "crc32": _checksum(row, of_pixels)} for row, of_pixels in zip(rows, sums)]
    write_csv(index, rows)  # last, because its presence says that the cache is complete
