"""A whole study from one plan: teacher, students, evaluation, exports, robustness, benchmark, report.

    python study.py configs/quickstart.yaml
    python study.py configs/quickstart.yaml --dry-run      the commands, for a job array or any scheduler
    python study.py configs/quickstart.yaml --jobs 4       four at once on this machine
    python study.py configs/quickstart.yaml --jobs 4 --executor ray      on a Ray cluster
    python study.py PLAN.yaml --jobs 40 --executor slurm --slurm partition=gpu gpus_per_node=1 timeout_min=120
    python study.py PLAN.yaml --choose tiny_kd             the choice among the tries of a sweep, as a step of its own

What is done already is left as it is. A study that was stopped, killed or changed goes on with the same command.
"""

import argparse
import contextlib
import importlib
import os
import time
from pathlib import Path

import registry
from kd import errors, plugins, runs, sweeps, text
from kd.errors import UserError
from kd.files import check_writable, lock
from kd.study import executors, schedule, stages, sweep
from kd.study.ledger import Ledger
from kd.study.plan import SECTIONS, read_plan
from kd.study.step import Step

HERE = Path(__file__).resolve().parent
PARALLEL = ("train", "export")  # stages of many tasks; each of the others is one task with all threads


def parser():
    """The command line."""
    result = errors.Parser(
        prog="study.py", description="Carry out a plan: run what is missing, and leave what is done."
    )
    result.add_argument("plan", metavar="PLAN.yaml", help="see configs/")
    other = result.add_mutually_exclusive_group()
    other.add_argument("--dry-run", action="store_true", help="print the missing commands, and run none")
    other.add_argument("--choose", metavar="MODEL", help="of a plan with a sweep: choose among the finished tries of "
                       "this model, on validation; the command that --dry-run prints between tries and trainings")
    # 1: a training uses all threads of the processor, and a GPU's memory may not hold two
    result.add_argument("--jobs", type=errors.threads, default=1, metavar="N",
                        help="trainings and exports at once; they share the processor's threads, have a GPU "
                             "each where there are any, and write to logs/")
    # 1: two trainings on a GPU take turns, and its memory may not hold both
    result.add_argument("--per-device", type=errors.threads, default=1, metavar="K", help="trainings at once on a GPU")
    result.add_argument("--executor", choices=("local", "slurm", "ray"), default="local",  # it needs nothing installed
                        help="what runs the steps: processes of this machine, jobs of Slurm (extra slurm), or a Ray "
                             "cluster (extra ray), the one at RAY_ADDRESS or one of this machine")
    result.add_argument("--slurm", type=assignment, nargs="+", default=[], metavar="KEY=VALUE",
                        help="options of each job, as submitit has them: partition, timeout_min (60 if not given), "
                             "mem_gb, cpus_per_task, gpus_per_node, account, qos, ...")
    return result


def assignment(text):
    """An argparse type: (key, value) of KEY=VALUE; a value that looks like a number is one."""
    key, _, value = text.partition("=")
    if not key.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not KEY=VALUE")
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return key, number(value)
    return key, value


