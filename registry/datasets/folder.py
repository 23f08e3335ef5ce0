"""One's own images: a folder for each class, and train, val, test above them or not."""

from pathlib import Path

from kd.data.dataset import Dataset
from kd.data.splits import NAMES
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.image import SUFFIXES, find
from registry import register

LIKE_SPLITS = {*NAMES, "training", "valid", "validation", "testing"}


@register("dataset", "folder")
def folder(root, *, groups=None):
    """Class folders, with train/val/test above them or split here; groups from a CSV (id,group)."""
    if root is None:
        raise UserError("folder needs the folder of your images", "Give it with --root PATH.")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    inside = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    official = inside == set(NAMES)
    splits = sorted(name for name in inside if name.lower() in LIKE_SPLITS)
    if splits and not official:
        raise UserError(f"{root} has {', '.join(splits)} but not exactly train, val and test",
                        "Bring all three under these names and nothing beside them, "
                        "or class folders alone to have them split.")
    tops = [root / name for name in NAMES] if official else [root]
    classes = sorted({path.name for top in tops for path in top.iterdir()
                      if path.is_dir() and not path.name.startswith(".")})
    if len(classes) < 2:
        raise UserError(f"{root} has {len(classes)} class folders, and at least two are needed",
                        "Put the images of each class into a folder named after it.")
    paths = [path for top in tops for name in classes for path in find(top / name)]
    parts = [path.relative_to(root).parts for path in paths]
    depth = 1 if official else 0
    empty = sorted(set(classes) - {part[depth] for part in parts})
    if empty:
        raise UserError(f"no images in class folder {listing(empty)}",
                        f"Images end in {', '.join(sorted(SUFFIXES))}.")
    ids = ["/".join(part) for part in parts]
    return Dataset(
        root.resolve().name, classes, images=paths, ids=ids,
        labels=[classes.index(part[depth]) for part in parts],
        groups=_groups(groups, ids) if groups else None,
        split=[part[0] for part in parts] if official else None)


def _groups(path, ids):
    """The group of each image, from a CSV whose id is the path below the root."""
    known = {}
    for row in read_csv(path, required=("id", "group")):
        name = row["id"].replace("\\", "/").removeprefix("./")
        if known.setdefault(name, row["group"]) != row["group"]:
            raise UserError(f"{path} puts {name} into two groups: {known[name]} and {row['group']}")
    missing = [i for i in ids if i not in known]
    if missing:
        raise UserError(f"{path} has no group for {len(missing)} of {len(ids)} images: {listing(missing)}",
                        "Its ids are paths below --root, such as nevus/0001.jpg.")
    return [known[i] for i in ids]
