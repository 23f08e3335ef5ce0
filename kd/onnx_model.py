"""An exported model and all that it says of itself, run by ONNX Runtime: what an edge box needs.

Its input `image` is uint8 [N, S, S, 3]; normalisation is inside; its output `logits` is float [N, C]. Class names,
the way in which pixels come to it, temperature and frozen thresholds are metadata of the file.
"""

import json
import math
from pathlib import Path

import numpy as np

from kd import errors, image, metrics
from kd.errors import UserError

FORMAT = "medmnist-edgeai/onnx/1"
FIELDS = ("format", "class_names", "input", "temperature", "operating_points", "provenance")
CLOSE = 1e-4  # largest difference of logits from the checkpoint's or between two machines, of 1 or of the largest logit
LARGEST = 4096  # px, of what an image is resized to: beyond it a file asks for gigabytes
WAY_OUT = "Bring a whole copy of the file, or export it anew with export.py."


def session(model, threads=0):
    """An onnxruntime.InferenceSession of a path or of a serialised model, on the CPU. threads: 0 for one a core."""
    ort = errors.need("onnxruntime", "edge")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised; nobody needs it twice
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Model:
    """The exported model in a file, its metadata checked.

    class_names [C]; size: side of its input, px; temperature: float, or None where calibration failed or was
    not done; points: [{"name", "kind", "class", "threshold", "promised"}], thresholds of raw probabilities.
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
            reason = " ".join(str(error).split())[:200]
            newer = "opset" in reason.lower() or "ir version" in reason.lower()
            raise UserError(f"cannot load {path}: {reason}",
                            "Update onnxruntime, which is older than this file." if newer else WAY_OUT) from None
        self.path, self.metadata = path, _metadata(path, self.session)
        self.class_names, self.temperature = self.metadata["class_names"], self.metadata["temperature"]
        self.points, self.size = self.metadata["operating_points"], self.metadata["input"]["size"]

    def pixels(self, source):
        """A path, bytes or uint8 array as uint8 [S, S, 3], the way that evaluation makes them."""
        return image.evaluation_pixels(source, self.metadata["input"]["resize"], self.size)

    def logits(self, images):
        """[N, C] float32 of uint8 [N, S, S, 3]."""
        try:
            logits = self.session.run(["logits"], {"image": np.ascontiguousarray(images)})[0]
        except Exception as error:  # as above
            raise UserError(f"{self.path} cannot be run: {' '.join(str(error).split())[:200]}", WAY_OUT) from None
        if logits.shape != (len(images), len(self.class_names)) or not np.isfinite(logits).all():
            raise UserError(f"{self.path} gives logits that are no numbers, or not as many as it has classes", WAY_OUT)
        return logits

    def timer(self, images):
        """A function that runs one query and returns its seconds."""
        from kd import timing  # here: to predict takes one file less
        images = np.ascontiguousarray(images)
        return timing.stopwatch(lambda: self.session.run(["logits"], {"image": images}))

    @property
    def facts(self):
        """What was counted when it was exported: parameters, params_bytes (fp32, buffers as well), macs."""
        return {key: self.metadata.get(key) for key in ("parameters", "params_bytes", "macs")}

    def probabilities(self, logits):
        """(raw, calibrated) [N, C] of logits [N, C]; the same where there is no temperature."""
        raw = metrics.softmax(logits)
        return raw, raw if self.temperature is None else metrics.softmax(np.asarray(logits, np.float64) / self.temperature)

    def answers(self, images):
        """A dict an image [S, S, 3]: {"label": None where the model abstains, "confidence", "most_probable",
        "called": classes above their threshold of sensitivity, "probabilities": {class: calibrated}}."""
        raw, calibrated = self.probabilities(self.logits(np.stack(images)))
        keep = (self.point("abstention") or {}).get("threshold")
        bars = {point["class"]: point["threshold"] for point in self.points
                if point["kind"] == "sensitivity" and point["threshold"] is not None}
        result = []
        for p, shown in zip(raw, calibrated):
            k = int(p.argmax())
            called = [name for name, value in zip(self.class_names, p) if name in bars and value >= bars[name]]
            result.append({"label": None if keep is not None and p[k] < keep else self.class_names[k],
                           "confidence": float(shown[k]), "most_probable": self.class_names[k], "called": called,
                           "probabilities": dict(zip(self.class_names, map(float, shown)))})
        return result

    def point(self, kind):
        """The first operating point of a kind, or None."""
        return next((point for point in self.points if point["kind"] == kind), None)


def check(model, path):
    """Hold a Model's logits against those in a check file (`images`, `logits`); a line, or a UserError."""
    if not path.is_file():
        raise UserError(f"no such file: {path}", "export.py --bundle writes it.")
    try:
        with np.load(path, allow_pickle=False) as held:
            images, expected = held["images"], held["logits"]
        found = model.logits(images)
        difference = float(np.abs(found - expected).max())
    except Exception as error:
        raise UserError(f"cannot use {path}: {' '.join(str(error).split())[:200]}", "Copy the bundle again.") from None
    flipped = int((found.argmax(1) != expected.argmax(1)).sum())
    allowed = CLOSE * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:
        raise UserError(f"this machine computes other logits: they differ by up to {difference:.2g} (allowed: {allowed:.1g}), "
                        f"and {flipped} of {len(images)} labels", "Of an INT8 model on x86 without VNNI: export it with --reduce-range.")
    return f"{len(images)} images: logits agree to {difference:.1g}, all labels are the same"


