"""Numbers, names and tables as text, for the terminal and for reports."""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import PurePath

from kd.errors import printable

SEEDS_NOTE = "Round brackets: two seeds, which differ too much for an interval; the figure of each."
TERMINAL_WIDTH = 110  # characters; wider tables wrap on a laptop


def is_defined(value):
    """Whether `value` is a finite number. True and False are not numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value, form=".3f"):
    """A number in the format `form`, as format() takes it; `n/a` for None, NaN and infinity."""
    return format(value, form) if is_defined(value) else "n/a"


def format_bounds(lo, hi, form=".3f"):
    """An interval as `[0.401, 0.504]`, or `[n/a]` if it is undefined."""
    return f"[{format_number(lo, form)}, {format_number(hi, form)}]" if is_defined(lo) else "[n/a]"


def format_metric(metric, form=".3f", bounds_form=None):
    """A METRIC, a dict with value, lo and hi, as `0.455 [0.401, 0.504]`; `n/a` if its value is undefined.

    The value stands alone if it has no interval. Where one is withheld for lack of data, `[too few]` says so; where two
    trainings differ too much for one, the figure of each follows, as `0.455 (0.802, 0.108)`: see SEEDS_NOTE.
    bounds_form: the format of the bounds, if it differs from `form`.
    """
    if not is_defined(metric["value"]):
        return "n/a"
    value = format_number(metric["value"], form)
    if metric.get("withheld", "").startswith("too few"):
        return f"{value} [too few]"
    if is_of_two_seeds(metric):
        return f"{value} ({metric['withheld'].partition('; ')[2]})"
    if not is_defined(metric["lo"]):
        return value
    return f"{value} {format_bounds(metric['lo'], metric['hi'], bounds_form or form)}"


def is_of_two_seeds(metric):
    """Whether a METRIC has the figures of two seeds in place of an interval."""
    return metric.get("withheld", "").startswith("two seeds")


def format_p(p):
    """A p-value to three digits, the smallest as `<0.001`; `n/a` if it is undefined."""
    return "<0.001" if is_defined(p) and p < 0.001 else format_number(p)


def format_count(n, noun, plural=None):
    """A count with its noun: `1 image`, `1,500 images`. plural: where it is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def format_duration(seconds):
    """Seconds as `48 s`, `3 min 20 s` or `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def one_line(text, limit=32):
    """`text` on one line of at most `limit` characters, without control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= limit else text[:limit - 1].rstrip() + "…"


def quoted(*words):
    """Words of a command line as this system's shell reads them; paths with `/`."""
    words = [word.as_posix() if isinstance(word, PurePath) else str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command(script, *words):
    """The command line of a script, such as train_teacher.py."""
    return quoted("python", script, *words)


def width(text):
    """The columns that `text` takes on a terminal: two for a wide character, such as a Chinese one, none for an accent
    that is a character of its own."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(names, limit):
    """{name: text on one line that takes at most `limit` columns}, no two of them alike.

    Of long names the middle is left out, or a part before it where those then look alike; names that still do have
    their numbers in `names`. limit: from 12 on.
    """
    names = list(dict.fromkeys(names))
    lines = [one_line(name, len(name) + 1) for name in names]
    for end in range((limit - 1) // 2, limit - 2):
        short = [_cut(line, limit, end) for line in lines]
        if all(short) and len(set(short)) == len(names):
            return dict(zip(names, short))
    short = [_cut(line, limit, (limit - 1) // 2) for line in lines]
    counts = Counter(short)
    for number, text in enumerate(short):
        if counts[text] > 1 or not text:
            mark = f"#{number}"
            short[number] = _cut(text, limit - len(mark), (limit - len(mark) - 1) // 2) + mark
    return dict(zip(names, short))


def short_labels(names, limit):
    """What shortened() makes of each of `names`, a list."""
    short = shortened(names, limit)
    return [short[name] for name in names]


def _cut(text, limit, end):
    """`text` without its middle, where it takes more than `limit` columns; `end` of them are of its end."""
    if width(text) <= limit:
        return text
    head, tail = text[:limit - end], text[-end:]
    while width(tail) > end:
        tail = tail[1:]
    while width(head) + 1 + width(tail) > limit:
        head = head[:-1]
    return f"{head}…{tail}"


def align_columns(rows, right=False):
    """Rows of cells as text with columns of equal width, aligned left; with `right` all but the first aligned right.

    A table that is wider than the terminal is printed in several parts, each with the first column, the further ones
    without rows that are empty there; where there is no terminal, whole.
    """
    rows = [[re.sub(r"[\n\t]", " ", printable(str(cell))) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*rows)]
    room, used = shutil.get_terminal_size((sys.maxsize, 24)).columns, 0
    parts = [] if len(widths) > 1 else [[0]]  # the columns of each
    for column in range(1, len(widths)):
        if not parts or used + 2 + widths[column] > room:
            parts.append([0])
            used = widths[0]
        parts[-1].append(column)
        used += 2 + widths[column]

    def padded(row, column):
        space = " " * (widths[column] - width(row[column]))
        return space + row[column] if right and column else row[column] + space

    return "\n\n".join(
        "\n".join("  ".join(padded(row, column) for column in part).rstrip() for row in rows
                  if part is parts[0] or any(row[column] for column in part[1:]))
        for part in parts)
