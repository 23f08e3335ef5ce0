"""A folder to copy to an edge box: a model, the predictor, a check, a model card, checksums."""

import hashlib
import os
import shutil
import stat
import string
import tempfile
from pathlib import Path

from kd import onnx_model, runs
from kd.edge import site
from kd.errors import UserError
from kd.files import check_writable, read_bytes, write_npz, write_text
from kd.text import format_bounds, format_count, format_number, format_p, is_defined, one_line

ROOT = Path(__file__).resolve().parents[2]
FILES = ("predict.py", "benchmark.py", "LICENSE", *(f"kd/{name}.py" for name in (
    "__init__", "errors", "files", "image", "image_files", "machine", "metrics", "onnx_model", "runs", "timing")))
CHECKED = 8  # images in check.npz, at most


def write(run, model, images, target, record=None):
    """Lay out a new folder `target` for the exported file `model` (a path) of a Run.

    images: uint8 [N, S, S, 3], N <= CHECKED, whose logits go along. record: the settings of another site
    (kd/recalibration.py) that the file gets. The folder appears whole or not at all. Raises UserError where `target` is
    not free, and where the file cannot be run.
    """
    model, target = Path(model), Path(os.path.abspath(target))
    check_free(target)
    content = site.with_settings(model, record) if record else read_bytes(model, onnx_model.FILE)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".bundle."))
    try:
        for name in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
        (folder / model.name).write_bytes(content)
        exported = onnx_model.Model(folder / model.name, 1)
        write_npz(folder / "check.npz", **onnx_model.expected(exported, images))
        write_text(folder / "RUN.md", how_to_run(exported, len(images), "test" if record else "validation"))
        write_text(folder / "MODEL_CARD.md", card(run, model, exported, record))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        sums = [f"{digest}  {path.relative_to(folder).as_posix()}\n" for path, digest in digests.items()]
        write_text(folder / "SHA256SUMS", "".join(sums))
        os.chmod(folder, 0o755)
        if target.exists():
            target.rmdir()  # empty
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_free(target):
    """UserError unless `target` can become a new folder, in the place of an empty one if there is one."""
    place = Path(os.path.abspath(target))
    try:
        is_free = stat.S_ISDIR(os.lstat(place).st_mode) and not os.path.ismount(place) and not any(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        is_free = True
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"--bundle {str(target)[:60]} cannot be a folder: {reason}", "Choose another.") from None
    if not is_free:
        raise UserError(f"--bundle {target} exists and is not an empty folder", "Name a new folder, or delete it.")
    check_writable(place.parent, "another folder with --bundle")


def how_to_run(model, count, split="validation"):
    """The text of RUN.md, beside the onnx_model.Model of the bundle. count, split: of the images in check.npz."""
    recorded = model.metadata["input"]
    return string.Template((Path(__file__).parent / "RUN.md").read_text(encoding="utf-8")).substitute(
        name=model.path.name, count=count, split=split, size=model.size, classes=len(model.class_names),
        resize=recorded["resize"], interpolation=recorded["interpolation"],
        caution=f"CAUTION: {model.caution}.\n" if model.caution else "").replace("\n\n\n", "\n\n")


