"""Predictions -> metrics with confidence intervals: tables, and metrics.json.

    python evaluate.py runs/lesions_48px                  every run below, one line a run
    python evaluate.py runs/lesions_48px/mobilenetv2_kd/seed_0
    python evaluate.py theirs.npz --groups lesions.csv --out results
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kd import bootstrap, errors, metrics, runs
from kd.errors import UserError, listing

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
          "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC"}
SHORT = ("accuracy", "macro_f1", "balanced_accuracy")


def main(argv=None):
    options = parse(argv)
    files = [Path(path) for path in options.paths if Path(path).suffix == ".npz"]
    folders = [run for path in options.paths if Path(path).suffix != ".npz" for run in runs.find(path)]
    folders = list({run.resolve(): run for run in folders}.values())
    if options.groups and folders:
        raise UserError("--groups is for a predictions file; a run folder has groups of its own")
    if options.out and (folders or len(files) > 1):
        raise UserError("--out takes the metrics of one predictions file; "
                        "a run keeps its metrics.json in its own folder")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out {options.out} is a file; it names a folder")
    results = {}
    for path in tqdm(folders + files, "evaluating", disable=None, delay=2, leave=False):
        results[path] = (evaluate_file(path, options.groups, options.replicates) if path in files
                         else evaluate_run(path, options.replicates))
    if len(results) > 1:
        print_summary(results)
        return
    (path, result), = results.items()
    print_tables(path, result)
    where = Path(options.out or path) / "metrics.json"
    if options.out:
        runs.write_json(where, result)
    if options.out or path in folders:
        print(f"\nwritten: {where}")
    if argv is None and path in folders:  # a script that calls this one has its own next step
        study = path.parent.parent if len(path.parts) > 2 else path.resolve().parent.parent
        print(f"next: python report.py {study}")


def parse(argv):
    parser = errors.Parser(prog="evaluate.py", description="Metrics of finished runs, or of another "
                           "system's predictions, with 95% intervals by resampling whole groups.")
    parser.add_argument("paths", nargs="+", metavar="RUN|TEST.npz",
                        help="a run's folder or any folder above; or a file with labels (or y_true), "
                             "logits (or y_prob), and optionally ids, groups, class_names")
    parser.add_argument("--groups", metavar="FILE.csv",
                        help="columns id,group: which images of the predictions file belong together")
    parser.add_argument("--out", metavar="DIR", help="where metrics.json of a predictions file goes")
    parser.add_argument("--replicates", type=int, metavar="N", default=bootstrap.REPLICATES,
                        help="bootstrap replicates behind each interval")
    options = parser.parse_args(argv)
    if options.replicates < 100:
        raise UserError(f"--replicates {options.replicates} is too few for the tails of a 95% interval",
                        "Use 100 or more; 2000 is usual.")
    return options


@dataclass
class Predictions:
    """labels [n] int64, probabilities [n, C] float64, ids and groups [n] str (None: not known)."""

    labels: np.ndarray
    probabilities: np.ndarray
    ids: np.ndarray
    groups: np.ndarray
    class_names: list
    note: str = ""

    @property
    def clusters(self):
        """What is resampled: groups, else each image for itself."""
        if self.groups is not None:
            return self.groups
        return self.ids if self.ids is not None else np.arange(len(self.labels))

    def size(self):
        support = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return {"images": len(self.labels), "groups": len(np.unique(self.clusters)),
                "support": dict(zip(self.class_names, support))}


def evaluate_run(path, replicates=bootstrap.REPLICATES):
    """Evaluate a seed's folder on validation and test, write its metrics.json, return the same.

    Raises UserError, before any metric, on faulty predictions and on an image or group that the
    test split shares with validation or training.
    """
    path = Path(path)
    needed = ("ids", "labels", "logits", "groups", "class_names")
    val, test = (read_predictions(path / "predictions" / f"{split}.npz", needed)
                 for split in ("val", "test"))
    if val.class_names != test.class_names:
        raise UserError(f"{path}: val.npz and test.npz have different class names")
    refuse_leaks(path, val, test)
    result = evaluate(test, np.bincount(val.labels).argmax(), replicates)
    result["split"] = {"val": val.size(), **result["split"]}
    result["val"] = bootstrap.measure(val.labels, val.probabilities, val.clusters,
                                      val.class_names, replicates)
    runs.write_json(path / "metrics.json", result)
    return result


def evaluate_file(path, groups=None, replicates=bootstrap.REPLICATES):
    """Evaluate a predictions file of any system. Nothing is written."""
    test = read_predictions(path)
    if groups:
        test.groups = read_groups(groups, path, test.ids)
    result = evaluate(test, np.bincount(test.labels).argmax(), replicates)
    if test.note:
        result["conventions"]["note"] = test.note
    return result


def evaluate(test, answer, replicates):
    """The metrics of one test set beside those of always answering class `answer`."""
    always = bootstrap.constant(test.labels, answer, test.clusters, len(test.class_names), replicates)
    confusion = metrics.confusion(test.labels, test.probabilities.argmax(1), len(test.class_names))
    return {
        "conventions": {"level": bootstrap.LEVEL, "interval": "percentile", "replicates": replicates,
                        "clusters": "image" if test.groups is None else "group",
                        "n_clusters": test.size()["groups"], "seed": bootstrap.SEED,
                        "majority_class": test.class_names[answer]},
        "class_names": test.class_names,
        "split": {"test": test.size()},
        "majority": {name: always[name] for name in SHORT},
        "test": bootstrap.measure(test.labels, test.probabilities, test.clusters, test.class_names,
                                  replicates),
        "confusion": confusion.tolist(),
    }


def refuse_leaks(path, val, test):
    """An image or a group in two splits is an error: every number after it would flatter."""
    members = {"validation": (val.ids, val.groups), "test": (test.ids, test.groups)}
    if (path / "split.csv").is_file():
        train = [row for row in runs.read_csv(path / "split.csv", ("id", "group", "split"))
                 if row["split"] == "train"]
        members["training"] = [row["id"] for row in train], [row["group"] for row in train]
    for (a, ours), (b, theirs) in itertools.combinations(members.items(), 2):
        for what, one, other in zip(("images", "groups"), ours, theirs):
            shared = set() if one is None or other is None else sorted(set(one) & set(other) - {""})
            if shared:
                raise UserError(
                    f"{path}: {a} and {b} share {len(shared)} {what}: {listing(shared)}",
                    "Metrics of such a split would flatter. Split whole groups and train again.")


def read_predictions(path, required=()):
    """Predictions of a .npz file, checked; each thing that is wrong with it is a UserError."""
    arrays = runs.read_npz(path, required)

    def fail(message, hint=""):
        raise UserError(f"{path}: {message}", hint)

    def pick(*names):
        found = [name for name in names if name in arrays]
        if not found:
            fail(f"it has neither {' nor '.join(names)}", f"It has: {', '.join(arrays) or 'nothing'}.")
        return found[0], arrays[found[0]]

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
    labels, note = labels.astype(np.int64), ""
    if name == "logits":
        probabilities = metrics.softmax(scores)
    else:
        probabilities, note = distributions(scores, fail)

    texts = {key: strings(arrays[key]) for key in ("ids", "groups", "class_names") if key in arrays}
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
    return Predictions(labels, probabilities, texts.get("ids"), groups, names, note)


def distributions(scores, fail):
    """Rows that sum to 1, and what was done for it; logits under a wrong name are refused."""
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
    return array.astype(str) if array.dtype.kind != "S" else np.char.decode(array, "utf-8", "replace")


def read_groups(file, path, ids):
    """The group of each id, from a CSV with columns id,group."""
    if ids is None:
        raise UserError(f"{path} has no ids, which --groups needs to know its images by")
    rows = runs.read_csv(file, ("id", "group"))
    group = {row["id"]: row["group"] for row in rows}
    twice = {row["id"] for row in rows if row["group"] != group[row["id"]]}
    if twice:
        raise UserError(f"{file} gives {len(twice)} images two groups: {listing(sorted(twice))}")
    ids = ids.tolist()
    missing = [i for i in ids if not group.get(i)]
    if missing:
        raise UserError(f"{file} has no group for {len(missing)} of {len(ids)} images: "
                        f"{listing(missing)}")
    return np.array([group[i] for i in ids])


def print_summary(results):
    """One line a run, and the majority rule once for each distinct test set."""
    rows = [[label(path, results), *(show(result["test"][name]) for name in SHORT)]
            for path, result in results.items()]
    sets = {repr((r["majority"], r["split"]["test"], r["class_names"])): r for r in results.values()}
    rows += [[f"majority rule ({r['conventions']['majority_class']})",
              *(show(r["majority"][name]) for name in SHORT)] for r in sets.values()]
    print(aligned([["test", *(TITLES[name] for name in SHORT)], *rows]))
    for result in sets.values():
        print(how(result))
    if len(sets) > 1:
        print(f"These are {len(sets)} different test sets: compare rows within one only.")


def print_tables(path, result):
    names, test, size = result["class_names"], result["test"], result["split"]["test"]
    counted = len(names) > 25 or max(map(len, names)) > 8
    columns = [str(k) for k in range(len(names))] if counted else names
    rows = [f"{k} {name}" for k, name in enumerate(names)] if counted else names
    print(f"{label(path, {path: result})}: {size['images']:,} test images, {len(names)} classes")
    print(how(result))
    print()
    always = result["majority"]
    print(aligned([["test", "", f"majority rule ({result['conventions']['majority_class']})"]] + [
        [title, show(test[name]), show(always[name]) if name in always else ""]
        for name, title in TITLES.items()]))
    print()
    print(aligned([["class", "precision", "recall", "F1", "AUROC", "support"]] + [
        [row, *(show(test[f"{metric}/{name}"]) for metric in ("precision", "recall", "f1", "auroc")),
         size["support"][name]] for row, name in zip(rows, names)]))
    print()
    if len(names) > 25:
        print(f"The confusion matrix of {len(names)} classes is too wide to print; metrics.json has it.")
        return
    print(aligned([["true \\ predicted", *columns]] + [
        [row, *counts] for row, counts in zip(rows, result["confusion"])], right=True))


def how(result):
    """What the intervals are, and what the test split cannot tell."""
    told, size = result["conventions"], result["split"]["test"]
    over = (f"{told['n_clusters']:,} groups (lesions, patients)" if told["clusters"] == "group" else
            f"{told['n_clusters']:,} images, taken as independent: no groups are known")
    lines = [f"{told['level']:.0%} intervals, {told['replicates']:,} bootstrap replicates over {over}"]
    absent = [name for name, count in size["support"].items() if not count]
    if absent:
        lines.append(f"No test image of {listing(absent)}: nothing is known about "
                     f"{'it' if len(absent) == 1 else 'them'}.")
    lacking = result["test"]["balanced_accuracy"]["undefined"]
    if told["n_clusters"] == 1:
        lines.append("A single group has no spread to draw from: no intervals.")
    elif lacking:
        lines.append(f"{lacking:,} replicates lack a class; intervals of the macro metrics and of that "
                     "class leave them out.")
    if "note" in told:
        lines.append(f"Note: {told['note']}.")
    return "\n".join(lines)


def label(path, among):
    """model/seed_n, with the study before it where there are several; a file by its path."""
    if path.suffix == ".npz":
        return str(path)
    studies = {runs.describe(other)[0] for other in among if other.suffix != ".npz"}
    return "/".join(runs.describe(path)[len(studies) == 1:])


def number(value):
    return "undefined" if np.isnan(value) else f"{value:.3f}"


def show(metric):
    """`0.523 [0.481, 0.562]`."""
    if np.isnan(metric["value"]):
        return "undefined"
    if np.isnan(metric["lo"]):
        return f"{number(metric['value'])} [undefined]"
    return f"{number(metric['value'])} [{number(metric['lo'])}, {number(metric['hi'])}]"


def aligned(rows, right=False):
    """Rows of cells as lines of equally wide columns, the first flush left."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) if right and k else cell.ljust(width)
                               for k, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


if __name__ == "__main__":
    errors.run(main)
