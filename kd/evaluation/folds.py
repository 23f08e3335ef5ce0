"""Cross-validation: the test predictions of all folds of a model as those of one run, in which each image is once.

A study's folder `folds` has a run for each model, fold and seed (--fold K/N). Their test parts are disjoint and
together the whole set, so that `<study>/<model>/seed_<n>/predictions/test.npz` has an answer to every image, by a
network that was trained and selected without it.

A confidence of .9 means something else in each of these networks. The logits of a fold are therefore divided by the
temperature of its own validation part (Guo et al. 2017, 1706.04599), which changes no answer: else areas under curves
would compare images across scales, and a network that is too sure would make up for one that is too unsure. How far
each network is from calibrated, and what thresholds promise, are questions about the folds.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from kd import calibration, runs
from kd.errors import UserError, listing
from kd.evaluation import protocol
from kd.files import read_csv, read_json, read_npz, read_yaml, write_csv, write_json, write_npz, write_yaml
from kd.runs import RECORD

ARRAYS = ("ids", "labels", "logits", "groups", "class_names")
# options in which folds may differ: which fold it is, and what changes no network
OWN = ("fold", "name", "teacher", "workers", "device", "cache", "root", "out")


def pool(path):
    """Write the pooled runs of the studies at, above or below `path`, those that are not there or not up to date.

    Returns [(folder of a pooled run, why it is not there)]: a fold is missing. UserError where folds do not fit
    together.
    """
    path, lacking = Path(path), []
    if any(map(_is_of_folds, (path.resolve(), *path.resolve().parents[:2]))):
        return []
    places = [folder / runs.FOLDS for folder in (path, path.parent, path.parent.parent)]
    for place in dict.fromkeys([*filter(_is_of_folds, places), *sorted(runs.below(path, f"**/{runs.FOLDS}"))]):
        found = _found(place)
        whole = [(model, seed) for model, count, seed in found if len(found[model, count, seed]) == count]
        for model, seed in whole:
            if whole.count((model, seed)) > 1:
                raise UserError(f"{place} has folds of {model} of several numbers of folds",
                                "Move those of one number away, or train them under another --name.")
        for (model, count, seed), folds in sorted(found.items()):
            target = place.parent / model / seed
            missing = [k for k in range(1, count + 1) if k not in folds]
            if not missing:
                _write(target, [folds[k] for k in range(1, count + 1)])
            elif (model, seed) not in whole:
                lacking.append((target, f"of its {count} folds, {listing(missing, 10)} "
                                        f"{'is' if len(missing) == 1 else 'are'} not trained"))
                if (target / RECORD).exists():
                    (target / runs.TEST).unlink(missing_ok=True)  # the answers of folds that are no longer there
    return lacking


def notes(paths):
    """Pool below `paths`; a line for each model that could not be pooled."""
    return [f"{'/'.join(folder.parts[-2:])} is not pooled: {why}" for path in paths for folder, why in pool(path)]


def _is_of_folds(folder):
    """Whether a folder is that of a study's folds."""
    return folder.name == runs.FOLDS and folder.is_dir() and bool(_found(folder))


def _found(folder):
    """{(model, N, seed): {K: run}} of the finished runs in a folder of folds."""
    found = {}
    for run in sorted(folder.glob("*/seed_*")):
        model, number, count = runs.parse_fold(run.parent.name)
        if number and runs.finished(run):
            found.setdefault((model, count, run.name), {})[number] = run
    return found


