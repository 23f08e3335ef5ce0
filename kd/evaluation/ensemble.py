"""The mean answer of several networks to the images of one test set, as a run of its own.

    evaluate.py runs/S/teacher_a/seed_0 runs/S/teacher_b/seed_0 --ensemble teachers

writes runs/S/teachers/seed_0. Its probabilities are the mean of the members', as `distill.py --teacher A B` takes them,
and its logits are their logarithms. Members may be runs that join the folds of a cross-validation.
"""

import shutil

import numpy as np

from kd import runs
from kd.errors import UserError
from kd.files import read_json, write_json, write_npz, write_yaml
from kd.predictions import difference_between, matching_order
from kd.run_folder import Run
from kd.text import command


def write(paths, name):
    """Write the run of an ensemble into the study of its first member. Returns its folder.

    paths: folders, one finished run at or below each. UserError for fewer than two, for members with other test images,
    and where the place has another run.
    """
    members = [Run(_only_run(path)) for path in paths]
    if len({member.folder.resolve() for member in members}) < max(2, len(members)):
        raise UserError("--ensemble takes the mean of several runs", "Name two or more, each once.")
    first = members[0]
    first.require("split")
    folder = runs.study(first.folder) / runs.safe(name) / first.seed
    names = [member.folder.as_posix() for member in members]
    if folder.exists() and not (is_one(folder) and folder not in [member.folder for member in members]):
        raise UserError(f"{folder} is a run of its own", "Give --ensemble another name.")
    parts = {split: [getattr(member, split) for member in members] for split in ("test", "val")}
    joined = {}
    for split, predictions in parts.items():
        if split == "val" and None in predictions:
            continue  # of runs that join folds, which have no validation split in common
        for member, other in zip(names, predictions):
            difference = difference_between(predictions[0], other)
            if difference:
                raise UserError(f"{names[0]} and {member} answer to different {split} images: {difference}",
                                "Members of an ensemble are trained on one split.")
        joined[split] = _mean(predictions)
    environment = {key: value for key, value in first.environment.items() if key not in ("parameters", "formula")}
    environment["arch"] = " + ".join(str(member.setting("arch")) for member in members)
    shutil.rmtree(folder, ignore_errors=True)  # an ensemble of other members may have had a validation split
    write_json(folder / runs.ENSEMBLE, {"members": names})  # first: it says whose the folder is
    write_yaml(folder / "config.yaml", {**first.options, "name": folder.parent.name})
    write_json(folder / "environment.json", environment)
    shutil.copyfile(first.folder / "split.csv", folder / "split.csv")
    for split in reversed(joined):  # test.npz comes last: it says that the run is finished
        write_npz(folder / "predictions" / f"{split}.npz", **joined[split])
    return folder


def _only_run(path):
    found = runs.find(path)
    if len(found) > 1:
        raise UserError(f"there are {len(found)} runs at or below {path}", f"Name one of them, such as {found[0]}")
    return found[0]


def is_one(folder):
    """Whether a run's folder has the answers of an ensemble."""
    return (folder / runs.ENSEMBLE).is_file()


def check(run):
    """UserError for the Run of an ensemble whose members have other answers by now."""
    if not is_one(run.folder):
        return
    members = read_json(run.folder / runs.ENSEMBLE)["members"]
    parts = [Run(member).test for member in members if runs.finished(member)]
    if len(parts) == len(members) and not any(difference_between(run.test, part) for part in parts):
        if not np.allclose(_mean_probabilities(run.test, parts), run.test.probabilities, atol=1e-6):
            raise UserError(f"{run.folder}: its members have other answers by now",
                            command("evaluate.py", *members, "--ensemble", run.model))


def _mean(predictions):
    """The arrays of a predictions file: the logarithms of the mean probabilities, in the order of the first."""
    first = predictions[0]
    mean = _mean_probabilities(first, predictions)
    groups = np.full(len(first.labels), "") if first.groups is None else first.groups
    return {"ids": first.ids, "labels": first.labels, "groups": groups, "class_names": np.array(first.class_names),
            "logits": np.log(np.maximum(mean, np.finfo(np.float64).tiny)),
            **({} if first.fold is None else {"fold": first.fold})}


def _mean_probabilities(first, predictions):
    """[n, C] in the order of the images of Predictions `first`."""
    return np.mean([one.probabilities[matching_order(first, one)] for one in predictions], 0)
