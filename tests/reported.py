"""A study whose files are all there and belong together, and a report's page taken apart; for tests of the report."""

import functools
import html.parser
import os
import re
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import numpy as np
from PIL import Image

import evaluate as evaluate_script
import honest
import report
from kd import event_writer, runs
from kd.calibration import BIASED
from kd.evaluation import protocol
from kd.files import read_json, read_npz, write_csv, write_json, write_npz, write_yaml
from kd.report import figures, paper, pdf

CLASSES = {"mel": .4, "nv": .4, "df": .2}
MODELS = {"teacher_big": (3.0, (0,)), "small_alone": (1.0, (0, 1)), "small_kd": (2.2, (0, 1))}
COMPILE = jinja2.Environment.compile
SETTINGS = protocol.Settings(replicates=200)


def write_run(
    folder, skill=1.5, seed=0, shares=CLASSES, role="student", synthetic=False, formula="ce", noise=None, **config
):
    """A run of 120 test images, evaluated; `noise` seeds what its logits are drawn from."""
    shares = {name: 1.0 for name in shares} if isinstance(shares, list) else shares
    names = list(shares)
    val, test = (
        honest.predictions(np.random.default_rng(k), n, shares, skill, part=part)  # the same images in every run
        for k, n, part in ((1, 80, "val"), (2, 120, "test"))
    )
    rng = np.random.default_rng([sum(map(ord, folder.parent.name)) if noise is None else noise, seed])
    for split in (val, test):
        split.logits += rng.normal(size=split.logits.shape)
    honest.write(folder, val, test, role, seed=seed)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    write_npz(folder / "samples.npz", ids=test.ids[:4], images=images)
    write_yaml(folder / "config.yaml", {"data": "toy", "size": 8, "epochs": 5, "seeds": [seed], **config})
    write_json(folder / "environment.json", {
        "python": "3.12.1", "cpu": "a CPU", "threads": 2, "git": "abc1234", "role": role, "formula": formula,
        "arch": "small", "parameters": 12345, "started": f"2025-01-0{seed + 1}",
        "data": {"name": "toy", "synthetic": synthetic, "images": 36, "classes": names, "fingerprint": "f1f2f3"},
    })


def write_study(root, **options):
    """A teacher, a student alone and one with a teacher, two seeds each, evaluated; copies of one that is made once."""
    if not options:
        shutil.copytree(_study(), root)
        return root
    configs = {
        "teacher_big": {"role": "teacher", "teacher": "big"},
        "small_alone": {"student": ["small"], "teacher": None, "alpha": 1.0},
        "small_kd": {"student": ["small"], "teacher": "runs/toy/teacher_big/seed_0", "alpha": .5,
                     "formula": "0.5 * ce + 0.5 * kd(T=4)"},
    }
    for model, (skill, seeds) in MODELS.items():
        for seed in seeds:
            write_run(root / model / f"seed_{seed}", skill, seed, **{**configs[model], **options})
    evaluate(root)
    return root


@functools.cache
def _study():
    return write_study(Path(tempfile.mkdtemp()) / "toy", epochs=5)


def evaluate(root):
    return protocol.over_seeds({folder: evaluate_script.evaluate_run(folder, SETTINGS) for folder in runs.find(root)})


