"""Calibration of the confidences, and the thresholds, class weights and abstention that use them."""

import math

from kd.report import figures_quality
from kd.report.blocks import Column, aside, figure, grid, heading, interval, missing, paragraph, spread, table
from kd.report.sections.overview import drawable, responsive_figure, seed_columns, seed_name
from kd.run_folder import bounded
from kd.runs import FOLDS
from kd.text import command, format_count, format_metric, format_number, is_defined

# metrics.json -> the reference columns
COLUMNS = {"nll": "nll", "brier": "brier", "ece": "ece_uniform", "ece_equal_mass": "ece_adaptive",
           "rms_ce_debiased": "rms_ce_debiased"}
TITLES = {"nll": "NLL", "brier": "Brier", "rms_ce_debiased": "Calibration error, debiased", "ece": "ECE",
          "ece_equal_mass": "ECE, equal mass"}
BINNED = ("ece", "ece_equal_mass")  # biased, so that there is no interval
POINT_METRICS = (
    "macro_f1", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "coverage", "risk",
)


def calibration(study):
    """Blocks: calibration metrics, reliability diagrams, operating points, and risk over coverage."""
    runs = [run for run in study.runs if run.evaluation]
    if not runs:
        return missing("calibration and operating points", "No run was evaluated.")
    blocks = [paragraph(sentence) for sentence in sentences(study)]
    blocks.append(calibration_table(runs))
    unfitted = [run for run in runs if not calibration_of(run).get("temperature")]
    if unfitted:
        names = ", ".join(f"{run.model} {seed_name(run)}" for run in unfitted)
        reasons = [calibration_of(run).get("reason") or no_validation(run) for run in unfitted]
        distinct = "; ".join(dict.fromkeys(map(str, reasons)))
        blocks += missing(f"calibrated figures of {names}", f"No temperature was fitted: {distinct}.")
    return [*blocks, *diagrams(study), *operating_points(runs), *risk_coverage(study)]


def no_validation(run):
    """Why an evaluated Run has no validation predictions."""
    if (run.evaluation.get("conventions") or {}).get("folds"):
        return f"each fold has its own: {command('evaluate.py', run.folder.parents[1] / FOLDS)}"
    return "there are no validation predictions"


def calibration_of(run):
    """The mapping `calibration` of an evaluated Run's metrics.json."""
    return run.evaluation.get("calibration") or {}


def calibration_table(runs):
    """Metrics of each evaluated Run, before and after the temperature."""
    columns = [*seed_columns(), Column("Temperature", "temperature")]
    for name, title in TITLES.items():
        column = Column if name in BINNED else interval
        columns.append(column(title, COLUMNS[name]))
        if name in ("nll", "rms_ce_debiased", "ece"):
            columns.append(column(f"{title}, calibrated", f"{COLUMNS[name]}_calibrated"))
    columns.append(Column("p of ECE, calibrated", "consistency_p", "p"))
    conventions = runs[0].evaluation.get("conventions", {})
    bins = "bins as in metrics.json"
    if conventions.get("bins"):
        bins = f"{conventions['bins']} bins closed on the {conventions.get('closed', 'right')}"
    when = ("after the temperature of each fold, fitted on its validation" if conventions.get("folds") else
            "before and after the temperature fitted on validation")
    caption = (f"Calibration on test, {when}; {bins}; Brier from 0 to 2. Chance raises an ECE: it has no interval, and "
               "p is how often a calibrated network has one as large")
    return table("calibration", caption, columns, [calibration_record(run) for run in runs])


def calibration_record(run):
    """The record of a Run, reference columns first: values, then their bounds."""
    record = {"model": run.model, "seed": run.seed, "accuracy": run.metric("accuracy")["value"]}
    record.update({column: run.metric(name)["value"] for name, column in COLUMNS.items()})
    record["temperature"] = calibration_of(run).get("temperature")
    record.update(spread("accuracy", run.metric("accuracy")))
    for name, column in COLUMNS.items():
        record.update(spread(column, run.metric(name)))
        record.update(spread(f"{column}_calibrated", run.metric(f"{name}_calibrated")))
    consistency = (calibration_of(run).get("consistency") or {}).get("calibrated") or {}
    return {**record, "consistency_p": consistency.get("p"), "role": run.kind}


def sentences(study):
    """What the temperature did to the calibration error of each run: whether the intervals before and after overlap."""
    effects = {"lowers": {}, "raises": {}, "overlap": {}}  # effect -> model -> Runs
    for run in study.runs:
        if run.evaluation:
            raw, calibrated = run.metric("rms_ce_debiased"), run.metric("rms_ce_debiased_calibrated")
            if is_defined(raw["lo"]) and is_defined(calibrated["lo"]):
                effect = ("lowers" if calibrated["hi"] < raw["lo"] else
                          "raises" if calibrated["lo"] > raw["hi"] else "overlap")
                effects[effect].setdefault(run.model, []).append(run)
    lines = []
    for effect in ("lowers", "raises"):
        if effects[effect]:
            lines.append(f"The temperature, fitted on validation, {effect} the debiased calibration error on test of "
                         f"{named(effects[effect])}.")
    if effects["overlap"]:
        lines.append("Whether the temperature, fitted on validation, changes the debiased calibration error on test is "
                     f"open for {named(effects['overlap'])}: the intervals before and after it overlap.")
    return lines


