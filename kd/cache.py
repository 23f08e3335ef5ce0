"""Every image is decoded once in its life, into a uint8 memory map shared by all later runs."""

import contextlib
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kd import image
from kd.errors import UserError, listing
from kd.runs import atomic, lock, read_csv, write_csv

FORMAT = 1  # raise it when the same file would give other pixels
CHUNK = 256  # images decoded at a time


def open_cache(dataset, resize, *, folder=None, root=None, skip_bad=False):
    """The images of `dataset` as uint8 [N, resize, resize, 3], mapped, and their sha256s.

    The map lies in `folder`, else beside the data in `root`, else in the user's cache
    folder; its name holds a key of every image's name, size and time of change, so that
    changed data build a new one. sha256s are of the files' bytes (of the pixels where an
    image is no file).

    Returns (images, sha256, bad): bad is a list of (position, reason) for images that
    cannot be read; their rows are zero. Without `skip_bad` such images are an error.
    """
    stamps = [_stamp(dataset, i) for i in range(len(dataset.ids))]
    text = "\n".join([f"{FORMAT} {dataset.name} {dataset.version} {resize} {image.INTERPOLATION}", *stamps])
    stem = f"{dataset.name}_{resize}px_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder = _folder(folder, root)
    pixels, index = folder / f"{stem}.npy", folder / f"{stem}.csv"
    if not index.exists():
        with lock(folder / f"{stem}.lock", wait=True, what=f"the image cache {pixels}"):
            if not index.exists():
                _build(dataset, resize, pixels, index)
    rows = read_csv(index, required=("id", "sha256", "error"))
    try:
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
        if images.shape != (len(dataset.ids), resize, resize, 3) or len(rows) != len(images):
            raise ValueError("it holds another number of images")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the image cache {pixels} is damaged: {error}",
                        "Delete it; it is built again.") from error
    bad = [(i, row["error"]) for i, row in enumerate(rows) if row["error"]]
    if bad and not skip_bad:
        shown = listing([f"{dataset.ids[i]} ({reason})" for i, reason in bad])
        raise UserError(f"{len(bad)} of {len(rows)} images cannot be used: {shown}",
                        "Mend them, or go on without them with --skip-bad.")
    return images, [row["sha256"] for row in rows], bad


def _stamp(dataset, position):
    source = dataset.images[position]
    name = dataset.ids[position]
    if not isinstance(source, (str, Path)):
        return name
    try:
        status = os.stat(source)
        return f"{name} {status.st_size} {status.st_mtime_ns}"
    except OSError:
        return f"{name} missing"


def _folder(folder, root):
    """The first of the places in question that can be written."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)
    if root is not None:
        root = Path(root)
        beside = (root if root.is_dir() else root.parent) / ".kd_cache"
        if beside.is_dir() and os.access(beside, os.W_OK):
            return beside
        with contextlib.suppress(OSError):
            beside.mkdir()
            return beside
    home = Path.home()
    place = {"win32": Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")),
             "darwin": home / "Library" / "Caches"}.get(
                 sys.platform, Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")))
    place = place / "medmnist-edgeai"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _build(dataset, resize, pixels, index):
    from tqdm import tqdm
    count = len(dataset.ids)
    rows = []

    def one(position):
        source = dataset.images[position]
        try:
            if callable(source):
                source = source()
            data = source if isinstance(source, np.ndarray) else Path(source).read_bytes()
            return image.square(data, resize), hashlib.sha256(data).hexdigest(), ""
        except (UserError, OSError) as error:
            reason = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
            return 0, "", " ".join(reason.replace("cannot read the image: ", "").split()) or "unreadable"

    with atomic(pixels) as file, ThreadPoolExecutor() as pool, \
            tqdm(total=count, desc="decoding images once", unit="image", delay=2, disable=None) as bar:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, resize, resize, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, CHUNK):
            chunk = np.zeros((min(CHUNK, count - start), resize, resize, 3), np.uint8)
            for k, (square, sha256, error) in enumerate(pool.map(one, range(start, start + len(chunk)))):
                chunk[k] = square
                rows.append({"id": dataset.ids[start + k], "sha256": sha256, "error": error})
            file.write(np.ascontiguousarray(chunk).data)
            bar.update(len(chunk))
    write_csv(index, rows)  # last: its presence says that the map is whole
