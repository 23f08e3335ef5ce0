"""Training images without labels: whatever a dataset plugin or a folder has, less what validation and test show."""

from dataclasses import dataclass, field

import numpy as np

from kd import perceptual_hash
from kd.data import cache
from kd.data.splits import UNLABELLED
from kd.errors import UserError, listing
from kd.prediction_files import plain_id
from kd.run_folder import fingerprint


@dataclass
class Unlabelled:
    """Images without labels of one or several sets, as one."""

    parts: list     # of Part, in the order of their images
    larger: dict = field(default_factory=dict)  # {size: list of memory maps}, of what open_at() opened

    def __len__(self):
        return sum(len(part.rows) for part in self.parts)

    @property
    def fingerprint(self):
        """Sixteen hex digits that depend on all ids and contents."""
        return fingerprint(*(np.concatenate([getattr(part, column) for part in self.parts])
                             for column in ("ids", "sha256")))

    def open_at(self, size):
        """The memory maps of all parts for networks of input `size` px."""
        return [part.open_at(size) for part in self.parts]

    def pixels(self, index, size):
        """The pixels uint8 [len(index), R, R, 3] of the images at these positions, for crops of `size` px."""
        maps = self.larger.get(size) or [part.images for part in self.parts]
        ends, result = np.cumsum([len(part.rows) for part in self.parts]), None
        of_part = np.searchsorted(ends, index, side="right")
        for k, part in enumerate(self.parts):
            chosen = of_part == k
            pixels = maps[k][part.rows[index[chosen] - (ends[k] - len(part.rows))]]
            result = np.empty((len(index), *pixels.shape[1:]), np.uint8) if result is None else result
            result[chosen] = pixels
        return result

    def record(self):
        """What environment.json records: [{"name", "images", "left_out": {why: number}, "groups"}], one a set."""
        return [{"name": part.name, "images": len(part.rows), "left_out": part.left_out,
                 "groups": part.groups is not None} for part in self.parts]


@dataclass
class Part:
    """The images of one set."""

    name: str
    images: cache.Images  # uint8 [M, R, R, 3]
    rows: np.ndarray    # [N] position of each image in it
    ids: np.ndarray     # [N] strings
    sha256: np.ndarray  # [N] of the contents, and
    looks: np.ndarray   # [N] perceptual hashes, hex digits in ASCII
    groups: np.ndarray  # [N] strings, or None
    left_out: dict      # {why: number of images}
    open_at: object     # as of kd.data.loader.Data


def rest(data):
    """Part of the training images of `data`, a kd.data.loader.Data, whose labels are not read: all that its split names
    so, as all that it names "train" are trained on. UserError where there are none.
    """
    chosen = data.where(UNLABELLED)
    if not len(chosen):
        raise UserError("--unlabelled rest is the training images without labels, and here all have theirs",
                        "Give --labelled a share such as 0.1, or leave out rest; a folder of this name is ./rest.")
    print(f"without labels: the rest of {data.name}, {len(chosen)} images")
    return Part(data.name, data.images, data.rows[chosen], data.ids[chosen], data.sha256[chosen],
                data.perceptual_hashes[chosen], data.groups[chosen] if data.grouped else None, {}, data.open_at)


def prepare(dataset, data, *, earlier=(), cache_folder=None, root=None, skip_bad=False):
    """Part of a kd.data.dataset.Dataset beside `data`, a kd.data.loader.Data, whose labels are ignored.

    An image is left out, and a line says so, that is in the validation or test split of `data` by its content, its id,
    its look or its group, and one that is a labelled training image, or in one of the Parts `earlier`. cache_folder,
    root, skip_bad: as for kd.data.loader.prepare(). UserError where no image is left.
    """
    def open_at(size, again=True):
        """What the cache has of the images for networks of this size."""
        return cache.open_cache(dataset, data.resize_of(size), interpolation=data.interpolation, folder=cache_folder,
                                root=root, skip_bad=skip_bad, range=data.range, eight_bits=data.range is None,
                                again=again)

    images, sha256, bad, _ = open_at(data.size, again=False)
    readable = np.delete(np.arange(len(dataset.ids)), [i for i, _ in bad])
    held_out, train = np.flatnonzero(~np.isin(data.split, ("train", UNLABELLED))), data.train
    ids = np.array(dataset.ids)
    looks = images.perceptual_hashes[readable]
    alike = set(perceptual_hash.near(looks, sorted({data.perceptual_hashes[i] for i in held_out} - {b""}))[0])

    def known(rows):
        """Contents, ids and groups of images of `data`."""
        return ({data.sha256[i] for i in rows}, {plain_id(data.ids[i]) for i in rows},
                {data.groups[i] for i in rows} if data.grouped else set())

    (test_contents, test_ids, test_groups), (train_contents, _, _) = known(held_out), known(train)
    reasons, rows, named = {}, [], {sha for part in earlier for sha in part.sha256}
    for k, i in enumerate(readable):
        if sha256[i] in test_contents or k in alike:
            reason = "of validation or test"
        elif plain_id(ids[i]) in test_ids:
            reason = "with the id of an image of validation or test"
        elif dataset.groups is not None and dataset.groups[i] in test_groups:
            reason = "of groups of validation or test"
        elif sha256[i] in train_contents:
            reason = "among the labelled images"
        elif sha256[i] in named:
            reason = "named twice"
        else:
            rows.append(i)
            named.add(sha256[i])
            continue
        reasons[reason] = reasons.get(reason, 0) + 1
    if bad:
        reasons["unreadable"] = len(bad)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if not rows:
        raise UserError(f"no image of {dataset.name} can be used without its label: {counts}",
                        "Give --unlabelled other images than those of --data.")
    print(f"without labels: {dataset.name}, {len(rows)} images" + (f" (left out: {counts})" if counts else ""))
    if bad:
        print(f"note: left out, since they cannot be used: {listing([dataset.ids[i] for i, _ in bad])}")
    rows = np.array(rows)
    looks = images.perceptual_hashes[rows]
    groups = None if dataset.groups is None else np.array(dataset.groups)[rows]
    return Part(dataset.name, images, rows, ids[rows], sha256[rows], looks, groups, reasons,
                lambda size: open_at(size)[0])