def named(models):
    """`a (seed 0), b (seeds 0, 1)`. models: {model: its Runs}."""
    names = []
    for model, group in models.items():
        seeds = ", ".join(run.seed.removeprefix("seed_") for run in group)
        names.append(f"{model} (seed{'s' if len(group) > 1 else ''} {seeds})")
    return ", ".join(names)


# ---- reliability


def diagrams(study):
    """Blocks: a reliability diagram of the first seed of each model."""
    runs = [run for run in study.firsts if calibration_of(run).get("reliability")]
    if not runs:
        return missing("reliability diagrams", "No metrics.json has the bins.")
    runs, surplus = drawable(runs)
    note = (f"Each mark is a bin, with the 95% interval of its accuracy (Wilson, images taken as independent); below, "
            f"its number of images. Bins of fewer than {figures_quality.LEAST} images are joined with the next; ECE is "
            "of the bins as they were. An interval that includes the dashed line does not show miscalibration; above "
            "the line the network is more accurate than its confidence, below it less accurate. The first seed of each "
            "model.")
    return [heading("Reliability"), aside(note), grid([diagram(run) for run in runs]), *surplus]


def diagram(run):
    """The reliability diagram of a Run, whose calibration has `reliability`."""
    bins = calibration_of(run)["reliability"]
    raw, calibrated = bins.get("raw"), bins.get("calibrated")
    eces = tuple(run.metric(name)["value"] for name in ("ece", "ece_calibrated"))
    name = f"{run.model}, {seed_name(run)}"
    summary = f"Reliability of {name}: ECE {format_number(eces[0])}"
    if math.isfinite(eces[1]):
        summary += f", after temperature {eces[1]:.3f}"
    descriptions = [f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {format_count(count, 'image')}"
                    for confidence, accuracy, count in figures_quality.joined(raw or ())]
    alt = f"{summary}. {'; '.join(descriptions)}"
    return figure(figures_quality.reliability(raw, calibrated, run.kind, eces, alt=alt), alt, name, role=run.kind)


# ---- operating points


def operating_points(runs):
    """Blocks: tables of the operating points of each kind, and one of all for the files alone."""
    records = [point_record(run, point) for run in runs for point in points_of(run)]
    if not records:
        why = "; ".join(dict.fromkeys(map(no_validation, runs)))
        return missing("operating points", f"They are chosen on validation: {why}.")
    blocks = [heading("Operating points"), aside("Chosen on validation, frozen, tested once.")]
    for kind, kind_table in (
        ("macro_f1", weights_table), ("sensitivity", thresholds_table), ("abstention", abstention_table),
    ):
        of_kind = [record for record in records if record["kind"] == kind]
        if of_kind:
            blocks.append(kind_table(of_kind))
    export = [{key: value for key, value in record.items() if key != "role"} for record in records]
    paper = [
        *seed_columns(), Column("Point", "name", kind="text"), Column("Threshold", "tau", ".3g"),
        interval("Macro-F1", "macro_f1_opt"), interval("Sensitivity", "sensitivity"), interval("Risk", "risk"),
    ]
    caption = "Operating points, chosen on validation and tested once"
    return [*blocks, table("operating_points", caption, [], records, export, paper)]


def points_of(run):
    """The operating points of an evaluated Run; where it joins folds, those of the folds on all their test images."""
    return run.evaluation.get("operating_points") or run.evaluation.get("fold_points") or ()


def point_record(run, point):
    """The record of one of a Run's operating points; macro-F1 at the point is `macro_f1_opt`, without it `macro_f1`."""
    threshold = point.get("threshold")
    record = {
        "model": run.model, "seed": run.seed, "tau": threshold if isinstance(threshold, (int, float)) else None,
        "macro_f1_opt": None, "name": point.get("name", ""), "kind": point.get("kind", ""),
        "class": point.get("class") or "", "promised": point.get("promised"), "asked": point.get("asked"),
        "assurance": point.get("assurance"), "chosen_on": point.get("chosen_on", ""), "role": run.kind,
    }
    for name in POINT_METRICS:
        metric = point.get("test", {}).get(name)
        if metric:
            record.update(spread("macro_f1_opt" if name == "macro_f1" else name, bounded(metric)))
    record.update(spread("shortfall", bounded(point.get("shortfall"))))
    if isinstance(threshold, dict):
        record.update({f"weight/{name}": weight for name, weight in threshold.items()})
    if record["kind"] == "macro_f1":
        record.update(spread("macro_f1", run.metric("macro_f1")))
    return record


