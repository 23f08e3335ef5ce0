"""Faults found in published distillation code; each test fails when the fault is put in."""

import shlex
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import distill
import registry
import small
import train_teacher
from kd import objective
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml
from kd.train import checkpoint, counterpart, engine, loop, networks, setup
from kd.train.step import normalise_for
from kd.train.weights import fingerprint

pytestmark = pytest.mark.usefixtures("no_report")


class Recorder(nn.Module):
    """A network that notes what it was shown, and whether it was in train mode."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
                                  nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, classes)
        self.inputs, self.modes = [], []

    def forward(self, images):
        self.inputs.append(images.detach().clone())
        self.modes.append(self.training)
        return self.head(self.body(images))


@pytest.fixture
def setting(tmp_path):
    data = small.data(folder=tmp_path)
    options = small.options("--alpha", "0.5")
    torch.manual_seed(0)
    student, teacher = (networks.Network(Recorder(3), name, "small") for name in ("student", "teacher"))
    teacher.model.train()  # as it comes from a constructor
    step = engine.Step(student, teacher, small.terms(options), data, options, torch.device("cpu"), "fp32")
    return step, student.model, teacher.model, data, options


def epochs(step, data, options, count=2):
    loop.train(step, data, {**options, "epochs": count}, 0, small.Journal(count))


def test_the_teacher_does_not_drift(setting):
    step, _, teacher, data, options = setting
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    epochs(step, data, options)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any(teacher.modes)


def test_a_teacher_in_train_mode_stops_the_run(setting):
    step, _, teacher, data, options = setting
    teacher.train()
    with pytest.raises(RuntimeError, match="batch statistics"):
        epochs(step, data, options, 1)


def test_on_a_cpu_convolutions_of_both_networks_are_adapted_for_the_run_alone(setting):
    step, student, teacher, _, _ = setting
    assert all("forward" in vars(model.body[0]) for model in (student, teacher))
    step.close()
    assert not any("forward" in vars(module) for model in (student, teacher) for module in model.modules())


def test_the_teacher_gets_no_gradients(setting):
    step, _, teacher, data, options = setting
    epochs(step, data, options, 1)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_dropout_is_off_in_the_teacher(setting):
    step, *_ = setting
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(*(step.teacher_forward({32: images})["teacher_logits"] for _ in range(2)))


def test_the_student_trains_in_train_mode_after_a_validation_too(setting):
    step, student, _, data, options = setting
    epochs(step, data, options, 1)
    training = sum(student.modes)
    assert training == student.modes.index(False) > 0
    statistics = student.body[1].running_mean.clone()
    student.modes.clear()
    epochs(step, data, options, 1)
    assert sum(student.modes) == training and not torch.equal(statistics, student.body[1].running_mean)


def test_validation_is_in_eval_mode_and_predicts_the_same_twice(setting):
    step, student, _, data, _ = setting
    student.train()
    assert np.array_equal(loop.predict(step.student, data, "val", step.device),
                          loop.predict(step.student, data, "val", step.device))
    assert student.training


def test_teacher_and_student_see_the_same_crop_in_the_same_order(setting):
    step, student, teacher, data, options = setting
    epochs(step, data, options, 1)
    shown = [images for images, training in zip(student.inputs, student.modes) if training]
    assert len(shown) == len(teacher.inputs) > 1
    assert all(torch.equal(a, b) for a, b in zip(shown, teacher.inputs))


def test_labels_and_index_belong_to_the_images(setting, monkeypatch):
    _, _, _, data, _ = setting
    from kd.data import batching
    rows = data.where("train")
    for images, labels, index, *_ in batching.training_batches(data, batch=16, seed=0, epoch=1,
                                                               device=torch.device("cpu"), workers=2):
        assert torch.equal(labels, torch.from_numpy(data.labels[rows[index.numpy()]]))
        for image, position in zip(images, index):
            alone = next(batch for batch in one_image(data, rows[position]))
            assert torch.equal(image, alone)


def test_what_the_losses_are_given_belongs_to_the_images(tmp_path):
    data, options = small.data(folder=tmp_path), small.options("--beta", "10")
    student, teacher = (small.network(options, data, seed=seed) for seed in (0, 1))
    step = engine.Step(student, teacher, small.terms(options), data, options, torch.device("cpu"), "fp32")
    usual, seen = step.objective.forward, {}
    step.objective.forward = lambda given, batch: seen.update(given) or usual(given, batch)
    images, labels, index = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([9, 4, 7, 1, 0, 5])
    small.one_step(step, data, {**options, "lr": 0.0}, small.batch(images, labels, index))
    step.close()
    assert torch.equal(seen["labels"], labels) and torch.equal(seen["index"], index)
    assert seen["class_counts"].tolist() == np.bincount(data.labels[data.where("train")]).tolist()
    alone = networks.FeatureExtractor(teacher.model, teacher.stages)
    for k in range(6):
        with torch.no_grad():
            logits = alone(normalise_for(images[k:k + 1], teacher))
        assert torch.allclose(seen["teacher_logits"][k], logits[0], atol=1e-5)
        assert len(alone.features) == 4 == len(seen["teacher_features"])
        assert all(torch.allclose(a[k], b[0], atol=1e-5) for a, b in zip(seen["teacher_features"], alone.features))


def one_image(data, row):
    """The training view of one image in epoch 1, made apart from any batch."""
    from kd.data import augment
    draws = augment.draw(0, 1, np.array([row]))
    view = augment.crop(data.pixels(np.array([row])), draws, data.size)
    yield augment.colour(augment.to_float(view, "cpu"), draws)[0]


def test_t_squared_is_there_when_alpha_is_0():
    options = small.options("--alpha", "0", "--temperature", "3")
    goal = objective.Objective(small.terms(options))
    given = {"student_logits": torch.tensor([[1.0, 0.0]]), "teacher_logits": torch.tensor([[0.0, 2.0]])}
    p = np.exp([0, 2 / 3]) / np.exp([0, 2 / 3]).sum()
    q = np.exp([1 / 3, 0]) / np.exp([1 / 3, 0]).sum()
    loss, values = goal(given)
    assert float(loss) == pytest.approx(9 * (p * np.log(p / q)).sum(), rel=1e-5)
    assert list(values) == ["kd"]


COMMON = ["--data", "lesions,images=120", "--size", "32", "--epochs", "1", "--batch", "32", "--workers", "0",
          "--hard", "ce"]


def test_a_teacher_trained_under_another_split_seed_is_refused(tmp_path):
    common = [*COMMON, "--out", str(tmp_path)]
    teacher, = train_teacher.main([*common, "--teacher", "tiny", "--split-seed", "1", "--study", "other"])
    with pytest.raises(UserError, match="was trained on .* of the val and test split"):
        distill.main([*common, "--student", "tiny", "--teacher", str(teacher)])
    assert not list(tmp_path.glob("lesions_32px/*/*/best.pt"))


def test_a_teacher_of_the_same_split_teaches_and_is_not_needed_for_alpha_1(tmp_path, capsys):
    common = [*COMMON, "--out", str(tmp_path)]
    student, = distill.main([*common, "--student", "tiny", "--alpha", "1"])
    assert student.parent.name == "tiny_alone" and not list(tmp_path.glob("*/teacher_*"))
    teacher, = train_teacher.main([*common, "--teacher", "tiny"])
    before = (teacher / "best.pt").read_bytes()
    student, = distill.main([*common, "--student", "tiny", "--beta", "1000", "--teacher", str(teacher)])
    assert student.parent.name == "tiny_kd_at"
    header = (student / "history.csv").read_text().splitlines()[0].split(",")
    assert header[:6] == ["epoch", "lr", "loss", "ce", "kd", "at"]
    assert (teacher / "best.pt").read_bytes() == before
    out = capsys.readouterr().out
    assert "loss = 0.5 * ce(smoothing=0.0) + 0.5 * kd(temperature=4.0) + 1000 * at" in out
    assert "majority rule" in out and "teacher_tiny" in out


def test_without_a_teacher_one_is_trained_first_and_used_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "default_teacher", lambda options, registry: options["teacher"] or "tiny")
    common = [*COMMON, "--out", str(tmp_path), "--student", "tiny", "--split-seed", "3"]
    student, = distill.main(common)
    teacher = tmp_path / "lesions_32px" / "teacher_tiny" / "seed_0"
    assert read_yaml(student / "config.yaml")["teacher"] == teacher.as_posix()
    out = capsys.readouterr().out
    assert "no teacher in" in out and "training a tiny first" in out
    suggested = out.split("next: python distill.py ")[1].split("   #")[0].split()
    baseline, = distill.main(suggested)
    assert (
        baseline.parent.name == "tiny_alone"
        and (baseline / "split.csv").read_text() == (student / "split.csv").read_text()
    )
    distill.main([*common, "--name", "second"])
    assert "training a" not in capsys.readouterr().out
    train_teacher.main([*COMMON, "--out", str(tmp_path), "--teacher", "tiny", "--split-seed", "3", "--name", "another"])
    with pytest.raises(UserError, match="several teachers: another, teacher_tiny"):
        distill.main([*common, "--name", "third"])


def following(capsys):
    """The words of the command of distill.py that was printed last as the next one, and what it is."""
    line = capsys.readouterr().out.strip().splitlines()[-1]
    words, _, what = line.removeprefix("next: python ").partition("   # ")
    return shlex.split(words), what


def options_of(run):
    return read_yaml(run / "config.yaml")


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Words of every command of one study, whose teacher is trained."""
    monkeypatch.setattr(setup, "default_teacher", lambda options, registry: options["teacher"] or "tiny")
    monkeypatch.setattr(distill.evaluate, "main", lambda argv: None)
    common = [*COMMON, "--out", str(tmp_path / "runs")]
    train_teacher.main([*common, "--teacher", "tiny"])
    return [*common, "--student", "tiny", "--stem", "small"]


