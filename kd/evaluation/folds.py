"""Cross-validation: the test predictions of all folds of a model as those of one run, in which each image is once.

A study's folder `folds` has a run for each model, fold and seed (--fold K/N). Their test parts are disjoint and
together the whole set, so that `<study>/<model>/seed_<n>/predictions/test.npz` has an answer to every image, by a
network that was trained and selected without it. Its logits are of several networks, which have no validation split in
common, and so no temperature and no operating point.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from kd import runs
from kd.errors import UserError, listing
from kd.files import read_csv, read_json, read_npz, read_yaml, write_csv, write_json, write_npz, write_yaml
from kd.run_folder import fingerprint
from kd.runs import RECORD


def pool(path):
    """Write the pooled runs of the studies at, above or below `path`. Returns notes on what is not complete.

    A model and seed of which a fold is missing is not pooled. UserError where folds do not fit together.
    """
    path, notes = Path(path), []
    places = [path / runs.FOLDS, path.parent / runs.FOLDS, path.parent.parent / runs.FOLDS]
    if runs.FOLDS not in path.resolve().parts:
        for folder in dict.fromkeys([*filter(Path.is_dir, places), *sorted(path.glob(f"**/{runs.FOLDS}"))]):
            for (model, count, seed), found in sorted(_found(folder).items()):
                missing = [k for k in range(1, count + 1) if k not in found]
                if missing:
                    notes.append(f"{model} {seed} is not pooled: of its {count} folds, {listing(missing, 10)} "
                                 f"{'is' if len(missing) == 1 else 'are'} not trained")
                else:
                    _write(folder.parent / model / seed, [found[k] for k in range(1, count + 1)])
    return notes


def _found(folder):
    """{(model, N, seed): {K: run}} of the finished runs in a folder of folds."""
    found = {}
    for run in sorted(folder.glob("*/seed_*")):
        model, number, count = runs.parse_fold(run.parent.name)
        if number and runs.finished(run):
            found.setdefault((model, count, run.name), {})[number] = run
    return found


def _write(target, folds):
    """Write the pooled run of `folds`, run folders in their order, unless it is there."""
    parts = [read_npz(run / runs.TEST, ("ids", "labels", "logits", "groups", "class_names")) for run in folds]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in ("ids", "labels", "logits", "groups")}
    record = {"folds": [{"run": run.relative_to(target.parents[1]).as_posix(), "images": len(part["ids"]),
                         "split": read_json(run / "environment.json")["data"]["split"]}
                        for run, part in zip(folds, parts)]}
    if (target / runs.TEST).exists():
        if not (target / RECORD).exists():
            raise UserError(f"{target} is a run of its own, and the place of the pooled folds of {target.parent.name}",
                            "Train the folds under another --name.")
        old = read_npz(target / runs.TEST, ("ids", "logits"))
        if all(np.array_equal(old[key], joined[key]) for key in ("ids", "logits")):
            return
    _check(folds, parts)
    config = read_yaml(folds[0] / "config.yaml")
    environment = read_json(folds[0] / "environment.json")
    teacher = config.get("teacher")
    write_yaml(target / "config.yaml", {
        **config, "fold": None, "name": target.parent.name,
        "teacher": _pooled_name(teacher, target) if isinstance(teacher, str) else teacher})
    rows = [row for run in folds for row in read_csv(run / "split.csv") if row["split"] == "test"]
    write_csv(target / "split.csv", rows)
    names = {name: k for k, name in enumerate(parts[0]["class_names"].tolist())}
    ids, groups = ([row[key] for row in rows] for key in ("id", "group"))
    groups = groups if any(groups) else ids
    data = {**environment["data"], "split": fingerprint(ids, groups, ["test"] * len(ids)), "fingerprint": fingerprint(
        ids, [names[row["label"]] for row in rows], [row["sha256"] for row in rows])}
    data.pop("labelled", None)  # how many images have labels differs between folds
    write_json(target / "environment.json", {**environment, "data": data, "cross_validation": len(folds)})
    write_json(target / RECORD, record)
    write_npz(target / runs.TEST, **joined, class_names=parts[0]["class_names"],
              fold=np.repeat(np.arange(1, len(parts) + 1), [len(part["ids"]) for part in parts]))


def _pooled_name(teacher, target):
    """The pooled run of the teacher that a fold names, `MODEL_fold1of5/seed_0`; another teacher as it is."""
    path = Path(teacher)
    model = runs.without_fold(path.parent.name)
    return (target.parents[1] / model / path.name).as_posix() if model != path.parent.name else teacher


def _check(folds, parts):
    """UserError unless all folds have the same classes and options, and no image or group is in two."""
    options = [read_yaml(run / "config.yaml") for run in folds]
    differing = sorted({key for one in options for key in {**options[0], **one}
                        if key not in ("fold", "name", "teacher", "workers", "device", "cache", "root", "out")
                        and one.get(key) != options[0].get(key)})
    if differing:
        raise UserError(f"the folds of {folds[0].parent.name} differ in {listing(differing)}",
                        "Train them all with the same options.")
    for part in parts:
        if not np.array_equal(part["class_names"], parts[0]["class_names"]):
            raise UserError(f"the folds of {folds[0].parent.name} have different classes")
    for what in ("ids", "groups"):
        counts = Counter(name for part in parts for name in set(part[what].tolist()) - {""})
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise UserError(f"{len(twice)} {what} are in the test parts of several folds of {folds[0].parent.name}: "
                            f"{listing(twice)}", "All folds need the same data and seed of the split.")
    for run, part in zip(folds, parts):
        rows = [row for row in read_csv(run / "split.csv") if row["split"] != "test"]
        for what, column in (("ids", "id"), ("groups", "group")):
            seen = set(part[what].tolist()) & {row[column] for row in rows} - {""}
            if seen:
                raise UserError(f"{run}: {len(seen)} {what} of its test part are in its training or validation part: "
                                f"{listing(sorted(seen))}", "Train this fold again.")