def main(argv=None):
    """Returns the study's folder. UserError at the end where a step has failed."""
    options = parser().parse_args(argv)
    parsers = script_parsers()
    plan = read_plan(options.plan, parsers)
    if options.choose:
        print(choose(plan, options.choose))
        return plan.folder
    check(plan, parsers)
    if options.dry_run:
        print("\n".join(missing_commands(plan, Ledger(plan.folder))))
        return plan.folder
    check_writable(plan.folder)
    executor = make_executor(options, plan)
    count, failed, seconds = 0, {}, {}  # tasks that were run, their errors by name, the time of each stage
    with lock(plan.folder / ".study.lock", what=f"the study {plan.folder}"):
        ledger = Ledger(plan.folder)
        print("\n".join(overview(plan, ledger)), flush=True)
        for stage in stages.STAGES:
            start = time.monotonic()
            tasks = missing(stages.tasks(plan, stage, finished(plan)), ledger)
            failed.update(carry_out(tasks, stage, plan, ledger, executor, options, parsers))
            if tasks:
                count += len(tasks)
                seconds[stage] = time.monotonic() - start
    if count:
        by_stage = ", ".join(f"{stage} {text.format_duration(spent)}" for stage, spent in seconds.items())
        total = text.format_duration(sum(seconds.values()))
        print(f"\n{count - len(failed)} of {count} steps done in {total} ({by_stage})")
    else:
        print("\nnothing to do")
    for name, error in failed.items():
        print(f"  {name}: {error}")
    for report in sorted(plan.folder.glob("report.html")):
        print(f"report: {report}")
    if failed:
        raise UserError(f"{len(failed)} of {count} steps failed",
                        "The same command tries them again, and leaves what is done.")
    return plan.folder


def make_executor(options, plan):
    """What carries out the steps (kd/study/executors.py). UserError for options of another one."""
    if options.slurm and options.executor != "slurm":
        raise UserError(f"--slurm has no meaning with --executor {options.executor}",
                        "Leave it out, or give --executor slurm.")
    if options.executor == "slurm":
        if options.per_device > 1:
            raise UserError("--per-device has no meaning with --executor slurm", "Leave it out: Slurm gives each job "
                            "its devices, for instance with --slurm gpus_per_node=1")
        return executors.Slurm(plan.folder / "logs", dict(options.slurm))
    return executors.Ray(options.per_device) if options.executor == "ray" else executors.Local()


def script_parsers():
    """{section: the argument parser of its script}: a plan has the options of the command lines.

    Scripts are imported where they are used: the worker of a script without torch does not import torch.
    """
    return {name: importlib.import_module(name).parser() for name in SECTIONS}


def check(plan, parsers):
    """Raises before anything is trained where a name is not registered, or a file of notes cannot be read.

    parsers: what script_parsers() gives.
    """
    from kd import corruptions, objective  # torch
    from kd.report import notes
    for task in plan.training:
        if task.of_sweep and not task.run or task.model in plan.sweeps:
            continue  # a choice; networks whose options it gives, and whose tries are checked
        options = vars(parsers[task.script].parse_args(task.arguments))
        plugins.load(options["plugin"], registry)
        registry.get("dataset", objective.parse_spec(options["data"])[0])
        registry.get("architecture", options["student"][0] if task.script == "distill" else options["teacher"])
        objective.plan({**options, "hard": options["hard"] or "ce"}, lambda name: registry.get("loss", name).make)
    arguments = [str(plan.folder), *plan.arguments.get("robustness", [])]
    for spec in parsers["robustness"].parse_args(arguments).corruption:
        name, parameters = objective.parse_spec(spec)
        corruptions.settings(registry.get("corruption", name), None, parameters)
    for file in plan.notes:
        notes.read(file)


def finished(plan):
    """The folders of all trained networks of the study, of the plan and others."""
    found = runs.find(plan.folder) if runs.is_run(plan.folder) else []
    found = [run for run in found if not runs.is_joined(run)]
    return found + [task.run for task in plan.networks if task.fold and runs.finished(task.run)]


def expected(plan):
    """The folders of all networks that there will be when the plan is carried out."""
    return sorted({*finished(plan), *(task.run for task in plan.networks)})


def choose(plan, model):
    """Choose among the tries of a model, and write it down. Returns the choice in words."""
    if model not in plan.sweeps:
        found = f"It has sweeps of {errors.listing(plan.sweeps)}." if plan.sweeps else "It has no sweeps."
        raise UserError(f"{plan.path} has no sweep of {model!r}", found)
    content = sweep.choose(plan.sweeps[model], plan.path)
    best = sweeps.best(content["metric"], content["tries"])
    return (f"{model}: {sweeps.in_words(content['chosen'])}, the best of {sweeps.count(content)} tries on validation "
            f"({content['metric']} {best['value']:.4f}, seed {content['seed']})")


