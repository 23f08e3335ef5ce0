"""Tables of other systems as evidence: whose figures they are, and what they say.

    calibration.csv        model, seed, accuracy, nll, brier, ece_uniform, ece_adaptive, temperature
    operating_points.csv   model, seed, tau, macro_f1_opt
    robustness.csv         model, seed, tag, acc, macro_f1
    scalars.csv            run, tag, last, best, best_step
    any other .csv         model and figures: accuracy, val_acc, accuracy_mean with accuracy_lo and accuracy_hi
    *.md, *.txt            words

Columns in any order, separated by comma, tab or semicolon, in UTF-8 with or without a byte order
mark; of the columns only those that name the model (or run and tag) are required.
"""

import re
from pathlib import Path

from kd import runs
from kd.audit.evidence import Case, Point, add_corruption, figures_in, plain
from kd.errors import UserError
from kd.files import parse_number, read_csv

TABLES = ("calibration.csv", "operating_points.csv", "robustness.csv", "scalars.csv")

# Published data sets that a table may be about, by a word in it: images a class, in the order of class numbers.
KNOWN = {"ham10000": {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}}
KNOWN["dermamnist"] = KNOWN["ham10000"]

LONGEST = 10 ** 6  # characters read of a text


def read(folder):
    """The Cases of a folder's tables and texts. UserError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    cases, notes = {}, Case(str(folder.name))
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix.lower() == ".csv" and path.is_file():
                _add_table(path, cases, notes)
            elif path.suffix.lower() in (".md", ".txt") and path.is_file():
                notes.texts[path.name] = _text(path)
        except UserError as error:
            notes.unreadable.append(error.message)
    cases = _with_seeds(cases)
    if not cases and not notes.texts and not notes.unreadable:
        raise UserError(f"no tables in {folder}", f"An audit of another system reads {', '.join(TABLES)}.")
    words = " ".join([*(case.model for case in cases), *notes.texts, *notes.texts.values()]).lower()
    counts = next((counts for name, counts in KNOWN.items() if name in words), None)
    if counts:
        largest = max(counts, key=counts.get)
        notes.class_names = list(counts)
        for case in cases:
            case.class_names = list(counts)
            case.majority = largest, counts[largest] / sum(counts.values()), False
    return [*cases, notes]


def _with_seeds(cases):
    """The Cases, where what is said of a model without a seed is of its only seed."""
    kept = dict(cases)
    for (model, seed), case in cases.items():
        seeds = [other for other in cases.values() if other.model == model and other.seed and other.namesakes == 1]
        if not seed and len(seeds) == 1:
            del kept[model, seed]
            seeds[0].figures += case.figures
            seeds[0].points += case.points
            seeds[0].corruptions.update(case.corruptions)
            seeds[0].sources += [source for source in case.sources if source not in seeds[0].sources]
            seeds[0].role = seeds[0].role or case.role
    return list(kept.values())


def has_tables(folder):
    """Whether a folder that is no run folder holds a table that an audit knows; those of a report repeat what its runs say."""
    folder = Path(folder)
    if folder.name == "tables" and (folder.parent / "report.html").is_file():
        return False
    return any((folder / name).is_file() for name in TABLES) and not runs.finished(folder)


def _add_table(path, cases, notes):
    rows = [{plain(key): (value or "").strip() for key, value in row.items() if key}
            for row in read_csv(path, separators=",\t;")]
    header = rows[0] if rows else {}
    if path.name == "scalars.csv":
        _require(path, header, ("run", "tag", "last", "best", "best_step"))
        return _add_scalars(path, rows, cases)
    if path.name in TABLES:
        _require(path, header, ("model",))
    for row in rows:
        number_, name = (next((row[key] for key in keys if row.get(key)), "")
                         for keys in (("class_id", "class", "label"), ("class_name", "name")))
        if number_.isdecimal() and name:
            notes.texts[path.name] = notes.texts.get(path.name, "") + f"class {number_} ({name})\n"
        if not row.get("model") or path.name not in TABLES and not dict(figures_in(row, path.name)):
            continue
        case = _case(cases, row["model"], row.get("seed", ""), row.get("role", ""), path)
        if path.name == "robustness.csv":
            add_corruption(case, row, path.name)
        elif path.name == "operating_points.csv":
            figures = dict(figures_in({key.removesuffix("_opt"): value for key, value in row.items()}, path.name))
            case.points.append(Point(row.get("name") or "tau", row.get("kind", ""),
                                     parse_number(row.get("tau") or row.get("threshold")), figures=figures))
        else:
            case.figures += [figure for _, figure in figures_in(row, path.name)]
            if row.get("temperature"):
                case.temperature = {"value": parse_number(row["temperature"])}


def _add_scalars(path, rows, cases):
    """A row is a curve's last and best value; a curve of one step is a figure."""
    seen, runs_ = {}, {}
    for row in rows:
        key = row["run"], row["tag"]
        seen[key] = seen.get(key, 0) + 1
        runs_.setdefault((row["run"], seen[key]), []).append(row)
    for (run, place), held in runs_.items():
        namesakes = max(count for (name, _), count in seen.items() if name == run)
        parts = [part for part in re.split(r"[\\/]+", run) if part]
        role = parts.pop(0).lower() if len(parts) > 1 and parts[0].lower() in ("teacher", "student") else ""
        seed = parts.pop() if parts and re.fullmatch(r"seed_?\d+", parts[-1]) else ""
        model = "/".join(parts) or role
        case = _case(cases, model, f"{seed} ({place} of {namesakes})".strip() if namesakes > 1 else seed, role, path)
        case.namesakes = namesakes
        figures = {}
        for row in held:
            tag = re.sub(r"[\\/]+", "/", row["tag"])
            values = [parse_number(row[key]) for key in ("last", "best", "best_step")]
            if values[2] > 0:
                case.curves[tag] = values
            else:
                figures[tag.split("/")[-1]] = row["last"]
        if namesakes == 1:
            case.figures += [figure for _, figure in figures_in(figures, path.name)]


def _case(cases, model, seed, role, path):
    """The Case of a model and seed, made when it is first met."""
    seed = f"seed_{seed}" if seed.isdecimal() else seed
    case = cases.setdefault((model, seed), Case(model, seed, stated=True))
    if path.name not in case.sources:
        case.sources.append(path.name)
    role = role.lower() or next((r for r in ("teacher", "student") if r in model.lower()), "")
    case.role = case.role or ("student" if not role and "distilled" in model.lower() else role)
    return case


def _require(path, header, needed):
    missing = [column for column in needed if column not in header]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}" if header else f"{path} has no rows")


def _text(path):
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read(LONGEST)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
