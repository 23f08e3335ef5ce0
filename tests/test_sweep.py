"""A sweep tries every combination once, chooses on validation alone, and says how many tries there were."""

import os
import re
import shutil

import numpy as np
import pytest
import yaml

import report
import reported
import study
from kd import runs, sweeps
from kd.audit import examine
from kd.errors import UserError
from kd.evaluation import compare
from kd.files import read_csv, read_json, read_npz, read_yaml, write_csv, write_json, write_npz, write_yaml
from kd.report import build, study_files
from kd.study import plan, stages, sweep
from kd.train.weights import safe_load
from test_study import PLAN, Killed, go  # noqa: F401  go: a fixture

KD = {"kd": {"alpha": [0.3, 0.6], "temperature": 2}}


@pytest.fixture(scope="module")
def parsers():
    return study.script_parsers()


@pytest.fixture
def read(tmp_path, parsers):
    """Reads a plan like PLAN with these methods, and with `changes` at its top level."""
    def reader(methods=KD, **changes):
        content = {**PLAN, "distill": {"student": "tiny", "seeds": [2, 3], "methods": methods}, **changes}
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return plan.read_plan(tmp_path / "p.yaml", parsers)
    return reader


def options(task, parsers):
    return vars(parsers[task.script].parse_args(task.arguments))


# ---- the plan


def test_all_combinations_are_tried_with_the_first_seed_and_the_networks_wait_for_the_choice(read, parsers):
    tasks = {task.name: task for task in read({"kd": {"alpha": [0.3, 0.6], "temperature": [1, 4]}}).training}
    tries = [f"sweep_tries/tiny_kd+alpha_{a}+temperature_{t}/seed_2" for a in (0.3, 0.6) for t in (1, 4)]
    assert list(tasks) == ["teacher_tiny/seed_0", *tries, "tiny_kd/choice", "tiny_kd/seed_2", "tiny_kd/seed_3"]
    assert [(options(tasks[name], parsers)[key]) for name in tries for key in ("alpha", "temperature")] == [
        .3, 1, .3, 4, .6, 1, .6, 4]
    assert {tasks[name].needs for name in tries} == {("teacher_tiny/seed_0",)}
    assert tasks["tiny_kd/choice"].needs == tuple(tries)
    for seed in (2, 3):
        task = tasks[f"tiny_kd/seed_{seed}"]
        assert "tiny_kd/choice" in task.needs
        found = options(task, parsers)
        assert (found["config"], found["seeds"]) == ("runs/p/tiny_kd/chosen.yaml", [seed])
        assert not any(word.startswith(("--alpha", "--temperature")) for word in task.arguments)


def test_a_list_of_one_value_and_lists_for_options_that_take_lists_are_no_sweeps(read, parsers):
    found = read({"kd": {"alpha": [0.3], "stage_weights": [1, 2, 3, 4], "term": ["rkd=1", "sp=2"], "seeds": [0]}})
    assert [task.name for task in found.training] == ["teacher_tiny/seed_0", "tiny_kd/seed_0"] and not found.sweeps
    parsed = options(found.training[-1], parsers)
    assert (parsed["alpha"], parsed["stage_weights"], parsed["term"]) == (.3, [1, 2, 3, 4], ["rkd=1", "sp=2"])


def test_lists_in_all_places_are_sweeps_and_the_nearest_place_counts(read):
    methods = {"a": {"alpha": 1}, "b": {"alpha": 1, "lr": 0.01}}
    found = read(methods, lr=["1e-3", 2e-3, 3e-3], train_teacher={"teacher": "tiny", "lr": ["1e-3", "2e-3"]})
    assert {model: len(one.tries) for model, one in found.sweeps.items()} == {"teacher_tiny": 2, "tiny_a": 3}
    students = read({"kd": {"student": ["tiny", "mobilenetv2"], "alpha": [0, 1]}})
    assert list(students.sweeps) == ["tiny_kd", "mobilenetv2_kd"]


