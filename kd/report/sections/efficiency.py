"""Latency and memory of models as they are deployed, the effect of exporting, and quality against latency."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from kd.files import parse_number
from kd.report import figures_latency
from kd.report.blocks import Column, aside, figure, interval, missing, spread, table
from kd.report.sections.overview import FORMATS, seed_columns, seed_name, with_format
from kd.report.sections.students import not_significant
from kd.report.study_files import OF_FIRST_FOLDS, command_path
from kd.run_folder import bounded
from kd.text import format_bounds, format_count, format_metric, is_defined

LATENCY = ("lat_ms_mean", "lat_ms_std", "lat_ms_p50", "lat_ms_p90", "lat_ms_p99", "throughput_fps")
MEMORY = ("params_bytes", "params_mib", "peak_cuda_bytes", "peak_cuda_mib")
INTEGERS = (
    "batch", "imsz", "params_bytes", "peak_cuda_bytes", "file_bytes", "parameters", "macs", "threads", "queries",
)
NUMBERS = (
    *LATENCY, *MEMORY, *INTEGERS, "lat_ms_p90_mlperf", "lat_ms_p99_mlperf", "cpu_ms_p50", "iqr_over_median", "speedup",
    "peak_rss_mib", "cold_start_ms", "load",
)
EXPORT_FORMATS = {"onnx": "ONNX", "int8": "ONNX INT8", "executorch": "ExecuTorch",
                  "executorch_int8": "ExecuTorch INT8"}  # exports/parity.json -> titles
PARETO_COLUMNS = (
    "model", "score", "latency_ms", "params_mib", "peak_cuda_mib", "seed", "precision", "file", "score_lo", "score_hi",
    "file_bytes", "dominated", "noisy",
)
MAX_MARKS = 12  # models in the drawing


def benchmark_rows(study):
    """(rows of all benchmark.csv with numbers for texts, [(run, why a row of it is not shown)])."""
    rows, left_out = [], []
    for run in study.runs:
        for cells in run.benchmark:
            row = {key: csv_number(text, key) if key in NUMBERS else text for key, text in cells.items()}
            file = cells.get("ckpt", "").replace("\\", "/").split("/")[-1]
            row.update(model=run.model, seed=run.seed, role=run.kind, file=file, noisy=cells.get("noisy") == "True",
                       backend=cells.get("backend", ""))
            name = f"{run.model}/{run.seed}"
            if not row.get("cpu"):
                left_out.append((name, "A row does not state the machine on which it was measured."))
            elif not is_defined(row["lat_ms_p50"]) or not is_defined(row["batch"]):
                left_out.append((name, "A row has no median latency, or no batch size."))
            else:
                rows.append(row)
    return rows, left_out


def csv_number(text, key):
    """The number in a cell of the column `key`, an int where the column has whole ones; None where there is none."""
    value = parse_number(text)
    if not math.isfinite(value):
        return None
    return int(value) if key in INTEGERS and value.is_integer() else value


def scaled(value, unit):
    """`value` in units of `unit`, or None."""
    return value / unit if is_defined(value) else None


# ---- latency and memory


def efficiency(study, measured):
    """Blocks: latency on each device, memory, what the exported files change, and which files are dominated."""
    rows, left_out = benchmark_rows(study)
    blocks = [aside(OF_FIRST_FOLDS)] if study.first_folds else []
    if not rows:
        why = "No row of a benchmark.csv can be used." if left_out else "No run has benchmark.csv."
        blocks += missing("latency and memory", why, f"python benchmark.py {study.network_folders}")
    for run, why in dict.fromkeys(left_out):
        blocks += missing(f"some of benchmark.csv of {run}", why)
    unmeasured = study.lacking("benchmark")
    if rows and unmeasured:
        blocks += missing(f"latency of {unmeasured}", "There is no benchmark.csv.")
    on_cpu = [row for row in rows if row.get("device") == "cpu"]
    on_gpu = [row for row in rows if row.get("device") != "cpu"]
    for name, title, of_device in (("gpu_latency", "GPU latency", on_gpu), ("cpu_latency", "CPU latency", on_cpu)):
        if of_device:
            blocks.append(latency_table(name, title, of_device))
            blocks += noise_note(of_device)
    if rows:
        blocks.append(memory_table(rows))
    return [*blocks, *exports(study), *pareto(study, measured)]


def noise_note(rows):
    """A block about the rows that are marked noisy, in a list; an empty one where none is."""
    noisy = sum(row["noisy"] for row in rows)
    if not noisy:
        return []
    return [aside(f"noisy: {noisy} of {len(rows)}. The quartiles of these latencies are a tenth of the median apart, "
                  "or the 5th and 95th percentile three tenths, or mean and median a twentieth, or the warm-up did not "
                  "settle: other work was on the machine. Do not compare these figures closely.")]


def latency_table(name, title, rows):
    """Latencies in ms of the benchmark_rows() of one device; what all rows share stands in the caption."""
    queries = {(row["batch"], row.get("imsz")) for row in rows}
    machines = dict.fromkeys(f"{row['cpu']}, {format_count(row.get('threads') or 1, 'thread')}" for row in rows)
    measured = "; ".join(dict.fromkeys(row["measured"] for row in rows if row.get("measured")))
    caption = f"{title}, ms per query"
    if measured:
        caption += f" ({measured})"
    query_columns = [Column("Batch", "batch", "d"), Column("px", "imsz", "d")]
    if len(queries) == 1:
        batch, size = queries.pop()
        caption += f"; batch {batch}, {size} px"
        query_columns = []
    caption += f"; {'; '.join(machines)}"
    backends = {row["backend"] for row in rows}
    if len(backends) == 1:
        caption += f"; {backends.pop()}"
    else:
        query_columns.insert(0, Column("Runs on", "backend"))
    columns = [
        *seed_columns(), Column("File", "format"), *query_columns,
        Column("Mean", "lat_ms_mean", ".2f"), Column("SD", "lat_ms_std", ".2f"), Column("p50", "lat_ms_p50", ".2f"),
        Column("p90", "lat_ms_p90", ".2f"), Column("p99", "lat_ms_p99", ".2f"),
        Column("p90, MLPerf", "lat_ms_p90_mlperf", ".2f"), Column("Images/s", "throughput_fps", ".1f"),
        Column("CPU ms", "cpu_ms_p50", ".2f"), Column("Noise", "noise"),
    ]
    records = [{**with_format(row), "noise": "noisy" if row["noisy"] else ""} for row in rows]
    # The CSV begins with the reference columns; memory has a table of its own.
    keys = ["ckpt", "model", "seed", "device", "batch", "imsz", *LATENCY]
    keys += dict.fromkeys(key for row in rows for key in row if key not in (*keys, *MEMORY))
    export = [{key: row.get(key) for key in keys} for row in rows]
    return table(name, caption, columns, records, export)


def memory_table(rows):
    """Sizes of the benchmark_rows(): bytes in the CSV, MiB and MB on the page."""
    columns = [
        *seed_columns(), Column("File", "format"), Column("Checkpoint, MiB", "params_mib", ".2f"),
        Column("File, MB", "file_mb", ".2f"), Column("Peak GPU, MiB", "peak_cuda_mib", ".1f"),
        Column("Peak RSS, MiB", "peak_rss_mib", ".0f"), Column("MACs, M", "macs_m", ".1f"),
        Column("Cold start, ms", "cold_start_ms", ".0f"),
    ]
    records, export = [], []
    for row in rows:
        megabytes, millions = scaled(row.get("file_bytes"), 1e6), scaled(row.get("macs"), 1e6)
        records.append({**with_format(row), "file_mb": megabytes, "macs_m": millions})
        reference = {key: row.get(key) for key in ("ckpt", "model", "seed", *MEMORY)}
        further = ("peak_rss_mib", "file_bytes", "parameters", "macs", "cold_start_ms", "cpu")
        export.append({**reference, "img_sz": row.get("imsz"), "batch": row["batch"],
                       **{key: row.get(key) for key in further}})
    caption = ("Memory and size; checkpoint: the parameters and buffers of the network before any export; peak RSS is "
               "of a process that loads and runs this file alone")
    return table("memory", caption, columns, records, export)


# ---- exports


def exports(study):
    """Blocks: each exported file compared with its checkpoint on the test images."""
    records = [export_record(run, name, export) for run in study.runs for name, export in run.exports.items()]
    if not records:
        found = (study.firsts or study.runs)[-1:]
        return missing("the effect of exporting", "No run has exports/parity.json.",
                       *(f"python export.py {command_path(run.folder)}" for run in found))
    columns = [
        *seed_columns(), Column("File", "format"), Column("Labels changed", "flips", ".2%"),
        interval("Δ macro-F1", "delta_macro_f1", form="+.4f"), interval("Δ accuracy", "delta_accuracy", form="+.4f"),
        Column("Δ ECE", "ece_shift", "+.4f"), Column("Largest Δ logit", "largest", ".1e"),
    ]
    caption = ("Exported files compared with their checkpoint, on the test images; paired intervals over lesions or "
               "patients")
    return [table("exports", caption, columns, records)]


def export_record(run, name, export):
    """The record of a Run's exported file `name`, of its part of exports/parity.json."""
    test = export["test"]
    record = {
        "model": run.model, "role": run.kind, "seed": run.seed, "format": EXPORT_FORMATS.get(name, name),
        "file": export.get("file", ""), "bytes": export.get("bytes"), "mb": scaled(export.get("bytes"), 1e6),
        "images": test.get("images"), "flips": test["flips"], "largest": test.get("largest"),
    }
    for metric in ("macro_f1", "accuracy"):
        record[metric] = test[metric].get("model")
        record.update(spread(f"delta_{metric}", bounded(test[metric].get("difference"))))
    record["ece_shift"] = (test.get("ece") or {}).get("shift")
    return record


