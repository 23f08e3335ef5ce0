"""Tables and texts of other systems, read into Cases (kd/audit/evidence.py).

    calibration.csv        model, seed, accuracy, nll, brier, ece_uniform, ece_adaptive, temperature
    operating_points.csv   model, seed, tau, macro_f1_opt
    robustness.csv         model, seed, tag, acc, macro_f1
    scalars.csv            run, tag, last, best, best_step
    any other .csv         model and figures: accuracy, val_acc, accuracy_mean with accuracy_lo and accuracy_hi
    *.md, *.txt            text

Columns are in any order, separated by comma, tab or semicolon, in UTF-8 with or without a byte order mark. Only the
columns that name the model (or run and tag) are required.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from kd import runs
from kd.audit.evidence import Case, Point, add_corruption, figures_in, plain
from kd.errors import UserError
from kd.files import parse_number, read_csv

TABLES = ("calibration.csv", "operating_points.csv", "robustness.csv", "scalars.csv")

# Published data sets, found by their name in the tables: images of each class, in the order of class numbers.
IMAGES = {"ham10000": {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}}
IMAGES["dermamnist"] = IMAGES["ham10000"]

MAX_CHARACTERS = 10 ** 6  # read of a text file


def read(folder):
    """The Cases of a folder's tables and texts: one a model and seed, and a last one with what belongs to no model.

    Raises UserError where the folder has none. A file that cannot be read is named in the last Case's `unreadable`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    cases, rest = {}, Case(folder.name)
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix.lower() == ".csv" and path.is_file():
                _add_table(path, cases, rest)
            elif path.suffix.lower() in (".md", ".txt") and path.is_file():
                rest.texts[path.name] = _text(path)
        except UserError as error:
            rest.unreadable.append(error.message)
    cases = _with_only_seeds(cases)
    if not cases and not rest.texts and not rest.unreadable:
        raise UserError(f"no tables in {folder}", f"An audit of another system reads {', '.join(TABLES)}.")
    text = " ".join([*(case.model for case in cases), *rest.texts, *rest.texts.values()]).lower()
    images = next((images for name, images in IMAGES.items() if name in text), None)
    if images:
        largest = max(images, key=images.get)
        rest.class_names = list(images)
        for case in cases:
            case.class_names = list(images)
            case.majority = largest, images[largest] / sum(images.values()), False
    return [*cases, rest]


def _with_only_seeds(cases):
    """[Case] of {(model, seed): Case}: a Case without a seed is added to that of the model's seed, where it has one."""
    merged = dict(cases)
    for (model, seed), case in cases.items():
        seeds = [other for other in cases.values() if other.model == model and other.seed and other.namesakes == 1]
        if not seed and len(seeds) == 1:
            del merged[model, seed]
            only = seeds[0]
            only.figures += case.figures
            only.points += case.points
            only.corruptions.update(case.corruptions)
            only.sources += [source for source in case.sources if source not in only.sources]
            only.role = only.role or case.role
    return list(merged.values())


def has_tables(folder):
    """Whether a folder has a table of another system: not a run folder, nor the tables of a report on runs."""
    folder = Path(folder)
    if folder.name == "tables" and (folder.parent / "report.html").is_file():
        return False  # they repeat what the runs state
    return any((folder / name).is_file() for name in TABLES) and not runs.finished(folder)


def _add_table(path, cases, rest):
    """Add a CSV file's rows to {(model, seed): Case}, and names of classes with a number to rest.texts."""
    rows = []
    for row in read_csv(path, separators=",\t;"):
        rows.append({plain(column): (text or "").strip() for column, text in row.items() if column})
    header = rows[0] if rows else {}
    if path.name == "scalars.csv":
        _require(path, header, ("run", "tag", "last", "best", "best_step"))
        return _add_scalars(path, rows, cases)
    if path.name in TABLES:
        _require(path, header, ("model",))
    for row in rows:
        class_number = row.get("class_id") or row.get("class") or row.get("label") or ""
        class_name = row.get("class_name") or row.get("name")
        if class_number.isdecimal() and class_name:
            rest.texts[path.name] = rest.texts.get(path.name, "") + f"class {class_number} ({class_name})\n"
        if not row.get("model") or path.name not in TABLES and not dict(figures_in(row, path.name)):
            continue
        case = _case(cases, row["model"], row.get("seed", ""), row.get("role", ""), path)
        images = parse_number(next(filter(None, (row.get(key) for key in ("images", "n", "n_test", "n_images"))), ""))
        case.images = int(images) if 1 <= images <= 10 ** 9 and images == int(images) else case.images
        if path.name == "robustness.csv":
            add_corruption(case, row, path.name)
        elif path.name == "operating_points.csv":
            figures = dict(figures_in({column.removesuffix("_opt"): text for column, text in row.items()}, path.name))
            threshold = parse_number(row.get("tau") or row.get("threshold"))
            case.points.append(Point(row.get("name") or "tau", row.get("kind", ""), threshold, figures=figures))
        else:
            case.figures += [figure for _, figure in figures_in(row, path.name)]
            if row.get("temperature"):
                case.temperature = {"value": parse_number(row["temperature"])}


def _add_scalars(path, rows, cases):
    """Add the rows of scalars.csv: a row is a curve's last and best value; a curve of one step is a figure.

    A run and tag that occur n times are n runs under one name: the k-th occurrence of each tag is taken for run k.
    """
    occurrences, runs_ = Counter(), defaultdict(list)
    for row in rows:
        occurrences[row["run"], row["tag"]] += 1
        runs_[row["run"], occurrences[row["run"], row["tag"]]].append(row)
    for (run, place), run_rows in runs_.items():
        namesakes = max(count for (name, _), count in occurrences.items() if name == run)
        parts = [part for part in re.split(r"[\\/]+", run) if part]
        role = parts.pop(0).lower() if len(parts) > 1 and parts[0].lower() in ("teacher", "student") else ""
        seed = parts.pop() if parts and re.fullmatch(r"seed_?\d+", parts[-1]) else ""
        if namesakes > 1:
            seed = f"{seed} ({place} of {namesakes})".strip()
        case = _case(cases, "/".join(parts) or role, seed, role, path)
        case.namesakes = namesakes
        figures = {}
        for row in run_rows:
            tag = re.sub(r"[\\/]+", "/", row["tag"])
            last, best, best_step = (parse_number(row[column]) for column in ("last", "best", "best_step"))
            if best_step > 0:
                case.curves[tag] = [last, best, best_step]
            else:
                figures[tag.split("/")[-1]] = row["last"]
        if namesakes == 1:
            case.figures += [figure for _, figure in figures_in(figures, path.name)]


def _case(cases, model, seed, role, path):
    """The Case of a model and seed in {(model, seed): Case}, added where there is none; `path` is among its sources."""
    seed = f"seed_{seed}" if seed.isdecimal() else seed
    case = cases.setdefault((model, seed), Case(model, seed, stated=True, table=str(path.parent)))
    if path.name not in case.sources:
        case.sources.append(path.name)
    role = role.lower() or next((r for r in ("teacher", "student") if r in model.lower()), "")
    case.role = case.role or ("student" if not role and "distilled" in model.lower() else role)
    return case


def _require(path, header, columns):
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}" if header else f"{path} has no rows")


def _text(path):
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read(MAX_CHARACTERS)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