@pytest.mark.parametrize("more", [
    ["--temperature", "2", "--seeds", "0", "1"], ["--unlabelled", "FOLDER", "--unlabelled-ratio", "0.25"],
    ["--init", "FILE"], *(pytest.param(words, marks=pytest.mark.slow) for words in (
        ["--soft", "dkd,alpha=1,beta=8"], ["--term", "rkd=25"], ["--teacher-cache", "2"], ["--beta", "100"],
        ["--augment", "light", "--soft", "dist"]))], ids=lambda words: words[0][2:])
def test_the_baseline_has_nothing_of_the_distillation_and_all_else(tmp_path, study, capsys, more):
    """Whatever the student was distilled with, --init of another student and images without labels among it."""
    if "--init" in more:
        run, = distill.main([*study, "--alpha", "1", "--name", "before", "--split-seed", "1"])
        more = ["--init", str(run / "best.pt"), "--split-seed", "1"]
    if "--unlabelled" in more:
        (tmp_path / "more").mkdir()
        for k in range(8):
            pixels = np.random.default_rng(k).integers(0, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "more" / f"{k}.png")
        more[1] = str(tmp_path / "more")
    if "--split-seed" in more:
        train_teacher.main([*study[:study.index("--student")], "--teacher", "tiny", "--study", "other", "--split-seed",
                            "1"])
        more += ["--study", "other"]
    capsys.readouterr()
    student, *others = distill.main([*study, *more])
    command, what = following(capsys)
    assert command[0] == "distill.py" and what.startswith("the same student without a teacher")
    alone, *alike = distill.main(command[1:])
    of_method = {*counterpart.OF_METHOD, "name", "seeds"}
    ours, theirs = options_of(alone), options_of(student)
    assert {key: value for key, value in ours.items() if key not in of_method} == {
        key: value for key, value in theirs.items() if key not in of_method}
    assert ours["teacher"] is None and ours["alpha"] == 1 and ours["beta"] == 0 and not ours["term"]
    assert len(alike) == len(others) and not counterpart.has_teacher(ours)
    if len(more) != 4 or "--seeds" not in more:
        defaults = distill.parser()
        assert all(ours[key] == defaults.get_default(key) for key in ("soft", "teacher_cache", "unlabelled",
                                                                      "unlabelled_ratio", "teacher_predictions"))
    assert read_json(alone / "environment.json")["formula"] == "loss = 1 * ce(smoothing=0.0)"
    assert following(capsys)[0][:2] == ["evaluate.py", "--compare"]


