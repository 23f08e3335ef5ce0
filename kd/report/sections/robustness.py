"""What corruptions of the images do to the models."""

import math

from kd.files import parse_number
from kd.report import figures_robustness
from kd.report.blocks import Column, aside, figure, heading, interval, missing, paragraph, picture, table
from kd.report.sections.overview import FILES
from kd.report.sections.tensorboard import small
from kd.robustness import suites
from kd.text import format_bounds, format_count, is_defined

FIRST = ("acc", "macro_f1", "tag", "model", "seed")
TEXT = ("tag", "model", "seed", "file", "suite", "corruption", "baseline", "worst_tag")
ENDS = ("", "_lo", "_hi")


def rows_of(study):
    """Rows of all robustness.csv, numbers for texts; and those without an interval."""
    rows, bare = [], []
    for run in study.runs:
        for row in run.robustness:
            held = numbers(row)
            held.update(model=run.model, seed=run.seed, role=run.kind, tag=row["tag"], file=row.get("file") or "best.pt",
                        suite=row.get("suite") or "", corruption=row.get("corruption") or row["tag"])
            held["acc"] = held["acc"] if is_defined(held.get("acc")) else held.get("accuracy")
            (rows if is_defined(held.get("macro_f1_lo")) else bare).append(held)
    return rows, bare


def numbers(row):
    return {key: value if key in TEXT or key.startswith("worst_tag") else parse_number(value) for key, value in row.items() if key}


def robustness(study):
    rows, bare = rows_of(study)
    blocks = []
    if bare:
        models = ", ".join(dict.fromkeys(f"{row['model']}/{row['seed']}" for row in bare))
        blocks += missing(f"robustness of {models}", f"{format_count(len(bare), 'row')} of robustness.csv without intervals.")
    if not rows:
        return blocks or missing("robustness under corruptions", "No run has robustness.csv.",
                                 f"python robustness.py {study.command}")
    lacking = [f"{run.model}/{run.seed}" for run in study.firsts if not run.robustness]
    if lacking:
        blocks += missing(f"robustness of {', '.join(lacking)}", "There is no robustness.csv.")
    blocks += few(study, rows)
    blocks += over_all(study, rows)
    for suite in dict.fromkeys(row["suite"] for row in rows):
        blocks += drawings([row for row in rows if row["suite"] == suite], suite)
    blocks.append(worst(rows))
    export = [{key: row.get(key) for key in (*FIRST, *(key for key in row if key not in (*FIRST, "role")))} for row in rows]
    blocks.append(table("robustness", "Every corruption", [
        *whose(rows), Column("Corruption", "tag"), interval("Accuracy", "acc", "accuracy"), interval("Macro-F1", "macro_f1"),
        interval("Δ macro-F1", "macro_f1_difference", form="+.3f")],
        [{**row, "format": FILES.get(row["file"], row["file"])} for row in rows], export))
    sheets = {suite: small(data, 1400) for suite, data in study.sheets.items()}
    looks = [picture(src, "A test image under each corruption" + f" of suite {suite}" * (len(sheets) > 1) + ", a column a severity.")
             for suite, src in sheets.items() if src]
    return [*blocks, heading("What the corruptions look like"), *looks] if looks else blocks


def whose(rows):
    """Columns of what a row is of: the suite where there are several."""
    return [Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("File", "format"),
            *[Column("Suite", "suite")] * (len({row["suite"] for row in rows}) > 1)]


def few(study, rows):
    """A word where fewer images were corrupted than the test split has."""
    tested = {len(run.test.ids) for run in study.runs if run.robustness}
    used = {row["images"] for row in rows if is_defined(row.get("images"))}
    return [paragraph(f"On {' and '.join(f'{n:,.0f}' for n in sorted(used))} of {max(tested):,} test images, so clean figures differ from those "
                      "above.", "note")] if used and min(used) < max(tested) else []


def over_all(study, cells):
    """What robustness_summary.csv has: quality, and whether models know when they fail. cells: as of rows_of()."""
    known = {(run.model, run.seed): run for run in study.runs}
    rows = [numbers(row) for row in study.summary if (row["model"], row["seed"]) in known]
    rows = [{**row, "role": known[row["model"], row["seed"]].kind, "format": FILES.get(row["file"], row["file"])} for row in rows]
    told = [row for row in rows if is_defined(row.get("mean_macro_f1_lo"))]
    if not told:
        return missing("the mean over all corruptions", "There is no robustness_summary.csv with intervals.",
                       f"python robustness.py {study.command}")
    notes = [suites.note(suite, {row["corruption"] for row in cells if row["suite"] == suite})
             for suite in dict.fromkeys(row["suite"] for row in told)]
    names = list(dict.fromkeys(row["baseline"] for row in told if row.get("baseline")))
    baseline = ", ".join(names) or "none"
    if names and not all(is_defined(row.get("rbe")) for row in told):
        notes.append("An rBE is undefined where what the baseline loses is not clearly above 0.")
    export = [{key: value for key, value in row.items() if key not in ("role", "format")} for row in told]
    return [*map(aside, filter(None, notes)), table(
        "robustness_summary", f"Over all corruptions and severities; BE: sum of 1 - balanced accuracy over that of the baseline ({baseline}), "
        "rBE: the same of what is lost from clean, less is better; rank by error; lowest: of all cells, its interval is that of "
        "this cell alone", [
            *whose(told), Column("Rank", "rank", ".0f"), interval("Clean macro-F1", "clean_macro_f1"),
            interval("Mean macro-F1", "mean_macro_f1"), interval("BE", "be"), interval("rBE", "rbe"), Column("Lowest", "worst_tag"),
            interval("Macro-F1 there", "worst_macro_f1")], told, export), *certainty(told)]


