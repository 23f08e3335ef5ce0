"""How many of the intervals hold the truth, by simulation: the table of docs/intervals.md.

    python benchmarks/coverage.py                     every design, 300 data sets each; about 40 minutes of one core
    python benchmarks/coverage.py --sets 100 --design 7 115 random

A population of lesions with one to six images is drawn from Gaussian scores, in which the probability of a class is
known: the classifier is calibrated exactly, or over-confident by a factor. Two classifiers are equally good and make
related errors. The truth of each figure is that of 400,000 images. A design is the number of classes, the number of
lesions of a test set, and whether its classes are drawn at random or by their shares. For each figure the program
prints the share of the 95% intervals that hold the truth; for a difference, the share of p-values of at least .05,
where there is no difference. An asterisk marks what is not in range. `promise` is the share of thresholds, chosen
on another test set, that keep their sensitivity in the population; the promise is .9. `seeds` compares two equal
methods of three trainings each, whose quality varies from one training to the next; `folds` compares two methods
trained on five folds. `gap` is between a tenth of the lesions and the others. Shares of n sets have a standard error
of sqrt(.95 * .05 / n): .013 for 300.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd import bootstrap, calibration, metrics, operating_points  # noqa: E402
from kd.estimate import Estimate  # noqa: E402
from kd.text import align_columns  # noqa: E402

SHARES = {2: [0.8, 0.2], 7: [.0327, .0513, .1097, .0115, .1111, .6695, .0142],  # of HAM10000
          40: 1 / np.arange(1, 41) ** 0.8}
IMAGES = [0.78, 0.14, 0.04, 0.02, 0.012, 0.008]  # shares of lesions with one to six images
SIGNAL, SAME_LESION, SAME_IMAGE = 2.2, 0.6, 0.6  # distance of the means; correlations of the noise
DESIGNS = [(7, 115, "random"), (7, 115, "stratified"), (7, 350, "random"), (7, 1500, "random"), (2, 115, "random"),
           (2, 350, "random"), (40, 350, "random"), (40, 1500, "random")]
FIGURES = ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "macro_auroc", "nll", "brier", "aurc",
           "rms_ce_debiased")
BY_CLASS = ("f1", "recall", "precision", "auroc")
SEED_SPREAD = 0.05  # of the signal of one training


def main():
    options = parser().parse_args()
    designs = [(int(options.design[0]), int(options.design[1]), options.design[2])] if options.design else DESIGNS
    rows = {}
    titles = []
    for classes, lesions, drawn in designs:
        for factor in (1.0, 1.5):
            start = time.perf_counter()
            kind = "calibrated" if factor == 1 else "over-confident"
            title = f"{classes} classes, {lesions} lesions, {drawn}, {kind}"
            titles.append(title)
            counts = simulate(Population(classes, factor), lesions, drawn == "stratified", options.sets,
                              options.replicates, options.seed)
            for name, (held, total) in counts.items():
                sets = options.sets / 3 if "," in name else options.sets
                rows.setdefault(name, {})[title] = cell(name, held, total, sets)
            print(f"{title}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    numbers = range(1, len(titles) + 1)
    table = [["|", *(f"| {number}" for number in numbers), "|"], ["| ---"] * (len(titles) + 1) + ["|"]]
    table += [[f"| {name}", *(f"| {row.get(title, '')}" for title in titles), "|"] for name, row in rows.items()]
    print(align_columns(table))
    print("\n" + "\n".join(f"{number}. {title}" for number, title in enumerate(titles, 1)))


def cell(name, held, total, sets):
    """The share as text, with an asterisk where it is not in range; "–" where few data sets have an interval.

    In range is .93 to .98 for an interval, from .93 for a p-value, and from .88 for a promise of .9.
    """
    if total < sets / 3:
        return "–"
    share = round(held / total, 2)
    least = 0.88 if name == "promise" else 0.93
    most = 0.98 if name in FIGURES or name.endswith("of a class") else 1.0
    return f"{share:.2f}" + ("" if least <= share <= most else "\\*")


def parser():
    """The command line."""
    result = argparse.ArgumentParser(description="Coverage of the intervals, by simulation.")
    result.add_argument("--sets", type=int, default=300, help="data sets of each design")
    result.add_argument("--replicates", type=int, default=500, help="of the bootstrap")
    result.add_argument("--seed", type=int, default=1, help="of the data sets")
    result.add_argument("--design", nargs=3, metavar=("CLASSES", "LESIONS", "random|stratified"))
    return result


class Population:
    """Lesions of known classes, and the probabilities that two equally good classifiers give to their images.

    factor: by which the logits are multiplied; with 1 the probabilities are exactly those of the labels.
    """

    def __init__(self, classes, factor):
        self.classes, self.factor = classes, factor
        self.shares = np.array(SHARES[classes]) / np.sum(SHARES[classes])
        self.names = [f"class {k}" for k in range(classes)]

    def draw(self, rng, lesion_labels, sizes, signals=(SIGNAL, SIGNAL)):
        """(labels [n], lesion of each image [n], [probabilities [n, C] of each classifier]). signals: of each."""
        lesion = np.repeat(np.arange(len(lesion_labels)), sizes)
        labels, n = lesion_labels[lesion], len(lesion)

        def noise():
            of_lesion = rng.normal(size=(len(lesion_labels), self.classes))[lesion]
            return SAME_LESION ** 0.5 * of_lesion + (1 - SAME_LESION) ** 0.5 * rng.normal(size=(n, self.classes))

        common, probabilities = noise(), []
        for signal in signals:
            scores = SAME_IMAGE ** 0.5 * common + (1 - SAME_IMAGE) ** 0.5 * noise()
            scores[np.arange(n), labels] += signal
            logits = self.factor * (SIGNAL * scores + np.log(self.shares))
            probabilities.append(metrics.softmax(logits))
        return labels, lesion, probabilities

    def sample(self, rng, lesions, is_stratified, signals=(SIGNAL, SIGNAL)):
        """A test set: what draw() returns."""
        if is_stratified:
            counts = np.maximum(1, np.round(self.shares * lesions)).astype(int)
            labels = np.repeat(np.arange(self.classes), counts)
        else:
            labels = rng.choice(self.classes, lesions, p=self.shares)
        return self.draw(rng, labels, 1 + rng.choice(6, len(labels), p=IMAGES), signals)

    def truth(self, images=400_000):
        """(labels, probabilities) of so many images, each of its own lesion."""
        rng = np.random.default_rng(12345)
        labels = rng.choice(self.classes, images, p=self.shares)
        labels, _, (probabilities, _) = self.draw(rng, labels, np.ones(images, int))
        return labels, probabilities


class Truth:
    """The figures of a population, for test sets with other shares of classes, too."""

    def __init__(self, population):
        self.population = population
        self.labels, self.probabilities = labels, probabilities = population.truth()
        predicted, classes = probabilities.argmax(1), population.classes
        confusion = metrics.confusion(labels, predicted, classes).astype(float)
        self.rows = confusion / confusion.sum(1, keepdims=True)  # P(predicted | class)
        self.areas = metrics.auroc(labels, probabilities)
        log, square = metrics.log_losses(labels, probabilities), metrics.square_losses(labels, probabilities)
        self.losses = {name: np.bincount(labels, values) / np.bincount(labels)
                       for name, values in (("nll", log), ("brier", square))}
        self.fixed = {"aurc": operating_points.aurc(predicted == labels, probabilities.max(1)),
                      "rms_ce_debiased": 0.0 if population.factor == 1 else
                      calibration.rms_ce_debiased(labels, probabilities)}

    def figures(self, labels, lesion, is_stratified):
        """{NAME: the truth} for a test set like this one: of its classes, and if it is stratified of their shares."""
        support = np.bincount(labels, minlength=self.population.classes)
        shares = self.population.shares
        if is_stratified:
            of_lesion = labels[np.unique(lesion, return_index=True)[1]]
            shares = np.bincount(of_lesion, minlength=len(support)) / len(of_lesion)
        counts, present = self.rows * shares[:, None], support > 0
        f1 = metrics.f1(counts)
        result = {"accuracy": np.trace(counts), "weighted_f1": f1 @ shares, "macro_f1": f1[present].mean(),
                  "balanced_accuracy": np.diag(self.rows)[present].mean(), "macro_auroc": self.areas[present].mean(),
                  **{name: of_class @ shares for name, of_class in self.losses.items()}}
        if not is_stratified:
            result.update(self.fixed)
        for k, name in enumerate(self.population.names):
            result.update({f"f1/{name}": f1[k], f"recall/{name}": self.rows[k, k],
                           f"precision/{name}": counts[k, k] / counts[:, k].sum(), f"auroc/{name}": self.areas[k]})
        return result


def simulate(population, lesions, is_stratified, sets, replicates, seed=1):
    """{name: [times that the interval held the truth, or the difference had p >= .05; times that there was one]}."""
    truth, rng, counts = Truth(population), np.random.default_rng(seed), {}

    def count(name, holds):
        entry = counts.setdefault(name, [0, 0])
        entry[0] += bool(holds)
        entry[1] += 1

    for number in range(sets):
        labels, lesion, models = population.sample(rng, lesions, is_stratified)
        draws = bootstrap.Draws(labels, lesion, population.classes, replicates)
        first, second = (bootstrap.replicate(probabilities, draws, population.names) for probabilities in models)
        for name, value in truth.figures(labels, lesion, is_stratified).items():
            metric = first[name].metric()
            if np.isfinite(metric["lo"]):
                figure, _, of_class = name.partition("/")
                count(f"{figure} of a class" if of_class else figure, metric["lo"] <= value <= metric["hi"])
        for name in FIGURES:
            p = second[name].minus(first[name]).p()
            if np.isfinite(p):
                count(f"difference of {name}", p >= .05)
        _promises(population, truth, labels, lesion, models[0], count)
        _gap(rng, labels, lesion, models[0], replicates, count)
        if number % 3 == 0:  # they take three to ten times as long
            _trainings(population, rng, lesions, is_stratified, replicates, count)
    return counts


def _promises(population, truth, labels, lesion, probabilities, count):
    """Whether the thresholds of the two rarest classes, chosen on this set, keep their promise in the population."""
    for k in np.argsort(population.shares)[:2]:
        positive = labels == k
        threshold, promised = operating_points.threshold_for(0.95, positive, probabilities[:, k], groups=lesion)
        if np.isfinite(threshold):
            count("promise", (truth.probabilities[truth.labels == k, k] >= threshold).mean() >= promised)


def _gap(rng, labels, lesion, probabilities, replicates, count):
    """The gap in accuracy between a tenth of the lesions, drawn at random, and the others, which is 0 in truth."""
    names = np.unique(lesion)
    is_small = np.isin(lesion, rng.choice(names, max(5, len(names) // 10), replace=False))
    figures = []
    for seed, rows in enumerate((is_small, ~is_small), 1):
        index, classes = bootstrap.clusters(lesion[rows])[0], probabilities.shape[1]
        draws = bootstrap.Draws(labels[rows], index, classes, replicates, seed)
        figures.append(bootstrap.overall(probabilities[rows].argmax(1), draws)["accuracy"])
    p = figures[0].gap_p(figures[1])
    if np.isfinite(p):
        count("gap in accuracy", p >= .05)


def _trainings(population, rng, lesions, is_stratified, replicates, count):
    """Two equal methods, of three trainings on one test set, and trained on five folds."""
    def signals(number):
        return SIGNAL * (1 + SEED_SPREAD * rng.normal(size=number))

    labels, lesion, models = population.sample(rng, lesions, is_stratified, signals(6))
    draws = bootstrap.Draws(labels, lesion, population.classes, replicates)
    values = [bootstrap.overall(probabilities.argmax(1), draws)["macro_f1"] for probabilities in models]
    pairs = [b.minus(a) for a, b in zip(values[:3], values[3:])]
    count("seeds, macro_f1", Estimate.mean(pairs, trainings=True).p() >= .05)
    pairs, sizes = {"accuracy": [], "macro_f1": []}, []
    for _ in range(5):
        labels, lesion, models = population.sample(rng, lesions // 5, is_stratified, signals(2))
        draws = bootstrap.Draws(labels, lesion, population.classes, replicates)
        a, b = (bootstrap.overall(probabilities.argmax(1), draws) for probabilities in models)
        for name, of_folds in pairs.items():
            of_folds.append(b[name].minus(a[name]))
        sizes.append(len(labels))
    for name, of_folds in pairs.items():
        count(f"folds, {name}", Estimate.pooled(of_folds, sizes).p() >= .05)


if __name__ == "__main__":
    main()
