"""What a GPU does of a distillation step, whether two cores can feed it, and its latency for a single image.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --root data/ham10000 --size 224 --batch 128

Three tables, of ResNet-50 to ResNet-18 by knowledge distillation, in the precision that --precision auto chooses:

- a step (of step.py), with the teacher live and with its targets from disk: images a second, and the arithmetic of the
  step as a share of what the GPU reaches in a product of two large matrices of the same precision;
- the input: images a second from the cache, decoded once, to augmented views on the device, prepared by one and two
  threads; below 1 in the last column the GPU waits;
- latency of one image from pixels on the device to logits, of both networks: eager, channels last, bf16, and a CUDA
  graph of the latter, which starts all kernels at once; median of events, and the processor's clock beside it.

The input's images are HAM10000 with --root, else synthetic ones. It takes a few minutes. The last line is one JSON
object.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pictures  # noqa: E402
import registry  # noqa: E402
import step  # noqa: E402
from kd import errors, machine  # noqa: E402
from kd.data import batching, loader  # noqa: E402
from kd.edge import convert, torch_model  # noqa: E402
from kd.errors import UserError  # noqa: E402
from kd.image import MEAN, STD  # noqa: E402
from kd.train import engine  # noqa: E402

MATRIX = 8192  # the side of the matrices whose product is the GPU's peak


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="side of the images, in px")
    parser.add_argument("--batch", type=errors.positive, default=128, help="images a step")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=2000, help="images for the input")
    parser.add_argument("--steps", type=errors.positive, default=30, help="steps of a measurement")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use", "On a CPU: python benchmarks/step.py")
    result = measure(torch.device("cuda"), args)
    print(json.dumps(result))


def measure(device, args, matrix=MATRIX):
    """Print the three tables; returns what the last line has. matrix: the side of those that give the peak."""
    _, precision = engine.device_and_precision({"device": device.type, "precision": "auto"})
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, {machine.line(machine.describe())}\n"
          f"{step.TEACHER} to {step.STUDENT}, {args.batch} images of {args.size} px, {precision}")
    reached = peak(device, precision, matrix)
    print(f"a product of matrices of {matrix}: {reached / 1e12:.1f} TFLOP/s\n")
    print(f"{'step':12}{'images/s':>10}{'of peak':>9}")
    result = {"device": name, "precision": precision, "size": args.size, "batch": args.batch, "tflops": reached / 1e12}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for kind in ("live", "cached"):
            rate, operations = step_rate(kind, device, args, folder)
            result[kind], result[f"{kind}_of_peak"] = rate, rate * operations / reached
            print(f"{kind:12}{rate:10,.0f}{result[f'{kind}_of_peak']:9.0%}", flush=True)
        print(f"\n{'input':12}{'images/s':>10}{'of the cached step':>20}")
        for workers in (1, 2):
            rate = result[f"input_{workers}"] = input_rate(workers, device, args, folder)
            threads = f"{workers} thread{'s' * (workers > 1)}"
            print(f"{threads:12}{rate:10,.0f}{rate / result['cached']:20.2f}", flush=True)
    print(f"\n{'batch 1, ms':12}" + "".join(f"{kind:>16}" for kind in ("eager", "channels last", "bf16", "graph")))
    for arch in (step.TEACHER, step.STUDENT):
        times = result[f"latency_{arch}"] = latency(arch, device, args)
        print(f"{arch:12}" + "".join(f"{median:8.2f} ({clock:5.2f})" for median, clock in times.values()), flush=True)
    print("in brackets: by the processor's clock")
    return result


def synchronise(device):
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device, precision, side, rounds=10):
    """Operations a second in products of two square matrices: the best of `rounds`."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        left @ right
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side ** 3 / min(seconds[1:])


def step_rate(kind, device, args, folder):
    """(images a second, operations an image) of steps on one batch. kind: "live" or "cached" targets."""
    options = {"threads": torch.get_num_threads(), "size": args.size, "batch": args.batch, "device": device.type,
               "precision": "auto"}
    with contextlib.redirect_stdout(io.StringIO()):  # what a training says of its data
        one_step = step.make(kind, options, folder)["step"]
    for _ in range(3):
        one_step()
    with FlopCounterMode(display=False) as counter:
        one_step()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(args.steps):
        one_step()
    synchronise(device)
    return args.steps * args.batch / (time.perf_counter() - start), counter.get_total_flops() / args.batch


def input_rate(workers, device, args, folder):
    """Views a second, augmented and on the device, in the second epoch: the first reads the images from the disk."""
    dataset = pictures.dataset(args.root, args.images, folder)
    data = loader.prepare(dataset, size=args.size, cache_folder=Path(folder, "cache"))
    for epoch in (1, 2):
        synchronise(device)
        start, count = time.perf_counter(), 0
        for batch in batching.training_batches(data, batch=args.batch, seed=0, epoch=epoch, device=device,
                                               workers=workers):
            count += len(batch.images)
        synchronise(device)
        seconds = time.perf_counter() - start
    return count / seconds


def latency(arch, device, args):
    """{way: (median ms by the timer of benchmark.py, median ms by the clock)} of one image."""
    model = registry.create("architecture", arch, num_classes=7, stem="imagenet", weights=None).eval()
    pixels = np.zeros((1, args.size, args.size, 3), np.uint8)
    result = {}
    for way in ("eager", "channels_last", "bf16", "graph"):
        deployed = convert.Deployed(model, MEAN, STD, args.size).eval()
        network = torch_model.prepare(deployed, "bf16" if way == "graph" else way, device)
        if way == "graph":
            network = graphed(network, torch.from_numpy(pixels).to(device))
        timer = torch_model.Ready(network, device, {}, {}).timer(pixels)
        events, clock = [], []
        for _ in range(args.steps + 5):
            start = time.perf_counter()
            events.append(timer())
            clock.append(time.perf_counter() - start)
        result[way] = 1e3 * float(np.median(events[5:])), 1e3 * float(np.median(clock[5:]))
    return result


@torch.inference_mode()
def graphed(network, images):
    """A function like `network` for images of one shape that replays a CUDA graph; the network itself on a CPU."""
    if images.device.type != "cuda":
        return network
    held, stream = images.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(held)

    def replay(images):
        held.copy_(images)
        graph.replay()
        return logits

    return replay


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
