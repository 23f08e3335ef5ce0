"""How much of its quality a model keeps on corrupted images, and whether it knows when it fails.

A cell is one corruption at one severity. Every metric of a cell is computed as on clean images, on the same bootstrap
replicates over lesions or patients, so that differences to clean, means over cells and ratios to another model are
paired. Temperature and operating points are those chosen on clean validation images.
"""

from dataclasses import dataclass, field

import numpy as np

from kd import bootstrap, metrics, operating_points
from kd.errors import UserError, listing, nearest
from kd.estimate import Estimate
from kd.files import parse_number, read_csv, write_csv
from kd.text import command

CLEAN = "clean"
METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "rms_ce_debiased", "aurc")
TARGET = "mel"  # whose promised sensitivity is tested by default: of these classes, the one that must not be missed
QUICK_IMAGES = 500  # of --quick: the 95% interval of an accuracy of 0.8 is then about +-0.04
QUICK_SEVERITIES = (1, 3, 5)


@dataclass
class Answer:
    """The output of a model on one cell.

    logits: [n, C]. change: [n], the mean absolute difference of an image's pixels to its clean ones, in grey levels.
    seconds: of the forward passes. corrupting: seconds of the corruption, which was done once for all models.
    """

    logits: np.ndarray
    change: np.ndarray
    seconds: float
    corrupting: float


@dataclass
class Model:
    """A model file, its answers {tag: Answer}, and what was chosen for it on clean validation images.

    kind: teacher, alone or student. temperature: None where none could be fitted. points: operating points of the
    kind "sensitivity", as in metrics.json. values: {tag: {NAME: Estimate}}, which measure() fills in.
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
        """As full_name() gives it."""
        return full_name(self.model, self.seed, self.file)


def full_name(model, seed, file):
    """MODEL/SEED, with the file's name where it is not best.pt."""
    return f"{model}/{seed}" + ("" if file == "best.pt" else f" {file}")


# ---- temperature, operating points and images


def frozen(result, path, targets=None):
    """(temperature, points) that were chosen on clean validation images.

    result: the content of metrics.json, or None. path: of that file, for errors. targets: the classes whose operating
    points of the kind "sensitivity" are returned; by default TARGET, and where there is no such class all.
    Raises UserError where metrics.json has no calibration, or no operating point for a target.
    """
    fit = result.get("calibration") if isinstance(result, dict) else None
    if not fit:
        raise UserError(
            f"{path} has no temperature and operating points, which are frozen before anything is corrupted",
            f"Find them: {command('evaluate.py', path.parent)}",
        )
    points = {point["class"]: point for point in result["operating_points"]
              if point["kind"] == "sensitivity" and point["threshold"] is not None}
    targets = targets or ([TARGET] if TARGET in points else list(points))
    unknown = [name for name in targets if name not in points]
    if unknown:
        raise UserError(f"--target {listing(unknown)}: {path} has no operating point for it",
                        nearest(unknown[0], points) or f"It has: {listing(points, 12) or 'none'}.")
    return fit["temperature"], [points[name] for name in dict.fromkeys(targets)]


def subset(test, count, seed=0):
    """Predictions of about `count` images of `test`: whole groups, from each class by its share, at least one each."""
    clusters, sizes = np.unique(test.clusters, return_inverse=True, return_counts=True)[1:]
    order, chosen = np.random.default_rng(seed).permutation(len(test.labels)), np.zeros(len(sizes), bool)
    for k in range(len(test.class_names)):
        members = order[test.labels[order] == k]
        remaining = np.ceil(count * len(members) / len(test.labels))
        for group in clusters[members]:
            if remaining > 0 and not chosen[group]:
                chosen[group], remaining = True, remaining - sizes[group]
    return test.take(chosen[clusters])


def example_id(test):
    """The id of the image on example sheets: the first of the class TARGET, where there is one, else the first."""
    rows = np.flatnonzero(test.labels == test.class_names.index(TARGET)) if TARGET in test.class_names else []
    return str(test.ids[rows[0] if len(rows) else 0])


# ---- one cell


def replicate(model, logits, test, draws):
    """{NAME: Estimate} of a cell: METRICS, and `sensitivity/CLASS` and `specificity/CLASS` of each operating point.

    logits: [n, C]. draws: of the images of `test`. Probabilistic metrics are of the probabilities after the
    temperature; thresholds apply to those before it.
    """
    raw = calibrated = metrics.softmax(logits)
    if model.temperature is not None:
        calibrated = metrics.softmax(np.asarray(logits, np.float64) / model.temperature)
    values = {**bootstrap.overall(raw.argmax(1), draws), **bootstrap.probabilistic(calibrated, draws)}
    values = {name: values[name] for name in METRICS}
    for point in model.points:
        k = test.class_names.index(point["class"])
        masks = operating_points.masks(test.labels == k, raw[:, k] >= point["threshold"])
        values.update(draws.rates({f"{name}/{point['class']}": masks[name] for name in ("sensitivity", "specificity")}))
    return values


