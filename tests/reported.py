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
from kd.evaluation import protocol
from kd.files import read_json, read_npz, write_csv, write_json, write_npz, write_yaml
from kd.report import figures, pdf

CLASSES = {"mel": .4, "nv": .4, "df": .2}
MODELS = {"teacher_big": (3.0, (0,)), "small_alone": (1.0, (0, 1)), "small_kd": (2.2, (0, 1))}
COMPILE = jinja2.Environment.compile
SETTINGS = protocol.Settings(replicates=200)


def write_run(folder, skill=1.5, seed=0, shares=CLASSES, role="student", synthetic=False, formula="ce", noise=None, **config):
    """A run of 120 test images, evaluated; `noise` seeds what its logits are drawn from."""
    shares = {name: 1.0 for name in shares} if isinstance(shares, list) else shares
    names = list(shares)
    val, test = (honest.predictions(np.random.default_rng(k), n, shares, skill, part=part)  # the same images in every run
                 for k, n, part in ((1, 80, "val"), (2, 120, "test")))
    rng = np.random.default_rng([sum(map(ord, folder.parent.name)) if noise is None else noise, seed])
    for one in (val, test):
        one.logits += rng.normal(size=one.logits.shape)
    honest.write(folder, val, test, role, seed=seed)
    write_npz(folder / "samples.npz", ids=test.ids[:4],
                   images=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    write_yaml(folder / "config.yaml", {"data": "toy", "size": 8, "epochs": 5, "seeds": [seed], **config})
    write_json(folder / "environment.json", {
        "python": "3.12.1", "cpu": "a CPU", "threads": 2, "git": "abc1234", "role": role, "formula": formula, "arch": "small",
        "parameters": 12345, "started": f"2025-01-0{seed + 1}",
        "data": {"name": "toy", "synthetic": synthetic, "images": 36, "classes": names, "fingerprint": "f1f2f3"}})


def write_study(root, **options):
    """A teacher, a student alone and one with a teacher, two seeds each, evaluated; as copies of one that is made once."""
    if not options:
        shutil.copytree(_study(), root)
        return root
    for model, (skill, seeds) in MODELS.items():
        role = "teacher" if model.startswith("teacher") else "student"
        more = {"student": {"teacher": "big"}, "alone": {"student": ["small"], "teacher": None, "alpha": 1.0},
                "kd": {"student": ["small"], "alpha": .5, "teacher": "runs/toy/teacher_big/seed_0"}}
        kind = more["student" if role == "teacher" else model.split("_")[1]]
        for seed in seeds:
            write_run(root / model / f"seed_{seed}", skill, seed, role=role,
                      formula="0.5 * ce + 0.5 * kd(T=4)" if model == "small_kd" else "ce", **{**kind, **options})
    evaluate(root)
    return root


@functools.cache
def _study():
    return write_study(Path(tempfile.mkdtemp()) / "toy", epochs=5)


def evaluate(root):
    return protocol.over_seeds({folder: evaluate_script.evaluate_run(folder, SETTINGS) for folder in runs.find(root)})


def write_parts(root):
    """What further scripts add: to each first seed benchmark.csv, parity.json, robustness.csv and attention.npz, event files; to
    the study robustness_summary.csv and its sheet."""
    summary = []
    for k, folder in enumerate(sorted(path for path in root.glob("*/seed_0"))):
        result = read_json(folder / "metrics.json")["test"]
        model, rng = folder.parent.name, np.random.default_rng(k)
        rows = []
        for file, backend, share in (("best.pt", "eager", 8), ("exports/model.onnx", "onnxruntime", 2), (
                "exports/model.int8.onnx", "onnxruntime", 1)):
            p50 = share * (1 + k) + rng.uniform(0, .1)
            rows.append({"ckpt": f"runs/toy/{model}/seed_0/{file}", "model": model, "seed": "seed_0", "device": "cpu", "batch": 1,
                         "imsz": 8, "lat_ms_mean": p50 * 1.1, "lat_ms_std": .1, "lat_ms_p50": p50, "lat_ms_p90": p50 * 1.2,
                         "lat_ms_p99": p50 * 1.4, "throughput_fps": 1e3 / p50, "lat_ms_p90_mlperf": p50 * 1.3,
                         "iqr_over_median": .05, "noisy": k == 1, "cpu_ms_p50": p50, "params_bytes": 4096 * (1 + k),
                         "params_mib": (1 + k) / 256, "parameters": 1024 * (1 + k), "macs": 5000, "file_bytes": 5000 * share,
                         "peak_cuda_bytes": "", "peak_rss_mib": 70.5, "peak_cuda_mib": "", "cold_start_ms": 300.25,
                         "backend": backend, "threads": 1, "measured": "pixels to logits", "speedup": 8 / share, "cpu": "a CPU"})
        write_csv(folder / "benchmark.csv", rows)

        def part(name, shift):
            value = result[name]["value"]
            return {"reference": value, "model": value + shift, "difference": {
                "value": shift, "lo": shift - .01, "hi": shift + .01, "replicates": 200, "undefined": 0, "p": .5}}

        def lost(shift):
            return {"images": 120, "flips": abs(shift), "largest": 1e-6, "macro_f1": part("macro_f1", shift),
                    "accuracy": part("accuracy", shift), "ece": {"reference": .1, "model": .1, "shift": shift / 2}}

        write_json(folder / "exports/parity.json", {"checkpoint": "x", "formats": {
            name: {"file": file, "bytes": size, "test": lost(shift)} for name, file, size, shift in (
                ("onnx", "model.onnx", 10_000, 0.0), ("int8", "model.int8.onnx", 5_000, -.02))}})
        rows = []
        for tag, corruption, severity, shift in (("clean", "clean", 0, 0), ("jpeg_3", "jpeg", 3, .05), ("contrast_5", "contrast", 5, .2)):
            row = {"acc": result["accuracy"]["value"] - shift, "macro_f1": result["macro_f1"]["value"] - shift, "tag": tag, "model": model,
                   "seed": "seed_0", "file": "best.pt", "suite": "default", "corruption": corruption, "severity": severity}
            for name in ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "aurc"):
                value = result[name]["value"] - shift
                row.update({name: value, f"{name}_lo": value - .03, f"{name}_hi": value + .03, f"{name}_difference": -shift,
                            f"{name}_difference_lo": -shift - .02, f"{name}_difference_hi": -shift + .02})
            rows.append(row)
        write_csv(folder / "robustness.csv", rows)
        row = {"model": model, "seed": "seed_0", "file": "best.pt", "suite": "default", "baseline": "teacher_big/seed_0", "cells": 2,
               "images": 120, "rank": 1 + k, "worst_tag": "contrast_5"}
        for name, value in (("clean_macro_f1", rows[0]["macro_f1"]), ("mean_macro_f1", rows[1]["macro_f1"]), ("be", 1 + k / 8),
                            ("rbe", 1 + k / 4), ("worst_macro_f1", rows[2]["macro_f1"])):
            row.update({name: value, f"{name}_lo": value - .05, f"{name}_hi": value + .05})
        summary.append(row)
        if not model.startswith("teacher") and not model.endswith("alone"):
            write_npz(folder / "attention.npz", ids=read_npz(folder / "samples.npz")["ids"], **{f"cka{end}": np.array([.9, .8, .7, .6]) + gap
                               for end, gap in (("", 0), ("_lo", -.05), ("_hi", .05))},
                           **{name: rng.random((4, 4, 4, 4)).astype(np.float16) for name in ("student", "teacher")})
        with event_writer.opened(folder / "tb", 0) as log:
            log({"epoch": 1, "loss": 2.5 - k, "val_macro_f1": .25})
            log({"epoch": 2, "loss": 1.5, "val_macro_f1": .125 * k})
        event_writer.image(folder / "tb", "samples", 0, read_npz(folder / "samples.npz")["images"])
    write_csv(root / "robustness_summary.csv", summary)
    Image.new("RGB", (40, 30), "red").save(root / "robustness_sheet.png")
    return root


