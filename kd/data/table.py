"""Labels in a table: which columns have the image, the class, the group and the split, and which file a row means.

Columns that are not named are known by their usual names, and what they are taken for is said.
"""

import functools
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import image_files
from kd.data.dataset import Dataset
from kd.data.layout import split_of
from kd.errors import UserError, listing, nearest
from kd.files import CSV, parse_csv, parse_number, read_bytes, reading_errors, same_content, table_text

SEPARATORS = ",;\t|"
# The usual names of columns, without case, spaces, dashes and underscores; earlier ones are taken first.
IMAGES = ("isicid", "imageid", "imagename", "image", "filename", "file", "imagefile", "imagepath", "filepath", "path",
          "imageindex", "img", "imgid", "imgname", "imgpath", "imgfile", "id", "idcode", "name", "files", "images")
LABELS = ("label", "labels", "class", "classname", "dx", "diagnosis", "target", "category", "benignmalignant",
          "finding", "findinglabels", "y", "diagnosis1", "diagnosis2", "diagnosis3", "diagnosis4", "diagnosis5",
          "level", "grade")
GROUPS = ("patientid", "patient", "subjectid", "subject", "caseid", "lesionid", "lesion", "group", "groupid",
          "patientname")
SPLIT = ("split", "set", "subset", "partition", "usage", "fold", "phase")
MISSING = {"", "na", "n/a", "nan", "none", "null", "-", "?", "."}
FEW_GROUPS, FEW_GROUPS_OF = 6, 20  # fewer groups of so many images are hardly patients
SUMMARY = 8  # names of columns and classes in an error


def plain(name):
    """A column's name as in IMAGES, LABELS, GROUPS and SPLIT."""
    return "".join(c for c in name.lower() if c.isalnum())


@dataclass
class Table:
    """The rows of a table, {column: text}, and where it lies."""

    path: Path
    rows: list
    columns: list
    note: str = ""  # on how its text was read

    @classmethod
    def read(cls, path):
        """UserError if it is no table, or has no rows."""
        path = Path(path)
        if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
            raise UserError(f"{path} is a workbook of a spreadsheet program",
                            "Save its sheet as CSV UTF-8, and give that.")
        data = read_bytes(path, CSV)
        if data[:4] == b"PK\x03\x04":
            raise UserError(f"{path} is a workbook of a spreadsheet program under another name",
                            "Save its sheet as CSV UTF-8, and give that.")
        with reading_errors(path):
            text, note = table_text(data)
        if text[:4].lower() == "sep=":  # by which Excel is told the separator
            text = text.partition("\n")[2]
        rows = parse_csv(text.encode(), path, separators=SEPARATORS)
        if not rows:
            raise UserError(f"{path} has no rows", "A table has a header, and a row for each image.")
        return cls(path, rows, [column for column in rows[0] if column], note)

    def column(self, name, usual, what, option):
        """The column called `name`, else the first with a usual name; None if there is none.

        what: what it holds, and option: how it is named, for the error. UserError if the table lacks `name`.
        """
        if name:
            if name in self.columns:
                return name
            same = [column for column in self.columns if plain(column) == plain(name)]
            if len(same) == 1:
                return same[0]
            raise UserError(f"{self.path} has no column {name} for {what}",
                            nearest(name, self.columns) or f"It has: {listing(self.columns, SUMMARY)}. "
                            f"Name one with {option}=COLUMN.")
        found = [column for word in usual for column in self.columns if plain(column) == word]
        return found[0] if found else None

    def values(self, column):
        """The cells of a column, without spaces around them; "" where one is missing."""
        return [(row[column] or "").strip() for row in self.rows]


