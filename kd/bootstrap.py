"""Percentile intervals by resampling clusters: all images of a lesion are drawn together.

Images of one lesion are alike, so intervals that treat them as independent are too narrow (Davison
& Hinkley 1997, section 3.8). A replicate draws as many clusters as there are, with replacement; it
is a row of weights, and its counts are a product of weights and per-cluster counts, not a loop.

A replicate in which a metric is undefined is left out of its interval and counted. So are, for
the macro metrics and for a class's own figures, replicates that lack a class which the split has:
F1 there would be 0 or missing whatever the classifier does, and says nothing about it.
"""

import numpy as np

from kd import metrics

LEVEL = 0.95
REPLICATES = 2000
SEED = 0  # one for all: models tested on the same clusters meet the same replicates


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
    out = np.zeros((len(weights), classes * classes))
    out[:, cells] = sums(weights, per_cluster.reshape(count, len(cells)).astype(np.float64))
    return out.reshape(-1, classes, classes)


def interval(values, level=LEVEL):
    """METRIC of values [1 + B]: the sample's own first, then one a replicate; NaN is undefined.

    {"value", "lo", "hi", "replicates": B, "undefined": replicates left out}; lo and hi are
    quantiles of the B - undefined others, NaN where none is left or the value is undefined.
    """
    value, drawn = float(values[0]), values[1:]
    defined = drawn[~np.isnan(drawn)]
    lo, hi = float("nan"), float("nan")
    if len(defined) and not np.isnan(value):
        lo, hi = (float(q) for q in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return {"value": value, "lo": lo, "hi": hi, "replicates": len(drawn),
            "undefined": len(drawn) - len(defined)}


def measure(labels, probabilities, groups, class_names, replicates=REPLICATES, seed=SEED):
    """{NAME: METRIC} of everything that labels [n], probabilities [n, C] and groups [n] tell.

    The prediction is the most probable class (the first of equals). Of a single cluster nothing
    can be said about spread: its intervals are undefined.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    index, count = clusters(groups)
    weights = resample(count, replicates, seed)
    counts = confusions(labels, probabilities.argmax(1), len(class_names), index, weights)
    areas = metrics.auroc(labels, probabilities, weights[:, index])
    missing = _missing(counts)
    values = _overall(counts)
    values["macro_auroc"] = np.where(missing.any(1), np.nan, metrics.mean_defined(areas))
    for name, figures in {"f1": metrics.f1(counts), "recall": metrics.recall(counts),
                          "precision": metrics.precision(counts), "auroc": areas}.items():
        figures = np.where(missing, np.nan, figures)
        values.update({f"{name}/{c}": figures[:, k] for k, c in enumerate(class_names)})
    return _intervals(values, count)


def constant(labels, answer, groups, classes, replicates=REPLICATES, seed=SEED):
    """{NAME: METRIC} of a rule that always gives the class `answer`, on the same replicates."""
    labels = np.asarray(labels)
    index, count = clusters(groups)
    weights = resample(count, replicates, seed)
    return _intervals(_overall(confusions(labels, answer, classes, index, weights)), count)


def _overall(counts):
    absent = _missing(counts).any(1)
    return {"accuracy": metrics.accuracy(counts),
            "macro_f1": np.where(absent, np.nan, metrics.macro_f1(counts)),
            "weighted_f1": metrics.weighted_f1(counts),
            "balanced_accuracy": np.where(absent, np.nan, metrics.balanced_accuracy(counts))}


def _missing(counts):
    """[1 + B, C]: the sample has this class and the replicate has not."""
    support = counts.sum(-1)
    return (support == 0) & (support[0] > 0)


def _intervals(values, count):
    if count == 1:
        values = {name: np.concatenate([v[:1], np.full(len(v) - 1, np.nan)])
                  for name, v in values.items()}
    return {name: interval(v) for name, v in values.items()}
