"""Commands in the documents are understood by their scripts, and figures in them are those of what they quote."""

import importlib
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from kd import bootstrap, predictions
from kd.errors import UserError
from kd.files import read_csv, read_json
from kd.train.options import TrainingParser, parse_options

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"__main__"}
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("models/**/*.md"))]
COMMAND = re.compile(r"(?m)^    (?:.*&& )?(python \S+\.py.*)$")


def text_of(path):
    return path.read_text(encoding="utf-8")


def commands(text):
    """Words of the commands that run one of our scripts; variables such as C="..." are filled in."""
    variables = dict(re.findall(r'(?m)^    (\w)="(.*)"$', text))
    for line in COMMAND.findall(text.replace("\\\n", " ")):
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        for part in re.split(r"&&| > ", line):
            words = shlex.split(part, comments=True)
            if len(words) > 1 and Path(words[1]).stem in SCRIPTS | {path.stem for path in ROOT.glob("benchmarks/*.py")}:
                yield words[1:]


def understand(file, *words):
    """Parse a command line as its script does. SystemExit or UserError where it would."""
    if file.startswith("benchmarks/"):
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in text_of(ROOT / file)]
        if unknown:
            raise UserError(f"{file} has no {unknown}")
        return
    script = importlib.import_module(Path(file).stem)
    if hasattr(script, "parse"):
        script.parse(list(words))
        return
    parser = script.parser()
    if isinstance(parser, TrainingParser) and "--config" not in words:
        parse_options(parser, list(words))
    else:
        parser.parse_args(list(words))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_scripts_understand_the_commands_of_a_document(path):
    for words in commands(text_of(path)):
        try:
            understand(*words)
        except (UserError, SystemExit) as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_an_option_that_no_script_has_is_found():
    with pytest.raises(UserError):
        understand("distill.py", "--student", "tiny", "--wings", "2")
    assert len(list(commands(text_of(ROOT / "README.md")))) > 20
    assert ["train_teacher.py", "--size", "64"] in commands('    C="--size 64"\n    python train_teacher.py $C\n')


# ---- figures


def figures(text):
    """Numbers with two or three decimals, without sign and leading zero."""
    return {number.lstrip("0") for number in re.findall(r"(?<![\d.])\d*\.\d{2,3}(?![\d.])", text)}


def lines(text):
    """Lines with a figure, spaces made equal."""
    return {" ".join(line.split()) for line in text.splitlines() if figures(line)}


@pytest.fixture(scope="module")
def printed():
    """What the cells of the executed tutorial print."""
    cells = json.loads(text_of(ROOT / "docs" / "notebook.ipynb"))["cells"]
    return "\n".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", ()))


def quoted_output(text):
    """Lines of the indented blocks that are a table of figures: words, then cells such as 0.894 [0.829, 0.938]."""
    return lines("\n".join(re.findall(r"(?m)^    (.*\d\.\d{3}(?: \[|  |$).*)$", text)))


def test_output_that_the_tutorial_quotes_is_what_its_commands_print(printed):
    quoted = quoted_output(text_of(ROOT / "docs" / "tutorial.md"))
    assert len(quoted) > 10 and quoted - lines(printed) == set(), "run: python docs/make_notebook.py"


def test_output_that_the_readme_quotes_is_what_the_tutorials_commands_print(printed):
    quoted = quoted_output(text_of(ROOT / "README.md"))
    assert len(quoted) == 3 and quoted - lines(printed) == set()


def test_figures_of_readme_and_tutorial_are_in_what_they_refer_to(printed):
    docs = ROOT / "docs"
    sources = [docs / "gain.md", docs / "speed.md", RESULTS / "README.md", RESULTS / "edge.md"]
    known = figures(printed).union(*(figures(text_of(path)) for path in sources))
    for path in (ROOT / "README.md", docs / "tutorial.md"):
        prose = re.sub("Python [0-9.]+", "", COMMAND.sub("", text_of(path)))
        assert figures(prose) - known == set(), path.name


