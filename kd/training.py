"""From options to parts: what the two training scripts do alike, with the registry's help.

`registry` is handed in by the script: an object with get, create and load_plugin.
"""

import inspect
import re
from pathlib import Path

import torch

from kd import data as kd_data
from kd import checkpoint, engine, models, objective, splits
from kd.errors import UserError


def load_data(options, registry):
    """The Data that `options` name. Resolves what they leave open: size, epochs, batch, study,
    stem, device and precision."""
    device, options["precision"] = engine.device_and_precision(options)
    options["device"] = str(device)
    name, given = objective.parse_spec(options["data"])
    entry = registry.get("dataset", name)
    defaults = entry.info.get("defaults", {})
    if options["size"] is None and not entry.info.get("size_from_file"):
        options["size"] = defaults.get("size", 64)
    accepted = inspect.signature(entry.make).parameters
    for option in ("root", "groups"):
        if options[option] is not None and option not in accepted:
            raise UserError(f"--{option} has no meaning for --data {name}", "Leave it out, or name your data with --data.")
    fixed = {key: options[key] for key in ("root", "size", "groups", "download") if key in accepted}
    clash = sorted(set(given) & set(fixed))
    if clash:
        raise UserError(f"{clash[0]} has an option of its own: --{clash[0]}")
    own = {key: p.default for key, p in accepted.items() if p.kind is p.KEYWORD_ONLY and key not in fixed}
    checked = objective.check_options(entry.make, given, name)
    dataset = entry.make(**fixed, **{key: checked[key] for key in own})
    if options["size"] is None:
        options["size"] = len(dataset.images[0])
    options["epochs"] = options["epochs"] or defaults.get("epochs", 30)
    options["batch"] = options["batch"] or defaults.get("batch", 64)
    options["study"] = options["study"] or f"{safe(dataset.name)}_{options['size']}px"
    options["stem"] = models.resolve_stem(options["stem"], options["size"])
    for key in ("study", "name"):
        if options[key] and options[key] != safe(options[key]):
            raise UserError(f"--{key} becomes a folder's name, and {options[key]!r} does not do for one",
                            f"--{key} {safe(options[key])} would.")
    data = kd_data.prepare(dataset, size=options["size"], split_seed=options["split_seed"],
                           split_file=options["split"], cache_folder=options["cache"],
                           root=options["root"] and Path(options["root"]), skip_bad=options["skip_bad"])
    counts = ", ".join(f"{len(data.where(split))} {split}" for split in ("train", "val", "test"))
    what = "synthetic images" if data.synthetic else "images"
    units = f" of {len(set(data.groups))} groups" if data.grouped else ""
    print(f"data: {data.name}, {len(data.ids)} {what}{units}, {len(data.class_names)} classes at {data.size} px ({counts})")
    if data.skipped:
        print(f"note: {len(data.skipped)} images that cannot be read are left out")
    return data


def safe(name):
    """`name` as a folder's name on every system."""
    name = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80]
    return name or "data"


def canonical(arch, registry):
    """The registered name of an architecture that may be given by an alias."""
    entry = registry.get("architecture", arch)
    return arch if entry.name.endswith(":") else entry.name


def check_architecture(arch, registry):
    """An unknown name is an error now; of a family's member, its maker says so."""
    if registry.get("architecture", arch).name.endswith(":"):
        registry.create("architecture", arch, num_classes=2, stem="imagenet", weights=None)


def new_network(arch, data, options, seed, registry):
    """A network of a registered architecture, fresh from `seed`, from --weights or from --init."""
    entry = registry.get("architecture", arch)
    name = canonical(arch, registry)
    info = entry.info.get("stages", ()), entry.info.get("head")
    torch.manual_seed(seed)
    if options["init"]:
        if options["weights"] != "none":
            raise UserError("--init and --weights both say where to start", "Give one of them.")
        model, content = checkpoint.load(options["init"], registry.create, arch=name, class_names=data.class_names)
        if content["input"] != data.input():
            raise UserError(f"{options['init']} was trained on another input: {content['input']}",
                            f"The input here is {data.input()}.")
        splits.refuse_leak(content["provenance"]["seen"], data, "the network in --init")
        return models.Network(model, name, content["stem"], *info)
    weights = None if options["weights"] == "none" else options["weights"]
    model = registry.create("architecture", arch, num_classes=len(data.class_names), stem=options["stem"],
                            weights=weights)
    return models.Network(model, name, options["stem"], *info)


def load_teacher(path, data, registry):
    """The frozen network of a checkpoint, refused where it cannot teach on these data."""
    model, content = checkpoint.load(path, registry.create, class_names=data.class_names)
    if content["input"] != data.input():
        raise UserError(f"the teacher {path} was trained on another input: {content['input']}",
                        f"Teacher and student see the same pixels; here they are {data.input()}.")
    splits.refuse_leak(content["provenance"]["seen"], data, f"the teacher {path}")
    info = registry.get("architecture", content["arch"]).info
    return models.Network(model, content["arch"], content["stem"], info.get("stages", ()), info.get("head"))


def default_teacher(options, registry):
    """--teacher, else what suits the data: the embedded set names a small one for itself."""
    if options["teacher"]:
        return canonical(options["teacher"], registry)
    name, _ = objective.parse_spec(options["data"])
    return registry.get("dataset", name).info.get("defaults", {}).get("teacher", "resnet50")


def checkpoint_in(path):
    """The best.pt that a run folder, a model folder (its first seed) or a file stands for."""
    path = Path(path)
    for candidate in (path, path / "best.pt", *sorted(path.glob("seed_*/best.pt"))):
        if candidate.is_file():
            return candidate
    raise UserError(f"no checkpoint at {path}", "A teacher is a run folder with best.pt, or such a file.")


def data_arguments(options):
    """The part of a command line that names the same data and study again."""
    words = []
    for key, flag in (("data", "--data"), ("root", "--root"), ("size", "--size"), ("out", "--out"), ("study", "--study")):
        default = {"data": "lesions", "out": "runs"}.get(key)
        if options[key] not in (None, default) and not (options["data"] == "lesions" and key in ("size", "study")):
            words += [flag, f'"{options[key]}"' if " " in str(options[key]) else str(options[key])]
    return "".join(f" {word}" for word in words)
