"""Estimates of all metrics from a smoothed cluster bootstrap: all images of a lesion are drawn together.

Images of one lesion are similar, so intervals that treat them as independent are too narrow (Davison & Hinkley 1997,
section 3.8). A replicate draws as many clusters as there are, with replacement. It is a row of weights, and its counts
are a product of these weights and the counts of each cluster, not a loop.

Three lesions that are all classified correctly do not show that the class is never missed, though every replicate of
them would say so. Replicates are therefore drawn from a smoothed sample (Silverman & Young 1987): a class of m lesions
gets PSEUDO lesions more, which are classified as well or badly as lesions of the other classes are. A figure and its
replicates are not comparable then: the replicates scatter around the figure of the smoothed sample, and
kd.estimate.Estimate has both.

Shapes: n images, C classes, G clusters, B replicates.
"""

import functools

import numpy as np

from kd import calibration, metrics, operating_points
from kd.errors import UserError
from kd.estimate import NAN, Estimate

REPLICATES = 2000  # the variance of so many replicates has a standard error of 3%
MOST_REPLICATES = 20_000  # more take gigabytes and show nothing more
SEED = 0  # the same for all models, so that models tested on the same images get the same replicates
PSEUDO = 2  # lesions of the smoothed sample in a class, as in Agresti & Coull 1998; 1 is too few by simulation
SURPRISE = 0.1  # share of these whose answer is right or wrong by chance, as no classifier always is
FIXED = "it is the same in every sample"  # why a figure has no interval
FEWEST = 5  # clusters, or clusters with an error, below which the simulated intervals do not hold what they promise


def check_replicates(replicates):
    """UserError if the number of replicates is not from 100 to MOST_REPLICATES."""
    if replicates < 100:
        raise UserError(f"--replicates {replicates} is too few for the variance that a 95% interval needs",
                        "Use 100 or more; 2000 is usual.")
    if replicates > MOST_REPLICATES:
        raise UserError(f"--replicates {replicates} is more than {MOST_REPLICATES:,}",
                        "2000 is usual: its variance is known to 3%.")


def clusters(groups):
    """(index [n], G): the cluster of each image, a number from 0 to G - 1, and the number of clusters.

    groups: n names, one for each image. Clusters are sorted by name, so that the order of images in a file has no
    effect.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1), len(names)


def resample(count, replicates=REPLICATES, seed=SEED):
    """Weights [1 + B, G] uint8: how often each of `count` clusters is drawn. Row 0 is the sample itself, all ones.

    uint8 takes a quarter of the memory of int32. A cluster is never drawn more than 255 times: with G <= 255 that is
    impossible, with more clusters its probability is negligible.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + replicates, count), dtype=np.uint8)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return weights


