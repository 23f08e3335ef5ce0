"""What corruptions of the images do to the models."""

import math

from kd.files import parse_number
from kd.report import figures_robustness
from kd.report.blocks import Column, aside, figure, heading, interval, missing, paragraph, picture, table
from kd.report.sections.overview import FORMATS, responsive_figure, seed_columns, with_format
from kd.report.sections.tensorboard import png_uri
from kd.report.study_files import OF_FIRST_FOLDS
from kd.robustness import suites
from kd.text import format_bounds, format_count, is_defined

FIRST = ("acc", "macro_f1", "tag", "model", "seed")  # columns of the reference report
TEXTS = ("tag", "model", "seed", "file", "suite", "corruption", "baseline", "worst_tag")
ENDS = ("", "_lo", "_hi")


def robustness_rows(study):
    """Rows of all robustness.csv, numbers for texts; and those without an interval."""
    rows, bare = [], []
    for run in study.runs:
        for cells in run.robustness:
            row = with_numbers(cells)
            row.update(model=run.model, seed=run.seed, role=run.kind, tag=cells["tag"],
                       file=cells.get("file") or "best.pt", suite=cells.get("suite") or "",
                       corruption=cells.get("corruption") or cells["tag"])
            if not is_defined(row.get("acc")):
                row["acc"] = row.get("accuracy")
            (rows if is_defined(row.get("macro_f1_lo")) else bare).append(row)
    return rows, bare


def with_numbers(cells):
    """A row of a CSV with numbers for the texts of all columns but TEXTS and reasons why an interval is withheld."""
    row = {}
    for key, text in cells.items():
        if key:  # a cell beyond the header has none
            is_text = key in TEXTS or key.startswith("worst_tag") or key.endswith("_withheld")
            row[key] = text if is_text else parse_number(text)
    return row


def robustness(study):
    """Blocks: the mean over all corruptions, each suite's figures, the lowest cells, and all of them."""
    rows, bare = robustness_rows(study)
    blocks = [aside(OF_FIRST_FOLDS)] if study.first_folds else []
    if bare:
        models = ", ".join(dict.fromkeys(f"{row['model']}/{row['seed']}" for row in bare))
        count = format_count(len(bare), "row")
        blocks += missing(f"robustness of {models}", f"{count} of robustness.csv without intervals.")
    if not rows:
        return blocks if bare else missing("robustness under corruptions", "No run has robustness.csv.",
                                           f"python robustness.py {study.network_folders}")
    unmeasured = study.lacking("robustness")
    if unmeasured:
        blocks += missing(f"robustness of {unmeasured}", "There is no robustness.csv.")
    blocks += subset_note(study, rows)
    blocks += summary(study, rows)
    for suite in dict.fromkeys(row["suite"] for row in rows):
        blocks += drawings([row for row in rows if row["suite"] == suite], suite)
    return [*blocks, lowest_table(rows), cells_table(rows), *sheets(study)]


def subject_columns(rows):
    """The Columns that say what a row is of; the suite where there are several."""
    columns = [*seed_columns(), Column("File", "format")]
    if len({row["suite"] for row in rows}) > 1:
        columns.append(Column("Suite", "suite"))
    return columns


def subset_note(study, rows):
    """A block where fewer images were corrupted than the test split has, in a list; else an empty one."""
    tested = max(len(run.test.ids) for run in study.runs if run.robustness)
    used = sorted({row["images"] for row in rows if is_defined(row.get("images"))})
    if not used or used[0] >= tested:
        return []
    counts = " and ".join(f"{count:,.0f}" for count in used)
    return [paragraph(f"On {counts} of {tested:,} test images, so clean figures differ from those above.", "note")]


def cells_table(rows):
    """All robustness_rows(); the CSV begins with the columns FIRST."""
    keys = dict.fromkeys([*FIRST, *(key for row in rows for key in row if key != "role")])
    columns = [
        *subject_columns(rows), Column("Corruption", "tag"), interval("Accuracy", "acc", "accuracy"),
        interval("Macro-F1", "macro_f1"), interval("Δ macro-F1", "macro_f1_difference", form="+.3f"),
    ]
    export = [{key: row.get(key) for key in keys} for row in rows]
    return table("robustness", "Every corruption", columns, list(map(with_format, rows)), export)


def sheets(study):
    """Blocks: a test image under each corruption of each suite."""
    sources = {suite: png_uri(data, 1400) for suite, data in study.sheets.items()}
    pictures = []
    for suite, source in sources.items():
        of_suite = f" of suite {suite}" if len(sources) > 1 else ""
        if source:
            pictures.append(picture(source, f"A test image under each corruption{of_suite}, one column per severity."))
    note = "Above each image its severity and, after the colon, the parameters of the corruption."
    return [heading("What the corruptions look like"), aside(note), *pictures] if pictures else []


# ---- over all corruptions


