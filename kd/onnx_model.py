"""An exported model with its metadata, run by ONNX Runtime on an edge box. To classify images with it:

    from kd.onnx_model import Model

    model = Model("model.int8.onnx")
    answer = model.predict("lesion.jpg")       # or the bytes of a file, a Pillow image, an array, a camera's frame
    print(answer["label"], answer["confidence"], model.explain())

It needs numpy, pillow and onnxruntime; a .pte file is run by ExecuTorch instead. The input of the graph, `image`, is
uint8 [N, S, S, 3]; the normalisation is in the graph; the output `logits` is float [N, C]. The metadata of the file are
the class names, the preprocessing, the temperature, the thresholds and the provenance.
"""

import functools
import io
import itertools
import json
import math
import os
import re
import threading
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from kd import errors, image, image_files, metrics
from kd.errors import UserError, listing
from kd.files import JSON, open_regular, parse_json, read_bytes, read_npz

FORMAT = "medmnist-edgeai/onnx/1"
FIELDS = ("format", "class_names", "input", "temperature", "operating_points", "provenance")
CLOSE = 1e-4  # tolerance of logits between checkpoint and export, or two machines: this times max(1, largest logit)
FILE = 2 ** 31  # bytes, where ONNX needs a second file for the weights
LARGEST = 4096  # px that an image may be resized to: more would need gigabytes
MAX_CHECKED = 64  # images in a check file
BATCH = 8  # images in memory at a time: fits the little memory of an edge box
PATIENCE = 120  # seconds an image in the first query, after which a file is taken to compute for ever
ONE_IMAGE = "predict() takes a single image."
HINT = "Bring a complete copy of the file, or export it again with export.py."


def session(model, threads=0, exact=False):
    """An onnxruntime.InferenceSession on the CPU. model: a path or a serialised model; threads: 0 for one per core.

    exact: compute sums of integer products exactly on a processor where they may saturate, which takes longer there.
    """
    ort = errors.need("onnxruntime", "edge")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; in the log they would appear a second time
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact and saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"],
                                enable_fallback=0)  # which prints, and tries the same again


# A model of one node, y int32 [M, N] = MatMulInteger(a uint8 [M, K], b int8 [K, N]), in opset 10.
PRODUCT = (b'\x08\x04:b\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x02\x12\n\n'
           b'\x03\x12\x01M\n\x03\x12\x01KZ\x15\n\x01b\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01K\n\x03\x12\x01Nb\x15\n'
           b'\x01y\x12\x10\n\x0e\x08\x06\x12\n\n\x03\x12\x01M\n\x03\x12\x01NB\x04\n\x00\x10\n')


@functools.cache
def saturates():
    """Whether ONNX Runtime's sums of products of 8 bits saturate on this machine: so on x86 without VNNI.

    It is asked, because not every system says what its processor can do: 255 * 127 + 255 * 127 is 64770.
    """
    values = {"a": np.full((1, 2), 255, np.uint8), "b": np.full((2, 1), 127, np.int8)}
    return session(PRODUCT, 1).run(["y"], values)[0].item() != 64770


