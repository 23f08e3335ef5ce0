"""Models against each other: paired on the same images, whatever the order of the files, over seeds as well."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

import evaluate
from kd import calibration, metrics
from kd.errors import UserError
from kd.evaluation import compare, protocol, terminal
from kd.files import read_csv, write_json, write_npz, write_yaml
from kd.text import SEEDS_NOTE
from test_evaluate import NAMES, arrays_of, make_run

FAST = protocol.Settings(replicates=200)
BINNED = {"ece", "ece_equal_mass", "ece_classwise", "mce"}  # calibration errors without intervals


def teach(run, role, arch="tiny", teacher="there"):
    write_json(run / "environment.json", {"role": role, "arch": arch})
    write_yaml(run / "config.yaml", {"teacher": teacher} if role == "student" else {})
    return run


@pytest.fixture
def study(tmp_path):
    """A teacher, a student alone and one taught with two seeds."""
    folder = tmp_path / "study"
    teach(make_run(folder / "teacher_big" / "seed_0", seed=7), "teacher", "big")
    teach(make_run(folder / "tiny_alone" / "seed_0", seed=8), "student", teacher=None)
    for seed in (0, 1):
        teach(make_run(folder / "tiny_kd" / f"seed_{seed}", seed=seed), "student")
    return folder


def compared(*paths):
    return compare.compare(compare.models(paths), FAST)


def rows(pair):
    return {row["metric"]: row for row in pair["rows"]}


def test_the_reference_is_the_first_and_in_a_study_the_teacher(study):
    def pairs(*paths):
        return [(pair["reference"], pair["model"]) for pair in compared(*paths)["pairs"]]

    teacher, alone, taught = (study / name for name in ("teacher_big", "tiny_alone", "tiny_kd"))
    assert pairs(taught, teacher) == [("tiny_kd", "teacher_big")]
    # a taught student is compared with the same network alone as well
    assert pairs(study) == [("teacher_big", "tiny_alone"), ("teacher_big", "tiny_kd"), ("tiny_alone", "tiny_kd")]
    assert pairs(alone, teacher, taught) == [("tiny_alone", "teacher_big"), ("tiny_alone", "tiny_kd")]
    for begun in ({"weights": "imagenet"}, {"init": "best.pt"}):  # another beginning makes it another network
        write_yaml(alone / "seed_0" / "config.yaml", {"teacher": None, **begun})
        assert pairs(study) == [("teacher_big", "tiny_alone"), ("teacher_big", "tiny_kd")]
    teach(alone / "seed_0", "student", arch="other", teacher=None)
    assert pairs(study) == [("teacher_big", "tiny_alone"), ("teacher_big", "tiny_kd")]


def test_a_difference_is_that_of_the_figures_and_its_interval_that_of_paired_replicates(study):
    pair, = compared(study / "teacher_big", study / "tiny_alone")["pairs"]
    teacher, student = arrays_of("test", 90, 7), arrays_of("test", 90, 8)
    found = rows(pair)
    scores = [f1_score(one["labels"], one["logits"].argmax(1), average=None) for one in (teacher, student)]
    for k, name in enumerate(NAMES):
        row = found[f"f1/{name}"]
        assert (row["reference_value"], row["model_value"]) == pytest.approx((scores[0][k], scores[1][k]))
        assert row["difference"] == pytest.approx(scores[1][k] - scores[0][k])
        assert row["retention"] == pytest.approx(scores[1][k] / scores[0][k])
        assert row["relative_gap"] == pytest.approx((scores[0][k] - scores[1][k]) / scores[0][k])
    right = [one["labels"] == one["logits"].argmax(1) for one in (teacher, student)]
    accuracy, macro_f1 = found["accuracy"], found["macro_f1"]
    for row in (accuracy, macro_f1):  # half as wide as of unpaired test sets, or less: the images are the same
        assert row["lo"] < row["difference"] < row["hi"]
        unpaired = np.hypot(*(row[f"{side}_hi"] - row[f"{side}_lo"] for side in ("reference", "model")))
        assert row["hi"] - row["lo"] < 1.1 * unpaired
    lesions = np.array(teacher["groups"])
    gains = [np.sum((right[1] * 1 - right[0])[lesions == lesion]) for lesion in sorted(set(lesions))]
    half = 1.96 * np.std(gains, ddof=1) * len(gains) ** .5 / 90  # the standard error of a mean over lesions
    assert (accuracy["hi"] - accuracy["lo"]) / 2 == pytest.approx(half, rel=.2)
    assert pair["disagreements"] == {"reference_only": (right[0] & ~right[1]).sum(),
                                     "model_only": (~right[0] & right[1]).sum()}
    answers = [one["logits"].argmax(1) for one in (teacher, student)]
    assert pair["agreement"]["agreement"]["value"] == pytest.approx((answers[0] == answers[1]).mean())


def test_calibrated_figures_are_compared_with_each_models_own_temperature(study):
    pair, = compared(study / "teacher_big", study / "tiny_alone")["pairs"]
    for name, side in (("teacher_big", "reference"), ("tiny_alone", "model")):
        own = evaluate.evaluate_run(study / name / "seed_0", FAST).result["test"]["nll_calibrated"]
        row = rows(pair)["nll_calibrated"]
        assert [row[f"{side}_{key}"] for key in ("value", "lo", "hi")] == pytest.approx(
            [own[k] for k in ("value", "lo", "hi")]
        )


def test_a_model_against_itself_differs_in_nothing(study, tmp_path):
    for name in "ab":
        for seed in (7, 8):
            make_run(tmp_path / "copy" / name / f"seed_{seed}", seed=seed)
    pair, = compared(tmp_path / "copy")["pairs"]
    for row in pair["rows"]:
        bounds = [row["lo"], row["hi"]]
        assert row["difference"] == 0 and (bounds == [0, 0] or np.isnan(bounds).all()), row["metric"]
        is_binned = row["metric"].removesuffix("_calibrated") in BINNED
        assert np.isnan(row["p"]) if is_binned else row["p"] == 1, row["metric"]
        assert np.isnan(bounds).all() == (is_binned or row["metric"].startswith("rms_ce_debiased")), row["metric"]
    assert pair["agreement"]["agreement"]["value"] == 1
    assert pair["disagreements"] == {"reference_only": 0, "model_only": 0}


def test_the_order_of_images_in_a_file_changes_nothing(study, tmp_path):
    order = np.random.default_rng(0).permutation(90)
    given = arrays_of("test", 90, 8)
    shuffled = {f"test__{key}": given[key][order] for key in ("ids", "labels", "logits", "groups")}
    make_run(tmp_path / "other" / "tiny_alone" / "seed_0", seed=8, **shuffled)
    first, = compared(study / "teacher_big", study / "tiny_alone")["pairs"]
    other, = compared(study / "teacher_big", tmp_path / "other" / "tiny_alone")["pairs"]
    for a, b in zip(first["rows"], other["rows"]):
        assert a["metric"] == b["metric"]
        assert [a[key] for key in ("difference", "lo", "hi")] == pytest.approx(
            [b[key] for key in ("difference", "lo", "hi")], nan_ok=True
        )
    assert first["agreement"] == other["agreement"] and first["disagreements"] == other["disagreements"]


def test_seeds_are_averaged_and_widen_the_interval(study):
    pair, = compared(study / "teacher_big", study / "tiny_kd")["pairs"]
    both = [rows(compared(study / "teacher_big", study / "tiny_kd" / f"seed_{seed}")["pairs"][0]) for seed in (0, 1)]
    for name, row in rows(pair).items():
        assert row["difference"] == pytest.approx(row["model_value"] - row["reference_value"]), name
        if not name.startswith("rms_ce_debiased"):  # of which squares are averaged
            assert row["difference"] == pytest.approx(np.mean([one[name]["difference"] for one in both])), name
    wide, narrow = rows(pair)["nll"], both[0]["nll"]
    assert wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"] and wide["lo"] < wide["difference"] < wide["hi"]
    figures = ", ".join(f"{one['accuracy']['difference']:+.3f}" for one in both)
    assert rows(pair)["accuracy"]["withheld"] == f"two seeds: no interval; {figures}"
    printed = terminal.comparison_table(compared(study))
    assert f" ({figures})" in printed and SEEDS_NOTE in printed
    assert SEEDS_NOTE not in terminal.comparison_table(compared(study / "teacher_big", study / "tiny_alone"))
    assert pair["seeds"] == {"reference": 1, "model": 2}


def test_the_note_on_two_seeds_depends_on_the_figures_and_not_on_the_names(study):
    assert SEEDS_NOTE in terminal.comparison_table(compared(study / "teacher_big", study / "tiny_kd"))  # in full
    (study / "tiny_alone").rename(study / "tiny 2 (0.5, alone)")
    assert SEEDS_NOTE not in terminal.comparison_table(compared(study / "teacher_big", study / "tiny 2 (0.5, alone)"))


def test_the_table_of_a_study_has_the_note_where_a_mean_has_the_figures_of_two_seeds(study):
    def printed(withheld):
        metric = {"value": .5, "mean": .5, "lo": np.nan, "hi": np.nan, "withheld": withheld}
        seeds = {study / "2 (0.5, kd)": {"seeds": [0, 1], "test": dict.fromkeys(terminal.SHORT, metric)}}
        return terminal.study_table({}, seeds)

    assert "0.500 (0.250, 0.750)" in printed("two seeds: no interval; 0.250, 0.750")
    assert SEEDS_NOTE in printed("two seeds: no interval; 0.250, 0.750") and SEEDS_NOTE not in printed("")


def test_equal_seeds_are_matched_and_others_are_not(tmp_path):
    # both models gain about the same from seed 1: matched, the difference has hardly any spread over seeds
    for name, gain in (("a", 0.0), ("b", .2)):
        for seed in (0, 1):
            given = arrays_of("test", 90, 0)
            logits = given["logits"] + (gain + .4 * seed) * np.eye(3)[given["labels"]]
            make_run(tmp_path / "matched" / name / f"seed_{seed}", test__logits=logits)
            make_run(tmp_path / "apart" / name / f"seed_{seed + 10 * (name == 'b')}", test__logits=logits)
    matched, = compared(tmp_path / "matched")["pairs"]
    apart, = compared(tmp_path / "apart")["pairs"]
    matched, apart = rows(matched)["nll"], rows(apart)["nll"]
    assert matched["difference"] == pytest.approx(apart["difference"])
    assert apart["hi"] - apart["lo"] > 2 * (matched["hi"] - matched["lo"])


def test_two_seeds_that_contradict_each_other_tell_next_to_nothing(tmp_path):
    for seed, better in ((0, 4), (1, -4)):
        given = arrays_of("test", 90, 0)
        make_run(tmp_path / "a" / f"seed_{seed}")
        make_run(tmp_path / "b" / f"seed_{seed}", test__logits=given["logits"] + better * np.eye(3)[given["labels"]])
    pair, = compared(tmp_path)["pairs"]
    accuracy = rows(pair)["accuracy"]
    assert accuracy["p"] > .3
    for figure in ("", "model_", "retention_"):
        assert accuracy[f"{figure}withheld"].startswith("two seeds: no interval; ")
        assert np.isnan([accuracy[f"{figure}lo"], accuracy[f"{figure}hi"]]).all()
    assert accuracy["reference_lo"] < accuracy["reference_value"] < accuracy["reference_hi"]  # its seeds are alike
    assert rows(pair)["nll"]["withheld"].startswith("too few errors") and np.isnan(rows(pair)["nll"]["lo"])


def test_one_seed_says_nothing_of_the_method(study, capsys):
    make_run(study / "teacher_big" / "seed_1", seed=9)
    for model, seeds in (("tiny_alone", 1), ("tiny_kd", 2)):
        pair, = compared(study / "teacher_big", study / model)["pairs"]
        assert pair["seeds"] == {"reference": 2, "model": seeds}
        p = np.array([[row["p"], row["p_corrected"]] for row in pair["rows"]])
        assert np.isnan(p).all() if seeds == 1 else not np.isnan(p[[0, 1, 5]]).any()
        assert rows(pair)["accuracy"]["lo"] < rows(pair)["accuracy"]["hi"]  # of these two networks
        evaluate.main(["--compare", str(study / "teacher_big"), str(study / model), "--replicates", "200"])
        printed = capsys.readouterr().out
        assert ("One seed (tiny_alone): says nothing of the method, so no p." in printed) == (seeds == 1)
        assert ("p: two-sided" in printed) == (seeds == 2)
        line = next(line for line in printed.splitlines() if line.startswith("macro F1"))
        assert ("n/a" in line) == (seeds == 1)


def test_differences_of_too_few_lesions_have_no_interval_and_say_why(tmp_path, capsys):
    arrays = arrays_of("test", 90)
    labels = np.where((arrays["labels"] == 1) & (np.arange(90) >= 10), 0, arrays["labels"])
    for name, seed in (("a", 0), ("b", 1)):
        make_run(tmp_path / "study" / name / "seed_0", seed=seed, test__labels=labels)
    evaluate.main(["--compare", str(tmp_path / "study"), "--replicates", "200"])
    printed = capsys.readouterr().out
    table = {row["metric"]: row for row in read_csv(tmp_path / "study" / "comparison.csv")}
    few = len(set(arrays["groups"][labels == 1]))
    for name in ("f1/mel", "recall/mel"):
        row = table[name]
        assert row["withheld"] == f"too few independent images ({few})" and row["difference"] != ""
        assert {row[key] for key in ("lo", "hi", "p", "reference_lo", "model_hi", "retention_lo")} == {""}
        assert f"{float(row['difference']):+.3f} [too few]" in printed
    assert table["ece"]["withheld"] == calibration.BIASED and table["ece"]["lo"] == ""
    assert table["accuracy"]["withheld"] == "" != table["accuracy"]["lo"]


def test_p_values_are_corrected_over_the_tested_pairs_for_each_metric_apart(study):
    make_run(study / "teacher_big" / "seed_1", seed=9)
    for seed in (0, 1):
        teach(make_run(study / "tiny_kd_at" / f"seed_{seed}", seed=5 + seed), "student")
    pairs = compared(study)["pairs"]
    tested = [pair for pair in pairs if min(pair["seeds"].values()) > 1]
    assert (len(pairs), len(tested)) == (5, 2)  # the student alone has one seed
    for name in ("accuracy", "macro_f1", "recall/mel"):
        raw = sorted((rows(pair)[name]["p"], rows(pair)[name]["p_corrected"]) for pair in tested)
        expected, least = [], 0
        for k, (p, _) in enumerate(raw):  # Holm, by hand
            least = max(least, min(1, p * (2 - k)))
            expected.append(least)
        assert [corrected for _, corrected in raw] == pytest.approx(expected)


def test_the_table_of_a_study_is_written_whole_and_can_be_read(study, capsys):
    evaluate.main(["--compare", str(study), "--replicates", "200"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 120
    assert "less teacher_big" in printed and "less tiny_alone" in printed and "tiny_kd, 2 seeds" in printed
    assert "One seed (teacher_big, tiny_alone): says nothing of the method, so no p." in printed
    table = read_csv(study / "comparison.csv", compare.COLUMNS)
    kd_rows = {row["metric"]: row for row in table if (row["reference"], row["model"]) == ("teacher_big", "tiny_kd")}
    names = {"accuracy", "ece_calibrated", "f1/mel", "recall/mel", "agreement", "wrong_to_right", "only_one_right"}
    assert names <= set(kd_rows)
    found = rows(compared(study)["pairs"][1])
    assert float(kd_rows["macro_f1"]["difference"]) == pytest.approx(found["macro_f1"]["difference"], rel=1e-5)
    assert (kd_rows["macro_f1"]["reference_seeds"], kd_rows["macro_f1"]["model_seeds"]) == ("1", "2")
    counts = compared(study)["pairs"][1]["disagreements"]
    assert [float(kd_rows["only_one_right"][f"{side}_value"]) for side in ("reference", "model")] == [
        counts["reference_only"], counts["model_only"]]
    assert "nan" not in json.dumps(table)


def test_part_of_a_study_does_not_replace_the_table_of_the_whole(study, tmp_path, capsys):
    pair = [str(study / name) for name in ("tiny_alone", "tiny_kd")]
    evaluate.main(["--compare", *pair, "--replicates", "200"])
    shown = capsys.readouterr().out
    assert not (study / "comparison.csv").exists() and "--out DIR" in shown
    assert max(map(len, shown.splitlines())) <= 120 and "relative gap" in shown and "Right alone: " in shown
    evaluate.main(["--compare", *pair, "--out", str(tmp_path / "out"), "--replicates", "200"])
    assert {row["model"] for row in read_csv(tmp_path / "out" / "comparison.csv")} == {"tiny_kd"}


def test_predictions_of_other_systems_are_compared_with_runs_and_with_each_other(study, tmp_path, capsys):
    theirs = arrays_of("test", 90, 8)
    path = tmp_path / "theirs.npz"
    write_npz(path, y_true=theirs["labels"], y_prob=metrics.softmax(theirs["logits"]), ids=theirs["ids"],
                   class_names=theirs["class_names"])
    pair, = compared(study / "teacher_big", path)["pairs"]
    own, = compared(study / "teacher_big", study / "tiny_alone")["pairs"]
    shared = [row for row in own["rows"] if not row["metric"].endswith("_calibrated")]  # no validation, no temperature
    for a, b in zip(shared, pair["rows"]):
        assert a["metric"] == b["metric"] and (a["lo"], a["hi"]) == pytest.approx(
            (b["lo"], b["hi"]), nan_ok=True
        )  # lesions of the run
    bare = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file, seed in zip(bare, (0, 1)):
        given = arrays_of("test", 90, seed)
        write_npz(file, labels=given["labels"], logits=given["logits"])
    evaluate.main(["--compare", *map(str, bare), "--replicates", "200"])
    assert "90 images, taken as independent" in capsys.readouterr().out


@pytest.mark.parametrize("changes, words", [
    ({"ids": np.array([f"other{i}" for i in range(90)])}, "only 0 of 90 images in common"),
    ({"labels": np.arange(90) % 3}, "different labels of the same images"),
    ({"groups": np.array([f"lesion{i}" for i in range(90)])}, "different groups of the same images"),
    ({"class_names": np.array(["nv", "mel", "bcc"])}, "different classes: nv, mel, a class.*; nv, mel, bcc"),
    ({key: value[:80] for key, value in arrays_of("test", 90).items() if key != "class_names"}, "90 and 80 images"),
])
def test_models_of_different_test_sets_are_not_compared(study, tmp_path, changes, words):
    changes = {f"{split}__{key}": value for key, value in changes.items()
               for split in (["val", "test"] if key == "class_names" else ["test"])}
    make_run(tmp_path / "study2" / "tiny_kd" / "seed_0", **changes)
    with pytest.raises(UserError, match=f"tiny_kd/seed_0 cannot be compared with .*teacher_big: {words}"):
        evaluate.main(["--compare", str(study / "teacher_big"), str(tmp_path / "study2")])


def test_one_model_is_not_compared(study):
    with pytest.raises(UserError, match="there is tiny_kd alone"):
        evaluate.main(["--compare", str(study / "tiny_kd"), str(study / "tiny_kd" / "seed_0")])
