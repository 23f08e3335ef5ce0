"""A folder of your own images: one folder for each class, with or without train, val and test above them."""

from pathlib import Path

from kd.data.dataset import Dataset
from kd.data.splits import NAMES
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.image import SUFFIXES, check_link, find, unlisted
from registry import register

LIKE_SPLITS = {*NAMES, "training", "valid", "validation", "testing"}


@register("dataset", "folder")
def folder(root, *, groups=None):
    """Class folders, with train/val/test above them or split here; groups from a CSV (id,group).

    root: the folder. groups: a CSV with the columns id, the path below root, and group, such as the patient or the
    lesion; images of a group are never in two splits. Raises UserError if folders are empty or do not fit.
    """
    if root is None:
        raise UserError("folder needs the folder of your images", "Give it with --root PATH.")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    names = _folders(root)
    has_splits = names == set(NAMES)
    splits = sorted(name for name in names if name.lower() in LIKE_SPLITS)
    if splits and not has_splits:
        raise UserError(f"{root} has {', '.join(splits)} but not exactly train, val and test",
                        "Have folders of these three names and no others, or class folders alone to have them split.")
    tops = [root / name for name in NAMES] if has_splits else [root]
    classes = sorted(set().union(*map(_folders, tops)))
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class folders, and at least two are needed",
                        "Put the images of each class into a folder named after it.")
    paths = [path for top in tops for name in classes if (top / name).is_dir() for path in find(top / name)]
    parts = [path.relative_to(root).parts for path in paths]
    depth = 1 if has_splits else 0
    empty = sorted(set(classes) - {part[depth] for part in parts})
    if empty:
        raise UserError(f"no images in class folder {listing(empty)}",
                        f"Images end in {', '.join(sorted(SUFFIXES))}.")
    ids = ["/".join(part) for part in parts]
    outside = [path for top in {root, *tops} for path in _entries(top) if path.suffix.lower() in SUFFIXES]
    if outside:
        print(f"note: {len(outside)} images are in no class folder and are left out: {listing(sorted(outside))}")
    return Dataset(
        root.resolve().name, classes, images=paths, ids=ids,
        labels=[classes.index(part[depth]) for part in parts],
        groups=_groups(groups, ids) if groups else None,
        split=[part[0] for part in parts] if has_splits else None)


def _folders(path):
    """The names of the folders in a folder, without hidden ones. UserError as find()."""
    return {entry.name for entry in _entries(path) if entry.is_dir()}


def _entries(path):
    """The paths in a folder, without hidden ones."""
    try:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise unlisted(path, error) from error
    for entry in entries:
        check_link(entry)
    return entries


def _groups(path, ids):
    """The group of each image, from a CSV whose id is the path below the root."""
    group_of = {}
    for row in read_csv(path, required=("id", "group")):
        name = row["id"].replace("\\", "/").removeprefix("./")
        if group_of.setdefault(name, row["group"]) != row["group"]:
            raise UserError(f"{path} puts {name} into two groups: {group_of[name]} and {row['group']}")
    missing = [name for name in ids if name not in group_of]
    if missing:
        raise UserError(f"{path} has no group for {len(missing)} of {len(ids)} images: {listing(missing)}",
                        "Its ids are paths below --root, such as nevus/0001.jpg.")
    return [group_of[name] for name in ids]
