"""A folder of images: which of its folders are splits, which are classes, and which are in doubt.

The structure decides, not the names alone: folders called train and test are splits if the classes lie below them.
Where two readings are possible, the error says which option chooses one.
"""

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from kd import image_files
from kd.data.splits import NAMES
from kd.errors import UserError, listing
from kd.files import same_content

# The usual names of splits, without case, spaces, dashes, underscores and what stands at their end.
SPLITS = {"train": "train", "training": "train", "tr": "train", "trn": "train", "val": "val", "valid": "val",
          "validation": "val", "validate": "val", "dev": "val", "development": "val", "test": "test", "testing": "test",
          "tst": "test"}
# Folders that are named after what is in them, or numbered parts of a whole: hardly a class.
NO_CLASS = re.compile(r"(.*[\s_.-])?(ground.?truths?|masks?|segmentations?|annotations?|images?|imgs?"
                      r"|pictures|photos|labels?|part|batch|fold|chunk|shard|volume)[\s_.-]*(part|batch)?[\s_.-]*\d*",
                      re.IGNORECASE)
LIKE_SPLITS = {*SPLITS, "pred", "prediction", "eval", "evaluation", "holdout", "hold", "unseen", "unlabeled",
               "unlabelled"}
# Files that are masks of images beside them, as in benign (1)_mask.png
MASK = re.compile(r"(.+?)[_-](masks?|seg|segmentation|gt|annotation)([_-]?\d+)?", re.IGNORECASE)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
WORDS = ("CLASS", "SPLIT", "GROUP", "ANY")


def split_of(name):
    """The split that a folder's or a table's word stands for: "train", "val", "test", or None."""
    plain = re.sub(r"[\s_.-]+", "", str(name).lower())
    return SPLITS.get(re.sub(r"(set|data|dataset|images?|imgs?|split|folder)$", "", plain)) or SPLITS.get(plain)


@dataclass
class Layout:
    """N images of a folder. split and groups are None where the folders do not tell them."""

    images: list   # N paths
    ids: list      # N paths below the root, with /
    classes: list  # N names
    split: list    # N of "train", "val", "test"
    groups: list   # N names
    notes: list    # sentences on what was left out or recognised


def read(root, pattern="", testing=False):
    """The Layout of the images below a folder.

    root: the folder. pattern: what its folders mean, level by level, such as SPLIT/CLASS, CLASS/GROUP or images/CLASS,
    where ANY is a folder that means nothing; "" to find out. testing: the images are only tested on, so that one class
    is enough. Raises UserError if the folder has no such structure, or if it is in doubt.
    """
    root = folder(root)
    paths, others = image_files.find(root)
    if not paths:
        raise UserError(f"no images in {root}" + (f": {image_files.left_out(others)}" if others else ""),
                        "JPEG, PNG, TIFF, GIF, WebP, BMP and others are read; DICOM and HEIC are converted first.")
    stems = {path.with_suffix("") for path in paths}
    masks = {path for path in paths if (mask := MASK.fullmatch(path.stem)) and path.with_name(mask[1]) in stems}
    others.update(dict.fromkeys(masks, "masks of images beside them"))
    paths = [path for path in paths if path not in masks]
    parts = [path.relative_to(root).parts for path in paths]
    notes = []
    copies = [] if pattern else _copies(root, parts)
    if copies:
        notes.append(f"{listing(copies)} holds the other folders once more, byte by byte, and is left out")
        keep = [k for k, part in enumerate(parts) if part[0] not in copies]
        paths, parts = [paths[k] for k in keep], [parts[k] for k in keep]
    words = _words(pattern) if pattern else _detect(root, parts, testing)
    matches = [_match(words, part) for part in parts]
    stray = [path for path, match in zip(paths, matches) if match is None]
    found = [(path, "/".join(part), match) for path, part, match in zip(paths, parts, matches) if match is not None]
    if not found:
        raise UserError(f"no image of {root} lies in folders like {'/'.join(words)}",
                        f"One of them is {'/'.join(parts[0])}.")
    if stray:
        notes.append(f"{len(stray)} images are in no class folder and are left out: {listing(stray)}")
    depth = max(i for i, word in enumerate(words) if word in WORDS) + 1
    inside = {path: what for path, what in others.items() if len(path.relative_to(root).parts) > depth
              or what == "hidden" or what.startswith("in ")}
    notes += filter(None, [image_files.left_out(inside)])
    paths, ids, matches = zip(*found)
    result = Layout(list(paths), list(ids), [match["CLASS"] for match in matches], None, None, notes)
    _check_classes(root, words, result, testing, inside, copies)
    inner = {part[:len(words) + 1] for part, match in zip(parts, matches) if match and len(part) > len(words) + 1}
    if "GROUP" not in words and len(inner) > 1:
        notes.append(f"below {'/'.join(words)} there are {len(inner)} folders, such as {'/'.join(min(inner))}: if each "
                     f"is a patient or lesion, --data folder,layout={'/'.join([*words, 'GROUP'])} keeps its images "
                     "together")
    if "GROUP" in words:
        result.groups = [match["GROUP"] for match in matches]
    if "SPLIT" in words:
        names = sorted({match["SPLIT"] for match in matches})
        meaning = _splits(root, names)
        result.split = [meaning[match["SPLIT"]] for match in matches]
        renamed = [f"{name} is taken for {meaning[name]}" for name in names if name != meaning[name]]
        notes += [", ".join(renamed)] if renamed else []
    return result


