"""Settings for another site (RUN/recalibrated/NAME.json): the file, its check, and what it says, as rows of cells.

A record is the content of such a file: a metrics.json of the part of the site's cases that is tested on, with, under
"recalibration", what kd.evaluation.recalibrate fitted on the other part. The first row of a table is its header.
"""

from kd.errors import UserError, listing, nearest
from kd.files import read_json
from kd.run_checks import check_metrics, is_count, is_metrics, is_number, is_point, is_share
from kd.text import format_metric, format_number, format_p, is_defined

FOLDER = "recalibrated"  # of a run
FORMAT = "medmnist-edgeai/recalibration/1"  # what such a file calls itself
FIT = "fit"  # the part of the cases that settings were fitted on, as operating points and sizes name it
TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "nll": "NLL",
          "brier": "Brier score", "aurc": "AURC", "rms_ce_debiased": "debiased calibration error", "ece": "ECE"}
RATES = {"sensitivity": ("sensitivity", "specificity"), "abstention": ("coverage", "risk")}  # of kinds of points


# ---- the file


def read(run, name):
    """The record of the settings that were fitted to a site, of a Run. UserError where there is none, or it is damaged.
    """
    folder = run.folder / FOLDER
    path = folder / f"{name}.json"
    if not path.is_file():
        others = sorted(other.stem for other in folder.glob("*.json"))
        raise UserError(f"{run.folder} has no settings for a site {name}", nearest(name, others) or (
            f"It has: {listing(others)}." if others else "Fit them: evaluate.py RUN --data NAME --recalibrate"))
    content = check_metrics(run, path, read_json(path))
    try:
        sound = _are_settings(content, content["class_names"]) and _is_comparison(content, content["class_names"])
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} is not what evaluate.py --recalibrate writes",
                        "Make it again: evaluate.py RUN --data NAME --recalibrate")
    return content


def _are_settings(content, names):
    """Whether settings can be computed with. May raise KeyError, TypeError or AttributeError where they cannot."""
    fitted, calibration, points = (content[key] for key in ("recalibration", "calibration", "operating_points"))
    offsets, bounds, temperature = fitted["offsets"], calibration["bounds"], calibration["temperature"]
    numbers = [*offsets, *bounds, temperature, calibration["nll_val_before"], calibration["nll_val_after"]]
    return (fitted["format"] == FORMAT and all(isinstance(fitted[key], str) for key in ("site", "weights", "unit"))
            and len(offsets) == len(names) and len(bounds) == 2
            and all(is_defined(number) and is_number(number) for number in numbers) and temperature > 0
            and all(isinstance(fitted["fitted_on"][what], list) and all(
                isinstance(key, str) for key in fitted["fitted_on"][what]) for what in ("images", "groups", "pictures"))
            and content["conventions"]["majority_class"] in names
            and all(_is_setting(point, names) for point in points))


def _is_setting(point, names):
    """Whether an operating point can be used: its threshold is one of its kind."""
    threshold, kind = point["threshold"], point["kind"]
    if kind == "sensitivity":
        return point["class"] in names and is_share(threshold) and all(
            is_defined(point[key]) for key in ("asked", "assurance"))
    if kind == "abstention":
        return threshold is None or is_share(threshold)
    return isinstance(threshold, dict) and list(threshold) == names and all(
        is_defined(value) and value > 0 for value in threshold.values())


def _is_comparison(content, names):
    """Whether the figures before and after can be shown. May raise as _are_settings() does."""
    fitted, split = content["recalibration"], content["split"]
    own, rows = fitted["own"], fitted["differences"]
    sides = [[point for point in points if point["kind"] in RATES]
             for points in (own["operating_points"], content["operating_points"])]
    before, after = ({(point["kind"], point["class"]) for point in points} for points in sides)
    sizes = [split[part][what] for part in (FIT, "test") for what in ("images", "groups")]
    counts = [*sizes, *fitted["without_threshold"].values(), fitted["least_positives"], fitted["in_neither"]]
    bounds = [f"{side}{bound}" for side in ("", "reference_", "model_") for bound in ("lo", "hi")]
    return (all(map(is_point, own["operating_points"])) and {kind for kind, _ in after} == RATES.keys()
            and after <= before and is_metrics(own["test"])
            and all({"value", "lo", "hi"} <= point["test"][rate].keys() for points in sides for point in points
                    for rate in RATES[point["kind"]])
            and all(isinstance(row[key], str) for row in rows
                    for key in ("metric", "withheld", "reference_withheld", "model_withheld"))
            and all(is_number(row[key]) for row in rows
                    for key in (*bounds, "reference_value", "model_value", "difference", "p"))
            and TITLES.keys() <= {row["metric"] for row in rows}
            and list(fitted["shares"]) == names
            and all(is_share(share[key]) for share in fitted["shares"].values() for key in ("site", "answered"))
            and all(type(count) is int and is_count(count) for count in counts)
            and set(fitted["without_threshold"]) <= set(names)
            and all(list(split[part]["support"]) == names for part in (FIT, "test"))
            and (own["temperature"] is None or is_defined(own["temperature"])))


