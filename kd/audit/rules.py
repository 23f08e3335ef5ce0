"""The rules of the audit: one function a rule.

The names of a function's parameters are the attributes of a Case (kd/audit/evidence.py) that the rule reads. The
rule is applied to each Case that has all of them; a parameter with a default may be missing. A parameter `cases`
takes all Cases at once that have the attribute `requires`; `comparable_cases` takes the same where there are two or
more. A function yields texts that say what is odd, or (severity, text) where the severity is not the rule's own.
Its decorator has the texts `why` and `do` of its findings; they stand in the place of a docstring.
"""

import inspect
import itertools
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Callable

import numpy as np

from kd import bootstrap, metrics
from kd.audit import class_order
from kd.errors import listing

SEVERITIES = ("error", "warning", "note")
RULES = []


@dataclass
class Rule:
    """A check, with the texts of its findings.

    requires: the attribute that a Case must have to be among `cases` or `comparable_cases`; None: every Case is.
    """

    name: str
    severity: str
    why: str
    do: str
    requires: str
    check: Callable

    def __post_init__(self):
        parameters = inspect.signature(self.check).parameters.values()
        self.parameters = [p.name for p in parameters]
        self.required = [p.name for p in parameters if p.default is p.empty]

    def apply(self, cases):
        """(findings, whether any of the Cases has what the rule reads)."""
        if self.parameters in (["cases"], ["comparable_cases"]):
            cases = [case for case in cases if not self.requires or _known(getattr(case, self.requires))]
            fewest = 2 if self.parameters == ["comparable_cases"] else 1
            if len(cases) < fewest:
                return [], False
            return [self.finding(observation) for observation in self.check(cases)], True
        cases = [case for case in cases if all(_known(getattr(case, name)) for name in self.required)]
        findings = []
        for case in cases:
            arguments = {name: getattr(case, name) for name in self.parameters}
            findings += [self.finding(observation, case) for observation in self.check(**arguments)]
        return findings, bool(cases)

    def finding(self, observation, case=None):
        """A FINDING of what a check has yielded, with the name of the Case before its text."""
        severity, text = observation if isinstance(observation, tuple) else (self.severity, observation)
        prefix = f"{case.name}: " if case and case.name else ""
        return {"rule": self.name, "severity": severity, "saw": prefix + text, "why": self.why, "do": self.do}


def rule(severity, why, do, requires=None):
    """Decorator that adds a function to RULES, under the function's name."""
    def add(check):
        RULES.append(Rule(check.__name__.replace("_", "-"), severity, why, do, requires, check))
        return check
    return add


def _known(value):
    return value not in (None, False) if not hasattr(value, "__len__") else len(value) > 0


# ---- calibration


@rule("error", "Every confidence is 1, so the calibration error equals the error rate. A temperature at the lower "
      "bound of its search does this: the calibrated probabilities mean nothing.",
      "Fit the temperature again, on validation, in log T, between bounds that it does not reach; state it.")
def ece_is_error_rate(figures):
    for split, source, figure_of in _by_file(figures):
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


# ---- thresholds and corruptions


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
        if point.chosen_on not in ("", "val"):
            yield f"{point.name} was chosen on {point.chosen_on}"


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


# ---- runs that are one run


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
    names_of = defaultdict(list)  # probabilities as bytes -> names of the runs
    for case in comparable_cases:
        names_of[case.test.probabilities.shape, case.test.probabilities.tobytes()].append(case.name)
    for names in names_of.values():
        if len(names) > 1:
            yield f"{listing(names)} have the same predictions on test"


# ---- predictions


@rule("error", "The network gives the same answer to every image. Its accuracy is the share of that class, and nothing "
      "follows from it.",
      "Look at the training curve; check that the weights were loaded and the pixels normalised as in training.")