def summary(study, cells):
    """Blocks of robustness_summary.csv: quality, and calibration. cells: as of robustness_rows()."""
    runs = {(run.model, run.seed): run for run in study.runs}
    rows = []
    for texts in study.summary:
        run = runs.get((texts["model"], texts["seed"]))
        row = with_numbers(texts)
        if run and is_defined(row.get("mean_macro_f1_lo")):
            rows.append({**with_format(row), "role": run.kind})
    if not rows:
        return missing("the mean over all corruptions", "There is no robustness_summary.csv with intervals.",
                       f"python robustness.py {study.network_folders}")
    notes = []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        notes.append(suites.note(suite, {row["corruption"] for row in cells if row["suite"] == suite}))
    baselines = dict.fromkeys(row["baseline"] for row in rows if row.get("baseline"))
    if baselines and not all(is_defined(row.get("rbe")) for row in rows):
        notes.append("An rBE is undefined where the loss of the baseline is not clearly above 0.")
    return [*map(aside, filter(None, notes)), summary_table(rows, ", ".join(baselines) or "none"), *certainty(rows)]


def summary_table(rows, baseline):
    """rows: of robustness_summary.csv, with numbers, role and format; baseline: its name."""
    columns = [
        *subject_columns(rows), Column("Rank", "rank", ".0f"), interval("Clean macro-F1", "clean_macro_f1"),
        interval("Mean macro-F1", "mean_macro_f1"), interval("BE", "be"), interval("rBE", "rbe"),
        interval("BE, MedMNIST-C", "be_medmnist_c"), interval("rBE, MedMNIST-C", "rbe_medmnist_c"),
    ]
    caption = (f"Over all corruptions and severities. BE, balanced error: 1 - balanced accuracy, as a ratio to that of "
               f"the baseline ({baseline}); below 1 is better than the baseline. rBE, relative: the same of what is "
               "lost from clean images. Both are ratios of sums; MedMNIST-C takes the mean of the ratios of the "
               "corruptions. Rank: by BE")
    export = [{key: value for key, value in row.items() if key not in ("role", "format")} for row in rows]
    return table("robustness_summary", caption, columns, rows, export)


def certainty(rows):
    """Blocks of rows of robustness_summary.csv: the calibration, and the sensitivity that each class was promised."""
    records = []
    for row in rows:
        promised = [key for key in row if key.startswith("promised_sensitivity/") and is_defined(row[key])]
        for name in [key.split("/", 1)[1] for key in promised] or [None]:
            records.append(certainty_record(row, name))
    if not any(is_defined(record["mean_ece"]) or is_defined(record["promised"]) for record in records):
        return []
    columns = [
        *subject_columns(rows), interval("Calibration error, clean", "clean_rms_ce_debiased"),
        interval("Mean", "mean_rms_ce_debiased"), Column("ECE, clean", "clean_ece"), Column("Mean", "mean_ece"),
        Column("Class", "class"), Column("Promised", "promised", ".2f"), interval("Sensitivity, clean", "clean"),
        interval("Mean", "mean"), Column("Lowest", "lowest"), interval("Sensitivity there", "worst"),
    ]
    caption = ("Calibration and promised sensitivity: debiased calibration error and ECE after the temperature, and "
               "the sensitivity at the threshold that promised one, both chosen on clean validation images; mean and "
               "lowest over all cells. Chance raises an ECE, so that it has no interval")
    return [table("robustness_certainty", caption, columns, records)]


def certainty_record(row, name):
    """The record of the class `name` (None: of none) in a row of robustness_summary.csv."""
    record = {key: row.get(key) for key in ("model", "seed", "role", "format", "suite")}
    for condition in ("clean", "mean"):
        record.update({f"{condition}_{name}{end}": row.get(f"{condition}_{name}{end}")
                       for name in ("ece", "rms_ce_debiased") for end in (*ENDS, "_withheld")})
    record.update({"class": name, "promised": row.get(f"promised_sensitivity/{name}"),
                   "lowest": row.get(f"worst_tag_sensitivity/{name}")})
    for condition in ("clean", "mean", "worst"):
        record.update({f"{condition}{end}": row.get(f"{condition}_sensitivity/{name}{end}")
                       for end in (*ENDS, "_withheld")})
    return record


# ---- figures


