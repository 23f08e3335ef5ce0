"""Data as people have them: every layout is read, every fault is one line."""

import hashlib
import io
import os
import shutil
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import registry
from kd.data import cache, loader
from kd.data.dataset import Dataset
from kd.errors import UserError
from kd.files import write_csv


def make(name, *args, **options):
    return registry.create("dataset", name, *args, **options)


def refused(name, *args, **options):
    with pytest.raises(UserError) as caught:
        make(name, *args, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (value % 256, value // 256, 0)).save(path, "PNG")


# Dataset: what every plugin returns


@pytest.mark.parametrize("change, error, words", [
    ({"ids": ["a", "a"]}, UserError, "1 images are listed twice: a"),
    ({"ids": [], "images": [], "labels": []}, UserError, "no images found"),
    ({"labels": [0, 2]}, UserError, "a label is not among the 2 classes"),
    ({"labels": [-1, 0]}, UserError, "a label is not among the 2 classes"),
    ({"labels": [0]}, ValueError, "differ in number"),
    ({"groups": ["g"]}, ValueError, "differ in number"),
    ({"split": ["train"]}, ValueError, "differ in number"),
    ({"groups": ["g", " "]}, UserError, "1 images have no group: b"),
    ({"ids": ["a", "f\udcfcr.jpg"]}, UserError, "1 names are not valid Unicode: 'f\\udcfcr.jpg'"),
])
def test_a_dataset_that_does_not_add_up_is_refused(change, error, words):
    good = dict(name="d", class_names=["x", "y"], images=[None, None], ids=["a", "b"], labels=[0, 1])
    Dataset(**good)
    with pytest.raises(error) as caught:
        Dataset(**{**good, **change})
    assert words in str(caught.value)


# HAM10000

ROWS = [("HAM_1", "ISIC_1", "nv"), ("HAM_1", "ISIC_2", "nv"), ("HAM_2", "ISIC_3", "mel"), ("HAM_3", "ISIC_4", "akiec")]


def ham(root, places, rows=ROWS, metadata="HAM10000_metadata.csv"):
    for k, place in enumerate(places):
        picture(root / place, k)
    (root / metadata).parent.mkdir(parents=True, exist_ok=True)
    write_csv(root / metadata, [dict(zip(("lesion_id", "image_id", "dx"), row)) for row in rows])
    return root


@pytest.mark.parametrize("metadata", ["HAM10000_metadata.csv", "dataverse_files/HAM10000_metadata.csv"])
@pytest.mark.parametrize("places", [
    ["HAM10000_images_part_1/ISIC_1.jpg", "HAM10000_images_part_1/ISIC_2.jpg", "HAM10000_images_part_2/ISIC_3.jpg",
     "HAM10000_images_part_2/ISIC_4.jpg"],
    ["images/ISIC_1.jpg", "images/ISIC_2.jpg", "images/ISIC_3.jpg", "images/ISIC_4.jpg"],
    ["ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg", "ISIC_4.jpg"],
    ["ISIC_1.JPG", "a/ISIC_2.jpeg", "a/b/ISIC_3.Png", "c d/ISIC_4.JPEG"],
])
def test_ham10000_is_found_in_any_layout(tmp_path, places, metadata):
    others = ["ISIC_999.jpg", "masks/ISIC_1_segmentation.png", "._ISIC_1.jpg", ".trash/ISIC_1.jpg"]
    data = make("ham10000", ham(tmp_path, places + others, metadata=metadata))
    assert data.ids == ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"]
    assert [path.relative_to(tmp_path).as_posix() for path in data.images] == places
    assert data.class_names == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert data.labels.tolist() == [5, 5, 4, 0] and data.groups == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]
    images, _, _, _ = cache.open_cache(data, 8, root=tmp_path)
    assert images[:][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert make("ham10000", str(tmp_path)).ids == data.ids  # its cache is not taken for images


def test_ham10000_images_behind_a_link_are_found(tmp_path):
    ham(tmp_path / "elsewhere", [f"ISIC_{k}.jpg" for k in (1, 2, 3, 4)])
    (tmp_path / "data").mkdir()
    try:
        os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "images", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert make("ham10000", tmp_path / "data").images[0].is_file()


def test_ham10000_missing_and_double_images_are_listed_or_skipped(tmp_path):
    root = ham(tmp_path, ["images/ISIC_1.jpg", "part_1/ISIC_1.jpg", "ISIC_4.jpg", "ISIC_4.png", "ISIC_2.jpg"])
    data = make("ham10000", root)
    with pytest.raises(UserError) as caught:
        cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert caught.value.message == (
        "3 of 4 images cannot be used: ISIC_1 (there twice: images/ISIC_1.jpg and part_1/ISIC_1.jpg), "
        "ISIC_3 (no such file), ISIC_4 (there twice: ISIC_4.jpg and ISIC_4.png)")
    images, _, bad, _ = cache.open_cache(data, 8, folder=tmp_path / "cache", skip_bad=True)
    assert [i for i, _ in bad] == [0, 2, 3] and images[1][0, 0, 0] == 4
    (root / "part_1" / "ISIC_1.jpg").unlink()
    _, _, bad, _ = cache.open_cache(make("ham10000", root), 8, folder=tmp_path / "cache", skip_bad=True)
    assert [i for i, _ in bad] == [2, 3]


def test_ham10000_as_kaggle_and_the_dataverse_pack_it(tmp_path, capsys):
    places = [f"HAM10000_images_part_1/ISIC_{k}.jpg" for k in (1, 2, 3, 4)]
    root = ham(tmp_path, places)
    shutil.copytree(root / "HAM10000_images_part_1", root / "copies of part 1")  # Kaggle: ham10000_images_part_1
    data = make("ham10000", root)
    assert len(data.images) == 4 and all(path.is_file() for path in data.images)
    assert "4 images are there several times, byte by byte" in capsys.readouterr().out
    table = root / "HAM10000_metadata.csv"
    for name, separator in (("HAM10000_metadata", ","), ("HAM10000_metadata.tab", "\t")):
        text = table.read_text().replace(",", separator)
        table.unlink()
        table = root / name
        table.write_text(text)
        assert make("ham10000", root).ids == data.ids


def test_ham10000_faults_are_one_line(tmp_path):
    assert "--root" in str(pytest.raises(UserError, make, "ham10000", None).value)
    assert "no such folder" in refused("ham10000", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no HAM10000_metadata.csv in" in refused("ham10000", tmp_path / "empty")
    assert "none of the 4 images" in refused("ham10000", ham(tmp_path / "no images", []))
    places = ["ISIC_1.jpg"]
    assert "unknown diagnosis scc" in refused("ham10000", ham(tmp_path / "a", places, [("H", "ISIC_1", "scc")]))
    assert "1 images are listed twice: ISIC_1" in refused("ham10000", ham(tmp_path / "b", places, ROWS + ROWS[:1]))
    assert "1 images have no group: ISIC_1" in refused("ham10000", ham(tmp_path / "c", places, [("", "ISIC_1", "nv")]))
    root = ham(tmp_path / "d", places)
    (root / "HAM10000_metadata.csv").write_text("image_id,dx\nISIC_1,nv\n")
    assert "has no column lesion_id" in refused("ham10000", root)
    (root / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\nHAM_1,ISIC_1\n")
    assert "shorter than its header" in refused("ham10000", root)
    (root / "HAM10000_metadata.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot read" in refused("ham10000", root)
    (root / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\n")
    assert refused("ham10000", root)


def test_ham10000_of_the_real_data(real_data):
    data = make("ham10000", real_data / "ham10000")
    assert len(data.ids) == 10015 and len(set(data.groups)) == 7470
    assert np.bincount(data.labels).tolist() == [327, 514, 1099, 115, 1113, 6705, 142]
    assert all(path.stem == i for path, i in zip(data.images, data.ids))


# MedMNIST


def arrays(shape=(28, 28), labels=(0, 1), dtype=np.uint8, column=True):
    rng = np.random.default_rng(0)
    result = {}
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        result[f"{split}_images"] = rng.integers(0, 256, (count, *shape)).astype(dtype)
        column_values = np.resize(labels, count)
        result[f"{split}_labels"] = column_values[:, None] if column else column_values
    return result


def npz(path, **changes):
    np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
    return path


@pytest.mark.parametrize("shape, size", [((28, 28), 28), ((28, 28, 3), 28), ((64, 64, 3), 64), ((40, 30), 32)])
@pytest.mark.parametrize("column", [True, False])
def test_medmnist_of_any_size_and_colour(tmp_path, shape, size, column):
    content = arrays(shape, column=column)
    np.savez_compressed(tmp_path / "own.npz", **content)
    data = make("medmnist", tmp_path / "own.npz")
    assert data.name == "own" and data.class_names == ["0", "1"] and data.groups is None
    assert data.split == ["train"] * 8 + ["val"] * 3 + ["test"] * 4 and data.ids[8] == "val_0"
    assert data.labels.tolist() == [0, 1] * 4 + [0, 1, 0] + [0, 1] * 2
    ready = loader.prepare(data, size=size, cache_folder=tmp_path)
    assert ready.images.shape == (15, size, size, 3) and ready.split.tolist() == data.split
    if shape[:2] == (size, size):
        stored = content["val_images"] if len(shape) == 3 else np.repeat(content["val_images"][..., None], 3, 3)
        assert np.array_equal(ready.images[8:11], stored)


def test_medmnist_knows_the_classes_of_published_sets(tmp_path):
    path = npz(tmp_path / "dermamnist_64.npz", train_labels=np.arange(8)[:, None] % 7)
    assert make("medmnist", path).class_names[4] == "melanoma" and len(make("medmnist", path).class_names) == 7
    path = npz(tmp_path / "breastmnist.npz", train_labels=np.arange(8)[:, None])
    assert "a label is not among the 2 classes" in refused("medmnist", path)


def test_medmnist_of_the_real_data(real_data):
    data = make("medmnist", real_data / "medmnist" / "breastmnist.npz")
    assert len(data.ids) == 780 and [data.split.count(s) for s in ("train", "val", "test")] == [546, 78, 156]
    assert data.class_names == ["malignant", "normal, benign"] and np.bincount(data.labels).tolist() == [210, 570]
    with np.load(real_data / "medmnist" / "breastmnist.npz") as file:
        assert np.array_equal(data.images[546], file["val_images"][0]) and data.labels[546] == file["val_labels"][0, 0]


@pytest.mark.parametrize("changes, words", [
    ({"val_labels": np.zeros((3, 14), np.uint8)}, "several labels an image"),
    ({"train_images": np.zeros((8, 28, 28, 28), np.uint8)}, "3D volumes"),
    ({"train_images": np.zeros((8, 28, 28, 28, 1), np.uint8)}, "3D volumes"),
    ({"train_images": np.zeros((8, 28, 28, 4), np.uint8)}, "train_images is uint8 [8, 28, 28, 4], not"),
    ({"test_images": np.zeros((4, 28, 28), np.float32)}, "test_images is float32"),
    ({"test_images": np.uint8(3)}, "test_images is uint8 []"),
    ({"test_labels": np.zeros((5, 1), int)}, "test_labels is int64 [5, 1] for 4 images"),
    ({"test_labels": np.zeros((4, 1))}, "test_labels is float64"),
    ({"test_labels": np.full((4, 1), -1)}, "a label is not among"),
    ({"test_labels": None}, "has no array test_labels"),
    ({"test_images": np.array([{}] * 4)}, "pickled objects"),
])
def test_medmnist_faults_are_one_line(tmp_path, changes, words):
    assert words in refused("medmnist", npz(tmp_path / "own.npz", **changes))


def test_a_column_a_class_is_a_label_and_several_classes_at_once_are_refused(tmp_path):
    one_hot = {f"{split}_labels": np.eye(3, dtype=np.uint8)[np.arange(count) % 3]
               for split, count in (("train", 8), ("val", 3), ("test", 4))}
    assert make("medmnist", npz(tmp_path / "a.npz", **one_hot)).labels[:4].tolist() == [0, 1, 2, 0]
    one_hot["val_labels"][0] = 1
    assert "several labels an image" in refused("medmnist", npz(tmp_path / "b.npz", **one_hot))
    one_hot["val_labels"][0] = 0
    assert "several labels an image" in refused("medmnist", npz(tmp_path / "b.npz", **one_hot))


def test_files_of_medmnist_c_are_test_sets_of_images_at_five_severities(tmp_path):
    (tmp_path / "breastmnist").mkdir()
    path, images = tmp_path / "breastmnist" / "pixelate.npz", np.zeros((15, 28, 28), np.uint8)
    np.savez(path, test_images=images, test_labels=[[0], [1], [1]] * 5)
    data = make("medmnist", path, testing=True)
    assert data.name == "breastmnist_c_pixelate" and data.class_names == ["malignant", "normal, benign"]
    assert data.groups == ["test_0", "test_1", "test_2"] * 5 and set(data.split) == {"test"}
    assert data.ids[0] == "test_0_severity_1" and data.ids[-1] == "test_2_severity_5"
    error = refused("medmnist", path)
    assert "has no array train_images, train_labels, val_images, val_labels" in error
    np.savez(path, test_images=images, test_labels=[[0], [1], [1]] * 4 + [[0], [0], [1]])
    assert make("medmnist", path, testing=True).groups is None


def test_medmnist_files_that_are_none(tmp_path):
    assert "--root" in str(pytest.raises(UserError, make, "medmnist", None).value)
    assert "no such file" in refused("medmnist", tmp_path / "absent.npz")
    assert "no such file" in refused("medmnist", tmp_path)
    path = npz(tmp_path / "a.npz")
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:len(whole) // 2], whole[:300] + bytes(400) + whole[700:]):
        path.write_bytes(damaged)
        assert "cannot read" in refused("medmnist", path)
    np.save(tmp_path / "b.npz.npy", np.zeros(3))
    os.rename(tmp_path / "b.npz.npy", tmp_path / "b.npz")
    assert "cannot read" in refused("medmnist", tmp_path / "b.npz")


@pytest.fixture
def server(monkeypatch):
    """A function that sets what urlopen returns, bytes or an exception, and returns the list of requested addresses."""
    requested = []

    def answers(content):
        class Answer(io.BytesIO):
            headers = {"Content-Length": "12"}

        def urlopen(url, timeout):
            requested.append(url)
            if isinstance(content, Exception):
                raise content
            return Answer(content)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return requested

    return answers


def test_medmnist_is_downloaded_and_checked(tmp_path, server, monkeypatch):
    content = npz(tmp_path / "made.npz").read_bytes()
    plugin = sys.modules[registry.get("dataset", "medmnist").make.__module__]
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(
        plugin, "read_yaml", lambda path: {"breastmnist": {"classes": ["a", "b"], "md5": {28: digest, 64: digest}}}
    )
    requested = server(content)
    for name in ("breastmnist.npz", "breastmnist_64.npz"):
        data = make("medmnist", tmp_path / "new" / name, download=True)
        assert len(data.ids) == 15 and requested[-1].endswith(f"/{name}?download=1")
    make("medmnist", tmp_path / "new" / name, download=True)
    assert len(requested) == 2  # it is there


@pytest.mark.parametrize("content, words", [
    (b"half a file", "checksum is wrong"),
    (urllib.error.URLError("Name or service not known"), "Name or service not known"),
    (urllib.error.HTTPError("u", 404, "Not Found", {}, None), "Not Found"),
    (TimeoutError("timed out"), "timed out"),
])
def test_a_download_that_fails_leaves_no_file(tmp_path, server, content, words):
    server(content)
    with pytest.raises(UserError) as caught:
        make("medmnist", tmp_path / "dermamnist_64.npz", download=True)
    assert words in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["unknown.npz", "dermamnist_65.npz", "dermamnist_28.npz", "dermamnist_\u00b2.npz", "dermamnist", "chestmnist.npz"],
)
def test_only_published_files_are_asked_for(tmp_path, server, name):
    requested = server(b"")
    assert "no published file is called" in refused("medmnist", tmp_path / name, download=True)
    assert not requested and not list(tmp_path.iterdir())


# One's own folder


def tree(root, *names):
    for k, name in enumerate(names):
        picture(root / name, k)
    return root


def test_class_folders(tmp_path):
    root = tree(
        tmp_path / "my set", "nevus/1.png", "nevus/deep/2.JPG", "mel an/3.png", "nevus/._1.png", ".hidden/x/4.png",
        "nevus/.checkpoints/1.png", "stray.png",
    )
    (root / "nevus" / "notes.txt").write_text("")
    data = make("folder", root)
    assert data.name == "my set" and data.class_names == ["mel an", "nevus"]
    assert data.ids == ["mel an/3.png", "nevus/1.png", "nevus/deep/2.JPG"] and data.labels.tolist() == [0, 1, 1]
    assert data.groups is None and data.split is None


def test_splits_above_the_classes(tmp_path):
    root = tree(
        tmp_path, *[f"{split}/{name}/{k}.png" for split in ("train", "val", "test") for name in "ab" for k in (1, 2)]
    )
    (root / "val" / "b" / "1.png").unlink(), (root / "val" / "b" / "2.png").unlink(), (root / "val" / "b").rmdir()
    data = make("folder", root)
    assert data.class_names == ["a", "b"] and data.split.count("train") == 4 and data.split.count("val") == 2
    assert (
        all(i.startswith(s) for i, s in zip(data.ids, data.split)) and data.labels[data.ids.index("test/b/1.png")] == 1
    )


def test_folder_faults_are_one_line(tmp_path):
    assert "--root" in str(pytest.raises(UserError, make, "folder", None).value)
    assert "no such folder" in refused("folder", tmp_path / "absent")
    assert "no images in" in refused("folder", tmp_path)
    assert "has 1 class folder with images, a" in refused("folder", tree(tmp_path, "a/1.png"))
    assert make("folder", tmp_path, testing=True).class_names == ["a"]
    tree(tmp_path, "c/2.png")
    (tmp_path / "b").mkdir()
    assert "no images in class folder b" in refused("folder", tmp_path)
    (tmp_path / "b" / "note.txt").write_text("")
    assert "no images in class folder b: 1 files are not read as images and are left out: 1 .txt" in refused(
        "folder", tmp_path)


def test_groups_from_a_csv(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "a/2.png", "b/3.png")
    file = tmp_path / "groups.csv"
    file.write_text(
        "id,group,age\na/1.png,p1,5\na\\2.png,p1,6\n./b/3.png,p2,7\nb/gone.png,p9,8\n", encoding="utf-8-sig"
    )
    assert make("folder", root, groups=file).groups == ["p1", "p1", "p2"]
    for text, words in (
        ("id,group\na/1.png,p1\n", "has no group for 2 of 3 images"),
        ("id,patient\na/1.png,p1\n", "has no column group"),
        ("id,group\na/1.png,p1\na/2.png,p2\nb/3.png,\n", "has no group for 1 of 3 images"),
        ("id,group\na/1.png,p1\na/2.png,p2\nb/3.png,p2\na/1.png,p7\n", "gives 1 images two groups: a/1.png"),
    ):
        file.write_text(text)
        assert words in refused("folder", root, groups=file)


def test_groups_stay_together_and_a_shared_one_stops_the_run(tmp_path):
    names = [f"{c}/{k}.png" for c in "ab" for k in range(20)]
    tree(tmp_path / "set", *names)
    write_csv(tmp_path / "g.csv", [{"id": name, "group": f"p{k % 20 // 2}{name[0]}"} for k, name in enumerate(names)])
    data = loader.prepare(make("folder", tmp_path / "set", groups=tmp_path / "g.csv"), size=8, root=tmp_path / "set")
    assert data.grouped and data.images.shape[1] == 8 + 2 * round(8 / 16)
    assert (data.split.reshape(20, 2) == data.split[::2, None]).all()
    official = [f"{split}/{c}/{k}.png" for split in ("train", "val", "test") for c in "ab" for k in range(2)]
    tree(tmp_path / "official", *official)
    write_csv(tmp_path / "h.csv", [{"id": name, "group": name.replace("train", "val")} for name in official])
    with pytest.raises(UserError, match="4 groups are in more than one split"):
        loader.prepare(
            make("folder", tmp_path / "official", groups=tmp_path / "h.csv"), size=8, cache_folder=tmp_path / "c"
        )


def test_one_image_under_two_names_stays_in_one_split(tmp_path):
    names = [f"{c}/{k}.png" for c in "ab" for k in range(15)]
    root = tree(tmp_path / "set", *names)
    for name in names:
        (root / name.replace(".png", "_copy.png")).write_bytes((root / name).read_bytes())
    data = loader.prepare(make("folder", root), size=8, cache_folder=tmp_path / "cache")
    split = dict(zip(data.ids, data.split))
    assert all(split[name] == split[name.replace(".png", "_copy.png")] for name in names)
    assert set(data.split) == {"train", "val", "test"}


def test_skipped_images_are_recorded_and_left_out(tmp_path):
    root = tree(tmp_path / "set", *[f"{c}/{k}.png" for c in "ab" for k in range(20)])
    (root / "a" / "0.png").write_bytes(b"")
    (root / "b" / "19.png").write_bytes(b"text")
    with pytest.raises(UserError, match="2 of 40 images cannot be used: a/0.png"):
        loader.prepare(make("folder", root), size=8, cache_folder=tmp_path / "cache")
    data = loader.prepare(make("folder", root), size=8, cache_folder=tmp_path / "cache", skip_bad=True)
    assert data.skipped == ["a/0.png", "b/19.png"] and len(data.ids) == len(data.labels) == len(data.split) == 38
    reds = data.pixels(np.arange(38))[:, 0, 0, 0].tolist()  # image k is filled with k: rows follow their ids
    assert reds == [int(i.split("/")[1][:-4]) + 20 * (i[0] == "b") for i in data.ids]
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="not one of the 40 images can be read"):
        loader.prepare(make("folder", root), size=8, cache_folder=tmp_path / "cache", skip_bad=True)


def test_the_fingerprint_follows_the_content(tmp_path):
    root = tree(tmp_path / "set", *[f"{c}/{k}.png" for c in "ab" for k in range(12)])

    def fingerprint(**options):
        return loader.prepare(make("folder", root), size=8, cache_folder=tmp_path / "cache", **options).fingerprint

    first = fingerprint()
    assert fingerprint(split_seed=1) == first and len(first) == 16
    picture(root / "a" / "0.png", 99)
    assert fingerprint() != first
