"""What models answer on corrupted images: an image is decoded once, and corrupted once for all models of one input.

Each model's logits are kept in its run, a file a cell: robustness/SUITE/FILE/TAG.npz. They carry a key of all that
they follow from, so that a run that was killed goes on with the cell it was at, a further model costs its own
answers alone, and nothing old is taken for new.
"""

import contextlib
import hashlib
import inspect
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd import corruptions, image, onnx_model, predictions, runs
from kd.edge import torch_model
from kd.errors import UserError, listing
from kd.evaluation import compare
from kd.files import lock, read_json, read_npz, write_npz
from kd.robustness import scores
from kd.train import checkpoint, networks, setup
from kd.train.weights import fingerprint

BATCH = 256          # images, where they are small
PIXELS = 2 ** 22     # of a batch, at most: intermediate results are several times as large
SAME = 0.99          # share of clean images that get the class they got when the run was trained, perhaps elsewhere


@dataclass
class Subject:
    """A file of a run that is measured: best.pt, or an ONNX file in its exports/."""

    run: Path
    path: Path
    ready: object = None   # .logits(uint8 [N, S, S, 3]) -> [N, C], .size
    resize: int = None
    digest: str = ""       # of the file
    model: scores.Model = None

    def kept(self, suite, cell):
        return self.run / "robustness" / suite / self.path.name / f"{runs.safe(cell.tag)}.npz"


def find(paths):
    """Subjects that `paths` name: of a run, and of any folder above, best.pt and exports/model.int8.onnx."""
    found = {}
    for path in map(Path, paths):
        if path.suffix == ".onnx":
            run = path.resolve().parent.parent
            if not path.is_file() or not runs.finished(run):
                raise UserError(f"{path} lies in the exports/ of no run" if path.is_file() else f"no such file: {path}",
                                "Name RUN/exports/MODEL.onnx: test images, temperature and thresholds are the run's.")
            files = [(run, path)]
        else:
            files = [(run, file) for run in runs.find(path) for file in (run / "best.pt", run / "exports" / "model.int8.onnx")
                     if file.is_file() or file.name == "best.pt"]
        found.update({file.resolve(): Subject(run, file) for run, file in files if file.resolve() not in found})
    return list(found.values())


def named(path, subjects):
    """The Subject of the first file that `path` names."""
    wanted = find([path])[0].path.resolve()
    for subject in subjects:
        if subject.path.resolve() == wanted:
            return subject
    raise UserError(f"{path} is left out, and nothing can be relative to it")


def each_subject(subjects, failed, act):
    """The Subjects with whose runs act(subject) has no trouble; {run: UserError} of the others goes into `failed`.

    Where none is left, the error of the first is raised.
    """
    for subject in subjects:
        if subject.run not in failed:
            try:
                act(subject)
            except UserError as error:
                failed[subject.run] = error
    kept = [subject for subject in subjects if subject.run not in failed]
    if not kept:
        raise failed[subjects[0].run]
    return kept


def models_of(subjects, failed, targets=None):
    """(the Subjects that each() keeps, with their models; the Predictions of the test images that all have in common)."""
    known = {}

    def read(subject):
        if subject.run not in known:
            held = compare.one_model(subject.run.resolve().parent, [subject.run])
            (seed, (_, test)), = held.seeds.items()
            metrics = subject.run / "metrics.json"
            known[subject.run] = held, seed, test, scores.frozen(
                read_json(metrics) if metrics.is_file() else None, metrics, targets)
        held, seed, _, (temperature, points) = known[subject.run]
        subject.model = scores.Model(held.name, seed, subject.path.name, held.kind, temperature, points)

    subjects = each_subject(subjects, failed, read)
    first = known[subjects[0].run][2]
    for subject in subjects:
        reason = predictions.difference_between(first, known[subject.run][2])
        if reason:
            raise UserError(f"{subject.run} cannot be measured with {subjects[0].run}: {reason}",
                            "Models are compared on the images of one test set; give those of one study.")
    return subjects, first


