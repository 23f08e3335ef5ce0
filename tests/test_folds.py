"""Cross-validation by groups: each image is tested once, and its answer is by a network that did not see its group."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmark
import distill
import evaluate
import export
import robustness
import study
import train_teacher
from kd import runs
from kd.audit import examine
from kd.data import splits
from kd.errors import UserError
from kd.evaluation import folds
from kd.files import read_csv, read_json, read_npz, write_csv, write_json, write_npz, write_yaml
from kd.report import build, study_files
from kd.report.sections import performance
from kd.robustness import answers
from kd.run_folder import Run

pytestmark = pytest.mark.usefixtures("no_report")
COMMON = ["--data", "lesions,images=150", "--size", "32", "--epochs", "1", "--batch", "32", "--workers", "0",
          "--device", "cpu", "--precision", "fp32", "--train-only"]
LABELS = np.repeat([0, 1, 2], [60, 30, 10])
GROUPS = np.array([f"g{k // 2}" for k in range(100)])


# ---- the split

@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_group_is_in_the_test_part_of_one_fold_and_classes_are_shared_out(count):
    tests = []
    for k in range(1, count + 1):
        split = splits.fold(LABELS, GROUPS, k, count)
        splits.check(split, GROUPS, LABELS, ["a", "b", "c"])  # no group in two splits
        tests.append(split == "test")
        for label, total in enumerate((60, 30, 10)):
            in_test = np.sum(LABELS[split == "test"] == label)
            assert abs(in_test - total / count) <= 2  # at most a group more or less
        rest = split != "test"
        assert np.mean(split[rest] == "val") == pytest.approx(1 / 8, abs=0.06)
    assert (np.sum(tests, 0) == 1).all()


def test_the_parts_depend_on_the_seed_and_not_on_the_order_of_images():
    order = np.random.default_rng(0).permutation(100)
    first = splits.fold(LABELS, GROUPS, 2, 5)
    assert np.array_equal(splits.fold(LABELS[order], GROUPS[order], 2, 5), first[order])
    assert not np.array_equal(splits.fold(LABELS, GROUPS, 2, 5, seed=1), first)


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1", "a/b", "1/101", "-1/5"])
def test_a_fold_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="is not K/N with K from 1 to N"):
        train_teacher.main([*COMMON, f"--fold={text}"])


# ---- trainings and their evaluation

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of three folds: a teacher, and a student with it."""
    root = tmp_path_factory.mktemp("cv")
    for k in (1, 2, 3):
        fold = ["--fold", f"{k}/3", "--out", str(root)]
        train_teacher.main([*COMMON, *fold, "--teacher", "tiny"])
        distill.main([*COMMON, *fold, "--student", "tiny"])
    return root / "lesions_32px"


@pytest.fixture
def cv(trained, tmp_path):
    """A copy of the study."""
    return shutil.copytree(trained, tmp_path / "lesions_32px")


def test_folds_are_no_models_of_the_study_until_they_are_joined(cv):
    assert not runs.is_run(cv)
    for search in (runs.find, lambda path: examine.audit_paths([path])):
        with pytest.raises(UserError) as refused:
            search(cv)
        assert str(cv / runs.FOLDS) in refused.value.hint
    assert folds.pool(cv) == [] and {run.parent.name for run in runs.find(cv)} == {"teacher_tiny", "tiny_kd"}


def test_the_joined_run_has_the_answer_of_each_fold_to_its_test_images(cv):
    folds.pool(cv)
    for model in ("teacher_tiny", "tiny_kd"):
        joined = read_npz(cv / model / "seed_0" / runs.TEST)
        assert len(set(joined["ids"])) == len(joined["ids"]) == 150
        for k in (1, 2, 3):
            run = cv / "folds" / f"{model}_fold{k}of3" / "seed_0"
            part, rows = read_npz(run / runs.TEST), joined["fold"] == k
            assert joined["ids"][rows].tolist() == part["ids"].tolist()
            temperature = read_json(cv / model / "seed_0" / runs.RECORD)["folds"][k - 1]["temperature"]
            assert joined["logits"][rows] * temperature == pytest.approx(part["logits"], rel=1e-5)
            trained_on = {row["group"] for row in read_csv(run / "split.csv") if row["split"] != "test"}
            assert not trained_on & set(joined["groups"][rows])


