"""What an audit knows of a model: one Case for each run folder, cleaned of all that is not as it should be.

Files are read as they come from anybody's hands: one that is not there is passed over, one that
is damaged is named in `Case.unreadable`, a figure that is no number is left out.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd import metrics, predictions, run_folder, runs
from kd.errors import UserError
from kd.files import last_digit, parse_number, read_csv, read_json, read_yaml


@dataclass
class Figure:
    """A number somebody states."""

    split: str
    metric: str              # as in metrics.json
    value: float
    source: str              # the file it stands in
    tolerance: float = 1e-6  # half a unit of its last digit
    interval: bool = None    # whether it has one; None where nobody would expect it

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
class Case:
    """The evidence about one model. What is not known is None or empty, and no rule leans on it."""

    model: str
    seed: str = ""
    role: str = ""                                    # "teacher", "student" or not known
    folder: Path = None                               # of the run that the rest comes from
    class_names: list = None
    val: predictions.Predictions = None
    test: predictions.Predictions = None
    confusions: dict = field(default_factory=dict)    # split -> counts [C, C]
    majority: tuple = None                            # (class, its share, whether counted on this very test set)
    figures: list = field(default_factory=list)
    stated: bool = False                              # whether somebody states figures about it
    temperature: dict = field(default_factory=dict)   # value, lo, hi, before, after, reason
    points: list = field(default_factory=list)
    corruptions: dict = field(default_factory=dict)   # tag -> {metric: Figure}
    curves: dict = field(default_factory=dict)        # column -> its numbers
    split: list = field(default_factory=list)         # rows of split.csv
    inputs: dict = field(default_factory=dict)        # file -> {"size": 64, ...}
    texts: dict = field(default_factory=dict)         # file -> its words
    sources: list = field(default_factory=list)       # files that figures were read from
    traced: bool = False                              # whether its run is known though not among the cases
    namesakes: int = 1                                # how many models stand under this name in one table
    unreadable: list = field(default_factory=list)    # one line a damaged file

    @property
    def name(self):
        return "/".join(filter(None, (self.model, self.seed)))

    def figure(self, metric, split="test"):
        """The most exact Figure of a metric, or None."""
        found = [f for f in self.figures if (f.metric, f.split) == (metric, split)]
        return min(found, key=lambda f: f.tolerance, default=None)


def of_run(folder, result=None, held=None):
    """The Case of a run folder. UserError only where there is no such folder.

    result: what is about to be written to its metrics.json, in place of what stands there. held: its
    (val, test) Predictions, in place of reading them again.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    _, model, seed = runs.describe(folder)
    case = Case(model, seed, folder=folder)

    def read(name, reader, kind, **options):
        if not (folder / name).exists():
            return kind()
        try:
            held = reader(folder / name, **options)
            if not isinstance(held, kind):
                raise UserError(f"{folder / name} is not what it should be")
            return held
        except UserError as error:
            case.unreadable.append(error.message)
            return kind()

    environment = read("environment.json", read_json, dict)
    config = read("config.yaml", read_yaml, dict)
    taught = runs.kind(model, {**environment, **config}) != "teacher"
    case.role = ("student" if environment.get("role") or config.get("role") else "") if taught else "teacher"
    case.split = read("split.csv", run_folder.read_split, list)
    case.curves = columns(read("history.csv", read_csv, list))
    add_predictions(case, *(held or (read(f"predictions/{split}.npz", predictions.read, object) for split in ("val", "test"))))
    add_metrics(case, read("metrics.json", read_json, dict) if result is None else result)
    for key, rows in by_file(read("robustness.csv", read_csv, list)).items():
        for row in rows if key == OWN else ():
            add_corruption(case, row, "robustness.csv")
    case.inputs = {"config.yaml": {"size": config.get("size")}, "environment.json": environment.get("input"),
                   **case.inputs}
    return case


OWN = "best.pt", "default"


def by_file(rows):
    """{(file, suite): rows} of a run's robustness.csv; what names neither is the checkpoint under the default suite."""
    found = {}
    for row in rows:
        found.setdefault((row.get("file") or OWN[0], row.get("suite") or OWN[1]), []).append(row)
    return found


def over_runs(folders):
    """Cases of what the files over run folders state: each model's seeds.json, each study's comparison.csv; and of
    exported files and further suites in a run's robustness.csv.

    Their figures are Cases of their own, so that they can be held against the runs'.
    """
    cases = []
    for folder in map(Path, folders):
        if (folder / "robustness.csv").exists():
            _, model, seed = runs.describe(folder)
            for key, rows in by_file(_tried(read_csv, folder / "robustness.csv")[0] or ()).items():
                if key != OWN:  # those are the run's; and what cannot be read is told of it
                    cases.append(Case(model, " ".join([seed, *(part for part, own in zip(key, OWN) if part != own)])))
                    for row in rows:
                        add_corruption(cases[-1], row, "robustness.csv")
    for model in dict.fromkeys(Path(folder).parent for folder in folders):
        if (model / "seeds.json").exists():
            told, problem = _tried(read_json, model / "seeds.json")
            told = _mapping(told)
            for place, seed in enumerate(_list(told.get("seeds"))):
                case = Case(model.name, f"seed_{seed}", stated=True, sources=["seeds.json"])
                for name, metric in _mapping(told.get("test")).items():
                    values = _list(_mapping(metric).get("values"))
                    if place < len(values) and math.isfinite(parse_number(values[place])):
                        case.figures.append(Figure("test", str(name), parse_number(values[place]), "seeds.json"))
                case.traced = runs.finished(model / case.seed)
                cases.append(case)
            cases += problem
    for study in dict.fromkeys(Path(folder).parent.parent for folder in folders):
        if (study / "comparison.csv").exists():
            rows, problem = _tried(read_csv, study / "comparison.csv",
                                   required=("model", "metric", "model_value"))
            named = {}
            for row in rows or ():
                for side in ("model", "reference"):
                    name, text = row.get(side), row.get(f"{side}_value")
                    if name and row["metric"] in METRICS and math.isfinite(parse_number(text)):
                        case = named.setdefault(name, Case(name, stated=True, sources=["comparison.csv"],
                                                           traced=runs.is_run(study / name) or name.endswith(".npz")))
                        case.figures.append(Figure("test", row["metric"], parse_number(text), "comparison.csv",
                                                   max(last_digit(text) / 2, 1e-6 * abs(parse_number(text)))))
            cases += [*named.values(), *problem]
    return cases


