"""How much of its quality a model keeps on corrupted images, and whether it knows when it fails.

A cell is one corruption at one severity. Every figure of a cell is measured as the clean one is, on the same
bootstrap replicates over lesions or patients, so that differences to clean, means over cells and ratios to another
model are paired. Temperature and operating points are those chosen on clean validation images, and stay so.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from kd import bootstrap, calibration, metrics, operating_points, paired
from kd.errors import UserError, listing, nearest
from kd.files import parse_number, read_csv, write_csv

CLEAN = "clean"
METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "aurc")
TARGET = "mel"  # the class whose promised sensitivity is tested by default, where there is such a class
QUICK, SEVERITIES = 500, (1, 3, 5)  # images, and severities, of a first look


@dataclass
class Answer:
    """What a model said of one cell: logits [n, C]; change [n], the mean absolute difference of an image's pixels to
    its clean ones, in grey levels; seconds: of answering, and of corrupting, which was done once for all models."""

    logits: np.ndarray
    change: np.ndarray
    seconds: float
    corrupting: float


@dataclass
class Model:
    """A model file, its answers {tag: Answer}, and what was frozen on validation before it saw a corruption.

    kind: teacher, alone or student. temperature: None where none could be fitted. points: operating points of the
    kind "sensitivity", as in metrics.json. values: {tag: {NAME: [1 + B]}}, which measure() fills in.
    """

    model: str
    seed: str
    file: str
    kind: str
    temperature: float
    points: list
    answers: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)

    @property
    def name(self):
        return f"{self.model}/{self.seed}" + ("" if self.file == "best.pt" else f" {self.file}")


# ---- what is measured on


def frozen(result, path, targets=None):
    """(temperature, points) of metrics.json: its operating points of the kind "sensitivity" for the classes `targets`;
    by default for melanoma, and where there is no such class for all."""
    told = result.get("calibration") if isinstance(result, dict) else None
    if not told:
        raise UserError(f"{path} has no temperature and operating points, which are frozen before anything is corrupted",
                        f"python evaluate.py {path.parent.as_posix()} finds them.")
    points = {point["class"]: point for point in result["operating_points"]
              if point["kind"] == "sensitivity" and point["threshold"] is not None}
    targets = targets or ([TARGET] if TARGET in points else list(points))
    unknown = [name for name in targets if name not in points]
    if unknown:
        raise UserError(f"--target {listing(unknown)}: {path} has no operating point for it",
                        nearest(unknown[0], points) or f"It has: {listing(points, 12) or 'none'}.")
    return told["temperature"], [points[name] for name in dict.fromkeys(targets)]


def part(test, count, seed=0):
    """Predictions of about `count` of the images: whole groups, drawn from each class by its share, and one at least."""
    clusters, sizes = np.unique(test.clusters, return_inverse=True, return_counts=True)[1:]
    drawn, chosen = np.random.default_rng(seed).permutation(len(test.labels)), np.zeros(len(sizes), bool)
    for k in range(len(test.class_names)):
        members = drawn[test.labels[drawn] == k]
        wanted = np.ceil(count * len(members) / len(test.labels))
        for group in clusters[members]:
            if wanted > 0 and not chosen[group]:
                chosen[group], wanted = True, wanted - sizes[group]
    rows = np.flatnonzero(chosen[clusters])
    return dataclasses.replace(test, **{name: None if getattr(test, name) is None else getattr(test, name)[rows]
                                        for name in ("labels", "logits", "probabilities", "ids", "groups")})


def example(test):
    """The id of an image to be shown: the first of the class TARGET, where there is one, else the first."""
    shown = np.flatnonzero(test.labels == test.class_names.index(TARGET)) if TARGET in test.class_names else []
    return str(test.ids[shown[0] if len(shown) else 0])


# ---- one cell


def replicate(model, logits, test, index, weights, images):
    """{NAME: [1 + B]} of logits [n, C] of one cell: METRICS, and of each operating point `sensitivity/CLASS` and
    `specificity/CLASS`. index [n] and weights [1 + B, G] as by kd.bootstrap; images [1 + B, n] is weights[:, index].

    nll, ece and aurc are of the probabilities after the temperature; thresholds are of those before it.
    """
    raw = metrics.softmax(logits)
    shown = raw if model.temperature is None else metrics.softmax(np.asarray(logits, np.float64) / model.temperature)
    counts = bootstrap.confusions(test.labels, raw.argmax(1), len(test.class_names), index, weights)
    values = {**bootstrap.overall(counts),
              **bootstrap.probabilistic(test.labels, shown, index, weights, images, calibration.BINS)}
    values = {name: values[name] for name in METRICS}
    for point in model.points:
        k = test.class_names.index(point["class"])
        rates = operating_points.binary(test.labels == k, raw[:, k] >= point["threshold"], images)
        values.update({f"{name}/{point['class']}": rates[name] for name in ("sensitivity", "specificity")})
    return bootstrap.spread(values, weights)


def agreement(test, one, other, images):
    """[1 + B] shares of the images to which two Answers give the same class."""
    return paired.agreement(test.labels, other.logits.argmax(1), one.logits.argmax(1), images)["agreement"]


def measure(models, cells, test, *, replicates=bootstrap.REPLICATES, suite="default", teacher=None, progress=iter):
    """Rows of robustness.csv of Models, [[row]] a model: what they answered for `cells` (kd.robustness.suites.Cell) on the
    Predictions `test`. teacher: a Model, with whose answers in the same cell theirs are compared."""
    index, count = bootstrap.clusters(test.clusters)
    weights = bootstrap.resample(count, replicates)
    images = weights[:, index]
    rows = {id(model): [] for model in models}
    for model, tag in progress([(model, tag) for model in models for tag in model.answers]):
        values = replicate(model, model.answers[tag].logits, test, index, weights, images)
        others = {"agreement_clean": (model, CLEAN) if tag != CLEAN else None,
                  "agreement_teacher": (teacher, tag) if teacher not in (None, model) else None}
        values.update(bootstrap.spread({name: agreement(test, model.answers[tag], other[0].answers[other[1]], images)
                                        for name, other in others.items() if other}, weights))
        model.values[tag] = values
        rows[id(model)].append(_row(model, tag, next((cell for cell in cells if cell.tag == tag), None), suite, len(test.labels)))
    return [rows[id(model)] for model in models]


def _row(model, tag, cell, suite, count):
    values, clean, answer = model.values[tag], model.values[CLEAN], model.answers[tag]
    row = {"acc": float(values["accuracy"][0]), "macro_f1": float(values["macro_f1"][0]), "tag": tag, "model": model.model,
           "seed": model.seed, "file": model.file, "suite": suite, "corruption": cell.corruption if cell else CLEAN,
           "severity": cell.severity if cell else 0}
    for name in METRICS:
        corrected = bootstrap.biased(name)
        row.update(bounds(name, bootstrap.interval(values[name], corrected=corrected)))
        if tag != CLEAN:
            row.update(bounds(f"{name}_difference", paired.paired(clean[name], values[name], corrected=corrected)))
        else:
            row.update(bounds(f"{name}_difference", UNDEFINED))
    for name in ("agreement_clean", "agreement_teacher", *(name for name in values if "/" in name)):
        row.update(bounds(name, bootstrap.interval(values[name]) if name in values else UNDEFINED))
    return {**row, "pixel_change": float(answer.change.mean()), "seconds": answer.seconds,
            "seconds_corrupting": answer.corrupting, "images": count}


ENDS = ("", "_lo", "_hi")
UNDEFINED = dict.fromkeys(("value", "lo", "hi"), np.nan)


def bounds(name, metric):
    """A METRIC as columns: name, name_lo, name_hi."""
    return {f"{name}{end}": metric[end.lstrip("_") or "value"] for end in ENDS}


# ---- over cells


def summarise(models, cells, suite="default", baseline=None):
    """Rows of robustness_summary.csv, one a Model that measure() has filled.

    E = 1 - balanced accuracy. BE = sum of E over cells / that of the baseline; rBE = the same of E - clean E. The
    baseline itself has exactly 1, below it is better. rBE is undefined where the interval of what the baseline loses
    reaches 0: over a loss of nearly nothing, or a gain, the ratio could be any number. MedMNIST-C (Di Salvo et al. 2024,
    2406.17536) takes the ratio for
    each corruption (columns `be/CORRUPTION`) and averages; of the whole suite it is defined where a corruption
    does the baseline no harm. rank: by the sum of E, the least first; `worst_` is the cell of least macro-F1.
    """
    tags = [cell.tag for cell in cells]
    families = {name: [cell.tag for cell in cells if cell.corruption == name]
                for name in dict.fromkeys(cell.corruption for cell in cells)}
    totals = [float(errors(model, tags)[0]) for model in models]
    rows = []
    for model, total in zip(models, totals):
        worst = min(tags, key=lambda tag: model.values[tag]["macro_f1"][0])
        row = {"model": model.model, "seed": model.seed, "file": model.file, "suite": suite,
               "baseline": baseline.name if baseline else "", "cells": len(tags), "images": len(model.answers[CLEAN].change),
               **bounds("clean_macro_f1", mean(model, "macro_f1", [CLEAN])), **bounds("mean_macro_f1", mean(model, "macro_f1", tags)),
               **bounds("be", relative(model, baseline, tags)), **bounds("rbe", relative(model, baseline, tags, clean=True)),
               "rank": 1 + sum(other < total for other in totals), "worst_tag": worst,
               **bounds("worst_macro_f1", mean(model, "macro_f1", [worst]))}
        for name in METRICS:
            if name != "macro_f1":
                row.update({**bounds(f"clean_{name}", mean(model, name, [CLEAN])), **bounds(f"mean_{name}", mean(model, name, tags))})
        for name in ("agreement_clean", "agreement_teacher"):
            row.update(bounds(f"mean_{name}", mean(model, name, tags)))
        for point in model.points:
            name = f"sensitivity/{point['class']}"
            least = min(tags, key=lambda tag: np.nan_to_num(model.values[tag][name][0], nan=2.0))
            row.update({f"promised_{name}": point["promised"], f"worst_tag_{name}": least,
                        **bounds(f"worst_{name}", mean(model, name, [least]))})
            for name in (name, f"specificity/{point['class']}"):
                row.update({**bounds(f"clean_{name}", mean(model, name, [CLEAN])), **bounds(f"mean_{name}", mean(model, name, tags))})
        for name, own in families.items():
            row.update({**bounds(f"macro_f1/{name}", mean(model, "macro_f1", own)), f"be/{name}": relative(model, baseline, own)["value"]})
        rows.append(row)
    return rows


def mean(model, name, tags):
    """METRIC of the mean of a metric over cells; undefined where a cell lacks it."""
    if any(name not in model.values[tag] for tag in tags):
        return UNDEFINED
    return bootstrap.interval(np.mean([model.values[tag][name] for tag in tags], 0), corrected=bootstrap.biased(name))


def errors(model, tags, clean=False):
    """[1 + B] sums over cells of 1 - balanced accuracy; clean: of how much that is more than on clean images."""
    least = 1 - model.values[CLEAN]["balanced_accuracy"] if clean else 0
    return np.sum([1 - model.values[tag]["balanced_accuracy"] - least for tag in tags], 0)


def relative(model, baseline, tags, clean=False):
    """METRIC of errors() over those of the baseline; undefined without one, and where these are not clearly above 0."""
    if baseline is None:
        return UNDEFINED
    base = errors(baseline, tags, clean)
    if clean and not bootstrap.interval(base)["lo"] > 0:
        return UNDEFINED
    return paired.retention(np.where(base > 0, base, np.nan), errors(model, tags, clean))


# ---- the file


TEXT = ("tag", "model", "seed", "file", "suite", "corruption")


def write(path, rows, by=("file", "suite")):
    """Rows into a table, in place of those that are equal in the columns `by`; other rows stay. Fewer images never
    take the place of more: then nothing is written. Returns whether it was."""
    def key(row):
        return [row.get(name) for name in by]

    there = read_csv(path) if path.is_file() else []
    ours = [key(row) for row in rows]
    most = max((parse_number(row.get("images")) for row in there if key(row) in ours), default=0)
    if most > rows[0]["images"]:
        return False
    kept = [row for row in there if key(row) not in ours]
    write_csv(path, [*({name: text(name, value) for name, value in row.items()} for row in rows), *kept])
    return True


def text(name, value):
    """A cell of a table: what is no figure stays; bounds have six digits, values all; undefined is empty."""
    if value is None or isinstance(value, float) and np.isnan(value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) and name.endswith(("_lo", "_hi", "_change", "seconds")) else value


def read(path):
    """The rows of a robustness.csv, numbers as floats, NaN where a cell is empty or no number. UserError for a file
    without tag and model."""
    return [{name: value if name in TEXT else parse_number(value) for name, value in row.items()}
            for row in read_csv(path, ("tag", "model"))]
