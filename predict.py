"""Classify images with an exported model. Needs numpy, pillow and onnxruntime; no torch (model.pte: executorch).

    python predict.py model.int8.onnx lesion.jpg more_lesions/
    python predict.py model.int8.onnx lesions/ --format csv > answers.csv
    python predict.py model.int8.onnx --check          # does this machine compute the right logits?

On a machine without the project it needs `__init__.py`, `errors.py`, `files.py`, `image.py`, `image_files.py`,
`metrics.py` and `onnx_model.py` of kd/ in a folder kd/ beside it, and for --check `machine.py`; `export.py --bundle`
writes such a folder.
"""

import itertools
import json
import os
import sys
from pathlib import Path

from kd import errors, image, image_files, onnx_model
from kd.errors import UserError
from kd.files import csv_line


def main(argv=None):
    """Print an answer for each image; returns how many images could not be read."""
    options = parse(argv)
    if options.check:
        print(onnx_model.check(options.model, Path(options.check), options.threads))
        return 0
    model = onnx_model.Model(options.model, options.threads)
    files = find(options.images)
    printers = {"table": print_table, "csv": print_csv, "jsonl": print_jsonl}
    odd = {"unreadable": [], "depth": [], "beyond": [], "narrow": []}
    printers[options.format](answers(model, files, options.batch, odd), model)
    for note in notes(odd, model, len(files)):
        print(f"note: {note}", file=sys.stderr)
    unreadable = len(odd["unreadable"]) + len(odd["depth"])
    if unreadable == len(files):
        raise UserError("not one image could be read", IN_8_BITS * (len(odd["depth"]) == unreadable))
    return unreadable


IN_8_BITS = "Save them in 8 bits, with the scale of the images that the model was trained on."


def notes(odd, model, count):
    """The sentences on files that could not be read, or whose values do not fit the model's range.

    odd: as answers() fills it. count: of all files.
    """
    def some(what, one, more):
        return f"{len(odd[what])} of {count} files {one if len(odd[what]) == 1 else more}"

    lines = []
    if odd["unreadable"]:
        lines.append(f"{some('unreadable', 'could not be read', 'could not be read')}")
    if odd["depth"]:
        lines.append(f"{some('depth', 'has', 'have')} more than 8 bits, and the model was trained on images of 8 bits: "
                     f"{errors.listing(odd['depth'])}. {IN_8_BITS}")
    for kind, what in (("beyond", "go beyond"), ("narrow", "lie in a 16th of")):
        if odd[kind]:
            paths, lows, highs = zip(*odd[kind])
            lines.append(
                f"the values of {some(kind, what, what)} {model.range[0]:,.6g}..{model.range[1]:,.6g}, the scale of "
                f"the images that the model was trained on: they go from {min(lows):,.6g} to {max(highs):,.6g} "
                f"({errors.listing(paths)}). If they are of another scale, their answers are worth nothing: save them "
                "with that of the training images.")
    return lines


def parse(argv):
    """The options of the command line, checked."""
    parser = errors.Parser(prog="predict.py", description="Classify images with a model that export.py wrote. "
                           "Research software, not a medical device.")
    parser.add_argument("model", metavar="MODEL.onnx|MODEL.pte", help="an exported model")
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER", help="image files, and folders with image files")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table",  # for a reader at the terminal
                        help="format of the output; jsonl: a JSON object in each line")
    parser.add_argument("--batch", type=errors.images, default=8,  # fits the little memory of an edge box
                        metavar="N", help="images in memory at a time")
    parser.add_argument("--threads", type=errors.whole(0, 1024), default=0, metavar="N",
                        help="threads of the CPU; 0: one per core")
    parser.add_argument("--check", nargs="?", const="", metavar="CHECK.npz", help="instead of classifying: compare the "
                        "files with SHA256SUMS, and the logits in this file with those that this machine computes; "
                        "default: check.npz beside the model")
    options = parser.parse_args(argv)
    if options.check is not None:
        options.check = options.check or str(Path(options.model).parent / "check.npz")
    elif not options.images:
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
        print(f"note: {image_files.left_out(others)}", file=sys.stderr)
    return files


