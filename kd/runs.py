"""Run folders: where files live, atomic writes, and one writer at a time."""

import contextlib
import csv
import io
import json
import math
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import yaml

from kd.errors import UserError


@contextlib.contextmanager
def atomic(path, mode="wb"):
    """Open a temporary file beside `path`; on success fsync and rename it into place.

    A reader sees the old file or the new one, never a part; on an error nothing is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


_UMASK = os.umask(0)
os.umask(_UMASK)


def write_text(path, text):
    with atomic(path, "w") as file:
        file.write(text)


def write_json(path, data):
    """JSON in which an undefined number (NaN, infinity) is null."""
    write_text(path, json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_yaml(path, data):
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def read_yaml(path):
    """A YAML file that holds a mapping."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a list of `option: value` lines")
    return data


def write_csv(path, rows, columns=None):
    """A list of dicts as CSV; columns are those of all rows, in order of appearance."""
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path, required=()):
    """A CSV as a list of dicts of strings; a missing column is an error that names it."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    missing = [column for column in required if column not in columns]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}",
                        f"It has: {', '.join(columns) or 'nothing'}.")
    if any(row[column] is None for row in rows for column in required):
        raise UserError(f"{path} has rows that are shorter than its header")
    return rows


def write_npz(path, **arrays):
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(path, required=()):
    """The arrays of a .npz file. Pickled objects are never loaded."""
    import zipfile
    import zlib
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("it is a single array, not an .npz of named arrays")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = ("it holds pickled objects, which can run code and are not loaded"
                  if "pickle" in str(error).lower() else str(error))
        raise UserError(f"cannot read {path}: {reason}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path} has no array {', '.join(missing)}",
                        f"It has: {', '.join(arrays) or 'nothing'}.")
    return arrays


@contextlib.contextmanager
def lock(path, wait=False, what="this folder"):
    """Hold an OS lock on the file `path`; it ends with the process, however that ends.

    Without `wait` a second holder gets an error that names the first.
    """
    from filelock import FileLock, Timeout  # torch brings it; an edge box locks nothing
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_name(path.name + ".owner")
    guard = FileLock(path)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        holder = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        if not wait:
            raise UserError(f"{what} is being written by {holder}",
                            "Wait until it has ended, or choose another --name or --study.") from None
        print(f"waiting for {holder}, which is writing {what}")
        guard.acquire()
    try:
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        guard.release()


def finished(run):
    """Whether training in this folder has ended: test predictions are what it writes last."""
    return (Path(run) / "predictions" / "test.npz").is_file()


def is_run(path):
    """Whether `path` is a folder with a finished run in or below it."""
    return any(Path(path).glob("**/predictions/test.npz"))


def find(path):
    """The seed folders at or below `path` that hold predictions, sorted by path."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such folder: {path}")
    runs = sorted({file.parents[1] for file in path.glob("**/predictions/test.npz")})
    if not runs:
        raise UserError(f"no finished run at or below {path}",
                        "A run is finished when it has predictions/test.npz.")
    return runs


def describe(run):
    """(study, model, seed) of a run folder, read from its place in the tree."""
    run = Path(run).resolve()
    return run.parents[1].name, run.parent.name, run.name
