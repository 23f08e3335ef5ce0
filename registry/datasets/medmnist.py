"""MedMNIST v2 (Yang et al. 2023, Scientific Data 10, 41): any single-label 2D set from its .npz."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from kd.dataset import Dataset
from kd.errors import UserError
from kd.runs import atomic, read_npz, read_yaml
from registry import register

KNOWN = Path(__file__).with_suffix(".yaml")
URL = "https://zenodo.org/records/10519652/files/{name}?download=1"
SPLITS = ("train", "val", "test")


@register("dataset", "medmnist", size_from_file=True)
def medmnist(root, *, download=False):
    """A single-label 2D MedMNIST .npz of any size, with its official splits."""
    if root is None:
        raise UserError("medmnist needs the .npz file", "Give it with --root PATH/dermamnist_64.npz.")
    path = Path(root)
    flag = path.stem.split("_")[0]
    known = read_yaml(KNOWN)
    if not path.exists() and download:
        _download(path, known)
    if not path.is_file():
        raise UserError(f"no such file: {path}", "With --download it is fetched under this name, "
                        "as in --root data/dermamnist_64.npz --download.")
    arrays = read_npz(path, required=[f"{split}_{what}" for split in SPLITS for what in ("images", "labels")])
    images, labels, ids, split = [], [], [], []
    for name in SPLITS:
        pixels, given = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        if given.ndim == 2 and given.shape[1] > 1:
            raise UserError(f"{path.name} has several labels an image; single-label sets only")
        if pixels.ndim == 5 or pixels.ndim == 4 and pixels.shape[3] != 3:
            raise UserError(f"{path.name} holds 3D volumes; 2D sets only")
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
            raise UserError(f"{path.name}: {name}_images is {pixels.dtype} {pixels.shape}, not uint8 [N, H, W] or [N, H, W, 3]")
        if given.size != len(pixels) or not np.issubdtype(given.dtype, np.integer):
            raise UserError(f"{path.name}: {name}_labels is {given.dtype} {given.shape} for {len(pixels)} images")
        images += list(pixels)
        labels += given.reshape(-1).tolist()
        ids += [f"{name}_{i}" for i in range(len(pixels))]
        split += [name] * len(pixels)
    classes = known.get(flag, {}).get("classes") or [str(k) for k in range(max(labels, default=0) + 1)]
    return Dataset(path.stem, classes, images, ids, labels, split=split, version=_md5(path))


def _md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(path, known):
    flag, _, size = path.stem.partition("_")
    expected = known.get(flag, {}).get("md5", {}).get(int(size or 28) if (size or "28").isdigit() else 0)
    if expected is None:
        raise UserError(f"no published file is called {path.name}",
                        f"There are NAME.npz and NAME_64, _128, _224.npz for: {', '.join(known)}.")
    url = URL.format(name=path.name)
    print(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, atomic(path) as file:
            while block := answer.read(1 << 20):
                file.write(block)
            file.flush()
            if _md5(file.name) != expected:
                raise UserError(f"{url} did not arrive whole: its checksum is wrong", "Try again.")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(f"cannot download {url}: {getattr(error, 'reason', error)}",
                        f"Fetch it elsewhere and place it at {path}.") from error
