"""Figures by sex, age, body site, or whatever columns evaluate.py was given with --by."""

from kd.report.blocks import Column, aside, interval, missing, spread, table
from kd.report.sections.overview import seed_columns
from kd.robustness.scores import TARGET
from kd.text import format_metric, format_p

TITLES = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro-F1",
          "calibration_error": "Calibration error, after the temperature if there is one"}
ALPHA = 0.05


def subgroups(study):
    """Blocks: a table of the subgroups, and one of the largest gaps."""
    runs = [run for run in study.firsts if (run.evaluation or {}).get("subgroups")]
    if not runs:
        return missing("subgroups", "No run was evaluated by sex, age or another column of a table.",
                       f"python evaluate.py {study.command} --by sex --table FILE.csv")
    note = ("Every subgroup has other images, and some have classes that others lack: macro figures are over the "
            "classes of the subgroup, and a gap in accuracy can be one of their classes. A gap is between different "
            "images (Newcombe's interval); p is corrected (Holm) over all gaps of its metric, in all columns that were "
            "asked for.")
    records, gaps = [], []
    for run in runs:
        for column, content in run.evaluation["subgroups"].items():
            records += [{"column": column, **record(run, part)} for part in content["subgroups"]]
            gaps += [{"model": run.model, "role": run.kind, "seed": run.seed, "column": column, **gap}
                     for gap in content["gaps"]]
    rates = [name for row in records for name in row
             if name.startswith("sensitivity/") and not name.endswith(("_lo", "_hi", "_withheld"))]
    rates.sort(key=lambda name: name != f"sensitivity/{TARGET}")
    columns = [*seed_columns(), Column("By", "column"), Column("Subgroup", "subgroup"),
               Column("Images", "images", ",d"), *(interval(title, name) for name, title in TITLES.items()),
               *(interval(f"Sensitivity, {name.split('/', 1)[1]}", name) for name in rates[:1])]
    of_gaps = [*seed_columns(), Column("By", "column"), Column("Metric", "metric"), Column("Highest", "highest"),
               Column("Lowest", "lowest"), interval("Gap", "value", "gap"), Column("p", "p_corrected", "p"),
               Column("Gaps in the family", "gaps", "d")]
    gaps = [{**gap, "gap_lo": gap["lo"], "gap_hi": gap["hi"]} for gap in gaps]
    return [aside(note), table("subgroups", "Figures of subgroups, test split, the first seed of each model", columns,
                               records),
            table("gaps", "The largest gap between subgroups in each metric", of_gaps, gaps)]


def record(run, part):
    """The record of one subgroup of a Run."""
    result = {"model": run.model, "role": run.kind, "seed": run.seed, "subgroup": part["name"],
              "images": part["images"], "groups": part["groups"]}
    for name, metric in part["test"].items():
        name = "calibration_error" if name.startswith("rms_ce_debiased") else name
        result.update(spread(name, {key: metric.get(key) for key in ("value", "lo", "hi", "withheld")}))
    return result


def sentences(study, model):
    """One if the accuracy or a sensitivity of a model's first seed differs between subgroups by more than chance."""
    lines = []
    for run in (run for run in study.firsts if run.model == model):
        clauses = [f"by {column} in {gap['metric'].replace('/', ' of ')} ({gap['highest']} over {gap['lowest']} by "
                   f"{format_metric(gap)}, p {format_p(gap['p_corrected'])})"
                   for column, content in ((run.evaluation or {}).get("subgroups") or {}).items()
                   for gap in content["gaps"] if gap["metric"].startswith(("accuracy", "sensitivity"))
                   and gap["p_corrected"] is not None and gap["p_corrected"] < ALPHA]
        if clauses:
            lines.append(f"{run.model} differs {'; '.join(clauses)}.")
    return lines
