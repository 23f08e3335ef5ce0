"""Ways of fitting a network to the cases of another site, compared on predictions: the table of docs/site.md.

    python benchmarks/recalibration.py RUN NAME [--patients 100 300 1000] [--draws 30]

Reads RUN/predictions/NAME.npz (of evaluate.py --data), val.npz, and the training shares in split.csv. In each draw half
of the patients are for the test; of the others so many are fitted on. The means over draws of NLL, accuracy, macro-F1
and the classwise calibration error on the test half are printed, for

    own            the temperature of the run's validation split
    temperature    a temperature of the site
    counted        shares of classes counted at the site (with half an image more of each) over those that the network
                   answers with, the prior correction of Saerens et al. 2002, and a temperature after it; these are the
                   shares of training to the power of 1 - tau of --hard logit_adjusted
    ridge 0.3      offsets of the logits and temperature together, with a weak penalty
    chosen ridge   the same, its penalty by cross-validation within the part fitted on: evaluate.py --recalibrate
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd import calibration, metrics  # noqa: E402
from kd.run_folder import Run  # noqa: E402
from kd.text import align_columns  # noqa: E402


def main():
    options = parser().parse_args()
    run, (val, site) = Run(options.run), Run(options.run).predictions(options.name)
    labels = [row["label"] for row in run.split if row["split"] == "train"]
    trained = np.array([max(labels.count(name), 0.5) for name in val.class_names]) ** (1 - tau(run))
    rows = [["patients fitted on", "way", "NLL", "accuracy", "macro F1", "classwise ECE"]]
    for patients in options.patients:
        figures = {}
        for draw in range(options.draws):
            order = np.random.default_rng(draw).permutation(np.unique(site.clusters))
            half = len(order) // 2
            fit, test = (site.take(np.isin(site.clusters, some)) for some in (order[:half][:patients], order[half:]))
            for way, logits in ways(val, trained, fit, test).items():
                figures.setdefault(way, []).append(measure(test.labels, logits))
        rows += [[min(patients, half), way, *(f"{mean:.3f}" for mean in np.mean(values, 0))]
                 for way, values in figures.items()]
    print(align_columns(rows))


def tau(run):
    """Of the logit adjustment that the network of a Run was trained with; 0 without."""
    name, *values = str(run.setting("hard")).split(",")
    given = [float(value.partition("=")[2]) for value in values if value.startswith("tau=")]
    return (given or [1.0])[0] if name == "logit_adjusted" else 0.0


def ways(val, trained, fit, test):
    """{way: logits [n, C] of Predictions `test`, from which probabilities follow}; trained: shares it answers with."""
    own = calibration.fit_temperature(val.scores, val.labels).value
    counts = np.bincount(fit.labels, minlength=len(trained)) + 0.5
    offsets = {"temperature": np.zeros(len(trained)),
               "counted": own * np.log(counts / counts.sum() / (trained / trained.sum()))}
    with mock.patch.object(calibration, "RIDGES", (0.3,)):
        offsets["ridge 0.3"], _ = calibration.fit_offsets(fit.scores, fit.labels, fit.clusters)
    offsets["chosen ridge"], _ = calibration.fit_offsets(fit.scores, fit.labels, fit.clusters)
    return {"own": test.scores / own, **{
        way: (test.scores + added) / calibration.fit_temperature(fit.scores + added, fit.labels).value
        for way, added in offsets.items()}}


def measure(labels, logits):
    """NLL, accuracy, macro-F1 and classwise calibration error."""
    counts = metrics.confusion(labels, logits.argmax(1), logits.shape[1])
    p = metrics.softmax(logits)
    return metrics.nll(labels, p), metrics.accuracy(counts), metrics.macro_f1(counts), calibration.ece_classwise(
        labels, p)


def parser():
    """The command line."""
    result = argparse.ArgumentParser(description="Ways of recalibrating a network for another site.")
    result.add_argument("run", metavar="RUN", help="a seed's folder")
    result.add_argument("name", metavar="NAME", help="of the external predictions")
    result.add_argument("--patients", type=int, nargs="+", default=[100, 300, 1000], help="to fit on")
    result.add_argument("--draws", type=int, default=30, help="random halves")
    return result


if __name__ == "__main__":
    main()