def test_students_of_a_swept_teacher_wait_for_the_chosen_one(read, parsers):
    tasks = {task.name: task for task in read(train_teacher={"teacher": "tiny", "lr": [0.1, 0.01]}).training}
    assert [task.needs for name, task in tasks.items() if name.startswith("sweep_tries/tiny_kd")] == [
        ("teacher_tiny/seed_0",)] * 2
    assert tasks["teacher_tiny/seed_0"].needs == ("teacher_tiny/choice",)
    assert options(tasks["tiny_kd/seed_3"], parsers)["teacher"] == ["runs/p/teacher_tiny/seed_0"]


def test_a_try_that_reads_no_teacher_waits_for_none(read):
    needs = {task.name: task.needs for task in read({"kd": {"alpha": [0.5, 1]}}).training}
    assert needs["sweep_tries/tiny_kd+alpha_0.5/seed_2"] and not needs["sweep_tries/tiny_kd+alpha_1/seed_2"]
    assert "teacher_tiny/seed_0" in needs["tiny_kd/seed_2"]


def test_names_of_tries_are_folders_that_differ_and_do_not_depend_on_the_other_tries():
    values = [{"hard": "ce"}, {"hard": "focal,gamma=2"}, {"hard": "focal,gamma,2"}, {"lr": 1e-5}, {"lr": 1.00000001e-5},
              {"init": "x" * 200 + "a"}, {"init": "x" * 200 + "b"}, {"alpha": 1.0}, {"alpha": .5, "temperature": 4.0}]
    names = [sweep.name("tiny_kd", one) for one in values]
    assert len({name.lower() for name in names}) == len(names) and all(runs.safe(name) == name for name in names)
    assert names[0] == "tiny_kd+hard_ce" and names[-1] == "tiny_kd+alpha_0.5+temperature_4"


