"""Latency, throughput, memory, size and MACs of runs, checkpoints and exported files.

    python benchmark.py runs/ham10000_64px/mobilenetv2_kd/seed_0          the checkpoint and all files in exports/
    python benchmark.py model.onnx model.int8.onnx --threads 2 --batch 1 8
    python benchmark.py model.int8.onnx --end-to-end lesion.jpg           the time from the file to the label

For ONNX files it needs only numpy, pillow and onnxruntime.
"""

import argparse
import contextlib
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kd import errors
from kd.errors import UserError

with errors.missing_packages():
    import numpy as np

    from kd import machine, onnx_model, runs, timing
    from kd.files import read_csv, write_csv

TORCH = ("eager", "channels_last", "bf16", "compiled")  # of a checkpoint
EXPORTED = {".onnx": "onnxruntime", ".pte": "executorch"}
BACKENDS = (*TORCH, *EXPORTED.values())
BUSY = 0.5  # load per core above which a note is printed


@dataclass
class Target:
    """A file and the backend that runs it."""

    path: Path
    backend: str

    def __str__(self):
        return f"{self.path} ({self.backend})"


def main(argv=None):
    """Measure, print and save; returns the rows of the table, a list of dicts."""
    options = parser().parse_args(argv)
    targets = find(options.targets, options.backends)
    if options.probe:
        probe(targets[0], options)
        return []
    state = machine.describe()
    warn(state)
    rows = []
    for batch in options.batch:
        rows += measure(targets, options, batch, state)
    print_table(rows)
    written = write(rows, options)
    for path in written:
        print(f"written: {path}")
    if argv is None:
        exported = [target.path.as_posix() for target in targets if target.backend in EXPORTED.values()]
        run = targets[0].path.parent.as_posix()
        words = ["predict.py", exported[0], "IMAGE"] if exported else ["export.py", run]
        print(f"next: {shlex.join(['python', *words])}")  # without kd.text, which an edge box does not have
    return rows


def parser():
    """The options of the command line."""
    result = errors.Parser(prog="benchmark.py", description="Latency and memory of models on this machine.")
    result.add_argument("targets", nargs="+", metavar="RUN|FILE", help="folder of a seed (its best.pt and its "
                        "exports), a folder above, best.pt, .onnx, .pte")
    result.add_argument("--backends", nargs="+", choices=BACKENDS,
                        default=["eager", "onnxruntime", "executorch"],  # these need no compiler and no other hardware
                        help="each file is measured with those of them that can run it; a checkpoint with eager, "
                        "channels_last, bf16, compiled")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu",  # the usual edge box has no GPU
                        help="device of torch; exported files always run on the CPU")
    result.add_argument("--threads", type=errors.threads,
                        default=1,  # with one thread machines with different numbers of cores can be compared
                        metavar="N", help="threads of a query")
    result.add_argument("--batch", type=errors.images, nargs="+", default=[1],  # a camera gives one image at a time
                        metavar="N", help="images in a query")
    result.add_argument("--size", type=errors.side, metavar="PX", help="image size for checkpoints, instead of the "
                        "size that they were trained with")
    result.add_argument("--seconds", type=errors.not_negative,
                        default=5.0,  # short disturbances of the machine then average out
                        metavar="S", help="least measuring time of a model")
    result.add_argument("--queries", type=errors.positive,
                        default=664,  # the first multiple of timing.TURN from 662 on
                        metavar="N", help="least number of queries of a model; MLPerf's estimate of the 90th "
                        "percentile needs 64, of the 99th 662")
    result.add_argument("--end-to-end", metavar="IMAGE", help="measure from this file to its label, instead of from "
                        "pixels to logits")
    result.add_argument("--no-memory", action="store_true", help="do not measure memory and cold start, for which each "
                        "model is run in a separate process")
    result.add_argument("--out", metavar="FILE.csv", help="write the table to this file, too; the rows of a run always "
                        "go to its benchmark.csv, where they replace those of the same file, settings and machine")
    result.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    result.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)  # for separate_process()
    return result


def find(paths, backends):
    """The Targets for files and folders: each file with those of the backends that can run it."""
    targets = []
    for path in map(Path, paths):
        for file in _model_files(path):
            possible = (EXPORTED[file.suffix],) if file.suffix in EXPORTED else TORCH
            targets += [Target(file, backend) for backend in possible if backend in backends]
    if not targets:
        raise UserError(f"none of --backends {' '.join(backends)} runs {errors.listing(paths)}",
                        f"Backends are {', '.join(BACKENDS)}; ONNX files need onnxruntime, .pte files executorch, "
                        "checkpoints one of the others.")
    return targets