def test_how_sure_the_network_of_a_fold_is_changes_no_figure(cv):
    """Figures that compare images across folds would depend on the scale of each network's logits."""
    def figures():
        evaluate.main([str(cv)])
        return read_json(cv / "tiny_kd" / "seed_0" / "metrics.json")["test"]
    before = figures()
    run = cv / "folds" / "tiny_kd_fold2of3" / "seed_0"
    for part in ("val", "test"):
        file = run / "predictions" / f"{part}.npz"
        arrays = read_npz(file)
        write_npz(file, **{**arrays, "logits": 2.5 * arrays["logits"]})
    after = figures()
    for name in ("macro_f1", "macro_auroc", "aurc", "nll", "rms_ce_debiased"):
        assert after[name]["value"] == pytest.approx(before[name]["value"], abs=1e-4), name


def test_evaluation_is_of_all_images_and_the_student_is_compared_with_the_joined_teacher(cv, capsys):
    evaluate.main([str(cv)])
    result = read_json(cv / "tiny_kd" / "seed_0" / "metrics.json")
    joined = read_npz(cv / "tiny_kd" / "seed_0" / runs.TEST)
    assert result["split"]["test"]["images"] == 150 and result["calibration"] is None
    assert result["test"]["accuracy"]["value"] == np.mean(joined["logits"].argmax(1) == joined["labels"])
    assert result["conventions"]["n_clusters"] == len(set(joined["groups"]))
    assert result["fidelity"]["teacher"].endswith("teacher_tiny/seed_0") and result["fidelity"]["test"]
    assert Run(cv / "tiny_kd" / "seed_0").kind == "student"
    evaluate.main([str(cv), "--compare"])
    assert "150 test images, the same for all" in capsys.readouterr().out


def test_models_of_other_test_sets_are_not_proposed_for_a_comparison(cv, capsys, monkeypatch):
    for path, proposed in ((cv, True), (cv / "folds", False)):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(path)])
        evaluate.main()
        printed = capsys.readouterr().out
        assert "one run in full" in printed and ("--compare" in printed) == proposed


def test_a_fold_that_was_tested_on_its_training_images_is_refused(cv):
    split = cv / "folds" / "tiny_kd_fold2of3" / "seed_0" / "split.csv"
    rows = read_csv(split)
    rows[next(k for k, row in enumerate(rows) if row["split"] == "test")]["split"] = "train"
    write_csv(split, rows)
    with pytest.raises(UserError, match="of its test part are in its training or validation part"):
        folds.pool(cv)


def test_the_audit_finds_nothing_in_what_is_joined(cv):
    evaluate.main([str(cv)])
    findings = [finding for finding in read_json(cv / "tiny_kd" / "seed_0" / "metrics.json")["audit"]
                if finding["severity"] == "error" or finding["rule"] == "split-not-seen"]
    assert not findings, findings


def test_thresholds_of_each_fold_are_tested_on_its_own_images_and_counted_together(cv, capsys):
    for file in sorted((cv / "folds").glob("*/seed_0/predictions/*.npz")):
        arrays = read_npz(file)
        noise = np.random.default_rng(len(arrays["ids"])).normal(size=arrays["logits"].shape)
        write_npz(file, **{**arrays, "logits": 2 * (np.eye(7)[arrays["labels"]] + noise)})
    evaluate.main([str(cv / "folds"), "--target", "mel", "--risk", "0.4"])
    evaluate.main([str(cv / "tiny_kd"), "--target", "mel", "--risk", "0.4"])
    assert "Operating points, chosen on validation of each fold" in capsys.readouterr().out
    point, abstention = read_json(cv / "tiny_kd" / "seed_0" / "metrics.json")["fold_points"]
    hits = positives = false = answered = wrong = 0
    for k in (1, 2, 3):
        run = Run(cv / "folds" / f"tiny_kd_fold{k}of3" / "seed_0")
        of_fold = {one["name"]: one for one in run.metrics["operating_points"]}
        assert of_fold[point["name"]]["threshold"] == point["thresholds"][k - 1]
        mel = run.test.class_names.index("mel")
        called = run.test.probabilities[:, mel] >= point["thresholds"][k - 1]
        hits += (called & (run.test.labels == mel)).sum()
        false += (called & (run.test.labels != mel)).sum()
        positives += (run.test.labels == mel).sum()
        least = abstention["thresholds"][k - 1]
        sure = run.test.probabilities.max(1) >= (np.inf if least is None else least)
        answered += sure.sum()
        wrong += (sure & (run.test.probabilities.argmax(1) != run.test.labels)).sum()
    assert point["test"]["sensitivity"]["value"] == pytest.approx(hits / positives)
    assert point["test"]["specificity"]["value"] == pytest.approx(1 - false / (150 - positives))
    assert abstention["test"]["coverage"]["value"] == pytest.approx(answered / 150)
    assert abstention["test"]["risk"]["value"] == pytest.approx(wrong / answered)


