"""The PDF: every block is on a page and within its margins, and no text is markup."""

import io
import itertools
import re
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("reportlab")
pdfium = pytest.importorskip("pypdfium2")

from kd.errors import UserError  # noqa: E402
from kd.report import figures, pdf  # noqa: E402

EVIL = (
    "<b>&amp;</b> <img src='file:///etc/passwd'/> \"q\" =1+1 ../../x \u202eשלום مرحبا 😀🧬 漢字 αβγ → \ud800\x00\x07 "
    + "x" * 2000
)


def picture(height=40, width=60):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()


def written(tmp_path, *blocks):
    pdf.write(tmp_path / "report.pdf", list(blocks))
    return pdfium.PdfDocument(tmp_path / "report.pdf")


def texts(document):
    """The text of each page on one line."""
    return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


def assert_within_margins(document):
    for page in document:
        boxes = [item.get_bounds() for item in page.get_objects(max_depth=5)]
        left, bottom, right, top = zip(*boxes)
        assert min(left) >= pdf.MARGIN - 3 and max(right) <= pdf.MARGIN + pdf.WIDTH + 3
        assert min(bottom) >= 25 and max(top) <= 842 - 40


def test_every_kind_of_block_is_there_with_page_numbers_and_bookmarks(tmp_path):
    drawing = figures.forest([("a_kd", "student", .5, .4, .6)], ("majority rule", .1), alt="x")
    document = written(
        tmp_path,
        {"kind": "title", "text": "A study", "subtitle": "of lesions"},
        {"kind": "heading", "text": "First"},
        {"kind": "heading", "text": "Deeper", "level": 3},
        {"kind": "paragraph", "text": "In words."},
        {"kind": "note", "text": "Small print."},
        {"kind": "bullet", "text": "One."},
        {"kind": "code", "text": "if x:\n    y"},
        {"kind": "finding", "severity": "error", "text": "Leak", "lines": ["saw it"]},
        {"kind": "table", "columns": ["model", "F1"], "rows": [["a", "0.755 [0.715, 0.787]"]], "caption": "Scores"},
        {"kind": "page"},
        {"kind": "heading", "text": "Second"},
        {"kind": "figure", "svg": drawing, "caption": "A drawing"},
        {"kind": "figures", "figures": [{"png": picture(), "caption": "a picture"}] * 3, "caption": "All of them"},
    )
    first, second = texts(document)
    for text in (
        "A study", "of lesions", "First", "In words.", "Small print.", "One.", "if x:", "error: Leak", "saw it",
        "Scores", "0.755 [0.715, 0.787]", "1 / 2",
    ):
        assert text in first, text
    for text in (
        "Second", "A drawing", "majority rule 0.100", "a_kd", "macro-F1 on the test split", "All of them", "2 / 2",
    ):
        assert text in second, text
    assert second.count("a picture") == 3 and sum(item.type == 3 for item in document[1].get_objects(max_depth=5)) == 3
    assert [(mark.level, mark.get_title()) for mark in document.get_toc()] == [
        (0, "First"), (1, "Deeper"), (0, "Second"),
    ]
    assert document.get_metadata_dict()["Title"] == "A study"
    assert_within_margins(document)


def test_hostile_text_stays_text_within_the_page(tmp_path):
    blocks = [{"kind": kind, "text": EVIL} for kind in ("title", "heading", "paragraph", "note", "bullet", "code")]
    document = written(
        tmp_path, *blocks, {"kind": "finding", "severity": "note", "text": EVIL, "lines": [EVIL] * 3},
        {"kind": "table", "columns": [EVIL, "n", EVIL], "rows": [[EVIL, 1, EVIL], ["", "", "=1"]], "caption": EVIL},
        {"kind": "figure", "png": picture(), "caption": EVIL},
        {"kind": "figure", "svg": figures.forest([(EVIL, "student", 0.5, 0.4, 0.6)], alt="x"), "caption": EVIL},
        {"kind": "figures", "figures": [{"png": picture(20, 20), "caption": EVIL}] * 2, "caption": EVIL},
    )
    everything = " ".join(texts(document))
    assert everything.count("<b>&amp;</b> <img src='file:///etc/passwd'/>") >= 14 and "αβγ →" in everything
    assert_within_margins(document)