def test_the_baseline_of_a_student_that_was_trained_on_begins_with_a_student_without_a_teacher(study, capsys):
    """Which is trained first; weights that learned from a teacher are no baseline."""
    first, = distill.main(study)
    longer, = distill.main([*study, "--init", str(first / "best.pt"), "--epochs", "1", "--name", "tiny_longer"])
    command, what = following(capsys)
    assert "the student that --init names, without a teacher; then the last command again" in what
    alone, = distill.main(command[1:])
    assert alone.parent.name == "tiny_alone" and options_of(alone)["init"] is None
    capsys.readouterr()
    distill.main([*study, "--init", str(first / "best.pt"), "--epochs", "1", "--name", "tiny_longer"])
    command, what = following(capsys)
    assert what == "the same student without a teacher, from its own start"
    alone_longer, = distill.main(command[1:])
    ours = options_of(alone_longer)
    assert ours["init"] == str(alone / "best.pt") and ours["epochs"] == 1 and ours["alpha"] == 1
    assert not counterpart.is_distilled(alone_longer / "best.pt") and counterpart.is_distilled(longer / "best.pt")
    assert following(capsys)[0][:2] == ["evaluate.py", "--compare"]


def test_the_counterpart_with_a_teacher_begins_alike(study, capsys):
    alone, = distill.main([*study, "--alpha", "1"])
    command, what = following(capsys)
    assert what == "the same student with a teacher"
    longer, = distill.main([*study, "--alpha", "1", "--init", str(alone / "best.pt"), "--name", "longer"])
    command, what = following(capsys)
    assert what == "the same student with a teacher, from the same start"
    with_teacher, = distill.main(command[1:])
    ours = options_of(with_teacher)
    assert ours["init"] == str(alone / "best.pt") and ours["alpha"] == 0.5 and ours["soft"] == "kd"
    # without a teacher, but from weights that had one: no baseline of anything
    distill.main([*study, "--alpha", "1", "--init", str(with_teacher / "best.pt"), "--name", "mixed"])
    assert following(capsys)[0][:2] == ["evaluate.py", "--compare"]


