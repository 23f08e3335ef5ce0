"""How good the models are on the test split, which student is best, and on what "best" rests."""

import math

from kd.report import figures
from kd.report.blocks import Column, aside, figure, interval, missing, paragraph, spread, table
from kd.report.sections.overview import seed_name
from kd.text import format_bounds, format_count, format_metric, format_number, is_defined

METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "weighted_f1": "Weighted F1",
           "balanced_accuracy": "Balanced accuracy", "macro_auroc": "Macro AUROC"}
MOST = 24  # rows of the forest


def performance(study, compared):
    if not study.firsts:
        return missing("performance", "No run was evaluated.", f"python evaluate.py {study.command}")
    columns = [Column("Model", "model", kind="model"), *(interval(title, f"{name}_mean", name) for name, title in METRICS.items()),
               Column("Seeds", "seeds", "d")]
    records = {model: record(study, model) for model in study.evaluated}
    lacking = [model for model, held in records.items() if held["seeds"] > 1 and not is_defined(held["macro_f1_mean"])]
    blocks = [paragraph(majority(study))]
    for name, caption, kinds in (("teacher_summary", "Teacher, test split", ("teacher",)),
                                 ("students_summary", "Students, test split", ("alone", "student"))):
        rows = [held for model, held in records.items() if held["role"] in kinds and model not in lacking]
        if rows:
            blocks.append(table(name, f"{caption}; {level(study)} intervals", columns, rows))
    if lacking:
        blocks += missing(f"the mean over seeds of {', '.join(lacking)}", "Its interval stands in seeds.json, which is not there or "
                          "not of these runs.", f"python evaluate.py {study.command}")
    blocks += [paragraph(sentence) for sentence in best_student(study, compared)]
    blocks += [aside(undefined(study))] if undefined(study) else []
    blocks += forest(study)
    if any(len(group) > 1 for group in study.models.values()):
        blocks.append(table("seeds", "Each run, test split; intervals over its images alone", [
            Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), *(interval(title, name) for name, title in METRICS.items())],
            [{"model": run.model, "role": run.kind, "seed": run.seed,
              **{key: value for name in METRICS for key, value in spread(name, run.metric(name)).items()}}
             for run in study.runs if run.evaluation]))
    return blocks


def record(study, model):
    """A model's row with the reference columns: a seed's figures, or means over seeds with both sources of chance."""
    group = study.models[model]
    held = {"model": model}
    for name in METRICS:
        held.update(spread(name, study.over_seeds(model, name), "_mean"))
    return {**held, "seeds": len(group), "role": group[0].kind,
            "interval": "images and seeds" if len(group) > 1 else "images"}


def level(study):
    told = study.firsts[0].evaluation.get("conventions", {}).get("level")
    return f"{100 * told:g}%" if told else "bootstrap"


def majority(study):
    run = study.firsts[0]
    answer = run.evaluation.get("conventions", {}).get("majority_class")
    held = [f"{METRICS[name][0].lower()}{METRICS[name][1:]} {format_metric(run.metric(name, 'majority'))}" for name in METRICS
            if is_defined(run.metric(name, "majority")["value"])]
    return (f"What any of these must beat: the majority rule, which gives every image the same answer{f', {answer}' if answer else ''} "
            f"(the most frequent class of validation), has {', '.join(held)}.") if held else (
            "The majority rule was not evaluated: what any model must beat is not known.")


def undefined(study):
    counts = {name: [run.metric(name)["undefined"] for run in study.runs if run.evaluation] for name in METRICS}
    told = [f"{METRICS[name]} {' to '.join(dict.fromkeys(f'{n:g}' for n in (min(held), max(held))))}"
            for name, held in counts.items() if any(held)]
    return f"Resamples of a run in which a class was missing, so that the figure is undefined there: {', '.join(told)}." if told else ""


def forest(study):
    several = {model: len(group) > 1 for model, group in study.models.items()}
    rows = [(run.model + (f" · {seed_name(run)}" if several[run.model] else ""), run.kind,
             *(run.metric("macro_f1")[key] for key in ("value", "lo", "hi"))) for run in study.runs if run.evaluation]
    more = []
    if len(rows) > MOST:
        more = [aside(f"The first {MOST} of {len(rows)} runs are drawn; the tables have all of them.")]
        rows = rows[:MOST]
    line = study.firsts[0].metric("macro_f1", "majority")["value"]
    reference = ("majority rule", line) if math.isfinite(line) else None
    alt = "Macro-F1 on the test split with intervals. " + "; ".join(f"{name}: {format_number(value)} {format_bounds(lo, hi)}"
                                                                      for name, _, value, lo, hi in rows)
    wide, narrow = (figures.forest(rows, reference, shape, alt=alt) for shape in (False, True))
    return [figure(wide, alt, f"Macro-F1 of each run, with its {level(study)} interval", narrow), *more]


# ---- the best student


def ranked(study):
    """[(validation macro-F1, model)] of the evaluated students, best first; of means over seeds."""
    found = []
    for model, group in study.evaluated.items():
        values = [run.metric("macro_f1", "val")["value"] for run in group]
        if group[0].kind != "teacher" and all(map(math.isfinite, values)):
            found.append((sum(values) / len(values), model))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def best_student(study, compared):
    """Sentences about the student that validation puts first, and whether test tells it from the next."""
    order = ranked(study)
    if len(order) < 2:
        return []
    best, second = (model for _, model in order[:2])
    sentences = [f"Best student: {best}, by macro-F1 on validation (next {second}), so that test has no say in the choice. On test it has "
                 f"{format_metric(study.over_seeds(best, 'macro_f1'))}."]
    row = compared.difference(second, best) if compared else None
    if row and is_defined(row["lo"]):
        apart = row["lo"] > 0 or row["hi"] < 0
        sentences[0] += f" Its paired difference from {second} on test is {row['difference']:+.3f} {format_bounds(row['lo'], row['hi'], '+.3f')}" + (
            ": test bears the choice out." if row["lo"] > 0 else
            ": on test the other is the better one, so validation chose wrong." if apart else
            ": the two are not distinguishable on test, and “best” rests on validation alone.")
    tested = sorted(((study.over_seeds(model, "macro_f1")["value"], model) for _, model in order), reverse=True)
    tested = [pair for pair in tested if is_defined(pair[0])]
    if tested and tested[0][1] != best:
        sentences.append(f"The highest macro-F1 on test is that of {tested[0][1]}, {format_metric(study.over_seeds(tested[0][1], 'macro_f1'))}; to choose it for that would be to "
                         "choose on test.")
    once = [model for model in (best, second) if len(study.models[model]) == 1]
    if once:
        sentences.append(f"{' and '.join(once)} {'has' if len(once) == 1 else 'have'} {format_count(1, 'seed')}: what training again would "
                         "change is in no interval.")
    return sentences
