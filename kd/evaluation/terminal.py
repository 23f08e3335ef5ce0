"""Results of an evaluation as text; the tables fit a terminal of 110 columns, and are divided on a narrower one."""

import numpy as np

from kd import bootstrap, paired, prediction_files, runs
from kd.errors import listing
from kd.recalibration import FIT
from kd.text import (
    SEEDS_NOTE,
    align_columns,
    format_count,
    format_metric,
    format_number,
    format_p,
    is_of_two_seeds,
    shortened,
    width,
)

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "macro_f1_without_rarest": "macro F1 without {}",
          "weighted_f1": "weighted F1",
          "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC",
          "nll": "NLL", "brier": "Brier score", "aurc": "AURC",
          "rms_ce_debiased": "debiased calibration error", "ece": "ECE"}
SHORT = ("accuracy", "macro_f1", "balanced_accuracy")  # the metrics of tables with one line a run
SHORT_TITLES = [TITLES[name] for name in SHORT]
FIDELITY = {"agreement": "same answer", "agreement_where_teacher_wrong": "same, where teacher wrong",
            "kl_teacher_student": "KL(teacher || student), nats"}
OF_FOLDS = ("Each image is answered by that of {} networks which did not see its fold, at the temperature of this\n"
            "network's own validation images. Intervals are of these networks: other trainings are not in them.")
NAME = 18         # columns of a class's name in a title
MAX_CLASSES = 25  # with more, the confusion matrix is wider than the terminal


# ---- one run


def run_table(path, result):
    """The tables of one run, or of one predictions file. result: the content of its metrics.json."""
    names, size = result["class_names"], result["split"]["test"]
    columns, rows = class_labels(names)
    head = f"{label(path, [path])}: {format_count(size['images'], 'test image')}, {len(names)} classes"
    note = f"\nNote: {result['conventions']['note']}." if "note" in result["conventions"] else ""
    fidelity = [fidelity_table({label(path, [path]): result})] if "fidelity" in result else []
    parts = [f"{head}\n{describe_intervals(result)}{note}", overall(result), *fidelity, by_class(result),
             operating_points(result)]
    parts += [subgroup_table(column, content) for column, content in result.get("subgroups", {}).items()]
    if len(names) > MAX_CLASSES:
        parts.append(f"The confusion matrix of {len(names)} classes is too wide to print; metrics.json has it.")
    else:
        matrix = [[row, *counts] for row, counts in zip(rows, result["confusion"])]
        parts.append(align_columns([["true \\ predicted", *columns], *matrix], right=True))
    return "\n\n".join(parts)


def overall(result):
    """Table of the overall metrics, before and after temperature, beside those of the majority rule."""
    test, majority, calibration = result["test"], result["majority"], result["calibration"] or {}
    temperature, reason = calibration.get("temperature"), calibration.get("reason")
    titles = titles_of(result["conventions"], result["class_names"])
    majority_class = shortened(result["class_names"], NAME)[result["conventions"]["majority_class"]]
    rows = [["test", "", f"majority rule ({majority_class})"]]
    rows += [[title, format_metric(test[name]), format_metric(majority[name]) if name in majority else ""]
             for name, title in titles.items()]
    if temperature is not None:
        rows[0].insert(2, f"after temperature {temperature:.3f}")
        for row, name in zip(rows[1:], titles):
            calibrated = test.get(f"{name}_calibrated")
            row.insert(2, format_metric(calibrated) if calibrated else "")
    no_fit = [f"No temperature is fitted: {reason}."] if temperature is None and reason else []
    return "\n".join([align_columns(rows), *consistency(result), *no_fit])


def titles_of(conventions, names):
    """TITLES of the metrics, with the name of the class that is left out; without this metric where there is none."""
    rarest = shortened(names, NAME).get(conventions["rarest_class"])
    return {name: title.format(rarest) for name, title in TITLES.items() if rarest is not None or "{}" not in title}


