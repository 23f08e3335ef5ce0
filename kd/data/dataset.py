"""What a dataset plugin returns: images that are not decoded yet, with labels, groups and official splits."""

from dataclasses import dataclass

import numpy as np

from kd.data.splits import FRACTIONS
from kd.errors import UserError, listing

SYNTHETIC = ("the model was trained on synthetic images, which are drawn and not photographed: of a photograph its "
             "answer says nothing")


@dataclass
class Dataset:
    """N labelled images that are not decoded yet. Raises UserError, or ValueError, if the parts do not fit together.

    images       N of: a path, a uint8 array [H, W] or [H, W, 3], a function that draws such an array, or a
                 UserError for an image that is known to be unusable
    ids          N unique strings
    labels       [N] ints, positions in class_names
    groups       N strings (patient or lesion): one group is never in two splits; None if every image is independent
    split        N of "train", "val", "test" if the data set has official splits, otherwise None
    fractions    the shares of train, val and test in the split by groups, where the data set has no official one
    version      a string that changes when the pixels of arrays and functions in `images` change; without it
                 arrays are compared by content, and functions are assumed to draw the same image always
    synthetic    whether the images are drawn, not photographed; every result then says so
    caution      a sentence on the images, if they are other ones than those that a network trained on them will be used
                 on: each answer of an exported model repeats it
    """

    name: str
    class_names: list
    images: list
    ids: list
    labels: np.ndarray
    groups: list = None
    split: list = None
    fractions: tuple = FRACTIONS
    version: str = ""
    synthetic: bool = False
    caution: str = ""

    def __post_init__(self):
        self.caution = self.caution or SYNTHETIC * self.synthetic
        self.labels = np.asarray(self.labels, dtype=np.int64)
        self.ids = [str(i) for i in self.ids]
        if not len(self.ids):
            raise UserError(f"{self.name}: no images found")
        columns = [c for c in (self.images, self.ids, self.labels, self.groups, self.split) if c is not None]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"{self.name}: images, ids, labels, groups or split differ in number: "
                             f"{[len(column) for column in columns]}")
        invalid = [ascii(i) for i in (self.name, *self.ids) if i.encode(errors="replace").decode() != i]
        if invalid:  # they come from file systems of another encoding and cannot be written to a text file
            raise UserError(f"{len(invalid)} names are not valid Unicode: {listing(invalid)}", "Rename these files.")
        if len(set(self.ids)) < len(self.ids):
            earlier = set()
            twice = [i for i in self.ids if i in earlier or earlier.add(i)]
            raise UserError(f"{self.name}: {len(twice)} images are listed twice: {listing(twice)}",
                            "Each image needs an id of its own.")
        if self.groups is not None:
            self.groups = [str(group) for group in self.groups]
            ungrouped = [i for i, group in zip(self.ids, self.groups) if not group.strip()]
            if ungrouped:
                raise UserError(f"{self.name}: {len(ungrouped)} images have no group: {listing(ungrouped)}",
                                "Each image needs the id of its patient or lesion.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(f"{self.name}: a label is not among the {len(self.class_names)} classes")
