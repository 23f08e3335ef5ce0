"""Classification metrics as plain functions of counts, over any number of replicates at once.

For all that depends on the predicted class the sufficient statistic is the confusion array [..., C, C], rows true, columns predicted; one
matrix gives a number, B of them (bootstrap replicates) give B. Conventions are scikit-learn's,
but what is undefined (no support, nothing predicted) is NaN, never 0 or 1, and never a warning.
"""

import numpy as np

CHUNK = 2 ** 17  # numbers worked on at a time: half a MiB stays in a core's cache


def softmax(logits):
    """Probabilities [..., C] of logits [..., C], in float64; the largest logit is subtracted first."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def confusion(labels, predicted, classes):
    """Counts [C, C] of labels [n] (rows) against predicted [n] (columns)."""
    cells = np.bincount(np.asarray(labels) * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def accuracy(confusion):
    """Share of images on the diagonal. Confusion [..., C, C] -> [...]."""
    return ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def precision(confusion):
    """TP / (TP + FP) a class; NaN where a class is never predicted. [..., C, C] -> [..., C]."""
    return ratio(_hits(confusion), confusion.sum(-2))


def recall(confusion):
    """TP / (TP + FN) a class; NaN where a class has no support. [..., C, C] -> [..., C]."""
    return ratio(_hits(confusion), confusion.sum(-1))


def f1(confusion):
    """2 TP / (2 TP + FP + FN) a class; NaN where it is neither true nor predicted. -> [..., C]."""
    return ratio(2 * _hits(confusion), confusion.sum(-2) + confusion.sum(-1))


def macro_f1(confusion):
    """Mean F1 of the classes that occur among labels or predictions. [..., C, C] -> [...]."""
    return mean_defined(f1(confusion))


def weighted_f1(confusion):
    """Mean F1 weighted by support. [..., C, C] -> [...]."""
    support = confusion.sum(-1)
    return ratio((np.nan_to_num(f1(confusion)) * support).sum(-1), support.sum(-1))


def balanced_accuracy(confusion):
    """Mean recall of the classes with support (the metric of ISIC 2018 task 3). -> [...]."""
    return mean_defined(recall(confusion))


def nll(labels, probabilities):
    """Mean over images of -log p of the true class, the log loss. [n], [n, C] -> float."""
    return float(log_losses(labels, probabilities).mean())


def log_losses(labels, probabilities):
    """-log p of each image's true class [n]; p is at least 2.2e-16, as in scikit-learn, so never infinite."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    true = probabilities[np.arange(len(probabilities)), labels]
    return -np.log(np.maximum(true, np.finfo(np.float64).eps))


def brier(labels, probabilities):
    """Squared error summed over classes, mean over images: 0 to 2 (Brier 1950). [n], [n, C] -> float."""
    return float(square_losses(labels, probabilities).mean())


def square_losses(labels, probabilities):
    """Squared distance of each image's probabilities from its label's corner of the simplex [n]."""
    errors = np.array(probabilities, dtype=np.float64)
    errors[np.arange(len(errors)), labels] -= 1
    return (errors ** 2).sum(1)


def auroc(labels, scores, weights=None):
    """Area under the ROC curve of each class against the rest; a tie counts half.

    labels [n] ints; scores [n, C], higher for the class; weights [B, n] ints, how often each image
    is counted, or None for once. Returns [B, C], or [C] without weights; NaN where a class has no
    positives or no negatives. It is the Mann-Whitney statistic: the share of pairs (positive,
    negative) that are ordered rightly (Hanley & McNeil 1982). Memory beyond the result is bounded.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if weights is None:
        return auroc(labels, scores, np.ones((1, len(labels)), dtype=np.uint8))[0]
    ranks = []
    for c in range(scores.shape[1]):
        positive, negative = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        if not len(negative):
            continue
        negative = negative[np.argsort(scores[negative, c])]
        below, not_above = (np.searchsorted(scores[negative, c], scores[positive, c], side) for side in ("left", "right"))
        ranks.append((c, positive, negative, *steps(len(negative), below, not_above)))
    areas = np.full((len(weights), scores.shape[1]), np.nan)
    for rows, part in chunks(weights):
        for c, positive, negative, starts, below, not_above in ranks:
            passed, own = running(part[negative], starts), part[positive]
            twice = np.einsum("nb,nb->b", own, passed[below] + passed[not_above], dtype=np.int64)
            areas[rows, c] = ratio(twice / 2, own.sum(0, dtype=np.float64) * passed[-1])
    return areas


def chunks(weights):
    """(rows, weights[rows].T) of as many replicates [n, b] at a time as a core's cache holds."""
    step = max(16, CHUNK // weights.shape[1])
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        yield rows, np.ascontiguousarray(weights[rows].T)


def steps(n, *places):
    """(starts, *steps): the distinct places among n rows, 0 too, and which of them each place is.

    What lies between two places needs but its sum: where they are few, running() is nearly free.
    """
    starts = np.unique(np.concatenate([[0], *places]))
    starts = starts[starts < n]
    return starts, *(np.searchsorted(starts, place) for place in places)


def running(counts, starts):
    """Sums [len(starts) + 1, b] of the rows of counts [n, b] before each start, and of all. Exact, and
    half as wide as float64: this is where the time goes."""
    passed = np.zeros((len(starts) + 1, counts.shape[1]), dtype=np.int32)
    np.cumsum(np.add.reduceat(counts, starts, axis=0, dtype=np.int32), axis=0, out=passed[1:])
    return passed


def mean_defined(values):
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _hits(confusion):
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def ratio(a, b):
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)[()]