def answers(model, files, batch, odd):
    """Yield a dict for each file, in order: "file" with the answer of Model.answers(), or with "error".

    odd: {"unreadable", "depth", "beyond", "narrow": [...]}, to which files are added that cannot be read or have more
    bits than the model knows, and (file, least value, largest value) of those that do not fit its range.
    """
    files = iter(errors.progress(files, "classifying", leave=False))
    while chunk := list(itertools.islice(files, batch)):
        rows, pixels = [], []
        for path in chunk:
            row = {"file": str(path)}
            try:
                square, misfit = model.examined(path)
                pixels.append(square)
                if misfit:
                    odd[misfit[0]].append((row["file"], *misfit[1:]))
            except UserError as error:
                row["error"] = error.message
                odd["depth" if isinstance(error, image.OtherDepth) else "unreadable"].append(row["file"])
            rows.append(row)
        results = iter(model.answers(pixels) if pixels else ())
        for row in rows:
            yield row if "error" in row else {**row, **next(results)}


def print_table(rows, model):
    """Print the rows of answers() as a table, with a column for each class if there are at most ten."""
    names = model.class_names if len(model.class_names) <= 10 else []  # more columns do not fit on a line
    has_called = any(point["kind"] == "sensitivity" for point in model.points)
    header = ["label".ljust(12), "confidence", *(name.rjust(6) for name in names)]
    print("  ".join([*header, *["called"] * has_called, "file"]))
    for row in rows:
        if "error" in row:
            print(f"{'unreadable':12}  {row['error']}")
            continue
        cells = [(row["label"] or "abstains").ljust(12), f"{row['confidence']:10.3f}"]
        cells += [f"{row['probabilities'][name]:{max(6, len(name))}.3f}" for name in names]
        cells += [(" ".join(row["called"]) or "-").ljust(6)] * has_called
        print("  ".join([*cells, row["file"].replace("\n", "\\n")]))  # a name must not look like a further row
    print(legend(model))


def legend(model):
    """The meaning of the columns, with the thresholds in the file, as lines of text."""
    calibrated = "" if model.temperature is None else f", calibrated with temperature {model.temperature:.2f}"
    site = model.metadata["provenance"].get("site")  # whose cases the settings were fitted on, where it is another
    chosen_on = f"cases of {errors.printable(str(site))}" if site else "validation images"
    lines = [f"confidence: probability of the label{calibrated}"]
    abstention, sensitivity = model.point("abstention"), model.point("sensitivity")
    if abstention and abstention["threshold"] is not None:
        lines.append("abstains: the probability before calibration is below the threshold for at most "
                     f"{abstention['promised']:.0%} errors on {chosen_on}")
    elif abstention:
        lines.append(f"never abstains: on {chosen_on} no confidence left at most {abstention['promised']:.0%} errors")
    if sensitivity:
        promised = {point["class"]: f"{point['promised']:.2f}" for point in model.points
                    if point["kind"] == "sensitivity"}
        same = set(promised.values())
        text = same.pop() if len(same) == 1 else ", ".join(f"{name} {value}" for name, value in promised.items())
        lines.append(f"called: classes above their threshold, chosen on {chosen_on} for a sensitivity of {text}")
    return "\n".join(lines)


def print_csv(rows, model):
    """Print the rows of answers() as CSV, with a column p_CLASS for each class."""
    probabilities = [f"p_{name}" for name in model.class_names]
    columns = ["file", "label", "confidence", "most_probable", "called", *probabilities, "error"]
    print(csv_line(columns), end="")
    for row in rows:
        if "probabilities" in row:
            row = {**row, "label": row["label"] or "", "called": " ".join(row["called"]),
                   **{f"p_{name}": p for name, p in row["probabilities"].items()}}
        print(csv_line([row.get(column) for column in columns]), end="")


def print_jsonl(rows, model):
    """Print the rows of answers() as one JSON object in each line."""
    for row in rows:
        print(json.dumps(row))  # in ASCII: the escapes of JSON are not those of a terminal


if __name__ == "__main__":
    errors.run(main)
