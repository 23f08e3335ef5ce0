"""The training engine, one for teacher and student: from a network and its data to a finished run.

Every random number follows from the seed, the epoch and the image, and `last.pt` is
written after each epoch: a run that is killed anywhere and started again ends with the
weights of the unbroken run, bit for bit on a CPU.
"""

import contextlib
import datetime
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd import event_writer, machine, runs
from kd.data import loader, splits
from kd.errors import UserError
from kd.files import lock, read_json, write_csv, write_json, write_npz, write_yaml
from kd.train import checkpoint, distributed, loop, networks
from kd.train.options import claim_folder
from kd.train.step import Step, memory_format
from kd.train.weights import safe_load


def device_and_precision(options):
    """--device and --precision with `auto` resolved: bf16 only where the hardware multiplies in it, since elsewhere it is slower."""
    device, precision = networks.device(options["device"]), options["precision"]
    if precision == "auto":
        if device.type == "cuda":
            native = bool(torch.version.hip) or torch.cuda.get_device_capability() >= (8, 0)
        else:
            native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        precision = "bf16" if native else "fp32"
    return device, precision


def run(folder, student, terms, data, options, *, seed, teacher=None, kept=None, role, provenance):
    """Train one network into a run folder, or go on with it, or find it finished.

    student, teacher: kd.train.networks.Network. terms: of kd.objective.plan. options: resolved,
    as config.yaml keeps them. kept: kd.train.teacher_cache.Targets, where the teacher's answers come from disk. Returns
    the folder.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as held:
        device, precision = torch.device(options["device"]), options["precision"]

        def open_folder():
            """Whether the run is new, and whether there is anything to do."""
            held.enter_context(lock(folder / ".lock", what=str(folder)))
            new = claim_folder(folder, options, role)
            if not new:
                _same_begin(folder, data, teacher)
            if runs.finished(folder):
                (folder / "last.pt").unlink(missing_ok=True)
                print(f"{folder}: finished already, left as it is")
                return new, False
            for left in folder.rglob(".*.tmp"):  # of a write that a kill cut short
                left.unlink()
            return new, True

        new, to_do = distributed.by_first(open_folder)
        if not to_do:
            return folder
        for network in filter(None, (student, teacher)):
            network.model.to(device, memory_format=memory_format(device))
        step = Step(student, teacher, terms, data, options, device, precision, kept)
        if kept:
            distributed.by_first(lambda: kept.build(step.teacher_forward, batch=4 * options["batch"], device=device,
                                                    workers=options["workers"]))
        if new and distributed.first():
            _describe(folder, student, step, data, options, role)
        print(f"{folder}: {step.objective.formula}")
        print(f"{folder}: {step.describe()}")

        def save_best():
            checkpoint.save(folder / "best.pt", student.model, arch=student.arch, stem=student.stem,
                            class_names=data.class_names, input=input_of(student, data),
                            provenance={**provenance, "run": "/".join(runs.describe(folder)),
                                        "data": data.fingerprint, "split": data.split_fingerprint, "seen": splits.seen_by(data)})

        _epochs(folder, step, data, options, seed, save_best)
        step.close()  # what is kept is predicted by the network as it will be loaded
        best = distributed.by_first(lambda: checkpoint.read(folder / "best.pt")["state_dict"])
        checkpoint.load_state(student.model, best, folder / "best.pt")
        if distributed.first():
            _write_samples(folder, data)
        for split in ("val", "test"):  # test.npz comes last: it says that the run is finished
            rows, logits = data.where(split), loop.predict(student, data, split, device)
            if distributed.first():
                write_npz(folder / "predictions" / f"{split}.npz", ids=data.ids[rows], labels=data.labels[rows],
                               logits=logits, groups=data.shown_groups(rows), class_names=np.array(data.class_names))
        distributed.by_first((folder / "last.pt").unlink)
    return folder


def _epochs(folder, step, data, options, seed, save_best):
    """All epochs that are still to do, each ending with last.pt and history.csv."""
    model, last = step.student.model, folder / "last.pt"
    rows = []
    way_out = f"Delete {last}, and the same command begins anew."

    def read_last():
        if not last.exists():
            return None
        if not (folder / "best.pt").exists():
            raise UserError(f"{folder} has last.pt but no best.pt to go on with", way_out)
        return safe_load(last)

    state = distributed.by_first(read_last)
    if state is not None:
        try:
            checkpoint.load_state(model, state["model"], last)
            step.objective.load_state_dict(state["objective"])
            step.optimizer.load_state_dict(state["optimizer"])
            rows = state["history"]
        except UserError as error:
            raise UserError(error.message, way_out) from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{last} is not the state of this run", way_out) from error
        print(f"{folder}: going on after epoch {len(rows)}")
    per_epoch = len(loader.batch_sizes(len(data.where("train")), options["batch"], distributed.world()))
    steps = per_epoch * options["epochs"]
    with event_writer.opened(folder / "tb", len(rows)) if distributed.first() else contextlib.nullcontext() as log, \
            tqdm(total=steps, initial=per_epoch * len(rows), desc=folder.parent.name, unit="step", delay=2,
                 disable=None if distributed.first() else True) as bar:
        for epoch in range(len(rows) + 1, options["epochs"] + 1):
            best = max((row["val_macro_f1"] for row in rows), default=-1.0)
            since = len(rows) - next((k for k, row in enumerate(rows, 1) if row["val_macro_f1"] == best), 0)
            if since >= options["patience"]:
                print(f"{folder}: no better validation macro-F1 in {since} epochs, stopped after epoch {len(rows)}")
                break
            start = time.monotonic()
            try:
                row = loop.train_epoch(step, data, options, seed=seed, epoch=epoch,
                                  steps_before=per_epoch * (epoch - 1), steps=steps, bar=bar)
                row = {"epoch": epoch, **row, **loop.validate(step.networks[0], data, step.device)}
                if not math.isfinite(row["val_loss"]):  # the last step of an epoch can be the bad one
                    raise UserError(f"the network gives no numbers any more after epoch {epoch}", "A lower --lr often helps.")
            except UserError as error:
                good = (f" The last good checkpoint is {folder / 'best.pt'}; to go on from it: --init "
                        f"{(folder / 'best.pt').as_posix()} --lr {options['lr'] / 10:g} --name NAME" if rows else "")
                raise UserError(error.message, error.hint + good) from None
            row["seconds"] = round(time.monotonic() - start, 2)
            rows.append(row)
            if distributed.first():
                if row["val_macro_f1"] > best:
                    save_best()  # before last.pt: an epoch that last.pt counts has left its best.pt
                checkpoint.save_tensors(last, {"model": model.state_dict(), "objective": step.objective.state_dict(),
                                               "optimizer": step.optimizer.state_dict(), "history": rows})
                write_csv(folder / "history.csv", rows)
                log(row)
            bar.set_postfix(val_macro_f1=f"{row['val_macro_f1']:.3f}")
    if distributed.first():
        write_csv(folder / "history.csv", rows)  # a kill between last.pt and history.csv leaves it a row short


def input_of(network, data):
    """How pixels become what `network` computes on, as checkpoint and environment.json record it."""
    return {**data.input(), "mean": list(network.mean), "std": list(network.std)}


def _describe(folder, student, step, data, options, role):
    """The files that a run begins with; config.yaml last, since it marks the folder as taken."""
    write_csv(folder / "split.csv", data.table())
    write_json(folder / "environment.json", {
        **machine.environment(), "device": str(step.device), "precision": step.precision, "role": role,
        "processes": distributed.world(),
        "teacher": step.teacher_fingerprint, "input": input_of(student, data),
        "arch": student.arch, "parameters": networks.parameters(student.model), "formula": step.objective.formula,
        "data": {"name": data.name, "synthetic": data.synthetic, "images": len(data.ids),
                 "classes": data.class_names, "groups": len(set(data.groups)) if data.grouped else None,
                 "fingerprint": data.fingerprint, "split": data.split_fingerprint, "skipped": data.skipped},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")})
    write_yaml(folder / "config.yaml", options)


def _same_begin(folder, data, teacher):
    """A run goes on only with the data, the split and the teacher that it was begun with."""
    try:
        begun = read_json(folder / "environment.json")
        old = begun["data"]["fingerprint"], begun["data"]["split"], begun["teacher"]
    except (KeyError, TypeError, UserError):
        raise UserError(f"{folder / 'environment.json'} is missing or damaged",
                        "Restore it, or delete the folder, and the run begins anew.") from None
    now = data.fingerprint, data.split_fingerprint, teacher.fingerprint if teacher else None
    for what, before, after in zip(("data", "groups or split", "teacher"), old, now):
        if before != after:
            raise UserError(f"{folder} was begun with {'an' if what == 'teacher' else ''}other {what} "
                            f"(fingerprint {before}, now {after})",
                            "Bring the same back, or give this run a --name or --study of its own.")


def _write_samples(folder, data, each=2):
    """A few test images of each class, as the network sees them."""
    test = data.where("test")
    test = test[np.unique(data.groups[test], return_index=True)[1]]  # one image a lesion
    chosen = np.concatenate([test[data.labels[test] == k][:each] for k in range(len(data.class_names))])
    images = loader.image.centre_crop(data.pixels(chosen), data.size)
    write_npz(folder / "samples.npz", images=images, ids=data.ids[chosen])
    event_writer.image(folder / "tb", "samples", 0, images)
