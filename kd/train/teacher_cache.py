"""Teacher targets on disk: the outputs of a frozen teacher for a view are computed once, for all students and seeds.

Without this, each visit of an image shows a new view. With K views, visit v shows view (v - 1) mod K again, drawn as
visits 1 ... K of seed 0 draw theirs, so that the teacher's outputs can be stored (FKD, Shen and Xing 2021, 2112.01528).
With K = epochs and seed 0 the views are exactly those of online training.

Each file has a checksum, which is compared when a training begins: 0.1 s for ten views of HAM10000 at 64 px, 0.5 s at
224 px. What is damaged is made again.
"""

import contextlib
import json
import math
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kd.data import augment
from kd.data.batching import KEPT_SEED, Views, augmented, batch_sizes
from kd.errors import UserError, listing, progress
from kd.files import atomic, lock, open_regular, read_json, write_json

FORMAT = 2
LARGEST = 2 ** 40  # bytes of a file of targets
STORED = {"teacher_logits", "teacher_attention", "teacher_pooled", "teacher_tau"}


def _checksum(key):
    """CRC-32, eight hex digits, of plain values."""
    return f"{zlib.crc32(json.dumps(key, sort_keys=True).encode()):08x}"


class Targets:
    """Teacher logits, and attention maps and pooled features if a loss reads them, for each view of the images.

    They are in `folder` in float16, one file for each view and array, and are read through memory maps. key.json has
    what they were made from, and view_1.json the checksums of view 1, which depend on the key. teacher:
    kd.train.networks.Network. data: kd.data.loader.Data. views: kd.data.batching.Views, of which so many are kept.
    needs: what the losses read, a set of names of kd.objective.NEEDS. precision: "fp32", "bf16" or "fp16". device:
    where views are augmented. unlabelled: for the images without labels, in place of the labelled ones.
    Raises UserError if a loss reads what is not stored, and if the folder has targets of another teacher, other data or
    another augmentation.
    """

    def __init__(self, folder, teacher, data, views, *, needs, precision, device="cpu", unlabelled=False):
        not_stored = sorted(need for need in needs - STORED if need.startswith("teacher_"))
        if not_stored:
            raise UserError(f"a loss reads {', '.join(not_stored)}, which --teacher-cache does not keep",
                            "Leave it out.")
        self.folder, self.data, self.views = Path(folder), data, views
        self.sizes = [member.size or data.size for member in teacher.members]
        self.first = len(data.train) if unlabelled else 0  # position of the first image
        self.count = len(data.unlabelled) if unlabelled else len(data.train)
        stages = range(len(teacher.stages)) if "teacher_attention" in needs else ()
        self.arrays = ["logits", *(f"attention_{k}" for k in stages), *["pooled"] * ("teacher_pooled" in needs)]
        corruptions = [[entry.name, entry.info["severities"]] for entry in data.corruptions]
        key = {
            "format": FORMAT,
            "teacher": teacher.fingerprint,
            "normalisation": [list(values) for member in teacher.members for values in (member.mean, member.std)],
            "data": data.fingerprint,
            "split": data.split_fingerprint,
            "input": data.input(),
            "augmentation": views.settings(device) + corruptions,
            "precision": precision,
        }
        if set(self.sizes) != {data.size}:
            key["teacher's size"] = self.sizes
        if unlabelled:
            key["images without labels"] = data.unlabelled.fingerprint
        self.key_checksum = _checksum(key)
        old = self._old_key()
        differing = [name for name in key if old is not None and old.get(name) != key[name]]
        if differing:
            raise UserError(f"the teacher's targets in {self.folder} were made from other {', '.join(differing)}",
                            "Delete that folder, and they are made again.")
        if old is None:
            write_json(self.folder / "key.json", {**key, "crc32": self.key_checksum})
        self._maps = {}  # {(number of a view, array): memory map}

    def _old_key(self):
        """The content of key.json, a dict; None if there is none, or if it is damaged, and a line says so."""
        path = self.folder / "key.json"
        if not path.exists():
            return None
        try:
            old = read_json(path)
            if isinstance(old, dict):
                checksum = old.pop("crc32", None)
                if checksum in (None, _checksum(old)):  # None: written by an older version
                    return old
            reason = f"{path} is not what was written"
        except UserError as error:
            reason = error.message
        print(f"note: {reason}; it is made again, and so are targets that do not belong to it")
        return None

    def path(self, number, array):
        """The file of one array of view `number`, which counts from 1."""
        return self.folder / f"view_{number}_{array}.npy"

    def missing(self):
        """The views that are not on disk as they were written: {number: what is wrong with it, "" for no file}."""
        faults = {number: self._fault(number) for number in range(1, self.views.kept + 1)}
        return {number: fault for number, fault in faults.items() if fault is not None}

    def _fault(self, number):
        """What is wrong with a view on disk; "" if a file is missing, None if all is as it was written."""
        sums = self.folder / f"view_{number}.json"
        if not all(path.exists() for path in (sums, *(self.path(number, array) for array in self.arrays))):
            return ""
        try:
            checksums = read_json(sums)
            for array in self.arrays:
                self._map(number, array)
                if not isinstance(checksums, dict) or checksums.get(array) != self._file_checksum(number, array):
                    return f"{self.path(number, array)} is not what was written"
        except UserError as error:
            return error.message
        return None

    def _file_checksum(self, number, array):
        """CRC-32, eight hex digits, of the key and of a file: finds damage, not intent."""
        result = int(self.key_checksum, 16)
        with open_regular(self.path(number, array), LARGEST) as file:
            while block := file.read(2 ** 20):
                result = zlib.crc32(block, result)
        return f"{result:08x}"

    def build(self, teacher_forward, *, batch, device, workers):
        """Run the teacher on the missing views and store its outputs.

        teacher_forward: a function from {size: images [N, 3, size, size] in [0, 1]} to {"teacher_logits": [N, C],
        "teacher_attention": list of [N, H, W], "teacher_pooled": [N, D]}. batch: images at a time. A view
        is stored whole or not at all: a build that was killed goes on with the next view. Raises UserError if there is
        less disk space than is needed.
        """
        if not self.missing():
            return
        with lock(self.folder / ".lock", wait=True, what=f"the teacher's targets in {self.folder}"):
            missing, count = self.missing(), self.count
            if not missing:  # another run has made them while this one waited
                return
            damaged = [f"view {number}: {fault}" for number, fault in missing.items() if fault]
            if damaged:
                print(f"note: the teacher's targets are damaged and made again: {listing(damaged, 2)}")
            for leftover in self.folder.glob(".view_*.tmp"):  # of a build that was killed
                leftover.unlink()
            rows = self._by_array(teacher_forward(next(self._crops(1, 2, device, workers=0))))
            shapes = {array: (count, *values.shape[1:]) for array, values in rows.items()}
            required = 2 * len(missing) * sum(map(math.prod, shapes.values()))  # two bytes a number
            free = shutil.disk_usage(self.folder).free
            if required > free:
                raise UserError(f"the teacher's targets need {required / 1e6:,.0f} MB, and {self.folder} has "
                                f"{free / 1e6:,.0f} MB left",
                                "Free some space, or give a smaller --teacher-cache.")
            size = f"{required / 1e6:,.1f} MB" if required >= 1e5 else f"{required / 1e3:,.1f} kB"
            print(f"teacher targets: {len(missing)} views of {count} images, {size} in {self.folder}")
            with progress(description="teacher targets", total=len(missing) * count, unit="image") as bar:
                for number in missing:
                    self._write(number, shapes, self._crops(number, batch, device, workers), teacher_forward, bar)
                    write_json(self.folder / f"view_{number}.json",  # last, because its presence says that all is there
                               {array: self._file_checksum(number, array) for array in self.arrays})

    def _crops(self, number, batch, device, workers):
        """Yield {size: images} of the view `number` for batches of the images in their order."""
        ends = range(0, self.count, batch)
        chunks = [np.arange(start, min(start + batch, self.count)) + self.first for start in ends]
        chunks = [(chunk, np.full(len(chunk), number)) for chunk in chunks]
        for crops, _ in augmented(self.data, chunks, KEPT_SEED, self.views, self.sizes, device, workers):
            yield crops

    def _write(self, number, shapes, batches, teacher_forward, bar):
        """Write the files of one view, batch by batch."""
        with contextlib.ExitStack() as stack:
            files = {array: stack.enter_context(atomic(self.path(number, array))) for array in shapes}
            for array, shape in shapes.items():
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[array], header)
            for crops in batches:
                for array, values in self._by_array(teacher_forward(crops)).items():
                    values = values.half().cpu()
                    if not values.isfinite().all():
                        raise UserError(f"the teacher's {array} of view {number} are too large for half precision",
                                        "Leave out --teacher-cache: the outputs of a live teacher are not rounded.")
                    files[array].write(values.numpy().astype("<f2").tobytes())
                bar.update(len(values))

    def _by_array(self, outputs):
        """{name of an array: tensor [N, ...]} of the teacher's outputs."""
        maps = outputs.get("teacher_attention") or ()
        arrays = {"logits": outputs["teacher_logits"], **{f"attention_{k}": values for k, values in enumerate(maps)}}
        return {**arrays, "pooled": outputs["teacher_pooled"]} if "pooled" in self.arrays else arrays

    def __call__(self, index, numbers, device):
        """The stored outputs for a batch of training images, float32 on a device.

        index, numbers: ints [N], positions of the images and numbers of their views. Returns {"teacher_logits":
        [N, C], "teacher_attention": list of [N, H, W], "teacher_pooled": [N, D] or None}. Raises UserError if a file is
        damaged.
        """
        rows, arrays = index - self.first, {}
        for array in self.arrays:
            for number in np.unique(numbers).tolist():
                if (number, array) not in self._maps:
                    self._maps[number, array] = self._map(number, array)
                is_of_view, values = numbers == number, self._maps[number, array]
                arrays.setdefault(array, np.empty((len(rows), *values.shape[1:]), np.float32))
                arrays[array][is_of_view] = values[rows[is_of_view]]
        arrays = {array: augment.to_device(values, torch.device(device)) for array, values in arrays.items()}
        return {"teacher_logits": arrays.pop("logits"), "teacher_pooled": arrays.pop("pooled", None),
                "teacher_attention": list(arrays.values())}

    def _map(self, number, array):
        """The memory map of a file. UserError if it is no array of such a shape, or has values that are not finite."""
        path, count, classes = self.path(number, array), self.count, len(self.data.class_names)
        try:
            open_regular(path, LARGEST).close()  # a pipe would be waited for
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            is_shape = {"logits": values.shape == (count, classes), "pooled": values.shape[:-1] == (count,)}.get(
                array, values.shape[:-2] == (count,))
            if values.dtype != np.float16 or not is_shape:
                raise ValueError(f"it has {values.dtype} {list(values.shape)}")
            if not all(np.isfinite(values[k:k + 1024]).all() for k in range(0, count, 1024)):
                raise ValueError("it has values that are no finite numbers")
        except Exception as error:  # of a damaged header NumPy raises what the parser of Python raises
            raise UserError(f"the teacher's targets in {path} are damaged: {' '.join(str(error).split())}",
                            "Give the same command again: they are made again.") from error
        return values


