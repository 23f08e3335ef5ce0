"""What precedes all figures: the audit's findings, what is missing, and what the figures support."""

from collections import Counter

from kd.audit import examine
from kd.audit.other_tables import TABLES
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.report.blocks import aside, bullets, code, heading, missing, paragraph
from kd.report.sections import calibration, efficiency, performance, robustness, students, subgroups
from kd.report.sections.overview import synthetic


def audited(study):
    """(title, blocks) of the audit's findings on the runs, and on tables of other systems beside them."""
    cases = examine.gather_cases(study.runs, study.tables, [study.files] if study.files else ())
    findings, rules = examine.apply_rules(cases)
    counts = Counter(finding["severity"] for finding in findings)
    totals = []
    for severity in examine.SEVERITIES:
        if counts[severity]:
            totals.append(f"{counts[severity]} {severity}{'s' if counts[severity] > 1 else ''}")
    subject = "runs" if study.runs else "tables"
    note = f"{len(rules)} of {len(examine.RULES)} rules could be applied to these {subject}: {', '.join(rules)}."
    blocks = [{"kind": "finding", **group} for group in examine.grouped(findings)]
    return f"Audit: {', '.join(totals) or 'nothing found'}", [*blocks, aside(note)]


def not_shown(study):
    """Blocks about what limits the whole report, and which runs, files and tables are left out of it."""
    blocks = []
    foreign = sorted({run.model for run in study.runs if run.environment.get("teacher_is_foreign")})
    if foreign:
        blocks.append(paragraph(f"The teacher of {listing(foreign)} was trained elsewhere, and may have seen the test "
                                "images of these results.", "note"))
    if synthetic(study):
        note = ("Synthetic data. The images are drawn by a program, not photographed. The figures below show that the "
                "pipeline works; they say nothing about real patients.")
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
        if names:
            is_all = len(names) == len(study.runs)
            blocks += missing(content, f"No run has {file}." if is_all else f"There is no {file} of {listing(names)}.")
    for folder in study.tables:
        blocks += other_system(folder)
    return blocks


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


def in_words(study, compared):
    """Blocks: sentences, each with the interval that supports it."""
    sentences = {
        "The best student": performance.best_student(study, compared),
        "Teacher and students": students.sentences(compared),
        "Promised sensitivities": calibration.threshold_sentences(study),
        "Subgroups": subgroups.sentences(study),
        "Under corruptions": robustness.sentences(study),
        "As exported": efficiency.export_sentences(study),
    }
    blocks = []
    for title, lines in sentences.items():
        if lines:
            blocks += [heading(title, 3), bullets(lines)]
    return blocks or missing("findings in words", "They state comparisons with intervals, and there are none.")
