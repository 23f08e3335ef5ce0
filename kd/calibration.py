"""Calibration errors, reliability diagrams and temperature scaling.

A classifier is calibrated if, of the images with confidence c, it classifies the share c correctly. The confidence is
the highest probability of an image. Bins are (a, b], of equal width, and the first one includes 0 (Guo et al. 2017,
1706.04599). The gap of a bin is |mean confidence - accuracy|.

The binned errors (ECE, MCE) are means of absolute gaps, which chance increases: those of a perfectly calibrated
classifier are not 0, and no interval around them holds the truth. They are for comparison with publications. The error
with an interval, a paired difference and a p-value is the debiased one, DebiasedError; whether a binned error shows any
miscalibration, consistency() says.
"""

from dataclasses import dataclass, replace

import numpy as np

from kd import metrics
from kd.estimate import NAN, Estimate, t_quantile

BINS = 15  # as in Guo et al. 2017, and so comparable with most publications
LEAST = 10  # clusters in a bin of the debiased error
ROUNDING = 1e-13  # of sums of some hundred terms in float64
BIASED = "a binned error is biased upwards; rms_ce_debiased has an interval"  # why the others have none
BOUNDS = 0.05, 20.0  # of the temperature; an optimum outside says that the data do not determine it
RIDGES = (np.inf, 100, 30, 10, 3, 1, 0.3)  # penalties of class offsets that are tried, see fit_offsets()


def ece(labels, probabilities, bins=BINS):
    """Expected calibration error: mean gap over bins of equal width, weighted by their number of images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Guo et al. 2017 (1706.04599), eq. 3.
    """
    return errors(labels, probabilities, bins)["ece"]


def ece_equal_mass(labels, probabilities, bins=BINS):
    """Expected calibration error over min(bins, n) bins of equally many images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Images of equal confidence are in one bin, so with ties there can
    be fewer bins of less equal size; no bin is empty. Nixon et al. 2019 (1904.01685).
    """
    return errors(labels, probabilities, bins)["ece_equal_mass"]


def ece_classwise(labels, probabilities, bins=BINS):
    """Expected calibration error of the probability of each class, averaged over classes; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. For class k the gap of a bin is |mean of p_k - share of labels k|,
    over all images, bins of equal width. Kull et al. 2019 (1910.12656), eq. 3; also "static calibration error".
    """
    return errors(labels, probabilities, bins)["ece_classwise"]


def mce(labels, probabilities, bins=BINS):
    """Maximum calibration error: the largest gap of all bins of equal width that have images; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. Guo et al. 2017 (1706.04599), eq. 5.
    """
    return errors(labels, probabilities, bins)["mce"]


def rms_ce_debiased(labels, probabilities, bins=BINS, groups=None):
    """Root of the mean squared gap over bins of equal mass, less what chance adds; 0 to 1.

    labels [n] ints, probabilities [n, C] -> float. groups: n names; by default each image is independent of the others.
    See DebiasedError.
    """
    index = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    return debiased(labels, probabilities, index.reshape(-1), bins).value


def reliability(labels, probabilities, bins=BINS):
    """The data of a reliability diagram: for each bin of equal width {"lo", "hi", "count", "confidence", "accuracy"}.

    labels [n] ints, probabilities [n, C]. confidence and accuracy are means over the bin; NaN if it is empty.
    """
    counts, confidence, correct = _top(labels, probabilities, bins)
    edges = np.linspace(0, 1, bins + 1)
    with np.errstate(invalid="ignore"):
        return [{"lo": float(lo), "hi": float(hi), "count": int(n), "confidence": float(c), "accuracy": float(a)}
                for lo, hi, n, c, a in zip(edges, edges[1:], counts, confidence / counts, correct / counts)]


