"""Errors that the user can correct: one line that says what is wrong, a hint, exit status 2. Output to any stream."""

import argparse
import contextlib
import errno
import importlib
import io
import math
import os
import re
import signal
import sys
from pathlib import Path

from kd import __version__

# Control characters but for tab and line end, separators of lines, and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


_ROOT = Path(__file__).resolve().parents[1]
INSTALLED = _ROOT.name == "medmnist_edgeai" and not (_ROOT / "setup.cfg").exists()  # by a wheel: no clone, no bundle
IN_BUNDLE = not INSTALLED and not (_ROOT / "setup.cfg").exists()  # of export.py: there is nothing to install from
BOX = "pip install numpy pillow onnxruntime"  # what predict.py and benchmark.py need on an edge box
VERSION = f"MedMNIST-EdgeAI {__version__}"
LONGEST = 1000  # characters of the message of a UserError


def printable(text):
    """`text` with its control characters as escapes, such as \\x1b: a terminal obeys them, whoever wrote them."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def as_typed_here(text):
    """`text`, whose commands are those of a clone, with the commands of the installed project where it is one.

    `python distill.py` becomes `medmnist-edgeai distill`, and `pip install -e ".[edge]"` names the project.
    """
    def installed(match):
        return f"medmnist-edgeai {match[1]}" if (_ROOT / f"{match[1]}.py").exists() else match[0]

    if INSTALLED:
        text = re.sub(r"\bpython (\w+)\.py\b", installed, text)
        text = re.sub(r'pip install -e "\.(\[\w+\])"', r'pip install "medmnist-edgeai\1"', text)
    return text


class UserError(Exception):
    """An error that the user can correct. `message`, one line, says what is wrong, `hint` what to do."""

    def __init__(self, message, hint=""):
        message = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."  # it may quote a whole file
        self.message, self.hint = printable(message).replace("\n", "\\n").replace("\t", "\\t"), printable(hint)
        super().__init__(self.message)

    def __str__(self):
        return f"error: {self.message}" + (f"\n{self.hint}" if self.hint else "")

    @property
    def one_line(self):
        """Message and hint as one line."""
        return self.message + (f" ({self.hint})" if self.hint else "")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a help text, unless there is none or the text already names it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == [] or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError; for an unknown option the hint names the one that is meant.

    Values that begin with `~` are paths below the user's home, also where no shell has expanded them: in a file of
    options, in --root=~/images, and on Windows.
    """

    def __init__(self, prog, **kwargs):
        """prog: the file name of the script."""
        self.script = prog
        typed = as_typed_here(f"python {prog}").removeprefix("python ")
        super().__init__(typed, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)
        if self.add_help:
            self.add_argument("--version", action="version", version=VERSION)

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]) and "" not in (action.const, action.default):
                name = action.option_strings[0] if action.option_strings else action.metavar
                raise UserError(f"{name} is empty", "Give a value; a variable of the shell that is not set is empty.")
        for name, value in vars(namespace).items():
            setattr(namespace, name, expanded(value))
        return namespace, rest

    def flags(self):
        """The options that --help lists, as they are typed."""
        return [flag for flag, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]

    def error(self, message):
        hint = f"`python {self.script} --help` lists every option."
        if message.startswith("unrecognized arguments: "):
            words = message.split(": ", 1)[1].split()
            flag = next((word for word in words if word.startswith("-")), "").split("=")[0]
            hint = suggestion(flag, self.flags(), self.script) or hint
        raise UserError(message, hint)


