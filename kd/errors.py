"""Errors of the user's making: one line, a way out, exit status 2."""

import argparse
import difflib
import errno
import os
import sys


class UserError(Exception):
    """Something the user can mend. `message` says what is wrong, `hint` how to mend it."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self):
        return f"error: {self.message}" + (f"\n{self.hint}" if self.hint else "")


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong option with its nearest match."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                         allow_abbrev=False, **kwargs)

    def error(self, message):
        hint = f"`python {self.prog} --help` lists every option."
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            hint = nearest(word, self._option_string_actions) or hint
        raise UserError(message, hint)


def nearest(name, known, quote=""):
    """'did you mean X?' for the nearest of `known`, or ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"did you mean {quote}{close[0]}{quote}?" if close else ""


def listing(items, most=5):
    """The first `most` items and a count of the rest."""
    items = [str(item) for item in items]
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def run(main, *users):
    """Run a script's main(): the exit status is 2 for a user's error, 130 for Ctrl-C.

    users: further exception classes that are of the user's making.
    """
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except users as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` closed our output: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else None)
        if not full and not isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError)):
            raise
        where = f": {error.filename}" if error.filename else ""
        hint = ("Free some space and give the same command again: it goes on from the last epoch."
                if full else "Choose a place you can write to with --out or --cache.")
        print(UserError(f"{error.strerror.lower()}{where}", hint), file=sys.stderr)
        sys.exit(2)


def need(module, extra):
    """Import an optional package, or say which extra installs it."""
    import importlib
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs the package {module.split('.')[0]}, which is not installed",
                        f'pip install -e ".[{extra}]"') from error