def _top(labels, probabilities, bins):
    """(counts, sums of confidence, numbers of correct answers), each [bins], in bins of equal width."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    place = _bin(confidence, bins)
    return [np.bincount(place, values, bins) for values in (None, confidence, correct)]


def _mass_bins(confidence, bins):
    """(place [n] of each image, number of bins) in min(bins, n) bins of equal mass; equal confidences are together."""
    parts = np.array_split(np.sort(confidence), min(bins, len(confidence)))
    ends = np.unique([part[-1] for part in parts])
    return np.searchsorted(ends, confidence), len(ends)


def errors(labels, probabilities, bins=BINS):
    """{name of the binned calibration error: float} of labels [n] and probabilities [n, C]."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    counts, confidence, correct = _top(labels, probabilities, bins)
    gap, n = np.abs(confidence - correct), len(labels)
    top = probabilities.max(1)
    place, size = _mass_bins(top, bins)
    mass = np.bincount(place, top - (probabilities.argmax(1) == labels), size)
    classes = [np.bincount(_bin(p, bins), p - (labels == k), bins) for k, p in enumerate(probabilities.T)]
    return {"ece": float(gap.sum() / n),
            "ece_equal_mass": float(np.abs(mass).sum() / n),
            "ece_classwise": float(np.mean([np.abs(sums).sum() for sums in classes]) / n),
            "mce": float((gap / np.maximum(counts, 1)).max())}


def estimates(labels, probabilities, index, bins=BINS, withheld=""):
    """{NAME: Estimate or DebiasedError} of all calibration errors; the binned ones have no interval.

    index [n]: the cluster of each image. withheld: why the debiased one has no interval, or "".
    """
    binned = {name: Estimate(value, None, value, "share", withheld=BIASED) for name, value in
              errors(labels, probabilities, bins).items()}
    return {**binned, "rms_ce_debiased": replace(debiased(labels, probabilities, index, bins), withheld=withheld)}


@dataclass
class DebiasedError:
    """Root of the mean squared gap over bins, without the part that chance adds; of one model or the mean of several.

    The squared gap of a bin is (sum of residuals)^2, residual = confidence - correct. Its expectation exceeds the truth
    by the variance of the sum, which is the sum over clusters of their squares if clusters are independent; without
    these the estimate is unbiased, and may be below 0 (Kumar et al. 2019, 1909.10155, for independent images). The
    interval is valid at 0, too: its bounds are the errors for which the estimate is within the normal quantile of its
    standard error there (Sun et al. 2024, 2408.08998, have the two regimes). It has the role of kd.estimate.Estimate.
    """

    residuals: np.ndarray  # [G, K] sums over the images of each cluster in each bin, divided by sqrt(n_b n)
    centered: np.ndarray   # the same without the mean residual of the bin
    factors: np.ndarray    # [K] weight of each bin: above 0 for the model, below for one that is subtracted; 0 for a
                           # bin of one cluster, since what chance adds is known from differences between clusters
    difference: float = NAN  # of the values, where one is subtracted
    spreads: tuple = ()      # as of Estimate, of the squared error
    withheld: str = ""

    @property
    def square(self):
        """Estimate of the mean squared gap; below 0 by chance if that is nearly 0."""
        return float(self.factors @ (self.residuals.sum(0) ** 2 - (self.residuals ** 2).sum(0)))

    @property
    def is_defined(self):
        """Whether there are two clusters."""
        return bool(self.factors.any())

    @property
    def value(self):
        """The root of `square`, 0 where that is below 0; of a difference, the difference of the two values."""
        if not self.is_defined:
            return NAN
        return self.difference if np.isfinite(self.difference) else float(np.sqrt(max(self.square, 0)))

    def _weighted_covariance(self):
        """[K, K] covariance of the sums over clusters, times the factor of each bin."""
        count = len(self.centered)
        return self.centered.T @ self.centered * (count / max(count - 1, 1)) * self.factors

    def _variances(self):
        """(of `square` if all gaps are 0, what each unit of the truth adds to it)."""
        weighted, sums = self._weighted_covariance(), self.residuals.sum(0)
        total = (self.factors * sums) @ sums
        slope = 4 * float((self.factors * sums) @ (weighted @ sums)) / total if total > 0 else 0.0
        return 2 * float((weighted * weighted.T).sum()), max(slope, 0.0)

    def metric(self, level=0.95):
        """METRIC: the value and its interval. A difference has none, for it is not one of squares."""
        lo = hi = NAN
        if self.is_defined and not self.withheld and not np.isfinite(self.difference):
            at_zero, slope = self._variances()
            z = t_quantile((1 + level) / 2, np.inf)
            of_spread = sum(variance * t_quantile((1 + level) / 2, freedom) ** 2 for variance, freedom in self.spreads)
            # (square - truth)^2 <= z^2 (at_zero + slope truth) + of_spread
            middle = self.square + z * z * slope / 2
            root = np.sqrt(max(middle ** 2 - self.square ** 2 + z * z * at_zero + of_spread, 0))
            lo, hi = (float(np.sqrt(max(bound, 0))) for bound in (middle - root, middle + root))
            lo, hi = min(lo, self.value), max(hi, self.value)
        result = {"value": self.value, "lo": lo, "hi": hi}
        return {**result, "withheld": self.withheld} if self.withheld else result

    def p(self):
        """Two-sided p-value of the hypothesis that the squared errors of two models are equal."""
        if self.withheld or not self.is_defined:
            return NAN
        weighted, sums = self._weighted_covariance(), self.residuals.sum(0)
        at_zero = 2 * float((weighted * weighted.T).sum())
        # the observed sums contain their own noise once more
        variance = max(4 * float((self.factors * sums) @ (weighted @ sums)) - at_zero, at_zero)
        # of two models that are equal or nearly so, the terms cancel, and what is left of them is rounding
        terms = np.abs(self.factors * sums) @ np.abs(weighted) @ np.abs(sums) + np.abs(weighted * weighted.T).sum()
        variance = max(variance, ROUNDING * float(terms))
        two = self.square + np.sqrt(variance / 2) * np.array([-1, 1])  # replicates of this variance
        return Estimate(self.square, two, self.square, "difference", spreads=self.spreads).p() if self.square else 1.0

    def minus(self, reference):
        """The DebiasedError whose p() compares this model with `reference`, on the same images."""
        return DebiasedError(np.concatenate([self.residuals, reference.residuals], 1),
                             np.concatenate([self.centered, reference.centered], 1),
                             np.concatenate([self.factors, -reference.factors]), self.value - reference.value,
                             self.spreads + reference.spreads, self.withheld or reference.withheld)

    def over(self, reference):
        """The ratio of the two values, an Estimate without interval."""
        ratio = self.value / reference.value if reference.value > 0 else NAN
        return Estimate(ratio, None, ratio, "loss")

    @classmethod
    def mean(cls, errors, trainings=False):
        """The DebiasedError of the mean of the squared errors; trainings: as of Estimate.mean()."""
        squares, k = [error.square for error in errors], len(errors)
        spreads = ((float(np.var(squares, ddof=1)) / k, k - 1),) if trainings and k > 1 else ()
        differences = [error.difference for error in errors]
        return cls(np.concatenate([error.residuals for error in errors], 1),
                   np.concatenate([error.centered for error in errors], 1),
                   np.concatenate([error.factors for error in errors]) / k, float(np.mean(differences)), spreads,
                   next((error.withheld for error in errors if error.withheld), ""))