def test_the_mean_difference_over_the_folds_knows_the_spread_of_trainings(cv, capsys):
    for k, wrong in ((1, 20), (2, 25), (3, 10)):  # of the student, where the teacher is always right
        for model in ("teacher_tiny", "tiny_kd"):
            file = cv / "folds" / f"{model}_fold{k}of3" / "seed_0" / runs.TEST
            arrays = read_npz(file)
            answers = arrays["labels"].copy()
            answers[:wrong if model == "tiny_kd" else 0] = 6
            noise = np.random.default_rng(k).normal(size=arrays["logits"].shape)
            write_npz(file, **{**arrays, "logits": 9 * np.eye(7)[answers] + noise})
    evaluate.main([str(cv), "--compare"])
    assert "In each fold both were trained anew" in capsys.readouterr().out
    rows = {row["metric"]: row for row in read_csv(cv / "comparison.csv")}
    over_folds, joined = (rows[name] for name in ("accuracy over folds", "accuracy"))
    # of all images the same, as each fold counts by its images; the interval is that of Student's t over three folds
    assert float(over_folds["difference"]) == pytest.approx(float(joined["difference"]), abs=1e-6)
    parts = [read_npz(cv / "folds" / f"tiny_kd_fold{k}of3" / "seed_0" / runs.TEST) for k in (1, 2, 3)]
    differences = [np.mean(part["logits"].argmax(1) == part["labels"]) - 1 for part in parts]
    sizes = np.array([len(part["labels"]) for part in parts])
    half = 4.302653 * np.std(differences, ddof=1) * np.linalg.norm(sizes / sizes.sum())
    low, high = (float(over_folds[key]) for key in ("lo", "hi"))
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4) and half > float(joined["hi"]) - float(joined["lo"])
    assert 0 < float(over_folds["p"]) < .2 and not joined["p"]


def report_blocks(folder):
    """The blocks of the report of a study."""
    return [block for section in build.build(study_files.read_study(folder), []) for block in section.blocks]


def test_the_report_names_folds_where_a_network_is_needed(cv):
    pytest.importorskip("matplotlib")
    shutil.copytree(cv / "folds" / "tiny_kd_fold1of3", cv / "folds" / "tiny_other_fold1of3")
    lacking = folds.pool(cv)
    evaluate.main([str(cv)])
    found = study_files.read_study(cv)
    blocks = [block for section in build.build(found, []) for block in section.blocks]
    code = "\n".join(str(block) for block in blocks if block["kind"] == "code")
    for model in ("teacher_tiny", "tiny_kd"):
        for k in (1, 2, 3):
            config = (cv / "folds" / f"{model}_fold{k}of3" / "seed_0" / "config.yaml").as_posix()
            assert f"--config {config}" in code
        assert f"{model}/seed_0/config.yaml" not in code
    first = (cv / "folds" / "tiny_kd_fold1of3" / "seed_0").as_posix()
    for script in ("robustness.py", "benchmark.py", "export.py"):
        assert any(script in line and first in line for line in code.splitlines()), script
    assert any(block.get("name") == "deltas_over_folds" for block in blocks)
    networks = [Run(cv / "folds" / f"tiny_kd_fold{k}of3" / "seed_0") for k in (1, 2, 3)]
    accuracies = [np.mean(val.probabilities.argmax(1) == val.labels) for val in (network.val for network in networks)]
    assert [network.best_row["val_accuracy"] for network in networks] == pytest.approx(accuracies)
    assert performance.on_validation(found, "tiny_kd") == pytest.approx(
        np.mean([network.best_row["val_macro_f1"] for network in networks]))
    assert [(folder.parent.name, why) for folder, why in lacking] == [
        ("tiny_other", "of its 3 folds, 2, 3 are not trained")]