# ---- tables of results


def cell(metric):
    return "{value:.3f} [{lo:.3f}, {hi:.3f}]".format(**metric).replace("0.", ".")


def signed(difference):
    """A paired difference with its interval, as the pages write it."""
    value, lo, hi = (f"{difference[key]:+.3f}".replace("0.", ".") for key in ("value", "lo", "hi"))
    return f"{value} [{lo}, {hi}]".replace("+.000", ".000").replace("-.000", ".000")


def tables(text, first):
    """Rows of the tables whose first column is called `first`, as {column: cell}."""
    for table in re.findall(rf"(?m)^\| {first} \|.*\n(?:\|.*\n)+", text):
        header, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines())
        yield from (dict(zip(header, row, strict=True)) for row in rows)


def test_tables_of_the_results_are_those_of_the_runs():
    checked = 0
    for section in re.split(r"(?m)^## ", text_of(RESULTS / "README.md"))[1:]:
        for row in tables(section, "run"):
            overall = read_json(RESULTS / section.split()[0] / row["run"] / "seed_0" / "metrics.json")["test"]
            for name in ("accuracy", "macro-F1", "balanced accuracy"):
                assert row[name] == cell(overall[name.replace("-", "_").replace(" ", "_").lower()]), row
                checked += 1
    assert checked > 15


FIRST_FOLD = {"teacher": "teacher_efficientnetlite2", "student alone": "efficientnetlite0_alone",
              "student with KD": "efficientnetlite0_kd", "student with `logit_std`": "efficientnetlite0_logit_std"}


def test_what_follows_on_the_first_fold_is_what_its_files_have():
    folds, checked = RESULTS / "ham10000_128px" / "folds", Counter()
    summary = {(row["model"], row["file"]): row for row in read_csv(folds / "robustness_summary.csv")}
    files = {"checkpoint": "best.pt", "INT8": "model.int8.onnx"}
    for row in tables(text_of(RESULTS / "README.md"), "network"):
        name = f"{FIRST_FOLD[row['network']]}_fold1of5"
        if "specificity" in row:
            metrics = read_json(folds / name / "seed_0" / "metrics.json")
            points = {(point["kind"], point["class"]): point for point in metrics["operating_points"]}
            melanoma, abstention = points["sensitivity", "mel"], points["abstention", None]
            assert list(row.values())[1:] == list(map(cell, (
                melanoma["test"]["sensitivity"], melanoma["test"]["specificity"], metrics["test"]["rms_ce_debiased"],
                metrics["test"]["rms_ce_debiased_calibrated"], abstention["test"]["coverage"],
                abstention["test"]["risk"]))) and melanoma["promised"] == .95, row
        elif "BE" in row:
            found = {key: float(value) for key, value in summary[name, files[row["file"]]].items()
                     if re.fullmatch("((clean|mean)_macro_f1|r?be)(_lo|_hi)?", key)}
            assert row["clean"] == f"{found['clean_macro_f1']:.3f}".replace("0.", ".")
            assert row["mean over 45 cells"] == cell({key: found[f"mean_macro_f1{end}"] for key, end in (
                ("value", ""), ("lo", "_lo"), ("hi", "_hi"))})
            for kind in ("be", "rbe"):
                text = "{:.2f} [{:.2f}, {:.2f}]".format(*(found[f"{kind}{end}"] for end in ("", "_lo", "_hi")))
                assert text.startswith(row["BE" if kind == "be" else "rBE"]), row
        else:
            test = read_json(folds / name / "seed_0" / "exports" / "parity.json")["formats"]["int8"]["test"]
            assert row["labels changed"] == f"{100 * test['flips']:.2f}%"
            assert row["less the checkpoint"] == signed(test["macro_f1"]["difference"]), row
        checked["BE" if "BE" in row else "specificity" if "specificity" in row else "INT8"] += 1
    assert checked == {"specificity": 4, "INT8": 3, "BE": 6}