def int8_change(run):
    """The answers and the macro-F1 that INT8 changes of a Run, and whether that is significant; "" if not known."""
    test = run.exports.get("int8", {}).get("test")
    difference = test["macro_f1"].get("difference") or {} if test else {}
    lo, hi = difference.get("lo"), difference.get("hi")
    if not is_defined(lo) or not is_defined(test["flips"]):
        return ""
    return (f"another class for {test['flips']:.1%} of the test images, macro-F1 {difference['value']:+.4f} "
            f"{format_bounds(lo, hi, '+.4f')}, {not_significant(difference) or 'significant'}")


# ---- Pareto


@dataclass
class Measured:
    """The files that were measured under the same conditions. left_out: [(model, why it is not among them)]."""

    points: list
    conditions: str
    left_out: list

    def point(self, model, precision):
        """The point of a model's first measured seed, or None."""
        return next((point for point in self.points
                     if (point["model"], point["precision"]) == (model, precision)), None)


def drawing(study, measured):
    """The figure of macro-F1 over latency or, where fewer than two models were measured, over parameters, in a list.

    An empty list where fewer than two are known.
    """
    networks = study.networks
    models, draw, cost = latency_marks(networks, measured), figures_latency.quality_latency, "latency"
    if len(models) < 2:
        models, draw, cost = parameter_marks(study), figures_latency.quality_parameters, "parameters"
        networks = study
    if len(models) < 2:
        return []
    values, descriptions = [], []
    for k, (model, _, fp32, _) in enumerate(models[:MAX_MARKS]):
        seeds = [run.metric("macro_f1")["value"] for run in networks.models[model]]
        if len(seeds) > 1 and not is_defined(fp32.lo):
            values += [(k, seed) for seed in seeds if is_defined(seed)]
        size = f", {fp32.size:.1f} MB" if fp32.size else ""
        score = {"value": fp32.score, "lo": fp32.lo, "hi": fp32.hi}
        unit = "ms" if cost == "latency" else "M"
        descriptions.append(f"{model} {format_metric(score)}, {fp32.cost:.2f} {unit}{size}")
    parts = [f"Quality against {cost}{', of the first fold' if networks.first_folds else ''}"]
    if cost == "latency":
        parts.append("area: file size")
    if any(int8 for *_, int8 in models):
        several = any(len(networks.models[model]) > 1 for model, *_ in models)
        parts.append("diamond: INT8" + (" (mean plus its seed's change)" if several else ""))
    if values:
        parts.append("short lines: the seeds of a model without an interval")
    parts.append(f"dashed: best up to each {'latency' if cost == 'latency' else 'number of parameters'}")
    alt = f"Macro-F1 over {cost}. {'; '.join(descriptions)}"
    return [figure(draw(models[:MAX_MARKS], values, alt=alt), alt, "; ".join(parts))]


