"""Operating points: thresholds, class multipliers and abstention, chosen on the validation set.

Each choice is a number or a vector, found on one set of predictions (validation) and applied unchanged to another
(test). A rate whose denominator is 0 is NaN.
"""

from statistics import NormalDist

import numpy as np

from kd import metrics
from kd.estimate import wilson

ASSURANCE = 0.9  # that a promise on validation holds for the population

# ---- one class against the rest

def threshold_for(sensitivity, labels, scores, assurance=ASSURANCE, groups=None):
    """(threshold, promised): the highest threshold whose sensitivity is at least `promised` with the given assurance.

    sensitivity: from 0 to 1; labels [n] bool; scores [n]; groups: n names of lesions or patients, or None. A higher
    threshold gives fewer false positives. Of m independent positives, the r-th lowest score is a threshold whose
    sensitivity is below s with the probability P(Binomial(m, 1 - s) < r) (Wilks 1941); the largest r is taken for
    which that is at most 1 - assurance. n images of m lesions count as m positives, each of n / m images. Where m is
    too small for r = 1, `promised` is less than `sensitivity`: what the lowest score promises. (NaN, NaN) if there are
    no positives.
    """
    positive = np.asarray(labels, dtype=bool)
    scores = np.sort(np.asarray(scores, dtype=np.float64)[positive])
    n = len(scores)
    if not n:
        return float("nan"), float("nan")
    m = n if groups is None else len(np.unique(np.asarray(groups)[positive]))
    if 1 - assurance < sensitivity ** m:
        return float(scores[0]), float((1 - assurance) ** (1 / m))
    r = m
    if sensitivity > 0:
        k = np.arange(m + 1)
        choose = np.append(0, np.cumsum(np.log(np.arange(m, 0, -1) / k[1:])))
        at_most = np.exp(choose + k * np.log1p(-sensitivity) + (m - k) * np.log(sensitivity)).cumsum()
        r = int(np.searchsorted(at_most, 1 - assurance, "right"))
    return float(scores[(max(r, 1) - 1) * n // m]), float(sensitivity)


def least_positives(sensitivity, assurance=ASSURANCE):
    """The fewest independent positives that can promise a sensitivity with an assurance: 45 for .95 and .9.

    All m are above a threshold of that sensitivity with the probability sensitivity ** m; while this is more than
    1 - assurance, not even their lowest score promises it. Infinity for a sensitivity of 1. See threshold_for().
    """
    if sensitivity >= 1:
        return float("inf")
    m = 1 if sensitivity <= 0 else max(1, int(np.log1p(-assurance) / np.log(sensitivity)))
    return m if sensitivity ** m <= 1 - assurance else m + 1


def masks(labels, called):
    """{"sensitivity", "specificity", "ppv", "npv": (hits, among)}, masks [n] bool, of a binary decision.

    labels [n] bool: whether the image is positive; called [n] bool: whether it was called positive. ppv and npv are
    the positive and the negative predictive value.
    """
    labels, called = np.asarray(labels, dtype=bool), np.asarray(called, dtype=bool)
    return {"sensitivity": (called, labels), "specificity": (~called, ~labels),
            "ppv": (labels, called), "npv": (~labels, ~called)}


def binary(labels, called):
    """The rates of masks() on these images, floats in [0, 1]; NaN where the denominator is 0."""
    return {name: float(metrics.ratio((hits & among).sum(), among.sum()))
            for name, (hits, among) in masks(labels, called).items()}


# ---- a multiplier for each class: the prediction is argmax(multipliers * probabilities)

def macro_f1_multipliers(labels, probabilities):
    """Multipliers [C], above 0, that maximise macro-F1 on labels [n] and probabilities [n, C].

    Macro-F1 is never lower than without multipliers. The search is a coordinate ascent from two starts: all ones, and
    the correction of the prior. The prediction of an image changes to class c when the multiplier of c exceeds
    max_j (w_j p_j) / p_c over the other classes j; so one sort of these values gives macro-F1 for every multiplier of
    c, and the new one is the middle of the best gap. A class without labels keeps its start. A local optimum.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    support = np.bincount(labels, minlength=probabilities.shape[1])
    best, best_score = None, -1.0
    for start in (np.ones(len(support)), prior_multipliers(support)):
        multipliers, score = _ascend(labels, probabilities, support, start)
        if score > best_score + 1e-12:
            best, best_score = multipliers, score
    return best


def _ascend(labels, probabilities, support, multipliers):
    """(multipliers, macro-F1) after coordinate ascent from these multipliers [C]; support [C]: counts of labels."""
    classes, n = len(support), len(labels)
    rows = np.arange(n)
    score = metrics.macro_f1(metrics.confusion(labels, (multipliers * probabilities).argmax(1), classes))
    improved = True
    while improved:  # this ends, because macro-F1 rises in each step and has finitely many values
        improved = False
        for c in np.flatnonzero(support):
            others = multipliers * probabilities
            others[:, c] = -1
            rival = others.argmax(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                turns = np.where(probabilities[:, c] > 0, others[rows, rival] / probabilities[:, c], np.inf)
            order = np.argsort(turns, kind="stable")
            turns, rival, truth = turns[order], rival[order], labels[order]
            # Hits and calls of every class when the first 0, 1, ..., n images have changed to class c.
            calls, hits = np.zeros((2, n + 1, classes))
            calls[0] = np.bincount(rival, minlength=classes)
            hits[0] = np.bincount(rival[rival == truth], minlength=classes)
            calls[rows + 1, rival] = -1
            calls[rows + 1, c] = 1
            hits[rows + 1, rival] -= rival == truth
            hits[rows + 1, c] += truth == c
            calls, hits = calls.cumsum(0), hits.cumsum(0)
            scores = metrics.ratio(2 * hits, calls + support)[:, support > 0].mean(-1)
            # A multiplier must be strictly between two different turns (0 counts as one) or above the last.
            below, above = np.append(0, turns), np.append(turns, np.inf)
            scores[~((below < above) & np.isfinite(below))] = -1
            k = int(scores.argmax())
            if below[k] == 0 and np.isinf(above[k]):
                continue  # every multiplier gives the same predictions
            if below[k] == 0:
                middle = above[k] / 2
            elif np.isinf(above[k]):
                middle = 2 * below[k]
            else:
                middle = np.sqrt(below[k] * above[k])
            candidate = np.where(np.arange(classes) == c, middle, multipliers)
            predicted = (candidate * probabilities).argmax(1)
            candidate_score = metrics.macro_f1(metrics.confusion(labels, predicted, classes))
            if candidate_score > score + 1e-12:
                multipliers, score, improved = candidate, candidate_score, True
    return multipliers, score


def prior_multipliers(support, target=None):
    """Multipliers [C] that adapt probabilities from the class shares of `support` to those of `target`.

    support: counts [C] of the data that the probabilities are for; target: counts or shares [C] of the new data, or
    None for equal shares. A multiplier is the ratio of the shares; 1 for a class without support.
    Saerens, Latinne & Decaestecker 2002, eq. 2.4.
    """
    support = np.asarray(support, dtype=np.float64)
    target = np.ones(len(support)) if target is None else np.asarray(target, dtype=np.float64)
    ratio = metrics.ratio(target / target.sum(), support / support.sum())
    return np.where(np.isnan(ratio), 1.0, ratio)


# ---- abstention: the images of lowest confidence are left to a human

def risk_coverage(correct, confidence):
    """(coverage [n], risk [n]): risk[i - 1] is the error rate of the i most confident images, coverage[i - 1] is i / n.

    correct [n] bool, confidence [n]. Images of equal confidence have no order: each counts as the mean of their
    errors, which is the expectation over all orders.
    """
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    _, group, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean_error = np.bincount(group.reshape(-1), ~correct) / size
    answered = np.arange(1, len(correct) + 1)
    return answered / len(correct), np.repeat(mean_error, size).cumsum() / answered


def aurc(correct, confidence, weights=None):
    """Area under the risk-coverage curve, in [0, 1]: trapezoids from coverage 1 / n to 1, divided by that width.

    correct [n] bool, confidence [n] -> float, or [B] with weights [B, n]; NaN for a single image. Geifman & El-Yaniv's
    AURC, the plain mean of the n risks, differs slightly.
    """
    if weights is None:
        return float(aurc(correct, confidence, np.ones((1, len(correct)), dtype=np.uint8))[0])
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    # Sum the risks of all ranks error by error. If an error is tied with others (its own copies, too) at ranks
    # a + 1 to b, it adds (i - a) / (b - a) / i to the risk of each of these ranks i and 1 / i to that of each later
    # rank: with harmonic numbers H and G(i) = i H(i) together 1 + H(n) - (G(b) - G(a)) / (b - a).
    order = np.argsort(-confidence, kind="stable")
    ascending = -confidence[order]
    wrong = order[~correct[order]]
    bounds = (np.searchsorted(ascending, -confidence[wrong], side) for side in ("left", "right"))
    starts, first, last = metrics.distinct_places(len(order), *bounds)
    ranks = np.arange(1 + int(weights.sum(1, dtype=np.int64).max(initial=0)))
    harmonic = np.append(0, (1 / ranks[1:]).cumsum())
    table = ranks * harmonic  # G
    areas = np.empty(len(weights))
    for rows, counts in metrics.chunks(weights):
        images_before = metrics.cumulative_counts(counts[order], starts)
        a, b, n, copies = images_before[first], images_before[last], images_before[-1], counts[wrong]
        share = copies / np.maximum(b - a, 1)  # of its ties; 0 in a replicate without this image
        errors = copies.sum(0, dtype=np.float64)
        risks = errors * (1 + harmonic[n]) - np.einsum("nb,nb->b", share, table[b] - table[a])
        ends = np.einsum("nb,nb->b", share, a == 0) + errors / np.maximum(n, 1)  # the risks at ranks 1 and n
        areas[rows] = metrics.ratio(risks - ends / 2, np.maximum(n - 1, 0))
    return areas


def coverage_at(risk, correct, confidence, assurance=ASSURANCE):
    """(coverage, threshold): the largest share of images that can be answered with an error rate of at most `risk`.

    risk: from 0 to 1; correct [n] bool; confidence [n]. An image is answered if confidence >= threshold, so images of
    equal confidence are answered together. The upper bound of the error rate is meant, which holds with the given
    assurance (Wilson's, one-sided). (0, infinity) if no threshold has so low a risk.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    coverage, risks = risk_coverage(correct, confidence)
    descending = np.sort(confidence)[::-1]
    is_last_of_ties = np.append(descending[1:] < descending[:-1], True)  # no threshold separates equal confidences
    z = NormalDist().inv_cdf(assurance)
    bounds = np.array([wilson(share, size, z)[1] for size, share in enumerate(risks, 1)])
    possible = np.flatnonzero(is_last_of_ties & (bounds <= risk + 1e-12))
    if not len(possible):
        return 0.0, float("inf")
    return float(coverage[possible[-1]]), float(descending[possible[-1]])


def selective_masks(correct, confidence, threshold):
    """{"coverage", "risk": (hits, among)}, masks [n] bool, of answering if confidence >= threshold.

    correct [n] bool, confidence [n]. coverage: the share of images that are answered; risk: their error rate.
    """
    answered = np.asarray(confidence) >= threshold
    return {"coverage": (answered, np.ones(len(answered), bool)), "risk": (~np.asarray(correct, dtype=bool), answered)}


def selective(correct, confidence, threshold):
    """The rates of selective_masks() on these images, floats in [0, 1]; the risk is NaN if none is answered."""
    return {name: float(metrics.ratio((hits & among).sum(), among.sum()))
            for name, (hits, among) in selective_masks(correct, confidence, threshold).items()}
