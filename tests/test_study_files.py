"""Run folders are read as they are found: what is damaged or missing is named, the rest is shown."""

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import report
import reported
from kd import run_folder
from kd.audit import evidence, examine
from kd.errors import UserError
from kd.evaluation import compare
from kd.files import read_json, write_json, write_yaml
from kd.report import study_files
from kd.run_folder import Run
from reported import paged, write_run, write_study


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No drawings, no audit, which has tests of its own, and the template is compiled once."""
    monkeypatch.setattr(examine, "apply_rules", lambda cases: ([], []))
    reported.without_drawings(monkeypatch)


def test_what_a_run_is_stands_in_its_files_and_else_in_its_name(tmp_path):
    write_run(tmp_path / "s/mine/seed_0", teacher=None)
    write_run(tmp_path / "s/yours/seed_0", teacher="runs/s/teacher_big")
    write_run(tmp_path / "s/big/seed_0", role="teacher", teacher="big")
    write_run(tmp_path / "s/teacher_other/seed_0", role=None)
    write_run(tmp_path / "s/other_alone/seed_0", role=None)
    write_run(tmp_path / "s/teacher/seed_0", role=None)
    write_run(tmp_path / "s/teachers_pet/seed_0", role=None)
    found = study_files.read_study(tmp_path / "s").runs
    assert {run.model: run.kind for run in found} == {
        model.name: model.kind for model in compare.models([tmp_path / "s"])
    }
    assert {run.model: run.kind == "teacher" for run in found} == {
        run.model: evidence.of_run(Run(run.folder)).role == "teacher" for run in found}
    assert {run.model: run.kind for run in study_files.read_study(tmp_path / "s").runs} == {
        "mine": "alone", "yours": "student", "big": "teacher", "teacher_other": "teacher", "other_alone": "alone",
        "teacher": "teacher", "teachers_pet": "student",
    }


def not_shown(page):
    """The text of the section on what is not shown, which the table of contents names before."""
    return page.text.split("What is not shown", 2)[2].split("Roles and data")[0]


def test_missing_stale_broken_and_unfinished_runs_are_named_and_the_rest_is_shown(tmp_path, capsys):
    root = write_study(tmp_path / "toy")
    (root / "small_kd/seed_0/metrics.json").unlink()
    (root / "small_kd/seed_1/history.csv").write_bytes(b"epoch,loss\n\xff\xfe")
    content = read_json(root / "small_alone/seed_1/metrics.json")
    content["test"]["accuracy"]["value"] -= .05
    write_json(root / "small_alone/seed_1/metrics.json", content)
    write_yaml(root / "small_kd_at/seed_0/config.yaml", {"role": "student"})
    page = paged(root)
    said = not_shown(page)
    for problem in ("small_kd/seed_0: not evaluated", "python evaluate.py", "small_kd/seed_1: broken: cannot read",
                 "small_alone/seed_1: metrics.json does not belong", "small_kd_at/seed_0: not finished"):
        assert problem in said, problem
    assert {model for (model,) in page.rows("teacher_summary")} == {
        "teacher_big"
    } and "students_summary" not in page.tables
    assert set(page.rows("seeds")) == {("small_alone", "0")}
    assert len(capsys.readouterr().out.splitlines()) == 5  # four problems and the page


def test_seeds_json_of_other_runs_is_left_out_and_the_means_are_named_as_missing(tmp_path):
    root = write_study(tmp_path / "toy")
    content = read_json(root / "small_kd/seeds.json")
    content["test"]["accuracy"]["values"][0] += .1
    write_json(root / "small_kd/seeds.json", content)
    (root / "small_alone/seeds.json").unlink()
    page = paged(root)
    assert "seeds.json does not belong to the runs beside it" in page.text
    assert "Not shown: the mean over seeds of small_alone, small_kd" in page.text
    assert "students_summary" not in page.tables and len(page.rows("seeds")) == 4


METRICS = (
    b'{"test": 3}', b'{"test": {"accuracy": {"value": "x"}}}', b'{"test": {}, "confusion": [[1], [1, 2]]}',
    b'{"test": {}, "conventions": {"level": "x"}}', b'{"test": {}, "conventions": {"a": [1], "b": {"c": 2}}}',
    b'{"test": {}, "operating_points": [3]}', b'{"test": {}, "calibration": {"reliability": {"raw": [1]}}}',
    b'{"test": {}, "calibration": {"reliability": {"raw": [{}]}}}',
    b'{"test": {}, "risk_coverage": {"coverage": ["x"]}}',
    b'{"test": {}, "risk_coverage": {"coverage": [0.5], "risk": []}}',
    b'{"test": {}, "operating_points": [{"kind": "sensitivity", "test": {"sensitivity": '
    b'{"value": 1, "lo": 1, "hi": 1}}}]}',
    b'{"test": {}, "operating_points": [{"kind": "sensitivity", "promised": 0.9, "test": {}, "missed": {"lo": 0.1}}]}',
    b'{"test": {}, "operating_points": [{"kind": "abstention", "test": {}}]}',
)
GARBAGE = {  # beside what is no such file at all
    "config.yaml": (b"a: [",),
    "environment.json": (b'{"data": 3}',),
    "metrics.json": METRICS,
    "split.csv": (b"group,label,split\n1\n",),
    "history.csv": (
        b"epoch\n1\n", b"epoch,loss,val_macro_f1,seconds\n,1,1,1\n", b"epoch,loss,val_macro_f1,seconds\n1,x,1,1\n",
    ),
    "samples.npz": (),
    "predictions/test.npz": (),
    "attention.npz": (),
    "exports/parity.json": (b'{"formats": {"int8": {"test": {}}}}',),
    "benchmark.csv": (
        b"model,lat_ms_p50,batch\na,x,1\n", b"model,lat_ms_p50,batch,cpu,ckpt\na,1,1,x\n",
        b"model,lat_ms_p50,batch,cpu\na,,1,\n",
    ),
    "robustness.csv": (b"tag,macro_f1\nclean,x\n", b"tag,macro_f1\nclean,0.5\n"),
}
EXTRA = ("benchmark.csv", "exports/parity.json", "robustness.csv", "attention.npz")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A study of two runs with all parts; tests put back what they change."""
    root = tmp_path_factory.mktemp("two") / "toy"
    for name in "ab":
        write_run(root / name / "seed_0")
    reported.evaluate(root)
    return reported.write_parts(root)


