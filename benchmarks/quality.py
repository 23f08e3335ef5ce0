"""How long until a student is good: by the recipe of a plan, and by distillation as it is usually written (naive.py).

    python benchmarks/quality.py FOLDER                               some hours of two cores; stopped, it goes on

Both train the teacher of the plan and then its student, on the first fold, with the same networks, weights, image size,
batch, peak learning rate and number of epochs. `recipe` has all options of the plan, its decoded images and kept
targets included. `usual` decodes and augments files with PIL, trains in fp32 on labels with a cosine schedule, and
distils from the live teacher. After each epoch of the student its macro-F1 on validation is compared with the levels.

Time is the processor's, from the first image of the teacher's training on, as minutes of two cores: half of what one
thread takes, as two trainings side by side have it. A side ends after its last epoch, or after --hours. Where the usual
way does not reach a level, the ratio is below that to the time that it had. The last line is one JSON object.
"""

import contextlib
import io
import json
import math
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import distill  # noqa: E402
import naive  # noqa: E402
import registry  # noqa: E402
import study  # noqa: E402
import train_teacher  # noqa: E402
from kd import errors, files, image, machine, metrics  # noqa: E402
from kd.study.plan import read_plan  # noqa: E402
from kd.train import setup  # noqa: E402
from kd.train.options import parse_options  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CORES = 2
SCRIPTS = {"train_teacher": train_teacher, "distill": distill}
EPOCH = re.compile(r"epoch (\d+)/\d+ .*?val_macro_f1 ([\d.]+)")


def main(argv=None):
    """Train both sides, and print the table and the JSON object."""
    parser = errors.Parser(prog="quality.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", help="for runs, decoded images and times")
    parser.add_argument("--plan", default=ROOT / "configs" / "ham10000_128px.yaml", metavar="PLAN.yaml")
    parser.add_argument("--student", default="efficientnetlite0_kd", metavar="MODEL",
                        help="of the plan, with a teacher")
    parser.add_argument("--root", metavar="PATH", help="folder of the data, where it is not the plan's")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.60, 0.65, 0.70], metavar="F1",
                        help="macro-F1 on validation")
    parser.add_argument("--hours", type=errors.above_zero, default=4.0, help="of two cores, after which a side ends")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder, tasks = Path(args.folder), tasks_of(args)
    print(f"{machine.line(machine.describe())}; one thread, time on {CORES} cores")
    clocks = {}
    for name, train in (("recipe", recipe), ("usual", usual)):
        clocks[name] = Clock(folder / f"{name}.json", 3600 * CORES * args.hours)
        with contextlib.suppress(OutOfTime):
            train(tasks, folder, clocks[name], args.root)
    print("\n".join(table(clocks, args.levels)))
    print(json.dumps({level: {name: clock.minutes_until(level) for name, clock in clocks.items()}
                      for level in args.levels}))


def tasks_of(args):
    """[the training of the teacher, that of the student] on the plan's first fold. UserError where it has none."""
    tasks = read_plan(args.plan, study.script_parsers()).networks
    first = [task for task in tasks if task.fold == tasks[0].fold]
    student = next((task for task in first if task.model == args.student and task.needs), None)
    teacher = student and next(task for task in first if task.name == student.needs[0])
    if not teacher:
        raise errors.UserError(f"{args.plan} has no student {args.student} with a teacher",
                               f"It has {errors.listing(dict.fromkeys(task.model for task in first))}.")
    return teacher, student


class OutOfTime(Exception):
    """A side has had its hours."""


class Clock:
    """The processor time of each epoch of a side, which is kept in a file.

    file: JSON {network: [[seconds, macro-F1 on validation] of an epoch]}. limit: seconds.
    """

    def __init__(self, file, limit):
        self.file, self.limit, self.since = file, limit, time.process_time()
        self.epochs = files.read_json(file) if file.exists() else {}

    def start(self):
        """Count from now on. OutOfTime where there is no time left."""
        if self.seconds() > self.limit:
            raise OutOfTime
        self.since = time.process_time()

    def end_epoch(self, network, epoch, score):
        """Note an epoch, numbered from 1. OutOfTime where it was the last for which there was time."""
        now = time.process_time()
        done = self.epochs.setdefault(network, [])
        done[epoch - 1:] = [[round(now - self.since, 3), round(score, 4)]]
        self.since = now
        files.write_json(self.file, self.epochs)
        print(f"{self.file.stem}: {network}, epoch {epoch}: {self.minutes():.0f} min, macro-F1 {score:.3f}",
              file=sys.stderr, flush=True)
        if self.seconds() > self.limit:
            raise OutOfTime

    def seconds(self):
        return sum(seconds for epochs in self.epochs.values() for seconds, _ in epochs)

    def minutes(self):
        """Of two cores, so far."""
        return self.seconds() / 60 / CORES

    def minutes_until(self, level):
        """Of two cores, until an epoch of the student reaches a macro-F1; None if none does."""
        seconds = sum(seconds for seconds, _ in self.epochs.get("teacher", ()))
        for of_epoch, score in self.epochs.get("student", ()):
            seconds += of_epoch
            if score >= level:
                return round(seconds / 60 / CORES, 1)
        return None


