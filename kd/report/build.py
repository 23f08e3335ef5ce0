"""The sections of a report, in their order."""

from kd.report.blocks import Section
from kd.report.sections import (
    calibration,
    efficiency,
    findings,
    overview,
    performance,
    result,
    robustness,
    students,
    subgroups,
    sweeps,
    tensorboard,
)


def build(study, notes=()):
    """[Section] of a Study, with the files of `notes`; a section without content says what is missing."""
    last = [Section("boards", "TensorBoard", tensorboard.boards(study.networks)),
            Section("notes", "Supplementary notes", tensorboard.supplementary_notes(notes))]
    measured = efficiency.measure(study.networks)
    if not study.runs:
        limits = Section("problems", "What is not shown", findings.not_shown(study, [], measured), True)
        return [findings.audited(study), limits, *last]
    compared = students.compare(study)
    of_subgroups = subgroups.subgroups(study)
    unknown = of_subgroups if any("what" in block for block in of_subgroups) else []  # no section of its own
    sections = [
        Section("roles", "Roles and data", overview.roles(study)),
        Section("performance", "Performance on the test split", [*performance.performance(study), *unknown]),
        Section("students", "Teacher against students", students.students(study, compared)),
        Section("calibration", "Calibration and operating points", calibration.calibration(study)),
        Section("subgroups", "Subgroups", [] if unknown else of_subgroups),
        Section("robustness", "Robustness under corruptions", robustness.robustness(study.networks)),
        Section("efficiency", "Latency, memory and exported files", efficiency.efficiency(study.networks, measured)),
        Section("training", "Training", overview.training(study)),
        Section("sweeps", "Options chosen on validation", sweeps.chosen(study)),
        last[0],
        Section("methods", "Methods", overview.methods(study)),
        last[1],
    ]
    return [
        findings.audited(study),
        Section("result", "Result", result.result(study, compared, measured), True),
        Section("problems", "What is not shown", findings.not_shown(study, sections, measured), True),
        *sections,
    ]
