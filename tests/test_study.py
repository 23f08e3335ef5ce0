"""A study runs what is missing, however it was stopped before, and names what failed."""

import importlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import evaluate
import registry
import study
from kd import errors, runs
from kd.errors import UserError
from kd.files import lock, read_csv, read_json, read_npz, write_npz
from kd.study import executors, plan
from kd.study.step import Step

PLAN = {"data": "lesions,images=90", "size": 32, "epochs": 1, "batch": 32, "workers": 0,
        "train_teacher": {"teacher": "tiny"},
        "distill": {"student": "tiny", "methods": {"alone": {"alpha": 1}, "kd": {"alpha": 0.5}}},
        "evaluate": {"replicates": 100}}


@pytest.fixture
def go(tmp_path, monkeypatch, capsys):
    """go(plan) carries out a plan in this process and returns (scripts that ran, what was printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executors, "Local", Here)
    import report
    monkeypatch.setattr(report, "main", lambda argv: None)  # pages are drawn in tests of their own

    def carry_out(plan=PLAN, *more):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
        capsys.readouterr()
        study.main(["plan.yaml", *more])
        printed = capsys.readouterr().out
        commands = [shlex.split(line.split("] ")[1]) for line in printed.splitlines() if "] python " in line]
        return [Path(command[1]).stem for command in commands], printed
    carry_out.folder = tmp_path / "runs" / "plan"
    return carry_out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder for a copy of the study of PLAN, that the first test that needs it makes."""
    return tmp_path_factory.mktemp("finished") / "plan"


@pytest.fixture
def done(go, finished):
    """go(), where PLAN has been carried out already."""
    if finished.exists():
        shutil.copytree(finished, go.folder)
    else:
        go()
        shutil.copytree(go.folder, finished)
    return go


class Here(executors.Local):
    """An executor that runs steps in this process."""

    def start(self, step):
        script, *arguments = step.command
        try:
            importlib.import_module(Path(script).stem).main(arguments)
            return "", False
        except Exception as error:
            user_error = errors.of_user(error, registry.RegistryError)
            return user_error.one_line if user_error else f"{type(error).__name__}: {error}", False

    def poll(self, ended):
        return ended

    def stop(self, ended):
        pass


WHOLE = ["train_teacher", "distill", "distill", "evaluate", "evaluate", "report"]


def test_a_study_does_everything_once_and_then_nothing(go):
    ran, printed = go()
    assert ran == WHOLE and "teacher_tiny  to do" in printed and "robustness    not in this plan" in printed
    for name in ("teacher_tiny", "tiny_alone", "tiny_kd"):
        assert (go.folder / name / "seed_0" / "metrics.json").is_file()
    assert (go.folder / "comparison.csv").is_file()
    ran, printed = go()
    assert ran == [] and "nothing to do" in printed and "to do\n" not in printed.split("nothing")[0]


def test_what_has_changed_is_done_again_with_all_that_depends_on_it(done):
    metrics = done.folder / "tiny_kd" / "seed_0" / "metrics.json"
    evaluate.main(["runs/plan", "--replicates", "100"])                    # as it was: nothing is stale
    assert done()[0] == []
    evaluate.main(["runs/plan/tiny_kd/seed_0", "--replicates", "200"])     # other figures than the plan's
    assert done()[0] == ["evaluate"] and read_json(metrics)["conventions"]["replicates"] == 100
    (done.folder / "comparison.csv").unlink()
    assert done()[0] == ["evaluate"]                                         # the report's input is back as it was
    changed = {**PLAN, "evaluate": {"replicates": 150}}
    assert done(changed)[0] == ["evaluate", "evaluate", "report"]
    methods = {"alone": {"alpha": 1}, "kd": {"alpha": 0.5, "seeds": 0}}
    more = {**changed, "distill": {**PLAN["distill"], "seeds": [0, 1], "methods": methods}}
    assert done(more)[0] == ["distill", "evaluate", "evaluate", "report"]
    predictions = done.folder / "tiny_alone" / "seed_1" / "predictions" / "test.npz"
    arrays = read_npz(predictions)
    write_npz(predictions, **{**arrays, "logits": arrays["logits"][::-1].copy()})
    assert done(more)[0] == ["distill", "evaluate", "evaluate", "report"]    # distill.py finds that run finished


