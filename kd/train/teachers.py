"""The teachers of a student: checkpoints of this project, networks from elsewhere, or a file of their answers."""

import sys
from pathlib import Path

import numpy as np
import torch

from kd import prediction_files, predictions
from kd.data import splits
from kd.errors import UserError, listing
from kd.objective import check_options, parse_spec
from kd.train import networks, setup
from kd.train.stages import check_stages
from kd.train.weights import fingerprint, load_whole

UNKNOWN = "what the teacher was trained on is unknown: it may have seen the validation and test images"


def load(paths, data, registry, *, arch=None, tau=None):
    """(the teacher, its files): a kd.train.networks.Network, or an Ensemble of several.

    paths: run folders or files. arch: NAME,key=value for one plain state dict from elsewhere, as for foreign(). tau: of
    the logit adjustment that they were trained with, where their checkpoints do not say. UserError on a leak, and where
    classes or pixels are not those of `data`.
    """
    if arch and len(paths) > 1:
        raise UserError("--teacher-arch is for one teacher, and several are named",
                        "Name one file with --teacher.")
    files = [setup.checkpoint_in(path) for path in paths]
    members = [foreign(file, arch, data, registry) if arch else of_project(file, data, registry) for file in files]
    for member in members:
        member.tau = tau if member.tau is None else member.tau
        data.add_size(member.size or 0)
        networks.fold_batch_norm(member.model, member.stages)  # it stays in eval mode, and runs in every step
    return members[0] if len(members) == 1 else networks.Ensemble(members), files


def of_project(file, data, registry):
    """The Network of a checkpoint of this project."""
    network, content = setup.load_network(file, registry, data.class_names)
    size = content["input"]["size"]
    same = {**data.input(), **{key: content["input"][key] for key in ("resize", "size")}} if size != data.size else (
        data.input())
    setup.check_input(content, same, f"the teacher {file}", "Teacher and student see the same pixels.")
    splits.refuse_leak(setup.seen(content, file), data, f"the teacher {file}")
    setup.note_labels(content, file, data, f"the teacher {file}")
    network.size = None if size == data.size else size
    network.tau = content["provenance"].get("tau")
    return network


def foreign(file, spec, data, registry):
    """The Network of a state dict with its head that was trained elsewhere.

    spec: NAME of its architecture, with the options of input_of_foreign().
    """
    name, settings = parse_spec(spec)
    settings = check_options(input_of_foreign, settings, f"--teacher-arch {name}")
    given = _given(name, settings)
    size = settings["size"] or data.size
    classes = [str(label) for label in settings["classes"]] or list(data.class_names)
    if sorted(classes) != sorted(data.class_names):
        raise UserError(f"the classes of --teacher-arch are {listing(classes, 12)}; the data have "
                        f"{listing(data.class_names, 12)}",
                        "Give the same names, in the order of the teacher's logits.")
    entry = registry.get("architecture", name)
    stem = settings["stem"] or networks.resolve_stem("auto", size, entry.info.get("small_stem", True))
    model = registry.create("architecture", name, num_classes=len(classes), stem=stem, weights=None)
    try:
        state = load_whole(model, file)
    except UserError as error:
        other = "small" if stem == "imagenet" else "imagenet"
        hint = f" Its first layers may be of another stem: try --teacher-arch {name},stem={other}." \
            if "does not fit" in error.message and entry.info.get("small_stem", True) else ""
        raise UserError(error.message, error.hint + hint) from None
    if classes != list(data.class_names):
        order = [classes.index(label) for label in data.class_names]
        model.register_forward_hook(lambda module, inputs, logits: logits[:, order])
    else:
        print(f"note: {file}: its logits are taken to be of {listing(classes, 12)}, in this order")
    print(f"note: {UNKNOWN}")
    network = networks.Network(model.eval(), setup.canonical(name, registry), stem, fingerprint=fingerprint(state),
                               size=None if size == data.size else size, is_foreign=True,
                               **{**setup.inside(entry, model), **given})
    networks.check_input(model, name, size, len(classes))
    if network.stages:
        check_stages(model, name, network.stages, size)
    return network


def _given(name, settings):
    """{"mean", "std", "stages"} as far as they are given. UserError for values that nothing can be computed with."""
    numbers = (int, float)
    for key, lowest in (("mean", 0), ("std", sys.float_info.min)):
        values = settings[key]
        fits = len(values) == 3 and all(type(value) in numbers and lowest <= value <= 1 for value in values)
        if values and not fits:
            raise UserError(f"--teacher-arch {name}: {key} has three numbers {'above' if lowest else 'from'} 0 to 1, "
                            f"of pixels in [0, 1], not {list(values)}", f"Write {key}=[0.5, 0.5, 0.5].")
    if settings["stages"] and (len(settings["stages"]) != 4 or not all(
            isinstance(path, str) for path in settings["stages"])):
        raise UserError(f"--teacher-arch {name}: stages are four module paths, not {list(settings['stages'])}",
                        "Write stages=[layer1, layer2, layer3, layer4].")
    if settings["stem"] not in ("", "imagenet", "small") or not 0 <= settings["size"] <= 4096:
        raise UserError(f"--teacher-arch {name}: stem is imagenet or small, and size is in px from 1 to 4096",
                        "Leave out what is not known.")
    return {key: tuple(settings[key]) for key in ("mean", "std", "stages") if settings[key]}


