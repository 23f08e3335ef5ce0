"""What was studied: who taught whom on which images, how each run went, and with which options."""

import math
from collections import Counter
from pathlib import Path

from kd.report import figures
from kd.report.blocks import (
    Column,
    aside,
    bullets,
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
from kd.text import format_count

ROLE = {"teacher": "teacher", "alone": "student without a teacher", "student": "student with a teacher"}
FILES = {"best.pt": "checkpoint", "model.onnx": "ONNX", "model.int8.onnx": "ONNX INT8", "model.ts.pt": "TorchScript"}
DRAWN = 8  # models; of more, the tables alone tell


def seed_name(run):
    return run.seed.replace("seed_", "seed ")


def drawn(items):
    """(the first DRAWN of them, a block that says what is left out)."""
    left = len(items) - DRAWN
    return items[:DRAWN], [aside(f"{format_count(left, 'more model')} not drawn; the tables have all of them.")] if left > 0 else []


# ---- roles and data


def lead(study):
    """One sentence about the data, for the top of the page."""
    if not study.runs:
        return "Figures of another system: tables without the predictions that they are of."
    data, split = study.first("environment").get("data", {}), study.first("split")
    sizes = list(dict.fromkeys(f"{run.options['size']} × {run.options['size']} px" for run in study.runs if run.options.get("size")))
    groups = len({row["group"] for row in split if row["group"]})
    told = data.get("name") or study.first("options").get("data") or "a data set without a name"
    told = f"{told}{' (synthetic)' if synthetic(study) else ''}: "
    if split:
        told += format_count(len(split), "image") + (f" of {groups:,} lesions or patients" if 0 < groups < len(split) else "") + " in "
    told += f"{len(study.runs[0].class_names)} classes; "
    parts = Counter(row["split"] for row in split)
    told += ", ".join(f"{parts[part]:,} {name}" for part, name in PARTS.items()) if split else (
        f"{len(study.runs[0].test.ids):,} test")
    return told + (f"; images of {' and '.join(sizes)}" if sizes else "") + "."


PARTS = {"train": "train", "val": "validation", "test": "test"}


def synthetic(study):
    return any(run.environment.get("data", {}).get("synthetic") for run in study.runs)


def roles(study):
    return [
        bullets([f"{names_of(study, kind)}: {told}" for kind, told in (
            ("teacher", "the large network that the students learn from"),
            ("alone", "trained on the labels alone; what a student with a teacher must be held against"),
            ("student", "trained on what the teacher says, and on the labels where its objective has them")) if names_of(study, kind)]),
        *[table("roles", "Who is who", [
            Column("Model", "model", kind="model"), Column("Role", "role_name", kind="text"), Column("Architecture", "arch"),
            Column("Parameters", "parameters", ",d"), Column("Seeds", "seeds", "d"), Column("Taught by", "teacher", kind="text"),
            Column("Objective", "objective", kind="text")], [role_record(model, group) for model, group in study.models.items()])],
        *split_table(study), *samples(study)]


def names_of(study, kind):
    return ", ".join(model for model, group in study.models.items() if group[0].kind == kind)


def role_record(model, group):
    run = group[0]
    parameters = run.setting("parameters")
    return {"model": model, "role": run.kind, "role_name": ROLE[run.kind], "arch": merged([run.setting("arch") or run.setting("student")]),
            "parameters": parameters if isinstance(parameters, int) else None, "seeds": len(group),
            "teacher": taught_by(run) if run.kind == "student" else "",
            "objective": merged([run.setting("formula") for run in group])}


def taught_by(run):
    """The name of its teacher, after that of the study where this is another."""
    told = str(run.options.get("teacher") or "")
    model = Path(told).parent
    if model.parent.name in ("", run.folder.resolve().parents[1].name):
        return model.name or told
    return f"{model.parent.name}/{model.name}"


def split_table(study):
    split = study.first("split")
    if not split:
        return missing("the data's split", "No run has split.csv: how many images and lesions each class has in training, and "
                       "that no lesion is on both sides, cannot be told.")
    counts = Counter((row["label"], row["split"]) for row in split)
    groups = {part: len({row["group"] or row.get("id") for row in split if row["split"] == part}) for part in PARTS}
    classes = [name for name in study.runs[0].class_names if any((name, part) in counts for part in PARTS)]
    records = [{"class": name, **{part: counts[name, part] for part in PARTS},
                "total": sum(counts[name, part] for part in PARTS)} for name in classes]
    records.append({"class": "all", **{part: sum(counts[name, part] for name in classes) for part in PARTS},
                    "total": sum(record["total"] for record in records)})
    return [table("data", "Images a class; " + ", ".join(f"{groups[part]:,} groups (lesions, patients) in {name}"
                                                          for part, name in PARTS.items()),
                  [Column("Class", "class"), *(Column(name.capitalize(), part, ",d") for part, name in PARTS.items()),
                   Column("All", "total", ",d")], records)]


def samples(study):
    """Some test images, and what each model answers."""
    held = study.first("samples")
    if not held:
        return missing("test images", "No run has samples.npz.")
    models = [group[0] for group in study.models.values()][:DRAWN]
    answers = [dict(zip(map(str, run.test.ids), zip(run.test.labels, run.test.probabilities.argmax(axis=1)))) for run in models]
    shown = []
    for name, image in zip(map(str, held["ids"]), held["images"]):
        said = []
        for run, answer in zip(models, answers):
            if name in answer:
                true, predicted = (run.class_names[k] for k in answer[name])
                said.append((true == predicted, predicted, run.model))
        if said:
            alt = f"Test image {name}, true class {true}. " + "; ".join(
                f"{model}: {answer} ({'right' if right else 'wrong'})" for right, answer, model in said) + "."
            shown.append(picture(figures.thumbnail(image), alt, true, said))
    if not shown:
        return []
    return [heading("Test images"), aside("Under each image its true class, then what each model (its first seed) answers: "
                                          "✓ right, ✗ wrong."), grid(shown)]


# ---- training


def training(study):
    trained = [run for run in study.runs if run.history]
    if not trained:
        return missing("training curves", "No run has history.csv.")
    scores = [row["val_macro_f1"] for run in trained for row in run.history]
    top = min(1, math.ceil(10 * max([s for s in scores if math.isfinite(s)], default=1) + .5) / 10)
    last = max(row["epoch"] for run in trained for row in run.history)
    records = [{"model": run.model, "role": run.kind, "seed": run.seed, "epochs": len(run.history),
                "best_epoch": None if run.best_epoch is None else int(run.history[run.best_epoch]["epoch"]),
                "best_val_macro_f1": None if run.best_epoch is None else run.history[run.best_epoch]["val_macro_f1"],
                "seconds": sum(row["seconds"] for row in run.history)} for run in trained]
    models, more = drawn([(model, [run for run in group if run.history]) for model, group in study.models.items()
                          if any(run.history for run in group)])
    shown = []
    for model, group in models:
        lines = [(seed_name(run), *([row[key] for row in run.history] for key in ("epoch", "loss", "val_macro_f1")), run.best_epoch)
                 for run in group]
        alt = f"Training of {model}: validation macro-F1 and training loss by epoch. " + "; ".join(
            f"{name}: best {scores[best]:.3f} at epoch {epochs[best]:g}" for name, epochs, _, scores, best in lines if best is not None)
        shown.append(figure(figures.curves(lines, group[0].kind, top, last, alt=alt), alt, model, role=group[0].kind))
    return [aside("A line a seed; the mark is its best epoch, whose weights are the ones evaluated. The losses of different "
                  "objectives have different scales."), grid(shown), *more,
            table("training", "Epochs with the highest macro-F1 on validation; time is the sum of the epochs on the machine named "
                  "under Methods", [Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("Epochs", "epochs", "d"),
                                    Column("Best epoch", "best_epoch", "d"), Column("Validation macro-F1 there", "best_val_macro_f1"),
                                    Column("Training time", "seconds", "duration")], records)]


# ---- methods


def methods(study):
    # Where a run lies and what is said elsewhere in the report are no options that matter here.
    hidden = {"role", "formula", "seeds", "name", "study", "out", "student"}
    of_model = ["arch", "parameters"]
    keys = [key for key in dict.fromkeys([*of_model, *(key for run in study.runs for key in run.options)]) if key not in hidden]
    values = {key: [merged(f"{run.setting(key):,}" if type(run.setting(key)) is int and key in of_model
                           else run.setting(key) for run in group) for group in study.models.values()]
              for key in keys if any(run.setting(key) is not None for run in study.runs) or key not in of_model}
    differing = {key: row for key, row in values.items() if len(set(row)) > 1}
    blocks = []
    if differing:
        columns = [Column("Option", "option"), *(Column(model, f"{k}", kind="text") for k, model in enumerate(study.models))]
        records = [{"option": key, **{f"{k}": value for k, value in enumerate(row)}} for key, row in differing.items()]
        export = [{"option": key, **dict(zip(study.models, row))} for key, row in differing.items()]
        blocks.append(table("options", "Options that differ", columns, records, export))
    common = {key: row[0] for key, row in values.items() if len(set(row)) == 1}
    if common:
        blocks += [heading("Options of all runs"), facts(common.items())]
    return [*blocks, *environment(study), *statistics(study), *commands(study)]


def environment(study):
    held = [flat(run.environment) for run in study.runs if run.environment]
    if not held:
        return missing("the environment", "No run has environment.json: on which machine and with which versions is not known.")
    started = sorted(str(e.pop("started")) for e in held if e.get("started"))
    keys = dict.fromkeys(key for one in held for key in one if key not in ("role", "formula", "arch", "parameters"))
    pairs = [(key, merged(one.get(key) for one in held)) for key in keys]
    if started:
        pairs.append(("started", started[0] if len(set(started)) == 1 else f"{started[0]} to {started[-1]}"))
    return [heading("Environment"), facts(pairs)]


def statistics(study):
    conventions = {}
    for run in study.runs:
        if run.evaluation and run.evaluation.get("conventions"):
            key = tuple((key, merged([value])) for key, value in run.evaluation["conventions"].items())
            conventions.setdefault(key, []).append(run)
    if not conventions:
        return missing("how intervals were made", "No metrics.json says.")
    blocks = [heading("Statistics"), paragraph(
        "Intervals are bootstrap intervals. What is resampled are the clusters named here: whole groups (lesions, patients) where "
        "the data name them, else images. Over several seeds an interval carries both sources, images and seeds.")]
    for held, group in conventions.items():
        if len(conventions) > 1:
            blocks.append(aside("Of " + ", ".join(f"{run.model} {seed_name(run)}" for run in group)))
        blocks.append(facts(held))
    return blocks


def commands(study):
    root = command_path(Path(*study.runs[0].folder.parts[:-2]))
    lines = [f"python {'train_teacher.py' if run.kind == 'teacher' else 'distill.py'} --config "
             f"{command_path(run.folder / 'config.yaml')}" for run in study.runs if run.options]
    return [heading("Commands"), aside("Each run's config.yaml holds every option; these commands repeat the study."),
            code("\n".join([*lines, f"python evaluate.py {root}", f"python report.py {root}"]))]


def flat(mapping):
    """A nested mapping as one; the class list is not a property of the machine."""
    result = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            result |= {f"{key} {inner}": item for inner, item in value.items() if inner != "classes"}
        else:
            result[key] = value
    return result


def merged(values):
    """The different values as one text."""
    def text(value):
        if value in (None, "", [], {}):
            return "–"
        return ", ".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)
    return "; ".join(dict.fromkeys(map(text, values)))