def tell_apart(subjects):
    """Models of one name in several studies are called STUDY/MODEL from here on."""
    owners = {(subject.model.model, subject.run.resolve().parent) for subject in subjects}
    if len(owners) > len({name for name, _ in owners}):
        for subject in subjects:
            subject.model.model = "/".join(subject.run.resolve().parts[-3:-1])


def load(subject, registry, device):
    """Load a network: a checkpoint on `device`, ONNX on the CPU. UserError for an export of other weights than the run's."""
    file = setup.checkpoint_in(subject.run)
    if subject.path.suffix == ".onnx":
        subject.ready = onnx_model.Model(subject.path)
        subject.resize = subject.ready.metadata["input"]["resize"]
        weights = fingerprint(checkpoint.read(file)["state_dict"])
        if subject.ready.metadata["provenance"].get("weights") != weights:
            raise UserError(f"{subject.path} was exported from other weights than those in {file}",
                            f"Export it anew: python export.py {subject.run.as_posix()}")
    else:
        subject.ready = torch_model.open_file(file, "eager" if device.type == "mps" else "channels_last", registry,
                                           device=device, threads=torch.get_num_threads())
        networks.fold_batch_norm(subject.ready.network.model)
        subject.resize = subject.ready.resize
    subject.digest = hashlib.sha256(subject.path.read_bytes()).hexdigest()


def group(subjects, registry, root=None, cache=None):
    """[(kd.data.loader.Data, Subjects)] of those whose networks see the same pixels. root, cache: where the images are."""
    found = {}
    for subject in subjects:
        told = read_json(subject.run / "environment.json").get("data", {})
        found.setdefault((told.get("fingerprint"), subject.resize, subject.ready.size), []).append(subject)
    groups = []
    for (_, resize, size), own in found.items():
        subject = own[0]
        data = setup.data_of_run(subject.run, registry, root, cache)
        if (data.images.shape[1], data.size) != (resize, size):
            raise UserError(f"{subject.path} takes images of {size} px cut from {resize}, and the images of its run are "
                            f"{data.size} px cut from {data.images.shape[1]}")
        groups.append((data, own))
    return groups


def answer(groups, cells, ids, suite, registry, spent):
    """Fill the models' answers to `cells` on the test images `ids`, in their order.

    Subjects of one group share each corrupted batch. spent: {"corrupting", "answering"}, seconds, which what is computed
    now adds to. A Cell without a corruption is the clean images.
    """
    with contextlib.ExitStack() as held:
        for run in dict.fromkeys(subject.run.resolve() for _, own in groups for subject in own):
            held.enter_context(lock(run / "robustness" / ".lock", what=f"{run / 'robustness'}"))
        bar = held.enter_context(tqdm(total=len(groups) * len(cells) * len(ids), desc="corrupting", unit="image", delay=2,
                                      disable=None, leave=False))
        for data, own in groups:
            rows = _rows(data, ids)
            for cell in cells:
                bar.set_postfix_str(cell.tag)
                for subject, one in zip(own, _cell(own, cell, data, rows, suite, registry, spent, bar)):
                    subject.model.answers[cell.tag] = one


def example_rows(data, name, cells, registry):
    """[(corruption, [(caption, pixels)])] of the test image `name`: clean, then each cell; what a sheet shows."""
    pixels = _pixels(data, _rows(data, np.array([name])))
    rows = {}
    for cell in cells:
        entry = registry.get("corruption", cell.corruption)
        told = ", ".join(f"{value:g}" for value in corruptions.settings(entry, *_level(cell)).values())
        row = rows.setdefault(cell.corruption, [("clean", pixels[0])])
        row.append((f"{cell.severity}: {told}", corruptions.apply(entry, pixels, [name], *_level(cell))[0]))
    return list(rows.items())


def check_clean(subject, test):
    """An error where a checkpoint does not answer on the clean images of `test` as its own test.npz says that it did."""
    told = predictions.read(subject.run / "predictions" / "test.npz")
    now = subject.model.answers[scores.CLEAN].logits.argmax(1)
    same = float((now == told.probabilities.argmax(1)[predictions.matching_order(test, told)]).mean())
    if subject.path.name == "best.pt" and same < SAME:
        raise UserError(f"{subject.path} answers otherwise than {subject.run / 'predictions' / 'test.npz'} on "
                        f"{1 - same:.1%} of the clean images", "The two are not of one run: train or copy it anew.")


