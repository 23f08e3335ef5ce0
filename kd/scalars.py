"""Results of a finished run as scalars for TensorBoard: {tag: {step: number}}.

The step of a metric is 0, that of a corruption its severity (0: clean images), that of a latency its batch size.
"""

from kd.files import parse_number

CORE = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "macro_auroc")  # with the bounds of their intervals
CALIBRATION = ("nll", "brier", "ece", "ece_equal_mass", "rms_ce_debiased")          # before and after the temperature
BENCHMARK = ("lat_ms_p50", "lat_ms_p90", "throughput_fps", "params_mib", "peak_rss_mib", "peak_cuda_mib")
GROUPS = ("core", "calibration", "operating_point", "robustness", "benchmark")      # how the tags begin


def of_metrics(content):
    """core/*, calibration/* and operating_point/* of the content of metrics.json, test split."""
    test, numbers = content["test"], {}
    for name in CORE:
        for key, end in (("value", ""), ("lo", "_lo"), ("hi", "_hi")):
            numbers[f"core/{name}{end}"] = test.get(name, {}).get(key)
    for name in CALIBRATION:
        for key in (name, f"{name}_calibrated"):
            numbers[f"calibration/{key}"] = test.get(key, {}).get("value")
    numbers["calibration/temperature"] = (content["calibration"] or {}).get("temperature")
    for point in content["operating_points"]:
        names = {"macro_f1": {"macro_f1": "macro_f1_opt"}, "abstention": {"coverage": "coverage", "risk": "risk"},
                 "sensitivity": {key: f"{key}/{point.get('class')}" for key in ("sensitivity", "specificity")}}
        for key, tag in names.get(point["kind"], {}).items():
            numbers[f"operating_point/{tag}"] = point["test"].get(key, {}).get("value")
    return {tag: {0: number} for tag, number in numbers.items()}


def of_robustness(rows):
    """robustness/macro_f1/CORRUPTION of the rows of robustness.csv; a file or suite that is not the usual is named."""
    scalars, clean = {}, {}
    for row in rows:
        parts = [row["suite"], row["file"]]
        where = "/".join(["robustness", *(part for part in parts if part not in ("default", "best.pt")), "macro_f1"])
        if row["tag"] == "clean":
            clean[where] = parse_number(row["macro_f1"])
        else:
            values = scalars.setdefault((where, row["corruption"]), {})
            values[int(row["severity"])] = parse_number(row["macro_f1"])
    return {f"{where}/{name}": {0: clean.get(where), **values} for (where, name), values in scalars.items()}


def of_benchmark(rows):
    """benchmark/DEVICE/BACKEND/FILE/* of the rows of benchmark.csv; of rows that share these, the first counts."""
    scalars = {}
    for row in reversed(rows):
        file = row["ckpt"].replace("\\", "/").split("/")[-1]
        for key in BENCHMARK:
            tag = f"benchmark/{row['device']}/{row['backend']}/{file}/{key}"
            scalars.setdefault(tag, {})[int(row["batch"])] = parse_number(row.get(key) or "nan")
    return scalars
