"""Files: atomic writes, one writer at a time, and readers whose errors are one line."""

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
        _replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__  # torch.save wraps a full disk
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise error


WINDOWS = os.name == "nt"
_UMASK = os.umask(0)
os.umask(_UMASK)


def _replace(temporary, path):
    """os.replace; on Windows a scanner or a reader may hold a file for a moment."""
    for wait in (0.02, 0.1, 0.5, 2):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if not WINDOWS:
                raise
            time.sleep(wait)
    os.replace(temporary, path)


def check_writable(folder):
    """An error unless files can be written into `folder`, or it can be made. Nothing is made."""
    there = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if os.path.exists(place))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}",
                        "Choose another place with --out.") from error


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


@contextlib.contextmanager
def reading_errors(path):
    """Whatever makes a file unreadable becomes one line about it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text in UTF-8", "Save it again in UTF-8; "
                        "spreadsheet programs call that CSV UTF-8.") from error
    except Exception as error:  # parsers of foreign files raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {' '.join(reason.split())[:300]}") from error


def read_json(path):
    with reading_errors(path):
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def write_yaml(path, data):
    import yaml  # here: an edge box has none, and reads no YAML
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def read_yaml(path):
    """A YAML file that holds a mapping; an empty one is an empty mapping."""
    import yaml
    with reading_errors(path):
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a list of `option: value` lines")
    return data


def write_csv(path, rows):
    """A list of dicts as CSV; columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path, required=(), separators=","):
    """A CSV as a list of dicts of strings; a missing column is an error that names it.

    separators: which may stand between cells; the most frequent one of the first line does.
    """
    with reading_errors(path):
        return parse_csv(Path(path).read_bytes(), path, required, separators)


def parse_csv(data, path, required=(), separators=","):
    """The rows of a CSV in bytes, as read_csv() gives them; path: for errors."""
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
    if any(any(row.pop(None, ())) for row in rows):  # empty cells at the end are no harm
        raise UserError(f"{path} has rows that are longer than its header",
                        "Text that holds a comma stands in double quotes.")
    return rows


def write_npz(path, **arrays):
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(path, required=()):
    """The arrays of a .npz file. Pickled objects are never loaded."""
    with reading_errors(path), open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz of named arrays, or not a whole one")
        file.seek(0)
        try:
            arrays = dict(np.load(file, allow_pickle=False))
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError("it holds pickled objects, which can run code and are not loaded") from None
            raise
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds other files than arrays")
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
    owner = path.with_name(path.name + ".owner")  # Windows lets nobody read the locked file itself
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


def parse_number(value):
    """A float of a JSON value or of a cell's text (with a decimal point or comma), else NaN."""
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
    """The unit of the last digit of a number's text: 0.01 of "0.85"; never below 1e-12."""
    mantissa, _, exponent = str(text).strip().lower().replace(",", ".").partition("e")
    decimals = len(mantissa.partition(".")[2]) - (int(parse_number(exponent)) if math.isfinite(parse_number(exponent)) else 0)
    return 10.0 ** -min(max(decimals, -12), 12)