def test_a_study_that_was_copied_or_touched_is_as_far_as_it_was(done, tmp_path):
    for file in done.folder.rglob("*"):
        os.utime(file, (1e9, 1e9))
    assert done()[0] == []
    shutil.copytree(done.folder, tmp_path / "elsewhere" / "plan")
    shutil.rmtree(done.folder)
    shutil.move(tmp_path / "elsewhere" / "plan", done.folder)
    assert done()[0] == []


def test_runs_made_by_a_scheduler_are_checked_and_left_as_they_are(go):
    commands = [shlex.split(line)[1:] for line in go(PLAN, "--dry-run")[1].splitlines() if not line.startswith("#")]
    for script, *arguments in commands[:3]:
        assert Here().start(Step([script, *arguments], ".")) == ("", False)
    before = {file: file.stat().st_mtime_ns for file in go.folder.rglob("best.pt")}
    ran, printed = go()
    assert ran == WHOLE and printed.count("finished already, left as it is") == 3 and printed.count("to check") == 3
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_other_options_for_a_finished_run_are_said_with_the_ways_out_and_nothing_is_lost(done, capsys):
    with pytest.raises(UserError, match="2 of 2 steps failed"):
        done({**PLAN, "distill": {**PLAN["distill"], "epochs": 2}})
    summary = capsys.readouterr().out.split("steps done")[1]
    for words in (
        "runs/plan/tiny_kd/seed_0 was made with other options: epochs was 1, now 2",
        "its method another name",
        "new `study:`",
        "or delete that folder",
    ):
        assert words in summary, words
    assert done()[0] == []


def test_one_failure_stops_only_what_needs_it_and_the_end_says_so(go, capsys):
    methods = {"alone": {"alpha": 1}, "wild": {"alpha": 1, "lr": 1e30, "clip": 0, "batch": 8}, "kd": {}}
    plan = {**PLAN, "distill": {**PLAN["distill"], "methods": methods}}
    with pytest.raises(UserError, match="1 of 7 steps failed"):
        go(plan)
    summary = capsys.readouterr().out.split("steps done")[1]
    assert "tiny_wild/seed_0: " in summary and "no longer a number" in summary
    assert runs.finished(go.folder / "tiny_kd" / "seed_0") and (go.folder / "comparison.csv").is_file()
    methods["wild"] = {"alpha": 1}
    shutil.rmtree(go.folder / "tiny_wild")
    assert go(plan)[0] == ["distill", "evaluate", "evaluate", "report"]  # that one, and what depends on all


def test_without_its_teacher_a_student_is_not_begun_and_the_others_are(go, capsys, monkeypatch):
    import train_teacher
    monkeypatch.setattr(train_teacher, "main", lambda argv: 1 / 0)
    with pytest.raises(UserError, match="2 of 5 steps failed"):  # no comparison of one model, no step for it
        go()
    printed = capsys.readouterr().out
    assert "tiny_kd/seed_0: it needs teacher_tiny/seed_0" in printed and "ZeroDivisionError" in printed
    assert not (go.folder / "tiny_kd").exists() and (go.folder / "tiny_alone" / "seed_0" / "metrics.json").is_file()


