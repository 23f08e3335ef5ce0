"""From a Dataset to batches: its images are cached, split and checked, then loaded, augmented or cropped."""

import copy
import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd import image, prediction_files
from kd.data import cache, splits
from kd.errors import UserError, listing, nearest
from kd.run_folder import SPLITS, fingerprint


@dataclass
class Data:
    """N images with their ids, labels, groups and splits."""

    name: str
    class_names: list
    images: cache.Images  # uint8 [M, R, R, 3]; M >= N, because unreadable images are in it, too
    rows: np.ndarray    # [N] position of each image among these
    ids: np.ndarray     # [N] strings
    labels: np.ndarray  # [N] ints, positions in class_names
    groups: np.ndarray  # [N] strings
    grouped: bool       # whether the groups are those of the data set; otherwise they are made from ids or contents
    split: np.ndarray   # [N] of kd.run_folder.SPLITS; the labels of "unlabelled" and "unused" are not to be read
    sha256: np.ndarray  # [N] of the contents, hex digits in ASCII
    size: int           # px, of the input of the network
    synthetic: bool     # the images are drawn, not photographed
    skipped: list       # ids of images that cannot be read
    range: tuple = None  # the values of images of more than 8 bits that became 0 and 255; None if there are none
    interpolation: str = image.INTERPOLATION  # how the images were resized
    corruptions: tuple = ()  # registry entries for the augmentation of kind "corruption"
    caution: str = ""    # of the Dataset: what each answer of an exported model says of the images
    unlabelled: object = None  # Unlabelled, further training images
    resize_of: object = None   # a function from the input size of a network, px, to the side of the cached images
    open_at: object = None     # a function from the same to the cache.Images of that side
    larger: dict = field(default_factory=dict)  # {size: cache.Images}, of what open_at() opened

    @functools.cached_property
    def fingerprint(self):
        """Sixteen hex digits that depend on all ids, labels and image contents."""
        return fingerprint(self.ids, self.labels, self.sha256)

    @functools.cached_property
    def split_fingerprint(self):
        """Sixteen hex digits that depend on the id, the group and the split of each image."""
        return fingerprint(self.ids, self.groups, self.split)

    @functools.cached_property
    def perceptual_hashes(self):
        """[N], in ASCII, by which pictures that look alike are found; see kd.perceptual_hash."""
        hashes = self.images.perceptual_hashes
        return hashes if len(self.rows) == len(hashes) else hashes[self.rows]

    def shown_groups(self, rows):
        """The groups of these images as they are written to files: empty strings if the data set has no groups."""
        return self.groups[rows] if self.grouped else np.full(self.groups[rows].shape, "")

    def where(self, split):
        """The positions, ascending ints, of the images of a split."""
        return np.flatnonzero(self.split == split)

    def pixels(self, index):
        """The pixels uint8 [len(index), R, R, 3] of the images at these positions, in any order."""
        return np.ascontiguousarray(self.images[self.rows[index]])

    @functools.cached_property
    def train(self):
        """The positions, ascending ints, of the images of the training split; every batch needs them."""
        return self.where("train")

    def add_size(self, size):
        """Open the images for a network of input `size` px, if that is larger than this one's."""
        for images in (self, self.unlabelled):
            if images and images.open_at and size > self.size and size not in images.larger:
                images.larger[size] = images.open_at(size)

    def training_pixels(self, index, size):
        """The pixels uint8 [len(index), R, R, 3] of training images, of which crops of `size` px are cut.

        index: positions, those of the training split before those of the images without labels.
        """
        train = self.train
        edge = int(np.searchsorted(index >= len(train), True))
        labelled = self.larger.get(size, self.images)[self.rows[train[index[:edge]]]]
        if edge == len(index):
            return np.ascontiguousarray(labelled)
        return np.concatenate([labelled, self.unlabelled.pixels(index[edge:] - len(train), size)])

    def origins(self, index):
        """Numbers that tell training images apart for random draws; a labelled one has the same in any split."""
        train = self.train
        return np.where(index < len(train), train[np.minimum(index, len(train) - 1)],
                        len(self.ids) + index - len(train))

    def table(self):
        """Yield the rows of split.csv, dicts."""
        columns = zip(self.ids, self.shown_groups(slice(None)), self.labels, self.split, self.sha256,
                      self.perceptual_hashes)
        for name, group, label, split, sha, looks in columns:
            yield {"id": name, "group": group, "label": self.class_names[label], "split": split,
                   "sha256": sha.decode(), "perceptual_hash": looks.decode()}

    def label_counts(self):
        """{"images" and "groups": {split: number}} if not all of train and val have their labels, else {}."""
        parts = [part for part in SPLITS[:-1] if (self.split == part).any()]
        if not {splits.UNLABELLED, splits.UNUSED} & set(parts):
            return {}
        return {"images": {part: len(self.where(part)) for part in parts},
                "groups": {part: len(set(self.groups[self.where(part)])) for part in parts}}

    def input(self):
        """The preprocessing before normalisation, a dict; a checkpoint records it together with mean and std."""
        deep = {} if self.range is None else {"range": list(self.range)}
        return {"resize": self.images.shape[1], "size": self.size, "interpolation": self.interpolation, **deep}


