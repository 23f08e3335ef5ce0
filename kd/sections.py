"""The sections of a report, in their order."""

from kd import (report_boards, report_calibration, report_efficiency, report_findings, report_performance, report_robustness, report_students,
                report_study)
from kd.document import Section


def build(study, notes=()):
    """[Section] of a Study, with notes from files; each is there, if only to say what is missing."""
    title, findings = report_findings.audited(study)
    first = [Section("findings", title, findings), Section("problems", "What is not shown", report_findings.not_shown(study))]
    last = [Section("boards", "TensorBoard", report_boards.boards(study)),
            Section("notes", "Supplementary notes", report_boards.noted(notes))]
    if not study.runs:
        return [*first, *last]
    compared = report_students.compare(study)
    return [
        *first,
        Section("words", "Findings in words", report_findings.in_words(study, compared)),
        Section("roles", "Roles and data", report_study.roles(study)),
        Section("performance", "Performance on the test split", report_performance.performance(study, compared)),
        Section("students", "Teacher against students", report_students.students(study, compared)),
        Section("calibration", "Calibration and operating points", report_calibration.calibration(study)),
        Section("robustness", "Robustness under corruptions", report_robustness.robustness(study)),
        Section("efficiency", "Latency and memory", report_efficiency.efficiency(study)),
        Section("pareto", "Pareto: quality against latency", report_efficiency.pareto(study)),
        *last,
        Section("training", "Training", report_study.training(study)),
        Section("methods", "Methods", report_study.methods(study)),
    ]