def _tried(read, path, **options):
    """(what was read, []), or (None, [a Case that says why not])."""
    try:
        return read(path, **options), []
    except UserError as error:
        return None, [Case(path.parent.name, unreadable=[error.message])]


def of_metrics(result, val=None, test=None, model="", seed=""):
    """The Case of what evaluation has in hand: metrics.json as a dict, and Predictions."""
    case = Case(model, seed)
    add_predictions(case, val, test)
    add_metrics(case, result)
    return case


def add_predictions(case, val, test):
    for split, held in (("val", val), ("test", test)):
        if not isinstance(held, predictions.Predictions):
            continue
        setattr(case, split, held)
        case.class_names = held.class_names
        counts = metrics.confusion(held.labels, held.probabilities.argmax(1), len(held.class_names))
        case.confusions[split] = counts
        for name, measure in (("accuracy", metrics.accuracy), ("macro_f1", metrics.macro_f1)):
            case.figures.append(Figure(split, name, float(measure(counts)), f"predictions/{split}.npz"))
    _add_majority(case)


def add_metrics(case, result):
    """What a metrics.json tells."""
    result = _mapping(result)
    for split in ("val", "test"):
        for name, metric in _mapping(result.get(split)).items():
            metric = _mapping(metric)
            value, lo, hi = (parse_number(metric.get(key)) for key in ("value", "lo", "hi"))
            if math.isfinite(value):
                case.stated = True
                case.figures.append(Figure(split, str(name), value, "metrics.json",
                                           interval=math.isfinite(lo) and math.isfinite(hi)))
    names = result.get("class_names")
    if case.class_names is None and isinstance(names, list) and names:
        case.class_names = [str(name) for name in names]
    if "test" not in case.confusions:
        counts = _square(result.get("confusion"))
        if counts is not None and case.class_names and len(counts) == len(case.class_names):
            case.confusions["test"] = counts
            _add_majority(case)
    told = _mapping(result.get("calibration"))
    lo, hi = [parse_number(bound) for bound in (*_list(told.get("bounds")), None, None)][:2]
    case.temperature = {"value": parse_number(told.get("temperature", told.get("fitted"))), "lo": lo, "hi": hi,
                        "before": parse_number(told.get("nll_val_before")), "after": parse_number(told.get("nll_val_after")),
                        "reason": str(told.get("reason") or "")} if told else {}
    for told in _list(result.get("operating_points")):
        told = _mapping(told)
        threshold, test = told.get("threshold"), _mapping(told.get("test"))
        case.points.append(Point(
            str(told.get("name") or "an operating point"), str(told.get("kind") or ""), parse_number(threshold),
            {str(key): parse_number(value) for key, value in threshold.items()} if isinstance(threshold, dict) else None,
            {str(key): Figure("test", str(key), value, "metrics.json") for key, value in
             ((key, parse_number(_mapping(metric).get("value"))) for key, metric in test.items()) if math.isfinite(value)},
            str(told.get("chosen_on") or "")))
    case.inputs["metrics.json"] = result.get("input") or _mapping(result.get("conventions")).get("input")


def add_corruption(case, row, source):
    """A row of a robustness table: a tag (or corruption and severity), and a score a column."""
    tag = row.get("tag") or "_".join(filter(None, (row.get("corruption"), row.get("severity") or row.get("level"))))
    scores = {name: figure for name, figure in figures_in(row, source) if figure.split == "test"}
    if tag and scores:
        case.corruptions[tag] = scores


SYNONYMS = {"acc": "accuracy", "ece_uniform": "ece", "ece_adaptive": "ece_equal_mass", "f1_macro": "macro_f1",
            "f1": "macro_f1", "bal_acc": "balanced_accuracy", "auroc": "macro_auroc", "auc": "macro_auroc",
            "t": "temperature", "tau": "threshold"}
METRICS = {"accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "macro_auroc", "nll", "brier", "ece",
           "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce", "aurc"}


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
            yield metric, Figure(split, metric, value, source, last_digit(text) / 2, all(map(math.isfinite, bounds)))


def columns(rows):
    """History rows as column -> numbers; a column with a cell that is no number is left out."""
    found = {name: [parse_number(row.get(name)) for row in rows] for name in (rows[0] if rows else {})}
    return {name: values for name, values in found.items() if not any(map(math.isnan, values))}


def plain(text):
    """A column's name as it is compared: `Val acc` and `val_acc` are one."""
    return str(text).strip().lower().replace(" ", "_").replace("-", "_")


def _add_majority(case):
    if "test" in case.confusions:
        support = case.confusions["test"].sum(1)
        if support.sum():
            top = int(support.argmax())
            case.majority = case.class_names[top], support[top] / support.sum(), True


def _mapping(value):
    return value if isinstance(value, dict) else {}


def _list(value):
    return value if isinstance(value, list) else []


def _square(rows):
    if (rows and isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
            and all(type(n) is int and 0 <= n < 2 ** 53 for row in rows for n in row)):
        return np.array(rows)
    return None
