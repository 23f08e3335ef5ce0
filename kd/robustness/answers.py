"""Logits of models on corrupted images: an image is decoded once, and corrupted once for all models of one input.

Each model's logits are kept in its run, a file a cell: robustness/SUITE/FILE/TAG.npz. They carry a key of all that
they follow from, so that a run that was killed goes on with the cell it was at, a further model costs only its own
forward passes, and nothing old is taken for new.
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

from kd import corruptions, image, onnx_model, predictions, runs
from kd.edge import torch_model
from kd.errors import UserError, listing, progress
from kd.files import lock, read_npz, write_npz
from kd.robustness import scores
from kd.run_folder import Run
from kd.text import command
from kd.train import checkpoint, networks, setup
from kd.train.weights import fingerprint

BATCH = 256          # images, where they are small
PIXELS = 2 ** 22     # of a batch, at most: intermediate results are several times as large
PIXELS_BY = ("size", "resize", "interpolation")  # of what a checkpoint records of its input
SAME = 0.99          # share of clean images that get the class they got when the run was trained, perhaps elsewhere


@dataclass
class ModelFile:
    """A file of a run that is measured: best.pt, or an ONNX file in its exports/."""

    run: Run
    path: Path
    network: object = None  # .logits(uint8 [N, S, S, 3]) -> [N, C], .size
    input: dict = None      # how its pixels are made, as its checkpoint records it
    digest: str = ""        # of the file
    model: scores.Model = None

    @property
    def folder(self):
        """Of the run."""
        return self.run.folder

    def answer_file(self, suite, cell):
        """Where the answers to a cell are kept."""
        return self.folder / "robustness" / suite / self.path.name / f"{runs.safe(cell.tag)}.npz"


def find(paths):
    """ModelFiles that `paths` name: of a run, and of any folder above, best.pt and exports/model.int8.onnx."""
    model_files, runs_ = {}, {}
    for path in map(Path, paths):
        if path.suffix == ".onnx":
            folder = path.resolve().parent.parent
            if not path.is_file() or not runs.finished(folder):
                raise UserError(f"{path} lies in the exports/ of no run" if path.is_file() else f"no such file: {path}",
                                "Name RUN/exports/MODEL.onnx: test images, temperature and thresholds are the run's.")
            files = [(folder, path)]
        else:
            files = []
            for folder in runs.networks(path):
                int8 = folder / "exports" / "model.int8.onnx"
                files += [(folder, folder / "best.pt"), *[(folder, int8)] * int8.is_file()]
        for folder, file in files:
            run = runs_.setdefault(folder.resolve(), Run(folder))
            model_files.setdefault(file.resolve(), ModelFile(run, file))
    return list(model_files.values())


def model_file_of(path, model_files):
    """The ModelFile of the first file that `path` names."""
    file = find([path])[0].path.resolve()
    for model_file in model_files:
        if model_file.path.resolve() == file:
            return model_file
    raise UserError(f"{path} is left out, and nothing can be relative to it")


def sound_files(model_files, failed, act):
    """The ModelFiles of runs for which act(model_file) raises nothing; {run's folder: UserError} goes into `failed`.

    Where none is left, the error of the first is raised.
    """
    for model_file in model_files:
        if model_file.folder not in failed:
            try:
                act(model_file)
            except UserError as error:
                failed[model_file.folder] = error
    sound = [model_file for model_file in model_files if model_file.folder not in failed]
    if not sound:
        raise failed[model_files[0].folder]
    return sound


def models_of(model_files, failed, targets=None):
    """(the ModelFiles of sound runs, with their models; the Predictions of the test images that all have in common).

    failed: as of sound_files(). targets: classes whose thresholds are tested.
    """
    def read(model_file):
        run = model_file.run
        run.predictions()  # faulty files and leaks are errors
        temperature, points = scores.frozen(run.metrics, run.folder / "metrics.json", targets)
        model_file.model = scores.Model(run.model, run.seed, model_file.path.name, run.kind, temperature, points)

    model_files = sound_files(model_files, failed, read)
    first = model_files[0].run
    for run in [model_file.run for model_file in model_files]:
        reason = predictions.difference_between(first.test, run.test)
        if reason:
            raise UserError(f"{run.folder} cannot be measured with {first.folder}: {reason}",
                            "Models are compared on the images of one test set; give those of one study.")
    return model_files, first.test


def rename_namesakes(model_files):
    """Models of one name in several studies are called STUDY/MODEL from here on."""
    owners = {(model_file.model.model, model_file.folder.resolve().parent) for model_file in model_files}
    if len(owners) > len({name for name, _ in owners}):
        for model_file in model_files:
            model_file.model.model = "/".join(model_file.folder.resolve().parts[-3:-1])


def load(model_file, registry, device):
    """Load a network: a checkpoint on `device`, ONNX on the CPU.

    Raises UserError for an export of other weights than the run's.
    """
    checkpoint_file = setup.checkpoint_in(model_file.folder)
    if model_file.path.suffix == ".onnx":
        model_file.network = onnx_model.Model(model_file.path)
        metadata = model_file.network.metadata
        model_file.input = metadata["input"]
        if metadata["provenance"].get("weights") != fingerprint(checkpoint.read(checkpoint_file)["state_dict"]):
            raise UserError(f"{model_file.path} was exported from other weights than those in {checkpoint_file}",
                            f"Export it anew: {command('export.py', model_file.folder)}")
    else:
        backend = "eager" if device.type == "mps" else "channels_last"
        model_file.network = torch_model.open_file(checkpoint_file, backend, registry, device=device,
                                                   threads=torch.get_num_threads())
        networks.fold_batch_norm(model_file.network.network.model)
        model_file.input = model_file.network.input
    model_file.digest = hashlib.sha256(model_file.path.read_bytes()).hexdigest()


def group(model_files, registry, root=None, cache=None):
    """[(kd.data.loader.Data, ModelFiles)] of those whose networks see the same pixels.

    root, cache: where the images and the decoded images are now, as options of training.
    """
    by_input = {}
    for model_file in model_files:
        model_file.run.require("environment")
        data = model_file.run.environment.get("data", {})
        key = data.get("fingerprint"), *(model_file.input[what] for what in PIXELS_BY)
        by_input.setdefault(key, []).append(model_file)
    groups = []
    for (_, *there), members in by_input.items():
        data = setup.data_of_run(members[0].run, registry, root, cache)
        here = [data.input()[what] for what in PIXELS_BY]
        if there != here:
            there, here = (f"{size} px cut from {resize} ({how})" for size, resize, how in (there, here))
            raise UserError(f"{members[0].path} takes images of {there}, and the images of its run are {here}")
        groups.append((data, members))
    return groups


def answer(groups, cells, ids, suite, registry, spent):
    """Fill the models' answers to `cells` on the test images `ids`, in their order.

    groups: of group(); their members share each corrupted batch. spent: {"corrupting", "answering"}, seconds, to which
    the time spent here is added. A Cell without a corruption is the clean images.
    """
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(member.folder.resolve() for _, members in groups for member in members):
            stack.enter_context(lock(folder / "robustness" / ".lock", what=f"{folder / 'robustness'}"))
        bar = stack.enter_context(progress(description="corrupting", unit="image", leave=False,
                                           total=len(groups) * len(cells) * len(ids)))
        for data, members in groups:
            rows = _rows(data, ids)
            for cell in cells:
                bar.set_postfix_str(cell.tag, refresh=False)
                answers = _answers(members, cell, data, rows, suite, registry, spent, bar)
                for member, member_answer in zip(members, answers):
                    member.model.answers[cell.tag] = member_answer


def example_rows(data, name, cells, registry):
    """The rows of an example sheet, [(corruption, [(caption, pixels)])]: test image `name` clean, then each cell."""
    pixels = _pixels(data, _rows(data, np.array([name])))
    rows = {}
    for cell in cells:
        entry = registry.get("corruption", cell.corruption)
        values = ", ".join(f"{value:g}" for value in corruptions.settings(entry, *_level(cell)).values())
        row = rows.setdefault(cell.corruption, [("clean", pixels[0])])
        row.append((f"{cell.severity}: {values}", corruptions.apply(entry, pixels, [name], *_level(cell))[0]))
    return list(rows.items())


def check_clean(model_file, test):
    """UserError where a checkpoint classifies the clean images of `test` otherwise than its own test.npz says."""
    expected = model_file.run.test
    classes = expected.probabilities.argmax(1)[predictions.matching_order(test, expected)]
    same = float((model_file.model.answers[scores.CLEAN].logits.argmax(1) == classes).mean())
    if model_file.path.name == "best.pt" and same < SAME:
        raise UserError(f"{model_file.path} answers otherwise than {model_file.folder / 'predictions' / 'test.npz'} on "
                        f"{1 - same:.1%} of the clean images", "The two are not of one run: train or copy it anew.")


def _rows(data, ids):
    """The positions in `data` of test images."""
    where = {name: row for row, name in enumerate(data.ids.tolist()) if data.split[row] == "test"}
    missing = [name for name in ids.tolist() if name not in where]
    if missing:
        raise UserError(f"{len(missing)} images of predictions/test.npz are not in the test split of {data.name}: "
                        f"{listing(missing)}")
    return np.array([where[name] for name in ids.tolist()])


def _pixels(data, rows):
    return np.ascontiguousarray(image.centre_crop(data.pixels(rows), data.size))


def _level(cell):
    """(severity, parameters) as kd.corruptions takes them, one of them None."""
    return (None, cell.parameters) if cell.parameters else (cell.severity, None)


def _answers(members, cell, data, rows, suite, registry, spent, bar):
    """The Answers of ModelFiles to one cell: those on disk, and the others' over one pass of the images."""
    entry = registry.get("corruption", cell.corruption) if cell.corruption else None
    ids, keys = data.ids[rows], [_key(member, cell, entry, data) for member in members]
    files = [member.answer_file(suite, cell) for member in members]
    answers = [_read(file, key, ids) for file, key in zip(files, keys)]
    lacking = [k for k, answer_ in enumerate(answers) if answer_ is None]
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
        corrupted = corruptions.apply(entry, pixels, ids[chunk], *_level(cell)) if entry else pixels
        corrupting += time.perf_counter() - begin
        change.append(np.abs(corrupted.astype(np.int16) - pixels).mean((1, 2, 3)))
        for k in lacking:
            begin = time.perf_counter()
            logits[k].append(members[k].network.logits(corrupted))
            seconds[k] += time.perf_counter() - begin
        bar.update(len(pixels))
    spent["corrupting"] += corrupting
    spent["answering"] += sum(seconds.values())
    for k in lacking:
        answers[k] = scores.Answer(np.concatenate(logits[k]), np.concatenate(change), seconds[k], corrupting)
        if not np.isfinite(answers[k].logits).all():
            raise UserError(f"{members[k].path} gives logits that are no numbers on {cell.tag}")
        write_npz(files[k], key=np.array(keys[k]), ids=ids, logits=answers[k].logits, change=answers[k].change,
                  seconds=np.array([seconds[k], corrupting]))
    return answers


def _key(member, cell, entry, data):
    """A digest of all that a model's answers to a cell follow from, the corruption's code included."""
    pixels = data.input()
    pixels["interpolation"] = image.way_of(pixels["interpolation"])
    causes = {"model": member.digest, "data": data.fingerprint, "input": pixels, "corruption": cell.corruption}
    if entry is not None:
        causes["parameters"] = corruptions.settings(entry, *_level(cell))
        causes["code"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _sources(entry)]
    return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:16]


def _sources(entry):
    """The files of a corruption's code: its plugin, and the files of kd whose functions it uses."""
    modules = {value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
               for value in entry.make.__globals__.values()}
    of_kd = [name for name in sorted(filter(None, modules)) if name.startswith("kd.")]
    return [entry.path, corruptions.__file__, *(sys.modules[name].__file__ for name in of_kd)]


def _read(path, key, ids):
    """The Answer on disk, for `ids` or for these and more images; None where there is none of this key."""
    try:
        arrays = read_npz(path, ("key", "ids", "logits", "change", "seconds")) if path.is_file() else {"key": None}
    except UserError:
        return None  # a damaged file is written anew
    if arrays["key"] != key:
        return None
    order = np.argsort(arrays["ids"])
    place = np.searchsorted(arrays["ids"], ids, sorter=order).clip(max=len(order) - 1)
    rows = order[place]
    if not np.array_equal(arrays["ids"][rows], ids):
        return None
    share = len(ids) / len(order)
    seconds = [float(part * share) for part in arrays["seconds"]]
    return scores.Answer(arrays["logits"][rows], arrays["change"][rows], *seconds)