def drawings(rows, suite):
    """Blocks: curves and a heat map of the rows of one suite, of files that were measured on clean images too."""
    roles = {row["model"]: row["role"] for row in rows}
    on_clean = {(row["model"], row["file"]) for row in rows if row["corruption"] == "clean"}
    rows = [row for row in rows if (row["model"], row["file"]) in on_clean and is_defined(row.get("severity"))]
    names = figures_robustness.corruptions(rows)
    if not names:
        return []
    seeds = figures_robustness.seeds(rows)
    means = []
    for (model, file), of_file in figures_robustness.lines(rows).items():
        values = [row["macro_f1"] for row in of_file if row["corruption"] != "clean"]
        if values:
            means.append(f"{model} {FORMATS.get(file, file)} {sum(values) / len(values):.3f}")
    of_suite = f" ({suite})" if is_named(suite) else ""
    alt = f"Macro-F1{seeds} under {len(names)} corruptions{of_suite}. Mean over them: {'; '.join(means)}"
    blocks = [heading(f"Macro-F1 by corruption, suite {suite}" if is_named(suite) else "Macro-F1 by corruption")]
    if max(row["severity"] for row in rows) > 0:
        legible, left_out = figures_robustness.legible(rows)
        caption = f"Against severity; the bands are 95% intervals{seeds}"
        blocks.append(responsive_figure(figures_robustness.robustness_curves, legible, roles, alt=alt, caption=caption))
        blocks += map(aside, left_out)
    if all(math.isfinite(row["macro_f1"]) for row in rows):
        caption = f"Mean over severities; the darker, the more of the clean figure is lost{seeds}"
        blocks.append(figure(figures_robustness.robustness_heatmap(rows, roles, alt=alt), alt, caption))
    return blocks


# ---- the lowest cells


def lowest_table(rows):
    """The lowest_cells() of robustness_rows()."""
    records = [with_format(record) for record in lowest_cells(rows)]
    columns = [
        *subject_columns(records), interval("Macro-F1, clean", "clean"), Column("Lowest", "tag"),
        Column("Corrupted sets", "cells", "d"), interval("Macro-F1 there", "macro_f1"),
        interval("Δ", "macro_f1_difference", form="+.3f"),
    ]
    caption = ("Clean images, and the lowest macro-F1 of all corrupted test sets (each corruption at each severity), "
               "with its paired difference; intervals as if this set had not been chosen for its low figure")
    return table("robustness_worst", caption, columns, records)


def lowest_cells(rows):
    """A record for each model, seed, file and suite: the corrupted row of least macro-F1, beside the clean one."""
    groups = {}
    for row in rows:
        groups.setdefault((row["model"], row["seed"], row["file"], row["suite"]), []).append(row)
    records = []
    for group in groups.values():
        clean = next((row for row in group if row["corruption"] == "clean"), {})
        corrupted = [row for row in group if row["corruption"] != "clean" and is_defined(row["macro_f1"])]
        if corrupted:
            lowest = min(corrupted, key=lambda row: row["macro_f1"])
            record = {key: lowest.get(key) for key in ("model", "seed", "role", "file", "suite", "tag")}
            for name in ("macro_f1", "macro_f1_difference"):
                record.update({f"{name}{end}": lowest.get(f"{name}{end}") for end in ENDS})
            record.update({f"clean{end}": clean.get(f"macro_f1{end}") for end in ENDS})
            records.append({**record, "cells": len(corrupted)})
    return records


def sentences(study, model):
    """Of each suite the corruption that leaves a model least, where an interval shows a loss; the teacher's there."""
    rows = [row for row in robustness_rows(study)[0] if row["file"] == "best.pt"]
    lines = []
    for suite in dict.fromkeys(row["suite"] for row in rows if row["model"] == model):
        of_suite = [row for row in rows if row["suite"] == suite]
        groups = {}  # tag -> the row of each seed of the model
        for row in of_suite:
            if row["model"] == model and row["corruption"] != "clean" and is_defined(row["macro_f1"]):
                groups.setdefault(row["tag"], []).append(row)
        seeds = max(map(len, groups.values()), default=0)
        groups = {tag: group for tag, group in groups.items() if len(group) == seeds}
        if not groups:
            continue
        tag, lowest = min(groups.items(), key=lambda item: sum(row["macro_f1"] for row in item[1]))
        if any(row.get("macro_f1_difference_hi", math.nan) < 0 for row in lowest):
            of_teachers = [f"; {row['model']} to {falls([row])}" for row in of_suite
                           if row["role"] == "teacher" and row["tag"] == tag]
            where = f" of suite {suite}" if is_named(suite) else ""
            lines.append(f"Of {format_count(len(groups), 'corrupted test set')}{where}, {in_words(lowest[0])} harms "
                         f"most: macro-F1 of {model} falls to {falls(lowest)}{''.join(of_teachers[:1])}.")
    return lines


def falls(rows):
    """Macro-F1 of rows, each with its seed; of more than three the lowest and the highest."""
    if len(rows) > 3:
        rows = sorted(rows, key=lambda row: row["macro_f1"])[::len(rows) - 1]
    words = [f"{row['macro_f1']:.3f} {format_bounds(row['macro_f1_lo'], row['macro_f1_hi'])} "
             f"({row['seed'].replace('_', ' ')})" for row in rows]
    return ", ".join(words)


def in_words(row):
    """`gaussian noise at severity 5`, or the tag where a corruption has parameters of its own."""
    severity = row.get("severity")
    if is_defined(severity) and row["tag"] == f"{row['corruption']}_{severity:g}":
        return f"{row['corruption'].replace('_', ' ')} at severity {severity:g}"
    return row["tag"]


def is_named(suite):
    """Whether a suite has a name that says more than that the user chose its corruptions."""
    return suite not in ("", "custom")