@pytest.mark.parametrize("changes, message, hint", [
    ({"alpha": []}, "distill: methods: kd: alpha is an empty list", "Name one value"),
    ({"alpha": [0.5, ".5"]}, "kd: alpha has '.5' twice", "each value once"),
    ({"alpha": [0.5, 2]}, "distill: methods: kd: .*'2' is not a number from 0 to 1", ""),
    ({"alpha": [0.5, None]}, "kd: alpha has None in its list", "a number or a text"),
    ({"alpha": [0.5, [0.2]]}, "kd: alpha has \\[0.2\\] in its list", "a number or a text"),
    ({"temperature": ["8:1", "8:1"]}, "kd: temperature has '8:1' twice", ""),
    ({"split_seed": [0, 1]}, "kd: split_seed takes one value", ""),
    ({"device": ["cpu", "cuda"]}, "kd: device takes one value", ""),
    ({"compile": [True, False]}, "kd: compile is true or false", ""),
    ({"alpha": [k / 100 for k in range(100)], "temperature": list(range(1, 20))}, "make 1,900 trainings", "shorter"),
    ({"alpha": [k / 1000 for k in range(999)]}, "trains more than 1000 networks", "several plans"),
])
def test_a_list_that_is_no_sweep_is_one_line_that_says_why(read, changes, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        read({"kd": changes})
    assert "\n" not in caught.value.message and caught.value.message.count("p.yaml") == 1
    assert re.search(hint, caught.value.hint)


def test_other_sections_and_shared_options_name_their_place(read):
    with pytest.raises(UserError, match="p.yaml: lr is an empty list"):
        read(lr=[])
    with pytest.raises(UserError, match="p.yaml: .*'x' is not a"):
        read(lr=[0.1, "x"])
    with pytest.raises(UserError, match="train_teacher: teacher takes one value"):
        read(train_teacher={"teacher": ["tiny", "resnet18"]})
    with pytest.raises(UserError, match="evaluate: bins takes one value"):
        read(evaluate={"bins": [10, 15]})
    with pytest.raises(UserError, match="a study cannot be called sweep_tries"):
        read(study="sweep_tries")


# ---- the choice


def tried(folder, alpha, scores, test_accuracy=1.0, **config):
    """A finished try whose validation macro-F1 by epoch is `scores`; all of its test images get `test_accuracy`."""
    run = folder / runs.TRIES / f"tiny_kd+alpha_{alpha}" / "seed_2"
    write_csv(run / "history.csv", [{"epoch": k, "loss": 1, "val_macro_f1": score, "val_loss": 1 - score, "seconds": 1}
                                    for k, score in enumerate(scores, 1)])
    write_yaml(run / "config.yaml", {"alpha": alpha, "out": "runs/p", "study": runs.TRIES, "name": run.parent.name,
                                     **config})
    labels = np.arange(10) % 2
    wrong = np.arange(10) >= 10 * test_accuracy
    write_npz(run / runs.TEST, labels=labels, logits=np.eye(2)[labels ^ wrong] * 5., ids=np.arange(10).astype(str),
              class_names=np.array(["a", "b"]))
    return {"alpha": alpha}, plan.Task("", "", [], [], [], run=run)


@pytest.fixture
def of_kd(tmp_path):
    """A Sweep of tiny_kd without tries."""
    return sweep.Sweep("tiny_kd", tmp_path / "p", 2)


def test_the_choice_follows_validation_where_test_would_choose_otherwise(of_kd):
    of_kd.tries = [tried(of_kd.folder, .1, [.2, .5, .3], test_accuracy=1.0), tried(of_kd.folder, .2, [.4, .6], .5),
                   tried(of_kd.folder, .3, [.1, .59], .9)]
    content = sweep.choose(of_kd, "p.yaml")
    assert content == read_json(of_kd.folder / "tiny_kd" / "sweep.json") == sweeps.read(of_kd.folder / "tiny_kd")
    assert content["chosen"] == {"alpha": .2} == read_yaml(of_kd.chosen_file) and content["chosen_on"] == "val"
    assert [(one["value"], one["epoch"]) for one in content["tries"]] == [(.5, 2), (.6, 2), (.59, 2)]
    for _, task in of_kd.tries:
        (task.run / runs.TEST).write_bytes(b"what nobody reads")
    assert sweep.choose(of_kd, "p.yaml") == content


def test_of_equal_tries_the_first_is_chosen_and_a_loss_is_better_when_it_is_lower(of_kd):
    of_kd.tries = [tried(of_kd.folder, alpha, [score]) for alpha, score in ((.1, .5), (.2, .6), (.3, .6))]
    assert sweep.choose(of_kd, "p.yaml")["chosen"] == {"alpha": .2}
    of_kd.tries = [tried(of_kd.folder, alpha, [score], select="nll") for alpha, score in ((.1, .5), (.2, .6), (.3, .4))]
    content = sweep.choose(of_kd, "p.yaml")
    assert content["metric"] == "nll" and content["chosen"] == {"alpha": .2}
    assert content["tries"][1]["value"] == pytest.approx(.4)


def test_the_chosen_try_becomes_the_run_of_its_seed_and_what_is_there_stays(of_kd):
    of_kd.tries = [tried(of_kd.folder, alpha, [score]) for alpha, score in ((.1, .5), (.2, .6))]
    remnant = of_kd.folder / runs.TRIES / ".tiny_kd.copy"  # of a kill
    shutil.copytree(of_kd.tries[0][1].run, remnant)
    sweep.choose(of_kd, "p.yaml")
    run, folder = of_kd.folder / "tiny_kd" / "seed_2", of_kd.tries[1][1].run
    assert (run / runs.TEST).read_bytes() == (folder / runs.TEST).read_bytes() and not remnant.exists()
    config = read_yaml(run / "config.yaml")
    assert (config["alpha"], config["study"], config["name"]) == (.2, "p", "tiny_kd")
    write_yaml(run / "config.yaml", {"mine": 1})
    sweep.choose(of_kd, "p.yaml")
    assert read_yaml(run / "config.yaml") == {"mine": 1}


def test_tries_that_the_plan_no_longer_has_still_count(of_kd):
    of_kd.tries = tries = [tried(of_kd.folder, alpha, [score]) for alpha, score in ((.1, .5), (.2, .6), (.3, .4))]
    sweep.choose(of_kd, "p.yaml")
    of_kd.tries = tries[1:]
    content = sweep.choose(of_kd, "p.yaml")
    assert [one["options"]["alpha"] for one in content["earlier"]] == [.1] and sweeps.count(content) == 3
    of_kd.tries = tries
    assert sweep.choose(of_kd, "p.yaml")["earlier"] == []


def test_a_try_that_has_not_ended_is_named(of_kd):
    of_kd.tries = [tried(of_kd.folder, alpha, [score]) for alpha, score in ((.1, .5), (.2, .6))]
    (of_kd.tries[1][1].run / runs.TEST).unlink()
    with pytest.raises(UserError, match="alpha_0.2/seed_2 has not ended") as caught:
        sweep.choose(of_kd, "p.yaml")
    assert "study.py p.yaml --dry-run" in caught.value.hint and not (of_kd.folder / "tiny_kd").exists()


@pytest.mark.parametrize("change", [
    {"tries": []}, {"chosen": {"alpha": .7}}, {"chosen": {}}, {"metric": 3}, {"earlier": [{}]}, {"chosen_on": None},
    {"tries": [{"options": {"alpha": .2}, "value": "x"}]}, {"tries": [{"options": {"alpha": [1]}, "value": 1}]},
])
def test_a_damaged_record_is_one_line(of_kd, change):
    of_kd.tries = [tried(of_kd.folder, .1, [.5]), tried(of_kd.folder, .2, [.6])]
    content = sweep.choose(of_kd, "p.yaml")
    write_json(of_kd.folder / "tiny_kd" / "sweep.json", {**content, **change})
    with pytest.raises(UserError, match="sweep.json is not what study.py writes"):
        sweeps.read(of_kd.folder / "tiny_kd")


# ---- the whole study


SWEPT = {**PLAN, "distill": {"student": "tiny", "seeds": [0, 1], "methods": {"kd": {"alpha": [0.2, 0.8]}}}}


def test_a_sweep_from_end_to_end(go, parsers):  # noqa: F811
    ran, printed = go(SWEPT)
    assert ran == ["train_teacher", *["distill"] * 2, "study", *["distill"] * 2, *["evaluate"] * 2, "report"]
    assert "tiny_kd       0 of 2 tries  to do" in printed
    assert "the best of 2 tries on validation (macro_f1 0." in printed
    content = read_json(go.folder / "tiny_kd" / "sweep.json")
    values = [max(float(row["val_macro_f1"]) for row in read_csv(go.folder / one["run"] / "history.csv"))
              for one in content["tries"]]
    assert [one["value"] for one in content["tries"]] == values
    chosen = content["tries"][values.index(max(values))]
    assert content["chosen"] == chosen["options"]
    for seed in (0, 1):
        assert read_yaml(go.folder / f"tiny_kd/seed_{seed}/config.yaml")["alpha"] == content["chosen"]["alpha"]
    assert {run.parent.name for run in runs.find(go.folder)} == {"teacher_tiny", "tiny_kd"}
    assert runs.find(go.folder / runs.TRIES) and not list((go.folder / runs.TRIES).rglob("metrics.json"))
    rows = read_csv(go.folder / "comparison.csv")
    assert {(row["reference_tries"], row["model_tries"]) for row in rows} == {("1", "2")}
    assert go(SWEPT)[0] == []
    # the copy is what the training of the model would have been
    run, again = go.folder / "tiny_kd" / "seed_0", go.folder / "again"
    run.rename(again)
    assert go(SWEPT)[0][0] == "distill"
    weights = [safe_load(folder / "best.pt")["state_dict"] for folder in (run, again)]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    assert (read_npz(run / runs.TEST)["logits"] == read_npz(again / runs.TEST)["logits"]).all()
    assert read_yaml(run / "config.yaml") == read_yaml(again / "config.yaml")


ALONE = {**{key: value for key, value in PLAN.items() if key != "train_teacher"}, "distill": {
    "student": "tiny", "methods": {"a": {"alpha": 1, "lr": [1e-3, 1e-4]}}}}


def test_a_sweep_that_is_killed_at_any_write_goes_on_and_chooses_alike(go, monkeypatch):  # noqa: F811
    def outcome():
        files = ("sweep.json", "chosen.yaml", "seed_0/metrics.json", "seed_0/config.yaml")
        return [(go.folder / "tiny_a" / name).read_text() for name in files]

    written, replace = [], os.replace

    def noted(source, target):
        written.append(str(target))
        return replace(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", noted)
        go(ALONE)
    expected = outcome()
    points = [k for k, path in enumerate(written) if path.endswith(("sweep.json", "chosen.yaml"))
              or path.endswith("config.yaml") and ".tiny_a.copy" in path or path.endswith("lr_0.0001/seed_0/best.pt")]
    assert len(points) == 4
    for point in points:
        shutil.rmtree(go.folder)
        left = iter(range(point))

        def until(*arguments):
            if next(left, None) is None:
                raise Killed
            return replace(*arguments)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", until)
            go(ALONE)
        go(ALONE)
        assert outcome() == expected, f"stopped before {written[point]}"


def test_a_further_value_is_tried_alone_and_a_new_choice_overwrites_nothing(go, capsys):  # noqa: F811
    go(ALONE)
    method = {"alpha": 1, "lr": [1e-3, 1e-4, 1e-5]}
    further = {**ALONE, "distill": {**ALONE["distill"], "methods": {"a": method}}}
    commands = [line for line in go(further, "--dry-run")[1].splitlines() if "distill.py" in line or "study.py" in line]
    assert "--lr=1e-05" in commands[0] and commands[1].endswith("--choose=tiny_a")
    assert len(commands) == 3 and "--config=runs/plan/tiny_a/chosen.yaml" in commands[2]
    chosen = read_json(go.folder / "tiny_a" / "sweep.json")["chosen"]["lr"]
    other = 1e-4 if chosen == 1e-3 else 1e-3
    history = go.folder / sweeps_run(other) / "history.csv"
    write_csv(history, [{**row, "val_macro_f1": .99} for row in read_csv(history)])
    weights = (go.folder / "tiny_a" / "seed_0" / "best.pt").read_bytes()
    with pytest.raises(UserError, match="1 of . steps failed"):
        go(ALONE)
    assert f"was made with other options: lr was {chosen}, now {other}" in capsys.readouterr().out
    assert (go.folder / "tiny_a" / "seed_0" / "best.pt").read_bytes() == weights


def sweeps_run(lr):
    """The folder of a try of ALONE."""
    return f"{runs.TRIES}/{sweep.name('tiny_a', {'lr': lr})}/seed_0"


def test_a_choice_by_hand_needs_a_sweep_of_that_name(go):  # noqa: F811
    with pytest.raises(UserError, match="no sweep of 'tiny_b'") as caught:
        go(ALONE, "--choose", "tiny_b")
    assert caught.value.hint == "It has sweeps of tiny_a."
    with pytest.raises(UserError, match="has not ended"):
        go(ALONE, "--choose", "tiny_a")


# ---- what is said about it


def with_sweep(root, model, options, values, **more):
    """sweep.json of a model, and the chosen options in the config.yaml of its runs."""
    tries = [{"options": one, "value": value, "epoch": 3, "run": "elsewhere"} for one, value in zip(options, values)]
    chosen = sweeps.best("macro_f1", tries)["options"]
    content = {"chosen_on": "val", "metric": "macro_f1", "seed": 0, "tries": tries, "chosen": chosen, "earlier": []}
    write_json(root / model / "sweep.json", {**content, **more})
    for file in (root / model).glob("*/config.yaml"):
        write_yaml(file, {**read_yaml(file), **chosen})


GRID = [{"alpha": a, "hard": h} for a in (.1, .5, 2.) for h in ("ce", "focal,gamma=2")]


def test_the_report_shows_the_tries_beside_the_result_and_draws_them(tmp_path):
    root = reported.write_study(tmp_path / "toy")
    with_sweep(root, "small_kd", GRID, [.1, .2, .3, .35, .3, .2], earlier=[
        {"options": {"alpha": .9, "hard": "ce"}, "value": .2, "epoch": 1}])
    page = reported.Page(report.main([str(root)]).read_text(encoding="utf-8"))
    told = "best of 7 tries on validation (alpha 0.5, hard focal,gamma=2)"
    assert page.rows("students_summary")["small_kd",]["sweep"] == [told]
    assert page.rows("students_summary")["small_alone",]["sweep"] == ["–"]
    assert "small_kd is the best of 7 tries on these validation images" in page.text
    assert "the best of 7 tries on validation (macro-F1 0.350), 1 of them no longer in the plan." in page.text
    wide, narrow = [d for d in page.drawings() if d.get("aria-label").startswith("Sweep of small_kd")]
    for drawing in (wide, narrow):
        assert {"alpha", "hard", "0.1", "0.5", "2", "ce", "focal,gamma=2"} <= set(reported.words(drawing))
    assert [row["value"] for row in read_csv(root / "tables" / "sweeps.csv")] == [
        "0.1", "0.2", "0.3", "0.35", "0.3", "0.2", "0.2"]


def test_a_choice_at_the_end_of_a_list_is_said(tmp_path, monkeypatch):
    reported.without_drawings(monkeypatch)
    root = reported.write_study(tmp_path / "toy")
    with_sweep(root, "small_kd", [{"alpha": a} for a in (.1, .2, .3)], [.1, .2, .3])
    assert "alpha 0.3 is the largest that was tried: a better one may lie beyond." in reported.paged(root).text
    (root / "small_kd" / "sweep.json").write_text("{}")
    page = reported.paged(root)
    assert "sweep.json is not what study.py writes" in page.text and not page.tables.get("sweeps")


def test_tries_are_no_models_of_the_study(tmp_path, monkeypatch):
    reported.without_drawings(monkeypatch)
    root = reported.write_study(tmp_path / "toy")
    before = reported.paged(root).text
    audited, compared = examine.audit_paths([root]), compare.models([str(root)])
    shutil.copytree(root / "small_kd", root / runs.TRIES / "small_kd+alpha_0.3")
    shutil.copytree(root / "small_kd" / "seed_0" / "predictions", root / runs.TRIES / "x" / "tb" / "y")
    assert reported.paged(root).text == before and examine.audit_paths([root]) == audited
    assert [model.name for model in compare.models([str(root)])] == [model.name for model in compared]
    assert len(runs.find(root / runs.TRIES)) == 2 and runs.is_run(root / runs.TRIES / "small_kd+alpha_0.3")


def test_only_the_report_and_the_comparison_follow_on_another_number_of_tries(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read()
    (found.folder / "tiny_kd").mkdir(parents=True)
    (found.folder / "tiny_kd" / "sweep.json").write_text("{}")
    readers = {stage for stage in stages.STAGES[1:]
               for task in stages.tasks(found, stage, [task.run for task in found.networks])
               if found.folder / "tiny_kd" / "sweep.json" in task.inputs}
    assert readers == {"compare", "report"}


def test_sections_of_a_study_without_a_sweep_say_nothing_of_one(tmp_path):
    sections = build.build(study_files.read_study(reported.write_study(tmp_path / "toy")))
    assert [section.blocks for section in sections if section.key == "sweeps"] == [[]]
