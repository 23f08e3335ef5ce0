"""The evaluation protocol: choices depend on validation alone, and the figures on test are those of a plain loop."""

import json
import re

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import evaluate
from kd import calibration, metrics
from kd.errors import UserError
from kd.evaluation import protocol, terminal
from kd.files import read_json, write_csv, write_npz
from kd.predictions import Predictions, of_files
from kd.run_folder import Run
from test_evaluate import NAMES, arrays_of, make_run, save

FAST = protocol.Settings(replicates=100)


def made(split, n, seed=0, **changes):
    arrays = arrays_of(split, n, seed)
    logits = arrays["logits"].astype(np.float64)
    arrays.update(logits=logits, probabilities=metrics.softmax(logits))
    return Predictions(**{**arrays, "class_names": NAMES, **changes})


def choices(result):
    points = [{key: value for key, value in point.items() if key not in ("test", "shortfall")}
              for point in result["operating_points"]]
    fit = {key: value for key, value in result["calibration"].items() if key not in ("reliability", "consistency")}
    return json.dumps([points, fit, result["val"], result["conventions"]["majority_class"]])


def values_of(figures):
    """{NAME: value} of {NAME: METRIC}."""
    return {name: metric["value"] for name, metric in figures.items()}


# ---- chosen on validation, tested once


def test_selection_never_sees_the_test_split():
    val, test = made("val", 80), made("test", 90)
    first = protocol.evaluate(val, test, FAST).result
    shuffled = np.random.default_rng(1).permutation(test.labels)
    other = protocol.evaluate(val, made("test", 90, labels=shuffled), FAST).result
    assert choices(other) == choices(first)
    assert other["operating_points"][1]["test"] != first["operating_points"][1]["test"]
    assert other["test"]["nll"]["value"] > first["test"]["nll"]["value"] + .1
    assert choices(protocol.evaluate(made("val", 80, seed=5), test, FAST).result) != choices(first)


