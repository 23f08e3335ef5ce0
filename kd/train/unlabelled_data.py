"""--unlabelled: folders, data sets and the rest of --labelled as training images without labels."""

from pathlib import Path

from kd import image_files, objective, prediction_files, predictions
from kd.data import unlabelled
from kd.data.dataset import Dataset
from kd.errors import UserError, expanded
from kd.train import setup

REST = "rest"


def add(options, data, registry):
    """Add the images of --unlabelled to `data`, a Data: folders, data sets as NAME,root=PATH,key=value, or `rest`, its
    own training images without labels."""
    parts = [unlabelled.rest(data)] if REST in options["unlabelled"] else []
    for spec in options["unlabelled"]:
        if spec == REST:
            continue
        root, dataset = dataset_of(spec, options, registry)
        if dataset.name in [part.name for part in parts if part.images is not data.images]:
            raise UserError(f"--unlabelled names two sets called {dataset.name}", "Rename one, or name it once.")
        parts.append(unlabelled.prepare(dataset, data, earlier=parts, cache_folder=options["cache"], root=root,
                                        skip_bad=options["skip_bad"]))
    data.unlabelled = unlabelled.Unlabelled(parts)


def dataset_of(spec, options, registry):
    """(root, kd.data.dataset.Dataset) of one --unlabelled; its labels mean nothing. UserError if it is neither."""
    folder = Path(expanded(spec))
    if folder.is_dir():
        files, others = image_files.find(folder)
        if others:
            print(f"note: {spec}: {image_files.left_out(others)}")
        if not files:
            raise UserError(f"--unlabelled {spec}: no image in this folder", "Name the folder that has them.")
        ids = [file.relative_to(folder).as_posix() for file in files]
        groups = None
        if options["groups"]:
            group = predictions.read_groups(options["groups"])
            places = prediction_files.positions(ids, list(group))
            groups = [list(group.values())[place] if place >= 0 else name for place, name in zip(places, ids)]
        return folder, Dataset(folder.resolve().name, ["unlabelled"], files, ids, [0] * len(ids), groups=groups)
    name, settings = objective.parse_spec(spec)
    try:
        registry.get("dataset", name)
    except LookupError:
        raise UserError(f"--unlabelled {spec}: there is no such folder, and no data set of this name",
                        "Give a folder, or NAME,root=PATH,key=value of a data set (see --list).") from None
    root = expanded(settings.pop("root", None))
    named = ",".join([name, *(f"{key}={value}" for key, value in settings.items())])
    named = {**options, "data": named, "root": root, "groups": None, "testing": True}
    return root and Path(root), setup.load_dataset(named, registry)
