"""The time of an augmented image from the cache, compared with PIL and torchvision from its file (naive.py).

    python benchmarks/input.py --size 224 --root data/ham10000
    python benchmarks/input.py --size 64

`heavy` is the augmentation of training, `light` a random crop and flips; both end with a normalised batch. `resampled`
is heavy as a GPU computes it. Sides take turns with one thread each, and processor time is measured. Then a ResNet-18
is trained as by `distill.py --teacher-cache 1`, with all threads: `waiting` is the share of an epoch in which it waits
for its input. Images are HAM10000 with --root, else synthetic ones of the same size; it takes two minutes. The last
line is one JSON object: times faster than PIL, and `waiting`.
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
import journal  # noqa: E402
import naive  # noqa: E402
import pictures  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, image, machine  # noqa: E402
from kd.data import augment, batching, loader  # noqa: E402
from kd.train import engine, setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402

BATCH = 32
CPU = torch.device("cpu")


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="input.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=224, help="side of the views, in px")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=160, help="images, of which eight of ten are "
                        "for training")
    parser.add_argument("--rounds", type=errors.positive, default=7, help="turns of each side that count")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        count = len(prepare(args.root, args.images, folder, args.size).where("train"))  # makes the cache for the sides
        print(f"{machine.line(machine.describe())}; {args.size} px")
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in ("pil", "cache")}
        seconds = turns.measure(sides, args.rounds, ("heavy", "light"))
        resampled = turns.measure({"cache": sides["cache"]}, args.rounds, ("resampled",))
        result = {}
        for kind in ("heavy", "light"):
            rows = {f"{side} {kind}": seconds[side, kind][:, 1] for side in sides}
            if kind == "heavy":
                rows["cache resampled"] = resampled["cache", "resampled"][:, 1]
            times_faster = turns.print_table(rows, count, "ms an image")
            result[kind] = times_faster[f"cache {kind}"]
        result["waiting"] = round(waiting(args, folder), 4)
    print(f"a ResNet-18 with cached targets waits for its input in {result['waiting']:.1%} of an epoch, "
          f"{torch.get_num_threads()} threads")
    print(json.dumps({"size": args.size, **result}))


def prepare(root, count, folder, size):
    """kd.data.loader.Data of pictures.dataset(), decoded into a cache in `folder`."""
    return loader.prepare(pictures.dataset(root, count, folder), size=size, cache_folder=Path(folder, "cache"))


def make(side, args, folder):
    """{"heavy", "light": function that augments all training images once}; `cache` has "resampled" too.

    side: "pil" or "cache". args: the command line as a dict. folder: for images and cache.
    """
    torch.set_num_threads(1)
    size = args["size"]
    if side == "pil":
        dataset = pictures.dataset(args["root"], args["images"], folder)
        train = [k for k, split in enumerate(dataset.split) if split == "train"]

        def from_files(transform):
            images = naive.Files([dataset.images[k] for k in train], dataset.labels[train], transform)
            for _ in torch.utils.data.DataLoader(images, BATCH, shuffle=True):
                pass

        heavy, light = naive.heavy(size), naive.light(size, image.resize_for(size))
        return {"heavy": lambda: from_files(heavy), "light": lambda: from_files(light)}
    machine.keep_memory()
    data = prepare(args["root"], args["images"], folder, size)

    def from_cache(kind):
        batches = batching.training_batches(data, batch=BATCH, seed=0, epoch=1, device=CPU, workers=0,
                                            views=batching.Views(kind))
        for images, *_ in batches:
            augment.normalise(images, image.MEAN, image.STD)

    def resampled():
        rows = data.where("train")
        for start in range(0, len(rows), BATCH):
            part = rows[start:start + BATCH]
            draws = augment.draw(0, 1, part)
            images = augment.colour(augment.resample(torch.from_numpy(data.pixels(part)), draws, size), draws)
            augment.normalise(images, image.MEAN, image.STD)

    return {"heavy": lambda: from_cache("heavy"), "light": lambda: from_cache("light"), "resampled": resampled}


def waiting(args, folder):
    """The share of the wall time of an epoch in which training waits for a batch, the median of three epochs."""
    machine.keep_memory()
    arguments = ["--student", "resnet18", "--size", str(args.size), "--batch", str(BATCH), "--hard", "ce",
                 "--epochs", "3"]
    options = parse_options(distill.parser(), arguments)
    device, precision = engine.device_and_precision(options)
    data = prepare(args.root, args.images, folder, args.size)
    student, teacher = (setup.new_network("resnet18", data, options, seed, registry) for seed in (0, 1))
    step = journal.make_step(student, teacher, data, options, device, precision, Path(folder, "targets"))
    step.targets.build(step.teacher_forward, batch=BATCH, device=device, workers=1)
    waits = []

    def timed(batches):
        """The batches; the seconds until each is there are appended to `waits`."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waits.append(time.perf_counter() - start)
            if batch is None:
                return
            yield batch

    shares = []
    for epoch in (1, 2, 3):
        batches = batching.training_batches(
            data, batch=BATCH, seed=0, epoch=epoch, device=device, workers=options["workers"], views=step.views,
            other_sizes=step.teacher_sizes)
        waits.clear()
        start = time.perf_counter()
        journal.train_on(timed(batches), step, data, options)
        shares.append(sum(waits) / (time.perf_counter() - start))
    return float(np.median(shares))


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