def test_the_report_of_joined_folds_shows_what_was_measured_of_the_first(cv):
    pytest.importorskip("matplotlib")
    first = [cv / "folds" / f"{model}_fold1of3" / "seed_0" for model in ("teacher_tiny", "tiny_kd")]
    evaluate.main([str(cv)])
    evaluate.main(list(map(str, first)))
    names = {run.parent.name for run in first}
    assert {block["what"] for block in report_blocks(cv) if "what" in block} >= {
        "robustness under corruptions", "latency and memory", "quality against latency"}
    row = {"macro_f1": .4, "macro_f1_lo": .3, "macro_f1_hi": .5, "acc": .6}
    for run in first:
        write_csv(run / "robustness.csv", [{"tag": tag, **row} for tag in ("clean", "jpeg_1")])
        write_csv(run / "benchmark.csv", [{
            "model": run.parent.name, "ckpt": "model.onnx", "batch": 1, "cpu": "a", "imsz": 32, "device": "cpu",
            "lat_ms_p50": 2.0, "lat_ms_p90": 3.0, "file_bytes": 1e6}])
    write_csv(cv / "folds" / "robustness_summary.csv", [{
        "model": name, "seed": "seed_0", "file": "best.pt", "suite": "default", "clean_macro_f1": .4,
        "mean_macro_f1": .3, "mean_macro_f1_lo": .2, "mean_macro_f1_hi": .4, "worst_macro_f1": .1} for name in names])
    blocks = report_blocks(cv)
    tables = {block["name"]: block["export"] for block in blocks if block.get("name") in (
        "robustness", "robustness_summary", "cpu_latency", "pareto", "training")}
    for name in ("robustness", "robustness_summary", "cpu_latency", "pareto"):
        assert {row["model"] for row in tables[name]} == names, name
    assert len(tables["training"]) == 6  # of all folds
    latencies = next(block for block in blocks if block.get("name") == "result")["export"]
    assert [row["latency_ms"] for row in latencies] == [2.0, 2.0]
    assert not {block["what"] for block in blocks if "what" in block} & {
        "robustness under corruptions", "latency and memory", "quality against latency"}


@pytest.mark.parametrize("file", ["folds/tiny_kd_fold1of3/seed_0/attention.npz", "folds/robustness_summary.csv",
                                  "folds/tiny_kd_fold2of3/seed_0/history.csv", "tiny_kd/seed_0/folds.json"])
def test_a_damaged_file_of_a_fold_is_left_out_of_the_report_and_named(cv, file):
    pytest.importorskip("matplotlib")
    evaluate.main([str(cv)])
    (cv / file).write_text("x,y\n1,2\n")
    study = study_files.read_study(cv)
    assert build.build(study, []) and any(Path(file).name in problem for _, problem, _ in study.problems)


def test_the_network_of_another_fold_does_not_stand_for_the_first(cv):
    pytest.importorskip("matplotlib")
    evaluate.main([str(cv)])
    shutil.rmtree(cv / "folds" / "tiny_kd_fold1of3")
    study = study_files.read_study(cv)
    assert [run.model for run in study.networks.runs] == ["teacher_tiny_fold1of3"] and build.build(study, [])
    assert [folder.parent.name for folder, problem, _ in study.problems if "first fold" in problem] == ["tiny_kd"]
    assert np.isnan(performance.on_validation(study, "tiny_kd")) and study.network("tiny_kd") == ""
    shutil.rmtree(cv / "folds" / "teacher_tiny_fold1of3")
    study = study_files.read_study(cv)
    assert study.networks.runs == [] and build.build(study, [])


def test_of_a_study_with_joined_runs_the_others_are_measured(cv, capsys):
    folds.pool(cv)
    with pytest.raises(UserError, match="no network of its own"):
        runs.networks(cv)
    shutil.copytree(cv / "folds" / "tiny_kd_fold1of3", cv / "tiny_single")
    capsys.readouterr()
    assert runs.networks(cv) == [cv / "tiny_single" / "seed_0"]
    assert capsys.readouterr().out.count("it is left out") == 2
    assert robustness.summary_folder(answers.find([cv / "tiny_single"])) == cv


