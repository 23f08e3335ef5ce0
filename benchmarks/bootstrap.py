"""The time of bootstrap intervals, compared with a loop over scikit-learn.

    python benchmarks/bootstrap.py

It has as many images as the test split of HAM10000, with the same shares of classes, and 2,000 replicates. The two
sides of a ratio take turns, so that other load affects both; the loop over scikit-learn draws 20 replicates, and its
time is scaled. It needs no training and no data, and takes one minute.
The last line is one JSON object: `macro_f1` (accuracy, macro-F1 and the other metrics of answers, by lesion) and
`auroc` (macro one-vs-rest, with ties among scores) are times faster than scikit-learn; `five_models_seconds` is for all
metrics, raw and calibrated, by lesion, of five models with their paired differences.
Measured on one core of a Xeon with AMX: macro_f1 102 (96 to 118), auroc 375 (348 to 420), five models 0.81 s (0.80 to
0.89).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd import bootstrap, metrics, paired  # noqa: E402

NAMES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
COUNTS = np.array([327, 514, 1099, 115, 1113, 6705, 142])  # HAM10000, 7,470 lesions
IMAGES, LESIONS, LOOP, ROUNDS = 2000, 1490, 20, 7


def main():
    """Measure, and print the tables and the JSON object."""
    sk = import_scikit_learn()
    rng = np.random.default_rng(0)
    labels = rng.choice(7, IMAGES, p=COUNTS / COUNTS.sum())
    lesions = np.unique(rng.integers(LESIONS, size=IMAGES), return_inverse=True)[1]
    models = []
    for _ in range(5):
        logits = np.log(COUNTS / COUNTS.sum()) + rng.normal(size=(IMAGES, 7))
        logits[np.arange(IMAGES), labels] += 2
        models.append(logits)
    probabilities = metrics.softmax(models[0])
    predicted, rounded = probabilities.argmax(1), np.round(probabilities, 2)
    draws = rng.integers(IMAGES, size=(LOOP, IMAGES))

    def macro_f1():
        bootstrap.intervals(bootstrap.overall(predicted, bootstrap.Draws(labels, lesions, 7)))

    def macro_f1_loop():
        scores = [(sk.accuracy_score(labels[i], predicted[i]), sk.f1_score(labels[i], predicted[i], average="macro"))
                  for i in draws]
        np.quantile(scores, [.025, .975], axis=0)

    def auroc():
        weights = bootstrap.resample(IMAGES)
        np.quantile(metrics.mean_defined(metrics.auroc(labels, rounded, weights)), [.025, .975])

    def auroc_loop():
        areas = [np.mean([sk.roc_auc_score(labels[i] == c, rounded[i, c]) for c in range(7)]) for i in draws]
        np.quantile(areas, [.025, .975])

    def five_models():
        shared = bootstrap.Draws(labels, lesions, 7)
        replicates = [bootstrap.replicate(metrics.softmax(logits), shared, NAMES,
                                          calibrated=metrics.softmax(logits / 1.5)) for logits in models]
        for values in replicates:
            bootstrap.intervals(values)
        for values in replicates[1:]:
            paired.compare(replicates[0], values)

    scale = bootstrap.REPLICATES / LOOP
    result, rows = {}, []
    for name, ours, loop in (("macro_f1", macro_f1, macro_f1_loop), ("auroc", auroc, auroc_loop)):
        times = np.array([(seconds(ours), seconds(loop) * scale) for _ in range(ROUNDS)])
        ratios = times[:, 1] / times[:, 0]
        result[name] = round(float(np.median(ratios)), 1)
        rows.append((name, *np.median(times, 0), np.median(ratios), ratios.min(), ratios.max()))
    times = [seconds(five_models) for _ in range(ROUNDS)]
    result["five_models_seconds"] = round(float(np.median(times)), 2)

    print(f"{bootstrap.REPLICATES:,} replicates of {IMAGES:,} images, median of {ROUNDS} rounds in turns")
    print(f"{'':8}{'here':>10}{'scikit-learn':>14}{'ratio':>8}   least to most")
    for name, ours, sklearn, ratio, least, greatest in rows:
        print(f"{name:8}{ours:>9.4f}s{sklearn:>13.1f}s{ratio:>8.0f}   {least:.0f} to {greatest:.0f}")
    print(f"all metrics, raw and calibrated, of five models by lesion, and paired: "
          f"{np.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    print(json.dumps(result))


def import_scikit_learn():
    """The module sklearn.metrics; the program ends if it is not installed."""
    try:
        import sklearn.metrics
    except ImportError:
        sys.exit('error: this compares with scikit-learn\nInstall it: pip install "medmnist-edgeai[test]"')
    return sklearn.metrics


def seconds(function, times=1):
    """The seconds of calling a function `times` times."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
