"""Which epoch of a training is kept: the one with the best value of a metric on validation (--select).

A row of history.csv has the metrics of the network, and with --ema those of the average of its weights, with `ema_`
before their names. The better of both counts, and is kept.
"""

# {metric: (column of history.csv, 1 where higher is better, -1 where lower is)}
METRICS = {
    "macro_f1": ("val_macro_f1", 1), "balanced_accuracy": ("val_balanced_accuracy", 1),
    "accuracy": ("val_accuracy", 1), "macro_auroc": ("val_macro_auroc", 1), "nll": ("val_loss", -1),
}
AVERAGE = "ema_"


def score(row, metric="macro_f1"):
    """(score, prefix) of an epoch: higher is better; prefix is "" for the network, AVERAGE for its average.

    The network is kept where both are equal. A KeyError where the row lacks the metric.
    """
    column, sign = METRICS[metric]
    scores = [(sign * row[prefix + column], prefix) for prefix in ("", AVERAGE) if not prefix or prefix + column in row]
    return max(scores, key=lambda pair: pair[0])


def kept(row, metric="macro_f1"):
    """The row with the metrics of the network or of its average, whichever counts, under the plain names."""
    _, prefix = score(row, metric)
    return {name: row.get(prefix + name, value) for name, value in row.items() if not name.startswith(AVERAGE)}


def best(rows, metric="macro_f1"):
    """Index of the epoch that is kept, the first of equal ones; None where no row has a score that is a number."""
    scores = [score(row, metric)[0] for row in rows]
    defined = [value for value in scores if value == value]  # NaN is not equal to itself
    return scores.index(max(defined)) if defined else None


def named(metric):
    """A metric in words: "validation macro-F1" for example."""
    return "validation " + {"macro_f1": "macro-F1", "macro_auroc": "macro AUROC", "nll": "loss"}.get(
        metric, metric.replace("_", " "))
