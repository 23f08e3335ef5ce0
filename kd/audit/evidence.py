"""What an audit knows of a model: a Case for each run folder.

Files may come from any system. A missing one is passed over; a damaged one is named in `Case.unreadable`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd import metrics, predictions, runs
from kd.errors import UserError
from kd.files import last_digit, parse_number
from kd.prediction_files import SUFFIXES
from kd.run_folder import StudyFolder


@dataclass
class Figure:
    """A number that a file states."""

    split: str
    metric: str              # as in metrics.json
    value: float
    source: str              # the file it stands in
    tolerance: float = 1e-6  # half a unit of its last digit
    interval: bool = None    # whether it has one; None where none is expected
    mean: bool = False       # whether its column says that it is a mean

    def __str__(self):
        digits = max(0, min(4, round(-math.log10(2 * self.tolerance)))) if self.tolerance > 0 else 4
        return f"{self.value:.{digits}f}"

    def agrees(self, other):
        return abs(self.value - other.value) <= self.tolerance + other.tolerance + 1e-12


@dataclass
class Point:
    """An operating point: a threshold (or a weight a class), and what it led to."""

    name: str
    kind: str
    threshold: float = math.nan                  # of a single score
    weights: dict = None                         # class -> weight, of the kinds that have one a class
    figures: dict = field(default_factory=dict)  # metric -> Figure, on test
    chosen_on: str = ""


@dataclass
class Mean:
    """A mean over seeds that a file states."""

    metric: str
    value: float
    source: str
    count: int             # number of seeds that the file says
    values: list = None    # of the seeds, where the file has them
    lo: float = math.nan
    hi: float = math.nan
    tolerance: float = 1e-6


@dataclass
class Case:
    """The evidence about one model. What is not known is None or empty, and no rule uses it."""

    model: str
    seed: str = ""
    role: str = ""                                    # "teacher", "student" or not known
    folder: Path = None                               # of the run that the rest comes from
    network: str = ""                                 # the same of a student and its baseline
    baseline: bool = False                            # a student without a teacher
    seeds: list = field(default_factory=list)         # all finished seeds of the model, where the Case is of them all
    class_names: list = None
    val: predictions.Predictions = None
    test: predictions.Predictions = None
    confusions: dict = field(default_factory=dict)    # split -> counts [C, C]
    majority: tuple = None                            # (class, its share, whether counted on this very test set)
    figures: list = field(default_factory=list)
    stated: bool = False                              # whether a file states figures about it
    temperature: dict = field(default_factory=dict)   # value, lo, hi, before, after, reason
    points: list = field(default_factory=list)
    corruptions: dict = field(default_factory=dict)   # tag -> {metric: Figure}
    curves: dict = field(default_factory=dict)        # column -> its numbers
    best_epoch: int = None                            # the row that was best on validation; None for macro-F1
    split: list = field(default_factory=list)         # rows of split.csv
    teacher_split: list = field(default_factory=list) # rows of its teacher's split.csv
    teachers: list = field(default_factory=list)      # Runs of its teacher or teachers, None where there is none
    teacher_name: str = None                          # as metrics.json names it
    environment: dict = field(default_factory=dict)   # environment.json
    options: dict = field(default_factory=dict)       # config.yaml
    written: dict = None                              # the content of metrics.json, as it stands in the folder
    means: list = field(default_factory=list)         # Means over seeds
    sweep: dict = None                                # content of the model's sweep.json
    inputs: dict = field(default_factory=dict)        # file -> {"size": 64, ...}
    texts: dict = field(default_factory=dict)         # file -> its words
    sources: list = field(default_factory=list)       # files that figures were read from
    traced: bool = False                              # whether its run is known though not among the cases
    table: str = ""                                   # folder of the tables of another system that it is from
    images: int = 0                                   # of its test set, as the table says
    namesakes: int = 1                                # how many models stand under this name in one table
    unreadable: list = field(default_factory=list)    # one line a damaged file

    @property
    def name(self):
        return "/".join(filter(None, (self.model, self.seed)))

    def figure(self, metric, split="test"):
        """The most exact Figure of a metric, or None."""
        figures = [f for f in self.figures if (f.metric, f.split) == (metric, split)]
        return min(figures, key=lambda f: f.tolerance, default=None)


def of_run(run, result=None):
    """The Case of a Run (kd/run_folder.py). UserError only where there is no such folder.

    result: what is about to be written to its metrics.json, in place of what stands there.
    """
    if not run.folder.is_dir():
        raise UserError(f"no such folder: {run.folder}")
    run.tolerate("options", "environment", "split", "history", "val", "test", "metrics", "robustness")
    case = Case(run.model, run.seed, folder=run.folder)
    case.role = "teacher" if run.kind == "teacher" else "student" if run.setting("role") else ""
    case.split, case.environment, case.options = run.split, run.environment, run.options
    case.written = run.metrics if result is None else None
    case.teachers, case.teacher_name = run.teachers, run.teacher_name
    for teacher in filter(None, case.teachers):
        teacher.tolerate("environment", "split", "test")
        has_more = teacher.environment.get("data", {}).get("unlabelled")
        case.teacher_split = [*case.teacher_split, *(
            row for row in teacher.split if has_more or row["split"] != "unlabelled")]
    case.network, case.baseline = run.network, run.kind == "alone"
    case.curves, case.best_epoch = curves_of(run.kept_history), run.best_epoch
    add_predictions(case, run.val, run.test)
    add_metrics(case, run.metrics if result is None else result)
    for row in by_file(run.robustness).get(OWN, ()):
        add_corruption(case, row, "robustness.csv")
    case.inputs = {"config.yaml": {"size": run.options.get("size")}, "environment.json": run.environment.get("input"),
                   **case.inputs}
    case.unreadable = [error.message for error in run.errors.values()]
    return case


OWN = "best.pt", "default"


def by_file(rows):
    """{(file, suite): rows} of a run's robustness.csv; what names neither is the checkpoint under the default suite."""
    groups = {}
    for row in rows:
        groups.setdefault((row.get("file") or OWN[0], row.get("suite") or OWN[1]), []).append(row)
    return groups