def prepare(dataset, *, size, interpolation=image.INTERPOLATION, split_seed=0, split_file=None, fold=None,
            labelled=None, cache_folder=None, root=None, skip_bad=False, range=None):
    """Cache, split and check a kd.data.dataset.Dataset: returns Data.

    size: of the network's input, px. Files are cached at image.resize_for(size), and evaluation uses the centre;
    arrays, which are small already, are cached at `size`. The split comes from `split_file`, a CSV with the columns
    id and split, else from the data set, else from splits.stratified() with `split_seed` and its fractions; where the
    data set has a test split and no validation split, that is cut from its training images. fold: (K, N), part K of a
    cross-validation instead. labelled: (share, seed) of splits.few_labels(). interpolation, cache_folder, root,
    skip_bad, range: as for cache.open_cache(). UserError if images cannot be read or the split is wrong.
    """
    has_files = any(isinstance(source, (str, Path)) for source in dataset.images)
    resize_of = image.resize_for if has_files else int
    pictures = copy.copy(dataset)  # what Data holds of it
    pictures.groups = pictures.split = None
    opened = functools.partial(_open, pictures, interpolation=interpolation, folder=cache_folder, root=root,
                               skip_bad=skip_bad)
    images, sha256, readable, skipped, used_range = opened(resize_of(size), range=range)
    used = readable if skipped else slice(None)  # which copies nothing
    ids, labels, sha256 = np.array(dataset.ids)[used], dataset.labels[used], sha256[used]
    grouped = dataset.groups is not None
    if grouped:
        groups = np.array(dataset.groups)[used]
    elif dataset.split is not None and set(dataset.split) == set(splits.NAMES):
        groups = ids  # official splits are not changed, even if equal images are in two of them
    else:  # equal images are one group, so that no image is in two splits
        groups = np.char.add("image_", sha256.astype("S12").astype(str))
    numbers = splits.numbers(groups)
    if fold is not None:
        if dataset.split is not None or split_file is not None:
            given = "official splits" if split_file is None else "a split from --split"
            raise UserError(f"{dataset.name} has {given}, and --fold makes others", "Leave out --fold, or the split.")
        split = splits.fold(labels, numbers, *fold, seed=split_seed)
    elif split_file is not None:
        split = splits.read(split_file, ids, skipped)
    elif dataset.split is not None:
        split = np.array(dataset.split)[used]
        if "val" not in split:
            split = splits.with_validation(split, labels, numbers, seed=split_seed)
            print(f"note: {dataset.name} has no validation images: {np.sum(split == 'val')} of its "
                  f"{np.sum(split != 'test')} training images become the validation split, by groups and classes")
    else:
        split = splits.stratified(labels, numbers, seed=split_seed, fractions=dataset.fractions)
    splits.check(split, numbers, labels, dataset.class_names, groups)
    if grouped or groups is ids:  # otherwise equal images are one group, which is in one split
        _note_equal_images(sha256, split, ids)
    if labelled is not None:
        split = _few_labels(split, labels, numbers, *labelled, dataset.class_names)
    return Data(dataset.name, list(dataset.class_names), images, readable, ids, labels, groups, grouped, split,
                sha256, size, dataset.synthetic, skipped, used_range, interpolation,
                caution=dataset.caution, resize_of=resize_of,
                open_at=lambda size: opened(resize_of(size), range=used_range, again=True)[0])