def missing(tasks, ledger):
    """The Tasks that are not done; and those that a choice precedes which is not: it may change their options."""
    found, choices = [], set()
    for task in tasks:
        if not ledger.is_done(task) or not choices.isdisjoint(task.needs):
            found.append(task)
            if task.of_sweep and not task.run:
                choices.add(task.name)
    return found


def carry_out(tasks, stage, plan, ledger, executor, options, parsers):
    """Run the tasks of one stage. Returns {name: error as text} of those that failed."""
    if not tasks:
        return {}
    failed, inputs, count = {}, {}, options.jobs if stage in PARALLEL else 1
    for task in tasks:
        task.gpu = takes_gpu(task, parsers)
    on_gpu = sum(task.gpu for task in tasks)
    devices = executor.devices(options.per_device) if on_gpu else None
    if devices and min(count, on_gpu) > len(devices):
        print(f"\nnote: {len(devices)} at once, not {min(count, on_gpu)}: --per-device is {options.per_device}, and"
              f" the devices are {errors.listing(dict.fromkeys(devices))}", flush=True)
    threads = executor.threads(count)

    def position(task):
        return f"[{stage} {tasks.index(task) + 1}/{len(tasks)}]" if len(tasks) > 1 else f"[{stage}]"

    def begin(task, device):
        inputs[task.name] = ledger.inputs(task)
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}  # read when NumPy and torch are imported
        environment |= {"CUDA_VISIBLE_DEVICES": device} if device is not None else {}
        log = None if executor.terminal and count == 1 else plan.folder / "logs" / f"{log_name(task)}.log"
        if log:
            log.parent.mkdir(exist_ok=True)
            log.unlink(missing_ok=True)
        print(f"\n{position(task)} {command(task)}" + (f"\n  output: {log}" if log else "")
              + (f"\n  device: {device}" if device is not None else ""), flush=True)
        return Step([str(HERE / f"{task.script}.py"), *task.arguments], os.getcwd(), environment, log and str(log),
                    task.gpu)

    def again(task, error, number):
        print(f"\n{position(task)} {task.name}: {error}; it starts again ({number} of {schedule.RESTARTS})", flush=True)

    def end(task, error, seconds):
        if error:
            stale = stage != "train" and ledger.outputs(task)
            failed[task.name] = error + (" (what it wrote before is out of date)" if stale else "")
            print(f"\n{position(task)} {task.name} failed: {failed[task.name]}", flush=True)
        else:
            ledger.record(task, inputs[task.name], seconds)
            if count > 1 or not executor.terminal:
                print(f"\n{position(task)} {task.name} done in {text.format_duration(seconds)}", flush=True)

    schedule.run(tasks, executor, count=count, devices=devices, begin=begin, again=again, end=end,
                 progress=last_epoch)
    return failed


def takes_gpu(task, parsers):
    """Whether a Task computes on a GPU where there is one: its script has --device, and it is not cpu."""
    parser = parsers.get(task.script)
    return bool(parser) and vars(parser.parse_args(task.arguments)).get("device") in ("auto", "cuda")


def last_epoch(task):
    """A value that is another one after each epoch of a training; None for other Tasks and before the first."""
    file = task.run and task.run / "last.pt"
    return file.stat().st_mtime_ns if file and file.exists() else None


def log_name(task):
    """A name for the log of each task: all parts of the task's name, since models and seeds differ in them."""
    return task.name.replace("/", "_").replace(" ", "_")


# ---- text for the terminal


def command(task):
    """A Task as a line for this system's shell."""
    script = Path("" if errors.INSTALLED or Path.cwd() == HERE else HERE, f"{task.script}.py")
    return text.command(script.as_posix(), *task.arguments)


