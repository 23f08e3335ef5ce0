"""The run folders of a study, read and checked: what a report is made of.

A run whose own files cannot be read is left out, a further file that cannot be is done without;
both are named among the study's problems. Nothing but these files is looked at.
"""

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd import errors, run_folder, runs
from kd.audit import other_tables
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml
from kd.report import file_checks

UNDEFINED = {"value": math.nan, "lo": math.nan, "hi": math.nan, "undefined": 0}


@dataclass
class Run:
    """What one seed's folder holds. A file that is not there is None, or an empty mapping or list."""

    path: Path
    model: str
    seed: str
    config: dict
    environment: dict
    split: list
    history: list
    metrics: dict
    test: dict
    samples: dict
    benchmark: list = field(default_factory=list)   # rows of benchmark.csv, texts
    parity: dict = field(default_factory=dict)      # format -> what parity.json says of it
    robustness: list = field(default_factory=list)  # rows of robustness.csv, texts
    attention: dict = field(default_factory=dict)

    def told(self, key):
        """What config.yaml, else environment.json, says of `key`, else None."""
        return self.config.get(key, self.environment.get(key))

    @property
    def kind(self):
        """teacher, alone (a student without a teacher) or student."""
        return runs.kind(self.model, {**self.environment, **self.config})

    @property
    def number(self):
        """The seed as tables have it: 0 of seed_0."""
        return self.seed.removeprefix("seed_")

    @property
    def classes(self):
        return [str(name) for name in self.test["class_names"]]

    @property
    def best(self):
        """Index of the epoch with the highest validation macro-F1, the first on ties."""
        scores = np.array([row["val_macro_f1"] for row in self.history or []])
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None

    def metric(self, name, table="test"):
        """METRIC with NaN for what is undefined, not there or without an interval."""
        return bounded((self.metrics or {}).get(table, {}).get(name))

    @property
    def stated(self):
        """The accuracy that metrics.json states, NaN where none."""
        value = (self.metrics or {}).get("test", {}).get("accuracy", {}).get("value")
        return math.nan if value is None else value


@dataclass
class Study:
    path: Path
    name: str
    runs: list                                    # teachers first, then by model and seed
    problems: list = field(default_factory=list)  # (folder, what is wrong, how to mend it)
    seeds: dict = field(default_factory=dict)     # model -> content of its seeds.json
    tables: list = field(default_factory=list)    # folders of other systems' tables
    summary: list = field(default_factory=list)   # rows of robustness_summary.csv, texts
    sheets: dict = field(default_factory=dict)    # suite -> its robustness_*sheet.png: what the corruptions look like

    @property
    def models(self):
        """Model name -> its runs."""
        names = dict.fromkeys(run.model for run in self.runs)
        return {name: [run for run in self.runs if run.model == name] for name in names}

    @property
    def evaluated(self):
        """Model name -> its runs, of models all of whose runs have metrics."""
        return {name: group for name, group in self.models.items() if all(run.metrics for run in group)}

    @property
    def firsts(self):
        """The first seed of each model that was evaluated."""
        found = ([run for run in group if run.metrics] for group in self.models.values())
        return [group[0] for group in found if group]

    def first(self, what):
        """The first non-empty `what` among the runs, else an empty dict."""
        return next((getattr(run, what) for run in self.runs if getattr(run, what)), {})

    def over_seeds(self, model, name):
        """METRIC of a model: its only seed's, or the mean over seeds with the interval of seeds.json."""
        group = self.models[model]
        if len(group) == 1:
            return group[0].metric(name)
        held = self.seeds.get(model, {}).get("test", {}).get(name) or {}
        return bounded({**held, "value": held.get("mean")})

    @property
    def command(self):
        """The study's folder as a command line takes it."""
        return command_path(self.path)


