"""What is left of a model's quality on corrupted images, and whether it knows when it fails.

    python robustness.py runs/lesions_48px                          all its models, and their INT8 files, in one pass
    python robustness.py runs/lesions_48px --quick                  a first look: fewer images and severities
    python robustness.py RUN RUN/exports/model.onnx --suite phase1
    python robustness.py RUN --corruption jpeg,quality=12 --corruption gaussian_noise

A run that was killed goes on with the cell that it was at; a further model costs its own answers alone.
"""

import time
from pathlib import Path

import registry
from kd import bootstrap, corruptions, errors, event_writer, objective, plugins, runs, scalars
from kd.audit import examine
from kd.audit.terminal import findings_text
from kd.errors import UserError
from kd.files import atomic, write_text
from kd.report import figures, figures_robustness
from kd.robustness import answers, scores, suites, terminal
from kd.text import command
from kd.train import networks

CLEAN = suites.Cell(scores.CLEAN, "", 0)
SUMMARY = "robustness_summary.csv"


def main(argv=None):
    """Returns the rows of robustness_summary.csv."""
    options = parse(argv)
    plugins.load(options.plugin, registry)
    suite, cells = suite_cells(options)

    # the models, their test images and networks; a run with an error is left out, the others go on
    model_files = answers.find([*options.paths, *filter(None, [options.baseline])])
    folder = Path(options.out) if options.out else summary_folder(model_files)
    failed = {}  # run's folder -> UserError
    model_files, test = answers.models_of(model_files, failed, options.target)
    images = len(test.labels)
    test = scores.subset(test, scores.QUICK_IMAGES) if options.quick else test
    device = networks.device(options.device)
    model_files = answers.sound_files(model_files, failed, lambda file: answers.load(file, registry, device))
    groups = answers.group(model_files, registry, options.root, options.cache)

    # clean images first: a checkpoint that gives other answers than in training is not measured
    spent = {"corrupting": 0.0, "answering": 0.0}
    answers.answer(groups, [CLEAN], test.ids, suite, registry, spent)
    model_files = answers.sound_files(model_files, failed, lambda file: answers.check_clean(file, test))
    for run, error in failed.items():
        print(f"left out: {run}: {error.message}")
    models = [file.model for file in model_files]
    teacher = next((model for model in models if model.kind == "teacher" and model.file == "best.pt"), None)
    baseline = answers.model_file_of(options.baseline, model_files).model if options.baseline else teacher

    # each corrupted batch goes through all models
    groups = [(data, [file for file in members if file.folder not in failed]) for data, members in groups]
    answers.answer(groups, cells, test.ids, suite, registry, spent)

    # the metrics of each cell, and over cells
    begin = time.perf_counter()
    tables = scores.measure(models, cells, test, replicates=options.replicates, suite=suite, teacher=teacher,
                            progress=lambda items: errors.progress(items, "measuring", unit="cell", leave=False))
    answers.rename_namesakes(model_files)  # not in the tables: a run's own table is of its study
    summary = scores.summarise(models, cells, suite, baseline)
    spent["measuring"] = time.perf_counter() - begin

    written = write(folder, model_files, tables, summary)
    quick = f" of {images:,} (--quick)" if len(test.labels) < images else ""
    note = suites.note(suite, {cell.corruption for cell in cells})
    print(terminal.summary_text(summary, test, note, quick))
    print(terminal.times_text(spent, len(models)))
    if folder and folder / SUMMARY in written:
        rows = [{**row, "model": model.model} for model, table in zip(models, tables) for row in table]
        kinds = {model.model: model.kind for model in models}
        written += draw(folder, rows, kinds,
                        lambda: answers.example_rows(groups[0][0], scores.example_id(test), cells, registry))
    findings = examine.audit_study(list(dict.fromkeys(file.run for file in model_files)))
    print("\n" + (findings_text(findings, brief=True) or "The audit found nothing."))
    if written:
        print("\nwritten: " + "\n         ".join(path.as_posix() for path in written))
    if not folder:
        print(f"These are not all models of one study: --out DIR writes their {SUMMARY} and figures there.")
    if failed:
        raise UserError(f"left out: {errors.listing(f'{run}: {error.message}' for run, error in failed.items())}",
                        next(iter(failed.values())).hint)
    if argv is None:
        print("next: " + command("report.py", runs.study(model_files[0].folder)))
    return summary


