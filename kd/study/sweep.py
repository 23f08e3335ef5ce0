"""Sweeps: options to which a plan gives a list. All combinations are tried; one is chosen on validation.

Each combination is trained with the model's first seed, as a run of its own: `sweep_tries/MODEL+OPTIONS/seed_N` in the
study's folder, which no step over the study's models reads. The choice reads history.csv of the tries and nothing
else: nothing of the test split. It writes into the model's folder

    sweep.json     all tries with their values on validation, and what was chosen (kd/sweeps.py)
    chosen.yaml    the chosen options; the trainings of the model read it with --config

and the try itself becomes the model's run of that seed: it is the same training, and need not be done twice.
"""

import hashlib
import itertools
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from kd import runs, sweeps
from kd.errors import UserError
from kd.files import read_yaml, write_json, write_yaml
from kd.run_folder import Run
from kd.text import command
from kd.train.options import NO_EFFECT, settable, to_arguments

# Options whose values a choice on validation cannot compare: they change the images of validation, or what is compared
# on them, or where files are. Values of NO_EFFECT change no result.
NEVER_SWEPT = (*NO_EFFECT, "data", "split_seed", "labelled", "skip_bad", "select", "folds", "teacher", "study", "name")


@dataclass
class Sweep:
    """model: its name. folder: the study's. seed: of all tries. tries: [(options, Task)]."""

    model: str
    folder: Path
    seed: int
    tries: list = field(default_factory=list)

    @property
    def chosen_file(self):
        """The file of the chosen options."""
        return self.folder / self.model / "chosen.yaml"


# ---- the lists of a plan


def lists(parser, options, where):
    """{option: [values]} of the options that are sweeps: several values for an option that takes one.

    Raises UserError, one line that begins with `where`, for a list that is none: empty, with a value twice or with one
    that the option refuses, or of an option that cannot be chosen on validation.
    """
    found = {}
    for key, values in options.items():
        action = settable(parser).get(key)
        if not isinstance(values, list) or action is None or action.nargs is not None or key in NEVER_SWEPT:
            continue
        if not values:
            raise UserError(f"{where}: {key} is an empty list", "Name one value, or several to be tried.")
        parsed = [_parsed(parser, key, value, where) for value in values]
        for k, value in enumerate(parsed):
            if value in parsed[:k]:
                raise UserError(f"{where}: {key} has {values[k]!r} twice", "A sweep tries each value once.")
        found[key] = parsed
    return found


def _parsed(parser, key, value, where):
    """A value of an option as it is written down: a number where it is one for the option, else its text."""
    if value is None or isinstance(value, (list, dict)):
        raise UserError(f"{where}: {key} has {value!r} in its list", "A sweep has a number or a text for each try.")
    arguments = to_arguments(parser, {key: value}, where)
    parsed = getattr(parser.parse_args(arguments), key)
    return parsed if type(parsed) in (int, float) else str(value)


def combinations(found, options, limit, where):
    """([{option: value}] of all combinations of lists(), the options without these lists); [{}] without any list.

    A list of one value is that value, and no sweep. UserError for more than `limit` combinations.
    """
    options = {**options, **{key: values[0] for key, values in found.items() if len(values) == 1}}
    found = {key: values for key, values in found.items() if len(values) > 1}
    number = math.prod(map(len, found.values()))
    if number > limit:
        raise UserError(f"{where}: the lists of {', '.join(found)} make {number:,} trainings, and a plan has at most "
                        f"{limit}", "Make the lists shorter, or fix one of the options first.")
    tries = [dict(zip(found, values)) for values in itertools.product(*found.values())]
    return tries, {key: value for key, value in options.items() if key not in found}


def name(model, options):
    """The folder of a try: `tiny_kd+alpha_0.3+temperature_4`; with a digest where that does not say all."""
    text = "+".join([model, *(f"{key}_{_short(value)}" for key, value in options.items())])
    if runs.safe(text) == text:
        return text
    digest = hashlib.sha256(repr((model, options)).encode()).hexdigest()[:8]
    return f"{runs.safe(text[:60])}_{digest}"


def _short(value):
    """A value as text: 1 for 1.0, and all digits of a number with many."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if str(value) == short or float(short) == value else repr(value)


# ---- the choice


def choose(sweep, plan_path):
    """Choose the try that is best on validation, and write it down. Returns the content of sweep.json.

    Raises UserError where a try has not ended.
    """
    metric, tries = "macro_f1", []
    for options, task in sweep.tries:
        run = Run(task.run)
        if not runs.finished(run.folder):
            raise UserError(f"{run.folder} has not ended: {sweep.model} is chosen among {len(sweep.tries)} tries",
                            f"Run the missing ones: {command('study.py', plan_path, '--dry-run')}")
        metric = run.options.get("select") or metric  # one for all: it cannot be swept
        try:
            value, epoch = sweeps.value_of(run.history, metric)
        except UserError as error:
            raise UserError(f"{run.folder}: {error.message}", error.hint) from None
        place = run.folder.relative_to(sweep.folder).as_posix()
        tries.append({"options": options, "value": value, "epoch": epoch, "run": place})
    chosen = sweeps.best(metric, tries)
    content = {"chosen_on": "val", "metric": metric, "seed": sweep.seed, "tries": tries, "chosen": chosen["options"],
               "earlier": _earlier(sweep, tries)}
    _adopt(sweep, sweep.folder / chosen["run"])
    write_json(sweep.folder / sweep.model / sweeps.FILE, content)
    write_yaml(sweep.chosen_file, chosen["options"])
    return content


def _earlier(sweep, tries):
    """The tries of an earlier choice that the plan no longer has: they were seen, and count."""
    try:
        before = sweeps.read(sweep.folder / sweep.model) or {"tries": []}
    except UserError:
        return []
    options = [one["options"] for one in tries]
    return [one for one in [*before.get("earlier", []), *before["tries"]] if one["options"] not in options]


def _adopt(sweep, try_folder):
    """Copy the chosen try to where the model's run of this seed belongs, if nothing was trained there.

    The copy's config.yaml has the names of its new place; it is complete before it is seen.
    """
    fold = read_yaml(try_folder / "config.yaml").get("fold")
    model = runs.of_fold(sweep.model, fold) if fold else sweep.model
    run = sweep.folder / (runs.FOLDS if fold else "") / model / try_folder.name
    if run.exists():
        return
    copy = sweep.folder / runs.TRIES / f".{sweep.model}.copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(try_folder, copy, ignore=shutil.ignore_patterns(".*"))
    config = read_yaml(copy / "config.yaml")
    write_yaml(copy / "config.yaml", {**config, "out": sweep.folder.parent.as_posix(), "study": sweep.folder.name,
                                      "name": model})
    run.parent.mkdir(parents=True, exist_ok=True)
    copy.rename(run)
