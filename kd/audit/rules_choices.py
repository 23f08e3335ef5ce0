"""Rules about thresholds, about options that were chosen among several, and about scores under corruptions."""

import itertools
import math
import re
from collections import defaultdict
from fractions import Fraction

import numpy as np

from kd import sweeps
from kd.audit.rule import rule
from kd.errors import listing
from kd.recalibration import FIT


@rule("error", "The search scored the same predictions at every threshold, or every score passes the threshold: the "
      "figures called tuned are those without a threshold.",
      "Apply the threshold to the scores before counting, and check that predictions change with it.")
def idle_threshold(points, figures=(), test=None):
    untuned = [figure for figure in figures if figure.split == "test" and figure.metric == "macro_f1"]
    for point in points:
        tuned = point.figures.get("macro_f1")
        same = next((figure for figure in untuned if tuned is not None and tuned.agrees(figure)), None)
        comparison = f": macro-F1 with it is {tuned}, without it {same} ({same.source})" if same else ""
        if point.threshold == 0 and (tuned is None or same or not untuned):
            yield f"{point.name} is 0, which every score passes{comparison}"
        elif same and not math.isnan(point.threshold):
            yield "warning", f"{point.name} {point.threshold:g} changes nothing{comparison}"
        elif test is not None:
            yield from _idle_on(point, test)


def _idle_on(point, test):
    """A note where the point changes no prediction on test: on few images an honest search may end there."""
    p, names = test.probabilities, test.class_names
    if point.weights and set(point.weights) == set(names):
        weights = np.array([point.weights[name] for name in names])
        if np.ptp(weights) > 1e-9 * np.abs(weights).max() and np.array_equal((p * weights).argmax(1), p.argmax(1)):
            yield "note", f"{point.name}: these weights change none of {len(p):,} predictions on test"
    sensitivity, specificity = (point.figures.get(name) for name in ("sensitivity", "specificity"))
    if sensitivity and specificity and (sensitivity.value, specificity.value) in ((0, 1), (1, 0)):
        which = "every" if sensitivity.value else "no"
        yield "note", (f"{point.name}: on test {which} image is called positive "
                       f"(sensitivity {sensitivity.value:g}, specificity {specificity.value:g})")


@rule("error", "A threshold that is chosen on the test split is not tested by it: sensitivity and the rest are "
      "measured on the data that the threshold was fitted to.", "Choose on validation, freeze, and test once.")
def chosen_on_test(points):
    for point in points:
        if point.chosen_on not in ("", "val", FIT):  # FIT: a part of other cases, which test does not have
            yield f"{point.name} was chosen on {point.chosen_on}"


@rule("error", "Options were not chosen by validation alone. A choice by the test split makes the score on it too "
      "high.", "Choose the try that is best on validation, and test it once.")
def not_best_on_validation(sweep):
    if sweep["chosen_on"] != "val":
        yield f"its options were chosen on {sweep['chosen_on'] or 'nothing that sweep.json names'}"
    best = sweeps.best(sweep["metric"], sweep["tries"])
    chosen = next(one for one in sweep["tries"] if one["options"] == sweep["chosen"])
    if chosen["value"] != best["value"]:
        yield (f"{sweeps.in_words(chosen['options'])} was chosen with {sweep['metric']} {chosen['value']:.4f} on "
               f"validation, and {sweeps.in_words(best['options'])} has {best['value']:.4f}")


@rule("error", "The figures are of another network than the one that was chosen on validation.",
      "Train the model with the options that sweep.json names, or choose anew: delete the model's folder.")
def other_than_chosen(cases):
    chosen = {case.model: case.sweep["chosen"] for case in cases if case.sweep}
    for case in cases:
        for option, value in chosen.get(case.model, {}).items() if case.folder else ():
            of_run = case.options.get(option, value)
            if of_run != value and str(of_run) != str(value):
                yield f"{case.name} was trained with {option} {of_run}, and {value} was chosen"


OF_DISTILLATION = {"alpha", "beta", "soft", "temperature"}  # nothing that a student without a teacher could try


@rule("warning", "The best of several trainings is above what one gives, and a baseline without that choice loses for "
      "this reason, too.",
      "Give the baseline as many tries, over its learning rate or other options that it has.")
