"""The time of a distillation step, compared with the usual loop (naive.py): ResNet-50 to ResNet-18, KD.

    python benchmarks/step.py --size 224
    python benchmarks/step.py --size 64 --compile

Sides take turns: `naive`; `live`, where the teacher runs in each step; `cached`, where its targets come from disk
(--teacher-cache); and with --compile the last two again, compiled. All get the same float images; input.py measures
decoding and augmentation. With one thread on a CPU processor time is measured, which other processes affect only
through the caches; with --threads 2 or more, and on a GPU, it is wall time. The parts of a step and the peak memory of
each side follow. It needs no data and takes a few minutes. The last line is one JSON object of ratios: times faster
than naive, and memory over that of naive.
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
import naive  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, machine  # noqa: E402
from kd.data import augment, batching  # noqa: E402
from kd.train import engine, setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402

TEACHER, STUDENT = "resnet50", "resnet18"
PARTS = ("teacher", "student forward", "optimizer")


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="step.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="side of the images, in px")
    parser.add_argument("--batch", type=errors.positive, default=32, help="images a step")
    parser.add_argument("--rounds", type=errors.positive, default=7, help="turns of each side that count")
    parser.add_argument("--threads", type=errors.positive, default=1, help="threads of the processor")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device of all sides")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                        help="precision of all sides but naive, which is fp32")
    parser.add_argument("--compile", action="store_true", help="measure compiled networks too; it takes minutes to "
                        "compile them")
    args = parser.parse_args(argv)
    names = ["naive", "live", "cached"] + ["live_compiled", "cached_compiled"] * args.compile
    device, precision = engine.device_and_precision(vars(args))
    state = machine.describe()
    print(f"{machine.line(state)}, threads: {args.threads}\n"
          f"{TEACHER} to {STUDENT}, {args.batch} images of {args.size} px on {device}, {precision}; naive: fp32")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in names}
        seconds = turns.measure(sides, args.rounds, ("step", *PARTS))
        clock = 1 if device.type == "cpu" and args.threads == 1 else 0  # processor time, or wall time
        seconds = {key: values[:, clock] for key, values in seconds.items()}
        result = turns.print_table({name: seconds[name, "step"] for name in names}, unit="ms a step")
        print("\nparts of a step")
        for name in names:
            shares = {part: np.median(seconds[name, part] / seconds[name, "step"]) for part in PARTS}
            shares["the rest, most of it backward"] = 1 - sum(shares.values())
            print(f"{name:17}" + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))
        peaks = turns.print_peaks(sides)
    result.update({f"{name}_memory": round(peaks[name] / peaks["naive"], 3) for name in names[1:] if peaks})
    result.pop("naive")
    print(json.dumps({"size": args.size, "precision": precision, **result}))


def make(side, args, folder):
    """{name: function} of "step", which does one step of this side, and of its PARTS; all on the same batch.

    side: a name of main(). args: the command line as a dict. folder: for the image cache and the teacher's targets.
    """
    torch.set_num_threads(args["threads"])
    if side != "naive":
        machine.keep_memory()
    arguments = ["--student", STUDENT, "--data", "lesions,images=100", "--size", str(args["size"]),
                 "--batch", str(args["batch"]), "--cache", folder, "--device", args["device"],
                 "--precision", args["precision"], "--hard", "ce", "--epochs", "1",
                 *["--compile"] * ("compiled" in side)]
    options = parse_options(distill.parser(), arguments)
    device, precision = engine.device_and_precision(options)
    data = setup.load_data(options, registry)
    rows = data.where("train")[np.resize(np.arange(60), args["batch"])]
    pixels = augment.crop(data.pixels(rows), augment.draw(0, 1, rows), args["size"])
    images, labels = augment.to_float(pixels, device), torch.from_numpy(data.labels[rows]).to(device)
    index = torch.from_numpy(np.resize(np.arange(60), args["batch"]))
    student, teacher = (setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry)
                        for arch in (STUDENT, TEACHER))
    if side == "naive":
        loop = naive.Loop(student.model, teacher.model, device)
        return make_naive(loop, augment.normalise(images, naive.MEAN, naive.STD).contiguous(), labels)
    targets_folder = Path(folder, "targets") if "cached" in side else None
    step = journal.make_step(student, teacher, data, options, device, precision, targets_folder)
    if step.targets:
        step.targets.build(step.teacher_forward, batch=len(images), device=device, workers=0)
    student.model.train()
    batch = batching.Batch(images, labels, index, np.ones(len(index), int), {args["size"]: images},
                           (len(labels), len(index)))
    return {"step": lambda: journal.train_on([batch], step, data, options),
            "optimizer": step.optimizer.step, "teacher": lambda: step.teacher_outputs(batch),
            "student forward": lambda: step.student_outputs(images)}


def make_naive(loop, images, labels):
    """The same functions of a naive.Loop, for normalised images."""
    @torch.no_grad()
    def teacher_forward():
        loop.teacher(images)

    loop.student.train()
    return {"step": lambda: loop.step(images, labels), "teacher": teacher_forward,
            "student forward": lambda: loop.student(images), "optimizer": loop.optimizer.step}


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
