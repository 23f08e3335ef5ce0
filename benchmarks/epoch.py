"""What a whole epoch costs here, training and validation, over the pipeline that is usually written (naive.py).

    python benchmarks/epoch.py --root data/ham10000 --images 10015
    python benchmarks/epoch.py                                        # synthetic pictures in files

ResNet-50 to ResNet-18, KD, at 64 px. `naive` decodes, augments with PIL and asks the teacher in each epoch, in fp32.
`ours` is `distill.py --teacher-cache`: decoded once, targets from disk, --precision auto; `live` is the same with the
teacher asked in each step. `torchdistill` (Matsubara 2020, 2011.12913) runs its KD loop on the same networks, data,
augmentation and batch as naive, where it is installed. What is done once, decoding and a view's targets, is given apart.
Sides take turns, an epoch each, all threads, one worker that prepares batches. Wall time counts, so that it wants a quiet
machine; on Linux the processor time of a side and its worker stands beside it. The last line is one JSON object: times
faster than naive.
"""

import contextlib
import functools
import importlib.util
import json
import sys
import tempfile
import time
import types
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
from kd.data import loader  # noqa: E402
from kd.train import engine, loop, networks, setup, teacher_cache  # noqa: E402
from kd.train.options import parse_options  # noqa: E402
from kd.train.step import Step, memory_format  # noqa: E402

TEACHER, STUDENT = "resnet50", "resnet18"
# A forked worker starts at once, and its processor time is known when it has ended. Elsewhere it starts but once.
WORKER = {"num_workers": 1, **({"multiprocessing_context": "fork"} if sys.platform == "linux" else {"persistent_workers": True})}


def main(argv=None):
    parser = errors.Parser(prog="epoch.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=64, help="of the views, in px")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=500, help="of all splits; HAM10000 has 10015")
    parser.add_argument("--batch", type=errors.positive, default=32, help="images a step")
    parser.add_argument("--rounds", type=errors.positive, default=3, help="epochs of each side that count")
    args = parser.parse_args(argv)
    names = ["naive", "live", "ours"] + ["torchdistill"] * bool(importlib.util.find_spec("torchdistill"))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        dataset = pictures.dataset(args.root, args.images, folder)
        begun = time.perf_counter()
        data = prepare(dataset, folder, args.size)
        decoding = time.perf_counter() - begun
        state = machine.describe()
        print(f"{machine.line(state)}\n{TEACHER} to {STUDENT}, "
              f"{len(data.where('train'))} images to train, {len(data.where('val'))} to validate, {args.size} px, batch {args.batch}")
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in names}
        view = sides["ours"].ask("targets")[0]
        seconds = turns.measure(sides, args.rounds, ("epoch",))
        peaks = {name: side.ask("peak") for name, side in sides.items()}
    result = turns.table({name: seconds[name, "epoch"][:, 0] for name in names}, len(data.where("train")), "ms an image")
    if sys.platform == "linux":
        print("processor time")
        used = turns.table({name: seconds[name, "epoch"][:, 1] for name in names}, len(data.where("train")), "ms an image")
        result.update({f"{name}_processor": used[name] for name in names[1:]})
    whole = np.median(seconds["naive", "epoch"][:, 0])
    print(f"once: decoding {decoding / whole:.2f} and a view's targets {view / whole:.2f} of a naive epoch")
    if all(peaks.values()):
        print("peak memory, MB: " + ", ".join(f"{name} {peak / 1e6:,.0f}" for name, peak in peaks.items()))
    if "torchdistill" not in names:
        print("torchdistill is not installed, and left out: pip install torchdistill")
    result.pop("naive")
    print(json.dumps({"size": args.size, **result, "targets_once": round(view / whole, 3)}))


def prepare(dataset, folder, size):
    return loader.prepare(dataset, size=size, cache_folder=Path(folder, "cache"))


def make(side, args, folder):
    """{"epoch": function that trains for an epoch and validates}; `ours` has "targets", which shows the teacher a view."""
    words = ["--student", STUDENT, "--size", str(args["size"]), "--batch", str(args["batch"]), "--hard", "ce", "--epochs", "100"]
    options = parse_options(distill.parser(), words)
    device, precision = engine.device_and_precision(options)
    dataset = pictures.dataset(args["root"], args["images"], folder)
    data = prepare(dataset, folder, args["size"])
    student, teacher = (setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry) for arch in (STUDENT, TEACHER))
    if side in ("naive", "torchdistill"):
        peer = naive.Loop(student.model, teacher.model, device)
        train, val = (files(dataset, split, transform) for split, transform in (
            ("train", naive.heavy(args["size"])), ("val", naive.centre(args["size"], image.resize_for(args["size"])))))
        check = naive_loader(val, args["batch"])
        if side == "torchdistill":
            train_once = distillation_box(teacher.model, student.model, train, args["batch"], device)
        else:
            train_once = functools.partial(peer.epoch, naive_loader(train, args["batch"], shuffle=True))
        return {"epoch": lambda: (train_once(), peer.accuracy(check))}
    machine.keep_memory()
    networks.fold_batch_norm(teacher.model.eval())  # as setup.load_teacher does
    for network in (student, teacher):
        network.model.to(device, memory_format=memory_format(device))
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    kept = teacher_cache.Targets(Path(folder) / "targets", teacher, data, 1, needs=objective.needed(terms), precision=precision,
                           kind=options["augment"], device=device) if side == "ours" else None
    step = Step(student, teacher, terms, data, options, device, precision, kept)
    done, bar = [0], types.SimpleNamespace(update=lambda: None)

    def epoch():
        done[0] += 1
        steps = len(loader.batch_sizes(len(data.where("train")), options["batch"]))
        loop.train_epoch(step, data, options, seed=0, epoch=done[0], steps_before=steps * (done[0] - 1), steps=100 * steps, bar=bar)
        loop.validate(student, data, device)

    return {"epoch": epoch, "targets": lambda: kept.build(step.teacher_forward, batch=4 * options["batch"], device=device, workers=1)}


def files(dataset, split, transform):
    rows = [k for k, name in enumerate(dataset.split) if name == split]
    return naive.Files([dataset.images[k] for k in rows], dataset.labels[rows], transform)


def naive_loader(images, batch, shuffle=False):
    return torch.utils.data.DataLoader(images, batch, shuffle=shuffle, **WORKER)


def distillation_box(teacher, student, train, batch, device):
    """A function that runs an epoch of torchdistill's loop for KD, as its examples do."""
    from torchdistill.core.distillation import DistillationBox
    kd = {"key": "KDLoss", "kwargs": {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output",
        "temperature": naive.TEMPERATURE, "alpha": naive.ALPHA, "reduction": "batchmean"}}
    box = DistillationBox(teacher, student, {"train": train}, {
        "num_epochs": 1,
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": torch.utils.data.RandomSampler},
                              "kwargs": {"batch_size": batch, **WORKER}},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05}, "max_grad_norm": 1.0},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}}},
        device, None, False, 1.0)

    def epoch():
        box.pre_epoch_process(epoch=0)
        box.teacher_model.eval()
        for images, labels, extra in box.train_data_loader:
            images, labels = images.to(device), labels.to(device)
            box.pre_forward_process()
            loss = box.forward_process(images, targets=labels, supp_dict=extra)
            box.post_forward_process(loss=loss)
            loss.item()
        box.post_epoch_process()

    return epoch


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
