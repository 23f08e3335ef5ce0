"""Export a checkpoint to ONNX, INT8 and ExecuTorch. Each file is compared with the checkpoint on real images.

    python export.py runs/ham10000_64px/mobilenetv2_kd/seed_0
    python export.py runs/ham10000_64px/mobilenetv2_kd/seed_0 --root data/ham10000 --bundle to_the_box
    python export.py runs/ham10000_64px/mobilenetv2_kd/seed_0 --recalibrated clinic --bundle to_the_clinic
"""

from pathlib import Path

import numpy as np

import registry
from kd import errors, plugins, recalibration, runs
from kd.edge import bundle, checked_export, quantize
from kd.errors import UserError
from kd.files import lock
from kd.run_folder import Run
from kd.text import align_columns, command


def main(argv=None):
    """Export, print what changed, and return the folder of the exported files, a Path.

    argv: the command line without the script's name, else that of the process. Raises UserError.
    """
    options = parser().parse_args(argv)
    plugins.load(options.plugin, registry)
    if options.bundle:
        bundle.check_free(Path(options.bundle))
        if not {"onnx", "int8"} & set(options.formats):
            raise UserError("--bundle wants a file in ONNX, because a bundle runs without torch",
                            "Add onnx or int8 to --formats.")
    elif options.recalibrated:
        raise UserError("--recalibrated makes a bundle", "Name its folder with --bundle DIR.")
    if options.qat and "int8" not in options.formats:
        raise UserError("--qat trains the INT8 file in ONNX", "Add int8 to --formats.")
    run = Run(single_run(options.run))
    if options.recalibrated:
        return for_site(run, options)
    source = checked_export.open_run(run, registry, root=options.root, cache=options.cache)
    folder = run.folder / "exports"
    with lock(folder / ".lock", what=str(folder)):
        parity = checked_export.write(source, folder, options.formats, calibration=options.calibration,
                                      weight_range=options.weight_range, max_flips=options.max_flips,
                                      qat_epochs=options.qat)
    print(parity_table(parity, options.max_flips))
    print(f"\nwritten: {folder}")
    best = folder / next(checked_export.FILES[name] for name in ("int8", "onnx", "executorch")
                         if name in parity["formats"])
    if options.bundle:
        bundle.write(run, best, source.pixels("val", bundle.CHECKED), options.bundle)
        print(f"written: {options.bundle}: copy this folder; RUN.md in it says what to do there")
        if "executorch" in options.formats:
            programs = [checked_export.FILES[name] for name in ("executorch", "executorch_int8")
                        if name in parity["formats"]]
            print(f"note: a bundle runs without torch, and so has no {' or '.join(programs)}: copy it from {folder}, "
                  "with the .json beside it, to a machine that has this project with the extra executorch")
    if argv is None:
        print("next: " + command("predict.py", best, "IMAGE"))
    return folder


def for_site(run, options):
    """Write a bundle of a file that was exported before, with the settings of another site; the images of the run need
    not be here. Returns the folder, a Path.
    """
    record = recalibration.read(run, options.recalibrated)
    files = [run.folder / "exports" / checked_export.FILES[name] for name in ("int8", "onnx")
             if name in options.formats]
    exported = next((file for file in files if file.is_file()), None)
    if exported is None:
        names = " or ".join(file.name for file in files)
        raise UserError(f"{run.folder} has no {names} to recalibrate; ExecuTorch programs keep the run's own settings",
                        f"First: {command('export.py', run.folder)}")
    run.require("samples")
    images = run.samples["images"]
    images = images[np.unique(np.linspace(0, len(images) - 1, bundle.CHECKED).astype(int))]
    bundle.write(run, exported, images, options.bundle, record)
    print(f"written: {options.bundle}: {exported.name} with the settings for {options.recalibrated}; RUN.md in it says "
          "what to do there")
    without = recalibration.without_threshold(record)
    if without:
        print(f"note: {errors.listing(without, 12)}: no threshold, since none was fitted to {options.recalibrated}; "
              "those of the run do not go along (evaluate.py --recalibrate without --target fits all that it can)")
    return Path(options.bundle)