def latency_marks(study, measured):
    """[(model, role, Mark, Mark of its INT8 file or None)] of the measured models with a macro-F1."""
    of_models = {}
    for point in measured.points:
        of_models.setdefault(point["model"], {}).setdefault(point["precision"], []).append(point)
    marks = []
    for model, of_model in of_models.items():
        score = study.over_seeds(model, "macro_f1")
        if "fp32" in of_model and is_defined(score["value"]):
            shifted = int8_score(study, of_model, score)
            int8 = mark(of_model["int8"], shifted) if shifted else None
            marks.append((model, study.models[model][0].kind, mark(of_model["fp32"], score), int8))
    return marks


def parameter_marks(study):
    """The same over the number of parameters, of all models that were evaluated; without INT8 files and sizes."""
    marks = []
    for model, group in study.evaluated.items():
        score, parameters = study.over_seeds(model, "macro_f1"), group[0].setting("parameters")
        if is_defined(score["value"]) and is_defined(parameters):
            one = figures_latency.Mark(parameters / 1e6, score["value"], score["lo"], score["hi"], None)
            marks.append((model, group[0].kind, one, None))
    return marks


def mark(points, score):
    """The Mark of the files of a model's seeds in one precision. score: METRIC of them."""
    latency, size = (float(np.median([point[key] or 0 for point in points])) for key in ("latency_ms", "file_mb"))
    return figures_latency.Mark(latency, score["value"], score["lo"], score["hi"], size or None)


