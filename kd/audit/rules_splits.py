"""Rules about the split: images and lesions on both of its sides, and what validation and test say of each other."""

import re
from collections import Counter, defaultdict

from kd import perceptual_hash
from kd.audit.rule import rule
from kd.errors import listing
from kd.predictions import difference_between
from kd.run_folder import fingerprint
from kd.text import format_count


def _used(split):
    """Yield (part, row) for the rows of split.csv but those left out; what is shown without its label is of train."""
    for row in split:
        if row["split"] != "unused":
            yield "train" if row["split"] == "unlabelled" else row["split"], row


@rule("error", "A network recognises a lesion, or the very image, that it was trained on: the test score is too high "
      "by an unknown amount.", "Split whole lesions (patients), and train again.")
def shared_by_splits(split=(), val=None, test=None):
    any_shared = False
    for key, noun in (("group", "groups (lesions, patients)"), ("sha256", "identical images")):
        images_of = defaultdict(Counter)  # group or digest -> {part: number of images}
        for side, row in _used(split):
            images_of[row.get(key)][side] += 1
        shared = {value: counts for value, counts in images_of.items() if value and len(counts) > 1}
        if not shared:
            continue
        any_shared = True
        parts = sorted({part for counts in shared.values() for part in counts})
        affected = sum(counts["test"] for counts in shared.values())
        tested = sum(row["split"] == "test" for row in split)
        # official splits share a few identical images; less than one in a hundred moves no figure beyond its interval
        severity = "error" if key == "group" or affected >= 0.01 * max(tested, 1) else "warning"
        yield severity, (
            f"{len(shared):,} {noun} are in more than one split ({', '.join(parts)}), among them {affected:,} of "
            f"{tested:,} test images: {listing((value[:16] for value in sorted(shared)), 3)}")
    if not any_shared and val is not None and test is not None:
        for noun, of_val, of_test in (("image", val.ids, test.ids), ("group", val.groups, test.groups)):
            shared = set() if of_val is None or of_test is None else set(of_val) & set(of_test)
            if shared:
                yield f"validation and test share {format_count(len(shared), noun)}: {listing(sorted(shared), 3)}"


@rule("note", "Images of one lesion on both sides of a split raise the test score, and only the list of who went where "
      "can show that there are none.", "Keep split.csv (id, group, label, split, sha256) beside the figures.")
def split_not_seen(cases):
    # the split of each fold of a cross-validation was checked when the answers of all were joined
    relevant = [case for case in cases if (case.folder or case.sources and not case.traced)
                and not (case.environment or {}).get("cross_validation")]
    without = [case.name for case in relevant if not case.split and "split.csv" not in " ".join(case.unreadable)]
    untrained = [case.name for case in relevant if case.split and "train" not in {row["split"] for row in case.split}]
    for what, names in (("no split.csv", without), ("no training images in split.csv", untrained)):
        if names:
            yield f"{what} for {listing(names)}: whether train and test share lesions or images cannot be checked"


@rule("warning", "Nothing is known about a class without images: macro-F1 is then a mean over fewer classes, and no "
      "threshold can be chosen where validation lacks it.",
      "Split anew, by class; of a set that is only tested on, say which classes it lacks.")
def absent_class(class_names, confusions=None, split=()):
    support = {part: dict(zip(class_names, counts.sum(1))) for part, counts in (confusions or {}).items()}
    if split:
        support = {part: Counter(row["label"] for row in split if row["split"] == part)
                   for part in ("train", "val", "test")}
        if not set(class_names) & set(support["train"]):
            return  # labels of another spelling
    for part, counts in support.items():
        absent = [name for name in class_names if not counts.get(name)]
        if absent and sum(counts.values()):
            yield f"no {part} image of {listing(absent)}"


@rule("error", "A network recognises a picture that it was trained on, though the file was saved again, scaled, "
      "mirrored or turned: the test score is too high by an unknown amount.",
      "Put pictures that look alike into one group, split again, and train again.", requires="split")
def near_duplicates(cases):
    for split in {id(case.split): case.split for case in cases}.values():  # runs of a study share one
        names = [case.name for case in cases if case.split is split]
        for severity, text in _near_duplicates(split):
            yield severity, f"{listing(filter(None, names), 3) or 'split.csv'}: {text}"


