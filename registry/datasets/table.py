"""A folder of images, flat or nested, and a table with their classes."""

from pathlib import Path

from kd.data import table
from kd.errors import UserError, listing
from registry import register


@register("dataset", "csv")
def csv(root, *, images="", label="", group="", split="", folder="", testing=False):
    """Images and a table: csv,images=COLUMN,label=COLUMN,group=COLUMN,split=COLUMN --root TABLE.csv.

    root: the table, separated by commas, semicolons, tabs or bars. images: the column with paths, names of files or ids
    without suffix. label: the column with the classes, or label=A+B+C for a column a class. group: patient or lesion.
    split: train, val, test. Columns with usual names are found without being named. folder: where the images are, if
    not in or below the folder of the table. testing: the images are only tested on. Raises UserError.
    """
    if root is None:
        raise UserError("csv needs the table", "Give it with --root TABLE.csv.")
    root = Path(root)
    if root.is_dir():
        found = sorted((path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".tab")),
                       key=lambda path: ("train" not in path.name.lower(), path))
        if len(found) != 1:
            names = f"{len(found)} tables: {listing(path.name for path in found)}" if found else "no table"
            raise UserError(f"{root} has {names}",
                            f"Name one with --root {found[0]}" if found else "Name the table with --root TABLE.csv.")
        root, = found
    return table.dataset(table.Table.read(root), images=images, label=label, group=group, split=split, folder=folder,
                         testing=testing)
