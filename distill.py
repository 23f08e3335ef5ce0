"""Train small networks from a large one.

    python distill.py --student mobilenetv2 --alpha 0.5           # embedded data, teacher trained first
    python distill.py --student resnet18 --data ham10000 --root PATH --beta 1000 --seeds 0 1 2
    python distill.py --student resnet18 --alpha 1                # without a teacher: the baseline

    loss = alpha * hard + (1 - alpha) * soft + beta * attention + sum(weight_i * term_i)
"""

import evaluate
import registry
import report
import train_teacher
from kd import errors, objective, runs
from kd.errors import UserError
from kd.run_folder import Run
from kd.text import command, quoted
from kd.train import counterpart, distributed, engine, setup, similarity, teacher_cache, teachers, unlabelled_data
from kd.train.options import NO_EFFECT, to_arguments, training_parser
from kd.train.step import dry_run, feature_extractor


def parser():
    """The Parser of this script. A comment says why a default has its value."""
    result = training_parser("distill.py", "Train small networks from a large one.",
                             ("--student", "--teacher", "--alpha"))
    group = result.add_argument_group("distillation")
    group.add_argument("--student", nargs="+", metavar="NAME", help="architectures (see --list)")
    group.add_argument("--teacher", nargs="+", metavar="RUN|FILE", help="a teacher's run folder or best.pt; several "
                       "are one: the mean of their probabilities; default: the teacher of the study, which is trained "
                       "first if there is none")
    group.add_argument("--teacher-arch", metavar="NAME", help="--teacher is a state dict from elsewhere, of this "
                       "architecture: NAME,size=PX,mean=[R, G, B],std=[R, G, B],classes=[A, B]")
    group.add_argument("--teacher-predictions", metavar="FILE", help="the teacher is a file with its answers to the "
                       "training images, a table or arrays; needs --augment none")
    group.add_argument("--teacher-tau", type=errors.not_negative, metavar="X", help="tau of the logit adjustment that "
                       "the teacher was trained with, 0 for none; only where its checkpoint does not say")
    group.add_argument("--alpha", type=errors.ramp(errors.share), metavar="X[:Y]",
                       default=0.5,  # labels and teacher weigh the same; configs/ablation.yaml tries others
                       help="weight of the loss on labels; that of the loss on the teacher's logits is 1 - alpha; "
                       "X:Y changes it linearly from the first to the last epoch")
    group.add_argument("--temperature", type=errors.ramp(errors.above_zero), metavar="T[:U]",
                       default=4.0,  # the usual value; docs/tutorial.md, step 2, shows what it does
                       help="of KD (Hinton et al. 2015, 1503.02531); T:U as for --alpha")
    group.add_argument("--beta", type=errors.not_negative, metavar="X",
                       default=0.0,  # off: alone it took 6 points from a MobileNetV2 on CIFAR-100 (1910.10699)
                       help="weight of attention transfer (1612.03928); the paper's is 1000")
    group.add_argument("--stage-weights", type=errors.not_negative, nargs=4, metavar="W",
                       default=[1.0, 1.0, 1.0, 1.0],  # all stages alike, as in the paper
                       help="of the four stages in attention transfer")
    group.add_argument("--soft", metavar="LOSS", default="kd",  # the method that all others are compared with
                       help="loss on the teacher's logits: NAME,key=value")
    group.add_argument("--term", nargs="+", default=[], metavar="NAME=WEIGHT",
                       help="further losses: NAME=WEIGHT,key=value")
    group.add_argument("--unlabelled", nargs="*", default=[], metavar="FOLDER|NAME|rest", help="training images "
                       "without labels, for losses that read none: a folder, a data set as NAME,root=PATH,key=value, "
                       "or rest, those that --labelled takes the labels from")
    group.add_argument("--unlabelled-ratio", type=errors.ratio, metavar="X",
                       default=1.0,  # FixMatch takes 7, but there the teacher is the student itself
                       help="of --unlabelled, images in a batch beside each labelled one")
    group.add_argument("--teacher-cache", type=errors.positive, metavar="K",  # default: a new view in each epoch
                       help="show K views of each image in turn; the teacher is run once on each of them, "
                       "and its outputs are kept on disk for all students and seeds; default: it is run in each step")
    return result


