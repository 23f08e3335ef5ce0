"""The teacher's targets from disk equal its outputs online, and are refused where they would not."""

import dataclasses

import numpy as np
import pytest
import torch

import distill
import small
import train_teacher
from kd.data import batching
from kd.data.batching import Views
from kd.errors import UserError
from kd.files import read_csv, read_json, write_json
from kd.train import engine, teacher_cache

CPU = torch.device("cpu")
COMMON = [
    "--data", "lesions,images=300", "--size", "32", "--epochs", "2", "--batch", "32", "--workers", "0", "--device",
    "cpu", "--precision", "fp32",
]


@pytest.fixture
def setting(tmp_path):
    data, options = small.data(folder=tmp_path), small.options("--alpha", "0.5", "--beta", "100")
    student, teacher = small.network(options, data), small.network(options, data, seed=1)
    teacher.fingerprint = "of the teacher"
    return data, options, student, teacher


def build(folder, setting, views=2, terms=None):
    """(Targets, Step) of the setting, built."""
    data, options, student, teacher = setting
    terms = terms or small.terms(options)
    needs = {need for term in terms for need in term.needs}
    options = {**options, "teacher_cache": views}
    result = teacher_cache.Targets(folder, teacher, data, Views(kept=views), needs=needs, precision="fp32")
    step = engine.Step(student, teacher, terms, data, options, CPU, "fp32", result)
    result.build(step.teacher_forward, batch=16, device=CPU, workers=0)
    return result, step


def test_targets_from_disk_are_the_teachers_outputs_for_the_views_of_the_student(setting, tmp_path):
    data, options, *_ = setting
    targets, step = build(tmp_path / "targets", setting)
    for epoch in (1, 2, 3):
        for batch in batching.training_batches(data, batch=16, seed=5, epoch=epoch, device=CPU, workers=0,
                                               views=Views(kept=2)):
            online, disk = step.teacher_forward(batch.crops), targets(batch.index.numpy(), batch.views, CPU)
            assert torch.allclose(online["teacher_logits"], disk["teacher_logits"], rtol=1e-3, atol=1e-3)
            for a, b in zip(online["teacher_attention"], disk["teacher_attention"], strict=True):
                assert torch.allclose(a, b, atol=1e-3)


def test_as_many_views_as_epochs_are_the_views_of_online_training(setting):
    data = setting[0]
    for epoch in (1, 2, 3):
        online, views = (
            list(batching.training_batches(data, batch=16, seed=0, epoch=epoch, device=CPU, workers=0,
                                           views=Views(kept=kept))) for kept in (None, 3)
        )
        for batch, other in zip(online, views, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3]))


def test_fewer_views_are_shown_again_in_turn(setting):
    data, shown = setting[0], []
    for epoch in (1, 2, 3):
        batches = batching.training_batches(data, batch=16, seed=0, epoch=epoch, device=CPU, views=Views(kept=2))
        shown.append({i: image for batch in batches for i, image in zip(batch.index.tolist(), batch.images)})
    in_all = set(shown[0]) & set(shown[1]) & set(shown[2])
    assert len(in_all) > 40 and all(torch.equal(shown[0][i], shown[2][i]) for i in in_all)
    assert not any(torch.equal(shown[0][i], shown[1][i]) for i in in_all)


def test_a_second_run_does_not_run_the_teacher(setting, tmp_path, capsys):
    build(tmp_path / "targets", setting)
    assert "2 views of 66 images, 0.4 MB" in capsys.readouterr().out
    data, options, student, teacher = setting
    teacher.model.forward = None  # any call fails
    _, step = build(tmp_path / "targets", setting)
    small.one_step(step, data, options, next(batching.training_batches(data, batch=16, seed=0, epoch=1, device=CPU)))
    assert capsys.readouterr().out == ""


def test_a_build_that_was_killed_goes_on_with_the_next_view(setting, tmp_path):
    targets, _ = build(tmp_path / "targets", setting)
    time_of_first = targets.path(1, "logits").stat().st_mtime_ns
    second = np.load(targets.path(2, "logits"))
    targets.path(2, "logits").unlink()
    (tmp_path / "targets" / ".view_2_logits.npy.x1.tmp").write_bytes(b"half")
    targets, _ = build(tmp_path / "targets", setting)
    assert not list((tmp_path / "targets").glob(".view*"))
    assert targets.path(1, "logits").stat().st_mtime_ns == time_of_first
    assert np.array_equal(np.load(targets.path(2, "logits")), second)


