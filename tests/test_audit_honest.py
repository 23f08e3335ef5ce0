"""The audit finds no error in honest runs of any skill and calibration, nor in the runs of this project."""

from pathlib import Path

import numpy as np
import pytest

import honest
from kd.audit import examine

ROOT = Path(__file__).resolve().parent.parent
EQUAL = {f"c{k}": 1.0 for k in range(4)}
TWO = {"benign": .8, "malignant": .2}
COLLAPSED = {"constant-predictions", "accuracy-is-majority-share"}  # rightly a warning about the weakest of them


def study(folder, number):
    """Folders of an honest study of four runs; size and kind of the data, skill and confidence of a run are drawn."""
    rng = np.random.default_rng(number)
    n, shares = int(rng.choice([60, 300, 2000])), (honest.HAM, honest.HAM, EQUAL, TWO)[rng.integers(4)]
    images = None, None
    for k, model in enumerate(("teacher_a", "b_alone", "b_kd", "b_kd_at")):
        skills = [.3, 1, 3, 5] if n > 60 else [.3, 1, 2]  # nothing is chosen on few images that are all right
        images = val, test = honest.pair(rng, n, images, shares=shares, skill=rng.choice(skills),
                                         scale=np.exp(rng.uniform(-.7, 1.6)), collapse=rng.choice([0, 0, 2]))
        yield honest.write(folder / model / "seed_0", val, test, "student" if k else "teacher",
                           evaluated=honest.result(val, test), robustness=True)


@pytest.mark.parametrize("studies", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_honest_runs_raise_no_error(tmp_path, studies):
    for number in range(studies):
        findings = examine.audit_study(list(study(tmp_path / f"study_{number}", number)))
        above_note = {finding["rule"] for finding in findings if finding["severity"] != "note"}
        assert above_note <= COLLAPSED | {"idle-corruption"}, findings
        assert not [finding for finding in findings if finding["severity"] == "error"]


def test_runs_kept_in_this_project_raise_no_error():
    runs = sorted(path.parents[1] for path in (ROOT / "docs" / "results").rglob("predictions/test.npz"))
    studies = {run.parents[1] for run in runs}
    assert len(studies) > 2
    for folder in studies:
        findings = examine.audit_study([run for run in runs if folder in run.parents])
        assert not [finding for finding in findings if finding["severity"] != "note"]


@pytest.mark.slow
def test_honest_trainings_on_the_embedded_data_raise_nothing(tmp_path, no_report):
    """Seeds and splits vary; what a weak network is rightly warned of may be said."""
    import distill
    import evaluate
    for split_seed in range(3):
        study = f"split_{split_seed}"
        distill.main([
            "--student", "tiny", "--data", "lesions,images=400", "--size", "32", "--epochs", "3", "--batch", "32",
            "--workers", "0", "--device", "cpu", "--precision", "fp32", "--alpha", "1", "--seeds", "0", "1", "2",
            "--split-seed", str(split_seed), "--out", str(tmp_path), "--study", study])
        evaluate.main([str(tmp_path / study), "--replicates", "100"])
        findings = examine.audit_paths([tmp_path / study])
        assert {finding["rule"] for finding in findings if finding["severity"] != "note"} <= COLLAPSED, findings
