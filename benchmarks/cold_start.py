"""From the start of predict.py to the first label: what an edge box waits for that answers an image now and then.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --python box/env/bin/python --threads 1
    python benchmarks/cold_start.py new_bundle old_bundle       # other bundles (of export.py), in turns

Without bundles, one is made with an untrained MobileNetV2 in INT8 at 224 px: the values of its weights change neither
time nor memory. A round starts predict.py of each bundle once, in turns, in a fresh process on a JPEG of 600 x 450 px,
as in HAM10000; the first round, which compiles Python's files and fills the cache of the disk, is not counted.
`imports` is a process that imports NumPy, Pillow and ONNX Runtime and nothing else. The time ends when the line with
the label arrives; processor time and peak memory are those of the whole process. Other processes on the machine
lengthen the time, so that the least is given as well as the median. Linux and macOS. The last line is one JSON object:
the medians of the first bundle.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd import errors, machine  # noqa: E402
from kd.edge import bundle  # noqa: E402

ARCHITECTURE, SIZE = "mobilenetv2", 224
IMPORTS = "import numpy, PIL.Image, onnxruntime; print(flush=True)"


def main(argv=None):
    """Measure, and print the table and the JSON object."""
    parser = errors.Parser(prog="cold_start.py", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="folders that export.py --bundle wrote; default: "
                        "one is made")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="the interpreter, of an environment "
                        "with NumPy, Pillow and ONNX Runtime; default: this one, which imports tqdm as well")
    parser.add_argument("--threads", type=errors.whole(0, 1024), default=0, metavar="N", help="as for predict.py")
    parser.add_argument("--rounds", type=errors.positive, default=20, metavar="N", help="starts of each")
    options = parser.parse_args(argv)
    state = machine.describe()
    print(f"{machine.line(state)}, onnxruntime {state['onnxruntime']}")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.jpg")
        smooth = np.random.default_rng(0).integers(60, 200, (15, 20, 3)).astype(np.uint8)
        Image.fromarray(smooth).resize((600, 450), Image.Resampling.BICUBIC).save(picture, quality=90)
        bundles = [Path(path).resolve() for path in options.bundles] or [make_bundle(Path(folder, "bundle"))]
        commands = {path: ["predict.py", model_of(path), picture, "--format", "jsonl", "--threads",
                           str(options.threads)] for path in bundles}
        commands["imports"] = ["-c", IMPORTS]
        measured = {side: [] for side in commands}
        for _ in range(options.rounds + 1):
            for side, words in commands.items():
                measured[side].append(start([options.python, *words], cwd=folder if side == "imports" else side))
    return report(measured, bundles[0])


def model_of(folder):
    """The name of the model in a bundle. UserError if there is none."""
    if not (folder / "predict.py").is_file() or not list(folder.glob("*.onnx")):
        raise errors.UserError(f"{folder} is no bundle", "Name a folder that export.py --bundle wrote.")
    return next(folder.glob("*.onnx")).name


def make_bundle(folder):
    """A folder with what predict.py needs and the INT8 file, as export.py --bundle lays it out; returns it."""
    for name in bundle.FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.ROOT / name, folder / name)
    # in another process, because Linux counts the memory of this one as that of the processes that it starts
    process = multiprocessing.get_context("spawn").Process(target=write_model, args=(folder / "model.int8.onnx",))
    process.start()
    process.join()
    return folder


def write_model(path):
    """Write the INT8 file of an untrained network."""
    import inference
    path.write_bytes(inference.export(ARCHITECTURE, SIZE)[1]["int8"])


def start(command, cwd):
    """(seconds to the first line of output, processor seconds, MB at the peak) of a process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE)
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not line:
        raise errors.UserError(f"no answer came in {cwd}", "Why stands above.")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def report(measured, first):
    """Print a row for each side, and the JSON object of the side `first`; returns that as a dict."""
    names = {side: side if side == "imports" else side.name for side in measured}
    width = max(map(len, names.values())) + 2
    print(f"{'':{width}}{'s to label':>12}{'least':>8}{'most':>8}{'processor s':>14}{'least':>8}{'MB':>8}")
    for side, rounds in measured.items():
        seconds, processor, memory = np.array(rounds[1:]).T
        print(f"{names[side]:{width}}{np.median(seconds):>12.3f}{seconds.min():>8.3f}{seconds.max():>8.3f}"
              f"{np.median(processor):>14.3f}{processor.min():>8.3f}{memory.max():>8.1f}")
    seconds, processor, memory = np.median(np.array(measured[first][1:]), 0).round(4).tolist()
    result = {"seconds": seconds, "processor_seconds": processor, "megabytes": memory}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    errors.run(main)