def write_parts(root):
    """What further scripts add: to each first seed benchmark.csv, parity.json, robustness.csv, attention.npz, events;
    the study robustness_summary.csv and its sheet."""
    summary = []
    for k, folder in enumerate(sorted(root.glob("*/seed_0"))):
        metrics = read_json(folder / "metrics.json")["test"]
        samples = read_npz(folder / "samples.npz")
        model, rng = folder.parent.name, np.random.default_rng(k)
        write_csv(folder / "benchmark.csv", benchmark_rows(model, k, rng))
        write_json(folder / "exports/parity.json", {"checkpoint": "x", "formats": {
            "onnx": {"file": "model.onnx", "bytes": 10_000, "test": parity(metrics, 0.0)},
            "int8": {"file": "model.int8.onnx", "bytes": 5_000, "test": parity(metrics, -.02)},
        }})
        rows = robustness_rows(model, metrics)
        write_csv(folder / "robustness.csv", rows)
        summary.append(summary_row(model, k, rows))
        if not model.startswith("teacher") and not model.endswith("alone"):
            cka = np.array([.9, .8, .7, .6])
            maps = {name: rng.random((4, 4, 4, 4)).astype(np.float16) for name in ("student", "teacher")}
            maps |= {f"{name}_cam": rng.random((4, 4, 4)).astype(np.float16) for name in ("student", "teacher")}
            write_npz(folder / "attention.npz", ids=samples["ids"], cka=cka, cka_lo=cka - .05, cka_hi=cka + .05,
                      images=samples["images"], difference=np.array([.75, .5, .25, .125]), candidates=np.array(120),
                      **maps)
        with event_writer.opened(folder / "tb", 0) as log:
            log({"epoch": 1, "loss": 2.5 - k, "val_macro_f1": .25})
            log({"epoch": 2, "loss": 1.5, "val_macro_f1": .125 * k})
        event_writer.image(folder / "tb", "samples", 0, samples["images"])
    write_csv(root / "robustness_summary.csv", summary)
    Image.new("RGB", (40, 30), "red").save(root / "robustness_sheet.png")
    return root


def benchmark_rows(model, k, rng):
    """Rows of benchmark.csv of the k-th model: its checkpoint, ONNX and INT8."""
    rows = []
    for file, backend, share in (
        ("best.pt", "eager", 8), ("exports/model.onnx", "onnxruntime", 2),
        ("exports/model.int8.onnx", "onnxruntime", 1),
    ):
        p50 = share * (1 + k) + rng.uniform(0, .1)
        rows.append({
            "ckpt": f"runs/toy/{model}/seed_0/{file}", "model": model, "seed": "seed_0", "device": "cpu", "batch": 1,
            "imsz": 8, "lat_ms_mean": p50 * 1.1, "lat_ms_std": 0.1, "lat_ms_p50": p50, "lat_ms_p90": p50 * 1.2,
            "lat_ms_p99": p50 * 1.4, "throughput_fps": 1e3 / p50, "lat_ms_p90_mlperf": p50 * 1.3,
            "iqr_over_median": 0.05, "noisy": k == 1, "cpu_ms_p50": p50, "params_bytes": 4096 * (1 + k),
            "params_mib": (1 + k) / 256, "parameters": 1024 * (1 + k), "macs": 5000, "file_bytes": 5000 * share,
            "peak_cuda_bytes": "", "peak_rss_mib": 70.5, "peak_cuda_mib": "", "cold_start_ms": 300.25,
            "backend": backend, "threads": 1, "measured": "pixels to logits", "speedup": 8 / share, "cpu": "a CPU",
        })
    return rows


def parity(metrics, shift):
    """The part `test` of an exported file in parity.json, whose metrics differ from the checkpoint's by `shift`."""
    differences = {}
    for name in ("macro_f1", "accuracy"):
        value = metrics[name]["value"]
        differences[name] = {
            "reference": value, "model": value + shift, "model_lo": value + shift - .1, "model_hi": value + shift + .1,
            "difference": {"value": shift, "lo": shift - .01, "hi": shift + .01, "p": .5}}
    return {"images": 120, "flips": abs(shift), "largest": 1e-6, **differences,
            "ece": {"reference": .1, "model": .1, "shift": shift / 2}}


