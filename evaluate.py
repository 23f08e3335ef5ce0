"""Predictions -> metrics with confidence intervals, calibration and operating points; comparisons; an audit.

    python evaluate.py runs/lesions_48px                            every run below, one line a run
    python evaluate.py runs/lesions_48px/tiny_kd_unlabelled/seed_0  one run in full
    python evaluate.py runs/lesions_48px --target mel --sensitivity 0.95
    python evaluate.py runs/lesions_48px --by sex --table patients.csv    figures of subgroups, and their gaps
    python evaluate.py runs/lesions_48px --compare                  paired differences from the teacher
    python evaluate.py runs/A/teacher_resnet18 runs/A/teacher_resnet34 --ensemble both    the mean of their answers
    python evaluate.py theirs_test.npz --val theirs_val.npz --groups lesions.csv --out results
    python evaluate.py runs/lesions_48px/tiny_kd_unlabelled/seed_0 --data folder --root other_clinic
    python evaluate.py runs/lesions_48px/tiny_kd_unlabelled/seed_0 --data folder --root other_clinic --recalibrate
    python evaluate.py --audit FOLDER
    python evaluate.py theirs_test.npz --out results --audit         evaluated, and audited with every note
"""

from pathlib import Path

import registry
from kd import (
    bootstrap,
    calibration,
    errors,
    event_writer,
    metrics,
    operating_points,
    plugins,
    prediction_files,
    predictions,
    recalibration,
    runs,
    scalars,
    score_kinds,
)
from kd.audit import examine
from kd.audit.terminal import findings_text
from kd.errors import UserError
from kd.evaluation import (
    compare,
    ensemble,
    fidelity,
    folds,
    near_majority,
    protocol,
    recalibrate,
    recalibration_text,
    subgroups,
    terminal,
)
from kd.files import read_csv, write_csv, write_json
from kd.run_folder import Run, few_labels
from kd.text import command, quoted


def main(argv=None):
    options = parse(argv)
    settings = protocol.Settings(options.replicates, options.bins, options.target, options.sensitivity, options.risk,
                                 options.assurance)
    files = [Path(path) for path in options.paths if prediction_files.is_file(path)]
    for note in folds.notes([path for path in options.paths if not prediction_files.is_file(path)]):
        print(f"note: {note}")
    if options.audit:
        audit(options, settings, files)
        return
    if options.compare:
        compare_models(options, settings, files)
        return
    if options.ensemble:
        options.paths = [ensemble.write(options.paths, options.ensemble)]
    folders = [run for path in options.paths if not prediction_files.is_file(path) for run in runs.find(path)]
    folders = list({run.resolve(): run for run in folders}.values())
    check(options, files, folders)
    if options.data:
        files, folders = score(folders, options), []
    if options.recalibrate:
        recalibrate_runs(files, options, settings, argv is None)
        return
    lost = sorted({column for folder in folders for column in columns_of(folder)} - set(options.by))
    if lost:
        print(f"note: subgroups by {errors.listing(lost)} are in the former metrics.json and not in the new one; to "
              f"have them, add {quoted(*by_arguments(lost))}")
    evaluated, damaged = {}, {}
    for path in errors.progress(folders + files, "evaluating", leave=False):
        try:
            evaluated[path] = measure(path, options, settings, path in files)
        except UserError as error:
            damaged[path] = error
    if not evaluated:
        raise next(iter(damaged.values()))
    show(evaluated, folders, options, argv is None)
    note_foreign_teachers(folders)
    note_few_labels([folder for folder in folders if folder in evaluated])
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(folders + files)} not evaluated: "
            + "; ".join(f"{path}: {error.message}" for path, error in damaged.items()),
            next(iter(damaged.values())).hint,
        )


def audit(options, settings, files):
    """Print every finding about what lies below the folders, and about predictions files, which are evaluated first."""
    folders = [path for path in options.paths if not prediction_files.is_file(path)]
    check(options, files, folders)
    findings = examine.audit_paths(folders) if folders else []
    for path in files:
        result = measure(path, options, settings, True).result
        findings += result["audit"]
        if options.out:
            write_json(Path(options.out) / "metrics.json", result)
    print(findings_text(examine.worst_first(findings)) or "The audit found nothing.")
    if options.out:
        print(f"\nwritten: {Path(options.out) / 'metrics.json'}")