@pytest.mark.parametrize("name", GARBAGE)
def test_no_damaged_file_stops_the_report(two, name):
    path = two / "a/seed_0" / name
    kept = path.read_bytes()
    try:
        for garbage in (b"", b"\x00\xff\xfe", *GARBAGE[name]):
            path.write_bytes(garbage)
            page = paged(two)
            assert len(page.rows("calibration")["b", "0"]["brier"]) == 3
            if name in ("samples.npz", "predictions/test.npz"):
                assert "a/seed_0: broken" in page.text and ("a", "0") not in page.rows("calibration")
            elif name in EXTRA:
                assert len(page.rows("calibration")["a", "0"]["brier"]) == 3
            not_shown = page.text.partition("What is not shown")[2]
            harmless = (name, garbage) == ("config.yaml", b"")  # an empty one gives no option
            assert (
                harmless
                or path.name in not_shown
                or re.search(r"Not shown: (some of benchmark\.csv|robustness) of a/seed_0\.", page.text)
            ), garbage
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("name", [*sorted(GARBAGE.keys() - {"predictions/test.npz"}), "predictions/val.npz"])
def test_a_file_that_is_not_there_is_done_without(two, name):
    path = two / "a/seed_0" / name
    kept = path.read_bytes()
    try:
        path.unlink()
        page = paged(two)
        assert (("a", "0") in page.rows("calibration")) == (name != "metrics.json")
    finally:
        path.write_bytes(kept)


