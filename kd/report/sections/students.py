"""Teacher against students: what is lost and kept, class by class, on the same images, with paired intervals."""

from dataclasses import dataclass, field

from kd import predictions
from kd.evaluation import compare as comparison
from kd.evaluation import protocol
from kd.report import figures, figures_quality
from kd.report.blocks import Column, aside, code, figure, grid, heading, interval, missing, paragraph, table
from kd.report.sections.overview import drawn, merged, seed_name
from kd.report.study_files import command_path
from kd.text import format_bounds, format_count, format_number, is_defined

OVERALL = {"accuracy": "accuracy", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "balanced_accuracy": "balanced accuracy"}
ALPHA = 0.05


@dataclass
class Compared:
    """The models of a study that were tested on the same images, each against its reference."""

    models: dict                                  # name -> model_comparison.Model, measured
    first: predictions.Predictions
    pairs: list
    left_out: list = field(default_factory=list)  # (model, why)

    def difference(self, reference, model, metric="macro_f1"):
        """The row of model - reference as kd/model_comparison has it, or None."""
        if not {reference, model} <= self.models.keys():
            return None
        pair = self.pair(reference, model)
        if pair is None:
            index, weights = protocol.resampling(self.first, protocol.Settings())
            pair = comparison.pair(self.models[reference], self.models[model], self.first, weights[:, index])
        return row_of(pair, metric)

    def pair(self, reference, model):
        return next((pair for pair in self.pairs if (pair["reference"], pair["model"]) == (reference, model)), None)


def row_of(pair, metric):
    return next((row for row in pair["rows"] if row["metric"] == metric), None)


def compare(study):
    """Compared, or None where fewer than two models were evaluated on the same images."""
    models, left_out = [], []
    for name, group in study.evaluated.items():
        seeds = {run.seed: (None, run.test) for run in group}
        first = next(iter((models[0].seeds if models else seeds).values()))[1]
        reasons = [predictions.difference_between(first, run.test) for run in group]
        if any(reasons):
            left_out.append((name, next(filter(None, reasons))))
        else:
            models.append(comparison.Model(name, group[0].folder.parent, group[0].kind, group[0].network, seeds))
    if len(models) < 2:
        return None
    pairs = comparison.compare(models, protocol.Settings(), answers_only=True)["pairs"]
    return Compared({model.name: model for model in models}, comparison.common_test(models), pairs, left_out)


# ---- sentences


def conclusive(row):
    return is_defined(row["lo"]) and (row["lo"] > 0 or row["hi"] < 0)


def verdict(row, count):
    """What an interval and a corrected p bear: nothing, a difference, or one that holds for one comparison alone."""
    if not conclusive(row):
        return "which these data do not tell from no difference"
    if row["p_corrected"] < ALPHA or count < 2:
        return "a difference that the data bear"
    return f"an interval without 0, though p is {row['p_corrected']:.3f} when corrected over {format_count(count, 'comparison')}"


def sentences(compared):
    """One for each student: what it keeps of its teacher, and what the teacher adds over the same network alone."""
    said_of = []
    for pair in compared.pairs if compared else ():
        row, reference, model = row_of(pair, "macro_f1"), pair["reference"], pair["model"]
        kinds = compared.models[reference].kind, compared.models[model].kind
        if row is None or not is_defined(row["lo"]):
            continue
        gap = f"{row['difference']:+.3f} {format_bounds(row['lo'], row['hi'], '+.3f')}"
        if kinds[0] == "teacher" and kinds[1] != "teacher":
            kept = (f" keeps {row['retention']:.0%} [{row['retention_lo']:.0%}, {row['retention_hi']:.0%}] of the macro-F1 of {reference}"
                    if is_defined(row["retention_lo"]) else "")
            said_of.append(f"{model}{kept}{' and' if kept else ''} differs from it by {gap}: {verdict(row, len(compared.pairs))}." if kept
                           else f"{model} differs from {reference} by {gap} macro-F1: {verdict(row, len(compared.pairs))}.")
        elif kinds == ("alone", "student"):
            said_of.append(f"With a teacher {model} differs from {reference}, the same network without one, by {gap} macro-F1: "
                           f"{verdict(row, len(compared.pairs))}.")
    return said_of


