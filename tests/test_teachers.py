"""Teachers: several, of other sizes, from elsewhere, and files of predictions; and what they may not have seen."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import distill
import evaluate
import registry
import small
import study as study_script
import train_teacher
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml, write_csv, write_npz, write_yaml
from kd.run_folder import Run
from kd.study import plan
from kd.train import engine, networks, teachers, unlabelled_data
from kd.train.step import normalise_for

pytestmark = pytest.mark.usefixtures("no_report")
COMMON = ["--data", "lesions,images=150", "--size", "32", "--epochs", "1", "--batch", "32", "--workers", "0",
          "--device", "cpu", "--precision", "fp32", "--train-only"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with two teachers."""
    root = tmp_path_factory.mktemp("study")
    for seed in ("0", "1"):
        train_teacher.main([*COMMON, "--out", str(root), "--teacher", "tiny", "--seeds", seed])
    return root


def teacher(study, seed):
    return str(study / "lesions_32px" / "teacher_tiny" / f"seed_{seed}")


def student(study, name, *argv):
    folder, = distill.main([*COMMON, "--out", str(study), "--student", "tiny", "--name", name, *argv])
    return folder


def step_of(*networks_, options=None):
    data, options = small.data(), options or small.options()
    members = [small.network(options, data, seed=seed) for seed in networks_]
    for member in members:
        member.fingerprint = "x"
    return members, engine.Step(small.network(options, data), networks.Ensemble(members), small.terms(options), data,
                                options, CPU, "fp32")


def test_several_teachers_answer_with_the_mean_of_their_probabilities():
    members, step = step_of(1, 2, 3)
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        mean = torch.stack([member.model(normalise_for(images, member)).softmax(1) for member in members]).mean(0)
    logits = step.teacher_forward({32: images})["teacher_logits"]
    assert torch.allclose(logits.softmax(1), mean, atol=1e-6)
    assert torch.allclose(logits, mean.log(), atol=1e-5)
    step.close()


def test_one_teacher_named_twice_answers_as_itself():
    (member, other), step = step_of(1, 1)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = member.model(normalise_for(images, member)).log_softmax(1)
    assert torch.allclose(step.teacher_forward({32: images})["teacher_logits"], expected, atol=1e-5)
    step.close()


def test_a_run_records_each_of_several_teachers(study):
    folder = student(study, "of_two", "--teacher", teacher(study, 0), teacher(study, 1))
    environment = read_json(folder / "environment.json")
    assert len(set(environment["teachers"])) == 2 and environment["teacher"] not in environment["teachers"]
    assert read_yaml(folder / "config.yaml")["teacher"] == [teacher(study, 0), teacher(study, 1)]
    assert Run(folder).kind == "student"
    cached = student(study, "of_two_cached", "--teacher", teacher(study, 0), teacher(study, 1), "--teacher-cache", "1")
    rows = [read_csv(run / "history.csv")[0] for run in (folder, cached)]
    assert float(rows[0]["kd"]) == pytest.approx(float(rows[1]["kd"]), rel=1e-2)


def test_losses_on_features_refuse_several_teachers_before_anything_is_written(study):
    with pytest.raises(UserError, match="reads teacher_attention, and several teachers") as caught:
        student(study, "at", "--teacher", teacher(study, 0), teacher(study, 1), "--beta", "10")
    assert "--beta 0" in caught.value.hint and not (study / "lesions_32px" / "at" / "seed_0" / "config.yaml").exists()


# ---- from elsewhere

