"""Results of robustness.py as text; the tables fit a terminal of 110 columns, and are divided on a narrower one."""

import math
import textwrap

from kd.robustness.scores import full_name
from kd.text import TERMINAL_WIDTH, align_columns, format_metric, format_number, one_line, shortened

MAX_MODELS = 10  # of the table of corruptions, which has a column a model


def summary_text(summary, test, note=None, quick=""):
    """The tables of robustness_summary.csv: quality, certainty, and macro-F1 under each corruption.

    summary: rows of scores.summarise(). test: the Predictions that were measured. note: of the suite, or None.
    quick: text behind the number of images.
    """
    first, size = summary[0], test.size()
    units = "groups (lesions, patients)" if test.groups is not None else "images, taken as independent"
    head = (f"{first['images']:,} test images{quick}, {first['cells']} cells of suite {first['suite']}; 95% intervals "
            f"over {size['groups']:,} {units}")
    parts = [head, quality(summary), certainty(summary), by_corruption(summary)]
    if note:
        parts.append(textwrap.fill(f"Note: {note}", TERMINAL_WIDTH))
    return "\n\n".join(parts)


def quality(summary):
    """Table of macro-F1, BE, rBE and rank, with what BE and rBE mean."""
    table = [["", "macro F1", "clean", "mean of cells", "BE", "rBE", "BE-C", "rBE-C", "rank", "worst cell"]]
    for number, row in enumerate(summary, 1):
        name = full_name(row["model"], row["seed"], row["file"])
        table.append([number, name, format_number(row["clean_macro_f1"]), _metric(row, "mean_macro_f1"),
                      *(format_number(row[name], ".2f") for name in ("be", "rbe", "be_medmnist_c", "rbe_medmnist_c")),
                      row["rank"],
                      f"{format_number(row['worst_macro_f1'])} {row['worst_tag']}"])
    baseline = summary[0]["baseline"]
    if baseline:
        legend = (f"BE: sum of 1 - balanced accuracy over all cells, divided by that of {baseline}; rBE: the same of "
                  "the loss to clean images. BE-C, rBE-C: mean over corruptions of such ratios, as MedMNIST-C has "
                  "it; compare these with published ones. Below 1 is better than that model. rank: by the sum.")
    else:
        legend = ("No BE and rBE: there is no teacher among these; --baseline RUN names another model. rank: by "
                  "balanced accuracy.")
    if baseline and math.isnan(summary[0]["rbe"]):
        legend += f" rBE n/a: what {baseline} loses to clean images is not clearly above 0."
    return align_columns(table) + "\n" + textwrap.fill(legend, TERMINAL_WIDTH)


def certainty(summary):
    """Table of calibration, ranking by confidence, and the frozen operating point of each model's first class."""
    prefix = "promised_sensitivity/"
    points = [next((column.removeprefix(prefix) for column in row if column.startswith(prefix)), None)
              for row in summary]
    names = shortened(filter(None, points), 12)
    table = [["", "CE: clean", "mean", "AURC: clean", "mean", "as clean"]]
    if any(points):
        table[0] += ["promised", "sens.: clean", "mean", "worst", "spec.: clean", "mean"]
    for number, (row, point) in enumerate(zip(summary, points), 1):
        cells = [format_number(row[column]) for column in ("clean_rms_ce_debiased", "mean_rms_ce_debiased",
                                                               "clean_aurc", "mean_aurc")]
        table.append([number, *cells, format_number(row["mean_agreement_clean"], ".2f")])
        if point:
            columns = [f"{which}_sensitivity/{point}" for which in ("clean", "mean", "worst")]
            columns += [f"{which}_specificity/{point}" for which in ("clean", "mean")]
            table[-1] += [f"{names[point]} {row[prefix + point]:g}",
                          *(format_number(row[column], ".2f") for column in columns)]
        elif any(points):
            table[-1] += [""] * 6
    legend = ("CE: debiased calibration error; CE, AURC: of confidences after the temperature of clean validation. as "
              "clean: share of answers that are the same as on clean images.")
    if any(points):
        legend += (" promised: the class and the sensitivity that its threshold was chosen for, on clean validation "
                   "images; sens., spec.: sensitivity and specificity of that threshold on test.")
        legend += "".join(f" {short} is the class {one_line(name, 200)}." for name, short in names.items()
                          if short != name)
    return align_columns(table) + "\n" + textwrap.fill(legend, TERMINAL_WIDTH)


def by_corruption(summary):
    """Table of mean macro-F1 under each corruption, a column a model, up to MAX_MODELS."""
    models = summary[:MAX_MODELS]
    columns = [column for column in summary[0]
               if column.startswith("macro_f1/") and not column.endswith(("_lo", "_hi"))]
    table = [["macro F1, mean over severities", *range(1, len(models) + 1)],
             ["clean", *(format_number(row["clean_macro_f1"]) for row in models)]]
    for column in columns:
        table.append([column.removeprefix("macro_f1/"), *(format_number(row[column]) for row in models)])
    rest = len(summary) - MAX_MODELS
    more = f"\nThe other {rest} models are in robustness_summary.csv." if rest > 0 else ""
    return align_columns(table) + more


def _metric(row, column, bounds_form=None):
    """The value and interval of a column, as `0.455 [0.401, 0.504]`."""
    metric = {"value": row[column], "lo": row[f"{column}_lo"], "hi": row[f"{column}_hi"]}
    return format_metric(metric, bounds_form=bounds_form)


def times_text(spent, models):
    """Sentence on the time spent. spent: {"corrupting", "answering", "measuring"}, seconds; models: their number."""
    if not spent["answering"]:
        return f"All answers were on disk: nothing was corrupted. Measuring took {spent['measuring']:.0f} s."
    total = sum(spent.values())
    shares = {step: f"{seconds / total:.0%}" for step, seconds in spent.items()}
    return (f"time: {total:.0f} s, of which corrupting {shares['corrupting']} (each batch once for {models} models), "
            f"answering {shares['answering']}, measuring {shares['measuring']}")
