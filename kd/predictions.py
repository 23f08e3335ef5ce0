"""Predictions files, of a run or of any other system: read, and checked for damage and leaks.

A file is a .npz with `labels` (or `y_true`) and `logits` (or `y_prob`), and where they are known
`ids`, `groups` and `class_names`. Everything that evaluation says is computed from such files.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from kd import metrics
from kd.errors import UserError, listing
from kd.files import read_csv, read_npz

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
    note: str = ""             # what was done to the probabilities

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

    def size(self):
        """{"images", "groups", "support": images a class}, as metrics.json has it."""
        support = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return {"images": len(self.labels), "groups": len(np.unique(self.clusters)),
                "support": dict(zip(self.class_names, support))}


def of_files(test, val=None, groups=None):
    """(val, test) of another system's files; val is None where there is none.

    groups: a CSV with columns id,group for both. Raises UserError as of_run does.
    """
    paths, groups = {"validation": val, "test": test}, groups and read_groups(groups)
    splits = {name: read(path) for name, path in paths.items() if path is not None}
    for name, split in splits.items():
        if groups:
            split.groups = groups_of(split.ids, groups, paths[name])
    if val is None:
        return None, splits["test"]
    val, test = splits.values()
    a, b = len(val.class_names), len(test.class_names)
    if a != b:
        raise UserError(f"{paths['validation']} has {a} classes, {paths['test']} has {b}")
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


def refuse_leaks(path, members, hint="Metrics of such a split are too good. Split whole groups and train again."):
    """UserError where two splits share an image or a group: every metric would be too good.

    members: {split's name: (ids, groups)}, either of them None where unknown.
    """
    for (a, ours), (b, theirs) in itertools.combinations(members.items(), 2):
        for what, names, others in zip(("images", "groups"), ours, theirs):
            shared = set() if names is None or others is None else sorted(set(names) & set(others) - {""})
            if shared:
                raise UserError(f"{path}: {a} and {b} share {len(shared)} {what}: {listing(shared)}", hint)


def read(path, required=()):
    """The Predictions of a .npz file, checked.

    required: arrays that it must have. Raises UserError where it is damaged, or its arrays do not fit together.
    """
    arrays = read_npz(path, required, FILE)

    def fail(message, hint=""):
        raise UserError(f"{path}: {message}", hint)

    def pick(*names):
        name = next((name for name in names if name in arrays), None)
        if name is None:
            fail(f"it has neither {' nor '.join(names)}", f"It has: {', '.join(arrays) or 'nothing'}.")
        return name, arrays[name]

    label_name, labels = pick("labels", "y_true")
    if not labels.size:
        fail("it holds no images")
    if labels.ndim != 1:
        fail(f"{label_name} has shape {labels.shape}; one class number an image is needed, [N]")
    numbers = labels.astype(np.float64) if labels.dtype.kind in "iufb" else np.array(np.nan)
    if not (np.isfinite(numbers) & (numbers == np.round(numbers))).all():
        fail(f"{label_name} ({labels.dtype.name}) are not all class numbers: 0, 1, 2, ...")

    name, scores = pick("logits", "y_prob")
    if scores.ndim != 2 or len(scores) != len(labels) or scores.shape[1] < 2:
        fail(f"{name} has shape {scores.shape}; [{len(labels)}, C] is needed, a column a class, C >= 2")
    if scores.shape[1] > CLASSES or scores.size > LOGITS:
        fail(f"it has {len(scores):,} images of {scores.shape[1]:,} classes; at most {CLASSES} classes and {LOGITS:,} "
             "numbers are read")
    if scores.dtype.kind not in "iuf":
        fail(f"{name} holds {scores.dtype.name} values, not numbers")
    scores = scores.astype(np.float64)
    broken = ~np.isfinite(scores).all(1)
    if broken.any():
        fail(f"{name} of {broken.sum()} of {len(scores)} images are not finite (NaN or infinite)")
    classes = scores.shape[1]
    if numbers.min() < 0 or numbers.max() >= classes:
        fail(f"{name} has {classes} classes, but {label_name} go from {numbers.min():g} to "
             f"{numbers.max():g}", f"Labels count from 0: here they are 0 to {classes - 1}.")
    labels, logits, note = labels.astype(np.int64), None, ""
    if name == "logits":
        if scores.min() >= 0 and np.abs(scores.sum(1) - 1).max() <= 1e-3:
            fail("logits of all images are at least 0 and sum to 1: these look like probabilities",
                 "Name them y_prob if that is what they are.")
        logits, probabilities = scores, metrics.softmax(scores)
    else:
        probabilities, note = distributions(scores, fail)

    try:
        texts = {key: strings(arrays[key]) for key in ("ids", "groups", "class_names") if key in arrays}
    except Exception:  # NumPy raises SystemError, too, for a character that Unicode does not have
        fail("its ids, groups or class_names are not text")
    for key, size in {"ids": len(labels), "groups": len(labels), "class_names": classes}.items():
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
    names = texts.get("class_names", np.arange(classes).astype(str)).tolist()
    return Predictions(labels, logits, probabilities, texts.get("ids"), groups, names, note)


def distributions(scores, fail):
    """(probabilities [n, C] whose rows sum to 1, a note on what was done for it).

    scores: [n, C] of y_prob. fail: called with a message where these are logits.
    """
    hint = "Name them logits if that is what they are."
    if scores.min() < 0 or scores.max() > 1.001:
        fail(f"y_prob goes from {scores.min():.4g} to {scores.max():.4g}: these look like logits", hint)
    totals = scores.sum(1)
    off = np.abs(totals - 1)
    if off.max() > 1e-3:
        fail(f"y_prob of {(off > 1e-3).sum()} of {len(scores)} images do not sum to 1 "
             f"(image {off.argmax()}: {totals[off.argmax()]:.4g})", hint)
    if off.max() <= 1e-6:  # rounding of float32; dividing would only break ties
        return scores, ""
    return scores / totals[:, None], f"probabilities renormalised (sums off by up to {off.max():.1g})"


def strings(array):
    """An array of texts as str, whatever it was stored as. ValueError where no file can be written with them."""
    texts = array.astype(str) if array.dtype.kind != "S" else np.char.decode(array, "utf-8", "replace")
    "".join(texts.reshape(-1).tolist()).encode()  # UnicodeEncodeError for one half of a pair
    return texts


def read_groups(file):
    """{id: group} of a CSV with columns id,group."""
    rows = read_csv(file, ("id", "group"))
    group = {row["id"]: row["group"] for row in rows}
    twice = {row["id"] for row in rows if row["group"] != group[row["id"]]}
    if twice:
        raise UserError(f"{file} gives {len(twice)} images two groups: {listing(sorted(twice))}")
    return group


def groups_of(ids, group, path):
    """[n] the group of each id; path: whose ids they are, for the error."""
    if ids is None:
        raise UserError(f"{path} has no ids, which --groups needs to know its images by")
    ids = ids.tolist()
    missing = [i for i in ids if not group.get(i)]
    if missing:
        raise UserError(f"--groups has no group for {len(missing)} of {len(ids)} images of {path}: {listing(missing)}")
    return np.array([group[i] for i in ids])


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
