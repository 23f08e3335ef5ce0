"""Figures of one model by sex, age, body site, or any other column of a table about the images.

    columns = read_columns(table, predictions, ["sex", "age"])     {column: [n] values}
    metrics["subgroups"] = evaluate(test, columns, points, ...)     for metrics.json

Subgroups have other images, so that a gap between two is no paired difference (Estimate.gap). With
many subgroups some gap is large by chance; the p-values of all gaps in one metric are one family (Holm).
"""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np

from kd import bootstrap, operating_points, paired
from kd.errors import UserError, listing, nearest
from kd.estimate import Estimate
from kd.files import parse_number, read_csv
from kd.prediction_files import plain_id
from kd.text import format_count

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc")
UNKNOWN = "unknown"
MISSING = {"", "unknown", "na", "n/a", "nan", "none", "null", "-", "?", "."}  # as tables of clinics write it
MOST = 12        # distinct numbers that are subgroups themselves; more are put into bands
BANDS = 5        # about as many
MOST_TEXTS = 30  # subgroups of text; the number of gaps grows with the square, and nobody reads 500
LARGEST = 1e12   # from which on numbers are written with an exponent
TINY = 1e-300    # width of all bands, below which floats have few digits
NUMBERS = 0.9    # of the known values, from which on a column is one of numbers, and its words are unknown


def read_columns(path, predictions, names):
    """{column: [n] subgroup of each image} of a table with one row an image. Numbers are put into bands.

    The column of ids is the one that has all ids of the Predictions, as they are or without folders and suffix. Prints
    what was taken together. Raises UserError where no column has the ids, for a column that the table lacks, and where
    an image has two rows that differ.
    """
    if predictions.ids is None:
        raise UserError("--by finds the test images in a table by their ids, and these predictions have none",
                        "Add an array `ids` to the file, in the order of its rows.")
    rows = read_csv(path, separators=",;\t|")
    if not rows:
        raise UserError(f"{path} has no rows", "It has a header, and a row for each image.")
    known = [column for column in rows[0] if column]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--by {listing(unknown)}: {path} has no such column",
                        nearest(unknown[0], known) or f"Its columns are {listing(known, 12)}.")
    short = sum(None in row.values() for row in rows)
    if short:
        raise UserError(f"{path} has {format_count(short, 'row')} shorter than its header",
                        "A cell without a value is empty, between its separators.")
    return {name: bands(values, f"--by {name}") for name, values in _of_images(path, rows, known, predictions,
                                                                               names).items()}


def _of_images(path, rows, columns, predictions, names):
    """{name: [n] cells of the images}. UserError where the table does not say one thing of each image."""
    ids = list(map(str, predictions.ids))
    size = len(set(ids))
    for key in (str, plain_id):
        wanted = [key(i) for i in ids]
        found = {column: len(set(wanted) & {key(row[column]) for row in rows}) for column in columns}
        best = max(found.values())
        if best == size:
            break
    else:
        column = max(found, key=found.get)
        raise UserError(f"{path} lacks {size - best:,} of the {format_count(size, 'test image')}",
                        f"One of its columns has the id of each image, such as {ids[0]}; {column} has "
                        f"{listing([row[column] for row in rows], 2)}.")
    readings = {}
    for column in (column for column in columns if found[column] == size):
        rows_of = defaultdict(list)
        for row in rows:
            rows_of[key(row[column])].append(row)
        differing = [i for i in wanted if any(row[name] != rows_of[i][0][name] for row in rows_of[i] for name in names)]
        if differing:
            differing = list(dict.fromkeys(differing))
            count = format_count(len(differing), "image")
            raise UserError(f"{path} has several rows, which differ in {', '.join(names)}, of {count}: "
                            f"{listing(differing)}", "Each image needs one row.")
        readings[column] = {name: [rows_of[i][0][name] for i in wanted] for name in names}
    first, *others = readings
    if any(readings[other] != readings[first] for other in others):
        raise UserError(f"{path} has the ids in {listing(readings)}, which give other {', '.join(names)}",
                        "Leave one of these columns out of the table.")
    return readings[first]


