"""Classify images with an exported model. Needs numpy, pillow and onnxruntime; no torch (model.pte: executorch).

    python predict.py model.int8.onnx lesion.jpg more_lesions/
    python predict.py model.int8.onnx lesions/ --format csv > answers.csv
    python predict.py model.int8.onnx --watch microscope/ --format jsonl    # as they are written, until Ctrl-C
    python predict.py model.int8.onnx --check          # does this machine compute the right logits?

On a machine without the project it needs `__init__.py`, `errors.py`, `files.py`, `image.py`, `image_files.py`,
`metrics.py` and `onnx_model.py` of kd/ in a folder kd/ beside it, and for --check `machine.py`; `export.py --bundle`
writes such a folder. Programs of your own import kd.onnx_model.Model, which gives the same answers.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path

from kd import errors
from kd.errors import UserError

with errors.missing_packages():
    from kd import image_files, onnx_model
    from kd.files import csv_line, open_regular

POLL = 0.5     # seconds between two looks into a watched folder; what does not change in between is written whole
PATIENCE = 10  # seconds for which a file that cannot be read may still be half-written, since it last changed
TAIL = 4096    # bytes at the end of a file that are zeros where it has its full size before it has its content


def main(argv=None):
    """Print an answer for each image; returns how many images could not be read."""
    options = parse(argv)
    if options.check:
        print(onnx_model.check(options.model, Path(options.check), options.threads))
        return 0
    model = onnx_model.Model(options.model, options.threads)
    there = scan(options.watch) if options.watch else {}
    files = find(options.images) if options.images else []
    rows = answers(model, files, options.batch)
    if options.watch:
        there.update((path, state(path)) for path in files)
        rows = itertools.chain(rows, watch(model, options.watch, options.batch, there))
        print(f"watching {options.watch} for new images; Ctrl-C ends it", file=sys.stderr)
        if options.format == "table":
            print(model.explain())
    problems = Problems()
    try:
        {"table": print_table, "csv": print_csv, "jsonl": print_jsonl}[options.format](problems.noted(rows), model)
    except KeyboardInterrupt:
        if not options.watch:  # nothing else ends a watch
            raise
    for line in problems.lines(model):
        note(line)
    if files and problems.unreadable == problems.count:
        raise UserError("not one image could be read", IN_8_BITS * (len(problems.of["deep"]) == problems.count))
    return problems.unreadable


def note(text):
    """Print a line to the standard error, with the control characters in the names of files as escapes."""
    print(f"note: {errors.printable(text)}".replace("\n", "\\n"), file=sys.stderr)


IN_8_BITS = "Save them in 8 bits, with the scale of the images that the model was trained on."


class Problems:
    """What was odd in the rows so far: files without an answer, few pixels, values that do not fit the range."""

    def __init__(self):
        self.count = 0  # of rows
        self.of = {"unreadable": [], "deep": [], "beyond": [], "narrow": [], "small": []}  # rows by problem

    def noted(self, rows):
        """Yield the rows of answers() or watch(), and take note of them."""
        for row in rows:
            self.count += 1
            if row["problem"]:
                self.of[row["problem"]].append({key: row[key] for key in ("file", "values") if key in row})
            yield row

    @property
    def unreadable(self):
        """How many files had no answer."""
        return len(self.of["unreadable"]) + len(self.of["deep"])

    def lines(self, model):
        """Sentences on these files."""
        def some(what, one, more):
            return f"{len(self.of[what])} of {self.count} files {one if len(self.of[what]) == 1 else more}"

        def listed(what):
            return errors.listing([row["file"] for row in self.of[what]])

        lines = []
        if self.of["unreadable"]:
            lines.append(some("unreadable", "could not be read", "could not be read"))
        if self.of["deep"]:
            lines.append(f"{some('deep', 'has', 'have')} more than 8 bits, and the model was trained on images of 8 "
                         f"bits: {listed('deep')}. {IN_8_BITS}")
        for kind, what in (("beyond", "go beyond"), ("narrow", "lie in a 16th of")):
            if self.of[kind]:
                lows, highs = zip(*(row["values"] for row in self.of[kind]))
                lines.append(
                    f"the values of {some(kind, what, what)} {model.range[0]:,.6g}..{model.range[1]:,.6g}, the scale "
                    f"of the images that the model was trained on: they go from {min(lows):,.6g} to {max(highs):,.6g} "
                    f"({listed(kind)}). If they are of another scale, their answers are worth nothing: save them with "
                    "that of the training images.")
        if self.of["small"]:
            lines.append(f"{some('small', 'is', 'are')} less than half as large as the {model.size} px that the model "
                         f"takes: {listed('small')}. Where the training images are larger, such "
                         "answers say little.")
        return lines


def parse(argv):
    """The options of the command line, checked."""
    parser = errors.Parser(prog="predict.py", description="Classify images with a model that export.py wrote. "
                           "Research software, not a medical device.")
    parser.add_argument("model", metavar="MODEL.onnx|MODEL.pte", help="an exported model")
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER", help="image files, and folders with image files")
    parser.add_argument("--watch", metavar="FOLDER", help="then classify each image that is newly written into this "
                        "folder or one below, once it is complete, until Ctrl-C; one that is written anew is new")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table",  # for a reader at the terminal
                        help="format of the output, which is written as the answers come; jsonl: a JSON object in each "
                        "line")
    parser.add_argument("--batch", type=errors.images, default=onnx_model.BATCH,
                        metavar="N", help="images in memory at a time")
    parser.add_argument("--threads", type=errors.whole(0, 1024), default=0, metavar="N",
                        help="threads of the CPU; 0: one per core")
    parser.add_argument("--check", nargs="?", const="", metavar="CHECK.npz", help="instead of classifying: compare the "
                        "files with SHA256SUMS, and the logits in this file with those that this machine computes; "
                        "default: check.npz beside the model")
    options = parser.parse_args(argv)
    if options.check is not None:
        options.check = options.check or str(Path(options.model).parent / "check.npz")
    elif not options.images and not options.watch:
        raise UserError("no image named", "Give image files or folders after the model.")
    return options


def find(paths):
    """The files to classify: the files in `paths`, and the images in and below the folders in `paths`."""
    files, others = [], {}
    for path in map(Path, paths):
        if os.path.isdir(path):
            images, left_out = image_files.find(path)
            files, others = files + images, {**others, **left_out}
        elif any(mark in path.name for mark in "*?") and not os.path.exists(path):  # Windows' shell expands no patterns
            files += sorted(path.parent.glob(path.name))
        else:
            files.append(path)
    if not files:
        raise UserError(f"no image at or below {errors.listing(paths)}"
                        + (f": {image_files.left_out(others)}" if others else ""),
                        f"Images end in {' '.join(sorted(image_files.SUFFIXES))}.")
    if others:
        note(image_files.left_out(others))
    return files


def answers(model, files, batch):
    """Yield a dict for each file, in order: "file", and the answer of Model.predict_all()."""
    asked = errors.progress(files, "classifying", leave=False)
    for file, answer in zip(files, model.predict_all(asked, batch)):
        yield {"file": str(file), **answer}


# ---- a folder into which another program writes images

def watch(model, folder, batch, there):
    """Yield rows as answers() for the images that are written into a folder, each once it is complete, for ever.

    there: {path: state} of the files that are not new. A file is complete when its state is the same in two looks, it
    can be read and does not end in zeros, or after PATIENCE seconds. What is no image is noted, once of each kind.
    UserError when the folder is gone.
    """
    since, noted = {}, set()  # since: of files that are not answered, {path: (state, when it was first seen so)}
    pause = POLL
    while True:
        time.sleep(pause)
        now = time.monotonic()
        files = scan(folder, there, noted)
        pause = max(POLL, 9 * (time.monotonic() - now))  # so that looking at many files takes a tenth of a core at most
        there = {path: known for path, known in there.items() if path in files}
        since = {path: since[path] if path in since and since[path][0] == found else (found, now)
                 for path, found in files.items() if there.get(path) != found}
        images = []
        for path, (_, first) in since.items():
            is_old = now - first >= PATIENCE
            if first < now and image_files.is_image(path):
                images += [path] * (is_old or not ends_in_zeros(path))
            elif is_old:
                there[path], kind = files[path], image_files.other(path)
                if kind not in noted:
                    noted.add(kind)
                    note(f"{path} is not read as an image, and no further file of its kind is: {kind}")
        for path, answer in zip(images, model.predict_all(images, batch)):
            found, has_error = state(path), "error" in answer
            if found is None and has_error:
                note(f"{path} was gone before it was read")
            elif found in (files[path], None) and not (has_error and now - since[path][1] < PATIENCE):
                there[path] = files[path]
                yield {"file": str(path), **answer}  # else it was written while it was read, or may be half-written


def scan(folder, there=(), noted=None):
    """{path: state} of the files in and below a folder but hidden ones; links to folders are not followed.

    there: {path: state} of files that keep their state where they cannot be seen now, as on a network that fails for a
    moment. noted: a set of what could not be seen so far; what else cannot be is noted, and added to it. UserError
    where the folder itself cannot be listed.
    """
    def leave_out(place, what, reason):
        if noted is not None and (place, reason) not in noted:
            noted.add((place, reason))
            note(f"{what} not seen: {reason}")

    def cannot_list(error):
        reason = (error.strerror or str(error)).lower()
        if Path(error.filename) == Path(folder):
            raise UserError(f"cannot watch {folder}: {reason}", "Make that folder, or name another with --watch, and "
                            "give the same command again.") from None
        if os.path.exists(error.filename):
            found.update((path, there[path]) for path in there if Path(error.filename) in path.parents)
            leave_out(error.filename, f"images in {error.filename} are", reason)

    found = {}
    for top, folders, names in os.walk(folder, onerror=cannot_list):
        folders[:] = [name for name in folders if not image_files.is_hidden(name)]
        for path in (os.path.join(top, name) for name in folders):
            if os.path.islink(path):
                leave_out(path, f"images in {path} are", "it is a link to a folder")
        for path in (Path(top, name) for name in names if not image_files.is_hidden(name)):
            known = state(path)
            if known:
                found[path] = known
            elif reason := unseen(path):
                if path in there:
                    found[path] = there[path]
                leave_out(top, f"{path}, and what is like it in its folder, is", reason)
    return found


def unseen(path):
    """Why a file that is listed has no state; "" where it is gone by now."""
    try:
        os.stat(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError) or os.path.islink(path):
            return (error.strerror or str(error)).lower()
    return ""


def ends_in_zeros(path):
    """Whether the last TAIL bytes of a file are zeros, as where a program takes the room for a file and then writes."""
    try:
        with open_regular(path, sys.maxsize) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return not file.read(TAIL).strip(b"\0")
    except (UserError, OSError):  # which the reader of images says
        return False


def state(path):
    """(bytes, time of the last change) of a file, which tell whether it was written since; None where it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


