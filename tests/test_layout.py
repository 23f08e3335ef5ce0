"""A folder as people have it is read as it is meant, or a question says how to answer it."""

import re
import zipfile

import numpy as np
import pytest
from PIL import Image

import registry
from kd.data import layout, loader
from kd.errors import UserError


def tree(root, *names):
    """A picture of its own under each name."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (k % 256, k // 256, 1)).save(root / name, "PNG")
    return root


def classes(top="", names="ab", count=2):
    return [f"{top}{name}/{k}.png" for name in names for k in range(count)]


def question(root, **options):
    """The error's line and its hint."""
    with pytest.raises(UserError) as caught:
        layout.read(root, **options)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message, caught.value.hint


def answered(root, hint, which=0, testing=False):
    """The Layout after doing what a hint says: its which-th --root or layout=."""
    way = re.findall(r'--root (?:"(.+?)"|([^\s;,]+))|layout=([\w/]+)', hint)[which]
    return layout.read(way[0] or way[1] or root, way[2], testing)


@pytest.mark.parametrize("names, meaning", [
    (["train", "val", "test"], ["train", "val", "test"]),
    (["Train", "Valid", "Test"], ["train", "val", "test"]),
    (["training_set", "validation-set", "test_set"], ["train", "val", "test"]),
    (["TRAINING", "dev", "testing"], ["train", "val", "test"]),
    (["train images", "val images", "test images"], ["train", "val", "test"]),
    (["Train", "Test"], ["train", "test"]),
])
def test_splits_are_known_by_their_usual_names(tmp_path, names, meaning):
    found = layout.read(tree(tmp_path, *[name for top in names for name in classes(top + "/")]))
    assert set(found.classes) == {"a", "b"} and len(found.images) == 4 * len(names)
    of = dict(zip(names, meaning))
    assert all(split == of[i.split("/")[0]] for i, split in zip(found.ids, found.split))
    renamed = [name for name in names if of[name] != name]
    assert all(any(f"{name} is taken for {of[name]}" in note for note in found.notes) for name in renamed)


def test_splits_below_the_classes_are_splits_too(tmp_path):
    found = layout.read(tree(tmp_path, *classes("x/", ["train", "test"]), *classes("y/", ["train", "test"])))
    assert set(found.classes) == {"x", "y"} and found.split.count("test") == 4


def test_without_validation_images_whole_groups_are_cut_from_train(tmp_path, capsys):
    root = tree(tmp_path / "set", *classes("Train/", count=40), *classes("Test/", count=6))
    for k in range(0, 40, 2):  # equal pictures belong together
        for name in "ab":
            (root / "Train" / name / f"{k}.png").write_bytes((root / "Train" / name / f"{k + 1}.png").read_bytes())
    data = loader.prepare(registry.create("dataset", "folder", root), size=8, cache_folder=tmp_path / "cache")
    # an eighth of the 40 images of a class is 5, and pairs of equal pictures stay together: 4 or 6
    assert {name: len(data.where(name)) for name in ("train", "val", "test")} == {"train": 68, "val": 12, "test": 12}
    assert "set has no validation images: 12 of its 80 training images become the validation split" in \
        capsys.readouterr().out
    of = dict(zip(data.ids, data.split))
    assert all(of[f"Train/{name}/{k}.png"] == of[f"Train/{name}/{k + 1}.png"] for name in "ab" for k in range(0, 40, 2))
    assert set(data.labels[data.split == "val"]) == {0, 1}


