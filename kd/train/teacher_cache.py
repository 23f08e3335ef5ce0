"""Teacher targets on disk: the outputs of a frozen teacher for a view are computed once, for all students and seeds.

Without this, each epoch shows new views. With K views, epoch e shows view (e - 1) mod K again, drawn as epochs 1 ... K
of seed 0 draw theirs, so that the teacher's outputs can be stored (FKD, Shen and Xing 2021, 2112.01528). With
K = epochs and seed 0 the views are exactly those of online training.
"""

import contextlib
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd.data import augment, loader
from kd.errors import UserError
from kd.files import atomic, lock, read_json, write_json

SEED = 0  # of the views: the same for all runs of a study, whatever their own seed
FORMAT = 2
STORED = {"teacher_logits", "teacher_attention"}


def view(epoch, views):
    """(seed, epoch) of the random draws for an epoch, from 1 on, when `views` views are shown in turn."""
    return SEED, (epoch - 1) % views + 1


class Targets:
    """Teacher logits, and attention maps if a loss reads them, for `views` views of the training images.

    They are in `folder` in float16, one file for each view and array, and are read through memory maps; key.json has
    what they were made from. teacher: kd.train.networks.Network. data: kd.data.loader.Data. needs: what the losses
    read, a set of names of kd.objective.NEEDS. precision: "fp32" or "bf16". kind: of kd.data.augment.KINDS. device:
    where views are augmented. Raises UserError if a loss reads what is not stored, and if the folder has targets of
    another teacher, other data or another augmentation.
    """

    def __init__(self, folder, teacher, data, views, *, needs, precision, kind="heavy", device="cpu"):
        not_stored = sorted(need for need in needs - STORED if need.startswith("teacher_"))
        if not_stored:
            raise UserError(f"a loss reads {', '.join(not_stored)}, which --teacher-cache does not keep",
                            "Leave it out.")
        self.folder, self.data, self.views, self.kind = Path(folder), data, views, kind
        stages = range(len(teacher.stages)) if "teacher_attention" in needs else ()
        self.arrays = ["logits", *(f"attention_{k}" for k in stages)]
        corruptions = [[entry.name, entry.info["severities"]] for entry in data.corruptions]
        key = {
            "format": FORMAT,
            "teacher": teacher.fingerprint,
            "normalisation": [list(teacher.mean), list(teacher.std)],
            "data": data.fingerprint,
            "split": data.split_fingerprint,
            "input": data.input(),
            "augmentation": augment.settings(kind, torch.device(device)) + corruptions,
            "precision": precision,
        }
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", key)
        old = read_json(self.folder / "key.json")
        differing = [name for name in key if old.get(name) != key[name]]
        if differing:
            raise UserError(f"the teacher's targets in {self.folder} were made from other {', '.join(differing)}",
                            "Delete that folder, and they are made again.")
        self._open_view, self._maps = None, {}  # the number of the view whose arrays are open, and their memory maps

    def path(self, number, array):
        """The file of one array of view `number`, which counts from 1."""
        return self.folder / f"view_{number}_{array}.npy"

    def missing(self):
        """The numbers of the views that are not on disk."""
        return [number for number in range(1, self.views + 1)
                if not all(self.path(number, array).exists() for array in self.arrays)]

    def build(self, teacher_forward, *, batch, device, workers):
        """Run the teacher on the missing views and store its outputs.

        teacher_forward: a function from images, float [N, 3, size, size] in [0, 1], to {"teacher_logits": [N, C],
        "teacher_attention": list of [N, H, W]}. batch: images at a time. A view is stored whole or not at all: a build
        that was killed goes on with the next view. Raises UserError if there is less disk space than is needed.
        """
        if not self.missing():
            return
        with lock(self.folder / ".lock", wait=True, what=f"the teacher's targets in {self.folder}"):
            missing, count = self.missing(), len(self.data.where("train"))
            if not missing:  # another run has made them while this one waited
                return
            for leftover in self.folder.glob(".view_*.tmp"):  # of a build that was killed
                leftover.unlink()
            example = next(loader.views(self.data, SEED, 1, batch=2, device=device, workers=0, kind=self.kind))
            rows = self._by_array(teacher_forward(example))
            shapes = {array: (count, *values.shape[1:]) for array, values in rows.items()}
            required = 2 * len(missing) * sum(map(math.prod, shapes.values()))  # two bytes a number
            free = shutil.disk_usage(self.folder).free
            if required > free:
                raise UserError(f"the teacher's targets need {required / 1e6:,.0f} MB, and {self.folder} has "
                                f"{free / 1e6:,.0f} MB left",
                                "Free some space, or give a smaller --teacher-cache.")
            size = f"{required / 1e6:,.1f} MB" if required >= 1e5 else f"{required / 1e3:,.1f} kB"
            print(f"teacher targets: {len(missing)} views of {count} images, {size} in {self.folder}")
            with tqdm(total=len(missing) * count, desc="teacher targets", unit="image", delay=2, disable=None) as bar:
                for number in missing:
                    batches = loader.views(self.data, SEED, number, batch=batch, device=device, workers=workers,
                                           kind=self.kind)
                    self._write(number, shapes, batches, teacher_forward, bar)

    def _write(self, number, shapes, batches, teacher_forward, bar):
        """Write the files of one view, batch by batch."""
        with contextlib.ExitStack() as stack:
            files = {array: stack.enter_context(atomic(self.path(number, array))) for array in shapes}
            for array, shape in shapes.items():
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[array], header)
            for images in batches:
                for array, values in self._by_array(teacher_forward(images)).items():
                    files[array].write(values.float().cpu().numpy().astype("<f2").tobytes())
                bar.update(len(images))

    def _by_array(self, outputs):
        """{name of an array: tensor [N, ...]} of the teacher's outputs."""
        maps = outputs.get("teacher_attention") or ()
        return {"logits": outputs["teacher_logits"], **{f"attention_{k}": values for k, values in enumerate(maps)}}

    def __call__(self, index, epoch, device):
        """The stored outputs for a batch of training images in the view of an epoch, float32 on a device.

        index: int64 [N], rows of the training split. Returns {"teacher_logits": [N, C], "teacher_attention": list of
        [N, H, W]}. Raises UserError if a file is damaged.
        """
        number = view(epoch, self.views)[1]
        if number != self._open_view:
            self._open_view, self._maps = number, {array: self._open(number, array) for array in self.arrays}
        rows, device = index.cpu().numpy(), torch.device(device)
        logits, *attention = (augment.to_device(values[rows].astype(np.float32), device)
                              for values in self._maps.values())
        return {"teacher_logits": logits, "teacher_attention": attention}

    def _open(self, number, array):
        path = self.path(number, array)
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            if values.dtype != np.float16 or len(values) != len(self.data.where("train")):
                raise ValueError(f"it has {values.dtype} {list(values.shape)}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the teacher's targets in {path} are damaged: {error}",
                            "Delete that file; it is made again.") from error
        return values