def dataset(table, *, images="", label="", group="", split="", folder="", name="", extra=(), plugin="csv",
            testing=False):
    """The Dataset of a Table: prints what its columns were taken for, and what is left out.

    images, label, group, split: names of columns; "" for those with a usual name. label may be several columns of one
    class each, MEL+NV+BCC, with a one in each row. group may be several columns, patient_id+lesion_id: images that
    agree in one of them belong together. folder: where the images are, if not beside the table, seen from the working
    directory, else from the table's folder. extra: further Tables
    with the same ids, such as one of groups. plugin: the name of the data set in the registry, for errors. testing: the
    images are only tested on. Raises UserError.
    """
    beside = table.path.parent / folder
    asked, folder = folder, Path(folder) if folder and Path(folder).is_dir() else beside
    if not folder.is_dir():
        raise UserError(f"no such folder: {asked}, neither in {Path.cwd()} nor in the table's, {table.path.parent}",
                        "folder=PATH names the folder of the images, from one of these two on.")
    notes = [f"{table.path.name}: {table.note}"] if table.note else []
    column = table.column(images, IMAGES, "the images", "images") or _by_files(table, folder)
    if column is None:
        raise UserError(f"{table.path}: which column names the images?",
                        f"Say it with images=COLUMN; it has: {listing(table.columns, SUMMARY)}.")
    cells = table.values(column)
    _join(table, column, extra)
    labels, label_columns = _labels(table, label, {column}, plugin, notes)
    groups, group_columns = _groups(table, group, notes)
    splits, split_column = _splits(table, split, notes)
    named = {"images": (images, column), "label": (label, "+".join(label_columns)),
             "group": (group, "+".join(group_columns)), "split": (split, split_column or "")}
    taken = [f"{what} {value}" for what, (asked, value) in named.items() if value and value != asked]
    if taken:
        notes.insert(0, f"columns of {table.path.name}: {', '.join(taken)}")

    no_name = [k for k, cell in enumerate(cells) if not cell]
    no_label = [k for k, value in enumerate(labels) if value is None and cells[k]]
    for rows, what in ((no_name, f"no image in {column}"), (no_label, f"no class in {'+'.join(label_columns)[:60]}")):
        if rows:
            more = ", ..." if len(rows) > 1 else ""
            notes.append(f"{len(rows)} rows have {what} and are left out (row {rows[0] + 2}{more})")
    kept = [k for k in range(len(cells)) if cells[k] and labels[k] is not None]
    if not kept:
        raise UserError(f"{table.path} has no row with an image and a class")
    paths, others = image_files.find(folder)
    finder = Finder(folder, paths)
    source_of = {k: finder.find(cells[k]) for k in kept}
    kept = _unique(source_of, table, cells, labels, groups, splits, notes)
    sources = [source_of[k] for k in kept]
    if not any(isinstance(source, Path) for source in sources):
        left = image_files.left_out({path: what for path, what in others.items() if path != table.path})
        raise UserError(f"none of the {len(kept)} images of {table.path.name} is below {folder}, "
                        f"such as {cells[kept[0]]}" + (f"; {left}" if left else ""),
                        f"It has {len(paths)} images" + (f", such as {next(iter(finder.path_of))}" if paths
                        else "") + ". folder=PATH names another folder.")
    unnamed = [place for place in finder.path_of if place not in finder.used]
    if unnamed:
        notes.append(f"{len(unnamed)} images below {folder} are in no row and are left out: "
                     f"{listing(unnamed, 3)}")
    if finder.by_number:
        notes.append(f"{len(finder.by_number)} ids are found as numbers, such as {' as '.join(finder.by_number[0])}")
    if finder.copies:
        notes.append(f"{finder.copies} images are there several times, byte by byte; one file of each is used")
    for note in notes:
        print(f"note: {note}")
    names = _class_order({labels[k] for k in kept})
    if len(names) < 2 and not testing:
        raise UserError(f"{table.path}: all rows have the class {names[0]}, and at least two classes are needed",
                        "label=COLUMN names another column.")
    return Dataset(name or table.path.stem, names, images=sources, ids=[cells[k] for k in kept],
                   labels=[names.index(labels[k]) for k in kept],
                   groups=None if groups is None else [groups[k] for k in kept],
                   split=None if splits is None else [splits[k] for k in kept])


