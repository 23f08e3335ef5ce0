"""The time of a training step in two processes, and what their exchange of gradients costs.

    python benchmarks/processes.py                                  # ResNet-18
    python benchmarks/processes.py --student mobilenetv2 --size 32

Sides take turns, all with the same batch: `one`, a process with one thread; `threads`, one with two threads; and two
processes with one thread each, each with half of the batch. Of these, `all_reduce` adds up all gradients in one
exchange after the backward pass; `ddp` is what training does, DistributedDataParallel, which begins to exchange
gradients while backward still runs. Wall time is what counts here, so nothing else should run; the ratios are taken
within each round, so that load that lasts affects both sides. It takes a few minutes. The last line is
one JSON object of ratios, each the median over the rounds with its quartiles.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import distill  # noqa: E402
import journal  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, machine, objective  # noqa: E402
from kd.data import batching  # noqa: E402
from kd.train import distributed, loop, setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402
from kd.train.step import Step, memory_format  # noqa: E402

CPU = torch.device("cpu")
SIDES = {"one": (1, 1), "threads": (1, 2), "all_reduce": (2, 1), "ddp": (2, 1)}  # processes, threads of each


def main(argv=None):
    """Measure, and print the table and the JSON object."""
    parser = errors.Parser(prog="processes.py", description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="resnet18", help="architecture")
    parser.add_argument("--size", type=errors.positive, default=64, help="side of the images, in px")
    parser.add_argument("--batch", type=errors.positive, default=32, help="images a step, of all processes together")
    parser.add_argument("--steps", type=errors.positive, default=5, help="steps of a turn")
    parser.add_argument("--rounds", type=errors.positive, default=9, help="turns of each side that count")
    args = parser.parse_args(argv)
    print(f"{machine.line(machine.describe())}\n{args.student}, {args.batch} images of {args.size} px, fp32")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        sides = {}
        for name, (processes, _) in SIDES.items():
            sides[name] = Together([stack.enter_context(turns.Side(make, name, rank, vars(args), folder))
                                    for rank in range(processes)])
        seconds = turns.measure(sides, args.rounds)
    seconds = {name: values / args.steps for (name, _), values in seconds.items()}  # [rounds, 2], wall and processor
    print(f"{'':12}{'wall, ms a step':>17}{'processor, ms a step':>22}")
    for name, values in seconds.items():
        wall, processor = 1e3 * np.median(values, axis=0)
        print(f"{name:12}{wall:>17.1f}{processor:>22.1f}")
    wall, processor = ({name: values[:, k] for name, values in seconds.items()} for k in (0, 1))
    ratios = {
        "ddp, times faster than all_reduce": wall["all_reduce"] / wall["ddp"],
        "the same, processor time": processor["all_reduce"] / processor["ddp"],
        "ddp, times faster than threads": wall["threads"] / wall["ddp"],
        "ddp, times faster than one": wall["one"] / wall["ddp"],
        "scaling efficiency of ddp": wall["one"] / wall["ddp"] / 2,
        "scaling efficiency of threads": wall["one"] / wall["threads"] / 2,
    }
    print(f"{'':36}median   quartiles")
    result = {}
    for what, values in ratios.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        print(f"{what:36}{median:>6.2f}   {low:.2f} to {high:.2f}")
        result[what] = [round(float(value), 3) for value in (median, low, high)]
    print(json.dumps({"student": args.student, "size": args.size, "batch": args.batch, **result}))


class Together:
    """Several turns.Side as one: their processes do the same call at the same time."""

    def __init__(self, sides):
        self.sides = sides

    def call(self, name):
        """(wall seconds of the slowest, processor seconds of all together)."""
        for side in self.sides:
            side.pipe.send(name)
        wall, processor = zip(*(side.pipe.recv() for side in self.sides))
        return max(wall), sum(processor)


def make(side, rank, args, folder):
    """{"step": a function that does a turn's steps} of one process of a side, on its share of one batch.

    side: a name of SIDES. args: the command line as a dict. folder: for the image cache, and where processes meet.
    """
    world, threads = SIDES[side]
    torch.set_num_threads(threads)
    machine.keep_memory()
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{side}", rank=rank, world_size=world)
    arguments = ["--student", args["student"], "--data", "lesions,images=100", "--size", str(args["size"]), "--batch",
                 str(args["batch"]), "--cache", folder, "--epochs", "1", "--device", "cpu", "--hard", "ce",
                 "--alpha", "1"]
    options = parse_options(distill.parser(), arguments)
    data = setup.load_data(options, registry)
    student = setup.new_network(args["student"], data, options, 0, registry)
    student.model.to(memory_format=memory_format(CPU))
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    step = Step(student, None, terms, data, options, CPU, "fp32")
    count = len(range(rank, args["batch"], world))
    images = torch.rand(count, 3, args["size"], args["size"]).contiguous(memory_format=torch.channels_last)
    labels, index = torch.arange(count) % len(data.class_names), torch.arange(count)
    batch = batching.Batch(images, labels, index, np.ones(count, int), {}, (args["batch"], args["batch"]))
    forward = lambda batch, epoch: loop.loss_of(step, batch, epoch)  # noqa: E731
    if side == "all_reduce":
        step.optimizer.register_step_pre_hook(lambda *_: distributed.add_up(
            [parameter.grad for parameter in step.parameters if parameter.grad is not None]))
    else:
        forward = distributed.parallel(forward, [student.model, step.objective])

    def steps():
        with mock.patch.object(distributed, "parallel", lambda *_: forward):  # made once, not in each turn
            journal.train_on([batch] * args["steps"], step, data, options)

    return {"step": steps}


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
