"""Classify images with an exported model. Needs numpy, pillow and onnxruntime; no torch.

    python predict.py model.int8.onnx lesion.jpg more_lesions/
    python predict.py model.int8.onnx lesions/ --format csv > answers.csv
    python predict.py model.int8.onnx --check          # does this machine compute what it should?

Alone on another machine it wants `kd/__init__.py`, `errors.py`, `image.py`, `metrics.py`, `onnx_model.py` beside it; `export.py --bundle`
lays that out.
"""

import csv
import itertools
import json
import sys
from pathlib import Path

from kd import errors, image, onnx_model
from kd.errors import UserError


def main(argv=None):
    """Prints an answer an image; returns how many could not be read."""
    options = parse(argv)
    model = onnx_model.Model(options.model, options.threads)
    if options.check:
        print(onnx_model.check(model, Path(options.check)))
        return 0
    files = find(options.images)
    show = {"table": table, "csv": write_csv, "jsonl": write_jsonl}[options.format]
    bad = 0

    def counted():
        nonlocal bad
        for row in answers(model, files, options.batch):
            bad += "error" in row
            yield row

    show(counted(), model)
    if bad:
        print(f"note: {bad} of {len(files)} files could not be read", file=sys.stderr)
    if bad == len(files):
        raise UserError("not one image could be read")
    return bad


def parse(argv):
    parser = errors.Parser(prog="predict.py", description="Classify images with a model that export.py wrote. "
                           "Research software, not a medical device.")
    parser.add_argument("model", metavar="MODEL.onnx", help="an exported model")
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER", help="image files, and folders of them")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table", help="of what is printed")
    parser.add_argument("--batch", type=errors.positive, default=8, metavar="N", help="images at a time")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0: one a core")
    parser.add_argument("--check", nargs="?", const="", metavar="CHECK.npz", help="instead: hold the logits of the "
                        "images in this file against those computed here; default: check.npz beside the model")
    options = parser.parse_args(argv)
    if options.check is not None:
        options.check = options.check or str(Path(options.model).with_name("check.npz"))
    elif not options.images:
        raise UserError("no image named", "Give image files or folders after the model.")
    return options


def find(paths):
    """The files that `paths` name: files as they are, folders as the images in and below them."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += image.find(path)
        elif any(mark in path.name for mark in "*?") and not path.exists():  # a shell that expands no patterns
            files += sorted(path.parent.glob(path.name))
        else:
            files.append(path)
    if not files:
        raise UserError(f"no image at or below {errors.listing(paths)}", f"Images end in {' '.join(sorted(image.SUFFIXES))}.")
    return files


def answers(model, files, batch):
    """A dict for each file, in order: what it shows, or why it cannot be read."""
    files = iter(progress(files))
    while chunk := list(itertools.islice(files, batch)):
        rows, pixels = [], []
        for path in chunk:
            try:
                pixels.append(model.pixels(path))
                rows.append(None)
            except UserError as error:
                rows.append({"file": str(path), "error": error.message})
        good = iter(model.answers(pixels) if pixels else ())
        yield from (row or {"file": str(path), **next(good)} for path, row in zip(chunk, rows))


def progress(files):
    """With a bar on the terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return files
    return tqdm(files, "classifying", disable=None, delay=2, leave=False)


def table(rows, model):
    wide = len(model.class_names) <= 10
    names = model.class_names if wide else []
    called = any(point["kind"] == "sensitivity" for point in model.points)
    print("  ".join(["label".ljust(12), "confidence", *(name.rjust(6) for name in names), *["called"] * called, "file"]))
    for row in rows:
        if "error" in row:
            print(f"{'unreadable':12}  {row['error']}")
            continue
        cells = [(row["label"] or "abstains").ljust(12), f"{row['confidence']:10.3f}"]
        cells += [f"{row['probabilities'][name]:{max(6, len(name))}.3f}" for name in names]
        cells += [(" ".join(row["called"]) or "-").ljust(6)] * called
        print("  ".join([*cells, row["file"]]))
    print(legend(model))


def legend(model):
    """What the columns mean, from the thresholds in the file."""
    calibrated = "" if model.temperature is None else f", calibrated with temperature {model.temperature:.2f}"
    lines = [f"confidence: probability of the label{calibrated}"]
    point = model.point("abstention")
    if point and point["threshold"] is not None:
        lines.append(f"abstains: below the threshold for at most {point['promised']:.0%} errors on validation images")
    if model.point("sensitivity"):
        lines.append(f"called: classes above their threshold for sensitivity {model.point('sensitivity')['promised']:g} "
                     "on validation images")
    return "\n".join(lines)


def write_csv(rows, model):
    columns = ["file", "label", "confidence", "most_probable", "called", *(f"p_{name}" for name in model.class_names), "error"]
    writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if "probabilities" in row:
            row = {**row, "label": row["label"] or "", "called": " ".join(row["called"]),
                   **{f"p_{name}": p for name, p in row["probabilities"].items()}}
        writer.writerow({key: value for key, value in row.items() if key != "probabilities"})


def write_jsonl(rows, model):
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    errors.run(main)
