"""What evaluation found, as text for a terminal of 110 columns."""

import textwrap

import numpy as np

from kd import audit, runs
from kd.errors import listing

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
          "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC",
          "nll": "NLL", "brier": "Brier score", "ece": "ECE", "aurc": "AURC"}
SHORT = ("accuracy", "macro_f1", "balanced_accuracy")
WIDE = 25    # more classes than these are not printed as a matrix, nor a threshold for each
WIDTH = 110


# ---- one run


def one(path, result):
    """Everything about one test set but what is for metrics.json alone."""
    names, test, size = result["class_names"], result["test"], result["split"]["test"]
    columns, rows = class_labels(names)
    parts = [f"{label(path, [path])}: {size['images']:,} test images, {len(names)} classes\n{how(result)}",
             overall(result),
             aligned([["class", "precision", "recall", "F1", "AUROC", "support"]] + [
                 [row, *(show(test[f"{metric}/{name}"]) for metric in ("precision", "recall", "f1", "auroc")),
                  size["support"][name]] for row, name in zip(rows, names)]),
             operating_points(result)]
    if len(names) > WIDE:
        parts.append(f"The confusion matrix of {len(names)} classes is too wide to print; metrics.json has it.")
    else:
        parts.append(aligned([["true \\ predicted", *columns]] + [
            [row, *counts] for row, counts in zip(rows, result["confusion"])], right=True))
    return "\n\n".join(filter(None, [*parts, findings(result["audit"], brief=True)]))


def overall(result):
    """Overall metrics, raw and after temperature, beside the majority rule."""
    test, always = result["test"], result["majority"]
    temperature = (result["calibration"] or {}).get("temperature")
    rows = [["test", "", f"majority rule ({result['conventions']['majority_class']})"]]
    rows += [[title, show(test[name]), show(always[name]) if name in always else ""]
             for name, title in TITLES.items()]
    if temperature is not None:
        rows[0].insert(2, f"after temperature {temperature:.3f}")
        for row, name in zip(rows[1:], TITLES):
            held = test.get(f"{name}_calibrated")
            row.insert(2, show(held) if held else "")
    return aligned(rows)


def operating_points(result):
    """Three small tables: thresholds on a class, multipliers of all classes, abstention."""
    points = result["operating_points"]
    if not points:
        return "No validation predictions (--val): no temperature is fitted, no operating point chosen."
    kinds = {kind: [p for p in points if p["kind"] == kind] for kind in ("sensitivity", "abstention")}
    rules = [p for p in points if p["kind"] in ("macro_f1", "prior")]
    parts = ["Operating points, chosen on validation, tested once on test:"]
    if kinds["sensitivity"]:
        short = dict(zip(result["class_names"], class_labels(result["class_names"])[0]))
        parts.append(aligned([["class", "threshold", "sensitivity", "missed", "specificity", "PPV", "NPV"]] + [
            [short[p["class"]], number(p["threshold"]), show(p["test"]["sensitivity"], 2), number(p["missed"]["value"]),
             *(show(p["test"][name], 2) for name in ("specificity", "ppv", "npv"))] for p in kinds["sensitivity"]])
            + f"\nEach threshold promises a sensitivity of {kinds['sensitivity'][0]['promised']:g}; "
              "missed: that minus the one on test.")
    if rules:
        parts.append(aligned([["decision", *(TITLES[name] for name in SHORT)],
                              ["most probable class", *(show(result["test"][name]) for name in SHORT)]] + [
            [p["name"], *(show(p["test"][name]) for name in SHORT)] for p in rules]))
    for p in kinds["abstention"]:
        parts.append(f"{p['name']}: " + (
            f"answers above a confidence of {p['threshold']:.3f}, {show(p['test']['coverage'])} of the images, "
            f"wrong in {show(p['test']['risk'])}" if np.isfinite(p["threshold"]) else
            "no confidence reaches it on validation"))
    return "\n\n".join(parts)


