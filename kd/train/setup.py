"""From options to data and networks, for the training scripts.

The script passes its `registry`, an object with get, create and load_plugin.
"""

import inspect
import re
import sys
from pathlib import Path

import torch

from kd import image, objective, plugins, runs
from kd.data import loader, splits
from kd.data.dataset import Dataset
from kd.errors import UserError, listing
from kd.files import check_writable
from kd.run_folder import SPLITS
from kd.text import command
from kd.train import checkpoint, distributed, engine, networks
from kd.train.options import ADDED, TRAINED_CORRUPTIONS, parse_options, to_arguments
from kd.train.weights import fingerprint


def start(parser, argv, registry):
    """The options of a training script, resolved; None after --list has printed its table.

    Plugins are loaded. What the command line leaves open is as in the data set's recipe().
    """
    options = parse_options(parser, argv)
    words = sys.argv[1:] if argv is None else argv
    is_typed = any(word.split("=")[0] == "--plugin" for word in words)
    (plugins.load if is_typed else plugins.load_of_config)(options["plugin"], registry)
    if options["list"]:
        print(registry.table())
        return None
    parser.set_defaults(**recipe(options, parser.script, registry))
    options = parse_options(parser, argv)
    del options["list"]
    device, options["precision"] = engine.device_and_precision(options)
    options["device"] = str(device)
    if options["compile"]:
        networks.check_compiler(device)
    distributed.begin(device.type)
    if options["sync_batch_norm"]:
        distributed.check_sync_batch_norm(device.type)
    return options


def recipe(options, script, registry):
    """The defaults of a training script, a dict, for the data set of `options`: ours, or those it is registered with.

    `defaults=` in the registry are for all networks, `student=` for distill.py. `teacher=` is for train_teacher.py,
    where it trains the data set's own teacher: weights and a schedule that suit one network need not suit another.
    """
    name, _ = objective.parse_spec(options["data"])
    info = registry.get("dataset", name).info
    result = {"epochs": 30, "batch": 64, "hard": "ce", **info.get("defaults", {})}
    if script == "distill.py":
        # a file of the teacher's answers has none to images without labels, and there is no network to keep outputs of
        of_file = {"unlabelled": [], "teacher_cache": None} if options["teacher_predictions"] else {}
        return {**result, **info.get("student", {}), **of_file}
    own = {"teacher": "resnet50", **info.get("teacher", {})}
    return {**result, **own} if canonical(options["teacher"] or own["teacher"], registry) == own["teacher"] else result


def load_data(options, registry):
    """The Data that `options` name. Resolves size and study where they are open."""
    name, _ = objective.parse_spec(options["data"])
    entry = registry.get("dataset", name)
    if options["size"] is None and not entry.info.get("size_from_file"):
        options["size"] = 64
    dataset = load_dataset(options, registry)
    if options["size"] is None:
        options["size"] = len(dataset.images[0])
    if options["study"] is None:
        options["study"] = f"{runs.safe(dataset.name)}_{options['size']}px"
    for key in ("study", "name"):
        if options[key] is not None and options[key] != runs.safe(options[key]):
            raise UserError(f"--{key} becomes a folder's name, and {options[key]!r} does not do for one",
                            f"--{key} {runs.safe(options[key])} would.")
    check_writable(Path(options["out"]) / options["study"])
    data = loader.prepare(dataset, size=options["size"], interpolation=options["interpolation"],
                          split_seed=options["split_seed"], split_file=options["split"], fold=fold_of(options),
                          labelled=labelled_of(options),
                          cache_folder=options["cache"], root=options["root"] and Path(options["root"]),
                          skip_bad=options["skip_bad"], range=options.get("range"))
    if options.get("augment") == "corruption":
        data.corruptions = tuple(registry.get("corruption", name) for name in TRAINED_CORRUPTIONS)
    counts = {split: len(data.where(split)) for split in SPLITS}
    counts = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    images = f"{len(data.ids)} {'synthetic images' if data.synthetic else 'images'}"
    units = f" of {len(set(data.groups))} groups" if data.grouped else ""
    print(f"data: {data.name}, {images}{units}, {len(data.class_names)} classes at {data.size} px ({counts})")
    if data.skipped:
        print(f"note: left out, since unreadable: {listing(data.skipped)}")
    return data


