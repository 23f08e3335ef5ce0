"""Figures of a report as files for a paper: as wide as its columns, legible, and the same that the page shows."""

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

import reported
from kd.report import figures, figures_quality, paper
from kd.report.blocks import Section, figure

pdfium = pytest.importorskip("pypdfium2")


@pytest.fixture
def folder(reported_study):
    root, page = reported_study
    return root / "figures"


def sizes(svg):
    """(width in points, points a unit, [font sizes in points]) of an SVG file."""
    width = float(re.search('width="([0-9.]+)pt"', svg)[1])
    unit = width / figures.size(svg)[0]
    return width, unit, [float(number) * unit for number in re.findall(r"font(?:-size)?: [^;]*?([0-9.]+)px", svg)]


def test_every_figure_is_a_column_or_a_page_wide_and_its_text_has_seven_points(folder):
    files = sorted(folder.glob("*.svg"))
    assert len(files) > 15
    for path in files:
        svg = path.read_text(encoding="utf-8")
        width, unit, fonts = sizes(svg)
        assert width in (paper.COLUMN, paper.PAGE) and width < 505
        assert fonts and min(fonts) >= paper.LEAST, path.name
        assert "var(" not in svg and ElementTree.fromstring(svg).tag.endswith("}svg")
        assert path.name.startswith(paper.NAMES)


def test_the_pdf_of_a_figure_has_its_size_its_text_and_its_fonts(folder):
    for path in folder.glob("*.svg"):
        width, unit, _ = sizes(path.read_text(encoding="utf-8"))
        document = pdfium.PdfDocument(path.with_suffix(".pdf"))
        assert len(document) == 1 and document[0].get_width() == pytest.approx(width, abs=.1)
    drawing = ElementTree.fromstring(re.sub(' xmlns="[^"]*"', "", path.read_text(encoding="utf-8")))
    assert reported.words(drawing)[0] in document[0].get_textpage().get_text_range()
    assert b"/Helvetica" not in path.with_suffix(".pdf").read_bytes()  # it would not be in the file


def test_several_of_a_kind_are_named_by_their_model(folder):
    names = {path.stem for path in folder.iterdir()}
    assert {"quality_latency", "scalars", "scalars_column", "forest", "attention", "reliability_small_kd_seed_0",
            "reliability_teacher_big_seed_0", "robustness_curves", "per_class_small_kd"} <= names
    assert len(names) == len(list(folder.iterdir())) / 2


def test_figures_of_an_earlier_report_do_not_outlive_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "figures")
    (tmp_path / "figures/mine.pdf").touch()
    svg = figures.forest([("a", "student", .5, .4, .6)], alt="x")
    paper.write(tmp_path / "figures", [Section("a", "A", [figure(svg, "x")])])
    assert (tmp_path / "figures/attention.pdf").exists()  # no page beside them: they can be those of another program
    (tmp_path / "report.html").touch()
    paper.write(tmp_path / "figures", [Section("a", "A", [figure(svg, "x")])])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"forest.svg", "forest.pdf", "mine.pdf"}


def test_the_largest_matrix_and_the_longest_names_stay_legible():
    svgs = [figures.confusion(np.eye(count, dtype=int), [f"{k} {'x' * 40}" for k in range(count)], alt="m")
            for count in (1, 7, 30)]
    nothing = {"value": float("nan"), "lo": float("nan"), "hi": float("nan")}
    svgs.append(figures_quality.per_class(["x" * 40] * 7, [nothing] * 7, None, "student", "", alt="b"))
    for svg in svgs:
        assert paper.PAGE / figures.size(svg)[0] * figures.FONT >= paper.LEAST
