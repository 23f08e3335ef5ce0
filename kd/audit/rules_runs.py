"""Rules about runs: copies, their curves, their preprocessing."""

import itertools
import re
from collections import defaultdict

import numpy as np

from kd import metrics
from kd.audit import copies
from kd.audit.rule import rule
from kd.errors import listing
from kd.predictions import matching_order


@rule("error", "Independent runs never agree to the last digit. One run was logged, or evaluated, under several names, "
      "or the option that distinguishes them had no effect.",
      "Find which run the curve belongs to, and leave the others out until theirs are found.", requires="curves")
def same_curve(comparable_cases):
    cases_of = defaultdict(list)  # (column, values) -> Cases that have this curve
    for case in comparable_cases:
        for column, values in case.curves.items():
            if column not in ("epoch", "lr", "seconds") and _beyond_chance(case, column, values):
                cases_of[column, tuple(values)].append(case)
    shared = defaultdict(list)  # (names of the runs, whether only a summary is known) -> curves that they share
    for (column, values), cases in cases_of.items():
        if len(cases) > 1:
            names = tuple(case.name for case in cases)
            shared[names, cases[0].folder is None].append((column, values))
    for (names, is_summary), curves in shared.items():
        values = curves[0][1]
        summary = (f"last {values[0]:g}, best {values[1]:g} at epoch {values[2]:g}" if is_summary else
                   f"{len(values)} epochs, the last {values[-1]:.6g}")
        yield f"{listing(names)} share the curve of {listing(column for column, _ in curves)} ({summary})"


def _beyond_chance(case, column, values):
    """Whether two runs could not have this curve by chance: not collapsed, not short and of few images."""
    if case.folder is None:  # values: last, best, epoch of the best
        return values[2] > 0 and not set(values[:2]) <= {0, 1}
    return any(values) if "loss" in column else len(set(values)) >= 5


@rule("error", "Two networks never give the same logits. One was evaluated in the place of the other.",
      "Write the predictions of both runs again, each from its own checkpoint.", requires="test")
def same_predictions(comparable_cases):
    known = []
    for case in comparable_cases:
        points = copies.points(case.test)
        known.append((case, case.test, points, None if points is None else copies.residuals(points, case.test.labels)))
    for (a, ours, first, *of_first), (b, theirs, second, *of_second) in itertools.combinations(known, 2):
        found = _copied(ours, theirs, first, second, *of_first, *of_second)
        if found:
            yield f"{a.name}, {b.name} have the same predictions on test{found}"


def _copied(ours, theirs, first, second, of_first, of_second):
    """'' for two networks; else what distinguishes the predictions of one from those of the other."""
    if first is None or second is None or first.shape[1] != second.shape[1]:
        return ": the same for all images" if np.array_equal(ours.probabilities, theirs.probabilities) else ""
    if ours.ids is not None and theirs.ids is not None and sorted(ours.ids) == sorted(theirs.ids):
        distance = 1 - copies.correlation(of_first, of_second[matching_order(ours, theirs)])
        if distance < copies.CORRELATED:
            return ", bit for bit or nearly" if distance < 1e-12 else f", but for scale and noise ({distance:.1g})"
    if copies.same_values(first, second):
        share = copies.twins(first, second)
        if share > copies.SHARE_FOUND:
            return f", {share:.0%} of them in another order or under other ids"
    return ""


@rule("error", "Either the pixels were not prepared as in training (size, crop, colours, normalisation), or the "
      "predictions were made with other weights than those of best.pt.",
      "Write the predictions again from best.pt, with the preprocessing that it records.")
def other_preprocessing(inputs, curves=None, val=None, best_epoch=None):
    stated = {source: options for source, options in inputs.items() if isinstance(options, dict)}
    for (a, options), (b, others) in itertools.combinations(stated.items(), 2):
        common = [key for key in options if None not in (options[key], others.get(key))]
        differing = [f"{key} {others[key]}, not {options[key]}" for key in common if options[key] != others[key]]
        if differing:
            yield f"{b} states another input than {a}: {', '.join(differing)}"
    curves = curves or {}
    if val is not None and {"val_accuracy", "val_macro_f1"} <= set(curves) and curves["val_macro_f1"]:
        best = int(np.argmax(curves["val_macro_f1"])) if best_epoch is None else best_epoch
        in_training = curves["val_accuracy"][best]
        in_predictions = float((val.probabilities.argmax(1) == val.labels).mean())
        if abs(in_training - in_predictions) > 0.02 + 1 / len(val.labels):
            yield (f"validation accuracy was {in_training:.4f} when the weights were kept (the best epoch of "
                   f"history.csv) and is {in_predictions:.4f} in predictions/val.npz")


