"""Classification metrics as plain functions of NumPy arrays, for one test set or for all bootstrap replicates at once.

Metrics of the predicted class are functions of confusion arrays [..., C, C]: rows are true classes, columns predicted
classes, entries are counts. One matrix gives one number; B of them, one for each replicate, give B numbers.
Conventions are those of scikit-learn, but what is undefined (no support, nothing predicted) is NaN, without a warning,
and never 0 or 1.
"""

import numpy as np

CHUNK = 2 ** 17  # counts that are worked on at a time: as int32 half a MiB, which stays in a core's cache


def softmax(logits):
    """Probabilities [..., C], in [0, 1] and summing to 1, of logits [..., C]; computed in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def confusion(labels, predicted, classes):
    """Confusion matrix [C, C] of labels [n] (rows) and predicted classes [n] (columns), ints from 0 to C - 1."""
    cells = np.bincount(np.asarray(labels) * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


# ---- metrics of the predicted class: confusion [..., C, C] -> [...] or, for each class, [..., C]

def accuracy(confusion):
    """Share of images whose class is predicted correctly, in [0, 1]; [...]."""
    return ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def precision(confusion):
    """TP / (TP + FP) of each class, in [0, 1]; [..., C]. NaN where the class is never predicted."""
    return ratio(_hits(confusion), confusion.sum(-2))


def recall(confusion):
    """TP / (TP + FN) of each class, in [0, 1]; [..., C]. NaN where the class has no images."""
    return ratio(_hits(confusion), confusion.sum(-1))


def f1(confusion):
    """2 TP / (2 TP + FP + FN) of each class, in [0, 1]; [..., C]. NaN where the class is neither true nor predicted."""
    return ratio(2 * _hits(confusion), confusion.sum(-2) + confusion.sum(-1))


def macro_f1(confusion):
    """Mean F1 of the classes that have images, in [0, 1]; [...].

    A class without images is left out whatever is predicted, so that all models of a test set have one denominator; in
    scikit-learn it is `labels=` these classes.
    """
    return mean_defined(np.where(confusion.sum(-1) > 0, f1(confusion), np.nan))


def macro_f1_without(confusion, left_out):
    """macro_f1() over the classes but the class number `left_out`, in [0, 1]; [...]. NaN where fewer than two are left.

    The images of that class stay: one that is taken for another class lowers the precision of this one.
    """
    of_class = np.where(confusion.sum(-1) > 0, f1(confusion), np.nan)
    of_class[..., left_out] = np.nan
    return np.where((~np.isnan(of_class)).sum(-1) > 1, mean_defined(of_class), np.nan)[()]


def rarest_class(support, class_names):
    """The number of the class with the fewest images, of those that have any; of equals the first by name.

    support: images of each class, [C]. None where fewer than three classes have images: what is left without the
    rarest is then the F1 of one class, and no mean.
    """
    present = np.flatnonzero(support).tolist()
    return min(present, key=lambda k: (support[k], class_names[k])) if len(present) > 2 else None


def weighted_f1(confusion):
    """Mean F1 of the classes, weighted by their number of images, in [0, 1]; [...]."""
    support = confusion.sum(-1)
    return ratio((np.nan_to_num(f1(confusion)) * support).sum(-1), support.sum(-1))


def balanced_accuracy(confusion):
    """Mean recall of the classes that have images, in [0, 1]; [...]. It is the metric of ISIC 2018 task 3."""
    return mean_defined(recall(confusion))


# ---- metrics of the probabilities

def nll(labels, probabilities):
    """Negative log-likelihood (log loss) of labels [n] under probabilities [n, C], mean over images: 0 to 36.04."""
    return float(log_losses(labels, probabilities).mean())


def log_losses(labels, probabilities):
    """-log p of the true class of each image, [n]. As in scikit-learn p is at least 2.2e-16, so none is infinite."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    true = probabilities[np.arange(len(probabilities)), labels]
    return -np.log(np.maximum(true, np.finfo(np.float64).eps))


def brier(labels, probabilities):
    """Brier score of probabilities [n, C]: squared error summed over classes, mean over images, 0 to 2 (Brier 1950)."""
    return float(square_losses(labels, probabilities).mean())


