"""What a dataset plugin returns: images still in their files, and what is known of them."""

from dataclasses import dataclass

import numpy as np

from kd.errors import UserError, listing


@dataclass
class Dataset:
    """N labelled images, not yet decoded.

    images       N paths, uint8 arrays [H, W] or [H, W, 3], or functions that draw such an array
    ids          N unique strings
    labels       [N] ints, positions in class_names
    groups       N strings (patient, lesion): one group is never in two splits; None where
                 every image stands for itself
    split        N of "train", "val", "test" where the data set has official splits, else None
    version      changes when the pixels of `images` that are no files change
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
        sizes = {len(self.images), len(self.ids), len(self.labels)}
        if len(sizes) > 1:
            raise ValueError(f"{self.name}: images, ids and labels differ in number: {sizes}")
        if len(set(self.ids)) < len(self.ids):
            seen = set()
            twice = [i for i in self.ids if i in seen or seen.add(i)]
            raise UserError(f"{self.name}: {len(twice)} images are listed twice: {listing(twice)}",
                            "Each image needs an id of its own.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(f"{self.name}: a label is not among the {len(self.class_names)} classes")
