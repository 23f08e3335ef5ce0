"""The ISIC challenges of 2018 (task 3), 2019 and 2020, and downloads of the ISIC archive: dermoscopy."""

import re

from kd.data import layout, table
from kd.errors import UserError, listing
from registry import register

IDS = ("isicid", "image", "imageid", "imagename")
CLASSES = {"mel", "nv", "bcc", "akiec", "ak", "bkl", "df", "vasc", "scc", "unk"}  # of the columns of a class each


@register("dataset", "isic")
def isic(root, *, label="", group="", testing=False):
    """The ground truth, lesions and patients of a challenge, or the archive's metadata.csv, and the images below.

    root: the folder with tables and images as they were unpacked. Tables of training, validation and test are the
    official splits. label, group: as for csv; of the archive, label says which diagnosis. testing: the images are only
    tested on. Raises UserError.
    """
    if root is None:
        raise UserError("isic needs the folder with tables and images", "Give it with --root PATH.")
    root = layout.folder(root)
    paths = sorted(path for pattern in ("*.csv", "*/*.csv", "*/*/*.csv") for path in root.glob(pattern))
    tables = [found for found in map(table.Table.read, paths) if _id(found)]
    truths = [found for found in tables if _has_classes(found)]
    if not truths:
        others = f"; found {listing(path.name for path in paths)}" if paths else ""
        raise UserError(f"no table of ISIC below {root}{others}",
                        "It has a column image, image_name or isic_id, and the diagnosis.")
    truth = truths[0] if len(truths) == 1 else _together(root, truths)
    columns = {table.plain(column): column for column in truth.columns}
    if not label and {"target", "benignmalignant"} <= set(columns):
        label = columns["benignmalignant"]
    return table.dataset(truth, images=_id(truth), label=label, group=group, folder=root, name=root.resolve().name,
                         extra=[found for found in tables if found not in truths], plugin="isic", testing=testing)


def _id(found):
    return next((column for column in found.columns if table.plain(column) in IDS), None)


def _has_classes(found):
    names = {table.plain(column) for column in found.columns}
    return len(names & CLASSES) > 1 or bool(names & set(table.LABELS))


def _together(root, truths):
    """One Table: the splits of a challenge together, or of tables of the same images that with most columns."""
    ids = [frozenset(found.values(_id(found))) for found in truths]
    if len(set(ids)) == 1:
        return max(truths, key=lambda found: len(found.columns))
    splits = [_split(found.path.relative_to(root)) for found in truths]
    if None in splits or len(set(splits)) < len(splits):
        raise UserError(f"{root} has several tables with classes: {listing(found.path.name for found in truths)}",
                        f"Read one of them: --data csv,folder={root} --root {truths[0].path}")
    rows = [{**row, _id(truths[0]): row[_id(found)], "split": split}
            for found, split in zip(truths, splits) for row in found.rows]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    return table.Table(root / "the tables of the splits", rows, columns)


def _split(path):
    """The split in the name of a challenge's table, such as ISIC2018_Task3_Validation_GroundTruth.csv."""
    found = {layout.split_of(word) for word in re.split(r"[\W_]+", str(path))} - {None}
    return found.pop() if len(found) == 1 else None
