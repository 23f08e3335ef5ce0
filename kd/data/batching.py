"""Batches of images: augmented views of the training images, and the centres of those of validation and test.

A training image has a position: the labelled images come first, in the order of the training split, then those without
labels. A view has a number: that of the visit (kd/data/sampling.py), or one of the few that are shown in turn.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from kd import image
from kd.data import augment, sampling
from kd.data.mixing import Mixing, mix, mix_labels
from kd.errors import UserError

KEPT_SEED = 0  # of views that are shown in turn: the same for all runs of a study, whatever their own seed


class Batch(NamedTuple):
    """N images of a batch, or of a part of one; the L labelled ones come first."""

    images: torch.Tensor  # float [N, 3, size, size] in [0, 1], channels last; networks normalise by their mean and std
    labels: torch.Tensor  # int64 [L], or with mixed views the shares of the classes, float32 [L, C]
    index: torch.Tensor   # int64 [N] positions of the images, in memory
    views: np.ndarray     # [N] the number of the view of each
    crops: dict           # {px: images at this size}: the same crops for networks of other input sizes
    whole: tuple          # (labelled, all) images of the whole batch, in all its parts and all processes
    is_last: bool = True  # whether no further part of the batch follows


@dataclass(frozen=True)
class Views:
    """How views are drawn: what a view depends on beside its image, its number and the seed.

    kind: one of augment.KINDS. sampling: one of sampling.KINDS. kept: the number of views of each image that are shown
    in turn, drawn as by KEPT_SEED; None for a new view at each visit.
    """

    kind: str = "heavy"
    mixing: Mixing = Mixing()
    sampling: str = "natural"
    kept: int = None

    @classmethod
    def of(cls, options, kept=None):
        """The Views of a command line's options, resolved."""
        return cls(options["augment"], Mixing(options["mixup"], options["cutmix"]), options["sampling"], kept)

    def numbers(self, visits):
        """The numbers of the views [N] that visits [N], from 1 on, show."""
        return (visits - 1) % self.kept + 1 if self.kept else visits

    def settings(self, device):
        """What the views with a number depend on, a list of plain values: the key of stored targets."""
        plain = augment.settings(self.kind, torch.device(device))
        return plain + [self.mixing.mixup, self.mixing.cutmix, self.sampling] if self.mixing else plain


def epoch_chunks(data, *, batch, seed, epoch, views=Views(), share=(0, 1), accumulate=1, unlabelled_ratio=0.0):
    """The parts of the batches of an epoch for one process: [(index, numbers)], both [N] ints, positions and views, and
    for each part (whole, is_last), as a Batch has them.

    Arguments as for training_batches().
    """
    count, (rank, world) = len(data.train), share
    index, visits = sampling.labelled(data.labels[data.train], len(data.class_names), views.sampling, seed, epoch)
    sizes = batch_sizes(data, batch, world, unlabelled_ratio)
    further = sum(total - labelled for labelled, total in sizes)
    if further:
        more_index, more_visits = sampling.unlabelled(len(data.unlabelled), further, seed, epoch)
        index, visits = np.concatenate([index, count + more_index]), np.concatenate([visits, more_visits])
    numbers, chunks, places_in_batch, start, further_start = views.numbers(visits), [], [], 0, count
    for labelled, total in sizes:
        without = total - labelled
        parts = parts_of(labelled, world, accumulate)
        for part in range(parts):  # as one of world * parts processes
            of_part = slice(rank + world * part, None, world * parts)
            places = np.concatenate([np.arange(start, start + labelled)[of_part],
                                     np.arange(further_start, further_start + without)[of_part]])
            chunks.append((index[places], numbers[places]))
            places_in_batch.append(((labelled, total), part == parts - 1))
        start, further_start = start + labelled, further_start + without
    return chunks, places_in_batch


def training_batches(data, *, batch, seed, epoch, device, workers=1, views=Views(), share=(0, 1), accumulate=1,
                     unlabelled_ratio=0.0, size=None, other_sizes=()):
    """Yield the Batch of each step of an epoch, or of each part of it: augmented, in a random order.

    batch: labelled images of all processes together. workers: threads that load ahead. share: (rank, world) of one of
    several processes; each takes every world-th image of each batch. accumulate: the parts of a batch, see parts_of();
    they divide it as processes do. unlabelled_ratio: images without labels beside each labelled one, where `data` has
    some. size: of the images, px; None for that of `data`. other_sizes: of further `crops`, px.
    """
    chunks, places_in_batch = epoch_chunks(data, batch=batch, seed=seed, epoch=epoch, views=views, share=share,
                                           accumulate=accumulate, unlabelled_ratio=unlabelled_ratio)
    size = size or data.size
    drawn = augmented(data, chunks, KEPT_SEED if views.kept else seed, views, (size, *other_sizes), device, workers)
    for (index, numbers), (crops, labels), (whole, is_last) in zip(chunks, drawn, places_in_batch):
        labels = labels.to(device, non_blocking=True)
        yield Batch(crops[size], labels, torch.from_numpy(index), numbers, crops, whole, is_last)


