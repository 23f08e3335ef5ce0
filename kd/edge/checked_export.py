"""A run's checkpoint as files for other machines: each made, checked against the checkpoint, and only then written."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd import image, onnx_model, predictions
from kd.data import loader
from kd.edge import convert, parity, quantize
from kd.errors import UserError
from kd.files import atomic, read_json, write_json
from kd.train import checkpoint, setup

FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "torchscript": "model.ts.pt", "fx": "model.fx.int8.ts.pt"}
FORMATS = tuple(FILES)
ROUNDED = ("int8", "fx")  # their logits are not the checkpoint's; how near they are is measured
WEIGHTS = "none: weights only"  # in place of how ranges are chosen
GROUPS = 8    # parts into which the layers are cut to find those that INT8 costs most


@dataclass
class Source:
    """A finished run, its network with normalisation inside, its images, and its metadata for exported files."""

    run: Path
    network: torch.nn.Module
    data: loader.Data
    metadata: dict
    held: dict  # {"val": Predictions, "test": Predictions}

    @property
    def size(self):
        return self.data.size

    def pixels(self, split, count=None):
        """uint8 [n, S, S, 3] of a split in its order, or of `count` images drawn from it."""
        rows = self.data.where(split)
        if count is not None and count < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
        return image.centre_crop(self.data.pixels(rows), self.size)


def open_run(run, registry, root=None, cache=None):
    """Source of a run's folder. The images are held against the run's fingerprint, its predictions against its split."""
    run = Path(run)
    model, content = checkpoint.load(run / "best.pt", registry.create)
    data = setup.data_of_run(run, registry, root, cache)
    held = dict(zip(("val", "test"), predictions.of_run(run)))
    for split, one in held.items():
        if one.ids.tolist() != data.ids[data.where(split)].tolist():
            raise UserError(f"{run}/predictions/{split}.npz is of other images than split.csv says")
    evaluated = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else None
    if not (evaluated or {}).get("calibration"):
        print(f"note: no temperature and thresholds go along: python evaluate.py {run.as_posix()} finds them")
    return Source(run, convert.deployed(model, content), data, convert.describe(model, content, evaluated), held)


def write(source, folder, formats, *, calibration, reduce_range, most_flips):
    """Make, check and write the `formats` of a Source into `folder`; returns parity, the content of parity.json.

    A check that fails is a UserError before anything is written; what was there before stays.
    """
    images = {split: source.pixels(split) for split in ("val", "test")}
    reference = {split: convert.logits(source.network, pixels) for split, pixels in images.items()}
    told = {"checkpoint": source.metadata["provenance"]["weights"],
            "predictions": {split: float(np.abs(reference[split] - source.held[split].logits).max()) for split in images},
            "formats": {}}
    run, model, contents = _Run(source, images, reference), None, {}
    for name in sorted(formats, key=FORMATS.index):
        more = {}
        if name == "torchscript":
            content = convert.to_torchscript(source.network, source.size, source.metadata)
            predict = run.torchscript(content)
        elif name == "fx":
            content = convert.to_fx(source.network, source.pixels("train", calibration), source.size, source.metadata)
            predict = run.torchscript(content)
        else:
            model = model or convert.to_onnx(source.network, source.size, source.metadata)
            content = model.SerializeToString()
            if name == "int8":
                content, more = int8(run, model, calibration, reduce_range, most_flips)
            predict = run.onnx(content)
        told["formats"][name] = checked = {"file": FILES[name], "bytes": len(content), **more, **run.check(name, predict)}
        if name == "fx" and checked["val"]["flips"] > most_flips:
            raise UserError(f"{FILES[name]} changes the label of {checked['val']['flips']:.1%} of the validation images, more than "
                            f"--max-flips {most_flips:g}", "Use --formats int8, which chooses among recipes, or accept more.")
        contents[name] = content
    if "int8" in told["formats"]:
        told["formats"]["int8"]["share_of_float"] = told["formats"]["int8"]["bytes"] / len(model.SerializeToString())
    for name, content in contents.items():
        with atomic(folder / FILES[name]) as file:
            file.write(content)
    path = folder / "parity.json"
    old = read_json(path) if path.is_file() else {}
    kept = old["formats"] if old.get("checkpoint") == told["checkpoint"] else {}  # of files that stay
    write_json(path, {**told, "formats": {**kept, **told["formats"]}})
    return told


@dataclass
class _Run:
    """A Source with the images and the checkpoint's logits of validation and test."""

    source: Source
    images: dict
    reference: dict

    def onnx(self, content):
        ready = onnx_model.session(content, 1)
        return lambda images: np.concatenate([ready.run(["logits"], {"image": images[k:k + 32]})[0]
                                              for k in range(0, len(images), 32)])

    def torchscript(self, content):
        with convert.silent():
            ready = torch.jit.load(io.BytesIO(content))
        return lambda images: convert.logits(ready, images)

    def check(self, name, predict):
        """{"batch_1", "batch_5", "val", "test"}: the largest differences of logits in batches of one and five,
        from the checkpoint's (of rounded ones from their own in large batches), and what parity.compare says."""
        logits = {split: predict(images) for split, images in self.images.items()}
        five, own = self.images["val"][:5], logits if name in ROUNDED else self.reference
        largest = {"batch_1": np.concatenate([predict(one[None]) for one in five]), "batch_5": predict(five)}
        largest = {key: float(np.abs(value - own["val"][:5]).max()) for key, value in largest.items()}
        worst = max(*largest.values(), *(np.abs(logits[split] - own[split]).max() for split in logits))
        if not worst <= onnx_model.CLOSE * max(1, np.abs(self.reference["val"]).max()):
            raise UserError(f"the exported {FILES[name]} gives other logits than it should: they differ by up to {worst:.2g}",
                            "It is not written. Another version of torch, onnxscript or onnxruntime may do better.")
        temperature = self.source.metadata["temperature"]
        return {**largest, **{split: parity.compare(self.source.held[split], self.reference[split], logits[split], temperature)
                              for split in logits}}


