"""Figures of one model by sex, age, body site, or any other column of a table about the images.

    columns = read_columns(table, predictions, ["sex", "age"])     {column: [n] values}
    metrics["subgroups"] = evaluate(test, columns, points, ...)     for metrics.json

Subgroups have other images, so that a gap between two is no paired difference: its variance is the sum of both. With
many subgroups some gap is large by chance; the p-values of all gaps in one metric are one family (Holm).
"""

import itertools

import numpy as np

from kd import bootstrap, operating_points, paired
from kd.errors import UserError, listing, nearest
from kd.estimate import Estimate
from kd.files import parse_number, read_csv

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc", "rms_ce_debiased")
UNKNOWN = "unknown"
MISSING = {"", "unknown", "na", "n/a", "nan", "none", "null"}  # as tables of clinics write it
MOST = 12   # distinct numbers that are subgroups themselves; more are put into bands
BANDS = 5   # about as many


def read_columns(path, predictions, names):
    """{column: [n] subgroup of each image} of a CSV with one row an image. Numbers are put into bands.

    The column of ids is the one that has most of the ids of the Predictions. Raises UserError where there is no such
    column, and for a column that the table lacks.
    """
    if predictions.ids is None:
        raise UserError("--by finds the test images in a table by their ids, and these predictions have none",
                        "Add an array `ids` to the file, in the order of its rows.")
    rows = read_csv(path)
    known = list(rows[0]) if rows else []
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--by {listing(unknown)}: {path} has no such column",
                        nearest(unknown[0], known) or f"Its columns are {listing(known, 12)}.")
    ids = set(map(str, predictions.ids))
    found = {column: len(ids & {row[column] for row in rows}) for column in known}
    key = max(found, key=found.get)
    if found[key] < len(ids):
        raise UserError(f"{path} lacks {len(ids) - found[key]:,} of the {len(ids):,} test images",
                        f"One of its columns has the id of each image, such as {predictions.ids[0]}.")
    row_of = {row[key]: row for row in rows}
    return {name: bands([row_of[str(id_)][name] or "" for id_ in predictions.ids]) for name in names}


def bands(values):
    """[n] names of subgroups of values [n] of text: themselves, or bands of numbers such as `40 to 59`."""
    values = [UNKNOWN if value.strip().lower() in MISSING else value.strip() for value in values]
    numbers = np.array([parse_number(value) for value in values])
    is_known = np.array([value != UNKNOWN for value in values])
    if not is_known.any() or np.isnan(numbers[is_known]).any() or len(set(numbers[is_known])) <= MOST:
        return np.array(values)
    low, high = numbers[is_known].min(), numbers[is_known].max()
    power = 10.0 ** np.floor(np.log10((high - low) / BANDS))
    width = next(step * power for step in (1, 2, 5, 10) if step * power * BANDS >= high - low)
    starts = np.floor(np.where(is_known, numbers, 0) / width) * width
    last = 1 if np.all(numbers[is_known] == np.round(numbers[is_known])) and width >= 2 else 0
    return np.array([f"{start:g} to {start + width - last:g}" if known else UNKNOWN
                     for start, known in zip(starts, is_known)])


def evaluate(test, columns, points, settings, calibrated=None):
    """The content of metrics.json's "subgroups": {column: {"subgroups": [...], "gaps": [...]}}.

    test: Predictions; columns: {name: [n] subgroups}; points: the operating points of the kind sensitivity, as in
    metrics.json; calibrated: probabilities [n, C] after the temperature, of which the calibration error is, or None.
    A subgroup is {"name", "images", "groups", "classes", "test": {NAME: METRIC}}. A gap is {"metric", "highest",
    "lowest", "value", "lo", "hi", "p", "p_corrected", "gaps"}: the largest of one metric, and how many gaps there are
    in the family of its p-values.
    """
    probabilities = test.probabilities if calibrated is None else calibrated
    estimates = {name: {} for name in columns}
    for column, values in columns.items():
        for seed, subgroup in enumerate(sorted(set(values), key=_natural), start=1):
            rows = np.flatnonzero(values == subgroup)
            estimates[column][subgroup] = _figures(test, rows, probabilities, points, settings, seed)
    gaps = _gaps(estimates)
    result = {}
    for column, of_subgroups in estimates.items():
        entries = [{"name": subgroup, "images": size["images"], "groups": size["groups"], "classes": size["classes"],
                    "test": bootstrap.intervals(figures)} for subgroup, (size, figures) in of_subgroups.items()]
        result[column] = {"subgroups": entries, "gaps": gaps.get(column, [])}
    return result


def _natural(name):
    """Sort key: bands by their number, names by the alphabet, what is unknown last."""
    number = parse_number(name.split(" to ")[0])
    return name == UNKNOWN, np.isnan(number), 0 if np.isnan(number) else number, name


def _figures(test, rows, probabilities, points, settings, seed):
    """(size, {NAME: Estimate}) of the images `rows`. seed: each subgroup has draws of its own."""
    index, count = bootstrap.clusters(np.asarray(test.clusters)[rows])
    labels, names = test.labels[rows], test.class_names
    draws = bootstrap.Draws(labels, index, len(names), settings.replicates, seed)
    figures = bootstrap.replicate(probabilities[rows], draws, names, bins=settings.bins)
    figures = {name: figures[name] for name in METRICS}
    for point in points:
        if point["threshold"] is not None and np.isfinite(point["threshold"]):
            k = names.index(point["class"])
            masks = operating_points.masks(labels == k, test.probabilities[rows, k] >= point["threshold"])
            figures.update(draws.rates({f"{rate}/{point['class']}": masks[rate]
                                        for rate in ("sensitivity", "specificity")}))
    classes = [names[k] for k in draws.present]
    return {"images": len(rows), "groups": count, "classes": classes}, figures


def _gaps(estimates):
    """{column: the largest gap of each metric}. Macro metrics are compared between subgroups of the same classes."""
    families = {}
    for column, of_subgroups in estimates.items():
        for (a, (size_a, first)), (b, (size_b, second)) in itertools.combinations(of_subgroups.items(), 2):
            for name in first:
                is_macro = name in ("macro_f1", "balanced_accuracy", "macro_auroc")
                if UNKNOWN in (a, b) or is_macro and size_a["classes"] != size_b["classes"]:
                    continue
                if not isinstance(first[name], Estimate):  # a debiased calibration error is one of the same images
                    continue
                (low, lower), (high, upper) = sorted([(a, first[name]), (b, second[name])],
                                                     key=lambda pair: pair[1].value)
                gap = upper.minus(lower)
                if np.isfinite(gap.p()):
                    families.setdefault(name, []).append((column, high, low, gap))
    largest = {}
    for name, family in families.items():
        corrected = paired.holm([gap.p() for *_, gap in family])
        for (column, high, low, gap), p in zip(family, corrected):
            metric = gap.metric()
            row = {"metric": name, "highest": high, "lowest": low, "value": metric["value"],
                   "lo": metric["lo"], "hi": metric["hi"], "p": gap.p(), "p_corrected": float(p), "gaps": len(family)}
            if row["value"] > largest.get((column, name), {"value": -1})["value"]:
                largest[column, name] = row
    result = {}
    for (column, _), row in largest.items():
        result.setdefault(column, []).append(row)
    return result
