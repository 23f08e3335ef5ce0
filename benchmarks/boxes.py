"""The labels and logits of bundles on other processors, compared with those of this machine.

    python benchmarks/boxes.py runs/boxes --downloads arm

The runs must have been exported. A bundle of each computes the logits of 64 test images on this machine and on the
emulated ones (emulated.py). A cell has the number of labels that are equal, and the largest difference of a logit;
"labels" is how many classes are among the labels, "allowed" the largest difference that `predict.py --check` accepts.
The table is Markdown; the last line is one JSON object: {architecture: {machine: [equal labels, largest difference]}}.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import registry  # noqa: E402
from benchmarks import emulated  # noqa: E402
from kd import errors, machine, onnx_model, runs  # noqa: E402
from kd.edge import bundle, checked_export  # noqa: E402
from kd.errors import UserError  # noqa: E402
from kd.run_folder import Run  # noqa: E402

IMAGES = 64
MODEL = "model.int8.onnx"
LOGITS = """
import sys
import numpy
from kd.onnx_model import Model
model, images, logits = sys.argv[1:]
numpy.save(logits, Model(model, 1).logits(numpy.load(images)))
"""


def main(argv=None):
    """Compare, and print the table and the JSON object."""
    parser = errors.Parser(prog="boxes.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="trained runs, or folders above them")
    parser.add_argument("--downloads", metavar="DIR", help="where the system and the wheels for ARM are or are "
                        "unpacked, 150 MB; default: a temporary folder")
    parser.add_argument("--onnxruntime", metavar="VERSION", default="1.27.0",  # the newest that QEMU 7.2 runs
                        help="the version on ARM")
    options = parser.parse_args(argv)
    if emulated.missing():
        raise UserError(f"not on this machine: {emulated.missing()}", "On Debian: apt-get install qemu-user-static")
    folders = [folder for path in options.runs for folder in runs.find(path)]
    with tempfile.TemporaryDirectory() as folder:
        machines = prepare(Path(options.downloads or folder, "arm").resolve(), options.onnxruntime)
        state = machine.describe()
        print(f"{machine.line(state)}, onnxruntime {state['onnxruntime']}, on ARM {options.onnxruntime}\n")
        heads = ["architecture", "INT8 recipe", "labels", "allowed", *machines]
        print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
        result = {}
        for k, run in enumerate(folders):
            architecture, cells, result_row = compare(Run(run), Path(folder, str(k)), machines)
            print(f"| {' | '.join([architecture, *cells])} |", flush=True)
            result[architecture] = result_row
    print(json.dumps(result))


def prepare(folder, version):
    """{name: emulated.Machine} of the other processors; what they need is downloaded into a folder if it is not there.

    version: of ONNX Runtime on ARM.
    """
    debian, packages = folder / "debian", folder / f"onnxruntime-{version}"
    if not debian.exists():
        emulated.unpack(debian)
    if not packages.exists():
        emulated.install(packages, "numpy", "pillow", f"onnxruntime=={version}")
    cores = {f"ARM {core}: {what}": emulated.arm(debian, packages, core) for core, what in emulated.ARM.items()}
    return {f"x86 {emulated.X86}: AVX2": emulated.x86(), **cores}


def compare(run, folder, machines):
    """(architecture, further cells of the row, {machine: [equal labels, largest difference]}) of a Run.

    folder: a new one, for the bundle. machines: as prepare() returns them.
    """
    exported = run.folder / "exports" / MODEL
    if not exported.is_file():
        raise UserError(f"{run.folder} has no {MODEL}", f"python export.py {run.folder}")
    with contextlib.redirect_stdout(io.StringIO()):
        images = checked_export.open_run(run, registry).pixels("test", IMAGES)
    bundle.write(run, exported, images[:bundle.CHECKED], folder)
    model = onnx_model.Model(folder / MODEL, 1)
    reference = model.logits(images)
    np.save(folder / "images.npy", images)
    result = {}
    for name, other in machines.items():
        other.run("-c", LOGITS, MODEL, "images.npy", "logits.npy", folder=folder)
        logits = np.load(folder / "logits.npy")
        equal = int((logits.argmax(1) == reference.argmax(1)).sum())
        result[name] = [equal, float(np.abs(logits - reference).max())]
    cells = [model.metadata["recipe"]["ranges"], str(len(np.unique(reference.argmax(1)))),
             f"{onnx_model.CLOSE * max(1, np.abs(reference).max()):.1g}",
             *(f"{equal}, {difference:.1g}" for equal, difference in result.values())]
    return model.metadata["provenance"]["arch"], cells, result


if __name__ == "__main__":
    errors.run(main)
