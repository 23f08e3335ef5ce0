"""What models cost as they are deployed, what exporting lost, and which of them are worth their time."""

import math
from collections import Counter

from kd.report import figures_quality
from kd.report.blocks import Column, aside, figure, heading, interval, missing, paragraph, spread, table
from kd.report.sections.overview import FILES, seed_name
from kd.run_folder import bounded
from kd.text import format_bounds, format_count, is_defined

LATENCY = ("lat_ms_mean", "lat_ms_std", "lat_ms_p50", "lat_ms_p90", "lat_ms_p99", "throughput_fps")
MEMORY = ("params_bytes", "params_mib", "peak_cuda_bytes", "peak_cuda_mib")
INTEGERS = ("batch", "imsz", "params_bytes", "peak_cuda_bytes", "file_bytes", "parameters", "macs", "threads", "queries")
NUMBERS = (*LATENCY, *MEMORY, *INTEGERS, "lat_ms_p90_mlperf", "lat_ms_p99_mlperf", "cpu_ms_p50", "iqr_over_median", "speedup",
           "peak_rss_mib", "cold_start_ms", "load")


def rows_of(study):
    """(rows of all benchmark.csv with numbers for texts, [(whose, why a row is not shown)])."""
    rows, left_out = [], []
    for run in study.runs:
        for row in run.benchmark:
            held = {key: number(row.get(key), key) if key in NUMBERS else row[key] for key in row}
            held.update(model=run.model, seed=run.seed, role=run.kind, file=row.get("ckpt", "").replace("\\", "/").split("/")[-1],
                        noisy=row.get("noisy") == "True", backend=row.get("backend", ""))
            if not held.get("cpu"):
                left_out.append((f"{run.model}/{run.seed}", "a row does not say on which machine it was measured"))
            elif not is_defined(held["lat_ms_p50"]) or not is_defined(held["batch"]):
                left_out.append((f"{run.model}/{run.seed}", "a row has no median latency, or no batch size"))
            else:
                rows.append(held)
    return rows, left_out


def number(text, key):
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return int(value) if key in INTEGERS and value.is_integer() else value if math.isfinite(value) else None


# ---- latency and memory


def efficiency(study):
    rows, left_out = rows_of(study)
    blocks = []
    if not rows:
        blocks += missing("latency and memory", "No run has benchmark.csv." if not left_out else "No row says where it was measured.",
                          f"python benchmark.py {study.command}")
    for run, why in dict.fromkeys(left_out):
        blocks += missing(f"some of benchmark.csv of {run}", f"There, {why}.")
    lacking = [run for run in study.firsts if not run.benchmark]
    if rows and lacking:
        blocks += missing(f"latency of {', '.join(f'{run.model}/{run.seed}' for run in lacking)}", "There is no benchmark.csv.")
    for device, name, title in (("cuda", "gpu_latency", "GPU latency"), ("cpu", "cpu_latency", "CPU latency")):
        held = [row for row in rows if (row.get("device") == "cpu") == (device == "cpu")]
        if held:
            blocks.append(latency(name, title, held))
            noisy = sum(row["noisy"] for row in held)
            if noisy:
                blocks.append(aside(f"noisy: {noisy} of {len(held)}. Quartiles lie further apart than a tenth of the median, or the "
                                    "warm-up did not settle; other work was on the machine. These figures are not to be compared closely."))
    if rows:
        blocks.append(memory(rows))
    return [*blocks, *exports(study)]


def latency(name, title, rows):
    first = ("ckpt", "model", "seed", "device", "batch", "imsz", *LATENCY)
    more = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in first and key not in MEMORY]
    machines = "; ".join(dict.fromkeys(f"{row['cpu']}, {format_count(row.get('threads') or 1, 'thread')}" for row in rows))
    measured = "; ".join(dict.fromkeys(filter(None, (row.get("measured") for row in rows))))
    queries = sorted({(row["batch"], row.get("imsz")) for row in rows}, key=str)
    said = f"; batch {queries[0][0]}, {queries[0][1]} px" if len(queries) == 1 else ""
    columns = [
        Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("File", "format"), Column("Runs on", "backend"),
        *([] if said else [Column("Batch", "batch", "d"), Column("px", "imsz", "d")]), Column("Mean", "lat_ms_mean", ".2f"), Column("SD", "lat_ms_std", ".2f"),
        Column("p50", "lat_ms_p50", ".2f"), Column("p90", "lat_ms_p90", ".2f"), Column("p99", "lat_ms_p99", ".2f"),
        Column("p90, MLPerf", "lat_ms_p90_mlperf", ".2f"), Column("Images/s", "throughput_fps", ".1f"),
        Column("CPU ms", "cpu_ms_p50", ".2f"), Column("Noise", "noise")]
    return table(name, f"{title}, ms a query{f' ({measured})' if measured else ''}{said}; {machines}", columns,
                 [{**row, "format": FILES.get(row["file"], row["file"]), "noise": "noisy" if row["noisy"] else ""} for row in rows],
                 [{key: row.get(key) for key in (*first, *more)} for row in rows],
                 [Column("Checkpoint", "ckpt", kind="text"), Column("Device", "device"), *columns])


