"""Draw one self-contained HTML page from the run folders of a study.

Reads what is in the folders and nothing else: no torch, no images, no network. A section is
a function of the study here and a <section> in kd/templates/report.html; its drawings are
functions in kd/figures.py.
"""

import math
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd import audit, errors, figures, foreign, runs
from kd.errors import UserError

METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "weighted_f1": "Weighted F1",
           "balanced_accuracy": "Balanced accuracy", "macro_auroc": "Macro AUROC"}
UNDEFINED = {"value": math.nan, "lo": math.nan, "hi": math.nan, "undefined": 0}


@dataclass
class Run:
    """What one seed's folder holds. A file that is not there is None, or an empty mapping."""

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

    def told(self, key):
        """What config.yaml, else environment.json, says of `key`, else None."""
        return self.config.get(key, self.environment.get(key))

    @property
    def kind(self):
        """teacher, alone (a student without a teacher) or student."""
        if (self.told("role") or self.model.split("_")[0]) == "teacher":
            return "teacher"
        untaught = self.model.endswith("_alone") or self.config.get("teacher", "unknown") is None
        return "alone" if untaught else "student"

    @property
    def best(self):
        """Index of the epoch with the highest validation macro-F1, the first on ties."""
        scores = np.array([row["val_macro_f1"] for row in self.history or []])
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None

    def metric(self, name, table="test"):
        """METRIC with NaN for what is undefined or not there."""
        found = (self.metrics or {}).get(table, {}).get(name) or {}
        return {**UNDEFINED, **{key: value for key, value in found.items() if value is not None}}


@dataclass
class Study:
    path: Path
    name: str
    runs: list                                    # teachers first, then by model and seed
    problems: list = field(default_factory=list)  # (folder, what is wrong, how to mend it)

    @property
    def models(self):
        """Model name -> its runs."""
        names = dict.fromkeys(run.model for run in self.runs)
        return {name: [run for run in self.runs if run.model == name] for name in names}

    @property
    def firsts(self):
        """The first seed of each model that was evaluated."""
        evaluated = ([run for run in group if run.metrics] for group in self.models.values())
        return [group[0] for group in evaluated if group]

    def first(self, what):
        """The first non-empty `what` among the runs, else an empty dict."""
        return next((getattr(run, what) for run in self.runs if getattr(run, what)), {})


# ---- reading


def read_study(path):
    """Study of the run folders at or below `path`.

    A run that cannot be read, has not finished or was not evaluated is named among the
    problems. Raises UserError where there is no run, none can be read, or there are two studies.
    """
    path = Path(path)
    folders = runs.find(path)
    names = sorted({runs.describe(folder)[0] for folder in folders})
    if len(names) > 1:
        raise UserError(f"{path} holds {len(names)} studies: {errors.listing(names)}",
                        f"A report is about one: python report.py {command_path(path / names[0])}")
    study = Study(path, names[0], [])
    for folder in folders:
        try:
            run = read_run(folder)
        except UserError as error:
            study.problems.append((folder, f"broken: {error.message}", error.hint))
            continue
        study.runs.append(run)
        remedy = f"python evaluate.py {command_path(folder)}"
        if run.metrics is None:
            study.problems.append((folder, "not evaluated: there is no metrics.json", remedy))
        elif stale(run):
            run.metrics = None
            study.problems.append((folder, "metrics.json does not belong to predictions/test.npz: "
                                           "their accuracies differ", remedy))
    if not study.runs:
        folder, what, _ = study.problems[0]
        raise UserError(f"no readable run at or below {path}", f"{folder}: {what}")
    for folder in sorted({file.parent for file in path.glob("**/config.yaml")} - set(folders)):
        study.problems.append((folder, "not finished: there is no predictions/test.npz", ""))
    study.runs.sort(key=lambda run: (run.kind != "teacher", run.model, len(run.seed), run.seed))
    return study


