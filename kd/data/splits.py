"""The split into train, validation and test: whole groups only, stratified by class, and checked for leaks."""

import contextlib
import hashlib
from collections import Counter

import numpy as np

from kd import perceptual_hash
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.run_folder import SPLITS

NAMES = ("train", "val", "test")
UNLABELLED, UNUSED = "unlabelled", "unused"  # images of train and of val that few_labels() takes the labels from
FRACTIONS = (0.7, 0.1, 0.2)


def stratified(labels, groups, *, seed=0, fractions=FRACTIONS):
    """Assign N images to train, val and test: an array [N] of these names.

    labels: [N] ints. groups: N strings, or their numbers(); all images of a group are assigned to one split, and a
    group is stratified by the class of most of its images. fractions: the shares of train, val and test. The groups of
    a class are visited in random order, and each goes to the split with the most images missing, so that shares differ
    from `fractions` by less than a group. A class with as many groups as there are splits is in every split, even if
    the shares of a small class then differ more. The order of the images has no effect.
    """
    order = [k for k in (0, 2, 1) if fractions[k]]  # the first groups go to different splits: the class is in each
    return np.array(NAMES)[_parts(labels, groups, fractions, order, seed)].astype("<U5")


def _parts(labels, groups, fractions, first, seed):
    """[N] numbers of the parts that images belong to; see stratified(). first: the parts of the first groups."""
    first, group_of = list(first), numbers(groups)
    sizes, class_of = np.bincount(group_of), _classes(np.asarray(labels), group_of)
    part = np.empty(len(sizes), int)
    for label in np.unique(class_of).tolist():
        names = np.flatnonzero(class_of == label)
        names = names[np.random.default_rng((seed, label)).permutation(len(names))]
        total, chosen = int(sizes[names].sum()), []
        missing = [fraction * total for fraction in fractions]
        for place, size in enumerate(sizes[names].tolist()):
            target = first[place] if place < len(first) <= len(names) else missing.index(max(missing))
            chosen.append(target)
            missing[target] -= size
        part[names] = chosen
    return part[group_of]


def _classes(labels, group_of):
    """[G] ints: the class of most images of each group. labels, group_of: arrays [N] of ints, each group from 0 on."""
    order = np.lexsort((labels, group_of))
    begins = np.flatnonzero(np.append(True, np.diff(labels[order]) | np.diff(group_of[order])))
    counts = np.diff(np.append(begins, len(labels)))  # of the images of a class in a group
    of_group, of_class = group_of[order[begins]], labels[order[begins]]
    largest = np.lexsort((of_class, -counts, of_group))  # of several largest the first
    return of_class[largest[np.searchsorted(of_group, np.arange(group_of.max() + 1))]]


def few_labels(split, labels, groups, share, *, seed=0):
    """(the split [N] in which a share of train and of val has labels, the classes of train that it is too small for).

    Of the groups of each class in train, `share` stay there, rounded, and one at least; the others' images become
    UNLABELLED. Likewise for val, whose others become UNUSED. Test stays as it is. labels, groups: as for stratified();
    the groups come from the beginning of a random order that follows from `seed` alone, so that a smaller share is
    inside a larger one. A class that is the largest in no group has the first group that it is in.
    """
    split, labels, groups = np.array(split, dtype="<U10"), np.asarray(labels), np.asarray(groups)
    too_few = []
    for number, (part, rest) in enumerate((("train", UNLABELLED), ("val", UNUSED))):
        rows = np.flatnonzero(split == part)
        group_of = numbers(groups[rows])
        class_of = _classes(labels[rows], group_of)
        order = np.random.default_rng((seed, number)).permutation(len(class_of))
        has_labels = np.zeros(len(class_of), bool)
        for label in np.unique(labels[rows]).tolist():
            of_class = order[class_of[order] == label]
            count = int(share * len(of_class) + 0.5)
            if not len(of_class):
                of_class = order[np.isin(order, group_of[labels[rows] == label])]
            elif not count and part == "train":
                too_few.append(label)
            has_labels[of_class[:max(1, count)]] = True
        split[rows[~has_labels[group_of]]] = rest
    return split, too_few