def test_results_that_a_failed_step_leaves_behind_are_called_out_of_date(done, capsys, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(UserError, match="1 of 3 steps failed"):
        broken.setattr(evaluate, "compare_models", lambda *arguments: 1 / 0)
        done({**PLAN, "evaluate": {"replicates": 150}})
    error = "compare: ZeroDivisionError: division by zero (what it wrote before is out of date)"
    assert error in capsys.readouterr().out
    assert done()[0] == ["evaluate", "report"]  # the comparison has the old options, and so has the plan now


def test_a_damaged_record_costs_work_and_no_result(done):
    for text in ("{", '{"tasks": 3}', '{"tasks": {"evaluate": 3}, "files": {"x": 1}}'):
        (done.folder / "study.json").write_text(text)
        assert done(PLAN, "--dry-run")[1].count("\npython ") == len(WHOLE)
    assert done()[0] == WHOLE


class Killed(BaseException):
    """An exception that nothing catches."""


def tables(folder):
    """{path: content} of all figures of a study but times."""
    contents = {}
    report_tables = ("students_summary", "seeds", "deltas_per_class", "calibration", "operating_points", "exports",
                     "roles")
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.name in ("metrics.json", "seeds.json", "comparison.csv"):
            contents[path] = file.read_text(encoding="utf-8")
        if file.suffix == ".npz" and file.parent.name == "predictions":
            contents[path] = read_npz(file)["logits"].tolist()
        if file.name in ("robustness.csv", "robustness_summary.csv"):
            contents[path] = [{column: text for column, text in row.items() if not column.startswith("seconds")}
                              for row in read_csv(file)]
        if file.parent.name == "tables" and file.stem in report_tables:
            contents[path] = file.read_text(encoding="utf-8")
        if file.name == "parity.json":
            contents[path] = read_json(file)
    return contents


def test_stopped_at_any_write_and_started_again_it_ends_with_the_same_tables(done, monkeypatch):
    expected, replace = tables(done.folder), os.replace
    assert len(expected) == 3 * 3 + 1  # metrics and two predictions of each of three runs, and the comparison
    points = random.Random(0).sample(range(1, 40), 2)
    for point in points:
        shutil.rmtree(done.folder)
        left = iter(range(point))

        def until(*arguments):
            if next(left, None) is None:
                raise Killed
            return replace(*arguments)
        monkeypatch.setattr(os, "replace", until)
        with pytest.raises(Killed):
            done()
        monkeypatch.setattr(os, "replace", replace)
        done()
        assert tables(done.folder) == expected, f"stopped at write {point}"


def test_two_studies_of_one_plan_do_not_write_side_by_side(go):
    with lock(go.folder / ".study.lock"):
        with pytest.raises(UserError, match="the study .* is being written by"):
            go()


def test_commands_are_quoted_for_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "it's $HOME; echo `x`"
    plan = {**PLAN, "out": name, "distill": {**PLAN["distill"], "hard": "focal,gamma=2"}}
    (tmp_path / "plan of mine.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    study.main([str(tmp_path / "plan of mine.yaml"), "--dry-run"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    parsers = study.script_parsers()
    for line, script in zip(lines, WHOLE):
        words = shlex.split(line)
        assert words[:2] == ["python", (study.HERE / f"{script}.py").as_posix()]
        options = parsers[script].parse_args(words[2:])
        assert (options.out == name) if script in ("train_teacher", "distill") else f"{name}/plan_of_mine" in words
    assert "# plan of mine.yaml" in printed or "plan of mine.yaml: 3 networks, of which 0 are done" in printed


def test_each_training_has_a_device_of_its_own_and_says_which(go, monkeypatch):
    monkeypatch.setattr(executors, "visible_devices", lambda: ["GPU-a", "MIG-b"])
    methods = {"alone": {"alpha": 1}, "kd": {"alpha": 0.5, "device": "cpu"}, "other": {"alpha": 1, "epochs": 2}}
    given, start = {}, Here.start

    def recorded(executor, step):
        name = next((word[7:] for word in step.command if word.startswith("--name=")), Path(step.command[0]).stem)
        given[name] = step.environment.get("CUDA_VISIBLE_DEVICES")
        return start(executor, step)
    monkeypatch.setattr(Here, "start", recorded)
    printed = go({**PLAN, "distill": {**PLAN["distill"], "methods": methods}}, "--jobs", "4")[1]
    assert given == {"teacher_tiny": "GPU-a", "tiny_alone": "MIG-b", "tiny_kd": None, "tiny_other": "GPU-a",
                     "evaluate": None, "report": None}
    assert printed.count("  device: GPU-a") == 2 and printed.count("  device: MIG-b") == 1
    assert "note: 2 at once, not 3: --per-device is 1, and the devices are GPU-a, MIG-b" in printed
    shutil.rmtree(go.folder)
    assert "note: 2 at once" not in go(PLAN, "--jobs", "4", "--per-device", "2")[1]


def test_options_of_another_executor_are_refused(go):
    for words, hint, argv in (
            ("--slurm has no meaning with --executor local", "Leave it out", ["--slurm", "partition=gpu"]),
            ("--per-device has no meaning with --executor slurm", "Leave it out",
             ["--executor", "slurm", "--per-device", "2"]),
            ("'partition' is not KEY=VALUE", "--help", ["--executor", "slurm", "--slurm", "partition"])):
        with pytest.raises(UserError, match=words) as caught:
            go(PLAN, *argv)
        assert hint in caught.value.hint and not go.folder.exists() or not list(go.folder.iterdir())


def test_the_dry_run_says_the_same_for_every_executor(go):
    printed = [go(PLAN, "--dry-run", "--executor", name)[1] for name in ("local", "ray", "slurm")]
    assert printed[0] == printed[1] == printed[2] and printed[0].count("\npython ") == len(WHOLE)


# ---- with real processes


def real(tmp_path, *more, **options):
    """A study in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C
    process = subprocess.Popen(
        [sys.executable, str(study.HERE / "study.py"), "plan.yaml", *more], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options,
    )
    signal.signal(signal.SIGINT, before)
    return process


def test_seeds_of_a_model_with_a_long_name_have_logs_of_their_own():
    names = [f"{stage}{'x' * 80}/seed_{seed}" for stage in ("", "export ") for seed in (0, 1)]
    log_names = {study.log_name(plan.Task(name, "", [], [], [])) for name in names}
    assert len(log_names) == 4 and all("/" not in name for name in log_names)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_ten_kills_at_random_moments_end_with_the_tables_of_the_unbroken_study(tmp_path):
    plan = {**PLAN, "epochs": 3, "export": {"calibration": 32, "max_flips": 1},
            "benchmark": {"backends": ["onnxruntime"], "seconds": 0.2}}
    for place in ("unbroken", "broken"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    start = time.monotonic()
    done = real(tmp_path / "unbroken")
    printed = done.communicate()[0]
    assert done.returncode == 0, printed
    whole, rng, killed = time.monotonic() - start, random.Random(0), 0
    while killed < 10:
        going = real(tmp_path / "broken")
        try:
            going.communicate(timeout=rng.uniform(0.2, 0.6) * whole)
            shutil.rmtree(tmp_path / "broken" / "runs")  # it came to its end: once more
        except subprocess.TimeoutExpired:
            killed += 1
            (os.killpg if killed % 2 else os.kill)(going.pid, signal.SIGKILL)  # every other time, the parent alone
            going.communicate()
            time.sleep(0.5)
    last = real(tmp_path / "broken")
    printed = last.communicate()[0]  # the tenth kill may have come after the last step
    assert last.returncode == 0 and ("steps done" in printed or "nothing to do" in printed), printed
    assert tables(tmp_path / "broken" / "runs" / "plan") == tables(tmp_path / "unbroken" / "runs" / "plan")


@pytest.mark.slow
def test_the_commands_of_dry_run_run_as_they_are_in_a_shell(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    environment = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    command = [sys.executable, str(study.HERE / "study.py"), "plan.yaml", "--dry-run"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not (tmp_path / "runs").exists()
    for line in listed.stdout.splitlines():
        if not line.startswith("#"):
            done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
    for name in ("comparison.csv", "report.html"):
        assert (tmp_path / "runs" / "plan" / name).is_file()


@pytest.mark.slow
def test_jobs_give_the_same_tables_write_logs_and_exit_with_a_failure_s_status(tmp_path):
    methods = {**PLAN["distill"]["methods"], "wild": {"alpha": 1, "lr": 1e30, "clip": 0, "batch": 8}}
    plan = {**PLAN, "distill": {**PLAN["distill"], "methods": methods}}
    for place, jobs in (("one", "1"), ("two", "2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
        done = real(tmp_path / place, "--jobs", jobs)
        printed = done.communicate()[0]
        assert done.returncode == 2 and "error: 1 of 7 steps failed" in printed, printed
    assert tables(tmp_path / "one" / "runs" / "plan") == tables(tmp_path / "two" / "runs" / "plan")
    logs = tmp_path / "two" / "runs" / "plan" / "logs"
    assert sorted(file.name for file in logs.iterdir()) == [f"{name}_seed_0.log" for name in (
        "teacher_tiny", "tiny_alone", "tiny_kd", "tiny_wild")]
    assert "no longer a number" in (logs / "tiny_wild_seed_0.log").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "two/runs/plan/tiny_kd/seed_0/environment.json").read_text())["threads"] == 1