def certainty(told):
    """Of rows of robustness_summary.csv what is left of calibration, and of each class's promised sensitivity."""
    records = []
    for row in told:
        classes = [key.split("/", 1)[1] for key in row if key.startswith("promised_sensitivity/") and is_defined(row[key])]
        for name in classes or [None]:
            records.append({key: row.get(key) for key in (
                "model", "seed", "role", "format", "suite", *(f"{which}_ece{end}" for which in ("clean", "mean") for end in ENDS))})
            records[-1].update({"class": name, "promised": row.get(f"promised_sensitivity/{name}"), "lowest": row.get(
                f"worst_tag_sensitivity/{name}"), **{f"{which}{end}": row.get(f"{which}_sensitivity/{name}{end}")
                                                     for which in ("clean", "mean", "worst") for end in ENDS}})
    if not any(is_defined(record["mean_ece"]) or is_defined(record["promised"]) for record in records):
        return []
    return [table("robustness_certainty", "Whether they know when they fail: ECE after the temperature, and the sensitivity at the "
                  "threshold that promised one, both chosen on clean validation images; mean and lowest over all cells. Chance widens an ECE: its "
                  "interval is corrected for that, and may lie below it", [
                      *whose(told), interval("ECE, clean", "clean_ece"), interval("ECE, mean", "mean_ece"), Column("Class", "class"),
                      Column("Promised", "promised", ".2f"), interval("Sensitivity, clean", "clean"), interval("Mean", "mean"),
                      Column("Lowest", "lowest"), interval("Sensitivity there", "worst")], records)]


def drawings(rows, suite):
    """Curves and a heat map of the rows of one suite, where they have what these show."""
    kinds = {row["model"]: row["role"] for row in rows}
    clean = {(row["model"], row["file"]) for row in rows if row["corruption"] == "clean"}
    rows = [row for row in rows if (row["model"], row["file"]) in clean and is_defined(row["severity"] if "severity" in row else None)]
    names = figures_robustness.corruptions(rows)
    if not names:
        return []
    means = {f"{model} {FILES.get(file, file)}": [row["macro_f1"] for row in own if row["corruption"] != "clean"]
             for (model, file), own in figures_robustness.lines(rows).items()}
    alt = f"Macro-F1{figures_robustness.seeds(rows)} under {len(names)} corruptions ({suite}). Mean over them: " + "; ".join(
        f"{name} {sum(values) / len(values):.3f}" for name, values in means.items() if values)
    blocks = [heading(f"Macro-F1 by corruption{f', suite {suite}' if suite else ''}")]
    if max(row["severity"] for row in rows) > 0:
        shown, left_out = figures_robustness.legible(rows)
        blocks.append(figure(figures_robustness.curves(shown, kinds, alt=alt), alt, "Against severity; the bands are 95% intervals"
                             + figures_robustness.seeds(rows)))
        blocks += map(aside, left_out)
    if all(math.isfinite(row["macro_f1"]) for row in rows):
        blocks.append(figure(figures_robustness.heatmap(rows, kinds, alt=alt), alt, "Mean over severities; the darker, the more of the "
                             "clean figure is lost" + figures_robustness.seeds(rows)))
    return blocks


def worst(rows):
    records = [{**row, "format": FILES.get(row["file"], row["file"])} for row in worst_of(rows)]
    return table("robustness_worst", "Clean images, and the lowest macro-F1 of all cells (corruptions and severities), with its paired "
                 "difference; intervals are of that cell alone, as if it had not been chosen", [
        *whose(records), interval("Macro-F1, clean", "clean"), Column("Lowest", "tag"), Column("Of cells", "cells", "d"),
        interval("Macro-F1 there", "macro_f1"), interval("Δ", "macro_f1_difference", form="+.3f")], records)


def worst_of(rows):
    """A record for each model, seed, file and suite: the corrupted row of least macro-F1, of how many, beside the clean one."""
    groups = {}
    for row in rows:
        groups.setdefault((row["model"], row["seed"], row["file"], row["suite"]), []).append(row)
    found = []
    for held in groups.values():
        clean = next((row for row in held if row["corruption"] == "clean"), {})
        corrupted = [row for row in held if row["corruption"] != "clean" and is_defined(row["macro_f1"])]
        if corrupted:
            least = min(corrupted, key=lambda row: row["macro_f1"])
            found.append({**{key: least.get(key) for key in (
                "model", "seed", "role", "file", "suite", "tag", "macro_f1", "macro_f1_lo", "macro_f1_hi", "macro_f1_difference",
                "macro_f1_difference_lo", "macro_f1_difference_hi")}, "clean": clean.get("macro_f1"),
                "clean_lo": clean.get("macro_f1_lo"), "clean_hi": clean.get("macro_f1_hi"), "cells": len(corrupted)})
    return found


def sentences(study):
    """Of each model's checkpoint the lowest cell, where its interval bears a loss; it does not bear that none is worse."""
    found = []
    for row in worst_of(rows_of(study)[0]):
        difference, lo, hi = (row[f"macro_f1_difference{end}"] for end in ("", "_lo", "_hi"))
        if is_defined(hi) and hi < 0 and row["file"] == "best.pt":
            found.append(f"The lowest macro-F1 that {row['model']} ({row['seed'].replace('_', ' ')}) was seen with, of "
                         f"{format_count(row['cells'], 'cell')}{' of suite ' + row['suite'] if row['suite'] else ''}, is that under "
                         f"{row['tag']}: {difference:+.3f} {format_bounds(lo, hi, '+.3f')} from clean, an interval of this cell alone.")
    return found