def memory(rows):
    return table("memory", "Memory and size; peak RSS is of a process that loads and runs this file alone", [
        Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("File", "format"),
        Column("Parameters and buffers, MiB", "params_mib", ".2f"), Column("File, MB", "file_mb", ".2f"),
        Column("Peak GPU, MiB", "peak_cuda_mib", ".1f"), Column("Peak RSS, MiB", "peak_rss_mib", ".0f"),
        Column("MACs, M", "macs_m", ".1f"), Column("Cold start, ms", "cold_start_ms", ".0f")],
        [{**row, "format": FILES.get(row["file"], row["file"]),
          "file_mb": scaled(row.get("file_bytes"), 1e6), "macs_m": scaled(row.get("macs"), 1e6)} for row in rows],
        [{**{key: row.get(key) for key in ("ckpt", "model", "seed", *MEMORY)}, "img_sz": row.get("imsz"), "batch": row["batch"],
          **{key: row.get(key) for key in ("peak_rss_mib", "file_bytes", "parameters", "macs", "cold_start_ms", "cpu")}} for row in rows])


def scaled(value, unit):
    return value / unit if is_defined(value) else None


# ---- exports


def exports(study):
    held = [run for run in study.runs if run.exports]
    if not held:
        return missing("what exporting loses", "No run has exports/parity.json.",
                       f"python export.py {(study.firsts or study.runs)[-1].folder.as_posix()}")
    records = [export_record(run, name, one) for run in held for name, one in run.exports.items()]
    return [heading("Exported files"), *[paragraph(sentence) for sentence in export_sentences(study)],
            table("exports", "Exported files against their checkpoint, on the test images; paired intervals over lesions or patients", [
                Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("File", "format"), Column("MB", "mb", ".2f"),
                Column("Labels changed", "flips", ".2%"), interval("Δ macro-F1", "delta_macro_f1", form="+.4f"),
                interval("Δ accuracy", "delta_accuracy", form="+.4f"), Column("Δ ECE", "ece_shift", "+.4f"),
                Column("Largest Δ logit", "largest", ".1e")], records)]


def export_record(run, name, one):
    test = one["test"]
    record = {"model": run.model, "role": run.kind, "seed": run.seed, "format": {"onnx": "ONNX", "int8": "ONNX INT8"}.get(name, name),
              "file": one.get("file", ""), "bytes": one.get("bytes"), "mb": scaled(one.get("bytes"), 1e6), "images": test.get("images"),
              "flips": test["flips"], "largest": test.get("largest")}
    for metric in ("macro_f1", "accuracy"):
        record.update({metric: test[metric].get("model"), **spread(f"delta_{metric}", bounded(test[metric].get("difference")))})
    return {**record, "ece_shift": (test.get("ece") or {}).get("shift")}


def export_sentences(study):
    found = []
    for run in study.runs:
        one = run.exports.get("int8")
        difference = one and one["test"]["macro_f1"].get("difference") or {}
        if is_defined(difference.get("lo")) and is_defined(one["test"]["flips"]):
            lo, hi = difference["lo"], difference["hi"]
            found.append(f"INT8 changes {one['test']['flips']:.1%} of the answers of {run.model} and its macro-F1 by "
                         f"{difference['value']:+.4f} {format_bounds(lo, hi, '+.4f')}: "
                         + ("a loss that the data bear." if hi < 0 else "a gain that the data bear." if lo > 0
                            else "none that these data could show."))
    return found


# ---- Pareto


