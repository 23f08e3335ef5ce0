"""A report as plain data: sections of blocks, of which the page, the PDF and the tables are made.

    heading    text, level: 2 or 3 (a section's title is 1)
    paragraph  text, tone: "", "aside", "note" (framed), "missing" (what is not shown, and why)
    bullets    items: texts
    code       text
    facts      pairs of texts
    finding    severity, rule, saw: texts, why, do
    table      name, caption, columns, records, export: records of its CSV, paper: columns of its LaTeX; columns [] where it is
               shown nowhere
    figure     svg (inline, as kd/report/figures.py gives it), alt, caption, narrow: the same for a telephone, or None; role
               of the model that it is of, or ""
    picture    src (a PNG as data URI), alt, caption, lines: (right, answer, whose) below it
    grid       items: figures or pictures that stand side by side

Texts are plain: whoever renders them escapes them.
"""

import csv
import io
import math
from dataclasses import dataclass

from kd.files import write_text
from kd.report import latex
from kd.text import format_count, format_duration, is_defined


@dataclass
class Section:
    """key: its anchor; title; blocks."""

    key: str
    title: str
    blocks: list


@dataclass
class Column:
    """A column as readers see it: `key` of the records, and of their bounds where there is an interval.

    form: how a number is printed: a format specification, "duration" or "p". kind: "", "model" (a name, with the mark of the
    record's role), "seed" (0 of seed_0), "text" (may be long).
    """

    title: str
    key: str
    form: str = ".3f"
    lo: str = None
    hi: str = None
    kind: str = ""


def interval(title, key, stem=None, form=".3f"):
    """The Column of `key` with its bounds in `<stem>_lo` and `<stem>_hi`."""
    stem = stem or key
    return Column(title, key, form, f"{stem}_lo", f"{stem}_hi")


def spread(name, metric, value=""):
    """A METRIC as cells of a record: {"<name><value>", "<name>_lo", "<name>_hi"}."""
    return {f"{name}{value}": metric["value"], f"{name}_lo": metric["lo"], f"{name}_hi": metric["hi"]}


# ---- blocks


def heading(text, level=2):
    return {"kind": "heading", "text": text, "level": level}


def paragraph(text, tone=""):
    return {"kind": "paragraph", "text": text, "tone": tone}


def aside(text):
    return paragraph(text, "aside")


def missing(what, why, remedy=""):
    """That `what` is not shown, why, and the command that mends it."""
    return [paragraph(f"Not shown: {what}. {why}", "missing"), *([code(remedy)] if remedy else [])]


def bullets(items):
    return {"kind": "bullets", "items": list(items)}


def code(text):
    return {"kind": "code", "text": text}


def facts(pairs):
    return {"kind": "facts", "pairs": [(str(key), str(value)) for key, value in pairs]}


def table(name, caption, columns, records, export=None, paper=None):
    """export, paper: the records of the CSV and the columns of the LaTeX, where those are others than are shown.

    A column without a value is left out.
    """
    columns, paper = ([column for column in held if any(record.get(column.key) not in (None, "") for record in records)]
                      for held in (columns, columns if paper is None else paper))
    for column in [*columns, *paper]:
        if not column.kind and all(isinstance(record.get(column.key), (str, type(None))) for record in records):
            column.kind = "text"
    lacking = sum(bare(record, column) for column in columns for record in records)
    caption += f" ({format_count(lacking, 'figure')} without an interval not shown)" if lacking else ""
    return {"kind": "table", "name": name, "caption": caption, "columns": columns, "records": records,
            "export": records if export is None else export, "paper": paper}


def figure(svg, alt, caption="", narrow=None, role=""):
    return {"kind": "figure", "svg": svg, "alt": alt, "caption": caption, "narrow": narrow, "role": role}


def picture(src, alt, caption="", lines=()):
    return {"kind": "picture", "src": src, "alt": alt, "caption": caption, "lines": list(lines)}


def grid(items):
    return {"kind": "grid", "items": items}