def _write(target, folds):
    """Write the pooled run of `folds`, run folders in their order, unless it is there as it would be written."""
    if (target / runs.TEST).exists() and not (target / RECORD).exists():
        raise UserError(f"{target} is a run of its own, and the place of the pooled folds of {target.parent.name}",
                        "Train the folds under another --name.")
    parts = [read_npz(run / runs.TEST, ARRAYS) for run in folds]
    validation = [read_npz(run / runs.TEST.with_name("val.npz"), ARRAYS) for run in folds]
    configs = [read_yaml(run / "config.yaml") for run in folds]
    environments = [read_json(run / "environment.json") for run in folds]
    splits = [read_csv(run / "split.csv") if (run / "split.csv").exists() else [] for run in folds]
    name = target.parent.name
    _check_options(name, configs, environments)
    _check_images(folds, parts, validation, splits)

    temperatures = [_temperature(part) for part in validation]
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in ("ids", "labels", "groups")}
    arrays["logits"] = np.concatenate([part["logits"] / value for part, value in zip(parts, temperatures)])
    arrays["class_names"] = parts[0]["class_names"]
    arrays["fold"] = np.repeat(np.arange(1, len(parts) + 1), [len(part["ids"]) for part in parts])
    config = {**configs[0], "fold": None, "name": name, "teacher": _pooled_teacher(configs[0], environments[0])}
    shared = {key: value for key, value in environments[0].items()
              if all(other.get(key) == value for other in environments)}
    # the split, and how many images have labels, are those of a fold
    data = {key: value for key, value in environments[0]["data"].items() if key not in ("split", "labelled")}
    environment = {**shared, "data": data, "cross_validation": len(folds)}
    record = {"folds": [{"run": run.relative_to(target.parents[1]).as_posix(), "images": len(part["ids"]),
                         "split": of_fold["data"]["split"], "temperature": temperature}
                        for run, part, of_fold, temperature in zip(folds, parts, environments, temperatures)]}
    if _is_there(target, arrays, config, environment, record):
        return
    write_json(target / RECORD, record)  # first: it says whose the folder is
    write_yaml(target / "config.yaml", config)
    if all(splits):
        write_csv(target / "split.csv", [{**row, "split": "test"} for row in splits[0]])
    write_json(target / "environment.json", environment)
    write_npz(target / runs.TEST, **arrays)


def _is_there(target, arrays, config, environment, record):
    """Whether the pooled run has this content already."""
    files = (target / RECORD, target / "config.yaml", target / "environment.json", target / runs.TEST)
    if not all(file.exists() for file in files):
        return False
    old = read_npz(target / runs.TEST, tuple(arrays))
    return ((read_json(files[0]), read_yaml(files[1]), read_json(files[2])) == (record, config, environment)
            and all(np.array_equal(old[key], array) for key, array in arrays.items()))


def _temperature(part):
    """The temperature of the arrays of a validation part; 1 where none can be fitted."""
    fit = calibration.fit_temperature(part["logits"].astype(np.float64), part["labels"])
    return round(fit.value, 6) if fit.ok else 1.0


# ---- what thresholds keep

def operating_points(run, settings):
    """Operating points of a pooled Run, [] where a fold is missing: each fold's threshold, on its own test images.

    As in metrics.json, with `thresholds`, one a fold, in the place of `threshold`; `promised` of a sensitivity is the
    mean over the positives. Scores are those of the networks, without a temperature, as thresholds take them.
    """
    pairs = [fold.predictions() for fold in run.folds]
    if not pairs or np.concatenate([test.ids for _, test in pairs]).tolist() != run.test.ids.tolist():
        return []
    whole = replace(run.test, logits=None, probabilities=np.concatenate([test.probabilities for _, test in pairs]))
    kinds = ("sensitivity", "abstention")
    chosen = [[point for point in protocol.choose(val, settings).points if point["kind"] in kinds] for val, _ in pairs]
    points = []
    for of_folds in zip(*chosen):
        thresholds = np.array([point["threshold"] for point in of_folds], dtype=np.float64)
        k = whole.class_names.index(of_folds[0]["class"]) if of_folds[0]["class"] else None
        weights = np.array([len(test.labels) if k is None else (test.labels == k).sum() for _, test in pairs])
        promised = float(weights @ [point["promised"] for point in of_folds] / max(weights.sum(), 1))
        points.append({**of_folds[0], "threshold": thresholds[whole.fold - 1], "promised": promised,
                       "thresholds": thresholds.tolist()})
    tested = protocol.test_points(points, whole, protocol.resampling(whole, settings))
    return [{**{key: value for key, value in point.items() if key != "val"}, "threshold": None} for point in tested]


