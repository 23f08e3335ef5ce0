"""Operating points: what the classifier calls, and when it keeps silent. Chosen on validation.

Every choice here is a plain number or vector, found on one set of predictions (validation) and
applied, frozen, to another (test). Rates that have nothing to divide by are NaN.
Functions that take weights [B, n] (how often each image is counted) return B numbers for one.
"""

import numpy as np

from kd import metrics

# ---- one class against the rest

def threshold_for(sensitivity, labels, scores):
    """The highest threshold at which at least this share of the positives has score >= threshold.

    labels [n] bool, scores [n]. Higher thresholds call fewer negatives, so of all that keep the
    promise on these data it is the most specific. NaN without positives.
    """
    positive = np.sort(np.asarray(scores, dtype=np.float64)[np.asarray(labels, dtype=bool)])[::-1]
    if not len(positive):
        return float("nan")
    needed = int(np.ceil(sensitivity * len(positive) - 1e-9))  # .95 of 20 is 19, not 19.000000000000004
    return float(positive[max(needed, 1) - 1])


def binary(labels, called, weights=None):
    """{"sensitivity", "specificity", "ppv", "npv"} of labels [n] bool and called [n] bool: floats, or [B]."""
    if weights is None:
        return _once(binary, labels, called)
    labels, called = np.asarray(labels, dtype=bool), np.asarray(called, dtype=bool)
    tp, fp, fn, tn = (weights[:, mask].sum(1, dtype=np.float64) for mask in (
        labels & called, ~labels & called, labels & ~called, ~labels & ~called))
    rates = {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
    return {name: metrics.ratio(*pair) for name, pair in rates.items()}


# ---- a multiplier a class: the prediction is argmax(multipliers * probabilities)

def macro_f1_multipliers(labels, probabilities):
    """Multipliers [C] that maximise macro-F1 on labels [n], probabilities [n, C]; never below that of ones.

    Coordinate ascent, from no correction and from the prior's: an image turns to class c where the
    multiplier of c passes max_j (w_j p_j) / p_c, so one sort gives macro-F1 at every value it can
    take, and the best gap is met in its middle. A class without labels keeps its start.
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
    classes, n = len(support), len(labels)
    rows = np.arange(n)
    score = metrics.macro_f1(metrics.confusion(labels, (multipliers * probabilities).argmax(1), classes))
    improved = True
    while improved:  # ends: macro-F1 rises at each step and takes finitely many values
        improved = False
        for c in np.flatnonzero(support):
            others = multipliers * probabilities
            others[:, c] = -1
            rival = others.argmax(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                turns = np.where(probabilities[:, c] > 0, others[rows, rival] / probabilities[:, c], np.inf)
            order = np.argsort(turns, kind="stable")
            turns, rival, truth = turns[order], rival[order], labels[order]
            # Hits and calls of every class after the first 0, 1, ..., n images turned to c.
            calls, hits = np.zeros((2, n + 1, classes))
            calls[0] = np.bincount(rival, minlength=classes)
            hits[0] = np.bincount(rival[rival == truth], minlength=classes)
            calls[rows + 1, rival] = -1
            calls[rows + 1, c] = 1
            hits[rows + 1, rival] -= rival == truth
            hits[rows + 1, c] += truth == c
            calls, hits = calls.cumsum(0), hits.cumsum(0)
            scores = metrics.mean_defined(metrics.ratio(2 * hits, calls + support))
            # A multiplier lies strictly between two different turns, the first of them 0, or above all.
            below, above = np.append(0, turns), np.append(turns, np.inf)
            scores[~((below < above) & np.isfinite(below))] = -1
            k = int(scores.argmax())
            if below[k] == 0 and np.isinf(above[k]):
                continue  # all multipliers are alike
            inner = (above[k] / 2 if below[k] == 0 else 2 * below[k] if np.isinf(above[k])
                     else np.sqrt(below[k] * above[k]))
            turned = np.where(np.arange(classes) == c, inner, multipliers)
            gained = metrics.macro_f1(metrics.confusion(labels, (turned * probabilities).argmax(1), classes))
            if gained > score + 1e-12:
                multipliers, score, improved = turned, gained, True
    return multipliers, score


def prior_multipliers(support, target=None):
    """Multipliers [C] that turn probabilities for class counts `support` [C] into those for `target`
    [C] (all classes equal unless given): the ratio of the shares. A class without support keeps 1.

    Saerens, Latinne & Decaestecker 2002, eq. 2.4.
    """
    support = np.asarray(support, dtype=np.float64)
    target = np.ones(len(support)) if target is None else np.asarray(target, dtype=np.float64)
    ratio = metrics.ratio(target / target.sum(), support / support.sum())
    return np.where(np.isnan(ratio), 1.0, ratio)


# ---- abstention: the least confident images are left to a human

def risk_coverage(correct, confidence):
    """(coverage [n], risk [n]): the error rate among the i most confident images, at coverage i / n.

    correct [n] bool, confidence [n]. Images of equal confidence come in no order: each counts as
    their mean, which is the expectation over all orders.
    """
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    _, group, size = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(group.reshape(-1), ~correct) / size
    answered = np.arange(1, len(correct) + 1)
    return answered / len(correct), np.repeat(mean, size).cumsum() / answered


def aurc(correct, confidence, weights=None):
    """Area under the risk-coverage curve: trapezoids from coverage 1 / n to 1, over that width.

    correct [n] bool, confidence [n] -> float, or [B] with weights [B, n]; NaN of a single image. An
    average of risks, so 0 to 1. Geifman & El-Yaniv's plain mean of the n risks differs.
    """
    if weights is None:
        return float(aurc(correct, confidence, np.ones((1, len(correct)), dtype=np.uint8))[0])
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    # An error among ties (its own copies too) at ranks a+1 .. b adds (i - a) / (b - a) / i to the risk at
    # each rank i of these and 1 / i to all after: in harmonic numbers H, and with G(i) = i H(i),
    # 1 + H(n) - (G(b) - G(a)) / (b - a). Only errors need looking at.
    order = np.argsort(-confidence, kind="stable")
    falling = -confidence[order]
    wrong = order[~correct[order]]
    starts, first, last = metrics.steps(len(order), *(
        np.searchsorted(falling, -confidence[wrong], side) for side in ("left", "right")))
    most = np.arange(1 + int(weights.sum(1, dtype=np.int64).max(initial=0)))
    harmonic = np.append(0, (1 / most[1:]).cumsum())
    table = most * harmonic
    areas = np.empty(len(weights))
    for rows, part in metrics.chunks(weights):
        passed = metrics.running(part[order], starts)
        a, b, n, own = passed[first], passed[last], passed[-1], part[wrong]
        share = own / np.maximum(b - a, 1)  # of its ties; nothing where it is not drawn
        errors = own.sum(0, dtype=np.float64)
        risks = errors * (1 + harmonic[n]) - np.einsum("nb,nb->b", share, table[b] - table[a])
        ends = np.einsum("nb,nb->b", share, a == 0) + errors / np.maximum(n, 1)  # the risk at ranks 1 and n
        areas[rows] = metrics.ratio(risks - ends / 2, np.maximum(n - 1, 0))
    return areas


def coverage_at(risk, correct, confidence):
    """(coverage, threshold): the largest share of images answered with an error rate of at most `risk`.

    An image is answered where confidence >= threshold, so equal confidences go together. Where no
    threshold keeps the risk: (0, infinity).
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    coverage, risks = risk_coverage(correct, confidence)
    falling = np.sort(confidence)[::-1]
    ends = np.append(falling[1:] < falling[:-1], True)  # a threshold cannot part equals
    kept = np.flatnonzero(ends & (risks <= risk + 1e-12))
    return (float(coverage[kept[-1]]), float(falling[kept[-1]])) if len(kept) else (0.0, float("inf"))


def selective(correct, confidence, threshold, weights=None):
    """{"coverage", "risk"} of answering where confidence >= threshold: floats, or [B] with weights."""
    if weights is None:
        return _once(selective, correct, confidence, threshold)
    correct, answered = np.asarray(correct, dtype=bool), np.asarray(confidence) >= threshold
    kept = weights[:, answered].sum(1, dtype=np.float64)
    wrong = weights[:, answered & ~correct].sum(1, dtype=np.float64)
    return {"coverage": metrics.ratio(kept, weights.sum(1, dtype=np.float64)), "risk": metrics.ratio(wrong, kept)}


def _once(rates, *args):
    """The rates of each image counted once."""
    weights = np.ones((1, len(args[0])), dtype=np.uint8)
    return {name: float(values[0]) for name, values in rates(*args, weights).items()}
