"""The time of a whole epoch, training and validation, compared with the usual pipeline (naive.py).

    python benchmarks/epoch.py --root data/ham10000 --images 10015
    python benchmarks/epoch.py                                        # synthetic images in files

ResNet-50 to ResNet-18, KD, at 64 px. `naive` decodes, augments with PIL and runs the teacher in each epoch, in fp32.
`ours` is `distill.py --teacher-cache`: images are decoded once, targets come from disk, --precision auto; `live` is
the same with the teacher run in each step. `torchdistill` (Matsubara 2020, 2011.12913), if it is installed, runs its
KD loop on the same networks, data, augmentation and batch as naive. Decoding and the targets of a view are needed once,
and have a line of their own. Sides take turns, an epoch each, with all threads and one worker that prepares batches.
Wall time is measured, so the machine should do nothing else; on Linux the processor time of a side and its worker
follows. The last line is one JSON object: times faster than naive.
"""

import contextlib
import functools
import importlib.util
import itertools
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
from kd.data import loader  # noqa: E402
from kd.train import engine, loop, setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402

TEACHER, STUDENT = "resnet50", "resnet18"
# A forked worker starts at once, and its processor time is known when it has ended. Other systems start a worker slowly
# and so keep it.
WORKER = {"num_workers": 1, **({"multiprocessing_context": "fork"} if sys.platform == "linux"
                               else {"persistent_workers": True})}


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="epoch.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=errors.positive, default=64, help="side of the views, in px")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=500, help="images in all splits; HAM10000 has 10015")
    parser.add_argument("--batch", type=errors.positive, default=32, help="images a step")
    parser.add_argument("--rounds", type=errors.positive, default=3, help="epochs of each side that count")
    args = parser.parse_args(argv)
    names = ["naive", "live", "ours"] + ["torchdistill"] * bool(importlib.util.find_spec("torchdistill"))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        dataset = pictures.dataset(args.root, args.images, folder)
        start = time.perf_counter()
        data = prepare(dataset, folder, args.size)
        decoding = time.perf_counter() - start
        count = len(data.where("train"))
        print(f"{machine.line(machine.describe())}\n{TEACHER} to {STUDENT}, {count} images to train, "
              f"{len(data.where('val'))} to validate, {args.size} px, batch {args.batch}")
        sides = {name: stack.enter_context(turns.Side(make, name, vars(args), folder)) for name in names}
        targets, _ = sides["ours"].call("targets")
        seconds = turns.measure(sides, args.rounds, ("epoch",))
        wall, processor = ({name: seconds[name, "epoch"][:, clock] for name in names} for clock in (0, 1))
        result = turns.print_table(wall, count, "ms an image")
        if sys.platform == "linux":
            print("processor time")
            times_faster = turns.print_table(processor, count, "ms an image")
            result.update({f"{name}_processor": times_faster[name] for name in names[1:]})
        epoch = np.median(wall["naive"])
        print(f"once: decoding {decoding / epoch:.2f} and the targets of a view {targets / epoch:.2f} of a naive epoch")
        turns.print_peaks(sides)
    if "torchdistill" not in names:
        print("torchdistill is not installed, and left out: pip install torchdistill")
    result.pop("naive")
    print(json.dumps({"size": args.size, **result, "targets_once": round(targets / epoch, 3)}))


def prepare(dataset, folder, size):
    """kd.data.loader.Data of a data set, decoded into a cache in `folder`."""
    return loader.prepare(dataset, size=size, cache_folder=Path(folder, "cache"))


def make(side, args, folder):
    """{"epoch": function that trains for an epoch and validates, "targets": function that makes those of a view}.

    side: a name of main(); "targets" is for `ours`. args: the command line as a dict. folder: for images and caches.
    """
    arguments = ["--student", STUDENT, "--size", str(args["size"]), "--batch", str(args["batch"]), "--hard", "ce",
                 "--epochs", "100"]
    options = parse_options(distill.parser(), arguments)
    device, precision = engine.device_and_precision(options)
    dataset = pictures.dataset(args["root"], args["images"], folder)
    data = prepare(dataset, folder, args["size"])
    student, teacher = (setup.new_network(arch, data, {**options, "stem": "imagenet"}, 0, registry)
                        for arch in (STUDENT, TEACHER))
    if side in ("naive", "torchdistill"):
        size, batch = args["size"], args["batch"]
        usual_loop = naive.Loop(student.model, teacher.model, device)
        train = files(dataset, "train", naive.heavy(size))
        val = naive_loader(files(dataset, "val", naive.centre(size, image.resize_for(size))), batch)
        if side == "torchdistill":
            train_epoch = distillation_box(teacher.model, student.model, train, batch, device)
        else:
            train_epoch = functools.partial(usual_loop.epoch, naive_loader(train, batch, shuffle=True))
        return {"epoch": lambda: (train_epoch(), usual_loop.answers(val))}
    machine.keep_memory()
    targets_folder = Path(folder, "targets") if side == "ours" else None
    step = journal.make_step(student, teacher, data, options, device, precision, targets_folder)
    numbers = itertools.count(1)

    def epoch():
        loop.train(step, data, options, 0, journal.Epoch(next(numbers)))

    def targets():
        step.targets.build(step.teacher_forward, batch=4 * options["batch"], device=device, workers=1)

    return {"epoch": epoch, "targets": targets}


def files(dataset, split, transform):
    """naive.Files of one split of a kd.data.dataset.Dataset."""
    rows = [k for k, name in enumerate(dataset.split) if name == split]
    return naive.Files([dataset.images[k] for k in rows], dataset.labels[rows], transform)


def naive_loader(images, batch, shuffle=False):
    """A DataLoader of naive.Files with one worker."""
    return torch.utils.data.DataLoader(images, batch, shuffle=shuffle, **WORKER)


def distillation_box(teacher, student, train, batch, device):
    """A function that runs an epoch of torchdistill's loop for KD, as in its examples."""
    from torchdistill.core.distillation import DistillationBox
    kd = {"key": "KDLoss", "kwargs": {
        "student_module_path": ".", "student_module_io": "output",
        "teacher_module_path": ".", "teacher_module_io": "output",
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
