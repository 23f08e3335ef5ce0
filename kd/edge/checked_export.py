"""A run's checkpoint as files for other machines: each made, checked against the checkpoint, and only then written."""

from dataclasses import dataclass

import numpy as np
import torch

from kd import executorch_model, image, onnx_model
from kd.data import loader
from kd.edge import convert, executorch, parity, qat, quantize
from kd.errors import UserError, progress
from kd.files import atomic, read_json, write_json
from kd.run_folder import Run
from kd.text import command
from kd.train import checkpoint, setup

FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "executorch": "model.pte",
         "executorch_int8": "model.int8.pte"}
FORMATS = {"onnx": ("onnx",), "int8": ("int8",), "executorch": ("executorch", "executorch_int8")}  # option: its files
ROUNDED = ("int8", "executorch_int8")  # their logits are not the checkpoint's; how near they are is measured
WEIGHTS = "none: weights only"  # in place of how ranges are chosen
TRAINED = "training"            # likewise


@dataclass
class Source:
    """What is exported: a run, its network with normalisation inside, its images, the metadata of the files."""

    run: Run
    network: torch.nn.Module
    data: loader.Data
    metadata: dict

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
    """Source of a Run. Its images are checked against the run's fingerprint, its predictions against its split.

    root, cache: where images and decoded images are now. Raises UserError on damaged files and on other images.
    """
    model, content = checkpoint.load(run.folder / "best.pt", registry)
    data = setup.data_of_run(run, registry, root, cache)
    for split, predictions in zip(("val", "test"), run.predictions()):
        if predictions.ids.tolist() != data.ids[data.where(split)].tolist():
            raise UserError(f"{run.folder}/predictions/{split}.npz is of other images than split.csv says")
    if not (run.metrics or {}).get("calibration"):
        print(f"note: no temperature and thresholds go along; find them first: {command('evaluate.py', run.folder)}")
    metadata = convert.describe(model, content, run.metrics, data.caution)
    return Source(run, convert.deployed(model, content), data, metadata)


def write(source, folder, formats, *, calibration, weight_range, max_flips, qat_epochs=0):
    """Make, check and write the `formats` of a Source into `folder`; returns the content of parity.json.

    calibration: training images that the ranges of INT8 are taken from. weight_range: of INT8, one of
    quantize.WEIGHT_RANGES. max_flips: the share of validation labels that a rounded format may change. qat_epochs: of
    quantisation-aware training of the INT8 file, whose graph is then a recipe of model.int8.pte, too. A check that
    fails is a UserError before anything is written; old files stay. Where only model.int8.pte changes more labels it
    is left out, with a note, and model.pte is written.
    """
    checks = _Checks.of(source)
    parity_content = {"checkpoint": source.metadata["provenance"]["weights"],
                      "predictions": checks.difference_to_predictions(), "formats": {}}
    model, trained, contents = None, None, {}
    for name in (name for format, files in FORMATS.items() if format in formats for name in files):
        recipes = {}
        if name == "executorch":
            content = executorch.to_executorch(source.network, source.size)
            predict = checks.executorch(content)
        elif name == "executorch_int8":
            content, recipes = executorch.int8(checks, calibration, max_flips, trained)
            predict = checks.executorch(content)
        else:
            model = model or convert.to_onnx(source.network, source.size, source.metadata)
            content = model.SerializeToString()
            if name == "int8":
                content, recipes, trained = int8(checks, model, calibration, weight_range, max_flips, qat_epochs)
            predict = checks.onnx(content)
        entry = {"file": FILES[name], "bytes": len(content), **recipes, **checks.check(name, predict)}
        if name == "executorch_int8" and entry["val"]["flips"] > max_flips:
            print(f"note: {FILES[name]} is not written: it would change the label of {entry['val']['flips']:.1%} of "
                  f"the validation images, more than --max-flips {max_flips:g}")
            continue
        parity_content["formats"][name], contents[name] = entry, content
    if "int8" in parity_content["formats"]:
        entry = parity_content["formats"]["int8"]
        entry["share_of_float"] = entry["bytes"] / len(model.SerializeToString())
    for name, content in contents.items():
        with atomic(folder / FILES[name]) as file:
            file.write(content)
        if name in FORMATS["executorch"]:
            recipe = {key: value for key, value in parity_content["formats"][name].items() if key == "recipe"}
            executorch_model.write_metadata(folder / FILES[name], content, {**source.metadata, **recipe})
    path = folder / "parity.json"
    old = read_json(path) if path.is_file() else {}
    same_checkpoint = old.get("checkpoint") == parity_content["checkpoint"]
    unchanged = old["formats"] if same_checkpoint else {}  # of files that stay
    write_json(path, {**parity_content, "formats": {**unchanged, **parity_content["formats"]}})
    return parity_content


