"""Train, validation and test: whole groups only, stratified by class, and checked."""

import hashlib
from collections import Counter, defaultdict

import numpy as np

from kd.errors import UserError, listing
from kd.files import read_csv

NAMES = ("train", "val", "test")
FRACTIONS = (0.7, 0.1, 0.2)


def stratified(labels, groups, *, seed=0):
    """Assign N images to train, val and test: an [N] array of names.

    labels: [N] ints. groups: N strings; a group goes to one split as a whole, and
    counts for the class most of its images have. Within a class, groups in random order
    go where most images are still missing, so that shares differ from FRACTIONS by
    less than a group. A class with three groups or more is in every split, whatever that
    does to the shares of a small one. The order of the images changes nothing.
    """
    members = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    by_class = defaultdict(list)
    for group, positions in sorted(members.items()):
        counts = Counter(int(labels[p]) for p in positions)
        by_class[min(counts, key=lambda c: (-counts[c], c))].append(group)
    split = np.empty(len(labels), dtype="<U5")
    for label, names in sorted(by_class.items()):
        order = np.random.default_rng((seed, label)).permutation(len(names))
        names = [names[i] for i in order]
        total = sum(len(members[name]) for name in names)
        missing = [fraction * total for fraction in FRACTIONS]
        for place, name in enumerate(names):
            # the first three groups make sure that no split goes without the class
            target = (0, 2, 1)[place] if place < 3 <= len(names) else int(np.argmax(missing))
            split[members[name]] = NAMES[target]
            missing[target] -= len(members[name])
    return split


def read(path, ids, skipped=()):
    """The split column of a CSV with columns id and split, in the order of `ids`.

    skipped: ids that may stand in the file, though they are left out.
    """
    rows = read_csv(path, required=("id", "split"))
    known = {row["id"]: row["split"] for row in rows}
    if len(known) < len(rows):
        twice = [i for i, count in Counter(row["id"] for row in rows).items() if count > 1]
        raise UserError(f"{path} lists {len(twice)} images more than once: {listing(twice)}")
    wrong = sorted(set(known.values()) - set(NAMES))
    if wrong:
        raise UserError(f"{path}: a split is train, val or test, not {listing(map(repr, wrong))}")
    missing = [i for i in ids if i not in known]
    if missing:
        raise UserError(f"{path} says nothing of {len(missing)} of the {len(ids)} images: {listing(missing)}",
                        "A split file has one row for every image of the data set.")
    extra = sorted(set(known).difference(ids, skipped))
    if extra:
        raise UserError(f"{path} names {len(extra)} images that the data set does not have: {listing(extra)}")
    return np.array([known[i] for i in ids])


def check(split, groups, labels, class_names):
    """Stop if a group is in two splits, a split is empty, or a class has no training image."""
    where = defaultdict(set)
    for name, group in zip(split, groups):
        where[group].add(str(name))
    shared = sorted(group for group, names in where.items() if len(names) > 1)
    if shared:
        raise UserError(f"{len(shared)} groups are in more than one split: {listing(shared)}",
                        "All images of a patient or lesion belong in one split.")
    for name in NAMES:
        if not np.any(split == name):
            raise UserError(f"the {name} split is empty",
                            "Bring more images or groups, or a split of your own with --split FILE.csv.")
    absent = [c for k, c in enumerate(class_names) if not np.any((split == "train") & (labels == k))]
    if absent:
        raise UserError(f"no training image of class {listing(absent)}",
                        "Bring more images of it, or remove the class.")


def key(text):
    """Sixteen hex digits that stand for an id in a checkpoint."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seen_by(data):
    """What a network trained on `data` (kd.data.loader.Data) has seen, for its checkpoint.

    {"train"|"val": {"images": [...], "groups": [...]}}: keys of the images' contents and
    of the groups, if the data set has groups.
    """
    result = {}
    for name in ("train", "val"):
        rows = np.flatnonzero(data.split == name)
        result[name] = {
            "images": sorted({data.sha256[i][:16] for i in rows}),
            "groups": sorted({key(f"{data.name}/{data.groups[i]}") for i in rows}) if data.grouped else [],
        }
    return result


def refuse_leak(seen, data, who):
    """Stop if a network was trained on images or groups of val or test, or selected on those of test.

    seen: what `seen_by` gave when it was trained. who: how to call it in the error. That it was
    selected on the student's validation split is the usual protocol, and allowed.
    """
    for trained, forbidden in (("train", ("val", "test")), ("val", ("test",))):
        seen_images = set(seen[trained]["images"])
        seen_groups = set(seen[trained]["groups"])
        held_out = np.isin(data.split, forbidden)
        # what the student itself is given in two splits (official ones have such images) is not the teacher's leak
        seen_images.difference_update(data.sha256[i][:16] for i in np.flatnonzero(~held_out))
        rows = np.flatnonzero(held_out)
        images = sum(data.sha256[i][:16] in seen_images for i in rows)
        groups = {group for group in {data.groups[i] for i in rows} if key(f"{data.name}/{group}") in seen_groups}
        if images or groups:
            how = "trained" if trained == "train" else "selected"
            what = f"{len(groups)} groups" if groups else f"{images} images"
            raise UserError(f"{who} was {how} on {what} of the {' and '.join(forbidden)} split",
                            "Use the split that it was trained with (--split-seed, or its split.csv with --split), "
                            "or train another on this one.")
