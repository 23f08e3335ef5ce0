"""Errors of the user's making: one line, a way out, exit status 2."""

import argparse
import difflib
import errno
import importlib
import math
import os
import sys


class UserError(Exception):
    """Something the user can mend. `message` says what is wrong, `hint` how to mend it."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self):
        return f"error: {self.message}" + (f"\n{self.hint}" if self.hint else "")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a help text, where there is one and the text does not say it already."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == [] or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong option with its nearest match."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        hint = f"`python {self.prog} --help` lists every option."
        if message.startswith("unrecognized arguments: "):
            words = message.split(": ", 1)[1].split()
            flag = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
            hint = nearest(flag, self._option_string_actions) or hint
        raise UserError(message, hint)


def _number(kind, least, most, meaning):
    """An argparse type: a number from `least` to `most`, which `meaning` describes."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value
    return convert


LARGEST = sys.float_info.max
positive = _number(int, 1, LARGEST, "a whole number from 1 on")
above_zero = _number(float, sys.float_info.min, LARGEST, "a number above 0")
share = _number(float, 0, 1, "a number from 0 to 1")
seed = _number(int, 0, 2 ** 32 - 1, "a whole number from 0 to 4294967295")


def not_negative(kind):
    return _number(kind, 0, LARGEST, f"a {'whole ' if kind is int else ''}number from 0 on")


def nearest(name, known):
    """'did you mean X?' for the nearest of `known`, or ''."""
    close = difflib.get_close_matches(str(name).lower(), [str(k) for k in known], n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def listing(items, most=5):
    """The first `most` items and a count of the rest."""
    items = [str(item) for item in items]
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def run(main, *users):
    """Run a script's main(): the exit status is 2 for a user's error, 130 for Ctrl-C.

    users: further exception classes that are of the user's making.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a name that a Windows pipe cannot encode
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()  # here, where a closed pipe can still be met
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = of_user(error, *users)
        if told is None:
            raise
        print(told, file=sys.stderr)
        sys.exit(2)


def of_user(error, *users):
    """The UserError that an exception amounts to, or None where it is a fault of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, users):
        return UserError(str(error))
    if not isinstance(error, OSError) or error.errno not in FULL | NO_PLACE:
        return None
    hint = ("Free some space and give the same command again: epochs that are written are not lost."
            if error.errno in FULL else "Check that place, or choose another with --out or --cache.")
    where = f": {error.filename}" if error.filename else ""
    return UserError(f"{error.strerror.lower()}{where}", hint)


def need(module, extra):
    """Import an optional package, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        if error.name and error.name.split(".")[0] != package:
            raise  # it is there, and broken: its own words help more
        raise UserError(f"this needs the package {package}, which is not installed",
                        f'pip install -e ".[{extra}]"') from error