def test_a_list_of_folds_that_is_none_names_no_run(cv):
    folds.pool(cv)
    for listed in (5, [{"run": "/"}], [{"run": "../lesions_32px/folds/tiny_kd_fold1of3/seed_0"}], [{"run": 3}, 4]):
        write_json(cv / "tiny_kd" / "seed_0" / runs.RECORD, {"folds": listed})
        assert Run(cv / "tiny_kd" / "seed_0").folds == []


def test_the_summary_of_robustness_is_of_all_networks_of_a_fold(cv):
    first = sorted((cv / "folds").glob("*_fold1of3/seed_0"))
    assert len(first) == 2 and robustness.summary_folder(answers.find(first)) == cv / "folds"
    assert robustness.summary_folder(answers.find(first[:1])) == first[0]


@pytest.mark.parametrize("fault", ["shared-by-splits", "teacher-saw-test"])
def test_what_is_wrong_with_a_fold_is_found_in_what_is_joined(cv, fault):
    evaluate.main([str(cv)])
    folder = cv / "folds" / ("tiny_kd_fold2of3" if fault == "shared-by-splits" else "teacher_tiny_fold2of3")
    rows = read_csv(folder / "seed_0" / "split.csv")
    trained, tested = ([row for row in rows if row["split"] == part] for part in ("train", "test"))
    if fault == "shared-by-splits":  # the same files under other names
        for ours, theirs in zip(trained[:30], tested):
            ours["sha256"] = theirs["sha256"]
    else:
        for row in tested[:30]:
            row["split"] = "train"
    write_csv(folder / "seed_0" / "split.csv", rows)
    found = [finding for finding in examine.audit_run(cv / "tiny_kd" / "seed_0") if finding["severity"] == "error"]
    assert all("fold2of3" in finding["saw"] for finding in found)
    assert fault in {finding["rule"] for finding in found}


def test_what_needs_a_network_names_a_fold(cv):
    folds.pool(cv)
    joined = str(cv / "tiny_kd" / "seed_0")
    for call in (lambda: export.main([joined]), lambda: robustness.main([joined]), lambda: benchmark.main([joined])):
        with pytest.raises(UserError, match="has the answers of several networks") as caught:
            call()
        fold = caught.value.hint.removeprefix("Name one of the folds: ")
        assert (cv / "folds" / "tiny_kd_fold1of3" / "seed_0").samefile(fold)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(UserError, match="50 groups cannot be divided into 60 folds"):
        splits.fold(LABELS, GROUPS, 1, 60)


def test_a_missing_fold_is_named_and_nothing_is_joined(cv, capsys):
    shutil.rmtree(cv / "folds" / "tiny_kd_fold2of3")
    evaluate.main([str(cv)])
    assert "tiny_kd/seed_0 is not pooled: of its 3 folds, 2 is not trained" in capsys.readouterr().out
    assert not (cv / "tiny_kd").exists() and (cv / "teacher_tiny").exists()


@pytest.mark.parametrize("key", ["logits", "labels", "groups"])
def test_joining_again_changes_nothing_and_what_has_changed_is_taken_over(cv, key):
    folds.pool(cv)
    file = cv / "tiny_kd" / "seed_0" / runs.TEST
    before = file.stat().st_mtime_ns
    folds.pool(cv)
    assert file.stat().st_mtime_ns == before
    part = cv / "folds" / "tiny_kd_fold1of3" / "seed_0" / runs.TEST
    arrays = read_npz(part)
    changed = {"logits": -arrays["logits"], "labels": (arrays["labels"] + 1) % 7,
               "groups": np.array([f"other_{name}" for name in arrays["groups"]])}[key]
    write_npz(part, **{**arrays, key: changed})
    folds.pool(cv)
    after = read_npz(file)[key][:len(changed)]
    assert np.array_equal(after.argmax(1), changed.argmax(1)) if key == "logits" else np.array_equal(after, changed)