def read_run(folder):
    """Run of a seed's folder; UserError where a file cannot be read or is not what it should be."""
    def optional(name, read, **options):
        return read(folder / name, **options) if (folder / name).exists() else None

    def require(held, name, what):
        if not held:
            raise UserError(f"{folder / name} {what}")

    test = runs.read_npz(folder / "predictions" / "test.npz", ("ids", "labels", "logits", "class_names"))
    shape = (len(test["ids"]), len(test["class_names"]))
    require(test["logits"].shape == shape and test["labels"].shape == shape[:1] and shape[0],
            "predictions/test.npz", "has ids, labels, logits and class names of different numbers")
    require(test["labels"].dtype.kind in "iu" and 0 <= test["labels"].min()
            and test["labels"].max() < shape[1], "predictions/test.npz", "has a label that is no class")
    metrics = optional("metrics.json", runs.read_json)
    require(metrics is None or is_metrics(metrics, shape[1]), "metrics.json",
            f"is not what evaluate.py writes for {shape[1]} classes")
    samples = optional("samples.npz", runs.read_npz, required=("images", "ids"))
    if samples:
        images = samples["images"]
        require(images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
                and len(images) == len(samples["ids"]),
                "samples.npz", "holds no uint8 images [K, H, W, 3]")
    columns = ("epoch", "loss", "val_macro_f1", "seconds")
    history = optional("history.csv", runs.read_csv, required=columns)
    try:
        history = history and [{key: float(row[key] or math.nan) for key in columns} for row in history]
    except ValueError as error:
        raise UserError(f"{folder / 'history.csv'}: {error}") from error
    require(all(math.isfinite(row["epoch"]) for row in history or ()), "history.csv",
            "has a row without an epoch")
    environment = optional("environment.json", runs.read_json) or {}
    require(isinstance(environment, dict) and isinstance(environment.get("data", {}), dict),
            "environment.json", "is not a mapping")
    _, model, seed = runs.describe(folder)
    return Run(folder, model, seed, optional("config.yaml", runs.read_yaml) or {}, environment,
               optional("split.csv", runs.read_csv, required=("group", "label", "split")),
               history, metrics, test, samples)


def is_metrics(held, classes):
    """Whether `held` has the form of metrics.json, as far as the page leans on it."""
    def number(value):
        return value is None or isinstance(value, (int, float))

    def table(value):
        return isinstance(value, dict) and all(
            isinstance(metric, dict) and all(map(number, metric.values())) for metric in value.values())

    def square(rows):
        return isinstance(rows, list) and len(rows) == classes and all(
            isinstance(row, list) and len(row) == classes and all(isinstance(n, int) for n in row)
            for row in rows)

    return (isinstance(held, dict) and table(held.get("test")) and table(held.get("majority", {}))
            and square(held.get("confusion", [[0] * classes] * classes))
            and isinstance(held.get("conventions", {}), dict)
            and number(held.get("conventions", {}).get("level")))


def stale(run):
    """Whether metrics.json states another accuracy than the predictions beside it."""
    stated = run.metric("accuracy")["value"]
    found = np.mean(run.test["logits"].argmax(axis=1) == run.test["labels"])
    return abs(stated - found) > 1e-3  # results of other systems may be rounded


# ---- sections: each returns what its part of the template shows, or None where there is nothing


def findings(study):
    """What the audit says of the runs, and of another system's tables beside them."""
    found, held = audit.examine(audit.gather([run.path for run in study.runs],
                                             [study.path] if foreign.has_tables(study.path) else []))
    counts = Counter(finding["severity"] for finding in found)
    return {"groups": audit.grouped(found), "held": held, "rules": len(audit.RULES),
            "counts": [(counts[severity], severity) for severity in audit.SEVERITIES if counts[severity]]}


def summary(study):
    data, split = study.first("environment").get("data", {}), study.first("split")
    sizes = dict.fromkeys(str(run.config["size"]) for run in study.runs if run.config.get("size"))
    groups = len({row["group"] for row in split if row["group"]})
    tests = {frozenset(run.test["ids"].tolist()) for run in study.runs}
    return {
        "data": data.get("name") or study.first("config").get("data") or "a data set without a name",
        "synthetic": any(run.environment.get("data", {}).get("synthetic") for run in study.runs),
        "images": len(split) or None,
        "groups": groups if groups < len(split) else None,
        "classes": len(study.runs[0].test["class_names"]),
        "parts": [(part, sum(row["split"] == part for row in split))
                  for part in ("train", "val", "test")] if split else None,
        "tested": len(study.runs[0].test["ids"]),
        "sizes": list(sizes),
        "differing_tests": len(tests) > 1,
    }


