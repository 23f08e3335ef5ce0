"""A whole study from one plan: teacher, students, evaluation, exports, robustness, benchmark, report.

    python study.py configs/quickstart.yaml
    python study.py configs/quickstart.yaml --dry-run      the commands, for a job array or any scheduler
    python study.py configs/quickstart.yaml --jobs 4       four at once on this machine

What is done already is left as it is. A study that was stopped, killed or changed goes on with the same command.
"""

import contextlib
import importlib
import os
import shlex
import subprocess
import sys
import time
import traceback
from pathlib import Path

import registry
from kd import errors, runs
from kd.errors import UserError
from kd.files import check_writable, lock
from kd.study import stages, workers
from kd.study.ledger import Ledger
from kd.study.plan import SECTIONS, read_plan
from kd.text import format_duration

HERE = Path(__file__).resolve().parent
SIDE_BY_SIDE = ("train", "export")  # stages of many tasks; the others have all threads for one


def parser():
    result = errors.Parser(prog="study.py", description="Carry out a plan: run what is missing, and leave what is done.")
    result.add_argument("plan", metavar="PLAN.yaml", help="see configs/")
    result.add_argument("--dry-run", action="store_true", help="print the missing commands, and run none")
    result.add_argument("--jobs", type=errors.positive, default=1, metavar="N",
                        help="trainings and exports at once; they share the processor's threads, and write to logs/")
    return result


def main(argv=None):
    """Returns the study's folder. UserError at the end where a step has failed."""
    options = parser().parse_args(argv)
    known = parsers()
    plan = read_plan(options.plan, known)
    check(plan, known)
    if options.dry_run:
        print("\n".join(commands(plan, Ledger(plan.folder))))
        return plan.folder
    check_writable(plan.folder)
    done, failed, times = 0, {}, {}
    with lock(plan.folder / ".study.lock", what=f"the study {plan.folder}"):
        ledger = Ledger(plan.folder)
        print("\n".join(shown(plan, ledger)), flush=True)
        for stage in stages.STAGES:
            start = time.monotonic()
            tasks = [task for task in stages.tasks(plan, stage, finished(plan)) if not ledger.done(task)]
            failed.update(carry_out(tasks, stage, plan, ledger, options.jobs))
            done += len(tasks)
            times.update({stage: time.monotonic() - start} if tasks else {})
    spent = ", ".join(f"{stage} {format_duration(seconds)}" for stage, seconds in times.items())
    print(f"\n{done - len(failed)} of {done} steps done in {format_duration(sum(times.values()))} ({spent})" if done else
          "\nnothing to do")
    for name, trouble in failed.items():
        print(f"  {name}: {trouble}")
    for report in sorted(plan.folder.glob("report.html")):
        print(f"report: {report}")
    if failed:
        raise UserError(f"{len(failed)} of {done} steps failed",
                        "The same command tries them again, and leaves what is done.")
    return plan.folder


def parsers():
    """{section: the argument parser of its script}: a plan speaks the language of the command lines.

    Scripts are imported where they are used, since the worker of one without torch does without.
    """
    return {name: importlib.import_module(name).parser() for name in SECTIONS}


def check(plan, known):
    """Names that are not registered, and notes that cannot be read, are found before anything is trained.

    known: what parsers() gives.
    """
    from kd import corruptions, objective  # torch
    from kd.report import notes
    for task in plan.training:
        options = vars(known[task.script].parse_args(task.arguments))
        for file in options["plugin"]:
            registry.load_plugin(file)
        registry.get("dataset", objective.parse_spec(options["data"])[0])
        registry.get("architecture", options["student"][0] if task.script == "distill" else options["teacher"])
        objective.plan({**options, "hard": options["hard"] or "ce"}, lambda name: registry.get("loss", name).make)
    for spec in known["robustness"].parse_args([str(plan.folder), *plan.words.get("robustness", [])]).corruption:
        name, given = objective.parse_spec(spec)
        corruptions.settings(registry.get("corruption", name), None, given)
    for file in plan.notes:
        notes.read(file)


def finished(plan):
    """The folders of all trained networks of the study, the plan's and others."""
    return runs.find(plan.folder) if runs.is_run(plan.folder) else []


def expected(plan):
    return sorted({*finished(plan), *(task.run for task in plan.training)})


