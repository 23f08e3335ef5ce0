"""What the files of a run folder must be: check_*() returns what a Run keeps of a content, or raises UserError.

Files may come from other systems, and hold anything; what has passed these checks needs no further check.
"""

import math

import numpy as np

from kd.errors import UserError
from kd.files import parse_number
from kd.text import is_defined

HISTORY = ("epoch", "loss", "val_macro_f1", "seconds")  # columns of history.csv that every training writes
LARGEST = 1e15  # that a figure or count of these files may be; what is drawn and printed would overflow


def is_number(value):
    """Whether this is a number, or stands for an undefined one: None, NaN, an infinity."""
    return value is None or isinstance(value, (int, float)) and not LARGEST < abs(value) < math.inf


def is_share(value):
    """Whether this is a number from 0 to 1."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


def is_metrics(table):
    """Whether this is {NAME: METRIC}."""
    numbers = ("value", "lo", "hi", "mean")
    return isinstance(table, dict) and all(
        isinstance(metric, dict) and all(is_number(metric.get(key)) for key in numbers)
        and isinstance(metric.get("withheld", ""), str) for metric in table.values())


def _is_square(rows, classes):
    return isinstance(rows, list) and len(rows) == classes and all(
        isinstance(row, list) and len(row) == classes and all(type(n) is int and 0 <= n < 2 ** 53 for n in row)
        for row in rows)


def is_point(point):
    """Whether this is an operating point of metrics.json."""
    if not isinstance(point, dict) or not is_metrics(point.get("test", {})):
        return False
    if not isinstance(point.get("name", ""), str) or not isinstance(point.get("kind", ""), str):
        return False
    numbers = ("promised", "asked", "assurance")
    if not is_metrics({"": point.get("shortfall") or {}}) or not all(is_number(point.get(key)) for key in numbers):
        return False
    threshold, kind = point.get("threshold"), point.get("kind")
    if isinstance(threshold, dict):
        if not all(map(is_number, threshold.values())):
            return False
    elif not is_number(threshold):
        return False
    if kind in ("sensitivity", "abstention") and point.get("promised") is None:
        return False
    return kind != "sensitivity" or {"value", "lo", "hi"} <= point.get("test", {}).get("sensitivity", {}).keys()


def _are_fold_points(content):
    """Whether a metrics.json has sound operating points of folds, or none."""
    points = content.get("fold_points") or []
    return isinstance(points, list) and all(
        is_point(point) and isinstance(point.get("thresholds"), list) and all(map(is_number, point["thresholds"]))
        for point in points)


def _are_subgroups(columns):
    """Whether this is {column: {"subgroups": [...], "gaps": [...]}}, as kd.evaluation.subgroups makes it."""
    def are(rows, texts, counts, numbers=()):
        return isinstance(rows, list) and all(
            isinstance(row, dict) and all(isinstance(row.get(key), str) for key in texts)
            and all(type(row.get(key)) is int for key in counts) and all(is_number(row.get(key)) for key in numbers)
            for row in rows)

    return isinstance(columns, dict) and all(
        isinstance(content, dict) and are(content.get("subgroups"), ("name",), ("images", "groups"))
        and all(is_metrics(part.get("test")) for part in content["subgroups"])
        and are(content.get("gaps"), ("metric", "highest", "lowest"), ("gaps",), ("lo", "hi", "p", "p_corrected"))
        and all(is_defined(gap.get("value")) and is_number(gap["value"]) for gap in content["gaps"])
        for content in columns.values())


def _is_fidelity(content):
    """Whether this is what kd.evaluation.fidelity makes; or the same of seeds.json, with names of `teachers`."""
    if not isinstance(content, dict) or not is_metrics(content.get("test", {})):
        return False
    return all(isinstance(content.get(key, ""), str) for key in ("teacher", "reason", "fingerprint")) and all(
        isinstance(name, str) for name in content.get("teachers", ()))


def _is_split(parts):
    """Whether this is {part: {"images", "groups", "support": {class: images}}}."""
    return isinstance(parts, dict) and all(
        isinstance(part, dict) and all(is_count(part.get(key)) for key in ("images", "groups"))
        and isinstance(part.get("support", {}), dict) and all(map(is_count, part.get("support", {}).values()))
        for part in parts.values())


def is_count(value):
    """Whether this is a whole number from 0 on, or None."""
    return value is None or type(value) is int and 0 <= value <= LARGEST


def _is_calibration(calibration):
    if not isinstance(calibration, dict) or not isinstance(calibration.get("reliability", {}), dict):
        return False
    numbers = ("temperature", "fitted", "nll_val_before", "nll_val_after")
    bounds = calibration.get("bounds", [])
    if not all(is_number(calibration.get(key)) for key in numbers):
        return False
    if not isinstance(bounds, list) or not all(map(is_number, bounds)):
        return False
    consistency = calibration.get("consistency", {})
    if not isinstance(consistency, dict) or not all(
            isinstance(test, dict) and all(map(is_number, test.values())) for test in consistency.values()):
        return False
    return all(_are_bins(rows or []) for rows in calibration.get("reliability", {}).values())


def _are_bins(rows):
    """Whether these are the bins of a reliability diagram."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and {"confidence", "accuracy", "count"} <= row.keys() and is_number(row["count"])
        and all(not is_defined(row[column]) and is_number(row[column]) or is_share(row[column])
                for column in ("confidence", "accuracy")) for row in rows)


