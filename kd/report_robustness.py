"""What corruptions of the images do to the models."""

from kd.document import Column, aside, counted, defined, interval, missing, only_csv, table

METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "aurc")
FIRST = ("acc", "macro_f1", "tag", "model", "seed")
MOST = 40  # rows that a page shows


def rows_of(study):
    """Rows of all robustness.csv, numbers for texts; and the runs whose rows have no interval."""
    rows, bare = [], []
    for run in study.runs:
        for row in run.robustness:
            held = {key: number(value) for key, value in row.items() if key}
            held.update(model=run.model, seed=run.seed, role=run.kind, tag=row["tag"])
            if "acc" not in held:
                held["acc"] = held.get("accuracy")
            (rows if defined(held.get("macro_f1_lo")) else bare).append(held)
    return rows, bare


def number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def robustness(study):
    rows, bare = rows_of(study)
    blocks = []
    if bare:
        models = ", ".join(dict.fromkeys(f"{row['model']}/{row['seed']}" for row in bare))
        blocks += missing(f"robustness of {models}", f"{counted(len(bare), 'row')} of robustness.csv without intervals.")
    if not rows:
        return blocks or missing("robustness under corruptions", "No run has robustness.csv.",
                                 f"python robustness.py {study.command}" if study.runs else "")
    lacking = [f"{run.model}/{run.seed}" for run in study.firsts if not run.robustness]
    if lacking:
        blocks += missing(f"robustness of {', '.join(lacking)}", "There is no robustness.csv.")
    worst = worst_of(rows)
    blocks.append(table("robustness_worst", "Clean images, and the corruption that costs most macro-F1, with its paired difference", [
        Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"), Column("File", "file"),
        interval("Macro-F1, clean", "clean"), Column("Worst", "tag", kind="text"), interval("Macro-F1 there", "macro_f1"),
        interval("Δ", "macro_f1_difference", form="+.3f")], worst))
    export = [{key: row.get(key) for key in (*FIRST, *(key for key in row if key not in (*FIRST, "role")))} for row in rows]
    if len(rows) > MOST:
        return [*blocks, aside(f"All {len(rows)} rows are in tables/robustness.csv."), only_csv("robustness", export)]
    return [*blocks, table("robustness", "Every corruption", [
        Column("Tag", "tag", kind="text"), Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"),
        interval("Accuracy", "acc", "accuracy"), interval("Macro-F1", "macro_f1"),
        interval("Δ macro-F1", "macro_f1_difference", form="+.3f")], rows, export)]


def worst_of(rows):
    """A record for each model, seed and file: the corrupted row of least macro-F1 beside the clean one."""
    groups = {}
    for row in rows:
        groups.setdefault((row["model"], row["seed"], row.get("file")), []).append(row)
    found = []
    for held in groups.values():
        clean = next((row for row in held if row["tag"] == "clean"), {})
        corrupted = [row for row in held if row["tag"] != "clean" and defined(row["macro_f1"])]
        if corrupted:
            least = min(corrupted, key=lambda row: row["macro_f1"])
            found.append({**{key: least.get(key) for key in (
                "model", "seed", "role", "file", "tag", "macro_f1", "macro_f1_lo", "macro_f1_hi", "macro_f1_difference",
                "macro_f1_difference_lo", "macro_f1_difference_hi")}, "clean": clean.get("macro_f1"),
                "clean_lo": clean.get("macro_f1_lo"), "clean_hi": clean.get("macro_f1_hi")})
    return found


def sentences(study):
    """Of each model, what the worst corruption costs, where its interval bears a loss."""
    found = []
    for row in worst_of(rows_of(study)[0]):
        difference, lo, hi = (row[f"macro_f1_difference{end}"] for end in ("", "_lo", "_hi"))
        if defined(hi) and hi < 0:
            found.append(f"{row['model']}{'' if row['file'] in (None, '', 'best.pt') else ' ' + row['file']} loses most to {row['tag']}: "
                         f"{difference:+.3f} [{lo:+.3f}, {hi:+.3f}] macro-F1.")
    return found
