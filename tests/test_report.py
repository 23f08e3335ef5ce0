"""The report shows the numbers of the run folders, all of them, and nothing else."""

import csv
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import report
import reported
from kd import runs
from kd.audit import examine
from kd.errors import UserError
from kd.evaluation import compare, protocol
from kd.files import parse_number, read_csv, read_json, read_npz, write_json, write_npz
from kd.report import blocks, build, figures, study_files
from kd.report.sections import efficiency, overview, performance, result, students
from kd.report.sections.calibration import sentences as calibration_sentences
from kd.report.sections.calibration import threshold_sentences
from kd.text import format_p
from reported import CLASSES, Page, paged, words, write_run, write_study

HOSTILE = [
    '<script>alert("1")</script>', "$\\frac12$ & 'co' \x1b", "=cmd|' /C calc'!A0", "אבג \u202e", "😀" + "x" * 1999,
]


@pytest.fixture
def study(reported_study):
    return reported_study


@pytest.fixture
def quick(monkeypatch):
    """Drawings are left out where a test is not about them, and the template is compiled once."""
    reported.without_drawings(monkeypatch)



def is_number(text):
    return np.isfinite(parse_number(text)) and "," not in text


def table(root, name):
    with open(root / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(row, value, prefix):
    """What a cell shows of a row of a comparison: value and interval, or value and why there is none."""
    reason = row[f"{prefix}withheld"]
    return [row[value], *([reason] if reason else [row[f"{prefix}lo"], row[f"{prefix}hi"]])]


def interval(metric):
    return [metric[key] for key in ("value", "lo", "hi")]


# ---- numbers


def test_every_metric_and_interval_is_that_of_the_run(study):
    root, page = study
    metrics = read_json(root / "teacher_big/seed_0/metrics.json")["test"]
    row = page.rows("teacher_summary")["teacher_big",]
    for name in performance.METRICS:
        assert row[f"{name}_mean"] == interval(metrics[name])
    seeds = page.rows("seeds")
    assert seeds.keys() == {(model, seed) for model in ("small_alone", "small_kd") for seed in "01"}
    assert len(table(root, "seeds")) == 5  # with the only seed of the teacher, which the page shows above
    for model, seed in page.rows("calibration"):
        metrics = read_json(root / model / f"seed_{seed}/metrics.json")["test"]
        if (model, seed) in seeds:
            for name in performance.METRICS:
                assert seeds[model, seed][name] == interval(metrics[name])
        row = page.rows("calibration")[model, seed]
        for column, name in (
            ("nll", "nll"), ("brier", "brier"), ("nll_calibrated", "nll_calibrated"),
            ("rms_ce_debiased", "rms_ce_debiased"), ("rms_ce_debiased_calibrated", "rms_ce_debiased_calibrated"),
        ):
            assert row[column] == interval(metrics[name])
        for column, name in (
            ("ece_uniform", "ece"), ("ece_adaptive", "ece_equal_mass"), ("ece_uniform_calibrated", "ece_calibrated"),
        ):
            assert row[column] == [metrics[name]["value"]]  # biased, so without an interval
        calibration = read_json(root / model / f"seed_{seed}/metrics.json")["calibration"]
        assert row["consistency_p"] == [calibration["consistency"]["calibrated"]["p"]]


def test_means_over_seeds_are_those_of_seeds_json(study):
    root, page = study
    metrics = read_json(root / "small_kd/seeds.json")["test"]
    row = page.rows("students_summary")["small_kd",]
    for name in performance.METRICS:
        assert row[f"{name}_mean"] == [metrics[name][key] for key in ("mean", "lo", "hi")]


def test_differences_are_those_that_evaluate_compares(study):
    root, page = study
    compared = compare.compare(compare.models([root]), protocol.Settings())
    rows, classes = page.rows("deltas"), page.rows("deltas_per_class")
    titles = {"accuracy": "accuracy", "macro_f1": "macro-F1", "macro_f1_without_rarest": "macro-F1 without df"}
    assert len(rows) == 5 * len(compared["pairs"]) == 15
    for pair in compared["pairs"]:
        for row in pair["rows"]:
            if row["metric"] in titles:
                cells = rows[pair["model"], titles[row["metric"]], pair["reference"]]
                assert cells["difference"] == shown(row, "difference", "")
                assert cells["retention"] == shown(row, "retention", "retention_")
                has_seeds = pair["reference"] == "small_alone"  # two, as the model
                deciding = has_seeds and row["metric"] == "macro_f1"  # one family of tests a table
                assert cells["p_shown"] == [row["p_corrected"] if deciding else "–"]
            if row["metric"].startswith("f1/") and pair["reference"] == "teacher_big":
                cells = classes[pair["model"], row["metric"][3:]]
                assert cells["delta_f1"] == shown(row, "difference", "")
                assert cells["f1"] == shown(row, "model_value", "model_")


def test_latency_memory_and_exports_are_those_of_the_run(study):
    root, page = study
    rows = page.rows("cpu_latency")
    formats = {"best.pt": "checkpoint", "model.onnx": "ONNX", "model.int8.onnx": "ONNX INT8"}
    for row in read_csv(root / "small_kd/seed_0/benchmark.csv"):
        cells = rows["small_kd", "0", formats[row["ckpt"].split("/")[-1]]]
        assert cells["lat_ms_p50"] == [float(row["lat_ms_p50"])]
        assert cells["throughput_fps"] == [float(row["throughput_fps"])]
        assert cells.get("noise", ["–"]) == (["noisy"] if row["noisy"] == "True" else ["–"])
    int8 = read_json(root / "small_kd/seed_0/exports/parity.json")["formats"]["int8"]["test"]
    cells = page.rows("exports")["small_kd", "0", "ONNX INT8"]
    assert cells["flips"] == [int8["flips"]] and cells["delta_macro_f1"] == interval(int8["macro_f1"]["difference"])
    points = {(row["model"], row["precision"]): row for row in table(root, "pareto")}
    assert len(points) == 6
    for key, name in (("score", "model"), ("score_lo", "model_lo"), ("score_hi", "model_hi")):  # not of the difference
        assert float(points["small_kd", "int8"][key]) == int8["macro_f1"][name]
    metrics = read_json(root / "small_kd/seed_0/metrics.json")["test"]
    assert float(points["small_kd", "fp32"]["score"]) == metrics["macro_f1"]["value"]


def test_operating_points_and_robustness_are_those_of_the_run(study):
    root, page = study
    points = read_json(root / "small_kd/seed_1/metrics.json")["operating_points"]
    rows = page.rows("thresholds")
    for point in points:
        if point["kind"] == "sensitivity":
            cells = rows["small_kd", "1", point["class"]]
            assert cells["sensitivity"] == interval(point["test"]["sensitivity"])
            assert cells["tau"] == [point["threshold"]]
            assert cells["shortfall"] == interval(point["shortfall"])
    exported = [row for row in table(root, "operating_points") if (row["model"], row["seed"]) == ("small_kd", "seed_1")]
    assert [row["name"] for row in exported] == [point["name"] for point in points]
    assert list(exported[0])[:4] == ["model", "seed", "tau", "macro_f1_opt"]
    corrupted = {(row["model"], row["tag"]): row for row in table(root, "robustness")}
    for row in read_csv(root / "small_kd/seed_0/robustness.csv"):
        for key in ("acc", "macro_f1", "nll_lo", "ece"):
            assert corrupted["small_kd", row["tag"]][key] == str(float(row[key]))
    summary = page.rows("robustness_summary")["small_kd", "0", "checkpoint"]
    row = next(row for row in read_csv(root / "robustness_summary.csv") if row["model"] == "small_kd")
    for name in ("be", "rbe", "be_medmnist_c", "rbe_medmnist_c"):
        assert summary[name] == [float(row[f"{name}{end}"]) for end in ("", "_lo", "_hi")]


REFERENCE = {
    "teacher_summary": "model accuracy_mean accuracy_lo accuracy_hi macro_f1_mean macro_f1_lo macro_f1_hi",
    "students_summary": "model accuracy_mean accuracy_lo accuracy_hi macro_f1_mean macro_f1_lo macro_f1_hi",
    "calibration": "model seed accuracy nll brier ece_uniform ece_adaptive",
    "operating_points": "model seed tau macro_f1_opt",
    "robustness": "acc macro_f1 tag model seed",
    "cpu_latency": "ckpt model seed device batch imsz lat_ms_mean lat_ms_std lat_ms_p50 lat_ms_p90 lat_ms_p99 "
                   "throughput_fps",
    "memory": "ckpt model seed params_bytes params_mib peak_cuda_bytes peak_cuda_mib img_sz batch",
    "pareto": "model score latency_ms params_mib peak_cuda_mib",
}


def test_every_table_of_the_reference_report_is_there_as_latex(study):
    root, _ = study
    text = {name: (root / "tables" / f"{name}.tex").read_text(encoding="utf-8") for name in REFERENCE}
    for name, cells in (
        ("cpu_latency", "Model & Seed & File & Runs on &"),
        ("cpu_latency", r"small\_kd & 0 & ONNX INT8 & onnxruntime &"),
        ("operating_points", "mel at sensitivity 0.95"),
        ("operating_points", "multipliers for macro F1"),
    ):
        assert cells in text[name]


def test_a_table_of_an_earlier_report_does_not_outlive_its_figures(tmp_path, quick):
    root = reported.write_parts(write_study(tmp_path / "toy"))
    paged(root)
    tables = root / "tables"
    assert {path.stem for path in tables.iterdir()} <= set(blocks.TABLES)
    (tables / "mine.csv").write_text("a\n1\n", encoding="utf-8")
    for path in root.rglob("benchmark.csv"):
        path.unlink()
    paged(root)
    left = {path.name for path in tables.iterdir()}
    assert "mine.csv" in left and {"calibration.csv", "calibration.tex"} <= left
    assert not left & {f"{name}.{kind}" for name in ("pareto", "cpu_latency", "memory") for kind in ("csv", "tex")}


@pytest.mark.parametrize("name", REFERENCE)
def test_tables_begin_with_the_reference_columns(study, name):
    first = list(table(study[0], name)[0])
    assert first[:len(REFERENCE[name].split())] == REFERENCE[name].split()


def test_every_number_of_the_page_stands_in_the_csv_of_its_table(study):
    root, page = study
    derived = {"file_mb", "macs_m"}  # units that a reader has use for
    for name, rows in page.tables.items():
        in_csv = {float(cell) for row in table(root, name) for cell in row.values() if is_number(cell)}
        cells = [value for row in rows for key, values in row.items() if key not in derived for value in values]
        assert {value for value in cells if isinstance(value, float)} <= in_csv, name


def test_every_cell_of_every_table_stands_in_the_pdf(study, quick):
    pdfium = pytest.importorskip("pypdfium2")
    root, page = study
    sheets = [sheet.get_textpage().get_text_range() for sheet in pdfium.PdfDocument(root / "report.pdf")]
    printed = "".join("".join(sheets).split())
    sections = build.build(study_files.read_study(root))
    cells = {cell for block in blocks.blocks_of(sections, "table") for row in blocks.texts(block)[1] for cell in row}
    assert len(cells) > 300
    missing = {cell for cell in cells if "".join(cell.split()) not in printed}
    assert not missing


def test_every_number_in_words_stands_in_a_table(study):
    """Or is one of the numbers that sentences are made with: a level, a count, a promise."""
    root, page = study
    section = page.source.split('id="result"')[1].split("</section>")[0]
    sentences = "".join(re.findall(r"<ul>(.*?)</ul>", section, re.S))
    rows = [row for path in (root / "tables").glob("*.csv") for row in table(root, path.stem)]
    cells = [cell for row in rows for cell in row.values()]
    values = [float(cell) for cell in cells if is_number(cell or "")]
    of_seeds = [figure for cell in cells if "two seeds" in (cell or "") for figure in cell.split("; ")[1].split(", ")]
    forms = (".0f", ".2f", ".3f", "+.3f", "+.4f", ".0%", ".1%", "g")
    formatted = {format(value, form) for value in values for form in forms}
    without_names = re.sub(r"macro-F1|seed \d|_\d|small_\w+|teacher_\w+", " ", sentences)
    numbers = re.findall(r"(?<![\w.])[+-]?\d+\.?\d*%?(?![\w])", without_names)
    assert len(numbers) > 10
    assert not {number for number in numbers if number not in formatted | {"0", "3", "6"} | set(of_seeds)}


def test_printed_numbers_are_the_values_rounded(study):
    fractions = [(value, text) for value, text in study[1].numbers if re.fullmatch(r"\d\.\d{3}", text)]
    assert len(fractions) > 300
    assert all(text == f"{value:.3f}" for value, text in fractions)


def test_training_time_epochs_and_first_best_epoch_are_those_of_the_history(study):
    row = study[1].rows("training")["small_kd", "1"]
    assert (row["seconds"], row["epochs"], row["best_epoch"]) == ([100.0], [5], [5]) and "1 min 40 s" in study[1].text


def test_confusion_matrices_show_the_counts(study):
    root, page = study
    matrices = [d for d in page.drawings() if d.get("aria-label").startswith("Confusion")]
    assert len(matrices) == 3
    counts = np.array(read_json(root / "teacher_big/seed_0/metrics.json")["confusion"])
    assert sorted(int(word) for word in words(matrices[0]) if word.isdigit()) == sorted(counts[counts > 0].tolist())


def test_forest_names_every_run_with_its_value_and_the_majority_rule(study):
    root, page = study
    always = read_json(root / "teacher_big/seed_0/metrics.json")["majority"]["macro_f1"]["value"]
    wide, narrow = [d for d in page.drawings() if d.get("aria-label").startswith("Macro-F1 on the test split")]
    for run, name in (("teacher_big/seed_0", "teacher_big"), ("small_kd/seed_1", "small_kd · seed 1")):
        value = read_json(root / run / "metrics.json")["test"]["macro_f1"]["value"]
        for drawing in (wide, narrow):
            assert {f"{value:.3f}", name, f"majority rule {always:.3f}"} <= set(words(drawing))


def test_sample_answers_are_the_argmax_of_the_logits_of_that_image(study):
    root, page = study
    alt = {tag["alt"].split(",")[0].split()[-1]: tag["alt"] for name, tag in page.tags
           if name == "img" and tag["alt"].startswith("Test image")}
    assert len(alt) == 4
    names = list(CLASSES)
    for model in reported.MODELS:
        test = read_npz(root / model / "seed_0/predictions/test.npz")
        for i in range(4):
            true, answer = names[test["labels"][i]], names[test["logits"][i].argmax()]
            assert f"true class {true}." in alt[f"test_{i}"]
            assert f"{model}: {answer} ({'right' if true == answer else 'wrong'})" in alt[f"test_{i}"]
    assert page.source.count("✗</span>") == " ".join(alt.values()).count("(wrong)") > 0


def test_undefined_numbers_are_a_dash_and_an_empty_cell(tmp_path, quick):
    root = write_study(tmp_path / "toy")
    path = root / "teacher_big/seed_0/metrics.json"
    metrics = read_json(path)
    metrics["test"]["macro_auroc"] = {"value": None, "lo": None, "hi": None}
    write_json(path, metrics)
    page = paged(root)
    assert page.rows("teacher_summary")["teacher_big",].get("macro_auroc_mean", ["–"]) == ["–"]
    assert [row["macro_auroc"] for row in table(root, "seeds") if row["model"] == "teacher_big"] == [""]
    assert "without an interval" not in page.text


def test_figures_of_too_few_lesions_are_shown_with_the_reason_in_place_of_an_interval(tmp_path, quick):
    for model in ("teacher_big", "small_kd"):
        write_run(tmp_path / "toy" / model / "seed_0", 2., shares={"mel": .5, "nv": .48, "df": .02},
                  role=model.split("_")[0])
    reported.evaluate(tmp_path / "toy")
    page = paged(tmp_path / "toy")
    metrics = read_json(tmp_path / "toy/small_kd/seed_0/metrics.json")
    f1 = metrics["test"]["f1/df"]
    assert f1["withheld"].startswith("too few independent images (") and f1["value"] is not None
    cells, = [row for row in page.tables["deltas_per_class"] if row.get("class") == ["df"]]
    for key in ("reference_f1", "f1", "delta_f1", "delta_recall"):
        assert isinstance(cells[key][0], float) and cells[key][1:] == [f1["withheld"]]
    assert cells["f1"][0] == f1["value"]
    assert (f1["value"], f"{f1['value']:.3f}") in page.numbers and f1["withheld"] in page.text
    row, = [row for row in table(tmp_path / "toy", "deltas_per_class") if row["class"] == "df"]
    assert row["f1_withheld"] == row["delta_f1_withheld"] == f1["withheld"] and row["f1_lo"] == row["p"] == ""
    cells = page.rows("thresholds")["small_kd", "0", "df"]
    sensitivity = next(point for point in metrics["operating_points"] if point["class"] == "df")["test"]["sensitivity"]
    assert cells["sensitivity"] == [sensitivity["value"], f1["withheld"]] and cells["shortfall"][1:] == [f1["withheld"]]
    assert sensitivity["withheld"] == f1["withheld"] and "not shown)" not in page.text


# ---- sentences


def test_one_seed_of_a_model_is_no_evidence_for_a_method(study, tmp_path, quick):
    root, page = study
    assert "p is of macro-F1, two-sided. Where a model has one seed there is no p" in page.text
    assert "corrected" not in page.text.split("Teacher against students")[1].split("Calibration and")[0]
    assert not any("p_corrected" in row for row in page.rows("deltas_per_class").values())  # none has one
    rows = {(row["reference"], row["model"]): row for row in table(root, "deltas") if row["metric"] == "macro_f1"}
    assert {pair for pair, row in rows.items() if row["p"]} == {("small_alone", "small_kd")}
    write_run(tmp_path / "toy/teacher_big/seed_0", 3., role="teacher", teacher="big")
    write_run(tmp_path / "toy/small_kd/seed_0", .5, student=["small"], teacher="runs/toy/teacher_big/seed_0")
    reported.evaluate(tmp_path / "toy")
    text = paged(tmp_path / "toy").text
    assert "there is no p, for it says nothing of the method" in text and "Holm" not in text
    write_run(tmp_path / "toy/small_alone/seed_0", .4, student=["small"], teacher=None)
    reported.evaluate(tmp_path / "toy")
    added = paged(tmp_path / "toy").text.split("What the teacher added")[1].split("What it costs")[0]
    assert "One seed, which says nothing of the method: small_kd" in added and "ignificant" not in added


def test_title_data_splits_and_methods_are_stated(study):
    _, page = study
    for text in (
        "toy", "203 images of", "in 3 classes", "3 train, 80 validation, 120 test", "8 × 8 px",
        "Not a medical device", "0.5 * ce + 0.5 * kd(T=4)", "f1f2f3", "abc1234", "smoothed cluster bootstrap",
        "95 of 100 such intervals", "Options that differ", "12,345",
        "Other trainings of teacher_big, trained with one seed only",
        "Other machines: latencies are of a CPU", "Not in these files: subgroups. The sections say why",
    ):
        assert text in page.text, text
    assert re.search(r"python distill\.py --config \S*/small_kd/seed_1/config\.yaml", page.text)
    assert re.search(r"python train_teacher\.py --config \S*/teacher_big/seed_0/config\.yaml", page.text)
    assert re.findall(r"Not shown: ([\w ]+)\.", page.text) == ["subgroups"]


def test_synthetic_data_are_called_so_and_real_data_are_not(study, tmp_path, quick):
    write_run(tmp_path / "drawn/a/seed_0", synthetic=True)
    assert "Synthetic data." in paged(tmp_path / "drawn").text
    assert "ynthetic data" not in study[1].text


def test_best_is_chosen_on_validation_and_says_what_it_rests_on(study):
    root, page = study
    scores = {
        model: np.mean([read_json(root / model / f"seed_{k}/metrics.json")["val"]["macro_f1"]["value"] for k in (0, 1)])
        for model in ("small_alone", "small_kd")
    }
    assert scores["small_kd"] > scores["small_alone"]
    row = next(
        row
        for row in table(root, "deltas")
        if (row["reference"], row["model"], row["metric"]) == ("small_alone", "small_kd", "macro_f1")
    )
    lo, hi = (float(row[key]) for key in ("difference_lo", "difference_hi"))
    assert (f"small_kd: of the students the highest macro-F1 on validation ({scores['small_kd']:.3f}; "
            f"small_alone {scores['small_alone']:.3f}; mean of 2 seeds). ") in page.text
    added = page.text.split("What the teacher added")[1]
    assert f"small_kd {float(row['difference']):+.3f} (mean of 2 seeds, p {format_p(float(row['p']))})." in added
    assert ("the choice rests on validation alone" in page.text) == (lo <= 0 <= hi)


def test_a_sentence_never_claims_more_than_its_interval(tmp_path, quick):
    for name in "ab":  # alike but for what chance does to a few of 120 images
        folder = tmp_path / f"toy/{name}_alone/seed_0"
        write_run(folder, 1.5, noise=1, student=["small"], teacher=None)
        for part in ("val", "test"):
            path = folder / f"predictions/{part}.npz"
            content = read_npz(path)
            noise = np.random.default_rng(ord(name)).normal(scale=0.2, size=content["logits"].shape)
            write_npz(path, **{**content, "logits": content["logits"] + noise})
    reported.evaluate(tmp_path / "toy")
    text = paged(tmp_path / "toy").text
    assert re.search(r"On test its difference from [ab]_alone is not significant \(95% interval includes 0\): the "
                     "choice rests on validation alone", text)
    assert "Test confirms the choice" not in text and "validation chose wrong" not in text
    assert "Other trainings of a_alone, b_alone, trained with one seed only." in text


def test_a_gain_names_the_further_images_that_the_student_saw(study, tmp_path):
    root = write_study(tmp_path / "toy")
    for path in root.glob("small_kd/seed_*/environment.json"):
        content = read_json(path)
        content["data"]["unlabelled"] = [{"name": "more", "images": 1500}, {"name": "others", "images": 500}]
        write_json(path, content)

    def sentences(root):
        read = study_files.read_study(root)
        return result.further_images(read, students.compare(read))

    only, = sentences(root)
    assert only.startswith("small_kd also learnt the teacher's answers to 2,000 images without labels")
    assert not sentences(study[0])


def test_a_noisy_latency_is_called_so_before_what_rests_on_it(study):
    read = study_files.read_study(study[0])
    rough, shares, int8 = result.costs(read, efficiency.measure(read), "small_kd")
    assert rough.startswith("Latencies are rough: 2 of 6 are noisy")
    assert "about " in shares and "100% of its memory (70 against 70 MiB" in shares and shares.endswith("seed 0.")
    assert int8.startswith("small_kd as INT8 (seed 0, ") and "another class for 2.0% of the test images" in int8


def test_a_missed_promise_is_told_of_each_seed_and_of_the_teacher_where_most_seeds_miss_it(study):
    read = study_files.read_study(study[0])
    runs_ = [*read.models["small_kd"], *read.models["teacher_big"]]
    for run, lo in zip(runs_, (.1, .2, -.1)):
        point = next(p for p in run.evaluation["operating_points"] if p.get("class") == "df")
        point.update(promised=.56, shortfall={"value": .3, "lo": lo, "hi": .5})
        point["test"]["sensitivity"] = {"value": .25, "lo": .125, "hi": .5}
    images = read.firsts[0].evaluation["split"]["val"]["support"]["df"]
    of_df = [line for line in threshold_sentences(read, "small_kd") if line.startswith("Class df")]
    assert of_df == [f"Class df: the threshold promises a sensitivity of 0.56 (from {images} validation images). On "
                     "test small_kd has 0.250 [0.125, 0.500] (seed 0), 0.250 [0.125, 0.500] (seed 1); teacher_big "
                     "0.250 [0.125, 0.500] (seed 0)."]
    point = next(p for p in runs_[1].evaluation["operating_points"] if p.get("class") == "df")
    point["shortfall"]["lo"] = -.1
    assert not [line for line in threshold_sentences(read, "small_kd") if line.startswith("Class df")]


def test_the_temperature_is_told_of_every_seed(study):
    only, = calibration_sentences(study_files.read_study(study[0]))
    assert "teacher_big (seed 0), small_alone (seeds 0, 1), small_kd (seeds 0, 1)" in only


def test_methods_name_no_path_of_the_machine_and_no_option_that_nothing_reads(tmp_path):
    home = "/somewhere/runs"
    for model, role, options in (
        ("small_alone", "student", {"teacher": None, "alpha": 1.0}),
        ("small_kd", "student", {"teacher": f"{home}/toy/teacher_big/seed_0", "alpha": .5}),
    ):
        write_run(tmp_path / f"toy/{model}/seed_0", role=role, student=["small"], out=home, study="toy",
                  temperature=4.0, **options)
    reported.evaluate(tmp_path / "toy")
    values = overview.option_values(study_files.read_study(tmp_path / "toy"))
    assert values["teacher"] == ["–", "teacher_big/seed_0"] and values["temperature"] == ["–", "4"]


def test_a_weak_teacher_bars_any_conclusion(study, tmp_path, quick):
    write_run(tmp_path / "toy/teacher_big/seed_0", .3, role="teacher", teacher="big")
    write_run(tmp_path / "toy/small_alone/seed_0", 3., student=["small"], teacher=None)
    reported.evaluate(tmp_path / "toy")
    assert "no conclusion about distillation follows" in paged(tmp_path / "toy").text
    assert "no conclusion" not in study[1].text


def test_a_student_without_its_baseline_is_named(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    write_run(root / "tiny_kd" / "seed_0", student=["tiny"], teacher="runs/toy/teacher_big/seed_0")
    environment = read_json(root / "tiny_kd/seed_0/environment.json")
    write_json(root / "tiny_kd/seed_0/environment.json", {**environment, "arch": "tiny"})
    reported.evaluate(root)
    text = paged(root).text
    assert "Not shown: what the teacher added to tiny_kd. The same network was not trained without a teacher." in text
    assert "Not known for tiny_kd: the same network was not trained without a teacher" in text
    assert re.search(r"distill\.py --config \S+/tiny_kd/seed_0/config\.yaml --alpha 1 --beta 0 --name tiny_alone", text)
    assert "was not trained without a teacher" not in study[1].text


def test_networks_of_unknown_architecture_are_not_called_the_same(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    for path in root.glob("small_*/seed_*/environment.json"):
        write_json(path, {key: value for key, value in read_json(path).items() if key != "arch"})
    text = paged(root).text
    added = study[1].text.split("What the teacher added")[1].split("What it costs")[0]
    assert re.search(r"small_kd [+-]0\.\d{3} \(mean of 2 seeds, p ", added)
    assert "What the teacher added" not in text
    assert {(row["reference"], row["model"]) for row in table(root, "deltas")} == {
        ("teacher_big", "small_alone"), ("teacher_big", "small_kd")}


def test_runs_tested_on_different_images_are_not_compared(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    path = root / "small_kd/seed_0/predictions/test.npz"
    content = read_npz(path)
    write_npz(path, **{**content, "ids": np.char.add("other_", content["ids"])})
    page = paged(root)
    assert "must not be compared" in page.text and "must not be compared" not in study[1].text
    assert {row["model"] for row in table(root, "deltas")} == {"small_alone"}


def test_notes_are_shown_as_they_are_and_as_text(tmp_path, quick):
    write_run(tmp_path / "toy/a/seed_0")
    markdown, plain = tmp_path / "one.md", tmp_path / "two.txt"
    markdown.write_text("# Why <b>\n\n- *first*\n- second\n\n| a | b |\n| - | - |\n| <i>1 | 2 |\n", encoding="utf-8")
    plain.write_text("Plain =words.", encoding="utf-8")
    page = Page(report.main([str(tmp_path / "toy"), "--notes", str(markdown), str(plain)]).read_text(encoding="utf-8"))
    notes = page.text.split("Supplementary notes")[-1]
    for text in ("one.md Why <b>", "first", "second", "<i>1", "two.txt Plain =words."):
        assert text in notes, text
    assert not {"i", "em"} & {tag for tag, _ in page.tags} and not list((tmp_path / "toy/tables").glob(".csv"))
    with pytest.raises(UserError, match="three.md"):
        report.main([str(tmp_path / "toy"), "--notes", str(tmp_path / "three.md")])


def test_the_result_has_a_row_for_each_model_with_what_it_keeps_gains_and_costs(study):
    root, page = study
    assert page.source.index('id="table-result"') < min(map(page.source.index, ("<svg", 'id="problems"', 'id="roles"')))
    rows = page.rows("result")
    assert rows.keys() == {(model,) for model in reported.MODELS}
    pairs = compare.compare(compare.models([root]), protocol.Settings())["pairs"]
    macro_f1 = {(pair["reference"], pair["model"]): pair["rows"][1] for pair in pairs}
    row = rows["small_kd",]
    assert macro_f1["teacher_big", "small_kd"]["metric"] == "macro_f1"
    assert row["kept"] == shown(macro_f1["teacher_big", "small_kd"], "retention", "retention_")
    assert row["added"] == shown(macro_f1["small_alone", "small_kd"], "difference", "")
    assert rows["small_alone",]["added"] == rows["teacher_big",]["kept"] == ["–"]
    rows_measured = read_csv(root / "small_kd/seed_0/benchmark.csv")
    measured = next(row for row in rows_measured if row["ckpt"].endswith("model.onnx"))
    assert row["latency_ms"] == [float(measured["lat_ms_p50"])]
    assert row["file_mb"] == [float(measured["file_bytes"]) / 1e6] and row["parameters_m"] == [.012345]


def test_the_agreement_with_the_teacher_stands_once_on_the_page(study, tmp_path, quick):
    root, page = study
    of_pairs = {row["model"]: row["agreement"] for row in table(root, "agreement") if row["reference"] == "teacher_big"}
    assert {row["model"]: row["agreement"] for row in table(root, "fidelity")} == of_pairs  # the file has all figures
    assert all("agreement" not in row and "kl_teacher_student" in row for row in page.rows("fidelity").values())
    write_run(tmp_path / "other/teacher_big/seed_0", 3., role="teacher", teacher="big")
    write_run(tmp_path / "toy/small_kd/seed_0", student=["small"], teacher=str(tmp_path / "other/teacher_big/seed_0"))
    reported.evaluate(tmp_path / "toy")
    fidelity = read_json(tmp_path / "toy/small_kd/seed_0/metrics.json")["fidelity"]["test"]
    assert paged(tmp_path / "toy").rows("fidelity")["small_kd",]["agreement"] == interval(fidelity["agreement"])


def test_without_latencies_quality_is_drawn_against_parameters_and_one_model_alone_is_not_drawn(study, tmp_path):
    def drawn(page):
        section = page.source.split('id="result"')[1].split("</section>")[0]
        return re.findall('data-figure="([^"]*)"', section), section

    assert drawn(study[1])[0] == ["quality_latency"]
    write_run(tmp_path / "toy/small_kd/seed_0", student=["small"])
    reported.evaluate(tmp_path / "toy")
    names, section = drawn(paged(tmp_path / "toy"))
    assert not names and "Teacher added" not in section  # no column of this name
    write_run(tmp_path / "toy/teacher_big/seed_0", 3., role="teacher", teacher="big")
    reported.evaluate(tmp_path / "toy")
    page = paged(tmp_path / "toy")
    assert drawn(page)[0] == ["quality_parameters"]
    value = read_json(tmp_path / "toy/teacher_big/seed_0/metrics.json")["test"]["macro_f1"]["value"]
    alt, = [d.get("aria-label") for d in page.drawings() if d.get("aria-label").startswith("Macro-F1 over parameters")]
    assert f"teacher_big {value:.3f}" in alt and "0.01 M" in alt
    legend = page.source.split("</header>")[0].split("<h1>")[1]
    assert "student with a teacher" in legend and "student without a teacher" not in legend


def test_no_sentence_stands_twice_on_the_page(study):
    texts = re.findall(r"<(?:p|li)[^>]*>([^<]{40,})</", study[1].source)
    assert len(texts) > 20 and len(texts) == len(set(texts))


def test_two_seeds_that_differ_too_much_have_no_interval_but_both_figures(tmp_path, quick):
    for seed, skill in ((0, .2), (1, 4.)):
        write_run(tmp_path / f"toy/small_kd/seed_{seed}", skill, seed, student=["small"])
    write_run(tmp_path / "toy/teacher_big/seed_0", 3., role="teacher", teacher="big")
    reported.evaluate(tmp_path / "toy")
    page = paged(tmp_path / "toy")
    values = read_json(tmp_path / "toy/small_kd/seeds.json")["test"]["macro_f1"]["values"]
    figures = ", ".join(f"{value:.3f}" for value in values)
    row = page.rows("result")["small_kd",]
    assert row["macro_f1"] == [np.mean(values), f"two seeds: no interval; {figures}"]


# ---- findings of the audit


def findings(page):
    """{(severity, rule): text} of the page's findings, in their order."""
    parts = re.findall(r'<div class="finding" data-severity="(.*?)" data-rule="(.*?)">(.*?)</div>', page.source, re.S)
    return {(severity, rule): Page(text).text for severity, rule, text in parts}


def test_findings_stand_above_every_figure_worst_first_with_their_severity_in_words(tmp_path, quick):
    root = write_study(tmp_path / "toy")
    first, second = (root / f"small_kd/seed_{seed}" for seed in (0, 1))
    (second / "history.csv").write_bytes((first / "history.csv").read_bytes())
    (first / "split.csv").unlink()
    page = paged(root)
    on_page = findings(page)
    assert list(on_page)[0] == ("error", "same-curve") and ("note", "split-not-seen") in on_page
    ranks = [examine.SEVERITIES.index(severity) for severity, _ in on_page]
    assert ranks == sorted(ranks)
    for (severity, rule), text in on_page.items():
        assert text.startswith(f"{severity} {rule}") and "What to do:" in text
    assert "small_kd/seed_0, small_kd/seed_1 share the curve" in on_page["error", "same-curve"]
    figures_and_links = ("<table", "<svg", 'id="performance"')
    assert page.source.index('id="findings"') < min(map(page.source.index, figures_and_links))
    of_audit = examine.audit_study(runs.find(root))
    assert {(f["severity"], f["rule"]) for f in of_audit} == set(on_page)
    section = page.source.split('id="findings"')[1].split("</section>")[0]
    shown, warnings, silent = section.split("<details>")  # the last is of the rules that found nothing
    errors = section.count('data-severity="error"')
    assert shown.count('data-severity="error"') == shown.count("data-rule") == errors > 0
    assert warnings.count("data-rule") == len(on_page) - shown.count("data-rule") and "1 note<" in warnings


def test_the_page_names_the_rules_that_were_applied(study):
    root, page = study
    found, rules = examine.apply_rules(examine.gather_cases(runs.find(root)))
    silent = [rule for rule in rules if rule not in {finding["rule"] for finding in found}]
    others = [rule.name for rule in examine.RULES if rule.name not in rules]
    assert f"{len(rules)} of {len(examine.RULES)} checks could be applied to these runs" in page.text
    assert (f"looks for: {', '.join(silent)}. Not applied, for want of what they read: {', '.join(others)}."
            in page.text) and others


def test_the_tables_of_a_report_give_an_audit_nothing_new(study):
    root, _ = study
    before = {(f["rule"], f["saw"]) for f in examine.audit_study(runs.find(root))}
    after = {(f["rule"], f["saw"]) for f in examine.audit_paths([root])}
    assert not after - before


def test_the_faults_of_the_reference_report_are_listed_and_its_figures_named_as_missing(tmp_path, quick):
    from test_other_tables import PAGES, write
    folder = write(tmp_path / "phase1", PAGES)
    page = Page(report.main([str(folder), "--out", str(tmp_path / "out")]).read_text(encoding="utf-8"))
    rules = {f["rule"] for f in examine.audit_tables(folder)}
    assert {rule for _, rule in findings(page)} == rules
    assert rules >= {"ece-is-error-rate", "idle-threshold", "idle-corruption", "same-curve"}
    assert "0.893" not in page.text.split("What is not shown")[1] and not page.tables
    missing = r"Missing: a run .* an interval, a split .* an environment"
    assert re.search(rf"calibration\.csv: 3 rows, model, seed, accuracy, \S.* {missing}", page.text)
    assert "performance.csv: 4 rows" in page.text and "Not shown: roles and data, performance," in page.text


def test_findings_of_tables_beside_the_runs_are_shown_as_text(tmp_path, quick):
    write_run(tmp_path / "toy/a/seed_0")
    (tmp_path / "toy/operating_points.csv").write_text("model,tau\n<b>x</b>,0.0\n", encoding="utf-8")
    page = paged(tmp_path / "toy")
    assert "<b>x</b>: tau is 0" in findings(page)["error", "idle-threshold"]
    assert "<b>x" not in page.source


# ---- the page


def test_the_page_asks_nothing_of_the_network_and_runs_one_script_of_its_own(study):
    _, page = study
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), value
    assert "url(http" not in page.source and "@import" not in page.source
    policy, = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_ids_on_the_page_are_unique_and_references_resolve(study):
    _, page = study
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page.source))
    assert used and used <= set(ids)


def test_every_picture_has_words_for_those_who_cannot_see_it(study):
    _, page = study
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_colours_of_drawings_follow_the_page(study):
    _, page = study
    assert figures.LIGHT.keys() == figures.DARK.keys()
    assert len(set(figures.LIGHT.values())) == len(figures.LIGHT)  # a colour stands for one role
    for drawing in page.drawings():
        for element in drawing.iter():
            for colour in re.findall(r"#[0-9a-f]{6}", element.get("style", "").replace("clip-path", "")):
                assert f", {colour})" in element.get("style"), element.get("style")


def test_a_teacher_of_another_study_is_named_with_it(tmp_path):
    for name in ("toy", "aside"):
        folder = tmp_path / "toy" / "small_kd" / "seed_0"
        run = SimpleNamespace(options={"teacher": f"runs/{name}/teacher_big/seed_0"}, folder=folder)
        assert overview.teacher_name(run) == {"toy": "teacher_big", "aside": "aside/teacher_big"}[name]


def test_hostile_names_are_shown_as_text_and_harm_no_table(tmp_path):
    name, tag = ("<u>$x$ & 'co'", "<i>") if sys.platform != "win32" else ("$x$ & 'co'", "")
    root = tmp_path / name
    for model in ("teacher_$a$", f"={tag}small_kd"):
        write_run(root / model / "seed_0", 1., shares=HOSTILE, formula="</code><script>x</script>", note="<img src=x>")
    reported.evaluate(root)
    page = paged(root)
    assert [tag for tag, _ in page.tags].count("script") == 1 and not {"u", "i"} & {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")
    text = re.sub(r"\s+", " ", page.text)
    assert name in text and all(" ".join(blocks.printable(hostile).split()) in text for hostile in HOSTILE)
    labels = [word for drawing in page.drawings() for word in words(drawing)]
    assert any(word.startswith('<script>a') for word in labels) and "$\\frac12$ & 'co'" in labels
    assert max(map(len, labels)) <= 60
    for path in (root / "tables").glob("*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1, path
        for cell in (cell for row in rows for cell in row):
            assert cell[:1] not in ("=", "+", "@", "-") or is_number(cell), (path, cell)


def test_the_same_runs_give_the_same_page_and_nothing_else_is_written(tmp_path, quick):
    root = write_study(tmp_path / "toy")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    first = report.main([str(root), "--out", str(tmp_path / "a")])
    second = report.main([str(root), "--out", str(tmp_path / "b")])
    assert first == tmp_path / "a" / "report.html" and first.read_bytes() == second.read_bytes()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"report.html", "tables"}  # and the PDF


def test_page_path_is_returned_and_printed(tmp_path, quick, capsys):
    write_run(tmp_path / "toy/a/seed_0")
    path = report.main([str(tmp_path / "toy")])
    assert path == tmp_path / "toy" / "report.html" and path.is_file()
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"report: {path}, ")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "reportlab"])
def test_a_missing_package_names_its_extra_and_writes_nothing(tmp_path, monkeypatch, package):
    write_run(tmp_path / "toy/a/seed_0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=package) as caught:
        report.main([str(tmp_path / "toy"), "--out", str(tmp_path / "out")])
    assert caught.value.hint == 'pip install -e ".[report]"'
    assert not (tmp_path / "out").exists()


def test_the_report_needs_no_torch_and_leaves_matplotlib_as_it_was(tmp_path):
    write_run(tmp_path / "toy/a/seed_0")
    code = ("import sys; sys.modules['torch'] = None; import matplotlib as m; m.rcParams['text.usetex'] = True; "
            "import report; report.main(sys.argv[1:]); assert m.rcParams['text.usetex']; "
            "assert 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "toy")],
                          cwd=Path(report.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_hundred_runs_are_reported_in_thirty_seconds(tmp_path):
    from honest import HAM
    write_run(tmp_path / "toy/teacher_big/seed_0", 3., shares=HAM, role="teacher", teacher="big")
    for k in range(67):
        for seed in range(3):
            write_run(tmp_path / f"toy/small_kd{k}/seed_{seed}", 2., seed, shares=HAM, student=["small"], noise=k)
    reported.evaluate(tmp_path / "toy")
    start = time.process_time()  # of one process; what else the machine does does not count
    report.main([str(tmp_path / "toy")])
    assert time.process_time() - start < 30
