"""Performance of the models on the test split, and their order on validation."""

import math

from kd.report import figures
from kd.report.blocks import Column, aside, interval, missing, paragraph, spread, table
from kd.report.sections import sweeps
from kd.report.sections.overview import responsive_figure, seed_columns, seed_name
from kd.report.sections.students import conclusive, not_significant
from kd.text import format_bounds, format_count, format_metric, format_number, is_defined

METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "weighted_f1": "Weighted F1",
           "balanced_accuracy": "Balanced accuracy", "macro_auroc": "Macro AUROC"}
WITHOUT_RAREST = "macro_f1_without_rarest"
MAX_ROWS = 24  # of the forest


def performance(study):
    """Blocks: the metrics of teachers and students, and each run with its interval."""
    if not study.firsts:
        return missing("performance", "No run was evaluated.", f"python evaluate.py {study.command}")
    names = titles(study)
    records = [model_record(study, model, names) for model in study.evaluated]
    without_mean = [
        record["model"] for record in records if record["seeds"] > 1 and not is_defined(record["macro_f1_mean"])
    ]
    blocks = [paragraph(majority_sentence(study)), *rarest_note(study, names)]
    for name, title, roles in (
        ("teacher_summary", "Teacher", ("teacher",)), ("students_summary", "Students", ("alone", "student")),
    ):
        rows = [record for record in records if record["role"] in roles and record["model"] not in without_mean]
        if rows:
            columns = [Column("Model", "model", kind="model")]
            columns += [interval(metric, f"{key}_mean", key) for key, metric in names.items()]
            columns += [Column("Seeds", "seeds", "d"), Column("Sweep", "sweep", kind="text")]
            blocks.append(table(name, f"{title}, test split; {level(study)} intervals", columns, rows))
    if without_mean:
        blocks += missing(f"the mean over seeds of {', '.join(without_mean)}",
                          "Its interval is in seeds.json, which is missing or belongs to other runs.",
                          f"python evaluate.py {study.command}")
    blocks += forest(study)
    if any(len(group) > 1 for group in study.models.values()):
        blocks.append(seeds_table(study, names))
    return blocks


def titles(study):
    """METRICS and, where it is known, macro-F1 without the rarest class, by the name of this class."""
    if not any(is_defined(run.metric(WITHOUT_RAREST)["value"]) for run in study.runs if run.evaluation):
        return METRICS
    left_out = {run.evaluation.get("conventions", {}).get("rarest_class") for run in study.firsts}
    name = left_out.pop() if len(left_out) == 1 else None
    title = f"Macro-F1 without {name}" if isinstance(name, str) else "Macro-F1 without the rarest class"
    return {**{key: METRICS[key] for key in ("accuracy", "macro_f1")}, WITHOUT_RAREST: title, **METRICS}


def rarest_note(study, names):
    """A block that says which class a macro-F1 leaves out and why, in a list; else an empty one. names: of titles()."""
    support = study.firsts[0].evaluation.get("split", {}).get("test", {}).get("support") or {}
    name = names.get(WITHOUT_RAREST, "").removeprefix("Macro-F1 without ")
    if name not in support:
        return []
    return [aside(f"{names[WITHOUT_RAREST]} leaves out the rarest class of the test split "
                  f"({format_count(support[name], 'image')}), by which chance moves macro-F1 most.")]


def model_record(study, model, names):
    """A model's row with the reference columns: a seed's metrics, or means whose intervals cover images and seeds.

    names: of titles(), as for seeds_table().
    """
    group = study.models[model]
    record = {"model": model}
    for name in names:
        record.update(spread(name, study.over_seeds(model, name), "_mean"))
    sources = "images and seeds" if len(group) > 1 else "images"
    return {**record, "seeds": len(group), "role": group[0].kind, "interval": sources,
            **sweeps.record(study, model)}


