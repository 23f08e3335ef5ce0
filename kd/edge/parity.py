"""What an exported model lost: its logits against those of the checkpoint, on the same images."""

import numpy as np

from kd import bootstrap, calibration, metrics, paired


def divergence(reference, logits):
    """Mean over images of KL(reference || model) of their softmaxes, in nats. [n, C], [n, C] -> float."""
    ours, theirs = _log_softmax(reference), _log_softmax(logits)
    return float((np.exp(ours) * (ours - theirs)).sum(1).mean())


def flips(reference, logits):
    """Share of images whose most probable class differs."""
    return float((np.argmax(reference, 1) != np.argmax(logits, 1)).mean())


def compare(held, reference, logits, temperature=None, replicates=bootstrap.REPLICATES):
    """What differs on Predictions `held` (labels, clusters, class_names) between logits [n, C] of two models.

    {"flips", "agreement": as of comparison, "divergence", "largest" logit difference, "macro_f1": {"reference",
    "model", "difference": METRIC with p}, "accuracy": likewise, "ece": {"reference", "model", "shift"}, and
    "ece_calibrated" with a temperature}. Differences are paired, over clusters.
    """
    index, count = bootstrap.clusters(held.clusters)
    weights = bootstrap.resample(count, replicates)
    classes = len(held.class_names)
    scores = [bootstrap.overall(bootstrap.confusions(held.labels, np.argmax(z, 1), classes, index, weights))
              for z in (reference, logits)]
    result = {"images": len(held.labels), "flips": flips(reference, logits),
              "agreement": paired.agreement(held.labels, np.argmax(reference, 1), np.argmax(logits, 1)),
              "divergence": divergence(reference, logits), "largest": float(np.abs(reference - logits).max())}
    for name in ("macro_f1", "accuracy"):
        before, after = (one[name] for one in scores)
        result[name] = {"reference": float(before[0]), "model": float(after[0]),
                        "difference": paired.paired(before, after)}
    for name, divisor in (("ece", 1.0), ("ece_calibrated", temperature)):
        if divisor is not None:
            before, after = (calibration.ece(held.labels, metrics.softmax(z / divisor)) for z in (reference, logits))
            result[name] = {"reference": before, "model": after, "shift": after - before}
    return result


def _log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