def kept(folder, teacher, data, options, needs):
    """The Targets for a run: those of the labelled images, and of the others where there are any.

    options: those of the command line, resolved. needs: as for Targets. An image without a label is shown less often
    than a labelled one, and has no more views than visits.
    """
    views = Views.of(options, kept=options["teacher_cache"])
    if views != Views(kept=views.kept):  # models of a study may differ in their views
        folder = folder.with_name(f"{folder.name}_{_checksum(views.settings(options['device']))}")
    settings = {"needs": needs, "precision": options["precision"], "device": options["device"]}
    labelled = Targets(folder, teacher, data, views, **settings)
    if not data.unlabelled:
        return labelled
    sizes = batch_sizes(data, options["batch"], unlabelled_ratio=options["unlabelled_ratio"])
    visits = -(-options["epochs"] * sum(total - own for own, total in sizes) // len(data.unlabelled))
    views = replace(views, kept=min(views.kept, visits))
    return TargetsOfBoth(labelled, Targets(folder / data.unlabelled.fingerprint, teacher, data, views, **settings,
                                           unlabelled=True))


class TargetsOfBoth:
    """Targets of the labelled images, and of those without labels, as one."""

    def __init__(self, labelled, unlabelled):
        self.parts = labelled, unlabelled

    def build(self, teacher_forward, **options):
        """Targets.build() of both."""
        for part in self.parts:
            part.build(teacher_forward, **options)

    def __call__(self, index, numbers, device):
        """As for Targets; the labelled images come first."""
        edge = int(np.searchsorted(index >= self.parts[1].first, True))
        labelled, unlabelled = (part(index[rows], numbers[rows], device)
                                for part, rows in zip(self.parts, (slice(edge), slice(edge, None))))
        return {name: _joined(labelled[name], unlabelled[name]) for name in labelled}


def _joined(first, second):
    """Two tensors, or lists of tensors, along the images; None of None."""
    if isinstance(first, list):
        return [torch.cat(pair) for pair in zip(first, second)]
    return None if first is None else torch.cat([first, second])