def bounded(metric):
    """A METRIC in which what is undefined is NaN; a value without an interval is no result."""
    held = {**UNDEFINED, **{key: value for key, value in (metric or {}).items() if value is not None}}
    whole = all(map(math.isfinite, (held[key] for key in ("value", "lo", "hi"))))
    return held if whole else {**held, "value": math.nan, "lo": math.nan, "hi": math.nan}


def command_path(path):
    return shlex.quote(Path(path).as_posix())


def read_study(path):
    """Study of the run folders at or below `path`, or of another system's tables alone.

    A run that cannot be read, has not finished or was not evaluated is named among the
    problems. Raises UserError where there is nothing, none can be read, or there are two studies.
    """
    path = Path(path)
    tables = [path] if other_tables.has_tables(path) else []
    if tables and not runs.is_run(path):
        return Study(path, path.resolve().name, [], tables=tables)
    folders = runs.find(path)
    names = sorted({runs.describe(folder)[0] for folder in folders})
    if len(names) > 1:
        raise UserError(f"{path} holds {len(names)} studies: {errors.listing(names)}",
                        f"A report is about one: python report.py {command_path(path / names[0])}")
    study = Study(path, names[0], [], tables=tables)
    for folder in folders:
        _add_run(study, folder)
    if not study.runs:
        folder, what, _ = study.problems[0]
        raise UserError(f"no readable run at or below {path}", f"{folder}: {what}")
    for folder in sorted({file.parent for file in path.glob("**/config.yaml")} - set(folders)):
        study.problems.append((folder, "not finished: there is no predictions/test.npz", ""))
    study.runs.sort(key=lambda run: (run.kind != "teacher", run.kind != "alone", run.model, len(run.seed), run.seed))
    for model, group in study.evaluated.items():
        if len(group) > 1:
            _add_seeds(study, model, group)
    _add_summary(study)
    return study


def _add_summary(study):
    """What robustness.py says of all models together, in the study's folder."""
    folder = study.runs[0].path.parent.parent
    path = folder / "robustness_summary.csv"
    try:
        if path.exists():
            numbers = ("clean_macro_f1", "mean_macro_f1", "mean_macro_f1_lo", "mean_macro_f1_hi", "worst_macro_f1")
            study.summary = file_checks.table(("model", "seed", "file", "suite", "mean_macro_f1"), numbers)(path, read_csv(path))
        study.sheets = {file.stem[len("robustness_"):-len("_sheet")] or "default": file.read_bytes()
                        for file in sorted(folder.glob("robustness_*sheet.png"))}
    except (UserError, OSError) as error:
        study.problems.append((folder, f"left out: {error}", ""))


def _add_run(study, folder):
    try:
        run = read_run(folder)
    except UserError as error:
        study.problems.append((folder, f"broken: {error.message}", error.hint))
        return
    study.runs.append(run)
    remedy = f"python evaluate.py {command_path(folder)}"
    if run.metrics is None:
        study.problems.append((folder, "not evaluated: there is no metrics.json", remedy))
    elif stale(run):
        run.metrics = None
        study.problems.append((folder, "metrics.json does not belong to predictions/test.npz: "
                                       "their accuracies differ", remedy))
    elif without_interval(run.metrics):
        study.problems.append((folder, f"not shown, for metrics.json gives no interval: {errors.listing(without_interval(run.metrics))}",
                               remedy))
    for name, read, check in EXTRAS:
        path = folder / name
        try:
            if path.exists():
                setattr(run, Path(name).stem, check(path, read(path)))
        except UserError as error:
            study.problems.append((folder, f"left out: {error.message}", ""))


def _add_seeds(study, model, group):
    """What seeds.json says, where it is of these very runs."""
    path = group[0].path.parent / "seeds.json"
    try:
        held = read_json(path) if path.exists() else None
        if not isinstance(held, dict) or not file_checks.is_table(held.get("test")):
            problem = f"{path} is not what evaluate.py writes" if held is not None else None
        else:
            values = held["test"].get("accuracy", {}).get("values")
            own = [run.stated for run in group]
            same = isinstance(values, list) and len(values) == len(own) and np.allclose(
                sorted(map(float, values)), sorted(own), atol=1e-6)
            problem = None if same else f"{path} does not belong to the runs beside it"
    except (UserError, TypeError, ValueError) as error:
        problem = getattr(error, "message", f"{path} is not what evaluate.py writes")
    if problem:
        study.problems.append((group[0].path.parent, f"left out: {problem}", f"python evaluate.py {study.command}"))
    elif held:
        study.seeds[model] = held


