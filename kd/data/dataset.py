"""What a dataset plugin returns: images still in their files, and what is known of them."""

from dataclasses import dataclass

import numpy as np

from kd.errors import UserError, listing


@dataclass
class Dataset:
    """N labelled images, not yet decoded.

    images       N paths, uint8 arrays [H, W] or [H, W, 3], functions that draw such an array, or a
                 UserError for an image that is known to be unusable
    ids          N unique strings
    labels       [N] ints, positions in class_names
    groups       N strings (patient, lesion): one group is never in two splits; None where
                 every image stands for itself
    split        N of "train", "val", "test" where the data set has official splits, else None
    version      changes when the pixels of `images` that are no files change (without it arrays
                 are compared by content, and functions are taken to draw the same for ever)
    synthetic    drawn, not photographed: said wherever a result is shown
    """

    name: str
    class_names: list
    images: list
    ids: list
    labels: np.ndarray
    groups: list = None
    split: list = None
    version: str = ""
    synthetic: bool = False

    def __post_init__(self):
        self.labels = np.asarray(self.labels, dtype=np.int64)
        self.ids = [str(i) for i in self.ids]
        if not len(self.ids):
            raise UserError(f"{self.name}: no images found")
        columns = [c for c in (self.images, self.ids, self.labels, self.groups, self.split) if c is not None]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"{self.name}: images, ids, labels, groups or split differ in number: "
                             f"{[len(column) for column in columns]}")
        odd = [ascii(i) for i in (self.name, *self.ids) if i.encode(errors="replace").decode() != i]
        if odd:  # they come from file systems of another encoding, and no text file can hold them
            raise UserError(f"{len(odd)} names are not valid Unicode: {listing(odd)}", "Rename these files.")
        if len(set(self.ids)) < len(self.ids):
            seen = set()
            twice = [i for i in self.ids if i in seen or seen.add(i)]
            raise UserError(f"{self.name}: {len(twice)} images are listed twice: {listing(twice)}",
                            "Each image needs an id of its own.")
        if self.groups is not None:
            self.groups = [str(group) for group in self.groups]
            alone = [i for i, group in zip(self.ids, self.groups) if not group.strip()]
            if alone:
                raise UserError(f"{self.name}: {len(alone)} images have no group: {listing(alone)}",
                                "Each image needs the id of its patient or lesion.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(f"{self.name}: a label is not among the {len(self.class_names)} classes")
