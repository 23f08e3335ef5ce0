"""An exported model with its metadata, run by ONNX Runtime on an edge box.

The input `image` is uint8 [N, S, S, 3]; the normalisation is in the graph; the output `logits` is float [N, C]. The
metadata of the file are the class names, the preprocessing, the temperature, the thresholds and the provenance.
"""

import json
import math
from pathlib import Path

import numpy as np

from kd import errors, image, metrics
from kd.errors import UserError

FORMAT = "medmnist-edgeai/onnx/1"
FIELDS = ("format", "class_names", "input", "temperature", "operating_points", "provenance")
CLOSE = 1e-4  # tolerance of logits between checkpoint and export, or two machines: this times max(1, largest logit)
LARGEST = 4096  # px that an image may be resized to: more would need gigabytes
HINT = "Bring a complete copy of the file, or export it again with export.py."


def session(model, threads=0):
    """An onnxruntime.InferenceSession on the CPU. model: a path or a serialised model; threads: 0 for one per core."""
    ort = errors.need("onnxruntime", "edge")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; in the log they would appear a second time
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Model:
    """The exported model in a file. UserError if the file cannot be loaded or its metadata are wrong.

    class_names: [C]; size: side of its input in px; temperature: float, or None if calibration failed or was
    not done; points: operating points, [{"name", "kind", "class", "threshold", "promised"}], whose thresholds are for
    raw probabilities.
    """

    def __init__(self, path, threads=0):
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder, not an exported model", "Name the .onnx file in it.")
        if not path.is_file():
            raise UserError(f"no such file: {path}")
        try:
            self.session = session(str(path), threads)
        except UserError:
            raise
        except Exception as error:  # onnxruntime has an exception class for each kind of failure
            reason = _one_line(error)
            is_newer = "opset" in reason.lower() or "ir version" in reason.lower()
            raise UserError(f"cannot load {path}: {reason}",
                            "Update onnxruntime, which is older than this file." if is_newer else HINT) from None
        self.path, self.metadata = path, _metadata(path, self.session)
        self.class_names, self.temperature = self.metadata["class_names"], self.metadata["temperature"]
        self.points, self.size = self.metadata["operating_points"], self.metadata["input"]["size"]

    def pixels(self, source):
        """The pixels uint8 [S, S, 3] of an image, the same as in evaluation. source: as for image.square()."""
        return image.evaluation_pixels(source, self.metadata["input"]["resize"], self.size)

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

    def answers(self, images):
        """A list of dicts, one for each image uint8 [S, S, 3].

        {"label": the most probable class, or None if the model abstains; "confidence": its calibrated probability;
        "most_probable": the class; "called": the classes above their sensitivity threshold; "probabilities": {class:
        calibrated probability}}
        """
        raw, calibrated = self.probabilities(self.logits(np.stack(images)))
        abstention_threshold = (self.point("abstention") or {}).get("threshold")
        thresholds = {point["class"]: point["threshold"] for point in self.points
                      if point["kind"] == "sensitivity" and point["threshold"] is not None}
        result = []
        for p, p_calibrated in zip(raw, calibrated):
            k = int(p.argmax())
            abstains = abstention_threshold is not None and p[k] < abstention_threshold
            called = [name for name, value in zip(self.class_names, p)
                      if name in thresholds and value >= thresholds[name]]
            result.append({"label": None if abstains else self.class_names[k],
                           "confidence": float(p_calibrated[k]), "most_probable": self.class_names[k], "called": called,
                           "probabilities": dict(zip(self.class_names, map(float, p_calibrated)))})
        return result

    def point(self, kind):
        """The first operating point of a kind, `sensitivity` or `abstention`; None if there is none."""
        return next((point for point in self.points if point["kind"] == kind), None)


def check(model, path):
    """Compare the logits of a Model on this machine with those in a check file, an .npz with `images` and `logits`.

    Returns a line of text. UserError if the logits differ by more than CLOSE allows.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}", "export.py --bundle writes it.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, expected = arrays["images"], arrays["logits"]
        logits = model.logits(images)
        difference = float(np.abs(logits - expected).max())
    except Exception as error:
        raise UserError(f"cannot use {path}: {_one_line(error)}", "Copy the bundle again.") from None
    flipped = int((logits.argmax(1) != expected.argmax(1)).sum())
    allowed = CLOSE * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:
        raise UserError(
            f"this machine computes other logits: they differ by up to {difference:.2g} (allowed: {allowed:.1g}), "
            f"and {flipped} of {len(images)} labels differ",
            "If this is an INT8 model on an x86 processor without VNNI, export it with --reduce-range.",
        )
    return f"{len(images)} images: logits agree to {difference:.1g}, all labels are the same"


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
        content = {key: value if key == "format" else json.loads(value) for key, value in texts.items()}
    except ValueError:
        raise UserError(f"the metadata of {path} cannot be read", HINT) from None
    wrong = _wrong(content, session)
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} is not what it should be", HINT)
    return content


def _is_point(point, names):
    """Whether an operating point has the keys that are read here, with values of the right type."""
    if not isinstance(point, dict) or not {"kind", "class", "threshold", "promised"} <= point.keys():
        return False
    if point["kind"] not in ("sensitivity", "abstention"):
        return True
    number, threshold = (int, float), point["threshold"]
    return (type(point["promised"]) in number and (threshold is None or type(threshold) in number)
            and (point["kind"] == "abstention" or point["class"] in names))


def _wrong(content, session):
    """The names of the metadata, or of the input and output of the graph, that are impossible; a list."""
    names, preprocessing, temperature = content["class_names"], content["input"], content["temperature"]
    sides = [preprocessing.get(key) for key in ("size", "resize")] if isinstance(preprocessing, dict) else [None]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    checks = {
        "class_names": isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names),
        "input": all(type(side) is int and side > 0 for side in sides) and sides[0] <= sides[1] <= LARGEST
        and preprocessing.get("interpolation") == image.INTERPOLATION,
        "temperature": temperature is None or isinstance(temperature, (int, float)) and 0 < temperature < math.inf,
        "operating_points": isinstance(content["operating_points"], list)
        and all(_is_point(point, names) for point in content["operating_points"]),
        "its input": [i.name for i in inputs] == ["image"] and inputs[0].type == "tensor(uint8)"
        and inputs[0].shape[1:] == [sides[0], sides[0], 3] and isinstance(inputs[0].shape[0], (str, type(None))),
        "its output": [o.name for o in outputs] == ["logits"] and isinstance(names, list)
        and outputs[0].shape[-1] == len(names),
    }
    return [name for name, passed in checks.items() if not passed]
