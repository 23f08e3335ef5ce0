"""What robustness.py found, as text for a terminal."""

from kd import tables

WIDE = 12  # models that a table of corruptions has columns for


def printed(summary, test, note=None, quick=""):
    """Two tables: a line a model, and a line a corruption with a column a model."""
    first = summary[0]
    points = [name.removeprefix("promised_sensitivity/") for name in first if name.startswith("promised_sensitivity/")][:1]
    head = ["", "", "clean", "mean", "BE", "rBE", "rank", "worst cell"]
    lines = [[*head, *(title for name in points for title in (f"{name}: clean", "mean", "worst"))]]
    for k, row in enumerate(summary, 1):
        lines.append([k, name(row), tables.number(row["clean_macro_f1"]), show(row, "mean_macro_f1"), show(row, "be"),
                      tables.number(row["rbe"], 2), row["rank"], f"{tables.number(row['worst_macro_f1'])} {row['worst_tag']}",
                      *(tables.number(row[f"{which}_sensitivity/{point}"], 2) for point in points
                        for which in ("clean", "mean", "worst"))])
    groups = "groups (lesions, patients)" if test.groups is not None else "images, taken as independent"
    parts = [f"{first['images']:,} test images{quick}, {first['cells']} cells of suite {first['suite']}; macro F1 with 95% intervals over "
             f"{test.size()['groups']:,} {groups}", tables.aligned(lines)]
    if first["baseline"]:
        parts.append(f"BE: sum of 1 - balanced accuracy over all cells, over that of {first['baseline']}; rBE: the same of what is "
                     "lost to clean\nimages. Below 1 is better than the baseline. rank: by that sum.")
    else:
        parts.append("No BE and rBE: there is no teacher among these; --baseline RUN names another model. rank: by balanced accuracy.")
    if points:
        parts.append(f"{points[0]}: sensitivity; {first[f'promised_sensitivity/{points[0]}']:g} was promised by a threshold chosen on clean "
                     "validation images.")
    corruptions = [column.removeprefix("macro_f1/") for column in first if column.startswith("macro_f1/")
                   and not column.endswith(("_lo", "_hi"))]
    shown = summary[:WIDE]
    parts.append(tables.aligned([["macro F1, mean over severities", *range(1, len(shown) + 1)],
                                 ["clean", *(tables.number(row["clean_macro_f1"]) for row in shown)]] + [
        [corruption, *(tables.number(row[f"macro_f1/{corruption}"]) for row in shown)] for corruption in corruptions]))
    return "\n\n".join(filter(None, [*parts, note and f"Note: {note}"]))


def name(row):
    return f"{row['model']}/{row['seed']}" + ("" if row["file"] == "best.pt" else f" {row['file']}")


def show(row, column):
    return tables.show({"value": row[column], "lo": row[f"{column}_lo"], "hi": row[f"{column}_hi"]},
                       2 if column.endswith("be") else 3)


def times(spent, models):
    """Where the time went; corrupting is done once for all models of one input."""
    total = sum(spent.values())
    if not spent["answering"]:
        return f"All answers were kept from before: nothing was corrupted. Measuring took {spent['measuring']:.0f} s."
    return (f"time: {total:.0f} s, of which corrupting {spent['corrupting'] / total:.0%} (each batch once for {models} models), "
            f"answering {spent['answering'] / total:.0%}, measuring {spent['measuring'] / total:.0%}")
