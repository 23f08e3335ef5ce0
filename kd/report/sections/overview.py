"""The study itself: roles and data, training, methods; and what the other sections share."""

import itertools
from collections import Counter
from pathlib import Path

from kd import selection
from kd.errors import listing
from kd.report import figures
from kd.report.blocks import (
    Column,
    aside,
    code,
    facts,
    figure,
    grid,
    heading,
    missing,
    paragraph,
    picture,
    table,
)
from kd.report.study_files import command_path
from kd.run_folder import few_labels
from kd.runs import is_joined
from kd.text import format_count

ROLES = {"teacher": "teacher", "alone": "student without a teacher", "student": "student with a teacher"}
FORMATS = {"best.pt": "checkpoint", "model.onnx": "ONNX", "model.int8.onnx": "ONNX INT8",
           "model.pte": "ExecuTorch", "model.int8.pte": "ExecuTorch INT8"}
PARTS = {"train": "train", "val": "validation", "test": "test"}
WHOLE = {"unlabelled": "train", "unused": "val"}  # the part of the split that --labelled takes these images from
CONVENTIONS = {"majority_class": "most frequent class of validation", "rarest_class": "rarest class of test",
               "folds": "folds whose answers are joined"}
MAX_DRAWN = 8  # models; the tables have all of them

# Options of a run that say where it lies, or that stand elsewhere in the report.
HIDDEN_OPTIONS = {"role", "formula", "seeds", "name", "study", "out", "student"}
# Options that nothing reads in a run without a teacher.
TEACHER_OPTIONS = {"temperature", "soft", "stage_weights", "unlabelled_ratio", "teacher_cache", "teacher_tau"}
NETWORK_OPTIONS = ("arch", "parameters")  # of a run's environment; the table of roles has them


# ---- shared by the sections


def seed_name(run):
    """`seed 0` of a Run in the folder seed_0."""
    return run.seed.replace("seed_", "seed ")


def of_seeds(runs):
    """`seed 0`, or `mean of 3 seeds`: what a figure of some Runs of a model is of."""
    return seed_name(runs[0]) if len(runs) == 1 else f"mean of {len(runs)} seeds"