def card(run, model, exported, record=None):
    """The model card (Mitchell et al. 2019, 1810.03993) of an exported file of a Run, as Markdown.

    model: the file's path; exported: the onnx_model.Model in it; record: as for write().
    """
    run.require("environment", "exports")
    environment, provenance = run.environment, exported.metadata["provenance"]
    data, pixels = environment["data"], exported.metadata["input"]
    parity = run.exports["int8" if "int8" in model.name else "onnx"]["test"]
    evaluation = run.metrics or {}
    test = {"images": parity["images"], "groups": None, "support": {}, **evaluation.get("split", {}).get("test", {})}
    difference = parity["macro_f1"]["difference"]
    synthetic = " (synthetic: drawn, not photographed)" if data.get("synthetic") else ""
    groups = ""
    if data.get("groups"):
        groups = f" of {format_count(data['groups'], 'group')} (lesions, patients); no group is in two splits"
    tested = f" on {format_count(test['images'], 'image')}" if test["images"] else ""
    test_groups = f" of {format_count(test['groups'], 'group')}" if test["groups"] else ""
    place = "/".join(runs.in_tree(run.folder.resolve()))
    lines = [
        f"# {provenance['arch']}: {', '.join(exported.class_names)}",
        "",
        "Research software, not a medical device: "
        "not approved for diagnosis, screening or any decision about a patient.",
        "",
        "## The model",
        "",
        f"- architecture {provenance['arch']}, {exported.facts['parameters']:,} parameters, "
        f"{exported.facts['macs'] / 1e6:.1f} M multiply-accumulates an image",
        f"- file {model.name}, {model.stat().st_size / 1e6:.2f} MB, from run {place}, weights {provenance['weights']}",
        f"- input: the short side resized to {pixels['resize']} px ({pixels['interpolation']}), "
        f"the centre {pixels['size']} px" + (
            f"; values of more than 8 bits: {pixels['range'][0]:g} becomes 0 and {pixels['range'][1]:g} becomes 255"
            if "range" in pixels else ""),
        f"- training objective: {environment.get('formula', 'unknown')}",
        "",
        "## Data",
        "",
        f"- {data['name']}{synthetic}, {format_count(data['images'], 'image')}{groups}",
        f"- tested{tested}{test_groups}",
        *(f"- {name}: {format_count(count, 'test image')}" for name, count in test["support"].items()),
        "",
        "## In a Python program",
        "",
        "Where predict.py is, or with its folder on PYTHONPATH; RUN.md of a bundle has more, and C++:",
        "",
        "    from kd.onnx_model import Model",
        "",
        f'    model = Model("{model.name}", threads=1)',
        '    print(model.explain())               # what the answers mean: classes, probabilities, thresholds',
        '    answer = model.predict("image.jpg")  # or bytes, a Pillow image, an array; OpenCV: predict(a, bgr=True)',
        '    print(answer["label"], answer["confidence"], answer["called"], answer["caution"])',
        "",
        "## Intended use",
        "",
        "Research and teaching, on images of the kind it was trained on: same modality, same devices, same population. "
        "A person qualified to do so looks at every image.",
        "",
        "## How good it is",
        "",
        *(["With the settings before it was recalibrated, on other images than those there:", ""] if record else []),
        *metrics_table(evaluation),
        "",
        *subgroups_table(evaluation),
        f"Of the test images {parity['flips']:.2%} have another label from this file than from the checkpoint; "
        f"macro F1 differs by {difference['value']:+.3f} {format_bounds(difference['lo'], difference['hi'])} "
        "(95% interval, paired).",
        "",
        *(site.card(record) if record else ["## Operating points, chosen on validation", "",
                                            *points_table(evaluation), ""]),
        "## Limits",
        "",
        *[f"- CAUTION: {exported.caution}."] * bool(exported.caution),
        "- It knows these classes alone, and calls anything one of them: it cannot tell an image of another kind.",
        "- Other devices, light, skin or populations than the training data's may give worse answers; "
        + ("none but that one were tested." if record else "none were tested."),
        "- Rare classes were tested on few images: look at their intervals.",
        f"- Probabilities are calibrated on {cases_of(record)}; in another population they may not be."
        if exported.temperature
        else "- Probabilities are not calibrated.",
        "",
    ]
    return "\n".join(lines)


def cases_of(record):
    """What settings were chosen on, in words; record: as for write()."""
    return f"cases of {one_line(record['recalibration']['site'])}" if record else "validation images"


def metrics_table(evaluation):
    """Lines of a Markdown table of the checkpoint's test figures. evaluation: metrics.json, {} where there is none."""
    if not evaluation:
        return ["Not evaluated: `python evaluate.py RUN` before export adds figures here."]
    test = evaluation["test"]
    names = [name for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc", "rms_ce_debiased",
                               "rms_ce_debiased_calibrated", "ece", "ece_calibrated") if name in test]
    names += [name for name in test if name.startswith("recall/")]
    rows = [f"| {name} | {format_number(test[name].get('value'))} | {_interval(test[name])} |" for name in names]
    return ["The checkpoint, on test images:", "", "| metric | value | 95% interval |", "| --- | --- | --- |", *rows]


def _interval(metric):
    """The interval of a METRIC as a cell, or why there is none."""
    if not is_defined(metric.get("lo")):
        return metric.get("withheld", "n/a")
    return f"{format_number(metric['lo'])} to {format_number(metric['hi'])}"


def subgroups_table(evaluation):
    """Lines of a Markdown section of the subgroups of each column; none where there are no subgroups."""
    lines = []
    for column, content in evaluation.get("subgroups", {}).items():
        lines += [f"By {one_line(column)}:", "", "| subgroup | images | accuracy | 95% interval |",
                  "| --- | --- | --- | --- |"]
        for part in content["subgroups"]:
            accuracy = part["test"]["accuracy"]
            lines.append(f"| {one_line(part['name'])} | {part['images']:g} | {format_number(accuracy.get('value'))} | "
                         f"{_interval(accuracy)} |")
        gaps = [gap for gap in content["gaps"] if gap["metric"] == "accuracy"]
        lines += ["", *(f"The largest gap in accuracy is {one_line(gap['highest'])} over {one_line(gap['lowest'])}, "
                        f"{gap['value']:+.3f} ({_interval(gap)}; p {format_p(gap['p_corrected'])}, corrected over "
                        f"{format_count(gap['gaps'], 'gap')})." for gap in gaps), ""]
    return lines


def points_table(evaluation):
    """Lines of a Markdown table of the operating points' test figures."""
    rows = []
    for point in evaluation.get("operating_points", ()):
        figures = {name: metric for name, metric in point.get("test", {}).items() if "value" in metric}
        texts = [f"{name} {format_number(metric['value'])} ({_interval(metric)})" for name, metric in figures.items()]
        promised = format_number(point["promised"], ".2f") if is_defined(point.get("promised")) else ""
        if promised and is_defined(point.get("assurance")):
            promised += f", with an assurance of {point['assurance']:g}"
        rows.append(f"| {point['name']} | {promised} | {', '.join(texts)} |")
    if not rows:
        return ["None."]
    return ["| what was asked for | promised | on test images |", "| --- | --- | --- |", *rows, "",
            "Less is promised than was asked for where validation has too few images of the class."]