def folder(root):
    """A data folder as a Path. UserError if it is none; an archive is said to be one."""
    root = Path(root)
    if root.is_dir():
        return root
    if not root.exists():
        raise UserError(f"no such folder: {root}")
    if image_files.content(root) == "zip" or root.suffix.lower() in ARCHIVES:
        raise UserError(f"{root} is an archive, not a folder", "Unpack it, and give the folder with --root.")
    hint = "Give the folder with --root."
    if root.suffix.lower() in (".csv", ".tsv", ".tab"):
        hint = f"A table is read with --data csv {_root(root)}"
    if root.suffix.lower() == ".npz":
        hint = f"A MedMNIST file is read with --data medmnist {_root(root)}"
    raise UserError(f"{root} is a file, not a folder", hint)


def _root(path):
    """The option --root for a command line."""
    return f'--root "{path}"' if " " in str(path) else f"--root {path}"


def _words(pattern):
    words = [word for word in str(pattern).replace("\\", "/").split("/") if word]
    twice = [word for word in WORDS[:3] if words.count(word) > 1]
    if "CLASS" not in words or twice:
        raise UserError(f"layout={pattern} {f'has {twice[0]} twice' if twice else 'has no CLASS'}",
                        "A layout is the meaning of folders from above, such as SPLIT/CLASS, CLASS/GROUP, ANY/CLASS.")
    return words


def _match(words, part):
    """{word: folder} of an image's parts; None if it does not lie in such folders."""
    if len(part) <= len(words) or any(word not in WORDS and word != name for word, name in zip(words, part)):
        return None
    return dict(zip(words, part))


def _copies(root, parts):
    """Top folders that hold all their neighbours once more, as archives that were packed twice do."""
    tops = {part[0] for part in parts if len(part) > 1}
    copies = []
    for top in sorted(tops):
        neighbours = tops - {top} - set(copies)
        below = {part[1] for part in parts if part[0] == top and len(part) > 2}
        deeper = {name for part in parts if part[0] == top for name in part[2:-1]}
        if len(neighbours) > 1 and neighbours <= deeper:
            raise UserError(f"{root} has {listing(sorted(neighbours))}, and deep in {top} there are folders of the "
                            "same names", f"If {top} is a copy or another part of the set, move it elsewhere; if it is "
                            "a class: --data folder,layout=CLASS")
        if len(neighbours) < 2 or not neighbours <= below:
            continue
        inner = {part[1:] for part in parts if part[0] == top}
        outer = {part for part in parts if part[0] in neighbours}
        if inner != outer or not all(same_content([root.joinpath(*part), root.joinpath(top, *part)]) for part in outer):
            raise UserError(f"{root} has {listing(sorted(neighbours))}, and {top} in it has folders of the same names "
                            f"with other images", f"Use one of the two: {_root(root / top)} or, after {top} is moved "
                            f"elsewhere, {_root(root)}")
        copies.append(top)
    return copies


def _below(parts):
    """{top folder: the set of folders directly below it, "" for an image directly in it}."""
    result = defaultdict(set)
    for part in parts:
        if len(part) > 1:
            result[part[0]].add(part[1] if len(part) > 2 else "")
    return result


