"""Options of the training scripts, from their defaults, a YAML file and the command line."""

import argparse
import sys
from pathlib import Path

from kd.data.sampling import KINDS
from kd.errors import (
    Parser,
    UserError,
    fold,
    images,
    kept,
    labelled,
    mixing,
    not_negative,
    positive,
    seed,
    share,
    side,
    suggestion,
    whole,
)
from kd.files import read_json, read_yaml
from kd.image import INTERPOLATION, INTERPOLATIONS
from kd.runs import SCRIPTS
from kd.selection import METRICS
from kd.text import command

# What --augment corruption trains with: no suite of robustness.py measures any corruption of these families.
TRAINED_CORRUPTIONS = ("saturation_up", "saturation_down", "colour_cast", "rotation", "off_centre", "zoom")

# Options that say where and how fast a run is made, and do not change its result. The files of --groups and --split
# may move: their content is compared by the fingerprints in environment.json.
NO_EFFECT = ("root", "groups", "split", "out", "cache", "workers", "device", "compile", "download", "plugin")

# What --help shows first, after the options of the script itself.
FIRST = ("--data", "--root", "--size", "--epochs", "--lr", "--weights", "--seeds")

# Options that are younger than the first runs, with the value that those runs used.
ADDED = {"augment": "heavy", "select": "macro_f1", "sampling": "natural", "mixup": 0.0, "cutmix": 0.0, "ema": 0.0,
         "interpolation": "bilinear", "accumulate": 1, "sync_batch_norm": False,
         "labelled": None}


class TrainingParser(Parser):
    """A Parser of many options, whose --help shows the few that matter first above the others in their groups.

    first: these, as they are typed.
    """

    def __init__(self, first=(), **kwargs):
        super().__init__(**kwargs)
        self.first = first

    def format_help(self):
        first = [self._option_string_actions[flag] for flag in self.first]
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        general, *groups = [group for group in self._action_groups if group._group_actions]
        for title, actions in (("the options that matter first", first),
                               *((group.title, group._group_actions) for group in (*groups, general))):
            formatter.start_section(title)
            formatter.add_arguments([action for action in actions if actions is first or action not in first])
            formatter.end_section()
        return formatter.format_help()