def test_a_figure_without_an_interval_is_named_and_not_shown(two):
    path = two / "a/seed_0/metrics.json"
    kept = path.read_bytes()
    content = read_json(path)
    content["test"]["macro_f1"].update(lo=None, hi=None)
    del content["test"]["nll"]["hi"]
    point = next(point for point in content["operating_points"] if point["kind"] == "sensitivity")
    point["test"]["specificity"]["lo"] = None
    metrics = content["test"]["macro_f1"], content["test"]["nll"], point["test"]["specificity"]
    bare = [metric["value"] for metric in metrics]
    try:
        write_json(path, content)
        page = paged(two)
        assert "a/seed_0: not shown, for metrics.json gives no interval: macro_f1, nll. python evaluate.py" in page.text
        for table, column in (("students_summary", "macro_f1_mean"), ("calibration", "nll")):
            row = next(row for name, row in page.rows(table).items() if name[0] == "a")
            assert (
                row[column] == ["–"]
                and len(row[column.replace("nll", "brier").replace("macro_f1", "accuracy")]) == 3
            )
        assert page.rows("thresholds")["a", "0", point["class"]]["specificity"] == ["–"]
        for table in ("students_summary", "calibration", "thresholds", "operating_points"):
            text = (two / "tables" / f"{table}.csv").read_text(encoding="utf-8")
            assert not [value for value in bare if f",{value}," in text], table
    finally:
        path.write_bytes(kept)


def test_what_a_run_was_trained_on_and_where_is_named_as_missing(two):
    kept = {
        path: path.read_bytes() for name in ("split.csv", "environment.json") for path in two.glob(f"*/seed_0/{name}")
    }
    try:
        (two / "a/seed_0/split.csv").unlink()
        (two / "a/seed_0/environment.json").unlink()
        above = not_shown(paged(two))
        assert "Not shown: the machine and the versions. There is no environment.json of a/seed_0." in above
        assert "tested on. There is no split.csv of a/seed_0." in above
        (two / "b/seed_0/split.csv").unlink()
        page = paged(two)
        assert "the split of the data" in not_shown(page) and page.text.count("No run has split.csv.") == 1
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


def test_event_files_cut_short_are_named_and_read_as_far_as_they_go(two):
    path, = [file for file in (two / "a/seed_0/tb").iterdir() if file.stat().st_size > 200][:1]
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:-5])
        page = paged(two)
        assert "Not all of the event files could be read." in page.text and path.name in page.text
        assert "a/seed_0" in {"".join(row["run"]) for row in page.tables["scalars"] if row}
    finally:
        path.write_bytes(kept)


def test_a_report_opens_each_file_of_a_study_once(two, monkeypatch):
    monkeypatch.undo()  # with drawings, audit and PDF
    before = {path.resolve() for path in two.rglob("*") if path.is_file() and path.suffix not in (".html", ".pdf")
              and path.parent.name not in ("tables", "tb")}  # tensorboard opens its own files as it likes
    run_folder._SPLITS.clear()
    opened, counting = Counter(), [True]

    def count(event, arguments):  # a hook of the interpreter cannot be taken off again
        if event == "open" and counting and isinstance(arguments[0], (str, bytes, os.PathLike)):
            opened[Path(os.fsdecode(arguments[0])).resolve()] += 1

    sys.addaudithook(count)
    report.main([str(two)])
    counting.clear()
    times = {path.relative_to(two).as_posix(): opened[path] for path in before}
    assert {name for name, count in times.items() if count > 1} == set()
    assert set(times.values()) == {1}, times  # none is forgotten, either


def test_a_folder_without_a_study_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "one/a/seed_0")
    write_run(tmp_path / "two/a/seed_0")
    for folder, why in (("nowhere", "no such folder"), ("empty", "no finished run"), ("", "holds 2 studies: one, two")):
        with pytest.raises(UserError, match=why) as caught:
            report.main([str(tmp_path / folder)])
        assert "\n" not in caught.value.message
    (tmp_path / "one/a/seed_0/predictions/test.npz").write_bytes(b"")
    with pytest.raises(UserError, match="no readable run"):
        report.main([str(tmp_path / "one")])
    assert not list(tmp_path.rglob("report.html"))