def fold_of(options):
    """(K, N) of --fold, or None."""
    return tuple(map(int, options["fold"].split("/"))) if options.get("fold") else None


def labelled_of(options):
    """(share, seed) of --labelled, or None."""
    if not options.get("labelled"):
        return None
    share, settings = objective.parse_spec(options["labelled"])
    return float(share), settings.get("seed", 0)


def place(options, name):
    """(folder of the study's models, name of the model): with --fold those of one fold.

    name: the model's, to which that of the fold is added.
    """
    study, fold = Path(options["out"]) / options["study"], options["fold"]
    name = runs.without_fold(name)
    return (study / runs.FOLDS, runs.of_fold(name, fold)) if fold else (study, name)


def next_fold(script, options, folder):
    """The command that trains the first fold that is missing, or that evaluates all of them together.

    folder: the run of this fold.
    """
    _, count = fold_of(options)
    for k in range(1, count + 1):
        model = runs.of_fold(runs.without_fold(folder.parent.name), f"{k}/{count}")
        if not runs.finished(folder.parents[1] / model / folder.name):
            return command(script, "--config", folder / "config.yaml", "--fold", f"{k}/{count}")
    return f"{command('evaluate.py', folder.parents[2])}   # all {count} folds as one"


def data_of_run(run, registry, root=None, cache=None):
    """The Data that a Run was made on, with its split. root, cache: where images and decoded images are now.

    Raises UserError where these are not the run's images, by its fingerprint.
    """
    run.require("options", "environment")
    fingerprint = run.environment.get("data", {}).get("fingerprint")
    options = {"download": False, **ADDED, **run.options, "study": None, "name": None, "out": str(run.folder),
               "split": str(run.folder / "split.csv")}
    options.update({key: value for key, value in (("root", root), ("cache", cache)) if value is not None},
                   fold=None, labelled=None)
    if isinstance(options.get("data"), str):
        plugins.provide("dataset", objective.parse_spec(options["data"])[0], run.folder, registry)
    try:
        data = load_data(options, registry)
        if data.range is not None and list(data.range) != _range_of(run):
            data = load_data({**options, "range": _range_of(run)}, registry)
    except KeyError as error:
        raise UserError(f"{run.folder / 'config.yaml'} lacks the option {error}") from None
    except UserError as error:
        hint = error.hint  # written for training: the scripts that come here have --root and --cache alone
        if "--out" in hint:
            hint = "Results go into the run's folder: make it writable, or copy it to another place."
        elif "--cache" not in hint and (not root or re.search("--(?!root)", hint)):
            hint = "Say with --root where the images of this run are, as they were in training."
        raise UserError(error.message, hint) from None
    if fingerprint not in (None, data.fingerprint):
        raise UserError(f"these are not the images of {run.folder}: their fingerprint is {data.fingerprint}, the run's "
                        f"{fingerprint}", "Give the folder it was trained on with --root.")
    return data


def _range_of(run):
    """The range of deep values that a run was trained with. Older versions recorded none, and read all as 16 bits."""
    recorded = run.environment.get("input")
    limits = recorded.get("range") if isinstance(recorded, dict) else None
    return limits if image.is_range(limits) else [0, 65535]


