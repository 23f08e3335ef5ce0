"""Rules about figures of metrics: values that no network can have, and figures that predictions do not give."""

import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np

from kd.audit import recompute
from kd.audit.rule import rule
from kd.errors import UserError, listing
from kd.text import format_count, is_defined


@rule("error", "Each test image is in one subgroup of a column: their numbers and their right answers add up to those "
      "of all images, and a gap is the difference of two of them.",
      "Evaluate the run again with --by; then look at who wrote these figures.")
def subgroups_that_do_not_add_up(written):
    images = written.get("split", {}).get("test", {}).get("images")
    accuracy = written.get("test", {}).get("accuracy", {}).get("value")
    for column, content in written.get("subgroups", {}).items():
        parts = {part["name"]: part for part in content["subgroups"]}
        counts = [part["images"] for part in parts.values()]
        total, margin = sum(counts), 1e-6 * sum(counts)
        rights = [part["images"] * (value if is_defined(value) else 0) for part in parts.values()
                  for value in [part["test"].get("accuracy", {}).get("value")]]
        if not all(type(n) is int and 0 < part["groups"] <= n for n, part in zip(counts, parts.values())):
            yield f"a subgroup of {column} has no whole number of images and groups"
        elif images is not None and total != images:
            yield f"the subgroups of {column} have {format_count(total, 'image')}, the test split {images:,}"
        elif any(abs(right - round(right)) > margin for right in rights):
            yield f"the accuracy of a subgroup of {column} is no share of its images"
        elif is_defined(accuracy) and abs(sum(rights) - accuracy * total) > margin:
            yield (f"of the subgroups of {column} {sum(rights):.0f} images are answered rightly, of the test split "
                   f"{accuracy * total:.0f}")
        for gap in content["gaps"]:
            ends = [parts.get(gap[end], {}).get("test", {}).get(gap["metric"], {}).get("value")
                    for end in ("highest", "lowest")]
            if None in ends or gap["value"] is None or abs(ends[0] - ends[1] - gap["value"]) > 1e-9:
                yield f"the gap in {gap['metric']} by {column} is not that of {gap['highest']} over {gap['lowest']}"
            elif None not in (gap["lo"], gap["hi"]) and not gap["lo"] - 1e-9 <= gap["value"] <= gap["hi"] + 1e-9:
                yield f"the gap in {gap['metric']} by {column} is not in its interval"
            elif None not in (gap["p"], gap["p_corrected"]) and not 0 <= gap["p"] <= gap["p_corrected"] <= 1:
                yield f"the p-values of the gap in {gap['metric']} by {column} are not from 0 to 1, or not in order"


@rule("error", "Every confidence is 1, so the calibration error equals the error rate. A temperature at the lower "
      "bound of its search does this: the calibrated probabilities mean nothing.",
      "Fit the temperature again, on validation, in log T, between bounds that it does not reach; state it.")
def ece_is_error_rate(figures, confusions=None):
    for split, source, figure_of in _by_file(figures):
        if split in (confusions or {}) and confusions[split].sum() < 20:
            continue  # a few images may well all be answered with certainty
        error_rate = 1 - figure_of["accuracy"].value if "accuracy" in figure_of else 0
        if error_rate <= 0.01:
            continue  # the confidences of a network that is nearly always right may well all be nearly 1
        for suffix in ("", "_calibrated"):
            names = (name + suffix for name in ("ece", "ece_equal_mass"))
            eces = {name: figure_of[name] for name in names if name in figure_of}
            brier = figure_of.get("brier" + suffix)
            if brier and abs(brier.value - 2 * error_rate) > 0.005 + brier.tolerance:
                continue  # with confidences of 1 it is twice the error rate; so the ECE is equal by chance
            margin = min(5e-4, 0.01 * error_rate)
            near = [abs(ece.value - error_rate) <= margin + ece.tolerance * (ece.tolerance < 1e-3)
                    for ece in eces.values()]
            if eces and all(near):
                values = ", ".join(f"{name} is {ece}" for name, ece in eces.items())
                twice = f"; Brier {brier} is twice as much" if brier else ""
                severity = "error" if brier or len(eces) > 1 else "warning"
                yield severity, f"on {split} 1 - accuracy is {error_rate:.5f}, and {values}{twice} ({source})"


@rule("error", "A mean NLL this high needs probabilities of the true class that are practically zero: logits divided "
      "by a tiny temperature, or a logarithm of something else.",
      "Compute NLL from the raw logits; then check what the temperature did to them.")