@pytest.mark.parametrize("differing, change", {
    "teacher": lambda data, teacher, options: setattr(teacher, "fingerprint", "another"),
    "normalisation": lambda data, teacher, options: setattr(teacher, "mean", (0, 0, 0)),
    "data": lambda data, teacher, options: setattr(data, "labels", data.labels[::-1].copy()),
    "split": lambda data, teacher, options: setattr(data, "split", data.split[::-1].copy()),
    "input": lambda data, teacher, options: setattr(data, "size", 24),
    "augmentation": lambda data, teacher, options: options.update(views=Views("light", kept=2)),
    "precision": lambda data, teacher, options: options.update(precision="bf16")}.items())
def test_targets_of_other_data_augmentation_or_precision_are_refused_and_say_why(differing, change, setting, tmp_path):
    data, _, _, teacher = setting
    options = {"views": Views(kept=2), "needs": {"teacher_logits"}, "precision": "fp32"}
    teacher_cache.Targets(tmp_path, teacher, data, **options)
    more = {**options, "views": Views(kept=3)}  # of the same, which is no other key
    teacher_cache.Targets(tmp_path, teacher, data, **more)
    data = dataclasses.replace(data)  # which has no fingerprint yet
    change(data, teacher, options)
    with pytest.raises(UserError, match=f"were made from other {differing}\n"):
        teacher_cache.Targets(tmp_path, teacher, data, **options)


def test_a_loss_that_reads_what_is_not_stored_is_refused(setting, tmp_path):
    def hint(student_features, teacher_features):
        """The distance of features."""

    terms = [*small.terms(setting[1]), type("Term", (), {"needs": ["student_features", "teacher_features"]})()]
    with pytest.raises(UserError, match="reads teacher_features, which --teacher-cache does not keep"):
        build(tmp_path / "targets", setting, terms=terms)


def test_too_little_space_is_an_error_before_any_is_used(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match="need 0 MB, and .* has 0 MB left"):
        build(tmp_path / "targets", setting)
    assert not list((tmp_path / "targets").glob("view_*"))


def rewrite(path, change):
    """Write other values into a file of targets, as another program would."""
    np.save(path, change(np.load(path)))


def with_nan(rows):
    rows["values"][3] = np.nan
    return rows


def with_other_checksum(rows):
    rows["crc32"][3] ^= 1
    return rows