def load_dataset(options, registry):
    """The kd.data.dataset.Dataset that --data, with --root, --groups, --size and --download, names."""
    name, arguments = objective.parse_spec(options["data"])
    entry = registry.get("dataset", name)
    accepted = inspect.signature(entry.make).parameters
    for option in ("root", "groups"):
        if options[option] is not None and option not in accepted:
            raise UserError(f"--{option} has no meaning for --data {name}",
                            "Leave it out, or name your data with --data.")
    fixed = {key: options[key] for key in ("root", "size", "groups", "download", "testing")
             if key in accepted and key in options}
    clash = sorted(set(arguments) & set(fixed))
    if clash:
        raise UserError(f"{clash[0]} has an option of its own: --{clash[0]}")
    remaining = {key: p.default for key, p in accepted.items() if p.kind is p.KEYWORD_ONLY and key not in fixed}
    checked = objective.check_options(entry.make, arguments, name)
    dataset = entry.make(**fixed, **{key: checked[key] for key in remaining})
    if not isinstance(dataset, Dataset):
        raise UserError(f"the dataset {name} gave {type(dataset).__name__}, not a kd.data.dataset.Dataset",
                        f"See {entry.path}.")
    return dataset


def canonical(arch, registry):
    """The registered name of an architecture that may be given by an alias."""
    entry = registry.get("architecture", arch)
    return arch if entry.name.endswith(":") else entry.name


def check_architecture(arch, registry):
    """UserError for an unknown name; a member of a family is created, since only its maker knows the members."""
    if registry.get("architecture", arch).name.endswith(":"):
        registry.create("architecture", arch, num_classes=2, stem="imagenet", weights=None)


def new_network(arch, data, options, seed, registry):
    """A network of a registered architecture, fresh from `seed`, from --weights or from --init."""
    entry = registry.get("architecture", arch)
    name = canonical(arch, registry)
    torch.manual_seed(seed)
    if options["init"]:
        if options["weights"] != "none":
            raise UserError("--init and --weights both say where to start",
                            "Give one of them; --weights none undoes that of a --config file.")
        model, content = checkpoint.load(options["init"], registry, arch=name, class_names=data.class_names)
        check_input(content, data.input(), options["init"], "Fine-tune at the size that it was trained at.")
        splits.refuse_leak(seen(content, options["init"]), data, "the network in --init")
        info = {**inside(entry, model), **_recorded(content, model, options["init"])}
        return networks.Network(model, name, content["stem"], **{**info, **_given(options)})
    weights = None if options["weights"] == "none" else options["weights"]
    stem = networks.resolve_stem(options["stem"], data.size, entry.info.get("small_stem", True))
    model = registry.create("architecture", arch, num_classes=len(data.class_names), stem=stem, weights=weights)
    return networks.Network(model, name, stem, **{**inside(entry, model), **_given(options)})


def origin(options, data):
    """What the provenance of a run on `data` says of --init and --stages, {} without them.

    "init": that file, the fingerprint of its weights, the epoch that they are from, and where they began in their turn.
    "stages": of --stages, else those that the file of --init was trained with.
    """
    if not options["init"]:
        return {"stages": options["stages"]} if options["stages"] else {}
    content = checkpoint.read(options["init"])
    note_labels(content, options["init"], data, "the network in --init")
    before = {key: content["provenance"][key] for key in ("epoch", "init") if key in content["provenance"]}
    stages = options["stages"] or content["provenance"].get("stages")
    return {"init": {"file": options["init"], "weights": fingerprint(content["state_dict"]), **before},
            **({"stages": stages} if stages else {})}


def inside(entry, model):
    """What the registry says of an architecture, as kd.train.networks.Network takes it.

    A family registers functions of the model, since its members differ: stages=function.
    """
    known = {key: entry.info[key] for key in ("stages", "head", "mean", "std") if key in entry.info}
    return {key: value(model) if callable(value) else value for key, value in known.items()}


def _given(options):
    """The stages of --stages, as kd.train.networks.Network takes them."""
    return {"stages": tuple(options["stages"])} if options["stages"] else {}


def _recorded(content, model, path):
    """What a checkpoint says of its network beside the registry: normalisation, and stages that --stages named."""
    recorded = {key: tuple(content["input"][key]) for key in ("mean", "std")}
    stages = content["provenance"].get("stages")
    if stages is None:
        return recorded
    modules = {name for name, _ in model.named_modules()}
    if not isinstance(stages, list) or len(stages) != 4 or not all(type(stage) is str for stage in stages) \
            or not modules.issuperset(stages):
        raise UserError(f"{path} is damaged: its stages are not four modules of the network")
    return {**recorded, "stages": tuple(stages)}