def input_of_foreign(*, size=0, mean=(), std=(), stem="", classes=(), stages=()):
    """The options of --teacher-arch.

    size: of its input, px; 0 for that of the student. mean, std: of the three channels of pixels in [0, 1]; () for
    those of the architecture. stem: "imagenet" or "small"; "" for what --stem auto gives at its size. classes: in the
    order of its logits; () for that of the data. stages: four module paths, as --stages has them; () for those of the
    architecture.
    """


class Answers:
    """A teacher that is a file of predictions: one answer for each image, whatever the view.

    It takes the place of the teacher and of its kept targets.
    """

    arch, members, size, stages, head, is_foreign = "file of predictions", (), None, (), None, True

    def __init__(self, file, data, options):
        """file: .csv, .npy or .npz as evaluate.py reads it, with ids. data: kd.data.loader.Data. options: those of the
        command line. UserError where its views are not the images themselves, and where an image has no answer.
        """
        mixes = options["mixup"] or options["cutmix"]
        if options["augment"] != "none" or mixes:
            shown = "mixes images" if mixes else f"shows other views (--augment {options['augment']})"
            way_out = "Leave out --mixup and --cutmix." if mixes else "Give --augment none."
            raise UserError(f"--teacher-predictions has one answer for each image, and this training {shown}", way_out)
        if data.unlabelled:
            raise UserError("--teacher-predictions is for images with labels, and --unlabelled has others",
                            "Leave out one of them; --unlabelled without a name is none.")
        answers = self._read(file, data)
        if answers.ids is None:
            raise UserError(f"{file} has no ids, which tell whose answers these are", "Add a column or array `id`.")
        order = prediction_files.matched(data.class_names, answers.class_names)
        unknown = [name for name, theirs in order.items() if theirs is None]
        if unknown or len(answers.class_names) != len(data.class_names):
            raise UserError(f"{file} has the classes {listing(answers.class_names, 12)}, the data have "
                            f"{listing(data.class_names, 12)}",
                            "The same classes are needed, in any order; class_names, or the columns, name them.")
        wanted = data.ids[data.train]
        places = prediction_files.positions(wanted, answers.ids.tolist())
        missing = wanted[places < 0].tolist()
        if missing:
            raise UserError(f"{file} has no answer for {len(missing)} of {len(wanted)} training images: "
                            f"{listing(missing)}", f"Its ids are such as {listing(answers.ids.tolist(), 2)}.")
        scores = answers.scores[places][:, [answers.class_names.index(order[name]) for name in data.class_names]]
        theirs = np.array([order.get(name) for name in data.class_names])[data.labels[data.train]]
        differing = np.array(answers.class_names)[answers.labels[places]] != theirs
        if differing.any():
            raise UserError(f"{file} has other labels than the data for {differing.sum()} of {len(wanted)} training "
                            f"images: {listing(wanted[differing].tolist())}", "It is of other images, or of "
                            "another class order. Without labels in it, none are compared.")
        self.tau = options["teacher_tau"]
        self.logits = torch.from_numpy(scores.astype(np.float32))
        self.fingerprint = fingerprint({"logits": self.logits})
        print(f"note: {UNKNOWN}")

    @staticmethod
    def _read(file, data):
        """Predictions of a file; labels that it lacks, which do not matter here, are those of the data."""
        columns = prediction_files.read(Path(file), predictions.FILE)
        if columns.labels is None and columns.ids is not None and columns.scores is not None:
            places = prediction_files.positions(predictions.strings(np.asarray(columns.ids)), data.ids.tolist())
            columns.labels = np.array([data.class_names[data.labels[place] if place >= 0 else 0] for place in places])
            if columns.class_names is None and columns.scores.ndim == 2 and columns.scores.shape[1] == len(
                    data.class_names):
                columns.class_names = data.class_names
                print(f"note: {file}: its scores are taken to be of {listing(data.class_names, 12)}, in this order")
        try:
            return predictions.of_columns(columns)
        except UserError as error:
            raise UserError(error.message, "Save it as predictions/test.npz of a run: ids, class_names and logits."
                            ) from None

    def build(self, teacher_forward, **options):
        """Nothing is to be made."""

    def __call__(self, index, numbers, device):
        """{"teacher_logits": [N, C]} of the training images at `index`."""
        return {"teacher_logits": self.logits[index].to(device), "teacher_attention": [], "teacher_pooled": None}
