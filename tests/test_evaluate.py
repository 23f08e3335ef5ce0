"""evaluate.py: tables and metrics.json from runs and from other systems' files; leaks are refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
from kd import calibration, metrics
from kd.errors import UserError
from kd.evaluation import protocol
from kd.files import read_json, write_csv, write_npz
from kd.predictions import of_files
from kd.predictions import read as read_predictions

FAST = protocol.Settings(replicates=100)
ROOT = Path(__file__).parents[1]
NAMES = ["nv", "mel", "a class with quite a long name"]


def arrays_of(split, n, seed=0):
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % 5 % 3  # two fifths, two fifths, one fifth
    logits = rng.normal(size=(n, 3)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    return {"ids": np.array([f"{split}{i}" for i in range(n)]), "labels": labels, "logits": logits,
            "groups": np.array([f"{split}-lesion{i // 2}" for i in range(n)]),
            "class_names": np.array(NAMES)}


def make_run(path, seed=0, val_size=40, **changes):
    """A finished run; changes: `test__labels=...` replaces an array of test.npz, None drops it."""
    rows = [{"id": f"train{i}", "group": f"train-lesion{i}", "label": NAMES[i % 3], "split": "train",
             "sha256": ""} for i in range(10)]
    for split, n in (("val", val_size), ("test", 90)):
        arrays = arrays_of(split, n, seed)
        arrays.update({k.split("__")[1]: v for k, v in changes.items() if k.startswith(split + "__")})
        write_npz(path / "predictions" / f"{split}.npz",
                       **{k: v for k, v in arrays.items() if v is not None})
        rows += [{"id": i, "group": g, "label": arrays["class_names"][k], "split": split, "sha256": ""}
                 for i, g, k in zip(arrays["ids"], arrays["groups"], arrays["labels"])]
    write_csv(path / "split.csv", rows)
    return path


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "study" / "tiny_kd" / "seed_0")


def test_a_run_is_measured_and_its_metrics_can_be_read_back(run):
    returned = evaluate.evaluate_run(run, FAST).result
    read = read_json(run / "metrics.json")
    assert read["test"] == {name: {key: None if value != value else value for key, value in metric.items()}
                            for name, metric in returned["test"].items()}
    conventions = read["conventions"]
    sample = [conventions[key] for key in ("level", "replicates", "clusters", "n_clusters")]
    assert sample == [.95, 100, "group", 45]
    assert (conventions["bins"], conventions["closed"], conventions["seed"]) == (15, "right", 0)
    assert conventions["majority_class"] in NAMES
    assert conventions["rarest_class"] == NAMES[2]  # 18 images of 90
    assert read["class_names"] == NAMES
    assert read["split"]["val"] == {"images": 40, "groups": 20, "support": dict(zip(NAMES, (16, 16, 8)))}
    assert read["split"]["test"]["support"] == dict(zip(NAMES, (36, 36, 18)))
    probabilistic = {"nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce", "aurc"}
    names = {"accuracy", "macro_f1", "macro_f1_without_rarest", "weighted_f1", "balanced_accuracy", "macro_auroc",
             *probabilistic} | {
        f"{metric}/{name}" for metric in ("f1", "recall", "precision", "auroc") for name in NAMES}
    assert set(read["val"]) == names  # the temperature was fitted there: calibrated figures would flatter
    assert set(read["test"]) == names | {f"{name}_calibrated" for name in probabilistic}
    test = arrays_of("test", 90)
    counts = metrics.confusion(test["labels"], test["logits"].argmax(1), 3)
    assert read["confusion"] == counts.tolist()
    assert read["test"]["accuracy"]["value"] == pytest.approx(np.trace(counts) / 90)
    assert read["val"]["accuracy"]["value"] != read["test"]["accuracy"]["value"]


def test_the_majority_rule_answers_what_is_largest_on_validation(tmp_path):
    run = make_run(tmp_path / "run", val__labels=np.full(40, 2))
    result = evaluate.evaluate_run(run, FAST).result
    assert result["conventions"]["majority_class"] == NAMES[2]
    assert result["majority"]["accuracy"]["value"] == pytest.approx(.2)  # though two are larger on test
    assert set(result["majority"]) == {"accuracy", "macro_f1", "balanced_accuracy"}


def test_an_undefined_number_is_null_in_the_file_and_a_word_in_the_table(tmp_path, capsys):
    labels = np.where(arrays_of("test", 90)["labels"] == 1, 0, arrays_of("test", 90)["labels"])
    logits = arrays_of("test", 90)["logits"] - [0, 99, 0]
    run = make_run(tmp_path / "study" / "model" / "seed_0", test__labels=labels, test__logits=logits)
    evaluate.main([str(run), "--replicates", "100"])
    shown = capsys.readouterr().out
    assert "No test image of mel" in shown and "n/a" in shown and "nan" not in shown.lower()
    assert read_json(run / "metrics.json")["test"]["f1/mel"] == {"value": None, "lo": None, "hi": None}


def every_metric(content, path=()):
    """Yield (path, METRIC) of each METRIC in the content of a metrics.json."""
    if isinstance(content, dict) and {"value", "lo", "hi"} <= content.keys():
        yield "/".join(path), content
    elif isinstance(content, (dict, list)):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, part in pairs:
            yield from every_metric(part, (*path, str(key)))


@pytest.mark.parametrize("seed", range(4))
def test_every_value_lies_in_its_interval_or_has_none(tmp_path, seed):
    run = make_run(tmp_path / "run", seed=seed)
    if seed == 1:  # never wrong
        labels = arrays_of("test", 90, seed)["labels"]
        make_run(run, seed=seed, test__logits=np.eye(3)[labels] * 4)
    if seed == 2:  # one answer for all
        make_run(run, seed=seed, test__logits=arrays_of("test", 90, seed)["logits"] / 9 + [2, 0, 0])
    evaluate.evaluate_run(run, FAST)
    found = list(every_metric(read_json(run / "metrics.json")))
    assert len(found) > 60 and len([path for path, _ in found if path.startswith("operating_points")]) > 20
    for path, metric in found:
        numbers = [metric[key] for key in ("lo", "value", "hi")]
        assert set(metric) <= {"value", "lo", "hi", "withheld"}, path
        if metric["lo"] is None:
            assert metric["hi"] is None and (metric["value"] is None or metric["withheld"]), path
        else:
            assert numbers == sorted(numbers), (path, numbers)
            is_known = metric["lo"] == metric["hi"]
            assert not is_known, (path, numbers)


def test_a_calibration_error_in_bins_has_no_interval_and_the_debiased_one_has(run):
    test = evaluate.evaluate_run(run, FAST).result["test"]
    for name in ("ece", "ece_equal_mass", "ece_classwise", "mce"):
        for metric in (test[name], test[f"{name}_calibrated"]):
            assert metric["value"] > 0 and np.isnan(metric["lo"]) and metric["withheld"] == calibration.BIASED
    for name in ("rms_ce_debiased", "rms_ce_debiased_calibrated"):
        assert 0 <= test[name]["lo"] <= test[name]["value"] < test[name]["hi"] and "withheld" not in test[name]


def test_figures_of_too_few_lesions_are_printed_without_an_interval_and_the_file_says_why(tmp_path, capsys):
    arrays = arrays_of("test", 90)
    labels = np.where((arrays["labels"] == 2) & (np.arange(90) >= 20), 0, arrays["labels"])
    lesions = len(set(arrays["groups"][labels == 2]))
    run = make_run(tmp_path / "study" / "tiny_kd" / "seed_0", test__labels=labels)
    evaluate.main([str(run), "--replicates", "100"])
    shown = capsys.readouterr().out
    result = read_json(run / "metrics.json")
    for name in ("recall", "f1", "precision", "auroc"):
        metric = result["test"][f"{name}/{NAMES[2]}"]
        withheld = f"too few independent images ({lesions})"
        assert (metric["lo"], metric["hi"], metric["withheld"]) == (None, None, withheld)
        assert f"{metric['value']:.3f} [too few]" in shown
    assert result["test"]["recall/mel"]["lo"] > 0 and result["test"]["macro_f1"]["lo"] > 0
    point = result["operating_points"][2]
    assert point["shortfall"]["withheld"] == point["test"]["sensitivity"]["withheld"] == (
        f"too few independent images ({lesions})")
    assert "\n[too few]: fewer than 5 groups or errors, which is too few for an interval.\n" in shown


def test_one_run_prints_the_full_tables(run, capsys):
    evaluate.main([str(run)])
    shown = capsys.readouterr().out
    result = read_json(run / "metrics.json")
    assert "95% intervals, 2,000 smoothed bootstrap replicates over 45 groups" in shown
    accuracy = result["test"]["accuracy"]
    assert f"{accuracy['value']:.3f} [{accuracy['lo']:.3f}, {accuracy['hi']:.3f}]" in shown
    for word in (*NAMES, "macro AUROC", "support", "majority rule (nv)", "true \\ predicted"):
        assert word in shown
    table = shown[shown.index("\nclass ") + 1:].split("\n\n")[0].splitlines()
    assert len({line.index("[") for line in table[1:]}) == 1  # aligned, however long the names
    assert table[1].split()[-1] == "36"


def test_several_runs_print_one_line_each_and_the_majority_rule_once(run, capsys):
    make_run(run.parents[1] / "teacher_tiny" / "seed_0", seed=1)
    evaluate.main([str(run.parents[1]), str(run), "--replicates", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "teacher_tiny/seed_0", "tiny_kd/seed_0", "majority rule (nv)"]
    assert lines[4].startswith("95% intervals, 100 smoothed bootstrap replicates over 45 groups")
    assert len(lines) == 6 and lines[5].endswith("in each run's metrics.json.")
    assert all((run.parents[1] / name / "seed_0" / "metrics.json").is_file()
               for name in ("tiny_kd", "teacher_tiny"))


def test_a_damaged_run_is_named_and_the_others_are_evaluated(run, capsys):
    study = run.parents[1]
    for name in ("a_cut", "other", "z_leak"):
        make_run(
            study / name / "seed_0", **({"test__groups": np.array(["val-lesion3"] * 90)} if name == "z_leak" else {})
        )
    (study / "a_cut/seed_0/predictions/test.npz").write_bytes(b"PK")
    with pytest.raises(
        UserError, match="2 of 4 not evaluated: .*a_cut.* cannot read .*z_leak.*share 1 groups"
    ) as caught:
        evaluate.main([str(study), "--replicates", "100"])
    assert "\n" not in caught.value.message
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        "other/seed_0",
        "tiny_kd/seed_0",
    ]
    assert sorted(path.parents[1].name for path in study.glob("*/seed_0/metrics.json")) == ["other", "tiny_kd"]


def test_runs_and_files_of_other_systems_stand_in_one_table(run, tmp_path, capsys):
    path = save(
        tmp_path / "theirs.npz", **{key: arrays_of("test", 90)[key] for key in ("ids", "groups", "class_names")}
    )
    evaluate.main([str(run), str(path), "--replicates", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("tiny_kd/seed_0 ") and lines[2].startswith(str(path)) and len(lines) == 6
    assert lines[1].split()[1:] == lines[2].split()[1:]  # the same predictions


def test_different_test_sets_are_told_apart(run, tmp_path, capsys):
    other = arrays_of("test", 90)
    make_run(tmp_path / "other" / "tiny_kd" / "seed_0", test__groups=other["ids"])
    evaluate.main([str(tmp_path), "--replicates", "100"])
    shown = capsys.readouterr().out
    assert "2 different test sets" in shown and "study/tiny_kd/seed_0" in shown
    assert shown.count("majority rule") == 2


@pytest.mark.parametrize("changes, words", [
    ({"test__ids": np.array(["val3", *map(str, range(89))])}, "validation and test share 1 images"),
    ({"test__ids": np.array(["train3", *map(str, range(89))])}, "test and training share 1 images"),
    ({"test__groups": np.array(["val-lesion3"] * 90)}, "validation and test share 1 groups: val-"),
    ({"test__groups": np.array(["train-lesion1"] * 90)}, "test and training share 1 groups"),
    ({"val__groups": np.array(["train-lesion1"] * 40)}, "validation and training share 1 groups"),
    ({"test__class_names": np.array(["nv", "mel", "bcc"])}, "different class names"),
])
def test_a_leak_is_an_error_before_any_metric(tmp_path, changes, words):
    run = make_run(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=words):
        evaluate.evaluate_run(run, FAST)
    assert not (run / "metrics.json").exists()


def test_images_without_groups_share_none(tmp_path, capsys):
    empty = {f"{split}__groups": np.full(n, "") for split, n in (("val", 40), ("test", 90))}
    result = evaluate.evaluate_run(make_run(tmp_path / "run", **empty), FAST).result
    assert result["conventions"]["clusters"] == "image" and result["conventions"]["n_clusters"] == 90


# ---- predictions of other systems

def of_file(path, groups=None):
    return protocol.evaluate(*of_files(path, groups=groups), FAST).result


def save(path, drop=(), **arrays):
    given = arrays_of("test", 90)
    arrays = {"y_true": given["labels"], "y_prob": metrics.softmax(given["logits"]), **arrays}
    write_npz(path, **{k: v for k, v in arrays.items() if k not in drop})
    return path


def test_labels_and_probabilities_are_enough(tmp_path, capsys):
    path = save(tmp_path / "theirs.npz")
    evaluate.main([str(path), "--replicates", "100"])
    shown = capsys.readouterr().out
    assert "over 90 images, taken as independent" in shown and "No validation predictions (--val)" in shown
    assert list(tmp_path.iterdir()) == [path]  # nothing is written unasked
    result = of_file(path)
    assert result["class_names"] == ["0", "1", "2"] and "val" not in result
    assert result["conventions"]["majority_class"] == "0"
    logits = save(tmp_path / "logits.npz", drop=["y_prob"], logits=arrays_of("test", 90)["logits"])
    assert of_file(logits)["test"] == result["test"]


def test_out_is_where_the_metrics_of_a_file_go(tmp_path, capsys):
    path = save(tmp_path / "theirs.npz")
    evaluate.main([str(path), "--out", str(tmp_path / "new" / "place"), "--replicates", "100"])
    written = tmp_path / "new" / "place" / "metrics.json"
    assert str(written) in capsys.readouterr().out
    assert read_json(written)["split"]["test"]["images"] == 90


def test_groups_from_a_csv_are_the_groups_in_the_file(tmp_path):
    given = arrays_of("test", 90)
    write_csv(tmp_path / "groups.csv", [{"id": i, "group": g} for i, g in
                                             zip(given["ids"][::-1], given["groups"][::-1])])
    inside = save(tmp_path / "inside.npz", ids=given["ids"], groups=given["groups"])
    beside = save(tmp_path / "beside.npz", ids=given["ids"])
    assert (of_file(beside, tmp_path / "groups.csv")
            == of_file(inside))
    write_csv(tmp_path / "short.csv", [{"id": i, "group": "g"} for i in given["ids"][3:]])
    with pytest.raises(UserError, match="no group for 3 of 90 images of .*beside.npz: test0, test1, test2"):
        of_file(beside, tmp_path / "short.csv")
    write_csv(tmp_path / "twice.csv", [{"id": "test0", "group": g} for g in "ab"])
    with pytest.raises(UserError, match="two groups: test0"):
        of_file(beside, tmp_path / "twice.csv")
    with pytest.raises(UserError, match="has no ids"):
        of_file(save(tmp_path / "bare.npz"), tmp_path / "groups.csv")


def test_probabilities_that_nearly_sum_to_one_are_renormalised_and_noted(tmp_path, capsys):
    exact = metrics.softmax(arrays_of("test", 90)["logits"])
    path = save(tmp_path / "near.npz", y_prob=exact * 1.0005)
    evaluate.main([str(path), "--replicates", "100"])
    assert "renormalised" in capsys.readouterr().out
    rows = read_predictions(path).probabilities
    np.testing.assert_allclose(rows, exact, atol=1e-12)
    assert read_predictions(save(tmp_path / "f4.npz", y_prob=exact.astype("f4"))).note == ""


N, ROW, P = 90, np.arange(90)[:, None], metrics.softmax(arrays_of("test", 90)["logits"])
BAD = {
    "no labels": (dict(drop=["y_true"]), "neither labels nor y_true"),
    "no scores": (dict(drop=["y_prob"]), "neither logits nor y_prob"),
    "no images": (dict(y_true=np.zeros(0, int), y_prob=np.zeros((0, 3))), "holds no images"),
    "several labels": (dict(y_true=np.zeros((N, 2), int)), "no class in 90 of 90 images"),
    "fractions": (dict(y_true=np.full(N, .5)), "not all class numbers"),
    "names": (dict(y_true=np.full(N, "nv")), "not all class numbers"),
    "NaN labels": (dict(y_true=np.full(N, np.nan)), "not all class numbers"),
    "infinite labels": (dict(y_true=np.full(N, np.inf)), "not all class numbers"),
    "from one": (dict(y_true=1 + np.arange(N) % 3), "3 classes, but y_true go from 1 to 3"),
    "negative": (dict(y_true=np.arange(N) % 3 - 1), "go from -1 to 1"),
    "one column": (dict(y_prob=P[:, 0]), r"y_prob \[N\] has 2 classes, but y_true go from 0 to 2"),
    "too few rows": (dict(y_prob=P[:80]), r"shape \(80, 3\)"),
    "words": (dict(y_prob=P.astype(str)), "not numbers"),
    "NaN": (dict(y_prob=np.where(ROW < 2, np.nan, P)), "2 of 90 images are not finite"),
    "infinite": (dict(logits=np.where(ROW < 2, np.inf, P)), "logits of 2 of 90 images are not finite"),
    "sums": (dict(y_prob=np.where(ROW < 2, .9, 1) * P), "2 of 90 images do not sum to 1"),
    "few ids": (dict(ids=np.array(["a"])), r"ids has shape \(1,\)"),
    "equal ids": (dict(ids=np.array(["a"] * N)), "ids are not unique: a"),
    "few groups": (dict(groups=np.array(["a"])), "groups has shape"),
    "holes": (dict(groups=np.array(["", *["a"] * 89])), "1 images have no group"),
    "class names": (dict(class_names=np.array(["a", "b"])), r"\(3,\) is needed"),
    "equal class names": (dict(class_names=np.array(["a", "b", "a"])), "class_names are not unique: a"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("error")
def test_a_bad_file_is_one_clear_line(tmp_path, name):
    arrays, words = BAD[name]
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        evaluate.main([str(path), "--out", str(tmp_path / "out")])
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


def test_pickles_and_broken_files_are_refused(tmp_path):
    np.savez(tmp_path / "pickle.npz", labels=np.array([0, 1], dtype=object), logits=np.eye(2))
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = save(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    for name in ("pickle", "empty", "cut", "absent"):
        with pytest.raises(UserError, match=f"{name}.npz"):
            evaluate.main([str(tmp_path / f"{name}.npz")])


def test_options_that_do_not_fit_are_refused(run, tmp_path):
    path, other = save(tmp_path / "a.npz"), save(tmp_path / "b.npz")
    for argv in (
        [run, "--out", tmp_path / "x"], [run, "--groups", tmp_path / "g.csv"],
        [path, other, "--out", tmp_path / "x"], [path, "--out", other], [path, "--replicates", "5"],
        [path, "--target", "mel"], [run, "--compare", "--groups", tmp_path / "g.csv"],
        [path, other, "--compare", "--val", path], [run, "--compare", "--out", other], [path, "--group", "g.csv"],
        [],
    ):
        with pytest.raises(UserError):
            evaluate.main([str(a) for a in argv])


def test_from_the_command_line(run):
    def call(*argv):
        done = subprocess.run([sys.executable, ROOT / "evaluate.py", *argv], capture_output=True,
                              text=True, encoding="utf-8")
        return done.returncode, done.stdout, done.stderr

    status, out, err = call(run, "--replicates", "100")
    assert (status, err) == (0, "") and "balanced accuracy" in out and "next: python report.py" in out
    status, out, err = call(run / "nowhere")
    assert status == 2 and err.startswith("error: no such folder") and "Traceback" not in err and not out


def test_evaluation_needs_no_torch(run):
    code = f"import sys; sys.modules['torch'] = None; import evaluate; evaluate.main([{str(run)!r}])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