# ---- one folder


def read_run(folder):
    """Run of a seed's folder; UserError where a file cannot be read or is not what it should be."""
    def optional(name, read, **options):
        return read(folder / name, **options) if (folder / name).exists() else None

    def require(held, name, what):
        if not held:
            raise UserError(f"{folder / name} {what}")

    test = read_npz(folder / "predictions" / "test.npz", ("ids", "labels", "logits", "class_names"))
    shape = (len(test["ids"]), len(test["class_names"]))
    require(test["logits"].shape == shape and test["labels"].shape == shape[:1] and shape[0],
            "predictions/test.npz", "has ids, labels, logits and class names of different numbers")
    require(test["labels"].dtype.kind in "iu" and 0 <= test["labels"].min()
            and test["labels"].max() < shape[1], "predictions/test.npz", "has a label that is no class")
    metrics = optional("metrics.json", read_json)
    for point in metrics.get("operating_points") or () if isinstance(metrics, dict) else ():
        if isinstance(point, dict) and "missed" in point:  # the key of older files
            point["shortfall"] = point.pop("missed")
    require(metrics is None or file_checks.is_metrics(metrics, shape[1]), "metrics.json",
            f"is not what evaluate.py writes for {shape[1]} classes")
    samples = optional("samples.npz", read_npz, required=("images", "ids"))
    if samples:
        images = samples["images"]
        require(images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
                and len(images) == len(samples["ids"]),
                "samples.npz", "holds no uint8 images [K, H, W, 3]")
    columns = ("epoch", "loss", "val_macro_f1", "seconds")
    history = optional("history.csv", read_csv, required=columns)
    try:
        history = history and [{key: float(row[key] or math.nan) for key in columns} for row in history]
    except ValueError as error:
        raise UserError(f"{folder / 'history.csv'}: {error}") from error
    require(all(math.isfinite(row["epoch"]) for row in history or ()), "history.csv",
            "has a row without an epoch")
    environment = optional("environment.json", read_json) or {}
    require(isinstance(environment, dict) and isinstance(environment.get("data", {}), dict),
            "environment.json", "is not a mapping")
    _, model, seed = runs.describe(folder)
    return Run(folder, model, seed, optional("config.yaml", read_yaml) or {}, environment,
               optional("split.csv", run_folder.read_split),
               history, metrics, test, samples)


def stale(run):
    """Whether metrics.json states another accuracy than the predictions beside it."""
    found = np.mean(run.test["logits"].argmax(axis=1) == run.test["labels"])
    return abs(run.stated - found) > 1e-3  # results of other systems may be rounded


def without_interval(metrics):
    """What a metrics.json states without an interval, and those of the first figures that it lacks."""
    return [*(name for name in ("accuracy", "macro_f1") if name not in metrics["test"]),
            *dict.fromkeys(name for table in ("test", "val", "majority") for name, metric in metrics.get(table, {}).items()
                           if metric.get("value") is not None and math.isnan(bounded(metric)["value"]))]


# file, how it is read, what is kept of it
EXTRAS = (("benchmark.csv", read_csv, file_checks.table(("model", "lat_ms_p50", "batch"), ("lat_ms_p50", "lat_ms_p90", "batch"))),
          ("exports/parity.json", read_json, file_checks.parity),
          ("robustness.csv", read_csv, file_checks.table(("tag", "macro_f1"), ("macro_f1", "acc"))),
          ("attention.npz", file_checks.read_attention, file_checks.attention))