def test_a_threshold_keeps_its_promise_with_the_stated_assurance_and_is_compared_with_it_on_test():
    val, test = made("val", 400), made("test", 300)
    settings = protocol.Settings(replicates=100, targets=["mel"], sensitivity=.9, assurance=.8)
    point, *rest = protocol.evaluate(val, test, settings).result["operating_points"]
    assert [other["kind"] for other in rest] == ["macro_f1", "prior", "abstention"]  # one target, one threshold
    assert (point["name"], point["class"], point["chosen_on"]) == ("mel at sensitivity 0.9", "mel", "val")
    assert (point["promised"], point["asked"], point["assurance"]) == (.9, .9, .8)
    scores = {}  # of each lesion of the class: those of its images
    for p, label, group in zip(val.probabilities, val.labels, val.groups):
        if label == 1:
            scores.setdefault(group, []).append(p[1])
    missed = sum(np.mean(np.array(of_lesion) < point["threshold"]) for of_lesion in scores.values())
    # a population with a sensitivity below .9 would miss so few lesions in at most 20% of such validation sets
    assert binom.cdf(missed, len(scores), .1) <= .2 < binom.cdf(missed + 2, len(scores), .1) and missed > 3
    assert point["val"]["sensitivity"] == np.mean(val.probabilities[val.labels == 1, 1] >= point["threshold"]) > .9
    tp = fp = fn = tn = 0
    for p, label in zip(test.probabilities, test.labels):
        yes = p[1] >= point["threshold"]
        tp, fp = tp + (yes and label == 1), fp + (yes and label != 1)
        fn, tn = fn + (not yes and label == 1), tn + (not yes and label != 1)
    assert values_of(point["test"]) == pytest.approx({
        "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "npv": tn / (tn + fn)})
    shortfall, sensitivity = point["shortfall"], point["test"]["sensitivity"]
    expected = [0.9 - sensitivity[key] for key in ("value", "hi", "lo")]
    assert [shortfall[key] for key in ("value", "lo", "hi")] == pytest.approx(expected)
    assert sensitivity["lo"] < sensitivity["value"] < sensitivity["hi"]


def test_more_assurance_gives_lower_thresholds_and_fewer_answers(tmp_path):
    run, points = make_run(tmp_path / "run", val_size=400), {}
    for assurance in (.5, .9, .99):
        evaluate.main([str(run), "--replicates", "100", "--risk", "0.15", "--assurance", str(assurance)])
        points[assurance] = read_json(run / "metrics.json")["operating_points"]
    for low, middle, high in zip(*points.values()):
        if low["kind"] == "sensitivity":
            assert high["threshold"] < middle["threshold"] < low["threshold"]
        elif low["kind"] == "abstention":
            assert high["threshold"] > middle["threshold"] > low["threshold"]
        else:
            assert low == middle == high
            continue
        assert [point["assurance"] for point in (low, middle, high)] == [.5, .9, .99]


def test_few_positives_promise_less_than_was_asked_and_the_table_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "study" / "tiny_kd" / "seed_0")  # four lesions of a class promise .1 ** (1 / 4)
    evaluate.main([str(run), "--replicates", "100"])
    point = read_json(run / "metrics.json")["operating_points"][2]
    lesions = len({g for g, k in zip(arrays_of("val", 40)["groups"], arrays_of("val", 40)["labels"]) if k == 2})
    assert point["promised"] == pytest.approx(.1 ** (1 / lesions)) and point["asked"] == .95
    printed = capsys.readouterr().out
    assert "an assurance of 0.9; 0.95 was asked for.\nLess is promised where validation has too few" in printed


def test_multipliers_of_the_classes_are_applied_as_stated():
    val, test = made("val", 200), made("test", 300)
    result = protocol.evaluate(val, test, FAST).result
    macro, prior = [p for p in result["operating_points"] if p["kind"] in ("macro_f1", "prior")]
    for point in (macro, prior):
        assert list(point["threshold"]) == NAMES
        answers = (test.probabilities * list(point["threshold"].values())).argmax(1)
        assert values_of(point["test"]) == pytest.approx({
            "accuracy": accuracy_score(test.labels, answers),
            "macro_f1": f1_score(test.labels, answers, average="macro"),
            "balanced_accuracy": balanced_accuracy_score(test.labels, answers)})
    assert macro["val"]["macro_f1"] >= result["val"]["macro_f1"]["value"]
    shares = np.bincount(val.labels) / len(val.labels)
    np.testing.assert_allclose(list(prior["threshold"].values()) * shares, np.full(3, 1 / 3))


def test_abstention_answers_above_the_confidence_that_validation_gave():
    val, test = made("val", 200), made("test", 300)
    point = protocol.evaluate(val, test, protocol.Settings(replicates=100, risk=.2)).result["operating_points"][-1]
    for part, values in ((val, point["val"]), (test, values_of(point["test"]))):
        answered = part.probabilities.max(1) >= point["threshold"]
        wrong = part.probabilities.argmax(1) != part.labels
        assert values == pytest.approx({"coverage": answered.mean(), "risk": wrong[answered].mean()})
    assert point["val"]["risk"] <= 0.2
    assert point["shortfall"]["value"] == pytest.approx(point["test"]["risk"]["value"] - 0.2)


def test_the_risk_coverage_curve_ends_at_the_error_rate():
    result = protocol.evaluate(None, made("test", 900), FAST).result
    curve = result["risk_coverage"]
    assert len(curve["coverage"]) == len(curve["risk"]) == 101 and curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(1 - result["test"]["accuracy"]["value"])
    assert len(protocol.evaluate(None, made("test", 7), FAST).result["risk_coverage"]["risk"]) == 7


def test_a_class_that_validation_lacks_gets_no_threshold(tmp_path, capsys):
    val = arrays_of("val", 40)["labels"]
    run = make_run(tmp_path / "study" / "tiny_kd" / "seed_0", val__labels=np.where(val == 2, 0, val))
    point = next(p for p in evaluate.evaluate_run(run, FAST).result["operating_points"] if p["class"] == NAMES[2])
    assert all(np.isnan(figure["value"]) for figure in (*point["test"].values(), point["shortfall"]))
    evaluate.main([str(run), "--replicates", "100"])
    written = read_json(run / "metrics.json")["operating_points"][2]
    assert written["threshold"] is None and written["promised"] == 0  # nothing
    assert Run(run).metrics["operating_points"][2] == written
    table = capsys.readouterr().out.split("\n\nclass  threshold")[1].splitlines()
    assert table[3].split() == ["2", "n/a", "0.00", *["n/a"] * 4]


def test_many_classes_get_a_threshold_only_when_asked_for():
    rng = np.random.default_rng(0)
    names = [f"c{k}" for k in range(30)]

    def many(n):
        logits = rng.normal(size=(n, 30))
        return Predictions(np.arange(n) % 30, logits, metrics.softmax(logits), None, None, names)

    val, test = many(120), many(90)
    kinds = [p["kind"] for p in protocol.evaluate(val, test, FAST).result["operating_points"]]
    assert kinds == ["macro_f1", "prior", "abstention"]
    settings = protocol.Settings(replicates=100, targets=["c7"])
    assert protocol.evaluate(val, test, settings).result["operating_points"][0]["class"] == "c7"


@pytest.mark.parametrize("target, hint", [("mell", "did you mean mel?"), ("zzzzz", "The classes are nv, mel")])
def test_an_unknown_target_is_named(tmp_path, target, hint):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=f"--target {target}: no such class") as caught:
        evaluate.main([str(run), "--target", target])
    assert caught.value.hint.startswith(hint) and not (run / "metrics.json").exists()


