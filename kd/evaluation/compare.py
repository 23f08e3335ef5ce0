"""Models against each other on one test set: the reference report's teacher, student and delta, with intervals.

Replicates are the same for all models, so differences are paired. A model may have several seeds: its
figures are means over them, and intervals and p-values carry the spread of seeds as well.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import bootstrap, calibration, metrics, paired, predictions, runs
from kd.errors import UserError
from kd.evaluation import protocol
from kd.files import read_json, read_yaml

COLUMNS = ("reference", "model", "reference_seeds", "model_seeds", "metric",
           "reference_value", "reference_lo", "reference_hi", "model_value", "model_lo", "model_hi",
           "difference", "lo", "hi", "p", "p_corrected", "undefined",
           "retention", "retention_lo", "retention_hi", "relative_gap")


@dataclass
class Model:
    """Seeds of one model: {seed: (val or None, test)}; kind is teacher, alone, student, or '' if not known.
    network: of network() below."""

    name: str
    folder: Path
    kind: str
    network: str
    seeds: dict
    values: dict = None   # {seed: {NAME: [1 + B]}}
    answers: dict = None  # {seed: [n] predicted classes}, in the reference's order of images


def models(paths, groups=None):
    """Models of folders and predictions files, in the order given.

    A folder that holds several models gives its teachers first, then untaught students, then the rest.
    """
    found = {}
    for path in map(Path, paths):
        if path.suffix == ".npz":
            found.setdefault(path, Model(str(path), None, "", "", {"": predictions.of_files(path, groups=groups)}))
            continue
        below = [one_model(folder, seeds) for folder, seeds in by_folder(runs.find(path)).items()]
        below.sort(key=lambda model: (("teacher", "alone").index(model.kind) if model.kind in ("teacher", "alone") else 2,
                                      model.name))
        for model in below:
            held = found.setdefault(model.folder.resolve(), model)
            held.seeds.update(model.seeds)
    found = list(found.values())
    if len(found) < 2:
        raise UserError(f"--compare needs two models, and there is {found[0].name} alone",
                        "Give two runs, models or predictions files, or a folder above several.")
    if len({model.name for model in found}) < len(found):  # of several studies
        for model in found:
            model.name = "/".join(model.folder.resolve().parts[-2:]) if model.folder else model.name
    return found


def by_folder(seeds):
    """{model's folder: its seeds' folders}."""
    held = {}
    for seed in seeds:
        parent = seed.parent if seed.parent.name not in ("", "..") else seed.resolve().parent
        held.setdefault(parent, []).append(seed)
    return held


def network(told):
    """What a student and its untaught twin share: the architecture, with the weights that it began with where these are pretrained.
    '' if not known. told: what config.yaml, else environment.json says of a run."""
    begun = [str(told[key]) for key in ("weights", "init") if told.get(key) not in (None, "none")]
    return " from ".join([str(told["arch"]), *begun]) if told.get("arch") else ""


def one_model(folder, seeds):
    told = {}
    for name, read in (("environment.json", read_json), ("config.yaml", read_yaml)):
        if (seeds[0] / name).is_file():
            held = read(seeds[0] / name)
            told.update(held if isinstance(held, dict) else {})
    return Model(folder.name, folder, runs.kind(folder.name, told), network(told),
                 {seed.resolve().name: predictions.of_run(seed) for seed in seeds})


def study_of(models):
    """The study's folder where these are all models and seeds of one study, else None."""
    folders = {model.folder and model.folder.parent for model in models}
    if len(folders) > 1 or None in folders:
        return None
    study = folders.pop()
    return study if sum(len(model.seeds) for model in models) == len(runs.find(study)) else None


def compare(models, settings, answers_only=False):
    """{"conventions", "split", "models": {name: [seeds]}, "pairs": [pair]} of Models on one test set.

    The first model is the reference of all others; a student's untaught twin (the same network(),
    trained without a teacher) is its reference too. A pair is {"reference", "model", "rows" as
    comparison.compare() gives them with intervals of both models and p_corrected, "agreement": {NAME: METRIC},
    "mcnemar"}. p-values are corrected by Holm over the pairs, for each metric apart. answers_only: of the metrics
    that need no probabilities, which is much faster.
    """
    first = next(iter(models[0].seeds.values()))[1]
    for model in models:
        for seed, (_, test) in model.seeds.items():
            reason = predictions.difference_between(first, test)
            if reason:
                raise UserError(f"{'/'.join(filter(None, (model.name, seed)))} cannot be compared with "
                                f"{models[0].name}: {reason}", "Models are compared on the images of one test set.")
    if first.groups is None:  # one file may know them, the others not
        first.groups = next((held.groups[predictions.matching_order(first, held)] for model in models
                             for _, held in model.seeds.values() if held.groups is not None), None)
    index, weights = protocol.resampling(first, settings)
    for model in models:
        measure(model, first, index, weights, settings, answers_only)
    pairs = [(models[0], model) for model in models[1:]]
    pairs += [(twin, model) for model in models[1:] for twin in models[1:]
              if model.kind == "student" and twin.kind == "alone" and twin.network and twin.network == model.network]
    images = weights[:, index].astype(np.float32)
    pairs = [pair(reference, model, first, images) for reference, model in pairs]
    for rows in zip(*(one["rows"] for one in pairs)):
        for row, p in zip(rows, paired.holm([row["p"] for row in rows])):
            row["p_corrected"] = float(p)
    for one, p in zip(pairs, paired.holm([one["mcnemar"]["p"] for one in pairs])):
        one["mcnemar"]["p_corrected"] = float(p)
    return {"conventions": protocol.conventions(first, None, settings), "class_names": first.class_names,
            "split": {"test": first.size()}, "models": {model.name: list(model.seeds) for model in models}, "pairs": pairs}


