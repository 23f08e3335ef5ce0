"""An external data set is seen through best.pt by the way of all pixels, and judged by choices made before."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import registry
from kd import image, metrics, perceptual_hash
from kd.data import splits
from kd.errors import UserError
from kd.files import read_json, read_npz, write_csv
from kd.train import checkpoint
from test_evaluate import NAMES, make_run

INPUT = {
    "resize": 36, "size": 32, "interpolation": image.INTERPOLATION, "mean": list(image.MEAN), "std": list(image.STD),
}


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of random weights."""
    folder = make_run(tmp_path / "study" / "tiny_kd" / "seed_0")
    save(folder)
    return folder


def save(folder, class_names=NAMES, seen=None, **entries):
    torch.manual_seed(0)
    model = registry.create("architecture", "tiny", num_classes=len(class_names), stem="small", weights=None)
    nothing = {"images": [], "groups": []}
    checkpoint.save(
        folder / "best.pt", model, arch="tiny", stem="small", class_names=class_names, input={**INPUT, **entries},
        provenance={"seen": {"train": nothing, "val": nothing, **(seen or {})}},
    )
    return model.eval()


def pictures(root, classes=NAMES, each=4, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(root / name / f"{k}.png")
    return root


def score(run, root, *more):
    evaluate.main([str(run), "--data", "folder", "--root", str(root), "--replicates", "100", *map(str, more)])


def test_every_image_goes_the_way_of_all_pixels(run, tmp_path, capsys):
    root = pictures(tmp_path / "clinic")
    score(run, root)
    arrays = read_npz(run / "predictions" / "clinic.npz")
    assert len(arrays["ids"]) == 12 and arrays["class_names"].tolist() == NAMES
    model = save(run)
    for name, label, logits in zip(arrays["ids"], arrays["labels"], arrays["logits"]):
        prefix, folder, file = name.split("/")
        assert (prefix, folder) == ("clinic", NAMES[label])
        pixels = image.centre_crop(image.square((root / folder / file).read_bytes(), 36)[None], 32)[0] / 255
        batch = torch.tensor((pixels - image.MEAN) / image.STD, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(batch)[0].numpy(), atol=1e-4)
    shown = capsys.readouterr().out
    assert "clinic.npz: 12 test images" in shown and "written" not in shown


def test_what_was_chosen_on_the_runs_validation_is_tested_on_the_set(run, tmp_path):
    before = {path.name: path.read_bytes() for path in (run / "predictions").iterdir()}
    score(run, pictures(tmp_path / "clinic"), "--out", tmp_path / "out")
    external = read_json(tmp_path / "out" / "metrics.json")
    evaluate.main([str(run), "--replicates", "100"])
    own = read_json(run / "metrics.json")
    for key in ("temperature", "nll_val_before"):
        assert external["calibration"][key] == own["calibration"][key]
    assert [p["threshold"] for p in external["operating_points"]] == [p["threshold"] for p in own["operating_points"]]
    assert external["split"]["val"] == own["split"]["val"] and external["split"]["test"]["images"] == 12
    assert all((run / "predictions" / name).read_bytes() == content for name, content in before.items())


def test_classes_are_matched_by_name_and_may_be_fewer(run, tmp_path, capsys):
    score(run, pictures(tmp_path / "clinic", classes=[NAMES[2], NAMES[0]]))
    arrays = read_npz(run / "predictions" / "clinic.npz")
    assert sorted(set(arrays["labels"])) == [0, 2] and arrays["logits"].shape == (8, 3)
    assert "No test image of mel" in capsys.readouterr().out


def test_patients_of_the_set_are_its_clusters(run, tmp_path, capsys):
    root = pictures(tmp_path / "clinic")
    rows = [{"id": f"{name}/{k}.png", "group": f"patient{k // 2}"} for name in NAMES for k in range(4)]
    write_csv(tmp_path / "groups.csv", rows)
    score(run, root, "--groups", tmp_path / "groups.csv")
    assert "over 2 groups" in capsys.readouterr().out
    assert set(read_npz(run / "predictions" / "clinic.npz")["groups"]) == {"clinic/patient0", "clinic/patient1"}


def test_of_a_set_with_official_splits_the_test_split_is_scored(run, tmp_path):
    for k, split in enumerate(splits.NAMES):
        pictures(tmp_path / "official" / split, each=2, seed=k)
    score(run, tmp_path / "official")
    arrays = read_npz(run / "predictions" / "official.npz")
    assert len(arrays["ids"]) == 6 and all(name.startswith("official/test/") for name in arrays["ids"])


def test_every_run_below_a_folder_is_scored(run, tmp_path, capsys):
    other = make_run(run.parent / "seed_1", seed=1)
    save(other)
    score(run.parent, pictures(tmp_path / "clinic"))
    assert all((folder / "predictions" / "clinic.npz").is_file() for folder in (run, other))
    assert not (run.parent / "seeds.json").exists()  # that is about the run's own test split
    assert "clinic.npz" in capsys.readouterr().out


def refused(run, root, match, *more):
    with pytest.raises(UserError, match=match) as caught:
        score(run, root, *more)
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in (run / "predictions").iterdir()) == ["test.npz", "val.npz"]


