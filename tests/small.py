"""Parts for tests: a small learnable data set, and runs that take a second."""

import dataclasses
import tempfile
from unittest import mock

import numpy as np

import registry
from kd import objective
from kd.data import batching, loader
from kd.data import unlabelled as further
from kd.data.dataset import Dataset
from kd.train import loop, setup
from kd.train.options import parse_options


def data(count=96, classes=3, size=32, seed=0, split_seed=0, folder=None, name="squares", labelled=None):
    """Kd Data of grey noise with a square whose colour is the class; two images a group."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) // 2 % classes
    images = rng.integers(90, 160, (count, size, size, 3)).astype(np.uint8)
    for image, label in zip(images, labels):
        top, left = rng.integers(4, size - 16, 2)
        image[top:top + 12, left:left + 12, label % 3] = 250
    found = Dataset(name, [f"class {k}" for k in range(classes)], list(images),
                            [f"i{k}" for k in range(count)], labels, groups=[f"g{k // 2}" for k in range(count)],
                            version=f"{count} {classes} {size} {seed}")
    return loader.prepare(found, size=size, split_seed=split_seed, labelled=labelled, cache_folder=folder)


def unlabelled(data, count=30, size=32, seed=1):
    """A kd.data.unlabelled.Unlabelled of further noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    found = Dataset("noise", ["any"], list(pixels), [f"u{k}" for k in range(count)], [0] * count, version=f"{seed}")
    with tempfile.TemporaryDirectory() as folder:
        part = further.prepare(found, data, cache_folder=folder)
        return further.Unlabelled([dataclasses.replace(part, images=np.array(part.images), open_at=None)])


def options(*argv):
    """Options of distill.py as a run has them, resolved for `data`."""
    import distill
    result = parse_options(distill.parser(), ["--student", "tiny", "--epochs", "2", "--batch", "16", "--workers", "0",
                                             *argv])
    return {**result, "hard": result["hard"] or "ce", "stem": "small", "device": "cpu", "precision": "fp32", "size": 32}


def terms(options):
    return objective.plan(options, lambda name: registry.get("loss", name).make)


def network(options, data, seed=0, arch="tiny"):
    return setup.new_network(arch, data, options, seed, registry)


class Journal:
    """In the place of kd.train.engine.Journal: so many epochs, and no files."""

    def __init__(self, count):
        self.count, self.rows = count, []

    def epochs(self):
        yield from range(1, self.count + 1)

    def step_done(self):
        pass

    def write(self, row):
        self.rows.append(row)


def batch(images, labels, index):
    """A Batch of labelled images in their first view, at the size of both networks."""
    return batching.Batch(images, labels, index, np.ones(len(index), int), {images.shape[-1]: images},
                          (len(labels), len(index)))


def one_step(step, data, options, batch):
    """One step of kd/train/loop.py on a Batch, at the peak of the learning rate."""
    sizes, batches = [(len(batch.labels), len(batch.index))], [batch]
    with mock.patch.multiple(batching, batch_sizes=lambda *_: sizes, training_batches=lambda *_, **options: batches):
        loop.train(step, data, {**options, "epochs": 1, "warmup": 1}, 0, Journal(1))