def test_the_table_of_int8_is_that_of_the_exports():
    rows = list(tables(text_of(RESULTS / "edge.md"), "run"))
    losses = [row for row in rows if "labels changed" in row]
    for row in losses:
        report = read_json(RESULTS / row["run"] / "seed_0" / "exports" / "parity.json")["formats"]["int8"]
        change = report["test"]["macro_f1"]
        metric = {key: change[f"model_{key}"] for key in ("lo", "hi")} | {"value": change["model"]}
        assert row["macro-F1 in INT8"] == cell(metric), row
        assert row["less the checkpoint"] == signed(change["difference"]), row
        assert [row["labels changed"], row["of validation"]] == [
            f"{100 * report[part]['flips']:.2f}%" for part in ("test", "val")], row
        assert row["recipe"] == report["recipe"]["ranges"], row
    assert len(losses) > 4


def test_tables_of_tries_are_those_of_their_predictions():
    checked = 0
    for section in re.split(r"(?m)^## ", text_of(RESULTS / "README.md"))[1:]:
        for name, figure in re.findall(r"(?m)^\| (\S+) \| .* \| (\S+ \[.*?\]) \|$", section):
            file = RESULTS / section.split()[0] / "sweep_tries" / name / "seed_0" / "predictions" / "val.npz"
            if file.exists():
                val = predictions.read(file)
                metric = bootstrap.measure(val.labels, val.probabilities, val.clusters, val.class_names)["macro_f1"]
                assert figure == cell(metric), name
                checked += 1
    assert checked > 10


def test_the_table_in_the_readme_is_that_of_the_comparison():
    networks = {"teacher: EfficientNet-Lite2": "teacher_efficientnetlite2_fold1of5",
                "student alone: EfficientNet-Lite0": "efficientnetlite0_alone_fold1of5",
                "student with KD": "efficientnetlite0_kd_fold1of5",
                "student with logit standardisation": "efficientnetlite0_logit_std_fold1of5"}
    teacher, alone, *_ = networks.values()
    folds = RESULTS / "ham10000_128px" / "folds"
    compared = {(row["reference"], row["model"]): {key: float(row[key] or "nan") for key in row if key in (
                    "difference", "lo", "hi", "retention", "retention_lo", "retention_hi")}
                for row in read_csv(folds / "comparison.csv") if row["metric"] == "macro_f1"}
    shown = list(tables(text_of(ROOT / "README.md"), "HAM10000, 128 px"))
    assert [row.pop("HAM10000, 128 px") for row in shown] == list(networks)
    for row, network in zip(shown, networks.values()):
        gain, share = compared.get((alone, network)), compared.get((teacher, network))
        assert list(row.values()) == [
            cell(read_json(folds / network / "seed_0" / "metrics.json")["test"]["macro_f1"]),
            signed(gain | {"value": gain["difference"]}) if gain else "",
            "{retention:.1%} [{retention_lo:.1%}, {retention_hi:.1%}]".format(**share) if share else ""], network


def test_the_table_of_what_a_teacher_adds_agrees_with_itself_and_with_who_quotes_it():
    text = text_of(ROOT / "docs" / "gain.md")
    rows = [[float(number) for number in row] for row in re.findall(
        r"(?m)^\| \d+ \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text)]
    teacher, alone, distilled, gain = map(list, zip(*rows))
    means = re.search(r"(?m)^\| mean \| (.*) \|$", text)[1].split(" | ")
    for values, mean in zip((teacher, alone, distilled, gain), means):
        assert sum(values) / len(values) == pytest.approx(float(mean.split()[0]), abs=0.001)
    assert f"in {sum(with_ > without for without, with_ in zip(alone, distilled))} of {len(rows)} seeds" in text
    assert len(rows) == 20 and all(g == pytest.approx(b - a, abs=0.0011) for a, b, g in zip(alone, distilled, gain))
    for path in (ROOT / "README.md", ROOT / "docs" / "tutorial.md"):
        assert means[3].replace("0.", ".") in text_of(path)