@pytest.mark.parametrize("joined_before", [False, True])
@pytest.mark.parametrize("change, words", [
    ("option", "the folds of tiny_kd differ in lr"),
    ("teacher", "the folds of tiny_kd differ in teacher"),
    ("teacher's fold", "the fold 2/3 of tiny_kd has the teacher of the fold 1/3"),
    ("network", "the folds of tiny_kd differ in arch"),
    ("data", "the folds of tiny_kd differ in data"),
    ("image", "ids are in the test parts of several folds"),
    ("own", "is a run of its own"),
])
def test_folds_that_do_not_fit_together_are_refused(cv, change, words, joined_before):
    run = cv / "folds" / "tiny_kd_fold2of3" / "seed_0"
    if joined_before and change != "own":
        folds.pool(cv)
    options, environment = Run(run).options, Run(run).environment
    teacher = options["teacher"]
    options = {"option": {"lr": 5.0}, "teacher": {"teacher": teacher.replace("teacher_tiny", "teacher_other")},
               "teacher's fold": {"teacher": teacher.replace("fold2of3", "fold1of3")}}.get(change, {})
    write_yaml(run / "config.yaml", {**Run(run).options, **options})
    write_json(run / "environment.json", {
        **environment, **({"arch": "resnet18"} if change == "network" else {}),
        "data": {**environment["data"], **({"fingerprint": "0" * 16} if change == "data" else {})}})
    if change == "image":
        other = read_npz(cv / "folds" / "tiny_kd_fold1of3" / "seed_0" / runs.TEST)
        write_npz(run / runs.TEST, **other)
    if change == "own":
        shutil.copytree(run, cv / "tiny_kd" / "seed_0")
    with pytest.raises(UserError, match=words):
        folds.pool(cv)


def test_a_joined_run_does_not_outlive_its_folds(cv, capsys):
    folds.pool(cv)
    shutil.rmtree(cv / "folds" / "tiny_kd_fold3of3")
    evaluate.main([str(cv)])
    assert "tiny_kd/seed_0 is not pooled: of its 3 folds, 3 is not trained" in capsys.readouterr().out
    assert [run.parent.name for run in runs.find(cv)] == ["teacher_tiny"]


def test_folds_whose_split_was_not_kept_are_joined_to_the_same_run(cv):
    folds.pool(cv)
    file = cv / "tiny_kd" / "seed_0" / runs.TEST
    before = file.stat().st_mtime_ns
    for split in cv.rglob("split.csv"):
        split.unlink()
    folds.pool(cv)
    assert file.stat().st_mtime_ns == before
    shutil.rmtree(file.parents[2])
    folds.pool(cv)
    assert len(read_npz(file)["ids"]) == 150 and not (file.parents[1] / "split.csv").exists()
    evaluate.main([str(cv)])


@pytest.mark.parametrize("option", ["--compare", "--audit"])
def test_folds_are_joined_before_anything_is_said_of_models(cv, option, capsys):
    evaluate.main([str(cv), option])
    assert (cv / "tiny_kd" / "seed_0" / runs.TEST).exists()
    shutil.rmtree(cv / "folds" / "tiny_kd_fold1of3")
    evaluate.main([*(str(run) for run in sorted((cv / "folds").glob("*fold2of3"))), option])  # single folds stay so
    capsys.readouterr()
    evaluate.main([str(cv), "--audit"])
    assert "note: tiny_kd/seed_0 is not pooled: of its 3 folds, 1 is not trained" in capsys.readouterr().out


def test_a_model_with_folds_of_two_numbers_is_refused(cv):
    for k in (1, 2):
        shutil.copytree(cv / "folds" / f"tiny_kd_fold{k}of3", cv / "folds" / f"tiny_kd_fold{k}of2")
    with pytest.raises(UserError, match="has folds of tiny_kd of several numbers of folds"):
        folds.pool(cv)


def test_a_study_below_a_folder_that_is_called_folds_is_joined_and_tries_are_not(cv):
    below = shutil.copytree(cv, cv.parent / runs.FOLDS / "study")
    shutil.copytree(cv / "folds" / "tiny_kd_fold1of3", below / runs.TRIES / runs.FOLDS / "tiny_kd_fold1of3")
    assert folds.pool(below) == [] and (below / "tiny_kd" / "seed_0" / runs.TEST).exists()


def test_the_teacher_of_another_study_is_found_there(cv):
    """Its answers are random here, and a teacher of the same name is in the study itself."""
    other = shutil.copytree(cv, cv.parent / "other")
    for k in (1, 2, 3):
        file = other / "folds" / f"teacher_tiny_fold{k}of3" / "seed_0" / runs.TEST
        arrays = read_npz(file)
        write_npz(file, **{**arrays, "logits": np.random.default_rng(k).normal(size=arrays["logits"].shape)})
        config = cv / "folds" / f"tiny_kd_fold{k}of3" / "seed_0" / "config.yaml"
        options = Run(config.parent).options
        write_yaml(config, {**options, "teacher": options["teacher"].replace("lesions_32px", "other")})
    folds.pool(other)
    folds.pool(cv)
    for run, teacher in ((cv / "tiny_kd", other / "teacher_tiny"),
                         (cv / "folds" / "tiny_kd_fold2of3", other / "folds" / "teacher_tiny_fold2of3")):
        assert Run(run / "seed_0").teachers[0].folder.samefile(teacher / "seed_0")
        assert Run(run / "seed_0").teacher_name == (teacher / "seed_0").relative_to(cv.parent).as_posix()


