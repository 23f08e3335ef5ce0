"""Differences between teacher and students, class by class, on the same images, with paired intervals."""

from dataclasses import dataclass, field

import numpy as np

from kd import predictions
from kd.evaluation import compare as comparison
from kd.evaluation import protocol
from kd.paired import holm, metric
from kd.report import figures, figures_quality
from kd.report.blocks import Column, aside, figure, grid, heading, interval, missing, paragraph, spread, table
from kd.report.sections import fidelity
from kd.report.sections.overview import drawable, merged, responsive_figure, seed_columns, seed_name
from kd.report.study_files import command_path
from kd.text import format_count, format_metric, format_number, is_defined

OVERALL = {"accuracy": "accuracy", "macro_f1": "macro-F1", "macro_f1_without_rarest": "macro-F1 without {}",
           "weighted_f1": "weighted F1", "balanced_accuracy": "balanced accuracy"}
AGREEMENTS = {"agreement": "Agree", "right_to_wrong": "Only the reference is right",
              "wrong_to_right": "Only the model is right", "wrong_to_wrong": "Wrong in different ways"}
ALPHA = 0.05
DECIDES = "macro_f1"  # the metric whose p a table of several metrics shows: one family of tests a table
ENDS = ("", "_lo", "_hi")


@dataclass
class Compared:
    """The models of a study that were tested on the same images, and the comparison of each with its reference."""

    models: dict                                  # name -> compare.Model, measured
    test: predictions.Predictions                 # whose images, labels and groups all share
    pairs: list                                   # as compare.compare() returns them
    left_out: list = field(default_factory=list)  # (model, why)

    def difference(self, reference, model, metric="macro_f1"):
        """The row of model - reference as kd/evaluation/compare.py has it, or None where one is not compared."""
        if not {reference, model} <= self.models.keys():
            return None
        for pair in self.pairs:
            if (pair["reference"], pair["model"]) == (reference, model):
                return row_of(pair, metric)
        draws = protocol.resampling(self.test, protocol.Settings())
        pair = comparison.pair(self.models[reference], self.models[model], self.test, draws)
        return row_of(pair, metric)

    def roles(self, pair):
        """The roles of a pair's reference and model."""
        return self.models[pair["reference"]].kind, self.models[pair["model"]].kind


def row_of(pair, metric):
    """The row of a pair for `metric`, or None."""
    return next((row for row in pair["rows"] if row["metric"] == metric), None)


def compare(study):
    """Compared, or None where fewer than two models were evaluated on the same images."""
    models, left_out = [], []
    for name, group in study.evaluated.items():
        seeds = {run.seed: (None, run.test) for run in group}
        _, first = next(iter((models[0].seeds if models else seeds).values()))
        differences = filter(None, (predictions.difference_between(first, run.test) for run in group))
        reason = next(differences, None)
        if reason:
            left_out.append((name, reason))
        else:
            models.append(comparison.Model(name, group[0].folder.parent, group[0].kind, group[0].network, seeds,
                                           teacher=comparison.teacher_of(group[0])))
    if len(models) < 2:
        return None
    pairs = comparison.compare(models, protocol.Settings(), answers_only=True)["pairs"]
    by_name = {model.name: model for model in models}
    return Compared(by_name, comparison.common_test(models), pairs, left_out)


# ---- in words


def in_words(row):
    """The difference of a row as `+0.021 [-0.003, +0.044]`, or with the reason why it has no interval."""
    if row["withheld"]:
        return f"{row['difference']:+.3f} ({row['withheld']})"
    return format_metric(metric(row, "difference"), "+.3f")


def conclusive(row):
    """Whether the interval of a row's difference excludes 0."""
    return is_defined(row["lo"]) and (row["lo"] > 0 or row["hi"] < 0)


def not_significant(row):
    """`not significant (why)` where the interval of a row's difference does not exclude 0, or there is none; or ""."""
    if conclusive(row):
        return ""
    why = "95% interval includes 0" if is_defined(row["lo"]) else row["withheld"].partition(";")[0]
    return f"not significant ({why})"


