"""The registry of architectures, data sets, losses and corruptions. A new part needs one file, which registers itself.

A plugin file is in the folder of its kind, such as registry/losses/, or is named with `--plugin`. All files of a kind
are imported when the first part of that kind is needed. A file that fails to import has no effect until one of its
parts is needed; then its error is raised.
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
    """An error that the user can correct, such as an unknown name; not a fault inside a plugin."""


class UnknownName(RegistryError):
    """Nothing is registered under this name. The message lists the names that are."""


class DuplicateName(RegistryError):
    """Two plugins registered the same name. The message gives both paths."""


@dataclass(frozen=True)
class Entry:
    """A registered part."""

    kind: str        # a key of KINDS
    name: str
    aliases: tuple
    make: object     # the function or class
    path: Path       # the plugin file
    line: int        # of register() in it
    info: dict = field(default_factory=dict)  # the keyword arguments of register()

    @property
    def summary(self):
        """The first line of its docstring, or an empty string."""
        return inspect.cleandoc(self.make.__doc__ or "").split("\n")[0]


_entries = {kind: {} for kind in KINDS}  # kind -> name or alias -> Entry
_broken = {kind: {} for kind in KINDS}   # kind -> path -> the exception of its import
_loaded = set()                          # kinds whose folder is imported
_plugins = {}                            # path of a --plugin -> its module


def register(kind, name, *aliases, **info):
    """Decorator: register a function or class under a name and aliases.

    kind: a key of KINDS. info: becomes Entry.info; kd reads, for example, `stages` and `head` of an architecture.
    A name that ends in a colon is a family: `timm:` stands for every `timm:NAME`, and its function gets NAME as its
    first argument; what differs between members is in info as a function of what it returns; info's `members`, a
    function without arguments, returns their names. Raises UnknownName for an unknown kind, DuplicateName if the name
    is in use.
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
        except (Exception, SystemExit) as error:  # raised again when a part of this file is needed
            _forget(path)
            _broken[kind][path] = _exit_error(path, error) if isinstance(error, SystemExit) else error
    _loaded.add(kind)


def _exit_error(path, error):
    return RegistryError(f"{path} ends the program while it is imported (SystemExit: {error.code})\n"
                         "Put code that is only for a script under `if __name__ == '__main__':`.")


def _forget(path):
    """Remove what a file registered before its import failed."""
    for entries in _entries.values():
        for key in [key for key, entry in entries.items() if entry.path == path]:
            del entries[key]


def load_plugin(path):
    """Import the plugin file of a --plugin; a second call with the same file has no effect.

    Raises UnknownName if it is no Python file, RegistryError if it ends the program, and any error of its import.
    """
    try:
        path = Path(path).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # of a link that leads back to itself, or no permission
        raise RegistryError(f"cannot read the plugin {path}: {getattr(error, 'strerror', None) or error}") from None
    if not is_file:
        raise UnknownName(f"no such plugin file: {path}" + " (it is something else than a file)" * path.exists())
    if path.suffix != ".py":
        raise UnknownName(f"a plugin is a Python file (.py), not {path}")
    if path in _plugins:
        return
    name = f"plugin_{len(_plugins)}_{path.stem}"  # numbered, because two folders may have files of the same name
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        _forget(path)
        if isinstance(error, SystemExit):
            raise _exit_error(path, error) from None
        raise
    _plugins[path] = module


def get(kind, name):
    """The Entry of a name or alias; for `family:member`, the Entry of the family registered as `family:`.

    Raises UnknownName, or the import error of the file that should have registered the name.
    """
    _load(kind)
    entries = _entries[kind]
    family = name.partition(":")[0] + ":"
    if name in entries or ":" in name and family in entries:
        return entries.get(name) or entries[family]
    for path, error in _broken[kind].items():
        if path.stem == name or _mentions(path, name) or ":" in name and _mentions(path, family):
            raise error
    members = _members(kind, name)
    close = difflib.get_close_matches(name.lower(), entries, n=1, cutoff=0.75 if members else 0.5) + members
    message = f"unknown {kind} {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else "")
    message += f"\nThere are: {', '.join(map(_displayed, names(kind))) or 'none'}."
    for path, error in _broken[kind].items():
        message += f"\n{path.name} failed to import: {error!r}"
    raise UnknownName(message)


def _members(kind, name):
    """[FAMILY:MEMBER] of the members of families whose own name is `name`, but for case and signs between words."""
    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return [f"{family}{member}" for family, entry in _entries[kind].items() if family.endswith(":")
            for member in entry.info.get("members", list)() if plain(member) == plain(name)]


def _mentions(path, name):
    """Whether a file that cannot be imported has `name` in quotes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.search(rf"""(["']){re.escape(name)}\1""", text) is not None


def create(kind, name, *args, **kwargs):
    """Call the part registered under a name or alias with the arguments, and return the result.

    A family gets the name of its member as the first argument. Raises as get() does.
    """
    entry = get(kind, name)
    member = (name.split(":", 1)[1],) if entry.name.endswith(":") else ()
    return entry.make(*member, *args, **kwargs)


def names(kind):
    """The registered names of a kind without aliases, a sorted list."""
    _load(kind)
    return sorted({entry.name for entry in _entries[kind].values()})


def _displayed(name):
    return name + "NAME" if name.endswith(":") else name


def table():
    """All registered parts as text, one line each: kind, name, aliases, first line of the docstring."""
    lines = []
    for kind in KINDS:
        for name in names(kind):
            entry = _entries[kind][name]
            aliases = f" ({', '.join(entry.aliases)})" if entry.aliases else ""
            lines.append(f"{kind:13} {_displayed(name) + aliases:34} {entry.summary}".rstrip())
        lines += [f"{kind:13} {path.stem:34} failed to import: {error!r}"
                  for path, error in _broken[kind].items()]
    return "\n".join(lines)