def pareto(study):
    points, comparable, left_out = candidates(study)
    if len(points) < 2:
        return missing("quality against latency", "It needs two models with predictions, metrics and benchmark.csv, measured alike.",
                       f"python benchmark.py {study.command}")
    mark_dominated(points)
    blocks = [aside(f"Measured alike: {comparable}. Hollow: dominated, another is at least as fast and scores at least as high (point "
                    "estimates; where intervals overlap, quality is not told apart). Circle: fp32; diamond: INT8, joined to the file "
                    "it was made of; its bar is the interval of the paired difference. The area of a mark is its file's size.")]
    place = {(point["model"], point["seed"]): k for k, point in enumerate(points) if point["precision"] == "fp32"}
    drawn = [((point["label"], f"{point['latency_ms']:.2f} ms" + (f", {point['file_mb']:.1f} MB" if point["file_mb"] else "")),
              point["role"], point["precision"], point["latency_ms"], point["score"], point["score_lo"], point["score_hi"],
              point["file_bytes"], point["dominated"], place.get((point["model"], point["seed"])) if point["precision"] == "int8" else None)
             for point in points]
    alt = "Macro-F1 over latency. " + "; ".join(f"{', '.join(one[0])}, {one[4]:.3f}{', dominated' if one[8] else ''}" for one in drawn)
    most, more = (drawn, []) if len(drawn) <= 16 else ([], missing("the drawing", f"{len(drawn)} points are too many to label; the table "
                                                                                 "has them."))
    if most:
        wide, narrow = (figures_quality.pareto(most, "median latency, ms an image", shape, alt=alt) for shape in (False, True))
        blocks.append(figure(wide, alt, "", narrow))
    for model, why in left_out:
        blocks += missing(model, why)
    if any(point["noisy"] for point in points):
        blocks.append(aside(f"Latencies of {sum(point['noisy'] for point in points)} of {len(points)} are noisy: see above."))
    export = [{key: point[key] for key in ("model", "score", "latency_ms", "params_mib", "peak_cuda_mib", "seed", "precision", "file",
                                           "score_lo", "score_hi", "interval_of", "file_bytes", "dominated", "noisy")} for point in points]
    return [*blocks, *more, table("pareto", "Quality against latency", [
        Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("Precision", "precision"), interval("Macro-F1", "score"), Column("Interval of", "interval_of"),
        Column("Latency p50, ms", "latency_ms", ".2f"), Column("Parameters, MiB", "params_mib", ".2f"),
        Column("Peak GPU, MiB", "peak_cuda_mib", ".1f"), Column("File, MB", "file_mb", ".2f"), Column("Dominated", "dominated_by"),
        Column("Noise", "noise")], points, export)]


def candidates(study):
    """(points, what they were measured with, [(model, why it is not among them)]): those of the largest group that was measured alike."""
    rows, _ = rows_of(study)
    groups = {}
    for row in rows:
        if row["batch"] == 1 and row["file"] in FILES:
            precision = "int8" if "int8" in row["file"] else "fp32"
            key = row["cpu"], row.get("device"), row.get("threads"), row.get("imsz"), row.get("measured"), row["backend"]
            groups.setdefault(key, {}).setdefault((row["model"], row["seed"], precision), row)
    if not groups:
        return [], "", []
    runs = {(run.model, run.seed): run for run in study.runs if run.evaluation}
    key, held = max(groups.items(), key=lambda item: (len({name[:2] for name in item[1]}), len(item[1])))
    points, left_out = [], []
    seeds = Counter(model for model, _ in {name[:2] for name in held})
    for (model, seed, precision), row in held.items():
        run = runs.get((model, seed))
        score = run and quality(run, precision)
        if not score or not is_defined(score["lo"]):
            left_out.append((f"{model}/{seed} {precision}", "Its macro-F1 with an interval is not known."))
            continue
        label = model + (f" {seed_name(run)}" if seeds[model] > 1 else "") + (" INT8" if precision == "int8" else "")
        points.append({"model": model, "seed": seed, "role": run.kind, "precision": precision, "file": row["file"],
                       "label": label,
                       "score": score["value"], "score_lo": score["lo"], "score_hi": score["hi"],
                       "interval_of": "score" if precision == "fp32" else "difference to fp32", "latency_ms": row["lat_ms_p50"],
                       "params_mib": row.get("params_mib"), "peak_cuda_mib": row.get("peak_cuda_mib"),
                       "file_bytes": row.get("file_bytes"), "file_mb": scaled(row.get("file_bytes"), 1e6), "noisy": row["noisy"],
                       "noise": "noisy" if row["noisy"] else ""})
    cpu, device, threads, size, measured, backend = key
    return points, f"{cpu}, {backend}, {format_count(threads or 1, 'thread')}, batch 1, {size} px, {measured or 'device ' + str(device)}", left_out


def quality(run, precision):
    """METRIC of macro-F1 on test; of INT8 that of its file, with the interval of its paired difference."""
    own = run.metric("macro_f1")
    if precision == "fp32":
        return own
    test = run.exports.get("int8", {}).get("test", {}).get("macro_f1", {})
    difference = test.get("difference") or {}
    if not all(map(is_defined, (test.get("model"), difference.get("lo"), difference.get("hi")))):
        return None
    base = test["model"] - difference["value"]
    return {"value": test["model"], "lo": base + difference["lo"], "hi": base + difference["hi"]}


def mark_dominated(points):
    for point in points:
        better = [other for other in points if other is not point and other["score"] >= point["score"]
                  and other["latency_ms"] <= point["latency_ms"]
                  and (other["score"], other["latency_ms"]) != (point["score"], point["latency_ms"])]
        point["dominated"] = bool(better)
        point["dominated_by"] = f"by {min(better, key=lambda other: other['latency_ms'])['label']}" if better else ""
