"""What a distillation step costs here, over the loop that is usually written (naive.py): ResNet-50 to ResNet-18, KD.

    python benchmarks/step.py --size 224
    python benchmarks/step.py --size 64 --compile

Sides take turns: `naive`; `live`, where the teacher is asked in each step; `cached`, where its targets come from disk
(--teacher-cache); and with --compile both of these again, compiled. They get the same float images; decoding and augmentation are the matter of input.py. On a CPU one
thread computes, and its processor time counts, so that other processes cost a step its cache but not its turn; with
--threads 2 and more, and on a GPU, wall time counts. Each side's parts, and the peak memory of its process, follow.
No data; a few minutes. The last line is one JSON object of ratios: times faster, and memory over that of naive.
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
import naive  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, machine, objective  # noqa: E402
from kd.data import augment  # noqa: E402
from kd.train import engine, networks, setup, teacher_cache  # noqa: E402
from kd.train.options import parse_options  # noqa: E402
from kd.train.step import Step, memory_format, normalise_for  # noqa: E402

TEACHER, STUDENT = "resnet50", "resnet18"
PARTS = ("teacher", "student forward", "optimizer")


def main(argv=None):
    parser = errors.Parser(prog="step.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="of the images, in px")
    parser.add_argument("--batch", type=errors.positive, default=32, help="images a step")
    parser.add_argument("--rounds", type=errors.positive, default=7, help="turns of each side")
    parser.add_argument("--threads", type=errors.positive, default=1, help="of the processor")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our sides; naive is fp32")
    parser.add_argument("--compile", action="store_true", help="measure compiled networks too; minutes to compile them")
    args = parser.parse_args(argv)
    names = ["naive", "live", "cached"] + ["live_compiled", "cached_compiled"] * args.compile
    device, precision = engine.device_and_precision(vars(args))
    state = machine.describe()
    print(f"{machine.line(state)}, threads: {args.threads}\n"
          f"{TEACHER} to {STUDENT}, {args.batch} images of {args.size} px on {device}, {precision} where it is ours")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in names}
        which = 1 if device.type == "cpu" and args.threads == 1 else 0  # processor time, or wall time
        seconds = turns.measure(sides, args.rounds, ("step", *PARTS))
        peaks = {name: side.ask("peak") for name, side in sides.items()}
    result = turns.table({name: seconds[name, "step"][:, which] for name in sides}, unit="ms a step")
    print("\nwhere a step spends it")
    for name in sides:
        parts = {part: np.median(seconds[name, part][:, which] / seconds[name, "step"][:, which]) for part in PARTS}
        parts["the rest, most of it backward"] = 1 - sum(parts.values())
        print(f"{name:17}" + ", ".join(f"{part} {share:.0%}" for part, share in parts.items()))
    if all(peaks.values()):
        print("peak memory, MB: " + ", ".join(f"{name} {peak / 1e6:,.0f}" for name, peak in peaks.items()))
        result.update({f"{name}_memory": round(peaks[name] / peaks["naive"], 3) for name in names[1:]})
    result.pop("naive")
    print(json.dumps({"size": args.size, "precision": precision, **result}))


def make(side, args, folder):
    """{"step": function that takes one step of this side, and the PARTS of it}, on one batch that stays the same."""
    torch.set_num_threads(args["threads"])
    if side != "naive":
        machine.keep_memory()
    words = ["--student", STUDENT, "--data", "lesions,images=100", "--size", str(args["size"]), "--batch", str(args["batch"]),
             "--cache", folder, "--device", args["device"], "--precision", args["precision"], "--hard", "ce"]
    words += ["--compile"] if "compiled" in side else []
    options = parse_options(distill.parser(), words)
    device, precision = engine.device_and_precision(options)
    data = setup.load_data(options, registry)
    rows = data.where("train")[np.resize(np.arange(60), args["batch"])]
    pixels = augment.crop(data.pixels(rows), augment.draw(0, 1, rows), args["size"])
    images, labels, index = augment.to_float(pixels, device), torch.from_numpy(data.labels[rows]).to(device), torch.arange(60)
    index = index[torch.from_numpy(np.resize(np.arange(60), args["batch"]))]
    student, teacher = (setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry) for arch in (STUDENT, TEACHER))
    if side == "naive":
        return usual(naive.Loop(student.model, teacher.model, device), augment.normalise(images, naive.MEAN, naive.STD).contiguous(),
                     labels)
    networks.fold_batch_norm(teacher.model.eval())  # as training.load_teacher does
    for network in (student, teacher):
        network.model.to(device, memory_format=memory_format(device))
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    kept = teacher_cache.Targets(Path(folder) / "targets", teacher, data, 1, needs=objective.needed(terms),
                           precision=precision) if "cached" in side else None
    step = Step(student, teacher, terms, data, options, device, precision, kept)
    if kept:
        kept.build(step.teacher_forward, batch=len(images), device=device, workers=0)
    student.model.train()

    def forward():
        with step.autocast():
            step.student(normalise_for(images, student))

    return {"step": lambda: step(images, labels, index, 1, 1.0), "optimizer": step.optimizer.step,
            "teacher": lambda: kept(index, 1, device) if kept else step.teacher_forward(images),
            "student forward": forward}


def usual(loop, images, labels):
    """The same of the naive loop."""
    def ask():
        with torch.no_grad():
            loop.teacher(images)

    loop.student.train()
    return {"step": lambda: loop.step(images, labels), "teacher": ask, "student forward": lambda: loop.student(images),
            "optimizer": loop.optimizer.step}


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
