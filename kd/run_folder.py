"""The one reader of a run folder: each file is read when it is first needed, once, and checked once.

    run = Run("runs/lesions_48px/tiny_kd_unlabelled/seed_0")
    run.environment, run.history, run.test ...     a file that is missing is None or empty; a damaged one is a UserError
    run.tolerate("history", "metrics")             a damaged file counts as missing from here on; returns its error

Files may come from other systems, and hold anything; what has passed the checks here needs no further check.
"""

import hashlib
import math
import os
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kd import predictions, runs, selection, sweeps
from kd.errors import UserError, listing
from kd.files import CSV, parse_csv, parse_number, read_bytes, read_csv, read_json, read_npz, read_yaml
from kd.text import is_defined

SPLITS = ("train", "unlabelled", "val", "unused", "test")  # of split.csv; the second and fourth are of --labelled
HISTORY = ("epoch", "loss", "val_macro_f1", "seconds")  # columns of history.csv that every training writes
UNDEFINED = {"value": math.nan, "lo": math.nan, "hi": math.nan}


class _File:
    """An attribute of a _Folder: the content of a file, as `check` returns it; `empty` where there is no such file."""

    def __init__(self, name, read, check=None, empty=None):
        self.name, self.read, self.check, self.empty = name, read, check, empty

    def __set_name__(self, owner, attribute):
        self.attribute = attribute

    def __get__(self, run, owner):
        if run is None:
            return self
        return run.once(self.attribute, lambda: self._content(run))

    def _content(self, run):
        path = run.folder / self.name
        if not path.exists():
            return self.empty
        content = self.read(path)
        return self.check(run, path, content) if self.check else content


class _Folder:
    """A folder whose files are read once. parts: {key: content, or the UserError that reading it raised}."""

    def __init__(self, folder):
        self.folder, self.parts = Path(folder), {}

    def once(self, key, read):
        """What read() returns, or the UserError that it raises; it is called once for each key."""
        if key not in self.parts:
            try:
                self.parts[key] = read()
            except UserError as error:
                self.parts[key] = error
        content = self.parts[key]
        if isinstance(content, UserError):
            raise content
        return content


# ---- checks: each returns what a Run keeps of a file's content, or raises UserError


LARGEST = 1e15  # that a figure or count of these files may be; what is drawn and printed would overflow


def is_number(value):
    """Whether this is a number, or stands for an undefined one: None, NaN, an infinity."""
    return value is None or isinstance(value, (int, float)) and not LARGEST < abs(value) < math.inf


def is_share(value):
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


_KINDS_OF_DATA = {"name": (str,), "fingerprint": (str,), "split": (str,), "images": (int,), "groups": (int,),
                  "classes": (list,), "skipped": (list,), "labelled": (dict,)}


def _environment(run, path, content):
    if not isinstance(content, dict) or not isinstance(content.get("data", {}), dict):
        raise UserError(f"{path} is not a mapping")
    data = content.get("data", {})
    wrong = [key for key, kinds in _KINDS_OF_DATA.items() if not isinstance(data.get(key), (*kinds, type(None)))]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} in its data is not what it should be")
    return content


def _history(run, path, rows):
    """Rows of numbers; NaN where a cell is empty or, in a column that training does not write, no number."""
    parsed = [{key: parse_number(cell or "nan") for key, cell in row.items() if key} for row in rows]
    for row, texts in zip(parsed, rows):
        wrong = [key for key in HISTORY if texts[key] and math.isnan(row[key]) and texts[key].strip().lower() != "nan"]
        if wrong:
            raise UserError(f"{path}: {wrong[0]} is no number: {texts[wrong[0]][:40]}")
        if not math.isfinite(row["epoch"]):
            raise UserError(f"{path} has a row without an epoch")
    return parsed


def _samples(run, path, arrays):
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(arrays["ids"]):
        raise UserError(f"{path} holds no uint8 images [K, H, W, 3]")
    return arrays


def _attention(run, path, arrays):
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
        _samples(run, path, arrays)
    return arrays


def _parity(run, path, content):
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


def _rows_of(columns, numbers):
    return lambda run, path, rows: check_rows(path, rows, columns, numbers)


BLOCK = 4096  # rows at a time, since a text of all would fill the memory


