"""Whether confidences can be believed, and what thresholds and abstention make of them."""

import math

from kd.report import figures_quality
from kd.report.blocks import Column, aside, figure, grid, heading, interval, missing, paragraph, spread, table
from kd.report.sections.overview import drawn, seed_name
from kd.run_folder import bounded
from kd.text import format_count, format_metric, format_number, is_defined

# metrics.json -> the reference columns
NAMES = {"nll": "nll", "brier": "brier", "ece": "ece_uniform", "ece_equal_mass": "ece_adaptive"}
TITLES = {"nll": "NLL", "brier": "Brier", "ece": "ECE", "ece_equal_mass": "ECE, equal mass"}


def calibration(study):
    held = [run for run in study.runs if run.evaluation]
    if not held:
        return missing("calibration and operating points", "No run was evaluated.")
    blocks = [paragraph(sentence) for sentence in sentences(study)]
    columns = [Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), interval("Accuracy", "accuracy")]
    for name, title in TITLES.items():
        columns.append(interval(title, NAMES[name]))
        if name in ("nll", "ece"):
            columns.append(interval(f"{title}, calibrated", f"{NAMES[name]}_calibrated"))
    columns.insert(3, Column("Temperature", "temperature"))
    told = held[0].evaluation.get("conventions", {})
    bins = f"{told['bins']} bins closed on the {told.get('closed', 'right')}" if told.get("bins") else "bins as in metrics.json"
    blocks.append(table("calibration", f"Calibration on test, as the networks are and after the temperature fitted on validation; {bins}; "
                        "Brier from 0 to 2", columns, [record(run) for run in held]))
    lacking = [run for run in held if not (run.evaluation.get("calibration") or {}).get("temperature")]
    if lacking:
        reasons = {(run.evaluation.get("calibration") or {}).get("reason") or "no validation predictions" for run in lacking}
        blocks += missing(f"calibrated figures of {', '.join(f'{run.model} {seed_name(run)}' for run in lacking)}",
                          f"No temperature was fitted: {'; '.join(map(str, reasons))}.")
    return [*blocks, *diagrams(study), *operating_points(held), *abstention(study)]


def record(run):
    held = {"model": run.model, "seed": run.seed, "accuracy": run.metric("accuracy")["value"]}
    held.update({column: run.metric(name)["value"] for name, column in NAMES.items()})
    held["temperature"] = (run.evaluation.get("calibration") or {}).get("temperature")
    held.update(spread("accuracy", run.metric("accuracy")))
    for name, column in NAMES.items():
        held.update(spread(column, run.metric(name)))
        held.update(spread(f"{column}_calibrated", run.metric(f"{name}_calibrated")))
    return {**held, "role": run.kind}


def sentences(study):
    """What the temperature did to each model's ECE, and whether the intervals, which are not paired, overlap."""
    apart, alike = {"lowers": [], "raises": []}, []
    for run in study.firsts:
        raw, after = run.metric("ece"), run.metric("ece_calibrated")
        if not is_defined(raw["lo"]) or not is_defined(after["lo"]):
            continue
        told = f"{run.model} ({format_metric(raw)} before, {format_metric(after)} after)"
        if after["hi"] < raw["lo"]:
            apart["lowers"].append(told)
        elif after["lo"] > raw["hi"]:
            apart["raises"].append(told)
        else:
            alike.append(told)
    found = [f"The temperature of validation {verb} the calibration error (ECE) on test of {'; '.join(held)}: the intervals do not overlap."
             for verb, held in apart.items() if held]
    if alike:
        found.append(f"The intervals of the calibration error (ECE) on test before and after the temperature of validation overlap: {'; '.join(alike)}.")
    return found


def diagrams(study):
    runs = [run for run in study.firsts if (run.evaluation.get("calibration") or {}).get("reliability")]
    if not runs:
        return missing("reliability diagrams", "No metrics.json has the bins.")
    shown, more = drawn(runs)
    items = []
    for run in shown:
        bins = run.evaluation["calibration"]["reliability"]
        eces = tuple(run.metric(name)["value"] for name in ("ece", "ece_calibrated"))
        alt = f"Reliability of {run.model}, {seed_name(run)}: ECE {format_number(eces[0])}" + (
            f", after temperature {eces[1]:.3f}" if math.isfinite(eces[1]) else "") + ". " + "; ".join(
            f"confidence {row['confidence']:.2f}, accuracy {row['accuracy']:.2f}, {format_count(row['count'], 'image')}"
            for row in bins.get("raw") or () if row["count"] and row["confidence"] is not None and row["accuracy"] is not None)
        items.append(figure(figures_quality.reliability(bins.get("raw"), bins.get("calibrated"), run.kind, eces, alt=alt), alt,
                            f"{run.model}, {seed_name(run)}", role=run.kind))
    return [heading("Reliability"), aside("A mark is a bin, its area the share of the images in it. Above the dashed line the network "
                                          "is better than it says, below it worse. The first seed of each model."), grid(items), *more]


# ---- operating points


