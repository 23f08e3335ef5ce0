"""Computes the figures of a metrics.json again, and compares."""

import dataclasses
import json
import math
from numbers import Number

from kd.errors import UserError
from kd.evaluation import fidelity, protocol
from kd.files import last_digit

TOLERANCE = 1e-6  # of a figure above 1 relative, otherwise absolute; machines and versions of NumPy differ by 1e-12
# What settings must be to be computed with, whatever a file states: {name: (types, smallest, largest)}.
BOUNDS = {"replicates": ((int,), 1, 20_000), "bins": ((int,), 1, 1000), "sensitivity": ((int, float), 0, 1),
          "risk": ((int, float), 0, 1), "assurance": ((int, float), 1e-6, 1 - 1e-6)}
FAILURES = (UserError, TypeError, ValueError, KeyError)
REDEFINED = {"rms_ce_debiased"}  # since older versions
RAREST = "macro_f1_without_rarest"
# In files of older versions these can be outside their own intervals.
CALIBRATION_ERRORS = {"ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce"}


def settings_of(result):
    """The protocol.Settings that the content of a metrics.json was computed with. UserError where they are no such.

    Each field that the file's conventions state is taken from there; the operating points tell the others.
    """
    conventions, stated = result.get("conventions", {}), {"targets": []}
    for point in reversed(result.get("operating_points") or []):  # of the first the statement stays
        if point.get("kind") == "sensitivity":
            stated["targets"].insert(0, point.get("class"))
            stated["sensitivity"] = point.get("asked", point.get("promised"))
        if point.get("kind") == "abstention":
            stated["risk"] = point.get("promised")
        if "assurance" in point:
            stated["assurance"] = point["assurance"]
    names = [field.name for field in dataclasses.fields(protocol.Settings)]
    stated.update({name: conventions[name] for name in names if name in conventions})
    for name in BOUNDS.keys() & stated.keys():
        types, smallest, largest = BOUNDS[name]
        if type(stated[name]) not in types or not smallest <= stated[name] <= largest:
            raise UserError(f"{name} is {json.dumps(stated[name])[:40]}")
    return protocol.Settings(**stated)


def is_current(written):
    """Whether this version of the evaluation wrote the content of a metrics.json."""
    return written.get("conventions", {}).get("interval") == protocol.INTERVALS


def differences(written, val, test, teachers=(), teacher_name=None):
    """[(path, stated, recomputed)] of what differs between a metrics.json and what Predictions give.

    teachers, teacher_name: as a Run has them; what cannot be read counts as missing.
    Of a file of another version only what depends on no method of intervals is compared. One of FAILURES where the
    file states settings with which nothing can be computed.
    """
    settings = settings_of(written)
    if is_current(written):
        recomputed = protocol.evaluate(val, test, settings).result
        if "rarest_class" not in written["conventions"]:  # of a version that did not have it
            recomputed["conventions"].pop("rarest_class")
            for split in ("val", "test"):
                recomputed.get(split, {}).pop(RAREST, None)
        recomputed.update(_fidelity(written, test, teachers, teacher_name, settings))
        return [difference for key, value in recomputed.items() for difference in _differences(
            (key,), written.get(key), value)]
    recomputed, found = protocol.evaluate(val, test, protocol.Settings(100, settings.bins)).result, []
    for split in ("val", "test"):
        for name, metric in written.get(split, {}).items():
            again = recomputed.get(split, {}).get(name)
            if again is not None and name.removesuffix("_calibrated") not in REDEFINED:
                found += _differences((split, name), metric.get("value"), again["value"], rounded=True)
    of_teacher = _fidelity(written, test, teachers, teacher_name, protocol.Settings(100)).get("fidelity", {}) or {}
    for name, metric in of_teacher.get("test", {}).items():
        stated = written["fidelity"]["test"].get(name, {}).get("value")
        found += _differences(("fidelity", "test", name), stated, metric["value"], rounded=True)
    temperatures = [(content.get("calibration") or {}).get("temperature") for content in (written, recomputed)]
    if None not in temperatures:
        found += _differences(("calibration", "temperature"), *temperatures, rounded=True)
    for key in ("class_names", "confusion", "split"):
        if written.get(key) is not None:
            found += _differences((key,), written[key], recomputed[key])
    return found


def _fidelity(written, test, teachers, teacher_name, settings):
    """{"fidelity": what it is}, where the file states one; empty where it cannot be computed."""
    stated = written.get("fidelity")
    if not stated or not stated.get("test"):  # of an older version; or its teacher was not known
        return {}
    if any(teacher is None or teacher.test is None for teacher in teachers):
        return {}  # it may have been left behind
    return {"fidelity": fidelity.measure(teacher_name, teachers, test, settings)[0]}


def _differences(path, stated, recomputed, rounded=False):
    if isinstance(recomputed, dict) and isinstance(stated, dict):
        for key in {**recomputed, **stated}:
            yield from _differences((*path, key), stated.get(key), recomputed.get(key))
    elif isinstance(recomputed, (list, tuple)) and isinstance(stated, list) and len(stated) == len(recomputed):
        for place, (a, b) in enumerate(zip(stated, recomputed)):
            name = b.get("name") if isinstance(b, dict) else None
            yield from _differences((*path, name or str(place)), a, b)
    elif not _agree(stated, recomputed, rounded):
        yield "/".join(map(str, path)), stated, recomputed


def _agree(stated, recomputed, rounded):
    if _undefined(stated) or _undefined(recomputed):
        return _undefined(stated) and _undefined(recomputed)
    if isinstance(stated, Number) and isinstance(recomputed, Number):
        tolerance = TOLERANCE * max(1, abs(recomputed)) + (min(0.005, last_digit(repr(stated)) / 2) if rounded else 0)
        return stated == recomputed or abs(stated - recomputed) <= tolerance
    return stated == recomputed


def _undefined(value):
    return value is None or isinstance(value, float) and not math.isfinite(value)  # JSON has no infinity


def text(value):
    """A value as a finding prints it."""
    if _undefined(value):
        return "nothing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:60]


def outside(content, path=()):
    """Yield (path, METRIC) of each METRIC in a metrics.json or seeds.json whose interval excludes its value."""
    if isinstance(content, dict):
        numbers = [content.get(key) for key in ("value" if "value" in content else "mean", "lo", "hi")]
        if all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
            value, lo, hi = numbers
            margin = TOLERANCE * max(1, abs(value))
            if not lo - margin <= value <= hi + margin:
                yield "/".join(map(str, path)), value, lo, hi
        for key, part in content.items():
            yield from outside(part, (*path, key))
    elif isinstance(content, list):
        for place, part in enumerate(content):
            name = part.get("name") if isinstance(part, dict) else None
            yield from outside(part, (*path, name or place))


def is_calibration_error(path):
    """Whether the path of a figure ends in the name of a calibration error, after a temperature or not."""
    return path.split("/")[-1].removesuffix("_calibrated") in CALIBRATION_ERRORS
