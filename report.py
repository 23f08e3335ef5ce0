"""A study as one self-contained HTML page, a PDF, and tables for a paper, from its run folders alone.

It needs the files in these folders and nothing else: no torch, no images, no network. kd/report/study_files.py reads
them, kd/report/build.py makes the sections, kd/report/templates/report.html shows them.
"""

import base64
import hashlib
from pathlib import Path

from kd import errors
from kd.evaluation import folds
from kd.files import check_writable, write_text
from kd.report import blocks, build, figures, paper, pdf, pdf_blocks, study_files
from kd.report.sections import overview


def parser():
    """The command line of this script."""
    result = errors.Parser(prog="report.py", description=__doc__.splitlines()[0])
    result.add_argument(
        "runs", metavar="RUNS", help="a study's folder, e.g. runs/lesions_48px, or one with another system's tables"
    )
    result.add_argument(
        "--out", metavar="DIR", help="where report.html, report.pdf, tables/ and figures/ go (default: RUNS)"
    )
    result.add_argument(
        "--notes", nargs="+", default=[], metavar="FILE", help="Markdown, text or Word files, added as they are"
    )
    return result


def main(argv=None):
    """Write report.html, report.pdf, tables/ and figures/; returns the path of the page."""
    args = parser().parse_args(argv)
    for package in ("jinja2", "matplotlib", "reportlab"):
        errors.need(package, "report")
    out = Path(args.out or args.runs)
    lacking = folds.pool(args.runs)
    study = study_files.read_study(args.runs)
    study.problems += [(folder, f"not pooled: {why}", "") for folder, why in lacking]
    check_writable(out)
    sections = build.build(study, args.notes)
    lead = overview.lead(study)
    page = render(study, lead, sections)
    pdf.write(out / "report.pdf", pdf_blocks.printed(study.name, lead, sections))
    blocks.write_tables(out / "tables", sections)
    paper.write(out / "figures", sections)
    write_text(out / "report.html", page)
    for folder, problem, remedy in study.problems:
        print(f"{folder}: {problem} ({remedy})" if remedy else f"{folder}: {problem}")
    print(f"report: {out / 'report.html'}, {out / 'report.pdf'}, {out / 'tables'}, {out / 'figures'}")
    return out / "report.html"


def render(study, lead, sections):
    """The page of a Study as HTML. lead: the sentence below the title; sections: of build.build()."""
    import jinja2
    folder = Path(build.__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: blocks.printable(value) if type(value) is str else value,
    )
    environment.globals.update(
        breakable=blocks.breakable, cell=blocks.cell, visible_rows=blocks.visible_rows, light=figures.LIGHT,
        dark=figures.DARK, roles=overview.ROLES,
    )
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        study=study, lead=lead, sections=[section for section in sections if section.blocks], script=script,
        digest=digest,
    )


if __name__ == "__main__":
    errors.run(main)