def fidelity_table(results, seeds=()):
    """A line for each student: how near it is to its teacher, or why that is not known.

    results: {label: content of metrics.json}; seeds: {label: content of seeds.json}.
    """
    rows, unknown = [], []
    for name, result in results.items():
        content = result.get("fidelity", {})
        if content.get("reason"):
            unknown.append(f"No fidelity of {name}: {content['reason']}.")
        elif content:
            rows.append([name, content["teacher"], *(format_metric(content["test"][metric]) for metric in FIDELITY)])
    for name, content in dict(seeds).items():
        if "fidelity" in content:
            figures = content["fidelity"]["test"]
            rows.append([name, ", ".join(content["fidelity"]["teachers"]), *(
                format_metric({**figures[metric], "value": figures[metric]["mean"]}) for metric in FIDELITY)])
    teachers = list(dict.fromkeys(row[1] for row in rows))
    head = ["fidelity", "teacher", *FIDELITY.values()]
    if len(teachers) == 1:
        head, *rows = ([name, *figures] for name, _, *figures in [head, *rows])
        unknown.insert(0, f"teacher: {teachers[0]}")
    return "\n".join(([align_columns([head, *rows])] if rows else []) + unknown)


def consistency(result):
    """Lines that say whether the ECE shows any miscalibration."""
    lines, tests = [], (result["calibration"] or {}).get("consistency") or {}
    for name, found in tests.items():
        when = "after" if name == "calibrated" else "before"
        lines.append(f"ECE {when} the temperature {found['ece']:.3f}; a calibrated network has {found['expected']:.3f} "
                     f"on average here, and as much with p {format_p(found['p'])}.")
    return lines


def by_class(result):
    """Table of the metrics of each class."""
    test, support = result["test"], result["split"]["test"]["support"]
    table = [["class", "precision", "recall", "F1", "AUROC", "support"]]
    for row, name in zip(class_labels(result["class_names"])[1], result["class_names"]):
        metrics = [test[f"{metric}/{name}"] for metric in ("precision", "recall", "f1", "auroc")]
        table.append([row, *map(format_metric, metrics), support[name]])
    return align_columns(table)


def operating_points(result):
    """Three small tables: thresholds on a class, multipliers of all classes (not of joined folds), abstention."""
    of_folds = result.get("fold_points")
    points = of_folds or result["operating_points"]
    if not points:
        return "No validation predictions (--val): no temperature is fitted, no operating point chosen."
    thresholds = [point for point in points if point["kind"] == "sensitivity"]
    rules = [point for point in points if point["kind"] in ("macro_f1", "prior")]
    abstentions = [point for point in points if point["kind"] == "abstention"]
    chosen_on, tested_on = "the part fitted on" if points[0]["chosen_on"] == FIT else "validation", "test"
    if of_folds:
        chosen_on, tested_on = "validation of each fold", "its test images"
    parts = [f"Operating points, chosen on {chosen_on}, tested once on {tested_on}:"]
    if thresholds:
        parts.append(thresholds_table(result, thresholds, chosen_on))
    if rules:
        decisions = {"most probable class": result["test"], **{point["name"]: point["test"] for point in rules}}
        rows = [[name, *(format_metric(metrics[metric]) for metric in SHORT)] for name, metrics in decisions.items()]
        parts.append(align_columns([["decision", *SHORT_TITLES], *rows]))
    elif not of_folds:
        parts.append("No multipliers and no prior correction: all validation images are of one class.")
    for point in abstentions:
        coverage, risk = (format_metric(point["test"][name]) for name in ("coverage", "risk"))
        if of_folds:
            text = f"answers {coverage} of the images, wrong in {risk}"
        elif np.isfinite(point["threshold"]):
            text = f"answers above a confidence of {point['threshold']:.3f}, {coverage} of the images, wrong in {risk}"
        else:
            text = f"no confidence reaches it on {chosen_on}"
        parts.append(f"{point['name']}: {text}")
    return "\n\n".join(parts)


def subgroup_table(column, content):
    """Tables of the subgroups of one column, as kd.evaluation.subgroups has them, and of the largest gaps."""
    measured = content["subgroups"][0]["test"]
    figures = [("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")]
    figures += [(name, "calibration error") for name in ("rms_ce_debiased", "rms_ce_debiased_calibrated")
                if name in measured]
    targets = shortened([name.removeprefix("sensitivity/") for name in measured if name.startswith("sensitivity/")], 12)
    figures += [(f"sensitivity/{name}", f"sens. {text}") for name, text in targets.items()][:1]
    names = [part["name"] for part in content["subgroups"]]
    short = shortened(names, 20)
    rows = [[short[part["name"]], part["images"], part["groups"],
             *(format_metric(part["test"][name], bounds_form=".2f") for name, _ in figures)]
            for part in content["subgroups"]]
    lines = [align_columns([[column, "images", "groups", *(title for _, title in figures)], *rows])]
    for gap in (gap for gap in content["gaps"] if gap["value"]):
        family = format_count(gap["gaps"], "gap")
        lines.append(f"largest gap in {gap['metric']}: {short[gap['highest']]} over {short[gap['lowest']]} by "
                     f"{format_metric(gap)}, p {format_p(gap['p_corrected'])} (Holm over {family})")
    return "\n".join(lines)


