"""Predictions -> metrics with confidence intervals: tables, and metrics.json.

    python evaluate.py runs/lesions_48px                  every run below, one line a run
    python evaluate.py runs/lesions_48px/mobilenetv2_kd/seed_0
    python evaluate.py theirs.npz --groups lesions.csv --out results
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from kd import bootstrap, errors, metrics, predictions, runs
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


def evaluate_run(path, replicates=bootstrap.REPLICATES):
    """Evaluate a seed's folder on validation and test, write its metrics.json, return the same.

    Raises UserError, before any metric, on faulty predictions and on an image or group that the
    test split shares with validation or training.
    """
    path = Path(path)
    val, test = predictions.of_run(path)
    result = evaluate(test, np.bincount(val.labels).argmax(), replicates)
    result["split"] = {"val": val.size(), **result["split"]}
    result["val"] = bootstrap.measure(val.labels, val.probabilities, val.clusters,
                                      val.class_names, replicates)
    runs.write_json(path / "metrics.json", result)
    return result


def evaluate_file(path, groups=None, replicates=bootstrap.REPLICATES):
    """Evaluate a predictions file of any system. Nothing is written."""
    _, test = predictions.of_files(path, groups=groups)
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
