"""Models compared on one test set: differences, what is retained of the reference, agreement, with intervals.

Replicates are the same for all models, so that differences are paired. A model may have several seeds: its
figures are means over them, and intervals and p-values include the spread of seeds as well.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import bootstrap, calibration, estimate, metrics, paired, prediction_files, predictions, runs, sweeps
from kd.errors import UserError
from kd.evaluation import ensemble, protocol
from kd.run_folder import Run

COLUMNS = ("reference", "model", "reference_seeds", "model_seeds", "metric",
           "reference_value", "reference_lo", "reference_hi", "model_value", "model_lo", "model_hi",
           "difference", "lo", "hi", "p", "p_corrected",
           "retention", "retention_lo", "retention_hi", "relative_gap", "withheld",
           "reference_tries", "model_tries")


@dataclass
class Model:
    """Seeds of one model: {seed: (val or None, test)}, both Predictions.

    kind: teacher, alone, student, or '' if not known. network: as Run.network has it, '' if not known. tries: of the
    sweep of which it is the best on validation, 1 without a sweep, None if not known. teacher: the folder of the model
    that taught it, None if there is none, or several.
    """

    name: str
    folder: Path
    kind: str
    network: str
    seeds: dict
    tries: int = None
    teacher: Path = None
    values: dict = None   # {seed: {NAME: Estimate}}
    answers: dict = None  # {seed: [n] predicted classes}, in the reference's order of images
    probabilities: dict = None  # {seed: [n, C]}, in the same order


# ---- what is compared


def models(paths, groups=None, **reading):
    """Models of folders and predictions files, in the order given.

    A folder that holds several models gives its teachers first, then students without a teacher, then the rest.
    groups, reading: of predictions files, as predictions.of_files() takes them. Raises UserError where there are fewer
    than two models.
    """
    models = {}
    for path in map(Path, paths):
        if prediction_files.is_file(path):
            seeds = {"": predictions.of_files(path, groups=groups, **reading)}
            models.setdefault(path, Model(str(path), None, "", "", seeds))
            continue
        below = [model_of(folder, runs_) for folder, runs_ in runs_by_model(runs.find(path)).items()]
        below.sort(key=lambda model: ({"teacher": 0, "alone": 1}.get(model.kind, 2), is_ensemble(model), model.name))
        for model in below:
            models.setdefault(model.folder.resolve(), model).seeds.update(model.seeds)
    models = list(models.values())
    if len(models) < 2:
        raise UserError(f"--compare needs two models, and there is {models[0].name} alone",
                        "Give two runs, models or predictions files, or a folder above several.")
    if len({model.name for model in models}) < len(models):  # of several studies
        for model in models:
            model.name = "/".join(model.folder.resolve().parts[-2:]) if model.folder else model.name
    return models


def runs_by_model(folders):
    """{model's folder: [Run, one a seed]} of runs' folders."""
    models = {}
    for folder in folders:
        parent = folder.parent if folder.parent.name not in ("", "..") else folder.resolve().parent
        models.setdefault(parent, []).append(Run(folder))
    return models


def model_of(folder, runs_):
    """The Model in `folder` whose seeds are these Runs. Raises UserError on faulty files and on leaks."""
    for run in runs_:
        ensemble.check(run)
    seeds = {run.seed: run.predictions() for run in runs_}
    sweep = sweeps.read(folder)
    return Model(folder.name, folder, runs_[0].kind, runs_[0].network, seeds, sweeps.count(sweep) if sweep else 1,
                 teacher_of(runs_[0]))


def teacher_of(run):
    """The folder of the model that taught the student of a Run; None without one, of several, or if it is not found."""
    return run.teachers[0].folder.resolve().parent if len(run.teachers) == 1 and run.teachers[0] else None


def is_ensemble(model):
    """Whether a Model is the mean of others, which it follows where there are several teachers."""
    return any(map(ensemble.is_one, model.folder.glob("seed_*")))


def study_of(models):
    """The study's folder where these are all models and seeds of one study, else None."""
    folders = {model.folder and model.folder.parent for model in models}
    if len(folders) > 1 or None in folders:
        return None
    study = folders.pop()
    return study if sum(len(model.seeds) for model in models) == len(runs.find(study)) else None


# ---- the comparison


def compare(models, settings, answers_only=False):
    """{"conventions", "split", "models": {name: [seeds]}, "pairs": [pair]} of Models on one test set.

    The first model is the reference of all others. Further references of a student are its baseline, the same network
    trained without a teacher, and its own teacher where that is another model than the first. A pair is {"reference",
    "model", "tries", "rows" as paired.compare() gives them with intervals of both models, with p_corrected,
    "agreement": {NAME: METRIC}, "fidelity": {NAME: METRIC} of a student to a teacher, else empty, "disagreements",
    "over_folds": as over_folds() has it, with p_corrected, empty where no folds are joined}.
    p-values are corrected by Holm over the pairs, which are one family for each metric; they are NaN where a model has
    a single seed. answers_only: only of metrics that need no probabilities, which is much faster. Raises UserError
    where two models were tested on different images.
    """
    first = common_test(models)
    draws = protocol.resampling(first, settings)
    for model in models:
        measure(model, first, draws, settings, answers_only)
    couples = [(models[0], model) for model in models[1:]]
    couples += [(baseline, model) for model in models[1:] for baseline in models[1:] if is_baseline(baseline, model)]
    couples += [(teacher, model) for model in models[1:] for teacher in models[1:]
                if model.teacher and teacher.folder and teacher.folder.resolve() == model.teacher]
    pairs = [pair(reference, model, first, draws, settings.replicates) for reference, model in couples]
    families = [*zip(*(pair["rows"] for pair in pairs)),
                *([pair["over_folds"][name] for pair in pairs] for name in pairs[0]["over_folds"])]
    for rows in families:
        for row, p in zip(rows, paired.holm([row["p"] for row in rows])):
            row["p_corrected"] = float(p)
    return {"conventions": protocol.conventions(first, None, settings), "class_names": first.class_names,
            "split": {"test": first.size()}, "models": {model.name: list(model.seeds) for model in models},
            "pairs": pairs}


def common_test(models):
    """The Predictions of the first model's first seed, with groups where any of the models knows them."""
    first = next(iter(models[0].seeds.values()))[1]
    for model in models:
        for seed, (_, test) in model.seeds.items():
            reason = predictions.difference_between(first, test)
            if reason:
                raise UserError(f"{'/'.join(filter(None, (model.name, seed)))} cannot be compared with "
                                f"{models[0].name}: {reason}", "Models are compared on the images of one test set.")
    if first.groups is None:
        tests = [test for model in models for _, test in model.seeds.values() if test.groups is not None]
        if tests:
            groups = tests[0].groups[predictions.matching_order(first, tests[0])]
            first = dataclasses.replace(first, groups=groups)
    return first


def is_baseline(baseline, model):
    """Whether `baseline` is the network of the student `model`, trained without a teacher."""
    kinds = model.kind, baseline.kind
    return kinds == ("student", "alone") and bool(model.network) and baseline.network == model.network


def measure(model, first, draws, settings, answers_only=False):
    """Fill in the values and answers of every seed of a Model, its images in the order of `first`."""
    model.values, model.answers, model.probabilities = {}, {}, {}
    names, rarest = first.class_names, protocol.rarest_class(first)
    for seed, (val, test) in model.seeds.items():
        order = predictions.matching_order(first, test)
        model.probabilities[seed], calibrated = test.probabilities[order], None
        probabilities = model.probabilities[seed]
        model.answers[seed] = answers = probabilities.argmax(1)
        if answers_only:
            model.values[seed] = bootstrap.replicate_answers(answers, draws, names, rarest)
            continue
        if val is not None:
            fit = calibration.fit_temperature(val.scores, val.labels)
            calibrated = metrics.softmax(test.scores[order] / fit.value) if fit.ok else None
        model.values[seed] = bootstrap.replicate(probabilities, draws, names, calibrated, settings.bins, rarest)


def pair(reference, model, first, draws, replicates=bootstrap.REPLICATES):
    """How `model` differs from `reference`; see compare()."""
    sides = reference.values, model.values
    names = [name for name in next(iter(reference.values.values()))
             if all(name in values for side in sides for values in side.values())]
    of_reference, of_model = ({name: over_seeds([values[name] for values in side.values()]) for name in names}
                              for side in sides)
    differences = {name: difference(name, *sides) for name in names}
    rows = paired.compare(of_reference, of_model, differences)
    has_trainings = min(map(len, sides)) > 1
    for row in rows:
        row["relative_gap"] = 1 - row["retention"]
        if not has_trainings:
            row["p"] = float("nan")  # two trainings differ by their seeds alone: it would say nothing of the method
    couples = couples_of(reference, model)
    shares = {couple: paired.agreement(first.labels, reference.answers[couple[0]], model.answers[couple[1]], draws)
              for couple in couples}
    fidelity = {}
    if reference.kind == "teacher" and model.kind in ("alone", "student"):
        fidelity = over_couples({couple: paired.fidelity(
            first.labels, reference.probabilities[couple[0]], model.probabilities[couple[1]], draws)
            for couple in couples})
    counts = [paired.disagreements(reference.answers[a] == first.labels, model.answers[b] == first.labels)
              for a, b in couples]
    return {"reference": reference.name, "model": model.name,
            "seeds": {"reference": len(reference.seeds), "model": len(model.seeds)}, "rows": rows,
            "tries": {"reference": reference.tries, "model": model.tries}, "agreement": over_couples(shares),
            "fidelity": fidelity, "over_folds": over_folds(reference, model, first, replicates),
            "disagreements": {name: float(np.mean([count[name] for count in counts])) for name in counts[0]}}


def over_folds(reference, model, first, replicates):
    """{NAME: METRIC with "p"} of the mean difference over the folds that are joined; {} where none are.

    In each fold both were trained anew, so this says something of the method, too, and not of these networks alone.
    """
    of_folds = {name: [] for name in protocol.MAJORITY} if first.folds else {}
    sizes = []
    for number in np.unique(first.fold) if of_folds else ():
        rows = first.fold == number
        sizes.append(int(rows.sum()))
        draws = bootstrap.draws(first.labels[rows], first.clusters[rows], len(first.class_names), replicates)
        sides = [[bootstrap.overall(answers[rows], draws) for answers in side.answers.values()]
                 for side in (reference, model)]
        for name, pairs in of_folds.items():
            of_reference, of_model = (estimate.Estimate.mean([seed[name] for seed in side]) for side in sides)
            pairs.append(of_model.minus(of_reference))
    pooled = {name: estimate.Estimate.pooled(pairs, sizes) for name, pairs in of_folds.items()}
    return {name: {**figure.metric(), "p": figure.p()} for name, figure in pooled.items()}


def couples_of(reference, model):
    """[(seed of the reference, seed of the model)]: equal seeds where both have the same, else each with each."""
    same_seeds = list(reference.seeds) == list(model.seeds)
    return list((zip if same_seeds else itertools.product)(reference.seeds, model.seeds))


def over_couples(estimates):
    """{NAME: METRIC} of the means over couples of seeds.

    estimates: {(seed of the reference, seed of the model): {NAME: Estimate}}, in the order of couples_of(). Where each
    seed is coupled with each, the figures vary over the seeds of either model.
    """
    sides = [list(dict.fromkeys(couple[side] for couple in estimates)) for side in (0, 1)]
    is_product = len(estimates) == len(sides[0]) * len(sides[1])
    means = {}
    for name in next(iter(estimates.values())):
        of_couples = {couple: of_couple[name] for couple, of_couple in estimates.items()}
        if is_product:  # of the seeds of one side, each the mean over those of the other
            by_reference, by_model = ([estimate.Estimate.mean([figure for couple, figure in of_couples.items()
                                                               if couple[side] == seed]) for seed in sides[side]]
                                      for side in (0, 1))
            spreads = over_seeds(by_reference).spreads
            means[name] = over_seeds(by_model)
            means[name] = dataclasses.replace(means[name], spreads=means[name].spreads + spreads)
        else:
            means[name] = over_seeds(list(of_couples.values()))
    return bootstrap.intervals(means)


def over_seeds(estimates):
    """The mean over the seeds of one model."""
    return type(estimates[0]).mean(estimates, trainings=True)


def difference(name, reference, model):
    """The Estimate of model - reference in the metric `name`; each {seed: {NAME: Estimate}}.

    Of the same seeds, the k differences of pairs vary less than k trainings of each, which are taken otherwise.
    """
    if list(reference) == list(model):
        return over_seeds([model[seed][name].minus(reference[seed][name]) for seed in model])
    of_reference, of_model = (over_seeds([values[name] for values in side.values()]) for side in (reference, model))
    return of_model.minus(of_reference)


# ---- comparison.csv


def table(compared):
    """Rows of comparison.csv, of what compare() gives.

    Of agreement, of the three kinds of disagreement and of fidelity, the figures stand under model_value; of `NAME over
    folds`, the mean difference over the folds stands under difference; of only_one_right, the numbers of images that
    only the reference and only the model has right stand under the value of each.
    """
    rows = []
    for pair in compared["pairs"]:
        head = {"reference": pair["reference"], "model": pair["model"], "reference_seeds": pair["seeds"]["reference"],
                "model_seeds": pair["seeds"]["model"],
                **{f"{side}_tries": tries for side, tries in pair["tries"].items() if tries}}
        rows += [{**head, **row} for row in pair["rows"]]
        rows += [{**head, "metric": name, "model_value": share["value"], "model_lo": share["lo"],
                  "model_hi": share["hi"], "withheld": share.get("withheld", "")}
                 for name, share in {**pair["agreement"], **pair["fidelity"]}.items()]
        rows += [{**head, "metric": f"{name} over folds", "difference": figure["value"],
                  **{key: figure[key] for key in ("lo", "hi", "p", "p_corrected")},
                  "withheld": figure.get("withheld", "")} for name, figure in pair["over_folds"].items()]
        counts = pair["disagreements"]
        rows.append({**head, "metric": "only_one_right", "reference_value": counts["reference_only"],
                     "model_value": counts["model_only"]})
    return [{key: cell(row.get(key, "")) for key in COLUMNS} for row in rows]


def cell(value):
    """A number to six digits; what is undefined is an empty cell."""
    if not isinstance(value, float):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"
