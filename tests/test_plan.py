"""A plan becomes the commands that it describes, or one line that says why it cannot."""

import re
import shlex

import pytest
import yaml

import study
from kd.errors import UserError
from kd.study import stages
from kd.study.plan import read_plan

PLAN = """
data: lesions,images=100
size: 32
train_teacher: {teacher: resnet18, epochs: 7}
distill:
  student: [tiny, mobilenetv2]
  seeds: [0, 1]
  methods:
    alone: {alpha: 1}
    kd: {alpha: 0.5, temperature: 2}
    at: {beta: 1000, student: tiny, seeds: 3}
export: {formats: onnx}
"""


@pytest.fixture(scope="module")
def parsers():
    return study.script_parsers()


@pytest.fixture
def read(tmp_path, parsers):
    """Reads a plan of this text, with `changes` at its top level."""
    def reader(text=PLAN, **changes):
        content = yaml.safe_dump({**yaml.safe_load(text), **changes}) if changes else text
        (tmp_path / "my study.yaml").write_text(content, encoding="utf-8")
        return read_plan(tmp_path / "my study.yaml", parsers)
    return reader


def options(task, parsers):
    return vars(parsers[task.script].parse_args(task.arguments))


def test_each_student_is_trained_by_each_method_once_a_seed_and_the_teacher_first(read):
    plan = read()
    assert [task.name for task in plan.training] == [
        "teacher_resnet18/seed_0", "tiny_alone/seed_0", "tiny_alone/seed_1", "mobilenetv2_alone/seed_0",
        "mobilenetv2_alone/seed_1", "tiny_kd/seed_0", "tiny_kd/seed_1", "mobilenetv2_kd/seed_0",
        "mobilenetv2_kd/seed_1", "tiny_at/seed_3"]
    assert plan.folder.as_posix() == "runs/my_study"


def test_a_command_has_the_options_of_all_of_its_section_and_of_its_method(read, parsers):
    tasks = {task.name: task for task in read().training}
    teacher, kd = (options(tasks[name], parsers) for name in ("teacher_resnet18/seed_0", "mobilenetv2_kd/seed_1"))
    expected = {"data": "lesions,images=100", "size": 32, "epochs": 7, "teacher": "resnet18"}
    assert {key: teacher[key] for key in expected} == expected
    expected = {
        "data": "lesions,images=100", "epochs": None, "alpha": 0.5, "temperature": 2.0, "beta": 0.0,
        "student": ["mobilenetv2"], "seeds": [1], "name": "mobilenetv2_kd", "study": "my_study", "train_only": True,
        "teacher": ["runs/my_study/teacher_resnet18/seed_0"],
    }
    assert {key: kd[key] for key in expected} == expected


def test_only_what_reads_a_teacher_waits_for_it(read, parsers):
    for task in read().training[1:]:
        with_teacher = "alone" not in task.name
        assert task.needs == (("teacher_resnet18/seed_0",) if with_teacher else ())
        assert (options(task, parsers)["teacher"] is not None) == with_teacher == bool(task.inputs)


def test_a_teacher_that_is_there_needs_no_section(read, parsers, tmp_path):
    (tmp_path / "run" / "seed_2").mkdir(parents=True)
    (tmp_path / "run" / "seed_2" / "best.pt").touch()
    plan = read("distill: {student: tiny, teacher: '%s', methods: {kd: }}" % (tmp_path / "run").as_posix())
    assert [task.needs for task in plan.training] == [()]
    assert plan.training[0].inputs == [tmp_path / "run" / "seed_2" / "best.pt"]


def test_what_follows_on_training_is_what_the_plan_asks_for(read):
    plan = read()
    all_runs = [task.run for task in plan.training]
    names = {stage: [task.name for task in stages.tasks(plan, stage, all_runs)] for stage in stages.STAGES[1:]}
    first_seeds = ("teacher_resnet18/seed_0", "tiny_alone/seed_0", "mobilenetv2_alone/seed_0", "tiny_kd/seed_0",
                   "mobilenetv2_kd/seed_0", "tiny_at/seed_3")
    assert names == {"evaluate": ["evaluate"], "compare": ["compare"], "robustness": [], "benchmark": [],
                     "report": ["report"], "export": [f"export {name}" for name in first_seeds]}
    arguments = stages.tasks(plan, "export", all_runs)[0].arguments
    assert arguments == ["runs/my_study/teacher_resnet18/seed_0", "--formats=onnx"]
    of_trained = stages.tasks(plan, "export", all_runs[2:3])
    assert [task.name for task in of_trained] == ["export tiny_alone/seed_1"]
    assert stages.tasks(plan, "compare", all_runs[1:3]) == [] == stages.tasks(plan, "evaluate", [])


def test_a_plugin_of_all_networks_goes_to_the_stages_that_open_networks(read):
    plan = read(plugin="my loss.py", benchmark={"seconds": 1})
    assert plan.arguments["export"][-1] == plan.arguments["benchmark"][-1] == "--plugin=my loss.py"
    assert plan.arguments["benchmark"][0] == "--seconds=1"


def test_options_that_may_be_repeated_take_a_list(read, parsers):
    plan = read(evaluate={"target": ["mel", "bcc"], "bins": 10})
    compare, = stages.tasks(plan, "compare", [task.run for task in plan.training])
    options = parsers["evaluate"].parse_args(compare.arguments)
    assert (options.target, options.bins, options.compare) == (["mel", "bcc"], 10, True)
    assert options.paths == ["runs/my_study"]


