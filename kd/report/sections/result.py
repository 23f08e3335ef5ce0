"""The answer of a study: one table, one plot, and what follows from them in words."""

from kd.errors import listing
from kd.paired import metric
from kd.report.blocks import Column, bullets, heading, interval, missing, spread, table
from kd.report.sections import calibration, efficiency, performance, robustness, students, subgroups, sweeps
from kd.report.sections.overview import of_seeds, seed_name
from kd.text import format_p, is_defined


def result(study, compared, measured):
    """Blocks: the table of all models, quality against latency or parameters, caveats, and findings in words.

    compared: of students.compare(), or None. measured: efficiency.Measured.
    """
    order = performance.ranked(study)
    findings = {
        "Which model to take": which(study, compared, measured, order),
        "What the teacher added": added(study, compared),
        "What it costs on a device": costs(study, measured, order[0]) if order else [],
        "Where it fails": failures(study, order[0]) if order else [],
    }
    blocks = [*overview(study, compared, measured), *efficiency.drawing(study, measured),
              *(students.weak_teachers(study, compared) if compared else [])]
    for title, lines in findings.items():
        if lines:
            blocks += [heading(title), bullets(lines)]
    return blocks


def overview(study, compared, measured):
    """The table of all evaluated models, in a list; what is missing where there is none."""
    records = [record(study, model, compared, measured) for model in study.evaluated]
    if not records:
        return missing("the result", "No run was evaluated.", f"python evaluate.py {study.command}")
    columns = [
        Column("Model", "model", kind="model"), Column("Parameters, M", "parameters_m", ".2f"),
        Column("Seeds", "seeds", "d"), interval("Macro-F1", "macro_f1"),
        interval("Kept of teacher", "kept", form=".0%"), interval("Teacher added", "added", form="+.3f"),
        Column("Latency, ms", "latency_ms", ".2f"), Column("File, MB", "file_mb", ".2f"),
    ]
    caption = f"Test split, {performance.level(study)} intervals"
    if any("added" in row for row in records):
        caption += ". Teacher added: macro-F1 above the same network alone"
    if measured.points:
        caption += f". Latency and file: fp32, first seed{' of the first fold' if study.networks.first_folds else ''}"
    return [table("result", caption, columns, records)]


def record(study, model, compared, measured):
    """The record of a model: means over its seeds; latency and size of its first measured seed."""
    group = study.models[model]
    parameters = group[0].setting("parameters")
    point = measured.point(study.network(model), "fp32") or {}
    row = {"model": model, "role": group[0].kind,
           "parameters_m": parameters / 1e6 if is_defined(parameters) else None,
           **spread("macro_f1", study.over_seeds(model, "macro_f1")),
           "val_macro_f1": performance.on_validation(study, model)}
    for pair in compared.pairs if compared else ():
        if pair["model"] == model:
            of_pair, roles = students.row_of(pair, "macro_f1"), compared.roles(pair)
            if roles[0] == "teacher" and roles[1] != "teacher":
                row.update(spread("kept", metric(of_pair, "retention")))
            elif roles == ("alone", "student"):
                row.update(spread("added", metric(of_pair, "difference")))
    return {**row, "latency_ms": point.get("latency_ms"), "file_mb": point.get("file_mb"), "seeds": len(group)}


# ---- in words


def which(study, compared, measured, order):
    """Sentences: the student that validation puts first, whether test confirms it, and what is cheaper.

    order: of performance.ranked().
    """
    if not order:
        return []
    if len(order) == 1:
        others = [model for model, group in study.evaluated.items() if group[0].kind != "teacher" and model != order[0]]
        return [f"{order[0]}, the only student{' with a macro-F1 on validation' if others else ''}."]
    best, second = order[:2]
    scores = [f"{performance.on_validation(study, model):.3f}" for model in order[:2]]
    seeds = [of_seeds(study.models[model]) for model in order[:2]]
    if seeds[0] != seeds[1]:
        scores = [f"{score}, {of}" for score, of in zip(scores, seeds)]
    common = f"; {seeds[0]}" if seeds[0] == seeds[1] else ""
    over = ", the mean over the folds" if study.cross_validation else ""
    choice = (f"{best}: of the students the highest macro-F1 on validation{over} ({scores[0]}; {second} {scores[1]}"
              f"{common}).")
    row = compared.difference(second, best) if compared else None
    lines = [f"{choice} {performance.choice_verdict(study, row, second)}" if row else choice]
    on_test = {model: study.over_seeds(model, "macro_f1")["value"] for model in order}
    highest = max(filter(lambda model: is_defined(on_test[model]), order), key=on_test.get, default=best)
    if highest != best:
        lines.append(f"{highest} has the highest macro-F1 on test; to choose it for that would be to choose on test.")
    lines += filter(None, [cheaper(study, compared, measured, order), sweeps.caveat(study, (best, second))])
    return lines


