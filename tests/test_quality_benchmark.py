"""benchmarks/quality.py: both sides are trained to the end, once; what they did not reach is not given as a time."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import quality  # noqa: E402


@pytest.fixture
def plan(tmp_path):
    """A plan of two folds on forty images of two colours."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(20):
            pixels = np.clip(rng.normal(colour, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    path = tmp_path / "plan.yaml"
    path.write_text(f"data: folder\nroot: {(tmp_path / 'images').as_posix()}\nsize: 16\nepochs: 2\nbatch: 8\n"
                    "stem: small\nfolds: 2\ntrain_teacher: {teacher: tiny}\ndistill:\n  student: tiny\n"
                    "  methods: {alone: {alpha: 1}, kd: {alpha: 0.5}}\n", encoding="utf-8")
    return path


def run(plan, capsys, *arguments):
    quality.main([str(plan.parent / "out"), "--plan", str(plan), "--student", "tiny_kd", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1]), lines


def test_each_side_trains_teacher_and_student_once(plan, capsys):
    result, lines = run(plan, capsys, "--levels", "0.1", "1.01")
    times = {side: json.loads((plan.parent / "out" / f"{side}.json").read_text()) for side in ("recipe", "usual")}
    for side, of_side in times.items():
        assert [len(of_side[network]) for network in ("teacher", "student")] == [2, 2]
        until_first = sum(seconds for seconds, _ in [*of_side["teacher"], of_side["student"][0]]) / 120
        assert result["0.1"][side] == pytest.approx(until_first, abs=0.06)
        assert result["1.01"][side] is None
    assert lines[-2].startswith("| 1.01 | not in") and lines[-2].endswith("|  |")
    student, = (plan.parent / "out" / "runs").glob("**/tiny_kd_fold1of2/seed_0/config.yaml")
    assert "teacher_tiny_fold1of2" in student.read_text()  # the one below out, not that of the plan's own folder
    again, _ = run(plan, capsys, "--levels", "0.1", "1.01")
    assert again == result
    assert times == {side: json.loads((plan.parent / "out" / f"{side}.json").read_text()) for side in times}


def test_a_side_ends_after_its_hours_and_goes_on_with_more(plan, capsys):
    run(plan, capsys, "--hours", "1e-9")
    for side in ("recipe", "usual"):
        times = json.loads((plan.parent / "out" / f"{side}.json").read_text())
        assert [len(epochs) for epochs in times.values()] == [1]
    run(plan, capsys)
    for side in ("recipe", "usual"):
        times = json.loads((plan.parent / "out" / f"{side}.json").read_text())
        assert [len(epochs) for epochs in times.values()] == [2, 2]


def test_where_only_the_recipe_arrives_the_ratio_is_a_bound(tmp_path):
    clocks = {name: quality.Clock(tmp_path / name, 1e9) for name in ("recipe", "usual")}
    clocks["recipe"].epochs = {"teacher": [[600, 0.5]], "student": [[120, 0.5], [480, 0.7]]}  # 720 and 1,200 s
    clocks["usual"].epochs = {"teacher": [[3000, 0.5]], "student": [[600, 0.6]]}  # 3,600 s
    assert list(quality.table(clocks, [0.5, 0.65]))[2:] == [
        "| 0.50 | 6 | 30 | 0.20 |", "| 0.65 | 10 | not in 30 | below 0.33 |"]


def test_a_student_without_a_teacher_is_refused(plan):
    with pytest.raises(UserError, match="no student tiny_alone with a teacher") as caught:
        quality.main([str(plan.parent / "out"), "--plan", str(plan), "--student", "tiny_alone"])
    assert "tiny_kd" in caught.value.hint
