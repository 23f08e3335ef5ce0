"""Files: atomic writers, readers whose errors are one line, a lock for one writer at a time, numbers in text.

What takes milliseconds to import and predict.py does not need to answer an image is imported where it is used.
"""

import codecs
import contextlib
import errno
import io
import itertools
import json
import math
import os
import re
import stat
import sys
import time
from pathlib import Path

import numpy as np

from kd.errors import UserError

# The largest files that are read, in bytes: many times what a file of this kind has, and what 1 GB of memory reads.
YAML = 2 ** 17        # a plan has 1 KiB, and PyYAML needs seconds for this much
JSON = 2 ** 24
CSV = 2 ** 26
CELLS = 5_000_000     # of a CSV file
ROWS = 500_000        # of a CSV file
ARRAYS = 2 ** 29      # of all arrays of a .npz file, unpacked
MEMBERS = 1000        # files in a zip archive

WINDOWS = os.name == "nt"
_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)


# ---- writers

@contextlib.contextmanager
def atomic(path, mode="wb"):
    """Open a temporary file beside `path`; on success fsync and rename it into place.

    A reader sees the old file or the new one, never a part of it. On an error no file is left behind.
    """
    import tempfile
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


def check_writable(folder, other="another place with --out (`out:` in a plan)"):
    """UserError if `folder` cannot be written, or cannot be created where it does not exist. Creates nothing.

    other: what to choose instead, for the hint.
    """
    import tempfile
    folder_and_parents = (Path(folder).absolute(), *Path(folder).absolute().parents)
    nearest_existing = next(place for place in folder_and_parents if os.path.lexists(place))
    if not os.path.exists(nearest_existing):
        raise UserError(f"cannot write to {folder}: {nearest_existing} is a symbolic link that leads nowhere",
                        f"Choose {other}.")
    try:
        tempfile.TemporaryFile(dir=nearest_existing).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}",
                        f"Choose {other}.") from error


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

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _):  # read_yaml() refuses them; a list that two options share is written twice
            return True

    write_text(path, yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def write_csv(path, rows):
    """Write dicts as CSV. The columns are the keys of all rows of a list, in order of first appearance, or those of the
    first row of an iterator, which is not held in memory.

    read_csv() gives the same text back; a spreadsheet program calculates no cell of it (see csv_line).
    """
    if not isinstance(rows, list):
        first = next(rows := iter(rows))
        columns, rows = list(first), itertools.chain([first], rows)
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path, "w") as file:
        file.write(csv_line(columns))
        file.writelines(csv_line([row.get(column) for column in columns]) for row in rows)


_FORMULA = re.compile("[' ]*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # as OWASP, CSV injection, lists them


def csv_line(cells):
    """A line of CSV, with its end. None is an empty cell.

    Spreadsheet programs run a text that begins with = + - @ or a tab as a formula. An apostrophe before it makes it
    text there, and read_csv() takes that apostrophe away. A number such as -0.5 stays a number.
    """
    import csv
    text = io.StringIO()
    cells = ["" if cell is None else str(cell) for cell in cells]
    csv.writer(text).writerow(
        f"'{cell}" if _FORMULA.match(cell) and math.isnan(parse_number(cell)) else cell for cell in cells)
    return text.getvalue()[:-2] + "\n"  # csv puts line ends inside a cell into quotes only where its own is "\r\n"


def _plain_cell(cell):
    """The text of which csv_line() made this cell."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def write_npz(path, **arrays):
    """Write named NumPy arrays as a compressed .npz."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


# ---- readers: each opens its file with open_regular()

@contextlib.contextmanager
def reading_errors(path):
    """Turn whatever a reader raises inside this context into a UserError of one line that names `path`."""
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file: {path}") from None
    except PermissionError as error:
        raise UserError(f"there is no permission to read {path}",
                        "Nothing is wrong with the file itself. Give your user the right to read it.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text in UTF-8", "Save it again in UTF-8; "
                        "spreadsheet programs call that CSV UTF-8.") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path}: it is nested too deeply") from error
    except MemoryError as error:
        raise UserError(f"cannot read {path}: there is not enough memory for it") from error
    except Exception as error:  # parsers of other people's files raise anything
        if not _is_possible(path):
            raise UserError(f"no such file: {path}") from None
        if getattr(error, "errno", None) == errno.ELOOP:
            raise UserError(f"cannot read {path}: it is a symbolic link that leads back to itself") from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {' '.join(reason.split())[:300]}") from error


