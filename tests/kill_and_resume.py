"""Started by test_resume.py: a run without interruption, and runs that are killed at random points and resumed.

A process that has imported everything forks a child for each run, so that forty starts take seconds. A run can be
killed before and after each step of the optimizer, and before and after each write is made durable and is renamed.
"""

import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch  # noqa: E402
import torch._dynamo  # noqa: E402,F401  (otherwise an optimizer imports it at its first step)

import distill  # noqa: E402,F401  (imports all that a run needs before the forks)
import small  # noqa: E402
from kd.data import unlabelled  # noqa: E402
from kd.files import read_csv, read_npz  # noqa: E402
from kd.train import engine, networks  # noqa: E402
from kd.train.weights import safe_load  # noqa: E402

with contextlib.suppress(ImportError):
    import tensorboard.compat.proto.event_pb2  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401


# What a run may have beside its defaults: the options, and whether it has images without labels and two teachers.
# "rest" has few labels, and the images without as well.
SETTINGS = {
    "usual": (["--beta", "100"], False),
    "further": (["--mixup", "0.4", "--cutmix", "1", "--ema", "0.8", "--sampling", "sqrt", "--size-from", "16",
                 "--alpha", "0.5:0.1", "--temperature", "4:1", "--select", "nll", "--term", "ltkd=1"], True),
    "rest": (["--unlabelled-ratio", "1.5"], False),
}


def train(folder):
    """Train a student with dropout for four epochs, with a setting of SETTINGS; a thread prepares the batches."""
    torch.set_num_threads(1)
    arguments, has_more = SETTINGS[sys.argv[3]]
    is_few = sys.argv[3] == "rest"
    data = small.data(folder=folder.parent / "cache", labelled=(0.3, 0) if is_few else None)
    if is_few:
        data.unlabelled = unlabelled.Unlabelled([unlabelled.rest(data)])
    options = small.options("--epochs", "4", "--workers", "1", *arguments)
    teacher = small.network(options, data, seed=7)
    teacher.fingerprint = "a"
    if has_more:
        data.unlabelled = small.unlabelled(data)
        teacher = networks.Ensemble([teacher, small.network(options, data, seed=8)])
        teacher.members[1].fingerprint = "b"
    student = small.network(options, data, seed=0)
    student.model.flatten = torch.nn.Sequential(student.model.flatten, torch.nn.Dropout(0.3))
    engine.run(folder, student, small.terms(options), data, options, seed=0, teacher=teacher, role="student",
               provenance={})


def child(folder, kill_at):
    """Train in a fork that kills itself at its event number `kill_at`. Returns the number of events, None if killed."""
    folder.parent.mkdir(exist_ok=True)
    counter = folder.parent / "events"
    process = os.fork()
    if process == 0:
        events = 0

        def event():
            nonlocal events
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def with_events(function):
            def wrapped(*arguments, **options):
                event()
                result = function(*arguments, **options)
                event()
                return result
            return wrapped

        os.replace, os.fsync = with_events(os.replace), with_events(os.fsync)
        torch.optim.AdamW.step = with_events(torch.optim.AdamW.step)
        try:
            with open(folder.parent / "log", "a") as log, contextlib.redirect_stdout(log):
                train(folder)
            counter.write_text(str(events))
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return None
    if os.WEXITSTATUS(status):
        sys.exit("a run failed")
    return int(counter.read_text())


def outcome(folder):
    """(weights, history, logits, names of files): all that must be the same after a kill."""
    weights = safe_load(folder / "best.pt")["state_dict"]
    history = [{key: value for key, value in row.items() if key != "seconds"}
               for row in read_csv(folder / "history.csv")]
    logits = [read_npz(folder / "predictions" / f"{split}.npz")["logits"] for split in ("val", "test")]
    return weights, history, logits, sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def same(a, b):
    """Whether two results of outcome() are equal, bit for bit."""
    (weights, history, logits, names), (other_weights, other_history, other_logits, other_names) = a, b
    return (weights.keys() == other_weights.keys() and history == other_history and names == other_names
            and all(torch.equal(weights[key], other_weights[key]) for key in weights)
            and all((x == y).all() for x, y in zip(logits, other_logits)))


if __name__ == "__main__":
    base, count = Path(sys.argv[1]), int(sys.argv[2])
    events = child(base / "unbroken" / "seed_0", None)
    expected = outcome(base / "unbroken" / "seed_0")
    again = base / "again" / "seed_0"
    child(again, None)
    results = {"events": events, "repeatable": same(outcome(again), expected), "points": {}}
    for point in sorted(random.Random(0).sample(range(1, events + 1), count)):
        folder = base / f"killed_{point}" / "seed_0"
        killed = child(folder, point) is None
        child(folder, None)
        results["points"][point] = killed and same(outcome(folder), expected)
    print(json.dumps(results))