def square_losses(labels, probabilities):
    """Squared distance of the probabilities of each image from its one-hot label, [n]."""
    errors = np.array(probabilities, dtype=np.float64)
    errors[np.arange(len(errors)), labels] -= 1
    return (errors ** 2).sum(1)


def kl_divergences(reference, probabilities):
    """KL(reference || probabilities) of each image in nats, [n], both [n, C]: 0 where they are equal, at most 36.04.

    As in log_losses() the logarithm is of at least 2.2e-16, so none is infinite.
    """
    reference, probabilities = (np.asarray(p, dtype=np.float64) for p in (reference, probabilities))
    of_reference, of_other = (np.log(np.maximum(p, np.finfo(np.float64).eps)) for p in (reference, probabilities))
    return np.maximum((reference * (of_reference - of_other)).sum(1), 0)


def auroc(labels, scores, weights=None):
    """Area under the ROC curve of each class against the rest, in [0, 1]; a tie counts half.

    labels [n] ints; scores [n, C], higher for the class; weights [B, n] ints, how often each image
    is counted, or None for once. Returns [B, C], or [C] without weights; NaN where a class has no
    positives or no negatives. It is the Mann-Whitney statistic: the share of pairs (positive,
    negative) in which the positive has the higher score (Hanley & McNeil 1982).
    Replicates are computed in chunks, so the memory beyond the result does not grow with B.
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
        # how many negatives have a lower score than each positive, and how many have no higher one
        below, not_above = (
            np.searchsorted(scores[negative, c], scores[positive, c], side) for side in ("left", "right")
        )
        ranks.append((c, positive, negative, *distinct_places(len(negative), below, not_above)))
    areas = np.full((len(weights), scores.shape[1]), np.nan)
    for rows, counts in chunks(weights):
        for c, positive, negative, starts, below, not_above in ranks:
            negatives_before, positives = cumulative_counts(counts[negative], starts), counts[positive]
            # the mean of both counts gives a tie its half; doubled, all stays in whole numbers
            pairs_before = negatives_before[below] + negatives_before[not_above]
            twice = np.einsum("nb,nb->b", positives, pairs_before, dtype=np.int64)
            areas[rows, c] = ratio(twice / 2, positives.sum(0, dtype=np.float64) * negatives_before[-1])
    return areas


def placements(labels, scores):
    """The share of the negatives of its class that each image is ranked above, [n]; 0.5 where there are none.

    labels [n] ints; scores [n, C]. The area under the ROC curve of a class is the mean over its images (DeLong 1988).
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    places = np.full(len(labels), 0.5)
    for c in np.unique(labels):
        negative, own = np.sort(scores[labels != c, c]), scores[labels == c, c]
        if len(negative):
            ranks = np.searchsorted(negative, own, "left") + np.searchsorted(negative, own, "right")
            places[labels == c] = ranks / (2 * len(negative))
    return places


# ---- sums over images for many replicates, also used by operating_points.aurc

def chunks(weights):
    """Yield (rows, weights[rows].T) of weights [B, n], with as many replicates at a time as a core's cache can keep."""
    step = max(16, CHUNK // weights.shape[1])
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        yield rows, np.ascontiguousarray(weights[rows].T)


def distinct_places(n, *places):
    """(starts, *positions): the sorted distinct values, below n, of the arrays in `places` and 0, and where each
    value of each array is among them.

    Only the sums of rows up to these starts are needed: where there are few, cumulative_counts() takes little time.
    """
    starts = np.unique(np.concatenate([[0], *places]))
    starts = starts[starts < n]
    return starts, *(np.searchsorted(starts, place) for place in places)


def cumulative_counts(counts, starts):
    """Sums [len(starts) + 1, b] of the rows of counts [n, b] before each start; the last one is of all rows.

    int32 is exact and half as wide as float64: most of the time of auroc() and aurc() is spent here.
    """
    sums = np.zeros((len(starts) + 1, counts.shape[1]), dtype=np.int32)
    np.cumsum(np.add.reduceat(counts, starts, axis=0, dtype=np.int32), axis=0, out=sums[1:])
    return sums


def mean_defined(values):
    """Mean of values [..., C] over the last axis without the NaN; [...]. NaN where all are NaN."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _hits(confusion):
    """Correct predictions of each class [..., C]: the diagonal of confusion [..., C, C]."""
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def ratio(a, b):
    """a / b in float64, of arrays that broadcast; NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)[()]
