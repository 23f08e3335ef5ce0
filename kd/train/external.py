"""The logits of a finished run's best.pt on the images of an external data set."""

import dataclasses
from pathlib import Path

import numpy as np

from kd import perceptual_hash, runs
from kd.data import loader, splits
from kd.errors import UserError, listing
from kd.files import read_csv, read_npz, write_npz
from kd.train import loop, networks, setup
from kd.train.step import memory_format


def score(folder, options, registry):
    """Write predictions/NAME.npz into a run's folder and return its path; NAME is --name, else the data set's.

    options: data, root, groups, skip_bad, cache as in training; class_map, a CSV with the columns theirs,ours, or None;
    name or None. Ids and groups get that name before them, so that they cannot be taken for those of the run's own
    images. Keys of images, groups and pictures, as the checkpoint has them of its own, go along, by which they are
    known again under other names. An image that the network was trained or selected on, a class that it does not know,
    and another set's file of this name are a UserError.
    """
    file = setup.checkpoint_in(folder)
    network, content = setup.load_network(file, registry)
    class_map = read_class_map(options["class_map"]) if options["class_map"] else None
    dataset = setup.load_dataset(
        {"size": content["input"]["size"], "download": False, "testing": True, **options}, registry)
    name = options["name"] or dataset.name
    if name != runs.safe(name) and options["name"]:
        raise UserError(f"--name becomes a file's name, and {name!r} does not do for one",
                        f"--name {runs.safe(name)} would.")
    name = runs.safe(name)
    if name in splits.NAMES:
        raise UserError(f"the external data set is called {name}, as a split of the run is",
                        "Give it another name with --name.")
    data = loader.external(dataset, input=content["input"], class_names=content["class_names"],
                           root=options["root"] and Path(options["root"]), class_map=class_map,
                           skip_bad=options["skip_bad"], cache_folder=options["cache"])
    path = Path(folder) / "predictions" / f"{name}.npz"
    if path.exists() and str(read_npz(path).get("fingerprint")) != data.fingerprint:
        raise UserError(f"{path} is of another data set of this name, or of other images of it",
                        "Give this one another name with --name, or delete that file.")
    seen = setup.seen(content, file)
    if not seen["train"].get("pictures"):
        print(f"note: {file} has no perceptual hashes of its training images, as it is of an older version: copies of "
              "them that were saved again are not found")
    fingerprint = data.fingerprint
    data, note = without_seen(data, seen, Path(folder))
    if note:
        print(f"note: {note}")
    device = networks.device("auto")
    network.model.to(device, memory_format=memory_format(device))
    groups = [f"{name}/{group}" for group in data.groups] if data.grouped else [""] * len(data.ids)
    keys = {"images": data.sha256.astype("S16").astype(str), "pictures": data.perceptual_hashes.astype(str),
            "groups": [splits.key(f"{data.name}/{group}") if data.grouped else "" for group in data.groups]}
    write_npz(path, ids=np.array([f"{name}/{i}" for i in data.ids]), labels=data.labels,
              logits=loop.predict(network, data, "test", device), groups=np.array(groups),
              class_names=np.array(data.class_names), fingerprint=np.array(fingerprint),
              weights=np.array(network.fingerprint), **{f"key_{what}": np.array(part) for what, part in keys.items()},
              **({"note": np.array(note)} if note else {}))
    return path


def without_seen(data, seen, folder):
    """(Data without the images that a network was trained or selected on, a sentence on these or "").

    seen: as kd.data.splits.seen_by() gives it: keys of contents and groups, and perceptual hashes, by which copies are
    found that were saved again. The ids of the images of the run come from split.csv in its `folder`, if that is there.
    UserError where less than two images are left.
    """
    contents, groups, looks = (set().union(*(seen[split].get(what, ()) for split in ("train", "val")))
                               for what in ("images", "groups", "pictures"))
    looks = sorted(looks)
    rows = read_csv(folder / "split.csv") if (folder / "split.csv").is_file() else []
    id_of = {row[key][:length]: row["id"] for row in rows for key, length in (("sha256", 16), ("perceptual_hash", None))
             if "id" in row and row.get(key)}
    alike = dict(zip(*perceptual_hash.near(data.perceptual_hashes, looks)))
    found = {"same": [], "alike": [], "group": []}
    for k, (name, sha, group) in enumerate(zip(data.ids, data.sha256.astype("S16").astype(str), data.groups)):
        if sha in contents:
            found["same"].append((k, f"{name} = {id_of[sha]}" if sha in id_of else name))
        elif k in alike:
            other = id_of.get(looks[alike[k]])
            found["alike"].append((k, f"{name} ~ {other}" if other else name))
        elif splits.key(f"{data.name}/{group}") in groups:
            found["group"].append((k, f"{name} of {group}"))
    left_out = sorted(k for images in found.values() for k, _ in images)
    if not left_out:
        return data, ""
    words = {"same": "the same files", "group": "of its patients or lesions",
             "alike": "pictures that look like one of these, such as a copy that was saved again"}
    counts = "; ".join(f"{len(images)} {words[what]}: {listing([pair for _, pair in images])}"
                       for what, images in found.items() if images)
    note = (f"{len(left_out)} of {len(data.ids)} images of {data.name} are left out, since the network was trained or "
            f"selected on them: {counts}")
    if len(data.ids) - len(left_out) < 2:
        raise UserError(f"{data.name} is no external data set: {note}",
                        "Give images that are in neither the training nor the validation split of the run; what the "
                        "run gives for its own is in its predictions/val.npz and test.npz.")
    keep = np.setdiff1d(np.arange(len(data.ids)), left_out)
    return dataclasses.replace(
        data, **{part: getattr(data, part)[keep] for part in (
            "rows", "ids", "labels", "groups", "split", "sha256")}), note


def read_class_map(file):
    """{their class: ours} of a CSV with the columns theirs,ours; '' for a class that is left out."""
    rows = [{key.strip(): cell for key, cell in row.items() if key} for row in read_csv(file, separators=",;\t|")]
    lacking = [name for name in ("theirs", "ours") if name not in (rows[0] if rows else ())]
    if lacking:
        raise UserError(f"{file} has no column {', '.join(lacking)}", "Its first line is theirs,ours.")
    classes = {row["theirs"].strip(): row["ours"].strip() for row in rows}
    if len(classes) < len(rows):
        raise UserError(f"{file} has a class of theirs twice", "Each of them has one line: theirs,ours.")
    return classes