def constant_predictions(confusions, class_names, val=None, test=None):
    for split, counts in confusions.items():
        predicted, support, total = counts.sum(0), counts.sum(1), counts.sum()
        predictions = {"val": val, "test": test}[split]
        if total < 20 or (support > 0).sum() < 2:
            continue
        top, share = int(predicted.argmax()), predicted.max() / total
        if predictions is not None and np.ptp(predictions.probabilities, axis=0).max() < 1e-6:
            yield (f"all {total:,} {split} images get the same probabilities, {predictions.probabilities[0].max():.3f} "
                   f"for {class_names[top]}")
        elif share == 1 or share >= 0.99 and support.max() <= 0.97 * total:
            # an honest weak network on few images may do so
            quantity = "all" if share == 1 else f"{share:.1%} of"
            yield "warning", f"{quantity} {total:,} {split} images are called {class_names[top]}"


@rule("warning", "A network that has learnt only the most frequent class scores exactly this.",
      "Look at the confusion matrix, at macro-F1 and balanced accuracy, and whether the weights were loaded.")
def accuracy_is_majority_share(figures, majority, confusions=None):
    name, share, counted = majority
    counts = (confusions or {}).get("test")
    if counts is not None and metrics.balanced_accuracy(counts) > 1 / len(counts) + 0.05:
        return  # equal by chance: it knows other classes
    for figure in _test_accuracies(figures):
        if abs(figure.value - share) <= (1e-9 if counted else figure.tolerance + 0.005):
            whole = "" if counted else " of the whole data set"
            yield f"accuracy {figure} is the share of {name}, {share:.4f}{whole} ({figure.source})"


@rule("error", "Guessing would do better. Most weights were not loaded (a load that is not strict does not report "
      "missing keys), the labels are in another order, or the pixels are not those of training.",
      "Load strictly, so that a missing key is an error; check the class list and the preprocessing.")
def far_below_majority(figures, majority, class_names):
    name, share, _ = majority
    guessing = 1 / len(class_names)
    for figure in _test_accuracies(figures):
        if figure.value < min(share / 3, guessing):
            yield (f"accuracy {figure}; calling every image {name} gives {share:.3f}, and guessing among "
                   f"{len(class_names)} classes {guessing:.3f} ({figure.source})")


def _test_accuracies(figures):
    """The Figures of accuracy on test that differ, the most exact of equal ones."""
    distinct = []
    accuracies = [figure for figure in figures if (figure.metric, figure.split) == ("accuracy", "test")]
    for figure in sorted(accuracies, key=lambda figure: figure.tolerance):
        if not any(figure.agrees(other) for other in distinct):
            distinct.append(figure)
    return distinct


@rule("error", "Predictions and labels count the classes in different orders; the figures of each class, and of all "
      "together, are then those of another class.",
      "Take the class list from the checkpoint, and compare it with the one that made the labels.")
def label_order(confusions, class_names):
    for split, counts in confusions.items():
        cycles = class_order.better_order(counts)
        if not cycles:
            continue
        order = {i: j for cycle in cycles for i, j in zip(cycle, [*cycle[1:], cycle[0]])}
        total = counts.sum()
        before = np.trace(counts) / total
        after = before + sum(counts[i, j] - counts[i, i] for i, j in order.items()) / total
        moves = [f"{counts[i, j]} of {counts[i].sum()} {class_names[i]} are called {class_names[j]}"
                 for i, j in order.items()]
        yield (f"on {split} another order of the classes explains the predictions better: {listing(moves, 8)}; "
               f"accuracy {before:.3f} would be {after:.3f}")


CLASS_NUMBER = re.compile(r"class\s*(?:id\s*)?#?(\d{1,4})\s*[(:=]\s*[\"'“‘*]*([A-Za-z][\w-]{0,30})", re.IGNORECASE)


@rule("error", "A figure is attributed to another class than the one it was measured on.",
      "Write class names beside figures, never numbers.")
