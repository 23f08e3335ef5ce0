"""Predictions files, of a run or of any other system: read, and checked for damage and leaks.

A run's file is a .npz with `labels`, `logits`, `ids`, `groups` and `class_names`. Those of others are read as people
save them (kd/prediction_files.py), and what their scores are is told by looking (kd/score_kinds.py). Everything that
evaluation says is computed from such files.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from kd import metrics, prediction_files, score_kinds
from kd.errors import UserError, listing
from kd.files import parse_number, read_csv

CLASSES = 100          # a bootstrap of 2,000 replicates needs 16 KB for each cell of the confusion matrix
FILE = 2 ** 28         # bytes of all arrays
LOGITS = 2 ** 24       # of a file, images times classes: 128 MiB in double precision


@dataclass
class Predictions:
    """Of n images and C classes; ids, groups and logits are None where they are not known."""

    labels: np.ndarray         # [n] int64
    logits: np.ndarray         # [n, C] float64
    probabilities: np.ndarray  # [n, C] float64
    ids: np.ndarray            # [n] str
    groups: np.ndarray         # [n] str
    class_names: list
    note: str = ""             # what was taken for what, and done to it
    fold: np.ndarray = None    # [n] int64, from 1 on: of the cross-validation whose answers these are

    @property
    def folds(self):
        """The number of folds; 0 of a single network."""
        return 0 if self.fold is None else len(np.unique(self.fold))

    @property
    def clusters(self):
        """What is resampled: groups, else each image for itself."""
        if self.groups is not None:
            return self.groups
        return self.ids if self.ids is not None else np.arange(len(self.labels))

    @property
    def scores(self):
        """Logits, or log probabilities, which differ from them by a constant an image that softmax drops.

        A probability that was rounded to 0 counts as the smallest of float32, 1e-38.
        """
        if self.logits is not None:
            return self.logits
        return np.log(np.maximum(self.probabilities, np.finfo(np.float32).tiny))

    def take(self, rows):
        """The Predictions of some images; rows: mask [n] bool or positions."""
        parts = ("labels", "logits", "probabilities", "ids", "groups", "fold")
        return replace(self, **{part: None if getattr(self, part) is None else getattr(self, part)[rows]
                                for part in parts})

    def shifted(self, offsets):
        """The Predictions with offsets [C] added to the logits."""
        logits = self.scores + offsets
        return replace(self, logits=logits, probabilities=metrics.softmax(logits))

    def size(self):
        """{"images", "groups", "support": images a class}, as metrics.json has it."""
        support = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return {"images": len(self.labels), "groups": len(np.unique(self.clusters)),
                "support": dict(zip(self.class_names, support))}


def of_files(test, val=None, groups=None, labels=None, val_labels=None, scores=None):
    """(val, test) of another system's files; val is None where there is none.

    groups: a CSV with columns id,group for both. labels, val_labels: files with the true classes of each; one file may
    have those of both, by id. scores: as for read(), of both. Raises UserError as of_run does.
    """
    paths, groups = {"validation": val, "test": test}, groups and read_groups(groups)
    truths = {"validation": val_labels, "test": labels}
    if val is not None and labels is not None and val_labels is None:
        truths["validation"] = _labels_of_both(val, labels)
    splits = {name: read(path, truths[name], scores) for name, path in paths.items() if path is not None}
    for name, split in splits.items():
        if groups:
            split.groups = groups_of(split.ids, groups, paths[name])
    if val is None:
        return None, splits["test"]
    val, test = splits.values()
    a, b = len(val.class_names), len(test.class_names)
    if a != b:
        raise UserError(f"{paths['validation']} has {a} classes, {paths['test']} has {b}")
    if val.note and val.note != test.note:
        test.note = "; ".join(filter(None, (test.note, f"validation: {val.note}")))
    if val.class_names != test.class_names:
        raise UserError(f"{paths['validation']} and {paths['test']} have different class names: "
                        f"{listing(val.class_names)}; {listing(test.class_names)}",
                        "The same classes in the same order are needed, in both files or in neither.")
    if len(val.labels) == len(test.labels) and np.array_equal(val.probabilities, test.probabilities):
        raise UserError(f"{paths['validation']} and {paths['test']} hold the same predictions",
                        "What is chosen on validation is tested on other images.")
    refuse_leaks(paths["test"], {name: (split.ids, split.groups) for name, split in splits.items()},
                 "Ids and groups name the same thing in both files; ids that only count rows are better left out.")
    return val, test


def _labels_of_both(val, labels):
    """The file `labels` where validation takes its true classes from it, too; None where it has its own."""
    columns = prediction_files.read(val, FILE)
    if columns.labels is not None:
        return None
    if columns.ids is None or prediction_files.read(labels, FILE, columns).ids is None:
        raise UserError(f"{val} has no true classes, and no ids by which to find them in {labels}",
                        "Give them with --val-labels FILE.")
    return labels


def refuse_leaks(path, members, hint="Metrics of such a split are too good. Split whole groups and train again."):
    """UserError where two splits share an image or a group: every metric would be too good.

    members: {split's name: (ids, groups)}, either of them None where unknown.
    """
    for (a, ours), (b, theirs) in itertools.combinations(members.items(), 2):
        for what, names, others in zip(("images", "groups"), ours, theirs):
            shared = set() if names is None or others is None else sorted(set(names) & set(others) - {""})
            if shared:
                raise UserError(f"{path}: {a} and {b} share {len(shared)} {what}: {listing(shared)}", hint)


def read(path, labels=None, scores=None):
    """The Predictions of a file, checked: .npz, .npy, or a table of text (kd/prediction_files.py).

    labels: a second file with the true classes, joined by ids, else by order. scores: what the scores are, one of
    kd.score_kinds.KINDS; None to look. Raises UserError where it is damaged, or its parts do not fit together.
    """
    columns = prediction_files.read(path, FILE)
    if labels is not None:
        truth = prediction_files.read(labels, FILE, columns)
        columns = prediction_files.read(path, FILE, truth=truth)
        prediction_files.with_labels(columns, truth)
    return of_columns(columns, scores)


def of_columns(columns, kind=None):
    """Predictions of the Columns of a file; see read()."""
    notes = [*columns.notes]

    def fail(message, hint=""):
        raise UserError(f"{columns.path}: {message}", hint)

    def need(values, *names):
        if values is None:
            fail(f"it has neither {' nor '.join(names)}", f"It has: {listing(columns.names, 12) or 'nothing'}. "
                 + ("If one of these has the true classes, call it label; those in a second file are given with "
                    "--labels FILE." if "labels" in names else "Call the scores p_CLASS, a column a class."))

    if columns.scores is None and columns.answers:
        fail(*score_kinds.no_scores(columns.answers))
    if columns.labels is None and columns.path and str(columns.path).lower().endswith(".npy"):
        fail("it holds scores alone, without the true classes", "Give these with --labels FILE.")
    need(columns.labels, "labels", "y_true")
    need(columns.scores, "logits", "y_prob")
    if not columns.labels.size:
        fail("it holds no images")

    name, scores, count = columns.score_name, columns.scores, len(np.atleast_1d(columns.labels))
    if scores.dtype.kind not in "iufb":
        fail(f"{name} holds {kind_of(scores)}, not numbers", f"Save numbers [{count}, C], a column a class.")
    if scores.ndim > 2:
        fail(f"{name} has shape {scores.shape}: that is segmentation, or several heads, and only one label an image is "
             "evaluated", f"Save [{count}, C], a column a class.")
    single = scores.ndim == 1 or scores.ndim == 2 and scores.shape[1] == 1
    if scores.ndim not in (1, 2) or len(scores) != count:
        fail(f"{name} has shape {scores.shape}; [{count}, C] is needed, a column a class, C >= 2")
    classes = 2 if single else scores.shape[1]
    if classes > CLASSES or scores.size > LOGITS:
        fail(f"it has {len(scores):,} images of {classes:,} classes; at most {CLASSES} classes and {LOGITS:,} "
             "numbers are read")

    try:
        texts = {key: strings(np.asarray(getattr(columns, key))) for key in ("ids", "groups", "class_names")
                 if getattr(columns, key) is not None}
    except Exception:  # NumPy raises SystemError, too, for a character that Unicode does not have
        fail("its ids, groups or class_names are not text")
    if single and texts.get("class_names", np.zeros(2)).shape == (1,):
        texts["class_names"] = _two_names(texts["class_names"][0], columns.labels)
    for key, size in {"ids": count, "groups": count, "class_names": classes}.items():
        if key in texts and texts[key].shape == (size, 1) != (1,):
            texts[key] = texts[key][:, 0]
        if key in texts and texts[key].shape != (size,):
            fail(f"{key} has shape {texts[key].shape}; ({size},) is needed")
    for key in ("ids", "class_names"):
        values, times = np.unique(texts.get(key, []), return_counts=True)
        if (times > 1).any():
            fail(f"{key} are not unique: {listing(values[times > 1])}")
    groups = texts.get("groups")
    if groups is not None and (groups == "").any():
        if (groups != "").any():
            fail(f"{(groups == '').sum()} images have no group, others have one",
                 "Give an image that stands for itself a group of its own.")
        groups = None

    if single and kind is None and count > 1 and np.isin(scores, np.arange(len(np.unique(columns.labels)))).all():
        fail(*score_kinds.no_scores(name))
    names = texts["class_names"].tolist() if "class_names" in texts else None
    if single and columns.labels.ndim == 1 and (found := len(np.unique(columns.labels))) > 2 and (
            columns.labels.dtype.kind in "US"):
        fail(f"{name} is one score an image, and {columns.label_name} has {found} classes",
             "Save a column of scores for each class, called p_CLASS.")
    labels, names = class_numbers(columns, classes, names, name if not single else f"{name} [N]", fail, notes)
    scores = scores.astype(np.float64)
    broken = ~np.isfinite(scores.reshape(count, -1)).all(1)
    if broken.any():
        fail(f"{name} of {broken.sum()} of {count} images are not finite (NaN or infinite)")
    if single:
        logits, probabilities, note = score_kinds.of_two_classes(scores.reshape(-1), name, fail, kind)
    else:
        logits, probabilities, note = score_kinds.of_classes(scores, name, fail, kind, columns.is_ours)
        _check_base(columns, labels, probabilities, fail)
    note = "; ".join(filter(None, [note, *notes]))
    return Predictions(labels, logits, probabilities, texts.get("ids"), groups, names, note)


def kind_of(array):
    """What an array holds, in words, for errors."""
    words = {"U": "text", "S": "text", "V": "records of several fields", "O": "objects", "c": "complex numbers",
             "M": "dates", "m": "durations", "b": "truth values", "f": "floating-point numbers"}
    return words.get(array.dtype.kind, "whole numbers")


def _check_base(columns, labels, probabilities, fail):
    """fail() where labels that are numbers begin at 1, and fit the scores much better if they count from 1.

    Then the first class, or the last, has no image. Much better: by more than two standard deviations of the
    difference (McNemar 1947).
    """
    of_names = columns.labels.dtype.kind in "US" and np.isnan(
        [parse_number(text) for text in np.unique(strings(columns.labels.reshape(-1))).tolist()]).any()
    if columns.is_ours or columns.labels.ndim != 1 or of_names or labels.min() != 1:
        return
    best = probabilities.argmax(1)
    from_0, from_1 = int((best == labels).sum()), int((best == labels - 1).sum())
    if from_1 - from_0 > 2 * (from_0 + from_1) ** 0.5:
        fail(f"{columns.label_name} go from 1 to {labels.max()} of {probabilities.shape[1]} classes: if they count "
             f"from 0, {from_0} of {len(labels)} answers are right, and {from_1} if they count from 1",
             "If they count from 1, subtract 1 from each. If they count from 0, write the names of the classes instead "
             "of numbers, and call the columns p_NAME.")


def class_numbers(columns, classes, names, what, fail, notes):
    """(labels [n] int64, class names) of the labels in Columns: numbers, names or one-hot.

    names: of the classes, or None. what: the scores as errors call them. A note is added where something was done.
    """
    labels, name = columns.labels, columns.label_name
    if labels.ndim == 2 and 1 in labels.shape and labels.size == len(labels):
        labels = labels[:, 0]
    if labels.ndim > 2 or labels.ndim == 0:
        fail(f"{name} has shape {labels.shape}; one class number an image is needed, [N]")
    if labels.ndim == 2:
        labels = _of_one_hot(columns, classes, names, what, fail)
        notes.append(f"{name} are one-hot")
    if labels.dtype.kind in "US" or labels.dtype.kind == "O":
        labels, names = _of_names(strings(labels), classes, names, name, what, fail, notes)
    numbers = labels.astype(np.float64) if labels.dtype.kind in "iufb" else np.array(np.nan)
    if not (np.isfinite(numbers) & (numbers == np.round(numbers))).all():
        fail(f"{name} ({kind_of(labels)}) are not all class numbers: 0, 1, 2, ...")
    if numbers.min() < 0 or numbers.max() >= classes:
        fail(f"{what} has {classes} classes, but {name} go from {numbers.min():g} to {numbers.max():g}",
             f"Labels count from 0: here they are 0 to {classes - 1}."
             + (" More classes than two have a score each." if what.endswith("[N]") else ""))
    return labels.astype(np.int64), names or np.arange(classes).astype(str).tolist()


def _of_one_hot(columns, classes, names, what, fail):
    """[n] class numbers of one-hot labels [n, C]."""
    name = columns.label_name
    if columns.labels.dtype.kind not in "iufb":
        fail(f"{name} has shape {columns.labels.shape} and is no one-hot of 0 and 1")
    labels = columns.labels.astype(np.float64)
    if not np.isin(labels, (0, 1)).all():
        fail(f"{name} has shape {labels.shape} with other numbers than 0 and 1: one class an image is needed, as its "
             "number [N] or one-hot")
    ones = labels.sum(1)
    if (ones > 1).any():
        fail(f"{name} have several classes in {(ones > 1).sum()} of {len(ones)} images: these are multi-label, and "
             "only one class an image is evaluated")
    if (ones < 1).any():
        fail(f"{name} have no class in {(ones < 1).sum()} of {len(ones)} images",
             "One-hot labels have exactly one 1 in each row.")
    places = np.arange(labels.shape[1])
    if columns.one_hot and names:  # by the names of the columns, which may be in another order
        known = prediction_files.matched(columns.one_hot, names)
        absent = [one for k, one in enumerate(columns.one_hot) if known[one] is None and labels[:, k].any()]
        if absent:
            fail(f"{name} have classes that {what} has not: {listing(absent)}", f"It has {listing(names, 12)}.")
        places = np.array([names.index(known[one]) if known[one] is not None else 0 for one in columns.one_hot])
    elif labels.shape[1] != classes:
        fail(f"{name} has shape {labels.shape}, one-hot of {labels.shape[1]} classes; {what} has {classes}")
    return places[labels.argmax(1)]


NEGATIVE_POSITIVE = ({"negative", "positive"}, {"neg", "pos"}, {"no", "yes"}, {"false", "true"})


def _of_names(texts, classes, names, name, what, fail, notes):
    """(class numbers [n], class names) of labels that are text."""
    texts = np.char.strip(texts)
    distinct = np.unique(texts).tolist()
    if "" in distinct:
        fail(f"{name} are empty for {(texts == '').sum()} of {len(texts)} images", "Each needs its true class.")
    numbers = np.array([parse_number(text) for text in distinct])
    if names:
        known = prediction_files.matched(distinct, names)
        unknown = [text for text in distinct if known[text] is None]
        if not unknown:
            loosely = [text for text in distinct if known[text] != text]
            if loosely:
                notes.append(f"{name} match the classes but for case, spaces and underscores: {listing(loosely)}")
            number_of = {text: names.index(known[text]) for text in distinct}
            return np.array([number_of[text] for text in texts.tolist()]), names
        if np.isnan(numbers).any():
            fail(f"{name} are not all class numbers, and {listing(unknown)} no name of a class of {what}",
                 f"The classes are {listing(names, 12)}.")
    if not np.isnan(numbers).any():
        return np.array([parse_number(text) for text in texts.tolist()]), names
    if classes == 2 and {text.lower() for text in distinct} <= max(
            NEGATIVE_POSITIVE, key=lambda pair: len(pair & {text.lower() for text in distinct})):
        pair = sorted(distinct, key=str.lower)  # the second is the positive one
        positive = {"positive", "pos", "yes", "true"}
        notes.append(f"class 1 is the positive one of {name}")
        labels = np.array([text.lower() in positive for text in texts.tolist()]).astype(int)
        return labels, pair if len(pair) == 2 else None
    fail(f"{name} are not all class numbers but names ({listing(distinct)}), and nothing says "
         f"which class each column of {what} is",
         "Name the classes in the order of the columns: an array class_names, or columns called p_CLASS in a table.")


def _two_names(second, labels):
    """The names of two classes of which the scores name the second."""
    if labels.dtype.kind in "US" and np.isnan([parse_number(text) for text in labels.reshape(-1).tolist()]).any():
        known = prediction_files.matched(np.unique(labels).tolist(), [second])
        others = [text for text in known if known[text] is None]
        if len(others) == 1:
            return np.array([others[0], second])
    return np.array(["0", "1"] if second == "1" else [f"not {second}", second])


def strings(array):
    """An array of texts as str, whatever it was stored as. ValueError where no file can be written with them."""
    texts = array.astype(str) if array.dtype.kind != "S" else np.char.decode(array, "utf-8", "replace")
    "".join(texts.reshape(-1).tolist()).encode()  # UnicodeEncodeError for one half of a pair
    return texts


def read_groups(file):
    """{id: group} of a CSV with columns id,group."""
    rows = read_csv(file, ("id", "group"), ",;\t|")
    group = {row["id"]: row["group"] for row in rows}
    twice = {row["id"] for row in rows if row["group"] != group[row["id"]]}
    if twice:
        raise UserError(f"{file} gives {len(twice)} images two groups: {listing(sorted(twice))}",
                        "Each image needs one row. Where files in several folders have one name, an id is the path "
                        "below --root, such as nevus/1.png.")
    return group


def groups_of(ids, group, path):
    """[n] the group of each id; path: whose ids they are, for the error."""
    if ids is None:
        raise UserError(f"{path} has no ids, which --groups needs to know its images by")
    known = [name for name in group if group[name]]
    places = prediction_files.positions(ids, known)
    missing = ids[places < 0].tolist()
    if missing:
        raise UserError(f"--groups has no group for {len(missing)} of {len(ids)} images of {path}: {listing(missing)}",
                        f"Its ids are such as {listing(known, 2) or 'none'}.")
    return np.array([group[known[place]] for place in places])


def difference_between(a, b):
    """Why two test Predictions cannot be compared image by image; '' where they can."""
    if a.class_names != b.class_names:
        return f"different classes: {listing(a.class_names)}; {listing(b.class_names)}"
    if len(a.labels) != len(b.labels):
        return f"{len(a.labels)} and {len(b.labels)} images"
    if a.ids is not None and b.ids is not None:
        shared = len(set(a.ids) & set(b.ids))
        if shared < len(a.ids):
            return f"only {shared} of {len(a.ids)} images in common"
    order = matching_order(a, b)
    if (a.labels != b.labels[order]).any():
        by_id = a.ids is not None
        return "different labels of the same images" if by_id else "different labels, and no ids to match by"
    if a.groups is not None and b.groups is not None and (a.groups != b.groups[order]).any():
        return "different groups of the same images"
    return ""


def matching_order(a, b):
    """Positions in Predictions `b` of the images of `a`; without ids, images are taken to be in one order."""
    if a.ids is None or b.ids is None:
        return np.arange(len(a.labels))
    order = np.argsort(b.ids)
    return order[np.searchsorted(b.ids, a.ids, sorter=order)]
