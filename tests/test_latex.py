"""LaTeX tables: what stands in a cell is text."""

import re
import shutil
import subprocess

import pytest

from kd.report import blocks, latex

EVIL = r"\input{/etc/passwd} {a} $x$ & # _ % ~ ^ <b> | \end{table}" + "\n\nnext\x00 \u202eשלום 😀 α→Δ" + "x" * 2000


def stripped(text):
    """`text` without the escapes that stand for a letter."""
    return re.sub(r"\\[{}$&#_%]|\\text\w+\{\}|\\ldots\{\}|\$\\[A-Za-z]+\$|\$\^\\?\w+\$|\$-\$", "", text)


def test_a_table_is_set_as_its_columns_and_rows_say():
    text = latex.table(["model", "macro F1"], [["resnet18_kd", "0.755 [0.715, 0.787]"], ["majority", "n/a"]],
                       "Test split, 95% intervals", "performance")
    assert text.splitlines() == [
        r"% \usepackage[T1]{fontenc}", r"\begin{table}", r"\centering",
        r"\caption{Test split, 95\% intervals}\label{tab:performance}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}\renewcommand{\arraystretch}{1.1}",
        r"\begin{tabular}{@{}lr@{}}", r"\hline", r"model & macro F1 \\", r"\hline",
        r"resnet18\_kd & 0.755 [0.715, 0.787] \\", r"majority & n/a \\", r"\hline", r"\end{tabular}", r"\end{table}",
    ]


def test_hostile_text_is_neither_command_nor_cell_nor_line():
    assert not set(stripped(latex.escape(EVIL, 10_000))) & set("\\{}$&#_%~^<>|\"\n\x00\u202e")
    text = latex.table([EVIL, "n"], [[EVIL, "1"]], EVIL, EVIL)
    # a long text is broken into lines, which stand in a table of their own
    inner = r"\\begin\{tabular\}\[[tb]\]\{@\{\}l@\{\}\}(.*?)\\end\{tabular\}"
    text = re.sub(inner, lambda cell: stripped(cell[1]), text)
    lines = text.splitlines()
    assert len(lines) == 13 and all(line.isascii() for line in lines)
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r" \\")] == [1, 1]
    assert sum(line.count(r"\begin{") + line.count(r"\end{") for line in lines) == 4
    assert re.search(r"\\label\{tab:[A-Za-z0-9-]+\}", lines[3])


@pytest.mark.parametrize("text, expected", [
    ("50% of A_1 & B", r"50\% of A\_1 \& B"), ("Δ ± α → ≤", r"$\Delta$ $\pm$ $\alpha$ $\rightarrow$ $\le$"),
    ("a\\b", r"a\textbackslash{}b"), ("Größe", "Größe"), ("ש", "[U+05E9]"), ("😀", "[U+1F600]"), (0.25, "0.25")])
def test_letters_that_a_plain_font_lacks_become_signs_or_code_points(text, expected):
    assert latex.escape(text) == expected


def test_a_long_table_may_break_over_pages_and_repeats_its_head():
    text = latex.table(["run", "score"], [[f"run {k}", k / 7] for k in range(200)], "All runs", "runs")
    assert r"\begin{longtable}{@{}lr@{}}" in text and r"\begin{tabular}" not in text
    assert text.index(r"\hline") < text.index(r"\endhead") < text.index("run 0") < text.index("run 199")


def test_a_wide_table_is_divided_and_each_part_repeats_the_columns_that_name_its_rows():
    columns = ["Model", "Seed", *(f"Metric {k}" for k in range(9))]
    rows = [[f"m{k}", str(k), *("0.755 [0.715, 0.787]",) * 9] for k in range(3)]
    text = latex.table(columns, rows, "Everything", "all", keys=2)
    parts = text.split(r"\begin{tabular}")[1:]
    assert len(parts) == 3 and text.count(r"\caption") == text.count(r"\label") == text.count(r"\begin{table}") == 1
    shown = [re.search(r"\\hline\n(.*) \\\\\n\\hline", part)[1].split(" & ") for part in parts]
    assert all(names[:2] == columns[:2] for names in shown) and sum((names[2:] for names in shown), []) == columns[2:]
    assert all(part.count("m2 & 2 & 0.755") == 1 for part in parts)


def test_columns_that_name_the_rows_are_those_of_texts_before_the_first_number():
    columns = [blocks.Column(key, key) for key in "abcd"]
    assert blocks.key_columns(columns, [{"a": "x", "b": None, "c": .5, "d": "y"}]) == 2
    for record in {"a": 1.0, "b": "x"}, dict.fromkeys("abcd", "x"):  # where all are texts, the first
        assert blocks.key_columns(columns, [record]) == 1


# ---- set by TeX


def complaints(folder, *tables):
    """Lines of the log of an article with these tables: errors, what is wider than the text or higher than a page."""
    body = "\n".join(f"{table}\n\\clearpage" for table in tables)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{longtable}\begin{document}"
    (folder / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    tex = ["pdflatex", "-interaction=nonstopmode", "-draftmode", "all.tex"]
    for _ in range(2):  # a longtable knows its widths the second time
        subprocess.run(tex, cwd=folder, capture_output=True)
    log = (folder / "all.log").read_text(encoding="latin-1")
    assert "Here is how much of TeX's memory you used" in log  # it came to the end
    return [line for line in log.splitlines() if re.match(r"!|Overfull|LaTeX Warning: Float too", line)]


needs_tex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX")


@needs_tex
def test_every_table_of_a_report_fits_the_text_of_an_article(reported_study, tmp_path):
    tables = sorted((reported_study[0] / "tables").glob("*.tex"))
    assert len(tables) > 20
    assert not complaints(tmp_path, *(path.read_text(encoding="utf-8") for path in tables))


@needs_tex
def test_long_names_many_columns_and_hostile_texts_fit_too(tmp_path):
    names = ["model", *(f"Δ {'very ' * k}long name" for k in range(12))]
    rows = [[f"mobilenet_v3_large_distilled_by_{k}" * 2, *("-0.755 [-0.715, +0.787]",) * 12] for k in range(60)]
    texts = [[f"option_{k}", "a/b_c=" * 20, "word " * 40, "x" * 300] for k in range(5)]
    starts = [[sign, sign] for sign in ("[5pt]", "*", "*[1pt]", "é", "–")]
    assert not complaints(
        tmp_path, latex.table(names, rows, "Many", "a"), latex.table(["o", "a", "b", "c"], texts, "Texts " * 40, "b"),
        latex.table(["p", "q"], starts, "[1]", "c"), latex.table([EVIL, "n"], [[EVIL, "1"]] * 3, EVIL[:60], EVIL),
        latex.table(["nothing"], [], "Empty", "e"),
    )