def class_number(texts, class_names):
    names = [name.lower() for name in class_names]
    for source, text in texts.items():
        mentions = {(int(k), name) for k, name in CLASS_NUMBER.findall(text) if name.lower() in names}
        wrong = [(k, name) for k, name in sorted(mentions) if names.index(name.lower()) != k]
        class_0_occurs = re.search(r"class\s*(?:id\s*)?0\b", text, re.IGNORECASE)
        if wrong and not class_0_occurs and all(names.index(name.lower()) == k - 1 for k, name in mentions):
            continue  # a text that counts from one throughout is right
        for k, name in wrong:
            that_class = f"class {k} is {class_names[k]}" if k < len(class_names) else f"there is no class {k}"
            yield (f"“class {k} ({name})” in {source}; in the order {' '.join(class_names)}, {that_class} and "
                   f"{name} is {names.index(name.lower())}")


# ---- splits


@rule("error", "A network recognises a lesion, or the very image, that it was trained on: the test score is too high "
      "by an unknown amount.", "Split whole lesions (patients), and train again.")
def shared_by_splits(split=(), val=None, test=None):
    any_shared = False
    for key, noun in (("group", "groups (lesions, patients)"), ("sha256", "identical images")):
        images_of = defaultdict(Counter)  # group or digest -> {part: number of images}
        for row in split:
            images_of[row.get(key)][row["split"]] += 1
        shared = {value: counts for value, counts in images_of.items() if value and len(counts) > 1}
        if not shared:
            continue
        any_shared = True
        parts = sorted({part for counts in shared.values() for part in counts})
        affected = sum(counts["test"] for counts in shared.values())
        tested = sum(row["split"] == "test" for row in split)
        # official splits share a few identical images; less than one in a hundred moves no figure beyond its interval
        severity = "error" if key == "group" or affected >= 0.01 * max(tested, 1) else "warning"
        yield severity, (
            f"{len(shared):,} {noun} are in more than one split ({', '.join(parts)}), among them {affected:,} of "
            f"{tested:,} test images: {listing((value[:16] for value in sorted(shared)), 3)}")
    if not any_shared and val is not None and test is not None:
        for noun, of_val, of_test in (("images", val.ids, test.ids), ("groups", val.groups, test.groups)):
            shared = set() if of_val is None or of_test is None else set(of_val) & set(of_test)
            if shared:
                yield f"validation and test share {len(shared):,} {noun}: {listing(sorted(shared), 3)}"


@rule("note", "Images of one lesion on both sides of a split raise the test score, and only the list of who went where "
      "can show that there are none.", "Keep split.csv (id, group, label, split, sha256) beside the figures.")
def split_not_seen(cases):
    without = [case.name for case in cases if (case.folder or case.sources and not case.traced) and not case.split]
    if without:
        yield f"no split.csv for {listing(without)}: whether train and test share lesions or images cannot be checked"


@rule("warning", "Nothing is known about a class without images: macro-F1 is then a mean over fewer classes, and no "
      "threshold can be chosen where validation lacks it.", "Split anew, by class, or say which class is left out.")
def absent_class(class_names, confusions=None, split=()):
    support = {part: dict(zip(class_names, counts.sum(1))) for part, counts in (confusions or {}).items()}
    if split:
        support = {part: Counter(row["label"] for row in split if row["split"] == part)
                   for part in ("train", "val", "test")}
        if not set(class_names) & set(support["train"]):
            return  # labels of another spelling
    for part, counts in support.items():
        absent = [name for name in class_names if not counts.get(name)]
        if absent and sum(counts.values()):
            yield f"no {part} image of {listing(absent)}"


# ---- scores that do not fit together

CONFIDENCE = 0.999


@rule("warning", "Validation and test are drawn alike, and a network that is selected on validation should do a little "
      "worse on test. Test images were in training, or the selection used test.",
      "Check the split for shared lesions and images.")
