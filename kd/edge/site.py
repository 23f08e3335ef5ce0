"""An exported file for another site: the same network with the settings that evaluate.py --recalibrate fitted there."""

import numpy as np

from kd import errors, onnx_model, recalibration
from kd.errors import UserError
from kd.text import format_count, format_number, one_line

POINT = ("name", "kind", "class", "threshold", "promised", "asked", "assurance")  # of an operating point


def with_settings(path, record):
    """The bytes of the .onnx file `path` with the settings in a record (kd/recalibration.py).

    The offsets are added to the logits in the graph, so that whatever runs the file has them; temperature and
    thresholds are in its metadata, as those of any exported file, and the site in its provenance. UserError where the
    file is of other weights than the settings were fitted to.
    """
    onnx = errors.need("onnx", "edge")
    metadata, fitted = onnx_model.Model(path, 1).metadata, record["recalibration"]
    if metadata["provenance"].get("weights") != fitted["weights"]:
        raise UserError(f"{path} is of other weights than the settings for {fitted['site']} were fitted to",
                        "Make both anew: export.py RUN, and evaluate.py RUN --data NAME --recalibrate")
    model = onnx.load(path)
    graph, (output,) = model.graph, model.graph.output
    inner = f"{output.name}_of_network"
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name == output.name:
                    names[k] = inner
    offsets = onnx.numpy_helper.from_array(np.array(fitted["offsets"], np.float32), "site_offsets")
    graph.initializer.append(offsets)
    graph.node.append(onnx.helper.make_node("Add", [inner, offsets.name], [output.name], name="site"))
    settings = onnx_model.encode({
        "temperature": record["calibration"]["temperature"],
        "operating_points": [{key: point.get(key) for key in POINT} for point in record["operating_points"]],
        "provenance": {**metadata["provenance"], "site": fitted["site"]}})
    for entry in model.metadata_props:
        entry.value = settings.get(entry.key, entry.value)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def card(record):
    """Lines of the section of a model card on a record."""
    fitted, parts = record["recalibration"], record["split"]
    grouped = fitted["unit"] != "image"
    fit, test = (format_count(parts[part]["images"], "image")
                 + f" of {format_count(parts[part]['groups'], 'group')} ({fitted['unit']})" * grouped
                 for part in ("fit", "test"))
    return [
        f"## Recalibrated for {one_line(fitted['site'])}", "",
        f"Offsets of the logits, temperature and thresholds were fitted on {fit} from there, and tested on {test} that "
        "had no part in it." + " No patients are known: images of one may be in both parts." * (not grouped), "",
        *_markdown(recalibration.classes(record)), "",
        f"Temperature {record['calibration']['temperature']:.3f}; before it was "
        f"{format_number(fitted['own']['temperature'])}.", "",
        "The checkpoint on the test part, with 95% intervals and paired differences; of probabilities, those after the "
        "temperature:", "",
        *_markdown(recalibration.compared(record)), "",
        *(f"- {sentence}" for sentence in recalibration.verdict(record)), "",
        *_markdown(recalibration.thresholds(record)), "",
        *(f"- {sentence}" for sentence in recalibration.promises(record)), ""]


def _markdown(rows):
    """Rows of cells, the first of which is the header, as lines of a Markdown table."""
    lines = ["| " + " | ".join(one_line(cell, 60).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]]