def performance(study):
    groups = [{"model": model, "kind": group[0].kind, "runs": [performance_row(run) for run in group],
               "mean": {name: mean([run.metric(name)["value"] for run in group]) for name in METRICS}
               if len(group) > 1 and all(run.metrics for run in group) else None}
              for model, group in study.models.items()]
    first = study.firsts[0] if study.firsts else None
    rows = [(run.model + (f" · {seed_name(run)}" if len(study.models[run.model]) > 1 else ""), run.kind,
             *(run.metric("macro_f1")[key] for key in ("value", "lo", "hi")))
            for run in study.runs if run.metrics]
    majority = first and {name: first.metric(name, "majority") for name in METRICS}
    line = majority["macro_f1"]["value"] if majority else math.nan
    reference = ("majority rule", line) if math.isfinite(line) else None
    undefined = {name: sorted({run.metric(name)["undefined"] for run in study.runs if run.metrics})
                 for name in METRICS}
    alt = "Macro-F1 on the test split with intervals. " + "; ".join(
        f"{name}: {value:.3f} ({lo:.3f} to {hi:.3f})" for name, _, value, lo, hi in rows)
    return {
        "names": METRICS, "groups": groups, "majority": majority,
        "majority_class": first and first.metrics.get("conventions", {}).get("majority_class"),
        "level": first and first.metrics.get("conventions", {}).get("level"),
        "undefined": {METRICS[name]:
                      " to ".join(dict.fromkeys(f"{n:g}" for n in (counts[0], counts[-1])))
                      for name, counts in undefined.items() if any(counts)},
        "caveats": caveats(study),
        "forests": {shape: figures.forest(rows, reference, shape == "narrow", alt=alt)
                    for shape in ("wide", "narrow")} if rows else None,
    }


def performance_row(run):
    history, best = run.history or [], run.best
    return {"run": run, "metrics": {name: run.metric(name) for name in METRICS},
            "seconds": sum(row["seconds"] for row in history) if history else None,
            "epochs": len(history), "best": None if best is None else int(history[best]["epoch"])}


def caveats(study):
    """(kind, ...) for each reason why the table says nothing about distillation."""
    score = {model: mean([run.metric("macro_f1")["value"] for run in group if run.metrics])
             for model, group in study.models.items()}
    kinds = {model: group[0].kind for model, group in study.models.items()}
    teachers, alone, students = ([m for m in kinds if kinds[m] == kind]
                                 for kind in ("teacher", "alone", "student"))
    found = [("weak_teacher", teacher, score[teacher], student, score[student])
             for teacher in teachers for student in alone if score[teacher] <= score[student]]
    architecture = {model: merged([group[0].told("arch") or group[0].told("student")])
                    for model, group in study.models.items()}
    known = {merged([None]), *(architecture[model] for model in alone)}
    for model in students:
        name = architecture[model]
        if name not in known:
            known.add(name)
            config = command_path(study.models[model][0].path / "config.yaml")
            found.append(("no_control", name, f"python distill.py --config {config} --alpha 1 --beta 0 "
                                              f"--name {command_path(name.replace(':', '_'))}_alone"))
    return found


def per_class(study):
    if not study.firsts:
        return None
    names = [str(name) for name in study.firsts[0].test["class_names"]]
    labels = study.firsts[0].test["labels"]
    return {"runs": study.firsts,
            "rows": [{"name": name, "support": int(np.sum(labels == i)),
                      "metrics": [run.metric(f"f1/{name}") for run in study.firsts]}
                     for i, name in enumerate(names)]}


def confusion(study):
    def alt(run):
        return f"Confusion matrix of {run.model}, {seed_name(run)}: rows true, columns predicted."
    return [{"run": run, "figure": figures.confusion(run.metrics["confusion"], run.test["class_names"],
                                                     alt=alt(run))}
            for run in study.firsts if run.metrics.get("confusion")] or None


def training(study):
    trained = [run for run in study.runs if run.history]
    if not trained:
        return None
    scores = [row["val_macro_f1"] for run in trained for row in run.history]
    top = min(1, math.ceil(10 * max([s for s in scores if math.isfinite(s)], default=1) + .5) / 10)
    last = max(row["epoch"] for run in trained for row in run.history)
    shown = []
    for model, group in study.models.items():
        lines = [(seed_name(run), *([row[key] for row in run.history]
                                    for key in ("epoch", "loss", "val_macro_f1")), run.best)
                 for run in group if run.history]
        if lines:
            alt = f"Training of {model}: validation macro-F1 and training loss by epoch. " + "; ".join(
                f"{name}: best {scores[best]:.3f} at epoch {epochs[best]:g}"
                for name, epochs, _, scores, best in lines if best is not None)
            shown.append({"model": model, "kind": group[0].kind,
                          "figure": figures.curves(lines, group[0].kind, top, last, alt=alt)})
    return shown


