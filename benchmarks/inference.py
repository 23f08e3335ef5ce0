"""The time of a query with exported files, compared with PyTorch eager in fp32: batch 1, one thread.

    python benchmarks/inference.py --size 224
    python benchmarks/inference.py --size 64

Three untrained networks are exported as export.py does it, in INT8 with the recipe that export.py chose for trained
ones (docs/results/edge.md) and with ranges from noise: the values of weights, ranges and pixels do not change the
latency. Eager gets normalised floats and the files get raw pixels, so that the ratios favour eager. Models take turns;
a ratio is the median over turns, with quartiles. Processor time is measured, which other processes affect only through
the caches. It needs no data and takes five minutes, most of them for the export. The last line is one JSON object: for
each network how many times faster INT8 is; `onnx`: the same for ONNX in fp32; `bytes`: the size of the INT8 file over
that of the file in fp32.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import registry  # noqa: E402
from kd import errors, machine, onnx_model, timing  # noqa: E402
from kd.edge import convert, quantize  # noqa: E402
from kd.image import INTERPOLATION, MEAN, STD  # noqa: E402

ARCHITECTURES = ("resnet18", "mobilenetv2", "efficientnetb0")
WEIGHTS_ONLY = ("efficientnetb0",)  # with every other recipe, trained ones change too many labels
SECONDS = 5                         # of measurement for each model


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="side of the images, in px")
    size = parser.parse_args(argv).size
    torch.set_num_threads(1)
    state = machine.describe()
    print(f"{machine.line(state)}, onnxruntime {state['onnxruntime']}")
    print(f"{'':22}{'eager ms':>10}{'onnx ms':>10}{'int8 ms':>10}{'onnx':>8}{'int8':>8}   quartiles{'bytes':>10}")
    result = {"onnx": {}, "bytes": {}}
    for arch in ARCHITECTURES:
        timers, share = prepare(arch, size)
        latencies = timing.measure(timers, seconds=SECONDS, least=64)
        onnx_ratio, _, _ = timing.speedup(latencies["eager"], latencies["onnx"])
        int8_ratio, lower, upper = timing.speedup(latencies["eager"], latencies["int8"])
        medians = "".join(f"{1e3 * np.median(latencies[name].seconds):>10.2f}" for name in timers)
        print(f"{arch:16}{size:>4} px{medians}{onnx_ratio:>8.2f}{int8_ratio:>8.2f}   {lower:.2f} to {upper:.2f}"
              f"{share:>10.1%}", flush=True)
        result[arch], result["onnx"][arch], result["bytes"][arch] = int8_ratio, onnx_ratio, share
    print(json.dumps(result))


def export(arch, size):
    """(network, {"onnx", "int8": the bytes of its file}) of an untrained network. size: of its images, px."""
    torch.manual_seed(0)
    model = registry.create("architecture", arch, num_classes=7, stem="imagenet", weights=None).eval()
    content = {
        "arch": arch, "class_names": [str(k) for k in range(7)], "provenance": {}, "state_dict": model.state_dict(),
        "input": {"resize": size, "size": size, "interpolation": INTERPOLATION, "mean": MEAN, "std": STD},
    }
    metadata = convert.describe(model, content)
    exported = convert.to_onnx(convert.deployed(model, content), size, metadata)
    folded = quantize.fold(exported)
    noise = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    if arch in WEIGHTS_ONLY:
        int8 = quantize.round_weights(folded)
    else:
        activations = quantize.observe(folded, noise, lambda file: onnx_model.session(file, 1))
        ranges = {tensor: quantize.minmax(activation) for tensor, activation in activations.items()}
        int8 = quantize.quantize(quantize.correct(folded, activations), ranges, keep=quantize.float_nodes(folded))
    convert.label(int8, metadata)
    return model, {"onnx": exported.SerializeToString(), "int8": int8.SerializeToString()}


def prepare(arch, size):
    """({"eager", "onnx", "int8": timer}, bytes of the INT8 file over those of fp32) for an architecture.

    size: the side of the images in pixels. A timer runs one query and returns its seconds.
    """
    model, files = export(arch, size)
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    floats = torch.randn(1, 3, size, size)
    sessions = {name: onnx_model.session(file, 1) for name, file in files.items()}

    @torch.inference_mode()
    def eager():
        model(floats)

    def query(session):
        return lambda: session.run(["logits"], {"image": pixels})

    queries = {"eager": eager, **{name: query(session) for name, session in sessions.items()}}
    timers = {name: timing.stopwatch(run, time.process_time) for name, run in queries.items()}
    return timers, len(files["int8"]) / len(files["onnx"])


if __name__ == "__main__":
    errors.run(main)