def debiased(labels, probabilities, index, bins=BINS):
    """The DebiasedError of labels [n] and probabilities [n, C]; index [n]: the cluster of each image.

    Bins are of equal mass, and at most as many as leave LEAST clusters to each: in bins of equal width, of which some
    are nearly empty, fewer intervals hold the truth.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence = probabilities.max(1)
    count, n = int(index.max()) + 1, len(confidence)
    place, size = _mass_bins(confidence, max(1, min(bins, count // LEAST)))
    cell, residual = index * size + place, confidence - (probabilities.argmax(1) == labels)
    sums, images = (np.bincount(cell, values, count * size).reshape(count, size) for values in (residual, None))
    in_bin = images.sum(0)
    scale = np.sqrt(in_bin * float(n))
    clusters = (images > 0).sum(0)
    factors = np.where(clusters > 1, clusters / np.maximum(clusters - 1, 1), 0.0)
    return DebiasedError(sums / scale, (sums - images * (sums.sum(0) / in_bin)) / scale, factors)


def consistency(labels, probabilities, index, bins=BINS, draws=1000, seed=0):
    """Whether the ECE shows miscalibration: {"ece", "expected", "p"} (consistency resampling, Broecker & Smith 2007).

    expected: the mean ECE of a calibrated classifier with the same confidences; p: how often its ECE is as large as the
    observed one. labels [n], probabilities [n, C]; index [n]: the cluster of each image. Answers are drawn correct with
    the probability that is their confidence; images of a cluster share the random number, which errs towards a large p.
    """
    confidence = np.asarray(probabilities, dtype=np.float64).max(1)
    observed, place = ece(labels, probabilities, bins), _bin(confidence, bins)
    rng, drawn = np.random.default_rng(seed), np.empty(draws)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(place[order]) > 0))
    confidence, index = confidence[order], index[order]
    count = int(index.max()) + 1
    for rows in np.array_split(np.arange(draws), max(1, draws * len(confidence) // 2 ** 22)):
        correct = rng.random((len(rows), count))[:, index] < confidence
        drawn[rows] = np.abs(np.add.reduceat(confidence - correct, starts, axis=1)).sum(1) / len(confidence)
    return {"ece": observed, "expected": float(drawn.mean()), "p": float((1 + (drawn >= observed).sum()) / (1 + draws))}


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
    has_one_class = len(labels) > 0 and (labels == labels[0]).all()
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
    if has_one_class:
        reason = "all validation images are of one class"
    before, after = nll(1), nll(value)
    if not reason and after > before + 1e-12:
        reason = f"the NLL would rise from {before:.4g} to {after:.4g}"
    return Temperature(value, lo, hi, before, after, not reason, reason)


def fit_offsets(logits, labels, groups, folds=5):
    """(offsets [C], ridge): what to add to the logits of a network where classes are more or less frequent than it
    takes them to be.

    logits [n, C], labels [n]: of labelled images of that place; groups: n names of patients or lesions. An offset is
    T b_k of the model softmax(z / T + b), whose T and b have the largest log-likelihood less ridge / 2 * sum of b_k^2:
    logistic recalibration, slope and intercepts (Cox 1958, Biometrika 45; bias-corrected temperature scaling,
    Alexandari et al. 2020, 1901.06852). b_k is the logarithm of a ratio of class frequencies, of which the penalty
    says that it is normally distributed with the variance 1 / ridge; without it, a class that has no image would be
    impossible. The ridge of RIDGES is taken under which held-out patients are most probable (`folds` parts of them); at
    infinity all offsets are 0. Which prior the network was trained with need not be known: b is relative to what it
    answers. The offsets add up to 0.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    logits = logits - logits.mean(1, keepdims=True)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(folds, len(names))
    part = (np.random.default_rng(0).permutation(len(names)) % folds)[index.reshape(-1)]
    losses = np.zeros(len(RIDGES))
    for k in range(folds if folds > 1 else 0):
        fitted, held_out = part != k, part == k
        slope = None
        for place, ridge in enumerate(RIDGES):
            slope, offsets = _slope_and_offsets(logits[fitted], labels[fitted], ridge, slope)
            losses[place] += _log_losses(slope * logits[held_out] + offsets, labels[held_out]).sum()
    ridge = RIDGES[int(losses.argmin())]
    slope, offsets = _slope_and_offsets(logits, labels, ridge)
    return offsets / slope, ridge