def test_above_val(val, test):
    if len(val.class_names) != len(test.class_names):
        return
    # replicates of a handful of lesions do not show how much their score varies
    classes = [k for k in range(len(val.class_names))
               if min(len(np.unique(part.clusters[part.labels == k])) for part in (val, test)) >= 5]
    if len(classes) < 2:
        return
    on_val, on_test = (_macro_f1(part, classes, replicates=0)[0] for part in (val, test))
    if on_test <= on_val:
        return
    val_replicates, test_replicates = (_macro_f1(part, classes)[1:] for part in (val, test))
    val_replicates = val_replicates[~np.isnan(val_replicates)]
    test_replicates = np.sort(test_replicates[~np.isnan(test_replicates)])
    if not len(val_replicates) or not len(test_replicates):
        return
    # the share of all pairs of replicates in which test is not above validation
    not_above = np.searchsorted(test_replicates, val_replicates, "right").mean() / len(test_replicates)
    if not_above < (1 - CONFIDENCE) / 2:
        whole = len(classes) == len(val.class_names)
        of_classes = "" if whole else f" of the {len(classes)} classes with 5 lesions in both"
        yield (f"macro-F1{of_classes} is {on_test:.3f} on test and {on_val:.3f} on validation: in {not_above:.2%} of "
               f"pairs of bootstrap replicates test is not above, less than a {CONFIDENCE:.1%} interval allows")


def _macro_f1(part, classes, replicates=bootstrap.REPLICATES):
    """[1 + B] macro-F1 over `classes`, of the sample and of its replicates by clusters; NaN where one is absent."""
    index, count = bootstrap.clusters(part.clusters)
    weights = bootstrap.shared(count, replicates)
    predicted = part.probabilities.argmax(1)
    counts = bootstrap.confusions(part.labels, predicted, len(part.class_names), index, weights)
    absent = (counts.sum(-1)[:, classes] == 0).any(1)
    return np.where(absent, np.nan, metrics.f1(counts)[:, classes].mean(1))


@rule("error", "Either the pixels were not prepared as in training (size, crop, colours, normalisation), or the "
      "predictions were made with other weights than those of best.pt.",
      "Write the predictions again from best.pt, with the preprocessing that it records.")
def other_preprocessing(inputs, curves=None, val=None):
    stated = {source: options for source, options in inputs.items() if isinstance(options, dict)}
    for (a, options), (b, others) in itertools.combinations(stated.items(), 2):
        common = [key for key in options if None not in (options[key], others.get(key))]
        differing = [f"{key} {others[key]}, not {options[key]}" for key in common if options[key] != others[key]]
        if differing:
            yield f"{b} states another input than {a}: {', '.join(differing)}"
    curves = curves or {}
    if val is not None and {"val_accuracy", "val_macro_f1"} <= set(curves) and curves["val_macro_f1"]:
        best = int(np.argmax(curves["val_macro_f1"]))
        in_training = curves["val_accuracy"][best]
        in_predictions = float((val.probabilities.argmax(1) == val.labels).mean())
        if abs(in_training - in_predictions) > 0.02 + 1 / len(val.labels):
            yield (f"validation accuracy was {in_training:.4f} when the weights were kept (the best epoch of "
                   f"history.csv) and is {in_predictions:.4f} in predictions/val.npz")


@rule("error", "One of the two belongs to another run, another split or an earlier evaluation, and no reader can tell "
      "which.", "Give every figure the run it is from, and print each from that run's files alone.",
      requires="figures")
def two_figures(cases):
    for model, members in _by_model(cases).items():
        if any(case.namesakes > 1 for case in members):
            continue
        seeds = {case.seed for case in members if case.seed}
        only_seed = next(iter(seeds)) if len(seeds) == 1 else ""
        figures_of = defaultdict(list)  # (seed, split, metric) -> [(name of the model in its file, Figure)]
        for case in members:
            for figure in case.figures:
                figures_of[case.seed or only_seed, figure.split, figure.metric].append((case.model, figure))
        differing = defaultdict(list)  # (seed, the two names of the model) -> one text a metric
        for (seed, split, metric), figures in figures_of.items():
            low_name, low = min(figures, key=lambda pair: pair[1].value)
            high_name, high = max(figures, key=lambda pair: pair[1].value)
            if not low.agrees(high):
                text = f"{metric} {low} ({low.source}) and {high} ({high.source}) on {split}"
                differing[seed, low_name, high_name].append(text)
        for (seed, a, b), texts in differing.items():
            one_model = "" if a == b else f", where {a} and {b} are taken for one model"
            yield "warning" if one_model else "error", (
                f"{'/'.join(filter(None, (model, seed)))} has {listing(texts, 3)}{one_model}")