def int8_score(study, of_model, score):
    """METRIC of the INT8 files of a model, or None. score: that of the model over its seeds.

    of_model: its points, {precision: [point]}. Of several seeds it is `score` and the mean difference of the INT8 files
    from their checkpoints, without an interval.
    """
    points, checkpoints = of_model.get("int8", []), {point["seed"]: point["score"] for point in of_model["fp32"]}
    shifts = [point["score"] - checkpoints[point["seed"]] for point in points if point["seed"] in checkpoints]
    if not shifts:
        return None
    if len(study.models[points[0]["model"]]) == 1:
        return {"value": points[0]["score"], "lo": points[0]["score_lo"], "hi": points[0]["score_hi"]}
    return {"value": score["value"] + float(np.mean(shifts)), "lo": math.nan, "hi": math.nan}


def pareto(study, measured):
    """Blocks: the table of quality against latency."""
    points = measured.points
    blocks = [block for model, why in measured.left_out for block in missing(model, why)]
    if len(points) < 2:
        script = "evaluate" if measured.left_out else "benchmark"
        return blocks + missing("quality against latency", "It needs two models with predictions, metrics and "
                                "benchmark.csv, measured under the same conditions.",
                                f"python {script}.py {study.network_folders}")
    columns = [
        *seed_columns(), Column("Precision", "precision"), interval("Macro-F1", "score"),
        Column("Latency p50, ms", "latency_ms", ".3f"), Column("Dominated", "dominated_by"), Column("Noise", "noise"),
    ]
    export = [{key: point[key] for key in PARETO_COLUMNS} for point in points]
    several = any(len(group) > 1 for group in study.models.values())
    caption = (f"Quality against latency; {measured.conditions}. {'Macro-F1 of the seed alone. ' if several else ''}"
               "Dominated: another is at least as fast and scores at "
               "least as high (point estimates; where intervals overlap, the order is not significant)")
    return [*blocks, table("pareto", caption, columns, points, export)]