def carry_out(tasks, stage, plan, ledger, jobs):
    """Run the tasks of one stage. Returns {name: what went wrong}."""
    failed, before, count = {}, {}, jobs if stage in SIDE_BY_SIDE else 1

    def number(task):
        return f"[{stage} {tasks.index(task) + 1}/{len(tasks)}]" if len(tasks) > 1 else f"[{stage}]"

    def begin(task):
        before[task.name] = ledger.read(task)
        task.log = plan.folder / "logs" / f"{log_name(task)}.log" if count > 1 else None
        print(f"\n{number(task)} {command(task)}" + (f"\n  output: {task.log}" if task.log else ""), flush=True)

    def end(task, trouble, seconds):
        if trouble:
            stale = stage != "train" and ledger.written(task)
            failed[task.name] = trouble + (" (what it wrote before is out of date)" if stale else "")
            print(f"\n{number(task)} {task.name} failed: {failed[task.name]}", flush=True)
        else:
            ledger.enter(task, before[task.name], seconds)
            if count > 1:
                print(f"\n{number(task)} {task.name} done in {format_duration(seconds)}", flush=True)

    workers.run(tasks, work, count=count, threads=max(1, cores() // count) if count > 1 else None, begin=begin, end=end)
    return failed


def log_name(task):
    """One for each task: the parts of its name are safe already, and all of them are needed to tell seeds apart."""
    return task.name.replace("/", "_").replace(" ", "_")


def work(task):
    """Run one Task, in a worker. Returns what went wrong, or ''."""
    if task.log:
        task.log.parent.mkdir(exist_ok=True)
        with open(task.log, "w", encoding="utf-8") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        importlib.import_module(task.script).main(task.arguments)
        return ""
    except (Exception, SystemExit) as error:
        told = errors.of_user(error, registry.RegistryError)
        if told is None:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        print(told, file=sys.stderr)
        return f"{told.message}" + (f" ({told.hint})" if told.hint else "")
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- what is shown


def command(task):
    """A Task as a line for this system's shell."""
    script = Path(f"{task.script}.py") if Path.cwd() == HERE else HERE / f"{task.script}.py"
    words = ["python", script.as_posix(), *task.arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def commands(plan, ledger):
    """Lines of --dry-run."""
    missing = [task for task in plan.training if not ledger.done(task)]
    lines = [f"# {plan.path}: {len(plan.training)} networks, of which {len(plan.training) - len(missing)} are done"]
    first = {task.needs for task in missing}
    for title, tasks in (("first", [task for task in missing if task.name in first]),
                         ("then, in any order or all at once", [task for task in missing if task.name not in first])):
        if tasks:
            lines += [f"# {title}:", *map(command, tasks)]
    rest = [task for stage in stages.STAGES[1:] for task in stages.tasks(plan, stage, expected(plan))
            if not ledger.done(task)]
    if rest:
        lines += [f"# then, one after the other (or all by study.py {shlex.quote(plan.path.as_posix())}):"]
        lines += map(command, rest)
    return lines


def shown(plan, ledger):
    """The plan as lines: a table of networks by seed, then the stages."""
    seeds = sorted({task.run.name for task in plan.training}, key=lambda seed: (len(seed), seed))
    models = list(dict.fromkeys(task.run.parent.name for task in plan.training))
    state = {task.run: training_state(task, ledger) for task in plan.training}
    rows = [["", *(seed.replace("_", " ") for seed in seeds)]]
    rows += [[model, *(state.get(plan.folder / model / seed, "") for seed in seeds)] for model in models]
    widths = [max(max(map(len, column)), 10) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for stage in stages.STAGES[1:]:
        tasks = stages.tasks(plan, stage, expected(plan))
        done = sum(map(ledger.done, tasks))
        told = f"{done} of {len(tasks)} done" if 0 < done < len(tasks) else "done" if done else "to do"
        lines.append(f"{stage.ljust(widths[0])}  {told if tasks else 'not in this plan'}")
    return [f"{plan.path}: {len(plan.training)} networks, into {plan.folder}", "", *(f"  {line}" for line in lines)]


def training_state(task, ledger):
    if ledger.done(task):
        return "done"
    return "begun" if (task.run / "last.pt").exists() else "to check" if runs.finished(task.run) else "to do"


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
