"""Files: atomic writers, readers whose errors are one line, a lock for one writer at a time, numbers in text."""

import contextlib
import csv
import io
import json
import math
import os
import socket
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from kd.errors import UserError

WINDOWS = os.name == "nt"
_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)


# ---- writers

@contextlib.contextmanager
def atomic(path, mode="wb"):
    """Open a temporary file beside `path`; on success fsync and rename it into place.

    A reader sees the old file or the new one, never a part of it. On an error no file is left behind.
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
        _replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__  # torch.save raises RuntimeError when the disk is full
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise error


def _replace(temporary, path):
    """os.replace, repeated on Windows, where a virus scanner or a reader may have the file open for a moment."""
    for wait in (0.02, 0.1, 0.5, 2):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if not WINDOWS:
                raise
            time.sleep(wait)
    os.replace(temporary, path)


def check_writable(folder):
    """UserError if `folder` cannot be written, or cannot be created where it does not exist. Creates nothing."""
    folder_and_parents = (Path(folder).absolute(), *Path(folder).absolute().parents)
    nearest_existing = next(place for place in folder_and_parents if os.path.exists(place))
    try:
        tempfile.TemporaryFile(dir=nearest_existing).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}",
                        "Choose another place with --out.") from error


def write_text(path, text):
    """Write a string as UTF-8. Atomic, like all writers here."""
    with atomic(path, "w") as file:
        file.write(text)


def write_json(path, data):
    """Write dicts, lists, arrays, numbers and strings as JSON. NaN and infinity become null."""
    write_text(path, json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value):
    """`value` as types that the json module knows, with None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_yaml(path, data):
    """Write a dict of plain values as YAML, in its order."""
    import yaml  # here, because an edge box has no PyYAML and needs none
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def write_csv(path, rows):
    """Write a list of dicts as CSV. The columns are the keys of all rows, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_npz(path, **arrays):
    """Write named NumPy arrays as a compressed .npz."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


# ---- readers

@contextlib.contextmanager
def reading_errors(path):
    """Turn whatever a reader raises inside this context into a UserError of one line that names `path`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text in UTF-8", "Save it again in UTF-8; "
                        "spreadsheet programs call that CSV UTF-8.") from error
    except Exception as error:  # parsers of other people's files raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {' '.join(reason.split())[:300]}") from error


def read_json(path):
    """The value in a JSON file, which may start with a byte order mark."""
    with reading_errors(path):
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def read_yaml(path):
    """The dict in a YAML file; an empty file gives an empty dict. UserError if it contains anything else."""
    import yaml
    with reading_errors(path):
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a list of `option: value` lines")
    return data


def read_csv(path, required=(), separators=","):
    """The rows of a CSV file, as a list of {column: string}.

    required: columns that must be there; UserError names those that are not.
    separators: characters that may separate cells; the one that is most frequent in the first line is used.
    """
    with reading_errors(path):
        return parse_csv(Path(path).read_bytes(), path, required, separators)


def parse_csv(data, path, required=(), separators=","):
    """Like read_csv(), for the bytes of a file; path: its name, for errors."""
    with reading_errors(path):
        text = data.decode("utf-8-sig")
        separator = max(separators, key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        rows, columns = list(reader), reader.fieldnames or []
    missing = [column for column in required if column not in columns]
    if missing:
        other = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), None)
        raise UserError(f"{path} has no column {', '.join(missing)}",
                        f"Its columns are separated by {other!r}; save it again with commas." if other else
                        f"It has: {', '.join(columns) or 'nothing'}.")
    if any(row[column] is None for row in rows for column in required):
        raise UserError(f"{path} has rows that are shorter than its header")
    if any(any(row.pop(None, ())) for row in rows):  # empty cells at the end of a row are harmless
        raise UserError(f"{path} has rows that are longer than its header",
                        "Put text that contains a comma in double quotes.")
    return rows


def read_npz(path, required=()):
    """The arrays of a .npz file, as {name: array}. Pickled objects are never loaded.

    required: names of arrays that must be there; UserError names those that are not.
    """
    with reading_errors(path), open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz of named arrays, or it is cut short")
        file.seek(0)
        try:
            arrays = dict(np.load(file, allow_pickle=False))
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError("it contains pickled objects, which can run code and are not loaded") from None
            raise
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it contains other files than arrays")
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path} has no array {', '.join(missing)}",
                        f"It has: {', '.join(arrays) or 'nothing'}.")
    return arrays


# ---- one writer at a time

@contextlib.contextmanager
def lock(path, wait=False, what="this folder"):
    """Lock the file `path` for this process. The operating system frees the lock when the process ends or is killed.

    Another process that asks for the lock waits for it if `wait` is set; otherwise it gets a UserError that names
    the first. what: the locked object, for messages.
    """
    from filelock import FileLock, Timeout  # installed with torch; an edge box locks nothing
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_name(path.name + ".owner")  # because on Windows no other process can read the locked file
    guard = FileLock(path)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = owner.read_text(encoding="utf-8")
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


# ---- numbers in text

def parse_number(value):
    """A value of JSON or the text of a cell (with a decimal point or comma) as float; NaN if it is no number."""
    if isinstance(value, str):
        value = value.strip()
        if value.count(",") == 1 and "." not in value:
            value = value.replace(",", ".")
    elif isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def last_digit(text):
    """The unit of a number's last digit, to know how it was rounded: 0.01 for "0.85". At least 1e-12."""
    mantissa, _, exponent = str(text).strip().lower().replace(",", ".").partition("e")
    shift = parse_number(exponent)
    decimals = len(mantissa.partition(".")[2]) - (int(shift) if math.isfinite(shift) else 0)
    return 10.0 ** -min(max(decimals, -12), 12)