class Draws:
    """What is drawn in the replicates of one test set: clusters, and the lesions of the smoothed sample.

    Models tested on the same images share one object, see draws(). seed: test sets of other images get another, so that
    their replicates are independent. weights [1 + B, G] uint8: how often each cluster is
    drawn; row 0 is the sample itself. Every class of the sample is in every replicate: where none of its clusters was
    drawn, one is added, since figures are of test sets that have the class.
    """

    def __init__(self, labels, index, classes, replicates=REPLICATES, seed=SEED):
        self.labels, self.index, self.classes = labels, index, classes
        self.count = int(index.max()) + 1  # G
        self.support = np.bincount(labels, minlength=classes)
        self.present = np.flatnonzero(self.support)
        self.seed, self.weights = seed, resample(self.count, replicates, seed)
        rng = np.random.default_rng([seed, 1])
        contains = np.zeros((self.count, classes))
        contains[index, labels] = 1
        self.clusters = contains.sum(0).astype(int)  # [C] that have images of a class
        self.drawn = sums(self.weights[1:], contains)  # [B, C]: as many in each replicate
        for k in self.present:
            lacking = np.flatnonzero(self.drawn[:, k] == 0)
            self.weights[1 + lacking, rng.choice(np.flatnonzero(contains[:, k]), len(lacking))] += 1
        self.drawn = np.maximum(sums(self.weights[1:], contains), 1)
        self._smooth(rng)

    def _smooth(self, rng):
        """Draw which lesions of a replicate are of the smoothed sample, and the image that each of them resembles."""
        self.smoothed = PSEUDO / (self.clusters + PSEUDO)  # [C]: their share of the smoothed sample
        self.replaced = rng.binomial(self.drawn.astype(int), np.where(self.support > 0, self.smoothed, 0))  # [B, C]
        # The image that each resembles: classes are equally probable.
        self.chance = 1 / (len(self.present) * self.support[self.labels])
        self.cell, self.model_image, self.luck = self._resembled(rng, self.replaced)
        step = rng.integers(1, max(self.classes, 2), len(self.cell)) * (self.luck < SURPRISE / 2)
        self.surprise_class = (self.cell % self.classes + step) % self.classes
        self.size = self.support / np.maximum(self.clusters, 1)  # [C] images of a lesion

    def _resembled(self, rng, replaced):
        """(b * C + c, image, a number below 1 that decides on surprise), each [D], of all lesions replaced, [B, C]."""
        cell = np.repeat(np.arange(replaced.size), replaced.reshape(-1))
        images = rng.choice(len(self.labels), len(cell), p=self.chance)
        return cell, images, rng.random(len(cell))

    @functools.cached_property
    def images(self):
        """Weights [1 + B, n] of the images."""
        return self.weights[:, self.index]

    def confusions(self, predicted):
        """(of the sample [C, C], center [C, C], drawn [B, C, C]) of predicted classes [n].

        center: of the smoothed sample, from which the others are drawn.
        """
        predicted, classes = np.asarray(predicted), self.classes
        counts = confusions(self.labels, predicted, classes, self.index, self.weights)
        sample, drawn = counts[0].copy(), counts[1:]
        drawn *= (1 - self.replaced / self.drawn)[..., None]
        own = self.cell % classes
        donor = self.model_image
        answer = _as_class(own, self.labels[donor], predicted[donor])
        answer = np.where(self.luck < SURPRISE, self.surprise_class, answer)
        drawn += np.bincount(self.cell * classes + answer, self.size[own], drawn.size).reshape(drawn.shape)
        center = sample * (1 - self.smoothed)[:, None]
        for k in self.present:
            answer = _as_class(k, self.labels, predicted)
            shares = (1 - SURPRISE) * np.bincount(answer, self.chance, classes)
            others = np.arange(classes) != k
            shares[k] += SURPRISE / 2
            shares[others] += SURPRISE / 2 / max(classes - 1, 1)
            center[k] += self.smoothed[k] * self.support[k] * shares
        return sample, center, drawn

    def areas(self, scores):
        """(of the sample [C], center [C], drawn [B, C]) areas under the ROC curve of scores [n, C]; NaN if absent."""
        areas = metrics.auroc(self.labels, scores, self.images)
        placements = metrics.placements(self.labels, scores)
        surprise = 1 / (self.count + 2)  # a placement by chance, which weighs more than a wrong answer
        mean = (1 - surprise) * (self.chance @ placements) + surprise * 0.5
        # an area is of pairs: its negatives can be as few as its positives
        negatives = self.count - self.clusters
        drawn_negatives = np.maximum(self.weights[1:].sum(1, dtype=np.int64)[:, None] - self.drawn, 1)
        smoothed_negatives = PSEUDO / (negatives + PSEUDO)
        rng = np.random.default_rng([self.seed, 3])
        replaced = rng.binomial(drawn_negatives.astype(int), smoothed_negatives)
        drawn = np.array(areas[1:])
        for count, of, resembled in ((self.replaced, self.drawn, (self.cell, self.model_image, self.luck)),
                                     (replaced, drawn_negatives, self._resembled(rng, replaced))):
            cell, images, luck = resembled
            value = np.where(luck < surprise, 0.5, placements[images])
            of_smoothed = np.bincount(cell, value, count.size).reshape(count.shape)
            drawn += (of_smoothed - count * areas[0]) / of
        share = self.smoothed + smoothed_negatives
        return areas[0], areas[0] * (1 - share) + share * mean, drawn

    def rate(self, is_hit):
        """Estimate of the share of the images that are a hit, [n] bool."""
        return self.rates({"": (is_hit, np.ones(len(self.labels), bool))})[""]

    def rates(self, masks):
        """{NAME: Estimate} of {NAME: (is_hit, among)}, masks [n] bool: the share of the images `among` that are a hit.

        PSEUDO clusters more, of which half are hits, make the replicates know what 22 hits of 22 do not show.
        """
        columns = []
        for is_hit, among in masks.values():
            of_images = np.asarray(is_hit, bool) & among, np.asarray(among, bool)
            hits, sizes = (np.bincount(self.index, mask, self.count) for mask in of_images)
            columns += [sizes > 0, hits, sizes]
        sample = np.stack(columns, 1).astype(np.float64)
        totals, drawn = sample.sum(0), sums(self.weights[1:], sample)
        return {name: self._rate(*totals[3 * k:3 * k + 3], *drawn[:, 3 * k:3 * k + 3].T)
                for k, name in enumerate(masks)}

    def _rate(self, clusters, hits, sizes, clusters_drawn, hits_drawn, sizes_drawn):
        """Estimate of hits / sizes in so many clusters; drawn: [B]."""
        if not clusters:
            return Estimate(NAN, None, NAN, "share")
        share = hits / sizes
        share_drawn = np.where(clusters_drawn > 0, hits_drawn / np.maximum(sizes_drawn, 1), share)
        clusters_drawn = np.maximum(clusters_drawn, 1)
        smoothed = PSEUDO / (clusters + PSEUDO)
        rng = np.random.default_rng([self.seed, 2, int(clusters)])
        replaced = rng.binomial(clusters_drawn.astype(int), smoothed)
        share_drawn = share_drawn * (1 - replaced / clusters_drawn) + rng.binomial(replaced, 0.5) / clusters_drawn
        return Estimate(float(share), share_drawn, float(share * (1 - smoothed) + smoothed / 2), "share",
                        withheld=too_few(int(clusters)))