# ---- calibration


def test_temperature_is_fitted_on_validation_and_evaluated_on_test():
    val, test = made("val", 300), made("test", 300)
    for part in (val, test):
        part.logits = 4 * part.logits  # overconfident
        part.probabilities = metrics.softmax(part.logits)
    result = protocol.evaluate(val, test, FAST).result
    calibration, figures = result["calibration"], result["test"]
    calibrated = metrics.softmax(test.logits / calibration["temperature"])
    assert calibration["temperature"] > 2 and calibration["nll_val_after"] < calibration["nll_val_before"]
    assert figures["nll_calibrated"]["value"] == pytest.approx(metrics.nll(test.labels, calibrated))
    assert figures["ece_calibrated"]["value"] < figures["ece"]["value"]
    assert sum(row["count"] for row in calibration["reliability"]["calibrated"]) == 300
    assert calibration["reliability"]["raw"][-1]["count"] > calibration["reliability"]["calibrated"][-1]["count"]


def test_a_temperature_that_cannot_be_fitted_is_an_error_of_the_result_not_of_the_command(tmp_path, capsys):
    val = arrays_of("val", 40)
    run = make_run(tmp_path / "study" / "tiny_kd" / "seed_0", val__logits=np.eye(3, dtype="f4")[val["labels"]] * 9 - 3)
    evaluate.main([str(run), "--replicates", "100"])
    printed = capsys.readouterr().out
    result = read_json(run / "metrics.json")
    assert result["calibration"]["temperature"] is None and result["calibration"]["reliability"]["calibrated"] is None
    assert result["test"]["ece_calibrated"] == {"value": None, "lo": None, "hi": None}
    assert result["test"]["ece"]["value"] > 0 and len(result["operating_points"]) == 6
    finding, = [finding for finding in result["audit"] if finding["severity"] == "error"]
    assert finding["rule"] == "temperature-at-bound" and "0.05" in finding["saw"]
    assert "after temperature" not in printed and "error: temperature-at-bound" in printed
    make_run(tmp_path / "study" / "tiny_kd" / "seed_1", seed=1)
    evaluate.main([str(tmp_path), "--replicates", "100"])
    assert "tiny_kd/seed_0: temperature-at-bound: " in capsys.readouterr().out  # in the table of several runs, too


# ---- predictions of other systems, with a validation file


def files(folder, drop=(), **changes):
    paths = []
    for split, n in (("val", 80), ("test", 90)):
        arrays = arrays_of(split, n)
        arrays.update({key[len(split) + 2:]: value for key, value in changes.items() if key.startswith(split)})
        write_npz(folder / f"{split}.npz", **{key: value for key, value in arrays.items() if key not in drop})
        paths.append(str(folder / f"{split}.npz"))
    return paths


def probabilities_of_both():
    """Arrays y_prob, as changes of files()."""
    return {f"{split}__y_prob": metrics.softmax(arrays_of(split, n)["logits"])
            for split, n in (("val", 80), ("test", 90))}


