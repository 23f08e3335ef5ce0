"""Which training images an epoch shows, and how often each was shown before: its visits, which number its views.

The images of a class are shown in turns, all of them once before one of them again, so that an epoch has the same
number of images of each class as any other epoch.
"""

import numpy as np

KINDS = ("natural", "sqrt", "balanced")


def class_counts(labels, classes, kind="natural"):
    """[C] ints: how many images of each class an epoch shows; together as many as there are images.

    labels: [N] ints below `classes`. kind: "natural", as many as the class has; "sqrt", in proportion to the square
    root of that (Mahajan et al. 2018, 1805.00932, sec. 2.2); "balanced", the same for each class that has images.
    """
    counts = np.bincount(labels, minlength=classes)
    if kind == "natural":
        return counts
    weights = np.sqrt(counts) if kind == "sqrt" else (counts > 0).astype(float)
    exact = len(labels) * weights / weights.sum()
    shown = np.floor(exact).astype(int)
    largest_rest = np.argsort(shown - exact, kind="stable")[:len(labels) - shown.sum()]
    shown[largest_rest] += 1
    return shown


def visits_per_epoch(labels, classes, kind="natural"):
    """[C] ints: how often an epoch shows an image of each class at most."""
    counts = np.bincount(labels, minlength=classes)
    return -(-class_counts(labels, classes, kind) // np.maximum(counts, 1))


def labelled(labels, classes, kind, seed, epoch):
    """(positions, visits), both [N]: the images of an epoch in their order, and the number of each visit, from 1 on.

    Arguments as for class_counts(). The numbers of the visits of an image do not depend on the seed. With "natural",
    an epoch shows each image once, and the number of its visit is that of the epoch.
    """
    generator = np.random.default_rng((seed, epoch))
    if kind == "natural":
        return generator.permutation(len(labels)), np.full(len(labels), epoch)
    positions, visits = [], []
    rounds = visits_per_epoch(labels, classes, kind)
    for k, count in enumerate(class_counts(labels, classes, kind)):
        members = np.flatnonzero(labels == k)
        for turn in range(rounds[k]):
            shown = generator.permutation(members)[:count - turn * len(members)]
            positions.append(shown)
            visits.append(np.full(len(shown), (epoch - 1) * rounds[k] + turn + 1))
    order = generator.permutation(len(labels))
    return np.concatenate(positions)[order], np.concatenate(visits)[order]


def unlabelled(count, shown, seed, epoch):
    """(positions, visits), both [shown]: which of `count` images without labels an epoch shows.

    The epochs follow each other through random orders of all of them, one order for each visit.
    """
    places = np.arange((epoch - 1) * shown, epoch * shown)
    passes = places // count
    positions = np.concatenate([np.empty(0, int)] + [
        np.random.default_rng((seed, int(number), count)).permutation(count)[places[passes == number] % count]
        for number in np.unique(passes)])
    return positions, passes + 1