def test_what_does_not_fit_is_one_clear_line(run, tmp_path, capsys):
    refused(
        run, pictures(tmp_path / "strange", classes=["nv", "wart"]), "1 classes that the network does not know: wart"
    )
    refused(run, pictures(tmp_path / "test"), "called test, as a split of the run is")
    refused(run, tmp_path / "nowhere", "no such folder")
    root = pictures(tmp_path / "clinic")
    (root / "nv" / "0.png").write_bytes(b"no picture")
    refused(run, root, "1 of 12 images cannot be used")
    (run / "best.pt").unlink()
    refused(run, root, "no checkpoint at")


def kept(run, name="clinic"):
    """Ids in the file of an external set."""
    return [i.removeprefix(f"{name}/") for i in read_npz(run / "predictions" / f"{name}.npz")["ids"]]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("has_ids", [True, False])
def test_images_that_the_network_was_trained_or_selected_on_are_left_out_and_named(
        run, tmp_path, capsys, split, has_ids):
    root = pictures(tmp_path / "clinic")
    known = digest(root / "mel" / "1.png")
    save(run, seen={split: {"images": [known[:16]], "groups": []}})
    if has_ids:
        write_csv(run / "split.csv", [{"id": "IM7", "group": "", "label": "mel", "split": split, "sha256": known}])
    else:
        (run / "split.csv").unlink(missing_ok=True)
    score(run, root, "--out", tmp_path / "out")
    note = ("1 of 12 images of clinic are left out, since the network was trained or selected on them: 1 the same "
            f"files: mel/1.png{' = IM7' * has_ids}")
    assert f"note: {note}" in capsys.readouterr().out
    assert len(kept(run)) == 11 and "mel/1.png" not in kept(run)
    result = read_json(tmp_path / "out" / "metrics.json")
    assert note in str(result["conventions"]) + str(result.get("note")) and result["split"]["test"]["images"] == 11
    score(run, root)  # it is the same set


def test_a_set_of_which_nothing_is_left_is_refused(run, tmp_path):
    root = pictures(tmp_path / "clinic")
    known = [digest(path)[:16] for path in sorted(root.glob("*/*.png"))]
    save(run, seen={"train": {"images": known[:-1], "groups": []}})
    refused(run, root, "clinic is no external data set: 11 of 12 images of clinic are left out")
    save(run, seen={"train": {"images": known[:-2], "groups": []}})
    score(run, root)
    assert len(kept(run)) == 2


def test_images_of_patients_that_the_network_knows_are_left_out(run, tmp_path, capsys):
    root = pictures(tmp_path / "clinic")
    write_csv(tmp_path / "groups.csv", [{"id": f"{name}/{k}.png", "group": f"p{k}"} for name in NAMES
                                        for k in range(4)])
    save(run, seen={"train": {"images": [], "groups": [splits.key("clinic/p2")]}})
    score(run, root, "--groups", tmp_path / "groups.csv")
    assert sorted(kept(run)) == sorted(f"{name}/{k}.png" for name in NAMES for k in (0, 1, 3))
    assert "3 of its patients or lesions: " in capsys.readouterr().out


# ---- checks of training do not apply to testing


def measured(run, root, *more):
    """What evaluate.py writes of an external set: metrics.json."""
    out = root.parent / f"{root.name}_out"
    score(run, root, "--out", out, *more)
    return read_json(out / "metrics.json")


