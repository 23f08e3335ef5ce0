"""A report's sections as the blocks that kd/report/pdf.py sets."""

import base64
import io

from kd.report import blocks

PICTURE = 72  # points of a picture's width
ROWS = 100  # of a table, at most


def printed(title, lead, sections):
    """[block] as kd/report/pdf.py takes them."""
    blocks = [{"kind": "title", "text": title, "subtitle": lead},
              {"kind": "note", "text": "Research software. Not a medical device, and not for diagnosis."}]
    for section in sections:
        if section.blocks:
            blocks.append({"kind": "heading", "text": section.title})
            for block in section.blocks:
                blocks += MAKERS[block["kind"]](block)
    for k in range(len(blocks) - 2):  # a heading stays with its figure; what explains it comes after, like a caption
        if [block["kind"] for block in blocks[k:k + 2]] == ["heading", "note"] and blocks[k + 2]["kind"] in ("figure", "figures"):
            blocks[k + 1], blocks[k + 2] = blocks[k + 2], blocks[k + 1]
    return blocks


def _paragraph(block):
    return [{"kind": "note" if block["tone"] in ("aside", "missing") else "paragraph", "text": block["text"]}]


def _table(block):
    if not block["columns"]:
        return []
    titles, rows = blocks.texts(block, ROWS)
    keys = max(1, sum(column.kind in ("model", "seed") for column in block["columns"]))
    return [{"kind": "table", "columns": titles, "rows": rows, "caption": blocks.visible_rows(block, ROWS)[0], "keys": keys}]


def _figure(block):
    return [{"kind": "figure", "svg": block["svg"], "caption": block["caption"]}]


def _picture(block):
    from PIL import Image
    data = base64.b64decode(block["src"].split(",", 1)[1])
    answers = " ".join("✓" if right else "✗" for right, _, _ in block["lines"])
    return [{"kind": "figure", "png": data, "caption": f"{block['caption']} {answers}".strip(),
             "scale": (PICTURE if block["lines"] else 2.5 * PICTURE) / Image.open(io.BytesIO(data)).width}]


def _grid(block):
    made = [{"kind": "figures", "figures": [made for item in block["items"] for made in MAKERS[item["kind"]](item)]}]
    models = [whose for *_, whose in block["items"][0].get("lines", ())]
    return [*made, {"kind": "note", "text": f"The marks are of {', '.join(models)}, in this order."}] if models else made


def _facts(block):
    pairs = [list(pair) for pair in block["pairs"]]
    half = -(-len(pairs) // 2)
    return [{"kind": "table", "columns": [""] * 4, "rows": [a + b for a, b in zip(pairs[:half], [*pairs[half:], ["", ""]])]}]


MAKERS = {
    "heading": lambda block: [{"kind": "heading", "text": block["text"], "level": block["level"]}],
    "paragraph": _paragraph,
    "bullets": lambda block: [{"kind": "bullet", "text": text} for text in block["items"]],
    "code": lambda block: [{"kind": "code", "text": block["text"]}],
    "facts": _facts,
    "finding": lambda block: [{"kind": "finding", "severity": block["severity"], "text": block["rule"],
                               "lines": [*block["saw"], block["why"], f"What to do: {block['do']}"]}],
    "table": _table, "figure": _figure, "picture": _picture, "grid": _grid,
}
