"""Options that were chosen on validation: how many tries there were, which was best, and how much hangs on it."""

from kd import sweeps
from kd.report.blocks import Column, aside, bullets, paragraph, table
from kd.report.figures_sweep import sweep as draw
from kd.report.sections.overview import MAX_DRAWN, drawable, responsive_figure
from kd.text import format_count

TITLES = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC"}


def record(study, model):
    """Entries of a model's row in a table: the number of tries, and what they led to; nothing without a sweep."""
    content = study.sweeps.get(model)
    if not content:
        return {}
    tries = sweeps.count(content)
    return {"tries": tries, "sweep": f"best of {tries} tries on validation ({sweeps.in_words(content['chosen'])})"}


def caveat(study, models):
    """A sentence about those of `models` whose figures on validation are the best of several; "" where none is."""
    parts = [f"{model} is the best of {sweeps.count(study.sweeps[model])} tries" for model in models
             if model in study.sweeps]
    figures = "their figures" if len(parts) > 1 else "its figure"
    images = "the first fold's" if study.cross_validation else "these"
    return f"{' and '.join(parts)} on {images} validation images, which raises {figures} there." if parts else ""


def chosen(study):
    """Blocks: the tries of each sweep, and the metric on validation over each option."""
    found = {model: content for model, content in study.sweeps.items() if model in study.models}
    if not found:
        return []
    drawn, surplus = drawable(list(found.items()))
    figures = [sweep_figure(model, content, study.models[model][0].kind) for model, content in drawn]
    records = [row for model, content in found.items() for row in rows(study, model, content)]
    columns = [
        Column("Model", "model", kind="model"), Column("Options", "options", kind="text"),
        Column("Metric", "metric", kind="text"), Column("On validation", "value"), Column("Epoch", "epoch", "d"),
        Column("Chosen", "chosen"), Column("In the plan", "in_plan"),
    ]
    return [
        paragraph("Each combination of these options was trained with one seed, and the best on validation was chosen. "
                  "Its figure on validation is the best of several and so too good as an estimate. " + (
                      "These were the validation images of the first fold, which are tested in other folds: only the "
                      "first fold's figures on test are quite free of the choice."
                      if study.cross_validation else
                      "The test split was not used, and the figures on test are not chosen from.")),
        bullets(sentence(model, content) for model, content in found.items()),
        *figures, *surplus, table("sweeps", "All tries of the sweeps", columns, records),
        aside("In the figures each dot is a try, the large mark the chosen one; the line joins the tries that differ "
              "from it in this option alone."),
    ]


def rows(study, model, content):
    """The records of the tries of a model, those of earlier lists of the plan last."""
    head = {"model": model, "role": study.models[model][0].kind}
    listed = [(one, True) for one in content["tries"]] + [(one, False) for one in content.get("earlier", ())]
    return [{**head, "options": sweeps.in_words(one["options"]), "metric": title(content), "value": one["value"],
             "epoch": one.get("epoch"), "chosen": in_plan and one["options"] == content["chosen"],
             "in_plan": in_plan if content.get("earlier") else None}
            for one, in_plan in listed]


def title(content):
    """The name of the metric that decided, as a reader knows it."""
    return TITLES.get(content["metric"], content["metric"].replace("_", " "))


def sentence(model, content):
    """What was chosen of how many tries, and whether a better value may lie beyond those that were tried."""
    best = sweeps.best(content["metric"], content["tries"])
    text = (f"{model}: {sweeps.in_words(content['chosen'])}, the best of {sweeps.count(content)} tries on validation "
            f"({title(content)} {best['value']:.3f})")
    earlier = len(content.get("earlier", ()))
    if earlier:
        text += f", {format_count(earlier, 'of them no longer in the plan', 'of them no longer in the plan')}"
    ends = []
    for option, value in content["chosen"].items():
        values = [one["options"][option] for one in content["tries"]]
        numbers = all(isinstance(value, (int, float)) for value in values)
        if numbers and len(set(values)) > 2 and value in (min(values), max(values)):
            ends.append(f"{option} {value:g} is the {'largest' if value == max(values) else 'smallest'} that was tried")
    return f"{text}. {'; '.join(ends)}: a better one may lie beyond." if ends else f"{text}."


def sweep_figure(model, content, role):
    """The block of a model's figure."""
    chosen = content["chosen"]
    tries = content["tries"]
    panels = []
    for option in chosen:
        values = list(dict.fromkeys(one["options"][option] for one in tries))
        others = [key for key in chosen if key != option]
        points = [(values.index(one["options"][option]), one["value"],
                   all(one["options"][key] == chosen[key] for key in others)) for one in tries]
        panels.append((option, values, points, [one["options"] for one in tries].index(chosen)))
    told = "; ".join(f"{sweeps.in_words(one['options'])}: {one['value']:.3f}" for one in tries[:MAX_DRAWN * 3])
    alt = f"Sweep of {model}: {title(content)} on validation. {told}"
    caption = f"{model}: {title(content)} on validation over the options that were tried"
    return responsive_figure(draw, panels, f"val. {title(content)}", role, alt=alt, caption=caption, role=role)
