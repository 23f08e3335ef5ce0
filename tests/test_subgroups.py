"""Subgroups: bands, their figures, and gaps that chance does not make."""

import numpy as np
import pytest

import evaluate
from kd import bootstrap, metrics, predictions
from kd.errors import UserError
from kd.evaluation import protocol, subgroups
from kd.files import read_json, write_csv, write_npz

SETTINGS = protocol.Settings(replicates=200)


def of_test(n=400, seed=0, harm=0.0):
    """Predictions; of the images whose number is odd, the share `harm` is answered wrongly."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[.6, .25, .15])
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += 2.5
    harmed = (np.arange(n) % 2 == 1) & (rng.random(n) < harm)
    logits[harmed] = np.roll(logits[harmed], 1, 1)
    return predictions.Predictions(labels=labels, logits=logits, probabilities=metrics.softmax(logits),
                                   ids=np.array([f"i{k}" for k in range(n)]), groups=None,
                                   class_names=["a", "b", "c"])


def test_numbers_become_bands_and_what_is_not_known_stays_apart():
    ages = [str(5 * k) for k in range(18)] + ["", "unknown"]
    named = subgroups.bands(ages)
    assert set(named) == {"0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 99", "unknown"}
    assert named[3] == "0 to 19" and named[4] == "20 to 39"
    assert list(subgroups.bands(["1", "2", "1"])) == ["1", "2", "1"]  # few numbers are names
    assert list(subgroups.bands(["face", " back", "NaN"])) == ["face", "back", "unknown"]
    for value, band in zip(np.linspace(0, 1, 30), subgroups.bands([str(v) for v in np.linspace(0, 1, 30)])):
        low, high = map(float, band.split(" to "))
        assert low - 1e-9 <= value <= high + 1e-9


def test_a_subgroup_has_the_figures_of_its_images():
    test = of_test()
    values = np.where(np.arange(400) % 2, "odd", "even")
    content = subgroups.evaluate(test, {"parity": values}, [], SETTINGS)["parity"]
    assert [part["name"] for part in content["subgroups"]] == ["even", "odd"]
    for part in content["subgroups"]:
        rows = values == part["name"]
        answers = test.probabilities[rows].argmax(1)
        assert part["images"] == part["groups"] == rows.sum()
        assert part["test"]["accuracy"]["value"] == pytest.approx((answers == test.labels[rows]).mean())
        assert part["test"]["accuracy"]["lo"] < part["test"]["accuracy"]["value"] < part["test"]["accuracy"]["hi"]


def test_replicates_of_two_subgroups_are_independent():
    test = of_test()
    drawn = []
    for seed in (1, 2):
        rows = np.arange(200) + 200 * (seed - 1)
        draws = bootstrap.Draws(test.labels[rows], np.arange(200), 3, 1000, seed)
        drawn.append(bootstrap.overall(test.probabilities[rows].argmax(1), draws)["accuracy"].drawn)
    assert abs(np.corrcoef(*drawn)[0, 1]) < .12


def test_a_harmed_subgroup_is_found_and_chance_is_not():
    values = np.where(np.arange(400) % 2, "odd", "even")
    gaps = subgroups.evaluate(of_test(harm=.5), {"parity": values}, [], SETTINGS)["parity"]["gaps"]
    gap = next(gap for gap in gaps if gap["metric"] == "accuracy")
    assert (gap["highest"], gap["lowest"]) == ("even", "odd") and gap["p_corrected"] < .001 and gap["lo"] > 0
    small = 0
    for seed in range(40):
        values = np.random.default_rng(seed).choice(list("pqrs"), 400)
        gaps = subgroups.evaluate(of_test(seed=seed), {"x": values}, [], SETTINGS)["x"]["gaps"]
        gap = next(gap for gap in gaps if gap["metric"] == "accuracy")
        assert gap["gaps"] == 6
        small += gap["p_corrected"] < .05
    assert small <= 6  # of 40; 2 expected


def test_subgroups_of_few_images_have_values_and_no_intervals():
    values = np.array(["rare"] * 3 + ["common"] * 397)
    content = subgroups.evaluate(of_test(), {"x": values}, [], SETTINGS)["x"]
    rare = next(part for part in content["subgroups"] if part["name"] == "rare")
    assert rare["test"]["accuracy"]["withheld"] == "too few independent images (3)" and content["gaps"] == []


@pytest.fixture
def files(tmp_path):
    test = of_test()
    write_npz(tmp_path / "t.npz", y_true=test.labels, logits=test.logits, ids=test.ids, class_names=test.class_names)
    val = of_test(seed=1)
    write_npz(tmp_path / "v.npz", y_true=val.labels, logits=val.logits, ids=np.char.add("v", val.ids),
              class_names=val.class_names)
    write_csv(tmp_path / "t.csv", [{"image": f"i{k}", "sex": "mf"[k % 2], "age": k % 90} for k in range(500)])
    return tmp_path


def test_evaluate_writes_and_prints_subgroups(files, capsys):
    evaluate.main([str(files / "t.npz"), "--val", str(files / "v.npz"), "--by", "sex", "--by", "age", "--table",
                   str(files / "t.csv"), "--out", str(files / "out"), "--replicates", "200"])
    text = capsys.readouterr().out
    assert "largest gap in accuracy" in text and "20 to 39" in text
    content = read_json(files / "out" / "metrics.json")["subgroups"]
    assert [part["name"] for part in content["sex"]["subgroups"]] == ["f", "m"]
    assert sum(part["images"] for part in content["age"]["subgroups"]) == 400
    assert "sensitivity/a" in content["sex"]["subgroups"][0]["test"]


def test_a_predictions_file_needs_a_table_and_ids(files):
    with pytest.raises(UserError) as raised:
        evaluate.main([str(files / "t.npz"), "--by", "sex"])
    assert "--by needs a table" in raised.value.message
    write_npz(files / "bare.npz", y_true=of_test().labels, logits=of_test().logits)
    with pytest.raises(UserError) as raised:
        evaluate.main([str(files / "bare.npz"), "--by", "sex", "--table", str(files / "t.csv")])
    assert "these predictions have none" in raised.value.message


@pytest.mark.parametrize("change, words", [
    (["--by", "sexx"], "no such column"), (["--by", "sex", "--table", "lost.csv"], "no such file"),
    ([], "--table holds the columns of --by"), (["--by", "sex", "--compare"], "--by does not go with --compare")])
def test_a_column_or_table_that_is_not_there_is_named(files, change, words):
    command = [str(files / "t.npz"), "--table", str(files / "t.csv"), *change]
    with pytest.raises(UserError) as raised:
        evaluate.main(command)
    assert words in raised.value.message


def test_a_table_without_some_of_the_images_is_refused(files):
    write_csv(files / "short.csv", [{"image": f"i{k}", "sex": "m"} for k in range(399)])
    with pytest.raises(UserError) as raised:
        evaluate.main([str(files / "t.npz"), "--by", "sex", "--table", str(files / "short.csv")])
    assert "lacks 1 of the 400 test images" in raised.value.message


# ---- tables as people have them


def columns_of(files, name="x.csv", by=("sex",)):
    return subgroups.read_columns(files / name, of_test(), list(by))


def table(files, rows, separator=",", name="x.csv"):
    (files / name).write_text("\n".join(separator.join(map(str, row)) for row in rows))


ROWS = [[f"i{k}", "mf"[k % 2]] for k in range(400)]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("cell", ["{}", "{}.jpg", "images/{}.PNG", "c:\\data\\{}"])
def test_images_are_found_by_ids_with_folders_and_suffix_in_a_table_of_any_separator(files, separator, cell):
    table(files, [["image", "sex"], *([cell.format(i), sex] for i, sex in ROWS)], separator)
    assert columns_of(files)["sex"].tolist() == ["m", "f"] * 200


def test_a_table_says_one_thing_of_each_image(files):
    table(files, [["image", "sex"], *ROWS, *ROWS])
    assert columns_of(files)["sex"][0] == "m"
    table(files, [["image", "sex"], *ROWS, ["i7", "m"], ["i8", "f"]])
    with pytest.raises(UserError, match="has several rows, which differ in sex, of 2 images: i7, i8"):
        columns_of(files)
    table(files, [["image", "other", "sex"], *([i, f"i{399 - k}", sex] for k, (i, sex) in enumerate(ROWS))])
    with pytest.raises(UserError, match="has the ids in image, other, which give other sex"):
        columns_of(files)
    table(files, [["image", "again", "sex"], *([i, i, sex] for i, sex in ROWS)])
    assert columns_of(files)["sex"][1] == "f"


@pytest.mark.parametrize("text, words", [
    ("image,sex\n", "has no rows"), ("", "has no rows"), ("image,sex\ni0\n", "1 row shorter than its header"),
    ("image,sex\nx0,m\n", "lacks 400 of the 400 test images")])
def test_tables_that_cannot_be_used_are_named(files, text, words):
    (files / "x.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        columns_of(files)


def test_a_column_with_many_values_is_refused_before_anything_is_computed(files):
    table(files, [["image", "sex"], *([i, f"patient {k}"] for k, (i, _) in enumerate(ROWS))])
    with pytest.raises(UserError, match="--by sex: it has 400 different values, and at most 30 subgroups"):
        columns_of(files)


def test_spellings_are_taken_together_and_words_among_numbers_are_unknown(capsys):
    assert subgroups.bands(["male", "Male", "male", "?", "-", "female"], "--by sex").tolist() == [
        "male", "male", "male", "unknown", "unknown", "female"]
    assert "note: --by sex: Male, male are taken for one subgroup" in capsys.readouterr().out
    named = subgroups.bands([str(k) for k in range(60)] + ["old", "inf"], "--by age")
    assert set(named) == {"0 to 19", "20 to 39", "40 to 59", "unknown"} and named[-1] == named[-2] == "unknown"
    assert "note: --by age: not a number, and so unknown: inf, old (2 values)" in capsys.readouterr().out


@pytest.mark.parametrize("values", [np.arange(123456001, 123456041), 365110.1682 + np.arange(40) * .0018,
                                    np.arange(40) / 20, np.arange(20200101, 20200141), -np.arange(40) * 1e-7])
def test_each_number_is_in_its_band_and_bands_have_names_of_their_own(values):
    named = subgroups.bands([repr(float(value)) for value in values])
    edges = [tuple(map(float, name.split(" to "))) for name in named]
    assert 4 <= len(set(named)) <= 12
    assert all(low <= value + 1e-12 and value <= high + 1e-12 for value, (low, high) in zip(values.tolist(), edges))
    assert len(set(edges)) == len(set(named))


def test_bands_begin_at_their_edge():
    named = subgroups.bands([f"{k / 20:.2f}" for k in range(20)])  # 0.6 / 0.2 is a little less than 3
    assert named.tolist() == [f"{k // 4 / 5:.1f} to {(k // 4 + 1) / 5:.1f}" for k in range(20)]
    with pytest.raises(UserError, match="bands cannot be made of numbers from -1e.308 to 1e.308"):
        subgroups.bands([str(v) for v in (*range(20), 1e308, -1e308)])


def test_a_small_subgroup_without_errors_is_not_a_gap():
    """Eight of eight right beside 120 of 150: with equal accuracies one such pair in twenty may be called a gap."""
    rng, small = np.random.default_rng(0), 0
    for _ in range(60):
        estimates = []
        for seed, n in enumerate((8, 150)):
            labels = rng.choice(3, n, p=[.6, .25, .15])
            answers = np.where(rng.random(n) < .8, labels, (labels + 1) % 3)
            draws = bootstrap.Draws(labels, np.arange(n), 3, 300, seed)
            estimates.append(bootstrap.overall(answers, draws)["accuracy"])
        small += estimates[0].gap_p(estimates[1]) < .05
    assert small <= 8  # 3 expected, by differences of variances 12


def test_evaluating_again_says_which_subgroups_are_gone(files, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "columns_of", lambda folder: ("sex", "age"))
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *args: (_ for _ in ()).throw(UserError("stop")))
    monkeypatch.setattr(evaluate.runs, "find", lambda path: [files])
    with pytest.raises(UserError, match="stop"):
        evaluate.main([str(files), "--by", "sex", "--table", "t.csv"])
    assert "note: subgroups by age are in the former metrics.json" in capsys.readouterr().out


def test_a_number_is_one_subgroup_however_it_is_spelled(capsys):
    assert set(subgroups.bands(["1", "1.0", "1.00", "2", "02", "2"], "--by grade")) == {"1", "2"}
    assert "note: --by grade: 1, 1.0, 1.00 are taken for one subgroup" in capsys.readouterr().out
    assert set(subgroups.bands(["-0.0", *map(str, range(1, 40))])) == {f"{k} to {k + 9}" for k in range(0, 40, 10)}


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-12, 1e12, 1e200])
def test_bands_of_tiny_and_of_huge_numbers_have_short_names_or_are_refused(scale):
    values = [repr(k * scale) for k in range(40)]
    if scale < 1e-300:
        with pytest.raises(UserError, match="bands cannot be made"):
            subgroups.bands(values)
    else:
        names = set(subgroups.bands(values))
        assert len(names) == 4 and max(map(len, names)) < 30


def test_a_subgroup_of_one_image_beside_others_is_shown_without_a_calibration_error():
    content = subgroups.evaluate(of_test(), {"x": np.array(["one"] + ["rest"] * 399)}, [], SETTINGS)["x"]
    one = next(part for part in content["subgroups"] if part["name"] == "one")
    assert np.isnan(one["test"]["rms_ce_debiased"]["value"]) and content["gaps"] == []
