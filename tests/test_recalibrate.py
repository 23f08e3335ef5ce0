"""Settings for another hospital: fitted on half of its patients, tested on the others, and promises that are kept."""

import dataclasses
import shlex
import shutil

import numpy as np
import pytest

import evaluate
import exported as parts
from kd import calibration, metrics, operating_points, recalibration
from kd.errors import UserError
from kd.evaluation import protocol, recalibrate
from kd.files import read_json, write_csv, write_json, write_npz
from kd.predictions import Predictions
from kd.run_folder import Run
from test_evaluate import NAMES, make_run

FAST = protocol.Settings(replicates=100, sensitivity=.8)  # which 11 positives promise
LOG_SHARES = np.log([.7, .2, .1])


def answers(n, shares, seed, scale=1.0, offset=0.0):
    """(labels [n], logits [n, 3]) of a classifier that is calibrated where classes are as in LOG_SHARES.

    The cases are of a site with other `shares`. scale: of its logits; offset [3]: added to them.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=shares)
    scores = rng.normal(size=(n, 3)) + 2 * np.eye(3)[labels]
    likelihood = 2 * scores  # of unit variances: the squared distances from the means differ by this
    return labels, scale * (likelihood + LOG_SHARES) + offset


def site(n=400, shares=(.4, .3, .3), seed=0, scale=1.5, grouped=True, name="clinic", **changes):
    """recalibrate.Cases of so many images, two a patient."""
    labels, logits = answers((n + 1) // 2, np.array(shares), seed, scale)
    labels = labels.repeat(2)[:n]
    logits = logits.repeat(2, 0)[:n] + np.random.default_rng(seed + 1).normal(size=(n, 3)) * .3
    ids = np.array([f"{name}/{k}" for k in range(n)])
    groups = np.array([f"{name}/p{k // 2}" for k in range(n)])
    keys = {"images": np.array([f"{seed}i{k}" for k in range(n)]), "pictures": np.full(n, ""),
            "groups": np.array([f"{seed}g{k // 2}" for k in range(n)]) if grouped else np.full(n, "")}
    predictions = Predictions(labels, logits, metrics.softmax(logits), ids, groups if grouped else None, NAMES)
    return dataclasses.replace(recalibrate.Cases(name, predictions, keys, "w"), **changes)


def validation(n=300, seed=9):
    labels, logits = answers(n, np.exp(LOG_SHARES), seed)
    ids = np.array([f"val{k}" for k in range(n)])
    return Predictions(labels, logits, metrics.softmax(logits), ids, ids, NAMES)


# ---- the offsets


@pytest.mark.parametrize("ridge", [100, 3, 0.3])
def test_the_offsets_are_the_optimum_that_another_search_finds(ridge, monkeypatch):
    optimise = pytest.importorskip("scipy.optimize")
    labels, logits = answers(300, [.3, .3, .4], 1, 2)

    def loss(at):
        p = metrics.softmax(at[0] * logits + at[1:])
        return -np.log(p[np.arange(300), labels]).sum() + ridge / 2 * (at[1:] ** 2).sum()

    best = optimise.minimize(loss, [1, 0, 0, 0], method="BFGS", options={"gtol": 1e-7}).x
    monkeypatch.setattr(calibration, "RIDGES", (ridge,))
    offsets, chosen = calibration.fit_offsets(logits, labels, np.arange(300))
    assert chosen == ridge
    np.testing.assert_allclose(offsets, best[1:] / best[0], atol=1e-4)


def test_where_classes_are_more_frequent_the_offsets_are_the_logarithms_of_the_ratios():
    shares = np.array([.2, .3, .5])
    labels, logits = answers(20_000, shares, 2)
    offsets, _ = calibration.fit_offsets(logits, labels, np.arange(len(labels)))
    expected = np.log(shares) - LOG_SHARES
    np.testing.assert_allclose(offsets, expected - expected.mean(), atol=.1)


def test_whichever_prior_the_network_was_trained_with_the_answers_are_the_same():
    labels, logits = answers(2000, [.2, .3, .5], 3)
    groups = np.arange(2000) // 2
    plain, _ = calibration.fit_offsets(logits, labels, groups)
    adjusted, _ = calibration.fit_offsets(logits - LOG_SHARES, labels, groups)  # of logit_adjusted,tau=1
    difference = metrics.softmax(logits + plain) - metrics.softmax(logits - LOG_SHARES + adjusted)
    assert np.abs(difference).max() < .02
    assert np.abs(metrics.softmax(logits) - metrics.softmax(logits - LOG_SHARES)).max() > .3


def test_where_nothing_changed_the_offsets_stay_small_and_cost_little():
    costs = []
    for seed in range(30):
        labels, logits = answers(200, np.exp(LOG_SHARES), seed)
        offsets, _ = calibration.fit_offsets(logits, labels, np.arange(200))
        fresh_labels, fresh = answers(2000, np.exp(LOG_SHARES), 100 + seed)
        costs.append(metrics.nll(fresh_labels, metrics.softmax(fresh + offsets))
                     - metrics.nll(fresh_labels, metrics.softmax(fresh)))
    assert np.mean(costs) < .01


def test_a_class_without_a_case_becomes_rare_and_not_impossible():
    labels, logits = answers(400, [.6, .4, 0], 4)
    offsets, ridge = calibration.fit_offsets(logits, labels, np.arange(400))
    expected = metrics.softmax(logits + offsets)[:, 2].sum()
    assert np.isfinite(ridge) and offsets[2] < -1
    assert .2 < expected < metrics.softmax(logits)[:, 2].sum() / 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("logits, labels", [
    (np.zeros((20, 3)), np.arange(20) % 3), (20 * np.eye(3)[np.arange(20) % 3], np.arange(20) % 3),
    (-20 * np.eye(3)[np.arange(20) % 3], np.arange(20) % 3), (1e4 * np.eye(3)[np.arange(20) % 3], np.arange(20) % 3),
    (np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20, int)), (np.ones((1, 3)), np.array([1])),
], ids=["nothing", "right", "wrong", "certain", "one class", "one image"])
def test_the_search_ends_on_whatever_there_is(logits, labels):
    offsets, _ = calibration.fit_offsets(logits, labels, np.arange(len(labels)))
    assert np.isfinite(offsets).all() and offsets.shape == (3,)


# ---- the parts


def test_a_patient_is_in_one_part_and_stays_there_whatever_the_labels_are_and_who_else_comes():
    cases = site(600)
    fit, rest = recalibrate.divide(cases)
    assert len(fit) + len(rest) == 600 and .4 < len(fit) / 600 < .6
    assert not set(fit.predictions.groups) & set(rest.predictions.groups)
    labels = np.random.default_rng(0).permutation(cases.predictions.labels)
    other = dataclasses.replace(cases, predictions=dataclasses.replace(cases.predictions, labels=labels))
    assert recalibrate.divide(other)[0].predictions.ids.tolist() == fit.predictions.ids.tolist()
    shuffled = np.random.default_rng(1).permutation(600)
    assert set(recalibrate.divide(cases.take(shuffled))[0].predictions.ids) == set(fit.predictions.ids)
    fewer = recalibrate.divide(cases.take(np.arange(600) < 200))[0]
    assert set(fewer.predictions.ids) == set(fit.predictions.ids) & {f"clinic/{k}" for k in range(200)}


def test_the_shares_of_classes_in_the_two_parts_are_independent():
    """Parts of equal shares would show a share that was fitted on the one to be right on the other."""
    shares = [[part.predictions.labels.mean() for part in recalibrate.divide(site(120, seed=seed))]
              for seed in range(60)]
    assert abs(np.corrcoef(np.transpose(shares))[0, 1]) < .35  # stratified parts have nearly 1


def test_a_picture_that_looks_like_one_of_the_first_part_is_in_neither():
    cases = site(40)
    fit, rest = recalibrate.divide(cases)
    looks = "ab" * 32
    keys = {**cases.keys, "pictures": np.where(np.isin(cases.predictions.ids, [fit.predictions.ids[0],
                                                                              rest.predictions.ids[0]]), looks, "")}
    again = recalibrate.divide(dataclasses.replace(cases, keys=keys))
    assert again[0].predictions.ids.tolist() == fit.predictions.ids.tolist()
    assert again[1].predictions.ids.tolist() == rest.predictions.ids[1:].tolist()


# ---- how many positives


def test_the_fewest_positives_are_those_whose_lowest_score_keeps_the_promise():
    assert [operating_points.least_positives(s) for s in (.8, .9, .95, .99)] == [11, 22, 45, 230]
    assert operating_points.least_positives(1) == np.inf and operating_points.least_positives(0) == 1
    for sensitivity in (.5, .8, .9, .95, .99):
        for assurance in (.5, .8, .9, .99):
            m = operating_points.least_positives(sensitivity, assurance)
            assert sensitivity ** m <= 1 - assurance < sensitivity ** (m - 1)
            scores = np.arange(m) / m
            assert operating_points.threshold_for(sensitivity, np.ones(m, bool), scores, assurance)[1] == sensitivity
            if m > 1:
                fewer = operating_points.threshold_for(sensitivity, np.ones(m - 1, bool), scores[1:], assurance)
                assert fewer[1] < sensitivity


def test_classes_with_too_few_positives_get_no_threshold_and_this_is_recorded():
    cases = site(400, (.6, .38, .02), seed=3)
    fit, _ = recalibrate.divide(cases)
    counts = {name: fit.positives(name) for name in NAMES}
    assert counts[NAMES[2]] < 11 < counts["mel"]
    record = recalibrate.recalibrate(validation(), cases, FAST).result
    points = [point["class"] for point in record["operating_points"] if point["kind"] == "sensitivity"]
    assert points == ["nv", "mel"] and record["recalibration"]["least_positives"] == 11
    assert record["recalibration"]["without_threshold"] == {NAMES[2]: counts[NAMES[2]]}
    assert any(f"{NAMES[2]} ({counts[NAMES[2]]})" in line for line in recalibration.promises(record))
    assert recalibration.without_threshold(record) == [NAMES[2]]
    assert not any("asked for" in line for line in recalibration.promises(record))


def test_classes_that_target_leaves_out_are_said_to_lose_their_thresholds():
    record = recalibrate.recalibrate(validation(), site(400), dataclasses.replace(FAST, targets=["mel"])).result
    others = [name for name in NAMES if name != "mel"]
    assert recalibration.without_threshold(record) == others
    line, = (line for line in recalibration.promises(record) if "none was asked for" in line)
    assert line.endswith(f": {', '.join(others)}")


def test_too_few_positives_are_refused_and_the_way_out_leads_out():
    cases = site(400, (.6, .35, .05), seed=3)
    few = recalibrate.divide(cases)[0].positives(NAMES[2])
    settings = dataclasses.replace(FAST, targets=["mel", NAMES[2]])
    with pytest.raises(UserError, match=f"{few} of {NAMES[2]} .*takes 11") as caught:
        recalibrate.recalibrate(validation(), cases, settings)
    assert "about 22" in caught.value.hint and "leave out --target" in caught.value.hint
    possible = float(caught.value.hint.partition("--sensitivity ")[2].split(";")[0])
    assert possible < .8
    recalibrate.recalibrate(validation(), cases, dataclasses.replace(settings, sensitivity=possible))
    with pytest.raises(UserError, match=f"{few} of {NAMES[2]}"):
        recalibrate.recalibrate(validation(), cases, dataclasses.replace(settings, sensitivity=possible + .02))
    with pytest.raises(UserError, match="too few positives in the part of clinic to fit on"):
        recalibrate.recalibrate(validation(), site(60), dataclasses.replace(FAST, sensitivity=.99))
    with pytest.raises(UserError, match="no number of cases can promise a sensitivity of 1"):
        recalibrate.recalibrate(validation(), cases, dataclasses.replace(FAST, sensitivity=1))


def test_cases_from_which_nothing_can_be_learned_are_one_clear_line():
    with pytest.raises(UserError, match="every image of the part of clinic to fit on is of mel"):
        recalibrate.recalibrate(validation(), site(100, (0, 1, 0)), FAST)
    cases = site(300)
    logits = 9 * np.eye(3)[cases.predictions.labels]
    right = dataclasses.replace(cases.predictions, logits=logits, probabilities=metrics.softmax(logits))
    with pytest.raises(UserError, match="no temperature can be fitted on clinic") as caught:
        recalibrate.recalibrate(validation(), dataclasses.replace(cases, predictions=right), FAST)
    assert "\n" not in caught.value.message and "validation" not in caught.value.message
    fit, rest = recalibrate.divide(cases)
    alone = cases.take(np.isin(cases.predictions.ids, [*fit.predictions.ids, *rest.predictions.ids[:4]]))
    with pytest.raises(UserError, match="too few cases of clinic are left to test on"):
        recalibrate.recalibrate(validation(), alone, FAST)
    with pytest.raises(UserError, match="--target wart: no such class"):
        recalibrate.recalibrate(validation(), cases, dataclasses.replace(FAST, targets=["wart"]))


# ---- what is promised, and what is measured


def test_a_threshold_keeps_its_sensitivity_at_the_site_as_often_as_the_assurance_says():
    there = np.array([.5, .3, .2]), 1.5, np.array([0, -1.5, 0])  # a camera that makes melanomas look harmless, too
    kept, sites, one = 0, 150, site(160, grouped=False)
    labels, logits = answers(20_000, there[0], 10_000, *there[1:])
    own = next(point["threshold"] for point in protocol.choose(validation(), FAST).points if point["class"] == "mel")
    assert np.mean(metrics.softmax(logits)[labels == 1, 1] >= own) < .75  # it promised .8 where it was chosen
    for seed in range(sites):
        drawn, scores = answers(160, there[0], seed, *there[1:])
        cases = dataclasses.replace(one, predictions=dataclasses.replace(
            one.predictions, labels=drawn, logits=scores, probabilities=metrics.softmax(scores)))
        part = recalibrate.divide(cases)[0].predictions
        offsets, _, choices = recalibrate.fitted(part, FAST)
        point, = (point for point in choices.points if point["class"] == "mel")
        assert point["promised"] == .8
        population = metrics.softmax(logits + offsets)[labels == 1, 1]
        kept += np.mean(population >= point["threshold"]) >= .8
    assert kept / sites >= .9 - 2.33 * (.09 / sites) ** .5  # one in a hundred simulations may be below
    assert kept < sites  # a margin, and no threshold that calls everything


def test_everything_is_chosen_on_the_one_part_and_nothing_on_the_other():
    cases = site(400)
    first = recalibrate.recalibrate(validation(), cases, FAST).result
    fit, rest = recalibrate.divide(cases)
    labels = cases.predictions.labels.copy()
    in_test = np.isin(cases.predictions.ids, rest.predictions.ids)
    labels[in_test] = np.random.default_rng(0).permutation(labels[in_test])
    other = recalibrate.recalibrate(validation(), dataclasses.replace(
        cases, predictions=dataclasses.replace(cases.predictions, labels=labels)), FAST).result
    for record in (first, other):
        assert record["split"]["fit"] == fit.predictions.size() and record["split"]["test"]["images"] == len(rest)
        assert record["recalibration"]["fitted_on"] == fit.listed()
    assert other["recalibration"]["offsets"] == first["recalibration"]["offsets"]
    assert other["calibration"]["temperature"] == first["calibration"]["temperature"]
    assert [point["threshold"] for point in other["operating_points"]] == [
        point["threshold"] for point in first["operating_points"]]
    assert {point["chosen_on"] for point in first["operating_points"]} == {"fit"}
    assert other["test"]["accuracy"]["value"] < first["test"]["accuracy"]["value"] - .1


def test_both_settings_are_measured_on_the_same_images_and_differences_are_paired():
    cases, val = site(500, (.2, .3, .5)), validation()
    after = recalibrate.recalibrate(val, cases, FAST)
    record, (_, rest) = after.result, recalibrate.divide(cases)
    rows = {row["metric"]: row for row in record["recalibration"]["differences"]}
    labels, logits = rest.predictions.labels, rest.predictions.logits
    new = logits + record["recalibration"]["offsets"]
    temperature = calibration.fit_temperature(val.logits, val.labels).value
    for name, old_, new_ in (("nll", logits / temperature, new / record["calibration"]["temperature"]),):
        assert rows[name]["reference_value"] == pytest.approx(metrics.nll(labels, metrics.softmax(old_)))
        assert rows[name]["model_value"] == pytest.approx(metrics.nll(labels, metrics.softmax(new_)))
    assert rows["accuracy"]["reference_value"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert rows["accuracy"]["model_value"] == pytest.approx(np.mean(new.argmax(1) == labels))
    assert rows["nll"]["hi"] < 0 and rows["accuracy"]["lo"] > 0
    point = next(point for point in record["operating_points"] if point["class"] == "mel")
    fit = recalibrate.divide(cases)[0].predictions
    scores = metrics.softmax(fit.logits + record["recalibration"]["offsets"])[:, 1]
    assert (point["threshold"], point["promised"]) == operating_points.threshold_for(
        .8, fit.labels == 1, scores, groups=fit.groups)
    called = metrics.softmax(new)[:, 1] >= point["threshold"]
    assert rows["sensitivity/mel"]["model_value"] == pytest.approx(called[labels == 1].mean())
    assert point["test"]["sensitivity"]["value"] == rows["sensitivity/mel"]["model_value"]
    own = next(point for point in protocol.choose(val, FAST).points if point["class"] == "mel")
    called = metrics.softmax(logits)[:, 1] >= own["threshold"]
    assert rows["sensitivity/mel"]["reference_value"] == pytest.approx(called[labels == 1].mean())
    assert rows["sensitivity/mel"]["lo"] <= rows["sensitivity/mel"]["difference"] <= rows["sensitivity/mel"]["hi"]


def test_what_is_not_significant_is_said_to_be_so_and_the_runs_own_settings_are_kept_where_nothing_is_better():
    lines = recalibration.verdict(recalibrate.recalibrate(validation(), site(500, (.2, .3, .5)), FAST).result)
    assert any(line.startswith("better: ") and "NLL" in line for line in lines) and "keep" not in "".join(lines)
    same = recalibrate.recalibrate(validation(), site(300, np.exp(LOG_SHARES), 5, 1), FAST).result
    lines = recalibration.verdict(same)
    unclear, = (line for line in lines if line.startswith("not significant"))
    assert "accuracy" in unclear and "interval of the difference includes 0" in unclear
    assert "Nothing is better than with the run's own settings" in lines[-1]


def test_a_threshold_shows_the_difference_of_both_rates_and_the_verdict_names_what_moved():
    record = recalibrate.recalibrate(validation(), site(500, (.2, .3, .5)), FAST).result
    rows = {row["metric"]: row for row in record["recalibration"]["differences"]}
    header, *table = recalibration.thresholds(record)
    assert header[-4:] == ["difference", "specificity before", "recalibrated", "difference"]
    for name, *cells in table:
        for rate, cell in (("sensitivity", cells[-4]), ("specificity", cells[-1])):
            assert cell.startswith(f"{rows[f'{rate}/{name}']['difference']:+.3f}")
    rows["specificity/mel"].update(difference=-.2, lo=-.3, hi=-.1)
    rows["sensitivity/mel"].update(difference=.02, lo=-.1, hi=.1)  # not significant
    rows["sensitivity/nv"].update(difference=.2, lo=.1, hi=.3)
    lines = recalibration.verdict(record)
    higher, lower = ([line for line in lines if line.startswith(f"{word} at the new thresholds: ")]
                     for word in ("higher", "lower"))
    assert "specificity of mel" in lower[0] and "sensitivity of nv" in higher[0]
    assert not any("sensitivity of mel" in line for line in lines)


# ---- on the command line


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose --data gives the cases of a file that the test writes."""
    val = validation()
    folder = make_run(tmp_path / "study" / "tiny_kd" / "seed_0", val_size=300, val__labels=val.labels,
                      val__logits=val.logits.astype(np.float32))

    def score(folders, options):
        return [folder / "predictions" / f"{options.name or options.data}.npz" for folder in folders]

    monkeypatch.setattr(evaluate, "score", score)
    save(folder, site(400))
    return folder


