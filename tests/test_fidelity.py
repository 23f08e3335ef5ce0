"""How near a student is to its teacher: by hand, by id, over seeds, and why it is not known."""

import numpy as np
import pytest

import evaluate
import report
from kd import bootstrap, metrics, paired
from kd.evaluation import compare, protocol
from kd.files import read_csv, read_json, write_json, write_npz, write_yaml
from kd.run_folder import Run
from test_evaluate import NAMES, arrays_of, make_run

FAST = protocol.Settings(replicates=200)
TEACHER = "runs/study/teacher_big/seed_0"
FIGURES = {"agreement", "agreement_where_teacher_wrong", "kl_teacher_student"}


def teach(run, teacher, role="student"):
    write_json(run / "environment.json", {"role": role, "arch": "tiny"})
    write_yaml(run / "config.yaml", {"teacher": teacher})
    return run


@pytest.fixture
def study(tmp_path):
    """A teacher, a student without one and a taught student of two seeds."""
    folder = tmp_path / "study"
    teach(make_run(folder / "teacher_big" / "seed_0", seed=7), "big", "teacher")
    teach(make_run(folder / "tiny_alone" / "seed_0", seed=8), None)
    for seed in (0, 1):
        teach(make_run(folder / "tiny_kd" / f"seed_{seed}", seed=seed), TEACHER)
    return folder


def numbers(row, *keys):
    """Figures of a row; NaN where it has none."""
    return [float(row[key]) if row[key] not in (None, "") else np.nan for key in keys]


def fidelity_of(run):
    return evaluate.evaluate_run(run, FAST).result.get("fidelity")


# ---- the figures

def test_by_hand():
    labels = np.array([0, 0, 1, 1])
    teacher = np.array([[.8, .2], [.4, .6], [.5, .5], [.1, .9]])  # right, wrong, wrong (the first of equals), right
    student = np.array([[.5, .5], [.2, .8], [.1, .9], [.9, .1]])  # the same, the same, another, another
    found = paired.fidelity(labels, teacher, student, bootstrap.draws(labels, np.arange(4), 2, 100))
    assert found["agreement"].value == 2 / 4 and found["agreement_where_teacher_wrong"].value == 1 / 2
    each = [.8 * np.log(8 / 5) + .2 * np.log(2 / 5), .4 * np.log(2) + .6 * np.log(3 / 4),
            .5 * np.log(5) + .5 * np.log(5 / 9), .1 * np.log(1 / 9) + .9 * np.log(9)]
    assert found["kl_teacher_student"].value == pytest.approx(np.mean(each))
    assert metrics.kl_divergences(teacher, student) == pytest.approx(each)


def test_a_divergence_is_0_for_equals_and_finite_for_the_sure_and_wrong():
    sure = np.eye(3)
    assert (metrics.kl_divergences(sure, sure) == 0).all()
    assert metrics.kl_divergences(sure, sure[::-1]) == pytest.approx([-np.log(np.finfo(float).eps), 0,
                                                                     -np.log(np.finfo(float).eps)])
    p = metrics.softmax(np.random.default_rng(0).normal(size=(50, 4)) * 9)
    assert (metrics.kl_divergences(p, p + 1e-17) >= 0).all()


def test_identical_predictions_agree_in_all_and_do_not_diverge(study):
    run = teach(make_run(study / "copy" / "seed_0", seed=7), TEACHER)
    figures = fidelity_of(run)["test"]
    assert figures["agreement"]["value"] == figures["agreement_where_teacher_wrong"]["value"] == 1
    assert figures["agreement"]["lo"] < 1  # 45 lesions do not show that all answers are the same
    assert figures["kl_teacher_student"]["value"] == 0
    assert figures["kl_teacher_student"]["withheld"] == bootstrap.FIXED


