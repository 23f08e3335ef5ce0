"""Teacher targets from disk: what a frozen teacher says of a view is computed once, for all students and seeds.

Online, every epoch shows new views. With K views, epoch e shows view (e - 1) mod K again, drawn as epochs
1 ... K of seed 0 draw theirs, so that the teacher's answer can be kept (FKD, Shen and Xing 2021, 2112.01528).
With K = epochs and seed 0 these are the very views of online training.
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

SEED = 0  # of the views: one for all runs of a study, whatever their own seed
FORMAT = 2
KEPT = {"teacher_logits", "teacher_attention"}


def view(epoch, views):
    """(seed, epoch) of the draws that an epoch shows, where `views` are shown in turn."""
    return SEED, (epoch - 1) % views + 1


class Targets:
    """Logits and, where a loss reads them, attention maps of `views` views of the training images.

    They lie in `folder` in float16, a file a view and kind, and are read through memory maps. key.json
    says what they were made from. needs: what the losses read of the teacher; an error where
    that is not kept. kind: of augment.KINDS.
    """

    def __init__(self, folder, teacher, data, views, *, needs, precision, kind="heavy", device="cpu"):
        beyond = sorted(need for need in needs - KEPT if need.startswith("teacher_"))
        if beyond:
            raise UserError(f"a loss reads {', '.join(beyond)}, which --teacher-cache does not keep", "Leave it out.")
        self.folder, self.data, self.views, self.kind = Path(folder), data, views, kind
        self.kinds = ["logits"] + [f"attention_{k}" for k in range(len(teacher.stages)) if "teacher_attention" in needs]
        key = {"format": FORMAT, "teacher": teacher.fingerprint, "normalisation": [list(teacher.mean), list(teacher.std)],
               "data": data.fingerprint, "split": data.split_fingerprint, "input": data.input(),
               "augmentation": augment.settings(kind, torch.device(device)) + [
                   [entry.name, entry.info["severities"]] for entry in data.corruptions], "precision": precision}
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", key)
        old = read_json(self.folder / "key.json")
        differing = [name for name in key if old.get(name) != key[name]]
        if differing:
            raise UserError(f"the teacher's targets in {self.folder} were made from other {', '.join(differing)}",
                            "Delete that folder, and they are made anew.")
        self.number, self.arrays = None, {}

    def path(self, number, kind):
        return self.folder / f"view_{number}_{kind}.npy"

    def missing(self):
        """The numbers of the views that are not on disk."""
        return [number for number in range(1, self.views + 1)
                if not all(self.path(number, kind).exists() for kind in self.kinds)]

    def build(self, ask, *, batch, device, workers):
        """Show the teacher the views that are missing. ask(images) -> {"teacher_logits": tensor, ...}.

        A view is on disk whole or not at all: a build that was killed goes on with the next. Disk need is
        shown, and held against what is free, before any is used.
        """
        if not self.missing():
            return
        with lock(self.folder / ".lock", wait=True, what=f"the teacher's targets in {self.folder}"):
            missing, count = self.missing(), len(self.data.where("train"))
            if not missing:  # another run has made them meanwhile
                return
            for left in self.folder.glob(".view_*.tmp"):  # of a build that was killed
                left.unlink()
            first = next(loader.views(self.data, SEED, 1, batch=2, device=device, workers=0, kind=self.kind))
            shapes = {kind: (count, *rows.shape[1:]) for kind, rows in self._rows(ask(first)).items()}
            need, free = 2 * len(missing) * sum(map(math.prod, shapes.values())), shutil.disk_usage(self.folder).free
            if need > free:
                raise UserError(f"the teacher's targets need {need / 1e6:,.0f} MB, and {self.folder} has {free / 1e6:,.0f} MB left",
                                "Free some space, or give a smaller --teacher-cache.")
            size = f"{need / 1e6:,.1f} MB" if need >= 1e5 else f"{need / 1e3:,.1f} kB"
            print(f"teacher targets: {len(missing)} views of {count} images, {size} in {self.folder}")
            with tqdm(total=len(missing) * count, desc="teacher targets", unit="image", delay=2, disable=None) as bar:
                for number in missing:
                    batches = loader.views(self.data, SEED, number, batch=batch, device=device, workers=workers,
                                            kind=self.kind)
                    self._write(number, shapes, batches, ask, bar)

    def _write(self, number, shapes, batches, ask, bar):
        """The files of one view, a batch of images at a time."""
        with contextlib.ExitStack() as stack:
            files = {kind: stack.enter_context(atomic(self.path(number, kind))) for kind in shapes}
            for kind, shape in shapes.items():
                np.lib.format.write_array_header_1_0(files[kind], {"descr": "<f2", "fortran_order": False, "shape": shape})
            for images in batches:
                for kind, rows in self._rows(ask(images)).items():
                    files[kind].write(rows.float().cpu().numpy().astype("<f2").tobytes())
                bar.update(len(images))

    def _rows(self, given):
        maps = given.get("teacher_attention") or ()
        return {"logits": given["teacher_logits"], **{f"attention_{k}": rows for k, rows in enumerate(maps)}}

    def __call__(self, index, epoch, device):
        """What the teacher said of the training images `index` in the view of this epoch, as the losses read it."""
        number = view(epoch, self.views)[1]
        if number != self.number:
            self.number, self.arrays = number, {kind: self._read(number, kind) for kind in self.kinds}
        rows = index.cpu().numpy()
        given = {kind: augment.to_device(array[rows].astype(np.float32), torch.device(device)) for kind, array in self.arrays.items()}
        return {"teacher_logits": given.pop("logits"), "teacher_attention": list(given.values())}

    def _read(self, number, kind):
        path = self.path(number, kind)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype != np.float16 or len(array) != len(self.data.where("train")):
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the teacher's targets in {path} are damaged: {error}", "Delete that file; it is made anew.") from error
        return array