def class_labels(names):
    """(columns, rows) that name the classes; numbers stand for long names."""
    if len(names) <= WIDE and max(map(len, names)) <= 8:
        return names, names
    shown = [name if len(name) <= 32 else name[:31] + "…" for name in names]
    return [str(k) for k in range(len(names))], [f"{k} {name}" for k, name in enumerate(shown)]


# ---- several runs


def several(results, seeds):
    """One line a run, one a model of several seeds, and the majority rule once for each test set.

    results: {path: result}; seeds: {model's folder: content of its seeds.json}.
    """
    rows = [[label(path, results), *(show(result["test"][name]) for name in SHORT)]
            for path, result in results.items()]
    rows += [[f"{label(model / 'seed', results).removesuffix('/seed')}, {len(held['seeds'])} seeds",
              *(show({**held["test"][name], "value": held["test"][name]["mean"]}) for name in SHORT)]
             for model, held in seeds.items()]
    sets = {repr((r["majority"], r["split"]["test"], r["class_names"])): r for r in results.values()}
    rows += [[f"majority rule ({r['conventions']['majority_class']})",
              *(show(r["majority"][name]) for name in SHORT)] for r in sets.values()]
    lines = [aligned([["test", *(TITLES[name] for name in SHORT)], *rows]), *map(how, sets.values())]
    if seeds:
        lines.append("Intervals over seeds carry both sources, images and seeds.")
    if len(sets) > 1:
        lines.append(f"These are {len(sets)} different test sets: compare rows within one only.")
    errors = {label(path, results): [f for f in result["audit"] if f["severity"] == "error"]
              for path, result in results.items()}
    lines += [f"{name}: {f['rule']}: {f['saw']}" for name, found in errors.items() for f in found]
    if any(path.suffix != ".npz" for path in results):
        lines.append("Calibration, operating points and every class are in each run's metrics.json.")
    return "\n".join(lines)


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


# ---- models against each other


def comparison(compared):
    """Two models in full, more of them one line a pair."""
    told, size = compared["conventions"], compared["split"]["test"]
    over = "groups (lesions, patients)" if told["clusters"] == "group" else "images, taken as independent"
    parts = [f"{size['images']:,} test images, the same for all; {told['level']:.0%} intervals, {told['replicates']:,} "
             f"paired replicates over {told['n_clusters']:,} {over}"]
    if len(compared["pairs"]) == 1:
        parts.append(one_pair(compared["pairs"][0], compared["class_names"], size["support"]))
    else:
        parts.append(pairs(compared["pairs"]))
    once = [name for name, seeds in compared["models"].items() if len(seeds) == 1]
    corrected = f", corrected (Holm) over {len(compared['pairs'])} comparisons" if len(compared["pairs"]) > 1 else ""
    parts.append(f"p: two-sided, by the paired bootstrap{corrected}.\n" + (
        "One seed each: what training again would change is in no interval." if len(once) == len(compared["models"]) else
        "Intervals and p carry the spread of seeds" + (f"; not that of {listing(once)}, with one seed alone." if once else ".")))
    return "\n\n".join(parts)


def one_pair(pair, names, support):
    rows = {row["metric"]: row for row in pair["rows"]}
    titles = {**TITLES, **{f"{name}_calibrated": f"{TITLES[name]}, calibrated" for name in ("nll", "brier", "ece")}}
    parts = [aligned([["test", *(titled(pair, side) for side in ("reference", "model")), "difference", "p", "retained"]] + [
        [title, own(rows[name], "reference"), own(rows[name], "model"), change(rows[name]), p_value(rows[name]["p_corrected"]),
         f"{100 * rows[name]['retention']:.0f}%" if name in SHORT and np.isfinite(rows[name]["retention"]) else ""]
        for name, title in titles.items() if name in rows])]
    _, labels = class_labels(names)
    parts.append(aligned([["class", "F1", "", "difference", "relative gap", "difference of recall", "support"]] + [
        [text, number(rows[f"f1/{name}"]["reference_value"]), number(rows[f"f1/{name}"]["model_value"]),
         change(rows[f"f1/{name}"]), percent(rows[f"f1/{name}"]["relative_gap"]), change(rows[f"recall/{name}"]), support[name]]
        for text, name in zip(labels, names)]))
    agree, test = pair["agreement"], pair["mcnemar"]
    parts.append(f"The two agree on {show(agree['agreement'])} of the images. Only {pair['reference']} is right in "
                 f"{show(agree['right_to_wrong'])},\nonly {pair['model']} in {show(agree['wrong_to_right'])}; both are wrong, "
                 f"in different ways, in {show(agree['wrong_to_wrong'])}.\nMcNemar: {test['reference_only']:g} images against "
                 f"{test['model_only']:g}, p {p_value(test['p_corrected'])} (images taken as independent).")
    return "\n\n".join(parts)