@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """(a torchvision ResNet-18 of seven classes, its state dict's file)."""
    torch.manual_seed(5)
    model = models.resnet18(num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save({"net": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return model, path


def foreign(spec, path, data):
    return teachers.foreign(path, spec, data, registry)


def test_a_network_from_elsewhere_answers_in_the_order_of_our_classes(resnet, capsys):
    model, path = resnet
    data = small.data(count=84, classes=7)
    order = [3, 0, 6, 1, 2, 5, 4]
    theirs = ", ".join(data.class_names[k] for k in order)
    network = foreign(f"resnet18,stem=imagenet,mean=[0.5, 0.5, 0.5],std=[0.25, 0.5, 1],classes=[{theirs}]", path, data)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.model(images)[:, order], model(images))
    assert network.mean == (0.5,) * 3 and network.std == (0.25, 0.5, 1.0) and network.is_foreign
    assert "what the teacher was trained on is unknown" in capsys.readouterr().out


def test_its_normalisation_is_that_of_the_architecture_unless_it_is_given(resnet):
    data = small.data(count=84, classes=7)
    assert foreign("resnet18,stem=imagenet", resnet[1], data).mean == small.network(
        {**small.options(), "stem": "imagenet"}, data, arch="resnet18").mean


@pytest.mark.parametrize("spec, words", [
    ("resnet18,stem=imagenet,classes=[a, b]", "the classes of --teacher-arch are a, b"),
    ("resnet18,stem=imagenet,mean=[0.5]", "mean has three numbers"),
    ("resnet18,stem=imagenet,sizes=3", "has no option 'sizes'"),
    ("mobilenetv2", "does not fit this network"),
])
def test_what_does_not_fit_a_network_from_elsewhere_is_one_line(resnet, spec, words):
    with pytest.raises(UserError, match=words.replace("[", "\\[")):
        foreign(spec, resnet[1], small.data(count=84, classes=7))


def test_students_of_an_unknown_teacher_say_so(study, resnet):
    folder = student(study, "of_foreign", "--teacher", str(resnet[1]), "--teacher-arch", "resnet18,stem=imagenet")
    assert read_json(folder / "environment.json")["teacher_is_foreign"] is True
    again = student(study, "of_foreign", "--config", str(folder / "config.yaml"))  # its options repeat it
    assert again == folder


def test_the_tau_of_an_unknown_teacher_is_asked_for(study, resnet):
    argv = ["--teacher", str(resnet[1]), "--teacher-arch", "resnet18,stem=imagenet", "--soft", "prior_kd"]
    with pytest.raises(UserError, match="reads the tau") as caught:
        student(study, "tau", *argv)
    assert "--teacher-tau 0" in caught.value.hint
    student(study, "tau", *argv, "--teacher-tau", "0")


# ---- files of predictions

@pytest.fixture(scope="module")
def answers(study, tmp_path_factory):
    """A .npz of answers to all images, in another order of images and classes."""
    rows = read_csv(study / "lesions_32px" / "teacher_tiny" / "seed_0" / "split.csv")
    names = read_npz(study / "lesions_32px" / "teacher_tiny" / "seed_0" / "predictions" / "test.npz")["class_names"]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(names))
    path = tmp_path_factory.mktemp("answers") / "teacher.npz"
    labels = np.array([names[order].tolist().index(row["label"]) for row in rows])
    logits = rng.normal(size=(len(rows), len(names)))
    shuffled = rng.permutation(len(rows))
    write_npz(path, ids=np.array([row["id"] for row in rows])[shuffled], labels=labels[shuffled],
              logits=logits[shuffled], class_names=names[order])
    by_id = {row["id"]: logits[k][np.argsort(order)] for k, row in enumerate(rows)}
    return path, by_id


def test_a_file_of_predictions_answers_by_id_and_class(study, answers, monkeypatch):
    path, by_id = answers
    seen, original = {}, engine.Step.teacher_outputs

    def outputs(step, batch):
        result = original(step, batch)
        ids = step_data["data"].ids[step_data["data"].train[batch.index.numpy()]]
        seen.update(zip(ids, result["teacher_logits"].numpy()))
        return result

    step_data = {}
    init = engine.Step.__init__
    monkeypatch.setattr(engine.Step, "__init__", lambda step, student_, teacher_, terms, data, *rest: (
        step_data.update(data=data), init(step, student_, teacher_, terms, data, *rest))[1])
    monkeypatch.setattr(engine.Step, "teacher_outputs", outputs)
    folder = student(study, "of_file", "--teacher-predictions", str(path), "--augment", "none")
    data = step_data["data"]
    assert set(seen) == set(data.ids[data.train])
    assert all(np.allclose(logits, by_id[name], atol=1e-6) for name, logits in seen.items())
    assert Run(folder).kind == "student" and read_json(folder / "environment.json")["teacher_is_foreign"] is True


@pytest.mark.parametrize("argv, words, hint", [
    ([], "this training shows other views \\(--augment heavy\\)", "Give --augment none"),
    (["--augment", "none", "--mixup", "0.2"], "mixes images", "Leave out --mixup"),
    (["--augment", "none", "--beta", "10"], "reads teacher_attention", "--beta 0"),
])
def test_a_file_of_predictions_is_refused_where_it_would_be_wrong(study, answers, argv, words, hint):
    with pytest.raises(UserError, match=words) as caught:
        student(study, "wrong", "--teacher-predictions", str(answers[0]), *argv)
    assert hint in caught.value.hint


def test_an_image_without_an_answer_is_named(study, answers, tmp_path):
    arrays = read_npz(answers[0])
    write_npz(tmp_path / "few.npz", **{key: value if key == "class_names" else value[:20]
                                       for key, value in arrays.items()})
    with pytest.raises(UserError, match="has no answer for .* training images"):
        student(study, "few", "--teacher-predictions", str(tmp_path / "few.npz"), "--augment", "none")


# ---- images without labels

def test_images_of_validation_and_test_are_left_out_of_those_without_labels(tmp_path, capsys):
    data = small.data(folder=tmp_path / "cache")
    folder = tmp_path / "more"
    folder.mkdir()
    held_out, train = np.flatnonzero(data.split != "train"), data.train
    for name, pixels in {
        "copy": data.pixels([held_out[0]])[0], "mirrored": data.pixels([held_out[1]])[0][:, ::-1],
        f"{data.ids[held_out[2]]}": np.random.default_rng(5).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        "one": np.random.default_rng(6).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        "two": np.random.default_rng(7).integers(0, 256, (32, 32, 3)).astype(np.uint8),
    }.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("x")
    options = {**small.options("--unlabelled", str(folder)), "cache": str(tmp_path / "cache")}
    unlabelled_data.add(options, data, registry)
    assert data.unlabelled.parts[0].ids.tolist() == ["one.png", "two.png"]
    assert data.unlabelled.parts[0].left_out == {
        "of validation or test": 2, "with the id of an image of validation or test": 1}
    printed = capsys.readouterr().out
    assert "2 images (left out: 2 of validation or test, 1 with the id" in printed and "1 .txt" in printed
    assert len(train) == len(data.train)


def test_groups_of_validation_and_test_are_left_out(tmp_path):
    data = small.data(folder=tmp_path / "cache")
    folder, rng = tmp_path / "more", np.random.default_rng(5)
    folder.mkdir()
    group = data.groups[np.flatnonzero(data.split == "test")[0]]
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{name}.png")
    write_csv(tmp_path / "groups.csv", [{"id": "a", "group": group}, {"id": "b", "group": "another"}])
    options = {**small.options("--unlabelled", str(folder), "--groups", str(tmp_path / "groups.csv")),
               "cache": str(tmp_path / "cache")}
    unlabelled_data.add(options, data, registry)
    assert data.unlabelled.parts[0].ids.tolist() == ["b.png"]


def test_a_run_records_its_images_without_labels(study, capsys):
    folder = student(study, "more", "--teacher", teacher(study, 0), "--unlabelled", "lesions,images=240")
    assert "all images are read by kd, the labelled ones alone by logit_adjusted" in capsys.readouterr().out
    record = read_json(folder / "environment.json")["data"]
    assert record["unlabelled"][0]["images"] > 50 and sum(record["unlabelled"][0]["left_out"].values()) > 40
    history, = read_csv(folder / "history.csv")
    assert math.isfinite(float(history["kd"]))
    with pytest.raises(UserError, match="was begun with other images without labels"):
        moved = study / "lesions_32px" / "more"
        shutil.copytree(moved / "seed_0", moved / "seed_5")
        for name in ("test.npz", "val.npz"):
            (moved / "seed_5" / "predictions" / name).unlink()
        config = read_yaml(moved / "seed_5" / "config.yaml")
        write_yaml(moved / "seed_5" / "config.yaml", {**config, "seeds": [5], "unlabelled": ["lesions,images=300"]})
        student(study, "more", "--teacher", teacher(study, 0), "--unlabelled", "lesions,images=300", "--seeds", "5")


def test_a_run_without_a_loss_for_images_without_labels_says_so_and_uses_none(study, capsys):
    folder = student(study, "none", "--alpha", "1", "--unlabelled", "lesions,images=240")
    assert "no loss of this run reads images without labels, and none are used" in capsys.readouterr().out
    assert "unlabelled" not in read_json(folder / "environment.json")["data"]


@pytest.mark.parametrize("spec, words", [("nowhere", "no such folder, and no data set"),
                                         ("lesions,images=150", "no image of lesions can be used")])
def test_images_without_labels_that_are_none_are_one_line(study, spec, words):
    with pytest.raises(UserError, match=words):
        student(study, "bad", "--teacher", teacher(study, 0), "--unlabelled", spec)


def test_evaluation_and_report_say_that_the_teacher_is_unknown(study, resnet, capsys):
    folder = student(study, "said", "--teacher", str(resnet[1]), "--teacher-arch", "resnet18,stem=imagenet")
    evaluate.main([str(folder)])
    assert "note: the teacher of said was trained elsewhere, and may have seen the test images" in (
        capsys.readouterr().out)
    findings = Run(folder).metrics["audit"]
    assert not [finding for finding in findings if finding["severity"] == "error"], findings


def test_an_assistant_of_a_plan_is_waited_for(tmp_path):
    write_yaml(tmp_path / "p.yaml", {
        "data": "lesions,images=150", "size": 32, "out": str(tmp_path), "train_teacher": {"teacher": "tiny"},
        "distill": {"methods": {"assistant": {"student": ["tiny"]}, "chain": {
            "student": ["tiny"], "teacher": (tmp_path / "p" / "tiny_assistant").as_posix()}}}})
    tasks = {task.name: task for task in plan.read_plan(tmp_path / "p.yaml", study_script.script_parsers()).training}
    assert tasks["tiny_chain/seed_0"].needs == ("tiny_assistant/seed_0",)
    assert tasks["tiny_assistant/seed_0"].needs == ("teacher_tiny/seed_0",)


@pytest.mark.parametrize("spec, words", [
    ("std=[0, 0, 0]", "std has three numbers above 0 to 1"), ("mean=[a, b, c]", "mean has three numbers"),
    ("mean=[127, 127, 127]", "of pixels in \\[0, 1\\]"),
    ("stages=[layer1, layer2, layer3]", "stages are four module paths"), ("stem=foo", "stem is imagenet or small"),
    ("size=-3", "size is in px"),
])
def test_values_that_nothing_can_be_computed_with_are_one_line(resnet, spec, words):
    with pytest.raises(UserError, match=words):
        foreign(f"resnet18,{spec}", resnet[1], small.data(count=84, classes=7))


def test_another_stem_is_a_hint(resnet):
    with pytest.raises(UserError, match="does not fit") as caught:
        foreign("resnet18,stem=small", resnet[1], small.data(count=84, classes=7))
    assert "try --teacher-arch resnet18,stem=imagenet" in caught.value.hint
    foreign("resnet18,stem=imagenet", resnet[1], small.data(count=84, classes=7))


def test_a_checkpoint_of_the_project_does_not_get_round_its_leak_gate(study):
    with pytest.raises(UserError, match="is a checkpoint of this project") as caught:
        student(study, "round", "--teacher", teacher(study, 0), "--teacher-arch", "tiny")
    assert "Leave out --teacher-arch" in caught.value.hint


def test_the_architecture_of_a_file_from_elsewhere_is_asked_for(study, resnet):
    with pytest.raises(UserError, match="no checkpoint of this project") as caught:
        student(study, "asked", "--teacher", str(resnet[1]))
    assert "--teacher-arch NAME" in caught.value.hint
    with pytest.raises(UserError, match="the file that --teacher names"):
        student(study, "asked", "--teacher-arch", "resnet18")


def test_answers_need_no_labels(study, answers, tmp_path):
    arrays = {key: value for key, value in read_npz(answers[0]).items() if key != "labels"}
    write_npz(tmp_path / "answers.npz", **arrays)
    with_labels, without = (student(study, name, "--teacher-predictions", str(path), "--augment", "none")
                            for name, path in (("with", answers[0]), ("without", tmp_path / "answers.npz")))
    rows = [read_csv(folder / "history.csv")[0]["kd"] for folder in (with_labels, without)]
    assert rows[0] == rows[1]


def test_an_image_that_is_named_twice_counts_once(tmp_path, capsys):
    data, folder = small.data(folder=tmp_path / "cache"), tmp_path / "more" / "deep"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{name}.png")
    shutil.copy(folder / "a.png", folder.parent / "again.png")
    shutil.copy(folder / "a.png", folder.parent / "third.png")
    options = {**small.options("--unlabelled", str(folder), str(folder.parent)), "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="no image of more can be used without its label: 4 named twice"):
        unlabelled_data.add(options, data, registry)


def test_answers_of_other_labels_and_beside_another_teacher_are_refused(study, answers, tmp_path):
    arrays = read_npz(answers[0])
    write_npz(tmp_path / "shifted.npz", **{**arrays, "labels": (arrays["labels"] + 1) % 7})
    with pytest.raises(UserError, match="has other labels than the data for"):
        student(study, "shifted", "--teacher-predictions", str(tmp_path / "shifted.npz"), "--augment", "none")
    for other in (["--teacher", teacher(study, 0)], ["--teacher-cache", "2"]):
        with pytest.raises(UserError, match=f"{other[0]} has no meaning beside it"):
            student(study, "both", "--teacher-predictions", str(answers[0]), "--augment", "none", *other)
    student(study, "with_tau", "--teacher-predictions", str(answers[0]), "--augment", "none", "--soft", "prior_kd",
            "--teacher-tau", "0")