def _model_files(path):
    """A file itself; the exports in a folder of exports; the checkpoints and exports of the runs in another folder."""
    if not path.is_dir():
        return [path]
    if _exports(path):
        return _exports(path)
    files = []
    for run in runs.networks(path):
        files += [run / "best.pt", *_exports(run / "exports")]
    return files


def _exports(folder):
    """The exported files in a folder; those in ExecuTorch only where its runtime is installed."""
    suffixes = [suffix for suffix, backend in EXPORTED.items() if backend == "onnxruntime" or find_spec(backend)]
    return [file for suffix in suffixes for file in sorted(folder.glob(f"*{suffix}"))]


def open_target(target, options):
    """A Model or Ready; both have logits(images), pixels(file), timer(images), size, facts."""
    if target.backend in EXPORTED.values():
        model = onnx_model.Model(target.path, options.threads)
        if options.size not in (None, model.size):
            raise UserError(f"{target.path} takes images of {model.size} px",
                            "Leave out --size, or name the checkpoint.")
        return model
    if errors.IN_BUNDLE:
        raise UserError(f"{target.path} is a checkpoint, and a bundle has nothing that runs one",
                        "Name an exported file (.onnx), or measure the checkpoint where it was trained.")
    errors.need("torch", "all")
    import registry
    from kd import plugins
    from kd.edge import torch_model
    plugins.load(options.plugin, registry)
    return torch_model.open_file(target.path, target.backend, registry, device=options.device, threads=options.threads,
                                 size=options.size)


def images(size, batch):
    """Random images uint8 [batch, size, size, 3]: the latency of these networks does not depend on the pixels."""
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def measure(targets, options, batch, state):
    """A row of the table for each Target, all measured in turns. state: what machine.describe() returned."""
    models = {str(target): open_target(target, options) for target in targets}
    timers = {name: timer(model, options, batch) for name, model in models.items()}
    latencies = timing.measure(timers, seconds=options.seconds, least=options.queries)
    references = {run_folder(target): str(target) for target in reversed(targets)}  # the first target of each run
    rows = []
    for target in targets:
        name = str(target)
        row = identify(target, models[name], options, batch)
        row.update(timing.describe(latencies[name], batch))
        row.update(counts(target, models[name]))
        if not options.no_memory:
            row.update(separate_process(target, options, batch))
        reference = references[run_folder(target)]
        row.update({"backend": target.backend, "threads": options.threads,
                    "measured": "file to label" if options.end_to_end else "pixels to logits",
                    "speedup": timing.speedup(latencies[reference], latencies[name])[0]})
        rows.append({**row, **state})
    return rows


def timer(model, options, batch):
    """A function that runs one query and returns its seconds."""
    if not options.end_to_end:
        return model.timer(images(model.size, batch))

    def label():
        return model.logits(np.stack([model.pixels(options.end_to_end) for _ in range(batch)])).argmax(1)
    return timing.stopwatch(label)


def run_folder(target):
    """The folder of the run that a Target belongs to, or None."""
    return next((folder for folder in target.path.resolve().parents if (folder / "best.pt").is_file()), None)


def identify(target, model, options, batch):
    """The first columns of a row: which model was measured, and how. Their names are those of the reference report."""
    folder = run_folder(target)
    name, seed = runs.describe(folder)[1:] if folder else (target.path.name, "")
    device = "cpu" if target.backend in EXPORTED.values() else options.device
    return {"ckpt": str(target.path), "model": name, "seed": seed, "device": device, "batch": batch, "imsz": model.size}


def counts(target, model):
    """The columns of parameters, bytes and MACs; `macs` are those of convolutions and linear layers."""
    size = model.facts["params_bytes"]
    return {"params_bytes": size, "params_mib": size and size / 2 ** 20, "parameters": model.facts["parameters"],
            "macs": model.facts["macs"], "file_bytes": target.path.stat().st_size}


def separate_process(target, options, batch):
    """The columns of cold start and peak memory of a Target, measured in a process that runs nothing else."""
    words = [sys.executable, Path(__file__).resolve(), target.path, "--backends", target.backend, "--probe",
             "--batch", batch, "--threads", options.threads, "--device", options.device]
    if options.size:
        words += ["--size", options.size]
    if options.plugin:
        words += ["--plugin", *options.plugin]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as stderr:
        with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
            first_line = child.stdout.readline()  # printed when the first label is there
            cold_start = time.perf_counter() - start
            second_line = child.stdout.read()
        if child.returncode:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"{target} failed in a process of its own: {lines[-1] if lines else child.returncode}")
    durations, memory = json.loads(first_line), json.loads(second_line)
    mib = {f"{name}_mib": value and value / 2 ** 20 for name, value in memory.items()}
    return {"peak_cuda_bytes": memory["peak_cuda"], **mib, "cold_start_ms": 1e3 * cold_start, **durations}