def test_a_wide_table_comes_in_parts_that_all_name_their_rows(tmp_path):
    columns = ["model", "seed"] + [f"balanced_accuracy_{k}" for k in range(30)]
    rows = [[f"model_{m}", f"seed_{m}", *(f"{m}.{k:04d}" for k in range(30))] for m in range(3)]
    document = written(tmp_path, {"kind": "table", "columns": columns, "rows": rows, "caption": "Wide", "keys": 2})
    everything = " ".join(texts(document))
    parts = int(re.search(r"part 1 of (\d+)", everything)[1])
    assert parts > 3 and everything.count("model_1 seed_1") == parts
    joined = "".join(everything.split())  # a name may be broken at its underscores
    assert all(text in joined for row in (columns, *rows) for text in row)
    assert_within_margins(document)


def test_a_name_is_broken_where_a_word_of_it_ends_and_a_further_part_has_a_short_caption(tmp_path):
    columns = ["model"] + [f"figure {k}" for k in range(30)]
    rows = [["teacher_efficientnetlite0", *["0.123 [0.100, 0.200]"] * 30]]
    caption = "Scores of all; explained at length"
    document = written(tmp_path, {"kind": "table", "columns": columns, "rows": rows, "caption": caption})
    assert {"teacher_", "efficientnetlite0"} <= set(document[0].get_textpage().get_text_range().split())
    everything = texts(document)[0]
    assert f"{caption} (part 1 of" in everything and "Scores of all (part 2 of" in everything
    assert everything.count("at length") == 1


def test_no_page_has_the_last_row_of_a_table_alone(tmp_path):
    for count, height_of_last in itertools.product(range(40, 60), (1, 20)):
        rows = [[f"run {k};", *["in words"] * 4] for k in range(count)]
        rows[-1][1:] = ["in words " * height_of_last] * 4
        pages = texts(written(tmp_path, {"kind": "table", "columns": ["name", "score", *"abc"], "rows": rows}))
        counts = [page.count("run ") for page in pages]
        assert sum(counts) == count and (len(counts) == 1 or counts[-1] > 1), counts
        assert [page.count("name score a b c") for page in pages] == [1] * len(pages)


@pytest.mark.parametrize("below", ["table", "figure", "figures", "paragraph"])
def test_a_heading_its_note_and_its_caption_stay_with_what_follows(tmp_path, below):
    following = {
        "table": {"kind": "table", "columns": ["a", "b"], "rows": [["x y", k] for k in range(9)], "caption": "About"},
        "figure": {"kind": "figure", "png": picture(90, 90), "caption": "About"},
        "figures": {"kind": "figures", "figures": [{"png": picture(90, 90), "caption": "one"}], "caption": "About"},
        "paragraph": {"kind": "paragraph", "text": "About the text below a heading"},
    }[below]
    for lines in range(38, 60):  # of text above, so that the heading comes near the foot of the page
        document = written(
            tmp_path, {"kind": "code", "text": "\n".join(["line"] * lines)}, {"kind": "heading", "text": "Title"},
            {"kind": "note", "text": "Small print"}, {"kind": "note", "text": "Smaller print"}, following)
        with_heading, = [page for page in document if "Title" in page.get_textpage().get_text_range()]
        assert "Small print" in with_heading.get_textpage().get_text_range()
        assert "About" in with_heading.get_textpage().get_text_range(), lines
        if below.startswith("figure"):
            assert any(item.type == 3 for item in with_heading.get_objects(max_depth=5)), lines


def test_a_long_table_repeats_its_head_on_every_page(tmp_path):
    document = written(
        tmp_path, {"kind": "heading", "text": "Runs"},
        {"kind": "table", "columns": ["name", "score"], "rows": [[f"run {k};", k / 8] for k in range(200)]},
    )
    pages = texts(document)
    assert len(pages) > 3 and all("name score" in page for page in pages)
    assert all(f"run {k};" in " ".join(pages) for k in range(200))