# ---- formats

def print_table(rows, model):
    """Print the rows of answers() as a table, with a column for each class if there are at most ten."""
    names = model.class_names if len(model.class_names) <= 10 else []  # more columns do not fit on a line
    has_called = any(point["kind"] == "sensitivity" for point in model.points)
    header = ["label".ljust(12), "confidence", *(name.rjust(6) for name in names)]
    print("  ".join([*header, *["called"] * has_called, "file"]), flush=True)
    for row in rows:
        if "error" in row:
            print(f"{'unreadable':12}  {row['error']}", flush=True)
            continue
        label = (row["label"] or "abstains") + "*" * bool(row["caution"])
        cells = [label.ljust(12), f"{row['confidence']:10.3f}"]
        cells += [f"{row['probabilities'][name]:{max(6, len(name))}.3f}" for name in names]
        cells += [(" ".join(row["called"]) or "-").ljust(6)] * has_called
        print("  ".join([*cells, row["file"].replace("\n", "\\n")]), flush=True)  # a name must not look like a row
    print(model.explain())


def print_csv(rows, model):
    """Print the rows of answers() as CSV, with a column p_CLASS for each class."""
    probabilities = [f"p_{name}" for name in model.class_names]
    columns = ["file", "label", "confidence", "most_probable", "called", "abstains", *probabilities, "error", "caution"]
    print(csv_line(columns), end="", flush=True)
    for row in rows:
        row = {**row, "called": " ".join(row["called"]), **{f"p_{name}": p for name, p in row["probabilities"].items()}}
        print(csv_line([row.get(column) for column in columns]), end="", flush=True)


def print_jsonl(rows, model):
    """Print the rows of answers() as one JSON object in each line."""
    for row in rows:
        print(json.dumps(row), flush=True)  # in ASCII: the escapes of JSON are not those of a terminal


if __name__ == "__main__":
    errors.run(main)
