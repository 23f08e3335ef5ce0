"""Percentile intervals by resampling clusters: all images of a lesion are drawn together.

Images of one lesion are alike, so intervals that treat them as independent are too narrow (Davison
& Hinkley 1997, section 3.8). A replicate draws as many clusters as there are, with replacement; it
is a row of weights, and its counts are a product of weights and per-cluster counts, not a loop.

A replicate in which a metric is undefined is left out of its interval and counted. So are, for
the macro metrics and for a class's own figures, replicates that lack a class which the split has:
F1 there would be 0 or missing whatever the classifier does, and says nothing about it.
"""

import functools

import numpy as np

from kd import calibration, metrics, operating_points
from kd.errors import UserError

LEVEL = 0.95
REPLICATES = 2000
# How often a replicate carries the upward bias of absolute gaps: the sample's and its own, or its own alone.
BIASED = {"ece": 2, "ece_equal_mass": 2, "ece_classwise": 2, "mce": 2, "rms_ce_debiased": 1}
SEED = 0  # one for all: models tested on the same clusters meet the same replicates


def check_replicates(replicates):
    """UserError for a number of replicates that is too small."""
    if replicates < 100:
        raise UserError(f"--replicates {replicates} is too few for the tails of a 95% interval",
                        "Use 100 or more; 2000 is usual.")


def clusters(groups):
    """(index [n], count): the place of each image's group among the sorted distinct groups.

    Sorted, so that the order in which a file lists its images changes nothing.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1), len(names)


def resample(count, replicates=REPLICATES, seed=SEED):
    """Weights [1 + B, G]: how often each cluster is counted. Row 0 is the sample itself, all ones.

    uint8: a quarter of the memory, and a cluster drawn more than 255 times is beyond all chance
    (with G <= 255 it is impossible).
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + replicates, count), dtype=np.uint8)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return weights


shared = functools.lru_cache(maxsize=4)(resample)  # weights for validation, for test ...: one for all runs of a study