@rule("error", "The weights that were kept are not those of the epoch that was best on validation. To choose an epoch "
      "by another score, such as that on test, makes this score too high.",
      "Keep the weights of the epoch that was best on validation, and write the predictions again.")
def another_epoch(curves, val, best_epoch=None):
    if not {"val_accuracy", "val_macro_f1"} <= set(curves) or len(curves["val_macro_f1"]) < 2:
        return
    counts = metrics.confusion(val.labels, val.probabilities.argmax(1), len(val.class_names))
    scores = np.array([curves["val_accuracy"], curves["val_macro_f1"]])
    here = np.array([np.trace(counts) / counts.sum(), float(metrics.macro_f1(counts))])
    distance = np.abs(scores - here[:, None]).max(0)
    best, nearest = int(np.argmax(scores[1])) if best_epoch is None else best_epoch, int(np.argmin(distance))
    if distance[nearest] <= 1e-6 and distance[best] > 1e-3:
        yield (f"predictions/val.npz has the scores of row {nearest + 1} of history.csv (macro-F1 "
               f"{scores[1, nearest]:.4f}), and row {best + 1} is the best on validation ({scores[1, best]:.4f})")


@rule("warning", "Whoever sees the test score in each epoch can choose by it: epochs, options, when to stop.",
      "Log scores on validation, and evaluate on test once.")
def test_in_curves(curves):
    columns = [column for column in curves if re.match(r"test\b|test_", column)]
    if columns and len(curves[columns[0]]) > 1:
        yield f"history.csv has a curve of {listing(columns)}"


@rule("warning", "The best of many seeds is above what the method gives: of five by about a standard deviation.",
      "Report the mean over all seeds that were trained.")
def missing_seeds(cases):
    numbers = defaultdict(set)  # model -> numbers of its seeds
    for case in cases:
        if case.folder and re.fullmatch(r"seed_\d{1,9}", case.seed):
            numbers[case.model].add(int(case.seed[5:]))
            of_options = case.options.get("seeds")
            if isinstance(of_options, list) and len(of_options) == 1 and of_options[0] != int(case.seed[5:]):
                yield "error", f"{case.name} is a run of seed {of_options[0]}, by its config.yaml"
    trained = set().union(*numbers.values())
    for model, seeds in numbers.items():
        if max(seeds) > len(seeds) + 100:
            continue  # seeds that are no numbers in a row
        missing = set(range(max(seeds))) - seeds
        if missing:
            others = sorted(missing & trained)
            yield "warning" if others else "note", (
                f"{model} has seed {listing(sorted(seeds))} and not {listing(sorted(missing))}"
                + (f"; other models of this study have {listing(others)}" if others else ""))
    for case in cases:
        for source, count in {mean.source: mean.count for mean in case.means}.items():
            if case.seeds and count > len(case.seeds):
                yield f"{source} is over {count} seeds of {case.model}, and there are runs of {len(case.seeds)}"


VIEWS = ("augment", "mixup", "cutmix", "sampling", "hard")  # options by which either may be at its best


@rule("warning", "A baseline that is trained for fewer epochs, or at another size, loses for that reason alone; with "
      "other views or another loss of the labels, what the teacher adds is not all that differs.",
      "Train the baseline with the options of the distilled student, or say why not.")
def unequal_training(cases):
    options_of = defaultdict(lambda: defaultdict(list))  # (network, key) -> {whether it is a baseline: [(value, case)]}
    for case in cases:
        for key in ("epochs", "size", *VIEWS):
            if case.network and case.role == "student" and case.options.get(key) is not None:
                options_of[case.network, key][case.baseline].append((str(case.options[key]), case))
    for (network, key), of_both in options_of.items():
        of_baselines = {value for value, _ in of_both[True]}
        others = [f"{case.name} {value}" for value, case in of_both[False] if value not in of_baselines]
        if of_baselines and others:
            text = f"{key} of {listing(others)}; of {network} without a teacher {listing(sorted(of_baselines))}"
            yield ("note", text) if key in VIEWS else text