def test_images_are_matched_by_id_and_the_fingerprint_is_that_of_the_teacher(study):
    given = arrays_of("test", 90, 0)
    order = np.random.default_rng(0).permutation(90)
    shuffled = {f"test__{key}": given[key][order] for key in ("ids", "labels", "logits", "groups")}
    other = teach(make_run(study / "shuffled" / "seed_0", **shuffled), TEACHER)
    first, second = fidelity_of(study / "tiny_kd" / "seed_0"), fidelity_of(other)
    assert first["fingerprint"] == second["fingerprint"] and first["teacher"] == "study/teacher_big/seed_0"
    for name in FIGURES:
        assert list(first["test"][name].values()) == pytest.approx(list(second["test"][name].values()))
    theirs = arrays_of("test", 90, 7)["logits"]
    answers = given["logits"].argmax(1), theirs.argmax(1)
    assert first["test"]["agreement"]["value"] == pytest.approx((answers[0] == answers[1]).mean())
    wrong = answers[1] != given["labels"]
    assert first["test"]["agreement_where_teacher_wrong"]["value"] == pytest.approx(
        (answers[0] == answers[1])[wrong].mean())
    p, q = metrics.softmax(theirs.astype(np.float32)), metrics.softmax(given["logits"].astype(np.float32))
    assert first["test"]["kl_teacher_student"]["value"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)


def test_lesions_are_drawn_whole(study):
    given = arrays_of("test", 90, 0)
    own = {"test__groups": np.array([f"own{k}" for k in range(90)])}
    single = teach(make_run(study / "single" / "seed_0", **own), TEACHER)
    twice = {f"test__{key}": np.repeat(given[key], 4, 0) for key in ("labels", "logits")}
    twice["test__ids"] = np.array([f"test{k}" for k in range(360)])
    twice["test__groups"] = np.repeat([f"l{k}" for k in range(90)], 4)
    four = make_run(study / "four" / "seed_0", **twice)
    theirs = {key: np.repeat(arrays_of("test", 90, 7)[key], 4, 0) for key in ("labels", "logits")}
    make_run(study / "teacher_four" / "seed_0", seed=7, **{**twice, "test__logits": theirs["logits"]})
    teach(four, "runs/study/teacher_four/seed_0")
    make_run(study / "teacher_big" / "seed_0", seed=7, **own)
    one, copies = fidelity_of(single)["test"], fidelity_of(four)["test"]
    for name in ("agreement", "kl_teacher_student"):  # copies of an image say nothing more
        assert one[name]["value"] == pytest.approx(copies[name]["value"])
        assert one[name]["hi"] - one[name]["lo"] == pytest.approx(copies[name]["hi"] - copies[name]["lo"], rel=.1)


def test_the_interval_of_a_mean_loss_is_wider_where_one_image_has_most_of_it():
    draws = bootstrap.draws(np.zeros(100, int), np.arange(100), 2, 400)
    even = bootstrap.mean_loss(np.random.default_rng(0).uniform(.9, 1.1, 100), draws)
    uneven = bootstrap.mean_loss(np.where(np.arange(100) == 5, 100.0, .01), draws)
    assert even.freedom > 60 and uneven.freedom < 5
    lo, hi = (even.metric()[key] for key in ("lo", "hi"))
    assert (hi - lo) / 2 == pytest.approx(1.96 * .2 / 12 ** .5 / 10, rel=.2)  # the standard error of a mean of 100


def test_a_teacher_that_is_never_wrong_leaves_its_part_undefined(study):
    given = arrays_of("test", 90, 7)
    make_run(study / "teacher_big" / "seed_0", seed=7, test__logits=9 * np.eye(3)[given["labels"]])
    figures = fidelity_of(study / "tiny_kd" / "seed_0")["test"]
    assert np.isnan(figures["agreement_where_teacher_wrong"]["value"])
    assert 0 < figures["agreement"]["value"] < 1 and figures["kl_teacher_student"]["value"] > 0
    read = read_json(study / "tiny_kd" / "seed_0" / "metrics.json")["fidelity"]["test"]
    assert read["agreement_where_teacher_wrong"]["value"] is None


# ---- whose teacher it is

def test_who_has_no_teacher_has_no_fidelity(study, tmp_path):
    for name in ("teacher_big", "tiny_alone"):
        assert fidelity_of(study / name / "seed_0") is None
    assert fidelity_of(make_run(tmp_path / "theirs" / "net" / "seed_0")) is None  # dropped in, without config.yaml


