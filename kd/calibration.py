"""Calibration errors, reliability diagrams and temperature scaling.

A classifier is calibrated if, of the images with confidence c, it classifies the share c correctly. The confidence is
the highest probability of an image. Bins are (a, b], of equal width, and the first one includes 0 (Guo et al. 2017,
1706.04599). The gap of a bin is |mean confidence - accuracy|. All errors are functions of sums over images, so the
bootstrap only multiplies the sums of each cluster by weights.
"""

from dataclasses import dataclass

import numpy as np

from kd import metrics

BINS = 15  # as in Guo et al. 2017, and so comparable with most publications
BOUNDS = 0.05, 20.0  # of the temperature; an optimum outside says that the data do not determine it


def ece(labels, probabilities, bins=BINS):
    """Expected calibration error: mean gap over bins of equal width, weighted by their number of images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Guo et al. 2017 (1706.04599), eq. 3.
    """
    return _error("ece", labels, probabilities, bins)


def ece_equal_mass(labels, probabilities, bins=BINS):
    """Expected calibration error over min(bins, n) bins of equally many images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Images of equal confidence are in one bin, so with ties there can
    be fewer bins of less equal size; no bin is empty. Nixon et al. 2019 (1904.01685).
    """
    return _error("ece_equal_mass", labels, probabilities, bins)


def ece_classwise(labels, probabilities, bins=BINS):
    """Expected calibration error of the probability of each class, averaged over classes; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. For class k the gap of a bin is |mean of p_k - share of labels k|,
    over all images, bins of equal width. Kull et al. 2019 (1910.12656), eq. 3; also "static calibration error".
    """
    return _error("ece_classwise", labels, probabilities, bins)


def mce(labels, probabilities, bins=BINS):
    """Maximum calibration error: the largest gap of all bins of equal width that have images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Guo et al. 2017 (1706.04599), eq. 5.
    """
    return _error("mce", labels, probabilities, bins)


def rms_ce_debiased(labels, probabilities, bins=BINS):
    """Root of the mean squared gap, without the part that chance alone adds to it; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. From the squared gap of each bin of n_b images
    acc (1 - acc) / (n_b - 1) is subtracted, the sampling variance of its accuracy; nothing from a bin of one image.
    Kumar et al. 2019 (1909.10155), section 4.
    """
    return _error("rms_ce_debiased", labels, probabilities, bins)


def reliability(labels, probabilities, bins=BINS):
    """The data of a reliability diagram: for each bin of equal width {"lo", "hi", "count", "confidence", "accuracy"}.

    labels [n] ints, probabilities [n, C]. confidence and accuracy are means over the bin; NaN if it is empty.
    """
    counts, confidence, correct = sums(labels, probabilities, bins).top[0]
    edges = np.linspace(0, 1, bins + 1)
    with np.errstate(invalid="ignore"):
        return [{"lo": float(lo), "hi": float(hi), "count": int(n), "confidence": float(c), "accuracy": float(a)}
                for lo, hi, n, c, a in zip(edges, edges[1:], counts, confidence / counts, correct / counts)]


@dataclass
class Sums:
    """Sums over the images of each of G clusters, or of each replicate, in bins.

    top [G, 3, bins]: of 1, confidence and correct, in bins of equal width. mass [G, <= bins]: of confidence - correct,
    in bins of equal mass. classes [G, C, bins]: of p_k - (label == k), in bins of p_k of equal width.
    """

    top: np.ndarray
    mass: np.ndarray
    classes: np.ndarray


def sums(labels, probabilities, bins=BINS, index=0, clusters=1):
    """The Sums of labels [n] and probabilities [n, C] for each cluster; index [n] is the cluster of each image.

    The edges of the bins of equal mass come from all these images; replicates have the same edges.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.broadcast_to(index, confidence.shape)

    def add(place, values, size):
        return np.bincount(index * size + place, values, clusters * size).reshape(clusters, size)

    place = _bin(confidence, bins)
    top = [add(place, values, bins) for values in (None, confidence, correct)]
    ends = np.array([part[-1] for part in np.array_split(np.sort(confidence), min(bins, len(confidence)))])
    ends = np.unique(ends)
    mass = add(np.searchsorted(ends, confidence), confidence - correct, len(ends))
    classes = [add(_bin(p, bins), p - (labels == k), bins) for k, p in enumerate(probabilities.T)]
    return Sums(np.stack(top, 1).astype(np.float64), mass, np.stack(classes, 1))


def errors(sums):
    """{name of the calibration error: [...]} of Sums; [...] is their leading shape, for example [B] replicates."""
    counts, confidence, correct = np.moveaxis(sums.top, -2, 0)
    n = counts.sum(-1)
    divisor = np.maximum(counts, 1)  # the sums of an empty bin are 0, and so are its gap and its weight
    gap, share = np.abs(confidence - correct) / divisor, counts / n[..., None]
    accuracy = correct / divisor
    noise = accuracy * (1 - accuracy) / np.maximum(counts - 1, 1)  # 0 for a bin of one image
    squares = (share * (gap ** 2 - noise)).sum(-1)
    return {"ece": (share * gap).sum(-1),
            "ece_equal_mass": np.abs(sums.mass).sum(-1) / n,
            "ece_classwise": np.abs(sums.classes).sum(-1).mean(-1) / n,
            "rms_ce_debiased": np.sqrt(np.maximum(squares, 0)),
            "mce": gap.max(-1)}


def _error(name, labels, probabilities, bins):
    return float(errors(sums(labels, probabilities, bins))[name][0])


def _bin(values, bins):
    """The number of the bin (a, b] of each value; the first includes 0, the last what rounding lifts above 1."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), values) - 1, 0, bins - 1)


@dataclass
class Temperature:
    """The result of temperature scaling. If it is not `ok`, `reason` says why, and it should not be used."""

    value: float       # T: logits / T have the least NLL of all T in [lo, hi]
    lo: float
    hi: float
    nll_before: float  # at T = 1
    nll_after: float   # at T = value
    ok: bool
    reason: str


def fit_temperature(logits, labels, bounds=BOUNDS):
    """Temperature scaling: the T that minimises the NLL of logits [n, C] / T with labels [n], as a Temperature.

    Both are of the validation split. NLL is convex in 1 / T, so the sign of its slope brackets the optimum: the search
    is a bisection in log T between `bounds`. `ok` is False if the optimum is at a bound or beyond (every image is
    correct, or none is better than chance), if all temperatures are equal, or if the NLL would rise.
    Guo et al. 2017 (1706.04599), section 4.2.
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
