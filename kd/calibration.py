"""Calibration: do confidences say how often the classifier is right? And the one-number cure.

Bins are (a, b], equally wide, and the first includes 0 (Guo et al. 2017, 1706.04599). A bin's gap
is |mean confidence - accuracy|. All errors are functions of sums over images, so that a bootstrap
multiplies per-cluster sums by weights and never looks at an image again.
"""

from dataclasses import dataclass

import numpy as np

from kd import metrics

BINS = 15
BOUNDS = 0.05, 20.0  # of temperature; an optimum out here says that the data cannot tell


def ece(labels, probabilities, bins=BINS):
    """Expected calibration error of the top label: mean gap weighted by count, bins of equal width.

    labels [n] ints, probabilities [n, C] -> float. Guo et al. 2017 (1706.04599), eq. 3.
    """
    return _one("ece", labels, probabilities, bins)


def ece_equal_mass(labels, probabilities, bins=BINS):
    """The same over min(bins, n) bins of equally many images (Nixon et al. 2019, 1904.01685).

    Equal confidences share a bin, so ties can make the bins fewer and less equal, but none is empty.
    """
    return _one("ece_equal_mass", labels, probabilities, bins)


def ece_classwise(labels, probabilities, bins=BINS):
    """The error of p_k against label == k over all images, bins of equal width, mean over the classes.

    Kull et al. 2019 (1910.12656), eq. 3; also "static calibration error".
    """
    return _one("ece_classwise", labels, probabilities, bins)


def mce(labels, probabilities, bins=BINS):
    """Maximum calibration error: the largest gap of any bin that has images. Guo et al. 2017, eq. 5."""
    return _one("mce", labels, probabilities, bins)


def rms_ce_debiased(labels, probabilities, bins=BINS):
    """Root of the mean squared gap, less what chance alone adds to it; at least 0.

    Each bin's squared gap is lowered by acc (1 - acc) / (n_b - 1), the sampling variance of its
    accuracy; a bin of one image by nothing. Kumar et al. 2019 (1909.10155), section 4.
    """
    return _one("rms_ce_debiased", labels, probabilities, bins)


def reliability(labels, probabilities, bins=BINS):
    """What a reliability diagram shows: a row a bin of equal width, {"lo", "hi", "count", "confidence",
    "accuracy"}; means of an empty bin are NaN."""
    counts, confidence, right = sums(labels, probabilities, bins).top[0]
    edges = np.linspace(0, 1, bins + 1)
    with np.errstate(invalid="ignore"):
        return [{"lo": float(lo), "hi": float(hi), "count": int(n), "confidence": float(c), "accuracy": float(a)}
                for lo, hi, n, c, a in zip(edges, edges[1:], counts, confidence / counts, right / counts)]


@dataclass
class Sums:
    """Per-cluster sums: top [G, 3, bins] of 1, confidence, correct in bins of equal width; mass
    [G, <= bins] of confidence - correct in bins of equal mass; classes [G, C, bins] of p_k - (label == k)."""

    top: np.ndarray
    mass: np.ndarray
    classes: np.ndarray


def sums(labels, probabilities, bins=BINS, index=0, clusters=1):
    """Sums of labels [n] and probabilities [n, C] by cluster; index [n] is the cluster of each image.

    Edges of equal mass are those of all these images: replicates share them.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.broadcast_to(index, confidence.shape)

    def add(place, values, size):
        return np.bincount(index * size + place, values, clusters * size).reshape(clusters, size)

    place = _place(confidence, bins)
    top = [add(place, values, bins) for values in (None, confidence, correct)]
    ends = np.array([part[-1] for part in np.array_split(np.sort(confidence), min(bins, len(confidence)))])
    ends = np.unique(ends)
    mass = add(np.searchsorted(ends, confidence), confidence - correct, len(ends))
    classes = [add(_place(p, bins), p - (labels == k), bins) for k, p in enumerate(probabilities.T)]
    return Sums(np.stack(top, 1).astype(np.float64), mass, np.stack(classes, 1))


def errors(sums):
    """{NAME: [...]} of Sums whose arrays have any leading shape, a bootstrap's replicates say."""
    counts, confidence, right = np.moveaxis(sums.top, -2, 0)
    n = counts.sum(-1)
    some = np.maximum(counts, 1)  # an empty bin has sums of 0: its gap is 0 and its weight too
    gap, share = np.abs(confidence - right) / some, counts / n[..., None]
    accuracy = right / some
    noise = accuracy * (1 - accuracy) / np.maximum(counts - 1, 1)  # 0 for a bin of one image
    squares = (share * (gap ** 2 - noise)).sum(-1)
    return {"ece": (share * gap).sum(-1),
            "ece_equal_mass": np.abs(sums.mass).sum(-1) / n,
            "ece_classwise": np.abs(sums.classes).sum(-1).mean(-1) / n,
            "rms_ce_debiased": np.sqrt(np.maximum(squares, 0)),
            "mce": gap.max(-1)}


def _one(name, labels, probabilities, bins):
    return float(errors(sums(labels, probabilities, bins))[name][0])


def _place(values, bins):
    """The bin (a, b] of each value; 0 lies in the first, and rounding above 1 in the last."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), values) - 1, 0, bins - 1)


@dataclass
class Temperature:
    """Logits divided by `value` have the least NLL within [lo, hi]; not `ok` for `reason`."""

    value: float
    lo: float
    hi: float
    nll_before: float
    nll_after: float
    ok: bool
    reason: str


def fit_temperature(logits, labels, bounds=BOUNDS):
    """The Temperature that minimises the NLL of logits [n, C] against labels [n], both of validation.

    NLL is convex in 1 / T, so the sign of its slope brackets the optimum: bisection in log T.
    Where the optimum lies at a bound or beyond (every image right, or none better than chance), or
    all temperatures are equal, or NLL would rise, `ok` is False. Guo et al. 2017, section 4.2.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    logits = logits - logits.max(1, keepdims=True)
    true = logits[np.arange(len(logits)), labels]

    def nll(temperature):
        return float((np.log(np.exp(logits / temperature).sum(1)) - true / temperature).mean())

    def slope(temperature):  # of NLL in 1 / T: mean of E_p[z] - z_true
        return float(((metrics.softmax(logits / temperature) * logits).sum(1) - true).mean())

    lo, hi = bounds
    reason = ""
    if slope(lo) == slope(hi) == 0:
        value, reason = 1.0, "the NLL is the same at every temperature"
    elif slope(lo) <= 0:
        value, reason = lo, f"the NLL falls all the way down to T = {lo:g}"
    elif slope(hi) >= 0:
        value, reason = hi, f"the NLL falls all the way up to T = {hi:g}"
    else:
        a, b = np.log(lo), np.log(hi)
        for _ in range(60):  # the bracket shrinks from 6 to below the spacing of floats
            middle = (a + b) / 2
            a, b = (middle, b) if slope(np.exp(middle)) > 0 else (a, middle)
        value = float(np.exp((a + b) / 2))
    before, after = nll(1), nll(value)
    if not reason and after > before + 1e-12:
        reason = f"the NLL would rise from {before:.4g} to {after:.4g}"
    return Temperature(value, lo, hi, before, after, not reason, reason)