class Finder:
    """Finds the file that a cell means among the `paths` of images below `folder`.

    path_of: {path below the folder, with /: path}. used: those that were found, as keys of path_of. copies: how many
    images were there several times with the same bytes. by_number: (cell, path) of ids that are the same as numbers
    only, because spreadsheet programs drop zeros at the beginning.
    """

    def __init__(self, folder, paths):
        self.used, self.copies, self.by_number = set(), 0, []
        start = 0 if str(folder) == "." else len(os.path.join(folder, ""))  # quicker than Path.relative_to()
        self.path_of = {str(path)[start:].replace(os.sep, "/"): path for path in paths}
        self.by_name, self.by_stem = defaultdict(list), defaultdict(list)
        for place in self.path_of:
            name = place.rpartition("/")[2].lower()
            self.by_name[name].append(place)
            self.by_stem[os.path.splitext(name)[0]].append(place)

    def find(self, cell):
        """The path of an image: a path of any machine, a file name or an id without suffix; or a UserError."""
        text = cell.replace("\\", "/").removeprefix("./")
        if text in self.path_of:
            return self._use([text])
        folders, _, name = text.lower().rpartition("/")
        stem, suffix = os.path.splitext(name)
        found = self.by_name.get(name) or self.by_stem.get(name)
        if not found and suffix[1:2].isalpha():  # p0.1 and p0.2 are two ids
            found = self.by_stem.get(stem)
        number = stem if suffix == ".0" else name  # spreadsheet programs and pandas make floats of whole numbers
        if not found and number.isdecimal():
            found = self._numbered.get(int(number), [])
            self.by_number += [(cell, place) for place in found[:1]]
        if not found:
            return UserError("no such file")
        if folders and len(found) > 1:  # folders in the cell choose between files of one name
            shared = [_common_end(folders.split("/"), place.lower().split("/")[:-1]) for place in found]
            found = [place for place, count in zip(found, shared) if count == max(shared)]
        return self._use(found)

    @functools.cached_property
    def _numbered(self):
        """{number: places} of the files whose names are numbers."""
        result = defaultdict(list)
        for stem, places in self.by_stem.items():
            if stem.isdecimal():
                result[int(stem)] += places
        return result

    def _use(self, found):
        if len(found) > 1:
            if not same_content([self.path_of[place] for place in found]):
                return UserError(f"there twice: {' and '.join(found[:3])}")
            self.copies += 1
        self.used.update(found)
        return self.path_of[found[0]]


def _common_end(a, b):
    count = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        count += 1
    return count


def _by_files(table, folder):
    """The column in whose cells the names of files below the folder are, or None."""
    finder = Finder(folder, image_files.find(folder)[0])
    some = table.rows[:200]
    hits = {column: sum(isinstance(finder.find((row[column] or "").strip() or "?"), Path) for row in some)
            for column in table.columns}
    best = max(hits, key=hits.get)
    return best if hits[best] * 2 > len(some) else None


def _join(table, column, extra):
    """Add the columns of further tables with the same ids to the rows of a table."""
    for other in extra:
        key = other.column("", (plain(column), *IMAGES), "the images", "images")
        row_of = {row[key]: row for row in other.rows}
        new = [name for name in other.columns if name not in table.columns]
        for row in table.rows:
            row.update({name: (row_of.get(row[column]) or {}).get(name, "") for name in new})
        table.columns += new