def measure(model, first, index, weights, settings, answers_only=False):
    """Fill in the values and answers of every seed of a Model, its images in the order of `first`."""
    model.values, model.answers = {}, {}
    for seed, (val, test) in model.seeds.items():
        order = predictions.matching_order(first, test)
        probabilities, calibrated = test.probabilities[order], None
        model.answers[seed] = probabilities.argmax(1)
        if answers_only:
            model.values[seed] = bootstrap.replicate_answers(first.labels, model.answers[seed], index, weights, first.class_names)
            continue
        if val is not None:
            fit = calibration.fit_temperature(val.scores, val.labels)
            calibrated = metrics.softmax(test.scores[order] / fit.value) if fit.ok else None
        model.values[seed] = bootstrap.replicate(first.labels, probabilities, index, weights, first.class_names,
                                                 calibrated, settings.bins)


def pair(reference, model, first, images):
    """How `model` differs from `reference`; see compare()."""
    matched = list(reference.seeds) == list(model.seeds)
    names = [name for name in reference.values[next(iter(reference.seeds))]
             if all(name in values for side in (reference, model) for values in side.values.values())]
    theirs, ours = ({name: np.array([values[name] for values in side.values.values()]) for name in names}
                    for side in (reference, model))
    rows = paired.compare({name: theirs[name].mean(0) for name in names},
                              {name: ours[name].mean(0) + seed_noise(theirs[name], ours[name], matched) for name in names})
    for row in rows:
        for side, values in (("reference", theirs), ("model", ours)):
            bounds = own_interval(row["metric"], values[row["metric"]])
            row.update({f"{side}_{bound}": bounds[bound] for bound in ("lo", "hi")})
        limit = protocol.upper_bound(row["metric"])  # of two seeds t is wide
        row.update({bound: float(np.clip(row[bound], -limit, limit)) for bound in ("lo", "hi")})
        row.update({bound: max(row[bound], 0.0) for bound in ("retention_lo", "retention_hi")})
        row["relative_gap"] = 1 - row["retention"]
    couples = list((zip if matched else itertools.product)(reference.answers.values(), model.answers.values()))
    shares = [paired.agreement(first.labels, a, b, images) for a, b in couples]
    tests = [paired.mcnemar(a == first.labels, b == first.labels) for a, b in couples]
    return {"reference": reference.name, "model": model.name,
            "seeds": {"reference": len(reference.seeds), "model": len(model.seeds)}, "rows": rows,
            "agreement": bootstrap.intervals({name: np.mean([share[name] for share in shares], 0) for name in shares[0]}),
            "mcnemar": {"reference_only": float(np.mean([test["reference_only"] for test in tests])),
                        "model_only": float(np.mean([test["model_only"] for test in tests])),
                        "p": combined([test["p"] for test in tests])}}


def table(compared):
    """Rows of comparison.csv, of what compare() gives.

    Of agreement and of the three kinds of disagreement, shares of the images stand under model_value; of
    McNemar's test, the numbers of images that only the one model has right.
    """
    rows = []
    for one in compared["pairs"]:
        head = {"reference": one["reference"], "model": one["model"], "reference_seeds": one["seeds"]["reference"],
                "model_seeds": one["seeds"]["model"]}
        rows += [{**head, **row} for row in one["rows"]]
        rows += [{**head, "metric": name, "model_value": share["value"], "model_lo": share["lo"], "model_hi": share["hi"],
                  "undefined": share["undefined"]} for name, share in one["agreement"].items()]
        rows.append({**head, "metric": "mcnemar", "reference_value": one["mcnemar"]["reference_only"],
                     "model_value": one["mcnemar"]["model_only"], "p": one["mcnemar"]["p"],
                     "p_corrected": one["mcnemar"]["p_corrected"]})
    return [{key: cell(row.get(key, "")) for key in COLUMNS} for row in rows]


def cell(value):
    """A number to six digits; what is undefined is an empty cell."""
    if not isinstance(value, float):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def combined(p):
    """One p-value of several tests of one hypothesis on the same images: twice their median, which holds
    however they depend on each other (Rüschendorf 1982); a single one is itself."""
    return float(p[0]) if len(p) == 1 else min(1.0, 2 * float(np.median(p)))


def own_interval(name, values):
    """{"lo", "hi"} of a model's own figure, values [k, 1 + B]."""
    if len(values) == 1:
        return bootstrap.interval(values[0], corrected=bootstrap.biased(name))
    return protocol.over_seeds_of(name, values)


def seed_noise(reference, model, matched):
    """[1 + B] what other seeds would have added to a difference of means, 0 for the sample itself.

    reference [k, 1 + B], model [m, 1 + B] values; matched: row by row of the same seed. Matched seeds give
    k differences and so t with k - 1 degrees of freedom times their standard error; others, the same of each
    model, drawn apart. A single seed tells nothing about seeds and adds nothing.
    """
    own = model[:, 0] - reference[:, 0] if matched else None
    noise = np.zeros(model.shape[1])
    for number, values in enumerate([own] if matched else [reference[:, 0], model[:, 0]]):
        if len(values) > 1:
            noise[1:] += bootstrap.student_t(len(values) - 1, len(noise) - 1, number) * values.std(ddof=1) / np.sqrt(len(values))
    return noise