def numbers(groups):
    """[N] ints, the numbers of the groups that images belong to, in the order of the groups' names, from 0 on.

    groups: N strings, or such numbers, which stay in their order.
    """
    groups = np.asarray(groups)
    if groups.dtype.kind == "U":
        with contextlib.suppress(UnicodeEncodeError):
            groups = groups.astype("S")  # a quarter of the bytes to sort, in the same order
    order = np.argsort(groups, kind="stable")
    result = np.empty(len(groups), int)
    result[order] = np.cumsum(np.append(False, groups[order[1:]] != groups[order[:-1]]))
    return result


def fold(labels, groups, number, count, *, seed=0):
    """The split [N] of one fold of a cross-validation: test is part `number` of `count`, an eighth of the rest is val.

    labels, groups, seed: as for stratified(), which also says how the parts are made: each image is in one of them.
    UserError for fewer groups than folds.
    """
    if len(set(groups)) < count:
        raise UserError(f"{len(set(groups))} groups cannot be divided into {count} folds", "Give a smaller N.")
    parts = _parts(labels, groups, [1 / count] * count, range(count), seed)
    split = np.where(parts == number - 1, "test", "train").astype("<U5")
    return with_validation(split, labels, groups, seed=seed)


def with_validation(split, labels, groups, *, seed=0):
    """A split [N] of train and test in which an eighth of the training images, whole groups of them, are val.

    An eighth, so that train and val are to each other as in FRACTIONS. labels, groups, seed: as for stratified().
    """
    rows, result = np.flatnonzero(split == "train"), np.array(split, dtype="<U5")
    train, val, _ = FRACTIONS
    fractions = train / (train + val), val / (train + val), 0
    result[rows] = stratified(labels[rows], np.asarray(groups)[rows], seed=seed, fractions=fractions)
    return result


def read(path, ids, skipped=()):
    """The splits of the images `ids`, an array [N] in their order, from a CSV with the columns id and split.

    skipped: further ids that may be in the file. UserError if the file does not have each image exactly once.
    """
    rows = read_csv(path, required=("id", "split"))
    known = {row["id"]: row["split"] for row in rows}
    if len(known) < len(rows):
        twice = [i for i, count in Counter(row["id"] for row in rows).items() if count > 1]
        raise UserError(f"{path} lists {len(twice)} images more than once: {listing(twice)}")
    wrong = sorted(set(known.values()) - set(SPLITS))
    if wrong:
        raise UserError(f"{path}: a split is train, val or test, not {listing(map(repr, wrong))}",
                        f"Images of train without labels may be {UNLABELLED}, those to leave out {UNUSED}.")
    missing = [i for i in ids if i not in known]
    if missing:
        raise UserError(f"{path} says nothing of {len(missing)} of the {len(ids)} images: {listing(missing)}",
                        "A split file has one row for every image of the data set.")
    extra = sorted(set(known).difference(ids, skipped))
    if extra:
        raise UserError(f"{path} names {len(extra)} images that the data set does not have: {listing(extra)}")
    return np.array([known[i] for i in ids])


def check(split, groups, labels, class_names, names=None):
    """UserError if a group is in two splits, a split is empty, or a class has no training image.

    split, groups, labels: [N] each. names: [N] of the groups, where `groups` are their numbers().
    """
    group_of, names = numbers(groups), np.asarray(groups if names is None else names)
    one_of = np.empty(len(names), split.dtype)
    one_of[group_of] = split
    shared = np.unique(names[one_of[group_of] != split]).tolist()
    if shared:
        raise UserError(f"{len(shared)} groups are in more than one split: {listing(shared)}",
                        "All images of a patient or lesion belong in one split.")
    for name in NAMES:
        if not np.any(split == name):
            raise UserError(f"the {name} split is empty",
                            "Add images or groups, or give a split with --split FILE.csv.")
    absent = [c for k, c in enumerate(class_names) if not np.any((split == "train") & (labels == k))]
    if absent:
        raise UserError(f"no training image of class {listing(absent)}",
                        "Add images of it, or remove the class.")