def caveats(study, compared):
    """Blocks that say why nothing follows about distillation, where that is so."""
    kinds = {model: group[0].kind for model, group in study.evaluated.items()}
    teachers, alone, students = ([m for m in kinds if kinds[m] == kind] for kind in ("teacher", "alone", "student"))
    blocks = []
    for teacher in teachers:
        for student in alone:
            row = compared.difference(teacher, student) if compared else None
            if row and is_defined(row["difference"]) and (row["difference"] >= 0 or not conclusive(row)):
                values = f"macro-F1 {row['reference_value']:.3f} and {row['model_value']:.3f}, difference {row['difference']:+.3f} " \
                         f"{format_bounds(row['lo'], row['hi'], '+.3f')}"
                blocks.append(paragraph(
                    f"The teacher {teacher} is not above the student {student}, which had no teacher ({values}): no conclusion about "
                    "distillation follows from this study." if row["difference"] >= 0 else
                    f"These data do not tell the teacher {teacher} from the student {student}, which had no teacher ({values}): what a "
                    "student gains from it cannot be put down to a better teacher.", "note"))
    architecture = {model: merged([group[0].setting("arch") or group[0].setting("student")]) for model, group in study.models.items()}
    networks = {model: group[0].network or architecture[model] for model, group in study.models.items()}
    known = {merged([None]), *(networks[model] for model, group in study.models.items() if group[0].kind == "alone")}
    for model in students:
        name, network = architecture[model], networks[model]
        if network not in known:
            known.add(network)
            config = command_path(study.models[model][0].folder / "config.yaml")
            blocks += [paragraph(f"No {network} was trained without a teacher here, so nothing says what distillation adds. This trains "
                                 "one:", "note"),
                       code(f"python distill.py --config {config} --alpha 1 --beta 0 --name {command_path(name.replace(':', '_'))}_alone")]
    return blocks


# ---- the section


def students(study, compared):
    if compared is None:
        return [*caveats(study, None), *missing("comparisons", "They need two models that were evaluated on the same test images."),
                *confusions(study)]
    first, size = compared.first, compared.first.size()
    over = "groups (lesions, patients)" if first.groups is not None else "images, taken as independent"
    blocks = [*caveats(study, compared), aside(
        f"The same {size['images']:,} test images for all; paired bootstrap over {size['groups']:,} {over}; p is two-sided, corrected "
        f"(Holm) over the {format_count(len(compared.pairs), 'comparison')} of each metric.")]
    for model, why in compared.left_out:
        blocks += missing(model, f"It cannot be compared: {why}.")
    records = [delta(pair, row, compared) for pair in compared.pairs for row in pair["rows"] if row["metric"] in OVERALL]
    blocks.append(table("deltas", "Differences, and what is retained of the reference", [
        Column("Model", "model", kind="model"), Column("less", "reference", kind="text"), Column("Metric", "metric_name"),
        interval("Reference", "reference_value", "reference"), interval("Model", "model_value", "model"),
        interval("Δ", "difference", form="+.3f"),
        Column("p", "p_corrected", "p"), interval("Retained", "retention", "retention", ".1%")], records))
    blocks += per_class(study, compared)
    blocks.append(agreements(compared))
    return [*blocks, *confusions(study), *attention(study)]


def delta(pair, row, compared):
    return {"reference": pair["reference"], "model": pair["model"], "role": compared.models[pair["model"]].kind,
            "metric": row["metric"], "metric_name": OVERALL[row["metric"]],
            **{key: row[key] for key in ("reference_value", "reference_lo", "reference_hi", "model_value", "model_lo", "model_hi", "difference")},
            "difference_lo": row["lo"], "difference_hi": row["hi"],
            **{key: row[key] for key in ("p", "p_corrected", "retention", "retention_lo", "retention_hi", "relative_gap")},
            "reference_seeds": pair["seeds"]["reference"], "model_seeds": pair["seeds"]["model"]}


def per_class(study, compared):
    names, support = compared.first.class_names, compared.first.size()["support"]
    teacher_pairs = [pair for pair in compared.pairs if compared.models[pair["model"]].kind != "teacher"
                     and compared.models[pair["reference"]].kind != "alone"] or compared.pairs
    records = []
    for pair in teacher_pairs:
        rows = {row["metric"]: row for row in pair["rows"]}
        for k, name in enumerate(names):
            f1, recall = rows[f"f1/{name}"], rows[f"recall/{name}"]
            records.append({
                "reference": pair["reference"], "model": pair["model"], "role": compared.models[pair["model"]].kind, "class_id": k,
                "class": name, "support": support[name], "reference_f1": f1["reference_value"],
                "reference_f1_lo": f1["reference_lo"], "reference_f1_hi": f1["reference_hi"], "f1": f1["model_value"],
                "f1_lo": f1["model_lo"], "f1_hi": f1["model_hi"], "delta_f1": f1["difference"], "delta_f1_lo": f1["lo"],
                "delta_f1_hi": f1["hi"], "relative_gap": f1["relative_gap"], "delta_recall": recall["difference"],
                "delta_recall_lo": recall["lo"], "delta_recall_hi": recall["hi"], "p": f1["p"], "p_corrected": f1["p_corrected"]})
    shown, more = drawn(teacher_pairs)
    bars = []
    for pair in shown:
        mine = [record for record in records if (record["reference"], record["model"]) == (pair["reference"], pair["model"])]
        model, reference = ([{key: record[f"{stem}{end}"] for key, end in (("value", ""), ("lo", "_lo"), ("hi", "_hi"))}
                             for record in mine] for stem in ("f1", "reference_f1"))
        alt = f"F1 of each class of {pair['model']} beside {pair['reference']}: " + "; ".join(
            f"{record['class']} {format_number(record['f1'])} against {format_number(record['reference_f1'])}" for record in mine)
        kind = compared.models[pair["model"]].kind
        bars.append(figure(figures_quality.per_class(names, model, reference, kind, pair["reference"], alt=alt), alt, pair["model"],
                           role=kind))
    return [heading("F1 of each class"),
            aside("Bar and line: the model with its interval. Square: its reference. Classes in the order of the data."),
            grid(bars), *more,
            table("deltas_per_class", "F1 of each class, and its difference to the reference", [
                Column("Model", "model", kind="model"), Column("Class", "class"), Column("Images", "support", ",d"),
                interval("Reference F1", "reference_f1"), interval("F1", "f1"), interval("Δ F1", "delta_f1", form="+.3f"),
                interval("Δ recall", "delta_recall", form="+.3f"), Column("p of Δ F1", "p_corrected", "p")], records)]


