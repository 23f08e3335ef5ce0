"""A report as plain data: sections of blocks, from which the page, the PDF and the tables are made.

    heading    text, level: 2 or 3 (a section's title is 1)
    paragraph  text, tone: "", "aside", "note" (framed) or "missing" (what is not shown, and why)
    bullets    items: texts
    code       text
    facts      pairs of texts
    finding    severity, rule, saw: texts, why, do
    table      name, caption, columns, records; columns is [] where the table is only written to files;
               export: records of its CSV; paper: columns of its LaTeX
    figure     svg (inline, from kd/report/figures.py), alt, caption; narrow: the same for a telephone, or None;
               role: of the model that it shows, or ""
    picture    src (a PNG as data URI), alt, caption; lines below it: (whether the answer is right, answer, model)
    grid       items: figures or pictures that stand side by side
    fold       summary: text, blocks: shown when it is unfolded

Texts are plain; the renderers escape them.
"""

import math
import re
from dataclasses import dataclass

from kd.errors import as_typed_here
from kd.files import csv_line, write_text
from kd.report import latex
from kd.text import format_count, format_duration, format_p, is_defined

SHORT = 12  # characters of a name that is not broken


@dataclass
class Section:
    """A section of a report. key: its anchor on the page. is_open: whether the page shows it unfolded."""

    key: str
    title: str
    blocks: list
    is_open: bool = False

    @property
    def contents(self):
        """`2 tables, 3 figures`: what a reader finds when the section is unfolded; "" where there is text alone."""
        counts = {"table": 0, "figure": 0, "image": 0}
        for kind, noun in (("table", "table"), ("figure", "figure"), ("picture", "image")):
            counts[noun] += sum(kind != "table" or bool(block["columns"]) for block in blocks_of([self], kind))
        texts = [format_count(count, noun) for noun, count in counts.items() if count]
        is_missing = any(block.get("tone") == "missing" for block in self.blocks)
        return ", ".join(texts) or ("not shown" if is_missing else "")

    def __post_init__(self):
        self.blocks = _as_typed_here(self.blocks)


def _as_typed_here(content):
    """Texts, in lists, tuples and dicts, with the commands that work here."""
    if isinstance(content, str):
        return as_typed_here(content)
    if isinstance(content, dict):
        return {key: _as_typed_here(value) for key, value in content.items()}
    return type(content)(map(_as_typed_here, content)) if type(content) in (list, tuple) else content


@dataclass
class Column:
    """A column of a table.

    title: the heading. key: of the value in a record. form: how a number is printed: a format specification,
    "duration" or "p". lo, hi: keys of the bounds of its interval, or None. kind: "", "model" (a name, with the mark of
    the record's role), "seed" (seed_0 is printed as 0) or "text" (may be long). reason: why none of its figures has an
    interval, where that is said above the table.
    """

    title: str
    key: str
    form: str = ".3f"
    lo: str = None
    hi: str = None
    kind: str = ""
    reason: str = ""


def interval(title, key, stem=None, form=".3f"):
    """The Column of `key` with the keys `<stem>_lo` and `<stem>_hi` of its bounds. stem: where it is not `key`."""
    stem = stem or key
    return Column(title, key, form, f"{stem}_lo", f"{stem}_hi")


def spread(name, metric, value=""):
    """A METRIC as entries of a record: {"<name><value>": value, "<name>_lo": lo, "<name>_hi": hi}.

    Also "<name>_withheld" where it says why it has no interval.
    """
    record = {f"{name}{value}": metric["value"], f"{name}_lo": metric["lo"], f"{name}_hi": metric["hi"]}
    return {**record, f"{name}_withheld": metric["withheld"]} if metric.get("withheld") else record


# ---- blocks


def heading(text, level=2):
    """A heading of level 2 or 3."""
    return {"kind": "heading", "text": text, "level": level}


def paragraph(text, tone=""):
    """A paragraph. tone: "", "aside", "note" or "missing"."""
    return {"kind": "paragraph", "text": text, "tone": tone}


def aside(text):
    """A paragraph in small print."""
    return paragraph(text, "aside")


