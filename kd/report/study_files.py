"""The runs of a study, read and checked: what a report is made of.

A run whose own files cannot be read is left out, a further file that cannot be read is left out;
both are named among the study's problems. A report is made of these files alone.
"""

import math
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kd import errors, runs
from kd.audit import other_tables
from kd.errors import UserError
from kd.run_folder import Run, StudyFolder, bounded

REQUIRED = ("test", "metrics", "samples", "history", "environment", "options", "split")  # damaged: the run is left out
EXTRAS = ("benchmark", "exports", "robustness", "attention", "joined")                   # damaged: left out

OF_FIRST_FOLDS = "Of the networks of the first fold, on its test images, which are a part of all."


@dataclass
class Study:
    """The runs of a study, and what is wrong with its files."""

    path: Path
    name: str
    runs: list                                    # of Run: teachers first, then by model and seed
    problems: list = field(default_factory=list)  # (folder, what is wrong, how to mend it)
    seeds: dict = field(default_factory=dict)     # model -> content of its seeds.json
    tables: list = field(default_factory=list)    # folders of other systems' tables
    summary: list = field(default_factory=list)   # rows of robustness_summary.csv, texts
    sweeps: dict = field(default_factory=dict)    # model -> content of its sweep.json
    sheets: dict = field(default_factory=dict)    # suite -> its robustness_*sheet.png: example images
    files: StudyFolder = None                     # of the files that stand over the runs

    @property
    def models(self):
        """Model name -> its runs."""
        models = {}
        for run in self.runs:
            models.setdefault(run.model, []).append(run)
        return models

    @property
    def evaluated(self):
        """Model name -> its runs, of models all of whose runs have metrics."""
        return {name: group for name, group in self.models.items() if all(run.evaluation for run in group)}

    @property
    def firsts(self):
        """The first seed of each model that was evaluated."""
        evaluated = ([run for run in group if run.evaluation] for group in self.models.values())
        return [group[0] for group in evaluated if group]

    def first(self, attribute):
        """The first non-empty `attribute` among the runs, else an empty dict."""
        return next((getattr(run, attribute) for run in self.runs if getattr(run, attribute)), {})

    def lacking(self, attribute):
        """The names of the models' first runs that have no `attribute`, in one text."""
        firsts = (group[0] for group in self.models.values())
        return ", ".join(f"{run.model}/{run.seed}" for run in firsts if not getattr(run, attribute))

    @property
    def cross_validation(self):
        """The number of folds that its runs join, else None."""
        return self.first("environment").get("cross_validation")

    def over_seeds(self, model, name):
        """METRIC of a model: its only seed's, or the mean over seeds with the interval of seeds.json."""
        group = self.models[model]
        if len(group) == 1:
            return group[0].metric(name)
        metric = self.seeds.get(model, {}).get("test", {}).get(name) or {}
        return bounded({**metric, "value": metric.get("mean")})

    @property
    def command(self):
        """The study's folder as a command line takes it."""
        return command_path(self.path)

    @cached_property
    def networks(self):
        """The Study of the runs that have a network, of joined folds the first; itself, if all have one.

        Exported, timed and put under corruptions is a network, and the answers of several are none.
        """
        found = [network for network in map(network_of, self.runs) if network]
        if found == self.runs:
            return self
        study = Study(self.path, self.name, found, self.problems, files=StudyFolder(self.files.folder / runs.FOLDS))
        for model, group in study.evaluated.items():
            if len(group) > 1 and model not in self.models:
                _add_seeds(study, model, group)
        study.seeds.update(self.seeds)
        _add_summary(study)
        study.summary, study.sheets = [*self.summary, *study.summary], {**self.sheets, **study.sheets}
        return study

    def network(self, model):
        """The name of the first network of a model: its own, or that of its first fold; "" where there is none."""
        return getattr(network_of(self.models[model][0]), "model", "")

    @property
    def first_folds(self):
        """Whether these are the networks of first folds, in the place of the runs that join them."""
        return self.path.resolve().name != runs.FOLDS and any(
            runs.study(run.folder).name == runs.FOLDS for run in self.runs)

    @property
    def network_folders(self):
        """The folders of the networks as a command line takes them."""
        return " ".join(command_path(run.folder) for run in self.runs) if self.first_folds else self.command


