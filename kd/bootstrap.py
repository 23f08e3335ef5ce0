"""Percentile intervals from the cluster bootstrap: all images of a lesion are drawn together.

Images of one lesion are similar, so intervals that treat them as independent are too narrow (Davison
& Hinkley 1997, section 3.8). A replicate draws as many clusters as there are, with replacement. It is a row of
weights, and its counts are a product of these weights and the counts of each cluster, not a loop.

A replicate in which a metric is undefined is left out of the interval, and the number of these is reported. For the
macro metrics and the metrics of one class, replicates without a class that the test split has are left out, too: F1
of this class would be 0 or undefined there whatever the classifier does.

Shapes: n images, C classes, G clusters, B replicates. METRIC is the dict that interval() returns.
"""

import functools

import numpy as np

from kd import calibration, metrics, operating_points
from kd.errors import UserError

LEVEL = 0.95
REPLICATES = 2000  # the usual number for 95% intervals: each tail then has 50 replicates
# How often the upward bias of absolute gaps is in a replicate: once from the sample and once from the replicate
# itself; the debiased error has only the second.
BIASED = {"ece": 2, "ece_equal_mass": 2, "ece_classwise": 2, "mce": 2, "rms_ce_debiased": 1}
SEED = 0  # the same for all models, so that models tested on the same clusters get the same replicates


def check_replicates(replicates):
    """UserError if the number of replicates is below 100."""
    if replicates < 100:
        raise UserError(f"--replicates {replicates} is too few for the tails of a 95% interval",
                        "Use 100 or more; 2000 is usual.")


def clusters(groups):
    """(index [n], G): the cluster of each image, a number from 0 to G - 1, and the number of clusters.

    groups: n names, one for each image. Clusters are sorted by name, so that the order of images in a file has no
    effect.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1), len(names)


def resample(count, replicates=REPLICATES, seed=SEED):
    """Weights [1 + B, G] uint8: how often each of `count` clusters is drawn. Row 0 is the sample itself, all ones.

    uint8 takes a quarter of the memory of int32. A cluster is never drawn more than 255 times: with G <= 255 that is
    impossible, with more clusters its probability is negligible.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + replicates, count), dtype=np.uint8)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return weights


shared = functools.lru_cache(maxsize=4)(resample)  # the runs of a study use the same weights for each split


