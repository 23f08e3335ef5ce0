"""A dataset made ready for training: cached, split, checked, and served in batches."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kd import image
from kd.data import augment, cache, splits
from kd.errors import UserError, listing


@dataclass
class Data:
    """Images [N, R, R, 3] uint8 (mapped), and for each an id, label, group, split and sha256."""

    name: str
    class_names: list
    images: np.ndarray
    rows: np.ndarray  # [N] position of each image in the memory map
    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    grouped: bool
    split: np.ndarray
    sha256: list
    size: int
    synthetic: bool
    skipped: list
    corruptions: tuple = ()  # registry entries, under which training sees some of its views

    @property
    def fingerprint(self):
        """Sixteen hex digits of all ids, labels and image contents."""
        text = "\n".join(f"{i} {label} {sha}" for i, label, sha in zip(self.ids, self.labels, self.sha256))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def split_fingerprint(self):
        """Sixteen hex digits of every image's group and split."""
        text = "\n".join(f"{i} {g} {s}" for i, g, s in zip(self.ids, self.groups, self.split))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shown_groups(self, rows):
        """The groups as files have them: empty where the data set has none."""
        return self.groups[rows] if self.grouped else np.full(self.groups[rows].shape, "")

    def where(self, split):
        return np.flatnonzero(self.split == split)

    def pixels(self, index):
        """uint8 [len(index), R, R, 3] for sorted or unsorted positions."""
        return np.ascontiguousarray(self.images[self.rows[index]])

    def table(self):
        """The rows of split.csv."""
        return [{"id": i, "group": g, "label": self.class_names[y], "split": s, "sha256": h}
                for i, g, y, s, h in zip(self.ids, self.shown_groups(slice(None)), self.labels, self.split, self.sha256)]

    def input(self):
        """How pixels come to the size of a network's input; a checkpoint records it with mean and std."""
        return {"resize": self.images.shape[1], "size": self.size, "interpolation": image.INTERPOLATION}


def prepare(dataset, *, size, split_seed=0, split_file=None, cache_folder=None, root=None, skip_bad=False):
    """Cache, split and check a kd.data.dataset.Dataset: returns Data.

    Files are cached at image.resize_for(size), and evaluation sees the centre; arrays (already
    small) at `size` itself.
    """
    files = any(isinstance(source, (str, Path)) for source in dataset.images)
    resize = image.resize_for(size) if files else size
    images, sha256, keep, skipped = _open(dataset, resize, cache_folder, root, skip_bad)
    ids, labels = np.array(dataset.ids)[keep], dataset.labels[keep]
    sha256 = [sha256[i] for i in keep]
    grouped = dataset.groups is not None
    if grouped:
        groups = np.array(dataset.groups)[keep]
    elif dataset.split is not None:
        groups = ids  # official splits are kept as they are, equal images or not
    else:  # equal images are one group, so that no image is in two splits
        groups = np.array([f"image_{sha[:12]}" for sha in sha256])
    if split_file is not None:
        split = splits.read(split_file, ids, skipped)
    elif dataset.split is not None:
        split = np.array(dataset.split)[keep]
    else:
        split = splits.stratified(labels, groups, seed=split_seed)
    splits.check(split, groups, labels, dataset.class_names)
    _note_equal_images(sha256, split, ids)
    return Data(dataset.name, list(dataset.class_names), images, keep, ids, labels, groups, grouped, split,
                sha256, size, dataset.synthetic, skipped)


def external(dataset, *, size, resize, class_names, root=None):
    """Data of a set that is only tested on: all its images, or those of its official test split.

    size, resize, class_names: those of the network. Classes are matched by name, and the set need not
    have all of them.
    """
    strangers = [name for name in dataset.class_names if name not in class_names]
    if strangers:
        raise UserError(f"{dataset.name} has {len(strangers)} classes that the network does not know: {listing(strangers)}",
                        f"It knows {listing(class_names, 12)}; classes are matched by name.")
    images, sha256, keep, _ = _open(dataset, resize, None, root, False)
    if dataset.split is not None:
        keep = keep[np.array(dataset.split)[keep] == "test"]
        if not len(keep):
            raise UserError(f"{dataset.name} has official splits and no test image")
    number = np.array([list(class_names).index(name) for name in dataset.class_names])
    ids, sha256 = np.array(dataset.ids)[keep], [sha256[i] for i in keep]
    grouped = dataset.groups is not None
    groups = np.array(dataset.groups)[keep] if grouped else ids
    return Data(dataset.name, list(class_names), images, keep, ids, number[dataset.labels[keep]], groups, grouped,
                np.full(len(keep), "test"), sha256, size, dataset.synthetic, [])


