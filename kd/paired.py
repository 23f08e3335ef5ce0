"""Two models on the same images: paired differences, and how their answers differ.

Differences are taken replicate by replicate, so what both models find hard cancels. Values
[1 + B] are those bootstrap.replicate() gives of each model from the same weights.
"""

import numpy as np

from kd import bootstrap, metrics


def paired(reference, model, level=bootstrap.LEVEL, corrected=0):
    """METRIC of model - reference, values [1 + B] each, with "p", two-sided, of no difference.

    p is twice the smaller share of replicates at or beyond 0, the sample counted as one of them
    (never below 2 / (1 + B)): the largest p at which the interval would still hold 0. NaN where
    nothing is defined. `corrected` as in bootstrap.interval(), for each model before the difference.
    """
    difference = bootstrap.unbias(model, corrected) - bootstrap.unbias(reference, corrected)
    metric = bootstrap.interval(difference, level)
    drawn = difference[1:][~np.isnan(difference[1:])]
    tail = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = float("nan") if np.isnan(metric["lo"]) else min(1.0, float(2 * tail / (1 + len(drawn))))
    return {**metric, "p": p}


def retention(reference, model, level=bootstrap.LEVEL, corrected=0):
    """METRIC of model / reference, values [1 + B] each: what a student keeps of its teacher.

    Less 1 it is the relative gap. A replicate in which the reference is 0 is undefined.
    """
    kept = metrics.ratio(bootstrap.unbias(model, corrected), bootstrap.unbias(reference, corrected))
    return bootstrap.interval(kept, level)


def compare(reference, model):
    """[row] for each metric in both of {NAME: values [1 + B]}, as bootstrap.replicate() gives them.

    A row is {"metric", "reference_value", "model_value", "difference", "lo", "hi", "p", "undefined",
    "retention", "retention_lo", "retention_hi"}; p is not yet corrected for how many are compared.
    """
    rows = []
    for name in reference.keys() & model.keys():
        corrected = bootstrap.biased(name)
        gap = paired(reference[name], model[name], corrected=corrected)
        kept = retention(reference[name], model[name], corrected=corrected)
        rows.append({"metric": name, "reference_value": float(reference[name][0]),
                     "model_value": float(model[name][0]), "difference": gap["value"],
                     **{key: gap[key] for key in ("lo", "hi", "p", "undefined")}, "retention": kept["value"],
                     "retention_lo": kept["lo"], "retention_hi": kept["hi"]})
    return sorted(rows, key=lambda row: list(reference).index(row["metric"]))


def mcnemar(reference_correct, model_correct):
    """{"reference_only", "model_only", "p"}: images that just one of two models has right, and the
    exact two-sided p of an even split (McNemar 1947; Fay 2010). Correct [n] bool each.

    Images count as independent; where lesions have several, the paired bootstrap is the safer test.
    """
    reference_correct, model_correct = np.asarray(reference_correct, bool), np.asarray(model_correct, bool)
    lost = int((reference_correct & ~model_correct).sum())
    won = int((~reference_correct & model_correct).sum())
    n = lost + won
    tail = term = 1  # the binomial's lower tail in whole numbers: exact for any n
    for k in range(min(lost, won)):
        term = term * (n - k) // (k + 1)
        tail += term
    return {"reference_only": lost, "model_only": won, "p": min(1.0, 2 * tail / 2 ** n)}


def holm(p):
    """p-values [m] corrected so that the chance of any false finding stays below the level (Holm 1979).

    NaN stays NaN and is not counted.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)[:np.count_nonzero(~np.isnan(p))]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def agreement(labels, reference, model, weights=None):
    """Shares of images by the predictions [n] of two models: {"agreement", "right_to_wrong",
    "wrong_to_right", "wrong_to_wrong"}, the last three the disagreements; together 1.

    Floats, or [B] with weights [B, n].
    """
    if weights is None:
        once = agreement(labels, reference, model, np.ones((1, len(labels)), dtype=np.uint8))
        return {name: float(share[0]) for name, share in once.items()}
    labels, reference, model = np.asarray(labels), np.asarray(reference), np.asarray(model)
    differ, before, after = reference != model, reference == labels, model == labels
    kinds = {"agreement": ~differ, "right_to_wrong": before & ~after, "wrong_to_right": ~before & after,
             "wrong_to_wrong": differ & ~before & ~after}
    # whole numbers below 2^24, so the product is exact in float32
    counts = weights.astype(np.float32, copy=False) @ np.stack([np.ones(len(labels)), *kinds.values()], 1).astype(np.float32)
    return {name: metrics.ratio(count, counts[:, 0]) for name, count in zip(kinds, counts.T[1:].astype(np.float64))}
