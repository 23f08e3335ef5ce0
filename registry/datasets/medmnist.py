"""MedMNIST v2 (Yang et al. 2023, Scientific Data 10, 41): any single-label 2D data set from its .npz file."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

import numpy as np

from kd.data.dataset import Dataset
from kd.data.splits import NAMES
from kd.errors import UserError, listing, progress
from kd.files import ARRAYS, atomic, read_npz, read_yaml
from registry import register

LARGEST = 2 ** 35  # bytes of all arrays: pathmnist at 224 px has 15 GiB
COMPRESSION = 50   # that images reach at most; nine megabytes of zeros unpack to nine gigabytes
KNOWN = Path(__file__).with_suffix(".yaml")
URL = "https://zenodo.org/records/10519652/files/{name}?download=1"


@register("dataset", "medmnist", size_from_file=True)
def medmnist(root, *, download=False, testing=False):
    """A single-label 2D MedMNIST .npz of any size, with its official splits.

    root: the file, whose name tells the data set, as in dermamnist_64.npz. download: fetch it if it is missing.
    testing: the images are only tested on, and those of a test split are enough, as in the files of MedMNIST-C.
    Raises UserError if the file is missing, damaged, of 3D volumes, or has several labels for an image.
    """
    if root is None:
        raise UserError("medmnist needs the .npz file", "Give it with --root PATH/dermamnist_64.npz.")
    path = Path(root)
    known = read_yaml(KNOWN)
    if not path.exists() and download:
        _download(path, known)
    if not path.is_file():
        raise UserError(f"no such file: {path}", "train_teacher.py and distill.py fetch it under "
                        "this name with --download, as in --root data/dermamnist_64.npz --download.")
    arrays = read_npz(path, limit=min(LARGEST, max(ARRAYS, COMPRESSION * path.stat().st_size)))
    splits = [name for name in NAMES if f"{name}_images" in arrays or not testing]
    missing = [f"{name}_{part}" for name in splits or ["test"] for part in ("images", "labels")
               if f"{name}_{part}" not in arrays]
    if missing:
        hint = f"It has: {listing(arrays)}."
        if {"test_images", "test_labels"} <= set(arrays):
            hint += (" A file of test images alone, as of MedMNIST-C, is a set to test on: python evaluate.py RUN "
                     f"--data medmnist --root {path}")
        raise UserError(f"{path} has no array {', '.join(missing)}", hint)
    images, labels, ids, split = [], [], [], []
    for name in splits:
        pixels, split_labels = arrays[f"{name}_images"], _numbers(arrays[f"{name}_labels"], path)
        if pixels.ndim == 5 or pixels.ndim == 4 and pixels.shape[3] > 4:
            raise UserError(f"{path.name} holds 3D volumes; 2D sets only")
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (3,)):
            raise UserError(f"{path.name}: {name}_images is {pixels.dtype} {list(pixels.shape)}, "
                            "not uint8 [N, H, W] or [N, H, W, 3]")
        if split_labels.size != len(pixels) or not np.issubdtype(split_labels.dtype, np.integer):
            kind = f"{split_labels.dtype} {list(split_labels.shape)}"
            raise UserError(f"{path.name}: {name}_labels is {kind} for {len(pixels)} images")
        images += list(pixels)
        labels += split_labels.reshape(-1).tolist()
        ids += [f"{name}_{i}" for i in range(len(pixels))]
        split += [name] * len(pixels)
    if labels and max(labels) >= len(labels) and not testing:
        raise UserError(f"{path.name} has a label {max(labels)}, but only {len(labels)} images")
    name, groups = path.stem, None
    scenes = _scenes_of_medmnist_c(labels) if splits == ["test"] and path.parent.name in known else None
    if scenes:  # one file a corruption in a folder named after the set: the test images at five severities, one by one
        name, groups = f"{path.parent.name}_c_{path.stem}", [f"test_{i % scenes}" for i in range(len(labels))]
        ids = [f"test_{i % scenes}_severity_{1 + i // scenes}" for i in range(len(labels))]
    classes = known.get(name.split("_")[0], {}).get("classes")
    classes = classes or [str(k) for k in range(max(labels, default=0) + 1)]
    caution = (f"the model was trained on images of MedMNIST, which scaled them to {images[0].shape[1]} x "
               f"{images[0].shape[0]} px: images as a camera or a scanner makes them look different") if images else ""
    return Dataset(name, classes, images, ids, labels, groups=groups, split=split, caution=caution)


def _numbers(labels, path):
    """Labels [N] or [N, 1] as they are; of labels [N, C] with a one in each row, the column of the one."""
    if labels.ndim != 2 or labels.shape[1] <= 1:
        return labels
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
        raise UserError(f"{path.name} has several labels an image; single-label sets only")
    return labels.argmax(1)


def _scenes_of_medmnist_c(labels):
    """The number of images that a list of labels repeats five times (MedMNIST-C, 2406.17536), or 0."""
    count = len(labels) // 5
    return count if count and labels == labels[:count] * 5 else 0


def _download(path, known):
    published = {f"{flag}{'' if size == 28 else f'_{size}'}.npz": md5
                 for flag, entry in known.items() for size, md5 in entry["md5"].items()}
    if path.name not in published:
        raise UserError(f"no published file is called {path.name}",
                        f"There are NAME.npz and NAME_64, _128, _224.npz for: {', '.join(known)}.")
    url = URL.format(name=path.name)
    print(f"downloading {url}")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, atomic(path) as file:
            size = int(response.headers.get("Content-Length") or 0) or None
            with progress(description=path.name, total=size, unit="B", unit_scale=True) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != published[path.name]:
                raise UserError(f"{url} did not arrive whole: its checksum is wrong", "Try again.")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(f"cannot download {url}: {getattr(error, 'reason', error)}",
                        f"Fetch it elsewhere and place it at {path}.") from error