def save(run, cases, **changes):
    part = cases.predictions
    write_npz(run / "predictions" / f"{cases.name}.npz", ids=part.ids, labels=part.labels, logits=part.logits,
              groups=np.full(len(cases), "") if part.groups is None else part.groups, class_names=np.array(NAMES),
              fingerprint=np.array("f"), weights=np.array(cases.weights),
              **{f"key_{what}": keys for what, keys in cases.keys.items()})


def call(run, *options, data="clinic"):
    evaluate.main([str(run), "--data", data, "--replicates", "100", *options])


def test_the_settings_are_kept_and_later_tested_only_on_what_they_were_not_fitted_on(run, tmp_path, capsys):
    call(run, "--recalibrate", "--sensitivity", "0.8")
    shown = capsys.readouterr().out
    assert "better: " in shown and "No patients are known" not in shown and "nan" not in shown.lower()
    written = run / "recalibrated" / "clinic.json"
    assert f"written: {written}" in shown
    record = read_json(written)
    call(run, "--recalibrated", "clinic", "--out", str(tmp_path / "out"))
    again, shown = read_json(tmp_path / "out" / "metrics.json"), capsys.readouterr().out
    for key in ("test", "confusion", "operating_points"):
        assert again[key] == record[key]
    assert again["calibration"] == record["calibration"]
    note = f"{record['split']['fit']['images']} of 400 images are left out, since these were fitted on them"
    assert note in again["conventions"]["note"] and note in shown and "recalibrated/clinic.json" in shown
    assert "chosen on the part fitted on" in shown and "on validation" not in shown
    # under another name and with further patients: known by their contents
    cases, further = site(400, name="clinic_2"), site(60, name="clinic_2", seed=77)
    ids = np.array([f"clinic_2/new{k}" for k in range(60)])
    groups = np.array([f"clinic_2/n{k // 2}" for k in range(60)])
    both = Predictions(*(np.concatenate([getattr(cases.predictions, part), getattr(further.predictions, part)])
                         for part in ("labels", "logits", "probabilities")),
                       np.append(cases.predictions.ids, ids), np.append(cases.predictions.groups, groups), NAMES)
    keys = {what: np.append(cases.keys[what], further.keys[what]) for what in cases.keys}
    save(run, recalibrate.Cases("clinic_2", both, keys, "w"))
    call(run, "--recalibrated", "clinic", "--out", str(tmp_path / "out"), data="clinic_2")
    assert read_json(tmp_path / "out" / "metrics.json")["split"]["test"]["images"] == (
        record["split"]["test"]["images"] + 60)