def measure(path, options, settings, of_file):
    """Evaluated of a run's folder, or of a predictions file."""
    if options.recalibrated:
        return measure_recalibrated(path, options, settings)
    if options.data:  # what is chosen is chosen on the run's own validation split
        val, test = Run(path.parents[1]).predictions(path.stem)
    elif of_file:
        val, test = predictions.of_files(path, options.val, val_labels=options.val_labels, **reading(options))
    else:
        return evaluate_run(path, settings, options.table, options.by)
    evaluated = protocol.evaluate(val, test, settings)
    add_subgroups(evaluated, options.table, options.by, settings)
    # an external set is not drawn as validation is, and may well be harder
    evaluated.result["audit"] = examine.audit_metrics(evaluated.result, None if options.data else val, test)
    return evaluated


def recalibrate_runs(paths, options, settings, next_step):
    """Fit settings to one part of external predictions of each run, test them on the other, and write them."""
    for path in paths:
        run = Run(path.parents[1])
        val, _ = run.predictions(path.stem)
        evaluated = recalibrate.recalibrate(val, recalibrate.Cases.read(path), settings)
        add_subgroups(evaluated, options.table, options.by, settings)
        evaluated.result["audit"] = examine.audit_metrics(evaluated.result, None, evaluated.test)
        print("\n\n".join(filter(None, [recalibration_text.text(evaluated.result),
                                         findings_text(evaluated.result["audit"], brief=True)])))
        written = run.folder / recalibration.FOLDER / f"{path.stem}.json"
        for place in (written, *([Path(options.out) / "metrics.json"] if options.out else ())):
            write_json(place, evaluated.result)
        print(f"\nwritten: {written}")
        if next_step:
            print("next: " + command("export.py", run.folder, "--recalibrated", path.stem, "--bundle",
                                     f"box_{path.stem}"))


def measure_recalibrated(path, options, settings):
    """Evaluated of external predictions with the settings of --recalibrated, without the cases they were fitted on."""
    record = recalibration.read(Run(path.parents[1]), options.recalibrated)
    evaluated = recalibrate.evaluate(record, recalibrate.Cases.read(path), settings)
    add_subgroups(evaluated, options.table, options.by, settings)
    evaluated.result["audit"] = examine.audit_metrics(evaluated.result, None, evaluated.test)
    return evaluated


def columns_of(folder):
    """The columns that made subgroups in the metrics.json of a seed's folder; none where it cannot be read."""
    try:
        return Run(folder).metrics.get("subgroups", ())
    except (UserError, AttributeError):
        return ()


def by_arguments(columns):
    return [word for column in columns for word in ("--by", column)]


def reading(options):
    """The options of how predictions files are read, as predictions.of_files() and compare.models() take them."""
    return {"groups": options.groups, "labels": options.labels, "scores": options.scores}


def evaluate_run(folder, settings=protocol.Settings(), table=None, by=()):
    """Evaluate a seed's folder, write its metrics.json and log it for TensorBoard. Returns Evaluated.

    table, by: the path of a table about the images (by default one beside the images), and its columns that make
    subgroups.

    Raises UserError, before any metric, on faulty predictions and on leaks between the splits.
    """
    run = Run(folder)
    ensemble.check(run)
    evaluated = protocol.evaluate(*run.predictions(), settings)
    add_fidelity(evaluated, run, settings)
    if run.folds:
        evaluated.result["fold_points"] = folds.operating_points(run, settings)
    add_subgroups(evaluated, table or (find_table(run, by) if by else None), by, settings)
    evaluated.result["audit"] = examine.audit_run(run, evaluated.result)
    write_json(Path(folder) / "metrics.json", evaluated.result)
    event_writer.results(folder, "evaluate", scalars.of_metrics(evaluated.result))
    return evaluated


def add_fidelity(evaluated, run, settings):
    """Add how near a student is to its teacher, or why that is not known, to the content of metrics.json."""
    run.tolerate("options", "environment")  # which name the teacher; the audit names those that are damaged
    content, evaluated.fidelity = fidelity.measure(run.teacher_name, run.teachers, evaluated.test, settings)
    if content:
        evaluated.result["fidelity"] = content


