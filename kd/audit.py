"""An audit of results: which of them are too odd to be true, in our runs and in anybody's.

    audit.run(folder)                 one run folder
    audit.study(folders, tables)      several together, and folders of other systems' tables
    audit.tables(folder)              one such folder
    audit.everything(paths)           whatever lies at or below some folders
    audit.metrics(result, val, test)  what evaluation has in hand

Each returns findings, worst first: {"rule", "severity", "saw", "why", "do"}, all text. An error is
something that makes figures wrong; a warning, something to look at before they are published; a
note, something a reader should know. The rules are in kd/rules.py, what is held against them is a
list of Cases (kd/evidence.py).
"""

import itertools
from pathlib import Path

from kd import evidence, foreign, runs
from kd.errors import UserError
from kd.rules import RULES, SEVERITIES


def run(folder, result=None, held=None):
    """Findings about one run folder. UserError only where there is no such folder.

    result: the content that its metrics.json is about to have. held: its (val, test) Predictions, where
    they have been read.
    """
    return examine([evidence.of_run(folder, result, held)])[0]


def study(folders, tables=()):
    """Findings about run folders, each and together, and about folders of other systems' tables."""
    return examine(gather(folders, tables))[0]


def tables(folder):
    """Findings about a folder with other systems' tables (kd/foreign.py). UserError where it has none."""
    return examine(foreign.read(folder))[0]


def metrics(result, val, test, name=""):
    """Findings about what evaluation has in hand: metrics.json as a dict, Predictions (val may be None)."""
    return examine([evidence.of_metrics(result, val, test, name)])[0]


def everything(paths):
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
        tables_ = [place for place in sorted({file.parent for name in foreign.TABLES for file in path.rglob(name)})
                   if foreign.has_tables(place)]
        if not own and not tables_:
            raise UserError(f"nothing to audit in {path}",
                            f"A run has {runs.TEST.as_posix()} or metrics.json; another system's tables are "
                            f"{', '.join(foreign.TABLES)}.")
        found, others = found + sorted(own), others + tables_
    studies = {}
    for folder in found:
        studies.setdefault(runs.study(folder).resolve(), ([], []))[0].append(folder)
    if len(studies) < 2:
        return study(found, others)
    for place in others:
        home = next((top for top in (place.resolve(), *place.resolve().parents) if top in studies), place)
        studies.setdefault(home, ([], []))[1].append(place)
    return worst_first({**finding, "saw": f"{home.name}: {finding['saw']}"} for home, held in studies.items() for finding in study(*held))


def gather(folders, tables=()):
    """Cases of run folders, of the files that stand over them, and of folders of tables."""
    folders = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    return [*map(evidence.of_run, folders), *evidence.over_runs(folders),
            *itertools.chain.from_iterable(map(foreign.read, tables))]


def examine(cases):
    """(findings, names of the rules that were held) of Cases, each and together."""
    findings, held = [], []
    for one in RULES:
        found, applied = one.hold(cases)
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
