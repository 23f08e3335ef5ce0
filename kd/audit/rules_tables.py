"""Rules about tables: figures that contradict each other or stand alone, and what a reader should know."""

import re
from collections import defaultdict

import numpy as np

from kd.audit.rule import rule
from kd.errors import listing


@rule("error", "One of the two belongs to another run, another split or an earlier evaluation, and no reader can tell "
      "which.", "Give every figure the run it is from, and print each from that run's files alone.",
      requires="figures")
def two_figures(cases):
    for model, members in _by_model(cases).items():
        if any(case.namesakes > 1 for case in members):
            continue
        seeds = {case.seed for case in members if case.seed}
        only_seed = next(iter(seeds)) if len(seeds) == 1 else ""
        figures_of = defaultdict(list)  # (seed, split, metric) -> [(name of the model in its file, Figure)]
        for case in members:
            for figure in case.figures:
                figures_of[case.seed or only_seed, figure.split, figure.metric].append((case.model, figure))
        differing = defaultdict(list)  # (seed, the two names of the model) -> one text a metric
        for (seed, split, metric), figures in figures_of.items():
            low_name, low = min(figures, key=lambda pair: pair[1].value)
            high_name, high = max(figures, key=lambda pair: pair[1].value)
            if not low.agrees(high):
                text = f"{metric} {low} ({low.source}) and {high} ({high.source}) on {split}"
                differing[seed, low_name, high_name].append(text)
        for (seed, a, b), texts in differing.items():
            one_model = "" if a == b else f", where {a} and {b} are taken for one model"
            yield "warning" if one_model else "error", (
                f"{'/'.join(filter(None, (model, seed)))} has {listing(texts, 3)}{one_model}")


def _by_model(cases):
    """{model: its Cases}. A name in another table that is part of exactly one model's name is taken for that model."""
    models = defaultdict(list)
    for case in cases:
        models[case.model].append(case)
    short = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in models}
    tables_of = {name: {source for case in members for source in case.sources} for name, members in models.items()}
    for name in list(models):
        longer = [other for other in models if other != name and short[name] in short[other]]
        if len(short[name]) < 5 or len(longer) != 1:
            continue
        if not models[name][0].folder and not tables_of[name] & tables_of[longer[0]]:
            models[longer[0]] += models.pop(name)
    return models


@rule("error", "The mean over seeds is not the mean of the seeds: it is of other seeds, weighted, or was changed.",
      "Evaluate all seeds together: `python evaluate.py STUDY` writes seeds.json, with --compare comparison.csv.")
def mean_of_seeds(cases):
    figures_of = defaultdict(dict)  # (model, metric) -> {seed: its value}
    for case in cases:
        if case.folder:
            for metric in {figure.metric for figure in case.figures if figure.split == "test"}:
                figures_of[case.model, metric][case.seed] = case.figure(metric).value
    for case in cases:
        wrong = []
        for mean in case.means:
            if mean.metric.startswith("rms_ce_debiased"):
                continue  # the root of a mean of squares
            values = [*figures_of[case.model, mean.metric].values()] if mean.values is None else mean.values
            if len(values) != mean.count or not values or None in values:
                continue
            average = sum(values) / len(values)
            if abs(average - mean.value) > mean.tolerance + 1e-6 * max(1, abs(average)):
                wrong.append(f"{mean.metric} {mean.value:.4f} in {mean.source}, {average:.4f} of the seeds")
        if wrong:
            yield f"{case.model}: {listing(wrong, 3)}"


@rule("note", "A student that is above its teacher did not get there by imitating it; such a study says little about "
      "distillation.", "Train the teacher longer or choose a stronger one before comparing ways to distil.",
      requires="figures")
def teacher_below_student(comparable_cases):
    scores = defaultdict(lambda: defaultdict(list))  # (whether from tables, role) -> {model: macro-F1 of its seeds}
    for case in comparable_cases:
        figure = case.figure("macro_f1")
        if case.role in ("teacher", "student") and figure:
            scores[case.folder is None, case.role][case.model].append(figure.value)
    for from_tables in (False, True):
        students = {model: np.mean(values) for model, values in scores[from_tables, "student"].items()}
        for teacher, values in scores[from_tables, "teacher"].items():
            of_teacher = np.mean(values)
            above = [f"{model} {value:.3f}" for model, value in students.items() if value > of_teacher]
            if above:
                yield f"macro-F1 of the teacher {teacher} is {of_teacher:.3f}, below {listing(above)}"


@rule("warning", "Without an interval nobody can say whether two figures differ or the test set was small.",
      "Resample lesions, or images where no lesions are known, and give the interval beside every figure.",
      requires="figures")
def no_interval(cases):
    lacking = defaultdict(lambda: defaultdict(list))  # source -> {case: metrics without an interval}
    for case in cases:
        bounded = {(figure.split, figure.metric) for figure in case.figures if figure.interval}
        for figure in case.figures:
            if figure.interval is False and (figure.split, figure.metric) not in bounded:
                lacking[figure.source][case.name].append(figure.metric)
    for source, metrics_of in lacking.items():
        names = dict.fromkeys(name for metrics_ in metrics_of.values() for name in metrics_)
        owners = listing(filter(None, metrics_of)) or "this run"
        yield f"{source}: {listing(names, 8)} of {owners} without an interval"


@rule("warning", "A figure whose run is unknown can neither be computed again nor be compared.",
      "Keep the run folder, with its predictions, and write its name beside every figure.", requires="stated")
def run_not_found(cases):
    with_predictions = [case for case in cases if case.test is not None]
    known = {(case.model, seed) for case in with_predictions for seed in (case.seed, "")}
    unknown, namesakes = defaultdict(list), {}
    for case in cases:
        if case.folder and case.test is None:
            yield f"{case.name}: metrics.json has figures, but there is no predictions/test.npz that they could be of"
        elif case.namesakes > 1:
            namesakes[case.name.partition(" (")[0]] = case
        elif case.sources and not case.traced and (case.model, case.seed) not in known:
            unknown[tuple(case.sources)].append(case.name)
    for sources, names in unknown.items():
        yield f"no run folder with predictions for {listing(names)} ({', '.join(sources)})"
    for name, case in namesakes.items():
        yield f"{case.namesakes} runs under the one name {name} ({', '.join(case.sources)})"


@rule("warning", "A file that cannot be read is checked by no rule.", "Write the file again, or remove it.")
def damaged_file(unreadable):
    yield from unreadable