def _open(dataset, resize, folder, root, skip_bad):
    """(images, sha256 of all, positions of those that can be read, ids of the others)."""
    images, sha256, bad = cache.open_cache(dataset, resize, folder=folder, root=root, skip_bad=skip_bad)
    keep = np.setdiff1d(np.arange(len(dataset.ids)), [i for i, _ in bad])
    if not len(keep):
        raise UserError(f"{dataset.name}: not one of the {len(bad)} images can be read")
    return images, sha256, keep, [dataset.ids[i] for i, _ in bad]


def _note_equal_images(sha256, split, ids):
    where = {}
    for sha, name, i in zip(sha256, split, ids):
        where.setdefault(sha, {})[str(name)] = str(i)
    shared = [" = ".join(names.values()) for names in where.values() if len(names) > 1]
    if shared:
        print(f"note: {len(shared)} images are in more than one split under other ids: {listing(shared)}")


def order(count, seed, epoch):
    """The order in which an epoch visits its `count` training images."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def training_batches(data, *, batch, seed, epoch, device, workers=1, kind="heavy", view=None, share=(0, 1)):
    """Yield (images, labels, index) for one epoch: augmented, in a drawn order.

    images: float [N, 3, size, size] in [0, 1], channels last; each network normalises them by its own mean and std.
    index: [N] positions in the training split, in memory, for targets and losses that remember images. kind: of
    augment.KINDS. view: (seed, epoch) of the draws, where they are not this epoch's own. share: (rank, world), of several processes that take every world-th image of each batch.
    A last batch that leaves a process fewer than two images is left out: batch normalisation cannot use it.
    """
    rows = data.where("train")
    visit = order(len(rows), seed, epoch)
    rank, world = share
    chunks = [visit[start:start + size][rank::world] for start, size in batch_sizes(len(rows), batch, world)]
    for chunk, images in zip(chunks, _augmented(data, rows, chunks, view or (seed, epoch), device, workers, kind)):
        yield images, augment.to_device(data.labels[rows[chunk]], torch.device(device)), torch.from_numpy(chunk)


def views(data, seed, epoch, *, batch, device, workers=1, kind="heavy"):
    """Yield the training images of an epoch's views, in the order of the training split."""
    rows = data.where("train")
    chunks = [np.arange(start, min(start + batch, len(rows))) for start in range(0, len(rows), batch)]
    yield from _augmented(data, rows, chunks, (seed, epoch), device, workers, kind)


def _augmented(data, rows, chunks, view, device, workers, kind):
    device = torch.device(device)

    def load(chunk):
        draws = augment.draw(*view, rows[chunk])
        pixels = augment.begin(data.pixels(rows[chunk]), draws, data.size, kind, device)
        return augment.corrupt(pixels, draws, data.corruptions) if kind == "corruption" else pixels, draws

    for pixels, draws in _ahead(load, chunks, workers):
        yield augment.finish(pixels, draws, data.size, kind, device)


def batch_sizes(count, batch, world=1):
    """(start, size) of each batch of an epoch over `count` images."""
    sizes = [(start, min(batch, count - start)) for start in range(0, count, batch)]
    sizes = [(start, size) for start, size in sizes if size >= 2 * world]
    if not sizes:
        raise UserError(f"no batch of {2 * world} images: {count} training images in batches of {batch}",
                        "Give a larger --batch or more images.")
    return sizes


def evaluation_batches(data, split, *, batch, device, share=(0, 1)):
    """Yield the centre crops of a split, float in [0, 1], in the order of its images; share: as for training."""
    rank, world = share
    rows = data.where(split)[rank::world]
    for start in range(0, len(rows), batch):
        pixels = image.centre_crop(data.pixels(rows[start:start + batch]), data.size)
        yield augment.to_float(np.ascontiguousarray(pixels), device)


def _ahead(load, chunks, workers):
    """load(chunk) for each chunk, in order, a few ahead of use in `workers` threads."""
    if not workers:
        yield from map(load, chunks)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for chunk in chunks:
            waiting.append(pool.submit(load, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