def encode(content):
    """Metadata as the strings that an ONNX file holds."""
    return {key: value if key == "format" else json.dumps(value, allow_nan=False) for key, value in content.items()}


def _metadata(path, session):
    texts = session.get_modelmeta().custom_metadata_map
    if texts.get("format") != FORMAT:
        raise UserError(f"{path} is no model that export.py wrote: it does not say what its input and classes are",
                        "Any checkpoint of this project can be exported: python export.py RUN")
    missing = [field for field in FIELDS if field not in texts]
    if missing:
        raise UserError(f"{path} lacks metadata: {', '.join(missing)}", WAY_OUT)
    try:
        content = {key: value if key == "format" else json.loads(value) for key, value in texts.items()}
    except ValueError:
        raise UserError(f"the metadata of {path} cannot be read", WAY_OUT) from None
    wrong = _wrong(content, session)
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)} is not what it should be", WAY_OUT)
    return content


def _is_point(point, names):
    """Whether what this file reads of an operating point is there, and of its kind."""
    if not isinstance(point, dict) or not {"kind", "class", "threshold", "promised"} <= point.keys():
        return False
    if point["kind"] not in ("sensitivity", "abstention"):
        return True
    number, threshold = (int, float), point["threshold"]
    return (type(point["promised"]) in number and (threshold is None or type(threshold) in number)
            and (point["kind"] == "abstention" or point["class"] in names))


def _wrong(content, session):
    """What of the metadata, or of the graph's input and output, cannot be."""
    names, given, temperature = content["class_names"], content["input"], content["temperature"]
    sides = [given.get(key) for key in ("size", "resize")] if isinstance(given, dict) else [None]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return [what for what, good in {
        "class_names": isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names),
        "input": all(type(side) is int and side > 0 for side in sides) and sides[0] <= sides[1] <= LARGEST
        and given.get("interpolation") == image.INTERPOLATION,
        "temperature": temperature is None or isinstance(temperature, (int, float)) and 0 < temperature < math.inf,
        "operating_points": isinstance(content["operating_points"], list)
        and all(_is_point(point, names) for point in content["operating_points"]),
        "its input": [i.name for i in inputs] == ["image"] and inputs[0].type == "tensor(uint8)"
        and inputs[0].shape[1:] == [sides[0], sides[0], 3] and isinstance(inputs[0].shape[0], (str, type(None))),
        "its output": [o.name for o in outputs] == ["logits"] and isinstance(names, list)
        and outputs[0].shape[-1] == len(names)}.items() if not good]
