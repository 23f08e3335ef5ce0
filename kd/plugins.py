"""Plugins: files of code that the user names with --plugin, and those that a run was trained with.

Loading a plugin executes it. A run folder may come from elsewhere, and what it records proves nothing: whoever wrote
it chose the path, the digest and perhaps the file. So a file that a run or a file of options names is executed only if
the user has named the same content with --plugin on this machine before. The digests of these are in the user's cache
folder, where no run folder reaches.
"""

import contextlib
import hashlib
import re
import sys
from pathlib import Path

from kd import machine
from kd.errors import UserError
from kd.files import read_json, read_yaml
from kd.text import quoted

_loaded = set()  # paths and sha256 of what is loaded: since a run recorded it, a file may have moved or have changed
LOOK = "It is executed as a program: look at it, and if you trust it, add "


def load(files, registry):
    """Load the plugins that the user has named, and remember their contents. registry: an object with load_plugin."""
    for file in files:
        _load(file, registry)
        with contextlib.suppress(OSError):  # no place to write: the user names it again
            digest = digest_of(file)
            if digest not in known():
                place().parent.mkdir(parents=True, exist_ok=True)
                with place().open("a", encoding="utf-8") as lines:
                    lines.write(f"{digest} {Path(file).resolve()}\n".encode("ascii", "replace").decode())


def load_of_config(files, registry):
    """Load the plugins that a --config file names. UserError for one whose content the user has not named before."""
    for file in files:
        if Path(file).is_file() and digest_of(file) not in known():
            raise UserError(f"the file of options names the plugin {file}, which was not used on this machine before",
                            LOOK + quoted("--plugin", *files))
        print(f"plugin: {file}, as the file of options names it", file=sys.stderr)
        _load(file, registry)


def _load(file, registry):
    registry.load_plugin(file)
    _loaded.update((Path(file).resolve(), digest_of(file)))


def record(files):
    """What environment.json says of the plugins of a run: [{"path", "sha256" of its content}]."""
    return [{"path": Path(file).resolve().as_posix(), "sha256": digest_of(file)} for file in files]


def provide(kind, name, folder, registry):
    """Load the plugins that a run was trained with, where `name` is not registered without them.

    folder: of the run. One line names each file. UserError where a file is gone or has another content than in
    training, or where the user has not named this content on this machine.
    """
    try:
        registry.get(kind, name)
        return
    except LookupError as error:
        message = str(error).splitlines()[0].partition(";")[0]
        files = recorded(folder)
        if not files:
            raise
    files = [(path, digest) for path, digest in files if _loaded.isdisjoint((path.resolve(), digest))]
    for path, digest in files:
        if not digest:
            raise UserError(message, "Its run was trained with a plugin: add " + quoted("--plugin", path))
        if digest not in known():
            raise UserError(f"{message}: {folder} was trained with the plugin {path}, which was not used on this "
                            "machine before", LOOK + quoted("--plugin", path))
        if not path.is_file():
            raise UserError(f"{message}: the plugin {path} that {folder} was trained with is no longer there",
                            "Name it where it is now, with --plugin FILE.")
        if digest_of(path) != digest:
            raise UserError(f"{message}: the plugin {path} has changed since {folder} was trained with it",
                            "Bring that content back, or take it as it is now: " + quoted("--plugin", path))
    for path, _ in files:
        print(f"plugin: {path}, as in the training of {folder}", file=sys.stderr)
        _load(path, registry)


def recorded(folder):
    """[(path, sha256)] of the plugins of a run; the digest is None in older runs, which have only paths."""
    environment, config = Path(folder) / "environment.json", Path(folder) / "config.yaml"
    content = read_json(environment) if environment.is_file() else {}
    if isinstance(content, dict) and "plugins" in content:
        entries = content["plugins"]
        if not isinstance(entries, list) or not all(
                isinstance(entry, dict) and isinstance(entry.get("path"), str)
                and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))) for entry in entries):
            raise UserError(f"{environment} is damaged: its plugins are not paths with their sha256",
                            "Name the files with --plugin FILE.")
        return [(Path(entry["path"]), entry["sha256"]) for entry in entries]
    options = read_yaml(config) if config.is_file() else {}
    files = options.get("plugin") or []
    return [(Path(str(file)), None) for file in (files if isinstance(files, list) else [files])]


def place():
    """The file with the digests of the plugins that the user has named on this machine."""
    return machine.cache_folder() / "plugins.txt"


def known():
    """The sha256 of each plugin that the user has named on this machine, a set."""
    try:
        return {line[:64] for line in place().read_text(encoding="utf-8").splitlines()}
    except OSError:
        return set()


def digest_of(file):
    """The sha256 of a file's content. An OSError where it cannot be read."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