def interrupted(monkeypatch, *argv):
    """A teacher's training that was stopped in its second epoch."""
    usual, calls = engine.Step.begin_epoch, []

    def stopped(*given, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return usual(*given, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.Step, "begin_epoch", stopped)
        train_teacher.main([*COMMON, "--teacher", "tiny", "--epochs", "3", "--lr", "0.002", *argv])


def test_a_teacher_whose_training_was_stopped_is_trained_to_its_end_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "default_teacher", lambda options, registry: options["teacher"] or "tiny")
    interrupted(monkeypatch, "--out", str(tmp_path / "before"))
    (tmp_path / "before").rename(tmp_path / "now")
    capsys.readouterr()
    student, = distill.main([*COMMON, "--out", str(tmp_path / "now"), "--student", "tiny"])
    teacher = tmp_path / "now" / "lesions_32px" / "teacher_tiny" / "seed_0"
    out = capsys.readouterr().out
    assert "going on with it first" in out and f"{teacher}: going on after epoch 1" in out
    assert len(read_csv(teacher / "history.csv")) == 3  # as its own options say, not the student's
    assert read_json(student / "environment.json")["teacher"] == fingerprint(
        checkpoint.read(teacher / "best.pt")["state_dict"])


def test_another_teacher_whose_training_was_stopped_is_named_and_none_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "default_teacher", lambda options, registry: options["teacher"] or "tiny")
    interrupted(monkeypatch, "--out", str(tmp_path), "--name", "mine")
    common = [*COMMON, "--out", str(tmp_path), "--student", "tiny"]
    with pytest.raises(UserError, match="teacher .*mine.seed_0 has not ended") as caught:
        distill.main(common)
    config = tmp_path / "lesions_32px" / "mine" / "seed_0" / "config.yaml"
    assert f"python train_teacher.py --config {config.as_posix()}" in caught.value.hint
    assert [run.name for run in (tmp_path / "lesions_32px").iterdir()] == ["mine"]
    train_teacher.main([*COMMON, "--teacher", "tiny", "--out", str(tmp_path)])
    distill.main(common)
    assert "mine/seed_0, which is not used as a teacher" in capsys.readouterr().out.replace("\\", "/")


