import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Decoded images go to a folder of the test session, not to the user's."""
    folder = tmp_path_factory.getbasetemp() / "user_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("LOCALAPPDATA", str(folder))
    if sys.platform == "darwin":
        monkeypatch.setenv("HOME", str(folder))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are printed whole, wherever the tests run; those of narrow terminals set their own width."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session", autouse=True)
def embedded_recipe():
    """The recipe of the embedded data set, a dict; tests train with a shorter one, without a pretrained teacher."""
    import registry
    info = registry.get("dataset", "lesions").info
    ours = dict(info)
    info.clear()
    info.update(defaults={"size": 48, "epochs": 5, "batch": 32, "hard": "logit_adjusted,tau=0.5"},
                teacher={"teacher": "resnet18"})
    yield ours
    info.clear()
    info.update(ours)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data, for tests that skip without it."""
    folder = Path(os.environ.get("KD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here; set KD_TEST_DATA to its folder")
    return folder


@pytest.fixture
def no_report(monkeypatch):
    """For tests of training: the page is drawn in tests of its own."""
    import report
    monkeypatch.setattr(report, "main", lambda argv: None)


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of its own, where 64 KiB are free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True) \
        if sys.platform == "linux" and os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("a disk to fill needs Linux and the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(run, root): a small run on files of many kinds, with exports/ and a bundle; tests copy what they change."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import export
    import exported as parts
    run, root = parts.train(tmp_path_factory.mktemp("exported"))
    export.main([str(run), "--max-flips", "0.5", "--calibration", "32", "--bundle", str(run.parent / "bundle")])
    return run, root


@pytest.fixture(scope="session")
def reported_study(tmp_path_factory):
    """(folder, page) of a study in which nothing is missing but notes, and its report. Not to be changed."""
    import report
    import reported
    root = reported.write_parts(reported.write_study(tmp_path_factory.mktemp("reported") / "toy"))
    return root, reported.Page(report.main([str(root)]).read_text(encoding="utf-8"))