def add_subgroups(evaluated, table, by, settings):
    """Add the figures of the subgroups that the columns `by` of a table make to the content of metrics.json."""
    if by:
        test, result = evaluated.test, evaluated.result
        temperature = (result["calibration"] or {}).get("temperature")
        calibrated = metrics.softmax(test.scores / temperature) if temperature else None
        points = [point for point in result["operating_points"] if point["kind"] == "sensitivity"]
        columns = subgroups.read_columns(table, test, by)
        result["subgroups"] = subgroups.evaluate(test, columns, points, settings, calibrated)


def find_table(run, by):
    """The CSV beside the images of a Run that has the columns `by`; UserError if there is none."""
    root = run.setting("root")
    folder = Path(root) if root else None
    for path in [*sorted(folder.glob("*.csv")), *sorted(folder.glob("*/*.csv"))] if folder else ():
        if set(by) <= set(next(iter(read_csv(path)), ())):
            return path
    raise UserError(f"no table with the column{'s' if len(by) > 1 else ''} {errors.listing(by)} beside the images "
                    f"of {run.folder}", "Name the file with --table FILE.csv; a column has the id of each image.")


def show(evaluated, folders, options, next_step):
    """Print what was evaluated; write seeds.json, and metrics.json where --out says."""
    seeds = protocol.over_seeds({path: of_path for path, of_path in evaluated.items() if path in folders})
    results = {path: of_path.result for path, of_path in evaluated.items()}
    near = near_majority.notes({path: results[path] for path in folders
                                if path in results and not ensemble.is_one(path)})
    if len(results) > 1:
        print("\n\n".join(filter(None, [terminal.study_table(results, seeds), near])))
        if folders and next_step:
            by = by_arguments(options.by) + (["--table", options.table] if options.table else [])
            if by:
                print(f"Subgroups by {', '.join(options.by)} are in each run's metrics.json, and in the report.")
            print(f"more: {command('evaluate.py', folders[-1], *by)}   # one run in full")
            first, *others = (of_path.test for of_path in evaluated.values())
            if not any(predictions.difference_between(first, test) for test in others):
                print(f"      {command('evaluate.py', '--compare', *options.paths)}   # paired differences")
        return
    (path, result), = results.items()
    print("\n\n".join(filter(None, [terminal.run_table(path, result), findings_text(result["audit"], brief=True),
                                     near])))
    where = Path(options.out or path) / "metrics.json"
    if options.out:
        write_json(where, result)
    if options.out or path in folders:
        print(f"\nwritten: {where}")
    if next_step and path in folders:  # a script that calls this one has its own next step
        print("next: " + command("report.py", runs.study(path)))


def note_foreign_teachers(folders):
    """Say of which runs it is not known what their teacher saw."""
    foreign = {Run(folder).model for folder in folders if Run(folder).setting("teacher_is_foreign")}
    if foreign:
        print(f"note: the teacher of {errors.listing(sorted(foreign))} was trained elsewhere, and may have seen the "
              "test images")


def note_few_labels(folders):
    """Say which runs had not all labels of their training images."""
    for model in compare.runs_by_model(folders).values():
        labels = few_labels(model)
        if labels:
            print(f"note: {model[0].model} was trained with few labels: {labels}")


def compare_models(options, settings, files):
    """Paired differences: a table, and comparison.csv in --out, or in the study where these are all of its runs."""
    if options.val or options.val_labels:
        raise UserError("--val does not go with --compare", "Calibrated figures are compared between runs.")
    check_reading(options, files)
    models = compare.models(options.paths, **reading(options))
    compared = compare.compare(models, settings)
    for model in models:
        for note in {test.note for _, test in model.seeds.values()} - {""}:
            print(f"note: {model.name}: {note}")
    print(terminal.comparison_table(compared))
    folders = [folder for path in options.paths if not prediction_files.is_file(path) for folder in runs.find(path)]
    note_foreign_teachers(folders)
    note_few_labels(folders)
    where = Path(options.out) if options.out else compare.study_of(models)
    if where:
        write_csv(where / "comparison.csv", compare.table(compared))
        print(f"\nwritten: {where / 'comparison.csv'}, with every metric and class")
    else:
        print("\nEvery metric and class: --out DIR writes comparison.csv there.")


