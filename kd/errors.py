"""Errors that the user can correct: one line that says what is wrong, a hint, exit status 2."""

import argparse
import difflib
import errno
import importlib
import math
import os
import sys


class UserError(Exception):
    """An error that the user can correct. `message` says what is wrong, `hint` what to do."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.message, self.hint = message, hint

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
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value
    return convert


LARGEST = sys.float_info.max
positive = _bounded(int, 1, LARGEST, "a whole number from 1 on")
above_zero = _bounded(float, sys.float_info.min, LARGEST, "a number above 0")
share = _bounded(float, 0, 1, "a number from 0 to 1")
seed = _bounded(int, 0, 2 ** 32 - 1, "a whole number from 0 to 4294967295")  # NumPy and PyTorch both accept these


def not_negative(kind):
    """An argparse type: an int or a float from 0 on. kind: int or float."""
    return _bounded(kind, 0, LARGEST, f"a {'whole ' if kind is int else ''}number from 0 on")


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
NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def run(main, *users):
    """Run a script's main(): the exit status is 2 for an error that the user can correct, 130 for Ctrl-C.

    users: further exception classes that are reported in this way. All others keep their traceback.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a Windows pipe cannot encode every file name
    try:
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

    users: further exception classes that are errors of the user. A full disk and a place that cannot be
    written are errors of the user, too.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, users):
        return UserError(str(error))
    if not isinstance(error, OSError) or error.errno not in FULL | NO_PLACE:
        return None
    hint = ("Free some space and give the same command again: epochs that are written are not lost."
            if error.errno in FULL else "Check that place, or choose another with --out or --cache.")
    place = f": {error.filename}" if error.filename else ""
    return UserError(f"{error.strerror.lower()}{place}", hint)


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
