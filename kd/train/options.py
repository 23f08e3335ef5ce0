"""Options: what every training script accepts, read from a YAML file and the command line."""

import argparse
import sys
from pathlib import Path

from kd.errors import Parser, UserError, nearest, not_negative, positive, seed, share
from kd.files import read_json, read_yaml

# Options that say where and how fast a run is made, not what comes out of it. The files of
# groups and split may move: what is in them is compared by the fingerprints in environment.json.
TRAINED_CORRUPTIONS = ("saturation_up", "saturation_down", "colour_cast", "rotation", "off_centre", "zoom")  # by --augment corruption

NO_EFFECT = ("root", "groups", "split", "out", "cache", "workers", "device", "compile", "download", "plugin")
ADDED = {"augment": "heavy"}  # options that came after the first runs, and what those did


def training_parser(prog, description):
    """The options that train_teacher.py and distill.py share."""
    parser = Parser(prog=prog, description=description)
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="lesions", metavar="NAME",
                      help="lesions (embedded, synthetic), ham10000, medmnist or folder; NAME,key=value sets its options")
    data.add_argument("--root", metavar="PATH", help="folder of the images; for medmnist the .npz")
    data.add_argument("--size", type=positive, metavar="PX",
                      help="side of the network's input; default: the data set's own, else 64")
    data.add_argument("--groups", metavar="CSV", help="for folder: a CSV with columns id and group (patient, lesion)")
    data.add_argument("--download", action=argparse.BooleanOptionalAction, default=False,
                      help="for medmnist: fetch the file that --root names")
    data.add_argument("--split", metavar="CSV", help="a split of your own, with columns id and split")
    data.add_argument("--split-seed", type=seed, default=0, metavar="N",
                      help="seed of the 70/10/20 split by groups; apart from --seeds, so that all share one test set")
    data.add_argument("--skip-bad", action=argparse.BooleanOptionalAction, default=False,
                      help="go on without images that cannot be read")
    data.add_argument("--cache", metavar="DIR", help="folder for decoded images; default: beside the data, "
                      "or the user's cache folder")
    network = parser.add_argument_group("network")
    network.add_argument("--stem", choices=("auto", "imagenet", "small"), default="auto",
                         help="small keeps the resolution of inputs in the first stage; auto: up to 32 px")
    network.add_argument("--weights", default="none", metavar="imagenet|FILE|none",
                         help="pretrained weights to start from; the head starts fresh")
    network.add_argument("--init", metavar="FILE", help="a best.pt of this project to fine-tune")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, metavar="N", help="default: the data set's own, else 30")
    training.add_argument("--batch", type=positive, metavar="N", help="images a step; default: the data set's own, else 64")
    training.add_argument("--lr", type=not_negative(float), default=1e-3, metavar="X",
                          help="peak learning rate of AdamW (1711.05101)")
    training.add_argument("--head-lr", type=not_negative(float), metavar="X",
                          help="that of the head, which starts fresh where the body is pretrained; default: --lr")
    training.add_argument("--weight-decay", type=not_negative(float), default=0.05, metavar="X",
                          help="of weights, not of biases and normalisation")
    training.add_argument("--warmup", type=share, default=0.1, metavar="X",
                          help="share of the steps in which the rate rises, before its cosine fall to 0")
    training.add_argument("--clip", type=not_negative(float), default=1.0, metavar="X",
                          help="largest norm of the gradient; 0: none")
    training.add_argument("--patience", type=positive, default=10, metavar="N",
                          help="stop after so many epochs without a better validation macro-F1")
    training.add_argument("--hard", metavar="LOSS", help="loss on labels: ce,smoothing=0.1 | focal,gamma=2 | "
                          "class_balanced | logit_adjusted; default: the data set's own, else ce")
    training.add_argument("--augment", choices=("heavy", "light", "corruption"), default="heavy",
                          help="heavy: crops of half the area and more, flips and turns, colour, erasing; light: a window and flips; "
                          f"corruption: heavy, and half of the views under one of {', '.join(TRAINED_CORRUPTIONS)}, of whose families "
                          "no suite of robustness.py measures any")
    training.add_argument("--seeds", type=seed, nargs="+", default=[0], metavar="N", help="one run a seed")
    machine = parser.add_argument_group("machine and files")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    machine.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                         help="auto: bf16 where the hardware computes in it")
    machine.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False,
                         help="compile student and teacher: minutes first, then faster steps on most GPUs; needs a compiler")
    machine.add_argument("--workers", type=not_negative(int), default=1, metavar="N", help="threads that prepare batches")
    machine.add_argument("--out", default="runs", metavar="DIR", help="folder of all studies")
    machine.add_argument("--study", metavar="NAME", help="default: the data's name and size")
    machine.add_argument("--name", metavar="NAME", help="the model's folder; default: from architecture and method")
    machine.add_argument("--config", metavar="YAML", help="a file of options, such as a run's config.yaml; "
                         "the command line wins")
    machine.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    machine.add_argument("--train-only", action="store_true", help="leave evaluation and report to commands of their own, "
                         "as study.py does")
    machine.add_argument("--list", action="store_true", help="print all registered parts and stop")
    return parser


