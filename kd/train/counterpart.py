"""The counterpart of a distilled student: the same student, trained alike but without a teacher; and the other way
round. Only beside it can be seen what the teacher adds.
"""

from pathlib import Path

from kd import objective, runs
from kd.errors import UserError
from kd.run_folder import Run
from kd.text import command
from kd.train import checkpoint, engine
from kd.train.options import ADDED, to_arguments

# Options that say how a student learns from its teacher, which the same student without one does not have, and another
# method does not share.
OF_METHOD = ("alpha", "beta", "soft", "term", "temperature", "stage_weights", "teacher", "teacher_arch", "teacher_tau",
             "teacher_predictions", "teacher_cache", "unlabelled", "unlabelled_ratio")


def next_command(parser, study, folders):
    """The command that trains the first student without a teacher, or with one, where the study lacks it;
    else the command that compares the models.

    A run that began with --init has a counterpart that began alike: with the same file where that was trained without
    a teacher, else with the one that was trained as the counterpart is, which is to be trained first where it lacks.
    parser: of distill.py, with the defaults of the data set.
    """
    run = Run(folders[0])
    options, seeds = run.options, [Run(folder).options["seeds"][0] for folder in folders
                                   if folder.parent == run.folder.parent]
    compare = f"{command('evaluate.py', '--compare', study)}   # paired differences"
    is_baseline = not has_teacher(options)
    method = objective.method({**options, "alpha": 0.5 if is_baseline else 1.0, "beta": 0.0, "term": [], "soft": "kd",
                               "unlabelled": parser.get_default("unlabelled") if is_baseline else []})
    name = f"{runs.safe(run.environment['arch'])}_{method}"
    start, with_or_without = options["init"], "with" if is_baseline else "without"
    if not start:
        if (study / name).exists() or has_counterpart(study, options, None):
            return compare
        return f"{same_student(parser, run, seeds, name)}   # the same student {with_or_without} a teacher"
    if is_baseline and is_distilled(start):
        return compare
    counterpart = Path(start).parent.parent.parent / name / Path(start).parent.name / "best.pt"
    if is_distilled(start) or is_baseline and counterpart.is_file():
        origin = Run(Path(start).parent)
        if not counterpart.is_file() and (origin.folder / "config.yaml").is_file() and not origin.options["init"]:
            return (f"{same_student(parser, origin, seeds, name)}   # the student that --init names, without a "
                    "teacher; then the last command again")
        if not counterpart.is_file() or is_distilled(counterpart) != is_baseline:
            return compare
        start = counterpart
    if has_counterpart(study, options, start):
        return compare
    return (f"{same_student(parser, run, seeds, name + '_' + str(options['epochs']), start)}   # the same student "
            f"{with_or_without} a teacher, from {'the same' if start == options['init'] else 'its own'} start")


def same_student(parser, run, seeds, name, init=None):
    """The command that trains the student of a Run with a teacher, or without one if it has one: all other options are
    those of the run, but --init is this one.

    Short where its config.yaml has nothing that would have to be undone, for which there is no option.
    """
    options = run.options
    losses = ["--alpha", 0.5] if not has_teacher(options) else ["--alpha", 1, "--beta", 0]
    kept = {key for key in OF_METHOD if options.get(key) != parser.get_default(key)}
    words = ["--config", run.folder / "config.yaml"]
    if options["init"] or kept - {"alpha", "beta", "teacher", "temperature", "unlabelled_ratio"}:
        device, precision = engine.device_and_precision({**options, "device": "auto", "precision": "auto"})
        usual = {"device": str(device), "precision": precision, "init": options["init"], "name": options["name"],
                 "seeds": options["seeds"]}
        words = to_arguments(parser, {
            key: value for key, value in options.items() if key not in OF_METHOD
            and value not in (parser.get_default(key), usual.get(key))})
    words += [*losses, *(["--init", init] if init else []), "--name", name]
    return command("distill.py", *words, *(["--seeds", *seeds] if len(seeds) > 1 or "--config" not in words else []))


def has_counterpart(study, options, init):
    """Whether a study has the same student, begun with this --init, with a teacher if these options have none, or
    without one if they have."""
    for folder in study.glob("*/seed_*"):
        try:
            others = {**ADDED, **Run(folder).options}
            alike = all(others[key] == options[key] for key in ("student", "augment", "labelled")) and (
                has_teacher(others) != has_teacher(options)) and others["init"] == (init and str(init))
        except (UserError, LookupError, TypeError, AttributeError):  # a teacher's, or one that cannot be read
            continue
        if alike:
            return True
    return False


def has_teacher(options):
    """Whether the losses of a run's options have one that reads a teacher."""
    return not objective.method(options).startswith("alone")


def is_distilled(file):
    """Whether a checkpoint was trained with a teacher, or began with one that was; true where that is not known."""
    try:
        provenance = checkpoint.read(file)["provenance"]
    except UserError:
        return True
    begun = provenance.get("init") or {}
    return (not str(provenance.get("method", "alone")).startswith(("alone", "teacher"))
            or bool(begun) and (not isinstance(begun, dict) or is_distilled(begun.get("file", ""))))