def nll_beyond_reason(figures):
    for split, source, figure_of in _by_file(figures):
        error_rate = 1 - figure_of["accuracy"].value if "accuracy" in figure_of else math.nan
        for name in ("nll", "nll_calibrated"):
            if name not in figure_of:
                continue
            nll = figure_of[name].value
            if nll > max(5, 50 * error_rate):
                per_error = nll / error_rate if error_rate else math.inf
                yield (f"{name} on {split} is {nll:.4g}, with an accuracy of {1 - error_rate:.3f}: "
                       f"{per_error:.0f} nats for each wrong image ({source})")


def _by_file(figures):
    """[(split, source, {metric: Figure})]: the Figures of one split in one file."""
    tables = defaultdict(dict)
    for figure in figures:
        tables[figure.split, figure.source][figure.metric] = figure
    return [(split, source, figure_of) for (split, source), figure_of in tables.items()]


@rule("error", "A search that ends at its bound has found no best value: all confidences become 1, or all equal, and "
      "no calibrated figure means anything. A perfect or tiny validation set causes it.",
      "Report raw figures only, or fit on a larger validation set.")
def temperature_at_bound(temperature):
    keys = ("value", "lo", "hi", "before", "after")
    value, lo, hi, before, after = (temperature.get(key, math.nan) for key in keys)
    number = "" if math.isnan(value) else f" {value:.4g}"
    if value > 0 and lo > 0 and value <= lo * 1.01 or value <= 0:
        yield f"temperature{number}, and the lower bound of its search is {lo:.4g}"
    elif hi > 0 and value >= hi / 1.01:
        yield f"temperature{number}, and the upper bound of its search is {hi:.4g}"
    elif math.isnan(lo) and (value <= 0.05 or value >= 20):
        yield f"temperature{number}, the value of a search's bound: no network needs one so far from 1"
    elif after > before + 1e-9:
        yield f"temperature{number} raises NLL on validation, from {before:.4f} to {after:.4f}"
    elif math.isnan(value) and temperature.get("reason"):
        yield f"no temperature could be fitted: {temperature['reason']}"


# ---- figures that the predictions do not give


@rule("error", "The figure was changed after it was computed, it belongs to other predictions, or a version of this "
      "project computed it that differs and does not say so.",
      "Evaluate again: `python evaluate.py RUN` writes metrics.json anew from the predictions.")
def other_than_recomputed(written, test, val=None, teachers=(), teacher_name=None):
    try:
        differing = recompute.differences(written, val, test, teachers, teacher_name)
    except recompute.FAILURES as error:
        what = error.message if isinstance(error, UserError) else "they do not fit its predictions"
        yield f"metrics.json states settings with which nothing can be computed: {what}"
        return
    if differing:
        texts = [f"{path}: {recompute.text(stated)} stated, {recompute.text(recomputed)} recomputed"
                 for path, stated, recomputed in differing]
        yield f"metrics.json is not what its predictions give: {listing(texts, 4)}"


@rule("note", "Another version of the evaluation wrote it, or another system. Only its figures and its "
      "temperature were computed again, not intervals and operating points.",
      "Evaluate again: `python evaluate.py RUN` writes metrics.json anew from the predictions.", requires="written")
def another_version(cases):
    names = [case.name for case in cases if case.test is not None and not recompute.is_current(case.written)]
    if names:
        yield f"metrics.json of {listing(names)}"


@rule("error", "An interval holds the values that the data allow, and so the value itself. One of the two was changed, "
      "or they are of different data.", "Evaluate again.")
def outside_its_interval(written=None, means=()):
    older = written and not recompute.is_current(written)
    outside = [(f"metrics.json {path}", *numbers) for path, *numbers in recompute.outside(written or {})
               if not (older and recompute.is_calibration_error(path))]
    outside += [(f"{mean.source} {mean.metric}", mean.value, mean.lo, mean.hi) for mean in means
                if not mean.lo - mean.tolerance <= mean.value <= mean.hi + mean.tolerance
                and not math.isnan(mean.lo + mean.hi) and not recompute.is_calibration_error(mean.metric)]
    if outside:
        texts = [f"{path} {value:.4g} [{lo:.4g}, {hi:.4g}]" for path, value, lo, hi in outside]
        yield f"{format_count(len(texts), 'value')} outside the own interval: {listing(texts, 4)}"


