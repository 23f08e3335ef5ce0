"""Names of any length, in any script, stay in their columns, and no two of them look alike."""

import numpy as np
import pytest

import evaluate
from kd import text
from kd.files import write_npz

LONG = ["melanoma of the trunk, in situ, with regression, stage zero",
        "melanoma of the trunk, in situ, without any regression, stage zero", "黑色素细胞痣" * 8, "基底细胞癌", "nv",
        "a\u0301" * 50, "tab\tand\nline", ""]


@pytest.mark.parametrize("value, columns", [("nv", 2), ("基底细胞癌", 10), ("e\u0301", 1), ("ｶﾞ", 2), ("", 0)])
def test_width_is_that_of_a_terminal(value, columns):
    assert text.width(value) == columns


@pytest.mark.parametrize("limit", [12, 18, 32, 200])
def test_short_names_fit_and_differ(limit):
    short = text.shortened(LONG, limit)
    assert list(short) == LONG and len(set(short.values())) == len(LONG)
    assert all(0 < text.width(value) <= limit and value.isprintable() for value in short.values())
    assert short["nv"] == "nv"
    assert limit < 32 or "stage zero" in short[LONG[0]]  # what names of a family differ in is often at the end


def test_names_that_cannot_be_told_apart_when_cut_get_their_numbers():
    names = [f"melanoma {k} in situ" for k in range(3)]
    assert list(text.shortened(names, 12).values()) == [f"me…{k} in situ" for k in range(3)]
    assert list(text.shortened(names, 18).values()) == names
    names = [f"melanoma {k} in situ of the trunk" for k in range(3)]
    assert list(text.shortened(names, 12).values()) == [f"melan…runk#{k}" for k in range(3)]


def test_a_table_that_is_wider_than_the_terminal_is_divided(monkeypatch):
    rows = [["class", *(f"column {k}" for k in range(9))], *([name, *range(9)] for name in "ab"), ["c", 1, *[""] * 8]]
    monkeypatch.setenv("COLUMNS", "40")
    parts = text.align_columns(rows).split("\n\n")
    assert all(part.startswith("class  column") and max(map(len, part.splitlines())) <= 40 for part in parts)
    assert [len(part.splitlines()) for part in parts] == [4, 3, 3]  # a row stays where it has something
    assert " ".join(parts).count("column") == 9
    monkeypatch.setenv("COLUMNS", "0")  # no terminal
    assert len(text.align_columns(rows).splitlines()) == 4
    assert text.align_columns([["alone"], ["in its column"]]) == "alone\nin its column"


def test_an_evaluation_fits_a_terminal_of_80_columns(tmp_path, monkeypatch, capsys):
    rng, files = np.random.default_rng(0), {}
    for split, count in (("val", 160), ("test", 200)):
        labels = np.arange(count) % 5
        logits = rng.normal(size=(count, 5)) + 2 * np.eye(5)[labels]
        files[split] = tmp_path / f"{split}.npz"
        write_npz(files[split], ids=np.array([f"{split}{k}" for k in range(count)]), labels=labels, logits=logits,
                  class_names=np.array(LONG[:5]))
    monkeypatch.setenv("COLUMNS", "80")
    evaluate.main([str(files["test"]), "--val", str(files["val"]), "--replicates", "100"])
    output = capsys.readouterr().out
    tables = [part for part in output.split("\n\n") if part.startswith(("test ", "class ", "decision ", "true "))]
    assert len(tables) >= 8
    for table in tables:
        sentences = ("ECE before", "ECE after", "promised", "Less")
        lines = [line for line in table.splitlines() if not line.startswith(sentences)]
        assert max(map(text.width, lines)) <= 80
    matrix = tables[-1].splitlines()
    assert len({text.width(line) for line in matrix}) == 1  # numbers stand below each other
    assert all(f"\n{k} " in output for k in range(5))
