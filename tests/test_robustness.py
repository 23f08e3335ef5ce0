"""Quality under corruptions: paired with clean, frozen on validation, corrupted batches shared, resumable by cell."""

import io
import itertools
import json
import re
import shutil
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import distill
import exported as exported_parts
import honest
import registry
import robustness as script
import small
import train_teacher
from kd import calibration, corruptions
from kd.audit import examine
from kd.data import batching
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml, write_npz, write_yaml
from kd.report import blocks, figures_robustness, study_files
from kd.report.sections import robustness
from kd.robustness import answers, scores, suites, terminal
from kd.run_folder import Run, StudyFolder
from kd.train import teacher_cache
from kd.train.options import TRAINED_CORRUPTIONS

CELLS = [suites.Cell("noise_1", "noise", 1), suites.Cell("noise_2", "noise", 2), suites.Cell("blur_1", "blur", 1)]
REFERENCE = ["acc", "macro_f1", "tag", "model", "seed"]


def answer(logits):
    return scores.Answer(np.asarray(logits, float), np.ones(len(logits)), 1.0, 0.5)


def model(name, cells, kind="student", temperature=None, points=()):
    """A Model of logits a tag, clean first."""
    answers_ = {tag: answer(logits) for tag, logits in cells.items()}
    return scores.Model(name, "seed_0", "best.pt", kind, temperature, list(points), answers_)


@pytest.fixture(scope="module")
def honestly():
    """(val, test, result of evaluation, {tag: logits}) of one network whose answers get noisier, or random."""
    rng = np.random.default_rng(0)
    val, test = honest.pair(rng, 400, skill=2)
    noise = rng.normal(size=test.logits.shape)
    cells = {"clean": test.logits, "noise_1": test.logits + noise, "noise_2": test.logits + 3 * noise,
             "blur_1": np.roll(test.logits, 7, axis=0)}
    return val, test, honest.result(val, test, 200), cells


def measured(models, test, cells=CELLS, baseline=0, replicates=200):
    rows = scores.measure(models, cells, test, replicates=replicates, teacher=models[0])
    return rows, scores.summarise(models, cells, baseline=models[baseline])


# ---- measures


def test_the_clean_row_is_what_evaluation_said(honestly, tmp_path):
    val, test, result, cells = honestly
    result = json.loads(json.dumps(result))
    temperature, points = scores.frozen(result, tmp_path)
    rows, _ = measured([model("a", cells, temperature=temperature, points=points)], test)
    clean = rows[0][0]
    thresholds = {point["class"]: point for point in result["operating_points"] if point["kind"] == "sensitivity"}
    expected = {}
    for name in scores.METRICS:
        is_probabilistic = name in ("nll", "ece", "rms_ce_debiased", "aurc")
        expected[name] = result["test"][f"{name}_calibrated" if is_probabilistic else name]
    for name in ("sensitivity", "specificity"):
        expected[f"{name}/mel"] = thresholds["mel"]["test"][name]
    for name, metric in expected.items():
        bounds = [clean[f"{name}{end}"] for end in scores.ENDS]
        assert bounds == pytest.approx([metric[key] for key in ("value", "lo", "hi")], nan_ok=True)
        assert np.isnan(bounds[1]) == (name == "ece") == (f"{name}_withheld" in clean)
    assert list(clean)[:5] == REFERENCE and clean["acc"] == clean["accuracy"] and clean["tag"] == "clean"
    assert np.isnan(clean["accuracy_difference"]) and np.isnan(clean["agreement_clean"])


