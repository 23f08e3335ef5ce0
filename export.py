"""Checkpoint -> ONNX, INT8 and TorchScript, each held against the checkpoint on real images.

    python export.py runs/ham10000_64px/mobilenetv2_kd/seed_0
    python export.py runs/ham10000_64px/mobilenetv2_kd/seed_0 --root data/ham10000 --bundle to_the_box
"""

from pathlib import Path

import registry
from kd import errors, runs
from kd.edge import bundle, checked_export
from kd.errors import UserError
from kd.files import lock
from kd.run_folder import Run
from kd.text import align_columns


def main(argv=None):
    """Returns the folder of the exported files."""
    options = parser().parse_args(argv)
    for file in options.plugin:
        registry.load_plugin(file)
    if options.bundle:
        bundle.check_free(Path(options.bundle))
        if not {"onnx", "int8"} & set(options.formats):
            raise UserError("--bundle wants a file in ONNX, since it is to run without torch", "Add onnx or int8 to --formats.")
    run = Run(the_run(options.run))
    source = checked_export.open_run(run, registry, root=options.root, cache=options.cache)
    folder = run.folder / "exports"
    with lock(folder / ".lock", what=str(folder)):
        parity = checked_export.write(source, folder, options.formats, calibration=options.calibration,
                                   reduce_range=options.reduce_range, most_flips=options.max_flips)
    print(table(parity))
    print(f"\nwritten: {folder}")
    best = folder / ("model.int8.onnx" if "int8" in parity["formats"] else "model.onnx")
    if options.bundle:
        bundle.write(run, best, source.pixels("val", bundle.CHECKED), options.bundle)
        print(f"written: {options.bundle}: copy this folder; RUN.md in it says how to go on")
    if argv is None:
        print(f"next: python predict.py {best.as_posix()} IMAGE" if best.is_file() else f"next: python benchmark.py {run.folder.as_posix()}")
    return folder


def parser():
    result = errors.Parser(prog="export.py", description="Files that classify images without this project or torch, "
                           "each checked against the checkpoint they come from.")
    result.add_argument("run", metavar="RUN", help="a seed's folder, or a folder above one run")
    result.add_argument("--formats", nargs="+", default=["onnx", "int8"], choices=checked_export.FORMATS,
                        help="onnx: float; int8: ONNX with 8-bit weights and activations; torchscript: legacy, "
                        "deprecated by torch since 2.9; fx: INT8 as TorchScript, for x86, legacy as well")
    result.add_argument("--root", metavar="PATH", help="where the run's images are now; default: where they were")
    result.add_argument("--cache", metavar="DIR", help="folder for decoded images; default: as training had it")
    result.add_argument("--calibration", type=errors.positive, default=256, metavar="N",
                        help="training images that the ranges of INT8 are taken from")
    result.add_argument("--max-flips", type=errors.share, default=0.03, metavar="X",
                        help="share of validation images whose label INT8 may change; where more do, layers are "
                        "left in float, and if that does not help INT8 is not exported")
    result.add_argument("--reduce-range", action="store_true",
                        help="7-bit weights: for x86 processors without VNNI, where products of 8 bits saturate")
    result.add_argument("--bundle", metavar="DIR", help="lay out in this new folder what to copy to another machine")
    result.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    return result


def table(parity):
    """One line a format: what it costs and what it lost on test."""
    rows = [["", "MB", "labels changed, val", "test", "macro F1", "from the checkpoint's", "ECE shift"]]
    for name, one in parity["formats"].items():
        test, gap = one["test"], one["test"]["macro_f1"]["difference"]
        rows.append([name, f"{one['bytes'] / 1e6:.2f}", f"{one['val']['flips']:.2%}", f"{test['flips']:.2%}",
                     f"{test['macro_f1']['model']:.3f}", f"{gap['value']:+.3f} [{gap['lo']:+.3f}, {gap['hi']:+.3f}]",
                     f"{test['ece']['shift']:+.3f}"])
    lines = [align_columns(rows)]
    if "int8" in parity["formats"]:
        recipe = parity["formats"]["int8"]["recipe"]
        lines.append(f"INT8: ranges by {recipe['ranges']}, {len(recipe['float'])} convolutions in float, chosen on validation"
                     if recipe["ranges"] != checked_export.WEIGHTS else "INT8: of weights only; rounded activations change too many labels")
    return "\n".join(lines)


def the_run(path):
    """The one finished run at or below `path`."""
    found = runs.find(path)
    if len(found) > 1:
        raise UserError(f"{path} has {len(found)} runs: {errors.listing(found, 3)}", "Name one of them.")
    if not (found[0] / "best.pt").is_file():
        raise UserError(f"{found[0]} has no best.pt", "Predictions alone cannot be exported.")
    return found[0]


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
