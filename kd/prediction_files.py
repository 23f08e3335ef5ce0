"""Files of predictions as people save them: .npz, .npy and tables of text -> Columns, whose parts have one name each.

    read(path)                      Columns of a file
    with_labels(columns, labels)    those with the true classes of a second file, joined by ids, else by order

Nothing here knows what the scores are (kd/score_kinds.py tells that); only names, headers and encodings. Which columns
of a table are scores is the matter of kd/score_columns.py.
"""

import csv
import io
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from kd.errors import UserError, listing
from kd.files import CSV, parse_csv, parse_number, read_bytes, read_npz, reading_errors, table_text
from kd.score_columns import ANSWERS, LABELS, LOGITS, MAYBE_LABELS, SCORES, find_scores, loose, numbers_of, plain

TABLES = (".csv", ".tsv", ".txt")
SUFFIXES = (".npz", ".npy", *TABLES)

# Names of arrays and columns, in small letters with _ for - and space; the first that is there is read.
IDS = ("ids", "id", "image_id", "isic_id", "image", "images", "image_name", "img_id", "img", "image_path", "img_path",
       "filename", "file_name", "filenames", "file", "files", "filepath", "file_path", "path", "paths", "image_file",
       "name", "names", "sample_id", "sample")
GROUPS = ("groups", "group", "patient_id", "patient_ids", "patient", "patients", "subject_id", "subject", "lesion_id",
          "lesion_ids", "lesion", "lesions", "case_id", "case")
NAMES = ("class_names", "classes", "label_names", "target_names", "categories")
NO_CLASS = {"confidence", "conf", "max_prob", "called", "error", "age", "sex", "fold", "split", "epoch", "index",
            "loss", "entropy", "uncertainty", "correct", "seed", "time", "width", "height", "temperature", ""}
MISSING = {"", "na", "n/a", "nan", "none", "null", "-", "inf", "-inf"}

OURS = {"ids", "labels", "logits", "groups", "class_names"}  # what a run's file has


@dataclass
class Columns:
    """What a file has, None for what it lacks; n rows."""

    path: object
    labels: np.ndarray = None   # [n], or more axes, of numbers or text
    label_name: str = ""
    one_hot: list = None        # names of the columns of labels [n, C], where these have any
    scores: np.ndarray = None   # [n] or [n, C]
    score_name: str = ""
    answers: str = ""           # name of a column of predicted classes
    ids: np.ndarray = None
    groups: np.ndarray = None
    class_names: object = None  # list or array of text
    is_ours: bool = False       # it has the five arrays that this project writes
    names: list = field(default_factory=list)  # of all arrays or columns
    notes: list = field(default_factory=list)  # what was done that a reader should know


