"""An audit of results: which of them are too odd to be true, in our runs and in anybody's.

    audit.run(folder)                 one run folder
    audit.study(folders, tables)      several together, and folders of other systems' tables
    audit.tables(folder)              one such folder
    audit.everything(paths)           whatever lies at or below some folders
    audit.metrics(result, val, test)  what evaluation has in hand

Each returns findings, worst first: {"rule", "severity", "saw", "why", "do"}, all text. An error is
something that makes figures wrong; a warning, something to look at before they are published; a
note, something a reader should know. The rules are in kd/audit/rules.py, what is held against them is a
list of Cases (kd/audit/evidence.py).
"""

import itertools
from pathlib import Path

from kd import runs
from kd.audit import evidence, other_tables
from kd.audit.rules import RULES, SEVERITIES
from kd.errors import UserError


def audit_run(folder, result=None, held=None):
    """Findings about one run folder. UserError only where there is no such folder.

    result: the content that its metrics.json is about to have. held: its (val, test) Predictions, where
    they have been read.
    """
    return apply_rules([evidence.of_run(folder, result, held)])[0]


def audit_study(folders, tables=()):
    """Findings about run folders, each and together, and about folders of other systems' tables."""
    return apply_rules(gather_cases(folders, tables))[0]


def audit_tables(folder):
    """Findings about a folder with other systems' tables (kd/audit/other_tables.py). UserError where it has none."""
    return apply_rules(other_tables.read(folder))[0]


def audit_metrics(result, val, test, name=""):
    """Findings about what evaluation has in hand: metrics.json as a dict, Predictions (val may be None)."""
    return apply_rules([evidence.of_metrics(result, val, test, name)])[0]


def audit_paths(paths):
    """Findings about whatever lies at or below folders: run folders, tables, or both.

    Studies are held apart, since two may name a model alike; tables go with the only study, or with that in whose folder
    they lie.
    """
    found, others = [], []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is no folder" if path.exists() else f"no such folder: {path}")
        own = {file.parents[1] for file in path.rglob(runs.TEST.as_posix())} | {
            file.parent for file in path.rglob("metrics.json")}
        tables_ = [place for place in sorted({file.parent for name in other_tables.TABLES for file in path.rglob(name)})
                   if other_tables.has_tables(place)]
        if not own and not tables_:
            raise UserError(f"nothing to audit in {path}",
                            f"A run has {runs.TEST.as_posix()} or metrics.json; another system's tables are "
                            f"{', '.join(other_tables.TABLES)}.")
        found, others = found + sorted(own), others + tables_
    studies = {}
    for folder in found:
        studies.setdefault(runs.study(folder).resolve(), ([], []))[0].append(folder)
    if len(studies) < 2:
        return audit_study(found, others)
    for place in others:
        home = next((top for top in (place.resolve(), *place.resolve().parents) if top in studies), place)
        studies.setdefault(home, ([], []))[1].append(place)
    return worst_first({**finding, "saw": f"{home.name}: {finding['saw']}"} for home, held in studies.items() for finding in audit_study(*held))


def gather_cases(folders, tables=()):
    """Cases of run folders, of the files that stand over them, and of folders of tables."""
    folders = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    return [*map(evidence.of_run, folders), *evidence.over_runs(folders),
            *itertools.chain.from_iterable(map(other_tables.read, tables))]


def apply_rules(cases):
    """(findings, names of the rules that were held) of Cases, each and together."""
    findings, held = [], []
    for one in RULES:
        found, applied = one.apply(cases)
        findings += found
        held += [one.name] if applied or found else []
    return worst_first(findings), held


def worst_first(findings):
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding["severity"]))


def grouped(findings):
    """Findings, worst first, one for all that a rule saw in equal severity: "saw" is then a list of texts."""
    groups = {}
    for finding in worst_first(findings):
        group = groups.setdefault((finding["severity"], finding["rule"]), {**finding, "saw": []})
        group["saw"].append(finding["saw"])
    return list(groups.values())
