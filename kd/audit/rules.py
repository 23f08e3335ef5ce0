"""The rules of the audit, a function each.

The names of a function's parameters say what it needs of a Case (kd/audit/evidence.py); it is held against
no Case that lacks it, and a parameter with a default is not needed. `cases` is all of them that have
what `of` names, `several` the same where there are two or more. It yields what it saw, or (severity,
what it saw) where that is not the rule's own.
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
    name: str
    severity: str
    why: str
    do: str
    of: str          # what a Case must have to be among `cases` or `several`
    check: Callable

    def __post_init__(self):
        parameters = inspect.signature(self.check).parameters.values()
        self.takes = [p.name for p in parameters]
        self.needs = [p.name for p in parameters if p.default is p.empty]

    def apply(self, cases):
        """(findings, whether there was anything to hold it against)."""
        if self.takes in (["cases"], ["several"]):
            told = [case for case in cases if not self.of or _known(getattr(case, self.of))]
            enough = len(told) > (self.takes == ["several"])
            return [self.finding(saw) for saw in self.check(told)] if enough else [], enough
        told = [case for case in cases if all(_known(getattr(case, name)) for name in self.needs)]
        return [self.finding(saw, case) for case in told
                for saw in self.check(**{name: getattr(case, name) for name in self.takes})], bool(told)

    def finding(self, saw, case=None):
        severity, saw = saw if isinstance(saw, tuple) else (self.severity, saw)
        where = f"{case.name}: " if case and case.name else ""
        return {"rule": self.name, "severity": severity, "saw": where + saw, "why": self.why, "do": self.do}


def rule(severity, why, do, of=None):
    """Enter a function into the table of rules, under its name."""
    def enter(check):
        RULES.append(Rule(check.__name__.replace("_", "-"), severity, why, do, of, check))
        return check
    return enter


def _known(value):
    return value not in (None, False) if not hasattr(value, "__len__") else len(value) > 0


# ---- calibration


@rule("error", "Every confidence is 1, so calibration error is nothing but the error rate. That is what a temperature "
      "that ran into its lower bound leaves behind: the calibrated probabilities mean nothing.",
      "Fit the temperature again, on validation, in log T, between bounds that it does not reach; state it.")
def ece_is_error_rate(figures):
    for split, source, held in _tables(figures):
        wrong = 1 - held["accuracy"].value if "accuracy" in held else 0
        if wrong <= 0.01:
            continue  # of a network that is nearly always right, confidences may well all be nearly 1
        for suffix in ("", "_calibrated"):
            names = (name + suffix for name in ("ece", "ece_equal_mass"))
            eces = {name: held[name] for name in names if name in held}
            brier = held.get("brier" + suffix)
            if brier and abs(brier.value - 2 * wrong) > 0.005 + brier.tolerance:
                continue  # of confidences of 1 it is twice the error rate; so the others are equal by chance
            near = min(5e-4, 0.01 * wrong)
            if eces and all(abs(ece.value - wrong) <= near + ece.tolerance * (ece.tolerance < 1e-3)
                            for ece in eces.values()):
                shown = ", ".join(f"{name} is {ece}" for name, ece in eces.items())
                saw = f"on {split} 1 - accuracy is {wrong:.5f}, and {shown}"
                yield ("error" if brier or len(eces) > 1 else "warning",
                       f"{saw}{f'; Brier {brier} is twice as much' if brier else ''} ({source})")


@rule("error", "A mean so high needs probabilities of the true class that are zero in all but name: logits divided by "
      "a tiny temperature, or a logarithm of something else.",
      "Compute NLL from the raw logits; then look at what the temperature did to them.")
def nll_beyond_reason(figures):
    for split, source, held in _tables(figures):
        wrong = 1 - held["accuracy"].value if "accuracy" in held else math.nan
        for name in ("nll", "nll_calibrated"):
            if name in held and held[name].value > max(5, 50 * wrong):
                yield (f"{name} on {split} is {held[name].value:.4g}, with an accuracy of {1 - wrong:.3f}: "
                       f"{held[name].value / wrong if wrong else math.inf:.0f} nats for each wrong image ({source})")


def _tables(figures):
    """(split, source, {metric: Figure}) of figures that stand in one file."""
    found = defaultdict(dict)
    for figure in figures:
        found[figure.split, figure.source][figure.metric] = figure
    return [(*key, held) for key, held in found.items()]


@rule("error", "A search that ends at its bound has found no best value: all confidences become 1, or all equal, and "
      "every calibrated figure with them. A perfect or tiny validation set does it.",
      "Report raw figures only, or fit on a larger validation set.")
def temperature_at_bound(temperature):
    value, lo, hi, before, after = (temperature.get(key, math.nan)
                                    for key in ("value", "lo", "hi", "before", "after"))
    shown = "" if math.isnan(value) else f" {value:.4g}"
    if value > 0 and lo > 0 and value <= lo * 1.01 or value <= 0:
        yield f"temperature{shown}, and the lower bound of its search is {lo:.4g}"
    elif hi > 0 and value >= hi / 1.01:
        yield f"temperature{shown}, and the upper bound of its search is {hi:.4g}"
    elif math.isnan(lo) and (value <= 0.05 or value >= 20):
        yield f"temperature{shown}, the value of a search's bound: no network needs one so far from 1"
    elif after > before + 1e-9:
        yield f"temperature{shown} raises NLL on validation, from {before:.4f} to {after:.4f}"
    elif math.isnan(value) and temperature.get("reason"):
        yield f"no temperature could be fitted: {temperature['reason']}"


# ---- thresholds and corruptions


@rule("error", "The search scored the same predictions at every threshold, or the threshold is one that every score "
      "passes: the tuned figures are the untuned ones under another name.",
      "Apply the threshold to the scores before counting, and check that predictions change with it.")
def idle_threshold(points, figures=(), test=None):
    plain = [f for f in figures if f.split == "test" and f.metric == "macro_f1"]
    for point in points:
        tuned = point.figures.get("macro_f1")
        same = next((f for f in plain if tuned is not None and tuned.agrees(f)), None)
        told = f": macro-F1 with it is {tuned}, without it {same} ({same.source})" if same else ""
        if point.threshold == 0 and (tuned is None or same or not plain):
            yield f"{point.name} is 0, which every score passes{told}"
        elif same and not math.isnan(point.threshold):
            yield "warning", f"{point.name} {point.threshold:g} changes nothing{told}"
        elif test is not None:
            yield from _idle_on(point, test)


def _idle_on(point, test):
    """Where no answer changes. On few images an honest search may end there, so it is a note."""
    p, names = test.probabilities, test.class_names
    if point.weights and set(point.weights) == set(names):
        weights = np.array([point.weights[name] for name in names])
        if np.ptp(weights) > 1e-9 * np.abs(weights).max() and np.array_equal((p * weights).argmax(1), p.argmax(1)):
            yield "note", f"{point.name}: these weights change none of {len(p):,} predictions on test"
    sensitivity, specificity = (point.figures.get(name) for name in ("sensitivity", "specificity"))
    if sensitivity and specificity and (sensitivity.value, specificity.value) in ((0, 1), (1, 0)):
        yield "note", (f"{point.name}: on test {'every' if sensitivity.value else 'no'} image is called positive "
                          f"(sensitivity {sensitivity.value:g}, specificity {specificity.value:g})")


@rule("error", "What is chosen on the test split is not tested by it: sensitivity and the rest are those of the data "
      "that the threshold was fitted to.", "Choose on validation, freeze, and test once.")
def chosen_on_test(points):
    for point in points:
        if point.chosen_on not in ("", "val"):
            yield f"{point.name} was chosen on {point.chosen_on}"


CLEAN = ("clean", "none", "identity", "original")
CONTINUOUS = {"nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "macro_auroc", "aurc"}


@rule("error", "A corruption that leaves every score as it was to the last digit has changed no pixel, or the same "
      "images were scored twice: the table says nothing about robustness to it.",
      "Compare the corrupted pixels with the clean ones, and give severities in units of the image "
      "(a blur of 0.1 px is none).", of="corruptions")
def idle_corruption(cases):
    pairs = defaultdict(list)  # (tag, other) -> [(case, metrics that are equal, or None)]
    for case in cases:
        clean = {f.metric: f for f in sorted(case.figures, key=lambda f: -f.tolerance) if f.split == "test"}
        clean.update(next((case.corruptions[tag] for tag in CLEAN if tag in case.corruptions), {}))
        levels = {tag: scores for tag, scores in case.corruptions.items() if tag not in CLEAN}
        for tag, scores in levels.items():
            pairs[tag, "the clean images"].append((case, _equal_scores(scores, clean)))
        for a, b in itertools.combinations(levels, 2):
            if _family(a) == _family(b):
                pairs[b, a].append((case, _equal_scores(levels[b], levels[a])))
    for (tag, other), held in pairs.items():
        equal = [(case, same) for case, same in held if same]
        if equal:
            # a sum of logarithms never agrees by chance; counts may, in some models, and on few images in all
            accuracies = [scores["accuracy"] for case, _ in held for scores in case.corruptions.values()
                          if "accuracy" in scores]
            severity = "warning" if _images(accuracies) >= 500 else "note"
            if any(CONTINUOUS & set(same) for _, same in equal) or severity == "warning" and len(equal) == len(held) > 1:
                severity = "error"
            shown = ", ".join(f"{name} {figure.value:.10g}" for name, figure in equal[0][1].items())
            yield severity, (
                f"{tag} scores as {other} to all digits in {len(equal)} of {len(held)} models: "
                f"{listing(case.name for case, _ in equal)} ({shown}{' in the first' if len(equal) > 1 else ''})")


def _images(accuracies):
    """How many images these accuracies are of, at least: they are shares k / n, given to many digits."""
    return max((Fraction(f.value).limit_denominator(10 ** 4).denominator for f in accuracies if f.tolerance < 1e-9),
               default=0)


def _equal_scores(scores, others):
    """{metric: Figure} where all metrics that both state are equal, one of them to six digits or more; else None."""
    both = {name: figure for name, figure in scores.items() if name in others}
    if both and all(figure.agrees(others[name]) for name, figure in both.items()) and any(
            figure.tolerance < 1e-6 and others[name].tolerance < 1e-6 for name, figure in both.items()):
        return both
    return None


def _family(tag):
    return re.sub(r"[_-]?[\d.,]+$", "", tag)


@rule("note", "A name that may mean two things is read as the wrong one: Gaussian noise and Gaussian blur harm "
      "networks differently.", "Call it gaussian_noise or gaussian_blur, with its unit.")
def unclear_corruption(corruptions):
    tags = [tag for tag in corruptions if _family(tag).lower() == "gaussian"]
    if tags:
        yield f"{listing(tags)}: neither blur nor noise is said"


# ---- runs that are one run


@rule("error", "Independent runs never agree to the last digit. One run was logged, or evaluated, under several names, "
      "or the option that tells them apart had no effect.",
      "Find which run the curve is of, and leave the others out until theirs are found.", of="curves")
def same_curve(several):
    shared = defaultdict(list)  # names of the runs -> columns that they share
    curves = defaultdict(list)
    for case in several:
        for column, values in case.curves.items():
            if column not in ("epoch", "lr", "seconds") and _telling(case, column, values):
                curves[column, tuple(values)].append(case)
    for (column, values), same in curves.items():
        if len(same) > 1:
            shared[tuple(case.name for case in same), same[0].folder is None].append((column, values))
    for (names, summary), columns in shared.items():
        column, values = columns[0]
        shown = (f"last {values[0]:g}, best {values[1]:g} at epoch {values[2]:g}" if summary else
                 f"{len(values)} epochs, the last {values[-1]:.6g}")
        yield f"{listing(names)} share the curve of {listing(name for name, _ in columns)} ({shown})"


def _telling(case, column, values):
    """Whether two runs could not have this curve by chance: not collapsed, not short and of few images."""
    if case.folder is None:  # last, best, step of the best
        return values[2] > 0 and not set(values[:2]) <= {0, 1}
    return any(values) if "loss" in column else len(set(values)) >= 5


@rule("error", "Two networks never give the same logits. One was evaluated in the place of the other.",
      "Write the predictions of both runs again, each from its own checkpoint.", of="test")
def same_predictions(several):
    found = defaultdict(list)
    for case in several:
        found[case.test.probabilities.shape, case.test.probabilities.tobytes()].append(case.name)
    for names in found.values():
        if len(names) > 1:
            yield f"{listing(names)} have the same predictions on test"


# ---- predictions


@rule("error", "The network says the same whatever it is shown. Its accuracy is the share of that class, and nothing "
      "follows from it.",
      "Look at the training curve; check that the weights were loaded and the pixels normalised as in training.")
def constant_predictions(confusions, class_names, val=None, test=None):
    for split, counts in confusions.items():
        called, support, total = counts.sum(0), counts.sum(1), counts.sum()
        held = {"val": val, "test": test}[split]
        if total < 20 or (support > 0).sum() < 2:
            continue
        top, share = int(called.argmax()), called.max() / total
        if held is not None and np.ptp(held.probabilities, axis=0).max() < 1e-6:
            yield (f"all {total:,} {split} images get the same probabilities, {held.probabilities[0].max():.3f} for "
                   f"{class_names[top]}")
        elif share == 1 or share >= 0.99 and support.max() <= 0.97 * total:
            # a weak network on few images comes to this honestly
            many = "all" if share == 1 else f"{share:.1%} of"
            yield "warning", f"{many} {total:,} {split} images are called {class_names[top]}"


@rule("warning", "A network that has learnt nothing but the most frequent class scores exactly this.",
      "Look at the confusion matrix, at macro-F1 and balanced accuracy, and whether the weights were loaded.")
def accuracy_is_majority_share(figures, majority, confusions=None):
    name, share, counted = majority
    counts = (confusions or {}).get("test")
    if counts is not None and metrics.balanced_accuracy(counts) > 1 / len(counts) + 0.05:
        return  # equal by chance: it knows other classes
    for figure in _one_each(f for f in figures if (f.metric, f.split) == ("accuracy", "test")):
        if abs(figure.value - share) <= (1e-9 if counted else figure.tolerance + 0.005):
            yield (f"accuracy {figure} is the share of {name}, {share:.4f}"
                   f"{'' if counted else ' of the whole data set'} ({figure.source})")


@rule("error", "Guessing would do better. Most weights were not loaded (a load that does not insist on every key says "
      "nothing), the labels are in another order, or the pixels are not those of training.",
      "Load strictly, so that a missing key is an error; check the class list and the preprocessing.")
def far_below_majority(figures, majority, class_names):
    name, share, _ = majority
    for figure in _one_each(f for f in figures if (f.metric, f.split) == ("accuracy", "test")):
        if figure.value < min(share / 3, 1 / len(class_names)):
            yield (f"accuracy {figure}; calling every image {name} gives {share:.3f}, and guessing among "
                   f"{len(class_names)} classes {1 / len(class_names):.3f} ({figure.source})")


def _one_each(figures):
    """Figures of different values."""
    kept = []
    for figure in sorted(figures, key=lambda f: f.tolerance):
        if not any(figure.agrees(other) for other in kept):
            kept.append(figure)
    return kept


@rule("error", "Predictions and labels count the classes in different orders; figures of every class, and of all "
      "together, are then of something else.",
      "Take the class list from the checkpoint, and compare it with the one that made the labels.")
def label_order(confusions, class_names):
    for split, counts in confusions.items():
        cycles = class_order.better_order(counts)
        if cycles:
            order = {i: j for cycle in cycles for i, j in zip(cycle, [*cycle[1:], cycle[0]])}
            total = counts.sum()
            before = np.trace(counts) / total
            after = before + sum(counts[i, j] - counts[i, i] for i, j in order.items()) / total
            moved = listing((f"{counts[i, j]} of {counts[i].sum()} {class_names[i]} are called {class_names[j]}"
                             for i, j in order.items()), 8)
            yield (f"on {split} another order of the classes explains the predictions better: {moved}; "
                   f"accuracy {before:.3f} would be {after:.3f}")


CLASS_NUMBER = re.compile(r"class\s*(?:id\s*)?#?(\d{1,4})\s*[(:=]\s*[\"'“‘*]*([A-Za-z][\w-]{0,30})", re.IGNORECASE)


@rule("error", "A figure is told of another class than it was measured on.",
      "Write class names beside figures, never numbers.")
def class_number(texts, class_names):
    for source, words in texts.items():
        lower = [name.lower() for name in class_names]
        from_one = not re.search(r"class\s*(?:id\s*)?0\b", words, re.IGNORECASE)
        told = {(int(k), name) for k, name in CLASS_NUMBER.findall(words) if name.lower() in lower}
        wrong = [(k, name) for k, name in sorted(told) if lower.index(name.lower()) != k]
        if wrong and from_one and all(lower.index(name.lower()) == k - 1 for k, name in told):
            continue  # who counts from one, and does so throughout, is right
        for k, name in wrong:
            there = f"class {k} is {class_names[k]}" if k < len(class_names) else f"there is no class {k}"
            yield (f"“class {k} ({name})” in {source}; in the order {' '.join(class_names)}, {there} and "
                   f"{name} is {lower.index(name.lower())}")


# ---- splits


@rule("error", "A network that has seen a lesion, or the very image, recognises it: the test score is too high by an "
      "unknown amount.", "Split whole lesions (patients), and train again.")
def shared_by_splits(split=(), val=None, test=None):
    found = False
    for key, what in (("group", "groups (lesions, patients)"), ("sha256", "identical images")):
        where = defaultdict(set)
        for row in split:
            where[row.get(key)].add(row["split"])
        several = {value for value, parts in where.items() if value and len(parts) > 1}
        if not several:
            continue
        found = True
        shared = {value: Counter(row["split"] for row in rows) for value, rows in _rows_by(split, key).items() if value in several}
        parts = sorted({part for counts in shared.values() for part in counts})
        held_out = sum(counts["test"] for counts in shared.values())
        tested = sum(row["split"] == "test" for row in split)
        # official splits share a few identical images; less than one in a hundred moves no figure beyond its interval
        severe = key == "group" or held_out >= 0.01 * max(tested, 1)
        yield "error" if severe else "warning", (
            f"{len(shared):,} {what} are in more than one split ({', '.join(parts)}), among them {held_out:,} of "
            f"{tested:,} test images: {listing((value[:16] for value in sorted(shared)), 3)}")
    if not found and val is not None and test is not None:
        for what, ours, theirs in (("images", val.ids, test.ids), ("groups", val.groups, test.groups)):
            shared = set() if ours is None or theirs is None else set(ours) & set(theirs)
            if shared:
                yield f"validation and test share {len(shared):,} {what}: {listing(sorted(shared), 3)}"


def _rows_by(rows, key):
    found = defaultdict(list)
    for row in rows:
        found[row.get(key)].append(row)
    return found


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


@rule("warning", "Both are drawn alike, and what was selected on validation should do a little worse on test. Test "
      "images were in training, or test was looked at.", "Check the split for shared lesions and images.")
def test_above_val(val, test):
    if len(val.class_names) != len(test.class_names):
        return
    # resampling a handful of lesions says nothing about how they could have fallen out
    labels = [k for k in range(len(val.class_names))
              if min(len(np.unique(part.clusters[part.labels == k])) for part in (val, test)) >= 5]
    if len(labels) < 2:
        return
    v, t = (_macro_f1(part, labels, 0) for part in (val, test))
    if t[0] <= v[0]:
        return
    drawn_v, drawn_t = (np.sort(_macro_f1(part, labels)[1:]) for part in (val, test))
    drawn_v, drawn_t = (drawn[~np.isnan(drawn)] for drawn in (drawn_v, drawn_t))
    if not len(drawn_v) or not len(drawn_t):
        return
    below = np.searchsorted(drawn_t, drawn_v, "right").mean() / len(drawn_t)  # of all pairs: test is no better
    if below < (1 - CONFIDENCE) / 2:
        some = "" if len(labels) == len(val.class_names) else f" of the {len(labels)} classes with 5 lesions in both"
        yield (f"macro-F1{some} is {t[0]:.3f} on test and {v[0]:.3f} on validation: in {below:.2%} of pairs of "
               f"bootstrap replicates test is not above, less than a {CONFIDENCE:.1%} interval allows")


def _macro_f1(part, labels, replicates=bootstrap.REPLICATES):
    """[1 + B] macro-F1 over the classes in `labels`, of the sample and of replicates by clusters."""
    index, count = bootstrap.clusters(part.clusters)
    counts = bootstrap.confusions(part.labels, part.probabilities.argmax(1), len(part.class_names), index,
                                  bootstrap.shared(count, replicates))
    missing = (counts.sum(-1)[:, labels] == 0).any(1)
    return np.where(missing, np.nan, metrics.f1(counts)[:, labels].mean(1))


@rule("error", "Either the pixels went another way than in training (size, crop, colours, normalisation), or the "
      "predictions are of other weights than the ones kept.",
      "Write the predictions again from best.pt, with the preprocessing that it records.")
def other_preprocessing(inputs, curves=None, val=None):
    told = {source: held for source, held in inputs.items() if isinstance(held, dict)}
    for (a, one), (b, other) in itertools.combinations(told.items(), 2):
        both = [key for key in one if None not in (one[key], other.get(key))]
        differing = [f"{key} {other[key]}, not {one[key]}" for key in both if one[key] != other[key]]
        if differing:
            yield f"{b} says another input than {a}: {', '.join(differing)}"
    curves = curves or {}
    if val is not None and {"val_accuracy", "val_macro_f1"} <= set(curves) and curves["val_macro_f1"]:
        best = int(np.argmax(curves["val_macro_f1"]))
        then, now = curves["val_accuracy"][best], float((val.probabilities.argmax(1) == val.labels).mean())
        if abs(then - now) > 0.02 + 1 / len(val.labels):
            yield (f"validation accuracy was {then:.4f} when the weights were kept (the best epoch of history.csv) "
                   f"and is {now:.4f} in predictions/val.npz")


@rule("error", "One of them is of another run, another split or another day, and no reader can tell which.",
      "Give every figure the run it is from, and print each from that run's files alone.", of="figures")
def two_figures(cases):
    for model, members in _by_model(cases).items():
        if any(case.namesakes > 1 for case in members):
            continue
        seeds = {case.seed for case in members if case.seed}
        held = defaultdict(list)
        for case in members:
            seed = case.seed or (next(iter(seeds)) if len(seeds) == 1 else "")
            for figure in case.figures:
                held[seed, figure.split, figure.metric].append((case.model, figure))
        told = defaultdict(list)
        for (seed, split, metric), figures in held.items():
            (one, low), (other, high) = (pick(figures, key=lambda held: held[1].value) for pick in (min, max))
            if not low.agrees(high):
                told[seed, one, other].append(f"{metric} {low} ({low.source}) and {high} ({high.source}) on {split}")
        for (seed, one, other), metrics_ in told.items():
            named = "" if one == other else f", where {one} and {other} are taken for one model"
            yield "warning" if named else "error", (
                f"{'/'.join(filter(None, (model, seed)))} has {listing(metrics_, 3)}{named}")


def _by_model(several):
    """Model -> its Cases. A name of another table that is part of one model's name only is taken for that model."""
    models = defaultdict(list)
    for case in several:
        models[case.model].append(case)
    short = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in models}
    tables_of = {name: {source for case in members for source in case.sources} for name, members in models.items()}
    for name in list(models):
        longer = [other for other in models if other != name and short[name] in short[other]]
        if len(short[name]) >= 5 and len(longer) == 1 and not models[name][0].folder and not tables_of[name] & tables_of[longer[0]]:
            models[longer[0]] += models.pop(name)
    return models