class Model:
    """The exported model in a file. Threads may share it. UserError if the file cannot be loaded or is damaged.

    path: the .onnx file. threads: of the CPU, from 1 to 1024; 0: one per core.

    class_names: [C]; size: side of its input in px; range: of deep values, as kd.image.to_rgb() takes it, or None;
    temperature: float, or None if calibration failed or was not done; points: operating points, [{"name", "kind",
    "class", "threshold", "promised"}], whose thresholds are for raw probabilities; caution: what every answer says of
    the images that the model was trained on, or "".
    """

    def __init__(self, path, threads=0):
        path = Path(path)
        _check_whole("threads", threads, 0, 1024)
        if path.is_dir():
            raise UserError(f"{path} is a folder, not an exported model", "Name the .onnx or .pte file in it.")
        open_regular(path, FILE).close()
        try:
            if path.suffix == ".pte":
                from kd import executorch_model  # here, so that a box with ONNX files does not need this file
                self.session = executorch_model.open_session(path, threads)
            else:
                self.session = session(str(path), threads)
        except UserError:
            raise
        except Exception as error:  # onnxruntime has an exception class for each kind of failure
            needs_newer = any(part in str(error).lower() for part in ("opset", "ir version"))
            hint = "Update onnxruntime, which is older than this file." if needs_newer else _way_to_a_model(path)
            raise UserError(f"cannot load {path}: {_one_line(error)}", hint) from None
        self.path, self.metadata = path, _metadata(path, self.session)
        if _may_saturate(self.metadata) and saturates():
            self.session = session(str(path), threads, exact=True)
        self.class_names, self.temperature = self.metadata["class_names"], self.metadata["temperature"]
        self.points, self.size = self.metadata["operating_points"], self.metadata["input"]["size"]
        self.range = self.metadata["input"].get("range")
        self.caution = self.metadata.get("caution") or ""
        self._has_run = path.suffix == ".pte"  # which kd.executorch_model has tried

    def _run(self, images):
        """What the graph computes of images. The first query, as the graph may have loops, is ended by an exception
        where it takes more than PATIENCE seconds an image."""
        query = ["logits"], {"image": np.ascontiguousarray(images)}
        if self._has_run:
            return self.session.run(*query)[0]
        settings = errors.need("onnxruntime", "edge").RunOptions()
        guard = threading.Timer(PATIENCE * len(images), setattr, (settings, "terminate", True))
        guard.daemon = True
        guard.start()
        try:
            logits = self.session.run(*query, settings)[0]
        finally:
            guard.cancel()
        self._has_run = True
        return logits

    # ---- an image -> an answer

    def predict(self, source, bgr=False):
        """The answer to one image, a dict. UserError if the image cannot be used.

        source: a path; the bytes of an image file, or an open one; a Pillow image; an array [H, W], [H, W, 3] or
        [H, W, 4] of uint8, or [H, W] of uint16 or float32. Colours are RGB or RGBA, those of arrays with bgr=True are
        BGR or BGRA, as OpenCV has them. The size does not matter; what is not square loses its longer ends.

        {"label": the most probable class, or None if the model abstains; "confidence": its calibrated probability;
        "most_probable": the class; "called": the classes above their sensitivity threshold; "abstains": whether the
        model gives no label; "probabilities": {class: calibrated probability}; "problem": None, or what is odd about
        the image; "caution": why little may be made of this answer, or ""}. explain() says what these mean for this
        model. Problems are "beyond" and "narrow": values of more than 8 bits go beyond the range of the training
        images, or are nearly one grey in it, with "values": [least, largest]; "small": the short side is less than half
        of the network's input; of predict_all() alone, as predict() raises UserError for them, "unreadable" and "deep".
        """
        return next(self._answers([self._prepare(source, bgr)]))

    def predict_all(self, sources, batch=BATCH, bgr=False):
        """An iterator over the answers to images, in their order, each as predict() gives it.

        sources: any iterable of what predict() takes, or an array [N, H, W, 3]. batch: how many are in memory, and in
        the network, at a time; with 1 each is answered before the next one is taken. Where an image cannot be used,
        its answer has no label and in addition "error": why, and its problem is "unreadable", or "deep" where it has
        more than 8 bits and the model was trained on images of 8 bits. UserError where `sources` are no images.
        """
        _check_whole("batch", batch, 1, 2 ** 16)
        if isinstance(sources, np.ndarray) and sources.ndim != 4:
            raise UserError(f"a batch is an array [N, H, W, 3], not {list(sources.shape)}", ONE_IMAGE)
        if isinstance(sources, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(sources, "read"):
            raise UserError("predict_all() takes several images, in a list for example", ONE_IMAGE)
        try:
            sources = iter(sources)
        except TypeError:
            raise UserError(f"predict_all() takes several images, not {type(sources).__name__}", ONE_IMAGE) from None
        parts = iter(lambda: list(itertools.islice(sources, batch)), [])
        return itertools.chain.from_iterable(
            self._answers([self._prepare_if_usable(source, bgr) for source in part]) for part in parts)

    def explain(self):
        """What this model's answers mean, as lines of text: classes, probabilities, thresholds, and their promises."""
        site = self.metadata["provenance"].get("site")  # whose cases the settings were fitted on, where it is another
        chosen_on = f"cases of {errors.printable(str(site))}" if site else "validation images"
        calibrated = "not calibrated" if self.temperature is None else (
            f"calibrated on {chosen_on}, with temperature {self.temperature:.2f}")
        abstention, sensitivity = self.point("abstention"), _sensitivities(self.points)
        lines = [f"classes: {', '.join(self.class_names)}; an image of any other kind is called one of them, too",
                 f"confidence: probability of the most probable class, {calibrated}"]
        if abstention:
            threshold, few_errors = abstention["threshold"], f"at most {abstention['promised']:.0%} errors"
            lines.append(f"abstains: never, since no threshold gave {few_errors} on {chosen_on}"
                         if threshold is None else
                         f"abstains (no label): where no probability before calibration reaches {threshold:.3g}, "
                         f"chosen on {chosen_on} for {few_errors} among the images that get a label")
        if sensitivity:
            lines.append("called: every class whose probability before calibration reaches its threshold, chosen on "
                         f"{chosen_on} for a sensitivity{sensitivity}")
        if abstention or sensitivity:
            assurance = next((point["assurance"] for point in self.points if point.get("assurance")), None)
            lines.append("these promises are for images like those: same devices, same population" + (
                f"; of all such sets, a share of {assurance:g} chooses a threshold that keeps its promise"
                if assurance else ""))
        if self.caution:
            lines.append(f"* CAUTION: {self.caution}")
        return "\n".join([*lines, "Research software, not a medical device."])

    def _prepare(self, source, bgr):
        """(pixels uint8 [S, S, 3], {"problem", "caution"}) of what predict() takes."""
        square, misfit, short = self.examined(_readable(source))
        if bgr and isinstance(source, np.ndarray):
            square = square[..., ::-1]  # here, where the pixels are few: the steps before treat colours alike
        if not misfit and 2 * short >= self.size:
            return square, {"problem": None, "caution": self.caution}
        if not misfit:
            text = (f"its short side of {short} px is less than half of the {self.size} px that the network takes: "
                    "where the training images are larger, its answer says little")
            return square, {"problem": "small", "caution": "; ".join(filter(None, (self.caution, text)))}
        kind, least, largest = misfit
        words = "go beyond" if kind == "beyond" else "lie in a 16th of"
        text = (f"its values, from {least:,.6g} to {largest:,.6g}, {words} {self.range[0]:,.6g}..{self.range[1]:,.6g}, "
                "the scale of the training images: of another scale, it must be saved with that one")
        return square, {"problem": kind, "values": [least, largest], "caution": "; ".join(filter(None, (
            self.caution, text)))}

    def _prepare_if_usable(self, source, bgr):
        try:
            return self._prepare(source, bgr)
        except UserError as error:
            deep = isinstance(error, image.OtherDepth)
            return None, {"error": error.message, "problem": "deep" if deep else "unreadable", "caution": self.caution}

    def _answers(self, prepared):
        """Yield a dict for each (pixels, further keys), as predict_all(); pixels is None where there is no answer."""
        squares = [square for square, _ in prepared if square is not None]
        columns = self.decisions(self.logits(np.stack(squares))).values() if squares else ()
        decided = zip(*columns)
        for square, further in prepared:
            if square is None:
                yield {"label": None, "confidence": None, "most_probable": None, "called": [], "abstains": None,
                       "probabilities": {}, **further}
                continue
            label, p, called, abstains = next(decided)
            label, probabilities = str(label), dict(zip(self.class_names, map(float, p)))
            yield {"label": None if abstains else label, "confidence": probabilities[label], "most_probable": label,
                   "called": [name for name, above in zip(self.class_names, called) if above],
                   "abstains": bool(abstains), "probabilities": probabilities, **further}

    # ---- the steps of it

    def pixels(self, source):
        """The pixels uint8 [S, S, 3] of an image, the same as in evaluation. source: as for image.square()."""
        return image.evaluation_pixels(source, self.metadata["input"])

    def examined(self, source):
        """(pixels, misfit, short) of an image: those of pixels(), and how its deep values do not fit the model's range.

        misfit: ("beyond" or "narrow", least value, largest value) as kd.image.misfit() judges them, or None. short: px
        of the short side, as image.examine() has it.
        """
        recorded = self.metadata["input"]
        square, extremes, _, short = image.examine(source, recorded["resize"], self.range, recorded["interpolation"])
        if square is None:
            return self.pixels(source), None, short  # which raises what a model of 8 bits says of more
        how = image.misfit(extremes, self.range) if extremes else ""
        return image.centre_crop(square[None], self.size)[0], (how, *extremes[:2]) if how else None, short

    def logits(self, images):
        """Logits float32 [N, C] of images uint8 [N, S, S, 3]. UserError if these are others, or one is not finite."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise UserError(f"the network takes images uint8 [N, {self.size}, {self.size}, 3], not {images.dtype} "
                            f"{list(images.shape)}", "predict() takes images of any size.")
        if not len(images):
            return np.zeros((0, len(self.class_names)), np.float32)
        try:
            logits = self._run(images)
        except Exception as error:  # of onnxruntime, as above
            raise UserError(f"{self.path} cannot be run: {_one_line(error)}", HINT) from None
        if logits.shape != (len(images), len(self.class_names)) or not np.isfinite(logits).all():
            raise UserError(f"{self.path} gives logits that are no numbers, or not as many as it has classes", HINT)
        return logits

    def timer(self, images):
        """A function that runs one query of images uint8 [N, S, S, 3] and returns its seconds. Errors as logits()."""
        from kd import timing  # here, so that predict.py does not need this file
        self.logits(images)
        images = np.ascontiguousarray(images)
        return timing.stopwatch(lambda: self.session.run(["logits"], {"image": images}))

    @property
    def facts(self):
        """Counts from the export, a dict: parameters, params_bytes (in fp32, with buffers), macs; None if unknown."""
        return {key: self.metadata.get(key) for key in ("parameters", "params_bytes", "macs")}

    def probabilities(self, logits):
        """(raw, calibrated) probabilities [N, C] of logits [N, C]; both are the same if there is no temperature."""
        raw = metrics.softmax(logits)
        if self.temperature is None:
            return raw, raw
        return raw, metrics.softmax(np.asarray(logits, np.float64) / self.temperature)

    @property
    def thresholds(self):
        """Thresholds [C + 1] of raw probabilities: of each class for its sensitivity, then of abstention; NaN: none."""
        by_class = {point["class"]: point["threshold"] for point in self.points if point["kind"] == "sensitivity"}
        values = [*map(by_class.get, self.class_names), (self.point("abstention") or {}).get("threshold")]
        return np.array([math.nan if value is None else value for value in values])

    def decisions(self, logits):
        """What follows from logits [N, C], as a dict of arrays.

        {"labels": [N], the most probable class; "probabilities": [N, C], calibrated; "called": [N, C] bool, whether a
        class is above its sensitivity threshold; "abstains": [N] bool}
        """
        raw, calibrated = self.probabilities(logits)
        thresholds = self.thresholds
        return {"labels": np.array(self.class_names)[raw.argmax(1)], "probabilities": calibrated,
                "called": raw >= thresholds[:-1], "abstains": raw.max(1) < thresholds[-1]}

    def point(self, kind):
        """The first operating point of a kind, `sensitivity` or `abstention`; None if there is none."""
        return next((point for point in self.points if point["kind"] == kind), None)


def _readable(source):
    """What kd.image.square() takes, of what Model.predict() takes; UserError if it is neither.

    A Pillow image becomes an array, or where it is deep a file, whose values are scaled as those of any file.
    """
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[2] == 1:
            source = source[..., 0]
        is_deep = source.dtype in (np.uint16, np.float32) and source.ndim == 2
        is_usual = source.dtype == np.uint8 and source.ndim in (2, 3) and source.shape[2:] in ((), (3,), (4,))
        if not source.size or not is_deep and not is_usual:
            raise UserError(
                "an array is an image if it is uint8 [H, W], [H, W, 3] or [H, W, 4], or uint16 or float32 [H, W], not "
                f"{source.dtype} {list(source.shape)}",
                "Of one image, values from 0 to 1 become uint8 so: (255 * array).round().astype(numpy.uint8)")
        if not is_deep and source.shape[2:] != (4,):
            return source
        source = Image.fromarray(source)
    elif isinstance(source, (str, os.PathLike, bytes)) or hasattr(source, "read"):
        return source
    if not isinstance(source, Image.Image):
        raise UserError(f"an image is a path, bytes, an open file, a Pillow image or a NumPy array, not a "
                        f"{type(source).__name__}")
    try:
        picture, tags = ImageOps.exif_transpose(source), getattr(source, "tag_v2", {})
        if not image.is_deep(picture):
            return np.asarray(image.to_rgb(picture))
        if tags.get(262) == 0:
            raise ValueError("white is zero in it, which its Pillow image does not say")
        file = io.BytesIO()
        picture.save(file, "TIFF")
        return file.getvalue()
    except Exception as error:  # Pillow raises anything for a file that it reads only now
        raise UserError(f"cannot read the image: {_one_line(error)}", "Give its path.") from None


def _sensitivities(points):
    """The thresholds of sensitivity with what is promised of each, as the end of a sentence; "" if there are none."""
    points = [point for point in points if point["kind"] == "sensitivity" and point["threshold"] is not None]
    asked = {point.get("asked") for point in points}  # one number; None in files of older versions
    common = asked.pop() if len(asked) == 1 else None
    texts = [f"{point['class']} {point['threshold']:.3g}"
             + (f" (promised: {point['promised']:.2f})" if point["promised"] != common else "") for point in points]
    return texts and f"{'' if common is None else f' of {common:g}'}: {', '.join(texts)}"


def _check_whole(name, value, lower, upper):
    """UserError unless `value` is a whole number from `lower` to `upper`."""
    if not isinstance(value, (int, np.integer)) or not lower <= value <= upper:
        raise UserError(f"{name} is a whole number from {lower} to {upper:,}, not {str(value)[:40]}")


def _may_saturate(metadata):
    """Whether sums of products of a file saturate on some processors: those of INT8 with weights of any size."""
    recipe = metadata.get("recipe")
    return isinstance(recipe, dict) and (
        recipe.get("weight_range") == "full" or recipe.get("reduce_range") is False)  # so in files of older versions


def expected(model, images):
    """The arrays of a check file, a dict: images uint8 [N, S, S, 3], what a Model says of them, and this machine."""
    logits = model.logits(images)
    return {"images": images, "logits": logits, "class_names": np.array(model.class_names),
            "thresholds": model.thresholds, "metadata": _checked_metadata(model),
            "machine": np.array(_this_machine()), **model.decisions(logits)}


def _this_machine():
    """[processor, version of onnxruntime], which logits depend on beside the model; two strings."""
    from kd import machine  # here, because predict.py does not need this file to classify
    products = "saturate" if saturates() else "are exact"
    version = errors.need("onnxruntime", "edge").__version__
    return [f"{machine.processor()}, where sums of 8-bit products {products}", version]


def _machine_of(arrays, path):
    """_this_machine() of the machine that made a check file, from its arrays; None if an older version made it."""
    if "machine" not in arrays:
        return None
    texts = arrays["machine"]
    if texts.dtype.kind != "U" or texts.shape != (2,) or not re.fullmatch(r"\d[\w.+]{,40}", texts[1], re.ASCII):
        raise UserError(f"{path} does not say which machine made it", COPY)
    return [errors.printable(text)[:200] for text in texts.tolist()]


def _checked_metadata(model):
    """What decides on answers and promises beside the graph, as an array of one text."""
    return np.array(json.dumps({key: model.metadata[key] for key in ("input", "temperature", "operating_points")},
                               sort_keys=True))


def check(model, path, threads=0):
    """Compare a bundle's files with SHA256SUMS there, and the model's logits and answers with those in a check file.

    model, path: of the .onnx file and of the check file beside it (see expected). Nothing in the model is looked at
    before its checksum is right. Returns lines of text. UserError at the first difference: a file, the logits that this
    machine computes by more than CLOSE allows, or what the model makes of the logits. Check files of older bundles have
    fewer arrays, at least images and logits.

    A checksum finds damage and careless changes. Somebody who rewrites SHA256SUMS, check.npz and this program as well
    is found by a signature alone: see RUN.md in the bundle.
    """
    files = _check_sums(path.with_name("SHA256SUMS"), (Path(model), path))
    model, arrays = Model(model, threads), read_npz(path, ("images", "logits"))
    images, logits, made_on = arrays["images"], arrays["logits"], _machine_of(arrays, path)
    count = len(images) if images.ndim else 0
    if (images.dtype != np.uint8 or images.shape != (count, model.size, model.size, 3) or logits.dtype.kind != "f"
            or logits.shape != (count, len(model.class_names)) or not 0 < count <= MAX_CHECKED):
        raise UserError(f"cannot use {path}: it has images {list(images.shape)} and logits {list(logits.shape)}", COPY)
    computed = model.logits(images)
    if not np.isfinite(logits).all():
        raise UserError(f"{path} has logits that are not finite (NaN or infinite)", COPY)
    difference, allowed = float(np.abs(computed - logits).max()), CLOSE * max(1.0, float(np.abs(logits).max()))
    flipped = int((computed.argmax(1) != logits.argmax(1)).sum())
    here = _this_machine()
    made = "an older version on an unknown machine" if made_on is None else _with_runtime(made_on)
    if not difference <= allowed:
        raise UserError(
            f"this machine computes other logits: they differ by up to {difference:.2g} (allowed: {allowed:.1g}), "
            f"and {flipped} of {count} labels differ. The check was made by {made}; this is {_with_runtime(here)}",
            _way_out(made_on, here))
    lines = [f"{files} files are as SHA256SUMS lists them",
             f"{count} images: logits agree to {difference:.1g}, all labels are the same",
             f"computed by {_with_runtime(here)}; the check was made by {made}"]
    answers = {"class_names": np.array(model.class_names), "thresholds": model.thresholds,
               "metadata": _checked_metadata(model), **model.decisions(logits)}
    raw = model.probabilities(logits)[0]
    near = {"called": np.abs(raw - model.thresholds[:-1]) < 1e-9,  # decided by rounding, which differs between machines
            "abstains": np.abs(raw.max(1) - model.thresholds[-1]) < 1e-9}
    for name in answers.keys() & arrays.keys():
        if not _equal(answers[name], arrays[name], near.get(name, False)):
            raise UserError(f"{model.path} has or gives other {name} than {path} has", COPY)
    removed = sorted(answers.keys() - arrays.keys() - {"metadata"})
    if removed and answers.keys() & arrays.keys():  # those of the oldest bundles have none of them
        raise UserError(f"{path} lacks {', '.join(removed)}", COPY)
    compared, absent = ([name for name in answers if (name in arrays) is there] for there in (True, False))
    if compared:
        lines.append(f"as in {path.name}: {', '.join(compared)}")
    if absent:
        lines.append(f"not in {path.name}, which is older, and so not compared: {', '.join(absent)}")
    return "\n".join(lines)


COPY = "Copy the bundle again from where it was made."


def _with_runtime(machine):
    return f"{machine[0]}, with onnxruntime {machine[1]}"


def _way_out(made_on, here):
    """What to do where the logits differ. made_on, here: as _machine_of() and _this_machine() return them."""
    again = "export the bundle again, whose integers then saturate on no processor: python export.py RUN --bundle DIR"
    if made_on is None:
        return (f"Where the sums of products saturated on the machine that made the check, no other computes the same: "
                f"{again}")
    if made_on[1] != here[1]:
        return f"Install the onnxruntime of the check: pip install onnxruntime=={made_on[1]}. Or {again}"
    return f"Update onnxruntime, whose kernels for one of the two are wrong: pip install -U onnxruntime. Or {again}"


def _equal(values, others, ignored):
    """Whether two arrays are equal, numbers but for rounding, except where `ignored`."""
    if values.shape != others.shape or values.dtype.kind != others.dtype.kind:
        return False
    same = np.isclose(values, others, 0, 1e-9, equal_nan=True) if values.dtype.kind == "f" else values == others
    return bool((same | ignored).all())


def _check_sums(path, required):
    """The number of files that are listed in a SHA256SUMS, all of which have the digests there. UserError otherwise.

    required: paths that must be in the list. No Python file may be beside the listed ones: it could be imported.
    """
    try:
        listed = {}
        for line in read_bytes(path, 2 ** 20).decode().splitlines():
            digest, _, name = line.partition(" ")
            if len(digest) != 64 or name[:1] not in (" ", "*") or name[1:] in listed:
                raise ValueError(f"{path} is damaged")
            listed[name[1:]] = digest.lower()
        for name, digest in listed.items():
            if ".." in PurePosixPath(name).parts or Path(name).is_absolute() or "\\" in name:
                raise ValueError(f"{path} lists a file elsewhere: {name}")
            if _sha256(path.parent / name) != digest:
                raise ValueError(f"{path.parent / name} is not the file that SHA256SUMS lists")
        for file in required:
            if file.name not in listed:
                raise ValueError(f"{file} is not listed in {path}")
            if _sha256(file) != listed[file.name]:
                raise ValueError(f"{file} is not the file that {path} lists")
        strangers = {file.relative_to(path.parent).as_posix() for folder in (path.parent, path.parent / "kd")
                     for file in folder.glob("*.py")} - listed.keys()
        if strangers:
            raise ValueError(f"{path} does not list {listing(sorted(strangers))}")
    except UserError as error:
        raise UserError(error.message, error.hint or COPY) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged", COPY) from None
    except ValueError as error:
        raise UserError(str(error), COPY) from None
    return len(listed)


def _sha256(path):
    import hashlib
    digest = hashlib.sha256()
    with open_regular(path, FILE) as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def encode(content):
    """Metadata, a dict with the keys FIELDS, as the strings that an ONNX file stores."""
    return {key: value if key == "format" else json.dumps(value, allow_nan=False) for key, value in content.items()}


def is_newer(text, known):
    """Whether a text is a format like the known one, `name/number`, with a larger number."""
    name, _, number = known.rpartition("/")
    found = isinstance(text, str) and re.fullmatch(re.escape(name) + r"/(\d{1,9})", text, re.ASCII)
    return bool(found) and int(found[1]) > int(number)


NEWER = "Take predict.py and kd/ of the bundle that it came with, or of the version that wrote it."


def _way_to_a_model(path):
    """What to do with a file that cannot be loaded as a model."""
    if path.suffix in (".pt", ".pth"):
        return "A checkpoint is exported first, where it was trained: python export.py RUN"
    if image_files.is_image(path):
        return "The model comes first, then the images: predict.py MODEL IMAGE"
    return HINT if path.suffix == ".onnx" else "Name a model that export.py wrote: its name ends in .onnx or .pte."


def _one_line(error):
    return " ".join(str(error).split())[:200]


def _metadata(path, session):
    """The metadata in a file, checked: a dict with the keys FIELDS. The inverse of encode()."""
    try:
        texts = session.get_modelmeta().custom_metadata_map
    except (ValueError, RecursionError):  # no UTF-8; NaN in the JSON file of a program
        raise UserError(f"the metadata of {path} cannot be read", HINT) from None
    if is_newer(texts.get("format"), FORMAT):
        raise UserError(f"a newer version of this project wrote {path}", NEWER)
    if texts.get("format") != FORMAT:
        raise UserError(f"{path} is no model that export.py wrote: it does not say what its input and classes are",
                        "Any checkpoint of this project can be exported: python export.py RUN")
    missing = [field for field in FIELDS if field not in texts]
    if missing:
        raise UserError(f"{path} lacks metadata: {', '.join(missing)}", HINT)
    try:
        if sum(map(len, texts.values())) > JSON:
            raise ValueError("too long")
        content = {key: value if key == "format" else parse_json(value) for key, value in texts.items()}
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"the metadata of {path} cannot be read", HINT) from None
    wrong = _wrong(content, session)
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} is not what it should be", HINT)
    return content


def _are_points(points, names):
    """Whether operating points have what is read here, thresholds are probabilities, and none is there twice."""
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        return False
    if not all({"kind", "class", "threshold", "promised"} <= point.keys() for point in points):
        return False
    points = [point for point in points if point["kind"] in ("sensitivity", "abstention")]
    keys = [point["class"] if point["kind"] == "sensitivity" else "" for point in points]  # no class is called ""
    return (all(isinstance(key, str) and (key in names or point["kind"] == "abstention")
                for key, point in zip(keys, points)) and len(set(keys)) == len(keys)
            and all(_is_share(point["promised"]) for point in points)
            and all(point.get(key) is None or _is_share(point[key])
                    for point in points for key in ("asked", "assurance"))
            and all(point["threshold"] is None or _is_share(point["threshold"]) for point in points))


def _is_share(value):
    return type(value) in (int, float) and 0 <= value <= 1


def _is_line(text):
    return isinstance(text, str) and len(text) <= 1000 and errors.printable(text) == text and "\n" not in text


def _are_names(names):
    """Whether these are the names of at least two classes, each on one line and once."""
    return (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
            and all(name.strip() and _is_line(name) for name in names))


def _wrong(content, session):
    """The names of the metadata, or of the input and output of the graph, that are impossible; a list."""
    names, preprocessing, temperature = content["class_names"], content["input"], content["temperature"]
    sides = [preprocessing.get(key) for key in ("size", "resize")] if isinstance(preprocessing, dict) else [None]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    checks = {
        "class_names": _are_names(names),
        "input": all(type(side) is int and side > 0 for side in sides) and sides[0] <= sides[1] <= LARGEST
        and preprocessing.get("interpolation") in image.INTERPOLATIONS
        and ("range" not in preprocessing or image.is_range(preprocessing["range"])),
        "temperature": temperature is None or isinstance(temperature, (int, float)) and 0 < temperature < math.inf,
        "operating_points": not _are_names(names) or _are_points(content["operating_points"], names),
        "provenance": isinstance(content["provenance"], dict),
        "caution": content.get("caution") is None or _is_line(content["caution"]),
        "its size": all(type(content.get(key)) in (int, type(None)) for key in ("parameters", "params_bytes", "macs")),
        "its input": [i.name for i in inputs] == ["image"] and inputs[0].type == "tensor(uint8)"
        and inputs[0].shape[1:] == [sides[0], sides[0], 3] and isinstance(inputs[0].shape[0], (str, type(None))),
        "its output": [(o.name, o.type) for o in outputs] == [("logits", "tensor(float)")] and isinstance(names, list)
        and outputs[0].shape[-1:] == [len(names)],
    }
    return [name for name, passed in checks.items() if not passed]