def _labels(table, label, used, plugin, notes):
    """([n] class names or None, the columns that have them)."""
    columns = [part.strip() for part in label.split("+")] if label else []
    if len(columns) == 1 and label not in table.columns or len(columns) > 1:
        columns = [table.column(name, (), "the classes", "label") for name in columns]
    if not columns:
        columns = _label_columns(table, used, plugin)
    if len(columns) > 1:
        return _one_hot(table, columns, notes)
    values = [_unlisted(value) for value in table.values(columns[0])]
    values = [None if value.lower() in MISSING else value for value in values]
    several = sorted({value for value in values if value and _are_several(value, set(values))})
    if several:
        raise UserError(f"{table.path}: {columns[0]} has several classes at once (a multi-label set): "
                        f"{listing(several, 3)}", "Only sets with one class an image are read.")
    number_of = {value: parse_number(value) for value in set(values) - {None}}
    if number_of and all(abs(number) < 2 ** 53 and number == int(number) for number in number_of.values()):
        values = [None if value is None else str(int(number_of[value])) for value in values]
    distinct = set(values) - {None}
    if len(distinct) > max(20, len(values) / 4):
        raise UserError(f"{table.path}: {columns[0]} has {len(distinct)} different values in {len(values)} rows, too "
                        "many for classes", f"label=COLUMN names another column: {listing(table.columns, SUMMARY)}.")
    by_case = defaultdict(set)
    for value in distinct:
        by_case[value.casefold()].add(value)
    twins = next((sorted(same) for same in by_case.values() if len(same) > 1), None)
    if twins:
        raise UserError(f"{table.path}: the classes {' and '.join(twins)} differ only in capitals", "Write them alike.")
    return values, columns


def _unlisted(value):
    """The name in a list of one name that was written as text, such as ['N']; other values as they are."""
    single = re.fullmatch(r"""\[\s*(["'])([^"',]*)\1\s*\]""", value)
    return single[2] if single else value


def _are_several(value, values):
    """Whether a cell names several classes, such as Mass|Nodule; with ; or , if all of them are classes themselves."""
    parts = [[part.strip() for part in value.split(mark)] for mark in "|;,"]
    is_list = value.startswith("[") and value.endswith("]")
    if len(parts[0]) > 1 or is_list and len(parts[2]) > 1:
        return True
    return any(len(some) > 1 and values.issuperset(some) for some in parts[1:])


def _label_columns(table, used, plugin):
    """The columns with the classes of a table that does not say which these are."""
    usual = [column for word in LABELS for column in table.columns if plain(column) == word and column not in used]
    found = [column for column in usual if len(set(table.values(column)) - {""}) > 1]
    if len(found) == 1 or found and all(_same_classes(table, found[0], other) for other in found[1:]):
        return found[:1]
    if found:
        classes = [f"{column} ({len(set(table.values(column)) - {''})} classes)" for column in found]
        raise UserError(f"{table.path} has several columns of classes: {', '.join(classes)}",
                        f"Choose one with label=COLUMN, as in --data {plugin},label={found[0]}")
    other = (*IMAGES, *GROUPS, *SPLIT)
    one_hot = [column for column in table.columns if column not in used and plain(column) not in other
               and {parse_number(value) for value in set(table.values(column))} <= {0.0, 1.0}]
    if len(one_hot) > 1 and any(sum(parse_number(row[column]) for column in one_hot) == 1 for row in table.rows):
        return one_hot
    if usual:
        return usual[:1]  # one class in all rows
    raise UserError(f"{table.path}: which column has the classes?",
                    "Say it with label=COLUMN, or label=A+B+C for a column a class; it has: "
                    f"{listing(table.columns, SUMMARY)}.")