def test_the_teacher_is_found_beside_its_student_wherever_the_study_was_moved(study, tmp_path):
    run = study / "tiny_kd" / "seed_0"
    assert Run(run).teachers[0].folder.resolve() == (study / "teacher_big" / "seed_0").resolve()
    moved = tmp_path / "elsewhere" / "renamed"
    study.rename(tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").rename(moved)
    assert fidelity_of(moved / "tiny_kd" / "seed_0")["test"].keys() == FIGURES
    far = teach(make_run(tmp_path / "far" / "other" / "tiny" / "seed_0"), str(moved / "teacher_big" / "seed_0"))
    assert fidelity_of(far)["teacher"] == "renamed/teacher_big/seed_0"


def test_several_teachers_are_one_whose_probabilities_are_the_mean(study):
    given, others = arrays_of("test", 90, 0), arrays_of("test", 90, 9)
    order = np.random.default_rng(1).permutation(90)
    make_run(study / "teacher_b" / "seed_0", **{f"test__{key}": others[key][order]
                                               for key in ("ids", "labels", "logits", "groups")})
    run = teach(study / "tiny_kd" / "seed_0", [TEACHER, "runs/study/teacher_b/seed_0"])
    content = fidelity_of(run)
    both = [metrics.softmax(logits.astype(np.float32)) for logits in (arrays_of("test", 90, 7)["logits"],
                                                                     others["logits"])]
    teacher, student = np.mean(both, 0), metrics.softmax(given["logits"].astype(np.float32))
    assert content["teacher"] == "study/teacher_big/seed_0 + study/teacher_b/seed_0"
    assert content["test"]["agreement"]["value"] == (teacher.argmax(1) == student.argmax(1)).mean()
    assert content["test"]["kl_teacher_student"]["value"] == pytest.approx(
        metrics.kl_divergences(teacher, student).mean())
    assert not [finding for finding in evaluate.examine.audit_run(run) if finding["rule"] == "other-than-recomputed"]
    (study / "teacher_b/seed_0/predictions/test.npz").unlink()
    assert "has no predictions/test.npz" in fidelity_of(run)["reason"]


def other_images(study):
    make_run(study / "teacher_big" / "seed_0", seed=7, test__ids=np.array([f"other{k}" for k in range(90)]),
             test__groups=np.array([f"other{k}" for k in range(90)]))


def no_ids(study):
    arrays = arrays_of("test", 90, 7)
    write_npz(study / "teacher_big/seed_0/predictions/test.npz", **{key: arrays[key] for key in arrays if key != "ids"})


def damaged(study):
    (study / "teacher_big/seed_0/predictions/test.npz").write_bytes(b"PK")


def unfinished(study):
    (study / "teacher_big/seed_0/predictions/test.npz").unlink()


def gone(study):
    (study / "teacher_big").rename(study.parent / "gone")


@pytest.mark.parametrize("change, reason", [
    (other_images, "was tested on other images (only 0 of 90 images in common)"),
    (no_ids, "without ids its images cannot be matched"),
    (damaged, "test.npz"),
    (unfinished, "its teacher study/teacher_big/seed_0 has no predictions/test.npz"),
    (gone, "no run folder of its teacher study/teacher_big/seed_0 was found"),
])
def test_where_it_is_not_known_one_line_says_why(study, capsys, change, reason):
    change(study)
    run = study / "tiny_kd" / "seed_0"
    evaluate.main([str(run), "--replicates", "200"])
    line, = [line for line in capsys.readouterr().out.splitlines() if line.startswith("No fidelity of tiny_kd/seed_0")]
    assert reason in line
    content = read_json(run / "metrics.json")["fidelity"]
    assert content["test"] == {} and reason in content["reason"] and "fingerprint" not in content


def test_a_teacher_that_is_a_file_of_answers_has_none_to_the_test_images(study):
    run = study / "tiny_kd" / "seed_0"
    write_yaml(run / "config.yaml", {"teacher": None, "teacher_predictions": "answers.npz"})
    assert fidelity_of(run)["reason"] == "no run folder of its teacher answers.npz was found"


@pytest.mark.parametrize("teacher", ["", "net.pt", "/", "..", "\\x", "x" * 5000, ["a", "b"], 3, {"a": 1}, True])
def test_any_name_of_a_teacher_in_a_config_is_borne(study, teacher):
    content = fidelity_of(teach(study / "tiny_kd" / "seed_0", teacher))
    assert content is None or content["reason"]


def test_a_damaged_config_is_found_by_the_audit_and_stops_no_evaluation(study):
    run = study / "tiny_kd" / "seed_0"
    (run / "config.yaml").write_text("teacher: [")
    result = evaluate.evaluate_run(run, FAST).result
    assert "fidelity" not in result and "damaged-file" in {finding["rule"] for finding in result["audit"]}


# ---- over seeds, compared, reported

def test_seeds_json_and_the_comparison_have_the_same_fidelity(study, capsys):
    evaluate.main([str(study), "--replicates", "200"])
    shown = capsys.readouterr().out
    assert "teacher: study/teacher_big/seed_0" in shown and "tiny_kd, 2 seeds" in shown.partition("fidelity  ")[2]
    over_seeds = read_json(study / "tiny_kd" / "seeds.json")["fidelity"]
    each = [read_json(study / "tiny_kd" / f"seed_{seed}" / "metrics.json")["fidelity"]["test"] for seed in (0, 1)]
    assert over_seeds["teachers"] == ["study/teacher_big/seed_0"] and over_seeds["test"].keys() == FIGURES
    pairs = {(pair["reference"], pair["model"]): pair
             for pair in compare.compare(compare.models([study]), FAST)["pairs"]}
    pair = pairs["teacher_big", "tiny_kd"]
    for name, figure in over_seeds["test"].items():
        assert figure["mean"] == pytest.approx(np.mean([of_seed[name]["value"] for of_seed in each]))
        assert figure["values"] == [of_seed[name]["value"] for of_seed in each]
        assert numbers(figure, "mean", "lo", "hi") == pytest.approx(
            numbers(pair["fidelity"][name], "value", "lo", "hi"), nan_ok=True)
    assert pair["fidelity"]["agreement"] == pair["agreement"]["agreement"]
    assert pairs["teacher_big", "tiny_alone"]["fidelity"] and not pairs["tiny_alone", "tiny_kd"]["fidelity"]
    evaluate.main(["--compare", str(study), "--replicates", "200"])
    rows = {(row["reference"], row["model"], row["metric"]): row for row in read_csv(study / "comparison.csv")}
    for name in FIGURES:
        row = rows["teacher_big", "tiny_kd", name]
        assert float(row["model_value"]) == pytest.approx(over_seeds["test"][name]["mean"], rel=1e-5)
        assert ("tiny_alone", "tiny_kd", name) not in rows or name == "agreement"
    evaluate.main(["--compare", str(study / "teacher_big"), str(study / "tiny_kd"), "--replicates", "200"])
    assert "KL(teacher || student) is " in capsys.readouterr().out


def test_the_spread_of_the_seeds_of_either_model_widens_an_agreement(study):
    def width(*models):
        pair, = compare.compare(compare.models([study / name for name in models]), FAST)["pairs"]
        share = pair["agreement"]["agreement"]
        return 1 if share.get("withheld", "").startswith("two seeds") else share["hi"] - share["lo"]

    one = width("teacher_big", "tiny_kd/seed_0")
    given = arrays_of("test", 90, 7)
    make_run(study / "teacher_big" / "seed_5", test__logits=given["logits"] - 3 * np.eye(3)[given["labels"]])
    for models in (("teacher_big", "tiny_kd/seed_0"), ("tiny_kd/seed_0", "teacher_big")):
        assert width(*models) > 1.5 * one


def test_the_report_has_a_table_of_it_and_says_where_it_is_not_known(study):
    evaluate.main([str(study), "--replicates", "200"])
    report.main([str(study)])
    rows = {row["model"]: row for row in read_csv(study / "tables" / "fidelity.csv")}
    over_seeds = read_json(study / "tiny_kd" / "seeds.json")["fidelity"]["test"]
    assert list(rows) == ["tiny_kd", "tiny_alone"] and rows["tiny_kd"]["teacher"] == "teacher_big"
    for name in FIGURES:
        assert numbers(rows["tiny_kd"], name, f"{name}_lo", f"{name}_hi") == pytest.approx(
            numbers(over_seeds[name], "mean", "lo", "hi"), nan_ok=True)
    other_images(study)
    evaluate.main([str(study / "tiny_kd"), "--replicates", "200"])
    report.main([str(study)])
    assert not (study / "tables" / "fidelity.csv").exists()
    assert "Its teacher study/teacher_big/seed_0 was tested on other images" in (study / "report.html").read_text()


# ---- macro-F1 without the rarest class

def test_macro_f1_without_a_class_by_hand():
    counts = np.array([[3, 1, 0], [0, 2, 0], [1, 0, 1]])
    f1 = [6 / 8, 4 / 5, 2 / 3]
    for k in range(3):
        rest = [value for c, value in enumerate(f1) if c != k]
        assert metrics.macro_f1_without(counts, k) == pytest.approx(np.mean(rest))
    assert np.isnan(metrics.macro_f1_without(counts[:2, :2], 0))  # one class is left
    absent = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert np.isnan(metrics.macro_f1_without(absent, 0))
    assert metrics.macro_f1_without(np.stack([counts, absent]), 2) == pytest.approx(
        [np.mean(f1[:2]), metrics.macro_f1(absent)])


@pytest.mark.parametrize("support, names, rarest", [
    ([5, 2, 9], "abc", 1), ([5, 0, 9, 7], "abcd", 0), ([2, 2, 9], "bac", 1), ([5, 9], "ab", None),
    ([5, 0, 9], "abc", None),
])
def test_the_rarest_class_has_the_fewest_images_and_of_equals_the_first_name(support, names, rarest):
    assert metrics.rarest_class(np.array(support), list(names)) == rarest


def test_the_class_left_out_is_the_same_in_every_sample_and_on_validation(study):
    run = Run(study / "tiny_kd" / "seed_0")
    result = protocol.evaluate(run.val, run.test, FAST).result
    assert result["conventions"]["rarest_class"] == NAMES[2]
    draws = protocol.resampling(run.test, FAST)
    value, _, drawn = draws.confusions(run.test.probabilities.argmax(1))
    found = bootstrap.replicate(run.test.probabilities, draws, NAMES, rarest=2)["macro_f1_without_rarest"]
    assert found.value == pytest.approx(metrics.f1(value)[:2].mean())
    np.testing.assert_allclose(found.drawn, metrics.f1(drawn)[:, :2].mean(1))
    figure = result["test"]["macro_f1_without_rarest"]
    assert figure["lo"] < figure["value"] < figure["hi"]
    # validation of which another class is the rarest
    labels = np.where(run.val.labels == 1, 2, run.val.labels)
    labels[:3] = 1
    write_npz(run.folder / "predictions/val.npz", labels=labels, logits=run.val.logits, ids=run.val.ids,
              groups=run.val.groups, class_names=np.array(NAMES))
    val = Run(run.folder).val
    on_val = protocol.evaluate(val, run.test, FAST).result["val"]
    counts = metrics.confusion(val.labels, val.probabilities.argmax(1), 3)
    assert on_val["macro_f1_without_rarest"]["value"] == pytest.approx(metrics.f1(counts)[:2].mean())


def test_of_two_classes_it_is_undefined_and_not_printed(tmp_path, capsys):
    given = arrays_of("test", 90, 0)
    write_npz(tmp_path / "two.npz", labels=given["labels"] % 2, logits=given["logits"][:, :2])
    evaluate.main([str(tmp_path / "two.npz"), "--out", str(tmp_path), "--replicates", "200"])
    result = read_json(tmp_path / "metrics.json")
    assert result["conventions"]["rarest_class"] is None
    assert result["test"]["macro_f1_without_rarest"]["value"] is None
    assert "without" not in capsys.readouterr().out.partition("\n\n")[2].partition("\n\n")[0]
