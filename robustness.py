"""What is left of a model's quality on corrupted images, and whether it knows when it fails.

    python robustness.py runs/lesions_48px                          all its models, and their INT8 files, in one pass
    python robustness.py runs/lesions_48px --quick                  a first look: fewer images and severities
    python robustness.py RUN RUN/exports/model.onnx --suite phase1
    python robustness.py RUN --corruption jpeg,quality=12 --corruption gaussian_noise

A run that was killed goes on with the cell that it was at; a further model costs its own answers alone.
"""

import time
from pathlib import Path

from tqdm import tqdm

import registry
from kd import bootstrap, corruptions, errors, objective, runs
from kd.audit import examine
from kd.audit.terminal import findings_text
from kd.errors import UserError
from kd.files import atomic, write_text
from kd.report import figures_robustness
from kd.robustness import answers, scores, suites, terminal
from kd.train import networks

CLEAN = suites.Cell(scores.CLEAN, "", 0)
SUMMARY = "robustness_summary.csv"


def main(argv=None):
    """Returns the rows of robustness_summary.csv."""
    options = parse(argv)
    for file in options.plugin:
        registry.load_plugin(file)
    suite, cells = asked(options)
    subjects = answers.find([*options.paths, *filter(None, [options.baseline])])
    where = Path(options.out) if options.out else home(subjects)
    failed, spent = {}, {"corrupting": 0.0, "answering": 0.0}
    subjects, test = answers.models_of(subjects, failed, options.target)
    images = len(test.labels)
    test = scores.part(test, scores.QUICK) if options.quick else test
    device = networks.device(options.device)
    subjects = answers.each_subject(subjects, failed, lambda one: answers.load(one, registry, device))
    groups = answers.group(subjects, registry, options.root, options.cache)
    answers.answer(groups, [CLEAN], test.ids, suite, registry, spent)
    subjects = answers.each_subject(subjects, failed, lambda one: answers.check_clean(one, test))
    for run, error in failed.items():
        print(f"left out: {run}: {error.message}")
    models = [subject.model for subject in subjects]
    teacher = next((model for model in models if model.kind == "teacher" and model.file == "best.pt"), None)
    baseline = answers.named(options.baseline, subjects).model if options.baseline else teacher
    groups = [(data, [one for one in own if one.folder not in failed]) for data, own in groups]
    answers.answer(groups, cells, test.ids, suite, registry, spent)

    begin = time.perf_counter()
    rows = scores.measure(models, cells, test, replicates=options.replicates, suite=suite, teacher=teacher, progress=bar)
    answers.tell_apart(subjects)  # not in the rows: a run's own table is of its study
    summary = scores.summarise(models, cells, suite, baseline)
    spent["measuring"] = time.perf_counter() - begin

    written = write(where, subjects, rows, summary)
    quick = f" of {images:,} (--quick)" if len(test.labels) < images else ""
    print(terminal.printed(summary, test, suites.note(suite, {cell.corruption for cell in cells}), quick))
    print(terminal.times(spent, len(models)))
    if where and where / SUMMARY in written:
        written += draw(where, [{**row, "model": model.model} for model, own in zip(models, rows) for row in own],
                        {model.model: model.kind for model in models},
                        lambda: answers.example_rows(groups[0][0], scores.example(test), cells, registry))
    found = examine.audit_study(list(dict.fromkeys(subject.run for subject in subjects)))
    print("\n" + (findings_text(found, brief=True) or "The audit found nothing."))
    if written:
        print("\nwritten: " + "\n         ".join(path.as_posix() for path in written))
    if not where:
        print(f"These are not all models of one study: --out DIR writes their {SUMMARY} and figures there.")
    if failed:
        raise UserError(f"left out: {errors.listing(f'{run}: {error.message}' for run, error in failed.items())}",
                        next(iter(failed.values())).hint)
    if argv is None:
        print(f"next: python report.py {runs.study(subjects[0].folder).as_posix()}")
    return summary


