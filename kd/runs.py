"""Run folders in a tree: where they are, and their names."""

import re
from pathlib import Path

from kd.errors import UserError

TEST = Path("predictions", "test.npz")  # what training writes last
FOLDS = "folds"  # folder of a study: the trainings of a cross-validation, which are evaluated together
RECORD = "folds.json"  # in a run that joins the answers of all folds: where they come from
ENSEMBLE = "ensemble.json"  # in a run that has the mean answers of several: of which
SCRIPTS = {"teacher": "train_teacher.py", "student": "distill.py"}  # that train a network of each role
TRIES = "sweep_tries"  # folder of a study: trainings that a choice on validation is made of, and no models of the study


def finished(run):
    """Whether training in this seed's folder has ended."""
    return (Path(run) / TEST).is_file()


def is_run(path):
    """Whether there is a finished run at or below `path`."""
    return any(below(path, f"**/{TEST.as_posix()}"))


def below(path, pattern):
    """Yield what matches a pattern below `path`, but for tries of sweeps and single folds, unless `path` is in them.

    A try is chosen on validation: its scores on test are compared with nothing. A fold has a test set of its own.
    """
    path = Path(path)
    for file in path.glob(pattern):
        if not {TRIES, FOLDS} & set(file.relative_to(path).parts[:-1]):
            yield file


def find(path):
    """The folders of finished runs at or below `path`, sorted. UserError where there is none, and for a file."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such folder: {path}")
    if path.is_file():
        run = next(filter(finished, path.parents[:2]), None)  # of best.pt, or of predictions/test.npz
        raise UserError(f"{path} is a file, and a run is a folder", f"Name its folder: {run}" if run else "")
    folders = sorted({file.parents[1] for file in below(path, f"**/{TEST.as_posix()}")})
    if not folders:
        raise UserError(f"no finished run at or below {path}",
                        single_folds(path) or f"A run is finished when it has {TEST.as_posix()}.")
    return folders


def single_folds(path):
    """A hint for a message that a folder has no run: where its single folds are; "" where it has none."""
    folds = Path(path) / FOLDS
    return (f"Its folds are runs of their own: {folds}; evaluate.py joins those of a model when all are there."
            if folds.is_dir() else "")


def networks(path):
    """The folders of finished runs at or below `path` that have a network. UserError where there is none."""
    folders = find(path)
    found = [run for run in folders if not is_joined(run)]
    if not found:
        refuse_joined(folders[0])
    for run in folders:
        if is_joined(run):
            print(f"note: {run} has the answers of several networks, and none of its own: it is left out")
    return found


def of_fold(model, fold):
    """The name of a model on a fold "K/N"."""
    return f"{model}_fold{fold.replace('/', 'of')}"


def is_joined(run):
    """Whether a run has the answers of several, folds or members of an ensemble, and so no network."""
    return any((Path(run) / name).is_file() for name in (RECORD, ENSEMBLE))


def refuse_joined(run):
    """UserError for a run that joins the answers of several, where a network is needed: it has none."""
    if is_joined(run):
        pattern = f"{Path(run).parent.name}_fold*/{Path(run).name}"
        fold = next(iter(sorted((study(run) / FOLDS).glob(pattern))), None)
        raise UserError(f"{run} has the answers of several networks, and no network of its own",
                        f"Name one of the folds: {fold}" if fold else "Name one of the runs that it joins.")


def parse_fold(name):
    """(model, K, N) of a name that of_fold() made; (name, None, None) of any other."""
    match = re.fullmatch(r"(.+)_fold(\d+)of(\d+)", name)
    return (match[1], int(match[2]), int(match[3])) if match else (name, None, None)


def without_fold(name):
    """The name of a model without that of its fold."""
    return parse_fold(name)[0]


def study(run):
    """The folder of the study that a run folder belongs to, spelled as the run is where that is possible."""
    run = Path(run)
    return run.parents[1] if len(run.parts) > 2 else run.resolve().parents[1]


def describe(run):
    """(study, model, seed) of a run folder, read from its place in the tree."""
    return ("", "", *Path(run).resolve().parts)[-3:]


RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(10))}


def in_tree(path):
    """(STUDY, MODEL, SEED) of a run's folder, or (STUDY, "folds", MODEL, SEED); fewer of a path that is shorter."""
    return path.parts[-4 if path.parts[-3:-2] == (FOLDS,) else -3:]


def of_study(run):
    """The folder of the study that a run folder belongs to, also that of a fold."""
    folder = study(run)
    return folder.parent if folder.name == FOLDS else folder


def safe(name):
    """`name` as a folder's name on every system: Windows has no CON, and an option begins with a dash."""
    name = re.sub(r"[^\w.+-]+", "_", name).strip("._-")[:80].rstrip("._-") or "unnamed"
    return f"my_{name}" if name.split(".")[0].lower() in RESERVED else name
