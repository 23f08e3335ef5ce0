"""What a study does, stage after stage: the commands of each, what they read and what they write."""

from kd.study.plan import Task, name

STAGES = ("train", "evaluate", "compare", "export", "robustness", "benchmark", "report")
ASKED = ("export", "robustness", "benchmark")  # for in the plan; the others are always done
TABLES = ("*/*/*.csv", "*/*/*.json", "*/*/*.npz", "*/*/predictions/*.npz", "*/*/config.yaml", "*/*/exports/parity.json",
          "*/*/tb/*", "*/seeds.json", "*.csv")


def tasks(plan, stage, finished):
    """Tasks of a stage of a Plan; none where the plan does not ask for it, or there is nothing to do it with.

    finished: the folders of trained runs in the study, the plan's and others; or those that there will be.
    """
    if stage == "train":
        return plan.training
    own = [task.run for task in plan.training if task.run in finished]
    if not finished or stage in ASKED and (stage not in plan.words or not own):
        return []
    if stage == "compare" and len({run.parent for run in finished}) < 2:
        return []
    return BUILD[stage](plan, own, finished)


def _evaluate(plan, own, finished):
    return [_whole(plan, "evaluate", _predictions(finished), ["*/*/metrics.json", "*/seeds.json"])]


def _compare(plan, own, finished):
    words = ["--compare", plan.folder.as_posix(), *plan.words.get("evaluate", [])]
    return [Task("compare", "evaluate", words, _predictions(finished), ["comparison.csv"])]


def _export(plan, own, finished):
    def one(run):  # metrics.json: temperature and thresholds go along
        return Task(f"export {name(run)}", "export", [run.as_posix(), *plan.words["export"]],
                    [run / "best.pt", run / "metrics.json", *_predictions([run])], [f"{name(run)}/exports/*.*"])
    return [one(run) for run in _firsts(own)]


def _robustness(plan, own, finished):
    inputs = [*_predictions(finished), *_networks(finished), *(run / "metrics.json" for run in finished)]
    return [_whole(plan, "robustness", inputs, ["*/*/robustness.csv", "robustness_*"])]


def _benchmark(plan, own, finished):
    firsts = _firsts(own)
    return [Task("benchmark", "benchmark", [*(run.as_posix() for run in firsts), *plan.words["benchmark"]],
                 _networks(firsts), [f"{name(run)}/benchmark.csv" for run in firsts])]


def _report(plan, own, finished):
    inputs = sorted({file for pattern in TABLES for file in plan.folder.glob(pattern)} | set(_predictions(finished)))
    return [_whole(plan, "report", [*inputs, *plan.notes], ["report.*", "tables/*"])]


BUILD = {"evaluate": _evaluate, "compare": _compare, "export": _export, "robustness": _robustness, "benchmark": _benchmark,
         "report": _report}


def _whole(plan, script, inputs, outputs):
    """A Task on the study's folder."""
    return Task(script, script, [plan.folder.as_posix(), *plan.words.get(script, [])], inputs, outputs)


def _firsts(folders):
    """The first seed of each model: size and latency do not depend on the seed, and one is sent to the box."""
    held = {}
    for run in folders:
        held.setdefault(run.parent, run)
    return list(held.values())


def _predictions(folders):
    return [run / "predictions" / f"{split}.npz" for run in folders for split in ("val", "test")]


def _networks(folders):
    return [file for run in folders for file in (run / "best.pt", *sorted((run / "exports").glob("model.*")))]