def parser():
    result = errors.Parser(prog="robustness.py", description="Quality under image corruptions, with 95% intervals by "
                           "resampling whole groups; all models see the same corrupted images.")
    result.add_argument("paths", nargs="+", metavar="RUN|MODEL.onnx", help="a run's folder (its best.pt and exports/model.int8.onnx), "
                        "a folder above several, or a file in a run's exports/")
    result.add_argument("--suite", choices=list(suites.NOTES), default="default", help="which corruptions: fifteen of a dermatoscope "
                        "and a cheap camera; those of MedMNIST-C for DermaMNIST (2406.17536); the levels of the first report")
    result.add_argument("--corruption", action="append", default=[], metavar="NAME,key=value", help="this one in place of a "
                        "suite, at its five severities or with these parameters; may be repeated: tables and figures are of those "
                        "of one command, in place of the last one's")
    result.add_argument("--quick", action="store_true", help=f"about {scores.QUICK} test images, severities "
                        f"{errors.listing(scores.SEVERITIES)}")
    result.add_argument("--baseline", metavar="RUN", help="model that BE and rBE are relative to; default: the teacher")
    result.add_argument("--target", action="append", metavar="CLASS", help="a class whose frozen threshold is tested, may be "
                        f"repeated; default: {scores.TARGET}, else all that metrics.json has")
    result.add_argument("--replicates", type=int, metavar="N", default=bootstrap.REPLICATES, help="bootstrap replicates behind "
                        "each interval")
    result.add_argument("--out", metavar="DIR", help="where summary and figures go; default: the study, if these are all "
                        "its models, of one run its folder")
    result.add_argument("--root", metavar="PATH", help="where the images are now; default: where they were in training")
    result.add_argument("--cache", metavar="DIR", help="folder of decoded images, as in training")
    result.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="of checkpoints; ONNX runs on the CPU")
    result.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="files that register further parts")
    return result


def parse(argv):
    options = parser().parse_args(argv)
    bootstrap.check_replicates(options.replicates)
    return options


def asked(options):
    """(name of the suite, its Cells)."""
    def get(name):
        return registry.get("corruption", name)

    suite, cells = ("custom", []) if options.corruption else (options.suite, suites.cells(options.suite, get))
    for spec in options.corruption:
        name, given = objective.parse_spec(spec)
        name = get(name).name
        levels = range(1, 1 + len(get(name).info["severities"]))
        if given:
            corruptions.settings(get(name), None, given)  # what is wrong with them is said now
            levels = [1 + sum(cell.corruption == name for cell in cells)]
        tag = ",".join([name, *(f"{key}={value}" for key, value in given.items())])
        cells += [suites.Cell(tag if given else f"{name}_{level}", name, level, given or None) for level in levels]
    if len({cell.tag for cell in cells}) < len(cells):
        raise UserError("a corruption is asked for twice", "Name each once, or with other parameters.")
    if options.quick:
        cells = [cell for cell in cells if cell.severity in scores.SEVERITIES or suite == "custom" and cell.parameters]
    return suite, cells


def home(subjects):
    """Where summary and figures go: the study whose models these are, all of them, else the one run; None of other parts."""
    files = {subject.path.resolve() for subject in subjects}
    for folder in (runs.study(subjects[0].folder), subjects[0].folder):
        whole = {subject.path.resolve() for subject in answers.find([folder])}
        if whole <= files and all(folder.resolve() in file.parents for file in files):
            return folder
    return None


def bar(items):
    return tqdm(items, "measuring", unit="cell", delay=2, disable=None, leave=False)


def write(where, subjects, rows, summary):
    """robustness.csv of each run and, in the folder `where` if any, the summary of all; the paths written."""
    tables_ = {}
    for subject, own in zip(subjects, rows):
        tables_.setdefault(subject.folder / "robustness.csv", []).extend(own)
    if where:
        tables_[where / SUMMARY] = summary
    written = []
    for path, table in tables_.items():
        if scores.write(path, table, by=("suite",) if table is summary else ("file", "suite")):
            written.append(path)
        else:
            print(f"note: {path} holds this suite on more images, and is left as it is")
    return written


def draw(where, rows, kinds, look):
    """The three figures, the sheet of what look() gives; the paths written."""
    suite = rows[0]["suite"]
    stem, count = "robustness" if suite == "default" else f"robustness_{suite}", len({row["corruption"] for row in rows}) - 1
    alt = f"of {len(kinds)} models{figures_robustness.seeds(rows)} under {count} corruptions"
    shown, left_out = figures_robustness.legible(rows)
    try:
        drawings = {"curves": figures_robustness.curves(shown, kinds, alt=" ".join([f"Macro-F1 over severity {alt}.", *left_out])),
                    "heatmap": figures_robustness.heatmap(rows, kinds, alt=f"Mean macro-F1 {alt}.")}
        sheet = figures_robustness.sheet(look())
    except UserError as error:
        print(f"no figures: {error.message}. {error.hint}")
        return []
    paths = [where / f"{stem}_sheet.png"]
    with atomic(paths[0]) as file:
        file.write(sheet)
    for name, svg in drawings.items():
        paths.append(where / f"{stem}_{name}.svg")
        write_text(paths[-1], figures_robustness.standalone(svg))
    return paths


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
