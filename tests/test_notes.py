"""Notes become plain blocks, whatever the file contains."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from kd.errors import UserError
from kd.report import notes, pdf

MARKDOWN = """\
# A *study* of `code` ##
Teacher **and** student,
on _two_ lines with a_name and 2 * 3 * 4.

Second in C#
------
- one [paper](https://arxiv.org/abs/1503.02531)
  goes on
  * deeper ***both***
12. numbered \\*not\\*
> quoted

| model | F1 | |
|:------|---:|-|
| a\\|b  | .5 |
| `x_y` | .6 | more | than |

```python
# not a heading
x = a * b * c
```
***

    indented = True

      more
- point
    - under it

![curve](x.png) <script>alert(1)</script>
"""


def test_markdown_becomes_blocks_without_marks():
    assert notes.markdown(MARKDOWN) == [
        {"kind": "heading", "text": "A study of code", "level": 1},
        {"kind": "paragraph", "text": "Teacher and student, on two lines with a_name and 2 * 3 * 4."},
        {"kind": "heading", "text": "Second in C#", "level": 2},
        {"kind": "bullet", "text": "one paper (https://arxiv.org/abs/1503.02531) goes on", "level": 1},
        {"kind": "bullet", "text": "deeper both", "level": 2},
        {"kind": "bullet", "text": "numbered *not*", "level": 1},
        {"kind": "paragraph", "text": "quoted"},
        {"kind": "table", "columns": ["model", "F1", ""], "rows": [["a|b", ".5", ""], ["x_y", ".6", "more"]]},
        {"kind": "code", "text": "# not a heading\nx = a * b * c"},
        {"kind": "code", "text": "indented = True\n\n  more"},
        {"kind": "bullet", "text": "point", "level": 1}, {"kind": "bullet", "text": "under it", "level": 2},
        {"kind": "paragraph", "text": "[curve] <script>alert(1)</script>"}]


def test_text_is_paragraphs_and_what_is_aligned_stays_so(tmp_path):
    (tmp_path / "n.txt").write_bytes(
        "\ufeffOne line\r\nand on. # *as it is*\r\n\r\n \r\nmodel   F1\r\na       .5\r\n".encode()
    )
    assert notes.read(tmp_path / "n.txt") == [{"kind": "paragraph", "text": "One line and on. # *as it is*"},
                                              {"kind": "code", "text": "model   F1\na       .5"}]


@pytest.mark.parametrize(
    "text",
    [
        "", "\n\n", "```\nno end", "|", "|-|", "| a |\n|-|", "- ", "#", "***", ">", "====", "*" * 50_000,
        "[" * 50_000, "_a" * 50_000, "`" * 50_001, "# " + "x# " * 30_000, "# x" + "#" * 50_000 + "y",
        "|" * 20_000 + "\n|-|\n|", "- " * 30_000, "**a " * 30_000, "\\" * 50_000, "    " * 20_000,
        "\x00\u202e\ud800 😀",
    ],
)
def test_no_text_breaks_the_reader_or_keeps_it_busy(text):
    for reader in (notes.markdown, notes.plain):
        assert all(block["kind"] in ("heading", "paragraph", "bullet", "code", "table") for block in reader(text))


def picture(size=(30, 20), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def word(tmp_path):
    """The path of a file that python-docx has written."""
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Comparison", 0)
    document.add_heading("Per class", 2)
    paragraph = document.add_paragraph("Student keeps ")
    paragraph.add_run("84 %").bold = True
    paragraph.add_run("\tof it\nhere <b>& \"there\"")
    document.add_paragraph("a point", style="List Bullet")
    document.add_paragraph("under it", style="List Bullet 2")
    document.add_paragraph("first", style="List Number")
    document.add_picture(io.BytesIO(picture()))
    table = document.add_table(3, 3)
    for row, texts in zip(table.rows, (["model", "F1", "n"], [".5", "x", "y"], ["p", "q", "r"])):
        for cell, text in zip(row.cells, texts):
            cell.text = text
    table.cell(1, 0).merge(table.cell(1, 1))
    document.add_paragraph("")
    document.save(tmp_path / "notes.docx")
    return tmp_path / "notes.docx"


def test_a_word_file_becomes_blocks(word):
    blocks = notes.read(word)
    figure = next(block for block in blocks if block["kind"] == "figure")
    assert Image.open(io.BytesIO(figure["png"])).size == (30, 20)
    assert [block for block in blocks if block is not figure] == [
        {"kind": "heading", "text": "Comparison", "level": 1}, {"kind": "heading", "text": "Per class", "level": 2},
        {"kind": "paragraph", "text": "Student keeps 84 % of it here <b>& \"there\""},
        {"kind": "bullet", "text": "a point", "level": 1}, {"kind": "bullet", "text": "under it", "level": 2},
        {"kind": "bullet", "text": "first", "level": 1},
        {"kind": "table", "columns": ["model", "F1", "n"], "rows": [[".5 x", "", "y"], ["p", "q", "r"]]}]


def test_blocks_of_every_format_can_be_set_as_a_pdf(word, tmp_path):
    pytest.importorskip("reportlab")
    pdf.write(tmp_path / "x.pdf", [*notes.read(word), *notes.markdown(MARKDOWN), *notes.plain("a  b\nc  d")])
    assert (tmp_path / "x.pdf").stat().st_size > 5000


def rebuilt(path, **parts):
    """The file with parts replaced ({name: bytes}) or taken out (None)."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents.update({name.replace("__", "/"): data for name, data in parts.items()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)
    return path


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
ENTITIES = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY x SYSTEM "file:///etc/passwd">]>'
HOSTILE = {
    "entities": (
        ENTITIES + f"<w:document {W}><w:body><w:p><w:r><w:t>&b;&x;</w:t></w:r></w:p></w:body></w:document>".encode(),
        "document type",
    ),
    "utf-16": (
        "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a [<!ENTITY a 'b'>]><a>&a;</a>".encode("utf-16"),
        "document type",
    ),
    "bomb": (b"<a>" + b" " * (notes.UNPACKED + 1) + b"</a>", "unpacks to more than 8 MiB"),
    "cut": (b"<w:document", "cannot read"),
    "missing": (None, "there is no word/document.xml in it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_word_file_is_one_clear_error(word, name):
    data, what = HOSTILE[name]
    with pytest.raises(UserError, match=what) as error:
        notes.read(rebuilt(word, **{"word__document.xml": data}))
    assert "notes.docx" in error.value.message and "\n" not in error.value.message


def test_deep_nesting_and_what_word_repeats_for_old_readers_do_no_harm(word):
    deep = b"<w:x>" * 100_000 + b"<w:p><w:r><w:t>here</w:t></w:r></w:p>" + b"</w:x>" * 100_000
    again = (
        b'<w:p xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:AlternateContent><mc:Choice><w:t>once</w:t>'
        b"</mc:Choice><mc:Fallback><w:t>once</w:t></mc:Fallback></mc:AlternateContent><w:delText>gone</w:delText></w:p>"
    )
    rebuilt(
        word, **{"word__document.xml": f"<w:document {W}><w:body>".encode() + deep + again + b"</w:body></w:document>"}
    )
    assert [block["text"] for block in notes.read(word)] == ["here", "once"]


def test_pictures_that_are_broken_huge_or_elsewhere_are_said_to_be_missing(word):
    def pictures():
        return [block for block in notes.read(word) if block["kind"] in ("figure", "note")]

    def kinds():
        return [block["kind"] for block in pictures()]

    rebuilt(word, **{"word__media__image1.png": picture((2600, 1300), "JPEG")})
    assert kinds() == ["figure"] and Image.open(io.BytesIO(pictures()[0]["png"])).size == (1200, 600)
    sizes = [np.array([60_000, height], ">u4").tobytes() for height in (1, 60_000)]
    huge = b"\x89PNG\r\n\x1a\n" + picture((60_000, 1))[8:].replace(*sizes)
    for data in (None, b"no picture", picture()[:60], huge):
        rebuilt(word, **{"word__media__image1.png": data})
        assert kinds() == ["note"]
    with zipfile.ZipFile(word) as archive:
        links = archive.read("word/_rels/document.xml.rels")
    rebuilt(word, **{"word__media__image1.png": picture(),
                     "word___rels__document.xml.rels": links.replace(b"media/image1.png", b"../../../etc/passwd")})
    assert kinds() == ["note"]


def test_more_pictures_than_a_page_wants_are_counted(word, monkeypatch):
    monkeypatch.setattr(notes, "PICTURES", 0)
    assert notes.read(word)[-1] == {"kind": "note", "text": "[1 further pictures]"}
    assert not any(block["kind"] == "figure" for block in notes.read(word))


@pytest.mark.parametrize(
    "name, data, what",
    [
        ("a.md", b"\xff\xfe", "not text in UTF-8"), ("a.docx", b"no zip", "no .docx file, or not a whole one"),
        ("a.pdf", b"%PDF", "is not read as notes"), ("a.txt", b"x" * (notes.LARGEST + 1), "too large: 128.0 KiB"),
        ("missing.md", None, "no such file"), ("missing.docx", None, "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, data, what):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=what):
        notes.read(tmp_path / name)