def fingerprint(*columns):
    """Sixteen hex digits that depend on all values of these columns of equal length; bytes are ASCII."""
    digest = hashlib.sha256()
    for start in range(0, len(columns[0]), BLOCK):
        parts = (column[start:start + BLOCK] for column in columns)
        texts = [part.astype(str).tolist() if isinstance(part, np.ndarray) else map(str, part) for part in parts]
        digest.update(("\n" * bool(start) + "\n".join(map(" ".join, zip(*texts)))).encode())
    return digest.hexdigest()[:16]


_SPLITS = {}  # digest of a split.csv -> its rows


def _read_split(path):
    """The rows of a split.csv, not to be changed: most runs of a study have the same one, which is parsed once."""
    content = read_bytes(path, CSV)
    digest = hashlib.sha256(content).digest()
    if digest not in _SPLITS:
        if len(_SPLITS) >= 4:
            _SPLITS.clear()
        rows = parse_csv(content, path, ("group", "label", "split"))
        unknown = sorted({row["split"] for row in rows} - {*SPLITS})
        if unknown or not rows:
            what = f"the splits {listing(map(repr, unknown))}" if rows else "no rows"
            raise UserError(f"{path} has {what}: what is in "
                            "two splits could not be seen", f"It has a row for each image, of {', '.join(SPLITS)}.")
        _SPLITS[digest] = rows
    return _SPLITS[digest]


def _read_test(path):
    """The Predictions of a run's test.npz, with the fold of each image where it joins folds."""
    test, fold = predictions.read(path), read_npz(path).get("fold") if runs.is_joined(path.parents[1]) else None
    if fold is None:
        return test
    if fold.shape != test.labels.shape or fold.dtype.kind not in "iu" or fold.min(initial=1) < 1:
        raise UserError(f"{path}: fold is not a number from 1 on for each of {len(test.labels)} images",
                        "Delete the file; evaluate.py writes it again from the folds.")
    return replace(test, fold=fold.astype(np.int64))


# ---- the run