@pytest.mark.parametrize(
    "changes, message, hint",
    [
        ({"epoch": 3}, "my study.yaml: unknown key 'epoch' outside the sections", "did you mean epochs?"),
        ({"distil": {}}, "unknown key 'distil'", "did you mean distill?"),
        ({"alpha": 0.5}, "unknown key 'alpha'", "It belongs under distill."),
        ({"seeds": [0, 1]}, "unknown key 'seeds'", "It belongs under train_teacher or distill."),
        ({"zzz": 1}, "unknown key 'zzz'", "Sections are train_teacher"),
        ({"size": "big"}, "my study.yaml: .*'big' is not a whole number", ""),
        (
            {"train_teacher": {"techer": "resnet18", "teacher": "resnet18"}},
            "train_teacher: unknown option 'techer'", "did you mean teacher?",
        ),
        ({"train_teacher": {"epochs": 3}}, "train_teacher names no teacher", "teacher: resnet50"),
        ({"train_teacher": ["resnet18"]}, "train_teacher is not a list of `option: value` lines", ""),
        (
            {"train_teacher": {"teacher": "resnet18", "name": "x"}},
            "train_teacher: name is not for a plan", "Leave it out.",
        ),
        ({"distill": {"student": "tiny"}}, "distill has no methods", "methods: {kd: {alpha: 0.5}}"),
        ({"distill": {"student": "tiny", "methods": ["kd"]}}, "distill: methods is not a list of", ""),
        ({"distill": {"student": "tiny", "methods": {"kd": 0.5}}}, "distill: methods: kd is not a list of", ""),
        ({"distill": {"methods": {"kd": {}}}}, "distill: methods: kd has no student", "student: \\[mobilenetv2\\]"),
        (
            {"distill": {"student": "tiny", "methods": {"kd": {"alpa": 1}}}},
            "distill: methods: kd: unknown option 'alpa'", "did you mean alpha?",
        ),
        (
            {"distill": {"student": "tiny", "methods": {"kd": {"alpha": 2}}}},
            "distill: methods: kd: .*'2' is not a number from 0 to 1", "",
        ),
        (
            {"distill": {"student": "tiny", "methods": {"kd": {"study": "x"}}}},
            "methods: kd: study is not for a plan", "",
        ),
        (
            {"distill": {"student": "tiny", "methods": {"k d": {}, "k/d": {}}}},
            "two networks would be called tiny_k_d", "another name",
        ),
        ({"evaluate": {"targets": "mel"}}, "evaluate: unknown option 'targets'", "did you mean target?"),
        ({"evaluate": {"compare": True}}, "evaluate: compare is not for a plan", ""),
        ({"evaluate": {"paths": "x"}}, "evaluate: unknown option 'paths'", ""),
        ({"export": {"formats": ["onxx"]}}, "export: .*invalid choice: 'onxx'", ""),
        ({"export": {"weight_range": "some"}}, "export: .*invalid choice: 'some'", ""),
    ],
)
def test_a_bad_plan_is_one_line_that_names_file_section_and_way_out(read, changes, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        read(**changes)
    assert "\n" not in caught.value.message and caught.value.message.count("my study.yaml") == 1
    assert re.search(hint, caught.value.hint)


def test_a_plan_without_a_teacher_or_without_anything_says_so(read):
    for text, message in (
        ("distill: {student: tiny, methods: {kd: }}", "needs a teacher, and the plan has none"),
        ("data: lesions", "trains nothing"),
        ("", "trains nothing"),
        ("- a", "not a list of"),
        ("a: [", "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            read(text)


def test_names_that_are_not_registered_are_found_before_anything_is_trained(tmp_path):
    for change, message in (
        ({"train_teacher": {"teacher": "resnet19"}}, "unknown architecture 'resnet19'; did you mean resnet"),
        ({"data": "lesion"}, "unknown dataset 'lesion'"),
        ({"distill": {"student": "tiny", "methods": {"kd": {"soft": "dk"}}}}, "unknown loss 'dk'"),
        ({"distill": {"student": "tinny", "methods": {"kd": {}}}}, "unknown architecture 'tinny'"),
        ({"robustness": {"corruption": ["jpeg", "jpg"]}}, "unknown corruption 'jpg'; did you mean jpeg"),
        ({"robustness": {"corruption": "jpeg,qualty=3"}}, "qualty"),
        ({"report": {"notes": "absent.md"}}, "no such file: absent.md"),
        ({"report": {"notes": ["p.yaml"]}}, "p.yaml is not read as notes"),
    ):
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({**yaml.safe_load(PLAN), **change}), encoding="utf-8")
        with pytest.raises(Exception, match=message):
            study.main([str(tmp_path / "p.yaml"), "--dry-run"])


def test_notes_are_found_from_here_and_else_beside_the_plan(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.md").touch()
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "there.md").touch()
    content = {**yaml.safe_load(PLAN), "report": {"notes": ["here.md", "there.md"]}}
    (tmp_path / "plans" / "p.yaml").write_text(yaml.safe_dump(content))
    plan = read_plan("plans/p.yaml", study.script_parsers())
    assert [file.as_posix() for file in plan.notes] == ["here.md", "plans/there.md"]
    assert plan.arguments["report"] == ["--notes", "here.md", "plans/there.md"]


@pytest.mark.parametrize("file", sorted((study.HERE / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_plans_that_ship_are_good(file, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    study.main([str(file), "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) > 5 and all(shlex.split(line)[0] == "python" for line in lines)
    assert not list(tmp_path.iterdir())
