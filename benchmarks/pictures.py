"""Image files for the benchmarks that decode: HAM10000, or synthetic lesions as JPEG files of the same size."""

from pathlib import Path

import numpy as np
from PIL import Image

import registry
from kd.data.dataset import Dataset

WIDTH, HEIGHT = 600, 450


def dataset(root, count, folder):
    """A kd.data.dataset.Dataset of about `count` images, of 56 at least; of ten of a class eight are for training.

    root: the folder of HAM10000, or None for synthetic images, which are written into `folder`.
    """
    if root:
        source = registry.create("dataset", "ham10000", root=root)
        share = min(1, count / len(source.ids))
        rows_by_class = [np.flatnonzero(source.labels == k) for k in range(len(source.class_names))]
        chosen = np.concatenate([rows[:max(1, round(share * len(rows)))] for rows in rows_by_class])
        images, labels = [source.images[k] for k in chosen], source.labels[chosen]
    else:
        source = registry.create("dataset", "lesions", size=HEIGHT, images=max(count, 56))  # it draws no fewer
        images, labels = [Path(folder, f"{k}.jpg") for k in range(len(source.labels))], source.labels
        for path, draw in zip(images, source.images):
            if not path.exists():
                Image.fromarray(draw()).resize((WIDTH, HEIGHT)).save(path, quality=90)
    place_in_class = [np.count_nonzero(labels[:k] == label) for k, label in enumerate(labels)]
    split = [{8: "val", 9: "test"}.get(k % 10, "train") for k in place_in_class]
    return Dataset("pictures", source.class_names, images, list(range(len(images))), labels, split=split)