def agreement(a, b, draws):
    """Estimate of the share of the images to which two Answers give the same class."""
    return draws.rate(a.logits.argmax(1) == b.logits.argmax(1))


def measure(models, cells, test, *, replicates=bootstrap.REPLICATES, suite="default", teacher=None, progress=iter):
    """Rows of robustness.csv, [[row]] a Model, of its answers on the Predictions `test`. Fills in Model.values.

    cells: Cells of kd.robustness.suites. teacher: a Model whose answers to the same cells are compared with theirs.
    progress: a function that a list goes through, to show a progress bar.
    """
    draws = bootstrap.draws(test.labels, test.clusters, len(test.class_names), replicates)
    cell_of = {cell.tag: cell for cell in cells}
    rows = {id(model): [] for model in models}
    for model, tag in progress([(model, tag) for model in models for tag in model.answers]):
        answer = model.answers[tag]
        values = replicate(model, answer.logits, test, draws)
        if tag != CLEAN:
            values["agreement_clean"] = agreement(answer, model.answers[CLEAN], draws)
        if teacher is not None and teacher is not model:
            values["agreement_teacher"] = agreement(answer, teacher.answers[tag], draws)
        model.values[tag] = values
        rows[id(model)].append(_row(model, tag, cell_of.get(tag), suite, len(test.labels)))
    return [rows[id(model)] for model in models]


def _row(model, tag, cell, suite, images):
    """The row of robustness.csv of one cell; cell: None for the clean images."""
    values, clean, answer = model.values[tag], model.values[CLEAN], model.answers[tag]
    row = {
        "acc": values["accuracy"].value, "macro_f1": values["macro_f1"].value, "tag": tag,
        "model": model.model, "seed": model.seed, "file": model.file, "suite": suite,
        "corruption": cell.corruption if cell else CLEAN, "severity": cell.severity if cell else 0,
    }
    for name in METRICS:
        row.update(columns(name, values[name].metric()))
        difference = UNDEFINED if tag == CLEAN else values[name].minus(clean[name]).metric()
        row.update(columns(f"{name}_difference", difference))
    for name in ("agreement_clean", "agreement_teacher", *(name for name in values if "/" in name)):
        row.update(columns(name, values[name].metric() if name in values else UNDEFINED))
    return {**row, "pixel_change": float(answer.change.mean()), "seconds": answer.seconds,
            "seconds_corrupting": answer.corrupting, "images": images}


ENDS = ("", "_lo", "_hi")
UNDEFINED = dict.fromkeys(("value", "lo", "hi"), np.nan)


def columns(name, metric):
    """A METRIC as columns of a table: {name: value, name_lo: lo, name_hi: hi}, and name_withheld where it says why."""
    row = {f"{name}{end}": metric[end.lstrip("_") or "value"] for end in ENDS}
    return {**row, f"{name}_withheld": metric["withheld"]} if metric.get("withheld") else row


# ---- over cells


def summarise(models, cells, suite="default", baseline=None):
    """Rows of robustness_summary.csv, one for each Model that measure() has filled.

    E = 1 - balanced accuracy. BE = sum of E over cells / that of the baseline; rBE = the same of E - clean E; both also
    as in MedMNIST-C, see ratio_columns(), which is the one to compare with published means. The baseline itself has
    exactly 1; lower is better. rBE is undefined where the interval of a baseline's loss reaches 0. rank: by the sum of
    E, the least first. `worst_`: the cell of least macro-F1.
    """
    tags = [cell.tag for cell in cells]
    tags_of = {corruption: [cell.tag for cell in cells if cell.corruption == corruption]
               for corruption in dict.fromkeys(cell.corruption for cell in cells)}
    totals = [mean_error(model, tags).value for model in models]
    rows = []
    for model, total in zip(models, totals):
        worst = min(tags, key=lambda tag: model.values[tag]["macro_f1"].value)
        row = {
            "model": model.model, "seed": model.seed, "file": model.file, "suite": suite,
            "baseline": baseline.name if baseline else "", "cells": len(tags),
            "images": len(model.answers[CLEAN].change),
            **_clean_and_mean(model, "macro_f1", tags),
            **ratio_columns("be", model, baseline, tags_of),
            **ratio_columns("rbe", model, baseline, tags_of, loss=True),
            "rank": 1 + sum(other < total for other in totals), "worst_tag": worst,
            **columns("worst_macro_f1", mean(model, "macro_f1", [worst])),
        }
        for name in METRICS:
            if name != "macro_f1":
                row.update(_clean_and_mean(model, name, tags))
        for name in ("agreement_clean", "agreement_teacher"):
            row.update(columns(f"mean_{name}", mean(model, name, tags)))
        for point in model.points:
            sensitivity = f"sensitivity/{point['class']}"
            lowest = min(tags, key=lambda tag: np.nan_to_num(model.values[tag][sensitivity].value, nan=2.0))
            row.update({f"promised_{sensitivity}": point["promised"], f"worst_tag_{sensitivity}": lowest,
                        **columns(f"worst_{sensitivity}", mean(model, sensitivity, [lowest])),
                        **_clean_and_mean(model, sensitivity, tags),
                        **_clean_and_mean(model, f"specificity/{point['class']}", tags)})
        for corruption, its_tags in tags_of.items():
            ratio = relative_error(model, baseline, its_tags)
            row.update({**columns(f"macro_f1/{corruption}", mean(model, "macro_f1", its_tags)),
                        f"be/{corruption}": ratio.value if ratio else np.nan})
        rows.append(row)
    return rows


