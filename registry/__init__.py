"""The registry: a plugin file that registers itself is all there is to adding a part.

A plugin lies in `registry/<kind>s/` or is named with `--plugin`. The first question
about a kind imports its files; one that fails harms nobody until it is asked for.
"""

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {"architecture": "architectures", "dataset": "datasets", "loss": "losses", "corruption": "corruptions"}


class RegistryError(LookupError):
    """A name that is unknown or taken: the user's to mend, not a fault of a plugin."""


class UnknownName(RegistryError):
    """Nothing of this name is registered. The message says what is."""


class DuplicateName(RegistryError):
    """Two plugins registered one name. The message gives both paths."""


@dataclass(frozen=True)
class Entry:
    """A registered part: its function or class, where it stands, and what it says of itself."""

    kind: str
    name: str
    aliases: tuple
    make: object
    path: Path
    line: int
    info: dict = field(default_factory=dict)

    @property
    def summary(self):
        return inspect.cleandoc(self.make.__doc__ or "").split("\n")[0]


_entries = {kind: {} for kind in KINDS}  # kind -> name or alias -> Entry
_broken = {kind: {} for kind in KINDS}   # kind -> path -> the exception its import raised
_loaded = set()                          # kinds whose folder was imported
_plugins = {}                            # path that the user named -> its module


def register(kind, name, *aliases, **info):
    """Decorate a function or class as the `kind` called `name`; `info` is kept beside it.

    A name that ends in a colon is a family: `timm:` answers for every `timm:NAME`, and its
    function gets NAME first.
    """
    if kind not in KINDS:
        raise UnknownName(f"unknown kind {kind!r}; there are: {', '.join(KINDS)}")

    caller = inspect.currentframe().f_back
    path, line = Path(caller.f_code.co_filename).resolve(), caller.f_lineno

    def decorate(make):
        entry = Entry(kind, name, aliases, make, path, line, info)
        for key in (name, *aliases):
            other = _entries[kind].get(key)
            if other is not None and (other.path, other.line, other.name) != (path, line, name):
                raise DuplicateName(f"two plugins register the {kind} {key!r}: "
                                    f"{other.path}, line {other.line}, and {path}, line {line}")
        _entries[kind].update({key: entry for key in (name, *aliases)})
        return make

    return decorate


def _load(kind):
    if kind in _loaded:
        return
    for path in sorted((Path(__file__).resolve().parent / KINDS[kind]).glob("*.py")):
        if path.name.startswith(("_", ".")):
            continue
        try:
            importlib.import_module(f"{__name__}.{KINDS[kind]}.{path.stem}")
        except DuplicateName:
            raise
        except (Exception, SystemExit) as error:  # shown when a part of this file is asked for
            _forget(path)
            _broken[kind][path] = _stopped(path, error) if isinstance(error, SystemExit) else error
    _loaded.add(kind)


def _stopped(path, error):
    return RegistryError(f"{path} ends the program while it is imported (SystemExit: {error.code})\n"
                         "What only a script does belongs under `if __name__ == '__main__':`.")


def _forget(path):
    """Drop what a file registered before it failed."""
    for entries in _entries.values():
        for key in [key for key, entry in entries.items() if entry.path == path]:
            del entries[key]


def load_plugin(path):
    """Import a plugin file that the user named, once. What it raises is shown as it is."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UnknownName(f"no such plugin file: {path}")
    if path.suffix != ".py":
        raise UnknownName(f"a plugin is a Python file (.py), not {path}")
    if path in _plugins:
        return
    name = f"plugin_{len(_plugins)}_{path.stem}"  # files of one name may lie in two folders
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        _forget(path)
        if isinstance(error, SystemExit):
            raise _stopped(path, error) from None
        raise
    _plugins[path] = module


def get(kind, name):
    """The Entry called `name`, or `family:member` of the family registered as `family:`.

    Raises UnknownName, or what the import of the file that should have registered it raised.
    """
    _load(kind)
    entries = _entries[kind]
    family = name.partition(":")[0] + ":"
    if name in entries or ":" in name and family in entries:
        return entries.get(name) or entries[family]
    for path, error in _broken[kind].items():
        if path.stem == name or _mentions(path, name) or ":" in name and _mentions(path, family):
            raise error
    close = difflib.get_close_matches(name.lower(), entries, n=1, cutoff=0.5)
    message = f"unknown {kind} {name!r}" + (f"; did you mean {close[0]}?" if close else "")
    message += f"\nThere are: {', '.join(map(_shown, names(kind))) or 'none'}."
    for path, error in _broken[kind].items():
        message += f"\n{path.name} failed to import: {error!r}"
    raise UnknownName(message)


def _mentions(path, name):
    """Whether a file that does not import has `name` in quotes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.search(rf"""(["']){re.escape(name)}\1""", text) is not None


def create(kind, name, *args, **kwargs):
    """Make the part called `name`. A member of a family gets its own name first."""
    entry = get(kind, name)
    member = (name.split(":", 1)[1],) if entry.name.endswith(":") else ()
    return entry.make(*member, *args, **kwargs)


def names(kind):
    """All registered names of a kind, without aliases, sorted."""
    _load(kind)
    return sorted({entry.name for entry in _entries[kind].values()})


def _shown(name):
    return name + "NAME" if name.endswith(":") else name


def table():
    """One line for every registered part: kind, name, aliases, first line of its docstring."""
    lines = []
    for kind in KINDS:
        for name in names(kind):
            entry = _entries[kind][name]
            aliases = f" ({', '.join(entry.aliases)})" if entry.aliases else ""
            lines.append(f"{kind:13} {_shown(name) + aliases:34} {entry.summary}".rstrip())
        lines += [f"{kind:13} {path.stem:34} failed to import: {error!r}"
                  for path, error in _broken[kind].items()]
    return "\n".join(lines)