# ---- teachers


def _teachers(config, environment):
    """The paths of the teachers that config.yaml of a student names; [] for a teacher, which has none."""
    teachers = config.get("teacher") if environment.get("role") != "teacher" else None
    return [Path(teacher) for teacher in (teachers if isinstance(teachers, list) else [teachers])
            if isinstance(teacher, str)]


def _pooled(path):
    """The pooled run of a teacher STUDY/folds/MODEL_foldKofN/seed_0: STUDY/MODEL/seed_0; any other as it is."""
    model = runs.without_fold(path.parent.name)
    return path.parents[2] / model / path.name if model != path.parent.name and len(path.parts) > 3 else path


def _pooled_teacher(config, environment):
    """The option `teacher` of the pooled run."""
    names = [_pooled(path).as_posix() for path in _teachers(config, environment)]
    teacher = config.get("teacher")
    return teacher if not names else names if isinstance(teacher, list) else names[0]


# ---- what must hold


def _check_options(name, configs, environments):
    """UserError unless all folds have the same options, networks and data, and each the teacher of its own fold."""
    first, data = configs[0], environments[0].get("data", {})
    differing = sorted({key for one in configs for key in {**first, **one}
                        if key not in OWN and one.get(key) != first.get(key)})
    for config, environment in zip(configs, environments):
        differing += [key for key in ("arch", "input", "role") if environment.get(key) != environments[0].get(key)]
        differing += ["data"] if environment.get("data", {}).get("fingerprint") != data.get("fingerprint") else []
        ours, theirs = ([runs.in_tree(_pooled(path)) for path in _teachers(*pair)]
                        for pair in ((config, environment), (first, environments[0])))
        differing += ["teacher"] if ours != theirs else []
        for path in _teachers(config, environment):
            _, number, count = runs.parse_fold(path.parent.name)
            if number and f"{number}/{count}" != config.get("fold"):
                raise UserError(f"the fold {config.get('fold')} of {name} has the teacher of the fold {number}/{count}",
                                "That has seen its test images: train this fold again, with the teacher of its own.")
    if differing:
        raise UserError(f"the folds of {name} differ in {listing(dict.fromkeys(differing))}",
                        "Train them all with the same options, on the same data.")


def _check_images(folds, parts, validation, splits):
    """UserError unless classes agree, no image or group is in two test parts, and none of a test part was trained on.

    splits: rows of the folds' split.csv; [] where there is none, and then validation alone is looked at.
    """
    name = folds[0].parent.name
    for part in parts:
        if not np.array_equal(part["class_names"], parts[0]["class_names"]):
            raise UserError(f"the folds of {name} have different classes")
    for what in ("ids", "groups"):
        counts = Counter(value for part in parts for value in set(part[what].tolist()) - {""})
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            raise UserError(f"{len(twice)} {what} are in the test parts of several folds of {name}: "
                            f"{listing(twice)}", "All folds need the same data and seed of the split.")
    for run, part, of_val, split in zip(folds, parts, validation, splits):
        rows = [row for row in split if row["split"] != "test"]
        for what, column in (("ids", "id"), ("groups", "group")):
            used = {row[column] for row in rows} | set(of_val[what].tolist())
            seen = set(part[what].tolist()) & used - {""}
            if seen:
                raise UserError(f"{run}: {len(seen)} {what} of its test part are in its training or validation part: "
                                f"{listing(sorted(seen))}", "Train this fold again.")
    tested = {value for part in parts for value in part["ids"].tolist()}
    untested = [row["id"] for row in splits[0] if row["id"] not in tested] if splits[0] else []
    if untested:
        raise UserError(f"{len(untested)} images are in the test part of no fold of {name}: {listing(untested)}",
                        "All folds need the same data and seed of the split.")