def parse_options(parser, argv=None):
    """The options as a dict: defaults, then the --config file, then the command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--config", action="append", default=[])
    paths = first.parse_known_args(argv)[0].config
    if len(paths) > 1:
        raise UserError("--config is given twice", "Put all options into one file, or the rest on the command line.")
    for path in paths:
        _check_script(path, parser)
        argv = to_arguments(parser, read_yaml(path), path) + argv
    options = vars(parser.parse_args(argv))
    options.pop("config")
    return options


def _check_script(path, parser):
    """The config.yaml of a student's run is for distill.py, that of a teacher's for train_teacher.py."""
    beside = Path(path).parent / "environment.json"
    scripts = {"teacher": "train_teacher.py", "student": "distill.py"}
    script = scripts.get(read_json(beside).get("role")) if beside.is_file() else None
    if script and script != parser.prog:
        raise UserError(f"{path} has the options of another script", f"Run: python {script} --config {path}")


def settable(parser):
    """{name: action} of the options that a file may set."""
    return {action.dest: action for action in parser._actions
            if action.option_strings and action.dest not in ("help", "config", "list")}


def to_arguments(parser, options, source=None, positional=()):
    """A dict of options as command-line arguments, so that a file's are checked like typed ones.

    None stands for the default. source: the file they come from; without one, options that
    the parser lacks are left out. positional: what the parser wants beside its options.
    """
    actions = settable(parser)
    result = []
    for key, value in options.items():
        action = actions.get(str(key).replace("-", "_"))
        if action is None and source is None:
            continue
        if action is None:
            raise UserError(f"{source}: unknown option {key!r}",
                            nearest(key, actions) or f"Known are: {', '.join(actions)}.")
        flag = action.option_strings[0]
        if value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{source}: {key} is true or false, not {value!r}")
            result += [flag] if value else []
        elif any(item is None or isinstance(item, (bool, list, tuple, dict)) for item in values):
            raise UserError(f"{source}: {key} cannot be {value!r}",
                            "Text that YAML takes for something else stands in quotes.")
        elif isinstance(action, argparse._AppendAction):
            result += [f"{flag}={item}" for item in values]
        elif isinstance(value, (list, tuple)) and action.nargs is None:
            raise UserError(f"{source}: {key} takes one value, not {value!r}")
        elif len(values) == 1:
            result.append(f"{flag}={values[0]}")  # one word, so that a value may begin with a dash
        elif values or action.default:
            result += [flag, *map(str, values)]
    if source is not None:
        try:
            parser.parse_args([*positional, *result])
        except UserError as error:
            raise UserError(f"{source}: {error.message}", error.hint) from None
    return result


def claim_folder(folder, options, role=None):
    """Check `options` against the folder's config.yaml.

    role: "student" where the option `teacher` is the place of a file, which may move; engine.run
    compares the weights in it. Returns whether the folder is new: nothing has been trained in it yet. Other options than
    those that it was made with are an error that names the differing keys.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    results = [name for name in ("last.pt", "best.pt", "predictions/test.npz") if (folder / name).exists()]
    if not results:
        return True
    if not path.exists():
        raise UserError(f"{folder} has {results[0]} but no config.yaml", "Restore it, or delete that folder.")
    old = read_yaml(path)
    old = {**{key: value for key, value in ADDED.items() if key in options}, **old}
    free = (*NO_EFFECT, "teacher") if role == "student" else NO_EFFECT
    differing = [key for key in {**old, **options} if key not in free and old.get(key) != options.get(key)]
    if differing:
        shown = "; ".join(f"{key} was {old.get(key)}, now {options.get(key)}" for key in differing)
        raise UserError(f"{folder} was made with other options: {shown}",
                        "Give this run a --name or --study of its own (in a plan: its method another name, or a new `study:`), "
                        "or delete that folder.")
    return False
