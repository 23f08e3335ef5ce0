"""The registry: a plugin file that registers itself is all there is to adding a part.

A plugin lies in `registry/<kind>s/` or is named with `--plugin`. The first question
about a kind imports its files; one that fails harms nobody until it is asked for.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {"architecture": "architectures", "dataset": "datasets", "loss": "losses"}


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
    info: dict = field(default_factory=dict)

    @property
    def summary(self):
        return (inspect.getdoc(self.make) or "").split("\n")[0]


_entries = {kind: {} for kind in KINDS}  # kind -> name or alias -> Entry
_broken = {kind: {} for kind in KINDS}   # kind -> path -> the exception its import raised
_loaded = set()


def register(kind, name, *aliases, **info):
    """Decorate a function or class as the `kind` called `name`; `info` is kept beside it."""
    if kind not in KINDS:
        raise UnknownName(f"unknown kind {kind!r}; there are: {', '.join(KINDS)}")

    path = Path(inspect.currentframe().f_back.f_code.co_filename).resolve()

    def decorate(make):
        entry = Entry(kind, name, aliases, make, path, info)
        for key in (name, *aliases):
            other = _entries[kind].get(key)
            if other is not None and (other.path != path or other.name != name):
                raise DuplicateName(f"two plugins register the {kind} {key!r}: {other.path} and {path}")
        _entries[kind].update({key: entry for key in (name, *aliases)})
        return make

    return decorate


def _load(kind):
    if kind in _loaded:
        return
    _loaded.add(kind)
    folder = Path(__file__).parent / KINDS[kind]
    for path in sorted(folder.glob("*.py")):
        if path.stem == "__init__":
            continue
        try:
            importlib.import_module(f"{__name__}.{KINDS[kind]}.{path.stem}")
        except DuplicateName:
            raise
        except Exception as error:  # shown when a part of this file is asked for
            _broken[kind][path] = error


def load_plugin(path):
    """Import a plugin file that the user named. What it raises is shown as it is."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UnknownName(f"no such plugin file: {path}")
    name = f"plugin_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__) == path:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UnknownName(f"a plugin is a Python file (.py): {path}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def get(kind, name):
    """The Entry called `name`, or `family:member` of the family registered as `family:`."""
    _load(kind)
    entries = _entries[kind]
    family = name.split(":")[0] + ":" if ":" in name else None
    entry = entries.get(name) or (entries.get(family) if family else None)
    if entry is not None:
        return entry
    for path, error in _broken[kind].items():
        if f'"{name}"' in path.read_text(encoding="utf-8"):
            raise error
    close = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
    message = f"unknown {kind} {name!r}" + (f"; did you mean {close[0]}?" if close else "")
    message += f"\nThere are: {', '.join(names(kind)) or 'none'}."
    if _broken[kind]:
        message += f"\nThese files failed to import: {', '.join(p.name for p in _broken[kind])}."
    raise UnknownName(message)


def create(kind, name, *args, **kwargs):
    """Make the part called `name`. A member of a family gets its own name first."""
    entry = get(kind, name)
    member = (name.split(":", 1)[1],) if entry.name.endswith(":") else ()
    return entry.make(*member, *args, **kwargs)


def names(kind):
    """All registered names of a kind, without aliases, sorted."""
    _load(kind)
    return sorted({entry.name for entry in _entries[kind].values()})


def table():
    """One line for every registered part: kind, name, aliases, first line of its docstring."""
    lines = []
    for kind in KINDS:
        for name in names(kind):
            entry = _entries[kind][name]
            shown = name + ("NAME" if name.endswith(":") else "")
            shown += f" ({', '.join(entry.aliases)})" if entry.aliases else ""
            lines.append(f"{kind:13} {shown:34} {entry.summary}")
        lines += [f"{kind:13} {path.stem:34} failed to import: {error!r}"
                  for path, error in _broken[kind].items()]
    return "\n".join(lines)