def parser():
    """The command line."""
    result = errors.Parser(
        prog="robustness.py",
        description="Quality under image corruptions, with 95% intervals by resampling whole groups; all models see "
                    "the same corrupted images.")
    add = result.add_argument
    add("paths", nargs="+", metavar="RUN|MODEL.onnx",
        help="a run's folder (its best.pt and exports/model.int8.onnx), a folder above several, or a file in a run's "
             "exports/")
    # default: what the devices do that this project is for; the other suites are for comparison with publications
    add("--suite", choices=list(suites.NOTES), default="default",
        help="which corruptions: fifteen of a dermatoscope and a cheap camera (default), those of MedMNIST-C for "
             "DermaMNIST, 2406.17536 (medmnist-c), the levels of the first report (phase1)")
    add("--corruption", action="append", default=[], metavar="NAME,key=value",
        help="measure this corruption instead of a suite, at its five severities or with these parameters; may be "
             "repeated. Tables and figures are of the corruptions of one command; the next one replaces them")
    add("--quick", action="store_true",
        help=f"about {scores.QUICK_IMAGES} test images, severities {errors.listing(scores.QUICK_SEVERITIES)}")
    add("--baseline", metavar="RUN", help="model that BE and rBE are relative to; default: the teacher")
    add("--target", action="append", metavar="CLASS",
        help="a class whose frozen threshold is tested, may be repeated; "
             f"default: {scores.TARGET}, else all that metrics.json has")
    add("--replicates", type=int, metavar="N", default=bootstrap.REPLICATES,  # as in evaluate.py
        help="bootstrap replicates behind each interval")
    add("--out", metavar="DIR",
        help="where summary and figures go; default: the study, if these are all its models, folds/ of it, if they are "
             "all of one fold, of one run its folder")
    add("--root", metavar="PATH", help="where the images are now; default: where they were in training")
    add("--cache", metavar="DIR", help="folder of decoded images, as in training")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",  # the fastest device of this machine
        help="of checkpoints; ONNX runs on the CPU")
    add("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    return result


def parse(argv):
    """Options of a command line. UserError for what cannot be."""
    options = parser().parse_args(argv)
    bootstrap.check_replicates(options.replicates)
    return options


def suite_cells(options):
    """(name of the suite, its Cells); the suite of --corruption is called custom."""
    def get(name):
        return registry.get("corruption", name)

    suite, cells = ("custom", []) if options.corruption else (options.suite, suites.cells(options.suite, get))
    for spec in options.corruption:
        name, parameters = objective.parse_spec(spec)
        entry = get(name)
        if parameters:
            corruptions.settings(entry, None, parameters)  # wrong parameters are an error before any work
            tag = ",".join([entry.name, *(f"{key}={value}" for key, value in parameters.items())])
            place = 1 + sum(cell.corruption == entry.name for cell in cells)
            cells.append(suites.Cell(tag, entry.name, place, parameters))
        else:
            levels = range(1, 1 + len(entry.info["severities"]))
            cells += [suites.Cell(f"{entry.name}_{level}", entry.name, level) for level in levels]
    if len({cell.tag for cell in cells}) < len(cells):
        raise UserError("a corruption is asked for twice", "Name each once, or with other parameters.")
    if options.quick:
        cells = [cell for cell in cells
                 if cell.severity in scores.QUICK_SEVERITIES or suite == "custom" and cell.parameters]
    return suite, cells


def summary_folder(model_files):
    """Where summary and figures go: the study, if these are all its models, or in `folds` all of one fold; the run, if
    all are of one; else None."""
    files = {model_file.path.resolve() for model_file in model_files}
    first = model_files[0].folder
    fold = runs.parse_fold(first.parent.name)[1:]
    for folder in (runs.study(first), first):
        networks = [run for run in runs.find(folder)
                    if not runs.is_joined(run) and runs.parse_fold(run.parent.name)[1:] == fold]
        in_folder = {model_file.path.resolve() for model_file in answers.find(networks)}
        if in_folder <= files and all(folder.resolve() in file.parents for file in files):
            return folder
    return None


def write(folder, model_files, tables, summary):
    """Write robustness.csv of each run and, where there is a folder, the summary of all. Returns the paths written.

    tables: rows of robustness.csv of each model file.
    """
    rows_of = {}  # robustness.csv -> its rows, of all files of a run
    for model_file, rows in zip(model_files, tables):
        rows_of.setdefault(model_file.folder / "robustness.csv", []).extend(rows)
    written = []
    for path, rows in rows_of.items():
        table = _write_table(path, rows, ("file", "suite"))
        if table:
            written.append(path)
            event_writer.results(path.parent, "robustness", scalars.of_robustness(table))
    if folder and _write_table(folder / SUMMARY, summary, ("suite",)):
        written.append(folder / SUMMARY)
    return written


def _write_table(path, rows, by):
    """The rows of the table, or None where it is left as it is; see scores.write()."""
    table = scores.write(path, rows, by)
    if not table:
        print(f"note: {path} holds this suite on more images, and is left as it is")
    return table


def draw(folder, rows, kinds, example_rows):
    """Write three figures: example images, curves, heat map. Returns the paths written, none without matplotlib.

    rows: of all robustness.csv. kinds: {model: teacher, alone or student}. example_rows: a function that returns what
    figures_robustness.sheet() draws.
    """
    suite = rows[0]["suite"]
    stem = "robustness" if suite == "default" else f"robustness_{suite}"
    count = len({row["corruption"] for row in rows}) - 1  # without clean
    alt = f"of {len(kinds)} models{figures_robustness.seeds(rows)} under {count} corruptions"
    legible_rows, omissions = figures_robustness.legible(rows)
    curves_alt = " ".join([f"Macro-F1 over severity {alt}.", *omissions])
    try:
        drawings = {"curves": figures_robustness.robustness_curves(legible_rows, kinds, alt=curves_alt),
                    "heatmap": figures_robustness.robustness_heatmap(rows, kinds, alt=f"Mean macro-F1 {alt}.")}
        sheet = figures_robustness.sheet(example_rows())
    except UserError as error:
        print(f"no figures: {error.message}. {error.hint}")
        return []
    paths = [folder / f"{stem}_sheet.png"]
    with atomic(paths[0]) as file:
        file.write(sheet)
    for name, svg in drawings.items():
        paths.append(folder / f"{stem}_{name}.svg")
        write_text(paths[-1], figures.standalone(svg))
    return paths


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