def cheaper(study, compared, measured, order):
    """A sentence about the fastest student that is clearly faster than the best and not significantly worse, or ""."""
    points = {model: measured.point(study.network(model), "fp32") for model in order}
    best = points[order[0]]
    if not best or not compared:
        return ""
    for model in sorted(order[1:], key=lambda model: (points[model] or best)["latency_ms"]):
        row, point = compared.difference(order[0], model), points[model]
        if row and point and not students.conclusive(row) and point["latency_ms"] < .8 * best["latency_ms"]:
            return (f"{model} needs {point['latency_ms'] / best['latency_ms']:.0%} of the time of {order[0]}, and the "
                    "difference of their macro-F1 on test is not significant.")
    return ""


def failures(study, model):
    """Sentences: which corruption harms a student most, which thresholds miss their promise, which subgroups differ."""
    return [*robustness.sentences(study.networks, study.network(model)), *calibration.threshold_sentences(study, model),
            *subgroups.sentences(study, model)]


def added(study, compared):
    """Sentences: the differences of the students from the same networks without a teacher, by what supports them."""
    by_verdict = {}
    for pair in compared.pairs if compared else ():
        if compared.roles(pair) == ("alone", "student"):
            row = students.row_of(pair, "macro_f1")
            if is_defined(row["difference"]):
                verdict = students.verdict(row, compared.pairs)
                p = f", p {format_p(row['p_corrected'])}" if is_defined(row["p"]) else ""
                difference = f"{row['difference']:+.3f} ({of_seeds(study.models[pair['model']])}{p})"
                by_verdict.setdefault(verdict, []).append(f"{pair['model']} {difference}")
    lines = [f"{verdict[0].upper()}{verdict[1:]}: {', '.join(models)}." for verdict, models in by_verdict.items()]
    lines += further_images(study, compared)
    unknown = [model for model, _ in students.without_baseline(study)]
    if unknown:
        lines.append(f"Not known for {listing(unknown)}: the same network was not trained without a teacher (the "
                     "command is under Teacher against students).")
    return lines


def further_images(study, compared):
    """Sentences: which students learnt from images without labels that their baseline did not see."""
    models = {}  # number of images -> models
    for pair in compared.pairs if compared else ():
        if compared.roles(pair) == ("alone", "student"):
            student, baseline = (unlabelled_images(study.models[pair[key]][0]) for key in ("model", "reference"))
            if student and not baseline:
                models.setdefault(student, []).append(pair["model"])
    return [f"{listing(names)} also learnt the teacher's answers to {count:,} images without labels, which the same "
            "network alone did not see: the gain includes theirs." for count, names in models.items()]


def unlabelled_images(run):
    """The number of images without labels that a Run learnt from."""
    sets = run.environment.get("data", {}).get("unlabelled") or []
    return sum(one["images"] for one in sets if isinstance(one, dict) and is_defined(one.get("images")))


def costs(study, measured, model):
    """Sentences: how much faster and smaller a student is than the teacher, and what INT8 changes."""
    model = study.network(model)
    if not model:
        return []
    lines, run = [], study.networks.models[model][0]
    noisy = sum(point["noisy"] for point in measured.points)
    if noisy:
        lines.append(f"Latencies are rough: {noisy} of {len(measured.points)} "
                     f"{'is' if noisy == 1 else 'are'} noisy, for other work was on the machine.")
    point, int8 = measured.point(model, "fp32"), measured.point(model, "int8")
    teachers = [name for name, group in study.evaluated.items() if group[0].kind == "teacher"]
    teacher = measured.point(study.network(teachers[0]), "fp32") if teachers else None
    if point and teacher:
        is_rough = point["noisy"] or teacher["noisy"]
        shares = [f"{'about ' if is_rough and key == 'latency_ms' else ''}{point[key] / teacher[key]:.0%} of its {what}"
                  for key, what in (("latency_ms", "time"), ("file_mb", "file size"), ("peak_rss_mib", "memory"))
                  if is_defined(point[key]) and point[key] and teacher[key]]
        memory = (f" ({point['peak_rss_mib']:.0f} against {teacher['peak_rss_mib']:.0f} MiB, of a process with this "
                  "model alone)" if point["peak_rss_mib"] and teacher["peak_rss_mib"] else "")
        lines.append(f"Beside {study.network(teachers[0])}, {model} needs {listing(shares)}{memory}; fp32, "
                     f"{seed_name(run)}.")
    change = efficiency.int8_change(run)
    if change:
        sizes = [int8[key] and f"{int8[key]:{form}} {unit}" for key, form, unit in (
            ("file_mb", ".2f", "MB"), ("latency_ms", ".2f", "ms"), ("peak_rss_mib", ".0f", "MiB"))] if int8 else []
        lines.append(f"{model} as INT8 ({', '.join(filter(None, [seed_name(run), *sizes]))}): {change}.")
    return lines