def test_the_best_epoch_is_chosen_on_validation_alone(tmp_path, monkeypatch):
    usual, asked = loop.predict, []
    monkeypatch.setattr(loop, "predict", lambda model, data, split, device: asked.append(split)
                        or usual(model, data, split, device))
    distill.main([*COMMON, "--out", str(tmp_path), "--student", "tiny", "--alpha", "1", "--epochs", "2"])
    assert asked == ["val", "val", "val", "test"]  # after each epoch, and the predictions of the best


def test_the_best_epoch_is_what_is_kept_and_what_predicts(tmp_path, monkeypatch):
    data, options = small.data(folder=tmp_path), small.options("--alpha", "1", "--epochs", "3")
    student, scores, states = small.network(options, data), iter([0.2, 0.6, 0.4]), []

    def scripted(network, *_):
        states.append({key: value.clone() for key, value in network.model.state_dict().items()})
        return {"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": next(scores)}

    monkeypatch.setattr(loop, "validate", scripted)
    engine.run(tmp_path / "run", student, small.terms(options), data, options, seed=0, role="student", provenance={})
    kept = checkpoint.read(tmp_path / "run" / "best.pt")["state_dict"]
    assert all(torch.equal(kept[key], value) for key, value in states[1].items())
    assert not torch.equal(states[1]["head.weight"], states[2]["head.weight"])
    loaded, _ = setup.load_network(tmp_path / "run" / "best.pt", registry)
    for split in ("val", "test"):
        assert np.array_equal(loop.predict(loaded, data, split, torch.device("cpu")),
                              read_npz(tmp_path / "run" / "predictions" / f"{split}.npz")["logits"])


def test_a_teacher_of_another_input_size_sees_the_same_crops_at_its_own(tmp_path):
    common = [*COMMON, "--out", str(tmp_path)]
    teacher, = train_teacher.main([*common, "--teacher", "tiny", "--size", "48"])
    sizes = set()
    original = engine.Step.teacher_forward

    def seen(step, crops):
        sizes.update((size, tuple(images.shape[2:])) for size, images in crops.items())
        return original(step, crops)

    with mock.patch.object(engine.Step, "teacher_forward", seen):
        folder, = distill.main([*common, "--student", "tiny", "--teacher", str(teacher)])
    assert sizes == {(32, (32, 32)), (48, (48, 48))}
    assert read_json(folder / "environment.json")["input"]["size"] == 32


def test_a_loss_on_stages_refuses_a_network_whose_stages_are_not_known(tmp_path):
    data, options = small.data(folder=tmp_path), small.options("--beta", "10")
    student = small.network(options, data)
    with pytest.raises(UserError, match="stages of other are not known"):
        engine.Step(student, networks.Network(Recorder(3), "other", "small"), small.terms(options), data, options,
                    torch.device("cpu"), "fp32")