def external(dataset, *, input, class_names, root=None, class_map=None, skip_bad=False, cache_folder=None):
    """Data of a set on which a network is only tested: all its images, or those of its official test split.

    input, class_names: of the network, as its checkpoint records them. The set need not have all classes, nor several
    images of any. class_map: as for known_classes(); skip_bad, cache_folder: as for prepare(). UserError if an image is
    of a class that the network does not know, cannot be read, or has more than 8 bits and the network no range.
    """
    images, sha256, rows, skipped, used_range = _open(
        dataset, input["resize"], interpolation=input["interpolation"], root=root, skip_bad=skip_bad,
        folder=cache_folder, range=input.get("range"), eight_bits=input.get("range") is None)
    if dataset.split is not None:
        rows = rows[np.array(dataset.split)[rows] == "test"]
        if not len(rows):
            raise UserError(f"{dataset.name} has official splits and no test image",
                            "Give the folder of the images to test on with --root.")
    used = [name for k, name in enumerate(dataset.class_names) if (dataset.labels[rows] == k).any()]
    ours = known_classes(dataset, used, list(class_names), class_map or {})
    label_of = np.array([class_names.index(ours[name]) if ours.get(name) else -1 for name in dataset.class_names])
    labels = label_of[dataset.labels[rows]]
    if (labels < 0).any():
        print(f"note: {np.sum(labels < 0)} of {len(rows)} images are of classes that --class-map leaves out")
        rows, labels = rows[labels >= 0], labels[labels >= 0]
    if not len(rows):
        raise UserError(f"{dataset.name}: --class-map leaves out every image")
    if skipped:
        print(f"note: left out, since they cannot be used: {len(skipped)} images: {listing(skipped)}")
    ids, sha256 = np.array(dataset.ids)[rows], sha256[rows]
    grouped = dataset.groups is not None
    groups = np.array(dataset.groups)[rows] if grouped else ids
    return Data(dataset.name, list(class_names), images, rows, ids, labels, groups, grouped,
                np.full(len(rows), "test"), sha256, input["size"], dataset.synthetic, skipped, used_range,
                input["interpolation"])


def known_classes(dataset, theirs, class_names, class_map):
    """{class of an external Dataset: the network's class}, '' for one that is left out.

    theirs: the classes that have images. class_map: {theirs: ours}, '' to leave out; other classes are matched by
    name, where only one is equal but for case, spaces and underscores. UserError for a class that is none of these.
    """
    strange = [name for name in class_map if name not in dataset.class_names]
    if strange:
        raise UserError(f"--class-map names classes that {dataset.name} has not: {listing(strange)}",
                        nearest(strange[0], dataset.class_names) or f"It has {listing(dataset.class_names, 12)}.")
    unknown = [name for name in class_map.values() if name and name not in class_names]
    if unknown:
        raise UserError(f"--class-map gives classes that the network does not know: {listing(unknown)}",
                        nearest(unknown[0], class_names) or f"It knows {listing(class_names, 12)}.")
    found = {**prediction_files.matched(theirs, class_names), **{name: class_map[name] for name in theirs
                                                                 if name in class_map}}
    for name in theirs:  # two of theirs for one of ours are told apart by the user
        if name not in class_map and name != found[name] and list(found.values()).count(found[name]) > 1:
            found[name] = None
    lost = [name for name in theirs if found[name] is None]
    if lost:
        raise UserError(
            f"{dataset.name} has {len(lost)} classes that the network does not know: {listing(lost)}",
            f"It knows {listing(class_names, 12)}. Say which they are with --class-map FILE, a CSV with lines "
            "theirs,ours; with nothing for ours, a class is left out.")
    renamed = [f"{name} is {ours}" for name, ours in found.items() if ours and name != ours]
    if renamed:
        print(f"note: classes of {dataset.name}: {'; '.join(renamed)}")
    return found


def _open(dataset, resize, **options):
    """(images and sha256 of all, positions of the images that can be read, ids of the others, range of deep values).

    options: of cache.open_cache().
    """
    images, sha256, bad, used_range = cache.open_cache(dataset, resize, **options)
    readable = np.delete(np.arange(len(dataset.ids)), [i for i, _ in bad])
    if not len(readable):
        raise UserError(f"{dataset.name}: not one of the {len(bad)} images can be read")
    return images, sha256, readable, [dataset.ids[i] for i, _ in bad], used_range


def _few_labels(split, labels, groups, share, seed, class_names):
    """splits.few_labels(); a line says which classes of train have a group more than the share."""
    if np.isin(split, (splits.UNLABELLED, splits.UNUSED)).any():
        raise UserError("the file of --split says already which images have labels",
                        "Leave out --labelled; where a config.yaml has it, give --labelled 1.")
    split, too_few = splits.few_labels(split, labels, groups, share, seed=seed)
    if too_few:
        print(f"note: {share:g} of the training groups is less than one of class "
              f"{listing(class_names[k] for k in too_few)}: one of each is labelled")
    return split


def _note_equal_images(sha256, split, ids):
    """Print a note if images of equal content are in two splits, as in some published data sets."""
    begins = sha256.astype("S8").view(np.uint64)  # which are compared sooner; few are equal by chance
    order = np.argsort(begins, kind="stable")
    is_equal = begins[order[1:]] == begins[order[:-1]]
    rows = np.sort(order[np.append(is_equal, False) | np.append(False, is_equal)])
    by_content = {}  # {sha256: {split: id}} of contents that may be there twice
    for k in rows[np.argsort(sha256[rows], kind="stable")]:
        by_content.setdefault(sha256[k], {})[str(split[k])] = str(ids[k])
    shared = [" = ".join(id_by_split.values()) for id_by_split in by_content.values() if len(id_by_split) > 1]
    if shared:
        print(f"note: {len(shared)} images are in more than one split under other ids: {listing(shared)}")