def _is_curve(curve):
    """Whether this is risk over coverage."""
    if not isinstance(curve, dict):
        return False
    columns = [curve.get(key) for key in ("coverage", "risk")]
    if not all(isinstance(column, list) for column in columns) or len(columns[0]) != len(columns[1]):
        return False
    return all(map(is_share, [*columns[0], *columns[1]]))


def check_metrics(run, path, content):
    """The content of a metrics.json of a Run if it is sound, else UserError; keys of older files get today's names."""
    def fail():
        raise UserError(f"{path} is not what evaluate.py writes" + (f" for {classes} classes" if classes else ""))

    try:
        classes = len(run.test.class_names) if run.test else 0
    except UserError:
        classes = 0
    if not isinstance(content, dict):
        fail()
    names, confusion = content.get("class_names"), content.get("confusion")
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        fail()
    classes = classes or len(names or confusion or ())
    conventions, points = content.get("conventions", {}), content.get("operating_points") or []
    if isinstance(points, list):
        for point in points:
            if isinstance(point, dict) and "missed" in point:
                point["shortfall"] = point.pop("missed")
    sound = (is_metrics(content.get("test")) and is_metrics(content.get("val", {}))
             and _is_split(content.get("split", {}))
             and _are_subgroups(content.get("subgroups", {})) and _is_fidelity(content.get("fidelity") or {})
             and is_metrics(content.get("majority", {}))
             and (confusion is None or _is_square(confusion, classes))
             and isinstance(conventions, dict) and is_number(conventions.get("level"))
             and isinstance(points, list) and all(map(is_point, points)) and _are_fold_points(content)
             and _is_calibration(content.get("calibration") or {})
             and _is_curve(content.get("risk_coverage") or {"coverage": [], "risk": []}))
    return content if sound else fail()


def check_seeds(path, content):
    """The content of a seeds.json if it is sound, else UserError."""
    sound = (isinstance(content, dict) and is_metrics(content.get("test"))
             and isinstance(content.get("seeds", []), list) and _is_fidelity(content.get("fidelity") or {}))
    tables = [content["test"], (content.get("fidelity") or {}).get("test", {})] if sound else ()
    if not sound or not all(isinstance(metric.get("values", []), list) and all(map(is_number, metric.get("values", [])))
                            for table in tables for metric in table.values()):
        raise UserError(f"{path} is not what evaluate.py writes")
    return content


_KINDS_OF_DATA = {"name": (str,), "fingerprint": (str,), "split": (str,), "images": (int,), "groups": (int,),
                  "classes": (list,), "skipped": (list,), "labelled": (dict,)}