# ---- what a reader should know


@rule("note", "A student that is above its teacher did not get there by imitating it; such a study says little about "
      "distillation.", "Train the teacher longer or choose a stronger one before comparing ways to distil.", of="figures")
def teacher_below_student(several):
    scores = defaultdict(lambda: defaultdict(list))
    for case in several:
        figure = case.figure("macro_f1")
        if case.role in ("teacher", "student") and figure:
            scores[case.folder is None, case.role][case.model].append(figure.value)
    for (tables, role), teachers in list(scores.items()):
        for teacher, values in teachers.items() if role == "teacher" else ():
            own = np.mean(values)
            means = {model: np.mean(values) for model, values in scores[tables, "student"].items()}
            above = [f"{model} {value:.3f}" for model, value in means.items() if value > own]
            if above:
                yield f"macro-F1 of the teacher {teacher} is {own:.3f}, below {listing(above)}"


@rule("warning", "Without an interval nobody can say whether two figures differ or the test set was small.",
      "Resample lesions, or images where no lesions are known, and give the interval beside every figure.", of="figures")
def no_interval(cases):
    lacking = defaultdict(lambda: defaultdict(list))
    for case in cases:
        bounded = {(f.split, f.metric) for f in case.figures if f.interval}
        for figure in case.figures:
            if figure.interval is False and (figure.split, figure.metric) not in bounded:
                lacking[figure.source][case.name].append(figure.metric)
    for source, held in lacking.items():
        names = listing(dict.fromkeys(name for metrics_ in held.values() for name in metrics_), 8)
        yield f"{source}: {names} of {listing(filter(None, held)) or 'this run'} without an interval"


@rule("warning", "A figure that cannot be traced to a run can neither be computed again nor be compared.",
      "Keep the run folder, with its predictions, and write its name beside every figure.", of="stated")
def run_not_found(cases):
    known = {key for case in cases if case.test is not None for key in ((case.model, case.seed), (case.model, ""))}
    strangers, crowds = defaultdict(list), {}
    for case in cases:
        if case.folder and case.test is None:
            yield f"{case.name}: metrics.json has figures, and there is no predictions/test.npz that they could be of"
        elif case.namesakes > 1:
            crowds[case.name.partition(" (")[0]] = case
        elif case.sources and not case.traced and (case.model, case.seed) not in known:
            strangers[tuple(case.sources)].append(case.name)
    for sources, names in strangers.items():
        yield f"no run folder with predictions for {listing(names)} ({', '.join(sources)})"
    for name, case in crowds.items():
        yield f"{case.namesakes} runs under the one name {name} ({', '.join(case.sources)})"


@rule("warning", "What cannot be read was not held against any rule.", "Write the file again, or take it away.")
def damaged_file(unreadable):
    yield from unreadable
