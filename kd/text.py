"""Numbers, names and tables as text, for terminals and reports alike."""

import math

TERMINAL_WIDTH = 110  # characters of a line; wider tables wrap on a laptop


def is_defined(value):
    """Whether `value` is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value, form=".3f"):
    """A number by the format specification `form`; `n/a` for None, NaN and infinity."""
    return format(value, form) if is_defined(value) else "n/a"


def format_bounds(lo, hi, form=".3f"):
    """`[0.401, 0.504]`, or `[n/a]` where there is no interval."""
    return f"[{format_number(lo, form)}, {format_number(hi, form)}]" if is_defined(lo) else "[n/a]"


def format_metric(metric, form=".3f", bounds_form=None):
    """`0.455 [0.401, 0.504]` of a METRIC: a dict with value, lo, hi. bounds_form: of the bounds, where another than `form`."""
    if not is_defined(metric["value"]):
        return "n/a"
    return f"{format_number(metric['value'], form)} {format_bounds(metric['lo'], metric['hi'], bounds_form or form)}"


def format_count(n, noun, plural=None):
    """`1 image`, `1,500 images`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def format_duration(seconds):
    """Seconds as a person says them: 48 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def one_line(text, limit=32):
    """`text` on one line of at most `limit` characters, without what cannot be printed."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= limit else text[:limit - 1].rstrip() + "…"


def align_columns(rows, right=False):
    """Rows of cells as lines of equally wide columns, flush left; with `right` all but the first flush right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if right and k else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
