"""A folder of your own images: one folder for each class, with or without train, val and test above them."""

import numpy as np

from kd import predictions
from kd.data import layout as layouts
from kd.data.dataset import Dataset
from kd.errors import UserError
from registry import register


@register("dataset", "folder")
def folder(root, *, groups=None, layout="", testing=False):
    """Class folders, with train/val/test above them or split here; groups from a CSV (id,group).

    root: the folder. groups: a CSV with the columns id, the path below root, and group, such as the patient or the
    lesion; images of a group are never in two splits. layout: what the levels of folders mean where that is in doubt,
    as for kd.data.layout.read(). testing: the images are only tested on, and one class is enough. Raises UserError if
    the folders do not fit.
    """
    if root is None:
        raise UserError("folder needs the folder of your images", "Give it with --root PATH.")
    found = layouts.read(root, layout, testing)
    for note in found.notes:
        print(f"note: {note}")
    if groups and found.groups:
        raise UserError("--groups and GROUP in the layout both say which images belong together",
                        "Leave one of them out.")
    classes = sorted(set(found.classes))
    of_csv = groups and predictions.groups_of(np.array(found.ids), predictions.read_groups(groups), root)
    return Dataset(
        layouts.folder(root).resolve().name, classes, images=found.images, ids=found.ids,
        labels=[classes.index(name) for name in found.classes],
        groups=of_csv if groups else found.groups, split=found.split)
