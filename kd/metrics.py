"""Classification metrics as plain functions of counts, over any number of replicates at once.

The sufficient statistic is the confusion array [..., C, C], rows true, columns predicted; one
matrix gives a number, B of them (bootstrap replicates) give B. Conventions are scikit-learn's,
but what is undefined (no support, nothing predicted) is NaN, never 0 or 1, and never a warning.
"""

import numpy as np

CHUNK = 2 ** 18  # numbers worked on at a time: 2 MiB stay in a core's cache


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
    return _ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def precision(confusion):
    """TP / (TP + FP) a class; NaN where a class is never predicted. [..., C, C] -> [..., C]."""
    return _ratio(_hits(confusion), confusion.sum(-2))


def recall(confusion):
    """TP / (TP + FN) a class; NaN where a class has no support. [..., C, C] -> [..., C]."""
    return _ratio(_hits(confusion), confusion.sum(-1))


def f1(confusion):
    """2 TP / (2 TP + FP + FN) a class; NaN where it is neither true nor predicted. -> [..., C]."""
    return _ratio(2 * _hits(confusion), confusion.sum(-2) + confusion.sum(-1))


def macro_f1(confusion):
    """Mean F1 of the classes that occur among labels or predictions. [..., C, C] -> [...]."""
    return mean_defined(f1(confusion))


def weighted_f1(confusion):
    """Mean F1 weighted by support. [..., C, C] -> [...]."""
    support = confusion.sum(-1)
    return _ratio((np.nan_to_num(f1(confusion)) * support).sum(-1), support.sum(-1))


def balanced_accuracy(confusion):
    """Mean recall of the classes with support (the metric of ISIC 2018 task 3). -> [...]."""
    return mean_defined(recall(confusion))


def auroc(labels, scores, weights=None):
    """Area under the ROC curve of each class against the rest; a tie counts half.

    labels [n] ints; scores [n, C], higher for the class; weights [B, n], how often each image is
    counted, or None for once. Returns [B, C], or [C] without weights; NaN where a class has no
    positives or no negatives. It is the Mann-Whitney statistic: the share of pairs (positive,
    negative) that are ordered rightly (Hanley & McNeil 1982). Memory beyond the result is bounded.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if weights is None:
        return auroc(labels, scores, np.ones((1, len(labels))))[0]
    ranks = []
    for c in range(scores.shape[1]):
        positive, negative = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        negative = negative[np.argsort(scores[negative, c])]
        ranks.append((positive, negative,
                      np.searchsorted(scores[negative, c], scores[positive, c], "left"),
                      np.searchsorted(scores[negative, c], scores[positive, c], "right")))
    areas = np.empty((len(weights), scores.shape[1]))
    step = max(1, CHUNK // len(labels))
    for start in range(0, len(weights), step):
        part = np.ascontiguousarray(weights[start:start + step].T, dtype=np.float64)  # [n, b]
        for c, (positive, negative, below, not_above) in enumerate(ranks):
            passed = np.zeros((len(negative) + 1, part.shape[1]))
            np.cumsum(part[negative], axis=0, out=passed[1:])
            own = part[positive]
            won = np.einsum("nb,nb->b", own, passed[below] + passed[not_above]) / 2
            areas[start:start + step, c] = _ratio(won, own.sum(0) * passed[-1])
    return areas


def mean_defined(values):
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _hits(confusion):
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(a, b):
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)[()]
