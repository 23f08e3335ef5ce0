"""sweep.json of a model: the combinations of options that were tried, and which of them was chosen on validation.

    {"chosen_on": "val", "metric": "macro_f1", "seed": 0,
     "tries": [{"options": {"alpha": 0.3, "temperature": 4}, "value": 0.61, "epoch": 7, "run": FOLDER}, ...],
     "chosen": {"alpha": 0.3, "temperature": 4},
     "earlier": [tries of lists that the plan had before]}

value: of the metric on validation at `epoch`, the best one of that training. FOLDER is below the study's folder.
"""

import math
from pathlib import Path

from kd import selection
from kd.errors import UserError
from kd.files import read_json
from kd.text import is_defined

FILE = "sweep.json"


def is_better(metric, value, other):
    """Whether a value of a metric of kd.selection is better than another."""
    sign = selection.METRICS.get(metric, ("", 1))[1]
    return sign * value > sign * other


def best(metric, tries):
    """The try with the best value, of equal ones the first. metric: its name, which says whether low is good."""
    found = tries[0]
    for one in tries[1:]:
        if is_better(metric, one["value"], found["value"]):
            found = one
    return found


def count(sweep):
    """The number of tries that a choice was among: those of the plan, and those of earlier lists."""
    return len(sweep["tries"]) + len(sweep.get("earlier", ()))


def in_words(options):
    """`alpha 0.3, temperature 4`."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in options.items())


def read(folder):
    """The content of the sweep.json of a model's folder, None where there is none. UserError where it is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if not _is_sweep(content):
        raise UserError(f"{path} is not what study.py writes")
    return content


def _is_sweep(content):
    def are_options(options):
        return isinstance(options, dict) and bool(options) and all(
            isinstance(value, (str, int)) or is_defined(value) for value in options.values())

    def are_tries(tries):
        return isinstance(tries, list) and all(
            isinstance(one, dict) and are_options(one.get("options")) and is_defined(one.get("value"))
            and abs(one["value"]) < 1e15 and (one.get("epoch") is None or type(one["epoch"]) is int) for one in tries)

    return (isinstance(content, dict) and all(isinstance(content.get(key), str) for key in ("metric", "chosen_on"))
            and are_options(content.get("chosen")) and bool(content.get("tries")) and are_tries(content["tries"])
            and are_tries(content.get("earlier", []))
            and all(one["options"].keys() == content["chosen"].keys() for one in content["tries"])
            and any(one["options"] == content["chosen"] for one in content["tries"]))


def value_of(history, metric):
    """(value, epoch) of a training: the best of the metric on validation, and the first epoch that reached it.

    history: rows of history.csv, as kd.run_folder.Run has them. UserError where they have no such number.
    """
    column = selection.METRICS.get(metric, (f"val_{metric}", 1))[0]
    rows = [row for row in history if math.isfinite(row.get(column, math.nan))]
    if not rows:
        raise UserError(f"its history.csv has no {column}")
    row = rows[selection.best(rows, metric)]
    return abs(selection.score(row, metric)[0]), int(row["epoch"])
