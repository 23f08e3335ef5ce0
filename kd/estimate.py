"""A figure with what is needed for its interval, for differences from other models, and for means over trainings.

The replicates of a bootstrap say how much a figure varies from one test set to the next. Their quantiles are not used
as an interval, because with few images of a class they are too narrow and lie beside the truth. An interval has the
shape that suits the scale of the figure and the variance of the replicates, and is corrected for their bias.
benchmarks/coverage.py measures how many intervals hold the truth; docs/intervals.md has the table.

Shapes: B replicates. METRIC is the dict {"value", "lo", "hi"} of Estimate.metric(): lo and hi are NaN where there is
no interval, and "withheld" says why.
"""

import functools
import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
NAN = float("nan")
NORMAL = 1000  # degrees of freedom from which Student's t is taken for normal: the quantiles differ by 0.1%
NO_INTERVAL = "two seeds: no interval"  # why there is none where VOID or VOID_RATIO is exceeded
VOID = 2 / 3     # an interval of two trainings that is wider is not given: a share has values from 0 to 1
VOID_RATIO = 10  # the same for a loss or a ratio: upper over lower bound
FORMS = {"share": ".3f", "loss": ".3f", "ratio": ".0%", "difference": "+.3f", "difference of shares": "+.3f"}


@dataclass
class Estimate:
    """A figure of one model, or the mean of several, and its replicates on one test set.

    Models that are tested on the same images have the same draws of images, so that their replicates are paired.
    """

    value: float
    drawn: np.ndarray        # [B] replicates, or None: no interval
    center: float            # what they scatter around: `value`, or the figure of the smoothed sample
    scale: str               # a key of FORMS: "share" is from 0 to 1, "loss" and "ratio" from 0 on
    freedom: float = np.inf  # degrees of freedom of the variance of the replicates
    spreads: tuple = ()      # (variance of the figure over trainings, degrees of freedom), for each model
    withheld: str = ""       # why there is no interval
    trainings: tuple = ()    # the figure of each training, where it is a mean over several

    def metric(self, level=LEVEL):
        """METRIC: the value and its interval. The value lies inside.

        Two trainings can differ so much that the interval of their mean excludes nearly nothing. Then it is withheld,
        and `withheld` gives the figure of each. docs/intervals.md says what this does to the intervals that are given.
        """
        lo, hi = self._interval(level) if self._has_interval() else (NAN, NAN)
        withheld = self.withheld
        if len(self.trainings) == 2 and self._excludes_nothing(lo, hi):
            values = ", ".join(format(value, FORMS[self.scale]) for value in self.trainings)
            lo, hi, withheld = NAN, NAN, f"{NO_INTERVAL}; {values}"
        result = {"value": float(self.value), "lo": lo, "hi": hi}
        return {**result, "withheld": withheld} if withheld else result

    def _excludes_nothing(self, lo, hi):
        if self.scale in ("loss", "ratio"):
            return hi > VOID_RATIO * lo
        return self.scale != "difference" and hi - lo > VOID  # a difference of losses has no range

    def _has_interval(self):
        return not self.withheld and self.drawn is not None and bool(np.isfinite(self.value))

    def _interval(self, level):
        """(lo, hi): of a share that of Wilson (1927), of a loss symmetric in its logarithm, of a difference symmetric.

        The effective sample size of a share is c (1 - c) / variance, c being the centre of the replicates (Kish 1965).
        """
        variance, center = self._variance(), self.value - self._bias()
        if variance == 0:
            return float(self.value), float(self.value)
        t = self._quantile(level)
        if self.scale == "share":
            size = max(self.center * (1 - self.center) / variance, 1.0)
            lo, hi = wilson(min(max(center, 0.0), 1.0), size, t)
        elif self.scale in ("loss", "ratio"):
            center = max(center, self.value / 2)
            factor = np.exp(min(t * np.sqrt(variance) / center, 700)) if center > 0 else 1.0
            lo, hi = center / factor, center * factor
        else:
            lo, hi = center - t * np.sqrt(variance), center + t * np.sqrt(variance)
            if self.scale == "difference of shares":
                lo, hi = max(lo, -1.0), min(hi, 1.0)
        return float(min(lo, self.value)), float(max(hi, self.value))

    def p(self):
        """Two-sided p-value of the hypothesis that a difference is 0, by Student's t; NaN where it has no interval.

        The interval of level 1 - p just contains 0. The tail is a formula, so p has no lower limit.
        """
        if not self._has_interval():
            return NAN
        variance = self._variance()
        if variance == 0:
            return 1.0 if self.value == 0 else 0.0
        errors = abs(self.value - self._bias()) / np.sqrt(variance)
        if not self.spreads:
            return t_tails(errors, self.freedom)
        return _smallest_p(lambda level: self._quantile(level) < errors)

    @functools.cached_property
    def _moments(self):
        return float(np.mean(self.drawn)), float(np.var(self.drawn, ddof=1))

    def _bias(self):
        return self._moments[0] - self.center

    def _variance(self):
        """Over test sets, and over trainings where there are several."""
        return self._moments[1] + sum(variance for variance, _ in self.spreads)

    def _quantile(self, level):
        """Half the width of the symmetric interval, in standard errors.

        Each variance has degrees of freedom of its own; the squares of their half widths add up (Howe 1974). One number
        of degrees of freedom for their sum would be too large where two trainings happen to be alike.
        """
        parts = [(self._moments[1], self.freedom), *self.spreads]
        squares = [variance * t_quantile((1 + level) / 2, freedom) ** 2 for variance, freedom in parts if variance]
        return math.sqrt(sum(squares) / self._variance())

    def minus(self, reference):
        """The Estimate of this figure less that of `reference`, on the same images."""
        are_shares = {self.scale, reference.scale} == {"share"}
        return replace(self, value=self.value - reference.value, drawn=_paired(np.subtract, self, reference),
                       center=self.center - reference.center,
                       scale="difference of shares" if are_shares else "difference",
                       freedom=min(self.freedom, reference.freedom), spreads=self.spreads + reference.spreads,
                       withheld=self.withheld or reference.withheld,
                       trainings=_of_trainings(np.subtract, self, reference))

    def gap(self, other, level=LEVEL):
        """METRIC of this figure less that of `other`, which is of other images.

        Each bound is as far away as the two bounds that make it, squared and added (Newcombe 1998, method 10; Zou &
        Donner 2008). So the gap of a subgroup without errors, whose own interval knows what its images do not show, is
        as wide as it has to be, and not symmetric.
        """
        (lo, hi), (other_lo, other_hi) = ((metric["lo"], metric["hi"]) for metric in (self.metric(level),
                                                                                    other.metric(level)))
        value = self.value - other.value
        result = {"value": float(value), "lo": value - math.hypot(self.value - lo, other_hi - other.value),
                  "hi": value + math.hypot(hi - self.value, other.value - other_lo)}
        withheld = self.withheld or other.withheld
        return {**result, "withheld": withheld} if withheld else result

    def gap_p(self, other):
        """Two-sided p-value of a gap of 0: that of the interval that just contains 0. NaN if none."""
        if not (self._has_interval() and other._has_interval()):
            return NAN

        def excludes_zero(level):
            metric = self.gap(other, level)
            return not metric["lo"] <= 0 <= metric["hi"]

        return _smallest_p(excludes_zero)

    def complement(self):
        """The Estimate of 1 - this share."""
        return replace(self, value=1 - self.value, center=1 - self.center,
                       drawn=None if self.drawn is None else 1 - self.drawn)

    def over(self, reference):
        """The Estimate of this figure divided by that of `reference`, above 0, on the same images. NaN if that is 0."""
        if not min(reference.value, reference.center) > 0:
            return replace(self, value=NAN, drawn=None, scale="ratio", trainings=())
        value, center = self.value / reference.value, self.center / reference.center
        # Linear around the centre: a replicate whose divisor is nearly 0 would have a variance without limit.
        drawn = _paired(lambda a, b: center + (a - center * b) / reference.center, self, reference)
        spreads = [(variance / reference.value ** 2, freedom) for variance, freedom in self.spreads]
        spreads += [(variance * (value / reference.value) ** 2, freedom) for variance, freedom in reference.spreads]
        return replace(self, value=value, drawn=drawn, center=center, scale="ratio", spreads=tuple(spreads),
                       freedom=min(self.freedom, reference.freedom), withheld=self.withheld or reference.withheld,
                       trainings=_of_trainings(np.divide, self, reference))

    @classmethod
    def mean(cls, estimates, trainings=False):
        """The mean of Estimates on the same images, for example over corruptions.

        trainings: they are k trainings of one model (or differences of k pairs); then the interval covers other
        trainings, too: the variance of their mean is sd^2 / k, with k - 1 degrees of freedom.
        """
        values = [estimate.value for estimate in estimates]
        spreads = ()
        if trainings and len(values) > 1:
            spreads = ((float(np.var(values, ddof=1)) / len(values), len(values) - 1),)
        has_replicates = all(estimate.drawn is not None for estimate in estimates)
        return replace(estimates[0], value=float(np.mean(values)), spreads=spreads,
                       trainings=tuple(values) if spreads else (),
                       drawn=np.mean([estimate.drawn for estimate in estimates], 0) if has_replicates else None,
                       center=float(np.mean([estimate.center for estimate in estimates])),
                       freedom=min(estimate.freedom for estimate in estimates),
                       withheld=next((estimate.withheld for estimate in estimates if estimate.withheld), ""))

    @classmethod
    def pooled(cls, estimates, sizes):
        """The mean of Estimates of K folds, whose test images are others, weighted by their `sizes`.

        Each fold is a training of its own, so that the variance of their figures has K - 1 degrees of freedom. It is
        taken for no less than that of the images, which it contains.
        """
        weights = np.asarray(sizes, dtype=np.float64) / np.sum(sizes)
        values = np.array([estimate.value for estimate in estimates])
        of_images = np.mean([np.var(estimate.drawn, ddof=1) for estimate in estimates])
        variance = max(float(np.var(values, ddof=1)), float(of_images)) * float(weights @ weights)
        value = float(weights @ values)
        return replace(estimates[0], value=value, drawn=np.full(2, value), center=value,
                       spreads=((variance, len(values) - 1),),
                       withheld=next((estimate.withheld for estimate in estimates if estimate.withheld), ""))