def blocks_of(sections, kind):
    """All blocks of a kind, those in grids too."""
    for section in sections:
        for block in section.blocks:
            for one in [block, *block.get("items", ())] if block["kind"] == "grid" else [block]:
                if one["kind"] == kind:
                    yield one


# ---- numbers in words


def printable(text):
    """`text` without control characters, lone surrogates and marks that turn the direction of what follows."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


# ---- cells


def cell(record, column):
    """{"text", "value" (a number or None), "bounds": (lo, hi) or None, "lo", "hi": their texts}.

    Where the column has intervals, a value without one is not shown.
    """
    value = record.get(column.key)
    lo, hi = (record.get(key) if key else None for key in (column.lo, column.hi))
    if bare(record, column):
        value = None
    shown = {"value": value if is_defined(value) else None, "bounds": None, "text": text(value, column.form)}
    if column.kind == "seed":
        shown["text"] = shown["text"].removeprefix("seed_")
    if column.lo and shown["value"] is not None:
        shown.update(bounds=(lo, hi), lo=text(lo, column.form), hi=text(hi, column.form))
    return shown


def bare(record, column):
    """Whether a column with intervals has a value here that lacks one."""
    return bool(column.lo) and is_defined(record.get(column.key)) and not all(is_defined(record.get(key)) for key in (column.lo, column.hi))


def text(value, form=".3f"):
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if form == "duration":
        return format_duration(value)
    if form == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return format(value, form) if isinstance(value, (int, float)) and form else str(value)


def visible_rows(block, most):
    """(caption, records) of a table as far as they are shown: at most `most` rows, and a word about the others."""
    caption, records = block["caption"], block["records"]
    if len(records) > most:
        caption = f"{caption} (the first {most} of {len(records):,} rows; tables/{block['name']}.csv has all)"
    return caption, records[:most]


def texts(block, most=None):
    """(titles, rows) of a table, each cell one text: `0.457 [0.414, 0.496]`."""
    def one(shown):
        return f"{shown['text']} [{shown['lo']}, {shown['hi']}]" if shown["bounds"] else shown["text"]
    return ([column.title for column in block["columns"]],
            [[one(cell(record, column)) for column in block["columns"]] for record in block["records"][:most]])


def to_csv(records):
    """Records as CSV: numbers in full, an undefined one as an empty cell, and no text that a spreadsheet would run."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([harmless(column) for column in columns])
    writer.writerows([[_plain(record.get(column)) for column in columns] for record in records])
    return out.getvalue()


def _plain(value):
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return ""
    return harmless(value) if isinstance(value, str) else value


def harmless(value):
    """A text that can be written, and that a spreadsheet does not take for a formula."""
    value = value.encode("utf-8", "replace").decode().replace("\0", "").replace("\r", "\n")
    return f"'{value}" if value.lstrip()[:1] in ("=", "+", "-", "@") and not _is_number(value) else value


def _is_number(value):
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


# The names that a report's tables may have.
TABLES = ("roles", "data", "teacher_summary", "students_summary", "seeds", "deltas", "deltas_per_class", "agreement", "cka",
          "calibration", "weights", "thresholds", "abstention", "operating_points", "risk_coverage", "robustness_summary",
          "robustness_worst", "robustness", "gpu_latency", "cpu_latency", "memory", "exports", "pareto", "scalars", "training",
          "options")


def write_tables(folder, sections):
    """Write each table that has a name as NAME.csv, and as NAME.tex for a paper; an earlier report's that is none any more goes."""
    written = set()
    for block in filter(lambda block: block["name"], blocks_of(sections, "table")):
        files = {f"{block['name']}.csv": to_csv(block["export"])}
        if block["paper"]:
            titles, rows = texts({**block, "columns": block["paper"]})
            files[f"{block['name']}.tex"] = latex.table(titles, rows, block["caption"], block["name"])
        for name, content in files.items():
            write_text(folder / name, content)
        written |= files.keys()
    if (folder.parent / "report.html").is_file():  # else these may be another system's tables
        for name in {f"{name}.{kind}" for name in TABLES for kind in ("csv", "tex")} - written:
            (folder / name).unlink(missing_ok=True)