def test_an_empty_document_and_empty_parts_are_pages_too(tmp_path):
    assert len(written(tmp_path)) == 1
    document = written(
        tmp_path, {"kind": "heading", "text": "Nothing"}, {"kind": "table", "columns": ["a"], "rows": []},
        {"kind": "table", "columns": [], "rows": []}, {"kind": "table", "columns": [""], "rows": []},
        {"kind": "table", "columns": ["", ""], "rows": [["without", "a head"]]}, {"kind": "code", "text": ""},
        {"kind": "figures", "figures": []}, {"kind": "heading", "text": "The end"},
    )
    page = texts(document)[0]
    assert "Nothing" in page and "without a head" in page and "The end" in page


def test_a_picture_larger_than_the_page_is_made_to_fit(tmp_path):
    document = written(tmp_path, {"kind": "figure", "png": picture(4000, 300), "caption": "x " * 2000},
                       {"kind": "figure", "png": picture(10, 4000)})
    assert_within_margins(document)


def test_the_same_blocks_give_the_same_bytes_and_a_failure_leaves_the_old_file(tmp_path):
    blocks = [
        {"kind": "heading", "text": "Once"},
        {"kind": "figure", "svg": figures.confusion([[3, 1], [0, 4]], "ab", alt="")},
    ]
    for name in ("a.pdf", "b.pdf"):
        pdf.write(tmp_path / name, blocks)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    with pytest.raises(KeyError):
        pdf.write(tmp_path / "a.pdf", [*blocks, {"kind": "unheard of"}])
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_reportlab_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reportlab", None)
    with pytest.raises(UserError, match="reportlab") as error:
        pdf.write(tmp_path / "x.pdf", [])
    assert ".[report]" in error.value.hint


@pytest.mark.parametrize("draw", ["bars", "band", "scatter", "heat map", "text"])
def test_a_drawing_looks_as_matplotlib_draws_it(tmp_path, draw):
    """Grey levels of the page against matplotlib's own picture of the same figure, at one pixel a unit."""
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 14}):
        figure = Figure(figsize=(4, 3), dpi=72)
        axes = figure.add_subplot()
        x = np.arange(5)
        if draw == "bars":
            axes.bar(x, x ** 2, alpha=.5, edgecolor="k", linewidth=2)
            axes.bar(x, x, hatch="//", bottom=3)
        elif draw == "band":
            axes.plot(x, x ** 2 / 2, "--", linewidth=3)
            axes.fill_between(x, x, x ** 2, alpha=.3)
            axes.set_ylim(2, 9)  # the rest is clipped
        elif draw == "scatter":
            axes.scatter(x, x, s=300 * (x + 1), c=x, alpha=.6, edgecolors="r", clip_on=False)
            axes.plot(x, 4 - x, "^", markersize=12)
        elif draw == "heat map":
            axes.imshow(np.arange(12).reshape(3, 4), cmap="viridis")
        else:
            axes.text(.5, .5, "left <&>", rotation=30)
            axes.text(.9, .2, "right\nbold", ha="right", weight="bold", color="w", bbox={"facecolor": "b"})
            axes.axis("off")
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg")
        figure.savefig(png, format="png")
    document = written(tmp_path, {"kind": "figure", "svg": svg.getvalue().decode(), "scale": 1})
    page = np.asarray(document[0].render(scale=1).to_pil().convert("L"), float)
    expected = np.asarray(Image.open(png).convert("L"), float)
    top = 842 - pdf.MARGIN - pdf.HEIGHT
    drawing = page[top:top + expected.shape[0], pdf.MARGIN:pdf.MARGIN + expected.shape[1]]
    blurred = [np.asarray(Image.fromarray(image.astype(np.uint8)).resize((48, 36), Image.Resampling.BOX), float)
               for image in (drawing, expected)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 4 and expected.std() > 15