def _smallest_p(excludes_zero):
    """The p, from 1e-15 to 1, for which the interval of level 1 - p just contains 0.

    excludes_zero: a function of the level that says whether the interval of this level is without 0.
    """
    low, high = -34.0, 0.0  # of the logarithm of p
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if excludes_zero(1 - math.exp(middle)) else (middle, high)
    return math.exp(high)


def _paired(operation, a, b):
    return None if a.drawn is None or b.drawn is None else operation(a.drawn, b.drawn)


def _of_trainings(operation, a, b):
    """operation(a, b) for each training of the two; () where neither is a mean over several, or numbers differ."""
    sides = [np.asarray(side.trainings or (side.value,)) for side in (a, b)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return tuple(map(float, operation(*sides))) if len({len(side) for side in sides} - {1}) == 1 else ()


def wilson(share, size, z):
    """(lo, hi) of a share of `size` independent images, z the quantile of the normal distribution (Wilson 1927)."""
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * np.sqrt(share * (1 - share) / size + z * z / (4 * size ** 2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def t_tails(t, freedom):
    """The probability that |T| is at least t, of Student's T with `freedom` degrees of freedom, any number from 1."""
    if freedom > NORMAL:
        return math.erfc(t / math.sqrt(2))
    start, end = math.atan(t / math.sqrt(freedom)), math.pi / 2
    inside, outside = (np.trapezoid(_density(u, freedom), u) for u in (np.linspace(0, start, 4001),
                                                                       np.linspace(start, end, 4001)))
    return float(outside / (inside + outside))


def t_quantile(level, freedom):
    """The value that Student's T with `freedom` degrees of freedom is below with the probability `level`, above 0.5."""
    if freedom > NORMAL:
        return NormalDist().inv_cdf(min(level, 1 - 1e-16))
    return float(math.sqrt(freedom) * math.tan(np.interp(2 * level - 1, *_distribution(freedom))))


@functools.lru_cache(maxsize=64)
def _distribution(freedom):
    """(P(|U| <= u), u) of the u of _density(), a table."""
    u = np.linspace(0, math.pi / 2, 40001)
    density = _density(u, freedom)
    below = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return below / below[-1], u


def _density(u, freedom):
    """T = sqrt(freedom) tan(u), where u, from 0 to pi / 2, has a density in proportion to this."""
    return np.maximum(np.cos(u), 0) ** (freedom - 1)