class Run(_Folder):
    """A seed's folder. study, model, seed: its names, read from its place in the tree.

    A file that does not exist is None, or an empty mapping or list; one that is damaged raises UserError.
    """

    options = _File("config.yaml", read_yaml, empty={})
    environment = _File("environment.json", read_json, _environment, {})
    split = _File("split.csv", _read_split, empty=[])
    history = _File("history.csv", lambda path: read_csv(path, HISTORY), _history, [])
    val = _File("predictions/val.npz", predictions.read)
    test = _File("predictions/test.npz", _read_test)
    metrics = _File("metrics.json", read_json, check_metrics)
    samples = _File("samples.npz", lambda path: read_npz(path, ("images", "ids")), _samples)
    attention = _File("attention.npz", lambda path: read_npz(path, ("ids", "student", "teacher", "cka")), _attention)
    exports = _File("exports/parity.json", read_json, _parity, {})
    benchmark = _File("benchmark.csv", read_csv, _rows_of(
        ("model", "lat_ms_p50", "batch"), ("lat_ms_p50", "lat_ms_p90", "batch")), [])
    robustness = _File("robustness.csv", read_csv, _rows_of(("tag",), ("macro_f1", "acc")), [])

    joined = _File(runs.RECORD, read_json, empty={})

    def __init__(self, folder):
        super().__init__(folder)
        self.study, self.model, self.seed = runs.describe(folder)
        self.errors = {}  # attribute -> UserError, of what tolerate() has taken for missing

    def tolerate(self, *attributes):
        """{attribute: UserError} of those whose file is damaged; from here on they count as missing."""
        for attribute in attributes:
            try:
                getattr(self, attribute)
            except UserError as error:
                self.errors[attribute] = error
                self.parts[attribute] = getattr(Run, attribute).empty
        return {attribute: self.errors[attribute] for attribute in attributes if attribute in self.errors}

    def require(self, *attributes):
        """UserError for the first of these whose file is missing or damaged."""
        for attribute in attributes:
            if not (self.folder / getattr(Run, attribute).name).exists():
                raise UserError(f"no such file: {self.folder / getattr(Run, attribute).name}")
            getattr(self, attribute)

    @property
    def name(self):
        return f"{self.model}/{self.seed}"

    def setting(self, key):
        """What config.yaml, else environment.json, says of `key`, else None."""
        return self.options.get(key, self.environment.get(key))

    @property
    def class_names(self):
        """Of the test predictions."""
        return self.test.class_names

    @property
    def kind(self):
        """teacher, alone (a student without a teacher) or student; the model's name tells where the files do not."""
        if (self.setting("role") or self.model.split("_")[0]) == "teacher":
            return "teacher"
        named = {**self.environment, **self.options}
        without_teacher = named.get("teacher", "unknown") is None and not named.get("teacher_predictions")
        return "alone" if self.model.endswith("_alone") or without_teacher else "student"

    @property
    def labelled(self):
        """The share of the labels that the run was given with --labelled; 1.0 without it."""
        share = parse_number(str(self.options.get("labelled")).partition(",")[0])
        return share if 0 < share < 1 else 1.0

    @property
    def label_counts(self):
        """(training images with a label, all training images) by split.csv; (0, 0) without it."""
        counts = Counter(row["split"] for row in self.split)
        return counts["train"], counts["train"] + counts["unlabelled"]

    @property
    def network(self):
        """What a student and its baseline share: the architecture, the weights that it began with where these are
        pretrained, and the share of the labels where these are few; '' if not known."""
        begun = [str(self.setting(key)) for key in ("weights", "init") if self.setting(key) not in (None, "none")]
        arch = self.setting("arch")
        few = f" with {100 * self.labelled:g}% of the labels" if self.labelled < 1 else ""
        return " from ".join([str(arch), *begun]) + few if arch else ""

    @property
    def folds(self):
        """[Run of each fold whose answers it joins], those that are there; [] of any other run."""
        listed = self.joined.get("folds") if isinstance(self.joined, dict) else None
        names = [fold.get("run") for fold in listed or () if isinstance(fold, dict)] if listed else []
        places = [runs.study(self.folder) / name for name in names if isinstance(name, str)]
        return [Run(place) for place in places if place.is_dir() and place.parts[-3] == runs.FOLDS]

    # ---- its teachers

    @property
    def _teacher_paths(self):
        """Of the teachers that config.yaml names; several are one teacher, the mean of their probabilities."""
        teacher = self.options.get("teacher") or self.options.get("teacher_predictions")
        paths = teacher if isinstance(teacher, list) else [teacher]
        return [path for path in paths if isinstance(path, str) and path] if self.kind != "teacher" else []

    @property
    def teacher_name(self):
        """STUDY/MODEL/SEED of the teacher, or of several, with ` + ` between them; None where there is none."""
        names = ["/".join(part.strip("/\\") for part in runs.in_tree(Path(path))) for path in self._teacher_paths]
        return " + ".join(names) or None

    @cached_property
    def teachers(self):
        """[Run of each teacher, None where there is no such folder].

        It is looked for in a study beside this run's, in its own study, and where config.yaml has it.
        """
        study, found = runs.of_study(self.folder), []
        for path in map(Path, self._teacher_paths):
            places = [study.parent.joinpath(*runs.in_tree(path)), study.joinpath(*runs.in_tree(path)[1:])]
            places = [*(places if len(path.parts) > 1 else ()), path]
            found.append(next((Run(place) for place in places if os.path.isdir(place)), None))  # it raises for no name
        return found

    # ---- predictions

    def predictions(self, split="test"):
        """(val, test) Predictions, checked for leaks; `split` may name another file than test beside it.

        val is None for a run that joins the folds of a cross-validation, each of which has its own. Raises UserError on
        missing or faulty files, and on an image or a group that two splits share.
        """
        if split == "test" and runs.is_joined(self.folder) and self.val is None:
            self.require("test")
            return None, self.test
        self.require("val")
        val = self.val
        if split == "test":
            self.require("test")
            test = self.test
        else:
            test = predictions.read(self.folder / "predictions" / f"{split}.npz")
        if val.class_names != test.class_names:
            raise UserError(f"{self.folder}: val.npz and {split}.npz have different class names")
        train = [row for row in self.split if row["split"] in ("train", "unlabelled")]
        ids, groups = ([row.get(key, "") for row in train] for key in ("id", "group"))
        predictions.refuse_leaks(self.folder, {"validation": (val.ids, val.groups), "test": (test.ids, test.groups),
                                               "training": (ids, groups)})
        return val, test

    # ---- figures

    @cached_property
    def is_stale(self):
        """Whether metrics.json states another accuracy than the predictions beside it."""
        if not self.metrics or not self.test:
            return False
        accuracy = np.mean(self.test.probabilities.argmax(axis=1) == self.test.labels)
        return abs(self.stated_accuracy - accuracy) > 1e-3  # results of other systems may be rounded

    @property
    def evaluation(self):
        """metrics.json, where it belongs to predictions/test.npz, else None."""
        return None if self.is_stale else self.metrics

    @property
    def stated_accuracy(self):
        """The test accuracy that metrics.json states, NaN where none."""
        value = (self.metrics or {}).get("test", {}).get("accuracy", {}).get("value")
        return math.nan if value is None else value

    def metric(self, name, table="test"):
        """METRIC of the evaluation, with NaN for what is undefined, not there or without an interval."""
        return bounded((self.evaluation or {}).get(table, {}).get(name))

    @property
    def select(self):
        """The metric of kd.selection that chose the epoch; macro-F1 where the files do not say."""
        named = self.options.get("select")
        return named if named in selection.METRICS and all(
            selection.METRICS[named][0] in row for row in self.history) else "macro_f1"

    @property
    def kept_history(self):
        """`history` with the validation metrics of the network or of its average, whichever counts in an epoch."""
        return [selection.kept(row, self.select) for row in self.history]

    @property
    def best_epoch(self):
        """Index into `history` of the epoch that was best on validation, the first on ties, or None."""
        return selection.best(self.history, self.select)