def test_a_validation_file_gives_all_that_a_run_gives(tmp_path, capsys):
    val, test = files(tmp_path, drop=["groups"])
    parts = [arrays_of("val", 80), arrays_of("test", 90)]
    rows = [{"id": i, "group": g} for arrays in parts for i, g in zip(arrays["ids"], arrays["groups"])]
    write_csv(tmp_path / "groups.csv", rows)
    evaluate.main([test, "--val", val, "--groups", str(tmp_path / "groups.csv"), "--out", str(tmp_path / "out"),
                   "--replicates", "100"])
    assert "after temperature" in capsys.readouterr().out
    theirs = read_json(tmp_path / "out" / "metrics.json")
    run = make_run(tmp_path / "run", **{f"val__{key}": value for key, value in parts[0].items()})
    evaluate.evaluate_run(run, FAST)
    assert {**theirs, "audit": 0} == {**read_json(run / "metrics.json"), "audit": 0}


def test_probabilities_are_calibrated_as_the_logits_that_they_come_from(tmp_path):
    val, test = files(tmp_path / "a")
    of_logits = protocol.evaluate(*of_files(test, val), FAST).result
    soft = probabilities_of_both()
    val, test = files(tmp_path / "b", drop=["logits"], **soft)
    result = protocol.evaluate(*of_files(test, val), FAST).result
    assert result["calibration"]["temperature"] == pytest.approx(of_logits["calibration"]["temperature"])
    for name in ("nll_calibrated", "ece_calibrated", "aurc_calibrated"):
        assert result["test"][name]["value"] == pytest.approx(of_logits["test"][name]["value"])


def test_a_probability_of_0_does_not_stop_the_calibration(tmp_path):
    soft = probabilities_of_both()
    soft["val__y_prob"][:3] = [0, 0, 1]
    val, test = files(tmp_path, drop=["logits"], **soft)
    result = protocol.evaluate(*of_files(test, val), FAST).result
    assert np.isfinite(result["test"]["nll"]["value"]) and result["calibration"]["nll_val_before"] < 20