def samples(study):
    held = study.first("samples")
    if not held:
        return None
    models = [group[0] for group in study.models.values()]
    answers = [dict(zip(map(str, test["ids"]), zip(test["labels"], test["logits"].argmax(axis=1))))
               for test in (run.test for run in models)]
    shown = []
    for name, image in zip(map(str, held["ids"]), held["images"]):
        said = []
        for run, answer in zip(models, answers):
            if name in answer:
                true, predicted = (str(run.test["class_names"][k]) for k in answer[name])
                said.append({"run": run, "true": true, "predicted": predicted,
                             "right": true == predicted})
        if said:
            shown.append({"id": name, "true": said[0]["true"], "said": said,
                          "image": figures.thumbnail(image)})
    return {"images": shown, "longest": max(len(name) for name in study.runs[0].test["class_names"]),
            "several": any(len(group) > 1 for group in study.models.values())}


def methods(study):
    # Where a run lies and what is said elsewhere on the page are no options that matter here.
    hidden = {"role", "formula", "seeds", "name", "study", "out", "student"}
    of_model = ["arch", "parameters"]
    keys = [key for key in dict.fromkeys([*of_model, *(key for run in study.runs for key in run.config)])
            if key not in hidden]
    values = {key: [merged(f"{run.told(key):,}" if type(run.told(key)) is int and key in of_model
                           else run.told(key) for run in group) for group in study.models.values()]
              for key in keys if any(run.told(key) is not None for run in study.runs)
              or key not in of_model}
    environments = [flat(run.environment) for run in study.runs if run.environment]
    started = sorted(str(e.pop("started")) for e in environments if e.get("started"))
    facts = dict.fromkeys(key for environment in environments for key in environment
                          if key not in {*hidden, *of_model})
    conventions = {}
    for run in study.runs:
        if run.metrics and run.metrics.get("conventions"):
            key = tuple((key, merged([value])) for key, value in run.metrics["conventions"].items())
            conventions.setdefault(key, []).append(run)
    root = command_path(Path(*study.runs[0].path.parts[:-2]))
    return {
        "models": list(study.models),
        "differing": {key: row for key, row in values.items() if len(set(row)) > 1},
        "common": {key: row[0] for key, row in values.items() if len(set(row)) == 1},
        "formulas": {model: merged(run.told("formula") for run in group)
                     for model, group in study.models.items() if group[0].told("formula")},
        "environment": {key: merged(environment.get(key) for environment in environments)
                        for key in facts},
        "started": started,
        "conventions": [(dict(key), group) for key, group in conventions.items()],
        "commands": [f"python {'train_teacher.py' if run.kind == 'teacher' else 'distill.py'} --config "
                     f"{command_path(run.path / 'config.yaml')}" for run in study.runs if run.config]
        + [f"python evaluate.py {root}", f"python report.py {root}"],
    }


SECTIONS = {"findings": findings, "summary": summary, "performance": performance, "per_class": per_class,
            "confusion": confusion, "training": training, "samples": samples, "methods": methods}


# ---- words and numbers


def mean(values):
    return sum(values) / len(values) if values else math.nan


def seed_name(run):
    return run.seed.replace("seed_", "seed ")


def flat(mapping):
    """A nested mapping as one; the class list is not a property of the machine."""
    result = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            result |= {f"{key} {inner}": item for inner, item in value.items() if inner != "classes"}
        else:
            result[key] = value
    return result


def merged(values):
    """The different values as one text."""
    def text(value):
        if value in (None, "", [], {}):
            return "–"
        return ", ".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)
    return "; ".join(dict.fromkeys(map(text, values)))


def command_path(path):
    return shlex.quote(Path(path).as_posix())


def duration(seconds):
    """Seconds as a person says them: 48 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def render(study):
    """The page as text. Raises UserError without jinja2 or matplotlib."""
    jinja2 = errors.need("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(figures.__file__).parent / "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(duration=duration, seed_name=seed_name, finite=math.isfinite)
    page = environment.get_template("report.html")
    return page.render(study=study, light=figures.LIGHT, dark=figures.DARK,
                       **{name: make(study) for name, make in SECTIONS.items()})


def main(argv=None):
    parser = errors.Parser(prog="report.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUNS", help="a study's folder, e.g. runs/lesions_48px")
    parser.add_argument("--out", metavar="DIR", help="where report.html goes (default: RUNS)")
    args = parser.parse_args(argv)
    study = read_study(args.runs)
    path = Path(args.out or args.runs) / "report.html"
    runs.write_text(path, render(study))
    for folder, what, remedy in study.problems:
        print(f"{folder}: {what}" + (f" ({remedy})" if remedy else ""))
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    errors.run(main)
