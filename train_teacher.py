"""Train a large network on hard labels: the teacher of distill.py.

    python train_teacher.py                                  # an efficientnetlite0 on the embedded data
    python train_teacher.py --teacher resnet50 --data ham10000 --root PATH --size 64
"""

import evaluate
import registry
from kd import objective, runs
from kd.text import command
from kd.train import distributed, engine, setup
from kd.train.options import training_parser
from kd.train.step import dry_run


def parser():
    """The Parser of this script."""
    result = training_parser("train_teacher.py", "Train a large network on hard labels.")
    # resnet50: the usual teacher. A data set may name another: on the few lesions a pretrained one learns in a minute.
    result.add_argument("--teacher", metavar="NAME", help="architecture; default: resnet50, on lesions "
                        "efficientnetlite0 with ImageNet weights")
    return result


def main(argv=None):
    """Train the teacher with each seed and evaluate it. Returns the run folders, a list.

    argv: the command line without the script's name, else that of the process. Raises UserError.
    """
    options = setup.start(parser(), argv, registry)
    if options is None:
        return []
    train_only = options.pop("train_only")
    options["teacher"] = setup.default_teacher(options, registry)
    setup.check_architecture(options["teacher"], registry)
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    data = setup.load_data(options, registry)
    name = options["name"] or f"teacher_{runs.safe(options['teacher'])}{objective.variant(options)}"
    study, options["name"] = setup.place(options, name)
    began, folders = setup.origin(options), []
    for seed in options["seeds"]:
        folder = study / options["name"] / f"seed_{seed}"
        network = setup.new_network(options["teacher"], data, options, seed, registry)
        dry_run(network, terms, data, options)
        run_options = {**options, "stem": network.stem, "seeds": [seed]}
        engine.run(folder, network, terms, data, run_options, seed=seed, role="teacher",
                   provenance={"method": "teacher", "seed": seed, **began})
        folders.append(folder)
    if train_only or not distributed.first():
        return folders
    evaluate.main([str(folder) for folder in folders])
    if argv is None and options["fold"]:
        print("next: " + setup.next_fold("train_teacher.py", options, folders[0]))
    elif argv is None:
        print("next: " + command("distill.py", "--student", "mobilenetv2", "--teacher", folders[0],
                                 *setup.data_arguments(options, parser())))
    return folders


if __name__ == "__main__":
    distributed.run(main, registry.RegistryError)
