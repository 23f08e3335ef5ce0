"""The logits of a finished run's best.pt on the images of an external data set."""

from pathlib import Path

import numpy as np

from kd import runs
from kd.data import loader, splits
from kd.errors import UserError
from kd.files import write_npz
from kd.train import loop, networks, setup
from kd.train.step import memory_format


def score(folder, options, registry):
    """Write predictions/NAME.npz into a run's folder and return its path; NAME is the data set's.

    options: data, root, groups as in training. Ids and groups get the data set's name before them, so that
    they cannot be taken for those of the run's own images. An image that the network was trained or
    selected on, and a class that it does not know, are a UserError.
    """
    file = setup.checkpoint_in(folder)
    network, content = setup.load_network(file, registry)
    input_ = content["input"]
    dataset = setup.load_dataset({"size": input_["size"], "download": False, **options}, registry)
    name = runs.safe(dataset.name)
    if name in splits.NAMES:
        raise UserError(f"the external data set is called {name}, as a split of the run is",
                        "Rename its folder or file.")
    data = loader.external(dataset, size=input_["size"], resize=input_["resize"], class_names=content["class_names"],
                           root=options["root"] and Path(options["root"]))
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
    path = Path(folder) / "predictions" / f"{name}.npz"
    groups = [f"{name}/{group}" for group in data.groups] if data.grouped else [""] * len(data.ids)
    write_npz(path, ids=np.array([f"{name}/{i}" for i in data.ids]), labels=data.labels,
              logits=loop.predict(network, data, "test", device), groups=np.array(groups),
              class_names=np.array(data.class_names))
    return path
