"""No patient or lesion is in two splits, shares are as promised, and leaks stop the run."""

import csv
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from kd.data import loader, splits
from kd.data.dataset import Dataset
from kd.errors import UserError
from kd.files import write_csv

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def lesions(seed=0, sizes=(600, 200, 60, 30, 9, 3), largest=6):
    """Labels and groups of random lesions: sizes[k] lesions of class k, of 1 to `most` images each."""
    rng = np.random.default_rng(seed)
    labels, groups = [], []
    for label, count in enumerate(sizes):
        for lesion in range(count):
            images = int(rng.integers(1, largest + 1))
            labels += [label] * images
            groups += [f"{label}_{lesion}"] * images
    return np.array(labels), np.array(groups)


def drawn(count=60, classes=3, per_group=2, groups=True, name="drawn", first=0, split=None):
    """A dataset of arrays, image i filled with first + i."""
    pixels = [np.full((8, 8), first + i, np.uint8) for i in range(count)]
    return Dataset(name, [f"class {k}" for k in range(classes)], pixels, [f"i{first + i}" for i in range(count)],
                   [i // per_group % classes for i in range(count)],
                   groups=[f"g{first + i // per_group}" for i in range(count)] if groups else None, split=split)


@pytest.fixture
def prepared(tmp_path):
    return lambda dataset, **options: loader.prepare(dataset, size=8, cache_folder=tmp_path / "cache", **options)


@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_in_shares_of_70_10_20_a_class(seed):
    labels, groups = lesions(seed)
    split = splits.stratified(labels, groups, seed=seed)
    where = defaultdict(set)
    for name, group in zip(split, groups):
        where[group].add(name)
    assert all(len(names) == 1 for names in where.values())
    for label in range(6):
        total = np.sum(labels == label)
        for name, share in SHARES.items():
            images = np.sum((labels == label) & (split == name))
            assert images > 0
            if label < 4:  # of few groups one too large for a share may be needed in it
                assert abs(images - share * total) <= 6, (label, name)


def test_three_groups_reach_all_splits_and_fewer_train():
    split = splits.stratified([0, 0, 0, 1, 1, 2], list("abcdef"), seed=3)
    assert sorted(split[:3]) == ["test", "train", "val"]
    assert split[5] == "train" and "train" in split[3:5]


@pytest.mark.parametrize("sizes", [(1, 1, 50), (40, 40, 1), (9,) * 8, (1,) * 4 + (30,)])
def test_uneven_groups_still_reach_every_split(sizes):
    groups = np.repeat([f"g{k}" for k in range(len(sizes))], sizes)
    for seed in range(10):
        split = splits.stratified(np.zeros(len(groups), int), groups, seed=seed)
        assert set(split) == set(splits.NAMES)


def test_the_seed_decides_and_nothing_else_does():
    labels, groups = lesions()
    split = splits.stratified(labels, groups, seed=1)
    assert np.array_equal(split, splits.stratified(labels.tolist(), groups.tolist(), seed=1))
    assert not np.array_equal(split, splits.stratified(labels, groups, seed=2))
    for shuffle in range(3):
        order = np.random.default_rng(shuffle).permutation(len(labels))
        assert np.array_equal(split[order], splits.stratified(labels[order], groups[order], seed=1))


@pytest.mark.parametrize("letter", ["p", "é", "日"])
def test_a_split_is_what_the_same_words_in_plain_python_give(letter):
    rng = np.random.default_rng(0)
    for seed, count in enumerate((9, 40, 300)):
        labels = rng.integers(0, 4, count).tolist()
        groups = [f"{letter}{k}" for k in rng.integers(0, count // 2, count)]
        members, by_class, expected = defaultdict(list), defaultdict(list), [None] * count
        for k, group in enumerate(groups):
            members[group].append(k)
        for group in sorted(members):
            images = Counter(labels[k] for k in members[group])
            by_class[min(images, key=lambda label: (-images[label], label))].append(members[group])
        for label, parts in by_class.items():
            missing = {name: share * sum(map(len, parts)) for name, share in SHARES.items()}
            for place, k in enumerate(np.random.default_rng((seed, label)).permutation(len(parts))):
                few = place < 3 <= len(parts)
                name = ("train", "test", "val")[place] if few else max(missing, key=missing.get)
                missing[name] -= len(parts[k])
                for image in parts[k]:
                    expected[image] = name
        assert splits.stratified(labels, groups, seed=seed).tolist() == expected
        assert splits.stratified(labels, splits.numbers(groups), seed=seed).tolist() == expected


def test_more_images_of_one_class_leave_the_others_where_they_are():
    labels, groups = lesions()
    split = splits.stratified(labels, groups)
    more = splits.stratified(np.append(labels, [0] * 5), np.append(groups, [f"new{i}" for i in range(5)]))
    assert np.array_equal(split[labels > 0], more[:len(labels)][labels > 0])


def test_a_group_of_several_classes_counts_for_its_largest():
    labels = [0] * 30 + [1] * 30 + [0, 1, 1] * 10
    groups = [f"a{i}" for i in range(60)] + [f"m{i // 3}" for i in range(30)]
    split = splits.stratified(labels, groups)
    mixed = split[60:].reshape(10, 3)
    assert (mixed == mixed[:, :1]).all()
    of_class_1 = Counter(split[30:])  # the 30 images of its own and the 30 in mixed groups
    assert all(abs(of_class_1[name] - share * 60) <= 3 for name, share in SHARES.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_no_lesion_of_ham10000_is_in_two_splits(real_data, tmp_path, seed):
    """Must hold: checked on the real metadata, by reading split.csv with nothing but the csv module."""
    metadata = real_data / "ham10000" / "HAM10000_metadata.csv"
    with open(metadata, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["dx"] for row in rows})
    labels = np.array([classes.index(row["dx"]) for row in rows])
    groups = np.array([row["lesion_id"] for row in rows])
    data = SimpleNamespace(
        ids=[row["image_id"] for row in rows], groups=groups, shown_groups=lambda rows: groups, class_names=classes,
        labels=labels, split=splits.stratified(labels, groups, seed=seed), sha256=[b"-"] * len(rows),
        perceptual_hashes=[b""] * len(rows),
    )
    write_csv(tmp_path / "split.csv", loader.Data.table(data))

    lesion = {row["image_id"]: row["lesion_id"] for row in rows}
    diagnosis = {row["image_id"]: row["dx"] for row in rows}
    where, count = defaultdict(set), Counter()
    with open(tmp_path / "split.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["label"] == diagnosis.pop(row["id"])
            where[lesion[row["id"]]].add(row["split"])
            count[row["label"], row["split"]] += 1
    assert not diagnosis and len(where) == 7470
    assert all(len(names) == 1 for names in where.values())
    for name in classes:
        total = sum(count[name, split] for split in SHARES)
        for split, share in SHARES.items():
            assert abs(count[name, split] - share * total) < 6


def test_equal_images_without_groups_stay_together(prepared):
    data = drawn(40, groups=False)
    data.images[20:] = [image.copy() for image in data.images[:20]]
    data.labels[20:] = data.labels[:20]
    split = prepared(data).split
    assert np.array_equal(split[:20], split[20:])


def test_the_split_does_not_depend_on_the_order_of_images(prepared):
    for groups in (True, False):
        data = drawn(groups=groups)
        expected = {i: s for i, s in zip(data.ids, prepared(data).split)}
        order = np.random.default_rng(0).permutation(60)
        for column in ("images", "ids", "groups"):
            old = getattr(data, column)
            setattr(data, column, old and [old[i] for i in order])
        data.labels = data.labels[order]
        again = prepared(data)
        assert {i: s for i, s in zip(again.ids, again.split)} == expected


def test_a_split_file_is_taken_as_it_is(prepared, tmp_path):
    first = prepared(drawn(), split_seed=5)
    write_csv(tmp_path / "split.csv", list(first.table())[::-1])
    assert np.array_equal(prepared(drawn(), split_file=tmp_path / "split.csv").split, first.split)


def test_official_splits_are_kept_and_can_be_given_back(prepared, tmp_path, capsys):
    split = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    data = drawn(groups=False, split=split)
    data.images[59] = data.images[0].copy()  # published sets have such images
    first = prepared(data)
    assert first.split.tolist() == split
    assert "note: 1 images are in more than one split under other ids" in capsys.readouterr().out
    write_csv(tmp_path / "split.csv", first.table())
    assert np.array_equal(prepared(data, split_file=tmp_path / "split.csv").split, first.split)
    splits.refuse_leak(splits.seen_by(first), first, "the teacher")  # what both were given is no leak


def test_contents_that_begin_alike_are_not_equal(capsys):
    contents = np.array([b"12345678" + rest.encode() * 56 for rest in "abca"])
    loader._note_equal_images(contents[:3], np.array(["train", "test", "val"]), np.array(["x", "y", "z"]))
    assert capsys.readouterr().out == ""
    loader._note_equal_images(contents, np.array(["train", "test", "val", "val"]), np.array(["x", "y", "z", "u"]))
    assert capsys.readouterr().out == "note: 1 images are in more than one split under other ids: x = u\n"


def test_a_full_split_file_serves_when_images_are_skipped(prepared, tmp_path):
    rows = list(prepared(drawn()).table())
    write_csv(tmp_path / "split.csv", rows)
    broken = drawn()
    broken.images[0] = UserError("lost")
    data = prepared(broken, split_file=tmp_path / "split.csv", skip_bad=True)
    assert data.split.tolist() == [row["split"] for row in rows[1:]] and data.skipped == ["i0"]


@pytest.mark.parametrize("change, words", [
    (lambda rows: rows[:-2], "says nothing of 2 of the 60 images: i58, i59"),
    (lambda rows: rows + [{**rows[0], "id": "other"}], "names 1 images that the data set does not have: other"),
    (lambda rows: rows + rows[:7], "lists 7 images more than once: i0, i1, i2, i3, i4 and 2 more"),
    (lambda rows: [{**rows[0], "split": "holdout"}, *rows[1:]], "a split is train, val or test, not 'holdout'"),
    (lambda rows: [{**rows[0], "split": ""}, *rows[1:]], "a split is train, val or test, not ''"),
    (lambda rows: [{**rows[0], "split": {"train": "val"}.get(rows[0]["split"], "train")}, *rows[1:]],
     "1 groups are in more than one split: g0"),
    (lambda rows: [{**row, "split": "train"} for row in rows], "the val split is empty"),
    (lambda rows: [{**row, "split": "test" if row["label"] == "class 1" else row["split"]} for row in rows],
     "no training image of class class 1"),
    (lambda rows: [{"id": row["id"]} for row in rows], "has no column split"),
    (lambda rows: [], "has no column id, split"),
])
def test_a_wrong_split_file_is_refused(prepared, tmp_path, change, words):
    rows = list(prepared(drawn()).table())
    write_csv(tmp_path / "split.csv", change(rows))
    with pytest.raises(UserError) as caught:
        prepared(drawn(), split_file=tmp_path / "split.csv")
    assert words in caught.value.message and "\n" not in caught.value.message


def test_a_missing_split_file_is_named(prepared, tmp_path):
    with pytest.raises(UserError, match="absent.csv"):
        prepared(drawn(), split_file=tmp_path / "absent.csv")


def test_too_few_images_to_split_are_refused(prepared):
    with pytest.raises(UserError, match="the (val|test) split is empty"):
        prepared(drawn(4, classes=2))


# A teacher must not have seen what its student is judged by.


def test_a_teacher_of_the_same_split_is_accepted(prepared):
    for groups in (True, False):
        data = prepared(drawn(groups=groups))
        splits.refuse_leak(splits.seen_by(data), data, "the teacher")


def test_a_teacher_of_another_split_is_refused(prepared):
    for groups in (True, False):
        teacher, student = prepared(drawn(groups=groups)), prepared(drawn(groups=groups), split_seed=1)
        with pytest.raises(UserError, match="the teacher was trained on .* of the val and test split"):
            splits.refuse_leak(splits.seen_by(teacher), student, "the teacher")


def test_a_teacher_that_saw_the_images_under_other_names_is_refused(prepared):
    teacher, renamed = prepared(drawn()), drawn(name="copy")
    renamed.ids = [f"renamed{i}" for i in range(60)]
    renamed.groups = [f"other{group}" for group in renamed.groups]
    student = prepared(renamed, split_seed=1)
    with pytest.raises(UserError, match="trained on [0-9]+ images"):
        splits.refuse_leak(splits.seen_by(teacher), student, "the teacher")


def test_a_teacher_that_saw_other_images_of_a_patient_is_refused(prepared):
    """Image i0 of group g0 is held out here; the teacher trained on another image of g0."""
    teacher, student = prepared(drawn()), prepared(drawn())
    held_out = student.where("test")[0]
    seen = splits.seen_by(teacher)
    seen["train"]["groups"].append(splits.key(f"drawn/{student.groups[held_out]}"))
    with pytest.raises(UserError, match="trained on 1 groups"):
        splits.refuse_leak(seen, student, "the teacher")
    student.name = "another study"  # in another data set g0 is somebody else
    splits.refuse_leak(seen, student, "the teacher")


def test_selection_may_share_validation_but_not_test(prepared):
    teacher, student = prepared(drawn()), prepared(drawn())
    splits.refuse_leak(splits.seen_by(teacher), student, "the teacher")
    val, test = teacher.split == "val", teacher.split == "test"
    teacher.split[val], teacher.split[test] = "test", "val"
    with pytest.raises(UserError, match="the teacher was selected on .* of the test split"):
        splits.refuse_leak(splits.seen_by(teacher), student, "the teacher")


def test_an_identical_image_in_another_lesion_does_not_turn_the_own_teacher_away(prepared):
    data = drawn(60)
    first = prepared(data)
    train, test = first.where("train")[0], first.where("test")[0]
    data.images[test] = data.images[train].copy()
    both = prepared(data)
    assert both.split[train] == "train" and both.split[test] == "test"
    splits.refuse_leak(splits.seen_by(both), both, "the teacher")


def test_what_a_checkpoint_keeps_gives_no_id_away(prepared):
    data = prepared(drawn())
    seen = splits.seen_by(data)
    for name in ("train", "val"):
        assert len(seen[name]["groups"]) == len(set(data.groups[data.split == name]))
        assert all(len(text) == 16 and int(text, 16) >= 0 for text in seen[name]["images"] + seen[name]["groups"])


def test_names_that_a_spreadsheet_would_calculate_come_back_as_they_were(tmp_path):
    ids = ["=1+1.png", "+a.png", "-b.png", "@c.png", "'=d.png", "'e.png", "a,b.png", 'q"r.png', "two\nlines.png", "7"]
    write_csv(tmp_path / "split.csv", [{"id": name, "split": splits.NAMES[k % 3]} for k, name in enumerate(ids)])
    assert splits.read(tmp_path / "split.csv", ids).tolist() == [splits.NAMES[k % 3] for k in range(len(ids))]
    cells = (tmp_path / "split.csv").read_text().splitlines()[1:5]
    assert all(cell.startswith("'") for cell in cells)


# ---- few labels

def test_few_labels_are_whole_groups_of_each_class_and_nested_and_leave_test_alone():
    """Of 20, 10 and 1 groups of two images in train, a tenth is 2, 1 and none, of which one is kept."""
    counts = {"train": (20, 10, 1), "val": (10, 4, 1), "test": (4, 4, 1)}
    rows = [(part, label, f"{part}{label}_{k}") for part, numbers in counts.items()
            for label, number in enumerate(numbers) for k in range(number) for _ in range(2)]
    split, labels, groups = map(np.array, zip(*rows))
    few, too_few = splits.few_labels(split, labels, groups, 0.1)
    more, _ = splits.few_labels(split, labels, groups, 0.25)

    def kept(result, part):
        return [len(set(groups[(result == part) & (labels == label)])) for label in range(3)]

    assert (kept(few, "train"), kept(few, "val"), too_few) == ([2, 1, 1], [1, 1, 1], [2])
    assert (kept(more, "train"), kept(more, "val")) == ([5, 3, 1], [3, 1, 1])
    for part, rest in (("train", "unlabelled"), ("val", "unused"), ("test", "test")):
        assert set(few[split == part]) <= {part, rest}
        assert set(np.flatnonzero(few == part)) <= set(np.flatnonzero(more == part))
    assert all(len(set(few[groups == group])) == 1 for group in set(groups))
    assert not np.array_equal(few, splits.few_labels(split, labels, groups, 0.1, seed=1)[0])
    assert np.array_equal(splits.few_labels(split, labels, groups, 1)[0], split)


def test_few_labels_in_a_split_file_come_back(prepared, tmp_path):
    first = prepared(drawn(), labelled=(0.3, 0))
    write_csv(tmp_path / "split.csv", first.table())
    again = prepared(drawn(), split_file=tmp_path / "split.csv")
    assert again.split.tolist() == first.split.tolist() and "unlabelled" in again.split
    with pytest.raises(UserError, match="says already which images have labels"):
        prepared(drawn(), split_file=tmp_path / "split.csv", labelled=(0.3, 0))


def test_a_group_of_several_classes_keeps_all_of_its_labels_and_serves_a_class_that_is_the_largest_in_none():
    """Ten groups of class 0; three of two images of class 1 and one of class 2, which has no group of its own."""
    labels = np.array([0] * 10 + [1, 1, 2] * 3)
    groups = np.array([f"a{k}" for k in range(10)] + [f"m{k}" for k in range(3) for _ in range(3)])
    split = np.array(["train"] * 19 + ["val"])
    for seed in range(5):
        few, too_few = splits.few_labels(split, np.append(labels, 0), np.append(groups, "v"), 0.1, seed=seed)
        few = few[:19]
        kept = set(groups[few == "train"].tolist())
        assert sum(name.startswith("a") for name in kept) == 1 and 1 <= sum(name.startswith("m") for name in kept) <= 2
        assert set(labels[few == "train"].tolist()) == {0, 1, 2} and too_few == [1]
        assert set(few[np.isin(groups, list(kept))]) == {"train"} and set(few) == {"train", "unlabelled"}


def test_official_splits_with_few_labels_keep_their_test_images(prepared):
    split = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    whole = prepared(drawn(groups=False, split=split))
    few = prepared(drawn(groups=False, split=split), labelled=(0.25, 0))
    parts = few.label_counts()["images"]
    assert parts["train"] + parts["unlabelled"] == 40 and parts["val"] + parts["unused"] == 10
    assert abs(parts["train"] - 10) <= 2 and np.array_equal(few.where("test"), whole.where("test"))
    assert whole.label_counts() == {} and few.split_fingerprint != whole.split_fingerprint
    splits.refuse_leak(splits.seen_by(whole), few, "the teacher")
    hidden = parts["unlabelled"] + parts["unused"]
    assert (splits.without_label(splits.seen_by(whole), few), splits.without_label(splits.seen_by(few), few)) == (
        hidden, 0)