def bands(values, what="the column"):
    """[n] names of subgroups of values [n] of text: themselves, or bands of numbers such as `40 to 59`.

    what: the column's name for notes, which are printed, and errors. UserError for more than MOST_TEXTS texts.
    """
    values = [UNKNOWN if value.strip().lower() in MISSING else value.strip() for value in values]
    numbers = np.array([parse_number(value) for value in values])
    is_number, is_known = np.isfinite(numbers), np.array([value != UNKNOWN for value in values])
    is_column_of_numbers = is_number.sum() >= NUMBERS * is_known.sum() > 0
    if is_column_of_numbers and len(set(numbers[is_number])) > MOST:
        words = sorted({value for value, number in zip(values, is_number) if not number} - {UNKNOWN})
        if words:
            count = format_count(np.sum(is_known & ~is_number), "value")
            print(f"note: {what}: not a number, and so unknown: {listing(words)} ({count})")
        return _bands(numbers, is_number, what)
    keys = [number if known and is_column_of_numbers else value.casefold() for value, number, known in
            zip(values, numbers, is_number)]
    spellings = defaultdict(Counter)
    for key, value in zip(keys, values):
        spellings[key][value] += 1
    for same in spellings.values():
        if len(same) > 1:
            print(f"note: {what}: {', '.join(sorted(same))} are taken for one subgroup")
    if len(spellings) > MOST_TEXTS:
        raise UserError(f"{what}: it has {len(spellings):,} different values, and at most {MOST_TEXTS} subgroups are "
                        "compared", "Put its values into groups, in a column of their own.")
    return np.array([spellings[key].most_common(1)[0][0] for key in keys])


def _bands(numbers, is_number, what):
    low, high = float(numbers[is_number].min()), float(numbers[is_number].max())
    if not TINY < high - low < math.inf:
        raise UserError(f"{what}: bands cannot be made of numbers from {low:g} to {high:g}",
                        "Put its values into groups, in a column of their own.")
    power = 10.0 ** math.floor(math.log10((high - low) / BANDS))
    width = next(step * power for step in (1, 2, 5, 10) if step * power * BANDS >= (high - low) * (1 - 1e-12))
    exponent = math.floor(math.log10(width) + 1e-9)
    form = f".{max(0, -exponent)}f"
    largest = max(-low, high)
    if largest >= LARGEST or exponent < -9:  # in so many digits as tell one edge from the next
        form = f".{max(0, math.floor(math.log10(largest)) - exponent)}e"
    places = np.where(is_number, numbers, 0) / width
    whole = np.round(places)
    # 0.6 / 0.2 is a little less than 3
    places = np.where(np.abs(places - whole) <= 1e-9 + 1e-15 * np.abs(places), whole, np.floor(places)) + 0.0  # no -0
    last = 1 if 2 <= width < LARGEST and np.all(numbers[is_number] == np.round(numbers[is_number])) else 0
    return np.array([f"{place * width:{form}} to {(place + 1) * width - last:{form}}" if known else UNKNOWN
                     for place, known in zip(places, is_number)])


def evaluate(test, columns, points, settings, calibrated=None):
    """The content of metrics.json's "subgroups": {column: {"subgroups": [...], "gaps": [...]}}.

    test: Predictions; columns: {name: [n] subgroups}; points: the operating points of the kind sensitivity, as in
    metrics.json; calibrated: probabilities [n, C] after the temperature, or None; then the calibration error is theirs
    and is called rms_ce_debiased_calibrated.
    A subgroup is {"name", "images", "groups", "classes", "test": {NAME: METRIC}}. A gap is {"metric", "highest",
    "lowest", "value", "lo", "hi", "p", "p_corrected", "gaps"}: the largest of one metric, and how many gaps there are
    in the family of its p-values.
    """
    estimates = {name: {} for name in columns}
    for column, values in columns.items():
        for seed, subgroup in enumerate(sorted(set(values), key=_natural), start=1):
            rows = np.flatnonzero(values == subgroup)
            estimates[column][subgroup] = _figures(test, rows, calibrated, points, settings, seed)
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


def _figures(test, rows, calibrated, points, settings, seed):
    """(size, {NAME: Estimate}) of the images `rows`. seed: each subgroup has draws of its own."""
    index, count = bootstrap.clusters(np.asarray(test.clusters)[rows])
    labels, names = test.labels[rows], test.class_names
    draws = bootstrap.Draws(labels, index, len(names), settings.replicates, seed)
    after = None if calibrated is None else calibrated[rows]
    figures = bootstrap.replicate(test.probabilities[rows], draws, names, after, settings.bins)
    calibration_error = "rms_ce_debiased" if calibrated is None else "rms_ce_debiased_calibrated"
    figures = {name: figures[name] for name in (*METRICS, calibration_error)}
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
                p = upper.gap_p(lower)
                if np.isfinite(p):
                    families.setdefault(name, []).append((column, high, low, upper.gap(lower), p))
    largest = {}
    for name, family in families.items():
        corrected = paired.holm([p for *_, p in family])
        for (column, high, low, metric, p), p_corrected in zip(family, corrected):
            row = {"metric": name, "highest": high, "lowest": low, "value": metric["value"], "lo": metric["lo"],
                   "hi": metric["hi"], "p": p, "p_corrected": float(p_corrected), "gaps": len(family)}
            if row["value"] > largest.get((column, name), {"value": -1})["value"]:
                largest[column, name] = row
    result = {}
    for (column, _), row in largest.items():
        result.setdefault(column, []).append(row)
    return result