def is_file(path):
    """Whether a path is that of a predictions file, not of a run's folder. UserError for files of other kinds."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return not path.is_dir()
    if path.is_file():
        hint = "Give the run's folder." if path.name in ("best.pt", "last.pt", "metrics.json", "config.yaml") else \
            "Save predictions as a table (.csv) or as arrays (.npz, .npy)."
        raise UserError(f"{path} is neither a run's folder nor a predictions file ({', '.join(SUFFIXES)})", hint)
    return False


def read(path, limit, expected=None, truth=None):
    """Columns of a file. limit: bytes of all arrays. expected: Columns of the predictions that a file of labels is for.

    truth: Columns of a second file with the labels of this one, by which the columns of classes are known. UserError
    for a damaged file.
    """
    suffix = Path(path).suffix.lower()
    if suffix in TABLES:
        return _of_table(path, expected, truth)
    if suffix == ".npy":
        return _of_array(path, limit, expected)
    return _of_arrays(path, read_npz(path, (), limit))


def _pick(found, *names):
    """The first of these names, as the file spells it, or None. found: {plain name: name as it is}."""
    return next((found[name] for name in names if name in found), None)


# ---- arrays


def _of_array(path, limit, expected):
    """Columns of a .npy: scores, or labels where it is given as such."""
    data = read_bytes(path, limit)
    with reading_errors(path):
        if not data.startswith(b"\x93NUMPY"):
            raise ValueError("it is no .npy file, or it is cut short")
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError("it contains pickled objects, which can run code and are not loaded") from None
            raise
    if expected is not None:
        return Columns(path, labels=array, label_name="labels")
    if array.ndim == 1 and array.dtype.kind in "biuUS":
        return Columns(path, answers="its numbers")
    return Columns(path, scores=array, score_name="scores")


def _of_arrays(path, arrays):
    """Columns of {name: array}."""
    found = {plain(name): name for name in reversed(arrays)} | {name: name for name in arrays}
    result = Columns(path, names=list(arrays), is_ours=OURS <= set(arrays))
    if result.is_ours and arrays.get("note", np.zeros(1)).shape == ():  # of an external set
        result.notes.append(str(arrays["note"]))
    result.ids, result.groups, result.class_names = (
        arrays.get(_pick(found, *names)) for names in (IDS, GROUPS, NAMES))
    labels = [found[name] for name in (*LABELS, *MAYBE_LABELS) if name in found]
    for name in labels[1:]:
        if arrays[name].shape == arrays[labels[0]].shape and (arrays[name] != arrays[labels[0]]).any():
            raise UserError(f"{path}: {labels[0]} and {name} differ, and either may be the truth",
                            "Save the file without the predicted classes.")
    scores = [found[name] for name in (*LOGITS, *SCORES, *ANSWERS) if name in found]
    numbers = [name for name in scores if not _is_answers(arrays[name])]
    result.answers = next((name for name in scores if name not in numbers), "")
    if not labels and not scores and set(arrays) == {"arr_0", "arr_1"}:  # of np.savez without names
        numbers = [name for name in arrays if arrays[name].ndim == 2 and arrays[name].dtype.kind == "f"]
        labels = [name for name in arrays if name not in numbers and arrays[name].dtype.kind in "biuUS"]
    if labels:
        result.labels, result.label_name = arrays[labels[0]], labels[0]
    if numbers:
        result.scores, result.score_name = arrays[numbers[0]], numbers[0]
        if numbers[1:]:
            result.notes.append(f"{numbers[0]} is read, {listing(numbers[1:])} not")
    return result


def _is_answers(array):
    """Whether an array holds predicted classes, not scores."""
    return array.ndim == 1 and (array.dtype.kind in "biuUS" and array.size > 0)


# ---- tables


def _rows(path, expected):
    """({column: [text]}, [notes]) of a table. Without a header its columns are called 0, 1, 2, ..."""
    data = read_bytes(path, CSV)
    with reading_errors(path):
        text, note = table_text(data)
        text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n").removeprefix("# ").removeprefix("#")
        if re.match(r'"?sep=.', text):  # by which Excel is told the separator
            text = text.partition("\n")[2]
        words = text.partition("\n")[0].split(" ")
        if len(words) > 1 and not np.isnan([parse_number(word) for word in filter(None, words)]).any():
            text = "\n".join(",".join(line.split()) for line in text.split("\n"))  # of np.savetxt
        separator = max(",;\t|", key=text.partition("\n")[0].count)
        line, _, rest = text.partition("\n")
        text = f"{line.rstrip(separator + ' ')}\n{rest}"  # spreadsheet programs end lines with empty cells
        first = next(csv.reader([text.partition("\n")[0]], delimiter=separator), [])
        if not _is_header(first, text, expected):
            text = separator.join(map(str, range(len(first)))) + "\n" + text
        elif first.count("") > 1:
            raise ValueError(f"its header has {first.count('')} columns without a name")
    rows = parse_csv(text.encode(), path, separators=separator)
    if not rows:
        raise UserError(f"{path}: it holds no images", "A header alone is no prediction.")
    short = sum(None in row.values() for row in rows)
    if short:
        raise UserError(f"{path}: {short} rows are shorter than the header")
    return {name: [row[name].strip() for row in rows] for name in rows[0]}, [note] if note else []


def _is_header(first, text, expected):
    """Whether the first line's cells are the names of columns."""
    if {plain(cell) for cell in first} & {*LABELS, *MAYBE_LABELS, *IDS}:
        return True
    if len(first) > 1 and [cell for cell in first if cell] == [str(k) for k in range(len(first) - ("" in first))]:
        return True  # as pandas writes an array
    if expected is not None:
        count = sum(1 for line in text.split("\n") if line.strip())
        size = None if expected.scores is None else len(expected.scores)
        if len(first) == 1 and size in (count, count - 1):
            return size == count - 1
        if expected.ids is not None and {first[0], plain_id(first[0])} & {*expected.ids, *map(plain_id, expected.ids)}:
            return False
    return bool(np.isnan(numbers_of(first)).any())


def _of_table(path, expected=None, truth=None):
    """Columns of a table of text. expected, truth: as for read()."""
    table, notes = _rows(path, expected)
    found = {plain(name): name for name in reversed(table)}
    result = Columns(path, names=[name for name in table if name], notes=notes)
    left = dict(table)

    def take(*names):
        name = _pick({word: name for word, name in found.items() if name in left}, *names)
        return (None, name) if name is None else (np.array(left.pop(name)), name)

    if list(table) == [str(k) for k in range(len(table))] and expected is not None and len(table) < 3 and not (
            len(table) == 2 and not np.isnan(numbers_of(table["0"] + table["1"])).any()):  # labels without a header
        result.labels, result.label_name = np.array(table[str(len(table) - 1)]), "labels"
        result.ids = np.array(table["0"]) if len(table) == 2 else None
        return result
    result.ids, _ = take(*IDS)
    result.groups, _ = take(*GROUPS)
    errors = left.get(found.get("error"), [])
    is_answer_sheet = {"confidence", "most_probable"} <= set(found)  # of predict.py: its label is an answer
    maybe = MAYBE_LABELS if not is_answer_sheet else tuple(name for name in MAYBE_LABELS if name != "label")
    result.labels, result.label_name = take(*LABELS)
    for rivals in (LABELS, maybe if result.labels is None else ()):
        if result.labels is None:
            result.labels, result.label_name = take(*rivals)
        while result.labels is not None:
            other, name = take(*rivals)
            if other is None:
                break
            if len(set(zip(result.labels, other))) > max(len(set(result.labels)), len(set(other))):
                raise UserError(f"{path}: {result.label_name} and {name} differ, and either may be the truth",
                                "Save the file without the predicted classes.")
    for name in [name for name in left if plain(name) in (*MAYBE_LABELS, *NO_CLASS) or name.startswith("Unnamed:")]:
        del left[name]
    numbers = {}
    for name, cells in left.items():
        values = numbers_of(cells)
        is_number = np.array([cell.lower() in MISSING for cell in cells]) | ~np.isnan(values)
        if is_number.all() and not np.isnan(values).all():
            numbers[name] = values
    result.answers = next((name for name in table if plain(name) in ANSWERS), "label" if is_answer_sheet else "")
    find_scores(result, numbers, errors, expected is not None, truth or result)
    if result.label_name is None:
        result.label_name = ""
    return result