def check_environment(run, path, content):
    """The content of an environment.json if its data is sound, else UserError."""
    if not isinstance(content, dict) or not isinstance(content.get("data", {}), dict):
        raise UserError(f"{path} is not a mapping")
    data = content.get("data", {})
    wrong = [key for key, kinds in _KINDS_OF_DATA.items() if not isinstance(data.get(key), (*kinds, type(None)))]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} in its data is not what it should be")
    return content


def check_history(run, path, rows):
    """Rows of numbers; NaN where a cell is empty or, in a column that training does not write, no number."""
    parsed = [{key: parse_number(cell or "nan") for key, cell in row.items() if key} for row in rows]
    for row, texts in zip(parsed, rows):
        wrong = [key for key in HISTORY if texts[key] and math.isnan(row[key]) and texts[key].strip().lower() != "nan"]
        if wrong:
            raise UserError(f"{path}: {wrong[0]} is no number: {texts[wrong[0]][:40]}")
        if not math.isfinite(row["epoch"]):
            raise UserError(f"{path} has a row without an epoch")
    return parsed


def check_samples(run, path, arrays):
    """The arrays of a samples.npz if they hold images, else UserError."""
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(arrays["ids"]):
        raise UserError(f"{path} holds no uint8 images [K, H, W, 3]")
    return arrays


def check_attention(run, path, arrays):
    """The arrays of an attention.npz if their shapes agree, else UserError."""
    student, teacher, cka = (arrays[key] for key in ("student", "teacher", "cka"))
    ends = [arrays.get(f"cka_{end}", cka) for end in ("lo", "hi")]
    if student.ndim != 4 or student.shape != teacher.shape or len(arrays["ids"]) != len(student) or any(
            values.shape != student.shape[1:2] for values in (cka, *ends)):
        raise UserError(f"{path} holds no maps [K, stages, h, w] of student and teacher")
    cam = "iuf", student[:, 0].shape
    for name, (kinds, shape) in {"student_cam": cam, "teacher_cam": cam, "candidates": ("iu", ()),
                                 "difference": ("iuf", student.shape[:1])}.items():
        array = arrays.get(name)  # older files have none
        if array is not None and (array.dtype.kind not in kinds or array.shape != shape):
            raise UserError(f"{path} is damaged: {name} is not of shape {shape}")
    if "images" in arrays:
        check_samples(run, path, arrays)
    return arrays


def check_parity(run, path, content):
    """{format: what parity.json says of it}."""
    def is_sound(entry):
        test = entry.get("test") if isinstance(entry, dict) else None
        if not isinstance(test, dict) or not is_number(entry.get("bytes")) or not is_number(test.get("flips")):
            return False
        return all(isinstance(test.get(name), dict)
                   and all(is_number(test[name].get(key)) for key in ("model", "model_lo", "model_hi"))
                   and is_metrics({"": test[name].get("difference")}) for name in ("macro_f1", "accuracy"))

    formats = content.get("formats") if isinstance(content, dict) else None
    if not isinstance(formats, dict) or not all(map(is_sound, formats.values())):
        raise UserError(f"{path} is not what export.py writes")
    return formats


def check_rows(path, rows, columns, numbers):
    """`rows` of a CSV, texts, if they are whole, have these columns, and what is not empty in `numbers` is a number."""
    if not rows:
        raise UserError(f"{path} has no rows")
    for row in rows:
        if None in row.values():
            raise UserError(f"{path} has rows that are shorter than its header")
        for column in columns:
            if column not in row:
                raise UserError(f"{path} has no column {column}")
        for column in numbers:
            text = row.get(column) or "nan"
            if math.isnan(parse_number(text)) and text.strip().lower() != "nan":
                raise UserError(f"{path}: {column} is no number: {text[:40]}")
    return rows


def rows_of(columns, numbers):
    """check_rows() for these columns and numbers, as a check of a run's file."""
    return lambda run, path, rows: check_rows(path, rows, columns, numbers)