def network_of(run):
    """The Run of a network: `run`; of one that joins folds the first; None where there is none, or it is damaged."""
    if not runs.is_joined(run.folder):
        return run
    first = next((fold for fold in run.folds if runs.parse_fold(fold.model)[1] == 1), None)
    return first if first and first.test is not None else None


def command_path(path):
    """A path as a shell takes it."""
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
    study = Study(path, names[0], [], tables=tables, files=StudyFolder(runs.study(folders[0])))
    for folder in folders:
        _add_run(study, Run(folder))
    if not study.runs:
        folder, problem, _ = study.problems[0]
        raise UserError(f"no readable run at or below {path}", f"{folder}: {problem}")
    for folder in sorted({file.parent for file in runs.below(path, "**/config.yaml")} - set(folders)):
        study.problems.append((folder, "not finished: there is no predictions/test.npz", ""))
    study.runs.sort(key=lambda run: (run.kind != "teacher", run.kind != "alone",
                                     (run.folder / runs.ENSEMBLE).exists(), run.model, len(run.seed), run.seed))
    for model, group in study.evaluated.items():
        if len(group) > 1:
            _add_seeds(study, model, group)
    for model in study.models:
        _add_sweep(study, model)
    _add_summary(study)
    return study


def _add_run(study, run):
    """Add a Run to the study, or the reason why not to its problems."""
    damaged = run.tolerate(*REQUIRED)
    if damaged:
        error = next(iter(damaged.values()))
        study.problems.append((run.folder, f"broken: {error.message}", error.hint))
        return
    study.runs.append(run)
    remedy = f"python evaluate.py {command_path(run.folder)}"
    if run.metrics is None:
        study.problems.append((run.folder, "not evaluated: there is no metrics.json", remedy))
    elif run.is_stale:
        study.problems.append((run.folder, "metrics.json does not belong to predictions/test.npz: "
                                           "their accuracies differ", remedy))
    else:
        bare = without_interval(run.metrics)
        if bare:
            study.problems.append((run.folder, "not shown, for metrics.json gives no interval: "
                                               f"{errors.listing(bare)}", remedy))
    damaged = [(run, error) for error in run.tolerate(*EXTRAS).values()]
    damaged += [(fold, error) for fold in run.folds for error in fold.tolerate(*REQUIRED, *EXTRAS).values()]
    study.problems += [(part.folder, f"left out: {error.message}", "") for part, error in damaged]
    if (run.folder / runs.RECORD).exists() and not network_of(run):
        what = "its first fold is not there: what is measured of a network is not shown"
        study.problems.append((run.folder, what, ""))


def without_interval(metrics):
    """The names of metrics that a metrics.json states without an interval, and of the first figures that it lacks."""
    lacking = [name for name in ("accuracy", "macro_f1") if name not in metrics["test"]]
    for table in ("test", "val", "majority"):
        for name, metric in metrics.get(table, {}).items():
            if metric.get("value") is not None and math.isnan(bounded(metric)["value"]):
                lacking.append(name)
    return list(dict.fromkeys(lacking))


def _add_seeds(study, model, group):
    """Add a model's seeds.json, where its values are those of these runs."""
    problem = None
    try:
        content = study.files.seeds(model)
        if content:
            values = content["test"].get("accuracy", {}).get("values") or []
            stated = [run.stated_accuracy for run in group]
            same_count = None not in values and len(values) == len(stated)
            if not same_count or not np.allclose(sorted(values), sorted(stated), atol=1e-6):
                problem = f"{group[0].folder.parent / 'seeds.json'} does not belong to the runs beside it"
    except UserError as error:
        problem = error.message
    if problem:
        remedy = f"python evaluate.py {command_path(study.files.folder)}"
        study.problems.append((group[0].folder.parent, f"left out: {problem}", remedy))
    elif content:
        study.seeds[model] = content


def _add_sweep(study, model):
    """Add a model's sweep.json, where there is one."""
    try:
        content = study.files.sweep(model)
    except UserError as error:
        study.problems.append((study.files.folder / model, f"left out: {error.message}", ""))
    else:
        if content:
            study.sweeps[model] = content


def _add_summary(study):
    """Add what robustness.py writes about all models together, in the study's folder."""
    folder = study.files.folder
    try:
        study.summary = study.files.robustness_summary
        study.sheets = {file.stem[len("robustness_"):-len("_sheet")] or "default": file.read_bytes()
                        for file in sorted(folder.glob("robustness_*sheet.png"))}
    except (UserError, OSError) as error:
        study.problems.append((folder, f"left out: {error}", ""))