def _as_class(own, labels, predicted):
    """The answers that a classifier with `predicted` to `labels` gives to images of the class `own`.

    It is right where it was right; where it was wrong its answer is the same, or, if that is right now, the label.
    """
    return np.where(predicted == labels, own, np.where(predicted == own, labels, predicted))


@functools.lru_cache(maxsize=4)
def _cached(labels, index, classes, replicates):
    return Draws(np.frombuffer(labels, np.int64), np.frombuffer(index, np.int64), classes, replicates)


def draws(labels, groups, classes, replicates=REPLICATES):
    """Draws of labels [n] with groups [n]; the same object for the same images, which a study's models share."""
    index, _ = clusters(groups)
    return _cached(np.asarray(labels, np.int64).tobytes(), index.astype(np.int64).tobytes(), classes, replicates)


def sums(weights, statistics):
    """Sums [B, K] over clusters, float64: weights [B, G] times statistics [G, K] of each cluster."""
    step = max(1, 2 ** 22 // weights.shape[1])  # 32 MiB of weights as float64 at a time
    parts = [weights[start:start + step].astype(np.float64) @ statistics for start in range(0, len(weights), step)]
    return np.concatenate(parts) if parts else np.zeros((0, statistics.shape[1]))


def confusions(labels, predicted, classes, index, weights):
    """Confusion arrays [B, C, C] of the replicates.

    labels [n], predicted [n]: ints below `classes`, C; index [n] from clusters(); weights [B, G] from resample().
    """
    count = weights.shape[1]
    # With many classes nearly all cells of the matrix are empty; these are left out of the product.
    cells, column = np.unique(labels * classes + predicted, return_inverse=True)
    per_cluster = np.bincount(index * len(cells) + column.reshape(-1), minlength=count * len(cells))
    out = np.zeros((classes * classes, len(weights)))
    out[cells] = sums(weights, per_cluster.reshape(count, len(cells)).astype(np.float64)).T
    return _replicates_last(out, classes)


def _replicates_last(counts, classes):
    """Counts [C * C, B] as [B, C, C]. Replicates stay last in memory, which NumPy sums several times faster."""
    return counts.reshape(classes, classes, -1).transpose(2, 0, 1)


# ---- all metrics


def replicate(probabilities, draws, class_names, calibrated=None, bins=calibration.BINS, rarest=None):
    """{NAME: Estimate} of all metrics of probabilities [n, C].

    calibrated: probabilities [n, C] after temperature scaling; with them the result also has NAME_calibrated for each
    metric that they change. bins: of the calibration errors. rarest: the class number that macro_f1_without_rarest
    leaves out, in the sample and in each replicate; None: it is undefined. The prediction is the class of highest
    probability (the first of equals).
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    estimates, by_class = _of_confusions(draws.confusions(probabilities.argmax(1)), draws, class_names, rarest)
    areas = draws.areas(probabilities)
    estimates["macro_auroc"] = _macro(areas, areas, draws)
    estimates.update(probabilistic(probabilities, draws, bins))
    if calibrated is not None:
        after = probabilistic(np.asarray(calibrated, dtype=np.float64), draws, bins)
        estimates.update({f"{name}_calibrated": estimate for name, estimate in after.items()})
    return {**estimates, **by_class, **_each_class("auroc", areas, draws, class_names)}


def replicate_answers(answers, draws, class_names, rarest=None):
    """Like replicate(), but only the metrics of the predicted classes, answers [n]: much faster."""
    estimates, by_class = _of_confusions(draws.confusions(answers), draws, class_names, rarest)
    return {**estimates, **by_class}


def overall(answers, draws):
    """{NAME: Estimate} of the metrics over all classes, of predicted classes [n]."""
    return _of_confusions(draws.confusions(answers), draws, None)[0]


def constant(answer, draws):
    """{NAME: Estimate} over all classes of a rule that always gives one answer, of which nothing is left unseen."""
    counts = confusions(draws.labels, np.full(len(draws.labels), answer), draws.classes, draws.index, draws.weights)
    return _of_confusions((counts[0], counts[0], counts[1:]), draws, None)[0]


def _of_confusions(confusions, draws, class_names, rarest=None):
    """({NAME: Estimate} over all classes, the same of each class; empty if class_names is None).

    macro_f1_without_rarest is among them where the classes have names.
    """
    def each(metric):
        return tuple(metric(matrix) for matrix in confusions)

    f1, recall, precision = (each(metric) for metric in (metrics.f1, metrics.recall, metrics.precision))
    withheld = too_few(draws.count)
    estimates = {"accuracy": _share(each(metrics.accuracy), withheld),
                 "macro_f1": _macro(each(metrics.macro_f1), f1, draws),
                 **({} if class_names is None else {
                     "macro_f1_without_rarest": _without_rarest(each, f1, draws, rarest)}),
                 "weighted_f1": _share(each(metrics.weighted_f1), withheld),
                 "balanced_accuracy": _macro(each(metrics.balanced_accuracy), recall, draws)}
    if class_names is None:
        return estimates, {}
    by_class = {**_each_class("f1", f1, draws, class_names), **_each_class("recall", recall, draws, class_names),
                **_each_class("precision", precision, draws, class_names)}
    called = confusions[0].sum(0)
    for k, name in enumerate(class_names):  # of a class that is called rarely
        by_class[f"precision/{name}"].withheld = by_class[f"precision/{name}"].withheld or too_few(int(called[k]))
    return estimates, by_class


def _share(figures, withheld="", freedom=np.inf):
    """Estimate of a share: figures are (of the sample, center, drawn [B])."""
    value, center, drawn = figures
    return Estimate(float(value), drawn, float(center), "share", freedom, withheld=withheld)


def _without_rarest(each, f1, draws, rarest):
    """Estimate of macro-F1 without the class number `rarest`. each, f1: as _of_confusions() has them."""
    classes = draws.present[draws.present != rarest]
    if rarest is None or len(classes) < 2:
        return Estimate(NAN, None, NAN, "share")
    return _macro(each(lambda confusion: metrics.macro_f1_without(confusion, rarest)), f1, draws, classes)


def _macro(figures, by_class, draws, classes=None):
    """Estimate of a mean over `classes`, by default those of the sample.

    figures, by_class: each (of the sample, center, drawn). The variance of a rare class is known from few clusters, and
    dominates (Satterthwaite 1946).
    """
    classes = draws.present if classes is None else classes
    if np.ndim(figures[0]):
        figures = tuple(figure[..., classes].mean(-1) for figure in figures)
    variances = np.var(by_class[2][:, classes], axis=0, ddof=1)
    inverse = (variances ** 2 / (draws.clusters[classes] + PSEUDO)).sum()
    freedom = variances.sum() ** 2 / inverse if inverse else np.inf
    return _share(figures, too_few(draws.count), max(freedom, 1.0))


def _each_class(metric, figures, draws, class_names):
    """{"metric/class": Estimate} of figures (of the sample [C], center [C], drawn [B, C])."""
    value, center, drawn = figures
    result = {}
    for k, name in enumerate(class_names):
        if np.isnan(value[k]):
            result[f"{metric}/{name}"] = Estimate(NAN, None, NAN, "share")
        else:
            of_class = np.where(np.isnan(drawn[:, k]), center[k], drawn[:, k])
            result[f"{metric}/{name}"] = _share((value[k], center[k], of_class), too_few(int(draws.clusters[k])))
    return result


def too_few(count, what="independent images"):
    """Why there is no interval from so few clusters; "" where there is one."""
    return f"too few {what} ({count})" if count < FEWEST else ""


def probabilistic(probabilities, draws, bins=calibration.BINS):
    """{NAME: Estimate} of the metrics of probabilities [n, C]: nll, brier, aurc, calibration errors."""
    labels, index, count = draws.labels, draws.index, draws.count
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    of_images = (np.ones(len(labels)), metrics.log_losses(labels, probabilities),
                 metrics.square_losses(labels, probabilities))
    columns = np.stack([np.bincount(index, values, count) for values in of_images], 1)
    n, log_losses, square_losses = sums(draws.weights, columns).T
    losses = {"nll": log_losses / n, "brier": square_losses / n,
              "aurc": operating_points.aurc(correct, confidence, draws.images)}
    # These losses are mostly of the errors, and their variance is known as well as from about twice as many clusters.
    wrong = len(np.unique(index[~correct]))
    right = len(np.unique(index[correct]))
    withheld = too_few(count) or too_few(wrong, "errors") or too_few(right, "right answers")
    estimates = {name: Estimate(float(values[0]), values[1:], float(values[0]), "loss", max(2 * wrong, 1),
                                withheld=withheld) for name, values in losses.items()}
    return {**estimates, **calibration.estimates(labels, probabilities, index, bins, withheld)}


def mean_loss(losses, draws):
    """Estimate of the mean over the images of losses [n] that are 0 or more.

    Where a few clusters have most of the loss its variance is known as badly as from so few: the degrees of freedom
    follow from the fourth moment of what the clusters add to it.
    """
    losses = np.asarray(losses, dtype=np.float64)
    columns = np.stack([np.bincount(draws.index, values, draws.count) for values in (np.ones(len(losses)), losses)], 1)
    sizes, totals = sums(draws.weights, columns).T
    means = totals / sizes
    squares = (columns[:, 1] - means[0] * columns[:, 0]) ** 2
    uncertainty = (squares ** 2).sum() - squares.sum() ** 2 / draws.count
    freedom = 2 * squares.sum() ** 2 / uncertainty if uncertainty > 0 else draws.count
    return Estimate(float(means[0]), means[1:], float(means[0]), "loss", min(max(float(freedom), 1.0), draws.count),
                    withheld=too_few(draws.count))


def intervals(estimates):
    """{NAME: METRIC} of {NAME: Estimate}, which replicate() returns.

    A figure that no sample can change, such as the AUROC of equal scores, is true by definition and has no interval.
    """
    measured = {name: estimate.metric() for name, estimate in estimates.items()}
    return {name: {**metric, "lo": NAN, "hi": NAN, "withheld": FIXED} if metric["hi"] - metric["lo"] < 1e-12 else metric
            for name, metric in measured.items()}


def measure(labels, probabilities, groups, class_names, replicates=REPLICATES, calibrated=None, bins=calibration.BINS):
    """{NAME: METRIC} of all metrics of labels [n] and probabilities [n, C] with groups [n]."""
    drawn = draws(labels, groups, len(class_names), replicates)
    rarest = metrics.rarest_class(drawn.support, class_names)
    return intervals(replicate(probabilities, drawn, class_names, calibrated, bins, rarest))