def verdict(row, pairs):
    """What the interval and the p of a row support, corrected over `pairs`."""
    if not is_defined(row["p"]):
        return "one seed, which says nothing of the method"
    if not conclusive(row):
        return not_significant(row)
    count = len(tested(pairs))
    correction = f" when corrected over {count} comparisons" if count > 1 else ""
    if row["p_corrected"] < ALPHA:
        return f"significant (p < {ALPHA:g}{correction})"
    return f"95% interval without 0, but p of {ALPHA} or more{correction}"


def tested(pairs):
    """The pairs whose differences have a p: those of models of several seeds each."""
    return [pair for pair in pairs if min(pair["seeds"].values()) > 1]


def weak_teachers(study, compared):
    """Blocks for each teacher that is not clearly above a student without a teacher."""
    roles = {model: group[0].kind for model, group in study.evaluated.items()}
    blocks = []
    for teacher in (model for model, role in roles.items() if role == "teacher"):
        for baseline in (model for model, role in roles.items() if role == "alone"):
            row = compared.difference(teacher, baseline)
            if row and is_defined(row["difference"]) and (row["difference"] >= 0 or not conclusive(row)):
                blocks.append(paragraph(weak_teacher_sentence(teacher, baseline, row), "note"))
    return blocks


def weak_teacher_sentence(teacher, baseline, row):
    """row: of the difference baseline - teacher, which is not clearly below 0."""
    if row["difference"] >= 0:
        return (f"The teacher {teacher} is not above the student {baseline}, which had no teacher (difference of the "
                f"student {in_words(row)} macro-F1): no conclusion about distillation follows from this study.")
    return (f"The teacher {teacher} is not significantly above the student {baseline}, which had no teacher "
            f"(difference of the student {in_words(row)} macro-F1): a gain may not be due to a better teacher.")


def without_baseline(study):
    """[(model, the command that trains its baseline)], one for each network that was only trained with a teacher."""
    architectures, networks = {}, {}
    for model, group in study.models.items():
        architectures[model] = merged([group[0].setting("arch") or group[0].setting("student")])
        networks[model] = group[0].network or architectures[model]
    known = {networks[model] for model, group in study.models.items() if group[0].kind == "alone"}
    known.add(merged([None]))  # a network of unknown architecture
    commands = []
    for model, group in study.evaluated.items():
        network = networks[model]
        if group[0].kind == "student" and network not in known:
            known.add(network)
            configs = [command_path(run.folder / "config.yaml") for run in group[0].folds or [group[0]]]
            few = f"_labelled_{group[0].labelled:g}" if group[0].labelled < 1 else ""
            name = command_path(architectures[model].replace(":", "_") + "_alone" + few)
            commands.append((model, "\n".join(f"python distill.py --config {config} --alpha 1 --beta 0 --name {name}"
                                              for config in configs)))
    return commands


# ---- the section


def students(study, compared):
    """Blocks: the differences of each model from its reference, confusion matrices, and attention."""
    if compared is None:
        why = "They need two models that were evaluated on the same test images."
        return [*missing("comparisons", why), *baselines(study), *fidelity.fidelity(study, None), *confusions(study)]
    size = compared.test.size()
    clusters = "images, taken as independent" if compared.test.groups is None else "groups (lesions, patients)"
    notes = [f"The same {size['images']:,} test images for all; paired bootstrap over {size['groups']:,} {clusters}."]
    count = len(tested(compared.pairs))
    if count:
        correction = f", corrected (Holm) over {count} comparisons" if count > 1 else ""
        notes.append(f"p is of macro-F1, two-sided{correction}.")
    if count < len(compared.pairs):
        networks = "the networks of these folds" if study.cross_validation else "these two networks"
        notes.append("Where a model has one seed there is no p, for it says nothing of the method; "
                     f"the interval is of {networks}.")
    blocks = [*baselines(study), aside(" ".join(notes))]
    for model, why in compared.left_out:
        blocks += missing(model, f"It cannot be compared: {why}.")
    return [*blocks, differences_table(compared), *over_folds(compared), *per_class(compared),
            agreement_table(compared), *fidelity.fidelity(study, compared), *confusions(study), *attention(study)]


def baselines(study):
    """Blocks: the command that trains each network without a teacher that is only there with one."""
    blocks = []
    for model, command in without_baseline(study):
        blocks += missing(f"what the teacher added to {model}", "The same network was not trained without a teacher.",
                          command)
    return blocks