def test_figures_of_a_cell_by_hand():
    """Eight images of eight lesions, two classes; the cell turns one of each class."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    clean = np.where(np.arange(8) == 3, -1, 1)[:, None] * np.where(labels == 0, 1, -1)[:, None] * np.array([1., -1.])
    turned = clean * np.where(np.isin(np.arange(8), (0, 4)), -1, 1)[:, None]
    test = SimpleNamespace(labels=labels, clusters=np.arange(8), class_names=["a", "b"], groups=None)
    high = 1 / (1 + np.exp(-2.0))  # probability of the answer: logits 1 and -1
    point = {"class": "b", "threshold": high, "promised": .95}
    (rows,), _ = measured([model("m", {"clean": clean, "noise_1": turned}, temperature=2.0, points=[point])], test,
                          CELLS[:1])
    cell = rows[1]
    assert cell["acc"] == 5 / 8 and cell["agreement_clean"] == 6 / 8
    assert cell["accuracy_difference"] == pytest.approx(-2 / 8)
    assert cell["balanced_accuracy"] == (2 / 4 + 3 / 4) / 2
    p = 1 / (1 + np.exp(-1.0))  # after temperature 2
    assert cell["nll"] == pytest.approx(-(5 * np.log(p) + 3 * np.log(1 - p)) / 8)
    assert cell["ece"] == pytest.approx(p - 5 / 8)
    assert cell["sensitivity/b"] == 3 / 4 and cell["specificity/b"] == 2 / 4  # of raw probabilities
    assert (cell["pixel_change"], cell["seconds"], cell["corruption"], cell["severity"]) == (1, 1, "noise", 1)


def test_be_and_rbe_by_hand_and_a_baseline_fed_back_gives_exactly_one(honestly):
    _, test, _, cells = honestly
    cells = {**cells, "noise_1": np.roll(cells["clean"], 3, axis=0), "noise_2": cells["clean"][::-1]}  # a clear loss
    noise = np.random.default_rng(1).normal(size=cells["clean"].shape)
    other = {tag: logits + (tag != "clean") * noise for tag, logits in cells.items()}
    models = [model("teacher", cells, "teacher"), model("student", other), model("again", cells)]
    _, summary = measured(models, test)

    def error(logits):
        answers = logits.argmax(1)
        return 1 - np.mean([(answers[test.labels == k] == k).mean() for k in range(len(test.class_names))])

    e, base = ([error(logits[tag]) for tag in ("clean", "noise_1", "noise_2", "blur_1")] for logits in (other, cells))
    row = summary[1]
    assert row["be"] == pytest.approx(sum(e[1:]) / sum(base[1:]))
    assert row["rbe"] == pytest.approx((sum(e[1:]) - 3 * e[0]) / (sum(base[1:]) - 3 * base[0]))
    assert row["be/noise"] == pytest.approx((e[1] + e[2]) / (base[1] + base[2]))
    of_noise = (e[1] + e[2]) / (base[1] + base[2]), (e[1] + e[2] - 2 * e[0]) / (base[1] + base[2] - 2 * base[0])
    of_blur = e[3] / base[3], (e[3] - e[0]) / (base[3] - base[0])
    assert [row["be_medmnist_c"], row["rbe_medmnist_c"]] == pytest.approx(np.add(of_noise, of_blur) / 2)
    ratios = "be", "rbe", "be_medmnist_c", "rbe_medmnist_c"
    for same in (summary[0], summary[2]):
        assert [same[f"{name}{end}"] for name in ratios for end in scores.ENDS] == [1.0] * 12
    for name in ratios:
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"]
    assert [row["rank"] for row in summary] == [2, 1, 2] and sum(e[1:]) < sum(base[1:])  # equals share a rank


def test_the_two_definitions_of_rbe_can_say_the_opposite_and_each_is_computed_as_it_is_defined():
    """400 images, of which the baseline has 40 wrong; it loses 200 under noise and 20 under blur, the student the
    other way round: 160 and 50. Over all cells 210 / 220 is below 1, the mean of 160 / 200 and 50 / 20 is 1.65."""
    labels = np.arange(400) % 2
    right = np.where(labels == 0, 1, -1)[:, None] * np.array([1., -1.])
    test = SimpleNamespace(labels=labels, clusters=np.arange(400), class_names=["a", "b"], groups=None)

    def wrong(**counts):
        return {tag: right * np.where(np.arange(400) < count, -1, 1)[:, None] for tag, count in counts.items()}

    models = [model("teacher", wrong(clean=40, noise_1=240, blur_1=60), "teacher"),
              model("student", wrong(clean=40, noise_1=200, blur_1=90))]
    _, summary = measured(models, test, [CELLS[0], CELLS[2]])
    row = summary[1]
    assert row["rbe"] == pytest.approx(210 / 220) and row["rbe_medmnist_c"] == pytest.approx((160 / 200 + 50 / 20) / 2)
    assert row["be"] == pytest.approx(290 / 300) and row["be_medmnist_c"] == pytest.approx((200 / 240 + 90 / 60) / 2)
    line = next(line for line in terminal.quality(summary).splitlines() if line.startswith("2"))
    assert " 0.97  0.95  1.17  1.65 " in line


def test_rbe_is_undefined_where_what_the_baseline_loses_is_not_clearly_above_nothing():
    """Forty images; under the corruption one teacher gains an answer, another loses one, the student loses four."""
    labels = np.arange(40) % 2
    right = np.where(labels == 0, 1, -1)[:, None] * np.array([1., -1.])
    test = SimpleNamespace(labels=labels, clusters=np.arange(40), class_names=["a", "b"], groups=None)

    def wrong(count):
        return {"clean": right * np.where(np.arange(40) < 4, -1, 1)[:, None],
                "noise_1": right * np.where(np.arange(40) < count, -1, 1)[:, None]}

    gains, loses = model("teacher", wrong(3), "teacher"), model("student", wrong(8))
    for teacher, count in ((gains, 3), (model("teacher", wrong(5), "teacher"), 5)):
        _, summary = measured([teacher, loses], test, CELLS[:1])
        assert summary[1]["be"] == pytest.approx(8 / count)
        assert np.isnan([[row["rbe"], row["rbe_hi"]] for row in summary]).all()
        assert "rBE n/a: what teacher/seed_0 loses" in " ".join(terminal.quality(summary).split())
    _, summary = measured([gains, loses], test, CELLS[:1], baseline=1)
    assert [row["rbe"] for row in summary] == [pytest.approx(-1 / 4), 1] and summary[0]["rbe_hi"] < 1
    assert "rBE n/a" not in terminal.quality(summary)


def test_models_with_thresholds_for_different_classes_are_each_printed_with_their_own(honestly):
    _, test, _, cells = honestly
    points = [{"class": name, "threshold": .3, "promised": promised} for name, promised in (("mel", .9), ("bcc", .85))]
    without = model("c", cells)
    _, summary = measured([model("a", cells, points=points[:1]), model("b", cells, points=points[1:]), without], test)
    text = terminal.summary_text(summary, test)
    assert re.search(r"^1 .* mel 0.9 ", text, re.M) and re.search(r"^2 .* bcc 0.85 ", text, re.M)
    assert max(map(len, text.splitlines())) <= 110
    assert "promised" not in terminal.summary_text(measured([without], test)[1], test)


def test_the_image_that_is_shown_is_of_melanoma_where_there_is_one():
    test = SimpleNamespace(labels=np.array([0, 1, 1]), ids=np.array(["x", "y", "z"]), class_names=["nv", "mel"])
    assert scores.example_id(test) == "y"
    for labels, names in (([0, 0, 0], ["nv", "mel"]), ([0, 1, 1], ["a", "b"])):
        assert scores.example_id(SimpleNamespace(labels=np.array(labels), ids=test.ids, class_names=names)) == "x"


def test_means_and_the_worst_cell_are_of_the_cells(honestly):
    _, test, _, cells = honestly
    rows, (summary,) = measured([model("a", cells)], test)
    scores = {row["tag"]: row["macro_f1"] for row in rows[0]}
    assert summary["mean_macro_f1"] == pytest.approx(np.mean([scores[cell.tag] for cell in CELLS]))
    assert summary["macro_f1/noise"] == pytest.approx((scores["noise_1"] + scores["noise_2"]) / 2)
    assert summary["worst_tag"] == min(scores, key=scores.get) and summary["worst_macro_f1"] == min(scores.values())
    assert summary["mean_macro_f1_lo"] < summary["mean_macro_f1"] < summary["mean_macro_f1_hi"]
    narrow = summary["macro_f1/noise_hi"] - summary["macro_f1/noise_lo"]
    widths = [row["macro_f1_hi"] - row["macro_f1_lo"] for row in rows[0] if row["corruption"] == "noise"]
    assert narrow < sum(widths) / 2 + 1e-12


def test_differences_are_paired_with_clean_on_the_same_replicates(honestly):
    _, test, _, cells = honestly
    shifted = {**cells, "blur_1": cells["clean"] + 5.0}  # the same probabilities
    rows, _ = measured([model("a", shifted, temperature=1.3)], test)
    same = rows[0][-1]
    for name in scores.METRICS:
        bounds = [np.nan] * 2 if name in ("ece", "rms_ce_debiased") else [0, 0]
        assert [same[f"{name}_difference{end}"] for end in scores.ENDS] == pytest.approx(
            [0, *bounds], abs=1e-12, nan_ok=True)
    agreement = [same[f"agreement_clean{end}"] for end in scores.ENDS]
    assert agreement == [1, pytest.approx(.99, abs=.009), 1]  # 223 lesions do not show that all answers agree
    paired = rows[0][1]
    width = paired["accuracy_difference_hi"] - paired["accuracy_difference_lo"]
    assert width < paired["accuracy_hi"] - paired["accuracy_lo"]


def test_agreement_with_the_teacher_is_of_the_same_cell(honestly):
    _, test, _, cells = honestly
    swapped = {**cells, "noise_1": cells["noise_2"], "noise_2": cells["noise_1"]}
    rows, _ = measured([model("t", cells, "teacher"), model("s", swapped)], test)
    share = (cells["noise_1"].argmax(1) == cells["noise_2"].argmax(1)).mean()
    assert [row["agreement_teacher"] for row in rows[1]] == pytest.approx([1, share, share, 1])
    assert all(np.isnan(row["agreement_teacher"]) for row in rows[0])


def test_a_part_of_the_images_is_whole_groups_and_has_every_class():
    test = honest.predictions(np.random.default_rng(0), 900)
    few = scores.subset(test, 200)
    assert 195 <= len(few.labels) < 215 and set(few.labels) == set(test.labels)
    assert all(np.sum(few.labels == k) >= 200 * np.sum(test.labels == k) / 900 - 1e-9 for k in set(test.labels))
    assert set(few.groups).isdisjoint(set(test.groups[~np.isin(test.ids, few.ids)]))
    assert np.array_equal(few.logits, test.logits[np.isin(test.ids, few.ids)])
    assert np.array_equal(scores.subset(test, 5000).ids, test.ids)


def test_what_is_frozen_is_melanomas_threshold_or_the_classes_asked_for(honestly, tmp_path):
    result = honestly[2]
    assert [point["class"] for point in scores.frozen(result, tmp_path)[1]] == ["mel"]
    assert [point["class"] for point in scores.frozen(result, tmp_path, ["nv", "bcc"])[1]] == ["nv", "bcc"]
    with pytest.raises(UserError, match="--target mell: .* no operating point") as caught:
        scores.frozen(result, tmp_path / "metrics.json", ["mell"])
    assert "mel" in caught.value.hint
    for nothing in (None, {}, {"calibration": None}):
        with pytest.raises(UserError, match="no temperature and operating points") as caught:
            scores.frozen(nothing, tmp_path / "metrics.json")
        assert "python evaluate.py" in caught.value.hint


# ---- the file


def test_a_table_keeps_rows_of_other_suites_and_files_and_never_gives_more_images_for_fewer(tmp_path):
    def row(tag, score, images=10, **more):
        return {"acc": score, "macro_f1": score, "tag": tag, "model": "m", "seed": "s", "file": "best.pt",
                "suite": "default", "images": images, **more}

    path = tmp_path / "robustness.csv"
    assert scores.write(path, [row("clean", .5), row("a_1", .25)])
    assert scores.write(path, [row("clean", .1, file="model.onnx"), row("clean", .2, suite="phase1")])
    assert scores.write(path, [row("clean", .75), row("a_2", float("nan"))])
    assert [(r["file"], r["suite"], r["tag"], r["macro_f1"]) for r in read_csv(path)[:3]] == [
        ("best.pt", "default", "clean", "0.75"), ("best.pt", "default", "a_2", ""),
        ("model.onnx", "default", "clean", "0.1")]
    assert not scores.write(path, [row("clean", .9, images=5)]) and read_csv(path)[0]["macro_f1"] == "0.75"
    assert scores.write(path, [row("clean", .9, images=5, suite="medmnist-c")])
    assert len(Run(tmp_path).robustness) == 5
    path.write_text("model,acc\nm,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column tag"):
        Run(tmp_path).robustness


# ---- running


@pytest.fixture
def study(exported, tmp_path):
    """A copy of a run with its exports, model.onnx and model.int8.onnx."""
    return shutil.copytree(exported[0], tmp_path / "runs" / "images" / "tiny_alone" / "seed_0")


@pytest.fixture
def counted(monkeypatch):
    """The (corruption, severity or parameters, number of images) of all batches that were corrupted."""
    calls, real = [], corruptions.apply

    def apply(entry, images, ids, severity=None, parameters=None, **more):
        calls.append((entry.name, severity or parameters, len(images)))
        return real(entry, images, ids, severity, parameters, **more)

    monkeypatch.setattr(corruptions, "apply", apply)
    return calls


def run(*words):
    return script.main([*map(str, words), "--replicates", "100"])


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(script, "draw", lambda *more: [])


TWO = ["--corruption", "gaussian_noise,sigma=0.3", "--corruption", "contrast_down,factor=0.2"]


def test_three_models_share_each_corrupted_batch_and_what_was_killed_goes_on(study, counted, capsys, monkeypatch,
                                                                            no_figures):
    words = [study, study / "exports" / "model.onnx", *TWO]
    monkeypatch.setattr(answers, "BATCH", 10)
    real, made = write_npz, []

    def killed(path, **arrays):
        if len(made) == 5:  # three clean cells, two of the first corruption
            raise KeyboardInterrupt
        made.append(path)
        real(path, **arrays)

    monkeypatch.setattr(answers, "write_npz", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    monkeypatch.setattr(answers, "write_npz", real)
    assert not (study / "robustness.csv").exists()
    counted.clear()
    summary = run(*words)
    cells = [("gaussian_noise", {"sigma": .3}), ("contrast_down", {"factor": .2})]
    assert counted == [(*cell, n) for cell in cells for n in (10, 8)]
    printed = capsys.readouterr().out
    assert re.search(r"of which corrupting \d+% \(each batch once for 3 models\)", printed)
    assert [row["file"] for row in summary] == ["best.pt", "model.int8.onnx", "model.onnx"]
    assert re.search(r"^(The audit found nothing|(error|warning): |notes not shown: )", printed, re.M)
    counted.clear()
    whole = (study / "robustness.csv").read_bytes()
    path = study.parents[1] / "robustness_summary.csv"  # of the study, of which it is the only run
    table = path.read_bytes()
    run(*words)
    assert not counted and (study / "robustness.csv").read_bytes() == whole and path.read_bytes() == table
    assert "nothing was corrupted" in capsys.readouterr().out


def test_the_answers_are_those_of_the_files_and_clean_ones_those_of_training(study, no_figures):
    run(study, study / "exports" / "model.onnx", *TWO, "--baseline", study)
    rows = read_csv(study / "robustness.csv")
    assert list(rows[0])[:5] == REFERENCE
    assert [row["tag"] for row in rows[:3]] == ["clean", "gaussian_noise,sigma=0.3", "contrast_down,factor=0.2"]
    metrics = read_json(study / "metrics.json")["test"]
    assert float(rows[0]["acc"]) == metrics["accuracy"]["value"]
    assert float(rows[0]["macro_f1"]) == metrics["macro_f1"]["value"]
    by_file = {row["file"]: row for row in rows if row["tag"] == rows[1]["tag"]}
    assert by_file["model.onnx"]["acc"] == by_file["best.pt"]["acc"] != rows[0]["acc"]
    assert float(by_file["model.onnx"]["nll"]) == pytest.approx(float(by_file["best.pt"]["nll"]), abs=1e-4)
    assert float(by_file["best.pt"]["pixel_change"]) > 20 and rows[0]["pixel_change"] == "0"
    answers_ = read_npz(study / "robustness" / "custom" / "best.pt" / "clean.npz")
    assert np.abs(answers_["logits"] - read_npz(study / "predictions" / "test.npz")["logits"]).max() < 1e-4
    summary = read_csv(study.parents[1] / "robustness_summary.csv")
    assert (summary[0]["be"], summary[0]["rbe"]) == ("1.0", "1.0")
    assert summary[1]["baseline"] == "tiny_alone/seed_0"


def test_kept_answers_are_used_only_for_what_they_are_of(study, counted, monkeypatch, no_figures):
    words = [study, "--corruption", "gaussian_noise,sigma=0.3"]
    path = study / "robustness" / "custom" / "best.pt" / "gaussian_noise_sigma_0.3.npz"
    run(*words)
    monkeypatch.setattr(scores, "QUICK_IMAGES", 6)
    counted.clear()
    run(*words, "--quick")  # a part of the answers on disk
    assert not counted and len(read_csv(study / "robustness.csv")) == 4
    good = path.read_bytes()
    arrays = read_npz(path)
    fewer = {name: array[1:] for name, array in arrays.items() if name in ("ids", "logits", "change")}
    for damage in (lambda: path.write_bytes(good[:100]),
                   lambda: write_npz(path, **{**arrays, "key": np.array("another")}),
                   lambda: write_npz(path, **{**arrays, **fewer})):
        damage()
        counted.clear()
        run(*words)
        assert counted == [("gaussian_noise", {"sigma": .3}, 18)]


def test_a_suite_writes_its_figures_and_the_audit_reads_its_table(study, capsys):
    run(study, "--suite", "phase1", "--quick")
    printed = capsys.readouterr().out
    assert "not a blur" in printed and "next: " not in printed  # that is for the command line
    rows = read_csv(study / "robustness.csv")
    assert [row["tag"] for row in rows[:4]] == ["clean", "gaussian_0.1", "gaussian_0.3", "jpeg_90"]
    for name in ("sheet.png", "curves.svg", "heatmap.svg"):
        assert (study.parents[1] / f"robustness_phase1_{name}").stat().st_size > 1000
    drawing = ElementTree.parse(study.parents[1] / "robustness_phase1_curves.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    notes = [finding for finding in examine.audit_study([study]) if finding["rule"] == "unclear-corruption"]
    cases = [note["saw"].split(":")[0] for note in notes]
    assert cases == ["tiny_alone/seed_0 phase1", "tiny_alone/seed_0 model.int8.onnx phase1"]


def test_a_corruption_that_changes_no_pixel_is_found_in_each_file(study, tmp_path, capsys, no_figures):
    plugin = tmp_path / "idle.py"
    plugin.write_text('''from registry import register


@register("corruption", "idle_test", family="test", severities=[{"radius": r} for r in (.1, .2, .3, .4, .5)])
def idle_test(images, *, radius):
    """Does nothing."""
    return images.copy()
''', encoding="utf-8")
    run(study, "--corruption", "idle_test", "--plugin", plugin)
    assert "idle-corruption" in capsys.readouterr().out
    findings = [finding for finding in examine.audit_study([study]) if finding["rule"] == "idle-corruption"]
    assert {finding["severity"] for finding in findings} == {"error"}
    sentence = "idle_test_1 scores as the clean images to all digits in 2 of 2 models"
    assert any(sentence in finding["saw"] for finding in findings)
    assert "seed_0 model.int8.onnx" in findings[0]["saw"]


def test_what_cannot_be_is_one_line_and_nothing_is_written(study, tmp_path, exported, no_figures):
    plugin = tmp_path / "faulty.py"
    plugin.write_text(
        '''import numpy as np
from registry import register

BROKEN = {"nan_test": lambda x: x * np.nan, "short_test": lambda x: x[:, 1:], "float_test": lambda x: x / 2.}
for name, result in BROKEN.items():
    def make(images, *, strength, result=result):
        """Faulty."""
        return result(images)
    register("corruption", name, family="test", severities=[{"strength": k} for k in range(1, 6)])(make)
''',
        encoding="utf-8",
    )
    for words, message in [
        (["--corruption", "nan_test", "--plugin", plugin], "nan_test returned NaN"),
        (["--corruption", "short_test", "--plugin", plugin], "short_test returned uint8"),
        (["--corruption", "jpeg,quality=0"], "quality .* cannot be 0"),
        (["--corruption", "jpeg,qualty=5"], "no parameter 'qualty'"),
        (["--corruption", "jpeg", "--corruption", "jpeg"], "asked for twice"),
        (["--replicates", "10"], "too few"),
        (["--target", "purple"], "no operating point"),
        (["--root", tmp_path / "none"], "none"),
        (["--baseline", tmp_path / "none"], "no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            script.main([str(study), *map(str, words)])
    with pytest.raises(registry.UnknownName, match="did you mean jpeg"):
        script.main([str(study), "--corruption", "jpg"])
    lone = shutil.copy(study / "exports" / "model.onnx", tmp_path / "model.onnx")
    with pytest.raises(UserError, match="exports/ of no run"):
        script.main([str(lone)])
    (study / "metrics.json").unlink()
    with pytest.raises(UserError, match="no temperature"):
        script.main([str(study)])
    for folder in (study, study.parents[1]):
        assert not list(folder.glob("robustness*.*"))


@pytest.fixture
def both(study, exported):
    """Two runs of one study, without exports."""
    other = shutil.copytree(exported[0], study.parents[1] / "other" / "seed_0")
    for folder in (study, other):
        shutil.rmtree(folder / "exports")
    return study, other


def test_a_part_of_a_study_does_not_replace_the_summary_of_the_whole(both, tmp_path, capsys, no_figures):
    whole, third = both[0].parents[1], shutil.copytree(both[0], both[0].parents[1] / "third" / "seed_0")
    assert len(run(whole, *TWO)) == 3
    path = whole / "robustness_summary.csv"
    table = path.read_bytes()
    capsys.readouterr()
    run(*both, *TWO)
    assert path.read_bytes() == table and "--out DIR writes" in capsys.readouterr().out
    run(third, *TWO)
    assert path.read_bytes() == table and len(read_csv(third / "robustness_summary.csv")) == 1
    run(*both, *TWO, "--out", tmp_path / "out")
    assert [row["model"] for row in read_csv(tmp_path / "out" / "robustness_summary.csv")] == ["tiny_alone", "other"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "predictions" / "test.npz").write_bytes(b"PK"), "cannot read"),
        (lambda run: (run / "best.pt").unlink(), "no checkpoint"),
        (lambda run: (run / "metrics.json").unlink(), "no temperature"),
    ],
)
def test_a_run_that_cannot_be_measured_is_named_and_the_others_are_measured(both, damage, message, no_figures):
    good, bad = both
    damage(bad)
    with pytest.raises(UserError, match=f"left out: .*other.*{message}") as caught:
        run(good.parents[1], *TWO)
    assert "\n" not in caught.value.message
    row, = read_csv(good.parents[1] / "robustness_summary.csv")
    assert row["model"] == "tiny_alone" and len(read_csv(good / "robustness.csv")) == 3
    assert not (bad / "robustness.csv").exists()
    with pytest.raises(UserError, match="left out, and nothing can be relative"):
        run(good, *TWO, "--baseline", bad)


def test_models_of_one_name_in_two_studies_are_told_apart(study, tmp_path, monkeypatch):
    other, drawn = shutil.copytree(study, tmp_path / "runs" / "again" / "tiny_alone" / "seed_0"), []

    def draw(folder, rows, kinds, example_rows):
        drawn.extend(figures_robustness.lines(rows))
        return []

    monkeypatch.setattr(script, "draw", draw)
    for folder in (study, other):
        shutil.rmtree(folder / "exports")
    summary = run(study, other, *TWO, "--baseline", study, "--out", tmp_path / "out")
    names = ["images/tiny_alone", "again/tiny_alone"]
    assert [row["model"] for row in summary] == [name for name, _ in drawn] == names
    assert summary[1]["baseline"] == f"{names[0]}/seed_0"
    assert {row["model"] for row in read_csv(other / "robustness.csv")} == {"tiny_alone"}


def test_an_export_of_other_weights_is_refused_and_a_checkpoint_that_answers_otherwise(study, no_figures):
    import torch
    content = torch.load(study / "best.pt", weights_only=True)
    for name, value in content["state_dict"].items():
        if value.ndim == 2:
            content["state_dict"][name] = -value
    torch.save(content, study / "best.pt")
    with pytest.raises(UserError, match="exported from other weights"):
        run(study / "exports" / "model.onnx", *TWO)
    shutil.rmtree(study / "exports")
    with pytest.raises(UserError, match="answers otherwise than"):
        run(study, *TWO)


# ---- figures


def table(models=("teacher_a", "b_alone", "b_kd"), severities=range(1, 6)):
    """Rows as of a csv."""
    rows = []
    cells = [("clean", 0), *itertools.product(("gaussian_noise", "jpeg"), severities)]
    for k, name in enumerate(models):
        for corruption, severity in cells:
            score = .8 - .1 * k - .05 * severity
            rows.append({
                "model": name, "seed": "seed_0", "file": "best.pt", "corruption": corruption, "severity": str(severity),
                "macro_f1": f"{score}", "macro_f1_lo": f"{score - 0.1}", "macro_f1_hi": f"{score + 0.1}"})
    return rows


KINDS = {"teacher_a": "teacher", "b_alone": "alone", "b_kd": "student"}


def text_of(svg):
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_curves_and_heat_map_show_every_model_and_corruption():
    pytest.importorskip("matplotlib")
    rows = table() + [{**row, "file": "model.int8.onnx"} for row in table() if row["model"] == "b_kd"]
    for draw in (figures_robustness.robustness_curves, figures_robustness.robustness_heatmap):
        text = text_of(draw(rows, KINDS, alt="x"))
        assert all(word in text for word in (*KINDS, "b_kd INT8", "gaussian noise", "jpeg", "clean"))
    numbers = re.findall(r"\.\d\d", text_of(figures_robustness.robustness_heatmap(rows, KINDS, alt="x")))
    assert numbers[:3] == [".80", ".65", ".65"]  # clean, then means over severities
    other_seed = [{**row, "seed": "seed_1", "macro_f1": "0"} for row in table()]
    curves, more = (figures_robustness.robustness_curves(rows, KINDS, alt="x")
                    for rows in (table(), table() + other_seed))
    assert curves == more


def test_of_many_lines_curves_show_checkpoints_and_of_these_the_first_and_what_is_left_out_is_said():
    rows = table([f"m{k}" for k in range(5)], (1,))
    assert figures_robustness.legible(rows) == (rows, []) and figures_robustness.seeds(rows) == ""
    drawn, omissions = figures_robustness.legible(rows + [{**row, "file": "model.int8.onnx"} for row in rows])
    assert drawn == rows and omissions == ["Exported files are not drawn; the tables have them."]
    drawn, omissions = figures_robustness.legible(table([f"m{k}" for k in range(10)], (1,)))
    assert len(figures_robustness.lines(drawn)) == 8
    assert omissions == ["2 more not drawn; the tables have all of them."]
    assert "first seed" in figures_robustness.seeds(rows + [{**row, "seed": "seed_1"} for row in rows])


def test_a_sheet_is_a_picture_of_every_cell():
    pytest.importorskip("matplotlib")
    red = np.full((8, 8, 3), (250, 20, 20), np.uint8)
    rows = [("jpeg", [("clean", red), ("1: 30", red // 2)]), ("ink", [("clean", red), ("1: 1", 255 - red)])]
    picture = np.asarray(Image.open(io.BytesIO(figures_robustness.sheet(rows))).convert("RGB")).reshape(-1, 3)
    for colour in (red[0, 0], red[0, 0] // 2, 255 - red[0, 0]):
        assert (picture == colour).all(1).sum() > 5000


# ---- the report


def reported(honestly, names=("a", "b"), suite="default", targets=None):
    """A study as the report reads it, of models that answered the cells of `honestly`."""
    _, test, result, cells = honestly
    temperature, points = scores.frozen(json.loads(json.dumps(result)), None, targets)
    models = [model(name, cells, temperature=temperature, points=points) for name in names]
    tables = scores.measure(models, CELLS, test, replicates=100, suite=suite)
    summary = []
    for row in scores.summarise(models, CELLS, suite, models[0]):
        summary.append({key: scores.format_cell(key, value) for key, value in row.items()})
    runs = []
    for name, rows in zip(names, tables):
        texts = [{key: str(scores.format_cell(key, value)) for key, value in row.items()} for row in rows]
        runs.append(SimpleNamespace(model=name, seed="seed_0", kind="student", test=SimpleNamespace(ids=test.ids),
                                    metrics={}, robustness=texts))
    return SimpleNamespace(runs=runs, models={run.model: [run] for run in runs}, summary=summary, sheets={},
                           network_folders="runs/x", first_folds=False, lacking=lambda attribute: "")


def tables_of(blocks):
    return {block["name"]: block for block in blocks if block["kind"] == "table"}


def test_the_report_tells_what_is_left_of_calibration_and_of_the_promised_sensitivity(honestly, monkeypatch):
    monkeypatch.setattr(robustness, "drawings", lambda *more: [])
    study = reported(honestly)
    tables = tables_of(robustness.robustness(study))
    record, row = tables["robustness_certainty"]["records"][0], study.summary[0]
    assert (record["class"], record["promised"]) == ("mel", float(row["promised_sensitivity/mel"]))
    for name, column in (("clean_ece", "clean_ece"), ("mean_rms_ce_debiased_hi", "mean_rms_ce_debiased_hi"),
                         ("mean", "mean_sensitivity/mel"), ("worst_lo", "worst_sensitivity/mel_lo"),
                         ("clean", "clean_sensitivity/mel")):
        assert record[name] == float(row[column])
    assert row["mean_ece_lo"] == "" and record["mean_ece_withheld"] == calibration.BIASED
    assert record["lowest"] == row["worst_tag_sensitivity/mel"]
    assert all("Suite" not in [column.title for column in block["columns"]] for block in tables.values())
    for run_, more in zip(study.runs, reported(honestly, suite="custom").runs):
        run_.robustness += more.robustness
    assert "Suite" in [column.title for column in tables_of(robustness.robustness(study))["robustness"]["columns"]]


def test_a_sensitivity_of_too_few_lesions_has_no_interval_and_the_tables_say_why(honestly, monkeypatch):
    monkeypatch.setattr(robustness, "drawings", lambda *more: [])
    _, test, result, _ = honestly
    few = [name for name, count in test.size()["support"].items() if count < 6]
    lesions = {name: len(set(test.groups[test.labels == test.class_names.index(name)])) for name in few}
    study = reported(honestly, targets=[*few, "nv"])
    assert min(lesions.values()) < 5
    records = tables_of(robustness.robustness(study))["robustness_certainty"]
    for record in records["records"]:
        name, column = record["class"], next(c for c in records["columns"] if c.key == "worst")
        parts = blocks.cell(record, column)
        if lesions.get(name, 5) < 5:
            reason = f"too few independent images ({lesions[name]})"
            assert study.runs[0].robustness[1][f"sensitivity/{name}_withheld"] == reason
            assert (parts["text"], parts["reason"]) == (f"{float(record['worst']):.3f}", reason)
        else:
            assert not parts["reason"] and record["worst_lo"] <= record["worst"] <= record["worst_hi"]
    assert "not shown" not in records["caption"]


def test_a_sentence_on_the_lowest_cell_claims_no_more_than_its_interval(honestly):
    only, = robustness.sentences(reported(honestly), "a")
    assert re.search(r"Of 3 corrupted test sets of suite default, [a-z ]+ at severity \d harms most: macro-F1 of a "
                     r"falls to 0\.\d+ \[0\.\d+, 0\.\d+\] \(seed 0\)\.$", only)


def test_the_sentence_on_the_worst_corruption_has_each_seed_and_the_teacher(monkeypatch):
    rows = [{"model": model, "role": "teacher" if model == "big" else "student", "seed": f"seed_{seed}",
             "file": "best.pt", "suite": "custom", "corruption": corruption,
             "severity": 5, "tag": f"{corruption}_5", "macro_f1": value, "macro_f1_lo": value - .125,
             "macro_f1_hi": value + .125, "macro_f1_difference_hi": -.1}
            for model, seed, corruption, value in (
                ("big", 0, "gaussian_noise", .5), ("kd", 0, "gaussian_noise", .25), ("kd", 1, "gaussian_noise", .25),
                ("kd", 0, "blur", .125), ("kd", 1, "blur", .75))]  # the lowest of one seed, and not of both
    monkeypatch.setattr(robustness, "robustness_rows", lambda study: (rows, []))
    assert robustness.sentences(None, "kd") == [
        "Of 2 corrupted test sets, gaussian noise at severity 5 harms most: macro-F1 of kd falls to 0.250 [0.125, "
        "0.375] (seed 0), 0.250 [0.125, 0.375] (seed 1); big to 0.500 [0.375, 0.625] (seed 0)."]


def test_a_note_on_sizes_names_only_the_corruptions_that_are_there():
    assert suites.note("custom", {"jpeg", "hair"}).startswith("JPEG's blocks are 8 px at any image size: its effect")
    assert suites.note("custom", {"hair"}) is None and "pixelate" in suites.note("default", {"jpeg"})


def test_curves_for_a_telephone_have_every_corruption_within_its_width():
    rows = [{"model": "a", "seed": "seed_0", "corruption": name, "severity": k, "macro_f1": .5, "macro_f1_lo": .25,
             "macro_f1_hi": .75} for name, k in (("clean", 0), ("jpeg", 1), ("hair", 1), ("ink", 1))]
    svg = figures_robustness.robustness_curves(rows, {"a": "student"}, True, alt="x")
    assert 'width="400"' in svg and all(f">{name}</text>" in svg for name in ("jpeg", "hair", "ink"))


def test_a_suite_of_ones_own_has_its_sheet_and_its_note_in_the_report(honestly, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "drawings", lambda *more: [])
    study = reported(honestly, suite="custom")
    study.files = StudyFolder(tmp_path)
    for name, colour in (("robustness_custom_sheet.png", "red"), ("robustness_sheet.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    study_files._add_summary(study)
    assert list(study.sheets) == ["custom", "default"]
    captions = [block["alt"] for block in robustness.robustness(study) if block["kind"] == "picture"]
    assert len(captions) == 2 and "suite custom" in captions[0]
    assert suites.note("phase1", ()) == suites.NOTES["phase1"]


# ---- training for it


def test_what_is_trained_on_is_of_no_family_that_a_suite_measures():
    def family(name):
        return registry.get("corruption", name).info["family"]

    def get(name):
        return registry.get("corruption", name)

    measured = {family(cell.corruption) for suite in suites.NOTES for cell in suites.cells(suite, get)}
    assert measured.isdisjoint(map(family, TRAINED_CORRUPTIONS)) and len(measured) >= 5
    for script_ in (distill, train_teacher):
        assert all(name in script_.parser().format_help().replace("\n", " ") for name in TRAINED_CORRUPTIONS)


def views(data, seed=0, epoch=1, kind="corruption", **options):
    """{image: pixels} of an epoch's batches."""
    batches = batching.training_batches(data, seed=seed, epoch=epoch, device="cpu",
                                        views=batching.Views(kind), **options)
    return {i: pixels for images, _, index, *_ in batches for i, pixels in zip(index.tolist(), images.numpy())}


