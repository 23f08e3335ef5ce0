"""docs/results has the files that its pages promise."""

import re
from pathlib import Path

import pytest

from kd import runs
from kd.files import read_json, read_npz, read_yaml

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
STUDIES = sorted(path for path in RESULTS.iterdir() if path.is_dir())
WITH_FOLDS = [study for study in STUDIES if (study / runs.FOLDS).is_dir()]
# of every run, as the first paragraph of the page says
FILES = ("config.yaml", "environment.json", "history.csv", "metrics.json", "predictions/val.npz",
         "predictions/test.npz")
OF_A_TRY = ("config.yaml", "environment.json", "history.csv")
OF_EACH = ("config.yaml", "environment.json", "metrics.json", "predictions/test.npz")  # pooled folds have these alone


def missing(study):
    """Files that a study should have and has not."""
    everything = sorted(path.parent for path in study.rglob("config.yaml"))
    found = [run for run in everything if runs.TRIES not in run.parts]
    paths = [run / name for run in everything if run not in found for name in OF_A_TRY]
    paths += [run / name for run in found for name in FILES if name in OF_EACH or not (run / runs.RECORD).exists()]
    models = {run.parent for run in found}
    paths += [model / "seeds.json" for model in models if sum(run.parent == model for run in found) > 1]
    if sum(runs.FOLDS not in model.parts for model in models) > 1:
        paths.append(study / "comparison.csv")
    return [path.relative_to(study).as_posix() for path in paths if not path.is_file()]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_has_the_files_that_the_page_promises(study):
    assert missing(study) == []


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_pages_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_every_study_has_a_section_and_every_section_with_commands_a_study():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert {study.name for study in STUDIES} == {name for name in re.findall(r"^## (\S+)$", text, re.M)}


def groups_of(run, part):
    return set(read_npz(run / "predictions" / f"{part}.npz", ("groups",))["groups"].tolist())


@pytest.mark.parametrize("study", WITH_FOLDS, ids=lambda path: path.name)
def test_folds_share_no_lesion_and_all_networks_of_a_fold_have_one_split(study):
    tested, splits = {}, {}
    for run in sorted((study / runs.FOLDS).glob("*/seed_*")):
        _, fold, count = runs.parse_fold(run.parent.name)
        test, val = groups_of(run, "test"), groups_of(run, "val")
        assert test and val and not test & val, run
        data = read_json(run / "environment.json")["data"]
        assert tested.setdefault((count, fold), test) == test, run
        assert splits.setdefault((count, fold), data["split"]) == data["split"], run
    for (count, fold), test in tested.items():
        assert not any(test & other for key, other in tested.items() if key[0] == count and key[1] != fold), fold


@pytest.mark.parametrize("study", WITH_FOLDS, ids=lambda path: path.name)
def test_a_student_of_a_fold_has_the_teacher_of_that_fold(study):
    checked = 0
    for run in (study / runs.FOLDS).glob("*/seed_*"):
        environment, teacher = read_json(run / "environment.json"), read_yaml(run / "config.yaml")["teacher"]
        if environment["role"] == "student" and teacher:
            beside = study / runs.FOLDS / Path(teacher).parent.name / Path(teacher).name
            assert runs.parse_fold(Path(teacher).parent.name)[1:] == runs.parse_fold(run.parent.name)[1:], run
            assert environment["data"]["split"] == read_json(beside / "environment.json")["data"]["split"], run
            checked += 1
    assert checked


def test_the_options_of_a_run_are_those_of_its_folder():
    for path in RESULTS.rglob("config.yaml"):
        assert read_yaml(path)["study"] == path.relative_to(RESULTS).parts[0], path