def _by_model(cases):
    """{model: its Cases}. A name in another table that is part of exactly one model's name is taken for that model."""
    models = defaultdict(list)
    for case in cases:
        models[case.model].append(case)
    short = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in models}
    tables_of = {name: {source for case in members for source in case.sources} for name, members in models.items()}
    for name in list(models):
        longer = [other for other in models if other != name and short[name] in short[other]]
        if len(short[name]) < 5 or len(longer) != 1:
            continue
        if not models[name][0].folder and not tables_of[name] & tables_of[longer[0]]:
            models[longer[0]] += models.pop(name)
    return models


# ---- what a reader should know


@rule("note", "A student that is above its teacher did not get there by imitating it; such a study says little about "
      "distillation.", "Train the teacher longer or choose a stronger one before comparing ways to distil.",
      requires="figures")
def teacher_below_student(comparable_cases):
    scores = defaultdict(lambda: defaultdict(list))  # (whether from tables, role) -> {model: macro-F1 of its seeds}
    for case in comparable_cases:
        figure = case.figure("macro_f1")
        if case.role in ("teacher", "student") and figure:
            scores[case.folder is None, case.role][case.model].append(figure.value)
    for from_tables in (False, True):
        students = {model: np.mean(values) for model, values in scores[from_tables, "student"].items()}
        for teacher, values in scores[from_tables, "teacher"].items():
            of_teacher = np.mean(values)
            above = [f"{model} {value:.3f}" for model, value in students.items() if value > of_teacher]
            if above:
                yield f"macro-F1 of the teacher {teacher} is {of_teacher:.3f}, below {listing(above)}"


@rule("warning", "Without an interval nobody can say whether two figures differ or the test set was small.",
      "Resample lesions, or images where no lesions are known, and give the interval beside every figure.",
      requires="figures")
def no_interval(cases):
    lacking = defaultdict(lambda: defaultdict(list))  # source -> {case: metrics without an interval}
    for case in cases:
        bounded = {(figure.split, figure.metric) for figure in case.figures if figure.interval}
        for figure in case.figures:
            if figure.interval is False and (figure.split, figure.metric) not in bounded:
                lacking[figure.source][case.name].append(figure.metric)
    for source, metrics_of in lacking.items():
        names = dict.fromkeys(name for metrics_ in metrics_of.values() for name in metrics_)
        owners = listing(filter(None, metrics_of)) or "this run"
        yield f"{source}: {listing(names, 8)} of {owners} without an interval"


@rule("warning", "A figure whose run is unknown can neither be computed again nor be compared.",
      "Keep the run folder, with its predictions, and write its name beside every figure.", requires="stated")
def run_not_found(cases):
    with_predictions = [case for case in cases if case.test is not None]
    known = {(case.model, seed) for case in with_predictions for seed in (case.seed, "")}
    unknown, namesakes = defaultdict(list), {}
    for case in cases:
        if case.folder and case.test is None:
            yield f"{case.name}: metrics.json has figures, but there is no predictions/test.npz that they could be of"
        elif case.namesakes > 1:
            namesakes[case.name.partition(" (")[0]] = case
        elif case.sources and not case.traced and (case.model, case.seed) not in known:
            unknown[tuple(case.sources)].append(case.name)
    for sources, names in unknown.items():
        yield f"no run folder with predictions for {listing(names)} ({', '.join(sources)})"
    for name, case in namesakes.items():
        yield f"{case.namesakes} runs under the one name {name} ({', '.join(case.sources)})"


@rule("warning", "A file that cannot be read is checked by no rule.", "Write the file again, or remove it.")
def damaged_file(unreadable):
    yield from unreadable
