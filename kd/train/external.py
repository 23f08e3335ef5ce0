"""The logits of a finished run's best.pt on the images of an external data set."""

from pathlib import Path

import numpy as np

from kd import runs
from kd.data import loader, splits
from kd.errors import UserError
from kd.files import read_csv, read_npz, write_npz
from kd.train import loop, networks, setup
from kd.train.step import memory_format


def score(folder, options, registry):
    """Write predictions/NAME.npz into a run's folder and return its path; NAME is --name, else the data set's.

    options: data, root, groups, skip_bad as in training; class_map, a CSV with the columns theirs,ours, or None; name
    or None. Ids and groups get that name before them, so that they cannot be taken for those of the run's own images.
    An image that the network was trained or selected on, a class that it does not know, and another set's file of this
    name are a UserError.
    """
    file = setup.checkpoint_in(folder)
    network, content = setup.load_network(file, registry)
    input_ = content["input"]
    class_map = read_class_map(options["class_map"]) if options["class_map"] else None
    dataset = setup.load_dataset({"size": input_["size"], "download": False, "testing": True, **options}, registry)
    name = options["name"] or dataset.name
    if name != runs.safe(name) and options["name"]:
        raise UserError(f"--name becomes a file's name, and {name!r} does not do for one",
                        f"--name {runs.safe(name)} would.")
    name = runs.safe(name)
    if name in splits.NAMES:
        raise UserError(f"the external data set is called {name}, as a split of the run is",
                        "Give it another name with --name.")
    data = loader.external(dataset, size=input_["size"], resize=input_["resize"], class_names=content["class_names"],
                           root=options["root"] and Path(options["root"]), class_map=class_map,
                           skip_bad=options["skip_bad"], range=input_.get("range"))
    path = Path(folder) / "predictions" / f"{name}.npz"
    if path.exists() and str(read_npz(path).get("fingerprint")) != data.fingerprint:
        raise UserError(f"{path} is of another data set of this name, or of other images of it",
                        "Give this one another name with --name, or delete that file.")
    seen = setup.seen(content, file)
    if not seen["train"].get("pictures"):
        print(f"note: {file} has no perceptual hashes of its training images, as it is of an older version: copies of "
              "them that were saved again are not found")
    try:
        splits.refuse_leak(seen, data, str(file))
    except UserError as error:
        raise UserError(f"{data.name} is no external data set: {error.message}",
                        "A run's own images are in predictions/val.npz and test.npz already: leave them out here."
                        ) from None
    device = networks.device("auto")
    network.model.to(device, memory_format=memory_format(device))
    groups = [f"{name}/{group}" for group in data.groups] if data.grouped else [""] * len(data.ids)
    write_npz(path, ids=np.array([f"{name}/{i}" for i in data.ids]), labels=data.labels,
              logits=loop.predict(network, data, "test", device), groups=np.array(groups),
              class_names=np.array(data.class_names), fingerprint=np.array(data.fingerprint))
    return path


def read_class_map(file):
    """{their class: ours} of a CSV with the columns theirs,ours; '' for a class that is left out."""
    rows = read_csv(file, ("theirs", "ours"), ",;\t")
    classes = {row["theirs"].strip(): row["ours"].strip() for row in rows}
    if len(classes) < len(rows):
        raise UserError(f"{file} has a class of theirs twice", "Each of them has one line: theirs,ours.")
    return classes