# ---- what it says


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
    """Sentences on what is better, worse and not significant; without ECE, of which nothing is known by chance.

    Sensitivities and specificities are higher or lower: which of the two is worth more is not known here.
    """
    found = {"better": [], "worse": [], "not significant (the 95% interval of the difference includes 0)": []}
    better, worse, unclear = found.values()
    for name, row in _by_metric(record).items():
        if name in TITLES and name != "ece":
            is_gain = row["difference"] > 0 if name in ("accuracy", "macro_f1", "balanced_accuracy") else (
                row["difference"] < 0)
            (unclear if not is_significant(row) else better if is_gain else worse).append(TITLES[name])
    lines = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
    for word, sign in (("higher", 1), ("lower", -1)):
        moved = [" of ".join(name.split("/", 1)) for name, row in _by_metric(record).items()
                 if name.startswith(("sensitivity/", "specificity/")) and is_significant(row)
                 and sign * row["difference"] > 0]
        if moved:
            lines.append(f"{word} at the new thresholds: {', '.join(moved)}")
    if not better:
        lines.append("Nothing is better than with the run's own settings: keep these, but for thresholds whose promise "
                     "they do not keep.")
    return lines


def without_threshold(record):
    """The classes for which the settings have no threshold, those of the run itself included."""
    have = {point["class"] for point in record["operating_points"] if point["kind"] == "sensitivity"}
    return [name for name in record["class_names"] if name not in have]


def thresholds(record):
    """Each threshold: what it promises, and sensitivity and specificity on the test part, before and after."""
    rows, fitted = _by_metric(record), record["recalibration"]
    own = {point["class"]: point for point in fitted["own"]["operating_points"] if point["kind"] == "sensitivity"}
    table = [["class", "promised", "sensitivity before", "recalibrated", "difference", "specificity before",
              "recalibrated", "difference"]]
    for point in record["operating_points"]:
        if point["kind"] == "sensitivity":
            name = point["class"]
            before, after = ({rate: format_metric(test[rate], bounds_form=".2f") for rate in (
                "sensitivity", "specificity")} for test in (own[name]["test"], point["test"]))
            sensitivity, specificity = (_difference(rows[f"{rate}/{name}"]) if f"{rate}/{name}" in rows else "n/a"
                                        for rate in RATES["sensitivity"])
            promised = ", now ".join(format_number(side["promised"], ".2f") for side in (own[name], point))
            table.append([name, promised, before["sensitivity"], after["sensitivity"], sensitivity,
                          before["specificity"], after["specificity"], specificity])
    return table


def promises(record):
    """Sentences on what thresholds promise, which classes have none, and what abstention does before and after."""
    fitted = record["recalibration"]
    first = next(point for point in record["operating_points"] if point["kind"] == "sensitivity")
    lines = [f"promised: a sensitivity that a threshold has, with an assurance of {first['assurance']:g}, among cases "
             "like those it was chosen on (validation images; now those fitted on)",
             f"to promise {first['asked']:g} takes {fitted['least_positives']} positives to fit on"]
    few = [f"{name} ({count})" for name, count in fitted["without_threshold"].items()]
    if few:
        lines.append(f"no threshold, since there are fewer: {', '.join(few)}")
    others = [name for name in without_threshold(record) if name not in fitted["without_threshold"]]
    if others:
        lines.append(f"no threshold, since none was asked for, and the run's own do not hold for the new "
                     f"probabilities: {', '.join(others)}")
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