TEST = arrays_of("test", 90)
BAD = {
    "same file": (
        {"val__labels": TEST["labels"], "val__logits": TEST["logits"], "val__ids": None, "val__groups": None},
        "hold the same predictions",
    ),
    "shared ids": (
        {"val__ids": np.array(["test7", *map(str, range(79))])},
        "validation and test share 1 images: test7",
    ),
    "shared groups": ({"val__groups": np.array(["test-lesion7"] * 80)}, "validation and test share 1 groups"),
    "classes": (
        {"val__logits": np.zeros((80, 4)), "val__class_names": np.array(list("abcd"))},
        "has 4 classes, .* has 3",
    ),
    "names": (
        {"val__class_names": np.array(["nv", "mel", "bcc"])},
        "different class names: nv, mel, bcc; nv, mel, a class",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_fit_together_are_one_clear_line(tmp_path, name):
    changes, words = BAD[name]
    none = [key[5:] for key, value in changes.items() if value is None]
    val, test = files(tmp_path, drop=none, **{key: value for key, value in changes.items() if value is not None})
    with pytest.raises(UserError, match=words) as caught:
        evaluate.main([test, "--val", val, "--out", str(tmp_path / "out")])
    assert "\n" not in caught.value.message and not (tmp_path / "out").exists()


def test_probabilities_under_the_name_of_logits_are_probabilities_and_this_is_said(tmp_path, capsys):
    probabilities = metrics.softmax(arrays_of("test", 90)["logits"])
    path = save(tmp_path / "soft.npz", drop=["y_prob"], logits=probabilities)
    evaluate.main([str(path), "--replicates", "100", "--out", str(tmp_path / "out")])
    note = "logits are taken for probabilities, since they sum to 1 in each image"
    assert note in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "metrics.json")["conventions"]["note"] == note
    assert (of_files(path)[1].probabilities == probabilities).all()


# ---- several seeds


def study(tmp_path, **changes):
    return [make_run(tmp_path / "study" / "tiny_kd" / f"seed_{seed}", seed=seed, **changes) for seed in (0, 1, 2)]


def test_seeds_are_summed_up_where_all_of_them_were_evaluated(tmp_path, capsys):
    seeds = study(tmp_path)
    evaluate.main([*map(str, seeds[:2]), "--replicates", "100"])
    assert not (seeds[0].parent / "seeds.json").exists()  # a third has not been looked at
    evaluate.main([str(tmp_path), "--replicates", "100"])
    content = read_json(seeds[0].parent / "seeds.json")
    assert content["seeds"] == ["0", "1", "2"]
    of_runs = [read_json(seed / "metrics.json")["test"] for seed in seeds]
    assert set(content["test"]) == set(of_runs[0])
    for name in ("accuracy", "macro_f1", "ece_calibrated", "f1/mel"):
        values = [figures[name]["value"] for figures in of_runs]
        metric = content["test"][name]
        assert metric["values"] == pytest.approx(values) and metric["mean"] == pytest.approx(np.mean(values))
        assert metric["sd"] == pytest.approx(np.std(values, ddof=1))
        if name == "ece_calibrated":
            assert metric["lo"] is None and metric["withheld"] == calibration.BIASED
        else:
            assert metric["lo"] < metric["mean"] < metric["hi"]
    wide, narrow = content["test"]["accuracy"], of_runs[0]["accuracy"]
    assert wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"]  # seeds as well as images
    assert f"tiny_kd, 3 seeds    {wide['mean']:.3f} [" in capsys.readouterr().out


def test_intervals_over_few_seeds_stay_within_what_a_metric_can_be(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "study" / "tiny_kd" / f"seed_{seed}", seed=seed)
    evaluate.main([str(tmp_path), "--replicates", "100"])
    for name, metric in read_json(tmp_path / "study" / "tiny_kd" / "seeds.json")["test"].items():
        assert metric["lo"] is None or 0 <= metric["lo"] <= metric["mean"] <= metric["hi"], name
        assert metric["hi"] is None or metric["hi"] <= 1 or name.startswith(("nll", "brier", "aurc")), name


def test_seeds_of_different_test_sets_are_not_summed_up(tmp_path):
    seeds = study(tmp_path)
    make_run(seeds[2], seed=2, test__ids=np.array([f"other{i}" for i in range(90)]))
    evaluate.main([str(tmp_path), "--replicates", "100"])
    assert not (seeds[0].parent / "seeds.json").exists()


# ---- the audit


def test_the_audit_is_printed_alone_and_never_fails_the_command(tmp_path, capsys):
    seeds = study(tmp_path)
    make_run(seeds[1], seed=0)  # one run under two names
    evaluate.main(["--audit", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "error: same-predictions" in printed and all(f"  {key}: " in printed for key in ("saw", "why", "do"))
    assert max(map(len, printed.splitlines())) <= 110
    assert not list(tmp_path.rglob("metrics.json"))


# ---- too little to choose on, or to measure


def test_with_validation_images_of_one_class_nothing_is_fitted_and_the_table_says_so(tmp_path, capsys):
    val = arrays_of("val", 60)
    write_npz(tmp_path / "t.npz", **arrays_of("test", 90))
    write_npz(tmp_path / "v.npz", **{name: array if name == "class_names" else array[val["labels"] == 0]
                                     for name, array in val.items()})
    evaluate.main([str(tmp_path / "t.npz"), "--val", str(tmp_path / "v.npz"), "--replicates", "100", "--out",
                   str(tmp_path)])
    printed, written = capsys.readouterr().out, read_json(tmp_path / "metrics.json")
    assert "No temperature is fitted: all validation images are of one class." in printed
    assert "No multipliers and no prior correction: all validation images are of one class." in printed
    assert {point["kind"] for point in written["operating_points"]} == {"sensitivity", "abstention"}
    assert written["calibration"]["temperature"] is None


def test_counts_of_one_are_singular_and_the_legend_names_right_answers_where_they_are_too_few():
    def answered(rows, shift):
        labels = np.arange(60)[rows] % 3
        logits = 9 * np.eye(3)[(labels + shift) % 3]
        return made("test", 60, labels=labels, logits=logits, probabilities=metrics.softmax(logits),
                    **{name: arrays_of("test", 60)[name][rows] for name in ("ids", "groups")})

    wrong = protocol.evaluate(None, answered(slice(60), 1), FAST).result
    text = terminal.run_table("t.npz", wrong)
    assert "errors or right answers, which is too few for an interval" in text and "60 test images" in text
    one = protocol.evaluate(None, answered(slice(1), 0), FAST).result
    text = terminal.run_table("t.npz", one)
    assert "1 test image, 3 classes" in text and "over 1 group (lesions, patients)" in text
    assert re.search(r"debiased calibration error +n/a", text)
