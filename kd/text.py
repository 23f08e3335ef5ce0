"""Numbers, names and tables as text, for the terminal and for reports."""

import math
import os
import shlex
import subprocess
from pathlib import PurePath

from kd.errors import printable

SEEDS_NOTE = "(0.812, 0.640) in place of an interval: two seeds: no interval; these are their figures."
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
    if metric.get("withheld", "").startswith("two seeds"):
        return f"{value} ({metric['withheld'].partition('; ')[2]})"
    if not is_defined(metric["lo"]):
        return value
    return f"{value} {format_bounds(metric['lo'], metric['hi'], bounds_form or form)}"


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


def align_columns(rows, right=False):
    """Rows of cells as text with columns of equal width, aligned left; with `right` all but the first aligned right."""
    rows = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligns = [str.ljust] + [str.rjust if right else str.ljust] * len(widths[1:])
    lines = []
    for row in rows:
        cells = [align(cell, width) for align, cell, width in zip(aligns, row, widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