@dataclass
class _Checks:
    """What exported files are checked against: images and the checkpoint's logits of validation and test."""

    source: Source
    images: dict
    reference: dict

    @classmethod
    def of(cls, source):
        images = {split: source.pixels(split) for split in ("val", "test")}
        return cls(source, images, {split: convert.logits(source.network, pixels) for split, pixels in images.items()})

    def predictions(self, split):
        return getattr(self.source.run, split)

    def difference_to_predictions(self):
        """{split: largest difference of the checkpoint's logits from those in predictions/}."""
        return {split: float(np.abs(logits - self.predictions(split).logits).max())
                for split, logits in self.reference.items()}

    def onnx(self, content):
        """A function from uint8 images [N, S, S, 3] to logits [N, C]."""
        session = onnx_model.session(content, 1, exact=True)
        return lambda images: np.concatenate([session.run(["logits"], {"image": images[k:k + 32]})[0]
                                              for k in range(0, len(images), 32)])

    def executorch(self, content):
        """The same of an ExecuTorch program."""
        session = executorch_model.Session(content, 1)
        return lambda images: session.run(["logits"], {"image": images})[0]

    def check(self, name, predict):
        """{"batch_1", "batch_5", "val", "test"} of parity.json.

        The first two are the largest differences of logits in batches of one and of five from the checkpoint's; of a
        rounded format, from its own logits in large batches. The others are what parity.compare() gives.
        """
        logits = {split: predict(images) for split, images in self.images.items()}
        expected = logits if name in ROUNDED else self.reference
        five = self.images["val"][:5]
        in_batches = {"batch_1": np.concatenate([predict(image_[None]) for image_ in five]), "batch_5": predict(five)}
        largest = {key: float(np.abs(value - expected["val"][:5]).max()) for key, value in in_batches.items()}
        worst = max(*largest.values(), *(np.abs(logits[split] - expected[split]).max() for split in logits))
        if not worst <= onnx_model.CLOSE * max(1, np.abs(self.reference["val"]).max()):
            raise UserError(f"the exported {FILES[name]} gives other logits than it should: they differ by up to "
                            f"{worst:.2g}",
                            "It is not written. Another version of torch, onnxscript, onnxruntime or executorch may "
                            "do better.")
        temperature = self.source.metadata["temperature"]
        return {**largest, **{split: parity.compare(self.predictions(split), self.reference[split], logits[split],
                                                    temperature) for split in logits}}


def rank(recipe, max_flips):
    """What recipes of INT8 are ordered by; the lowest is chosen. recipe: with its figures on validation."""
    return recipe["val_flips"] > max_flips, recipe["val_divergence"]