def check_input(content, here, path, hint):
    """UserError where a checkpoint takes another input than `here`, of Data.input(); normalisation may differ."""
    there = content["input"]
    differing = [f"{key} {there.get(key)}, here {here[key]}" for key in here
                 if key != "range" and there.get(key) != here[key]]
    if there.get("range") != here.get("range"):
        scales = ["..".join(f"{value:g}" for value in input.get("range", ())) or "8 bits" for input in (there, here)]
        differing.append(f"values of {scales[0]}, here {scales[1]}")
        if len(differing) == 1:
            hint = "Train it on these images, or save those of both in 8 bits with one scale."
    for option in ("size", "interpolation"):
        if there.get(option) != here[option]:
            hint += f" Give --{option} {there.get(option)}."
    if differing:
        raise UserError(f"{path} was trained on another input: {'; '.join(differing)}", hint)


def load_network(path, registry, class_names=None):
    """(Network of a checkpoint, the checkpoint's content); another class list is an error."""
    model, content = checkpoint.load(path, registry, class_names=class_names)
    info = {**inside(registry.get("architecture", content["arch"]), model), **_recorded(content, model, path)}
    return networks.Network(model, content["arch"], content["stem"], fingerprint=fingerprint(content["state_dict"]),
                            **info), content


def seen(content, path):
    """Which images and groups a checkpoint's network was trained and selected on, as splits.seen_by() gives them."""
    keys = content["provenance"].get("seen")
    try:
        keys = {split: {"images": checkpoint.texts(keys[split]["images"]),
                        "groups": checkpoint.texts(keys[split]["groups"]),
                        "pictures": checkpoint.texts(keys[split].get("pictures", []))}  # older versions wrote none
                for split in ("train", "val")}
        lists = [part for parts in keys.values() for part in parts.values()]
    except (KeyError, TypeError, IndexError, ValueError):
        lists = [None]
    if not all(isinstance(part, list) and all(isinstance(key, str) for key in part) for part in lists):
        raise UserError(f"{path} does not say which images it was trained on",
                        "Only a checkpoint that does can be checked against the test split.")
    return keys


def note_labels(content, path, data, network):
    """Print a note if the network of a checkpoint learned labels that `data` lacks (--labelled).

    network: its name. It is no error, since test does not leak, and pretrained networks often know more than a student
    is given.
    """
    if content["provenance"].get("split") != data.split_fingerprint:
        count = splits.without_label(seen(content, path), data)
        if count:
            print(f"note: {network} was trained or selected on {count} images that have no label here: what it teaches "
                  "may come from more labels than this run is given")


def default_teacher(options, registry):
    """The name of the teacher's architecture: --teacher, else the data set's default, else resnet50."""
    return canonical(options["teacher"] or recipe(options, "train_teacher.py", registry)["teacher"], registry)


def checkpoint_in(path):
    """The best.pt that a run folder, a model folder (its first seed) or a file stands for."""
    path = Path(path)
    runs.refuse_joined(path)
    for candidate in (path, path / "best.pt", *sorted(path.glob("seed_*/best.pt"))):
        if candidate.is_file():
            if (candidate.parent / "last.pt").exists() and candidate.name == "best.pt":
                raise UserError(f"the training of {candidate.parent} has not ended",
                                "Give its command again to finish it.")
            return candidate
    raise UserError(f"no checkpoint at {path}", "A teacher is a run folder with best.pt, or such a file.")


def data_arguments(options, parser):
    """The options that name the same data, split and study, as words of a command line."""
    words = []
    for key in ("data", "root", "size", "interpolation", "groups", "split", "split_seed", "labelled", "skip_bad",
                "cache", "plugin", "out", "study"):
        if options[key] != parser.get_default(key):
            words += to_arguments(parser, {key: options[key]})
    return words
