"""Train small networks from a large one.

    python distill.py --student mobilenetv2 --alpha 0.5           # embedded data, teacher trained first
    python distill.py --student resnet18 --data ham10000 --root PATH --beta 1000 --seeds 0 1 2
    python distill.py --student resnet18 --alpha 1                # without a teacher: the baseline

    loss = alpha * hard + (1 - alpha) * soft + beta * attention + sum(weight_i * term_i)
"""

from pathlib import Path

import evaluate
import registry
import report
import train_teacher
from kd import errors, objective, runs
from kd.errors import UserError
from kd.files import read_json, read_yaml
from kd.train import distributed, engine, setup, similarity, teacher_cache
from kd.train.options import NO_EFFECT, to_arguments, training_parser
from kd.train.step import dry_run


def parser():
    result = training_parser("distill.py", "Train small networks from a large one.")
    group = result.add_argument_group("distillation")
    group.add_argument("--student", nargs="+", metavar="NAME", help="architectures (see --list)")
    group.add_argument("--teacher", metavar="RUN|FILE", help="a teacher's run folder or best.pt; default: the "
                       "study's own, trained first if there is none")
    group.add_argument("--alpha", type=errors.share, default=0.5, metavar="X",
                       help="weight of the hard labels; 1 - alpha is that of the soft ones")
    group.add_argument("--temperature", type=errors.above_zero, default=4.0, metavar="T",
                       help="of KD (Hinton et al. 2015, 1503.02531)")
    group.add_argument("--beta", type=errors.not_negative(float), default=0.0, metavar="X",
                       help="weight of attention transfer (1612.03928); the paper's is 1000")
    group.add_argument("--stage-weights", type=errors.not_negative(float), nargs=4, default=[1.0, 1.0, 1.0, 1.0],
                       metavar="W", help="of the four stages in attention transfer")
    group.add_argument("--soft", default="kd", metavar="LOSS", help="loss on the teacher's logits: NAME,key=value")
    group.add_argument("--term", nargs="+", default=[], metavar="NAME=WEIGHT", help="further losses: NAME=WEIGHT,key=value")
    group.add_argument("--teacher-cache", type=errors.positive, metavar="K", help="show K views of each image in turn, "
                       "and the teacher each of them once: its answers are kept on disk for all students and seeds")
    return result


def main(argv=None):
    """Returns the run folders of the students."""
    options = setup.start(parser(), argv, registry)
    if options is None:
        return []
    train_only = options.pop("train_only")
    if not options["student"]:
        raise UserError("no student named", "Give one with --student mobilenetv2; --list shows all.")
    options["student"] = list(dict.fromkeys(setup.canonical(name, registry) for name in options["student"]))
    options["seeds"] = list(dict.fromkeys(options["seeds"]))
    if options["name"] and len(options["student"]) > 1:
        raise UserError("--name names one model, and there are several students", "Leave out --name.")
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    data = setup.load_data(options, registry)
    study = Path(options["out"]) / options["study"]
    for student in options["student"]:  # what is wrong with one is found before a teacher is trained
        network = setup.new_network(student, data, options, options["seeds"][0], registry)
        dry_run(network, terms, data, options)

    teacher, teacher_run, kept = None, None, None
    if any(need.startswith("teacher_") for need in objective.needed(terms)):
        teacher_run = Path(options["teacher"]) if options["teacher"] else own_teacher(study, options)
        file = setup.checkpoint_in(teacher_run)
        teacher = setup.load_teacher(file, data, registry)
        teacher_run = file.parent if file.name == "best.pt" else file
        print(f"teacher: {teacher_run}, a {teacher.arch}")
        if options["teacher_cache"]:
            kept = teacher_cache.Targets(study / "targets" / teacher.fingerprint, teacher, data, options["teacher_cache"],
                                   needs=objective.needed(terms), precision=options["precision"],
                                   kind=options["augment"], device=options["device"])
    elif options["teacher"]:
        print("note: no loss of this run reads a teacher, and none is used")
    options["teacher"] = teacher_run and teacher_run.as_posix()

    folders = []
    for student in options["student"]:
        for seed in options["seeds"]:
            network = setup.new_network(student, data, options, seed, registry)
            name = options["name"] or f"{runs.safe(network.arch)}_{objective.method(options)}"
            folder = study / name / f"seed_{seed}"
            engine.run(folder, network, terms, data,
                       {**options, "student": [network.arch], "stem": network.stem, "name": name, "seeds": [seed]},
                       seed=seed, teacher=teacher, targets=kept,
                       role="student", provenance={"method": objective.method(options), "seed": seed,
                                                   "teacher": options["teacher"]})
            if teacher and distributed.first() and not (folder / "attention.npz").exists():
                trained, _ = setup.load_network(folder / "best.pt", registry)  # a run that was finished trained nothing now
                similarity.write(folder, trained, teacher, data, options["device"])
            folders.append(folder)

    if train_only or not distributed.first():
        return folders
    shown = [teacher_run] if teacher_run and runs.is_run(teacher_run) else []
    print()
    evaluate.main([str(folder) for folder in shown + folders])
    try:
        report.main([str(study)])
    except UserError as error:
        print(f"no report: {error.message}. {error.hint}; then: python report.py {study.as_posix()}")
    print("next: " + next_command(study, folders))
    return folders