def probe(target, options):
    """The other side of separate_process(): print a line of durations at the first label, then a line of memory."""
    start = time.perf_counter()
    model = open_target(target, options)
    loaded = time.perf_counter()
    pixels = images(model.size, options.batch[0])
    model.logits(pixels)
    print(json.dumps({"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (time.perf_counter() - loaded)}), flush=True)
    for _ in range(8):  # memory can still grow in the first queries
        model.logits(pixels)
    cuda = model.peak_memory(pixels) if hasattr(model, "peak_memory") else None
    print(json.dumps({"peak_rss": machine.peak_memory(), "peak_cuda": cuda}))


def warn(state):
    """Print notes on what will make the figures noisy, before time is spent on them."""
    if state["load"] is not None and state["load"] > BUSY * state["cores"]:
        print(f"note: this machine is busy (load {state['load']:.1f} on {state['cores']} cores); other programs "
              "interrupt long queries more often than short ones, so latencies and their ratios mislead; "
              "CPU ms less so")
    if state["governor"] not in (None, "performance"):
        print(f"note: the frequency governor is {state['governor']}; the clock may change while it measures")


def print_table(rows):
    """Print the most important columns of the rows, and what they mean."""
    table = [["model", "backend", "batch", "px", "p50 ms", "p90", "p99", "p90 MLPerf", "CPU ms", "images/s", "times",
              "file MB", "RSS MiB", "cold ms", ""]]
    for row in rows:
        file, model = Path(row["ckpt"]).name, row["model"]
        percentiles = [short_number(row[f"lat_ms_{key}"]) for key in ("p50", "p90", "p99", "p90_mlperf")]
        table.append([
            file if model == file else f"{model} {file}", row["backend"], row["batch"], row["imsz"], *percentiles,
            short_number(row["cpu_ms_p50"]), short_number(row["throughput_fps"]), f"{row['speedup']:.2f}",
            short_number(row["file_bytes"] / 1e6), short_number(row.get("peak_rss_mib")),
            short_number(row.get("cold_start_ms")), "noisy" if row["noisy"] else "",
        ])
    table = [[str(cell) for cell in cells] for cells in table]
    widths = [max(map(len, column)) for column in zip(*table)]
    aligns = [str.ljust] * 2 + [str.rjust] * (len(widths) - 2)  # names to the left, numbers to the right
    for cells in table:
        print("  ".join(align(cell, width) for align, cell, width in zip(aligns, cells, widths)).rstrip())
    first = rows[0]
    print(f"{first['measured']}, {first['threads']} thread(s), {first['cpu']}")
    print("times: how many times faster than the first line of the same run, median over turns")
    print("CPU ms: processor time of a query, median")
    print("noisy: no steady warm-up, or quartiles a tenth of the median apart, 5th and 95th percentile three tenths, "
          "mean and median a twentieth")
    print("p90 MLPerf: its early-stopping estimate")
    for name, macs in dict.fromkeys((row["model"], row["macs"]) for row in rows if row["macs"]):
        print(f"{name}: {macs / 1e6:.1f} M MACs in convolutions and linear layers "
              "(tools that count more find up to 7% more)")


def short_number(value):
    """A number with one decimal from 10 on, otherwise with two; `n/a` for None and NaN."""
    if value is None or value != value:
        return "n/a"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write(rows, options):
    """Write the rows to --out and to benchmark.csv of each run; returns the paths.

    Rows in a run's benchmark.csv that are of other files, settings or machines stay.
    """
    out = options.out and Path(options.out)
    tables = {out: rows} if out else {}
    for folder, group in itertools.groupby(rows, lambda row: Path(row["ckpt"]).resolve().parent):
        run = next((place for place in (folder, folder.parent) if (place / "predictions").is_dir()), None)
        if run:
            tables.setdefault(run / "benchmark.csv", []).extend(group)
    for path, table in tables.items():
        table = [{key: "" if value is None or value != value else value for key, value in row.items()}
                 for row in table]  # undefined figures are empty cells
        old_rows, measured_again = [], {row_key(row) for row in table}
        if path.is_file() and path != out:
            with contextlib.suppress(UserError):  # a table that cannot be read is replaced
                old_rows = read_csv(path)
        all_rows = [*table, *(row for row in old_rows if row_key(row) not in measured_again)]
        write_csv(path, all_rows)
        if path != out:
            from kd import event_writer, scalars  # not on an edge box, which has no runs
            event_writer.results(path.parent, "benchmark", scalars.of_benchmark(all_rows))
    return list(tables)


def row_key(row):
    """What distinguishes a row of benchmark.csv from others: a tuple of strings."""
    keys = ("backend", "device", "batch", "imsz", "threads", "measured", "cpu")
    return Path(row.get("ckpt", "")).name, *(str(row.get(key, "")) for key in keys)


if __name__ == "__main__":
    errors.run(main)