def key(text):
    """Sixteen hex digits that replace an id in a checkpoint, so that it does not contain ids of patients."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seen_by(data):
    """The images and groups on which a network is trained and selected, for its checkpoint.

    data: a kd.data.loader.Data. Returns {"train" and "val": {"images": [...], "groups": [...], "pictures": [...]}}
    with keys of the contents of the images and of the groups, and perceptual hashes; without groups in the data set
    theirs are empty. Images without labels are among those of train.
    """
    result = {}
    for name in ("train", "val"):
        rows = np.flatnonzero(data.split == name)
        parts = data.unlabelled.parts if data.unlabelled and name == "train" else ()
        groups = {key(f"{data.name}/{group}") for group in set(data.groups[rows].tolist())} if data.grouped else set()
        result[name] = {
            "images": _texts("S16", data.sha256[rows], *(part.sha256 for part in parts)),
            "groups": sorted(groups.union(key(f"{part.name}/{group}") for part in parts if part.groups is not None
                                          for group in part.groups)),
            "pictures": _texts("S64", data.perceptual_hashes[rows], *(part.looks for part in parts)),
        }
    return result


def without_label(seen, data):
    """How many images of `data`, a kd.data.loader.Data, that have no label in it a network was trained or selected on.

    seen: what seen_by() returned when the network was trained.
    """
    keys = {*seen["train"]["images"], *seen["val"]["images"]}
    rows = np.isin(data.split, (UNLABELLED, UNUSED))
    return sum(sha.decode() in keys for sha in data.sha256[rows].astype("S16").tolist())


def _texts(kind, *columns):
    """The different strings of arrays of bytes, cut to the type `kind`, in their order; without the empty one."""
    return [text.decode() for text in np.unique(np.concatenate([column.astype(kind) for column in columns])) if text]


def refuse_leak(seen, data, network):
    """UserError if a network was trained on images or groups of val or test, or selected on those of test.

    seen: what seen_by() returned when the network was trained. data: the Data of the student. network: its name, for
    the error. That a teacher was selected on the student's validation split is the usual protocol, and allowed.
    """
    for used, forbidden in (("train", ("val", "test")), ("val", ("test",))):
        seen_images = set(seen[used]["images"])
        seen_groups = set(seen[used]["groups"])
        is_held_out = np.isin(data.split, forbidden)
        # some official splits have an image in two splits: the student has it, too, and that is no leak of the teacher
        seen_images.difference_update(_texts("S16", data.sha256[~is_held_out]))
        rows = np.flatnonzero(is_held_out)
        images = sum(sha.decode() in seen_images for sha in data.sha256[rows].astype("S16").tolist())
        groups = seen_groups and {group for group in set(data.groups[rows].tolist())
                                  if key(f"{data.name}/{group}") in seen_groups}
        seen_pictures = set(seen[used].get("pictures", ()))  # checkpoints of older versions have none
        seen_pictures.difference_update(_texts("S64", data.perceptual_hashes[~is_held_out]))
        alike = ()
        if seen_pictures and not (images or groups):  # each with each
            alike, _ = perceptual_hash.near(data.perceptual_hashes[rows], sorted(seen_pictures))
        if images or groups or len(alike):
            purpose = "trained" if used == "train" else "selected"
            count = f"{len(groups)} groups" if groups else f"{images} images" if images else (
                f"pictures that look like {len(alike)} images ({listing(data.ids[rows[i]] for i in alike)})")
            raise UserError(f"{network} was {purpose} on {count} of the {' and '.join(forbidden)} split",
                            "Use the split that it was trained with (--split-seed, or its split.csv with --split; with "
                            "--fold, the network of the same fold), "
                            "or train another on this one.")
