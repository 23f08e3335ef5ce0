"""Models compared on one test set: differences, what is retained of the reference, agreement, with intervals.

Replicates are the same for all models, so that differences are paired. A model may have several seeds: its
figures are means over them, and intervals and p-values include the spread of seeds as well.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import bootstrap, calibration, metrics, paired, predictions, runs
from kd.errors import UserError
from kd.evaluation import protocol
from kd.run_folder import Run

COLUMNS = ("reference", "model", "reference_seeds", "model_seeds", "metric",
           "reference_value", "reference_lo", "reference_hi", "model_value", "model_lo", "model_hi",
           "difference", "lo", "hi", "p", "p_corrected", "undefined",
           "retention", "retention_lo", "retention_hi", "relative_gap")


@dataclass
class Model:
    """Seeds of one model: {seed: (val or None, test)}, both Predictions.

    kind: teacher, alone, student, or '' if not known. network: as Run.network has it, '' if not known.
    """

    name: str
    folder: Path
    kind: str
    network: str
    seeds: dict
    values: dict = None   # {seed: {NAME: [1 + B]}}
    answers: dict = None  # {seed: [n] predicted classes}, in the reference's order of images


# ---- what is compared


def models(paths, groups=None):
    """Models of folders and predictions files, in the order given.

    A folder that holds several models gives its teachers first, then students without a teacher, then the rest.
    groups: a CSV with columns id,group, for predictions files. Raises UserError where there are fewer than two models.
    """
    models = {}
    for path in map(Path, paths):
        if path.suffix == ".npz":
            seeds = {"": predictions.of_files(path, groups=groups)}
            models.setdefault(path, Model(str(path), None, "", "", seeds))
            continue
        below = [model_of(folder, runs_) for folder, runs_ in runs_by_model(runs.find(path)).items()]
        below.sort(key=lambda model: ({"teacher": 0, "alone": 1}.get(model.kind, 2), model.name))
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
    seeds = {run.seed: run.predictions() for run in runs_}
    return Model(folder.name, folder, runs_[0].kind, runs_[0].network, seeds)


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

    The first model is the reference of all others. A second reference of a student is its baseline: the same network
    trained without a teacher. A pair is {"reference", "model", "rows" as paired.compare() gives them with intervals of
    both models and p_corrected, "agreement": {NAME: METRIC}, "mcnemar"}. p-values are corrected by Holm over the pairs,
    for each metric apart. answers_only: only of metrics that need no probabilities, which is much faster.
    Raises UserError where two models were tested on different images.
    """
    first = common_test(models)
    index, weights = protocol.resampling(first, settings)
    for model in models:
        measure(model, first, index, weights, settings, answers_only)
    couples = [(models[0], model) for model in models[1:]]
    couples += [(baseline, model) for model in models[1:] for baseline in models[1:] if is_baseline(baseline, model)]
    images = weights[:, index].astype(np.float32)
    pairs = [pair(reference, model, first, images) for reference, model in couples]
    for rows in zip(*(pair["rows"] for pair in pairs)):
        for row, p in zip(rows, paired.holm([row["p"] for row in rows])):
            row["p_corrected"] = float(p)
    tests = [pair["mcnemar"] for pair in pairs]
    for test, p in zip(tests, paired.holm([test["p"] for test in tests])):
        test["p_corrected"] = float(p)
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


def measure(model, first, index, weights, settings, answers_only=False):
    """Fill in the values and answers of every seed of a Model, its images in the order of `first`."""
    model.values, model.answers = {}, {}
    names = first.class_names
    for seed, (val, test) in model.seeds.items():
        order = predictions.matching_order(first, test)
        probabilities, calibrated = test.probabilities[order], None
        model.answers[seed] = answers = probabilities.argmax(1)
        if answers_only:
            model.values[seed] = bootstrap.replicate_answers(first.labels, answers, index, weights, names)
            continue
        if val is not None:
            fit = calibration.fit_temperature(val.scores, val.labels)
            calibrated = metrics.softmax(test.scores[order] / fit.value) if fit.ok else None
        model.values[seed] = bootstrap.replicate(first.labels, probabilities, index, weights, names, calibrated,
                                                 settings.bins)