def _clean_and_mean(model, name, tags):
    """Columns of a metric on clean images and of its mean over cells."""
    return {**columns(f"clean_{name}", mean(model, name, [CLEAN])), **columns(f"mean_{name}", mean(model, name, tags))}


def mean(model, name, tags):
    """METRIC of the mean of a metric over cells; undefined where a cell lacks it."""
    if any(name not in model.values[tag] for tag in tags):
        return UNDEFINED
    estimates = [model.values[tag][name] for tag in tags]
    return type(estimates[0]).mean(estimates).metric()


def mean_error(model, tags, loss=False):
    """Estimate of the mean over cells of 1 - balanced accuracy; loss: of how much more that is than on clean images."""
    on_cells = Estimate.mean([model.values[tag]["balanced_accuracy"] for tag in tags])
    return model.values[CLEAN]["balanced_accuracy"].minus(on_cells) if loss else on_cells.complement()


def relative_error(model, baseline, tags, loss=False):
    """Estimate of mean_error() over that of the baseline, or None.

    None without a baseline, and with `loss` where the baseline's is not clearly above 0: divided by nearly nothing the
    ratio could be any number.
    """
    if baseline is None:
        return None
    of_baseline = mean_error(baseline, tags, loss)
    if not of_baseline.value > 0 or loss and not of_baseline.metric()["lo"] > 0:
        return None
    return mean_error(model, tags, loss).over(of_baseline)


def ratio_columns(name, model, baseline, tags_of, loss=False):
    """Columns of a relative error under its two definitions: `name` of all cells, `name_medmnist_c` over corruptions.

    The first is a ratio of sums over all cells; the second is the mean over corruptions of such ratios, as in
    MedMNIST-C (Di Salvo et al. 2024, 2406.17536). They can differ so much that they say the opposite of each other.
    """
    tags = [tag for its_tags in tags_of.values() for tag in its_tags]
    whole = relative_error(model, baseline, tags, loss)
    return {**columns(name, whole.metric() if whole else UNDEFINED),
            **columns(f"{name}_medmnist_c", mean_ratio(model, baseline, list(tags_of.values()), loss))}


def mean_ratio(model, baseline, tags_of_each, loss):
    """METRIC of the mean over corruptions of relative_error(); tags_of_each: the tags of each corruption.

    Publications have it whatever the ratios are: where a corruption does not clearly harm the baseline there is the
    value, and no interval.
    """
    if baseline is None:
        return UNDEFINED
    each = [relative_error(model, baseline, tags, loss) for tags in tags_of_each]
    if None not in each:
        return Estimate.mean(each).metric()
    errors = [[mean_error(one, tags, loss).value for tags in tags_of_each] for one in (model, baseline)]
    return {**UNDEFINED, "value": float(np.mean(metrics.ratio(*errors))),
            "withheld": "a corruption does not clearly harm the baseline"}


# ---- the file


def write(path, rows, by=("file", "suite")):
    """Write rows into a table in place of those with the same values in the columns `by`; all others stay.

    Returns all rows of the table; None, and writes nothing, where the rows to be replaced are of more images.
    """
    def key(row):
        return [row.get(name) for name in by]

    existing = read_csv(path) if path.is_file() else []
    keys = [key(row) for row in rows]
    images = max((parse_number(row.get("images")) for row in existing if key(row) in keys), default=0)
    if images > rows[0]["images"]:
        return None
    rows = [{name: format_cell(name, value) for name, value in row.items()} for row in rows]
    rows += [row for row in existing if key(row) not in keys]
    write_csv(path, rows)
    return rows


def format_cell(column, value):
    """A value as it is written: bounds, times and pixel changes have six digits, NaN and None are empty."""
    if value is None or isinstance(value, float) and np.isnan(value):
        return ""
    rounded = isinstance(value, float) and column.endswith(("_lo", "_hi", "_change", "seconds"))
    return f"{value:.6g}" if rounded else value