def expanded(value):
    """`value`, a text or a list of texts, with a leading `~` as the user's home; everything else as it is."""
    if isinstance(value, list):
        return [expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _bounded(kind, lower, upper, meaning):
    """An argparse type: a number of type `kind` from `lower` to `upper`; `meaning` describes it in errors."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not lower <= value <= upper:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {meaning}")
        return value
    return convert


def ramp(number):
    """An argparse type: a number, or `FROM:TO`, which changes linearly over the epochs and stays a text.

    number: the type of both ends. See ends().
    """
    def convert(text):
        parts = text.split(":")
        if len(parts) > 2:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number, nor FROM:TO")
        values = [number(part) for part in parts]
        return values[0] if len(set(values)) == 1 else f"{values[0]}:{values[1]}"
    return convert


def ends(value):
    """(first, last) of what ramp() returned: the values in the first and in the last epoch."""
    first, _, last = str(value).partition(":")
    return float(first), float(last or first)


def fold(text):
    """An argparse type: `K/N`, the K-th of N parts, which stays a text."""
    part, slash, count = text.partition("/")
    if not (slash and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count) <= 100 and
            int(count) > 1):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not K/N with K from 1 to N, and N from 2 to 100")
    return f"{int(part)}/{int(count)}"


def labelled(text):
    """An argparse type: `SHARE` or `SHARE,seed=N`, which stays a text; None for a share of 1, which is everything."""
    first, comma, setting = text.partition(",")
    word, _, number = setting.partition("=")
    try:
        part, chosen = float(first), seed(number) if comma else 0
    except (ValueError, argparse.ArgumentTypeError):
        part = math.nan
    if not 0 < part <= 1 or comma and word != "seed":
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not SHARE or SHARE,seed=N, with a share above 0, at most 1")
    return None if part == 1 else f"{part}" + (f",seed={chosen}" if chosen else "")


def whole(lower, upper):
    """An argparse type: a whole number from `lower` to `upper`."""
    return _bounded(int, lower, upper, f"a whole number from {lower} to {upper}")


LARGEST = sys.float_info.max
positive = whole(1, 10 ** 9)
above_zero = _bounded(float, sys.float_info.min, LARGEST, "a number above 0")
not_negative = _bounded(float, 0, LARGEST, "a number from 0 on")
share = _bounded(float, 0, 1, "a number from 0 to 1")
kept = _bounded(float, 0, math.nextafter(1, 0), "a number from 0 to below 1")
mixing = _bounded(float, 0, 100, "a number from 0 to 100")
ratio = _bounded(float, sys.float_info.min, 1000, "a number above 0, at most 1000")
assurance = _bounded(float, 0.5, 0.999, "a number from 0.5 to 0.999")
bins = whole(2, 1000)
seed = whole(0, 2 ** 32 - 1)  # NumPy and PyTorch both accept these
side = whole(1, 4096)         # of images, in px: larger ones would need gigabytes
threads = whole(1, 1024)      # a system gives a process some ten thousand at most, and ends it without a word
images = whole(1, 2 ** 16)    # of one batch


def nearest(name, known):
    """'did you mean X?', where X is the string of `known` that is most similar to `name`; '' if none is similar."""
    import difflib  # here, because predict.py starts sooner without it
    spelled = {str(k).lower().strip("-"): str(k) for k in reversed(list(known))}
    matches = difflib.get_close_matches(str(name).lower().strip("-"), spelled, n=1, cutoff=0.7)
    return f"did you mean {spelled[matches[0]]}?" if matches else ""


RESUMING = ("train_teacher.py", "distill.py", "robustness.py", "study.py")  # go on where they were stopped
# What other tools call an option (without - and _), ours, and a sentence in place of "did you mean ...?". The first
# line whose option the script has counts.
MEANINGS = (
    ("epoch numepochs nepochs maxepochs trainepochs numtrainepochs", "--epochs", ""),
    ("earlystopping earlystop earlystoppingpatience earlystoppatience", "--patience", ""),
    ("learningrate initlr baselr maxlr peaklr", "--lr", ""),
    ("bs b batchsize trainbatchsize perdevicetrainbatchsize", "--batch", ""),
    ("numworkers nworkers dataworkers dataloadernumworkers j", "--workers", ""),
    ("njobs numproc nproc parallel j", "--jobs", ""),
    ("numthreads nthreads", "--threads", ""),
    ("imgsize imagesize inputsize imgsz imsize imsz resolution cropsize res", "--size", ""),
    ("output outputdir outdir savedir resultsdir outputpath savepath logdir o", "--out", ""),
    ("output outputdir outdir savedir o", "--bundle", ""),
    ("dataset datasetname", "--data", ""),
    ("datadir datapath dataroot imagedir imgdir imagespath datasetdir datasetpath rootdir traindir", "--root", ""),
    ("studentmodel studentarch", "--student", ""),
    ("teachermodel teacherarch teacherpath teachercheckpoint teacherckpt teacherweights", "--teacher", ""),
    ("model arch architecture backbone net network encoder modelname m a", "--student", ""),
    ("model arch architecture backbone net network encoder modelname m a", "--teacher", ""),
    ("temp t tau kdtemperature kdt kdtemp", "--temperature", ""),
    ("pretrained usepretrained imagenet", "--weights", "--weights imagenet"),
    ("checkpoint ckpt checkpointpath ckptpath finetune loadfrom modelpath", "--init",
     "--init FILE starts from a best.pt of this project, --weights FILE from weights of other origin."),
    ("gpu gpus gpuid cuda usecuda accelerator", "--device", "--device cuda"),
    ("cpu nocuda nogpu", "--device", "--device cpu"),
    ("amp bf16 mixedprecision halfprecision half autocast", "--precision", "--precision bf16"),
    ("fp16 float16", "--precision", "--precision fp16"),
    ("seed randomseed manualseed", "--seeds", "--seeds N is of the training, --split-seed N of the split."),
    ("wd l2 decay regularization", "--weight-decay", ""),
    ("gradclip clipgrad maxgradnorm gradclipnorm gradientclipping clipnorm", "--clip", ""),
    ("warmupepochs warmupsteps warmupratio numwarmupsteps", "--warmup", ""),
    ("loss criterion lossfn lossfunction", "--soft",
     "--hard is the loss on labels, --soft that on the teacher's logits, --term adds further ones."),
    ("loss criterion lossfn lossfunction", "--hard", ""),
    ("labelsmoothing smoothing", "--hard", "--hard ce,smoothing=0.1"),
    ("classweights classweight weightedloss balanced", "--hard", "--hard class_balanced"),
    ("focal focalloss", "--hard", "--hard focal"),
    ("kdweight kdalpha lambda lambdakd kdlambda distillweight distillationalpha softweight", "--alpha",
     "--alpha X weighs the labels; the teacher's logits have the weight 1 - X."),
    ("attentionweight atweight atbeta lambdaat", "--beta", ""),
    ("augmentation augmentations aug aa autoaugment dataaugmentation", "--augment", ""),
    ("expname experiment experimentname runname exp", "--name", ""),
    ("project projectname", "--study", ""),
    ("cfg conf configfile yaml", "--config", ""),
    ("skiperrors ignoreerrors ignorebad skipcorrupt skipbroken", "--skip-bad", ""),
    ("bootstrap nbootstrap nboot resamples bootstraps", "--replicates", ""),
    ("quantize quantise quantization int8", "--formats", "--formats int8"),
    ("reducerange", "--weight-range", "INT8 has weights that saturate on no processor, if not --weight-range full."),
    ("classnames classes numclasses nclasses nc", "--data", "The classes come from the data."),
    ("optimizer optim opt momentum", "--epochs", "The optimiser is AdamW; --lr and --weight-decay are its settings."),
    ("scheduler lrscheduler sched lrschedule", "--warmup",
     "The learning rate rises for the share --warmup of all steps, then falls to 0 as a cosine."),
    ("valsplit testsize testsplit valsize valratio testratio trainsplit", "--split",
     "--split FILE.csv gives a split of your own; else it is 70/10/20 by groups."),
    ("metric metrics monitor bestmetric", "--select", ""),
    ("metric metrics", "--bins", "Every metric is computed; metrics.json has them all."),
)


def suggestion(name, options, script=""):
    """What is meant by an unknown option: by what other tools call it (MEANINGS), else by spelling; '' if unknown.

    options: those that there are, as --flags or as keys of a file. script: the file name of the script.
    """
    def plain(text):
        return str(text).lower().replace("-", "").replace("_", "")

    word, known = plain(name), {plain(option): option for option in options}
    if script in RESUMING and word in ("resume", "continue", "autoresume", "resumefrom", "resumetraining", "restart"):
        return "The same command goes on where it was stopped, without an option."
    for words, option, text in MEANINGS:
        if plain(option) in known and word in words.split():
            return text if text.endswith(".") else f"did you mean {text or known[plain(option)]}?"
    return nearest(name, known.values())


def listing(items, limit=5):
    """The first `limit` items, separated by commas, and how many more there are."""
    items = [str(item) for item in items]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
            errno.ELOOP}


# ---- output

class _Output:
    """A text stream to which print() can always write, whatever stands behind it.

    What the stream cannot encode is written as escapes. Where there is no stream (pythonw has none) or it is closed,
    the text is dropped. clean: a function of the text, before it is written.
    """

    def __init__(self, stream, clean=str):
        self.stream, self.clean = stream, clean

    @property
    def encoding(self):
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text):
        for encoding in (self.encoding, "ascii"):
            try:
                self._call("write", self.clean(text).encode(encoding, "backslashreplace").decode(encoding))
                break
            except (UnicodeError, LookupError):  # the stream's encoding is not the one that it names
                continue
        return len(text)

    def flush(self):
        self._call("flush")

    def isatty(self):
        return bool(self._call("isatty"))

    def _call(self, name, *arguments):
        try:
            return getattr(self.stream, name)(*arguments)
        except (AttributeError, io.UnsupportedOperation):  # no stream, or one of few methods
            pass
        except UnicodeError:
            raise
        except ValueError:  # closed
            pass
        except OSError as error:
            if error.errno != errno.EBADF:  # closed below Python
                raise

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_output():
    """In this context print() writes whatever a file or a class is called, and no name acts on the terminal.

    Standard streams may be those of a notebook, closed, or missing. The commands in messages are those that work here.
    """
    with contextlib.redirect_stdout(_Output(sys.stdout, lambda text: printable(as_typed_here(text)))), \
            contextlib.redirect_stderr(_Output(sys.stderr, as_typed_here)):
        yield


def progress(items=None, description=None, *, shown=True, **options):
    """A progress bar for whatever lasts longer than two seconds, on a terminal and in a notebook; elsewhere, such as in
    a pipe or a file, a line a minute.

    items: what is iterated over, or None for a bar that is moved by update(). options: of tqdm. shown: False for the
    further processes of a training. A bar inside another is not drawn: a notebook has one line for it. Without tqdm,
    as on an edge box, it is `items`.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    outer = any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))
    settings = {"delay": 2, **options}
    if not draws(sys.stderr):
        settings |= {"delay": 60, "mininterval": 60, "leave": False, "bar_format": LINE,
                     "file": _Output(sys.stderr, lambda text: text.strip("\r "))}
    return tqdm(items, description, disable=not shown or outer, **settings)


LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left\n"


def draws(stream):
    """Whether a bar can be drawn on a stream: that of a terminal, or of a notebook, which is none but draws as one."""
    stream = stream.stream if isinstance(stream, _Output) else stream
    if any(kind.__module__.split(".")[0] == "ipykernel" for kind in type(stream).__mro__):
        return True
    return _Output(stream).isatty()


def run(main, *users, prints=lambda: True):
    """Run a script's main(): the exit status is 2 for an error that the user can correct, 130 for Ctrl-C, and 141 where
    the reader of a pipe, such as `head`, has ended.

    users: further exception classes that are reported in this way. All others keep their traceback. The SystemExit has
    the attribute `error`, the UserError or None: a study says at its end why a step has failed. prints(): whether the
    error is to be printed, and not by another process of the same training.
    """
    for descriptor in range(3):  # one that is closed leads nowhere, and is not taken by the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    try:
        with safe_output():
            status, error = _status(main, users, getattr(sys.modules.get(main.__module__), "parser", None), prints)
    except KeyboardInterrupt:  # a second one, while the first was reported
        status, error = 130, None
    goes_on = main.__module__ != "__main__" or hasattr(sys, "ps1") or sys.flags.interactive  # as after %run in IPython
    if not goes_on and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends, Ctrl-C would show a traceback
    if status:
        end = SystemExit(status)
        end.error = error
        raise end  # out here, where no traceback of the error is shown with it