def parser():
    """The Parser of this script."""
    result = errors.Parser(prog="export.py", description="Export a checkpoint to files that classify images without "
                           "this project, those in ONNX without torch, too. Each file is compared with the checkpoint.")
    result.add_argument("run", metavar="RUN", help="the folder of a seed, or a folder above a single run")
    result.add_argument("--formats", nargs="+", default=["onnx", "int8"],  # both run without torch
                        choices=checked_export.FORMATS,
                        help="onnx: float; int8: ONNX with 8-bit weights and activations; executorch: model.pte and, "
                        "with 8 bits, model.int8.pte, for PyTorch's runtime on phones and boards")
    result.add_argument("--root", metavar="PATH", help="where the images of the run are now; default: the place "
                        "that the run names")
    result.add_argument("--cache", metavar="DIR", help="folder for decoded images; default: that of the training")
    result.add_argument("--calibration", type=errors.positive, default=256,  # as docs/results/edge.md was measured
                        metavar="N", help="number of training images from which the ranges of INT8 are taken")
    # above the 2% at most of networks that bear INT8, far below the 11% of one that does not (docs/results/edge.md)
    result.add_argument("--max-flips", type=errors.share, default=0.03, metavar="X",
                        help="share of validation images whose label INT8 may change, from 0 to 1; if more labels "
                        "change, only weights are rounded, and if that does not help, INT8 is not exported")
    result.add_argument("--weight-range", choices=quantize.WEIGHT_RANGES, default="portable",  # costs little accuracy
                        help="of INT8's integers; portable: sums of products saturate on no processor; full: a little "
                        "more accurate, but on x86 processors without VNNI slower with predict.py and wrong with other "
                        "programs")
    result.add_argument("--qat", type=errors.positive, default=0,  # off: it takes as long as training
                        metavar="EPOCHS", help="train the INT8 file for so many epochs with rounded weights and "
                        "activations, on the training images without their labels, to give the answers of the float "
                        "network; where INT8 falls back to weights only, or changes more labels than --max-flips, as "
                        "with EfficientNet-B0 (docs/results/edge.md). The same graph is a recipe of model.int8.pte")
    result.add_argument("--bundle", metavar="DIR", help="write all that another machine needs into this new folder")
    result.add_argument("--recalibrated", metavar="NAME", help="make the --bundle of the file that was exported "
                        "before, with the settings in RUN/recalibrated/NAME.json, which were fitted to another site")
    result.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    return result


def parity_table(parity, max_flips):
    """A table as text, one line for each format: its size, and what changed on validation and test.

    parity: what checked_export.write() returns, the content of parity.json. max_flips: the share that was allowed.
    """
    rows = [["", "MB", "labels changed, val", "test", "macro F1", "minus checkpoint", "ECE shift"]]
    for name, entry in parity["formats"].items():
        test, difference = entry["test"], entry["test"]["macro_f1"]["difference"]
        value, lo, hi = (f"{difference[key]:+.3f}" for key in ("value", "lo", "hi"))
        rows.append([name, f"{entry['bytes'] / 1e6:.2f}", f"{entry['val']['flips']:.2%}", f"{test['flips']:.2%}",
                     f"{test['macro_f1']['model']:.3f}", f"{value} [{lo}, {hi}]", f"{test['ece']['shift']:+.3f}"])
    lines = [align_columns(rows)]
    for name, entry in parity["formats"].items():
        recipe = entry.get("recipe")
        if recipe and recipe["ranges"] == checked_export.WEIGHTS:
            why = "rounded activations change too many labels" if not entry["unlike"] else (
                f"its {', '.join(entry['unlike'])} would compute in float between integers, and give other answers on "
                "other processors")
            lines.append(f"{name}: of weights only; {why}")
        elif recipe:
            in_float = f", {len(recipe['float'])} layers in float" if "float" in recipe else ""
            lines.append(f"{name}: ranges by {recipe['ranges']}{in_float}, chosen on validation")
        lines += effect_of_training(entry, max_flips)
        if entry.get("other_range"):
            lines += [f"  weight range {figures['weight_range']}{file}: on val {figures['val_flips']:.2%} of the "
                      f"labels changed, logits {figures['val_difference']:.3f} off on average; "
                      f"{figures['bytes'] / 1e6:.2f} MB"
                      for file, figures in ((" (this file)", recipe), ("", entry["other_range"]))]
    return "\n".join(lines)


def effect_of_training(entry, max_flips):
    """Lines that compare the INT8 files with and without --qat, by an entry of parity.json; none where it was not asked
    for.
    """
    recipes = entry.get("recipes", ())
    trained = [recipe for recipe in recipes if recipe["ranges"] == checked_export.TRAINED]
    if not trained:
        return []
    without = min((recipe for recipe in recipes if recipe not in trained),
                  key=lambda recipe: checked_export.rank(recipe, max_flips))
    lines = [f"  {what}: on val {recipe['val_flips']:.2%} of the labels changed"
             + " (more than --max-flips)" * (recipe["val_flips"] > max_flips)
             + f", divergence {recipe['val_divergence']:.2g} nats"
             for what, recipe in (("with training", trained[0]),
                                  (f"without, the best (ranges by {without['ranges']})", without))]
    chosen = "chosen" if entry["recipe"] in trained else "not chosen"
    return [*lines, f"  the trained one is {chosen}: of those that change at most {max_flips:.2%} of the labels "
            "(--max-flips), the file is the one nearest to the checkpoint's probabilities on validation"]


def single_run(path):
    """The folder of the only finished run at or below `path`. Raises UserError for several, or without a checkpoint."""
    folders = runs.find(path)
    if len(folders) > 1:
        raise UserError(f"{path} has {len(folders)} runs: {errors.listing(folders, 3)}", "Name one of them.")
    runs.refuse_joined(folders[0])
    if not (folders[0] / "best.pt").is_file():
        raise UserError(f"{folders[0]} has no best.pt", "Predictions alone cannot be exported.")
    return folders[0]


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
