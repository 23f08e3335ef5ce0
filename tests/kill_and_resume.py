"""Run by test_resume.py: train to the end, and again with a kill at each of many random points.

A process that has imported everything forks a child a run, so that forty starts take seconds.
Points to be killed at are the begin of every step, and the moments before and after every
write is made durable and renamed into place.
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
import torch._dynamo  # noqa: E402,F401  (an optimizer imports it at its first step)

import distill  # noqa: E402,F401  (imports all that a run needs, before the forks)
import small  # noqa: E402
from kd.files import read_csv, read_npz  # noqa: E402
from kd.train import engine
from kd.train.weights import safe_load

with contextlib.suppress(ImportError):
    import tensorboard.compat.proto.event_pb2  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401


def train(folder):
    """Two networks with dropout, a KD and an AT term, batches made in a thread, four epochs."""
    torch.set_num_threads(1)
    data = small.data(folder=folder.parent / "cache")
    options = small.options("--epochs", "4", "--beta", "100", "--workers", "1")
    teacher = small.network(options, data, seed=7)
    student = small.network(options, data, seed=0)
    student.model.flatten = torch.nn.Sequential(student.model.flatten, torch.nn.Dropout(0.3))
    engine.run(folder, student, small.terms(options), data, options, seed=0, teacher=teacher, role="student",
               provenance={})


def child(folder, kill_at):
    """Train in a fork that kills itself at its `kill_at`-th event. Returns how many events there were."""
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

        def around(function):
            def wrapped(*arguments, **options):
                event()
                result = function(*arguments, **options)
                event()
                return result
            return wrapped

        os.replace, os.fsync = around(os.replace), around(os.fsync)
        torch.optim.AdamW.step = around(torch.optim.AdamW.step)
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
    """All that must not depend on having been killed."""
    weights = safe_load(folder / "best.pt")["state_dict"]
    history = [{key: value for key, value in row.items() if key != "seconds"}
               for row in read_csv(folder / "history.csv")]
    logits = [read_npz(folder / "predictions" / f"{split}.npz")["logits"] for split in ("val", "test")]
    return weights, history, logits, sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def same(a, b):
    return (a[0].keys() == b[0].keys() and all(torch.equal(a[0][key], b[0][key]) for key in a[0])
            and a[1] == b[1] and all((x == y).all() for x, y in zip(a[2], b[2])) and a[3] == b[3])


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
