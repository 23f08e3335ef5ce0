"""Comparison of two models on the same images: paired differences and tests.

Differences are taken replicate by replicate, so images that are difficult for both models cancel out. Values [1 + B]
come from bootstrap.replicate() for each model, with the same weights; METRIC is what bootstrap.interval() returns.
"""

import numpy as np

from kd import bootstrap, metrics


def paired(reference, model, level=bootstrap.LEVEL, corrected=0):
    """METRIC of the difference model - reference, values [1 + B] each, and "p", the two-sided p-value of no difference.

    p is twice the smaller share of replicates at or beyond 0, with the sample counted as one of them (so at least
    2 / (1 + B)): the interval of level 1 - p just contains 0. NaN if no replicate is defined.
    corrected: as for bootstrap.interval(), applied to each model before the difference.
    """
    difference = bootstrap.unbias(model, corrected) - bootstrap.unbias(reference, corrected)
    metric = bootstrap.interval(difference, level)
    drawn = difference[1:][~np.isnan(difference[1:])]
    tail = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = float("nan") if np.isnan(metric["lo"]) else min(1.0, float(2 * tail / (1 + len(drawn))))
    return {**metric, "p": p}


def retention(reference, model, level=bootstrap.LEVEL, corrected=0):
    """METRIC of the ratio model / reference, values [1 + B] each: the share of its teacher's metric that a student has.

    A replicate in which the reference is 0 is undefined. corrected: as for paired().
    """
    ratio = metrics.ratio(bootstrap.unbias(model, corrected), bootstrap.unbias(reference, corrected))
    return bootstrap.interval(ratio, level)


def compare(reference, model):
    """A list of rows, one for each metric that is in both of {NAME: values [1 + B]}, in the order of the reference.

    A row is {"metric", "reference_value", "model_value", "difference", "lo", "hi", "p", "undefined",
    "retention", "retention_lo", "retention_hi"}; p is not corrected for multiple comparisons, see holm().
    """
    rows = []
    for name in reference:
        if name not in model:
            continue
        corrected = bootstrap.biased(name)
        difference = paired(reference[name], model[name], corrected=corrected)
        ratio = retention(reference[name], model[name], corrected=corrected)
        rows.append({"metric": name, "reference_value": float(reference[name][0]),
                     "model_value": float(model[name][0]), "difference": difference["value"],
                     **{key: difference[key] for key in ("lo", "hi", "p", "undefined")}, "retention": ratio["value"],
                     "retention_lo": ratio["lo"], "retention_hi": ratio["hi"]})
    return rows


def mcnemar(reference_correct, model_correct):
    """McNemar's exact test: {"reference_only", "model_only", "p"}.

    reference_correct, model_correct: [n] bool. The first two are the numbers of images that only one of the models
    classifies correctly; p is the exact two-sided p-value of an even split (McNemar 1947; Fay 2010). Images count as
    independent; if lesions have more than one image, the paired bootstrap is the safer test.
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
    """p-values [m] corrected for multiple comparisons (Holm 1979): the family-wise error rate stays below the level.

    NaN stays NaN and is not counted as a comparison.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)[:np.count_nonzero(~np.isnan(p))]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def agreement(labels, reference, model, weights=None):
    """How often the predictions [n] of two models agree, and how they differ, as shares of images that sum to 1.

    {"agreement", "right_to_wrong", "wrong_to_right", "wrong_to_wrong"}: the last three are disagreements, from the
    reference to the model. Floats, or [B] with weights [B, n], how often each image is counted. labels [n].
    """
    if weights is None:
        shares = agreement(labels, reference, model, np.ones((1, len(labels)), dtype=np.uint8))
        return {name: float(share[0]) for name, share in shares.items()}
    labels, reference, model = np.asarray(labels), np.asarray(reference), np.asarray(model)
    differ, reference_right, model_right = reference != model, reference == labels, model == labels
    masks = {"agreement": ~differ, "right_to_wrong": reference_right & ~model_right,
             "wrong_to_right": ~reference_right & model_right,
             "wrong_to_wrong": differ & ~reference_right & ~model_right}
    columns = np.stack([np.ones(len(labels)), *masks.values()], 1)
    # all counts are whole numbers below 2^24, so the product is exact in float32
    counts = weights.astype(np.float32, copy=False) @ columns.astype(np.float32)
    return {name: metrics.ratio(count, counts[:, 0]) for name, count in zip(masks, counts.T[1:].astype(np.float64))}