def thresholds_table(result, points, chosen_on):
    """Table of the thresholds on a class, and what they promise; of folds, the lowest and the highest threshold."""
    short_name = dict(zip(result["class_names"], class_labels(result["class_names"])[0]))
    table = [["class", "threshold", "promised", "sensitivity", "specificity", "PPV", "NPV"]]
    for point in points:
        test = {name: format_metric(metric, bounds_form=".2f") for name, metric in point["test"].items()}
        ends = dict.fromkeys(f(point.get("thresholds") or [point["threshold"]]) for f in (min, max))
        table.append([short_name[point["class"]], " to ".join(format_number(end, ".3g") for end in ends),
                      format_number(point["promised"], ".2f"), test["sensitivity"], test["specificity"],
                      test["ppv"], test["npv"]])
    return f"{align_columns(table)}\n{describe_promises(points, chosen_on)}"


def describe_promises(points, chosen_on):
    """What thresholds promise, with which assurance; that they promise less where `chosen_on` has too few positives."""
    first = points[0]
    text = (f"promised: a sensitivity that the threshold has with an assurance of {first['assurance']:g}; "
            f"{first['asked']:g} was asked for.")
    if any(point["promised"] < point["asked"] - 1e-9 for point in points):
        text += f"\nLess is promised where {chosen_on} has too few positives for that."
    return text


def class_labels(names):
    """(labels of columns, labels of rows) of the classes; in columns, numbers stand for long names."""
    short = shortened(names, 32)
    if len(names) <= MAX_CLASSES and max(map(width, names)) <= 8 and all(short[name] == name for name in names):
        return names, names
    return [str(k) for k in range(len(names))], [f"{k} {short[name]}" for k, name in enumerate(names)]


# ---- several runs


def study_table(results, seeds):
    """One line a run, one a model of several seeds, and the majority rule once for each test set.

    results: {path: content of metrics.json}; seeds: {model's folder: content of its seeds.json}.
    """
    labels = {path: label(path, results) for path in results}
    rows = [[labels[path], *(format_metric(result["test"][name]) for name in SHORT)]
            for path, result in results.items()]
    titles = {model: f"{label(model / 'seed', results).removesuffix('/seed')}, {len(content['seeds'])} seeds"
              for model, content in seeds.items()}
    over_seeds = []
    for model, content in seeds.items():
        metrics = [content["test"][name] for name in SHORT]
        over_seeds += [*metrics, *content.get("fidelity", {}).get("test", {}).values()]
        rows.append([titles[model], *(format_metric({**metric, "value": metric["mean"]}) for metric in metrics)])
    test_sets = {repr((result["majority"], result["split"]["test"], result["class_names"])): result
                 for result in results.values()}
    for result in test_sets.values():
        majority_class = shortened(result["class_names"], NAME)[result["conventions"]["majority_class"]]
        title = f"majority rule ({majority_class})"
        rows.append([title, *(format_metric(result["majority"][name]) for name in SHORT)])
    lines = [align_columns([["test", *SHORT_TITLES], *rows]), *map(describe_intervals, test_sets.values())]
    if seeds:
        lines += ["Intervals over seeds include the spread of images and of seeds.", *seeds_note(over_seeds)]
    if len(test_sets) > 1:
        lines.append(f"These are {len(test_sets)} different test sets: compare rows within one only.")
    for path, result in results.items():
        lines += [f"{labels[path]}: {result['conventions']['note']}."] if "note" in result["conventions"] else []
        errors = [finding for finding in result["audit"] if finding["severity"] == "error"]
        lines += [f"{labels[path]}: {finding['rule']}: {finding['saw']}" for finding in errors]
    fidelity = fidelity_table({labels[path]: result for path, result in results.items()},
                              {titles[model]: content for model, content in seeds.items()})
    lines += ["", fidelity, ""] if fidelity else []
    if not all(map(prediction_files.is_file, results)):
        folds = any(result["conventions"].get("folds") for result in results.values())
        lines.append(f"{'Operating' if folds else 'Calibration, operating'} points and every class are in each run's "
                     "metrics.json.")
    return "\n".join(lines)


