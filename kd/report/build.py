"""The sections of a report, in their order."""

from kd.report.blocks import Section
from kd.report.sections import (
    calibration,
    efficiency,
    findings,
    overview,
    performance,
    robustness,
    students,
    subgroups,
    sweeps,
    tensorboard,
)


def build(study, notes=()):
    """[Section] of a Study, with the files of `notes`; a section without content says what is missing."""
    title, blocks = findings.audited(study)
    first = [Section("findings", title, blocks), Section("problems", "What is not shown", findings.not_shown(study))]
    last = [Section("boards", "TensorBoard", tensorboard.boards(study)),
            Section("notes", "Supplementary notes", tensorboard.supplementary_notes(notes))]
    if not study.runs:
        return [*first, *last]
    compared = students.compare(study)
    return [
        *first,
        Section("words", "Findings in words", findings.in_words(study, compared)),
        Section("roles", "Roles and data", overview.roles(study)),
        Section("performance", "Performance on the test split", performance.performance(study, compared)),
        Section("students", "Teacher against students", students.students(study, compared)),
        Section("calibration", "Calibration and operating points", calibration.calibration(study)),
        Section("subgroups", "Subgroups", subgroups.subgroups(study)),
        Section("robustness", "Robustness under corruptions", robustness.robustness(study)),
        Section("efficiency", "Latency and memory", efficiency.efficiency(study)),
        Section("pareto", "Pareto: quality against latency", efficiency.pareto(study)),
        *last,
        Section("sweeps", "Options chosen on validation", sweeps.chosen(study)),
        Section("training", "Training", overview.training(study)),
        Section("methods", "Methods", overview.methods(study)),
    ]