def _near_duplicates(split):
    parts = defaultdict(list)  # part -> its rows that have a hash
    for side, row in _used(split):
        if row.get("perceptual_hash"):
            parts[side].append(row)
    test = parts.pop("test", [])
    for part, others in parts.items():
        identical = {row.get("sha256") for row in others}  # rule shared-by-splits has those
        rows = [row for row in test if row.get("sha256") not in identical]
        found, partners = perceptual_hash.near(*([row["perceptual_hash"] for row in side] for side in (rows, others)))
        if len(found):
            pairs = [f"{rows[i].get('id')} and {others[k].get('id')}" for i, k in zip(found, partners)]
            # a few are in many published data sets, and move no figure beyond its interval
            severity = "error" if len(found) >= max(2, 0.01 * len(test)) else "note"
            yield severity, (f"{len(found):,} of {len(test):,} test images look like a {part} image: "
                             f"{listing(pairs, 3)}")


@rule("error", "The predictions are not those of the split: images were left out or exchanged, or labels or lesions "
      "changed after training. No figure of them is of the test set.",
      "Write the predictions again from best.pt, for all images of the split.")
def other_than_split(split, val=None, test=None):
    for part, predictions in (("val", val), ("test", test)):
        if predictions is None:
            continue
        rows = [row for row in split if row["split"] == part]
        if predictions.ids is None or not all(row.get("id") for row in rows):
            ours = Counter(predictions.class_names[label] for label in predictions.labels)
            theirs = Counter(row["label"] for row in rows)
            if ours != theirs:
                texts = [", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) for counts in (ours, theirs)]
                yield (f"predictions/{part}.npz has {format_count(ours.total(), 'image')} and split.csv "
                       f"{theirs.total():,}: {texts[0]}; {texts[1]}")
            continue
        row_of = {row["id"]: row for row in rows}
        labels = dict(zip(predictions.ids.tolist(), predictions.labels))
        without = [row for row in rows if row["id"] not in labels]
        if without:
            classes = Counter(row["label"] for row in without)
            rest = Counter(row["label"] for row in rows if row["id"] in labels)
            whole = [name for name in classes if not rest[name]]
            texts = [f"all of {listing(whole)}"] if whole else [f"{n} {name}" for name, n in classes.most_common(3)]
            yield (f"{len(without):,} of {len(rows):,} {part} images of split.csv are not in predictions/{part}.npz "
                   f"({', '.join(texts)})")
        extra = [i for i in labels if i not in row_of]
        if extra:
            yield (f"{format_count(len(extra), 'image')} of predictions/{part}.npz not among the {part} images in "
                   f"split.csv: {listing(extra, 3)}")
        wrong = [f"{i} is {row_of[i]['label']}, not {predictions.class_names[label]}" for i, label in labels.items()
                 if i in row_of and row_of[i]["label"] != predictions.class_names[label]]
        if wrong:
            yield (f"{format_count(len(wrong), 'label')} of predictions/{part}.npz other than in split.csv: "
                   f"{listing(wrong, 3)}")
        groups = [row_of.get(i, {}).get("group") for i in predictions.ids.tolist()]
        if all(groups):
            ours = predictions.clusters.tolist()
            if len({*zip(ours, groups)}) > min(len({*ours}), len({*groups})):
                yield (f"the {part} images are {len({*groups}):,} groups in split.csv and {len({*ours}):,} in "
                       f"predictions/{part}.npz, which the intervals are over")


FINGERPRINT = re.compile("[0-9a-f]{16}")  # as this project makes it


@rule("error", "split.csv lists other images, labels, groups or splits than those that the run was trained with, by "
      "the fingerprint that it noted.", "Restore split.csv from the run, or train again.")
def other_than_data(split, environment, val=None, test=None):
    data = environment.get("data")
    if not isinstance(data, dict):
        return
    ids, labels, sha256, groups, parts = ([row.get(key) or "" for row in split]
                                          for key in ("id", "label", "sha256", "group", "split"))
    classes = data.get("classes")
    if isinstance(classes, list) and FINGERPRINT.fullmatch(str(data.get("fingerprint"))) and all(sha256):
        number = {name: k for k, name in enumerate(classes) if isinstance(name, str)}
        if data["fingerprint"] != fingerprint(ids, [number.get(label, "?") for label in labels], sha256):
            yield (f"the fingerprint of images and labels in split.csv is not {data['fingerprint']}, which "
                   f"environment.json states for {data.get('images', 'the')} images")
    if FINGERPRINT.fullmatch(str(data.get("split"))) and all(ids) and all(sha256):
        # of a data set without groups each image is its own, or equal images are one
        possible = [groups] if any(groups) else [ids, [f"image_{sha[:12]}" for sha in sha256]]
        if data["split"] not in [fingerprint(ids, names, parts) for names in possible]:
            yield f"the fingerprint of the split in split.csv is not {data['split']}, which environment.json states"


@rule("error", "The figures of each class are then those of another class.",
      "Take the class list from the checkpoint, everywhere.")
def other_class_names(environment, val=None, test=None, written=None):
    data = environment.get("data")
    lists = {"environment.json": data.get("classes") if isinstance(data, dict) else None,
             "predictions/val.npz": val and val.class_names, "predictions/test.npz": test and test.class_names,
             "metrics.json": written and written.get("class_names")}
    lists = {file: names for file, names in lists.items() if isinstance(names, list)}
    first = next(iter(lists), None)
    for file, names in lists.items():
        if names != lists[first]:
            yield f"the classes are {listing(names, 8)} in {file}, and {listing(lists[first], 8)} in {first}"


DECLARED = ("data", "root", "groups", "split", "split_seed", "skip_bad", "fold", "folds")  # options that split the data


@rule("error", "Two models that are tested on different images, or on other labels of the same images, cannot be "
      "compared; an easier test set looks like a better model.",
      "Evaluate all models of a table on one test set.", requires="test")
def other_test_set(comparable_cases):
    cases = [case for case in comparable_cases if case.folder]
    if not cases:
        return
    images = [frozenset(case.test.ids.tolist()) if case.test.ids is not None else len(case.test.labels)
              for case in cases]
    usual = Counter(images).most_common(1)[0][0]
    reference = next(case for case, ids in zip(cases, images) if ids == usual)
    for case, ids in zip(cases, images):
        differing = difference_between(case.test, reference.test)
        if differing:
            declared = [key for key in DECLARED if case.options.get(key) != reference.options.get(key)]
            known = ids != usual and case.options and reference.options and declared
            text = f"{case.name} and {reference.name} have {differing}"
            yield ("note", f"{text}, as their {listing(declared)} differ") if known else text


@rule("error", "The teacher knows the answers to test images and passes them on: the student's test score is too high.",
      "Train the teacher with the split of the student.")
def teacher_saw_test(split, teacher_split):
    for key, noun in (("group", "groups"), ("sha256", "images"), ("id", "ids")):
        used = {row.get(key): row["split"] for row in teacher_split
                if row["split"] in ("train", "unlabelled", "val")}
        # what the student has in training or validation, too, as in some official splits, is no leak of the teacher
        own = {row.get(key) for row in split if row["split"] != "test"}
        tested = {row.get(key) for row in split if row["split"] == "test"} - {"", None}
        leaked = sorted(value for value in tested - own if value in used)
        if leaked:
            yield (f"the teacher has {len(leaked):,} of the {len(tested):,} test {noun} in "
                   f"{' and '.join(sorted({used[value] for value in leaked}))}: "
                   f"{listing((value[:16] for value in leaked), 3)}")
            return


@rule("warning", "What the student gains may come from labels that it was not given, and that the student without a "
      "teacher was not given either.",
      "Train the teacher with the --labelled of the student (train_teacher.py).")
def teacher_with_more_labels(split, teacher_split):
    without = {row.get("id") for row in split if row["split"] in ("unlabelled", "unused")} - {"", None}
    known = sum(row.get("id") in without for row in teacher_split if row["split"] in ("train", "val"))
    if known:
        yield (f"the teacher was trained or selected on the labels of {known:,} images; of training and validation of "
               f"the student {len(without):,} have none")