def test_the_attention_term_reads_four_stages_of_every_architecture(tmp_path):
    for name in ("resnet18", "resnet34", "resnet50", "mobilenetv2", "efficientnetb0", "tiny"):
        entry = registry.get("architecture", name)
        model = entry.make(num_classes=3, stem="imagenet", weights=None).eval()
        reader = networks.FeatureExtractor(model, entry.info["stages"], entry.info["head"])
        with torch.no_grad():
            logits = reader(torch.randn(2, 3, 64, 64))
        assert [64 // feature.shape[2] for feature in reader.features] == [4, 8, 16, 32]
        head = dict(model.named_modules())[entry.info["head"]]
        with torch.no_grad():
            assert torch.allclose(head(reader.pooled), logits, atol=1e-5)


def test_the_small_stem_keeps_the_resolution_of_the_input_in_the_first_stage():
    for name in ("resnet18", "mobilenetv2", "efficientnetb0", "tiny"):
        entry = registry.get("architecture", name)
        reader = networks.FeatureExtractor(
            entry.make(num_classes=3, stem="small", weights=None).eval(), entry.info["stages"]
        )
        with torch.no_grad():
            reader(torch.randn(1, 3, 32, 32))
        assert [feature.shape[2] for feature in reader.features] == [32, 16, 8, 4]


def test_parameter_counts_are_the_published_ones():
    for name, count in (("resnet18", 11_180_103), ("mobilenetv2", 2_232_839), ("efficientnetb0", 4_016_515)):
        assert (
            networks.parameters(registry.create("architecture", name, num_classes=7, stem="imagenet", weights=None))
            == count
        )


def test_a_nan_loss_stops_with_step_terms_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    common = [*COMMON, "--out", str(tmp_path), "--student", "tiny", "--alpha", "1", "--epochs", "3"]
    usual, calls = engine.Step.student_outputs, []

    def broken(self, images):
        calls.append(1)
        return usual(self, images * (float("nan") if len(calls) > 1 else 1))

    monkeypatch.setattr(engine.Step, "student_outputs", broken)
    with pytest.raises(UserError, match=r"no longer a number at epoch 2, step \d+: loss nan, ce nan") as caught:
        distill.main(common)
    folder = tmp_path / "lesions_32px" / "tiny_alone" / "seed_0"
    assert str(folder / "best.pt") in caught.value.hint and not (folder / "predictions").exists()
    monkeypatch.setattr(engine.Step, "student_outputs", usual)
    distill.main([*common, "--init", str(folder / "best.pt"), "--lr", "1e-4", "--name", "rescued"])  # as the hint says


def test_init_fine_tunes_from_a_checkpoint(tmp_path):
    common = [*COMMON, "--out", str(tmp_path), "--alpha", "1", "--student", "tiny"]
    first, = distill.main(common)
    second, = distill.main([*common, "--init", str(first / "best.pt"), "--lr", "0", "--name", "tuned"])
    weights = [checkpoint.read(run / "best.pt")["state_dict"] for run in (first, second)]
    assert torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])  # a rate of 0 leaves them where they were


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *_: {"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": 0.5})
    run, = distill.main([*COMMON, "--out", str(tmp_path), "--student", "tiny", "--alpha", "1", "--epochs", "9",
                         "--patience", "2"])
    assert len((run / "history.csv").read_text().splitlines()) == 1 + 3  # the best epoch, and two without a better


def test_the_learning_rate_rises_then_falls_to_0():
    rates = [loop.schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert all(a >= b for a, b in zip(rates[9:], rates[10:])) and rates[-1] < 1e-3


def test_the_head_has_a_learning_rate_of_its_own_where_one_is_named(tmp_path):
    data = small.data(folder=tmp_path)
    options = small.options("--alpha", "1", "--lr", "0", "--head-lr", "0.1", "--clip", "0")
    network = small.network(options, data)
    step = engine.Step(network, None, small.terms(options), data, options, torch.device("cpu"), "fp32")
    before = {key: value.clone() for key, value in network.model.named_parameters()}
    small.one_step(step, data, options, small.batch(torch.rand(8, 3, 32, 32), torch.arange(8) % 3, torch.arange(8)))
    moved = {key for key, value in network.model.named_parameters() if not torch.equal(before[key], value)}
    assert moved == {"head.weight", "head.bias"}
    assert sum(len(group["params"]) for group in step.optimizer.param_groups) == len(before)


def test_each_network_sees_the_pixels_normalised_as_its_own_weights_expect(setting):
    step, student, teacher, data, options = setting
    step.teacher.mean, step.teacher.std = (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)
    images = torch.rand(8, 3, 32, 32)
    step.teacher_forward({32: images})
    step.student_outputs(images)
    for model, mean, std in (
        (student, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (teacher, (0.5,) * 3, (0.25, 0.5, 1.0)),
    ):
        expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert torch.allclose(model.inputs[-1], expected, atol=1e-6)
