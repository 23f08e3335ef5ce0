"""Comparison of two models on the same images: paired differences and tests.

Differences are taken replicate by replicate, so images that are difficult for both models cancel out; see
kd.estimate.Estimate and kd.bootstrap.Draws.
"""

import numpy as np

from kd import bootstrap, metrics


def compare(reference, model, differences=None):
    """A list of rows, one for each metric that is in both of {NAME: Estimate}, in the order of the reference.

    A row is {"metric", "reference_value", "reference_lo", "reference_hi", "reference_withheld": why there is no
    interval, the same of "model", "difference", "lo", "hi", "withheld", "p", "retention", "retention_lo",
    "retention_hi", "retention_withheld"}; p is not corrected for multiple comparisons, see holm().
    differences: {NAME: Estimate} of the differences, where they are not simply those of the two.
    """
    rows = []
    for name in reference:
        if name not in model:
            continue
        difference = differences[name] if differences else model[name].minus(reference[name])
        row = {"metric": name}
        for prefix, value, estimate in (("reference_", "reference_value", reference[name]),
                                        ("model_", "model_value", model[name]), ("", "difference", difference),
                                        ("retention_", "retention", model[name].over(reference[name]))):
            metric = estimate.metric()
            row.update({value: metric["value"], f"{prefix}lo": metric["lo"], f"{prefix}hi": metric["hi"],
                        f"{prefix}withheld": metric.get("withheld", "")})
        rows.append({**row, "p": difference.p()})
    return rows


def metric(row, figure):
    """METRIC of one of the figures of a row of compare(): "difference", "retention", "reference" or "model"."""
    prefix, value = {"difference": ("", "difference"), "retention": ("retention_", "retention")}.get(
        figure, (f"{figure}_", f"{figure}_value"))
    return {"value": row[value], **{key: row[f"{prefix}{key}"] for key in ("lo", "hi", "withheld")}}


def disagreements(reference_correct, model_correct):
    """{"reference_only", "model_only"}: how many images only one of the models classifies correctly; [n] bool each."""
    reference_correct, model_correct = np.asarray(reference_correct, bool), np.asarray(model_correct, bool)
    return {"reference_only": int((reference_correct & ~model_correct).sum()),
            "model_only": int((~reference_correct & model_correct).sum())}


def holm(p):
    """p-values [m] corrected for multiple comparisons (Holm 1979): the family-wise error rate stays below the level.

    NaN stays NaN and is not counted as a comparison.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)[:np.count_nonzero(~np.isnan(p))]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def agreement(labels, reference, model, draws):
    """{"agreement", "right_to_wrong", "wrong_to_right", "wrong_to_wrong"}: Estimates of shares of the images.

    labels, reference, model: [n] true classes, predicted classes of each. agreement: the same class; right_to_wrong:
    only the reference is right; wrong_to_right: only the model is; wrong_to_wrong: both are wrong, in different ways.
    """
    labels, reference, model = np.asarray(labels), np.asarray(reference), np.asarray(model)
    differ, reference_right, model_right = reference != model, reference == labels, model == labels
    masks = {"agreement": ~differ, "right_to_wrong": reference_right & ~model_right,
             "wrong_to_right": ~reference_right & model_right,
             "wrong_to_wrong": differ & ~reference_right & ~model_right}
    return draws.rates({name: (mask, np.ones(len(labels), bool)) for name, mask in masks.items()})


def fidelity(labels, teacher, student, draws):
    """How near a student is to its teacher (Stanton et al. 2021, 2106.05945), as Estimates over the images.

    labels [n]; teacher, student: probabilities [n, C] of the same images. Returns
    agreement: the share of the images with the same most probable class, as agreement() has it;
    agreement_where_teacher_wrong: the same among the images that the teacher gets wrong; undefined where there is none;
    kl_teacher_student: the mean of KL(teacher || student), in nats, at the temperature 1.
    """
    labels, answer_of_teacher = np.asarray(labels), np.argmax(teacher, 1)
    same = answer_of_teacher == np.argmax(student, 1)
    shares = draws.rates({"agreement": (same, np.ones(len(labels), bool)),
                          "agreement_where_teacher_wrong": (same, answer_of_teacher != labels)})
    return {**shares, "kl_teacher_student": bootstrap.mean_loss(metrics.kl_divergences(teacher, student), draws)}