def seed_columns():
    """The Columns `model` and `seed`, with which a table of runs begins."""
    return [Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed")]


def with_format(row):
    """`row` of a CSV with the name of its `file`'s format as `format`."""
    return {**row, "format": FORMATS.get(row["file"], row["file"])}


def drawable(items):
    """(the first MAX_DRAWN items, a list with the block that counts the others, or an empty one)."""
    surplus = len(items) - MAX_DRAWN
    if surplus <= 0:
        return items, []
    note = f"{format_count(surplus, 'more model')} not drawn; the tables have all of them."
    return items[:MAX_DRAWN], [aside(note)]


def responsive_figure(draw, *data, alt, caption="", role=""):
    """The block of a figure that is drawn twice: wide, and narrow for a telephone.

    draw: a function of kd/report/figures*.py that takes `narrow` after `data`. alt: the figure in words. role: of the
    model that it is of, or "".
    """
    wide, narrow = (draw(*data, is_narrow, alt=alt) for is_narrow in (False, True))
    return figure(wide, alt, caption, narrow, role)


def merged(values):
    """The distinct values as one text, in order of appearance."""
    return "; ".join(dict.fromkeys(map(option_text, values)))


def option_text(value):
    """An option's value as text: a dash for nothing, commas between the items of a list or a mapping."""
    if value in (None, "", [], {}):
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {option_text(item)}" for key, item in value.items())
    return ", ".join(map(option_text, value)) if isinstance(value, (list, tuple)) else str(value)


# ---- roles and data


def lead(study):
    """One sentence about the data, for the top of the page."""
    if not study.runs:
        return "Figures of another system: tables without the predictions from which they were computed."
    first, split = study.runs[0], study.first("split")
    data = study.first("environment").get("data", {})
    name = data.get("name") or study.first("options").get("data") or "a data set without a name"
    mark = " (synthetic)" if synthetic(study) else ""
    total, parts = "", f"{len(first.test.ids):,} test"
    if split:
        counts = Counter(WHOLE.get(row["split"], row["split"]) for row in split)
        total = f"{image_count(split)} in "
        parts = ", ".join(f"{counts[part]:,} {title}" for part, title in PARTS.items())
    if study.cross_validation:
        parts = (f"cross-validation of {study.cross_validation} folds: each image is tested once, by a network that "
                 "did not see it")
    sizes = [run.options["size"] for run in study.runs if run.options.get("size")]
    pixels = " and ".join(dict.fromkeys(f"{size} × {size} px" for size in sizes))
    resolution = f"; images of {pixels}" if pixels else ""
    shares = sorted({run.labelled for run in study.runs})
    texts = [f"{100 * share:g}%" if share < 1 else "all" for share in shares]
    labels = f"; labels for {' or '.join(texts)} of the groups of train and validation" if shares[0] < 1 else ""
    return f"{name}{mark}: {total}{len(first.class_names)} classes; {parts}{labels}{resolution}."


def image_count(split):
    """`10,015 images of 7,470 lesions or patients`; the groups only where some have several images."""
    groups = len({row["group"] for row in split if row["group"]})
    count = format_count(len(split), "image")
    return f"{count} of {groups:,} lesions or patients" if 0 < groups < len(split) else count


def synthetic(study):
    """Whether the images of a run were drawn by a program."""
    return any(run.environment.get("data", {}).get("synthetic") for run in study.runs)


def roles(study):
    """Blocks: the models with their roles, the split, and some test images with answers."""
    columns = [
        Column("Model", "model", kind="model"), Column("Role", "role_name", kind="text"),
        Column("Architecture", "arch"), Column("Parameters", "parameters", ",d"), Column("Seeds", "seeds", "d"),
        Column("Teacher", "teacher", kind="text"), Column("Objective", "objective", kind="text"),
    ]
    records = [role_record(model, group) for model, group in study.models.items()]
    if any(record["labels"] for record in records):
        columns.insert(5, Column("Labels", "labels", kind="text"))
    return [table("roles", "Roles of the models", columns, records), *split_table(study), *samples(study)]


def role_record(model, group):
    """The record of a model. group: its Runs, a seed each; the first one's settings stand for all."""
    run = group[0]
    parameters = run.setting("parameters")
    return {
        "model": model, "role": run.kind, "role_name": ROLES[run.kind],
        "arch": merged([run.setting("arch") or run.setting("student")]),
        "parameters": parameters if isinstance(parameters, int) else None,
        "seeds": len(group),
        "labels": few_labels(group),
        "teacher": teacher_name(run) if run.kind == "student" else "",
        "objective": merged(run.setting("formula") for run in group),
    }


def teacher_name(run):
    """The name of the teacher of a Run; of a teacher of another study `study/name`; of several, all of them."""
    folders = run.options.get("teacher") or run.options.get("teacher_predictions") or ""
    folders = folders if isinstance(folders, list) else [folders]
    return ", ".join(_teacher_name(run, str(folder)) for folder in folders)


def _teacher_name(run, folder):
    model = Path(folder).parent
    if model.parent.name in ("", run.folder.resolve().parents[1].name):
        return model.name or folder
    return f"{model.parent.name}/{model.name}"


def split_table(study):
    """Blocks: the images of each class in training, validation and test."""
    split = study.first("split")
    if not split:
        return missing("the split of the data", "No run has split.csv. Without it, the number of images and lesions of "
                       "each class in training is not known, nor whether one lesion is in two parts.")
    counts = Counter((row["label"], WHOLE.get(row["split"], row["split"])) for row in split)
    classes = [name for name in study.runs[0].class_names if any((name, part) in counts for part in PARTS)]
    records = []
    for name in classes:
        of_class = {part: counts[name, part] for part in PARTS}
        records.append({"class": name, **of_class, "total": sum(of_class.values())})
    sums = {key: sum(record[key] for record in records) for key in (*PARTS, "total")}
    records.append({"class": "all", **sums})
    few = few_labels_columns(study, records)
    groups = {part: set() for part in PARTS}
    for row in split:
        groups[WHOLE.get(row["split"], row["split"])].add(row["group"] or row.get("id"))
    group_counts = [f"{len(groups[part]):,} groups (lesions, patients) in {title}" for part, title in PARTS.items()]
    part_columns = [Column(title.capitalize(), part, ",d") for part, title in PARTS.items()]
    columns = [Column("Class", "class"), *part_columns, Column("All", "total", ",d"), *few]
    if study.cross_validation:
        columns = [Column("Class", "class"), Column("Images", "total", ",d")]
        group_counts = [f"{len(groups['test']):,} groups (lesions, patients), each in the test part of one fold"]
    return [table("data", f"Images of each class; {', '.join(group_counts)}", columns, records)]


def few_labels_columns(study, records):
    """Columns of the images that have labels, of the first run of each share of --labelled; adds them to `records`."""
    first = {}
    for run in study.runs:
        if any(row["split"] in WHOLE for row in run.split):
            first.setdefault(run.labelled, run)
    columns = []
    for share, run in sorted(first.items()):
        counts = Counter((row["label"], row["split"]) for row in run.split)
        counts.update(("all", row["split"]) for row in run.split)
        for part in ("train", "val"):
            key, share_text = f"{part}_{share:g}", f" {100 * share:g}%" if share < 1 else ""
            title = f"{PARTS[part].capitalize()}, labels{share_text} ({run.model}, {seed_name(run)})"
            columns.append(Column(title, key, ",d"))
            for record in records:
                record[key] = counts[record["class"], part]
    return columns


def samples(study):
    """Blocks: some test images, and the answer of each model's first seed."""
    images = study.networks.first("samples")
    if not images:
        return missing("test images", "No run has samples.npz.")
    runs = [group[0] for group in study.models.values()][:MAX_DRAWN]
    answers = [answers_by_image(run) for run in runs]
    items = []
    for name, image in zip(map(str, images["ids"]), images["images"]):
        lines = []
        for run, of_run in zip(runs, answers):
            if name in of_run:
                true, answer = of_run[name]
                lines.append((true == answer, answer, run.model))
        if lines:
            items.append(picture(figures.thumbnail(image), sample_alt(name, true, lines), true, lines))
    if not items:
        return []
    note = "Under each image its true class, then what each model (its first seed) answers: ✓ right, ✗ wrong."
    return [heading("Test images"), aside(note), grid(items)]


def answers_by_image(run):
    """{image id: (true class, predicted class)} of a Run's test images, classes by name."""
    classes = zip(run.test.labels, run.test.probabilities.argmax(axis=1))
    names = [(run.class_names[true], run.class_names[predicted]) for true, predicted in classes]
    return dict(zip(map(str, run.test.ids), names))


def sample_alt(name, true, lines):
    """A test image in words. lines: (whether the answer is right, answer, model)."""
    answers = [f"{model}: {answer} ({'right' if right else 'wrong'})" for right, answer, model in lines]
    return f"Test image {name}, true class {true}. {'; '.join(answers)}."


# ---- training


def training(study):
    """Blocks: the best epoch of each run; its curves are among TensorBoard's scalars."""
    trained = [network for run in study.runs for network in run.folds or [run] if network.history]
    if not trained:
        return missing("the training", "No run has history.csv.")
    columns = [
        *seed_columns(), Column("Epochs", "epochs", "d"), Column("Best epoch", "best_epoch", "d"),
        Column("Validation macro-F1 there", "best_val_macro_f1"), Column("Training time", "seconds", "duration"),
    ]
    chosen_by = listing(sorted({selection.named(run.select) for run in trained}))
    caption = (f"Epochs that were best on validation ({chosen_by}); time is the sum of the epochs on the machine named "
               "under Methods")
    return [table("training", caption, columns, [training_record(run) for run in trained])]


def training_record(run):
    """The record of a Run with `history`: its best epoch, and the seconds of all epochs."""
    best = run.best_row
    return {
        "model": run.model, "role": run.kind, "seed": run.seed, "epochs": len(run.history),
        "best_epoch": int(best["epoch"]) if best else None, "best_val_macro_f1": best.get("val_macro_f1"),
        "seconds": sum(row["seconds"] for row in run.history),
    }


# ---- methods


def methods(study):
    """Blocks: options, environment, statistics, and the commands that repeat the study."""
    values = option_values(study)
    differing = {option: texts for option, texts in values.items() if len(set(texts)) > 1}
    common = {option: texts[0] for option, texts in values.items() if option not in differing}
    blocks = []
    if differing:
        columns = [Column("Option", "option")]
        columns += [Column(model, f"{k}", kind="text") for k, model in enumerate(study.models)]
        records, export = [], []
        for option, texts in differing.items():
            records.append({"option": option, **{f"{k}": text for k, text in enumerate(texts)}})
            export.append({"option": option, **dict(zip(study.models, texts))})
        blocks.append(table("options", "Options that differ", columns, records, export))
    if common:
        blocks += [heading("Options of all runs"), facts(common.items())]
    return [*blocks, *environment(study), *statistics(study), *commands(study)]


def option_values(study):
    """{option: [its text for each model]}, without the HIDDEN_OPTIONS."""
    options = dict.fromkeys(option for run in study.runs for option in run.options)
    return {option: [merged(setting(run, option) for run in group) for group in study.models.values()]
            for option in options if option not in HIDDEN_OPTIONS and option not in NETWORK_OPTIONS}


def setting(run, option):
    """The value of an option of a Run; None if nothing reads it. Paths in the study begin at its folder."""
    if run.kind == "alone" and option in TEACHER_OPTIONS:
        return None
    value, home = run.setting(option), f"{run.options.get('out')}/{run.options.get('study')}/"
    if isinstance(value, list):
        return [item.removeprefix(home) if isinstance(item, str) else item for item in value]
    return value.removeprefix(home) if isinstance(value, str) else value


def environment(study):
    """Blocks: the machine and the versions of all runs."""
    records = [flattened(run.environment) for run in study.runs if run.environment]
    if not records:
        return missing("the environment", "No run has environment.json: the machine and the versions are not known.")
    started = sorted({str(record.pop("started")) for record in records if record.get("started")})
    elsewhere = ("role", "formula", *NETWORK_OPTIONS)
    keys = dict.fromkeys(key for record in records for key in record if key not in elsewhere)
    pairs = [(key, merged(record.get(key) for record in records)) for key in keys]
    pairs = [(key, words) for key, words in pairs if words != "–"]
    if started:
        pairs.append(("started", started[0] if len(started) == 1 else f"{started[0]} to {started[-1]}"))
    return [heading("Environment"), facts(pairs)]


def flattened(environment):
    """A nested mapping as a flat one; the class list is not a property of the machine."""
    flat = {}
    for key, value in environment.items():
        if isinstance(value, dict):
            inner = flattened({name: item for name, item in value.items() if name != "classes"})
            flat |= {f"{key} {name}": item for name, item in inner.items()}
        else:
            flat[key] = value
    return flat


def statistics(study):
    """Blocks: how intervals were computed, as metrics.json states it."""
    runs_of = {}
    for run in study.runs:
        conventions = run.evaluation and run.evaluation.get("conventions")
        if conventions:
            pairs = tuple((CONVENTIONS.get(key, key), merged([value])) for key, value in conventions.items())
            runs_of.setdefault(pairs, []).append(run)
    if not runs_of:
        return missing("how intervals were computed", "No metrics.json states it.")
    blocks = [heading("Statistics"), paragraph(
        "A 95% interval is made so that 95 of 100 such intervals, each of another test set of this size from the same "
        "population, hold the figure of the population. It rests on a bootstrap of the clusters named here, whole "
        "groups (lesions, patients) where the data name them and else images, that are taken for independent of each "
        "other and drawn at random; over several seeds it covers their spread, too. Below what can be covered, an "
        "interval is withheld.")]
    for pairs, runs in runs_of.items():
        if len(runs_of) > 1:
            names = ", ".join(f"{run.model} {seed_name(run)}" for run in runs)
            blocks.append(aside(f"Of {names}"))
        blocks.append(facts(pairs))
    return blocks


def commands(study):
    """Blocks: the commands that train, evaluate and report the study again."""
    lines = []
    for run in itertools.chain.from_iterable(run.folds or [run] for run in study.runs):
        if run.options and not is_joined(run.folder):  # an ensemble is not trained
            script = "train_teacher.py" if run.kind == "teacher" else "distill.py"
            lines.append(f"python {script} --config {command_path(run.folder / 'config.yaml')}")
    root = command_path(Path(*study.runs[0].folder.parts[:-2]))
    lines += [f"python evaluate.py {root}", f"python report.py {root}"]
    note = "Each run's config.yaml holds every option of its training; these commands repeat training and evaluation."
    if any(run.exports or run.robustness or run.benchmark for run in study.networks.runs):
        note += " The options of export.py, robustness.py and benchmark.py stand in the plan of study.py."
    return [heading("Commands"), aside(note), code("\n".join(lines))]