def own_teacher(study, options):
    """The study's teacher; where there is none yet, it is trained now."""
    begun = [run for run in sorted(study.glob("*/seed_*"), key=lambda run: (run.parent, len(run.name), run.name))
             if (run / "environment.json").is_file() and read_json(run / "environment.json").get("role") == "teacher"]
    unfinished = [run for run in begun if (run / "last.pt").exists()]
    found = [run for run in begun if runs.finished(run) and run not in unfinished]
    if len({run.parent for run in found}) > 1:
        names = sorted({run.parent.name for run in found})
        raise UserError(f"{study} has several teachers: {errors.listing(names)}",
                        f"Choose one: --teacher {found[0].as_posix()}")
    if found:
        if unfinished:
            print(f"note: training has not ended in {errors.listing(unfinished)}, which teaches nothing here")
        return found[0]
    teacher = setup.default_teacher({**options, "teacher": None}, registry)
    if unfinished:
        run = unfinished[0]
        if run.parent.name != f"teacher_{runs.safe(teacher)}":
            raise UserError(f"the training of the teacher {run} has not ended",
                            f"Finish it: python train_teacher.py --config {(run / 'config.yaml').as_posix()}; "
                            "or name another with --teacher, or delete that folder.")
        print(f"the training of the teacher {run} has not ended: going on with it first")
        place = {key: options[key] for key in (*NO_EFFECT, "study")}
        arguments = to_arguments(training_parser("train_teacher.py", ""), place)
        return train_teacher.main(["--config", str(run / "config.yaml"), *arguments])[0]
    print(f"no teacher in {study}: training a {teacher} first")
    own = ("name", "weights", "init", "hard", "stem", "seeds", "head_lr", "augment")  # these are said of the student
    shared = {key: value for key, value in options.items() if key not in own}
    arguments = to_arguments(training_parser("train_teacher.py", ""), shared)
    return train_teacher.main([*arguments, "--teacher", teacher])[0]


def next_command(study, folders):
    """The same student without a teacher, or with one, if the study lacks it; else how they differ."""
    arch = read_json(folders[0] / "environment.json")["arch"]
    options = read_yaml(folders[0] / "config.yaml")
    untaught = objective.method({**options, "alpha": 1.0, "beta": 0.0})
    alone, taught = (f"{runs.safe(arch)}_{method}" for method in (untaught, "kd"))
    again = f"python distill.py --config {(folders[0] / 'config.yaml').as_posix()}"
    if not options["term"] and objective.method(options) != untaught and not (study / alone).exists():
        return f"{again} --alpha 1 --beta 0 --name {alone}   # the same student without a teacher"
    if not options["term"] and objective.method(options) == untaught and not (study / taught).exists():
        return f"{again} --alpha 0.5 --name {taught}   # the same student with a teacher"
    return f"python evaluate.py --compare {study.as_posix()}   # paired differences"


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
    distributed.end()