def training_parser(prog, description, own=("--teacher",)):
    """The Parser with the options that train_teacher.py and distill.py share.

    prog: the script's file name. description: the first paragraph of its --help. own: options of the script that its
    --help shows first. A comment behind a default says why it has this value.
    """
    parser = TrainingParser((*own, *FIRST), prog=prog, description=description, usage="%(prog)s [options]")

    data = parser.add_argument_group("data")
    data.add_argument("--data", default="lesions", metavar="NAME",  # runs at once: nothing to download
                      help="lesions (embedded, synthetic), ham10000, isic, medmnist, folder (of class folders) or csv "
                      "(a table with classes); NAME,key=value sets its options, such as csv,images=COLUMN,label=COLUMN")
    data.add_argument("--root", metavar="PATH",
                      help="folder of the images; for medmnist the .npz file, for csv the table")
    data.add_argument("--size", type=side, metavar="PX",  # 64: a size that trains on a laptop
                      help="side of the network's input; default: the data set's own, else 64")
    data.add_argument("--interpolation", choices=INTERPOLATIONS,
                      default=INTERPOLATION,  # several times as fast for large images (docs/speed.md)
                      help="how images are resized; bilinear: in one step, as runs of older versions were, for whose "
                      "networks it is; box-bilinear: those of at least eight times the size in two steps")
    data.add_argument("--groups", metavar="CSV", help="for folder: a CSV with columns id and group (patient, lesion)")
    data.add_argument("--download", action=argparse.BooleanOptionalAction, default=False,
                      help="for medmnist: fetch the file that --root names")
    data.add_argument("--split", metavar="CSV", help="a split of your own, with columns id and split")
    data.add_argument("--split-seed", type=seed, default=0, metavar="N",
                      help="seed of the 70/10/20 split by groups; --seeds does not change the split, "
                      "so that all runs share one test set")
    data.add_argument("--fold", type=fold, metavar="K/N",
                      help="test on the K-th of N parts of the groups, train and validate on the others; evaluate.py "
                      "joins the answers of all N, in which each image is tested once")
    data.add_argument("--labelled", type=labelled, metavar="SHARE",
                      help="only this share of the groups of train and val keeps its labels, class by class: SHARE, or "
                      "SHARE,seed=N for another choice; the rest of train is for --unlabelled rest of distill.py, that "
                      "of val is not used")
    data.add_argument("--skip-bad", action=argparse.BooleanOptionalAction,
                      default=False,  # without some images the test set is another one: only the user can want that
                      help="leave out images that cannot be read, instead of an error")
    data.add_argument("--cache", metavar="DIR", help="folder for decoded images; default: beside the data, "
                      "or the user's cache folder")

    network = parser.add_argument_group("network")
    network.add_argument("--stem", choices=("auto", "imagenet", "small"),
                         default="auto",  # at 64 px small makes an epoch 5 to 10 times as long, and gained nothing
                         help="the first layers; small keeps the resolution of the input in the first stage; "
                         "auto: small up to 32 px, where imagenet would leave one pixel in the last stage")
    network.add_argument("--weights", metavar="imagenet|FILE|none",
                         default="none",  # imagenet needs a package or a download
                         help="pretrained weights to start from, such as a .pth or .safetensors; the head starts fresh")
    network.add_argument("--stages", nargs=4, metavar="PATH",
                         help="four modules of the network, such as features.3, in the order in which they are run: "
                         "losses on features read their outputs; default: those that the architecture is registered "
                         "with; a teacher's are those of its own training")
    network.add_argument("--init", metavar="FILE", help="a best.pt of this project to start from, with its head")

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, metavar="N",
                          help="passes over the training images; default: the data set's own, else 30")
    training.add_argument("--batch", type=images, metavar="N",
                          help="labelled images a step; default: the data set's own, else 64")
    training.add_argument("--accumulate", type=positive, metavar="N",
                          default=1,  # a batch that fits into memory is faster in one piece
                          help="compute a batch in N parts, whose gradients add up: a step needs less memory, and "
                          "--batch stays what it is; batch normalisation sees the images of a part")
    training.add_argument("--sync-batch-norm", action=argparse.BooleanOptionalAction,
                          default=False,  # each layer waits for all processes; shares of many images do without
                          help="of several processes (torchrun, on GPUs): batch normalisation over the images of all")
    training.add_argument("--lr", type=not_negative, metavar="X",
                          default=1e-3,  # the value suggested for Adam (1412.6980)
                          help="peak learning rate of AdamW (1711.05101); 5e-4 was used for ImageNet weights "
                          "(docs/results)")
    training.add_argument("--head-lr", type=not_negative, metavar="X",
                          help="peak learning rate of the head, which starts fresh on a pretrained network; "
                          "default: --lr; the study in docs/results has 3e-3")
    training.add_argument("--weight-decay", type=not_negative, metavar="X",
                          default=0.05,  # as DeiT (2012.12877) has it with AdamW
                          help="of weights; biases and normalisation have none")
    training.add_argument("--warmup", type=share, metavar="X",
                          default=0.1,  # a share, so that short and long schedules warm up alike
                          help="share of all steps in which the learning rate rises; then it falls to 0 as a cosine")
    training.add_argument("--clip", type=not_negative, metavar="X",
                          default=1.0,  # one extreme batch does not throw the weights far
                          help="largest norm of the gradient; 0: no limit")
    training.add_argument("--patience", type=positive, metavar="N",
                          default=10,  # long: with few images of rare classes, macro-F1 varies much between epochs
                          help="stop after so many epochs without a better validation score (--select)")
    training.add_argument("--hard", metavar="LOSS",  # ce: what papers compare with
                          help="loss on labels: ce,smoothing=0.1 | focal,gamma=2 | class_balanced | logit_adjusted; "
                          "default: the data set's own, else ce")
    training.add_argument("--augment", choices=("heavy", "light", "corruption", "none"),
                          default="heavy",  # medical data sets are small, and a network sees each image many times
                          help="heavy: crops of at least half the area, flips, turns, colour, erasing; light: a "
                          "shifted window and flips; none: the images as they are evaluated; corruption: heavy, and "
                          f"half of the views under one of {', '.join(TRAINED_CORRUPTIONS)}, whose families no suite "
                          "of robustness.py measures")
    training.add_argument("--mixup", type=mixing, metavar="A",
                          default=0.0,  # off: it helped a student alone, and none with a teacher (docs/results)
                          help="mix each view with that of another image, its share drawn from Beta(A, A) "
                          "(1710.09412); 0.2 is usual")
    training.add_argument("--cutmix", type=mixing, metavar="A",
                          default=0.0,  # off, as --mixup
                          help="paste a square of another image's view, its share drawn from Beta(A, A) (1905.04899); "
                          "1 is usual; with --mixup, each way for half of the views")
    training.add_argument("--sampling", choices=KINDS, default="natural",  # the distribution that is evaluated
                          help="how often an epoch shows an image of each class: natural, as often as any other; sqrt, "
                          "each class in proportion to the square root of its images; balanced, each class alike")
    training.add_argument("--size-from", type=side, metavar="PX",
                          help="side of the images in the first epochs, which grows to --size in steps of 16 px")
    training.add_argument("--ema", type=kept, metavar="X",
                          default=0.0,  # off: with few steps the average is that of the beginning
                          help="keep a moving average of the weights, of which each step keeps the share X, such as "
                          "0.999; it is evaluated and selected beside the weights")
    training.add_argument("--select", choices=tuple(METRICS), default="macro_f1",  # rare classes count as much
                          help="the metric on validation that chooses the epoch, and ends a run with --patience; "
                          "nll: the lowest loss")
    training.add_argument("--seeds", type=seed, nargs="+", metavar="N",
                          default=[0],  # one run for a first look; a comparison of models needs several
                          help="one run for each seed")

    machine = parser.add_argument_group("machine and files")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                         help="where to compute; auto: a GPU where there is one")
    machine.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"),
                         default="auto",  # bf16 is faster there, and cost no quality that was seen (docs/speed.md)
                         help="auto: bf16 where the hardware computes in it; fp16 on older GPUs with half precision; "
                         "else fp32")
    machine.add_argument("--compile", action=argparse.BooleanOptionalAction,
                         default=False,  # takes minutes, and gained nothing on the processors of docs/speed.md
                         help="compile student and teacher: minutes first, then faster steps on most GPUs; "
                         "needs a compiler")
    machine.add_argument("--workers", type=whole(0, 1024), metavar="N",
                         default=1,  # decoded images are cached: training waits for its input in 3% of an epoch
                         help="threads that prepare batches")
    machine.add_argument("--out", default="runs", metavar="DIR", help="folder of all studies")
    machine.add_argument("--study", metavar="NAME", help="the study's folder; default: the data's name and size")
    machine.add_argument("--name", metavar="NAME", help="the model's folder; default: from architecture and method")
    machine.add_argument("--config", metavar="YAML", help="a file of options, such as a run's config.yaml; "
                         "the command line wins")
    machine.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py",
                         help="files that register further parts")
    machine.add_argument("--train-only", action="store_true",
                         help="no evaluation and no report after training; study.py runs them as commands of their own")
    machine.add_argument("--list", action="store_true", help="print all registered parts and stop")
    return parser