def operating_points(held):
    points = [(run, point) for run in held for point in run.evaluation.get("operating_points") or ()]
    if not points:
        return missing("operating points", "They are chosen on validation, and there are no validation predictions.")
    records = [point_record(run, point) for run, point in points]
    model = [Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed")]
    blocks = [heading("Operating points"), aside("Chosen on validation, frozen, tested once.")]
    kinds = {kind: [record for record in records if record["kind"] == kind] for kind in ("sensitivity", "macro_f1", "prior", "abstention")}
    plain = {(run.model, run.seed): run.metric("macro_f1") for run in held}
    for record in kinds["macro_f1"]:
        record.update(spread("macro_f1", plain[record["model"], record["seed"]]))
    if kinds["macro_f1"]:
        blocks.append(table("weights", "Weights a class that make macro-F1 on validation largest", [
            *model, interval("Macro-F1 with them", "macro_f1_opt"), interval("without", "macro_f1"),
            interval("Balanced accuracy with them", "balanced_accuracy"), interval("Accuracy with them", "accuracy")],
            kinds["macro_f1"]))
    if kinds["sensitivity"]:
        blocks.append(table("thresholds", f"Thresholds that promise a sensitivity of {kinds['sensitivity'][0]['promised']:g} on validation", [
            *model, Column("Class", "class"), Column("Threshold", "tau", ".3g"), interval("Sensitivity", "sensitivity"),
            interval("Shortfall", "shortfall", form="+.3f"), interval("Specificity", "specificity"), interval("PPV", "ppv"),
            interval("NPV", "npv")], kinds["sensitivity"]))
    if kinds["abstention"]:
        blocks.append(table("abstention", f"Abstention that promises an error rate of {kinds['abstention'][0]['promised']:g}", [
            *model, Column("Confidence", "tau"), interval("Images answered", "coverage", form=".1%"),
            interval("of these wrong", "risk", form=".1%")], kinds["abstention"]))
    export = [{key: value for key, value in record.items() if key != "role"} for record in records]
    return [*blocks, table("operating_points", "Operating points, chosen on validation and tested once", [], records, export, [
        *model, Column("Point", "name", kind="text"), Column("Threshold", "tau", ".3g"), interval("Macro-F1", "macro_f1_opt"),
        interval("Accuracy", "accuracy"), interval("Sensitivity", "sensitivity"), interval("Specificity", "specificity"),
        interval("Answered", "coverage"), interval("Risk", "risk")])]


def point_record(run, point):
    threshold = point.get("threshold")
    record = {"model": run.model, "seed": run.seed, "tau": threshold if isinstance(threshold, (int, float)) else None,
              "macro_f1_opt": None, "name": point.get("name", ""), "kind": point.get("kind", ""), "class": point.get("class") or "",
              "promised": point.get("promised"), "chosen_on": point.get("chosen_on", ""), "role": run.kind}
    for name in ("macro_f1", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "coverage", "risk"):
        if point.get("test", {}).get(name):
            record.update(spread("macro_f1_opt" if name == "macro_f1" else name, bounded(point["test"][name])))
    record.update(spread("shortfall", bounded(point.get("shortfall"))))
    if isinstance(threshold, dict):
        record.update({f"weight/{name}": weight for name, weight in threshold.items()})
    return record


# ---- abstention


def abstention(study):
    held = [run for run in study.firsts if (run.evaluation.get("risk_coverage") or {}).get("coverage")]
    if not held:
        return missing("risk over coverage", "No metrics.json has the curve.")
    held, more = drawn(held)
    curves = [(run.model, run.kind, run.evaluation["risk_coverage"]["coverage"], run.evaluation["risk_coverage"]["risk"]) for run in held]
    alt = "Risk over coverage. " + "; ".join(f"{run.model}: area {format_metric(run.metric('aurc'))}" for run in held)
    wide, narrow = (figures_quality.risk_coverage(curves, shape, alt=alt) for shape in (False, True))
    records = [{"model": run.model, "role": run.kind, "seed": run.seed, **spread("aurc", run.metric("aurc")),
                **spread("aurc_calibrated", run.metric("aurc_calibrated"))} for run in study.runs if run.evaluation]
    return [heading("Risk over coverage"), aside("If the least confident images are left to a person: the share that is answered, and how "
                                                 "often the answer is wrong. The first seed of each model."),
            figure(wide, alt, "", narrow), *more,
            table("risk_coverage", "Area under risk over coverage, less is better", [
                Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), interval("AURC", "aurc"),
                interval("AURC, calibrated", "aurc_calibrated")], records)]


def threshold_sentences(study):
    """Of each first seed's worst-kept promise of sensitivity: whether the interval bears that it was missed."""
    found = []
    for run in study.firsts:
        missed = [point for point in run.evaluation.get("operating_points") or () if point.get("kind") == "sensitivity"
                  and is_defined((point.get("shortfall") or {}).get("lo")) and point["shortfall"]["lo"] > 0]
        if missed:
            found.append(f"{run.model} misses the sensitivity of {missed[0]['promised']:g} that its thresholds promised on validation: "
                         + "; ".join(f"{point.get('class')} {format_metric(point['test']['sensitivity'])}" for point in missed) + ".")
    return found