def differences_table(compared):
    """The OVERALL metrics of each pair."""
    records, names = [], overall_names(compared.test)
    for pair in compared.pairs:
        records += [difference_record(pair, row, compared, names) for row in pair["rows"] if row["metric"] in names]
    columns = [
        Column("Model", "model", kind="model"), Column("Compared with", "reference", kind="text"),
        Column("Metric", "metric_name"), interval("Δ", "difference", form="+.3f"),
        Column("p", "p_shown", "p"), interval("Retained", "retention", "retention", ".1%"),
    ]
    caption = "Differences from the reference, and the share of its metric that is retained"
    return table("deltas", caption, columns, records)


def over_folds(compared):
    """Blocks: the mean differences over the folds of a cross-validation; none where no folds are joined."""
    records = [{"model": pair["model"], "reference": pair["reference"], "role": compared.roles(pair)[1],
                "metric_name": OVERALL[name], **spread("difference", figure), "p": figure["p"],
                "p_corrected": figure["p_corrected"], "p_shown": figure["p_corrected"] if name == DECIDES else None}
               for pair in compared.pairs for name, figure in pair["over_folds"].items()]
    columns = [Column("Model", "model", kind="model"), Column("Compared with", "reference", kind="text"),
               Column("Metric", "metric_name"), interval("Δ", "difference", form="+.3f"), Column("p", "p_shown", "p")]
    return [aside("In each fold both networks were trained anew: the intervals of the means over the folds include the "
                  "spread of trainings."),
            table("deltas_over_folds", "Mean differences over the folds", columns, records)] if records else []


def overall_names(test):
    """OVERALL with the name of the class that is left out; without this metric where Predictions `test` have none."""
    rarest = protocol.rarest_class(test)
    return {metric: name if "{}" not in name else name.format(test.class_names[rarest])
            for metric, name in OVERALL.items() if rarest is not None or "{}" not in name}


def difference_record(pair, row, compared, names):
    """The record of one metric (`row`) of a pair. names: of the metrics."""
    return {
        "reference": pair["reference"], "model": pair["model"], "role": compared.roles(pair)[1],
        "metric": row["metric"], "metric_name": names[row["metric"]],
        **spread("reference", metric(row, "reference"), "_value"), **spread("model", metric(row, "model"), "_value"),
        **spread("difference", metric(row, "difference")), "p": row["p"], "p_corrected": row["p_corrected"],
        **spread("retention", metric(row, "retention")), "relative_gap": row["relative_gap"],
        "p_shown": row["p_corrected"] if row["metric"] == DECIDES else None,
        "reference_seeds": pair["seeds"]["reference"], "model_seeds": pair["seeds"]["model"],
    }


def agreement_table(compared):
    """Agreement of the answers of each pair."""
    records = []
    for pair in compared.pairs:
        record = {"model": pair["model"], "reference": pair["reference"], "role": compared.roles(pair)[1]}
        for name in AGREEMENTS:
            record.update(spread(name, pair["agreement"][name]))
        records.append(record)
    columns = [
        Column("Model", "model", kind="model"), Column("Compared with", "reference", kind="text"),
        *(interval(title, name) for name, title in AGREEMENTS.items()),
    ]
    caption = "Shares of the images on which two models give the same answer, or only one of them is right"
    return table("agreement", caption, columns, records)


# ---- classes


def per_class(compared):
    """Blocks: F1 of each class, of the pairs whose reference is a teacher; of all pairs where none is."""
    pairs = []
    for pair in compared.pairs:
        reference_role, role = compared.roles(pair)
        if role != "teacher" and reference_role != "alone":
            pairs.append(pair)
    pairs = pairs or compared.pairs
    records = [class_records(pair, compared) for pair in pairs]
    rows = [record for of_pair in records for record in of_pair]
    for record, p in zip(rows, holm([record["p"] for record in rows])):
        record["p_corrected"] = float(p)
    drawn, surplus = drawable(list(zip(pairs, records)))
    bars = [class_figure(pair, of_pair, compared) for pair, of_pair in drawn]
    columns = [
        Column("Model", "model", kind="model"), Column("Class", "class"), Column("Images", "support", ",d"),
        interval("Reference F1", "reference_f1"), interval("F1", "f1"), interval("Δ F1", "delta_f1", form="+.3f"),
        interval("Δ recall", "delta_recall", form="+.3f"), Column("p", "p_corrected", "p"),
    ]
    note = "Bar and line: the model with its interval. Square: its reference. Classes in the order of the data."
    caption = "F1 of each class, and its difference from the reference"
    if any(is_defined(record["p_corrected"]) for record in rows):
        caption += "; p is of Δ F1, two-sided, corrected (Holm) over all rows"
    return [heading("F1 of each class"), aside(note), grid(bars), *surplus,
            table("deltas_per_class", caption, columns, rows)]