def few_labels(runs_):
    """Which labels the Runs of a model were trained with, in words; "" if with all."""
    share = f"{100 * runs_[0].labelled:g}%" if runs_[0].labelled < 1 else ""
    counts = dict.fromkeys(run.label_counts for run in runs_)
    if not share and all(labelled == total for labelled, total in counts):
        return ""
    numbers, totals = map(sorted, zip(*counts))
    numbers = " to ".join(dict.fromkeys(f"{number:,}" for number in (numbers[0], numbers[-1])))
    images = f"{numbers} of {totals[-1]:,} images" if totals[-1] else ""
    return ", ".join(filter(None, (share, images)))


def bounded(metric):
    """A METRIC in which what is undefined is NaN; a value without an interval, and without a reason, is no result."""
    metric = {**UNDEFINED, **{key: value for key, value in (metric or {}).items() if value is not None}}
    whole = all(math.isfinite(metric[key]) for key in ("value", "lo", "hi")) or metric.get("withheld")
    return metric if whole else {**metric, "value": math.nan, "lo": math.nan, "hi": math.nan}


# ---- files over runs


class StudyFolder(_Folder):
    """What stands over the runs of a study: seeds.json and sweep.json of each model, comparison.csv,
    robustness_summary.csv.

    Each is read once. A file that does not exist is None or empty; one that is damaged raises UserError.
    """

    comparison = _File("comparison.csv", lambda path: read_csv(path, ("model", "metric", "model_value")), empty=[])
    robustness_summary = _File("robustness_summary.csv", read_csv, _rows_of(
        ("model", "seed", "file", "suite", "mean_macro_f1"),
        ("clean_macro_f1", "mean_macro_f1", "mean_macro_f1_lo", "mean_macro_f1_hi", "worst_macro_f1")), [])

    def seeds(self, model):
        """A model's seeds.json: {"seeds": [...], "test": {NAME: {"mean", "values", "lo", "hi", ...}}}, or None."""
        def read():
            path = self.folder / model / "seeds.json"
            if not path.exists():
                return None
            content = read_json(path)
            sound = isinstance(content, dict) and is_metrics(content.get("test")) and _is_fidelity(
                content.get("fidelity") or {}) and isinstance(content.get("seeds", []), list)
            tables = [content["test"], (content.get("fidelity") or {}).get("test", {})] if sound else ()
            if not sound or not all(
                    isinstance(metric.get("values", []), list) and all(map(is_number, metric.get("values", [])))
                    for table in tables for metric in table.values()):
                raise UserError(f"{path} is not what evaluate.py writes")
            return content

        return self.once(f"{model}/seeds.json", read)

    def sweep(self, model):
        """A model's sweep.json, as kd/sweeps.py describes it, or None."""
        return self.once(f"{model}/sweep.json", lambda: sweeps.read(self.folder / model))