def unequal_tries(cases):
    tries = {case.model: case.sweep for case in cases if case.sweep}
    models = {case.model: case for case in cases if case.folder and case.network and case.role == "student"}
    for student, baseline in itertools.product(models.values(), repeat=2):
        if (student.model not in tries or student.baseline or not baseline.baseline
                or student.network != baseline.network):
            continue
        of_student = sweeps.count(tries[student.model])
        of_baseline = sweeps.count(tries[baseline.model]) if baseline.model in tries else 1
        if of_student > of_baseline:
            alone = tries[student.model]["chosen"].keys() <= OF_DISTILLATION
            yield "note" if alone else "warning", (
                f"{student.model} is the best of {of_student} tries on validation, {baseline.model} of {of_baseline}")


CLEAN = ("clean", "none", "identity", "original")
CONTINUOUS = {"nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "macro_auroc", "aurc"}


@rule("error", "A corruption that leaves every score equal to the last digit has changed no pixel, or the same images "
      "were scored twice: the table says nothing about robustness to it.",
      "Compare the corrupted pixels with the clean ones, and give severities in units of the image "
      "(a blur of 0.1 px is none).", requires="corruptions")
def idle_corruption(cases):
    pairs = defaultdict(list)  # (tag, other tag) -> [(case, the scores that are equal, or None)]
    for case in cases:
        # of figures of one metric, the most exact comes last and stays
        on_test = sorted((f for f in case.figures if f.split == "test"), key=lambda f: -f.tolerance)
        clean = {figure.metric: figure for figure in on_test}
        clean.update(next((case.corruptions[tag] for tag in CLEAN if tag in case.corruptions), {}))
        levels = {tag: scores for tag, scores in case.corruptions.items() if tag not in CLEAN}
        for tag, scores in levels.items():
            pairs[tag, "the clean images"].append((case, _equal_scores(scores, clean)))
        for a, b in itertools.combinations(levels, 2):
            if _family(a) == _family(b):
                pairs[b, a].append((case, _equal_scores(levels[b], levels[a])))
    for (tag, other), compared in pairs.items():
        equal = [(case, scores) for case, scores in compared if scores]
        if not equal:
            continue
        # a sum of logarithms never agrees by chance; counts may, in some models, and on few images in all
        accuracies = [scores["accuracy"] for case, _ in compared for scores in case.corruptions.values()
                      if "accuracy" in scores]
        continuous = any(CONTINUOUS & set(scores) for _, scores in equal)
        severity = "warning" if _fewest_images(accuracies) >= 500 else "note"
        if continuous or severity == "warning" and len(equal) == len(compared) > 1:
            severity = "error"
        values = ", ".join(f"{name} {figure.value:.10g}" for name, figure in equal[0][1].items())
        first = " in the first" if len(equal) > 1 else ""
        yield severity, (f"{tag} scores as {other} to all digits in {len(equal)} of {len(compared)} models: "
                         f"{listing(case.name for case, _ in equal)} ({values}{first})")


def _fewest_images(accuracies):
    """The least number of images that the accuracies can be of: they are shares k / n, given to many digits."""
    exact = [Fraction(figure.value) for figure in accuracies if figure.tolerance < 1e-9]
    return max((share.limit_denominator(10 ** 4).denominator for share in exact), default=0)


def _equal_scores(scores, others):
    """{metric: Figure} where all metrics that both state are equal, one of them to six digits or more; else None."""
    common = {name: figure for name, figure in scores.items() if name in others}
    equal = all(figure.agrees(others[name]) for name, figure in common.items())
    exact = any(max(figure.tolerance, others[name].tolerance) < 1e-6 for name, figure in common.items())
    return common if equal and exact else None


def _family(tag):
    return re.sub(r"[_-]?[\d.,]+$", "", tag)


@rule("note", "A name with two meanings is read in the wrong one: Gaussian noise and Gaussian blur harm networks "
      "differently.", "Call it gaussian_noise or gaussian_blur, with its unit.")
def unclear_corruption(corruptions):
    tags = [tag for tag in corruptions if _family(tag).lower() == "gaussian"]
    if tags:
        yield f"{listing(tags)}: neither blur nor noise is stated"