def class_records(pair, compared):
    """A record for each class: F1 and recall of the model against its reference."""
    rows = {row["metric"]: row for row in pair["rows"]}
    support = compared.test.size()["support"]
    records = []
    for k, name in enumerate(compared.test.class_names):
        f1, recall = rows[f"f1/{name}"], rows[f"recall/{name}"]
        records.append({
            "reference": pair["reference"], "model": pair["model"], "role": compared.roles(pair)[1],
            "class_id": k, "class": name, "support": support[name],
            "reference_f1": f1["reference_value"], "reference_f1_lo": f1["reference_lo"],
            "reference_f1_hi": f1["reference_hi"], "f1": f1["model_value"], "f1_lo": f1["model_lo"],
            "f1_hi": f1["model_hi"], "delta_f1": f1["difference"], "delta_f1_lo": f1["lo"], "delta_f1_hi": f1["hi"],
            "relative_gap": f1["relative_gap"], "delta_recall": recall["difference"], "delta_recall_lo": recall["lo"],
            "delta_recall_hi": recall["hi"], "p": f1["p"],
        })
        reasons = {"reference_f1": f1["reference_withheld"], "f1": f1["model_withheld"], "delta_f1": f1["withheld"],
                   "delta_recall": recall["withheld"]}
        records[-1].update({f"{key}_withheld": reason for key, reason in reasons.items() if reason})
    return records


def class_figure(pair, records, compared):
    """F1 of each class of a pair. records: its class_records()."""
    model, reference = pair["model"], pair["reference"]
    scores = {}
    for name in ("f1", "reference_f1"):
        scores[name] = [{"value": record[name], "lo": record[f"{name}_lo"], "hi": record[f"{name}_hi"]}
                        for record in records]
    descriptions = []
    for record in records:
        f1, reference_f1 = format_number(record["f1"]), format_number(record["reference_f1"])
        descriptions.append(f"{record['class']} {f1} against {reference_f1}")
    alt = f"F1 of each class of {model} beside {reference}: {'; '.join(descriptions)}"
    names, role = compared.test.class_names, compared.roles(pair)[1]
    svg = figures_quality.per_class(names, scores["f1"], scores["reference_f1"], role, reference, alt=alt)
    return figure(svg, alt, model, role=role)


def confusions(study):
    """Blocks: the confusion matrix of the first seed of each model."""
    runs = [run for run in study.firsts if run.evaluation.get("confusion")]
    if not runs:
        return missing("confusion matrices", "No metrics.json has one.")
    runs, surplus = drawable(runs)
    matrices = []
    for run in runs:
        name = f"{run.model}, {seed_name(run)}"
        alt = f"Confusion matrix of {name}: rows true, columns predicted."
        svg = figures.confusion(run.evaluation["confusion"], run.class_names, alt=alt)
        matrices.append(figure(svg, alt, name, role=run.kind))
    note = ("Counts of test images, the first seed of each model. The shade is the share of the true class, so that "
            "rows of different sizes can be compared; an empty cell is 0.")
    return [heading("Confusion matrices"), aside(note), grid(matrices), *surplus]


# ---- attention and similarity


def attention(study):
    """Blocks: attention maps of teacher and student, and the similarity of their representations."""
    runs = [run for run in study.networks.runs if run.attention]
    if not runs:
        if all(run.kind != "student" for run in study.runs):
            return []
        return missing("attention maps and the similarity of representations", "No run has attention.npz, which "
                       "distill.py writes for students that have a teacher.")
    firsts = {}
    for run in runs:
        firsts.setdefault(run.model, run)
    drawn, surplus = drawable(list(firsts.values()))
    maps = [attention_figure(run, study.networks.first("samples")) for run in drawn]
    note = ("Attention: the mean of the squared activations of each stage, each map on its own scale, light is high. "
            "Grad-CAM: the positions of the last stage that speak for the class that the network predicts (Selvaraju "
            "et al. 2017).")
    return [heading("Attention, teacher beside student"), aside(note), *filter(None, maps), *surplus, *similarity(runs)]


