"""What limits all figures: the audit's findings, and what is not shown."""

from collections import Counter

from kd.audit import examine
from kd.audit.other_tables import TABLES
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.report.blocks import Section, aside, bullets, code, fold, missing, paragraph
from kd.report.sections.overview import synthetic


def audited(study):
    """The Section of the audit's findings on runs, and on tables of other systems; unfolded if there are errors."""
    cases = examine.gather_cases(study.runs, study.tables, [study.files] if study.files else ())
    findings, rules = examine.apply_rules(cases)
    findings = examine.worst_first([*findings, *examine.of_folds(study.runs)])
    counts = Counter(finding["severity"] for finding in findings)
    totals = []
    for severity in examine.SEVERITIES:
        if counts[severity]:
            totals.append(f"{counts[severity]} {severity}{'s' if counts[severity] > 1 else ''}")
    subject = "runs" if study.runs else "tables"
    found = {finding["rule"] for finding in findings}
    silent = [rule for rule in rules if rule not in found]
    note, names = f"{len(rules)} of {len(examine.RULES)} checks could be applied to these {subject}", ", ".join(silent)
    lacking = [rule.name for rule in examine.RULES if rule.name not in rules]
    names += f". Not applied, for want of what they read: {', '.join(lacking)}" if lacking else ""
    blocks = [{"kind": "finding", **group} for group in examine.grouped(findings)]
    if counts["error"] and len(totals) > 1:
        blocks = [*(block for block in blocks if block["severity"] == "error"),
                  fold(", ".join(totals[1:]), [block for block in blocks if block["severity"] != "error"])]
    title = f"Audit: {', '.join(totals) or f'{len(rules)} checks, no problem found'}"
    named = "Each is named after the problem that it looks for"
    rest = (fold(f"{note}; {len(silent)} of them found no problem", [aside(f"{named}: {names}.")]) if blocks else
            aside(f"{note}. {named}: {names}."))
    return Section("findings", title, [*blocks, rest], counts["error"] > 0)


def not_shown(study, sections, measured):
    """Blocks about what limits the whole report, and which runs, files and tables are left out of it.

    sections: the others, for what is missing in them. measured: efficiency.Measured.
    """
    blocks = []
    foreign = sorted({run.model for run in study.runs if run.environment.get("teacher_is_foreign")})
    if foreign:
        blocks.append(paragraph(f"The teacher of {listing(foreign)} was trained elsewhere, and may have seen the test "
                                "images of these results.", "note"))
    if synthetic(study):
        note = ("Synthetic data. The images are drawn by a program, not photographed. All figures of this "
                "report show that the pipeline works; they say nothing about real patients.")
        blocks.append(paragraph(note, "note"))
    if len({frozenset(run.test.ids.tolist()) for run in study.runs}) > 1:
        note = "The runs were tested on different images. Their figures must not be compared."
        blocks.append(paragraph(note, "note"))
    if study.problems:
        lines = []
        for folder, problem, remedy in study.problems:
            lines.append(f"{folder}: {problem}. {remedy}" if remedy else f"{folder}: {problem}")
        blocks += [paragraph("Not everything could be shown.", "note"), bullets(lines)]
    without_environment = [f"{run.model}/{run.seed}" for run in study.runs if not run.environment]
    without_split = [f"{run.model}/{run.seed}" for run in study.runs if not run.split]
    for content, file, names in (
        ("the machine and the versions", "environment.json", without_environment),
        ("which images were trained, validated and tested on", "split.csv", without_split),
    ):
        if 0 < len(names) < len(study.runs):  # of all runs: the sections say it
            blocks += missing(content, f"There is no {file} of {listing(names)}.")
    for folder in study.tables:
        blocks += other_system(folder)
    lines = limits(study, sections, measured)
    return [*blocks, *([bullets(lines)] if lines else [])]


def other_system(folder):
    """Blocks of another system's tables: what they state, and why it is not drawn."""
    lines = []
    for path in sorted(folder.glob("*.csv")):
        try:
            rows = read_csv(path, separators=",\t;")
        except UserError as error:
            lines.append(error.message)
            continue
        names = [name for name in (rows[0] if rows else {}) if name]
        lacking = ["a run (predictions/test.npz)", "an interval", "a split (split.csv)",
                   "an environment (environment.json)"]
        if any(name.endswith(("_lo", "_hi")) for name in names):
            lacking.remove("an interval")
        lines.append(f"{path.name}: {len(rows)} rows, {', '.join(names)}. Missing: {', '.join(lacking)}.")
    return [
        paragraph(f"Figures of another system, in {folder.name}. They were audited above; they are not drawn, because "
                  "their predictions, split and machine are not known.", "note"),
        bullets(lines or [f"none of {', '.join(TABLES)} can be read"]),
        paragraph("Not shown: roles and data, performance, teacher against students, calibration and operating points, "
                  "robustness, latency and memory, Pareto, training, methods. They need run folders.", "missing"),
        aside("A run folder with predictions/test.npz (ids, labels, logits, class_names, groups) is all that is "
              "needed:"),
        code("python evaluate.py theirs_test.npz --val theirs_val.npz --groups lesions.csv --out results"),
    ]


def limits(study, sections, measured):
    """Sentences about what no figure of the report says, and what is missing in its `sections`."""
    lines = []
    if study.firsts:
        units = study.firsts[0].evaluation.get("conventions", {}).get("clusters")
        drawn = "lesions or patients" if units == "group" else "images"
        lines.append(f"Other clinics, cameras and patients: the intervals are about other {drawn} of the same source.")
        single = [model for model, group in study.models.items() if len(group) == 1]
        if single:
            on_each = " on each fold" if study.cross_validation else ""
            lines.append(f"Other trainings of {listing(single)}, trained with one seed only{on_each}.")
    if measured.points:
        lines.append(f"Other machines: latencies are of {measured.conditions}.")
    lacking = [block["what"] for section in sections for block in section.blocks if "what" in block]
    return lines + ([f"Not in these files: {listing(lacking, 8)}. The sections say why."] if lacking else [])