def over_runs(runs_, studies=()):
    """Cases of what the files over Runs state: each model's seeds.json, each study's comparison.csv; and of exported
    files and further suites in a run's robustness.csv.

    Their figures are Cases of their own, so that they can be compared with the runs'. studies: StudyFolders that have
    been read already.
    """
    cases = []
    for run in runs_:
        for key, rows in by_file(run.robustness).items():
            if key != OWN:  # those are the run's
                further = [part for part, default in zip(key, OWN) if part != default]
                cases.append(Case(run.model, " ".join([run.seed, *further])))
                for row in rows:
                    add_corruption(cases[-1], row, "robustness.csv")
    folders = {study.folder.resolve(): study for study in studies}
    models = {}  # study's folder -> names of its models
    for run in runs_:
        folder = runs.study(run.folder)
        folders.setdefault(folder.resolve(), StudyFolder(folder))
        models.setdefault(folder.resolve(), {})[run.model] = None
    for folder, names in models.items():
        for name in names:
            cases += [*_of_seeds(folders[folder], name), *_of_sweep(folders[folder], name)]
    for folder in models:
        cases += _of_comparison(folders[folder])
    return cases


def _of_seeds(study, model):
    """Cases of a model's seeds.json, one a seed."""
    try:
        content = study.seeds(model)
    except UserError as error:
        return [Case(model, unreadable=[error.message])]
    if content is None:
        return []
    over = Case(model, sources=["seeds.json"], traced=True, seeds=_finished_seeds(study, model))
    cases, seeds = [over], content.get("seeds", ())
    figures = {**content["test"], **_of_fidelity(content)}
    for name, metric in figures.items():
        mean, lo, hi = (parse_number(metric.get(key)) for key in ("mean", "lo", "hi"))
        if math.isfinite(mean):
            over.means.append(Mean(name, mean, "seeds.json", len(seeds), metric.get("values"), lo, hi))
    for place, seed in enumerate(seeds):
        case = Case(model, f"seed_{seed}", stated=True, sources=["seeds.json"])
        for name, metric in figures.items():
            values = metric.get("values", [])
            if place < len(values) and math.isfinite(parse_number(values[place])):
                case.figures.append(Figure("test", name, parse_number(values[place]), "seeds.json"))
        case.traced = runs.finished(study.folder / model / case.seed)
        cases.append(case)
    return cases


