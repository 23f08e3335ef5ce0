"""Pictures in files for the benchmarks that decode: those of HAM10000, or synthetic lesions as JPEG of the same size."""

from pathlib import Path

import numpy as np
from PIL import Image

import registry
from kd.data.dataset import Dataset

WIDTH, HEIGHT = 600, 450


def dataset(root, count, folder):
    """A kd.data.dataset.Dataset of about `count` pictures in official splits, eight of ten of a class for training.

    root: of HAM10000, or None; folder: for drawn ones.
    """
    if root:
        found = registry.create("dataset", "ham10000", root=root)
        share = min(1, count / len(found.ids))
        classes = [np.flatnonzero(found.labels == k) for k in range(len(found.class_names))]
        chosen = np.concatenate([rows[:max(1, round(share * len(rows)))] for rows in classes])
        images, labels = [found.images[k] for k in chosen], found.labels[chosen]
    else:
        found = registry.create("dataset", "lesions", size=HEIGHT, images=count)
        images, labels = [Path(folder, f"{k}.jpg") for k in range(count)], found.labels
        for path, draw in zip(images, found.images):
            if not path.exists():
                Image.fromarray(draw()).resize((WIDTH, HEIGHT)).save(path, quality=90)
    place = [np.count_nonzero(labels[:k] == label) % 10 for k, label in enumerate(labels)]  # within its class
    split = [{8: "val", 9: "test"}.get(k, "train") for k in place]
    return Dataset("pictures", found.class_names, images, list(range(len(images))), labels, split=split)
