"""The image cache: every image is decoded once, into a uint8 memory map that all later runs share."""

import contextlib
import hashlib
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kd import image
from kd.errors import UserError, listing
from kd.files import atomic, lock, read_csv, write_csv

FORMAT = 1  # to be raised when the same file would give other pixels
CHUNK = 256  # images decoded at a time; limits the memory of a build


def open_cache(dataset, resize, *, folder=None, root=None, skip_bad=False):
    """The images of a Dataset from its cache, which is built if there is none.

    resize: side of the images in px. folder: where the cache is; None for beside the data in `root`, or in the user's
    cache folder if that place cannot be written. The file name contains a key of every image's name, size and time of
    change, so that changed data get a new cache. Old ones are not deleted, because another program may be reading them.

    Returns (images, sha256, bad): images is a memory map uint8 [N, resize, resize, 3]; sha256 are N strings, of the
    bytes of each file, or of the pixels if an image is no file; bad is a list of (position, reason) for images that
    cannot be read, whose pixels are 0. Without `skip_bad` such images are a UserError, and so is a damaged cache.
    """
    stamps = [_stamp(dataset, i) for i in range(len(dataset.ids))]
    text = "\n".join([f"{FORMAT} {dataset.name} {dataset.version} {resize} {image.INTERPOLATION}", *stamps])
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", dataset.name)[:40]  # names that become equal here differ in the key
    stem = f"{name}_{resize}px_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    places = [Path(folder)] if folder is not None else _places(root)
    place = next((place for place in places if _is_complete(place, stem)), None) or _writable(places)
    pixels, index = place / f"{stem}.npy", place / f"{stem}.csv"

    def is_needed():
        return not _is_complete(place, stem) or _bad_became_readable(dataset, pixels, index)

    if is_needed():
        with lock(place / f"{stem}.lock", wait=True, what=f"the image cache {pixels}"):
            if is_needed():  # unless another process has built it while this one waited
                _build(dataset, resize, pixels, index)
    rows = _rows(dataset, pixels, index)
    try:
        images = np.lib.format.open_memmap(pixels, mode="r")
        if images.dtype != np.uint8 or images.shape != (len(rows), resize, resize, 3):
            raise ValueError(f"it contains {images.dtype} {list(images.shape)}")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(pixels, error) from error
    bad = [(i, row["error"]) for i, row in enumerate(rows) if row["error"]]
    if bad and not skip_bad:
        names = listing([f"{dataset.ids[i]} ({reason})" for i, reason in bad])
        raise UserError(f"{len(bad)} of {len(rows)} images cannot be used: {names}",
                        "Repair them, or leave them out with --skip-bad.")
    return images, [row["sha256"] for row in rows], bad


def _stamp(dataset, position):
    """A line of text that changes when the pixels of an image may have changed."""
    source, name = dataset.images[position], dataset.ids[position]
    if isinstance(source, (str, Path)):
        try:
            status = os.stat(source)
            return f"{name} {status.st_size} {status.st_mtime_ns}"
        except OSError:
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
    if sys.platform == "win32":
        user = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        user = Path.home() / "Library" / "Caches"
    else:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    places = [Path(user) / "medmnist-edgeai"]
    if root is not None:
        root = Path(root)
        places.insert(0, (root if root.is_dir() else root.parent) / ".kd_cache")
    return places


def _is_complete(place, stem):
    """Whether both files of a cache are there: the pixels, and the index, which is written last."""
    return all(os.path.exists(place / f"{stem}{suffix}") for suffix in (".npy", ".csv"))


def _writable(places):
    """The first of the places in which a file can be written. UserError if there is none."""
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError as error:
            reason = error.strerror
    raise UserError(f"the image cache cannot be written to {place}: {reason.lower()}",
                    "Choose another place with --cache.")


def _rows(dataset, pixels, index):
    """The rows of the index, one for each image of the dataset. UserError if they do not fit."""
    try:
        rows = read_csv(index, required=("id", "sha256", "error"))
    except UserError as error:
        raise _damaged(pixels, error.message) from error
    if [row["id"] for row in rows] != dataset.ids:
        raise _damaged(pixels, f"{index.name} lists other images")
    return rows


def _damaged(pixels, reason):
    return UserError(f"the image cache {pixels} is damaged: {' '.join(str(reason).split())}",
                     "Delete it; it will be built again.")


def _bad_became_readable(dataset, pixels, index):
    """Whether an image that could not be read now can be, though its size and time are unchanged.

    This happens when a permission is given or a drive is connected again.
    """
    return any(row["error"] and not _read(source, 8)[2]
               for row, source in zip(_rows(dataset, pixels, index), dataset.images))


def _read(source, resize):
    """(pixels, sha256, "") of an image, or (0, "", the reason why it cannot be read)."""
    try:
        if isinstance(source, UserError):
            raise source
        if callable(source):
            source = source()
        data = source if isinstance(source, np.ndarray) else Path(source).read_bytes()
        return image.square(data, resize), _sha256(data), ""
    except UserError as error:
        return 0, "", error.message.removeprefix("cannot read the image: ")
    except OSError as error:
        return 0, "", error.strerror or str(error) or "unreadable"


def _build(dataset, resize, pixels, index):
    """Decode all images, in threads, and write both files of the cache."""
    for remnant in pixels.parent.glob(f".{pixels.stem}.*.tmp"):  # of a build that was killed
        with contextlib.suppress(OSError):
            remnant.unlink()
    with contextlib.suppress(FileNotFoundError):
        index.unlink()
    count, rows = len(dataset.ids), []
    with atomic(pixels) as file, ThreadPoolExecutor() as pool, \
            tqdm(total=count, desc="decoding images once", unit="image", delay=2, disable=None) as bar:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, resize, resize, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, CHUNK):
            sources = dataset.images[start:start + CHUNK]
            chunk = np.zeros((len(sources), resize, resize, 3), np.uint8)
            for k, (square, sha256, error) in enumerate(pool.map(_read, sources, [resize] * len(sources))):
                chunk[k] = square
                rows.append({"id": dataset.ids[start + k], "sha256": sha256, "error": error})
            file.write(chunk)
            bar.update(len(chunk))
    write_csv(index, rows)  # last, because its presence says that the cache is complete
