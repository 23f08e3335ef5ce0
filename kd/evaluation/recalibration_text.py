"""A recalibration as text for the terminal."""

from kd import recalibration
from kd.evaluation import terminal
from kd.text import align_columns, format_count, format_number, is_defined


def text(record):
    """What was fitted, and the run's own settings beside the new ones. record: as kd/recalibration.py has it."""
    labels = dict(zip(record["class_names"], terminal.class_labels(record["class_names"])[1]))
    classes, thresholds = ([[labels.get(first, first), *rest] for first, *rest in table] for table in (
        recalibration.classes(record), recalibration.thresholds(record)))
    return "\n\n".join([
        head(record), f"{align_columns(classes)}\n{temperature(record)}",
        "\n".join([align_columns(recalibration.compared(record)),
                   "Of probabilities, those after the temperature are compared.",
                   *recalibration.verdict(record)]),
        "\n".join([align_columns(thresholds), *recalibration.promises(record)])])


def head(record):
    """Which cases the settings were fitted on, and which they are tested on."""
    fitted, parts = record["recalibration"], record["split"]
    grouped = fitted["unit"] != "image"
    fit, test = (format_count(parts[part]["images"], "image")
                 + f" of {format_count(parts[part]['groups'], 'group')}" * grouped for part in ("fit", "test"))
    lines = [f"{fitted['site']}: settings fitted on {fit}, tested on {test} that had no part in it"]
    if fitted["in_neither"]:
        lines.append("In neither part, since they look like images of the first: "
                     f"{format_count(fitted['in_neither'], 'image')}.")
    if not grouped:
        lines.append("No patients are known (--groups FILE.csv, or group=COLUMN of a table): images of one may be in "
                     "both parts, and make the test too good.")
    return "\n".join([*lines, terminal.describe_intervals(record)])


def temperature(record):
    """The temperature, and what the offsets do not know."""
    fitted, support = record["recalibration"], record["split"]["fit"]["support"]
    lines = [f"temperature {record['calibration']['temperature']:.3f}; before it was "
             f"{format_number(fitted['own']['temperature'])}"]
    if not is_defined(fitted["ridge"]):
        lines.append("The offsets are 0: by cross-validation on the images fitted on, others predict no better.")
    absent = [name for name, count in support.items() if not count]
    if absent:
        lines.append(f"No image of {', '.join(absent)} to fit on: it is only known to be rare there.")
    return "\n".join(lines)