def score(folders, options):
    """Write each run's predictions/NAME.npz: the logits of best.pt on the data set --data. Returns the paths."""
    from kd.train import external  # torch; everything else here does without
    plugins.load(options.plugin, registry)
    keys = ("data", "root", "groups", "class_map", "skip_bad", "name", "cache")
    return [external.score(folder, {key: getattr(options, key) for key in keys}, registry) for folder in folders]


def parser():
    result = errors.Parser(prog="evaluate.py", description="Metrics of finished runs, or of another "
                           "system's predictions, with 95% intervals by resampling whole groups.")
    result.add_argument("paths", nargs="+", metavar="RUN|FILE",
                        help="a run's folder or any folder above; or a file of predictions (.csv, .npz, .npy): "
                             "labels, logits or probabilities, and optionally ids, groups, class_names")
    result.add_argument("--val", metavar="FILE", help="for a predictions file: the same of the validation "
                        "split, on which temperature and operating points are chosen")
    result.add_argument("--labels", metavar="FILE", help="true classes of a predictions file that has none, by name, "
                        "number or one-hot; joined by id, else in the order of its rows")
    result.add_argument("--val-labels", metavar="FILE", help="those of --val; default: of --labels, by id")
    result.add_argument("--scores", choices=score_kinds.KINDS, help="what the scores of a predictions file are, where "
                        "looking at them cannot tell")
    result.add_argument(
        "--groups", metavar="FILE.csv",
        help="columns id,group: which images of a predictions file (or of --data folder) belong together",
    )
    result.add_argument("--out", metavar="DIR", help="where metrics.json of a predictions file or an external set, "
                        "or comparison.csv, goes")
    points = result.add_argument_group("operating points, chosen on validation and tested once")
    points.add_argument("--target", action="append", metavar="CLASS",
                        help="a class that gets a threshold, may be repeated; default: all classes, up to 25")
    points.add_argument("--sensitivity", type=errors.share, default=0.95, metavar="X", help="that a threshold promises")
    points.add_argument("--risk", type=errors.share, default=0.1, metavar="X",
                        help="error rate that abstention from the least confident images promises")
    points.add_argument("--assurance", type=errors.assurance, default=operating_points.ASSURANCE, metavar="X",
                        help="probability that the validation set keeps such a promise for the population; 0.5: as "
                             "likely as not")
    parts = result.add_argument_group("subgroups")
    parts.add_argument("--by", action="append", default=[], metavar="COLUMN",
                       help="figures by sex, age (numbers in bands) or any column of a table, may be repeated")
    parts.add_argument("--table", metavar="FILE.csv",
                       help="that table, one row an image; default: one beside the images")
    more = result.add_argument_group("statistics")
    more.add_argument(
        "--bins", type=errors.bins, default=calibration.BINS, metavar="N",
        help="of the calibration errors, closed on the right",
    )
    more.add_argument("--replicates", type=int, metavar="N", default=bootstrap.REPLICATES,
                      help="bootstrap replicates behind each interval")
    other = result.add_argument_group("something else instead")
    other.add_argument(
        "--compare", action="store_true",
        help="paired differences of models on one test set; the first is the reference, in a study its teacher",
    )
    other.add_argument(
        "--audit", action="store_true", help="print what is too odd to be true, of runs or of result tables"
    )
    other.add_argument("--ensemble", metavar="NAME", help="the mean of the probabilities of these runs as a run of "
                       "the study, with this name")
    other.add_argument(
        "--data", metavar="NAME", help="score an external data set with each run's best.pt (needs torch)"
    )
    other.add_argument("--root", metavar="PATH", help="folder (or .npz) of the external data set")
    other.add_argument("--cache", metavar="DIR", help="folder for decoded external images; default: beside them, or "
                       "the user's cache folder")
    other.add_argument("--class-map", metavar="FILE.csv", help="columns theirs,ours: which class of a run each class "
                       "of the external data set is; nothing for ours leaves a class out")
    other.add_argument("--skip-bad", action="store_true", help="leave out external images that cannot be read")
    other.add_argument("--name", metavar="NAME", help="predictions/NAME.npz of the external data set; default: its own")
    other.add_argument("--recalibrate", action="store_true", help="fit temperature, class frequencies and thresholds "
                       "to half of the patients of the external data set, test them on the others beside the run's "
                       "own settings, and keep them in RUN/recalibrated/NAME.json")
    other.add_argument("--recalibrated", metavar="NAME", help="measure the external data set with these settings; "
                       "cases that they were fitted on are left out")
    other.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py",
        help="a file that registers further parts, for --data",
    )
    return result