@pytest.mark.parametrize("present, each", [([2], 12), ([0, 2], 6), ([1], 1), ([0, 1, 2], 1)])
def test_what_can_be_measured_of_a_part_of_the_classes_is_and_the_rest_is_said_to_be_undefined(
        run, tmp_path, present, each, capsys):
    root = pictures(tmp_path / "part", classes=[NAMES[k] for k in present], each=each)
    result = measured(run, root)
    shown = capsys.readouterr().out
    test, support = result["test"], result["split"]["test"]["support"]
    assert {name for name, count in support.items() if count} == {NAMES[k] for k in present}
    arrays = read_npz(run / "predictions" / "part.npz")
    counts = metrics.confusion(arrays["labels"], arrays["logits"].argmax(1), 3)
    for name in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert test[name]["value"] == pytest.approx(float(getattr(metrics, name)(counts)))
    for k, name in enumerate(NAMES):
        assert (test[f"recall/{name}"]["value"] is None) == (k not in present)
        assert (test[f"auroc/{name}"]["value"] is None) == (k not in present or len(present) == 1)
    assert (test["macro_auroc"]["value"] is None) == (len(present) == 1)
    assert ("AUROC and specificity need images of other classes" in shown) == (len(present) == 1)
    assert ("No test image of" in shown) == (len(present) < 3)
    assert "nan" not in shown.lower() and "error" not in {found["severity"] for found in result["audit"]}


def test_classes_match_but_for_case_spaces_and_underscores_and_this_is_said(run, tmp_path, capsys):
    measured(run, pictures(tmp_path / "caps", classes=["NV", "A_class with-quite a LONG name"]))
    assert sorted(set(read_npz(run / "predictions" / "caps.npz")["labels"])) == [0, 2]
    assert "note: classes of caps: A_class with-quite a LONG name is a class with quite a long name; NV is nv" in (
        capsys.readouterr().out)


def test_a_class_map_names_merges_and_leaves_out(run, tmp_path, capsys):
    root = pictures(tmp_path / "theirs", classes=["melanoma", "in situ", "wart", "nv"], each=2)
    with pytest.raises(UserError, match="classes that the network does not know: in situ, melanoma, wart") as caught:
        measured(run, root)
    assert "--class-map FILE" in caught.value.hint
    (tmp_path / "map.csv").write_text("theirs,ours\nmelanoma,mel\nin situ,mel\nwart,\n", encoding="utf-8")
    result = measured(run, root, "--class-map", tmp_path / "map.csv")
    assert result["split"]["test"]["support"] == {"nv": 2, "mel": 4, NAMES[2]: 0}
    assert "2 of 8 images are of classes that --class-map leaves out" in capsys.readouterr().out


@pytest.mark.parametrize("separator", [", ", " ,", ";", " | ", "\t"])
def test_a_class_map_is_read_whatever_stands_around_its_words(run, tmp_path, separator):
    root = pictures(tmp_path / "theirs", classes=["melanoma", "in situ"], each=2)
    lines = [f"{theirs}{separator}mel" for theirs in ("melanoma", "in situ")]
    (tmp_path / "map.csv").write_text("\n".join([f"theirs{separator}ours", *lines]), encoding="utf-8")
    assert measured(run, root, "--class-map", tmp_path / "map.csv")["split"]["test"]["support"]["mel"] == 4


