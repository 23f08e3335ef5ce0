"""What to copy to an edge box: a model, the predictor, and what proves and describes them."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from kd import onnx_model
from kd.errors import UserError
from kd.files import read_json, write_npz, write_text
from kd.text import format_number

ROOT = Path(__file__).resolve().parents[2]
FILES = ("predict.py", "benchmark.py", "LICENSE", *(f"kd/{name}.py" for name in (
    "__init__", "errors", "files", "image", "machine", "metrics", "onnx_model", "runs", "timing")))
CHECKED = 8  # images in check.npz


def write(run, model, images, target):
    """Lay out a new folder `target` for the exported file `model` of a run.

    images: uint8 [CHECKED, S, S, 3], whose logits go along. The folder appears whole or not at all.
    """
    run, model, target = Path(run), Path(model), Path(target)
    check_free(target)
    ready = onnx_model.Model(model, 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for name in FILES:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, made / name)
        shutil.copyfile(model, made / model.name)
        write_npz(made / "check.npz", images=images, logits=ready.logits(images))
        write_text(made / "RUN.md", how_to_run(model.name))
        write_text(made / "MODEL_CARD.md", card(run, model, ready))
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(made).as_posix()}"
                for path in sorted(made.rglob("*")) if path.is_file()]
        write_text(made / "SHA256SUMS", "\n".join(sums) + "\n")
        os.chmod(made, 0o755)
        if target.exists():
            target.rmdir()  # empty
        os.replace(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def check_free(target):
    """An error unless `target` can become a new folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--bundle {target} exists and is not empty", "Name a new folder, or delete that one.")


def how_to_run(name):
    return f"""# Classify images with {name}

Needs Python 3.10 or newer and three packages; no torch, no graphics card:

    python -m venv env
    env/bin/pip install numpy pillow onnxruntime        (Windows: env\\Scripts\\pip)

Is everything here, and does this machine compute what it should?

    sha256sum -c SHA256SUMS                              (macOS: shasum -a 256 -c SHA256SUMS)
    env/bin/python predict.py {name} --check

Then:

    env/bin/python predict.py {name} image.jpg folder/
    env/bin/python predict.py {name} folder/ --format csv > answers.csv
    env/bin/python benchmark.py {name}                   (how fast it is here)

Images are JPEG, PNG, BMP, TIFF or WebP, of up to 100 megapixels. What cannot be read is marked, and passed over.
`check.npz` holds {CHECKED} validation images and the logits they must give.

Research software, not a medical device. MODEL_CARD.md says what the model was made for, and how good it is.
"""


def card(run, model, ready):
    """The model card (Mitchell et al. 2019, 1810.03993) as Markdown."""
    told, made = read_json(run / "environment.json"), ready.metadata["provenance"]
    parity = read_json(model.parent / "parity.json")["formats"]["int8" if "int8" in model.name else "onnx"]
    path = run / "metrics.json"
    scored = read_json(path) if path.is_file() else {}
    data, given = told["data"], ready.metadata["input"]
    splits = scored.get("split", {})
    size = splits.get("test", {"images": parity["test"]["images"], "groups": None, "support": {}})
    gap = parity["test"]["macro_f1"]["difference"]
    lines = [
        f"# {made['arch']}: {', '.join(ready.class_names)}", "",
        "Research software, not a medical device: not approved for diagnosis, screening or any decision about a patient.", "",
        "## The model", "",
        f"- architecture {made['arch']}, {ready.facts['parameters']:,} parameters, {ready.facts['macs'] / 1e6:.1f} M "
        "multiply-accumulates an image",
        f"- file {model.name}, {model.stat().st_size / 1e6:.2f} MB, from run {made.get('run', run.name)}, weights {made['weights']}",
        f"- input: the short side resized to {given['resize']} px ({given['interpolation']}), the centre {given['size']} px",
        f"- training objective: {told.get('formula', 'unknown')}", "",
        "## Data", "",
        f"- {data['name']}{' (synthetic: drawn, not photographed)' if data.get('synthetic') else ''}, {data['images']:,} images"
        + (f" of {data['groups']:,} groups (lesions, patients); no group is in two splits" if data.get("groups") else ""),
        f"- tested on {size['images']:,} images" + (f" of {size['groups']:,} groups" if size.get("groups") else ""),
        *(f"- {name}: {count:,} test images" for name, count in size["support"].items()), "",
        "## Intended use", "",
        "Research and teaching, on images of the kind it was trained on: same modality, same devices, same population. "
        "A person qualified to do so looks at every image.", "",
        "## How good it is", "",
        *metrics_table(scored), "",
        f"Of the test images {parity['test']['flips']:.2%} have another label from this file than from the checkpoint; macro F1 "
        f"differs by {gap['value']:+.3f} [{format_number(gap['lo'])}, {format_number(gap['hi'])}] (95% interval, paired).", "",
        "## Operating points, chosen on validation", "",
        *points_table(scored), "",
        "## Limits", "",
        "- It knows these classes alone, and calls anything one of them: it cannot tell an image of another kind.",
        "- Other devices, light, skin or populations than the training data's may give worse answers; none were tested.",
        "- Rare classes were tested on few images: look at their intervals.",
        "- Probabilities are calibrated on validation images; in another population they may not be." if ready.temperature
        else "- Probabilities are not calibrated.", ""]
    return "\n".join(lines)


def metrics_table(scored):
    if not scored:
        return ["Not evaluated: `python evaluate.py RUN` before export adds figures here."]
    names = [name for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc", "ece", "ece_calibrated")
             if name in scored["test"]]
    names += [name for name in scored["test"] if name.startswith("recall/")]
    rows = [f"| {name} | {format_number(one['value'])} | {format_number(one['lo'])} to {format_number(one['hi'])} |"
            for name, one in ((name, scored["test"][name]) for name in names)]
    return ["The checkpoint, on test images:", "", "| metric | value | 95% interval |", "| --- | --- | --- |", *rows]


def points_table(scored):
    rows = []
    for point in (scored or {}).get("operating_points", ()):
        tested = ", ".join(f"{name} {format_number(one['value'])} [{format_number(one['lo'])}, {format_number(one['hi'])}]"
                           for name, one in (point.get("test") or {}).items() if isinstance(one, dict) and "value" in one)
        rows.append(f"| {point['name']} | {tested} |")
    return ["| point | on test images |", "| --- | --- |", *rows] if rows else ["None."]