def _detect(root, parts, testing):
    """The meaning of the levels of folders, such as ("SPLIT", "CLASS")."""
    below = _below(parts)
    if not below:
        raise _no_folders(root, len(parts))
    tops = sorted(below)
    if len(tops) == 1 and "" not in below[tops[0]] and not split_of(tops[0]):
        raise _wrapped(root, parts, testing)
    splits = [name for name in tops if split_of(name)]
    deep = [name for name in splits if "" not in below[name]]
    if deep and len(splits) < len(tops):
        others = [name for name in tops if name not in splits]
        inside = set().union(*(below[name] for name in deep))
        alike = [name for name in others if below[name] & inside - {""} or _is_like_a_split(name)]
        free = [split for split in NAMES if split not in map(split_of, splits)]
        rename = f"If {alike[0]} is a split, rename it to {' or '.join(free)}. " if alike and free else ""
        raise UserError(f"{root} has {listing(splits)}, which hold folders, and beside them {listing(others)}",
                        f"{rename}If {others[0]} is no part of the set, move it elsewhere; if all of these are "
                        "classes: --data folder,layout=CLASS")
    if deep and len(deep) < len(splits):
        flat = sorted(set(splits) - set(deep))
        raise UserError(f"{root}: {listing(deep)} hold class folders, and {listing(flat)} images",
                        "Put the images of each split into folders named after their classes.")
    if deep:
        return _inside_splits(root, parts, splits, below, testing)
    if splits:
        raise UserError(f"{root}: is {listing(splits)} a split or a class? It holds images and no class folders",
                        f"If it is a class: --data folder,layout=CLASS. {_table_hint(root)}")
    return _classes(root, tops, below)


def _inside_splits(root, parts, splits, below, testing):
    _splits(root, splits)
    meanings = {split_of(name) for name in splits}
    if len(splits) == 1 and not testing:
        raise UserError(f"{root} has one split, {splits[0]}", f"To have it split here, give {_root(root / splits[0])}")
    if "test" not in meanings and not testing:
        raise UserError(f"{root} has {listing(splits)} and no test images",
                        "Rename the validation folder to test: a validation split is then cut from train.")
    classes = set().union(*(below[name] for name in splits))
    if len(classes) == 1:  # train/images/nevus
        inner = sorted({part[2] for part in parts if len(part) > 3})
        if len(inner) > 1:
            raise UserError(f"{root}: in {listing(splits)} there is one folder, {min(classes)}, and in it "
                            f"{listing(inner)}",
                            f"If these are the classes: --data folder,layout=SPLIT/{min(classes)}/CLASS")
    _check_no_class(root, sorted(classes), "SPLIT/")
    return ["SPLIT", "CLASS"]


def _classes(root, tops, below):
    """The layout of top folders that are no splits."""
    inner = [below[name] - {""} for name in tops]
    shared = {name for names in inner for name in names if sum(name in others for others in inner) > 1}
    if len(tops) > 1 and not any("" in below[name] for name in tops) and all(
            2 * len(names & shared) >= len(names) for names in inner):
        if all(split_of(name) for name in shared):
            return ["CLASS", "SPLIT"]
        same = listing(sorted(shared))
        masks = [name for name in sorted(shared) if NO_CLASS.fullmatch(name)]
        only = f"; of their folders only {masks[0]}: layout=CLASS/{masks[0]}" if masks else ""
        split = "lower" if any(map(_is_like_a_split, shared)) else "upper"
        raise UserError(f"{root}: are {listing(tops)} the classes, or {same}, which lie in several of them?",
                        f"If the {split} ones are splits, rename them to {', '.join(NAMES)}. If the upper ones are the "
                        f"classes: --data folder,layout=CLASS{only}. If the lower ones are: "
                        "layout=ANY/CLASS, or layout=GROUP/CLASS if each upper folder is a patient.")
    deep = [name for name in tops if "" not in below[name] and len(below[name]) > 1]
    if len(deep) == 1 < len(tops) and all(below[name] == {""} for name in tops if name != deep[0]):
        raise UserError(f"{root}: {deep[0]} holds the folders {listing(sorted(below[deep[0]]))}, and beside it "
                        f"{listing(name for name in tops if name != deep[0])} hold images: which are the classes?",
                        f"If the inner ones are: {_root(root / deep[0])}; if the outer ones are: "
                        "--data folder,layout=CLASS")
    _check_no_class(root, tops, "")
    like_splits = list(filter(_is_like_a_split, tops))
    if len(like_splits) > 1:
        raise UserError(f"{root}: {listing(like_splits)} look like splits of a set and not like classes",
                        f"Rename them to {', '.join(NAMES)}, with class folders in each; if they are classes: "
                        "--data folder,layout=CLASS")
    return ["CLASS"]


