"""What a teacher adds on the embedded images: the table of docs/gain.md.

    python benchmarks/gain.py FOLDER                                    twenty seeds; about 15 minutes of two cores
    python benchmarks/gain.py FOLDER --student mobilenetv2 --seeds 5

With each seed, the README's first command trains a teacher and a student that learns from it; the same student is
trained alone. The three networks are judged on fresh images, which the data set draws from a seed of its own: none of
them was trained or selected on these, and the recipe was not chosen by them. The interval of a mean is over seeds and
lesions together, and that of the difference is paired. Finished runs in FOLDER are used as they are, so that a
benchmark that was stopped goes on.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FRESH = {"images": 2000, "seed": 20261127}


def main():
    options = parser().parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two trainings of one thread are done before two of two, one after the other
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(partial(train, options.folder, options.student, options.alpha), range(options.seeds)))
    models = judge(runs)
    print(table(models))


def parser():
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    result.add_argument("folder", help="for the runs")
    result.add_argument("--student", default="tiny", metavar="NAME")
    result.add_argument("--alpha", default="0.5", metavar="X")
    result.add_argument("--seeds", type=int, default=20, metavar="N")
    result.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at once")
    return result


def train(folder, student, alpha, seed):
    """The run folders of a teacher, of a student alone and of a student with that teacher."""
    import distill
    import train_teacher
    start = time.monotonic()
    common = ["--out", folder, "--study", "gain", "--seeds", str(seed), "--train-only"]
    with contextlib.redirect_stdout(io.StringIO()):
        teacher, = train_teacher.main(common)
        alone, = distill.main(["--student", student, "--alpha", "1", *common])
        distilled, = distill.main(["--student", student, "--alpha", alpha, "--teacher", str(teacher), *common])
    print(f"seed {seed}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return teacher, alone, distilled


def judge(runs):
    """[Model of the teachers, of the students alone, of the students with a teacher], measured on fresh images."""
    import registry
    from kd.data import loader
    from kd.evaluation import compare, protocol
    from kd.metrics import softmax
    from kd.predictions import Predictions
    from kd.train import loop, networks, setup
    device = networks.device("auto")
    models, data = [], None
    for name, folders in zip(("teacher", "alone", "with KD"), zip(*runs)):
        seeds = {}
        for seed, folder in enumerate(folders):
            network, content = setup.load_network(folder / "best.pt", registry)
            if data is None:
                fresh = registry.get("dataset", "lesions").make(size=content["input"]["size"], **FRESH)
                data = loader.external(fresh, input=content["input"], class_names=content["class_names"])
            network.model.to(device)
            logits = loop.predict(network, data, "test", device).astype(np.float64)
            seeds[str(seed)] = None, Predictions(data.labels, logits, softmax(logits), data.ids, data.groups,
                                                 content["class_names"])
        models.append(compare.Model(name, None, "", "", seeds))
    draws = protocol.resampling(models[0].seeds["0"][1], protocol.Settings())
    for model in models:
        compare.measure(model, models[0].seeds["0"][1], draws, protocol.Settings(), answers_only=True)
    return models


def table(models):
    """Markdown: macro-F1 of each seed, their means with intervals, and in how many seeds the student gains."""
    from kd import bootstrap
    from kd.evaluation import compare
    values = [[of_seed["macro_f1"] for of_seed in model.values.values()] for model in models]
    gains = [distilled.value - alone.value for _, alone, distilled in zip(*values)]
    means = {model.name: compare.over_seeds(estimates) for model, estimates in zip(models, values)}
    means["gain"] = compare.difference("macro_f1", models[1].values, models[2].values)
    cells = [f"{row['value']:{form}} [{row['lo']:{form}}, {row['hi']:{form}}]"
             for row, form in zip(bootstrap.intervals(means).values(), [".3f"] * 3 + ["+.3f"])]
    lines = ["| seed | teacher | alone | with KD | what KD adds |", "| --- | --- | --- | --- | --- |"]
    for seed, (row, gain) in enumerate(zip(zip(*values), gains)):
        lines.append(f"| {seed} | " + " | ".join(f"{estimate.value:.3f}" for estimate in row) + f" | {gain:+.3f} |")
    lines.append("| mean | " + " | ".join(cells) + " |")
    lines.append(f"\nThe student with a teacher is above itself alone in {sum(gain > 0 for gain in gains)} of "
                 f"{len(gains)} seeds.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