def test_a_student_takes_the_teacher_of_its_fold_and_no_other(trained):
    for k in (1, 2, 3):
        run = Run(trained / "folds" / f"tiny_kd_fold{k}of3" / "seed_0")
        assert run.options["teacher"].endswith(f"teacher_tiny_fold{k}of3/seed_0") and run.options["fold"] == f"{k}/3"
    with pytest.raises(UserError, match="was trained on .* groups of the val and test split"):
        distill.main([*COMMON, "--out", str(trained.parent), "--student", "tiny", "--fold", "1/3", "--name", "other",
                      "--teacher", str(trained / "folds" / "teacher_tiny_fold2of3" / "seed_0")])


def test_the_same_options_with_another_fold_are_the_other_fold(trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "lesions_32px").parent
    shutil.rmtree(out / "lesions_32px" / "folds" / "tiny_kd_fold3of3")
    config = out / "lesions_32px" / "folds" / "tiny_kd_fold1of3" / "seed_0" / "config.yaml"
    run, = distill.main(["--config", str(config), "--fold", "3/3", "--out", str(out), "--train-only", "--teacher",
                         str(out / "lesions_32px" / "folds" / "teacher_tiny_fold3of3" / "seed_0")])
    assert run.parent.name == "tiny_kd_fold3of3"
    assert np.array_equal(read_npz(run / runs.TEST)["logits"],
                          read_npz(trained / "folds" / "tiny_kd_fold3of3" / "seed_0" / runs.TEST)["logits"])


def test_official_splits_and_folds_exclude_each_other(trained, tmp_path):
    split = trained / "folds" / "tiny_kd_fold1of3" / "seed_0" / "split.csv"
    with pytest.raises(UserError, match="has a split from --split, and --fold makes others"):
        train_teacher.main([*COMMON, "--out", str(tmp_path), "--teacher", "tiny", "--fold=1/3", f"--split={split}"])


# ---- plans

def test_a_plan_with_folds_trains_each_network_on_each_and_chooses_on_the_first(tmp_path):
    write_yaml(tmp_path / "cv.yaml", {
        "data": "lesions,images=150", "size": 32, "epochs": 1, "batch": 32, "workers": 0, "folds": 2,
        "out": str(tmp_path), "train_teacher": {"teacher": "tiny"},
        "distill": {"student": ["tiny"], "methods": {"kd": {"alpha": [0.3, 0.7]}}}})
    folder = study.main([str(tmp_path / "cv.yaml")])
    assert sorted(path.name for path in (folder / "folds").iterdir() if path.name != "targets") == [
        "teacher_tiny_fold1of2", "teacher_tiny_fold2of2", "tiny_kd_fold1of2", "tiny_kd_fold2of2"]
    assert {path.name for path in (folder / "sweep_tries" / "folds").iterdir() if path.name != "targets"} == {
        "tiny_kd+alpha_0.3_fold1of2", "tiny_kd+alpha_0.7_fold1of2"}
    chosen = read_json(folder / "tiny_kd" / "sweep.json")["chosen"]["alpha"]
    for k in (1, 2):
        assert Run(folder / "folds" / f"tiny_kd_fold{k}of2" / "seed_0").options["alpha"] == chosen
    assert read_json(folder / "tiny_kd" / "seed_0" / "metrics.json")["split"]["test"]["images"] == 150


@pytest.mark.parametrize("count", [1, 101, "five", 2.5, True])
def test_a_plan_with_a_number_of_folds_that_is_none_is_refused(tmp_path, count):
    write_yaml(tmp_path / "cv.yaml", {"folds": count, "train_teacher": {"teacher": "tiny"}})
    with pytest.raises(UserError, match="folds is a whole number from 2 to 100"):
        study.main([str(tmp_path / "cv.yaml"), "--dry-run"])