def weights_table(records):
    """records: point_record() of the kind macro_f1."""
    columns = [
        *seed_columns(), interval("Macro-F1 with them", "macro_f1_opt"), interval("without", "macro_f1"),
        interval("Balanced accuracy with them", "balanced_accuracy"), interval("Accuracy with them", "accuracy"),
    ]
    return table("weights", "Class weights that maximise macro-F1 on validation", columns, records)


def thresholds_table(records):
    """records: point_record() of the kind sensitivity."""
    columns = [
        *seed_columns(), Column("Class", "class"), Column("Threshold", "tau", ".3g"),
        Column("Promised", "promised", ".2f"), interval("Sensitivity", "sensitivity"),
        interval("Shortfall", "shortfall", form="+.3f"),
        interval("Specificity", "specificity"), interval("PPV", "ppv"), interval("NPV", "npv"),
    ]
    first = records[0]
    asked = first["asked"] or first["promised"]
    assurance = f" with an assurance of {first['assurance']:g}" if first["assurance"] else ""
    caption = (f"Thresholds for a sensitivity of {asked:g}{assurance}, chosen on validation; less is promised where "
               "validation has too few positives")
    return table("thresholds", caption, columns, records)


def abstention_table(records):
    """records: point_record() of the kind abstention, which promise one value."""
    columns = [
        *seed_columns(), Column("Confidence", "tau"), interval("Images answered", "coverage", form=".1%"),
        interval("of these wrong", "risk", form=".1%"),
    ]
    caption = f"Abstention that promises an error rate of {records[0]['promised']:g}"
    return table("abstention", caption, columns, records)


def threshold_sentences(study, model):
    """The classes in which most seeds of a model miss the promised sensitivity on test, interval and all."""
    lines, runs = [], [run for run in study.models[model] if run.evaluation]
    teachers = [group[0] for group in study.evaluated.values() if group[0].kind == "teacher"][:1]
    for name in runs[0].class_names if runs else ():
        points = [(run, point) for run in runs if (point := sensitivity_point(run, name))]
        missed = sum(misses_promise(point) for _, point in points)
        if points and missed > len(points) / 2:
            first = points[0][1]
            positives = (runs[0].evaluation.get("split", {}).get("val", {}).get("support") or {}).get(name)
            source = f" (from {format_count(positives, 'validation image')})" if positives else ""
            shown = [f"{format_metric(point['test']['sensitivity'])} ({seed_name(run)})" for run, point in points[:3]]
            if len(points) > 3:
                shown[-1] += f", missed by {missed} of {len(points)} seeds"
            of_teacher = [f"; {run.model} {format_metric(point['test']['sensitivity'])} ({seed_name(run)})"
                          for run in teachers if (point := sensitivity_point(run, name))]
            lines.append(f"Class {name}: the threshold promises a sensitivity of {first['promised']:.2f}{source}. On "
                         f"test {model} has {', '.join(shown)}{''.join(of_teacher)}.")
    return lines


def sensitivity_point(run, name):
    """The operating point of a Run that promises a sensitivity for the class `name` and was tested, or None."""
    return next((point for point in points_of(run)
                 if point.get("kind") == "sensitivity" and point.get("class") == name
                 and is_defined((point.get("test", {}).get("sensitivity") or {}).get("value"))), None)


def misses_promise(point):
    """Whether the whole interval of a sensitivity's shortfall lies above 0."""
    lo = (point.get("shortfall") or {}).get("lo")
    return is_defined(lo) and lo > 0


# ---- abstention


def risk_coverage(study):
    """Blocks: risk over coverage of the first seed of each model, and the area under it of each run."""
    runs = [run for run in study.firsts if (run.evaluation.get("risk_coverage") or {}).get("coverage")]
    if not runs:
        return missing("risk over coverage", "No metrics.json has the curve.")
    runs, surplus = drawable(runs)
    curves, areas = [], []
    for run in runs:
        curve = run.evaluation["risk_coverage"]
        curves.append((run.model, run.kind, curve["coverage"], curve["risk"]))
        areas.append(f"{run.model}: area {format_metric(run.metric('aurc'))}")
    alt = f"Risk over coverage. {'; '.join(areas)}"
    records = []
    for run in study.runs:
        if run.evaluation:
            records.append({
                "model": run.model, "role": run.kind, "seed": run.seed, **spread("aurc", run.metric("aurc")),
                **spread("aurc_calibrated", run.metric("aurc_calibrated")),
            })
    columns = [*seed_columns(), interval("AURC", "aurc"), interval("AURC, calibrated", "aurc_calibrated")]
    note = ("The least confident images are left to a person: the share of the images that the model answers, and how "
            "often its answer is wrong. The first seed of each model.")
    return [heading("Risk over coverage"), aside(note),
            responsive_figure(figures_quality.risk_coverage, curves, alt=alt), *surplus,
            table("risk_coverage", "Area under the risk-coverage curve, lower is better", columns, records)]