def _of_sweep(study, model):
    """[Case] of the choice among the tries of a model, [] without one."""
    try:
        content = study.sweep(model)
    except UserError as error:
        return [Case(model, unreadable=[error.message])]
    return [Case(model, sources=["sweep.json"], traced=True, sweep=content)] if content else []


def _of_fidelity(content):
    """{"fidelity/NAME": METRIC} of a metrics.json or seeds.json."""
    figures = (content.get("fidelity") or {}).get("test", {})
    return {f"fidelity/{name}": metric for name, metric in figures.items()}


def _finished_seeds(study, model):
    """Names of a model's finished seeds."""
    return sorted(path.parents[1].name for path in (study.folder / model).glob(f"*/{runs.TEST.as_posix()}"))


def _of_comparison(study):
    """Cases of a study's comparison.csv, one a model."""
    try:
        rows = study.comparison
    except UserError as error:
        return [Case(study.folder.name, unreadable=[error.message])]
    cases = {}
    for row in rows:
        for side in ("model", "reference"):
            name, text = row.get(side), row.get(f"{side}_value")
            value = parse_number(text)
            if name and row["metric"] in METRICS and math.isfinite(value):
                traced = name in cases or runs.is_run(study.folder / name) or name.lower().endswith(SUFFIXES)
                case = cases.setdefault(name, Case(name, stated=True, sources=["comparison.csv"], traced=traced,
                                                   seeds=_finished_seeds(study, name)))
                tolerance = max(last_digit(text) / 2, 1e-6 * abs(value))
                case.figures.append(Figure("test", row["metric"], value, "comparison.csv", tolerance))
                count, lo, hi = (parse_number(row.get(f"{side}_{key}")) for key in ("seeds", "lo", "hi"))
                if count >= 1:
                    mean = Mean(row["metric"], value, "comparison.csv", int(min(count, 1e6)), None, lo, hi, tolerance)
                    case.means.append(mean)
    return list(cases.values())


def of_metrics(result, val=None, test=None, model="", seed=""):
    """The Case of what evaluation has in hand: metrics.json as a dict, and Predictions."""
    case = Case(model, seed)
    add_predictions(case, val, test)
    add_metrics(case, result)
    return case


def add_predictions(case, val, test):
    """Add what follows from the Predictions of validation and test; either may be None."""
    for split, part in (("val", val), ("test", test)):
        if part is None:
            continue
        setattr(case, split, part)
        case.class_names = part.class_names
        counts = metrics.confusion(part.labels, part.probabilities.argmax(1), len(part.class_names))
        case.confusions[split] = counts
        for name, measure in (("accuracy", metrics.accuracy), ("macro_f1", metrics.macro_f1)):
            source = f"predictions/{split}.npz" if case.folder else f"the predictions of {split}"
            case.figures.append(Figure(split, name, float(measure(counts)), source))
    _add_majority(case)


