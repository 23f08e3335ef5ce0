"""An exported model with its metadata, run by ONNX Runtime on an edge box (a .pte by ExecuTorch).

The input `image` is uint8 [N, S, S, 3]; the normalisation is in the graph; the output `logits` is float [N, C]. The
metadata of the file are the class names, the preprocessing, the temperature, the thresholds and the provenance.
"""

import functools
import hashlib
import json
import math
import re
from pathlib import Path, PurePosixPath

import numpy as np

from kd import errors, image, metrics
from kd.errors import UserError, listing
from kd.files import JSON, open_regular, parse_json, read_bytes, read_npz

FORMAT = "medmnist-edgeai/onnx/1"
FIELDS = ("format", "class_names", "input", "temperature", "operating_points", "provenance")
CLOSE = 1e-4  # tolerance of logits between checkpoint and export, or two machines: this times max(1, largest logit)
FILE = 2 ** 31  # bytes, where ONNX needs a second file for the weights
LARGEST = 4096  # px that an image may be resized to: more would need gigabytes
MAX_CHECKED = 64  # images in a check file
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
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
    """The exported model in a file. UserError if the file cannot be loaded or its metadata are wrong.

    class_names: [C]; size: side of its input in px; range: of deep values, as kd.image.to_rgb() takes it, or None;
    temperature: float, or None if calibration failed or was
    not done; points: operating points, [{"name", "kind", "class", "threshold", "promised"}], whose thresholds are for
    raw probabilities.
    """

    def __init__(self, path, threads=0):
        path = Path(path)
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
            reason = _one_line(error)
            is_newer = "opset" in reason.lower() or "ir version" in reason.lower()
            raise UserError(f"cannot load {path}: {reason}",
                            "Update onnxruntime, which is older than this file." if is_newer else HINT) from None
        self.path, self.metadata = path, _metadata(path, self.session)
        if _may_saturate(self.metadata) and saturates():
            self.session = session(str(path), threads, exact=True)
        self.class_names, self.temperature = self.metadata["class_names"], self.metadata["temperature"]
        self.points, self.size = self.metadata["operating_points"], self.metadata["input"]["size"]
        self.range = self.metadata["input"].get("range")

    def pixels(self, source):
        """The pixels uint8 [S, S, 3] of an image, the same as in evaluation. source: as for image.square()."""
        return image.evaluation_pixels(source, self.metadata["input"]["resize"], self.size, self.range)

    def examined(self, source):
        """(pixels, misfit) of an image: those of pixels(), and how its deep values do not fit the model's range.

        misfit: ("beyond" or "narrow", least value, largest value) as kd.image.misfit() judges them, or None.
        """
        if self.range is None:
            return self.pixels(source), None
        square, extremes, _ = image.examine(source, self.metadata["input"]["resize"], self.range)
        how = image.misfit(extremes, self.range) if extremes else ""
        return image.centre_crop(square[None], self.size)[0], (how, *extremes[:2]) if how else None

    def logits(self, images):
        """Logits float32 [N, C] of images uint8 [N, S, S, 3]. UserError if the shape is wrong or one is not finite."""
        try:
            logits = self.session.run(["logits"], {"image": np.ascontiguousarray(images)})[0]
        except Exception as error:  # of onnxruntime, as above
            raise UserError(f"{self.path} cannot be run: {_one_line(error)}", HINT) from None
        if logits.shape != (len(images), len(self.class_names)) or not np.isfinite(logits).all():
            raise UserError(f"{self.path} gives logits that are no numbers, or not as many as it has classes", HINT)
        return logits

    def timer(self, images):
        """A function that runs one query of images uint8 [N, S, S, 3] and returns its seconds."""
        from kd import timing  # here, so that predict.py does not need this file
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

    def answers(self, images):
        """A list of dicts, one for each image uint8 [S, S, 3].

        {"label": the most probable class, or None if the model abstains; "confidence": its calibrated probability;
        "most_probable": the class; "called": the classes above their sensitivity threshold; "probabilities": {class:
        calibrated probability}}
        """
        columns = self.decisions(self.logits(np.stack(images))).values()
        result = []
        for label, p, called, abstains in zip(*columns):
            label, probabilities = str(label), dict(zip(self.class_names, map(float, p)))
            result.append({"label": None if abstains else label, "confidence": probabilities[label],
                           "most_probable": label,
                           "called": [name for name, above in zip(self.class_names, called) if above],
                           "probabilities": probabilities})
        return result

    def point(self, kind):
        """The first operating point of a kind, `sensitivity` or `abstention`; None if there is none."""
        return next((point for point in self.points if point["kind"] == kind), None)


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
    except ValueError as error:
        raise UserError(str(error), COPY) from None
    return len(listed)


def _sha256(path):
    digest = hashlib.sha256()
    with open_regular(path, FILE) as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def encode(content):
    """Metadata, a dict with the keys FIELDS, as the strings that an ONNX file stores."""
    return {key: value if key == "format" else json.dumps(value, allow_nan=False) for key, value in content.items()}


def _one_line(error):
    return " ".join(str(error).split())[:200]


def _metadata(path, session):
    """The metadata in a file, checked: a dict with the keys FIELDS. The inverse of encode()."""
    texts = session.get_modelmeta().custom_metadata_map
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
            and all(point["threshold"] is None or _is_share(point["threshold"]) for point in points))


def _is_share(value):
    return type(value) in (int, float) and 0 <= value <= 1


def _are_names(names):
    """Whether these are the names of at least two classes, each on one line and once."""
    return (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
            and all(name.strip() and errors.printable(name) == name and "\n" not in name for name in names))


def _wrong(content, session):
    """The names of the metadata, or of the input and output of the graph, that are impossible; a list."""
    names, preprocessing, temperature = content["class_names"], content["input"], content["temperature"]
    sides = [preprocessing.get(key) for key in ("size", "resize")] if isinstance(preprocessing, dict) else [None]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    checks = {
        "class_names": _are_names(names),
        "input": all(type(side) is int and side > 0 for side in sides) and sides[0] <= sides[1] <= LARGEST
        and preprocessing.get("interpolation") == image.INTERPOLATION
        and ("range" not in preprocessing or image.is_range(preprocessing["range"])),
        "temperature": temperature is None or isinstance(temperature, (int, float)) and 0 < temperature < math.inf,
        "operating_points": not _are_names(names) or _are_points(content["operating_points"], names),
        "provenance": isinstance(content["provenance"], dict),
        "its size": all(type(content.get(key)) in (int, type(None)) for key in ("parameters", "params_bytes", "macs")),
        "its input": [i.name for i in inputs] == ["image"] and inputs[0].type == "tensor(uint8)"
        and inputs[0].shape[1:] == [sides[0], sides[0], 3] and isinstance(inputs[0].shape[0], (str, type(None))),
        "its output": [o.name for o in outputs] == ["logits"] and isinstance(names, list)
        and outputs[0].shape[-1] == len(names),
    }
    return [name for name, passed in checks.items() if not passed]
