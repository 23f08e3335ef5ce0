"""Tells whether two sets of predictions are of one network, whatever the order of the rows, their scale and noise."""

import numpy as np

ROWS = 1000        # of the first set, at most, that are looked for in the second
CORRELATED = 3e-4  # 1 - correlation below which two networks are one; one seed in bf16 and in fp32 differs by .003
CLOSE = 0.05       # a twin is nearer than this share of the distance to the nearest other row
# Of rows that have a twin, above which one set is made of the other. By chance it is c m / (c m + n) for two classes,
# with c = CLOSE and n, m rows: a tenth where m is twice n; for more classes next to none.
SHARE_FOUND = 0.3


def points(predictions):
    """[n, C] a row an image: scores of Predictions without what a temperature, a bias a class or softmax changes.

    None where they hardly vary: a network that gives the same answer to all images says nothing of itself.
    """
    scores = predictions.scores - predictions.scores.mean(1, keepdims=True)
    scores = scores - scores.mean(0)
    size = np.sqrt(np.mean(scores ** 2))
    return scores / size if size > 1e-6 else None


def residuals(points, labels):
    """[n, C] of points() what the label [n] does not explain, of length 1."""
    counts = np.maximum(np.bincount(labels), 1)
    means = np.stack([np.bincount(labels, column) for column in points.T], 1) / counts[:, None]
    rest = points - means[labels]
    return rest / max(np.linalg.norm(rest), 1e-9)


def correlation(first, second):
    """Correlation of two residuals() of the same images in one order."""
    return float((first * second).sum())


def same_values(first, second):
    """Whether the values of two points() are about the same, whatever their order: quick, and true of all copies."""
    if first.shape != second.shape:
        return False
    return np.abs(np.sort(first, 0) - np.sort(second, 0)).mean() < 0.02


def twins(first, second):
    """The share of rows of `first` that have a twin in `second`: points() [n, C] and [m, C] of any images.

    The distance to the nearest row of the other set is compared with that to the nearest of the own set: of two sets
    of images it is about as large, of a copy it is only the noise.
    """
    every = -(-len(first) // ROWS)
    rows = first[::every]
    own = distances(rows, first)
    own[np.arange(len(rows)), np.arange(len(rows)) * every] = np.inf
    own, other = own.min(1), distances(rows, second).min(1)
    distinct = own > 1e-9 * np.median(own) + 1e-12
    return float(np.mean(other[distinct] < CLOSE * own[distinct])) if distinct.sum() >= 10 else 0.0


def distances(first, second):
    """[n, m] Euclidean distances of the rows of [n, C] and [m, C]."""
    squares = (first ** 2).sum(1)[:, None] + (second ** 2).sum(1) - 2 * first @ second.T
    nearest = squares.argmin(1)
    result = np.sqrt(np.maximum(squares, 0))
    # the difference of large squares is no exact distance of near rows
    result[np.arange(len(first)), nearest] = np.linalg.norm(first - second[nearest], axis=1)
    return result
