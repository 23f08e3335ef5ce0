"""What a method costs: a step of each loss compared with one of kd, and mixed views compared with plain ones.

    python benchmarks/methods.py

A step is of a ResNet-18 at 64 px, with the targets of a ResNet-50 from disk, or with that teacher live; the input is
that of an epoch. All sides take turns, with one thread, and processor time is measured, which other processes affect
only through the caches. It needs no data and takes a few minutes. The last line is one JSON object of ratios: times the
cost of kd, of plain views, and of an epoch with plain views.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import distill  # noqa: E402
import journal  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, machine  # noqa: E402
from kd.data import batching  # noqa: E402
from kd.train import engine, setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402

METHODS = ("kd", "dkd", "dist", "ltkd", "bkd", "prior_kd", "wttm", "rld", "logit_std")
VIEWS = {"plain": [], "mixup": ["--mixup", "0.2"], "cutmix": ["--cutmix", "1"]}
SIZE, BATCH, STEPS = 64, 32, 9  # steps: of an epoch of the 280 training images


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="methods.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=errors.positive, default=20, help="turns of each side that count")
    args = parser.parse_args(argv)
    print(f"{machine.line(machine.describe())}; ResNet-50 to ResNet-18, {BATCH} images of {SIZE} px, one thread")
    result = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        side = stack.enter_context(turns.Side(make, folder))
        names = [*METHODS, "kd live", *VIEWS]
        seconds = {name: values[:, 1] for (_, name), values in turns.measure({"": side}, args.rounds, names).items()}
    for title, group in (("ms a step", (*METHODS, "kd live")), ("ms of input", VIEWS)):
        times = turns.print_table({name: seconds[name] for name in group}, unit=title)
        result.update({name: round(1 / faster, 3) for name, faster in times.items()})
        print()
    for name in ("mixup", "cutmix"):
        epoch = seconds["kd live"] * STEPS + seconds["plain"]
        result[f"{name}_epoch"] = round(float(np.median(1 + (seconds[name] - seconds["plain"]) / epoch)), 3)
        print(f"an epoch with the teacher live takes {result[f'{name}_epoch']:.3f} times as long with {name}")
    print(json.dumps({"size": SIZE, **result}))


def make(folder):
    """{name: function}: a step of each of METHODS on one batch; an epoch of batches of each of VIEWS."""
    torch.set_num_threads(1)
    machine.keep_memory()
    data, functions = None, {}
    for name in METHODS:
        options = options_of(folder, "--soft", name)
        data = data or setup.load_data(options, registry)
        device, precision = engine.device_and_precision(options)
        student, teacher = (setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry)
                            for arch in ("resnet18", "resnet50"))
        teacher.fingerprint, teacher.tau = "made here", 0.0
        step = journal.make_step(student, teacher, data, options, device, precision, Path(folder, "targets"))
        step.targets.build(step.teacher_forward, batch=BATCH, device=device, workers=0)
        student.model.train()
        batch = next(batching.training_batches(data, batch=BATCH, seed=0, epoch=1, device=device, workers=0,
                                               views=step.views))
        functions[name] = lambda step=step, batch=batch, options=options: journal.train_on([batch], step, data, options)
    live = journal.make_step(*(setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry)
                               for arch in ("resnet18", "resnet50")), data, options_of(folder), device, precision)
    functions["kd live"] = lambda: journal.train_on([batch], live, data, options)
    for name, arguments in VIEWS.items():
        views = batching.Views.of(options_of(folder, *arguments))
        functions[name] = lambda views=views: list(batching.training_batches(
            data, batch=BATCH, seed=0, epoch=1, device="cpu", workers=0, views=views))
    return functions


def options_of(folder, *arguments):
    """The options of a student's training, resolved."""
    common = ["--student", "resnet18", "--data", "lesions,images=400", "--size", str(SIZE), "--batch", str(BATCH),
              "--cache", folder, "--out", folder, "--device", "cpu", "--hard", "ce", "--epochs", "10"]
    return parse_options(distill.parser(), [*common, *arguments])


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