def table(clocks, levels):
    """Lines of Markdown."""
    yield "| macro-F1 on validation | recipe, minutes | usual, minutes | recipe / usual |"
    yield "| --- | --- | --- | --- |"
    for level in levels:
        ours, usual = (clocks[name].minutes_until(level) for name in ("recipe", "usual"))
        had = clocks["usual"].minutes()
        ratio = "" if ours is None else f"{ours / usual:.2f}" if usual else f"below {ours / had:.2f}"
        cells = [f"{minutes:.0f}" if minutes else f"not in {clock.minutes():.0f}"
                 for minutes, clock in zip((ours, usual), clocks.values())]
        yield f"| {level:.2f} | {' | '.join(cells)} | {ratio} |"


def recipe(tasks, folder, clock, root):
    """Train teacher and student with the plan's own commands, below `folder`."""
    place = ["--out", str(folder / "runs"), "--cache", str(folder / "cache"), *(["--root", root] if root else [])]
    teacher = None
    clock.start()
    for network, task in zip(("teacher", "student"), tasks):
        with contextlib.redirect_stdout(Epochs(clock, network)):
            teacher = ["--teacher", str(SCRIPTS[task.script].main([*task.arguments, *place, *(teacher or ())])[0])]


class Epochs(io.TextIOBase):
    """Standard output of a training script, whose line of an epoch is noted; the rest is dropped."""

    def __init__(self, clock, network):
        self.clock, self.network = clock, network

    def write(self, text):
        if found := EPOCH.search(text):
            self.clock.end_epoch(self.network, int(found[1]), float(found[2]))
        return len(text)


def usual(tasks, folder, clock, root):
    """Train teacher and student with naive.Loop."""
    teacher = None
    for network, task in zip(("teacher", "student"), tasks):
        options = parse_options(SCRIPTS[task.script].parser(), [*task.arguments, *(["--root", root] if root else [])])
        options.update(out=str(folder / "runs"), cache=str(folder / "cache"))
        data = setup.load_data(options, registry)  # for the split alone
        arch = options["teacher"] if task is tasks[0] else options["student"][0]
        model = setup.new_network(arch, data, options, 0, registry).model
        sources = setup.load_dataset(options, registry).images
        loaders = {split: torch.utils.data.DataLoader(
            naive.Files([sources[data.rows[k]] for k in data.where(split)], data.labels[data.where(split)], transform),
            options["batch"], shuffle=split == "train")
            for split, transform in (("train", naive.heavy(data.size)),
                                     ("val", naive.centre(data.size, image.resize_for(data.size))))}
        loop = naive.Loop(model, teacher, torch.device("cpu"), lr=options["lr"])
        teacher = train(loop, loaders, options["epochs"], len(data.class_names), folder / f"usual_{network}.pt",
                        lambda epoch, score, network=network: clock.end_epoch(network, epoch, score), clock.start)


def train(loop, loaders, epochs, classes, file, end_epoch, start):
    """The model of a naive.Loop after all epochs, that of the best one on validation; goes on from `file`."""
    model, best, score = loop.student, None, -math.inf
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, epochs)
    done = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done, best, score = state["epoch"], state["best"], state["score"]
    start()
    for epoch in range(done + 1, epochs + 1):
        torch.manual_seed(epoch)
        loop.epoch(loaders["train"])
        schedule.step()
        reached = float(metrics.macro_f1(metrics.confusion(*loop.answers(loaders["val"]), classes)))
        if reached > score:
            best, score = {name: value.clone() for name, value in model.state_dict().items()}, reached
        with files.atomic(file) as stream:
            torch.save({"model": model.state_dict(), "optimizer": loop.optimizer.state_dict(),
                        "schedule": schedule.state_dict(), "epoch": epoch, "best": best, "score": score}, stream)
        end_epoch(epoch, reached)
    model.load_state_dict(best)
    return model


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