def pairs(found):
    """One line a pair, a block a reference."""
    blocks = []
    for reference in dict.fromkeys(pair["reference"] for pair in found):
        held = [pair for pair in found if pair["reference"] == reference]
        lines = [[f"less {titled(held[0], 'reference')}", *(TITLES[name] for name in SHORT[:2]), "p of macro F1", "agree",
                  "McNemar p"]]
        for pair in held:
            rows = {row["metric"]: row for row in pair["rows"]}
            lines.append([titled(pair, "model"), *(change(rows[name]) for name in SHORT[:2]), p_value(rows["macro_f1"]["p_corrected"]),
                          number(pair["agreement"]["agreement"]["value"], 2), p_value(pair["mcnemar"]["p_corrected"])])
        blocks.append(aligned(lines))
    return "\n\n".join(blocks)


def titled(pair, side):
    return pair[side] + (f", {pair['seeds'][side]} seeds" if pair["seeds"][side] > 1 else "")


def own(row, side):
    return show({"value": row[f"{side}_value"], "lo": row[f"{side}_lo"], "hi": row[f"{side}_hi"]})


def change(row):
    """`+0.021 [-0.003, +0.044]`."""
    if np.isnan(row["difference"]):
        return "n/a"
    if np.isnan(row["lo"]):
        return f"{row['difference']:+.3f} [n/a]"
    return f"{row['difference']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"


def percent(value):
    return "n/a" if not np.isfinite(value) else f"{100 * value:+.0f}%"


def p_value(p):
    return "n/a" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


# ---- findings


def findings(found, brief=False):
    """Findings of the audit, the gravest first, those of one rule together; brief: notes are only counted."""
    notes = [f for f in found if f["severity"] == "note"] if brief else []
    parts = []
    for group in audit.grouped([f for f in found if f not in notes]):
        parts.append(f"{group['severity']}: {group['rule']}")
        lines = [*(("saw", saw) for saw in group["saw"]), ("why", group["why"]), ("do", group["do"])]
        parts += [textwrap.fill(f"{key}: {text}", WIDTH, initial_indent="  ", subsequent_indent="    ")
                  for key, text in lines]
    if notes:
        parts.append(f"notes not shown: {len(notes)}; --audit prints them.")
    return "\n".join(parts)


# ---- words and numbers


def label(path, among):
    """model/seed_n, with the study before it where there are several; a file by its path."""
    if path.suffix == ".npz":
        return str(path)
    studies = {runs.describe(other)[0] for other in among if other.suffix != ".npz"}
    return "/".join(runs.describe(path)[len(studies) == 1:])


def number(value, digits=3):
    return "n/a" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def show(metric, digits=3):
    """`0.523 [0.481, 0.562]`."""
    if np.isnan(metric["value"]):
        return "n/a"
    if np.isnan(metric["lo"]):
        return f"{number(metric['value'])} [n/a]"
    return f"{number(metric['value'])} [{number(metric['lo'], digits)}, {number(metric['hi'], digits)}]"


def aligned(rows, right=False):
    """Rows of cells as lines of equally wide columns, the first flush left."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) if right and k else cell.ljust(width)
                               for k, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)