def parse_options(parser, argv=None):
    """{name: value} of all options: defaults, then the --config file, then the command line (`argv`, else sys.argv).

    Raises UserError where an option is unknown or its value wrong, in the file as on the command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_parser = Parser(prog=parser.script, add_help=False)
    config_parser.add_argument("--config", action="append", default=[])
    paths = config_parser.parse_known_args(argv)[0].config
    if len(paths) > 1:
        raise UserError("--config is given twice", "Put all options into one file, or the rest on the command line.")
    for path in paths:
        of_run = _is_of_run(path, parser)
        argv = to_arguments(parser, {**(ADDED if of_run else {}), **read_yaml(path)}, path) + argv
    options = vars(parser.parse_args(argv))
    options.pop("config")
    return options


def _is_of_run(path, parser):
    """Whether a file of options is the config.yaml of a run.

    UserError for a student's where the script of `parser` is not distill.py, and for a teacher's likewise.
    """
    environment = Path(path).parent / "environment.json"
    script = SCRIPTS.get(read_json(environment).get("role")) if environment.is_file() else None
    if script and script != parser.script:
        raise UserError(f"{path} has the options of another script", "Run: " + command(script, "--config", path))
    return bool(script)


def settable(parser):
    """{name: action} of the options that a file may set."""
    return {action.dest: action for action in parser._actions
            if action.option_strings and action.dest not in ("help", "version", "config", "list")}


def underscored(options, source):
    """Options under their names with underscores, however they are spelled. UserError where one is in both spellings.

    source: the file of the options, for the message.
    """
    result = {}
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if name in result:
            raise UserError(f"{source}: {key} is there twice, with a dash and with _", "Leave one of them out.")
        result[name] = value
    return result


def to_arguments(parser, options, source=None, positional=()):
    """A dict of options as a list of command-line arguments, so that values from a file are checked like typed ones.

    A value of None stands for the default and is left out. source: the file of the options, for error messages;
    without it, options that the parser lacks are left out. positional: the arguments that the parser needs beside
    its options. Raises UserError where an option of a file is unknown or its value wrong.
    """
    actions, options = settable(parser), underscored(options, source)
    arguments = []
    for key, value in options.items():
        action = actions.get(key)
        if action is None and source is None:
            continue
        if action is None:
            raise UserError(f"{source}: unknown option {key!r}",
                            suggestion(key, actions, parser.script) or f"Known are: {', '.join(actions)}.")
        if value is None:
            continue
        flag = action.option_strings[0]
        values = value if isinstance(value, (list, tuple)) else [value]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{source}: {key} is true or false, not {value!r}")
            arguments += [flag] if value else []
        elif any(item is None or isinstance(item, (bool, list, tuple, dict)) for item in values):
            raise UserError(f"{source}: {key} cannot be {value!r}",
                            "Put text in quotes where YAML reads it as something else.")
        elif isinstance(action, argparse._AppendAction):
            arguments += [f"{flag}={item}" for item in values]
        elif isinstance(value, (list, tuple)) and action.nargs is None:
            raise UserError(f"{source}: {key} takes one value, not {value!r}")
        elif len(values) == 1:
            arguments.append(f"{flag}={values[0]}")  # one word, so that a value may begin with a dash
        elif values or action.default:
            arguments += [flag, *map(str, values)]
    if source is not None:
        try:
            parser.parse_args([*positional, *arguments])
        except UserError as error:
            raise UserError(f"{source}: {error.message}", error.hint) from None
    return arguments


def claim_folder(folder, options, role=None):
    """Whether `folder` is new: nothing was trained in it yet.

    options: of the run; they are compared with the folder's config.yaml, but for NO_EFFECT. role: student or teacher.
    A student's option `teacher` is the path of a file, which may move; kd.train.engine compares its weights.
    Raises UserError, with the options that differ, where the folder was made with others, or lacks its config.yaml.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    results = [name for name in ("last.pt", "best.pt", "predictions/test.npz") if (folder / name).exists()]
    if not results:
        return True
    if not path.exists():
        raise UserError(f"{folder} has {results[0]} but no config.yaml", "Restore it, or delete that folder.")
    added = {key: value for key, value in ADDED.items() if key in options}
    before = {**added, **read_yaml(path)}
    not_compared = (*NO_EFFECT, "teacher") if role == "student" else NO_EFFECT
    differing = [key for key in {**before, **options}
                 if key not in not_compared and before.get(key) != options.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)}, now {options.get(key)}" for key in differing)
        way_out = ("Give this run a --name or --study of its own (in a plan: its method another name, or a new "
                   "`study:`), or delete that folder.")
        if differing == ["epochs"] and role:
            way_out = _other_length(folder, before, options, role)
        elif differing in (["interpolation"], ["precision"]):  # of an older version, of another machine
            way_out = f"With --{differing[0]} {before[differing[0]]} it goes on as it began. {way_out}"
        raise UserError(f"{folder} was made with other options: {changes}", way_out)
    return False


