"""Translates a report's sections into the blocks that kd/report/pdf.py sets."""

import base64
import io

from kd.report import blocks

PICTURE_WIDTH = 72  # points, of a test image
MAX_ROWS = 100  # of a table


def printed(title, lead, sections):
    """The blocks of a printed report, as kd/report/pdf.py takes them. lead: the line below the title."""
    notes = ["Research software. Not a medical device, and not for diagnosis."]
    audit, *others = sections
    if not audit.is_open:  # it has no errors: what it found stands last
        notes.append(f"{audit.title} (last section).")
        sections = [*others, audit]
    document = [{"kind": "title", "text": title, "subtitle": lead}, *({"kind": "note", "text": text} for text in notes)]
    for section in sections:
        if section.blocks:
            document.append({"kind": "heading", "text": section.title})
            for block in section.blocks:
                document += MAKERS[block["kind"]](block)
    return document


def _paragraph(block):
    return [{"kind": "note" if block["tone"] in ("aside", "missing") else "paragraph", "text": block["text"]}]


def _finding(block):
    lines = [*block["saw"], block["why"], f"What to do: {block['do']}"]
    return [{"kind": "finding", "severity": block["severity"], "text": block["rule"], "lines": lines}]


def _table(block):
    """A table of at most MAX_ROWS rows; every part of a wide table repeats its first columns, which name the rows."""
    if not block["columns"]:
        return []
    titles, rows = blocks.texts(block, MAX_ROWS)
    caption, _ = blocks.visible_rows(block, MAX_ROWS)
    keys = blocks.key_columns(block["columns"], block["records"])
    return [{"kind": "table", "columns": titles, "rows": rows, "caption": caption, "keys": keys}]


def _figure(block):
    return [{"kind": "figure", "svg": block["svg"], "caption": block["caption"]}]


def _picture(block):
    """A picture; below it a mark for each model that classified it, right or wrong."""
    from PIL import Image
    data = base64.b64decode(block["src"].split(",", 1)[1])
    marks = " ".join("✓" if right else "✗" for right, _, _ in block["lines"])
    figure = {"kind": "figure", "png": data, "caption": f"{block['caption']} {marks}".strip()}
    if block["lines"]:
        figure["scale"] = PICTURE_WIDTH / Image.open(io.BytesIO(data)).width
    return [figure]


def _grid(block):
    figures = [figure for item in block["items"] for figure in MAKERS[item["kind"]](item)]
    models = [model for _, _, model in block["items"][0].get("lines", ())]
    caption = f"The marks are of {', '.join(models)}, in this order." if models else ""
    return [{"kind": "figures", "figures": figures, "caption": caption}]


def _fold(block):
    """What a page unfolds, below its line."""
    unfolded = [printed for inner in block["blocks"] for printed in MAKERS[inner["kind"]](inner)]
    return [{"kind": "note", "text": f"{block['summary']}:"}, *unfolded]


def _facts(block):
    """Pairs as a table without headings, two pairs on a row."""
    pairs = [list(pair) for pair in block["pairs"]]
    half = -(-len(pairs) // 2)
    rows = [left + right for left, right in zip(pairs[:half], [*pairs[half:], ["", ""]])]
    return [{"kind": "table", "columns": [""] * 4, "rows": rows}]


MAKERS = {
    "heading": lambda block: [{"kind": "heading", "text": block["text"], "level": block["level"]}],
    "paragraph": _paragraph,
    "bullets": lambda block: [{"kind": "bullet", "text": text} for text in block["items"]],
    "code": lambda block: [{"kind": "code", "text": block["text"]}],
    "facts": _facts,
    "finding": _finding,
    "table": _table,
    "figure": _figure,
    "picture": _picture,
    "grid": _grid,
    "fold": _fold,
}