@rule("error", "A network that knows nothing has an AUROC of .5. Below it the answers are turned round: scores of "
      "another class, of the opposite question, or labels in another order.",
      "Check which class each column of the scores belongs to, and which label means ill.")
def auroc_below_half(figures=(), test=None, class_names=()):
    if test is None:
        for figure in figures:
            if figure.metric == "macro_auroc" and figure.value < 0.45:
                yield f"macro AUROC {figure} on {figure.split} ({figure.source})"
        return
    areas = {}  # class -> (AUROC, its standard error if the scores say nothing)
    clusters = test.clusters
    for k, name in enumerate(class_names):
        positive = test.labels == k
        fewest = [len(np.unique(clusters[rows])) for rows in (positive, ~positive)]
        if min(fewest) >= 10:
            error = math.sqrt((1 / fewest[0] + 1 / fewest[1]) / 12)  # Mann and Whitney 1947, of lesions
            areas[name] = _auroc(positive, test.probabilities[:, k]), error
    if not areas:
        return
    values, errors = map(np.array, zip(*areas.values()))
    macro, error = values.mean(), math.sqrt((errors ** 2).sum()) / len(errors)
    low = [f"{name} {value:.3f}" for name, (value, error) in areas.items() if value < 0.5 - 4 * error]
    if macro < 0.5 - 2.5 * error:
        severity = "error" if macro < 0.5 - 3.3 * error else "warning"
        yield severity, f"AUROC on test, mean of {len(areas)} classes, is {macro:.3f}: {listing(low or areas)}"
    elif low:
        yield "warning", f"AUROC on test is below .5 beyond chance: {listing(low)}"


def _auroc(positive, scores):
    """Share of pairs of a positive and a negative image in which the positive has the higher score; ties count half."""
    _, rank, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[rank]
    n = positive.sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


MOST_IMAGES = 10 ** 5  # of a test set of which a table tells nothing but its accuracy


@rule("error", "Accuracy is a number of right images over the number of images. Another number is a mean of means (of "
      "batches, folds or classes), is of another test set than the others, or nobody measured it.",
      "Count right images and images over the whole test set, and divide once.", requires="table")
def no_share_of_images(cases):
    tables = defaultdict(list)  # (folder, file) -> [(case, Figure)]
    for case in cases:
        for figure in _accuracies(case):
            if not figure.mean:
                tables[case.table, figure.source].append((case, figure))
    for entries in tables.values():
        shares = [_share(figure.value, figure.tolerance) for _, figure in entries if figure.tolerance <= 1e-9]
        common = _common(Counter(share.denominator for share in shares if share is not None), len(shares))
        for case, figure in entries:
            size = case.images or common
            count = round(figure.value * size) if size else 0
            if size and figure.tolerance < 0.25 / size:
                if abs(figure.value - count / size) > figure.tolerance + 1e-12:
                    stated = "" if case.images else ", as the others of this table are"
                    yield (f"{case.name}: accuracy {figure.value:.10g} is no multiple of 1/{size}{stated} "
                           f"({figure.source})")
            elif figure.tolerance <= 1e-9 and _share(figure.value, figure.tolerance) is None:
                yield (f"{case.name}: accuracy {figure.value:.12g} is no share of any number of images up to "
                       f"{MOST_IMAGES:,} ({figure.source})")


def _accuracies(case):
    """Figures of accuracy on test of a Case, on clean and corrupted images."""
    yield from (figure for figure in case.figures if (figure.metric, figure.split) == ("accuracy", "test"))
    yield from (scores["accuracy"] for scores in case.corruptions.values() if "accuracy" in scores)


def _share(value, tolerance):
    """The Fraction of at most MOST_IMAGES that rounds to this value, or None."""
    share = Fraction(value).limit_denominator(MOST_IMAGES)
    return share if abs(float(share) - value) <= tolerance + 1e-15 else None


def _common(sizes, count):
    """The number of images that most of `count` accuracies can be of, and two at least; 0 if there is none.

    sizes: Counter of the denominators of these accuracies in lowest terms, of which the number is a multiple.
    """
    distinct = [size for size, _ in sizes.most_common(100)]
    candidates = {math.lcm(a, b) for a in distinct for b in distinct}
    fitting = {size: sum(times for part, times in sizes.items() if size % part == 0)
               for size in candidates if 50 <= size <= MOST_IMAGES}
    size = min(fitting, key=lambda size: (-fitting[size], size), default=0)
    return size if size and fitting[size] >= max(2, 0.6 * count) else 0
