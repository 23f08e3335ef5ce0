"""Fidelity of the students to their teachers, from metrics.json and seeds.json."""

import math

from kd.report.blocks import Column, aside, heading, interval, missing, spread, table
from kd.run_folder import bounded

COLUMNS = {"agreement": "Agreement", "agreement_where_teacher_wrong": "Agreement where the teacher is wrong",
           "kl_teacher_student": "KL(teacher ‖ student)"}


def fidelity(study, compared):
    """Blocks: a table of the students, and of the same for students without a teacher; why a student is not in it.

    compared: of kd.report.sections.students.compare(), or None.
    """
    records, unknown = [], []
    for model, group in study.evaluated.items():
        if group[0].teacher_name is not None:
            contents = [run.evaluation.get("fidelity") or {} for run in group]
            figures, why = of_model(study, model, contents)
            if figures:
                names = dict.fromkeys(content["teacher"] for content in contents if content.get("teacher"))
                teachers = ", ".join(teacher_name(study, name) for name in names)
                records.append(record(model, group[0].kind, teachers, figures, len(group)))
            else:
                unknown += missing(f"the fidelity of {model} to its teacher", *why)
    of_others = [record(pair["model"], "alone", pair["reference"], pair["fidelity"], pair["seeds"]["model"])
                 for pair in (compared.pairs if compared else ())
                 if pair["fidelity"] and compared.roles(pair)[1] == "alone"] if records else []
    if not records:
        return [heading("Fidelity to the teacher"), *unknown] if unknown else []
    records += of_others
    shown = [{**row, "agreement": None} if is_of_a_pair(row, compared) else row for row in records]
    everywhere = ("" if any(row["agreement"] for row in shown) else
                  "; over all images it stands in the table above, beside how often only one of the two is right")
    note = (f"Agreement: the share of the images to which student and teacher give the same class{everywhere}. "
            "KL(teacher ‖ student): mean over the images, in nats, at the temperature 1; 0 where both give the same "
            "probabilities.")
    if of_others:
        note += " A student without a teacher shows what comes from learning the same labels."
    columns = [Column("Model", "model", kind="model"), Column("Teacher", "teacher", kind="text"),
               *(interval(title, name) for name, title in COLUMNS.items()),
               Column("Seeds", "seeds", "d")]
    return [heading("Fidelity to the teacher"), aside(note),
            table("fidelity", "Students beside the teacher, test split", columns, shown, records), *unknown]


def teacher_name(study, name):
    """`study/model/seed_0` without the study if it is this one, and then without the seed if it is the only one."""
    name = name.removeprefix(f"{study.name}/")
    model = name.rpartition("/")[0]
    return model if len(study.models.get(model, ())) == 1 else name


def is_of_a_pair(row, compared):
    """Whether the agreement in a record() is that of a pair of models, which has a table of its own."""
    return any(pair["model"] == row["model"] and compared.roles(pair)[0] == "teacher"
               and math.isclose(pair["agreement"]["agreement"]["value"], row["agreement"])
               for pair in (compared.pairs if compared else ()))


def of_model(study, model, contents):
    """({NAME: METRIC}, None), or (None, (why it is not known, the remedy)). contents: of metrics.json, one a seed."""
    remedy = f"python evaluate.py {study.command}"
    reason = next((content["reason"] for content in contents if content.get("reason")), None)
    if reason:
        return None, (f"{reason[:1].upper()}{reason[1:]}.", "")
    if not all(content.get("test") for content in contents):
        return None, ("An older version wrote its metrics.json.", remedy)
    if len(contents) == 1:
        return {name: bounded(contents[0]["test"].get(name)) for name in COLUMNS}, None
    over_seeds = (study.seeds.get(model, {}).get("fidelity") or {}).get("test", {})
    if not over_seeds:
        return None, ("The mean over its seeds is in seeds.json, which is missing or of an older version.", remedy)
    metrics = {name: over_seeds.get(name) or {} for name in COLUMNS}
    return {name: bounded({**metric, "value": metric.get("mean")}) for name, metric in metrics.items()}, None


def record(model, role, teacher, figures, seeds):
    """The record of a model. figures: {NAME: METRIC}."""
    result = {"model": model, "role": role, "teacher": teacher, "seeds": seeds}
    for name in COLUMNS:
        result.update(spread(name, figures[name]))
    return result