def compile_once(environment, source, name=None, filename=None, code={}):
    if source not in code:
        code[source] = COMPILE(environment, source, name, filename)
    return code[source]


def without_drawings(monkeypatch):
    """For tests that are not about drawings: a report without them and without the PDF, its template compiled once."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(pdf, "write", lambda path, blocks: None)
    monkeypatch.setattr(figures, "to_svg", lambda draw, args, options, alt: "<svg></svg>")
    monkeypatch.setattr(jinja2.Environment, "compile", compile_once)


def paged(root):
    """The Page that report.py makes of a study."""
    return Page(report.main([str(root)]).read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """A page taken apart: tags with attributes, text, and the tables.

    tables: {name: [{column's key: [numbers shown, or the text]}]}; shown: [(value, how it is printed)].
    """

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.text, self.tables, self.shown = text, [], "", {}, []
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
            self.shown.append((self.number, data))
        elif self.cell is not None and data.strip(" ■○●\n") and data.strip() != "to":
            self.cell.append(data.strip())

    def handle_endtag(self, tag):
        self.number = None if tag == "data" else self.number
        self.cell = None if tag in ("td", "th") else self.cell
        self.table = None if tag == "table" else self.table
        self.text += " " if tag in ("p", "td", "th", "li", "text", "h1", "h2", "h3", "dt", "dd", "div", "caption") else ""

    def rows(self, name):
        """Rows of a table, by its first cells: {("small_kd", "0"): row}."""
        keys = [key for key in ("model", "seed", "class", "metric_name", "reference", "format") if key in self.table_keys(name)]
        return {tuple("".join(map(str, row[key])) for key in keys): row for row in self.tables[name] if row}

    def table_keys(self, name):
        return next((row for row in self.tables[name] if row), {})

    def drawings(self):
        return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", self.source, re.S)]


def words(drawing):
    return ["".join(text.itertext()) for text in drawing.iter("text")]