@pytest.mark.parametrize("names, words, way, expected", [
    (classes("dataset/"), "has one folder, dataset, and a, b lie in it", 0, "ab"),
    (classes("a.b/c d/"), "has one folder, a.b/c d,", None, ""),
    (classes("one/", ["pat1", "pat2"]) + classes("two/", ["pat1", "pat2"]), "are one, two the classes", 0,
     ["one", "two"]),
    (classes("hospital/", "ab") + classes("clinic/", "ab"), "are clinic, hospital the classes, or a, b", 1, "ab"),
    (classes("p1/", "01") + classes("p2/", "01") + classes("p3/", "1"), "are p1, p2, p3 the classes, or 0, 1", 2, "01"),
    (classes("x/", ["images", "masks"]) + classes("y/", ["images", "masks"]), "are x, y the classes", 1, "xy"),
    (classes("", ["images", "masks"]), "images, masks is a name of parts of a set", 0, ["images", "masks"]),
    (classes("", ["images_part_1", "images_part_2"]), "hardly of a class", 0, ["images_part_1", "images_part_2"]),
    (classes("", ["control", "test"]), "is test a split or a class?", 0, ["control", "test"]),
    (classes("", ["train", "test"]), "is test, train a split or a class?", 0, ["train", "test"]),
    (classes("train/images/") + classes("test/images/"), "there is one folder, images, and in it a, b", 0, "ab"),
    (classes("train/"), "has one split, train", 0, "ab"),
    (classes("train/") + ["extra/1.png"], "train, which hold folders, and beside them extra", 0, ["extra", "train"]),
    (classes() + classes("archive/brain/"), "deep in archive there are folders of the same names", 0,
     ["a", "archive", "b"]),
    (classes("", ["seg_train", "seg_test"]), "seg_test, seg_train look like splits", 0, ["seg_test", "seg_train"]),
    (classes("set/") + ["figures/1.png"], "set holds the folders a, b, and beside it figures hold images", 0, "ab"),
])
def test_what_is_in_doubt_is_asked_and_the_answer_is_taken(tmp_path, names, words, way, expected):
    root = tree(tmp_path, *names)
    message, hint = question(root)
    assert words in message
    if way is not None:
        assert set(answered(root, hint, way).classes) == set(expected)


@pytest.mark.parametrize("names, renamed", [
    (["Train", "holdout"], {"holdout": "test"}), (["Train", "val", "unseen"], {"unseen": "test"}),
    (["Train", "Test", "eval"], {"eval": "val"}), (["Trn", "Tst"], {}), (["trn", "vald", "test"], {"vald": "val"}),
    (["learning", "checking"], {"learning": "train", "checking": "test"}), (["train", "X"], {"X": "test"}),
    (["seg_train", "seg_test"], {"seg_train": "train", "seg_test": "test"})])
@pytest.mark.parametrize("inside", [False, True])
def test_splits_by_other_names_are_renamed_first_and_no_test_set_is_lost(tmp_path, names, renamed, inside):
    """Whether the classes lie in the splits or the splits in the classes."""
    root = tree(tmp_path, *[f"{c}/{split}/{k}.png" if inside else f"{split}/{c}/{k}.png"
                            for c in ("nevus", "wart") for split in names for k in range(2)])
    if renamed:
        hint = question(root)[1]
        assert re.match(r"(If .+ (is a split|ones are splits), r|R)ename (it|them) to ", hint), hint
        for old, new in renamed.items():
            assert new in hint.partition(".")[0]
            for path in [root] if not inside else [root / "nevus", root / "wart"]:
                (path / old).rename(path / new)
    found = layout.read(root)
    assert set(found.classes) == {"nevus", "wart"} and found.split.count("test") == 4


def test_a_split_alone_is_asked_about(tmp_path):
    tree(tmp_path, *classes("train/"))
    message, hint = question(tree(tmp_path, *classes("val/")))
    assert "train, val and no test images" in message and "Rename" in hint
    (tmp_path / "val").rename(tmp_path / "test")
    assert set(layout.read(tmp_path).split) == {"train", "test"}
    tree(tmp_path, *classes("testing/"))
    assert "test and testing, which both mean test" in question(tmp_path)[0]


def test_a_nested_copy_of_the_whole_set_is_named_and_left_out(tmp_path):
    root = tree(tmp_path, *classes())
    for name in classes():
        (root / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "again" / name).write_bytes((root / name).read_bytes())
    found = layout.read(root)
    assert sorted(found.ids) == sorted(classes())
    assert found.notes == ["again holds the other folders once more, byte by byte, and is left out"]
    tree(root, "again/a/0.png", "again/b/new.png")
    message, hint = question(root)
    assert "again in it has folders of the same names with other images" in message
    assert len(answered(root, hint).images) == 5