def missing_commands(plan, ledger):
    """Lines of --dry-run: the commands that are not done, with comments on their order."""
    done = sum(map(ledger.is_done, plan.networks))
    lines = [f"# {plan.path}: {in_numbers(plan)}, of which {done} are done"]
    groups = in_order(missing(plan.training, ledger))
    for k, tasks in enumerate(groups):
        title = "first" if k == 0 and len(groups) > 1 else "then"
        title += ", in any order or all at once" if len(tasks) > 1 or k == len(groups) - 1 else ""
        lines += [f"# {title}:", *map(command, tasks)]
    after = [task for stage in stages.STAGES[1:] for task in stages.tasks(plan, stage, expected(plan))
             if not ledger.is_done(task)]
    if after:
        lines += [f"# then, one after the other (or all by {text.command('study.py', plan.path)}):"]
        lines += map(command, after)
    return lines


def in_numbers(plan):
    """`3 networks`; `3 networks after 6 tries of sweeps`."""
    tries = sum(len(of_model.tries) for of_model in plan.sweeps.values())
    return f"{len(plan.networks)} networks" + (f" after {tries} tries of sweeps" if tries else "")


def in_order(tasks):
    """Lists of Tasks, each of which needs only those of the lists before it, and comes as late as that allows.

    tasks: each after those that it needs.
    """
    following = {}  # name -> number of lists that come after it
    for task in reversed(tasks):
        following.setdefault(task.name, 0)
        for name in task.needs:
            following[name] = max(following.get(name, 0), following[task.name] + 1)
    groups = {}
    for task in tasks:
        groups.setdefault(following[task.name], []).append(task)
    return [groups[k] for k in sorted(groups, reverse=True)]


def overview(plan, ledger):
    """Lines that show the plan: a table of networks by seed, and of the tries before them; then the stages."""
    seeds = sorted({task.run.name for task in plan.networks}, key=lambda seed: (len(seed), seed))
    models = list(dict.fromkeys(task.model for task in plan.networks))
    states = {}
    for task in plan.networks:
        states.setdefault((task.model, task.run.name), []).append(training_state(task, ledger))
    rows = [["", *(seed.replace("_", " ") for seed in seeds)]]
    rows += [[model, *(in_short(states.get((model, seed), [""])) for seed in seeds)] for model in models]
    if plan.sweeps:
        column = ["sweep", *(sweep_state(plan.sweeps.get(model), ledger) for model in models)]
        rows = [[row[0], cell, *row[1:]] for row, cell in zip(rows, column)]
    widths = [max(max(map(len, column)), 10) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for stage in stages.STAGES[1:]:
        lines.append(f"{stage.ljust(widths[0])}  {stage_state(stages.tasks(plan, stage, expected(plan)), ledger)}")
    return [f"{plan.path}: {in_numbers(plan)}, into {plan.folder}", "", *(f"  {line}" for line in lines)]


def in_short(states):
    """The state of one training; of several folds, how many are done."""
    return states[0] if len(set(states)) == 1 else f"{states.count('done')} of {len(states)} done"


def stage_state(tasks, ledger):
    """How far the tasks of a stage are, in a few words."""
    if not tasks:
        return "not in this plan"
    done = sum(map(ledger.is_done, tasks))
    if 0 < done < len(tasks):
        return f"{done} of {len(tasks)} done"
    return "done" if done else "to do"


def sweep_state(of_model, ledger):
    """How many of the tries of a Sweep are done; nothing for a model without one."""
    if not of_model:
        return ""
    done = sum(ledger.is_done(task) for _, task in of_model.tries)
    return f"{done} of {len(of_model.tries)} tries"


def training_state(task, ledger):
    """How far the training of a Task is: done, begun, to check (trained, but not by this study) or to do."""
    if ledger.is_done(task):
        return "done"
    return "begun" if (task.run / "last.pt").exists() else "to check" if runs.finished(task.run) else "to do"


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
