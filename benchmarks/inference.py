"""The time of a query with exported files, compared with PyTorch eager in fp32: batch 1, one thread.

    python benchmarks/inference.py --size 224
    python benchmarks/inference.py --size 64

Three untrained networks are exported as export.py does it, in INT8 with integer activations, which a trained
EfficientNet-B0 may need --qat for, and with ranges from noise: the values of weights, ranges and pixels do not change
the latency. Eager gets normalised floats and the files get raw pixels, so that the ratios favour eager. Models take
turns; a ratio is the median over turns, with quartiles. Processor time is measured, which other processes affect only
through the caches. It needs no data and takes five minutes, most of them for the export. Where ExecuTorch is installed,
its programs run beside ONNX Runtime. The last line is one JSON object: for each network how many times faster INT8 is;
`onnx`, `executorch`, `executorch_int8`: the same for these files; `bytes`: the size of the INT8 file over that of the
file in fp32.
"""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import registry  # noqa: E402
from kd import errors, executorch_model, machine, onnx_model, timing  # noqa: E402
from kd.edge import convert, executorch, quantize  # noqa: E402
from kd.image import INTERPOLATION, MEAN, STD  # noqa: E402

ARCHITECTURES = ("resnet18", "mobilenetv2", "efficientnetb0")
SECONDS = 5                         # of measurement for each model


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="side of the images, in px")
    size = parser.parse_args(argv).size
    torch.set_num_threads(1)
    state = machine.describe()
    print(f"{machine.line(state)}, onnxruntime {state['onnxruntime']}")
    print(f"{'':22}{'':17}{'ms':>8}{'times':>8}   quartiles{'bytes':>10}")
    result = {"onnx": {}, "executorch": {}, "executorch_int8": {}, "bytes": {}}
    for arch in ARCHITECTURES:
        timers, shares = prepare(arch, size)
        latencies = timing.measure(timers, seconds=SECONDS, least=64)
        for name in timers:
            ratio, lower, upper = timing.speedup(latencies["eager"], latencies[name])
            print(f"{arch:16}{size:>4} px {name:16}{1e3 * np.median(latencies[name].seconds):>8.2f}{ratio:>8.2f}   "
                  f"{lower:.2f} to {upper:.2f}{shares.get(name, 1):>10.1%}", flush=True)
            if name != "eager":
                result.get(name, result)[arch] = ratio
        result["bytes"][arch] = shares["int8"]
    print(json.dumps(result))


def export(arch, size):
    """(network, {"onnx", "int8": the bytes of its file}) of an untrained network. size: of its images, px.

    Where ExecuTorch is installed there are "executorch" and "executorch_int8", too.
    """
    torch.manual_seed(0)
    model = registry.create("architecture", arch, num_classes=7, stem="imagenet", weights=None).eval()
    content = {
        "arch": arch, "class_names": [str(k) for k in range(7)], "provenance": {}, "state_dict": model.state_dict(),
        "input": {"resize": size, "size": size, "interpolation": INTERPOLATION, "mean": MEAN, "std": STD},
    }
    metadata, deployed = convert.describe(model, content), convert.deployed(model, content)
    exported = convert.to_onnx(deployed, size, metadata)
    folded = quantize.fold(exported)
    noise = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    activations = quantize.observe(folded, noise, lambda file: onnx_model.session(file, 1))
    ranges = {tensor: quantize.minmax(activation) for tensor, activation in activations.items()}
    int8 = quantize.quantize(quantize.correct(folded, activations), ranges, keep=quantize.float_nodes(folded))
    convert.label(int8, metadata)
    files = {"onnx": exported.SerializeToString(), "int8": int8.SerializeToString()}
    if find_spec("executorch"):
        rounded = executorch.quantize(deployed, size, noise, "minmax")
        files.update(executorch=executorch.to_executorch(deployed, size),
                     executorch_int8=executorch.to_executorch(rounded, size))
    return model, files


def prepare(arch, size):
    """({"eager" and each file of export(): timer}, {file: its bytes over those of the file in fp32}).

    size: the side of the images in pixels. A timer runs one query and returns its seconds.
    """
    model, files = export(arch, size)
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    floats = torch.randn(1, 3, size, size)
    sessions = {name: (executorch_model.Session if name.startswith("executorch") else onnx_model.session)(file, 1)
                for name, file in files.items()}

    @torch.inference_mode()
    def eager():
        model(floats)

    def query(session):
        return lambda: session.run(["logits"], {"image": pixels})

    queries = {"eager": eager, **{name: query(session) for name, session in sessions.items()}}
    timers = {name: timing.stopwatch(run, time.process_time) for name, run in queries.items()}
    return timers, {name: len(file) / len(files["onnx"]) for name, file in files.items()}


if __name__ == "__main__":
    errors.run(main)
