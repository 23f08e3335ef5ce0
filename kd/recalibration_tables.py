"""What a recalibration fitted and changed, as rows of cells, for the terminal and for a bundle's model card.

record: the content of RUN/recalibrated/NAME.json (Run.recalibration). The first row of a table is its header.
"""

from kd.text import format_metric, format_number, format_p, is_defined

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "nll": "NLL",
          "brier": "Brier score", "aurc": "AURC", "rms_ce_debiased": "debiased calibration error", "ece": "ECE"}


def classes(record):
    """How frequent each class is, how frequent the answers with the run's own settings make it, and its offset."""
    fitted, support = record["recalibration"], record["split"]["fit"]["support"]
    rows = [["class", "images fitted on", "their share", "share in the answers before", "offset of the logit"]]
    for name, offset in zip(record["class_names"], fitted["offsets"]):
        share = fitted["shares"][name]
        rows.append([name, support[name], f"{share['site']:.3f}", f"{share['answered']:.3f}", f"{offset:+.2f}"])
    return rows


def compared(record):
    """The overall metrics on the test part, before and after, with paired differences."""
    rows = _by_metric(record)
    return [["test part", "the run's own settings", "recalibrated", "difference"], *(
        [title, _side(rows[name], "reference"), _side(rows[name], "model"), _difference(rows[name])]
        for name, title in TITLES.items())]


def verdict(record):
    """Sentences on what is better, worse and not significant; without ECE, of which nothing is known by chance."""
    found = {"better": [], "worse": [], "not significant (the 95% interval of the difference includes 0)": []}
    better, worse, unclear = found.values()
    for name, row in _by_metric(record).items():
        if name in TITLES and name != "ece":
            is_gain = row["difference"] > 0 if name in ("accuracy", "macro_f1", "balanced_accuracy") else (
                row["difference"] < 0)
            (unclear if not is_significant(row) else better if is_gain else worse).append(TITLES[name])
    lines = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
    if not better:
        lines.append("Nothing is better than with the run's own settings: keep these, but for thresholds whose promise "
                     "they do not keep.")
    return lines


def thresholds(record):
    """Each threshold: what it promises, and sensitivity and specificity on the test part, before and after."""
    rows, fitted = _by_metric(record), record["recalibration"]
    own = {point["class"]: point["test"] for point in fitted["own"]["operating_points"]
           if point["kind"] == "sensitivity"}
    table = [["class", "promised", "sensitivity before", "recalibrated", "difference", "specificity before",
              "recalibrated"]]
    for point in record["operating_points"]:
        if point["kind"] == "sensitivity":
            name = point["class"]
            before, after = ({rate: format_metric(test[rate], bounds_form=".2f") for rate in (
                "sensitivity", "specificity")} for test in (own[name], point["test"]))
            difference = _difference(rows[f"sensitivity/{name}"]) if f"sensitivity/{name}" in rows else "n/a"
            table.append([name, format_number(point["promised"], ".2f"), before["sensitivity"], after["sensitivity"],
                          difference, before["specificity"], after["specificity"]])
    return table


def promises(record):
    """Sentences on what thresholds promise, which classes have none, and what abstention does before and after."""
    fitted = record["recalibration"]
    first = next(point for point in record["operating_points"] if point["kind"] == "sensitivity")
    lines = [f"promised: a sensitivity that the new threshold has with an assurance of {first['assurance']:g}, which "
             f"takes {fitted['least_positives']} positives to fit on"]
    few = [f"{name} ({count})" for name, count in fitted["without_threshold"].items()]
    if few:
        lines.append(f"no threshold, since there are fewer: {', '.join(few)}")
    before, after = (next(point for point in points if point["kind"] == "abstention")
                     for points in (fitted["own"]["operating_points"], record["operating_points"]))
    return [*lines, f"{after['name']}: before, {_answered(before)}; recalibrated, {_answered(after)}"]


def is_significant(row):
    """Whether the interval of a row of kd.paired.compare() excludes 0; without one, whether p is below .05."""
    if is_defined(row["lo"]):
        return not row["lo"] <= 0 <= row["hi"]
    return is_defined(row["p"]) and row["p"] < 0.05


def _by_metric(record):
    return {row["metric"]: row for row in record["recalibration"]["differences"]}


def _side(row, side):
    return format_metric({"value": row[f"{side}_value"], "lo": row[f"{side}_lo"], "hi": row[f"{side}_hi"],
                          "withheld": row[f"{side}_withheld"]})


def _difference(row):
    """The difference with its interval; with p where it has none, alone where no image is answered otherwise."""
    if is_defined(row["lo"]) and row["hi"] - row["lo"] < 1e-12:
        return format_number(row["difference"], "+.3f")
    text = format_metric({"value": row["difference"], "lo": row["lo"], "hi": row["hi"], "withheld": row["withheld"]},
                         "+.3f")
    has_p = row["metric"] == "rms_ce_debiased" and is_defined(row["p"])
    return f"{text} (p {format_p(row['p'])})" if has_p else text


def _answered(point):
    """What abstention leaves, in words."""
    if not is_defined(point["threshold"]):
        return "no confidence reaches it, and all images are answered"
    coverage, risk = (format_metric(point["test"][name]) for name in ("coverage", "risk"))
    return f"{coverage} of the images are answered, {risk} of these wrongly"