def _log_losses(scores, labels):
    """[n] -log softmax(scores [n, C]) of the labels [n]."""
    scores = scores - scores.max(1, keepdims=True)
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]


def _slope_and_offsets(logits, labels, ridge, slope=None):
    """(1 / T, b [C]) of fit_offsets() for one ridge, by Newton's method: the penalised loss is convex in both.

    slope: where the search begins. T stays within BOUNDS.
    """
    classes, truth = logits.shape[1], np.eye(logits.shape[1])[labels]
    at = np.append(slope or 1 / fit_temperature(logits, labels).value, np.zeros(classes))
    if np.isinf(ridge):
        return float(at[0]), at[1:]

    def loss(at):
        return _log_losses(at[0] * logits + at[1:], labels).sum() + ridge / 2 * at[1:] @ at[1:]

    current = loss(at)
    for _ in range(100):
        p = metrics.softmax(at[0] * logits + at[1:])
        gradient = np.append(((p - truth) * logits).sum(), (p - truth).sum(0) + ridge * at[1:])
        spread = p * (logits - (p * logits).sum(1, keepdims=True))
        hessian = np.empty((classes + 1, classes + 1))
        hessian[0, 0] = (spread * logits).sum() + 1e-9
        hessian[0, 1:] = hessian[1:, 0] = spread.sum(0)
        hessian[1:, 1:] = np.diag(p.sum(0) + ridge) - p.T @ p
        step = np.linalg.solve(hessian, gradient)
        size, reached = 1.0, np.inf
        while size > 1e-6:
            candidate = at - size * step
            reached = loss(candidate) if 1 / BOUNDS[1] <= candidate[0] <= 1 / BOUNDS[0] else np.inf
            if reached <= current:
                break
            size /= 2
        if not reached < current - 1e-10 * abs(current):
            break
        at, current = candidate, reached
    return float(at[0]), at[1:] - at[1:].mean()