def _is_possible(path):
    """Whether a file can have this name."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # one half of a pair
        return False


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
          stat.S_IFBLK: "a device"}


def open_regular(path, limit):
    """The binary file object of a regular file of at most `limit` bytes; links are followed.

    UserError for a folder, a pipe, a socket and a device, which could be read for ever, for a larger file, and where
    the file cannot be opened.
    """
    with reading_errors(path):
        _check_regular(os.stat(path), path, limit)  # before it is opened, because to open a device can have effects
        no_wait = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        file = os.fdopen(os.open(path, os.O_RDONLY | no_wait), "rb")
        file.raw.name = os.fspath(path)  # otherwise the number of the descriptor
        try:
            _check_regular(os.fstat(file.fileno()), path, limit)  # and after it, because it may have been exchanged
        except UserError:
            file.close()
            raise
    return file


def _check_regular(status, path, limit):
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    check_size(status.st_size, path, limit)


def check_size(size, path, limit, unpacked=""):
    """UserError where a file of `size` bytes is larger than `limit`."""
    if size > limit:
        raise UserError(f"{path} is too large: {_mebibytes(size)}{unpacked}, and at most {_mebibytes(limit)} are read")


def _mebibytes(size):
    return f"{size / 2 ** 20:,.1f} MiB" if size >= 2 ** 20 else f"{size / 2 ** 10:,.1f} KiB"


def read_bytes(path, limit):
    """The bytes of a regular file of at most `limit` bytes. UserError as open_regular()."""
    with open_regular(path, limit) as file, reading_errors(path):
        size = os.fstat(file.fileno()).st_size or limit  # to read more would ask for the memory of `limit` bytes
        data = file.read(min(size, limit) + 1)
    check_size(len(data), path, limit)  # files of /proc say that they have 0 bytes
    return data


def same_content(paths):
    """Whether files hold the same bytes. UserError as open_regular()."""
    sizes = {os.stat(path).st_size for path in paths}
    return len(sizes) == 1 and len({_sha256(path) for path in paths}) == 1


def _sha256(path):
    import hashlib
    digest = hashlib.sha256()
    with open_regular(path, sys.maxsize) as file, reading_errors(path):
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def check_archive(file, path, limit, members=MEMBERS):
    """The ZipFile of an open file. UserError unless it has at most so many members of `limit` bytes in all, unpacked.

    Unpacks nothing: zipfile and torch unpack no more of a member than the directory of the archive says.
    """
    import zipfile
    with reading_errors(path):
        end = zipfile._EndRecData(file)  # ZipFile() would first read a directory of any size
        if not end:
            raise ValueError("it is no zip archive, or it is cut short")
        check_size(end[zipfile._ECD_SIZE], f"the directory of {path}", members * 2 ** 10)
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
        if len(names) > members or len(set(names)) < len(names):
            raise ValueError(f"it has more than {members} parts, or two of one name")
        check_size(sum(member.file_size for member in archive.infolist()), path, limit, " unpacked")
        file.seek(0)
        return archive


def read_json(path):
    """The value in a JSON file, which may start with a byte order mark.

    UserError where a key is given twice.
    """
    text = read_bytes(path, JSON)
    with reading_errors(path):
        return parse_json(text.decode("utf-8-sig"))


def parse_json(text):
    """Like read_json(), for a text. Raises ValueError and RecursionError."""
    data = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_whole_number)
    if "\\u" in text:
        json.dumps(data, ensure_ascii=False).encode()  # half of a pair such as \ud800 can be written nowhere
    return data


def _whole_number(digits):
    if len(digits) > 19:  # what computes with it would overflow, and what prints it would fail
        raise ValueError(f"it has a whole number of {len(digits)} digits")
    return int(digits)


def _unique_keys(pairs):
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return result


def read_yaml(path):
    """The dict in a YAML file; an empty file gives an empty dict. UserError if it contains anything else.

    UserError, too, where a key is given twice and where there are aliases.
    """
    import yaml

    from kd.yaml_loader import Loader
    text = read_bytes(path, YAML)
    with reading_errors(path):
        data = yaml.load(text.decode("utf-8"), Loader)
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
    return parse_csv(read_bytes(path, CSV), path, required, separators)


def table_text(data):
    """(the text of somebody's table, whose bytes are UTF-8, UTF-16 or Windows-1252; a note where that was a guess)."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16"), ""
    for encoding, high in (("utf-16-le", data[1:2000:2]), ("utf-16-be", data[0:2000:2])):
        if len(data) > 3 and high.count(0) > 0.9 * len(high):
            return data.decode(encoding), ""
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        if b"\0" in data:
            raise
        # bytes that are undefined there are an error
        return data.decode("cp1252"), "its text is not UTF-8 and is read as Windows-1252"


def parse_csv(data, path, required=(), separators=","):
    """Like read_csv(), for the bytes of a file; path: its name, for errors."""
    import csv
    with reading_errors(path):
        wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = data.decode("utf-16" if wide else "utf-8-sig")
        separator = max(separators, key=text.partition("\n")[0].count)
        lines = ([_plain_cell(cell) for cell in line]
                 for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if line)
        columns, rows, cells = next(lines, []), [], 0
        twice = {column for column in columns if column and columns.count(column) > 1}
        if twice:
            raise ValueError(f"its header has the column {min(twice)!r} twice")
        for line in lines:
            cells += max(len(line), len(columns))
            if cells > CELLS or len(rows) >= ROWS:
                raise ValueError(f"it has more than {ROWS:,} rows or {CELLS:,} cells")
            row = dict(itertools.zip_longest(columns, line[:len(columns)]))
            if len(line) > len(columns):
                row[None] = line[len(columns):]
            rows.append(row)
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


def read_npz(path, required=(), limit=ARRAYS):
    """The arrays of a .npz file, as {name: array}. Pickled objects are never loaded.

    required: names of arrays that must be there; UserError names those that are not. limit: bytes of all arrays.
    """
    import zipfile
    with open_regular(path, limit) as file, reading_errors(path):
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz of named arrays, or it is cut short")
        check_archive(file, path, limit)
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
    import socket

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
                            "Wait until it has ended, then give the same command again.") from None
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