def matched(names, known):
    """{name: the known name that it stands for, or None}: the same, else the only one but for case, space, _ and -."""
    by_name = {}
    for name in known:
        by_name.setdefault(loose(name), []).append(name)
    same = set(known)
    return {name: name if name in same else by_name[loose(name)][0] if len(by_name.get(loose(name), ())) == 1 else None
            for name in names}


# ---- two files of the same images


def plain_id(name):
    """An id without folders and without the suffix of a file."""
    name = PurePosixPath(str(name).replace("\\", "/")).name
    return re.sub(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", "", name)


def positions(ids, others):
    """[n] positions in `others` of the images `ids`, -1 where there is none.

    Equal ids are one image, else ids that are equal without suffix, else without folders, too: the first way that
    finds most of them, and in which no two are the same.
    """
    def without_suffix(name):
        path = PurePosixPath(str(name).replace("\\", "/"))
        return str(path.with_name(plain_id(name))) if path.name else str(name)

    best = np.full(len(ids), -1)
    ids, others = ([unicodedata.normalize("NFC", str(name)) for name in names] for names in (ids, others))
    for way in (str, without_suffix, plain_id):
        a, b = [way(name) for name in ids], [way(name) for name in others]
        if len(set(a)) < len(a) or len(set(b)) < len(b):
            continue
        place = {name: k for k, name in enumerate(b)}
        found = np.array([place.get(name, -1) for name in a])
        if (found >= 0).sum() > (best >= 0).sum():
            best = found
        if (best >= 0).all():
            break
    return best


def with_labels(columns, labels, by_order=True):
    """Columns with the true classes (and the groups) of other Columns `labels`.

    by_order: whether rows may be taken to be in one order where ids are lacking. UserError where they do not fit.
    """
    if labels.labels is None or not labels.labels.ndim:
        raise UserError(f"{labels.path} has no true classes", f"It has: {listing(labels.names, 12) or 'nothing'}; they "
                        "are read from an array labels, or from a column label, by name or number.")
    for what, values in (("ids", labels.ids), ("groups", labels.groups)):
        if values is not None and np.shape(values) != (len(labels.labels),):
            raise UserError(f"{labels.path}: {what} has shape {np.shape(values)}; ({len(labels.labels)},) is needed")
    for part in (columns, labels):
        names, times = np.unique([] if part.ids is None else np.asarray(part.ids).astype(str), return_counts=True)
        if (times > 1).any():
            raise UserError(f"{part.path}: ids are not unique: {listing(names[times > 1])}", "Each image has one row.")
    count = len(columns.scores) if columns.scores is not None and columns.scores.ndim else len(labels.labels)
    if columns.ids is not None and labels.ids is not None:
        order = positions(columns.ids, labels.ids)
        if (order < 0).any():
            raise UserError(f"{labels.path} has no label for {(order < 0).sum()} of {len(order)} images of "
                            f"{columns.path}: {listing([str(i) for i in np.asarray(columns.ids)[order < 0]])}",
                            f"Its ids are such as {labels.ids[0]}.")
        columns.notes.append(f"labels are those of {Path(labels.path).name}, by id")
    else:
        if len(labels.labels) != count or not by_order:
            raise UserError(f"{labels.path} has {len(labels.labels)} labels, {columns.path} {count} images, and no ids "
                            "in both to join them by", "Put a column id into both, or one label a row in one order.")
        order = np.arange(count)
        columns.notes.append(f"labels are those of {Path(labels.path).name}, in the order of its rows")
    columns.labels, columns.label_name = np.asarray(labels.labels)[order], labels.label_name
    columns.one_hot, columns.is_ours = labels.one_hot, False
    if columns.groups is None and labels.groups is not None:
        columns.groups = np.asarray(labels.groups)[order]
    if columns.class_names is None:
        columns.class_names = labels.class_names if labels.scores is None else None
    return columns
