"""An audit of results: which of them are too odd to be true, in runs of this project and of other systems.

    audit_run(run)                    one run folder
    audit_study(runs, tables)         several together, and folders of other systems' tables
    audit_tables(folder)              one such folder
    audit_paths(paths)                whatever lies at or below some folders
    audit_metrics(result, val, test)  what evaluation has in hand

Each returns findings, worst first: {"rule", "severity", "saw", "why", "do"}, all text. An error is
something that makes figures wrong; a warning, something to look at before they are published; a
note, something a reader should know. The rules are in kd/audit/rules_*.py; they are applied to a
list of Cases (kd/audit/evidence.py).
"""

import itertools
from pathlib import Path

from kd import runs
from kd.audit import evidence, other_tables
from kd.audit.rules import RULES, SEVERITIES
from kd.errors import UserError
from kd.run_folder import Run


def audit_run(run, result=None):
    """Findings about one run: a Run, or its folder. UserError only where there is no such folder.

    result: the content that its metrics.json is about to have.
    """
    run = run if isinstance(run, Run) else Run(run)
    return worst_first([*apply_rules([evidence.of_run(run, result)])[0], *of_folds([run])])


def audit_study(runs_, tables=()):
    """Findings about Runs or their folders, each and together, and about folders of other systems' tables."""
    runs_ = as_runs(runs_)
    return worst_first([*apply_rules(gather_cases(runs_, tables))[0], *of_folds(runs_)])


def of_folds(runs_):
    """Errors and warnings about each of the folds whose answers Runs join."""
    cases = [evidence.of_run(fold) for run in runs_ for fold in run.folds]
    return [finding for case in cases for finding in apply_rules([case])[0] if finding["severity"] != "note"]


def audit_tables(folder):
    """Findings about a folder with other systems' tables (kd/audit/other_tables.py). UserError where it has none."""
    return apply_rules(other_tables.read(folder))[0]


def audit_metrics(result, val, test, name=""):
    """Findings about what evaluation has in hand: metrics.json as a dict, Predictions (val may be None)."""
    return apply_rules([evidence.of_metrics(result, val, test, name)])[0]


def audit_paths(paths):
    """Findings about whatever lies at or below folders: run folders, tables, or both.

    Each study is audited alone, since two may name a model alike; tables go with the only study, or with that in whose
    folder they lie.
    """
    run_folders, table_folders = [], []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is no folder" if path.exists() else f"no such folder: {path}")
        with_predictions = {file.parents[1] for file in runs.below(path, f"**/{runs.TEST.as_posix()}")}
        with_metrics = {file.parent for file in runs.below(path, "**/metrics.json")}
        candidates = {file.parent for name in other_tables.TABLES for file in runs.below(path, f"**/{name}")}
        with_tables = list(filter(other_tables.has_tables, sorted(candidates)))
        if not with_predictions | with_metrics and not with_tables:
            raise UserError(f"nothing to audit in {path}",
                            runs.single_folds(path) or f"A run has {runs.TEST.as_posix()} or metrics.json; another "
                            f"system's tables are {', '.join(other_tables.TABLES)}.")
        run_folders += sorted(with_predictions | with_metrics)
        table_folders += with_tables
    studies = {}  # study's folder -> its run folders, its folders of tables
    for folder in run_folders:
        studies.setdefault(runs.study(folder).resolve(), ([], []))[0].append(folder)
    if len(studies) < 2:
        return audit_study(run_folders, table_folders)
    for folder in table_folders:
        home = next((top for top in (folder.resolve(), *folder.resolve().parents) if top in studies), folder)
        studies.setdefault(home, ([], []))[1].append(folder)
    findings = []
    for study, folders in studies.items():
        findings += [{**finding, "saw": f"{study.name}: {finding['saw']}"} for finding in audit_study(*folders)]
    return worst_first(findings)


def gather_cases(runs_, tables=(), studies=()):
    """Cases of Runs or their folders, of the files that stand over them, and of folders of tables.

    studies: StudyFolders that have been read already.
    """
    runs_ = as_runs(runs_)
    return [*map(evidence.of_run, runs_), *evidence.over_runs(runs_, studies),
            *itertools.chain.from_iterable(map(other_tables.read, tables))]


def as_runs(runs_):
    """A Run of each of these Runs or folders, once."""
    runs_ = [run if isinstance(run, Run) else Run(run) for run in runs_]
    return list({run.folder.resolve(): run for run in runs_}.values())


def apply_rules(cases):
    """(findings, names of the rules that could be applied) of Cases, each and together."""
    findings, names = [], []
    for rule in RULES:
        of_rule, applied = rule.apply(cases)
        findings += of_rule
        names += [rule.name] if applied or of_rule else []
    return worst_first(findings), names


def worst_first(findings):
    """Findings by severity: errors, warnings, notes."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding["severity"]))


def grouped(findings):
    """Findings, worst first, one for all that a rule saw in equal severity: "saw" is then a list of texts."""
    groups = {}
    for finding in worst_first(findings):
        group = groups.setdefault((finding["severity"], finding["rule"]), {**finding, "saw": []})
        group["saw"].append(finding["saw"])
    return list(groups.values())