def measure(study):
    """Measured: the largest group of files that share machine, device, threads, image size and backend."""
    groups = {}
    for row in benchmark_rows(study)[0]:
        if row["batch"] == 1 and row["file"] in FORMATS:
            precision = "int8" if "int8" in row["file"] else "fp32"
            conditions = (row["cpu"], row.get("device"), row.get("threads"), row.get("imsz"), row.get("measured"),
                          row["backend"])
            files = groups.setdefault(conditions, {})
            files.setdefault((row["model"], row["seed"], precision), row)
    if not groups:
        return Measured([], "", [])

    def extent(conditions):
        files = groups[conditions]
        return len({(model, seed) for model, seed, _ in files}), len(files)

    largest = max(groups, key=extent)
    files = groups[largest]
    seeds = Counter(model for model, _ in {(model, seed) for model, seed, _ in files})
    runs = {(run.model, run.seed): run for run in study.runs if run.evaluation}
    points, left_out = [], []
    for (model, seed, precision), row in files.items():
        run = runs.get((model, seed))
        score = run and quality(run, precision)
        if score and is_defined(score["value"]):
            points.append(pareto_point(run, precision, row, score, several_seeds=seeds[model] > 1))
        else:
            left_out.append((f"{model}/{seed} {precision}", "Its macro-F1 is not known."))
    cpu, device, threads, size, measured, backend = largest
    measured = measured or f"device {device}"
    mark_dominated(points)
    conditions = f"{cpu}, {backend}, {format_count(threads or 1, 'thread')}, batch 1, {size} px, {measured}"
    return Measured(points, conditions, left_out)


def pareto_point(run, precision, row, score, several_seeds):
    """The point of a file of a Run. row: of benchmark.csv; score: METRIC of macro-F1."""
    label = run.model
    if several_seeds:
        label += f" {seed_name(run)}"
    label += " INT8" if precision == "int8" else " fp32"
    return {
        "model": run.model, "seed": run.seed, "role": run.kind, "precision": precision, "file": row["file"],
        "label": label, **spread("score", score), "latency_ms": row["lat_ms_p50"],
        "params_mib": row.get("params_mib"), "peak_cuda_mib": row.get("peak_cuda_mib"),
        "peak_rss_mib": row.get("peak_rss_mib"),
        "file_bytes": row.get("file_bytes"), "file_mb": scaled(row.get("file_bytes"), 1e6), "noisy": row["noisy"],
        "noise": "noisy" if row["noisy"] else "",
    }


def quality(run, precision):
    """METRIC of macro-F1 on test of a Run, or of its INT8 file; None where that is not known."""
    if precision == "fp32":
        return run.metric("macro_f1")
    macro_f1 = run.exports.get("int8", {}).get("test", {}).get("macro_f1", {})
    if not is_defined(macro_f1.get("model")):
        return None
    lo, hi = macro_f1.get("model_lo"), macro_f1.get("model_hi")
    if not is_defined(lo) or not is_defined(hi):
        return {"value": macro_f1["model"], "lo": math.nan, "hi": math.nan, "withheld": "export.py states no interval"}
    return {"value": macro_f1["model"], "lo": lo, "hi": hi}


def mark_dominated(points):
    """Set of each point whether another is at least as good in score and latency and better in one, and by which."""
    for point in points:
        place = point["score"], point["latency_ms"]
        better = []
        for other in points:
            is_as_good = other["score"] >= point["score"] and other["latency_ms"] <= point["latency_ms"]
            if is_as_good and (other["score"], other["latency_ms"]) != place:
                better.append(other)
        fastest = min(better, key=lambda other: other["latency_ms"], default=None)
        point["dominated"] = bool(better)
        point["dominated_by"] = f"by {fastest['label']}" if fastest else ""