def _status(main, users, make_parser, prints):
    """(exit status, UserError or None) of a script's main()."""
    error = None
    try:
        main()
        sys.stdout.flush()  # a closed pipe must raise its error here, where it is handled
        return 0, None
    except KeyboardInterrupt:
        resumes = make_parser and make_parser().script in RESUMING
        message, status = "\nstopped" + ("; the same command goes on from here" if resumes else ""), 130
    except BrokenPipeError:  # the reader, such as `head`, has ended
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141, None  # as a shell reports it of other programs: 128 + SIGPIPE
    except Exception as exception:
        error = of_user(exception, *users, flags=make_parser().flags() if make_parser else ())
        message, status = error, 2
        if error is None:
            raise
    with contextlib.suppress(OSError):  # the status says it, where nobody reads
        if prints():
            print(message, file=sys.stderr)
    return status, error


def of_user(error, *users, flags=()):
    """The UserError that corresponds to an exception, or None if the exception is a fault of the program.

    users: further exception classes that are errors of the user. A full disk, too little memory and a place that
    cannot be written are errors of the user, too. flags: the options of the script, since a hint names no others.
    """
    def with_flags(text, *wanted):
        offered = [flag for flag in wanted if flag in flags]
        return text.format(" or ".join(offered)) if offered else ""

    if isinstance(error, UserError):
        return error
    if isinstance(error, users):
        message, _, hint = str(error).partition("\n")
        return UserError(message, hint)
    if is_memory(error):
        size = re.search(r"[\d.]+ ?(?:[KMGTPE]i?B|bytes)", str(error))
        smaller = with_flags("Take a smaller {}", "--batch", "--size") or "End other programs"
        return UserError("there is not enough memory" + (f" for another {size[0]}" if size else ""),
                         f"{smaller}, or take a machine with more memory.")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return UserError("the system gives this program no further thread",
                         with_flags("Take fewer with {}.", "--workers", "--threads", "--jobs") or "End other programs.")
    if isinstance(error, (RuntimeError, ValueError)) and str(error).startswith(("Symlink loop", "embedded null")):
        return UserError(f"no such path: {error}", "Check the names of files and folders.")  # as pathlib says it
    if not isinstance(error, OSError):
        return None
    place = f": {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return UserError(f"{error.strerror.lower()}{place}", "Free some space and give the same command again"
                         + with_flags(": epochs that are written are not lost", "--epochs") + ".")
    if error.errno == errno.EFBIG:
        return UserError(f"a file of this size may not be written{place}", "Raise the limit (ulimit -f), or choose "
                         "another disk" + with_flags(" with {}", "--out") + ": FAT32 ends at 4 GiB.")
    if error.errno in NO_PLACE:
        return UserError(f"{error.strerror.lower()}{place}",
                         "Check that place" + with_flags(", or choose another with {}", "--out", "--cache") + ".")
    return None


def is_memory(error):
    """Whether memory was too small, as Python, NumPy and torch (CPU and GPU) say it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def need(module, extra):
    """The optional module of this name. UserError, with the extra that installs it, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        if error.name and error.name.split(".")[0] != package:
            raise  # the package is installed but broken: its own message helps more
        if IN_BUNDLE:
            hint = BOX if package in BOX else f"pip install {package}"
        else:
            hint = f'pip install -e ".[{extra}]"'
        raise UserError(f"this needs the package {package}, which is not installed", hint) from error


@contextlib.contextmanager
def missing_packages():
    """In this context a script for an edge box imports what it needs: for a package of BOX that is not installed there
    is a line in place of a traceback, and exit status 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = {"PIL": "pillow"}.get(error.name, error.name)
        if package not in ("numpy", "pillow"):
            raise
        print(UserError(f"this needs the package {package}, which is not installed", BOX), file=sys.stderr)
        raise SystemExit(2) from None
