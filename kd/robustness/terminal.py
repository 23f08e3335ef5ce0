"""What robustness.py found, as text for a terminal of 110 columns."""

import math
import textwrap

from kd.text import TERMINAL_WIDTH, align_columns, format_metric, format_number, one_line

MOST = 10  # models that the table of corruptions has columns for


def printed(summary, test, note=None, quick=""):
    """Quality, whether models know when they fail, and a line a corruption with a column a model."""
    first = summary[0]
    groups = "groups (lesions, patients)" if test.groups is not None else "images, taken as independent"
    parts = [f"{first['images']:,} test images{quick}, {first['cells']} cells of suite {first['suite']}; 95% intervals over "
             f"{test.size()['groups']:,} {groups}", quality(summary), certainty(summary), by_corruption(summary)]
    return "\n\n".join(parts + [textwrap.fill(f"Note: {note}", TERMINAL_WIDTH)] * bool(note))


def quality(summary):
    rows = [["", "macro F1", "clean", "mean of cells", "BE", "rBE", "rank", "worst cell"]]
    rows += [[k, name(row), format_number(row["clean_macro_f1"]), show(row, "mean_macro_f1"), show(row, "be", ".2f"),
              format_number(row["rbe"], ".2f"), row["rank"], f"{format_number(row['worst_macro_f1'])} {row['worst_tag']}"]
             for k, row in enumerate(summary, 1)]
    told = (f"BE: sum of 1 - balanced accuracy over all cells, over that of {summary[0]['baseline']}; rBE: the same of what the "
            "cells lose to clean images. Below 1 is better than that model. rank: by that sum." if summary[0]["baseline"] else
            "No BE and rBE: there is no teacher among these; --baseline RUN names another model. rank: by balanced accuracy.")
    if summary[0]["baseline"] and math.isnan(summary[0]["rbe"]):
        told += f" rBE n/a: what {summary[0]['baseline']} loses to clean images is not clearly above 0."
    return align_columns(rows) + "\n" + textwrap.fill(told, TERMINAL_WIDTH)


def certainty(summary):
    """Calibration, ranking by confidence, and the frozen operating point of each model's first class."""
    points = [next((column.split("/", 1)[1] for column in row if column.startswith("promised_sensitivity/")), None)
              for row in summary]
    rows = [["", "ECE: clean", "mean", "AURC: clean", "mean", "as clean"]]
    if any(points):
        rows[0] += ["promised", "sens.: clean", "mean", "worst", "spec.: clean", "mean"]
    for k, (row, point) in enumerate(zip(summary, points), 1):
        rows.append([k, *(format_number(row[f"{which}_{metric}"]) for metric in ("ece", "aurc") for which in ("clean", "mean")),
                     format_number(row["mean_agreement_clean"], ".2f")])
        if point:
            rows[-1] += [f"{one_line(point, 12)} {row[f'promised_sensitivity/{point}']:g}",
                         *(format_number(row[f"{which}_sensitivity/{point}"], ".2f") for which in ("clean", "mean", "worst")),
                         *(format_number(row[f"{which}_specificity/{point}"], ".2f") for which in ("clean", "mean"))]
        elif any(points):
            rows[-1] += [""] * 6
    told = "ECE, AURC: of confidences after the temperature of clean validation. as clean: share of answers that stay."
    if any(points):
        told += (" promised: the class and the sensitivity that its threshold was chosen for, on clean validation images; sens., "
                 "spec.: what is left of it on test.")
    return align_columns(rows) + "\n" + textwrap.fill(told, TERMINAL_WIDTH)


def by_corruption(summary):
    shown = summary[:MOST]
    corruptions = [column.removeprefix("macro_f1/") for column in summary[0]
                   if column.startswith("macro_f1/") and not column.endswith(("_lo", "_hi"))]
    rows = [["macro F1, mean over severities", *range(1, len(shown) + 1)],
            ["clean", *(format_number(row["clean_macro_f1"]) for row in shown)]]
    rows += [[corruption, *(format_number(row[f"macro_f1/{corruption}"]) for row in shown)] for corruption in corruptions]
    more = f"\nThe other {len(summary) - MOST} models are in robustness_summary.csv." if len(summary) > MOST else ""
    return align_columns(rows) + more


def name(row):
    return f"{row['model']}/{row['seed']}" + ("" if row["file"] == "best.pt" else f" {row['file']}")


def show(row, column, bounds_form=None):
    return format_metric({"value": row[column], "lo": row[f"{column}_lo"], "hi": row[f"{column}_hi"]}, bounds_form=bounds_form)


def times(spent, models):
    """Where the time went; corrupting is done once for all models of one input."""
    total = sum(spent.values())
    if not spent["answering"]:
        return f"All answers were kept from before: nothing was corrupted. Measuring took {spent['measuring']:.0f} s."
    return (f"time: {total:.0f} s, of which corrupting {spent['corrupting'] / total:.0%} (each batch once for {models} models), "
            f"answering {spent['answering'] / total:.0%}, measuring {spent['measuring'] / total:.0%}")