def robustness_rows(model, metrics):
    """Rows of robustness.csv: clean images, and two corruptions that lose 0.05 and 0.2 of each metric."""
    rows = []
    for tag, corruption, severity, shift in (
        ("clean", "clean", 0, 0), ("jpeg_3", "jpeg", 3, .05), ("contrast_5", "contrast", 5, .2),
    ):
        row = {
            "acc": metrics["accuracy"]["value"] - shift, "macro_f1": metrics["macro_f1"]["value"] - shift, "tag": tag,
            "model": model, "seed": "seed_0", "file": "best.pt", "suite": "default", "corruption": corruption,
            "severity": severity,
        }
        for name in ("accuracy", "macro_f1", "balanced_accuracy", "nll", "rms_ce_debiased", "aurc"):
            value = metrics[name]["value"] - shift
            row.update({
                name: value, f"{name}_lo": value - .03, f"{name}_hi": value + .03, f"{name}_difference": -shift,
                f"{name}_difference_lo": -shift - .02, f"{name}_difference_hi": -shift + .02,
            })
        row.update({"ece": metrics["ece"]["value"] - shift, "ece_lo": "", "ece_hi": "", "ece_withheld": BIASED})
        rows.append(row)
    return rows


def summary_row(model, k, rows):
    """The k-th model's row of robustness_summary.csv. rows: its robustness_rows()."""
    clean, jpeg, contrast = (row["macro_f1"] for row in rows)
    row = {
        "model": model, "seed": "seed_0", "file": "best.pt", "suite": "default", "baseline": "teacher_big/seed_0",
        "cells": 2, "images": 120, "rank": 1 + k, "worst_tag": "contrast_5",
    }
    for name, value in (
        ("clean_macro_f1", clean), ("mean_macro_f1", jpeg), ("be", 1 + k / 8), ("rbe", 1 + k / 4),
        ("be_medmnist_c", 1 + k / 16), ("rbe_medmnist_c", 1 - k / 16), ("worst_macro_f1", contrast),
    ):
        row.update({name: value, f"{name}_lo": value - .05, f"{name}_hi": value + .05})
    return row


def compile_once(environment, source, name=None, filename=None, code={}):
    if source not in code:
        code[source] = COMPILE(environment, source, name, filename)
    return code[source]


def without_drawings(monkeypatch):
    """For tests that are not about drawings: a report without them and without the PDF, its template compiled once."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(pdf, "write", lambda path, blocks: None)
    monkeypatch.setattr(paper, "write", lambda folder, sections: None)
    monkeypatch.setattr(figures, "to_svg", lambda draw, args, options, alt: "<svg></svg>")
    monkeypatch.setattr(jinja2.Environment, "compile", compile_once)


def paged(root):
    """The Page that report.py makes of a study."""
    return Page(report.main([str(root)]).read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """A page taken apart: tags with attributes, text, and the tables.

    tables: {name: [{column's key: [numbers shown, or the text]}]}; numbers: [(value, as it is printed)].
    """

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.text, self.tables, self.numbers = text, [], "", {}, []
        self.table = self.cell = self.number = None
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.table = self.tables.setdefault(attributes.get("id", "").removeprefix("table-"), [])
        elif tag == "tr" and self.table is not None:
            self.table.append({})
        elif "data-key" in attributes:
            self.cell = self.table[-1].setdefault(attributes["data-key"], [])
        elif tag == "data":
            self.number = float(attributes["value"])
            if self.cell is not None:
                self.cell.append(self.number)

    def handle_data(self, data):
        self.text += data
        if self.number is not None:
            self.numbers.append((self.number, data))
        elif self.cell is not None and data.strip(" ■○●\n") and data.strip() != "to":
            self.cell.append(data.strip())

    def handle_endtag(self, tag):
        self.number = None if tag == "data" else self.number
        self.cell = None if tag in ("td", "th") else self.cell
        self.table = None if tag == "table" else self.table
        if tag in ("p", "td", "th", "li", "text", "h1", "h2", "h3", "dt", "dd", "div", "summary", "small"):
            self.text += " "

    def rows(self, name):
        """Rows of a table, by its first cells: {("small_kd", "0"): row}."""
        columns = self.table_keys(name)
        keys = [key for key in ("model", "seed", "class", "metric_name", "reference", "format") if key in columns]
        return {tuple("".join(map(str, row[key])) for key in keys): row for row in self.tables[name] if row}

    def table_keys(self, name):
        return next((row for row in self.tables[name] if row), {})

    def drawings(self):
        return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", self.source, re.S)]


def words(drawing):
    return ["".join(text.itertext()) for text in drawing.iter("text")]