def add_metrics(case, result):
    """Add what a metrics.json states. result: its content, or None."""
    if not result:
        return
    source = "metrics.json" if case.folder else "as evaluated"
    for split in ("val", "test"):
        figures = {**result.get(split, {}), **(_of_fidelity(result) if split == "test" else {})}
        for name, metric in figures.items():
            value, lo, hi = (parse_number(metric.get(key)) for key in ("value", "lo", "hi"))
            if math.isfinite(value):
                case.stated = True
                has_interval = math.isfinite(lo) and math.isfinite(hi) or bool(metric.get("withheld"))
                case.figures.append(Figure(split, name, value, source, interval=has_interval))
    case.class_names = case.class_names or result.get("class_names")
    if "test" not in case.confusions and result.get("confusion") and case.class_names:
        case.confusions["test"] = np.array(result["confusion"])
        _add_majority(case)
    calibration = result.get("calibration")
    if calibration:
        lo, hi = [*map(parse_number, calibration.get("bounds", ())), math.nan, math.nan][:2]
        value = parse_number(calibration.get("temperature", calibration.get("fitted")))
        before, after = (parse_number(calibration.get(f"nll_val_{when}")) for when in ("before", "after"))
        case.temperature = {"value": value, "lo": lo, "hi": hi, "before": before, "after": after,
                            "reason": str(calibration.get("reason") or "")}
    for point in result.get("operating_points") or ():
        threshold, figures, weights = point.get("threshold"), {}, None
        if isinstance(threshold, dict):
            weights = {name: parse_number(weight) for name, weight in threshold.items()}
        for name, metric in point.get("test", {}).items():
            value = parse_number(metric.get("value"))
            if math.isfinite(value):
                figures[name] = Figure("test", name, value, source)
        case.points.append(Point(str(point.get("name") or "an operating point"), str(point.get("kind") or ""),
                                 parse_number(threshold), weights, figures, str(point.get("chosen_on") or "")))
    case.inputs["metrics.json"] = result.get("input") or result.get("conventions", {}).get("input")


def add_corruption(case, row, source):
    """Add a row of a robustness table: a tag (or corruption and severity), and a score a column."""
    level = row.get("severity") or row.get("level")
    tag = row.get("tag") or "_".join(filter(None, (row.get("corruption"), level)))
    scores = {name: figure for name, figure in figures_in(row, source) if figure.split == "test"}
    if tag and scores:
        case.corruptions[tag] = scores


SYNONYMS = {"acc": "accuracy", "ece_uniform": "ece", "ece_adaptive": "ece_equal_mass", "f1_macro": "macro_f1",
            "f1": "macro_f1", "bal_acc": "balanced_accuracy", "auroc": "macro_auroc", "auc": "macro_auroc",
            "t": "temperature", "tau": "threshold"}
METRICS = {"accuracy", "macro_f1", "macro_f1_without_rarest", "weighted_f1", "balanced_accuracy", "macro_auroc", "nll",
           "brier", "ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce", "aurc"}


def figures_in(row, source):
    """(metric, Figure) of every column of a table's row (texts) that is known and holds a number.

    `accuracy`, `acc`, `val_acc`, `accuracy_mean` with `accuracy_lo`, `accuracy_hi`, and so on.
    """
    cells = {plain(key): value for key, value in row.items() if key}
    for column, text in cells.items():
        value = parse_number(text)
        name = column.removesuffix("_mean")
        split = "val" if name.startswith("val_") else "test"
        name = name.removeprefix("val_").removeprefix("test_")
        metric = SYNONYMS.get(name, name)
        if metric in METRICS and math.isfinite(value):
            bounds = [parse_number(cells.get(f"{name}_{end}")) for end in ("lo", "hi")]
            yield metric, Figure(split, metric, value, source, last_digit(text) / 2, all(map(math.isfinite, bounds)),
                                 column.endswith("_mean"))


def curves_of(history):
    """Rows of a history as column -> numbers; a column with a cell that is no number is left out."""
    columns = {name: [row.get(name, math.nan) for row in history] for name in (history[0] if history else ())}
    return {name: values for name, values in columns.items() if not any(map(math.isnan, values))}


def plain(text):
    """A column's name as it is compared: `Val acc` and `val_acc` are one."""
    return str(text).strip().lower().replace(" ", "_").replace("-", "_")


def _add_majority(case):
    if "test" in case.confusions:
        support = case.confusions["test"].sum(1)
        if support.sum():
            most = np.flatnonzero(support == support.max())  # of equal ones, that which is predicted
            top = int(most[case.confusions["test"].sum(0)[most].argmax()])
            case.majority = case.class_names[top], support[top] / support.sum(), True