def describe_intervals(result):
    """Sentences that say how the intervals were made, and what the test split cannot show."""
    stated, support = result["conventions"], result["split"]["test"]["support"]
    clusters = stated["n_clusters"]
    units = (f"{format_count(clusters, 'group')} (lesions, patients)" if stated["clusters"] == "group" else
             f"{format_count(clusters, 'image')}, taken as independent: no groups are known")
    lines = [f"{stated['level']:.0%} intervals, {stated['replicates']:,} smoothed bootstrap replicates over {units}"]
    if stated.get("folds"):
        lines.append(OF_FOLDS.format(stated["folds"]))
    absent = [name for name, count in support.items() if not count]
    if absent:
        lines.append(f"No test image of {listing(absent)}: nothing is known about "
                     f"{'it' if len(absent) == 1 else 'them'}; macro figures are over the classes that have images.")
    if len(absent) == len(support) - 1:
        only = next(name for name in support if name not in absent)
        lines.append(f"Every test image is of {only}: AUROC and specificity need images of other classes, too, and are "
                     "undefined (n/a).")
    reasons = {metric.get("withheld", "") for metric in result["test"].values()}
    if any(reason.startswith("too few") for reason in reasons):
        units = "groups" if stated["clusters"] == "group" else "images"
        units += ", errors or right answers" if any("right answers" in reason for reason in reasons) else " or errors"
        lines.append(f"[too few]: fewer than {bootstrap.FEWEST} {units}, which is too few for an interval.")
    return "\n".join(lines)


# ---- models against each other


def comparison_table(compared):
    """The pairs of kd.evaluation.compare.compare(): a single pair in full, several with one line a pair."""
    stated, size, pairs = compared["conventions"], compared["split"]["test"], compared["pairs"]
    units = "groups (lesions, patients)" if stated["clusters"] == "group" else "images, taken as independent"
    parts = [f"{size['images']:,} test images, the same for all; {stated['level']:.0%} intervals, "
             f"{stated['replicates']:,} paired replicates over {stated['n_clusters']:,} {units}"]
    if len(pairs) == 1:
        parts.append(pair_in_full(pairs[0], compared["class_names"], size["support"], stated))
    else:
        parts.append(one_line_a_pair(pairs))
    if pairs[0]["over_folds"]:
        parts.append(over_folds(pairs))
    tested = [pair for pair in pairs if min(pair["seeds"].values()) > 1]
    single = [name for name, seeds in compared["models"].items() if len(seeds) == 1]
    lines = []
    if tested:
        family = ("over the metrics of this table" if len(pairs) == 1 else
                  f"over the {len(tested)} comparisons of macro F1")
        lines.append(f"p: two-sided, by the paired bootstrap over images and seeds, corrected (Holm) {family}.")
    if single:
        networks = "the networks of these folds" if stated.get("folds") else "these two networks"
        lines.append(f"One seed ({listing(single)}): says nothing of the method, so no p. The interval is of "
                     f"{networks}.")
    return "\n\n".join([*parts, *filter(None, ["\n".join(lines)])])


def seeds_note(metrics):
    """[SEEDS_NOTE] where one of these METRICs, which are printed, has the figures of two seeds, else []."""
    return [SEEDS_NOTE] if any(map(is_of_two_seeds, metrics)) else []