def augmented(data, chunks, seed, views, sizes, device, workers=1):
    """Yield (crops, labels), as a Batch has them, for each chunk (index, numbers) of training images.

    The crops of an image are the same at all sizes, up to a pixel.
    """
    device = torch.device(device)
    train, sizes = data.train, dict.fromkeys(sizes)
    partners = _Partners(data, views.sampling) if views.mixing else None

    def begin(index, numbers):
        """({size: pixels}, draws) of views before the part of the augmentation that is done on the device."""
        draws = augment.draw(seed, numbers, data.origins(index))
        pixels = {size: augment.begin(data.training_pixels(index, size), draws, size, views.kind, device,
                                      side=size if size in data.larger else data.size) for size in sizes}
        if views.kind == "corruption":
            pixels = {size: augment.corrupt(values, draws, data.corruptions) for size, values in pixels.items()}
        return pixels, draws

    def load(chunk):
        index, numbers = chunk
        if not partners:
            return begin(index, numbers), None, None
        mixed = views.mixing.draw(seed, numbers, data.origins(index))
        mixed["partner"] = partners(index, mixed["partner"])
        return begin(index, numbers), begin(mixed["partner"], numbers), mixed

    for (index, _), (own, partner, mixed) in zip(chunks, _ahead(load, chunks, workers)):
        crops = {size: augment.finish(pixels, own[1], size, views.kind, device) for size, pixels in own[0].items()}
        labelled = index[index < len(train)]
        labels = torch.from_numpy(data.labels[train[labelled]])
        if mixed:
            for size, pixels in partner[0].items():
                mix(crops[size], augment.finish(pixels, partner[1], size, views.kind, device), mixed)
            others = data.labels[train[mixed["partner"][:len(labelled)]]]
            labels = mix_labels(labels, torch.from_numpy(others), mixed["share"][:len(labelled)], len(data.class_names))
        yield crops, labels


class _Partners:
    """The partners of mixed views: for labelled images others of them, each as likely as it is shown."""

    def __init__(self, data, kind):
        labels, classes = data.labels[data.train], len(data.class_names)
        likely = sampling.class_counts(labels, classes, kind) / np.maximum(np.bincount(labels, minlength=classes), 1)
        self.edges = np.cumsum(likely[labels])
        self.further = len(data.unlabelled) if data.unlabelled else 0

    def __call__(self, index, numbers):
        """The positions of the partners of the images at `index`, [N], for random `numbers` in [0, 1)."""
        count = len(self.edges)
        labelled = np.minimum(np.searchsorted(self.edges, numbers * self.edges[-1], side="right"), count - 1)
        return np.where(index < count, labelled, count + (numbers * self.further).astype(np.int64))


def batch_sizes(data, batch, world=1, unlabelled_ratio=0.0):
    """[(labelled, all)] images of each batch of an epoch, in `world` processes together.

    The number of batches is that in which each labelled image is shown once. A last batch with fewer than two labelled
    images for a process is left out, because batch normalisation cannot use it. UserError if there is no batch.
    """
    count, ratio = len(data.train), unlabelled_ratio if data.unlabelled else 0.0
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    sizes = [(size, size + round(size * ratio)) for size in sizes if size >= 2 * world]
    if not sizes:
        raise UserError(f"no batch of {2 * world} labelled images: {count} training images in batches of {batch}",
                        "Give a larger --batch or more images.")
    return sizes


def parts_of(labelled, world=1, accumulate=1):
    """The number of parts that a batch of so many labelled images, in `world` processes together, is computed in.

    It is `accumulate`, or fewer where a part would have fewer than two labelled images for a process, of which batch
    normalisation has no deviation.
    """
    return max(1, min(accumulate, labelled // (2 * world)))


def evaluation_batches(data, split, *, batch, device, share=(0, 1)):
    """Yield the centres of the images of a split in their order, float [N, 3, size, size] in [0, 1], in batches.

    share: as for training_batches().
    """
    rank, world = share
    rows = data.where(split)[rank::world]
    for start in range(0, len(rows), batch):
        pixels = image.centre_crop(data.pixels(rows[start:start + batch]), data.size)
        yield augment.to_float(np.ascontiguousarray(pixels), device)


def _ahead(load, chunks, workers):
    """Yield load(chunk) for each chunk, in order; `workers` threads load a few chunks before they are used."""
    if not workers:
        yield from map(load, chunks)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for chunk in chunks:
            pending.append(pool.submit(load, chunk))
            if len(pending) > 2 * workers:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