def attention_figure(run, samples):
    """The maps of a Run and its teacher beside at most four images, its own or of `samples`; None without any."""
    kept = run.attention
    source = kept if "images" in kept else samples or {"ids": (), "images": ()}
    images, rows = dict(zip(map(str, source["ids"]), source["images"])), []
    cam_names = ("teacher_cam", "student_cam") if {"teacher_cam", "student_cam"} <= kept.keys() else ()
    for k, name in enumerate(map(str, kept["ids"])):
        if name in images:
            cams = {cam: kept[cam][k] for cam in cam_names}
            rows.append(figures_quality.Maps(images[name], kept["teacher"][k], kept["student"][k],
                                             words=answers(run, name), **cams))
    rows = rows[:4]
    if not rows:
        return None
    count = format_count(len(rows), "test image")
    alt = (f"Attention of {run.model} and its teacher, {seed_name(run)}, on {count}: "
           + "; ".join(row.words for row in rows))
    caption = f"{run.model}, {seed_name(run)}"
    if {"difference", "candidates"} <= kept.keys():
        distances = ", ".join(f"{value:.2f}" for value in kept["difference"][:4])
        caption += (f": of {format_count(int(kept['candidates']), 'test image')}, those on which the probabilities of "
                    f"teacher and student differ most (total variation distance {distances})")
    return responsive_figure(figures_quality.attention, rows, alt=alt, caption=caption, role=run.kind)


def answers(run, image):
    """The true class of a test image, and what teacher and student answer with which probability, where known."""
    words = ""
    for name, model in (("teacher", run.teachers[0] if len(run.teachers) == 1 else None), ("student", run)):
        test = model.test if model else None
        rows = np.flatnonzero(test.ids.astype(str) == image) if test and test.ids is not None else ()
        if len(rows):
            probabilities, label = test.probabilities[rows[0]], test.labels[rows[0]]
            words = words or f"true {test.class_names[label]}"
            best = probabilities.argmax()
            words += f"; {name} {test.class_names[best]} {probabilities[best]:.2f}"
    return words


def similarity(runs):
    """Blocks: linear CKA of each stage with the teacher's, of the runs that have its interval."""
    runs = [run for run in runs if {"cka_lo", "cka_hi"} <= run.attention.keys()]
    if not runs:
        return missing("similarity of representations", "attention.npz has no interval of CKA.")
    drawn, surplus = drawable([run for run in runs if run.seed == runs[0].seed])
    lines, descriptions = [], []
    for run in drawn:
        cka = [run.attention[f"cka{end}"] for end in ENDS]
        lines.append((run.model, run.kind, *cka))
        values = ", ".join(format_number(float(value), ".2f") for value in cka[0])
        descriptions.append(f"{run.model}: {values}")
    alt = f"Linear CKA with the teacher by stage. {'; '.join(descriptions)}"
    stages = range(1, 1 + max(len(run.attention["cka"]) for run in runs))
    columns = [*seed_columns(), *(interval(f"Stage {k}", f"stage_{k}") for k in stages)]
    note = ("Linear CKA (debiased) of each stage with the same stage of the teacher, over validation images: 1 is "
            "alike up to rotation and scale, 0 unrelated.")
    return [heading("Similarity of representations"), aside(note),
            responsive_figure(figures_quality.stages, lines, alt=alt), *surplus,
            table("cka", "Linear CKA with the teacher", columns, [cka_record(run) for run in runs])]


def cka_record(run):
    """The record of a Run: linear CKA of each stage as `stage_1`, ..., with its bounds."""
    record = {"model": run.model, "role": run.kind, "seed": run.seed}
    for end in ENDS:
        for k, value in enumerate(run.attention[f"cka{end}"], start=1):
            record[f"stage_{k}{end}"] = float(value)
    return record