def _is_like_a_split(name):
    """Whether a word of a folder's name is one of splits."""
    return bool(LIKE_SPLITS & set(re.split(r"[\W_]+", name.lower())))


def _check_no_class(root, names, before):
    odd = [name for name in names if NO_CLASS.fullmatch(name)]
    if odd:
        raise UserError(f"{root}: {listing(odd)} is a name of parts of a set, and hardly of a class (found: "
                        f"{listing(names)})", f"If it is a class: --data folder,layout={before}CLASS. "
                        f"{_table_hint(root)}")


def _splits(root, names):
    """{folder: split} of the folders of splits. UserError if two stand for one split."""
    meaning = {name: split_of(name) for name in names}
    unknown = [name for name in names if meaning[name] is None]
    if unknown:
        raise UserError(f"{root}: {listing(unknown)} is no usual name of a split",
                        f"Rename it to {', '.join(NAMES[:2])} or {NAMES[2]}.")
    for split in NAMES:
        same = [name for name in names if meaning[name] == split]
        if len(same) > 1:
            raise UserError(f"{root} has {' and '.join(same)}, which both mean {split}",
                            "Put them together, or rename one of them.")
    return meaning


def _no_folders(root, count):
    return UserError(f"{root} has {count} images and no class folders", _table_hint(root))


def _table_hint(root):
    tables = sorted((path for pattern in ("*.csv", "*/*.csv") for path in root.glob(pattern)),
                    key=lambda path: ("train" not in path.name.lower(), path))
    if tables:
        place = "" if tables[0].parent == root else f",folder={root}"
        return f"If {tables[0].name} has the classes: --data csv{place} {_root(tables[0])}"
    return "Put the images of each class into a folder named after it."


def _wrapped(root, parts, testing):
    """The UserError for a folder that is the only one, and holds no images itself; the hint has the right root."""
    inside, below = root, [part for part in parts if len(part) > 1]
    while len({part[0] for part in below}) == 1 and all(len(part) > 2 for part in below):
        inside, below = inside / below[0][0], [part[1:] for part in below]
    names = sorted({part[0] for part in below if len(part) > 1})
    if len(names) == 1:  # one class folder
        inside_folder = f"with the one class folder {names[0]} in it"
    else:
        inside_folder = f"and {listing(names) or f'{len(below)} images'} lie in it"
    return UserError(f"{root} has one folder, {inside.relative_to(root)}, {inside_folder}",
                     f"Give {_root(inside)}"
                     + "; if the folder is itself a class: --data folder,layout=CLASS" * testing)


def _check_classes(root, words, found, testing, others, copies):
    """UserError for one class only, folders without images beside the class folders, and names that differ in case.

    found: the Layout. others, copies: the other files, and the top folders that are left out.
    """
    names = sorted(set(found.classes))
    if len(names) < 2 and not testing:
        raise UserError(f"{root} has 1 class folder with images, {names[0]}, and at least two are needed",
                        _table_hint(root))
    level = list(words).index("CLASS")
    parents = {root.joinpath(*name.split("/")[:level]) for name in found.ids}
    empty = sorted({entry.name for parent in parents for entry in _folders(parent)} - {*names, *copies})
    if empty and (level == 0 or "ANY" not in words[:level]):
        inside = {path: what for path, what in others.items() if set(path.parts) & set(empty)}
        raise UserError(f"no images in class folder {listing(empty)}"
                        + (f": {image_files.left_out(inside)}" if inside else ""),
                        "Move it out of the way if it is no class; files of other formats are converted first.")
    by_case = defaultdict(list)
    for name in names:
        by_case[unicodedata.normalize("NFC", name).casefold().strip()].append(name)
    twins = next((twins for twins in by_case.values() if len(twins) > 1), None)
    if twins:
        raise UserError(f"{root}: the classes {' and '.join(twins)} differ only in capitals, spaces or the encoding of "
                        "accents",
                        "Put them into one folder, or rename one.")


def _folders(path):
    """The folders in a folder, without hidden ones. UserError as image_files.find()."""
    try:
        entries = [entry for entry in path.iterdir() if not image_files.is_hidden(entry.name)]
    except OSError as error:
        raise image_files.unlisted(path, error) from error
    for entry in entries:
        image_files.check_link(entry)
    return [entry for entry in entries if entry.is_dir()]