def int8(checks, model, calibration, weight_range, max_flips, qat_epochs=0):
    """(content, {"recipe", "recipes", "other_range", "unlike"}, trained) of the INT8 file whose probabilities on
    validation are nearest to the checkpoint's, of those that change at most `max_flips` of the labels.

    weight_range: one of quantize.WEIGHT_RANGES. Activations are not rounded, but weights, where all recipes that do so
    change more labels, and in the range "portable" where quantize.unlike() names operators, which "unlike" lists. If
    this changes too many labels as well, a UserError. other_range: the figures of the chosen recipe with the other
    range; None where activations are not rounded. qat_epochs: of training from the best of the recipes, a further one.
    trained: (its recipe, float model, the same quantised), the last two onnx.ModelProtos; None without.
    """
    folded = quantize.fold(model)
    activations = quantize.observe(folded, checks.source.pixels("train", calibration),
                                   lambda content: onnx_model.session(content, 1))
    reference, in_float = checks.reference["val"], quantize.float_nodes(folded)

    def start(name, full):
        """(float model, ranges) of a recipe without training."""
        ranges = {tensor: quantize.RECIPES[name](activation) for tensor, activation in activations.items()}
        return quantize.correct(folded, activations, keep=in_float, full=full), ranges

    def quantized(name, weight_range):
        full = weight_range == "full"
        return quantize.quantize(*(learned if name == TRAINED else start(name, full)), keep=in_float, full=full)

    def judge(quantized, **recipe):
        """(recipe with its figures on validation, content)."""
        convert.label(quantized, {**checks.source.metadata, "recipe": recipe})
        content = quantized.SerializeToString()
        logits = checks.onnx(content)(checks.images["val"])
        bar.update()
        return {**recipe, "bytes": len(content), "val_divergence": parity.divergence(reference, logits),
                "val_flips": parity.flips(reference, logits),
                "val_difference": float(np.abs(logits - reference).mean())}, content

    def best(attempts):
        return min(attempts, key=lambda attempt: rank(attempt[0], max_flips))

    attempts, unlike, other_range, trained = [], [], None, None
    with progress(description="INT8 recipes", leave=False) as bar:
        for name in quantize.RECIPES:
            rounded = quantized(name, weight_range)
            unlike = quantize.unlike(rounded) if weight_range == "portable" else []
            if unlike:
                break
            attempts.append(judge(rounded, ranges=name, weight_range=weight_range))
    if qat_epochs and unlike:
        raise UserError(f"--qat rounds activations, and the {', '.join(unlike)} of this network would compute in float "
                        "between integers, with other answers on other processors",
                        "Leave out --qat, or give --weight-range full.")
    if qat_epochs:
        full = weight_range == "full"
        learned = qat.train(checks.source, *start(best(attempts)[0]["ranges"], full), full=full, keep=in_float,
                            epochs=qat_epochs, max_flips=max_flips)
    with progress(description="INT8 recipes", leave=False) as bar:
        if qat_epochs:
            rounded, recipe = quantized(TRAINED, weight_range), {"ranges": TRAINED, "weight_range": weight_range}
            trained = recipe, learned[0], rounded
            attempts.append(judge(rounded, **recipe))
        if not attempts or best(attempts)[0]["val_flips"] > max_flips:
            attempts.append(judge(quantize.round_weights(folded), ranges=WEIGHTS))
        recipe, content = best(attempts)
        if recipe["val_flips"] > max_flips:
            raise UserError(f"INT8 changes the label of {recipe['val_flips']:.1%} of the validation images, more than "
                            f"--max-flips {max_flips:g}, in each of {len(attempts)} recipes",
                            ("" if unlike else f"Train with the rounding: --qat {2 * qat_epochs or 3}. ") + "Networks "
                            "without squeeze-and-excitation and with ReLU6 lose least. Or accept more.")
        if "weight_range" in recipe:
            other, = set(quantize.WEIGHT_RANGES) - {weight_range}
            other_range, _ = judge(quantized(recipe["ranges"], other), ranges=recipe["ranges"], weight_range=other)
    return content, {"recipe": recipe, "recipes": [recipe for recipe, _ in attempts], "other_range": other_range,
                     "unlike": unlike}, trained