DAMAGE = {
    "no checksums": lambda path: rewrite(path, lambda rows: rows["values"]),
    "other columns": lambda path: rewrite(path, lambda rows: np.zeros(len(rows), teacher_cache._rows((2,)))),
    "more rows": lambda path: rewrite(path, lambda rows: np.concatenate([rows, rows])),
    "another type": lambda path: rewrite(path, lambda rows: rows["values"].astype(np.float64)),
    "objects": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "not whole": lambda path: path.with_name("view_1.json").unlink(),
    "another key": lambda path: path.with_name("view_1.json").write_text('"00000000"'),
    "a key that is a list": lambda path: path.with_name("view_1.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_targets_are_made_again_and_one_line_says_so(damage, setting, tmp_path, capsys):
    targets, _ = build(tmp_path / "targets", setting)
    path = targets.path(1, "logits")
    before = path.read_bytes(), targets.path(2, "logits").stat().st_mtime_ns
    capsys.readouterr()
    damage(path)
    targets, _ = build(tmp_path / "targets", setting)
    assert (path.read_bytes(), targets.path(2, "logits").stat().st_mtime_ns) == before
    *notes, made = capsys.readouterr().out.splitlines()
    assert made.startswith("teacher targets: 1 views of 66 images")
    if damage is not DAMAGE["not whole"]:
        note, = notes
        assert "the teacher's targets are damaged and made again: view 1: " in note and "view_1" in note
    build(tmp_path / "targets", setting)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("content", ["[1, 2]", "not JSON", '{"format": 2, "crc32": "00000000"}', '"word"', ""])
def test_a_damaged_key_is_made_again(content, setting, tmp_path, capsys):
    targets, _ = build(tmp_path, setting)
    key, values = tmp_path / "key.json", targets.path(1, "logits").read_bytes()
    before = key.read_bytes()
    key.write_text(content)
    capsys.readouterr()
    targets, _ = build(tmp_path, setting)  # the targets are of this key, by their checksums, and stay
    assert key.read_bytes() == before and targets.path(1, "logits").read_bytes() == values
    note, = capsys.readouterr().out.splitlines()
    assert str(key) in note and note.endswith("it is made again, and so are targets that do not belong to it")


def test_targets_under_the_key_of_another_teacher_are_made_again(setting, tmp_path, capsys):
    build(tmp_path, setting)
    (tmp_path / "key.json").unlink()
    setting[3].fingerprint = "another"
    capsys.readouterr()
    build(tmp_path, setting)
    assert "damaged and made again: view 1" in capsys.readouterr().out


@pytest.mark.parametrize("change", [with_nan, with_other_checksum])
def test_damaged_targets_are_named_when_they_are_read_and_the_same_command_makes_them_again(
        change, setting, tmp_path, capsys):
    targets, _ = build(tmp_path / "targets", setting)
    path = targets.path(1, "logits")
    before = path.read_bytes(), targets.path(2, "logits").stat().st_mtime_ns
    rewrite(path, change)
    targets, _ = build(tmp_path / "targets", setting)  # which reads none
    targets(np.array([0, 1, 2, 4]), np.ones(4, int), CPU)
    with pytest.raises(UserError, match="view_1_logits.npy are damaged: image 3 is not what was written") as caught:
        targets(np.arange(4), np.ones(4, int), CPU)
    assert caught.value.hint == "Give the same command again: they are made again."
    del targets
    capsys.readouterr()
    targets, _ = build(tmp_path / "targets", setting)
    assert capsys.readouterr().out.startswith("teacher targets: 1 views of 66 images")
    assert (path.read_bytes(), targets.path(2, "logits").stat().st_mtime_ns) == before
    targets(np.arange(4), np.ones(4, int), CPU)


def test_a_training_that_damaged_targets_stopped_goes_on_with_the_same_command(tmp_path, no_report, monkeypatch):
    common = [*COMMON, "--out", str(tmp_path)]
    train_teacher.main([*common, "--teacher", "tiny"])
    command = [*common, "--student", "tiny", "--alpha", "0.5", "--teacher-cache", "2"]
    build = teacher_cache.Targets.build

    def build_and_damage(targets, *arguments, **options):
        build(targets, *arguments, **options)
        rewrite(targets.path(2, "logits"), with_nan)  # which the second epoch reads

    monkeypatch.setattr(teacher_cache.Targets, "build", build_and_damage)
    with pytest.raises(UserError, match="view_2_logits.npy are damaged") as caught:
        distill.main(command)
    assert caught.value.hint == "Give the same command again: they are made again."  # and nothing of a lower --lr
    monkeypatch.setattr(teacher_cache.Targets, "build", build)
    folder, = distill.main(command)
    assert [row["epoch"] for row in read_csv(folder / "history.csv")] == ["1", "2"]


def test_targets_of_an_older_version_are_made_again(setting, tmp_path, capsys):
    targets, _ = build(tmp_path, setting)
    before = targets.path(1, "logits").read_bytes()
    write_json(tmp_path / "key.json", {**read_json(tmp_path / "key.json"), "format": 2, "crc32": None})
    rewrite(targets.path(1, "logits"), lambda rows: rows["values"])
    capsys.readouterr()
    targets, _ = build(tmp_path, setting)
    note = capsys.readouterr().out.splitlines()[0]
    assert "key.json is of an older version, or not what was written; it is made again" in note
    assert targets.path(1, "logits").read_bytes() == before


def test_outputs_that_half_precision_cannot_hold_are_not_stored(setting, tmp_path):
    data, _, _, teacher = setting
    targets = teacher_cache.Targets(tmp_path, teacher, data, Views(kept=1), needs={"teacher_logits"}, precision="fp32")
    with pytest.raises(UserError, match="logits of view 1 are too large for half precision"):
        targets.build(lambda images: {"teacher_logits": torch.full((len(images), 3), 1e6)}, batch=16, device=CPU,
                      workers=0)
    assert not list(tmp_path.glob("view_*"))


def test_students_and_seeds_of_a_study_share_the_targets(tmp_path, no_report, monkeypatch):
    common = [*COMMON, "--out", str(tmp_path)]
    train_teacher.main([*common, "--teacher", "tiny"])
    counts, original = [], engine.Step.teacher_forward

    def teacher_forward(step, crops):
        counts.append(len(crops[32]))
        return original(step, crops)

    monkeypatch.setattr(engine.Step, "teacher_forward", teacher_forward)
    folders = distill.main([*common, "--student", "tiny", "--beta", "10", "--seeds", "0", "1", "--teacher-cache", "1"])
    assert sum(counts) == 2 + 79  # two images for the shapes, then one view of each training image, for both seeds
    histories = [read_csv(folder / "history.csv") for folder in folders]
    assert all(len(rows) == 2 and float(rows[0]["kd"]) > 0 and float(rows[0]["at"]) > 0 for rows in histories)
    assert histories[0] != histories[1]


def test_views_that_another_run_made_while_this_one_waited_are_not_made_again(setting, tmp_path, capsys, monkeypatch):
    targets, _ = build(tmp_path / "targets", setting)
    capsys.readouterr()
    missing = iter([{1: "", 2: ""}, {}])  # before the lock, and with it
    monkeypatch.setattr(targets, "missing", lambda: next(missing))
    targets.build(None, batch=16, device=CPU, workers=0)  # running the teacher would fail
    assert capsys.readouterr().out == ""