def agreements(compared):
    names = ("agreement", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")
    return table("agreement", "Shares of the images on which two models give the same answer, or only one of them is right", [
        Column("Model", "model", kind="model"), Column("and", "reference", kind="text"),
        *(interval(title, name, form=".1%") for title, name in zip(
            ("Agree", "Only the reference is right", "Only the model is right", "Wrong in different ways"), names)),
        Column("p (McNemar)", "mcnemar_p", "p")],
        [{"model": pair["model"], "reference": pair["reference"], "role": compared.models[pair["model"]].kind,
          **{key: value for name in names for key, value in (
              (name, pair["agreement"][name]["value"]), (f"{name}_lo", pair["agreement"][name]["lo"]),
              (f"{name}_hi", pair["agreement"][name]["hi"]))}, "mcnemar_p": pair["mcnemar"]["p_corrected"]}
         for pair in compared.pairs])


def confusions(study):
    held = [run for run in study.firsts if run.evaluation.get("confusion")]
    if not held:
        return missing("confusion matrices", "No metrics.json has one.")
    shown, more = drawn(held)
    items = []
    for run in shown:
        alt = f"Confusion matrix of {run.model}, {seed_name(run)}: rows true, columns predicted."
        items.append(figure(figures.confusion(run.evaluation["confusion"], run.class_names, alt=alt), alt,
                            f"{run.model}, {seed_name(run)}", role=run.kind))
    return [heading("Confusion matrices"), aside("Counts of test images, the first seed of each model. The shade is the share of the "
                                                 "true class, so rows compare whatever their size; a blank is none."), grid(items), *more]


def attention(study):
    """Where teacher and student look, and how alike their representations are."""
    held = [next((run for run in group if run.attention), None) for group in study.models.values()]
    held = [run for run in held if run]
    if not held:
        return missing("attention maps and the similarity of representations", "No run has attention.npz, which distill.py writes for "
                       "students that have a teacher.") if any(run.kind == "student" for run in study.runs) else []
    pictures = study.first("samples")
    images = dict(zip(map(str, pictures["ids"]), pictures["images"])) if pictures else {}
    shown, more = drawn(held)
    items = []
    for run in shown:
        rows = [(images[str(name)], run.attention["teacher"][k], run.attention["student"][k])
                for k, name in enumerate(run.attention["ids"]) if str(name) in images][:4]
        if rows:
            alt = f"Attention of {run.model} and its teacher, {seed_name(run)}: {format_count(len(rows), 'test image')}, a map a stage."
            wide, narrow = (figures_quality.attention(rows, shape, alt=alt) for shape in (False, True))
            items.append(figure(wide, alt, f"{run.model}, {seed_name(run)}", narrow, run.kind))
    return [heading("Attention, teacher beside student"),
            aside("Spatial attention of each stage (mean of the squared activations, each map on its own scale): light is much."),
            *items, *more, *similarity([run for group in study.models.values() for run in group if run.attention])]


def similarity(held):
    """Linear CKA by stage, of the runs whose intervals are known."""
    known = [run for run in held if {"cka_lo", "cka_hi"} <= run.attention.keys()]
    if not known:
        return missing("similarity of representations", "attention.npz has no interval of CKA.")
    records = [{"model": run.model, "role": run.kind, "seed": run.seed, **{
        f"stage_{k + 1}{end}": float(value) for end in ("", "_lo", "_hi") for k, value in enumerate(run.attention[f"cka{end}"])}}
        for run in known]
    stages = range(1, 1 + max(len(run.attention["cka"]) for run in known))
    shown, more = drawn([run for run in known if run.seed == known[0].seed])
    lines = [(run.model, run.kind, *(run.attention[f"cka{end}"] for end in ("", "_lo", "_hi"))) for run in shown]
    alt = "Linear CKA with the teacher by stage. " + "; ".join(
        f"{name}: {', '.join(format_number(float(value), '.2f') for value in values)}" for name, _, values, *_ in lines)
    wide, narrow = (figures_quality.stages(lines, shape, alt=alt) for shape in (False, True))
    return [heading("Similarity of representations"), aside(
        "Linear CKA (debiased) of each stage with the same stage of the teacher, over validation images: 1 is alike up to rotation and "
        "scale, 0 unrelated."), figure(wide, alt, "", narrow), *more,
        table("cka", "Linear CKA with the teacher", [
            Column("Model", "model", kind="model"), Column("Seed", "seed", kind="seed"),
            *(interval(f"Stage {k}", f"stage_{k}") for k in stages)], records)]