@pytest.mark.parametrize("lines, words", [
    ("theirs,ours\nmelanom,mel\n", "names classes that theirs has not: melanom"),
    ("theirs,ours\nmelanoma,mell\n", "classes that the network does not know: mell"),
    ("theirs,ours\nmelanoma,mel\nmelanoma,nv\n", "has a class of theirs twice"),
    ("a,b\nc,d\n", "has no column theirs, ours"), ("a,b\n", "has no column theirs, ours"),
    ("theirs,ours\nmelanoma,\nnv,\n", "leaves out every image"),
])
def test_a_class_map_that_does_not_fit_is_one_line(run, tmp_path, lines, words):
    root = pictures(tmp_path / "theirs", classes=["melanoma", "nv"], each=2)
    (tmp_path / "map.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        measured(run, root, "--class-map", tmp_path / "map.csv")
    assert "\n" not in caught.value.message and not (run / "predictions" / "theirs.npz").exists()


def test_unreadable_images_are_left_out_where_asked_and_this_is_said(run, tmp_path, capsys):
    root = pictures(tmp_path / "clinic")
    (root / "nv" / "0.png").write_bytes(b"no picture")
    refused(run, root, "1 of 12 images cannot be used")
    score(run, root, "--skip-bad")
    assert "left out, since they cannot be used: 1 images: nv/0.png" in capsys.readouterr().out
    assert len(read_npz(run / "predictions" / "clinic.npz")["ids"]) == 11


def test_two_sets_of_one_name_do_not_overwrite_each_other(run, tmp_path):
    first, second = (pictures(tmp_path / place / "images", seed=seed) for seed, place in enumerate("ab"))
    score(run, first)
    before = (run / "predictions" / "images.npz").read_bytes()
    score(run, first)  # the same set again
    with pytest.raises(UserError, match="is of another data set of this name") as caught:
        score(run, second)
    assert "--name" in caught.value.hint and (run / "predictions" / "images.npz").read_bytes() == before
    score(run, second, "--name", "images_b")
    assert read_npz(run / "predictions" / "images_b.npz")["ids"][0].startswith("images_b/")
    with pytest.raises(UserError, match="--name becomes a file's name"):
        score(run, second, "--name", "a/b")


def test_a_target_that_is_no_class_of_the_run_is_said_before_images_are_read(run, tmp_path):
    for more in ([], ["--recalibrate"]):
        with pytest.raises(UserError, match="--target lungs: no such class"):
            score(run, tmp_path / "no images are here", "--target", "lungs", *more)


def test_decoded_external_images_go_where_cache_says(run, tmp_path):
    root = pictures(tmp_path / "clinic")
    score(run, root, "--cache", tmp_path / "decoded")
    assert list((tmp_path / "decoded").glob("*.npy")) and not (root / ".kd_cache").exists()


@pytest.mark.parametrize("options, words", [
    (["--root", "x"], "--root is for an external data set"),
    (["--data", "folder", "--compare"], "each do something else"),
    (["--compare", "--audit"], "each do something else"),
    (["--val", "v.npz"], "--val belongs to one predictions file"),
    (["--out", "x"], "--out takes the metrics of a predictions file"),
    (["--cache", "x"], "--cache is for an external data set"),
    (["--skip-bad"], "--skip-bad is for an external data set"),
    (["--class-map", "m.csv"], "--class-map is for an external data set"),
    (["--labels", "y.csv"], "--labels is for a predictions file"),
    (["--scores", "logits"], "--scores is for a predictions file"),
    (["--bins", "0"], "--bins: .0. is not a whole number"),
    (["--sensitivity", "95"], "'95' is not a number from 0 to 1"),
])
def test_options_that_do_not_fit_together_are_refused(run, options, words):
    with pytest.raises(UserError, match=words):
        evaluate.main([str(run), *options])


def test_a_predictions_file_has_no_checkpoint(run):
    with pytest.raises(UserError, match="scored with the checkpoints of runs"):
        evaluate.main([str(run / "predictions" / "test.npz"), "--data", "folder", "--root", "x"])


@pytest.mark.parametrize("change", [
    lambda picture: picture.resize((100, 100)),
    lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    lambda picture: picture,
], ids=["scaled", "mirrored", "turned", "saved again"])
def test_pictures_that_the_network_was_trained_on_are_left_out_though_every_byte_differs(
        run, tmp_path, capsys, change):
    root, pictures_ = tmp_path / "clinic", photographs(4)
    for k, picture in enumerate(pictures_):
        (root / NAMES[k % 3]).mkdir(parents=True, exist_ok=True)
        picture.save(root / NAMES[k % 3] / f"{k}.png")
    trained = [np.asarray(picture.resize((36, 36))) for picture in pictures_[:1]]
    looks = perceptual_hash.hashes(trained)
    save(run, seen={"train": {"images": [], "groups": [], "pictures": looks}})
    write_csv(run / "split.csv", [{"id": "IM7", "group": "", "label": "nv", "split": "train", "sha256": "",
                                   "perceptual_hash": looks[0]}])
    change(pictures_[0]).save(root / NAMES[0] / "0.jpg", quality=70)
    (root / NAMES[0] / "0.png").unlink()
    score(run, root)
    assert "1 of 4 images of clinic are left out" in (out := capsys.readouterr().out)
    assert f"1 pictures that look like one of these, such as a copy that was saved again: {NAMES[0]}/0.jpg ~ IM7" in out
    assert len(kept(run)) == 3 and f"{NAMES[0]}/0.jpg" not in kept(run)


def photographs(count):
    """Pictures of 40 x 40 px, as different from each other as photographs."""
    coarse = np.random.default_rng(0).integers(0, 255, (count, 12, 12, 3)).astype(np.uint8)
    return [Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC) for pixels in coarse]


def test_a_checkpoint_of_an_older_version_has_no_perceptual_hashes_and_this_is_said(run, tmp_path, capsys):
    score(run, pictures(tmp_path / "clinic"))
    assert "no perceptual hashes of its training images" in capsys.readouterr().out