def main(argv=None):
    """Train each student with each seed, evaluate and report. Returns the run folders of the students, a list.

    argv: the command line without the script's name, else that of the process. Raises UserError.
    """
    script = parser()
    options = setup.start(script, argv, registry)
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
    if options["temperature"] != script.get_default("temperature") and objective.reads_teacher(terms) and not any(
            term.name == "kd" for term in terms):
        print("note: --temperature is of kd, which this run does not have; of another loss: --soft NAME,temperature=T")
    check_together(options)
    if options["unlabelled"] and all("labels" in term.needs for term in terms):
        print("note: no loss of this run reads images without labels, and none are used")
        options["unlabelled"] = []
    data = setup.load_data(options, registry)
    if options["unlabelled"]:
        unlabelled_data.add(options, data, registry)
        all_images = ", ".join(term.name for term in terms if "labels" not in term.needs)
        labelled = ", ".join(term.name for term in terms if "labels" in term.needs)
        print(f"all images are read by {all_images}" + (f", the labelled ones alone by {labelled}" if labelled else ""))
    study, _ = setup.place(options, "")
    for student in options["student"]:  # an error in one of them must not come after the teacher's training
        network = setup.new_network(student, data, options, options["seeds"][0], registry)
        dry_run(network, terms, data, options)

    needs = objective.needed(terms)
    teacher, teacher_runs, targets = None, [], None
    if not objective.reads_teacher(terms):
        if options["teacher"] or options["teacher_predictions"]:
            print("note: no loss of this run reads a teacher, and none is used")
    elif options["teacher_predictions"]:
        teacher = targets = teachers.Answers(options["teacher_predictions"], data, options)
    else:
        paths = options["teacher"] or [study_teacher(study, options)]
        teacher, files = teachers.load(paths, data, registry, arch=options["teacher_arch"], tau=options["teacher_tau"])
        teacher_runs = [file.parent if file.name == "best.pt" else file for file in files]
        for path, member in zip(teacher_runs, teacher.members):
            feature_extractor(member, needs, "teacher").close()  # an error where its stages are not known
            print(f"teacher: {path}, a {member.arch}")
        if options["teacher_cache"]:
            targets = teacher_cache.kept(study / "targets" / teacher.fingerprint, teacher, data, options, needs)
    names = [path.as_posix() for path in teacher_runs]
    options["teacher"] = names if len(names) > 1 else "".join(names) or None

    method, began = objective.method(options), setup.origin(options, data)
    folders = []
    for student in options["student"]:
        for seed in options["seeds"]:
            network = setup.new_network(student, data, options, seed, registry)
            _, name = setup.place(options, options["name"] or f"{runs.safe(network.arch)}_{method}")
            folder = study / name / f"seed_{seed}"
            run_options = {**options, "student": [network.arch], "stem": network.stem, "name": name, "seeds": [seed]}
            engine.run(folder, network, terms, data, run_options, seed=seed, teacher=teacher, targets=targets,
                       role="student",
                       provenance={"method": method, "seed": seed, "teacher": options["teacher"], **began})
            if teacher and teacher.stages and distributed.first() and not (folder / "attention.npz").exists():
                # From best.pt: where the run was finished already, `network` is untrained.
                trained, _ = setup.load_network(folder / "best.pt", registry)
                similarity.write(folder, trained, teacher, data, options["device"])
            folders.append(folder)

    if train_only or not distributed.first():
        return folders
    evaluated = [*filter(runs.is_run, teacher_runs), *folders]
    print()
    evaluate.main([str(folder) for folder in evaluated])
    if options["fold"]:
        print("next: " + setup.next_fold("distill.py", options, folders[0]))
        return folders
    try:
        report.main([str(study)])
    except UserError as error:
        print(f"no report: {error.message}. {error.hint}; then: {command('report.py', study)}")
    print("next: " + counterpart.next_command(script, study, folders))
    return folders


def check_together(options):
    """UserError for options of the teacher that do not fit together."""
    if options["teacher_predictions"] and (options["teacher"] or options["teacher_cache"]):
        other = "--teacher" if options["teacher"] else "--teacher-cache"
        raise UserError(f"--teacher-predictions is the whole teacher, and {other} has no meaning beside it",
                        f"Leave out one of them: {other} is for networks.")
    if options["teacher_arch"] and not options["teacher"]:
        raise UserError("--teacher-arch is the architecture of the file that --teacher names", "Give --teacher FILE.")


def study_teacher(study, options):
    """The run folder of the study's teacher; one that is missing or unfinished is trained first.

    Raises UserError where the study has several teachers, or an unfinished one that this command would not train.
    """
    of_fold = setup.place(options, "*")[1] if options["fold"] else "*"
    candidates = sorted(study.glob(f"{of_fold}/seed_*"), key=lambda run: (run.parent, len(run.name), run.name))
    begun = [run for run in candidates if Run(run).environment.get("role") == "teacher"
             and not runs.is_joined(run) and Run(run).options.get("labelled") == options["labelled"]]
    unfinished = [run for run in begun if (run / "last.pt").exists()]
    finished = [run for run in begun if runs.finished(run) and run not in unfinished]
    names = sorted({run.parent.name for run in finished})
    if len(names) > 1:
        raise UserError(f"{study} has several teachers: {errors.listing(names)}",
                        f"Choose one: {quoted('--teacher', finished[0])}")
    if finished:
        if unfinished:
            print(f"note: training has not ended in {errors.listing(unfinished)}, which is not used as a teacher")
        return finished[0]
    arch = setup.default_teacher({**options, "teacher": None}, registry)
    teacher_parser = training_parser("train_teacher.py", "")
    if unfinished:
        run = unfinished[0]
        config = run / "config.yaml"
        usual = f"teacher_{runs.safe(arch)}{objective.variant({'labelled': options['labelled']})}"
        if run.parent.name != setup.place(options, usual)[1]:
            raise UserError(f"the training of the teacher {run} has not ended",
                            "Name another with --teacher, delete that folder, or finish it: "
                            + command("train_teacher.py", "--config", config))
        print(f"the training of the teacher {run} has not ended: going on with it first")
        places = {key: options[key] for key in (*NO_EFFECT, "study")}  # the folder may have moved since
        return train_teacher.main(["--config", str(config), *to_arguments(teacher_parser, places)])[0]
    print(f"no teacher in {study}: training a {arch} first")
    of_student = ("name", "weights", "init", "hard", "stem", "seeds", "head_lr", "augment", "teacher", "stages")
    usual = setup.recipe(options, "distill.py", registry)  # the teacher has a recipe of its own
    shared = {key: value for key, value in options.items() if key not in of_student and value != usual.get(key)}
    _, seed = setup.labelled_of(options) or (1, 0)  # other labels, another run: its seed is theirs
    return train_teacher.main([*to_arguments(teacher_parser, shared), "--teacher", arch, "--seeds", str(seed)])[0]


if __name__ == "__main__":
    distributed.run(main, registry.RegistryError)