def test_without_patients_it_is_said_that_the_test_may_be_too_good(run, capsys):
    save(run, site(400, grouped=False))
    call(run, "--recalibrate", "--sensitivity", "0.8")
    assert "No patients are known (--groups FILE.csv" in capsys.readouterr().out


def test_a_class_that_the_site_lacks_is_named(run, capsys):
    save(run, site(400, (.6, .4, 0)))
    call(run, "--recalibrate", "--sensitivity", "0.8")
    shown = capsys.readouterr().out
    assert f"No image of {NAMES[2]} to fit on" in shown and f"{NAMES[2]} (0)" in shown
    call(run, "--recalibrated", "clinic")


def test_no_confidence_that_keeps_the_risk_is_said_and_can_be_read_again(run, capsys):
    call(run, "--recalibrate", "--sensitivity", "0.8", "--risk", "0.0001")
    assert "recalibrated, no confidence reaches it" in capsys.readouterr().out
    call(run, "--recalibrated", "clinic")
    assert "no confidence reaches it on the part fitted on" in capsys.readouterr().out


def test_subgroups_are_measured_with_the_new_settings(run, tmp_path, capsys):
    write_csv(tmp_path / "t.csv", [{"id": f"clinic/{k}", "sex": "fm"[k // 2 % 2]} for k in range(400)])
    call(run, "--recalibrate", "--sensitivity", "0.8", "--by", "sex", "--table", str(tmp_path / "t.csv"))
    parts = read_json(run / "recalibrated" / "clinic.json")["subgroups"]["sex"]["subgroups"]
    record = recalibration.read(Run(run), "clinic")
    assert sum(part["images"] for part in parts) == record["split"]["test"]["images"]


@pytest.mark.parametrize("options, words", [
    (["--recalibrate"], "--recalibrate is for an external data set"),
    (["--recalibrated", "clinic"], "--recalibrated is for an external data set"),
    (["--data", "clinic", "--recalibrate", "--recalibrated", "clinic"], "Give one of them|uses those of before"),
    (["--data", "clinic", "--recalibrated", "clinic", "--target", "mel"], "--target does not go with --recalibrated"),
    (["--data", "clinic", "--recalibrated", "clinic", "--risk", ".2"], "--risk does not go with --recalibrated"),
    (["--data", "clinic", "--recalibrated", "clinik"], "has no settings for a site clinik"),
])
def test_options_that_do_not_fit_are_refused(run, options, words):
    with pytest.raises(UserError, match=words):
        evaluate.main([str(run), *options])


def test_a_predictions_file_is_recalibrated_by_val_and_this_is_said(run):
    path = str(run / "predictions" / "test.npz")
    for options in (["--recalibrate"], ["--recalibrate", "--data", "clinic"]):
        with pytest.raises(UserError, match="--recalibrate is for runs") as caught:
            evaluate.main([path, *options])
        assert "--val FILE" in caught.value.hint
    evaluate.main([path, "--val", str(run / "predictions" / "val.npz"), "--replicates", "100"])


def test_other_weights_and_cases_that_are_all_known_are_refused(run):
    call(run, "--recalibrate", "--sensitivity", "0.8")
    cases = site(400)
    save(run, recalibrate.divide(cases)[0])
    with pytest.raises(UserError, match="nothing of clinic is left to test on"):
        call(run, "--recalibrated", "clinic")
    save(run, dataclasses.replace(cases, weights="others"))
    with pytest.raises(UserError, match="fitted to other weights"):
        call(run, "--recalibrated", "clinic")


def test_damaged_or_hostile_settings_are_one_clear_line(run):
    call(run, "--recalibrate", "--sensitivity", "0.8")
    path = run / "recalibrated" / "clinic.json"
    whole = read_json(path)

    def changed(*keys, value):
        content = read_json(path)
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return content

    wrong = [changed("recalibration", key, value=value) for key in (
        "format", "weights", "offsets", "fitted_on", "own", "differences", "shares", "without_threshold")
        for value in (None, "x", 3, [], {"a": 1}) if not (key in ("differences", "without_threshold") and value == [])
        and (key, value) != ("weights", "x") and not (key in ("differences",) and value in ([],))]
    wrong += [changed("recalibration", "offsets", value=[1, 2, value]) for value in ("0", None, True, [1])]
    wrong += [changed("recalibration", "fitted_on", "groups", value=value) for value in (None, [1], 3)]
    wrong += [changed("calibration", "temperature", value=value) for value in (0, -1, None, "1")]
    wrong += [changed("operating_points", 0, "threshold", value=value) for value in (None, 2, "0.5", {"nv": 1})]
    wrong += [changed("operating_points", 0, "class", value="wart"),
              changed("conventions", "majority_class", value="?"), changed("split", "fit", "images", value=None),
              changed("recalibration", "own", "operating_points", value=[]),
              changed("operating_points", value=[{}]), [], 3, {}]
    assert len(wrong) > 50
    for content in wrong:
        write_json(path, content)
        with pytest.raises(UserError, match="clinic.json") as caught:
            call(run, "--recalibrated", "clinic")
        assert "\n" not in caught.value.message
    write_json(path, whole)
    call(run, "--recalibrated", "clinic")


# ---- with a network, and in a bundle


@pytest.fixture(scope="module")
def trained(exported, tmp_path_factory):
    """A copy of a run with exports, and a folder of another site: three classes, some of them labelled otherwise."""
    folder = tmp_path_factory.mktemp("site")
    run = shutil.copytree(exported[0], folder / "study" / "model" / "seed_0")
    rng, root, rows = np.random.default_rng(5), folder / "clinic", []
    colours = {"blue": (20, 20, 250), "green": (20, 250, 20), "red": (250, 20, 20)}
    for name, count in (("blue", 12), ("green", 24), ("red", 48)):
        (root / name).mkdir(parents=True)
        for k in range(count):
            colour = colours[rng.choice(list(colours)) if k % 4 == 0 else name]
            parts.draw("plain.png", colour, rng).save(root / name / f"{k:02}.png")
            rows.append({"id": f"{name}/{k:02}.png", "group": f"{name}{k // 2}"})
    write_csv(folder / "groups.csv", rows)
    return run, root, folder / "groups.csv"


def test_the_bundle_has_the_settings_of_the_site_and_says_so(trained, tmp_path, capsys):
    import export
    import predict
    from kd import onnx_model
    run, root, groups = trained
    data = ["--data", "folder", "--root", str(root), "--groups", str(groups), "--replicates", "100"]
    evaluate.main([str(run), *data, "--recalibrate", "--sensitivity", "0.5"])
    record = recalibration.read(Run(run), "clinic")
    fitted = record["recalibration"]
    assert record["split"]["fit"]["images"] + record["split"]["test"]["images"] + fitted["in_neither"] == 84
    box = tmp_path / "box"
    export.main([str(run), "--recalibrated", "clinic", "--bundle", str(box)])
    assert not recalibration.without_threshold(record) and "no threshold" not in capsys.readouterr().out
    before = onnx_model.Model(run / "exports" / "model.int8.onnx")
    after = onnx_model.Model(box / "model.int8.onnx")
    images = Run(run).samples["images"]
    np.testing.assert_allclose(after.logits(images), before.logits(images) + fitted["offsets"], atol=1e-5)
    assert np.abs(fitted["offsets"]).max() > .05
    assert after.temperature == record["calibration"]["temperature"] != before.temperature
    assert [(point["name"], point["threshold"]) for point in after.points] == [
        (point["name"], point["threshold"]) for point in record["operating_points"]]
    assert after.metadata["provenance"] == {**before.metadata["provenance"], "site": "clinic"}
    keys = {key for part in fitted["fitted_on"].values() for key in part}
    assert not any(key.encode() in path.read_bytes() for path in box.rglob("*") if path.is_file() for key in keys)
    card = (box / "MODEL_CARD.md").read_text(encoding="utf-8")
    fit, test = record["split"]["fit"], record["split"]["test"]
    assert (f"fitted on {fit['images']} images of {fit['groups']} groups (patient or lesion) from there, and tested on "
            f"{test['images']} images of {test['groups']} groups") in card
    assert "## Recalibrated for clinic" in card and "on validation" not in card
    assert all(sentence in card for sentence in recalibration.verdict(record))
    assert predict.main([str(box / "model.int8.onnx"), "--check"]) == 0
    capsys.readouterr()
    predict.main([str(box / "model.int8.onnx"), str(next(root.glob("red/*.png")))])
    assert "chosen on cases of clinic" in (shown := capsys.readouterr().out) and "validation" not in shown
    evaluate.main([str(run), *data, "--recalibrated", "clinic", "--out", str(tmp_path / "out")])
    assert read_json(tmp_path / "out" / "metrics.json")["test"] == read_json(
        run / "recalibrated" / "clinic.json")["test"]
    with pytest.raises(UserError, match="--recalibrated makes a bundle"):
        export.main([str(run), "--recalibrated", "clinic"])
    evaluate.main([str(run), *data, "--recalibrate", "--sensitivity", "0.5", "--target", "red"])
    capsys.readouterr()
    export.main([str(run), "--recalibrated", "clinic", "--bundle", str(tmp_path / "box of one")])
    assert "note: blue, green: no threshold, since none was fitted to clinic" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no settings for a site nowhere") as caught:
        export.main([str(run), "--recalibrated", "nowhere", "--bundle", str(tmp_path / "b")])
    assert "clinic" in caught.value.hint
    write_json(run / "recalibrated" / "other.json", {**record, "recalibration": {**fitted, "weights": "x"}})
    with pytest.raises(UserError, match="of other weights"):
        export.main([str(run), "--recalibrated", "other", "--bundle", str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()
    (run / "exports" / "model.int8.onnx").unlink()
    export.main([str(run), "--recalibrated", "clinic", "--bundle", str(tmp_path / "float")])
    assert (tmp_path / "float" / "model.onnx").is_file()
    (run / "exports" / "model.onnx").unlink()
    (run / "exports" / "model.pte").touch()
    again = [str(run), "--recalibrated", "clinic", "--bundle", str(tmp_path / "b")]
    for formats, names in (((), "model.int8.onnx or model.onnx"), (("onnx",), "model.onnx")):
        with pytest.raises(UserError, match=f"has no {names} to recalibrate; ExecuTorch programs keep") as caught:
            export.main([*again, *["--formats"][:len(formats)], *formats])
    way, *words = shlex.split(caught.value.hint.removeprefix("First: python "))
    assert way == "export.py"
    export.main(words)
    export.main(again)
    assert any((tmp_path / "b" / name).is_file() for name in ("model.int8.onnx", "model.onnx"))