def _same_classes(table, a, b):
    """Whether two columns say the same in other words, such as target and benign_malignant."""
    pairs = set(zip(table.values(a), table.values(b)))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _one_hot(table, columns, notes):
    cells = np.array([[parse_number(row[column]) for column in columns] for row in table.rows])
    if not np.isin(cells[~np.isnan(cells)], (0, 1)).all() or np.isnan(cells).any():
        raise UserError(f"{table.path}: {listing(columns)} are a column a class, and hold other things than 0 and 1",
                        "Name one column with the classes' names as label=COLUMN, or those of 0 and 1 alone.")
    several = int((cells.sum(1) > 1).sum())
    if several:
        raise UserError(f"{table.path}: {several} of {len(cells)} rows have several classes at once (multi-label)",
                        "Only sets with one class an image are read.")
    empty = [column for column, count in zip(columns, cells.sum(0)) if not count]
    if empty:
        notes.append(f"no row is of the class {listing(empty)}, which is left out")
    return [columns[int(row.argmax())] if row.any() else None for row in cells], columns


def _groups(table, group, notes):
    """([n] groups or None, the columns that make them). A row without any stands for itself."""
    columns = [table.column(name.strip(), (), "the groups", "group") for name in group.split("+")] if group else [
        column for word in GROUPS for column in table.columns if plain(column) == word]
    distinct = {column: {value for value in table.values(column) if value.lower() not in MISSING}
                for column in columns}
    columns = [column for column in columns if distinct[column]]
    for column in [] if group else list(columns):
        if len(table.rows) >= FEW_GROUPS_OF and len(distinct[column]) < FEW_GROUPS:  # arms of a study
            columns.remove(column)
            notes.append(f"{column} has {len(distinct[column])} values only and is not used as groups; if it is the "
                         f"patient or lesion, name it: group={column}")
    if not columns:
        return None, []
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    rows = [[(column, value) for column in columns
             if (value := (row[column] or "").strip()).lower() not in MISSING] for row in table.rows]
    for nodes in rows:
        for node in nodes[1:]:
            parent[root(node)] = root(nodes[0])
    alone = sum(not nodes for nodes in rows)
    if alone:
        notes.append(f"{alone} of {len(rows)} rows have no {' or '.join(columns)}: each is a group of its own")
    return ["/".join(root(nodes[0])[1:]) if len(columns) == 1 and nodes else
            ":".join(root(nodes[0])) if nodes else f"row {k + 2}" for k, nodes in enumerate(rows)], columns


def _splits(table, split, notes):
    """([n] of train, val, test or None, the column)."""
    column = table.column(split, SPLIT, "the splits", "split")
    if column is None:
        return None, None
    values = table.values(column)
    unknown = sorted({value for value in values if split_of(value) is None})
    if unknown and not split:
        notes.append(f"{column} is not used as a split: {listing(map(repr, unknown))} is none")
        return None, None
    if unknown:
        raise UserError(f"{table.path}: {column} has {listing(map(repr, unknown))}, and a split is train, val or test",
                        "Leave out split= to split by groups.")
    splits = [split_of(value) for value in values]
    if "test" not in splits or "train" not in splits:
        has, lacks = listing(sorted(set(values))), "test" if "train" in splits else "training"
        if split:
            raise UserError(f"{table.path}: {column} has {has} and no {lacks} images",
                            "Leave out split= to split by groups.")
        notes.append(f"{column} is not used as a split: all its values are {has}")
        return None, None
    return splits, column


def _unique(source_of, table, cells, labels, groups, splits, notes):
    """The rows without those that name an image again. UserError if two rows of an image say different things.

    source_of: {row: path of its image, or a UserError}.
    """
    first, again = {}, 0
    for k, source in source_of.items():
        j = first.setdefault(cells[k] if isinstance(source, UserError) else source, k)
        if j == k:
            continue
        again += 1
        for what, values in (("classes", labels), ("groups", groups), ("splits", splits)):
            if values is not None and values[j] != values[k]:
                raise UserError(f"{table.path}: {cells[k]} is there twice with other {what}: {values[j]} and "
                                f"{values[k]} (rows {j + 2} and {k + 2})", "Leave one of the rows out.")
    if again:
        notes.append(f"{again} rows name an image again and say the same")
    return list(first.values())


def _class_order(names):
    """Class names in order: whole numbers by size, other names by the alphabet."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
