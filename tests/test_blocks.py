"""Blocks of a report as text, as cells and as CSV."""

import csv
import io
import math

import pytest

from kd.report import blocks
from kd.report.blocks import Column, cell, interval, table, texts
from kd.text import format_duration


@pytest.mark.parametrize("seconds, words", [(48.4, "48 s"), (59.7, "1 min 00 s"), (3599.8, "1 h 00 min"),
                                            (7530, "2 h 06 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert format_duration(seconds) == words


def test_cells_show_value_and_interval_in_the_form_of_their_column():
    record = {
        "f1": 0.45748, "f1_lo": 0.4136, "f1_hi": 0.4964, "n": 1341, "p": 0.0004, "seed": "seed_3", "gap": -0.0185,
        "no": None,
    }
    assert cell(record, interval("F1", "f1")) == {
        "value": 0.45748, "text": "0.457", "bounds": (0.4136, 0.4964), "lo": "0.414", "hi": "0.496", "reason": "",
    }
    columns = (
        Column("", "n", ",d"), Column("", "p", "p"), Column("", "seed", kind="seed"), Column("", "gap", "+.3f"),
        Column("", "no"), Column("", "absent"),
    )
    assert [cell(record, column)["text"] for column in columns] == ["1,341", "<0.001", "3", "-0.018", "–", "–"]
    assert cell({"f1": math.nan, "f1_lo": .1, "f1_hi": .2}, interval("F1", "f1"))["bounds"] is None
    assert cell({"f1": .5, "f1_lo": .4, "f1_hi": None}, interval("F1", "f1"))["text"] == "–"
    block = table("t", "About", [interval("F1", "f1")], [record, {"f1": .5}])
    assert block["caption"] == "About (1 figure without an interval not shown)"
    assert texts(block)[1] == [["0.457 [0.414, 0.496]"], ["–"]]
    few = {"f1": .5, "f1_lo": math.nan, "f1_hi": math.nan, "f1_withheld": "too few images (3)"}
    assert cell(few, interval("F1", "f1")) == {
        "value": .5, "text": "0.500", "bounds": None, "reason": "too few images (3)"}
    block = table("t", "About", [interval("F1", "f1")], [record, few])
    assert block["caption"] == "About" and texts(block)[1] == [["0.457 [0.414, 0.496]"], ["0.500 (too few images (3))"]]
    assert blocks.to_csv([few]).splitlines()[1] == "0.5,,,too few images (3)"
    block = table("t", "", [Column("N", "n", ",d"), interval("F1", "f1")], [record])
    assert texts(block) == (["N", "F1"], [["1,341", "0.457 [0.414, 0.496]"]])


def test_a_column_without_a_value_is_not_shown():
    block = table("t", "", [Column("A", "a"), Column("B", "b"), Column("p", "p", "p")],
                  [{"a": 1.0, "b": None, "p": math.nan}, {"a": 2.0, "b": "", "p": math.nan}])
    assert [column.title for column in block["columns"]] == ["A"]


def test_a_reason_that_all_figures_of_a_column_share_stands_above_the_table_alone():
    few = {"f1": .5, "f1_lo": math.nan, "f1_hi": math.nan, "f1_withheld": "too few images (3)"}
    columns = [Column("Model", "model"), interval("F1", "f1")]
    block = table("t", "About", columns, [{"model": "a", **few}, {"model": "b", **few}, {"model": "c"}])
    assert block["caption"] == "About; no interval of F1: too few images (3)"
    assert texts(block)[1] == [["a", "0.500"], ["b", "0.500"], ["c", "–"]]
    one = table("t", "About", [interval("F1", "f1")], [few])
    assert one["caption"] == "About" and texts(one)[1] == [["0.500 (too few images (3))"]]


def test_long_names_break_where_a_word_of_them_ends():
    assert blocks.breakable("teacher_efficientnetlite0/seed_0") == ["teacher_", "efficientnetlite0/", "seed_0"]
    assert blocks.breakable("tiny_alone") == ["tiny_alone"] and blocks.breakable("") == [""]


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", " =1", "\r=1"])
def test_no_text_of_a_csv_is_a_formula(text):
    row, = list(csv.DictReader(io.StringIO(blocks.to_csv([{"name": text}]), newline="")))
    assert row["name"] == f"'{text}".replace("\r", "\n")


def test_a_csv_holds_numbers_in_full_and_names_as_they_are():
    names = ['a,"b"', "line\nbreak", "אבג", "😀" * 2000, "-0.5", "nul\0", "lone \ud800"]
    records = [{"name": name, "value": 1 / 3, "none": None, "nan": math.nan} for name in names] + [{"more": -1e-300}]
    rows = list(csv.DictReader(io.StringIO(blocks.to_csv(records), newline="")))
    assert [row["name"] for row in rows[:-1]] == [name.replace("\0", "").replace("\ud800", "?") for name in names]
    assert {float(row["value"]) for row in rows[:-1]} == {1 / 3}
    assert {(row["none"], row["nan"], row["more"]) for row in rows[:-1]} == {("", "", "")}
    assert float(rows[-1]["more"]) == -1e-300
