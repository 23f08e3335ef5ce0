"""Whether files of a run folder have the form that a report leans on; what a stranger wrote there may be anything."""

import numpy as np

from kd.errors import UserError
from kd.files import read_npz


def is_number(value):
    return value is None or isinstance(value, (int, float))


def is_table(value):
    """Whether this is {NAME: METRIC}."""
    return isinstance(value, dict) and all(
        isinstance(metric, dict) and all(is_number(metric.get(key)) for key in ("value", "lo", "hi", "mean", "undefined"))
        for metric in value.values())


def is_metrics(held, classes):
    """Whether `held` has the form of metrics.json, as far as a report leans on it."""
    def square(rows):
        return isinstance(rows, list) and len(rows) == classes and all(
            isinstance(row, list) and len(row) == classes and all(isinstance(n, int) for n in row)
            for row in rows)

    def points(held):
        return isinstance(held, list) and all(
            isinstance(p, dict) and is_table(p.get("test", {})) and is_table({"": p.get("shortfall") or {}})
            and (is_number(p.get("threshold")) or isinstance(p["threshold"], dict)) and is_number(p.get("promised"))
            and (p.get("kind") not in ("sensitivity", "abstention") or p.get("promised") is not None)
            and (p.get("kind") != "sensitivity" or {"value", "lo", "hi"} <= p.get("test", {}).get("sensitivity", {}).keys())
            for p in held)

    def bins(rows):
        return isinstance(rows, list) and all(isinstance(row, dict) and all(
            key in row and is_number(row[key]) for key in ("confidence", "accuracy", "count")) for row in rows)

    def calibration(held):
        return isinstance(held, dict) and is_number(held.get("temperature")) and isinstance(
            held.get("reliability", {}), dict) and all(bins(held["reliability"].get(kind) or []) for kind in (
                "raw", "calibrated") if "reliability" in held)

    def curve(held):
        return isinstance(held, dict) and all(isinstance(held.get(key), list) and all(
            isinstance(x, (int, float)) for x in held[key]) for key in ("coverage", "risk")) and (
            len(held["coverage"]) == len(held["risk"]))

    return (isinstance(held, dict) and is_table(held.get("test")) and is_table(held.get("majority", {}))
            and is_table(held.get("val", {}))
            and square(held.get("confusion", [[0] * classes] * classes))
            and isinstance(held.get("conventions", {}), dict)
            and is_number(held.get("conventions", {}).get("level"))
            and points(held.get("operating_points") or []) and calibration(held.get("calibration") or {})
            and curve(held.get("risk_coverage") or {"coverage": [], "risk": []}))


# ---- files that later scripts add: each check gives what a Run keeps of them, or is a UserError


def table(needed, numbers):
    """A check of a CSV's rows: they are whole, `needed` columns are there, and what is not empty in `numbers` is a number."""
    def check(path, rows):
        if not rows:
            raise UserError(f"{path} has no rows")
        for row in rows:
            if None in row.values():
                raise UserError(f"{path} has rows that are shorter than its header")
            for key in needed:
                if key not in row:
                    raise UserError(f"{path} has no column {key}")
            for key in numbers:
                try:
                    float(row.get(key) or "nan")
                except ValueError as error:
                    raise UserError(f"{path}: {key} is no number: {row[key][:40]}") from error
        return rows
    return check


def parity(path, held):
    def sound(one):
        return isinstance(one, dict) and isinstance(one.get("test"), dict) and is_number(one.get("bytes")) and is_number(
            one["test"].get("flips")) and all(
            isinstance(one["test"].get(name), dict) and is_number(one["test"][name].get("model"))
            and is_table({"": one["test"][name].get("difference")}) for name in ("macro_f1", "accuracy"))
    formats = held.get("formats") if isinstance(held, dict) else None
    if not isinstance(formats, dict) or not all(map(sound, formats.values())):
        raise UserError(f"{path} is not what export.py writes")
    return formats


def attention(path, held):
    student, teacher, cka = (held.get(key, np.zeros(0)) for key in ("student", "teacher", "cka"))
    ends = [held.get(f"cka_{end}", cka) for end in ("lo", "hi")]
    if student.ndim != 4 or student.shape != teacher.shape or len(held["ids"]) != len(student) or any(
            values.shape != student.shape[1:2] for values in (cka, *ends)):
        raise UserError(f"{path} holds no maps [K, stages, h, w] of student and teacher")
    return held


def read_attention(path):
    return read_npz(path, ("ids", "student", "teacher", "cka"))
