"""Teacher targets on disk: the outputs of a frozen teacher for a view are computed once, for all students and seeds.

Without this, each visit of an image shows a new view. With K views, visit v shows view (v - 1) mod K again, drawn as
visits 1 ... K of seed 0 draw theirs, so that the teacher's outputs can be stored (FKD, Shen and Xing 2021, 2112.01528).
With K = epochs and seed 0 the views are exactly those of online training.

The outputs for each view of each image have a checksum, which is compared whenever they are read. A view that is
damaged stops the training; given again, the same command makes it again.
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

FORMAT = 3
LARGEST = 2 ** 40  # bytes of a file of targets
STORED = {"teacher_logits", "teacher_attention", "teacher_pooled", "teacher_tau"}


def _checksum(key):
    """CRC-32, eight hex digits, of plain values."""
    return f"{zlib.crc32(json.dumps(key, sort_keys=True).encode()):08x}"


def _rows(shape):
    """The type of a row: the values for an image, of this shape, and their checksum."""
    return np.dtype([("values", "<f2", tuple(shape)), ("crc32", "<u4")])


class Targets:
    """Teacher logits, and attention maps and pooled features if a loss reads them, for each view of the images.

    They are in `folder` in float16, one file for each view and array, and are read through memory maps; a row has the
    `values` for an image, and their checksum `crc32`. key.json has what they were made from, and view_1.json, which
    says that view 1 is whole, the checksum of that key. teacher:
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
                if checksum in (None, _checksum(old)) and old.get("format") == FORMAT:
                    return old
            reason = f"{path} is of an older version, or not what was written"
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
        whole = self._whole(number)
        if not all(path.exists() for path in (whole, *(self.path(number, array) for array in self.arrays))):
            return ""
        try:
            if read_json(whole) != self.key_checksum:
                return f"{whole} is of other targets, or not what was written"
            for array in self.arrays:
                self._map(number, array)
        except UserError as error:
            return error.message
        return None

    def _whole(self, number):
        """The file that says that a view is whole."""
        return self.folder / f"view_{number}.json"

    def _checksums(self, records):
        """CRC-32 [n] of the key and of the values of each of `records` [n]: finds damage, not intent."""
        rows, seed = records.view(np.uint8).reshape(len(records), -1)[:, :-4], int(self.key_checksum, 16)
        return np.array([zlib.crc32(row, seed) for row in rows], np.uint32)

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
            required = len(missing) * sum(count * 4 + 2 * math.prod(shape) for shape in shapes.values())
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
                    write_json(self._whole(number), self.key_checksum)  # last

    def _crops(self, number, batch, device, workers):
        """Yield {size: images} of the view `number` for batches of the images in their order."""
        ends = range(0, self.count, batch)
        chunks = [np.arange(start, min(start + batch, self.count)) + self.first for start in ends]
        chunks = [(chunk, np.full(len(chunk), number)) for chunk in chunks]
        for crops, _ in augmented(self.data, chunks, KEPT_SEED, self.views, self.sizes, device, workers):
            yield crops

    def _write(self, number, shapes, batches, teacher_forward, bar):
        """Write the files of one view, batch by batch."""
        self._whole(number).unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            files = {array: stack.enter_context(atomic(self.path(number, array))) for array in shapes}
            for array, shape in shapes.items():
                header = {"descr": _rows(shape[1:]).descr, "fortran_order": False, "shape": shape[:1]}
                np.lib.format.write_array_header_1_0(files[array], header)
            for crops in batches:
                for array, values in self._by_array(teacher_forward(crops)).items():
                    values = values.half().cpu()
                    if not values.isfinite().all():
                        raise UserError(f"the teacher's {array} of view {number} are too large for half precision",
                                        "Leave out --teacher-cache: the outputs of a live teacher are not rounded.")
                    records = np.empty(len(values), _rows(values.shape[1:]))
                    records["values"] = values.numpy()
                    records["crc32"] = self._checksums(records)
                    files[array].write(records.tobytes())
                bar.update(len(values))

    def _by_array(self, outputs):
        """{name of an array: tensor [N, ...]} of the teacher's outputs."""
        maps = outputs.get("teacher_attention") or ()
        arrays = {"logits": outputs["teacher_logits"], **{f"attention_{k}": values for k, values in enumerate(maps)}}
        return {**arrays, "pooled": outputs["teacher_pooled"]} if "pooled" in self.arrays else arrays

    def __call__(self, index, numbers, device):
        """The stored outputs for a batch of training images, float32 on a device.

        index, numbers: ints [N], positions of the images and numbers of their views. Returns {"teacher_logits":
        [N, C], "teacher_attention": list of [N, H, W], "teacher_pooled": [N, D] or None}. Raises UserError if they are
        damaged; the view then is no longer whole.
        """
        rows, arrays = index - self.first, {}
        for array in self.arrays:
            for number in np.unique(numbers).tolist():
                if (number, array) not in self._maps:
                    self._maps[number, array] = self._map(number, array)
                is_of_view = numbers == number
                records = np.asarray(self._maps[number, array][rows[is_of_view]])
                damaged = np.flatnonzero(self._checksums(records) != records["crc32"])
                if len(damaged):
                    with contextlib.suppress(OSError):
                        self._whole(number).unlink()
                    raise self._damage(number, array, f"image {rows[is_of_view][damaged[0]]} is not what was written")
                values = records["values"]
                arrays.setdefault(array, np.empty((len(rows), *values.shape[1:]), np.float32))
                arrays[array][is_of_view] = values
        arrays = {array: augment.to_device(values, torch.device(device)) for array, values in arrays.items()}
        return {"teacher_logits": arrays.pop("logits"), "teacher_pooled": arrays.pop("pooled", None),
                "teacher_attention": list(arrays.values())}

    def _map(self, number, array):
        """The memory map of a file. UserError if it has no rows of such a shape."""
        path, count, classes = self.path(number, array), self.count, len(self.data.class_names)
        try:
            open_regular(path, LARGEST).close()  # a pipe would be waited for
            records = np.load(path, mmap_mode="r", allow_pickle=False)
            shape = records.dtype["values"].shape if records.dtype.names else ()
            is_shape = {"logits": shape == (classes,), "pooled": len(shape) == 1}.get(array, len(shape) == 2)
            if records.shape != (count,) or not is_shape or records.dtype != _rows(shape):
                raise ValueError(f"it has {records.dtype} {list(records.shape)}")
        except Exception as error:  # of a damaged header NumPy raises what the parser of Python raises
            raise self._damage(number, array, " ".join(str(error).split())) from error
        return records

    def _damage(self, number, array, reason):
        path, whole = self.path(number, array), self._whole(number)
        first = f"Delete {whole}, and give" if whole.exists() else "Give"  # it was not to be deleted
        return UserError(f"the teacher's targets in {path} are damaged: {reason}",
                         f"{first} the same command again: they are made again.")


def kept(folder, teacher, data, options, needs):
    """The Targets for a run: those of the labelled images, and of the others where there are any.

    options: those of the command line, resolved. needs: as for Targets. An image without a label is shown less often
    than a labelled one, and has no more views than visits.
    """
    views = Views.of(options, kept=options["teacher_cache"])
    # models of a study may differ in their views, and in the images that have labels
    differing = [*(views.settings(options["device"]) if views != Views(kept=views.kept) else ()),
                 *([data.split_fingerprint] if data.label_counts() else ())]
    if differing:
        folder = folder.with_name(f"{folder.name}_{_checksum(differing)}")
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