def sums(weights, statistics):
    """Weights [B, G] times per-cluster statistics [G, K]: [B, K] in float64."""
    step = max(1, 2 ** 22 // weights.shape[1])  # 32 MiB of weights as float64 at a time
    return np.concatenate([weights[start:start + step].astype(np.float64) @ statistics
                           for start in range(0, len(weights), step)])


def confusions(labels, predicted, classes, index, weights):
    """Confusion arrays [B, C, C] of every row of weights [B, G]; index [n] as by clusters()."""
    count = weights.shape[1]
    # With many classes nearly all cells are empty, and those that are need no product.
    cells, column = np.unique(labels * classes + predicted, return_inverse=True)
    per_cluster = np.bincount(index * len(cells) + column.reshape(-1), minlength=count * len(cells))
    out = np.zeros((classes * classes, len(weights)))
    out[cells] = sums(weights, per_cluster.reshape(count, len(cells)).astype(np.float64)).T
    return _replicates_last(out, classes)


def interval(values, level=LEVEL, corrected=0):
    """METRIC of values [1 + B]: the sample's own first, then one a replicate; NaN is undefined.

    {"value", "lo", "hi", "replicates": B, "undefined": replicates left out}; lo and hi are
    quantiles of the B - undefined others, NaN where none is left or the value is undefined.
    `corrected`, the number that biased() gives, lowers both as unbias() does.
    """
    value, drawn = float(values[0]), unbias(values, corrected)[1:]
    defined = drawn[~np.isnan(drawn)]
    lo, hi = float("nan"), float("nan")
    if len(defined) and not np.isnan(value):
        lo, hi = (float(q) for q in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return {"value": value, "lo": lo, "hi": hi, "replicates": len(drawn),
            "undefined": len(drawn) - len(defined)}


def unbias(values, times):
    """Values [1 + B] of an error that is at least 0, the replicates lowered by `times` their bias.

    A calibration error is a mean of absolute gaps, and chance widens gaps: once in the sample, once
    more in each replicate. The second is seen (mean of the replicates - value) and stands for the
    first (Efron & Tibshirani 1993, section 10.2). Near 0 the first is the larger, up to 1 / (sqrt 2
    - 1) times: of a nearly calibrated model the interval may still lie too high.
    """
    drawn = values[1:]
    if not times or np.isnan(drawn).all():
        return values
    return np.append(values[:1], np.maximum(drawn - times * (np.nanmean(drawn) - values[0]), 0))


def replicate(labels, probabilities, index, weights, class_names, calibrated=None, bins=calibration.BINS):
    """{NAME: values [1 + B]} of all metrics; the sample's own first, then one a row of weights.

    labels [n], probabilities [n, C]; index [n] and weights [1 + B, G] as by clusters() and
    resample(). With `calibrated` probabilities [n, C], NAME_calibrated of all that they change.
    Models scored with the same weights are paired.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    images = weights[:, index]
    counts = confusions(labels, probabilities.argmax(1), len(class_names), index, weights)
    areas = metrics.auroc(labels, probabilities, images)
    missing = _missing(counts)
    values = overall(counts)
    values["macro_auroc"] = np.where(missing.any(1), np.nan, metrics.mean_defined(areas))
    values.update(probabilistic(labels, probabilities, index, weights, images, bins))
    if calibrated is not None:
        values.update({f"{name}_calibrated": figures for name, figures in probabilistic(
            labels, np.asarray(calibrated, dtype=np.float64), index, weights, images, bins).items()})
    values.update(_by_class({**_rates(counts), "auroc": areas}, missing, class_names))
    return spread(values, weights)


def replicate_answers(labels, answers, index, weights, class_names):
    """What replicate() gives, of the metrics that need no more than the answers [n]: much faster."""
    counts = confusions(np.asarray(labels), np.asarray(answers), len(class_names), index, weights)
    return spread({**overall(counts), **_by_class(_rates(counts), _missing(counts), class_names)}, weights)


def _rates(counts):
    return {"f1": metrics.f1(counts), "recall": metrics.recall(counts), "precision": metrics.precision(counts)}


def _by_class(rates, missing, class_names):
    """{"<rate>/<class>": [1 + B]} of rates [1 + B, C], undefined where a replicate lacks the class."""
    return {f"{name}/{c}": np.where(missing[:, k], np.nan, figures[:, k])
            for name, figures in rates.items() for k, c in enumerate(class_names)}


def spread(values, weights):
    """{NAME: values [1 + B]} with undefined replicates where all images are one cluster, which has no spread."""
    if weights.shape[1] > 1:
        return values
    return {name: np.append(v[:1], np.full(len(v) - 1, np.nan)) for name, v in values.items()}


def intervals(values):
    """{NAME: METRIC} of {NAME: values [1 + B]}, as by replicate()."""
    return {name: interval(v, corrected=biased(name)) for name, v in values.items()}


def biased(name):
    """How often a replicate of this metric carries its bias: 0 (no need of unbias()), 1 or 2."""
    return BIASED.get(name.removesuffix("_calibrated"), 0)


def measure(labels, probabilities, groups, class_names, replicates=REPLICATES, seed=SEED, calibrated=None,
            bins=calibration.BINS):
    """{NAME: METRIC} of everything that labels [n], probabilities [n, C] and groups [n] tell.

    The prediction is the most probable class (the first of equals). Of a single cluster nothing
    can be said about spread: its intervals are undefined. `calibrated` as in replicate().
    """
    index, count = clusters(groups)
    weights = resample(count, replicates, seed)
    return intervals(replicate(labels, probabilities, index, weights, class_names, calibrated, bins))


def constant(labels, answer, classes, index, weights):
    """{NAME: METRIC} of a rule that always gives the class `answer`, on the same replicates."""
    return intervals(spread(overall(confusions(np.asarray(labels), answer, classes, index, weights)), weights))


def from_confusion(confusion, replicates=REPLICATES, seed=SEED):
    """{NAME: METRIC} of accuracy, macro_f1, weighted_f1 and balanced_accuracy from a confusion matrix [C, C].

    For images drawn one by one, and only then, resampling them is a multinomial draw over the cells.
    """
    confusion = np.asarray(confusion)
    cells = confusion.reshape(-1)
    order = np.argsort(-cells)[:np.count_nonzero(cells)]  # the large ones first: little is left to draw
    counts = np.zeros((len(cells), 1 + replicates))
    counts[:, 0] = cells
    draws = np.random.default_rng(seed).multinomial(cells.sum(), cells[order] / cells.sum(), size=replicates)
    counts[order, 1:] = draws.T
    return intervals(overall(_replicates_last(counts, len(confusion))))


def _replicates_last(counts, classes):
    """Counts [C * C, B] seen as [B, C, C]; in memory replicates run last, which NumPy sums several times faster."""
    return counts.reshape(classes, classes, -1).transpose(2, 0, 1)


def over_seeds(values, level=LEVEL, corrected=0):
    """{"mean", "sd", "lo", "hi", "values"} over k seeds of one metric, values [k, 1 + B], on the same replicates.

    The interval carries both sources: each replicate's mean over seeds (which images) plus a value of
    t with k - 1 degrees of freedom times sd / sqrt(k) (which seeds). One seed tells nothing about
    seeds: its sd and interval are NaN. sd has k - 1 below the line.
    """
    values = np.asarray(values, dtype=np.float64)
    own, k = values[:, 0], len(values)
    nan = float("nan")
    if k == 1 or np.isnan(own).any():
        return {"mean": float(own.mean()), "sd": nan, "lo": nan, "hi": nan, "values": own.tolist()}
    sd = float(own.std(ddof=1))
    means = values.mean(0)
    drawn = unbias(means, corrected)[1:]
    drawn = drawn[~np.isnan(drawn)]
    noise = student_t(k - 1, len(drawn)) * sd / np.sqrt(k)
    lo, hi = np.quantile(drawn + noise, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (nan, nan)
    return {"mean": float(own.mean()), "sd": sd, "lo": float(lo), "hi": float(hi), "values": own.tolist()}


@functools.lru_cache(maxsize=16)
def student_t(freedom, count, stream=0):
    """[count] values that stand for Student's t: evenly spaced quantiles of 64 times as many draws, mirrored
    so that they sum to 0, in an order drawn for the stream. The tails of so few plain draws would be ragged."""
    rng = np.random.default_rng([SEED, freedom, stream])
    quantiles = np.sort(rng.standard_t(freedom, 64 * count))[32::64]
    return rng.permutation((quantiles - quantiles[::-1]) / 2)


def probabilistic(labels, probabilities, index, weights, images, bins):
    """{NAME: [1 + B]} of the metrics of the probabilities themselves; images [1 + B, n] is weights[:, index]."""
    count = weights.shape[1]
    per_cluster = calibration.sums(labels, probabilities, bins, index, count)
    losses = [np.bincount(index, each, count) for each in (
        metrics.log_losses(labels, probabilities), metrics.square_losses(labels, probabilities))]
    parts = [*losses, per_cluster.top, per_cluster.mass, per_cluster.classes]
    columns = np.concatenate([part.reshape(count, -1) for part in parts], 1)
    used = columns.any(0)
    drawn = np.zeros((len(weights), columns.shape[1]))
    drawn[:, used] = sums(weights, columns[:, used])
    ends = np.cumsum([part.reshape(count, -1).shape[1] for part in parts])[:-1]
    nll, brier, *rest = (part.reshape(len(weights), *shape.shape[1:])
                         for part, shape in zip(np.split(drawn, ends, 1), parts))
    top, mass, classes = rest
    n = top[:, 0].sum(-1)
    correct = probabilities.argmax(1) == labels
    return {"nll": nll / n, "brier": brier / n, **calibration.errors(calibration.Sums(top, mass, classes)),
            "aurc": operating_points.aurc(correct, probabilities.max(1), images)}


def overall(counts):
    """{NAME: [1 + B]} of the metrics over all classes that confusion arrays [1 + B, C, C] give."""
    absent = _missing(counts).any(1)
    return {"accuracy": metrics.accuracy(counts),
            "macro_f1": np.where(absent, np.nan, metrics.macro_f1(counts)),
            "weighted_f1": metrics.weighted_f1(counts),
            "balanced_accuracy": np.where(absent, np.nan, metrics.balanced_accuracy(counts))}


def _missing(counts):
    """[1 + B, C]: the sample has this class and the replicate has not."""
    support = counts.sum(-1)
    return (support == 0) & (support[0] > 0)