def _rows(data, ids):
    """The positions in `data` of test images."""
    where = {name: row for row, name in enumerate(data.ids.tolist()) if data.split[row] == "test"}
    missing = [name for name in ids.tolist() if name not in where]
    if missing:
        raise UserError(f"{len(missing)} images of predictions/test.npz are not in the test split of {data.name}: {listing(missing)}")
    return np.array([where[name] for name in ids.tolist()])


def _pixels(data, rows):
    return np.ascontiguousarray(image.centre_crop(data.pixels(rows), data.size))


def _level(cell):
    """(severity, parameters) as kd.corruptions takes them, one of them None."""
    return (None, cell.parameters) if cell.parameters else (cell.severity, None)


def _cell(subjects, cell, data, rows, suite, registry, spent, bar):
    """The Answers of Subjects to one cell: those that are kept, and the others' over one pass of the images."""
    entry = registry.get("corruption", cell.corruption) if cell.corruption else None
    ids, keys = data.ids[rows], [_key(subject, cell, entry, data) for subject in subjects]
    answers = [_read(subject.kept(suite, cell), key, ids) for subject, key in zip(subjects, keys)]
    lacking = [k for k, held in enumerate(answers) if held is None]
    if not lacking:
        bar.update(len(rows))
        return answers
    logits, seconds = {k: [] for k in lacking}, dict.fromkeys(lacking, 0.0)
    change, corrupting = [], 0.0
    step = max(1, min(BATCH, PIXELS // data.size ** 2))
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        pixels = _pixels(data, rows[chunk])
        begin = time.perf_counter()
        changed = corruptions.apply(entry, pixels, ids[chunk], *_level(cell)) if entry else pixels
        corrupting += time.perf_counter() - begin
        change.append(np.abs(changed.astype(np.int16) - pixels).mean((1, 2, 3)))
        for k in lacking:
            begin = time.perf_counter()
            logits[k].append(subjects[k].ready.logits(changed))
            seconds[k] += time.perf_counter() - begin
        bar.update(len(pixels))
    spent["corrupting"] += corrupting
    spent["answering"] += sum(seconds.values())
    for k in lacking:
        answers[k] = scores.Answer(np.concatenate(logits[k]), np.concatenate(change), seconds[k], corrupting)
        if not np.isfinite(answers[k].logits).all():
            raise UserError(f"{subjects[k].path} gives logits that are no numbers on {cell.tag}")
        write_npz(subjects[k].kept(suite, cell), key=np.array(keys[k]), ids=ids, logits=answers[k].logits,
                       change=answers[k].change, seconds=np.array([seconds[k], corrupting]))
    return answers


def _key(subject, cell, entry, data):
    """A digest of all that a model's answers to a cell follow from, the corruption's code included."""
    told = {"model": subject.digest, "data": data.fingerprint, "input": data.input(), "corruption": cell.corruption}
    if entry is not None:
        told["parameters"] = corruptions.settings(entry, *_level(cell))
        told["code"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _sources(entry)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _sources(entry):
    """The files of a corruption's code: its plugin, and what of kd that takes its operations from."""
    used = {value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            for value in entry.make.__globals__.values()}
    return [entry.path, corruptions.__file__, *(sys.modules[name].__file__ for name in sorted(filter(None, used))
                                                if name.startswith("kd."))]


def _read(path, key, ids):
    """The Answer that is kept, for `ids` or for these and more images; None where there is none of this key."""
    try:
        held = read_npz(path, ("key", "ids", "logits", "change", "seconds")) if path.is_file() else {"key": None}
    except UserError:
        return None  # a damaged file is written anew
    if held["key"] != key:
        return None
    order = np.argsort(held["ids"])
    place = np.searchsorted(held["ids"], ids, sorter=order).clip(max=len(order) - 1)
    rows = order[place]
    if not np.array_equal(held["ids"][rows], ids):
        return None
    share = len(ids) / len(order)
    return scores.Answer(held["logits"][rows], held["change"][rows], *(float(part * share) for part in held["seconds"]))
