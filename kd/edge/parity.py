"""Parity of an exported model with its checkpoint: logits of both on the same images -> measures of the difference."""

import numpy as np

from kd import bootstrap, calibration, metrics, paired


def divergence(reference, logits):
    """Mean over images of KL(reference || model) of the softmaxes, in nats: a float.

    reference, logits: [n, C], of the checkpoint and of the exported model.
    """
    return float(metrics.kl_divergences(metrics.softmax(reference), metrics.softmax(logits)).mean())


def flips(reference, logits):
    """Share of images, from 0 to 1, whose most probable class differs between two logits [n, C]."""
    return float((np.argmax(reference, 1) != np.argmax(logits, 1)).mean())


def compare(predictions, reference, logits, temperature=None, replicates=bootstrap.REPLICATES):
    """Differences between the checkpoint and an exported model on the images of Predictions.

    predictions: their labels, clusters and class_names are read. reference, logits: [n, C], of the checkpoint and of
    the exported model. temperature: of the checkpoint, or None.
    Returns {"images", "flips", "agreement": the shares of kd.paired.agreement(), "divergence", "largest": the largest
    difference of logits, "macro_f1": {"reference", "model", "model_lo", "model_hi", "difference": METRIC with p},
    "accuracy": the same, "ece": {"reference", "model", "shift"}}, and with a temperature "ece_calibrated". Differences
    are paired, over clusters.
    """
    labels, both = predictions.labels, (reference, logits)
    reference_classes, model_classes = (np.argmax(z, 1) for z in both)
    draws = bootstrap.draws(labels, predictions.clusters, len(predictions.class_names), replicates)
    scores = [bootstrap.overall(predicted, draws) for predicted in (reference_classes, model_classes)]
    agreement = paired.agreement(labels, reference_classes, model_classes, draws)
    result = {"images": len(labels), "flips": flips(reference, logits),
              "agreement": {name: share.value for name, share in agreement.items()},
              "divergence": divergence(reference, logits), "largest": float(np.abs(reference - logits).max())}
    for name in ("macro_f1", "accuracy"):
        before, after = (values[name] for values in scores)
        difference = after.minus(before)
        bounds = after.metric()
        result[name] = {"reference": before.value, "model": after.value, "model_lo": bounds["lo"],
                        "model_hi": bounds["hi"], "difference": {**difference.metric(), "p": difference.p()}}
    for name, divisor in (("ece", 1.0), ("ece_calibrated", temperature)):
        if divisor is not None:
            before, after = (calibration.ece(labels, metrics.softmax(z / divisor)) for z in both)
            result[name] = {"reference": before, "model": after, "shift": after - before}
    return result
