"""The figures of a report as files for a paper: SVG and PDF as wide as a column, with text of 7 points and more."""

import re

from kd import runs
from kd.files import write_text
from kd.report import pdf
from kd.report.blocks import blocks_of
from kd.report.figures import FONT, size, standalone

COLUMN, PAGE = 244.8, 504  # points: the widths of one column, 3.4 inches, and of two, 7 inches
LEAST = 7                        # points: the smallest text

# The names with which files can begin: those of the functions that draw.
NAMES = ("attention", "confusion", "forest", "per_class", "quality_latency", "quality_parameters", "reliability",
         "risk_coverage", "robustness_curves", "robustness_heatmap", "scalars", "stages", "sweep")


def write(folder, sections):
    """Write each figure as NAME.svg and NAME.pdf; where there is one for a telephone, also as NAME_column.

    folder: `figures` in the report's folder. Figures of an earlier report that are not in this one are deleted.
    """
    written = set()
    for name, svg in drawings(sections).items():
        width = COLUMN if COLUMN * FONT / size(svg)[0] >= LEAST else PAGE
        write_text(folder / f"{name}.svg", standalone(svg, width))
        pdf.write_drawing(folder / f"{name}.pdf", svg, width)
        written |= {f"{name}.svg", f"{name}.pdf"}
    if (folder.parent / "report.html").is_file():  # without it, these can be figures of another program
        for path in folder.glob("*"):
            is_ours = path.suffix in (".svg", ".pdf") and path.name.startswith(NAMES)
            if is_ours and path.name not in written:
                path.unlink()


def drawings(sections):
    """{name: inline SVG} of all figures. A name says what is drawn and, where there are several, of which model."""
    blocks_by_name = {}
    for block in blocks_of(sections, "figure"):
        blocks_by_name.setdefault(re.search('data-figure="(\\w+)"', block["svg"])[1], []).append(block)
    result = {}
    for kind, blocks in blocks_by_name.items():
        for block in blocks:
            name = kind
            if len(blocks) > 1:
                name = f"{kind}_{runs.safe(block['caption'].split(':')[0].replace(', ', '_').replace(' ', '_'))[:60]}"
            if name in result:
                name += f"_{len(result)}"
            result[name] = block["svg"]
            if block["narrow"]:
                result[f"{name}_column"] = block["narrow"]
    return result