def pair_in_full(pair, names, support, conventions):
    """Tables of all metrics and all classes of one pair, and how often the two models agree."""
    rows = {row["metric"]: row for row in pair["rows"]}
    after = ("nll", "brier", "rms_ce_debiased", "ece")
    titles = {**titles_of(conventions, names), **{f"{name}_calibrated": f"{TITLES[name]}, after T" for name in after}}
    overall_table = [["test", *(model_title(pair, side) for side in ("reference", "model")),
                      "difference", "p", "retained"]]
    listed, printed = [metric for metric in titles if metric in rows], []
    corrected = dict(zip(listed, paired.holm([rows[metric]["p"] for metric in listed])))
    for metric, title in titles.items():
        if metric in rows:
            row = rows[metric]
            retained = metric in SHORT and np.isfinite(row["retention"])
            figures = [paired.metric(row, figure) for figure in ("reference", "model", "difference")]
            printed += figures
            overall_table.append([title, *map(format_metric, figures[:2]), format_metric(figures[2], "+.3f"),
                                  format_p(corrected[metric]), f"{100 * row['retention']:.0f}%" if retained else ""])
    class_table = [["class", "F1", "", "difference", "relative gap", "difference of recall", "support"]]
    for class_label, name in zip(class_labels(names)[1], names):
        f1 = rows[f"f1/{name}"]
        figures = [paired.metric(rows[f"{metric}/{name}"], "difference") for metric in ("f1", "recall")]
        printed += figures
        differences = [format_metric(figure, "+.3f") for figure in figures]
        class_table.append([class_label, format_number(f1["reference_value"]), format_number(f1["model_value"]),
                            differences[0], format_percent(f1["relative_gap"]), differences[1], support[name]])
    agreement = {name: format_metric(share) for name, share in pair["agreement"].items()}
    counts = pair["disagreements"]
    sentences = (
        f"The two agree on {agreement['agreement']} of the images. Only {pair['reference']} is right in "
        f"{agreement['right_to_wrong']},\nonly {pair['model']} in {agreement['wrong_to_right']}; both are wrong, "
        f"in different ways, in {agreement['wrong_to_wrong']}.\n"
        f"Right alone: {pair['reference']} in {counts['reference_only']:g} images, {pair['model']} in "
        f"{counts['model_only']:g}.")
    if pair["fidelity"]:
        fidelity = {name: format_metric(figure) for name, figure in pair["fidelity"].items()}
        sentences += (f"\nOf the images that {pair['reference']} gets wrong, {pair['model']} has the same answer to\n"
                      f"{fidelity['agreement_where_teacher_wrong']}. KL(teacher || student) is "
                      f"{fidelity['kl_teacher_student']} nats.")
    printed += [*pair["agreement"].values(), *pair["fidelity"].values()]
    return "\n\n".join([align_columns(overall_table), align_columns(class_table),
                        "\n".join([sentences, *seeds_note(printed)])])


def over_folds(pairs):
    """Table of the mean differences over the folds, and what it says."""
    table = [["mean over folds", *SHORT_TITLES, "p of macro F1"]]
    table += [[f"{pair['model']} less {pair['reference']}",
               *(format_metric(pair["over_folds"][name], "+.3f") for name in SHORT),
               format_p(pair["over_folds"]["macro_f1"]["p_corrected"])] for pair in pairs]
    corrected = f", corrected (Holm) over {len(pairs)} comparisons" if len(pairs) > 1 else ""
    return (f"{align_columns(table)}\nIn each fold both were trained anew: these intervals include the spread of "
            f"trainings. p: by Student's t over\nthe folds{corrected}.")


def one_line_a_pair(pairs):
    """A table for each reference, with one line a pair."""
    tables, printed = [], []
    for reference in dict.fromkeys(pair["reference"] for pair in pairs):
        members = [pair for pair in pairs if pair["reference"] == reference]
        has_kl = any(pair["fidelity"] for pair in members)
        lines = [[f"less {model_title(members[0], 'reference')}", *SHORT_TITLES[:2], "p of macro F1", "agree",
                  *(["KL"] if has_kl else [])]]
        for pair in members:
            rows = {row["metric"]: row for row in pair["rows"]}
            differences = [paired.metric(rows[name], "difference") for name in SHORT[:2]]
            printed += differences
            agreement = format_number(pair["agreement"]["agreement"]["value"], ".2f")
            lines.append([model_title(pair, "model"), *(format_metric(metric, "+.3f") for metric in differences),
                          format_p(rows["macro_f1"]["p_corrected"]), agreement, *([kl_cell(pair)] if has_kl else [])])
        tables.append(align_columns(lines))
    return "\n\n".join([*tables, *seeds_note(printed)])


def kl_cell(pair):
    """KL(teacher || student) of a pair as `0.218`, or nothing where its reference is no teacher."""
    return format_number(pair["fidelity"]["kl_teacher_student"]["value"]) if pair["fidelity"] else ""


def model_title(pair, side):
    """The name of a pair's model, with the number of its seeds where there are several. side: reference or model."""
    seeds = pair["seeds"][side]
    return pair[side] + (f", {seeds} seeds" if seeds > 1 else "")


def format_percent(share):
    """A share as a signed percentage: 0.031 as `+3%`."""
    return "n/a" if not np.isfinite(share) else f"{100 * share:+.0f}%"


# ---- names of runs


def label(path, paths):
    """A run as model/seed_n, with the study before it where `paths` are of several; a file by its path."""
    if prediction_files.is_file(path):
        return str(path)
    studies = {runs.describe(other)[0] for other in paths if not prediction_files.is_file(other)}
    return "/".join(runs.describe(path)[len(studies) == 1:])