def missing(what, why, remedy=""):
    """[Blocks] that say that `what` is not shown, why, and which command creates it."""
    block = {**paragraph(f"Not shown: {what}. {why}", "missing"), "what": what}
    return [block, *([code(remedy)] if remedy else [])]


def bullets(items):
    """A list of texts."""
    return {"kind": "bullets", "items": list(items)}


def code(text):
    """A text whose line breaks and spaces are kept."""
    return {"kind": "code", "text": text}


def facts(pairs):
    """(name, value) pairs, each shown as str() gives it."""
    return {"kind": "facts", "pairs": [(str(key), str(value)) for key, value in pairs]}


def table(name, caption, columns, records, export=None, paper=None):
    """A table, without the columns in which no record has a value.

    export: the records of its CSV file, where they are not `records`. paper: the columns of its LaTeX file, where they
    are not `columns`. The caption says how many values are not shown because they have no interval, and, where no
    figure of a column has one for the same reason, this reason.
    """
    columns = [column for column in columns if _has_values(column, records)]
    paper = columns if paper is None else [column for column in paper if _has_values(column, records)]
    for column in [*columns, *paper]:
        if not column.kind and all(isinstance(record.get(column.key), (str, type(None))) for record in records):
            column.kind = "text"
    hidden = sum(_lacks_interval(record, column) and not _withheld(record, column)
                 for column in columns for record in records)
    if hidden:
        caption += f" ({format_count(hidden, 'figure')} without an interval not shown)"
    titles = {}  # reason -> titles of columns
    for column in columns:
        column.reason = _shared_reason(column, records)
        titles.setdefault(column.reason, []).append(column.title)
    caption += "".join(f"; no interval of {', '.join(names)}: {reason}" for reason, names in titles.items() if reason)
    return {"kind": "table", "name": name, "caption": caption, "columns": columns, "records": records,
            "export": records if export is None else export, "paper": paper}


def _has_values(column, records):
    return any(text(record.get(column.key)) != "–" for record in records)


def _shared_reason(column, records):
    """Why none of several figures of a column has an interval, where that is one reason, else ""."""
    reasons = [_withheld(record, column) for record in records if is_defined(record.get(column.key))]
    return (reasons[0] or "") if len(reasons) > 1 and len(set(reasons)) == 1 else ""


def figure(svg, alt, caption="", narrow=None, role=""):
    """An inline SVG. alt: its description in words. narrow: an SVG for telephones. role: of the model it shows."""
    return {"kind": "figure", "svg": svg, "alt": alt, "caption": caption, "narrow": narrow, "role": role}


def picture(src, alt, caption="", lines=()):
    """A PNG as data URI. lines: (whether the answer is right, answer, model) for each model that classified it."""
    return {"kind": "picture", "src": src, "alt": alt, "caption": caption, "lines": list(lines)}


def grid(items):
    """Figures or pictures side by side."""
    return {"kind": "grid", "items": items}


def fold(summary, blocks):
    """Blocks behind one line of text."""
    return {"kind": "fold", "summary": summary, "blocks": blocks}


def blocks_of(sections, kind):
    """All blocks of a kind, in grids too."""
    for section in sections:
        for block in section.blocks:
            items = block["items"] if block["kind"] == "grid" else ()
            yield from (item for item in (block, *items) if item["kind"] == kind)


# ---- texts


def breakable(name):
    """The parts of a long name between which a line may be broken: after `_` and `/` where letters follow."""
    return re.split(r"(?<=[_/])(?=[^\W\d_]{2})", name) if len(name) > SHORT else [name]