def seeds_table(study, names):
    """The metrics of each evaluated Run of a model with several, with intervals over its images; the CSV has all."""
    records = []
    for run in study.runs:
        if run.evaluation:
            record = {"model": run.model, "role": run.kind, "seed": run.seed}
            for name in names:
                record.update(spread(name, run.metric(name)))
            records.append(record)
    shown = [record for record in records if len(study.models[record["model"]]) > 1]
    columns = [*seed_columns(), *(interval(title, name) for name, title in names.items())]
    return table("seeds", "Each seed, test split; intervals over its images alone", columns, shown, records)


def level(study):
    """`95%`, the level of the intervals, or `bootstrap` where it is not known."""
    percent = study.firsts[0].evaluation.get("conventions", {}).get("level")
    return f"{100 * percent:g}%" if percent else "bootstrap"


def majority_sentence(study):
    """The metrics of the majority rule, which any model must beat."""
    run = study.firsts[0]
    metrics = []
    for name, title in METRICS.items():
        metric = run.metric(name, "majority")
        if is_defined(metric["value"]):
            metrics.append(f"{title[0].lower()}{title[1:]} {format_metric(metric)}")
    if not metrics:
        return "The majority rule, which any model must beat, was not evaluated."
    majority_class = run.evaluation.get("conventions", {}).get("majority_class")
    answer = f", {majority_class}" if majority_class else ""
    chosen_on = "validation" if "val" in run.evaluation.get("split", {"val": 0}) else "test"
    return (f"Any model must beat the majority rule, which gives every image the same answer{answer} (the most "
            f"frequent class of {chosen_on}). It has {', '.join(metrics)}.")


def forest(study):
    """Blocks: macro-F1 of each run with its interval, beside that of the majority rule."""
    rows, descriptions = [], []
    runs = [run for run in study.runs if run.evaluation]
    for run in runs[:MAX_ROWS]:
        has_seeds = len(study.models[run.model]) > 1
        label = f"{run.model} · {seed_name(run)}" if has_seeds else run.model
        value, lo, hi = (run.metric("macro_f1")[key] for key in ("value", "lo", "hi"))
        rows.append((label, run.kind, value, lo, hi))
        descriptions.append(f"{label}: {format_number(value)} {format_bounds(lo, hi)}")
    surplus = []
    if len(runs) > MAX_ROWS:
        surplus = [aside(f"The first {MAX_ROWS} of {len(runs)} runs are drawn; the tables have all of them.")]
    majority = study.firsts[0].metric("macro_f1", "majority")["value"]
    reference = ("majority rule", majority) if math.isfinite(majority) else None
    alt = f"Macro-F1 on the test split with intervals. {'; '.join(descriptions)}"
    caption = f"Macro-F1 of each run, with its {level(study)} interval"
    return [responsive_figure(figures.forest, rows, reference, alt=alt, caption=caption), *surplus]


# ---- order on validation


def on_validation(study, model):
    """Macro-F1 of an evaluated model on validation, the mean over its seeds and folds; NaN where one has none.

    A fold need not have been evaluated on its own: its figure is that of the epoch that was kept.
    """
    values = []
    for run in study.models[model]:
        of_folds = [fold.best_row.get("val_macro_f1", math.nan) for fold in run.folds]
        is_whole = of_folds and len(of_folds) == study.cross_validation
        values += of_folds if is_whole else [run.metric("macro_f1", "val")["value"]]
    return sum(values) / len(values)


def ranked(study):
    """The evaluated students, best first, by macro-F1 on validation."""
    scores = [(-on_validation(study, model), model) for model, group in study.evaluated.items()
              if group[0].kind != "teacher"]
    return [model for score, model in sorted(scores) if math.isfinite(score)]


def choice_verdict(study, row, second):
    """A sentence: what the difference of the student that validation puts first from the `second` says on test."""
    if not conclusive(row):
        return (f"On test its difference from {second} is {not_significant(row)}: the choice rests on validation "
                "alone.")
    if row["lo"] > 0:
        return "Test confirms the choice." if not study.cross_validation else (
            "Test agrees; but the images that a fold validates on are tested in others, so that it is no check apart.")
    return f"On test {second} is significantly better: validation chose wrong."