def parse(argv):
    options = parser().parse_args(argv)
    bootstrap.check_replicates(options.replicates)
    if sum(map(bool, (options.compare, options.audit, options.data, options.ensemble))) > 1:
        raise UserError("--compare, --audit, --data and --ensemble each do something else", "Give one of them.")
    if options.ensemble and any(map(prediction_files.is_file, options.paths)):
        raise UserError("--ensemble is of runs, and a predictions file is none", "Name run folders.")
    of_data = [key for key in ("root", "cache", "plugin", "class_map", "skip_bad", "name", "recalibrate",
                                "recalibrated")
               if getattr(options, key)]
    if options.recalibrate and any(map(prediction_files.is_file, options.paths)):
        raise UserError("--recalibrate is for runs, whose checkpoints answer to the cases of --data",
                        "For a predictions file, give those of labelled cases from there with --val FILE: temperature "
                        "and thresholds are chosen on them, and tested on the file.")
    if options.data is None and of_data:
        raise UserError(f"--{of_data[0].replace('_', '-')} is for an external data set", "Name it with --data.")
    if options.table and not options.by:
        raise UserError("--table holds the columns of --by", "Name a column with --by COLUMN.")
    if options.by and (options.compare or options.audit):
        raise UserError(f"--by does not go with --{'compare' if options.compare else 'audit'}",
                        "It adds subgroups to what evaluate.py measures of each run.")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out {options.out} is a file; it names a folder")
    return options


def check_reading(options, files):
    """UserError where options say how predictions files are read, and there are none."""
    for option in ("groups", "labels", "val_labels", "scores"):
        if getattr(options, option) and not files and not (option == "groups" and options.data):
            raise UserError(f"--{option.replace('_', '-')} is for a predictions file; a run has its own in its folder")


def check(options, files, folders):
    """Options that do not fit what the paths are."""
    for folder in folders if options.target and options.data else ():  # said before the images are decoded
        protocol.check_targets(Run(folder).class_names, options.target)
    if options.by and not options.table and (files or options.data):
        raise UserError("--by needs a table with its columns", "Give it with --table FILE.csv.")
    if folders:
        check_reading(options, files)
    if options.val_labels and not options.val:
        raise UserError("--val-labels has the true classes of --val, which is not given", "True classes of the file "
                        "itself are given with --labels FILE.")
    if options.val and (folders or len(files) > 1):
        raise UserError("--val belongs to one predictions file; a run has its own validation split")
    if options.target and files and not options.val:
        raise UserError(
            "--target needs --val: a threshold is chosen on validation",
            "Give the validation predictions with --val FILE.",
        )
    if options.recalibrate and options.recalibrated:
        raise UserError("--recalibrate fits settings, and --recalibrated uses those of before", "Give one of them.")
    fixed = [key for key in ("target", "sensitivity", "risk", "assurance")
             if options.recalibrated and getattr(options, key) != parser().get_default(key)]
    if fixed:
        raise UserError(f"--{fixed[0]} does not go with --recalibrated, whose thresholds are chosen already",
                        "Choose others with --recalibrate.")
    if options.data and files:
        raise UserError("--data is scored with the checkpoints of runs, and a predictions file has none")
    if options.out and len(files) + len(folders) > 1:
        raise UserError("--out takes the metrics of one predictions file or external set")
    if options.out and folders and not options.data:
        raise UserError("--out takes the metrics of a predictions file; a run keeps its metrics.json in its own folder")


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
