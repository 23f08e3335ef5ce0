"""What evaluation found, as text for a terminal of 110 columns."""


import numpy as np

from kd import runs
from kd.errors import listing
from kd.text import align_columns, format_metric, format_number

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1",
          "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC",
          "nll": "NLL", "brier": "Brier score", "ece": "ECE", "aurc": "AURC"}
SHORT = ("accuracy", "macro_f1", "balanced_accuracy")
WIDE = 25    # more classes than these are not printed as a matrix, nor a threshold for each


# ---- one run


def run_table(path, result):
    """Everything about one test set but what is for metrics.json alone."""
    names, test, size = result["class_names"], result["test"], result["split"]["test"]
    columns, rows = class_labels(names)
    parts = [f"{label(path, [path])}: {size['images']:,} test images, {len(names)} classes\n{how(result)}",
             overall(result),
             align_columns([["class", "precision", "recall", "F1", "AUROC", "support"]] + [
                 [row, *(format_metric(test[f"{metric}/{name}"]) for metric in ("precision", "recall", "f1", "auroc")),
                  size["support"][name]] for row, name in zip(rows, names)]),
             operating_points(result)]
    if len(names) > WIDE:
        parts.append(f"The confusion matrix of {len(names)} classes is too wide to print; metrics.json has it.")
    else:
        parts.append(align_columns([["true \\ predicted", *columns]] + [
            [row, *counts] for row, counts in zip(rows, result["confusion"])], right=True))
    return "\n\n".join(filter(None, parts))


def overall(result):
    """Overall metrics, raw and after temperature, beside the majority rule."""
    test, always = result["test"], result["majority"]
    temperature = (result["calibration"] or {}).get("temperature")
    rows = [["test", "", f"majority rule ({result['conventions']['majority_class']})"]]
    rows += [[title, format_metric(test[name]), format_metric(always[name]) if name in always else ""]
             for name, title in TITLES.items()]
    if temperature is not None:
        rows[0].insert(2, f"after temperature {temperature:.3f}")
        for row, name in zip(rows[1:], TITLES):
            held = test.get(f"{name}_calibrated")
            row.insert(2, format_metric(held) if held else "")
    return align_columns(rows)


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
        parts.append(align_columns([["class", "threshold", "sensitivity", "shortfall", "specificity", "PPV", "NPV"]] + [
            [short[p["class"]], format_number(p["threshold"]), format_metric(p["test"]["sensitivity"], bounds_form=".2f"), format_number(p["shortfall"]["value"]),
             *(format_metric(p["test"][name], bounds_form=".2f") for name in ("specificity", "ppv", "npv"))] for p in kinds["sensitivity"]])
            + f"\nEach threshold promises a sensitivity of {kinds['sensitivity'][0]['promised']:g}; "
              "shortfall: that minus the sensitivity on test.")
    if rules:
        parts.append(align_columns([["decision", *(TITLES[name] for name in SHORT)],
                              ["most probable class", *(format_metric(result["test"][name]) for name in SHORT)]] + [
            [p["name"], *(format_metric(p["test"][name]) for name in SHORT)] for p in rules]))
    for p in kinds["abstention"]:
        parts.append(f"{p['name']}: " + (
            f"answers above a confidence of {p['threshold']:.3f}, {format_metric(p['test']['coverage'])} of the images, "
            f"wrong in {format_metric(p['test']['risk'])}" if np.isfinite(p["threshold"]) else
            "no confidence reaches it on validation"))
    return "\n\n".join(parts)


def class_labels(names):
    """(columns, rows) that name the classes; numbers stand for long names."""
    if len(names) <= WIDE and max(map(len, names)) <= 8:
        return names, names
    shown = [name if len(name) <= 32 else name[:31] + "…" for name in names]
    return [str(k) for k in range(len(names))], [f"{k} {name}" for k, name in enumerate(shown)]


# ---- several runs


def study_table(results, seeds):
    """One line a run, one a model of several seeds, and the majority rule once for each test set.

    results: {path: result}; seeds: {model's folder: content of its seeds.json}.
    """
    rows = [[label(path, results), *(format_metric(result["test"][name]) for name in SHORT)]
            for path, result in results.items()]
    rows += [[f"{label(model / 'seed', results).removesuffix('/seed')}, {len(held['seeds'])} seeds",
              *(format_metric({**held["test"][name], "value": held["test"][name]["mean"]}) for name in SHORT)]
             for model, held in seeds.items()]
    sets = {repr((r["majority"], r["split"]["test"], r["class_names"])): r for r in results.values()}
    rows += [[f"majority rule ({r['conventions']['majority_class']})",
              *(format_metric(r["majority"][name]) for name in SHORT)] for r in sets.values()]
    lines = [align_columns([["test", *(TITLES[name] for name in SHORT)], *rows]), *map(how, sets.values())]
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


def comparison_table(compared):
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
    parts = [align_columns([["test", *(titled(pair, side) for side in ("reference", "model")), "difference", "p", "retained"]] + [
        [title, own(rows[name], "reference"), own(rows[name], "model"), change(rows[name]), p_value(rows[name]["p_corrected"]),
         f"{100 * rows[name]['retention']:.0f}%" if name in SHORT and np.isfinite(rows[name]["retention"]) else ""]
        for name, title in titles.items() if name in rows])]
    _, labels = class_labels(names)
    parts.append(align_columns([["class", "F1", "", "difference", "relative gap", "difference of recall", "support"]] + [
        [text, format_number(rows[f"f1/{name}"]["reference_value"]), format_number(rows[f"f1/{name}"]["model_value"]),
         change(rows[f"f1/{name}"]), percent(rows[f"f1/{name}"]["relative_gap"]), change(rows[f"recall/{name}"]), support[name]]
        for text, name in zip(labels, names)]))
    agree, test = pair["agreement"], pair["mcnemar"]
    parts.append(f"The two agree on {format_metric(agree['agreement'])} of the images. Only {pair['reference']} is right in "
                 f"{format_metric(agree['right_to_wrong'])},\nonly {pair['model']} in {format_metric(agree['wrong_to_right'])}; both are wrong, "
                 f"in different ways, in {format_metric(agree['wrong_to_wrong'])}.\nMcNemar: {test['reference_only']:g} images against "
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
                          format_number(pair["agreement"]["agreement"]["value"], ".2f"), p_value(pair["mcnemar"]["p_corrected"])])
        blocks.append(align_columns(lines))
    return "\n\n".join(blocks)


def titled(pair, side):
    return pair[side] + (f", {pair['seeds'][side]} seeds" if pair["seeds"][side] > 1 else "")


def own(row, side):
    return format_metric({"value": row[f"{side}_value"], "lo": row[f"{side}_lo"], "hi": row[f"{side}_hi"]})


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


# ---- words and numbers


def label(path, among):
    """model/seed_n, with the study before it where there are several; a file by its path."""
    if path.suffix == ".npz":
        return str(path)
    studies = {runs.describe(other)[0] for other in among if other.suffix != ".npz"}
    return "/".join(runs.describe(path)[len(studies) == 1:])
