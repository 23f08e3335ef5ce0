"""What an augmented image costs here, from the cache, over PIL and torchvision from its file (naive.py).

    python benchmarks/input.py --size 224 --root data/ham10000
    python benchmarks/input.py --size 64

`heavy` is the augmentation of training, `light` a window and flips; both end with a normalised batch. `resampled` is
heavy as a GPU does it. Sides take turns, one thread each, and processor time counts.
Then a ResNet-18 is trained as by `distill.py --teacher-cache 1`, on all threads, and the share of an epoch in which it
waits for its input is taken. HAM10000 with --root, else synthetic pictures of the same size; two minutes.
The last line is one JSON object: times faster than PIL, and `waiting`.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import distill  # noqa: E402
import naive  # noqa: E402
import pictures  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, image, machine, objective  # noqa: E402
from kd.data import augment, loader  # noqa: E402
from kd.train import engine, setup, teacher_cache  # noqa: E402
from kd.train.options import parse_options  # noqa: E402
from kd.train.step import Step, memory_format  # noqa: E402

BATCH = 32
CPU = torch.device("cpu")


def main(argv=None):
    parser = errors.Parser(prog="input.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="of the views, in px")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=160, help="of which eight of ten are for training")
    parser.add_argument("--rounds", type=errors.positive, default=7, help="turns of each side")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        count = sum(split == "train" for split in pictures.dataset(args.root, args.images, folder).split)
        prepare(args.root, args.images, folder, args.size)  # before the sides want the cache
        state = machine.describe()
        print(f"{machine.line(state)}; {args.size} px")
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in ("pil", "cache")}
        seconds = turns.measure(sides, args.rounds, ("heavy", "light"))
        extra = turns.measure({"cache": sides["cache"]}, args.rounds, ("resampled",))
        result = {}
        for kind in ("heavy", "light"):
            rows = {f"{side} {kind}": seconds[side, kind][:, 1] for side in sides}
            if kind == "heavy":
                rows["cache resampled"] = extra["cache", "resampled"][:, 1]
            times = turns.table(rows, count, "ms an image")
            result[kind] = times[f"cache {kind}"]
        result["waiting"] = round(waiting(args, folder), 4)
    print(f"a ResNet-18 with cached targets waits for its input in {result['waiting']:.1%} of an epoch, {torch.get_num_threads()} threads")
    print(json.dumps({"size": args.size, **result}))


def prepare(root, count, folder, size):
    return loader.prepare(pictures.dataset(root, count, folder), size=size, cache_folder=Path(folder, "cache"))


def make(side, args, folder):
    """{"heavy": function that makes all training images once, "light": ...} of this side."""
    torch.set_num_threads(1)
    size = args["size"]
    if side == "pil":
        dataset = pictures.dataset(args["root"], args["images"], folder)
        train = [k for k, split in enumerate(dataset.split) if split == "train"]
        kinds = {"heavy": naive.heavy(size), "light": naive.light(size, image.resize_for(size))}
        loaders = {kind: torch.utils.data.DataLoader(naive.Files([dataset.images[k] for k in train], dataset.labels[train], transform),
                                                     BATCH, shuffle=True) for kind, transform in kinds.items()}
        return {kind: lambda loader=loader: sum(len(labels) for _, labels in loader) for kind, loader in loaders.items()}
    machine.keep_memory()
    data = prepare(args["root"], args["images"], folder, size)

    def ours(kind):
        for images, _, _ in loader.training_batches(data, batch=BATCH, seed=0, epoch=1, device=CPU, workers=0, kind=kind):
            augment.normalise(images, image.MEAN, image.STD)

    def resampled():
        rows = data.where("train")
        for start in range(0, len(rows), BATCH):
            part = rows[start:start + BATCH]
            draws = augment.draw(0, 1, part)
            images = augment.colour(augment.resample(torch.from_numpy(data.pixels(part)), draws, size), draws)
            augment.normalise(images, image.MEAN, image.STD)

    return {"heavy": lambda: ours("heavy"), "light": lambda: ours("light"), "resampled": resampled}


def waiting(args, folder):
    """The share of an epoch's wall time in which training waits for a batch."""
    machine.keep_memory()
    words = ["--student", "resnet18", "--size", str(args.size), "--batch", str(BATCH), "--hard", "ce", "--epochs", "3"]
    options = parse_options(distill.parser(), words)
    device, precision = engine.device_and_precision(options)
    data = prepare(args.root, args.images, folder, args.size)
    student, teacher = (setup.new_network("resnet18", data, options, seed, registry) for seed in (0, 1))
    for network in (student, teacher):
        network.model.to(device, memory_format=memory_format(device))
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    kept = teacher_cache.Targets(Path(folder, "targets"), teacher, data, 1, needs=objective.needed(terms), precision=precision,
                           kind=options["augment"], device=device)
    step = Step(student, teacher, terms, data, options, device, precision, kept)
    kept.build(step.teacher_forward, batch=BATCH, device=device, workers=1)
    student.model.train()
    shares = []
    for epoch in (1, 2, 3):
        waited, begun = 0.0, time.perf_counter()
        batches = loader.training_batches(data, batch=BATCH, seed=0, epoch=epoch, device=device, workers=options["workers"],
                                           view=teacher_cache.view(epoch, 1))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - start
            if batch is None:
                break
            loss, _ = step(*batch, epoch, 1.0)
        loss.item()
        shares.append(waited / (time.perf_counter() - begun))
    return float(np.median(shares))


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