def test_corrupted_views_follow_from_seed_epoch_and_image_and_half_stay_as_they_were(tmp_path):
    data = small.data(folder=tmp_path)
    plain = views(data, kind="heavy", batch=16)
    data.corruptions = tuple(registry.get("corruption", name) for name in TRAINED_CORRUPTIONS)
    first = views(data, batch=16)
    for options in ({"batch": 7, "workers": 3}, {"batch": 64, "workers": 0}, {"batch": 16}):
        again = views(data, **options)
        assert all(np.array_equal(first[i], again[i]) for i in again) and len(again) >= len(first) - 2
    changed = np.mean([not np.array_equal(first[i], plain[i]) for i in plain])
    assert .3 < changed < .7
    assert any(not np.array_equal(first[i], other) for i, other in views(data, batch=16, epoch=2).items())


def test_targets_of_a_teacher_are_not_taken_for_views_that_were_corrupted(tmp_path):
    data = small.data(folder=tmp_path)
    teacher = small.network(small.options(), data)
    teacher.fingerprint = "abc"
    teacher_cache.Targets(tmp_path / "targets", teacher, data, batching.Views(kept=2), needs=set(), precision="fp32")
    data.corruptions = tuple(registry.get("corruption", name) for name in TRAINED_CORRUPTIONS)
    with pytest.raises(UserError, match="were made from other augmentation"):
        teacher_cache.Targets(tmp_path / "targets", teacher, data, batching.Views("corruption", kept=2), needs=set(),
                              precision="fp32")


def test_a_run_trained_against_corruptions_has_a_name_of_its_own_and_older_runs_stay_finished(tmp_path, no_report,
                                                                                             capsys):
    root = exported_parts.images(tmp_path / "images", count=6)
    words = ["--data", "folder", "--root", str(root), "--size", "32", "--epochs", "1", "--batch", "8",
             "--workers", "0", "--alpha", "1", "--student", "tiny", "--stem", "small",
             "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    run_, = distill.main([*words, "--augment", "corruption"])
    assert run_.parent.name == "tiny_alone_corruption" and read_yaml(run_ / "config.yaml")["augment"] == "corruption"
    plain, = distill.main(words)
    assert plain.parent.name == "tiny_alone"
    assert not np.array_equal(*(read_npz(folder / "predictions" / "test.npz")["logits"] for folder in (run_, plain)))
    old = read_yaml(plain / "config.yaml")
    del old["augment"]
    write_yaml(plain / "config.yaml", old)
    capsys.readouterr()
    distill.main(words)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="augment was heavy, now corruption"):
        distill.main([*words, "--augment", "corruption", "--name", "tiny_alone"])
