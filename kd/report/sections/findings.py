"""What a reader must know before any figure: the audit's findings, what is missing, and what the figures bear."""

from collections import Counter

from kd.audit import examine
from kd.audit.other_tables import TABLES
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.report.blocks import aside, bullets, code, heading, missing, paragraph
from kd.report.sections import calibration, efficiency, performance, robustness, students
from kd.report.sections.overview import synthetic


def audited(study):
    """(title, blocks) of what the audit says of the runs, and of another system's tables beside them."""
    found, held = examine.apply_rules(examine.gather_cases(study.runs, study.tables, [study.files] if study.files else ()))
    counts = Counter(finding["severity"] for finding in found)
    told = [f"{counts[severity]} {severity}{'s' if counts[severity] > 1 else ''}" for severity in examine.SEVERITIES if counts[severity]]
    blocks = [{"kind": "finding", **group} for group in examine.grouped(found)]
    blocks.append(aside(f"{len(held)} of {len(examine.RULES)} rules could be held against these "
                        f"{'runs' if study.runs else 'tables'}: {', '.join(held)}."))
    return f"Audit: {', '.join(told) if told else 'nothing found'}", blocks


def not_shown(study):
    """Blocks about what keeps whole runs, or whole tables, out of the report."""
    blocks = []
    if synthetic(study):
        blocks.append(paragraph("Synthetic data. The images are drawn by a program, not photographed. The figures below show that the "
                                "pipeline works; they say nothing about real patients.", "note"))
    if len({frozenset(run.test.ids.tolist()) for run in study.runs}) > 1:
        blocks.append(paragraph("The runs were tested on different images. Their figures must not be compared.", "note"))
    if study.problems:
        blocks += [paragraph("Not everything could be shown.", "note"),
                   bullets(f"{folder}: {what}" + (f". {remedy}" if remedy else "") for folder, what, remedy in study.problems)]
    for what, file, held in (("the machine and the versions", "environment.json", lambda run: run.environment),
                             ("who was trained, validated and tested on", "split.csv", lambda run: run.split)):
        lacking = [f"{run.model}/{run.seed}" for run in study.runs if not held(run)]
        if lacking:
            blocks += missing(what, f"No run has {file}." if len(lacking) == len(study.runs) else
                              f"There is no {file} of {listing(lacking)}.")
    for folder in study.tables:
        blocks += stated(folder)
    return blocks


def stated(folder):
    """Of another system's tables: what they state, and why it is not drawn."""
    blocks = [paragraph(f"Figures of another system, in {folder.name}. They were audited above; they are not rendered, because nothing "
                        "says which predictions, split and machine they are of.", "note")]
    told = []
    for path in sorted(folder.glob("*.csv")):
        try:
            rows = read_csv(path, separators=",\t;")
        except UserError as error:
            told.append(error.message)
            continue
        names = [name for name in (rows[0] if rows else {}) if name]
        bounds = [name for name in names if name.endswith(("_lo", "_hi"))]
        lacking = ["a run (predictions/test.npz)", *([] if bounds else ["an interval"]), "a split (split.csv)",
                   "an environment (environment.json)"]
        told.append(f"{path.name}: {len(rows)} rows, {', '.join(names)}. Missing: {', '.join(lacking)}.")
    return [*blocks, bullets(told or [f"none of {', '.join(TABLES)} can be read"]),
            paragraph("Not shown: roles and data, performance, teacher against students, calibration and operating points, robustness, "
                      "latency and memory, Pareto, training, methods. They are made of run folders.", "missing"),
            aside("A run folder with predictions/test.npz (ids, labels, logits, class_names, groups) is all that is needed:"),
            code("python evaluate.py theirs_test.npz --val theirs_val.npz --groups lesions.csv --out results")]


def in_words(study, compared):
    """Sentences, each with the interval that bears it."""
    said = {"The best student": performance.best_student(study, compared),
            "Teacher and students": students.sentences(compared),
            "Promised sensitivities": calibration.threshold_sentences(study),
            "Under corruptions": robustness.sentences(study),
            "As exported": efficiency.export_sentences(study)}
    blocks = [block for title, items in said.items() if items for block in (heading(title, 3), bullets(items))]
    return blocks or missing("findings in words", "They are made of comparisons with intervals, and there are none.")