def sums(weights, statistics):
    """Sums [B, K] over clusters, float64: weights [B, G] times statistics [G, K] of each cluster."""
    step = max(1, 2 ** 22 // weights.shape[1])  # 32 MiB of weights as float64 at a time
    return np.concatenate([weights[start:start + step].astype(np.float64) @ statistics
                           for start in range(0, len(weights), step)])


def confusions(labels, predicted, classes, index, weights):
    """Confusion arrays [B, C, C] of the replicates.

    labels [n], predicted [n]: ints below `classes`, C; index [n] from clusters(); weights [B, G] from resample().
    """
    count = weights.shape[1]
    # With many classes nearly all cells of the matrix are empty; these are left out of the product.
    cells, column = np.unique(labels * classes + predicted, return_inverse=True)
    per_cluster = np.bincount(index * len(cells) + column.reshape(-1), minlength=count * len(cells))
    out = np.zeros((classes * classes, len(weights)))
    out[cells] = sums(weights, per_cluster.reshape(count, len(cells)).astype(np.float64)).T
    return _replicates_last(out, classes)


def interval(values, level=LEVEL, corrected=0):
    """METRIC of values [1 + B]: the value of the sample, then one for each replicate; NaN where undefined.

    It is {"value", "lo", "hi", "replicates": B, "undefined": number of replicates left out}. lo and hi are quantiles
    of the defined replicates; NaN if there is none or the value itself is undefined.
    level: share of the replicates inside the interval. corrected: what biased() returns for the metric; the replicates
    are lowered by so many times their bias, see unbias().
    """
    value, drawn = float(values[0]), unbias(values, corrected)[1:]
    defined = drawn[~np.isnan(drawn)]
    lo, hi = float("nan"), float("nan")
    if len(defined) and not np.isnan(value):
        lo, hi = (float(q) for q in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return {"value": value, "lo": lo, "hi": hi, "replicates": len(drawn),
            "undefined": len(drawn) - len(defined)}


def unbias(values, times):
    """Values [1 + B] of an error that is at least 0, with the replicates lowered by `times` their bias.

    A calibration error is a mean of absolute gaps, and chance increases gaps: once in the sample and once
    more in each replicate. The second increase is known (mean of the replicates - value) and is taken as an estimate
    of the first (Efron & Tibshirani 1993, section 10.2). Near 0 the first is larger, up to 1 / (sqrt 2 - 1) times: the
    interval of a well calibrated model may still be too high.
    """
    drawn = values[1:]
    if not times or np.isnan(drawn).all():
        return values
    return np.append(values[:1], np.maximum(drawn - times * (np.nanmean(drawn) - values[0]), 0))


def replicate(labels, probabilities, index, weights, class_names, calibrated=None, bins=calibration.BINS):
    """{NAME: values [1 + B]} of all metrics; values[0] is of the sample, the others are of the replicates.

    labels [n]; probabilities [n, C]; index [n] from clusters(); weights [1 + B, G] from resample().
    calibrated: probabilities [n, C] after temperature scaling; with them the result also has NAME_calibrated for each
    metric that they change. bins: of the calibration errors.
    The values of two models with the same weights are paired, replicate by replicate.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    image_weights = weights[:, index]
    counts = confusions(labels, probabilities.argmax(1), len(class_names), index, weights)
    areas = metrics.auroc(labels, probabilities, image_weights)
    missing = _missing(counts)
    values = overall(counts)
    values["macro_auroc"] = np.where(missing.any(1), np.nan, metrics.mean_defined(areas))
    values.update(probabilistic(labels, probabilities, index, weights, image_weights, bins))
    if calibrated is not None:
        calibrated = np.asarray(calibrated, dtype=np.float64)
        after = probabilistic(labels, calibrated, index, weights, image_weights, bins)
        values.update({f"{name}_calibrated": replicates for name, replicates in after.items()})
    values.update(_by_class({**_rates(counts), "auroc": areas}, missing, class_names))
    return spread(values, weights)


def replicate_answers(labels, answers, index, weights, class_names):
    """Like replicate(), but only the metrics of the predicted classes, answers [n]: much faster."""
    counts = confusions(np.asarray(labels), np.asarray(answers), len(class_names), index, weights)
    return spread({**overall(counts), **_by_class(_rates(counts), _missing(counts), class_names)}, weights)


def _rates(counts):
    return {"f1": metrics.f1(counts), "recall": metrics.recall(counts), "precision": metrics.precision(counts)}


def _by_class(rates, missing, class_names):
    """{"<rate>/<class>": [1 + B]} of rates [1 + B, C]; NaN in replicates without the class, see _missing()."""
    return {f"{name}/{c}": np.where(missing[:, k], np.nan, rate[:, k])
            for name, rate in rates.items() for k, c in enumerate(class_names)}


def spread(values, weights):
    """{NAME: values [1 + B]}, in which all replicates are NaN if there is only one cluster: it has no spread."""
    if weights.shape[1] > 1:
        return values
    return {name: np.append(v[:1], np.full(len(v) - 1, np.nan)) for name, v in values.items()}


def intervals(values):
    """{NAME: METRIC} of {NAME: values [1 + B]}, which replicate() returns."""
    return {name: interval(v, corrected=biased(name)) for name, v in values.items()}


def biased(name):
    """How often the bias of the metric `name` is in a replicate: 0, 1 or 2; the `corrected` of interval()."""
    return BIASED.get(name.removesuffix("_calibrated"), 0)


def measure(labels, probabilities, groups, class_names, replicates=REPLICATES, seed=SEED, calibrated=None,
            bins=calibration.BINS):
    """{NAME: METRIC} of all metrics of labels [n] and probabilities [n, C] with groups [n].

    The prediction is the class of highest probability (the first of equals). The intervals of a single cluster are
    undefined. calibrated, bins: as for replicate().
    """
    index, count = clusters(groups)
    weights = resample(count, replicates, seed)
    return intervals(replicate(labels, probabilities, index, weights, class_names, calibrated, bins))


def constant(labels, answer, classes, index, weights):
    """{NAME: METRIC} of a baseline that always predicts the class `answer`, on the same replicates."""
    return intervals(spread(overall(confusions(np.asarray(labels), answer, classes, index, weights)), weights))


def from_confusion(confusion, replicates=REPLICATES, seed=SEED):
    """{NAME: METRIC} of accuracy, macro_f1, weighted_f1 and balanced_accuracy from a confusion matrix [C, C].

    It is the bootstrap over single images, which is the same as multinomial draws over the cells. A matrix does not
    contain clusters, so they cannot be taken into account.
    """
    confusion = np.asarray(confusion)
    cells = confusion.reshape(-1)
    order = np.argsort(-cells)[:np.count_nonzero(cells)]  # large cells first: the draws for the others are then small
    counts = np.zeros((len(cells), 1 + replicates))
    counts[:, 0] = cells
    draws = np.random.default_rng(seed).multinomial(cells.sum(), cells[order] / cells.sum(), size=replicates)
    counts[order, 1:] = draws.T
    return intervals(overall(_replicates_last(counts, len(confusion))))


def _replicates_last(counts, classes):
    """Counts [C * C, B] as [B, C, C]. Replicates stay last in memory, which NumPy sums several times faster."""
    return counts.reshape(classes, classes, -1).transpose(2, 0, 1)


def over_seeds(values, level=LEVEL, corrected=0):
    """{"mean", "sd", "lo", "hi", "values"} of one metric over k seeds, values [k, 1 + B], on the same replicates.

    The interval contains both sources of variance: which images were drawn (the mean over seeds in each replicate) and
    which seeds (a value of Student's t with k - 1 degrees of freedom, times sd / sqrt(k), is added to it). sd is the
    standard deviation with divisor k - 1. With one seed, sd and the interval are NaN. corrected: as for interval().
    """
    values = np.asarray(values, dtype=np.float64)
    by_seed, k = values[:, 0], len(values)
    nan = float("nan")
    if k == 1 or np.isnan(by_seed).any():
        return {"mean": float(by_seed.mean()), "sd": nan, "lo": nan, "hi": nan, "values": by_seed.tolist()}
    sd = float(by_seed.std(ddof=1))
    means = values.mean(0)
    drawn = unbias(means, corrected)[1:]
    drawn = drawn[~np.isnan(drawn)]
    noise = student_t(k - 1, len(drawn)) * sd / np.sqrt(k)
    lo, hi = np.quantile(drawn + noise, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (nan, nan)
    return {"mean": float(by_seed.mean()), "sd": sd, "lo": float(lo), "hi": float(hi), "values": by_seed.tolist()}


@functools.lru_cache(maxsize=16)
def student_t(freedom, count, stream=0):
    """[count] values of Student's t with `freedom` degrees of freedom, in random order; they sum to 0.

    They are evenly spaced quantiles of 64 times as many draws, made symmetric about 0, because the tails of `count`
    plain draws would be too irregular. stream: another number gives another order.
    """
    rng = np.random.default_rng([SEED, freedom, stream])
    quantiles = np.sort(rng.standard_t(freedom, 64 * count))[32::64]
    return rng.permutation((quantiles - quantiles[::-1]) / 2)


def probabilistic(labels, probabilities, index, weights, image_weights, bins):
    """{NAME: [1 + B]} of the metrics of probabilities [n, C]: nll, brier, calibration errors, aurc.

    index [n] from clusters(), weights [1 + B, G] from resample(); image_weights [1 + B, n] is weights[:, index].
    """
    count = weights.shape[1]
    bin_sums = calibration.sums(labels, probabilities, bins, index, count)
    log_losses = np.bincount(index, metrics.log_losses(labels, probabilities), count)
    square_losses = np.bincount(index, metrics.square_losses(labels, probabilities), count)
    # all sums of a cluster are one row, so that one matrix product draws all replicates
    parts = [log_losses, square_losses, bin_sums.top, bin_sums.mass, bin_sums.classes]
    columns = np.concatenate([part.reshape(count, -1) for part in parts], 1)
    used = columns.any(0)
    drawn = np.zeros((len(weights), columns.shape[1]))
    drawn[:, used] = sums(weights, columns[:, used])
    ends = np.cumsum([part.reshape(count, -1).shape[1] for part in parts])[:-1]
    nll, brier, top, mass, classes = (columns.reshape(len(weights), *part.shape[1:])
                                      for columns, part in zip(np.split(drawn, ends, 1), parts))
    n = top[:, 0].sum(-1)
    correct = probabilities.argmax(1) == labels
    return {"nll": nll / n, "brier": brier / n, **calibration.errors(calibration.Sums(top, mass, classes)),
            "aurc": operating_points.aurc(correct, probabilities.max(1), image_weights)}


def overall(counts):
    """{NAME: [1 + B]} of the metrics over all classes, of confusion arrays [1 + B, C, C]."""
    absent = _missing(counts).any(1)
    return {"accuracy": metrics.accuracy(counts),
            "macro_f1": np.where(absent, np.nan, metrics.macro_f1(counts)),
            "weighted_f1": metrics.weighted_f1(counts),
            "balanced_accuracy": np.where(absent, np.nan, metrics.balanced_accuracy(counts))}


def _missing(counts):
    """[1 + B, C] bool: the sample has images of this class and the replicate has none."""
    support = counts.sum(-1)
    return (support == 0) & (support[0] > 0)