def int8(run, model, calibration, reduce_range, most_flips):
    """(content, {"recipe", "recipes"}) of the INT8 file whose probabilities on validation are nearest to the checkpoint's,
    of those that change at most `most_flips` of the labels.

    Where all change more, but at most twice as many, the group of layers that costs most is left in float, up to three
    times. If this is not enough only weights are rounded; and if that is too much, a UserError.
    """
    folded = quantize.fold(model)
    seen = quantize.observe(folded, run.source.pixels("train", calibration), lambda content: onnx_model.session(content, 1))
    reference, always, tried = run.reference["val"], quantize.float_nodes(folded), []

    def judge(made, name, keep):
        recipe = {"ranges": name, "float": keep, "reduce_range": reduce_range}
        convert.label(made, {**run.source.metadata, "recipe": recipe})
        content = made.SerializeToString()
        logits = run.onnx(content)(run.images["val"])
        tried.append({**recipe, "bytes": len(content), "val_divergence": parity.divergence(reference, logits),
                      "val_flips": parity.flips(reference, logits)})
        bar.update()
        return tried[-1], content

    def attempt(name, keep):
        ranges = {tensor: quantize.RECIPES[name](one) for tensor, one in seen.items()}
        keep_float = [*always, *keep]
        corrected = quantize.correct(folded, seen, keep=keep_float, reduce_range=reduce_range)
        made = quantize.quantize(corrected, ranges, keep=keep_float, reduce_range=reduce_range)
        return judge(made, name, keep)

    def best(attempts):
        return min(attempts, key=lambda one: (one[0]["val_flips"] > most_flips, one[0]["val_divergence"]))

    with tqdm(desc="INT8 recipes", disable=None, delay=2, leave=False) as bar:
        chosen = best([attempt(name, []) for name in quantize.RECIPES])
        for _ in range(3):
            if not most_flips < chosen[0]["val_flips"] <= 2 * most_flips:
                break
            before, name, keep = chosen, chosen[0]["ranges"], chosen[0]["float"]
            chosen = best([chosen, *(attempt(name, [*keep, *group])
                                     for group in quantize.groups(folded, GROUPS) if not set(group) <= set(keep))])
            if chosen is before:
                break
        if chosen[0]["val_flips"] > most_flips:
            chosen = best([chosen, judge(quantize.round_weights(folded), WEIGHTS, [])])
    recipe = chosen[0]
    if recipe["val_flips"] > most_flips:
        raise UserError(f"INT8 changes the label of {recipe['val_flips']:.1%} of the validation images, more than --max-flips "
                        f"{most_flips:g}, in each of {len(tried)} recipes", "Training must know of the rounding (quantisation-"
                        "aware); networks without squeeze-and-excitation and with ReLU6 lose least. Or accept more.")
    return chosen[1], {"recipe": recipe, "recipes": tried}
