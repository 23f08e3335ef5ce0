"""Errors that the user can correct: one line that says what is wrong, a hint, exit status 2."""

import argparse
import contextlib
import difflib
import errno
import importlib
import math
import os
import re
import sys

# Control characters but for tab and line end, separators of lines, and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


LONGEST = 1000  # characters of the message of a UserError


def printable(text):
    """`text` with its control characters as escapes, such as \\x1b: a terminal obeys them, whoever wrote them."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class UserError(Exception):
    """An error that the user can correct. `message`, one line, says what is wrong, `hint` what to do."""

    def __init__(self, message, hint=""):
        message = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."  # it may quote a whole file
        self.message, self.hint = printable(message).replace("\n", "\\n").replace("\t", "\\t"), printable(hint)
        super().__init__(self.message)

    def __str__(self):
        return f"error: {self.message}" + (f"\n{self.hint}" if self.hint else "")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a help text, unless there is none or the text already names it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == [] or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError; for an unknown option the hint names the nearest known one."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        hint = f"`python {self.prog} --help` lists every option."
        if message.startswith("unrecognized arguments: "):
            words = message.split(": ", 1)[1].split()
            flag = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
            hint = nearest(flag, self._option_string_actions) or hint
        raise UserError(message, hint)


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


def whole(lower, upper):
    """An argparse type: a whole number from `lower` to `upper`."""
    return _bounded(int, lower, upper, f"a whole number from {lower} to {upper}")


LARGEST = sys.float_info.max
positive = whole(1, 10 ** 9)
above_zero = _bounded(float, sys.float_info.min, LARGEST, "a number above 0")
not_negative = _bounded(float, 0, LARGEST, "a number from 0 on")
share = _bounded(float, 0, 1, "a number from 0 to 1")
seed = whole(0, 2 ** 32 - 1)  # NumPy and PyTorch both accept these
side = whole(1, 4096)         # of images, in px: larger ones would need gigabytes
threads = whole(1, 1024)      # a system gives a process some ten thousand at most, and ends it without a word
images = whole(1, 2 ** 16)    # of one batch


def nearest(name, known):
    """'did you mean X?', where X is the string of `known` that is most similar to `name`; '' if none is similar."""
    matches = difflib.get_close_matches(str(name).lower(), [str(k) for k in known], n=1, cutoff=0.5)
    return f"did you mean {matches[0]}?" if matches else ""


def listing(items, limit=5):
    """The first `limit` items, separated by commas, and how many more there are."""
    items = [str(item) for item in items]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
            errno.ELOOP}


class _Escaped:
    """A text stream that writes control characters as escapes; everything else is the stream's."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self.stream.write(printable(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_output():
    """In this context print() writes whatever a file or a class is called, and no name acts on the terminal."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a Windows pipe cannot encode every file name
    with contextlib.redirect_stdout(sys.stdout and _Escaped(sys.stdout)):
        yield


def run(main, *users):
    """Run a script's main(): the exit status is 2 for an error that the user can correct, 130 for Ctrl-C.

    users: further exception classes that are reported in this way. All others keep their traceback.
    """
    try:
        with safe_output():
            main()
        if sys.stdout:
            sys.stdout.flush()  # a closed pipe must raise its error here, where it is handled
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        user_error = of_user(error, *users)
        if user_error is None:
            raise
        print(user_error, file=sys.stderr)
        sys.exit(2)


def of_user(error, *users):
    """The UserError that corresponds to an exception, or None if the exception is a fault of the program.

    users: further exception classes that are errors of the user. A full disk, too little memory and a place that
    cannot be written are errors of the user, too.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, users):
        message, _, hint = str(error).partition("\n")
        return UserError(message, hint)
    if is_memory(error):
        size = re.search(r"[\d.]+ ?(?:[KMGTPE]i?B|bytes)", str(error))
        return UserError("there is not enough memory" + (f" for another {size[0]}" if size else ""),
                         "Take a smaller --batch or --size, or a machine with more memory.")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return UserError("the system gives this program no further thread", "Take fewer with --workers or --threads.")
    if isinstance(error, (RuntimeError, ValueError)) and str(error).startswith(("Symlink loop", "embedded null")):
        return UserError(f"no such path: {error}", "Check the names of files and folders.")  # as pathlib says it
    if not isinstance(error, OSError):
        return None
    place = f": {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return UserError(f"{error.strerror.lower()}{place}",
                         "Free some space and give the same command again: epochs that are written are not lost.")
    if error.errno == errno.EFBIG:
        return UserError(f"a file of this size may not be written{place}",
                         "Raise the limit (ulimit -f), or choose another disk with --out: FAT32 ends at 4 GiB.")
    if error.errno in NO_PLACE:
        return UserError(f"{error.strerror.lower()}{place}",
                         "Check that place, or choose another with --out or --cache.")
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
        raise UserError(f"this needs the package {package}, which is not installed",
                        f'pip install -e ".[{extra}]"') from error
