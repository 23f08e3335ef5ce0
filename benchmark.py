"""Latency, throughput, memory, size and MACs of runs, checkpoints and exported files.

    python benchmark.py runs/ham10000_64px/mobilenetv2_kd/seed_0          the checkpoint and all in exports/
    python benchmark.py model.onnx model.int8.onnx --threads 2 --batch 1 8
    python benchmark.py model.int8.onnx --end-to-end lesion.jpg           from the file to the label

Files in ONNX need numpy, pillow and onnxruntime only.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd import errors, machine, onnx_model, runs, timing
from kd.errors import UserError
from kd.files import read_csv, write_csv

TORCH = ("eager", "channels_last", "bf16", "compiled", "torchscript")
BACKENDS = (*TORCH, "onnxruntime")
BUSY = 0.5  # of the cores: a load above it is told


@dataclass
class Target:
    """A file, and what runs it."""

    path: Path
    backend: str

    def __str__(self):
        return f"{self.path} ({self.backend})"


def main(argv=None):
    """Returns the rows of the table."""
    options = parser().parse_args(argv)
    targets = find(options.targets, options.backends)
    if options.probe:
        probe(targets[0], options)
        return []
    state = machine.describe()
    warn(state, options)
    rows = []
    for batch in options.batch:
        rows += measure(targets, options, batch, state)
    print_table(rows)
    written = write(rows, options)
    for path in written:
        print(f"written: {path}")
    files = [target.path.as_posix() for target in targets if target.backend == "onnxruntime"]
    if argv is None:
        print(f"next: python predict.py {files[0]} IMAGE" if files else f"next: python export.py {targets[0].path.parent.as_posix()}")
    return rows


def parser():
    result = errors.Parser(prog="benchmark.py", description="Latency and memory of models on this machine.")
    result.add_argument("targets", nargs="+", metavar="RUN|FILE", help="a seed's folder (its best.pt and its exports), "
                        "a folder above, best.pt, .onnx, .ts.pt")
    result.add_argument("--backends", nargs="+", choices=BACKENDS, default=["eager", "torchscript", "onnxruntime"],
                        help="of these, what fits each file; a checkpoint: eager, channels_last, bf16, compiled")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of torch; ONNX runs on the CPU")
    result.add_argument("--threads", type=errors.positive, default=1, metavar="N", help="of one query")
    result.add_argument("--batch", type=errors.positive, nargs="+", default=[1], metavar="N", help="images a query")
    result.add_argument("--size", type=errors.positive, metavar="PX", help="of checkpoints, in place of their own")
    result.add_argument("--seconds", type=float, default=5.0, metavar="S", help="a model is measured, at least")
    result.add_argument("--queries", type=errors.positive, default=664, metavar="N", help="a model is asked, at least; MLPerf's "
                        "estimate of the 90th percentile needs 64, of the 99th 662")
    result.add_argument("--end-to-end", metavar="IMAGE", help="time from this file to its label, not from pixels to logits")
    result.add_argument("--no-memory", action="store_true", help="leave out memory and cold start, for which each model "
                        "is run in a process of its own")
    result.add_argument("--out", metavar="FILE.csv", help="the table; a run's rows also go to its benchmark.csv, "
                        "in place of those of the same file, settings and machine")
    result.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    result.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    return result


def find(paths, backends):
    """The Targets that `paths` name."""
    targets = []
    for path in map(Path, paths):
        files = [path]
        if path.is_dir() and next(path.glob("*.onnx"), None):
            files = sorted(path.glob("*.onnx")) + sorted(path.glob("*.ts.pt"))
        elif path.is_dir():
            files = [file for run in runs.find(path) for file in (
                run / "best.pt", *sorted((run / "exports").glob("*.onnx")), *sorted((run / "exports").glob("*.ts.pt")))]
        for file in files:
            fits = ("onnxruntime",) if file.suffix == ".onnx" else ("torchscript",) if file.name.endswith(".ts.pt") else TORCH[:4]
            targets += [Target(file, backend) for backend in fits if backend in backends]
    if not targets:
        raise UserError(f"none of --backends {' '.join(backends)} runs {errors.listing(paths)}",
                        f"Backends are {', '.join(BACKENDS)}; ONNX files need onnxruntime, checkpoints one of the others.")
    return targets


def open_target(target, options):
    """Something with logits(images), pixels(file), timer(images), size, facts."""
    if target.backend == "onnxruntime":
        model = onnx_model.Model(target.path, options.threads)
        if options.size not in (None, model.size):
            raise UserError(f"{target.path} takes images of {model.size} px", "Leave out --size, or name the checkpoint.")
        return model
    errors.need("torch", "all")
    import registry
    from kd.edge import torch_model
    for file in options.plugin:
        registry.load_plugin(file)
    return torch_model.open_file(target.path, target.backend, registry, device=options.device, threads=options.threads,
                              size=options.size)


def images(size, batch):
    """Noise: what is in the pixels changes no latency of these networks."""
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def measure(targets, options, batch, state):
    """A row for each Target, all measured in turns."""
    ready = {str(target): open_target(target, options) for target in targets}
    timers = {name: timer(one, options, batch) for name, one in ready.items()}
    taken = timing.measure(timers, seconds=options.seconds, least=options.queries)
    first = {home(target): target for target in reversed(targets)}  # the target that others of a run are held against
    rows = []
    for target in targets:
        one = ready[str(target)]
        row = identify(target, one, options, batch)
        row.update(timing.describe(taken[str(target)], batch))
        row.update(counted(target, one))
        if not options.no_memory:
            row.update(alone(target, options, batch))
        row.update({"backend": target.backend, "threads": options.threads, "measured": measured(options),
                    "speedup": timing.speedup(taken[str(first[home(target)])], taken[str(target)])[0]})
        rows.append({**row, **state})
    return rows


def measured(options):
    return "file to label" if options.end_to_end else "pixels to logits"


def timer(ready, options, batch):
    """One query as a function that returns its seconds."""
    if not options.end_to_end:
        return ready.timer(images(ready.size, batch))

    def label():
        return ready.logits(np.stack([ready.pixels(options.end_to_end) for _ in range(batch)])).argmax(1)
    return timing.stopwatch(label)


def home(target):
    """The folder of the run that a Target belongs to, or None."""
    return next((top for top in target.path.resolve().parents if (top / "best.pt").is_file()), None)


def identify(target, ready, options, batch):
    """The first columns of the reference report."""
    folder = home(target)
    model, seed = runs.describe(folder)[1:] if folder else (target.path.name, "")
    device = "cpu" if target.backend == "onnxruntime" else options.device
    return {"ckpt": str(target.path), "model": model, "seed": seed, "device": device, "batch": batch, "imsz": ready.size}


def counted(target, ready):
    """Parameters, bytes and MACs; `macs` are of convolutions and linear layers."""
    facts = ready.facts
    size = facts["params_bytes"]
    return {"params_bytes": size, "params_mib": size and size / 2 ** 20, "parameters": facts["parameters"], "macs": facts["macs"],
            "file_bytes": target.path.stat().st_size}


def alone(target, options, batch):
    """Cold start and peak memory of a Target, in a process of its own."""
    words = [sys.executable, Path(__file__).resolve(), target.path, "--backends", target.backend, "--probe", "--batch", batch,
             "--threads", options.threads, "--device", options.device, *(["--size", options.size] if options.size else []),
             *(["--plugin", *options.plugin] if options.plugin else [])]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=complaints, text=True) as child:
            line = child.stdout.readline()  # when it has its first label
            cold = time.perf_counter() - start
            rest = child.stdout.read()
        if child.returncode:
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"{target} failed in a process of its own: {said[-1] if said else child.returncode}")
    first, later = json.loads(line), json.loads(rest)
    mib = {f"{name}_mib": value and value / 2 ** 20 for name, value in later.items()}
    return {"peak_cuda_bytes": later["peak_cuda"], **mib, "cold_start_ms": 1e3 * cold, **first}


def probe(target, options):
    """What `alone` asks for: a line at the first label, a line of memory after some more."""
    start = time.perf_counter()
    ready = open_target(target, options)
    loaded = time.perf_counter()
    pixels = images(ready.size, options.batch[0])
    ready.logits(pixels)
    print(json.dumps({"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (time.perf_counter() - loaded)}), flush=True)
    for _ in range(8):
        ready.logits(pixels)
    cuda = ready.peak_memory(pixels) if hasattr(ready, "peak_memory") else None
    print(json.dumps({"peak_rss": machine.peak_memory(), "peak_cuda": cuda}))


def warn(state, options):
    """What would make figures noisy, before time is spent on them."""
    if state["load"] is not None and state["load"] > BUSY * state["cores"]:
        print(f"note: this machine is busy (load {state['load']:.1f} on {state['cores']} cores); others take turns "
              "that long queries meet and short ones slip between, so latencies and their ratios mislead; CPU ms less so")
    if state["governor"] not in (None, "performance"):
        print(f"note: the frequency governor is {state['governor']}; clocks may change while it measures")


def print_table(rows):
    cells = [["model", "backend", "batch", "px", "p50 ms", "p90", "p99", "p90 MLPerf", "CPU ms", "images/s", "times", "file MB", "RSS MiB",
              "cold ms", ""]]
    for row in rows:
        name = Path(row["ckpt"]).name if row["model"] == Path(row["ckpt"]).name else f"{row['model']} {Path(row['ckpt']).name}"
        cells.append([name, row["backend"], row["batch"], row["imsz"], *(number(row[f"lat_ms_{key}"]) for key in (
            "p50", "p90", "p99", "p90_mlperf")), number(row["cpu_ms_p50"]), number(row["throughput_fps"]), f"{row['speedup']:.2f}",
            number(row["file_bytes"] / 1e6), number(row.get("peak_rss_mib")), number(row.get("cold_start_ms")),
            "noisy" if row["noisy"] else ""])
    widths = [max(len(str(cell)) for cell in column) for column in zip(*cells)]
    for line in cells:
        print("  ".join(str(cell).ljust(width) if k < 2 else str(cell).rjust(width)
                        for k, (cell, width) in enumerate(zip(line, widths))).rstrip())
    first = rows[0]
    print(f"{first['measured']}, {first['threads']} thread(s), {first['cpu']}; times: over the first line of the run, turn by turn")
    print("CPU ms: processor time of a query, median")
    print("noisy: quartiles further apart than a tenth of the median, or no steady warm-up. p90 MLPerf: its early-stopping estimate")
    for name, macs in dict.fromkeys((row["model"], row["macs"]) for row in rows if row["macs"]):
        print(f"{name}: {macs / 1e6:.1f} M MACs in convolutions and linear layers (tools that count more find up to 7% more)")


def number(value):
    return "n/a" if value is None or value != value else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write(rows, options):
    """Paths of the tables written. In a run's, rows of other files, settings and machines stay."""
    out = options.out and Path(options.out)
    tables = {out: rows} if out else {}
    for key, group in itertools.groupby(rows, lambda row: Path(row["ckpt"]).resolve().parent):
        run = next((top for top in (key, key.parent) if (top / "predictions").is_dir()), None)
        if run:
            tables.setdefault(run / "benchmark.csv", []).extend(group)
    for path, table in tables.items():
        table = [{key: "" if value is None or value != value else value for key, value in row.items()} for row in table]
        kept, known = [], {identity(row) for row in table}
        if path.is_file() and path != out:
            with contextlib.suppress(UserError):  # of a table that cannot be read nothing is kept
                kept = read_csv(path)
        write_csv(path, [*table, *(row for row in kept if identity(row) not in known)])
    return list(tables)


def identity(row):
    """What tells a row of benchmark.csv from others, as strings."""
    keys = ("backend", "device", "batch", "imsz", "threads", "measured", "cpu")
    return Path(row.get("ckpt", "")).name, *(str(row.get(key, "")) for key in keys)


if __name__ == "__main__":
    errors.run(main)
