"""LaTeX tables: what stands in a cell is text."""

import re

import pytest

from kd.report import latex

EVIL = r"\input{/etc/passwd} {a} $x$ & # _ % ~ ^ <b> | \end{table}" + "\n\nnext\x00 \u202eשלום 😀 α→Δ" + "x" * 2000


def stripped(text):
    """`text` without the escapes that stand for a letter."""
    return re.sub(r"\\[{}$&#_%]|\\text\w+\{\}|\\ldots\{\}|\$\\[A-Za-z]+\$|\$\^\\?\w+\$|\$-\$", "", text)


def test_a_table_is_set_as_its_columns_and_rows_say():
    text = latex.table(["model", "macro F1"], [["resnet18_kd", "0.755 [0.715, 0.787]"], ["majority", "n/a"]],
                       "Test split, 95% intervals", "performance")
    assert text.splitlines()[1:] == [
        r"\begin{table}", r"\centering", r"\caption{Test split, 95\% intervals}\label{tab:performance}",
        r"\begin{tabular}{lr}", r"\toprule", r"model & macro F1 \\", r"\midrule",
        r"resnet18\_kd & 0.755 [0.715, 0.787] \\", r"majority & n/a \\", r"\bottomrule", r"\end{tabular}",
        r"\end{table}",
    ]


def test_hostile_text_is_neither_command_nor_cell_nor_line():
    assert not set(stripped(latex.escape(EVIL, 10_000))) & set("\\{}$&#_%~^<>|\"\n\x00\u202e")
    lines = latex.table([EVIL, "n"], [[EVIL, "1"]], EVIL, EVIL).splitlines()
    assert len(lines) == 12 and all(line.isascii() for line in lines)
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")] == [1, 1]
    assert sum(line.count(r"\begin{") + line.count(r"\end{") for line in lines) == 4
    assert re.search(r"\\label\{tab:[A-Za-z0-9-]+\}", lines[3])


@pytest.mark.parametrize("text, expected", [
    ("50% of A_1 & B", r"50\% of A\_1 \& B"), ("Δ ± α → ≤", r"$\Delta$ $\pm$ $\alpha$ $\rightarrow$ $\le$"),
    ("a\\b", r"a\textbackslash{}b"), ("Größe", "Größe"), ("ש", "[U+05E9]"), ("😀", "[U+1F600]"), (0.25, "0.25")])
def test_letters_that_a_plain_font_lacks_become_signs_or_code_points(text, expected):
    assert latex.escape(text) == expected


def test_a_long_table_may_break_over_pages_and_repeats_its_head():
    text = latex.table(["run", "score"], [[f"run {k}", k / 7] for k in range(200)], "All runs", "runs")
    assert r"\begin{longtable}{lr}" in text and r"\begin{tabular}" not in text
    assert text.index(r"\midrule") < text.index(r"\endhead") < text.index("run 0") < text.index("run 199")
