"""What a query costs as exported, over PyTorch eager in fp32: batch 1, one thread.

    python benchmarks/inference.py --size 224
    python benchmarks/inference.py --size 64

Three networks, exported as export.py does it, in INT8 by the recipe that trained ones pass with (docs/results/edge.md), their
ranges from noise: what is in weights, ranges and pixels changes no latency. Eager gets
normalised floats, the exported files raw pixels, so that the ratios favour eager. Models take turns; a ratio is the median
over turns, with quartiles. Processor time, so that other processes on the machine cost a query its cache but not its
turn. No data; five minutes, most of them export. The last line is one JSON object: how many times faster INT8 is, by
network; the same of ONNX in fp32 (`onnx`), and the size of the INT8 file over that of fp32 (`bytes`).
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

WEIGHTS_ONLY = ("efficientnetb0",)  # whose trained networks keep their labels by no other recipe
ARCHITECTURES = ("resnet18", "mobilenetv2", "efficientnetb0")
SECONDS = 5


def main(argv=None):
    parser = errors.Parser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="of the images, in px")
    size = parser.parse_args(argv).size
    torch.set_num_threads(1)
    state = machine.describe()
    print(f"{machine.line(state)}, onnxruntime {state['onnxruntime']}")
    print(f"{'':22}{'eager ms':>10}{'onnx ms':>10}{'int8 ms':>10}{'onnx':>8}{'int8':>8}   quartiles{'bytes':>10}")
    result = {"onnx": {}, "bytes": {}}
    for arch in ARCHITECTURES:
        timers, share = prepare(arch, size)
        taken = timing.measure(timers, seconds=SECONDS, least=64)
        ratios = {name: timing.speedup(taken["eager"], taken[name]) for name in ("onnx", "int8")}
        medians = [1e3 * np.median(taken[name].seconds) for name in timers]
        print(f"{arch:16}{size:>4} px" + "".join(f"{ms:>10.2f}" for ms in medians)
              + f"{ratios['onnx'][0]:>8.2f}{ratios['int8'][0]:>8.2f}   {ratios['int8'][1]:.2f} to {ratios['int8'][2]:.2f}"
              + f"{share:>10.1%}", flush=True)
        result[arch], result["onnx"][arch], result["bytes"][arch] = ratios["int8"][0], ratios["onnx"][0], share
    print(json.dumps(result))


def prepare(arch, size):
    """({"eager", "onnx", "int8": timer}, bytes of INT8 over fp32)."""
    torch.manual_seed(0)
    model = registry.create("architecture", arch, num_classes=7, stem="imagenet", weights=None).eval()
    content = {"arch": arch, "class_names": [str(k) for k in range(7)], "provenance": {}, "state_dict": model.state_dict(),
               "input": {"resize": size, "size": size, "interpolation": INTERPOLATION, "mean": MEAN, "std": STD}}
    exported = convert.to_onnx(convert.deployed(model, content), size, convert.describe(model, content))
    folded = quantize.fold(exported)
    noise = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    seen = quantize.observe(folded, noise, lambda file: onnx_model.session(file, 1))
    small = quantize.round_weights(folded) if arch in WEIGHTS_ONLY else quantize.quantize(
        quantize.correct(folded, seen), {key: quantize.minmax(one) for key, one in seen.items()},
        keep=quantize.float_nodes(folded))
    files = {"onnx": exported.SerializeToString(), "int8": small.SerializeToString()}
    sessions = {name: onnx_model.session(file, 1) for name, file in files.items()}
    pixels, floats = noise[:1], torch.randn(1, 3, size, size)

    @torch.inference_mode()
    def eager():
        model(floats)

    runs = {"eager": eager, **{name: lambda ready=ready: ready.run(["logits"], {"image": pixels}) for name, ready in sessions.items()}}
    timers = {name: timing.stopwatch(run, time.process_time) for name, run in runs.items()}
    return timers, len(files["int8"]) / len(files["onnx"])


if __name__ == "__main__":
    errors.run(main)
