"""The stages of a study: the commands of each, what they read and what they write."""

from kd import runs, sweeps
from kd.study.plan import Task, run_name

STAGES = ("train", "evaluate", "compare", "export", "robustness", "benchmark", "report")
OPTIONAL = ("export", "robustness", "benchmark")  # done where the plan has a section; the others always
# Of the event files those of training, whose names end with a number; those of results repeat what tables have.
TABLES = ("*/*/*.csv", "*/*/*.json", "*/*/*.npz", "*/*/predictions/*.npz", "*/*/config.yaml", "*/*/exports/parity.json",
          "*/*/tb/*[0-9]", "*/seeds.json", f"*/{sweeps.FILE}", "*.csv", "robustness_*")


def tasks(plan, stage, finished):
    """Tasks of a stage of a Plan; none where the plan does not ask for it, or it would have no input.

    finished: the folders of trained runs in the study, of the plan and others; or those that there will be.
    """
    if stage == "train":
        return plan.training
    first = next((task.fold for task in plan.networks), None)  # of folds, the networks of the first one are measured
    planned = [task.run for task in plan.networks if task.run in finished and task.fold == first]
    if not finished or stage in OPTIONAL and (stage not in plan.arguments or not planned):
        return []
    if stage == "compare" and len({runs.without_fold(run.parent.name) for run in finished}) < 2:
        return []
    return BUILD[stage](plan, planned, finished)


def _evaluate(plan, planned, finished):
    tasks = [_on_study(plan, "evaluate", _predictions(finished), ["*/*/metrics.json", "*/seeds.json"])]
    if is_of_folds(plan) and plan.arguments.keys() & set(OPTIONAL):  # they read thresholds of a network
        arguments = [*(run.as_posix() for run in planned), *plan.arguments.get("evaluate", [])]
        tasks.append(Task("evaluate one fold", "evaluate", arguments, _predictions(planned),
                          [f"{runs.FOLDS}/*/*/metrics.json"]))
    return tasks


def is_of_folds(plan):
    """Whether the networks of a Plan are trained on the folds of a cross-validation."""
    return any(task.fold for task in plan.networks)


def _compare(plan, planned, finished):
    arguments = ["--compare", plan.folder.as_posix(), *plan.arguments.get("evaluate", [])]
    # sweep.json, since comparison.csv has the number of tries
    models = dict.fromkeys(plan.folder / runs.without_fold(run.parent.name) for run in finished)
    inputs = [*_predictions(finished), *(model / sweeps.FILE for model in models if (model / sweeps.FILE).exists())]
    return [Task("compare", "evaluate", arguments, inputs, ["comparison.csv"])]


def _export(plan, planned, finished):
    result = []
    for run in _first_seeds(planned):
        arguments = [run.as_posix(), *plan.arguments["export"]]
        # metrics.json: temperature and thresholds become metadata of the exported model
        inputs = [run / "best.pt", run / "metrics.json", *_predictions([run])]
        name = run_name(run)
        result.append(Task(f"export {name}", "export", arguments, inputs, [f"{name}/exports/*.*"]))
    return result


def _robustness(plan, planned, finished):
    inputs = [*_predictions(finished), *_networks(finished), *(run / "metrics.json" for run in finished)]
    if is_of_folds(plan):
        arguments = [*(run.as_posix() for run in planned), *plan.arguments["robustness"]]
        return [Task("robustness", "robustness", arguments, inputs,
                     [f"{runs.FOLDS}/*/*/robustness.csv", f"{runs.FOLDS}/robustness_*"])]
    return [_on_study(plan, "robustness", inputs, ["*/*/robustness.csv", "robustness_*"])]


def _benchmark(plan, planned, finished):
    firsts = _first_seeds(planned)
    arguments = [*(run.as_posix() for run in firsts), *plan.arguments["benchmark"]]
    outputs = [f"{run_name(run)}/benchmark.csv" for run in firsts]
    return [Task("benchmark", "benchmark", arguments, _networks(firsts), outputs)]


def _report(plan, planned, finished):
    found = {file for folder in (plan.folder, plan.folder / runs.FOLDS) for pattern in TABLES
             for file in folder.glob(pattern)}
    inputs = sorted(found | set(_predictions(finished)))
    return [_on_study(plan, "report", [*inputs, *plan.notes], ["report.*", "tables/*"])]


BUILD = {
    "evaluate": _evaluate, "compare": _compare, "export": _export, "robustness": _robustness,
    "benchmark": _benchmark, "report": _report,
}


def _on_study(plan, script, inputs, outputs):
    """A Task on the study's folder."""
    arguments = [plan.folder.as_posix(), *plan.arguments.get(script, [])]
    return Task(script, script, arguments, inputs, outputs)


def _first_seeds(folders):
    """The first seed of each model: size and latency do not depend on the seed, and one goes to the edge box."""
    first = {}
    for run in folders:
        first.setdefault(run.parent, run)
    return list(first.values())


def _predictions(folders):
    return [run / "predictions" / f"{split}.npz" for run in folders for split in ("val", "test")]


def _networks(folders):
    return [file for run in folders for file in (run / "best.pt", *sorted((run / "exports").glob("model.*")))]