def test_a_nested_copy_of_splits_is_left_out_too(tmp_path):
    names = [name for split in ("train", "val", "test") for name in classes(f"{split}/")]
    root = tree(tmp_path / "chest_xray", *names)
    for name in names:
        (root / "chest_xray" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "chest_xray" / name).write_bytes((root / name).read_bytes())
    (root / "__MACOSX" / "train").mkdir(parents=True)
    found = layout.read(root)
    assert sorted(found.ids) == sorted(names) and found.split.count("val") == 4
    assert "chest_xray holds the other folders once more" in found.notes[0]


def test_masks_beside_their_images_are_no_images(tmp_path):
    names = [f"{c}/x ({k}){mask}.png" for c in "ab" for k in (1, 2) for mask in ("", "_mask", "_mask_1")]
    found = layout.read(tree(tmp_path, *names, "a/my_mask.png"))
    assert len(found.images) == 5 and "8 masks of images beside them" in found.notes[0]


def test_folders_below_the_classes_may_be_patients(tmp_path):
    root = tree(tmp_path, *[f"{c}/p{p}{c}/{k}.png" for c in "ab" for p in range(3) for k in range(2)])
    note, = layout.read(root).notes
    assert "below CLASS there are 6 folders, such as a/p0a" in note and "layout=CLASS/GROUP keeps" in note
    assert len(set(layout.read(root, "CLASS/GROUP").groups)) == 6


def test_two_encodings_of_one_accent_are_one_class(tmp_path):
    root = tree(tmp_path, "N\u00e4vus/1.png", "Na\u0308vus/2.png", "other/1.png")
    if len(list(root.iterdir())) == 3:  # file systems of macOS make one of the two
        assert "differ only in capitals, spaces or the encoding of accents" in question(root)[0]


def test_what_is_left_out_is_counted(tmp_path):
    root = tree(tmp_path, *classes(), "stray.png", "a/.ipynb_checkpoints/0.png")
    for name in ("a/1.dcm", "b/2.dcm", "b/3.heic", "notes.txt", "__MACOSX/._0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    assert layout.read(root).notes == [
        f"1 images are in no class folder and are left out: {root / 'stray.png'}",
        "5 files are not read as images and are left out: 2 .dcm, 1 .heic, 1 in __MACOSX, 1 in .ipynb_checkpoints"]


def test_an_archive_a_table_and_a_file_are_said_to_be_one(tmp_path):
    for name in ("images.zip", "images"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a/1.png", b"")
        assert "is an archive, not a folder" in question(tmp_path / name)[0]
    for name, words in (("images.tar.gz", "is an archive"), ("table.csv", "is a file"), ("set.npz", "is a file")):
        (tmp_path / name).write_text("")
        assert words in question(tmp_path / name)[0]
    assert question(tmp_path / "table.csv")[1] == f"A table is read with --data csv --root {tmp_path / 'table.csv'}"


def test_classes_that_differ_in_case_and_a_wrong_layout_are_refused(tmp_path):
    tree(tmp_path / "x", "train/A/1.png", "train/b/1.png", "test/a/1.png", "test/b/2.png")
    assert "the classes A and a differ only in capitals" in question(tmp_path / "x")[0]
    root = tree(tmp_path / "y", *classes())
    assert "has no CLASS" in question(root, pattern="SPLIT")[0]
    assert "has CLASS twice" in question(root, pattern="CLASS/CLASS")[0]
    assert "no image of" in question(root, pattern="SPLIT/CLASS")[0]


def test_folders_of_patients_are_groups(tmp_path):
    root = tree(tmp_path / "set", *[f"{c}/p{p}{c}/{k}.png" for c in "ab" for p in range(12) for k in range(3)])
    data = loader.prepare(registry.create("dataset", "folder", root, layout="CLASS/GROUP"), size=8,
                          cache_folder=tmp_path / "cache")
    assert data.grouped and all(len(set(data.split[data.groups == group])) == 1 for group in np.unique(data.groups))
    with pytest.raises(UserError, match="both say which images belong together"):
        registry.create("dataset", "folder", root, layout="CLASS/GROUP", groups="g.csv")


def test_one_class_is_enough_for_a_set_that_is_only_tested_on(tmp_path):
    root = tree(tmp_path, *classes("", ["malignant"]))
    assert "has 1 class folder" in question(root)[0]
    assert set(layout.read(root, testing=True).classes) == {"malignant"}
    assert set(layout.read(tree(tmp_path / "x", *classes("test/")), testing=True).split) == {"test"}