def pair(reference, model, first, images):
    """How `model` differs from `reference`; see compare(). images: weights [1 + B, n] of the images of `first`."""
    same_seeds = list(reference.seeds) == list(model.seeds)
    runs_ = [values for side in (reference, model) for values in side.values.values()]
    names = [name for name in runs_[0] if all(name in values for values in runs_)]
    of_reference, of_model = ({name: np.array([values[name] for values in side.values.values()]) for name in names}
                              for side in (reference, model))
    rows = paired.compare(
        {name: of_reference[name].mean(0) for name in names},
        {name: of_model[name].mean(0) + seed_noise(of_reference[name], of_model[name], same_seeds) for name in names})
    for row in rows:
        for side, values in (("reference", of_reference), ("model", of_model)):
            metric = model_interval(row["metric"], values[row["metric"]])
            row.update({f"{side}_{bound}": metric[bound] for bound in ("lo", "hi")})
        limit = protocol.upper_bound(row["metric"])  # of two seeds t is wide
        row.update({bound: float(np.clip(row[bound], -limit, limit)) for bound in ("lo", "hi")})
        row.update({bound: max(row[bound], 0.0) for bound in ("retention_lo", "retention_hi")})
        row["relative_gap"] = 1 - row["retention"]
    couple = zip if same_seeds else itertools.product
    answers = list(couple(reference.answers.values(), model.answers.values()))
    shares = [paired.agreement(first.labels, a, b, images) for a, b in answers]
    tests = [paired.mcnemar(a == first.labels, b == first.labels) for a, b in answers]
    agreement = bootstrap.intervals({name: np.mean([share[name] for share in shares], 0) for name in shares[0]})
    mcnemar = {name: float(np.mean([test[name] for test in tests])) for name in ("reference_only", "model_only")}
    return {"reference": reference.name, "model": model.name,
            "seeds": {"reference": len(reference.seeds), "model": len(model.seeds)}, "rows": rows,
            "agreement": agreement, "mcnemar": {**mcnemar, "p": combined([test["p"] for test in tests])}}


def combined(p):
    """One p-value of several tests of one hypothesis on the same images: twice their median, which holds
    however they depend on each other (Rüschendorf 1982); a single one is itself."""
    return float(p[0]) if len(p) == 1 else min(1.0, 2 * float(np.median(p)))


def model_interval(name, values):
    """{"lo", "hi"} of a model's metric: values [k, 1 + B] of its k seeds."""
    if len(values) == 1:
        return bootstrap.interval(values[0], corrected=bootstrap.biased(name))
    return protocol.over_seeds_of(name, values)


def seed_noise(reference, model, same_seeds):
    """[1 + B] what other seeds would have added to a difference of means, 0 for the sample itself.

    reference [k, 1 + B], model [m, 1 + B] values; same_seeds: row by row of the same seed. Of the same seeds k
    differences are known, and so t with k - 1 degrees of freedom times their standard error; of others, the same of
    each model, drawn apart. A single seed tells nothing about seeds and adds nothing.
    """
    noise = np.zeros(model.shape[1])
    spreads = [model[:, 0] - reference[:, 0]] if same_seeds else [reference[:, 0], model[:, 0]]
    for stream, values in enumerate(spreads):
        if len(values) > 1:
            drawn = bootstrap.student_t(len(values) - 1, len(noise) - 1, stream)
            noise[1:] += drawn * values.std(ddof=1) / np.sqrt(len(values))
    return noise


# ---- comparison.csv


def table(compared):
    """Rows of comparison.csv, of what compare() gives.

    Of agreement and of the three kinds of disagreement, shares of the images stand under model_value; of
    McNemar's test, the numbers of images that only one of the two models has right.
    """
    rows = []
    for pair in compared["pairs"]:
        head = {"reference": pair["reference"], "model": pair["model"], "reference_seeds": pair["seeds"]["reference"],
                "model_seeds": pair["seeds"]["model"]}
        rows += [{**head, **row} for row in pair["rows"]]
        rows += [{**head, "metric": name, "model_value": share["value"], "model_lo": share["lo"],
                  "model_hi": share["hi"], "undefined": share["undefined"]}
                 for name, share in pair["agreement"].items()]
        test = pair["mcnemar"]
        rows.append({**head, "metric": "mcnemar", "reference_value": test["reference_only"],
                     "model_value": test["model_only"], "p": test["p"], "p_corrected": test["p_corrected"]})
    return [{key: cell(row.get(key, "")) for key in COLUMNS} for row in rows]


def cell(value):
    """A number to six digits; what is undefined is an empty cell."""
    if not isinstance(value, float):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"