def _other_length(folder, before, options, role):
    """How to get a run of another number of epochs than that of a folder, a hint: its schedule cannot be changed.

    Each seed has its own best epoch, and so a command of its own.
    """
    epochs, name = options["epochs"], f"{folder.resolve().parent.name}_{options['epochs']}"
    if (folder / "last.pt").exists():
        return (f"The schedule of a run that has begun cannot be changed: end it with --epochs {before['epochs']}, "
                f"or begin another with --name {name}.")
    if epochs < before["epochs"]:
        return f"Fewer epochs are another schedule, and a run of its own: give it --name {name}, or delete that folder."
    more = ["--epochs", epochs, "--name", name]
    if before.get("weights", "none") != "none":
        more += ["--weights", "none"]  # --init takes their place
    for key in ("root", "groups", "split", "out", "cache", *(["teacher"] if role == "student" else [])):
        if options.get(key) not in (None, before.get(key)):  # moved since
            more += [f"--{key}", options[key]]
    others = [seed for seed in sorted(folder.parent.glob("seed_*")) if seed.name != folder.name
              and (seed / "best.pt").exists() and not (seed / "last.pt").exists() and (seed / "config.yaml").exists()]
    commands = [command(SCRIPTS[role], "--config", seed / "config.yaml", "--init", seed / "best.pt", *more)
                for seed in (folder, *others)]
    in_plan = f"with `init: {(folder / 'best.pt').as_posix()}` and `epochs: {epochs}`" if not others else (
        f"with `epochs: {epochs}`: its seeds begin anew, as `init:` would be one file for all of them")
    each = ", each seed from its own" if others else ""
    first = f"To train on from its best epoch{each}, with a new schedule, as a run of its own: {commands[0]}"
    return "\n".join([first, *commands[1:], "In a plan: give its method another name, or the plan a new `study:`, "
                      f"{in_plan}; or delete that folder to begin anew."])
