"""The one reader of a run folder: each file is read when it is first needed, once, and checked once.

    run = Run("runs/lesions_48px/tiny_kd_unlabelled/seed_0")
    run.environment, run.history, run.test ...     a file that is missing is None or empty; a damaged one is a UserError
    run.tolerate("history", "metrics")             a damaged file counts as missing from here on; returns its error

What a file must be to be taken is in run_checks.py.
"""

import hashlib
import math
import os
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kd import predictions, run_checks, runs, selection, sweeps
from kd.errors import UserError, listing
from kd.files import CSV, parse_csv, parse_number, read_bytes, read_csv, read_json, read_npz, read_yaml

SPLITS = ("train", "unlabelled", "val", "unused", "test")  # of split.csv; the second and fourth are of --labelled
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
    environment = _File("environment.json", read_json, run_checks.check_environment, {})
    split = _File("split.csv", _read_split, empty=[])
    history = _File("history.csv", lambda path: read_csv(path, run_checks.HISTORY), run_checks.check_history, [])
    val = _File("predictions/val.npz", predictions.read)
    test = _File("predictions/test.npz", _read_test)
    metrics = _File("metrics.json", read_json, run_checks.check_metrics)
    samples = _File("samples.npz", lambda path: read_npz(path, ("images", "ids")), run_checks.check_samples)
    attention = _File("attention.npz", lambda path: read_npz(path, ("ids", "student", "teacher", "cka")),
                      run_checks.check_attention)
    exports = _File("exports/parity.json", read_json, run_checks.check_parity, {})
    benchmark = _File("benchmark.csv", read_csv, run_checks.rows_of(
        ("model", "lat_ms_p50", "batch"), ("lat_ms_p50", "lat_ms_p90", "batch")), [])
    robustness = _File("robustness.csv", read_csv, run_checks.rows_of(("tag",), ("macro_f1", "acc")), [])

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

    @cached_property
    def folds(self):
        """[Run of each fold whose answers it joins], those that are there; [] of any other run."""
        listed = self.joined.get("folds") if isinstance(self.joined, dict) else None
        names = [fold.get("run") for fold in listed if isinstance(fold, dict)] if isinstance(listed, list) else []
        study = runs.study(self.folder)
        places = [study / name for name in names if isinstance(name, str)]
        return [Run(place) for place in places if place.parents[1:2] == (study / runs.FOLDS,) and place.is_dir()]

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

    @property
    def best_row(self):
        """The row of `kept_history` of that epoch; {} where there is none."""
        return {} if self.best_epoch is None else self.kept_history[self.best_epoch]


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
    robustness_summary = _File("robustness_summary.csv", read_csv, run_checks.rows_of(
        ("model", "seed", "file", "suite", "mean_macro_f1"),
        ("clean_macro_f1", "mean_macro_f1", "mean_macro_f1_lo", "mean_macro_f1_hi", "worst_macro_f1")), [])

    def seeds(self, model):
        """A model's seeds.json: {"seeds": [...], "test": {NAME: {"mean", "values", "lo", "hi", ...}}}, or None."""
        def read():
            path = self.folder / model / "seeds.json"
            return run_checks.check_seeds(path, read_json(path)) if path.exists() else None

        return self.once(f"{model}/seeds.json", read)

    def sweep(self, model):
        """A model's sweep.json, as kd/sweeps.py describes it, or None."""
        return self.once(f"{model}/sweep.json", lambda: sweeps.read(self.folder / model))