def printable(text):
    """`text` without control characters, lone surrogates and marks that change the direction of writing."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


# ---- cells


def cell(record, column):
    """A cell as a dict.

    text; value: a number, or None; bounds: (lo, hi), or None; with bounds also lo and hi, their texts; reason: why
    there is no interval, or "". In a column with intervals, a value without one is shown only with the reason.
    """
    withheld = _withheld(record, column)
    value = None if _lacks_interval(record, column) and not withheld else record.get(column.key)
    result = {"value": value if is_defined(value) else None, "bounds": None, "text": text(value, column.form),
              "reason": ""}
    if column.kind == "seed":
        result["text"] = result["text"].removeprefix("seed_")
    if withheld and result["value"] is not None:
        result["reason"] = "" if withheld == column.reason else withheld
    elif column.lo and result["value"] is not None:
        lo, hi = record[column.lo], record[column.hi]
        result.update(bounds=(lo, hi), lo=text(lo, column.form), hi=text(hi, column.form))
    return result


def _lacks_interval(record, column):
    """Whether the column has intervals, and the record a value but not both bounds."""
    if not column.lo or not is_defined(record.get(column.key)):
        return False
    return not (is_defined(record.get(column.lo)) and is_defined(record.get(column.hi)))


def _withheld(record, column):
    """Why the value of a column with intervals has none, or None."""
    return record.get(f"{column.lo.removesuffix('_lo')}_withheld") if column.lo else None


def text(value, form=".3f"):
    """A value in the form of its column; "–" for None, "" and NaN."""
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if form == "duration":
        return format_duration(value)
    if form == "p":
        return format_p(value)
    return format(value, form) if isinstance(value, (int, float)) and form else str(value)


def visible_rows(block, limit):
    """(caption, records) of a table with at most `limit` rows; the caption says where the other rows are."""
    caption, records = block["caption"], block["records"]
    if len(records) > limit:
        caption = f"{caption} (the first {limit} of {len(records):,} rows; tables/{block['name']}.csv has all)"
    return caption, records[:limit]


def texts(block, limit=None):
    """(titles, rows) of a table with at most `limit` rows, each cell a text such as `0.457 [0.414, 0.496]`."""
    titles = [column.title for column in block["columns"]]
    rows = [[_cell_text(record, column) for column in block["columns"]] for record in block["records"][:limit]]
    return titles, rows


def _cell_text(record, column):
    parts = cell(record, column)
    if parts["bounds"]:
        return f"{parts['text']} [{parts['lo']}, {parts['hi']}]"
    return f"{parts['text']} ({parts['reason']})" if parts["reason"] else parts["text"]


def key_columns(columns, records):
    """The number of first columns that name the rows of a table: those of texts, the first alone if all are texts."""
    texts = [all(isinstance(record.get(column.key), (str, type(None))) for record in records) for column in columns]
    return texts.index(False) or 1 if False in texts else 1


def to_csv(records):
    """Records as the text of a CSV file, one column for each key.

    Numbers are written in full, undefined ones as empty cells. A spreadsheet runs no text as a formula.
    """
    columns = list(dict.fromkeys(key for record in records for key in record))
    lines = [columns, *([record.get(column) for column in columns] for record in records)]
    return "".join(csv_line(map(_csv_cell, line)) for line in lines)


def _csv_cell(value):
    """A value that csv_line() takes: no NaN, and text that UTF-8 can encode."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "").replace("\r", "\n")
    return value


# The names that tables of a report can have.
TABLES = (
    "result", "subgroups", "gaps", "roles", "data", "teacher_summary", "students_summary", "seeds", "deltas",
    "deltas_per_class", "agreement", "fidelity", "cka", "calibration", "weights", "thresholds", "abstention",
    "operating_points", "risk_coverage", "robustness_summary", "robustness_worst", "robustness", "gpu_latency",
    "cpu_latency", "memory", "exports", "pareto", "scalars", "training", "options", "sweeps",
)


def write_tables(folder, sections):
    """Write each table that has a name as NAME.csv, and as NAME.tex where it has columns for a paper.

    folder: `tables` in the report's folder. Tables of an earlier report that are not in this one are deleted.
    """
    written = set()
    for block in blocks_of(sections, "table"):
        if not block["name"]:
            continue
        files = {f"{block['name']}.csv": to_csv(block["export"])}
        if block["paper"]:
            titles, rows = texts({**block, "columns": block["paper"]})
            keys = key_columns(block["paper"], block["records"])
            files[f"{block['name']}.tex"] = latex.table(titles, rows, block["caption"], block["name"], keys)
        for name, content in files.items():
            write_text(folder / name, content)
        written |= files.keys()
    if (folder.parent / "report.html").is_file():  # without it, these can be tables of another program
        for name in {f"{name}.{kind}" for name in TABLES for kind in ("csv", "tex")} - written:
            (folder / name).unlink(missing_ok=True)
