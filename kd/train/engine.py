"""The training engine, one for teacher and student: from a network and its data to a finished run folder.

kd/train/loop.py trains; here are the files of the run, and resuming. Every random number follows from the seed, the
epoch and the image, and `last.pt` is written after each epoch: a run that is killed anywhere and started again ends
with the weights of the unbroken run, bit for bit on a CPU.
"""

import contextlib
import datetime
import math
import sys
from pathlib import Path

import numpy as np
import torch

from kd import event_writer, image, machine, plugins, runs, selection, text
from kd.data import batching, splits
from kd.errors import UserError, draws, progress
from kd.files import lock, read_json, write_csv, write_json, write_npz, write_yaml
from kd.train import checkpoint, distributed, loop, networks
from kd.train.options import claim_folder
from kd.train.step import Step, memory_format, multiplies_in_bf16
from kd.train.weights import safe_load


def device_and_precision(options):
    """(torch.device, "fp32", "bf16" or "fp16"): --device and --precision with `auto` resolved.

    bf16 only where the hardware multiplies in it, since elsewhere it is slower; fp16 on GPUs that multiply in no other
    half precision (Volta and Turing, compute capability 7).
    """
    device, precision = networks.device(options["device"]), options["precision"]
    if precision == "auto":
        has_fp16 = device.type == "cuda" and torch.cuda.get_device_capability() >= (7, 0)
        precision = "bf16" if multiplies_in_bf16(device) else "fp16" if has_fp16 else "fp32"
    return device, precision


def run(folder, student, terms, data, options, *, seed, teacher=None, targets=None, role, provenance):
    """Train one network into a run folder, go on with a run that was stopped, or leave a finished one as it is.

    student, teacher: kd.train.networks.Network. terms: of kd.objective.plan. options: resolved, as config.yaml has
    them. targets: kd.train.teacher_cache.Targets, where the teacher's outputs come from disk. role: "teacher" or
    "student", what this network is. provenance: plain values for the checkpoint. Returns the folder. Raises UserError
    where the folder was made with other options, data or teacher, and where the loss is no longer a number.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        def open_folder():
            stack.enter_context(lock(folder / ".lock", what=str(folder)))
            return _open_folder(folder, options, role, data, teacher, provenance.get("init"))

        new, finished = distributed.by_first(open_folder)
        if finished:
            return folder
        machine.keep_memory()  # not before, since decoding images needs it only once
        device = torch.device(options["device"])
        for network in (student, *(teacher.members if teacher else ())):
            network.model.to(device, memory_format=memory_format(device))
        step = Step(student, teacher, terms, data, options, device, options["precision"], targets)
        if targets:
            distributed.by_first(lambda: targets.build(step.teacher_forward, batch=4 * options["batch"], device=device,
                                                       workers=options["workers"]))
        if new and distributed.first():
            _describe(folder, student, step, data, options, role, provenance.get("init"))
        print(f"{folder}: {step.objective.formula}")
        print(f"{folder}: {step.describe()}")

        def save_best(network):
            checkpoint.save(
                folder / "best.pt", network.model, arch=student.arch, stem=student.stem, class_names=data.class_names,
                input=input_of(student, data),
                provenance={**provenance, "tau": step.taus["student_tau"], "epoch": len(journal.rows),
                            "run": "/".join(runs.in_tree(folder.resolve())),
                            "data": data.fingerprint, "split": data.split_fingerprint, "seen": splits.seen_by(data)})

        with Journal(folder, step, data, options, role, save_best) as journal:
            try:
                loop.train(step, data, options, seed, journal)
            except loop.Diverged as error:
                raise UserError(error.message, error.hint + journal.last_checkpoint()) from None
        step.close()  # what is kept is predicted by the network as it will be loaded
        best = distributed.by_first(lambda: checkpoint.read(folder / "best.pt")["state_dict"])
        checkpoint.load_state(student.model, best, folder / "best.pt")
        _write_predictions(folder, student, data, device)
        distributed.by_first((folder / "last.pt").unlink)
    return folder


def _open_folder(folder, options, role, data, teacher, init):
    """(whether the run is new, whether it is finished) of a locked folder; what a kill left behind is deleted."""
    new = claim_folder(folder, options, role)
    if not new:
        _check_same_beginning(folder, data, teacher, init)
    if runs.finished(folder):
        (folder / "last.pt").unlink(missing_ok=True)
        print(f"{folder}: finished already, left as it is")
        return new, True
    for temporary in folder.rglob(".*.tmp"):  # of a write that a kill cut short
        temporary.unlink()
    return new, False


class Journal:
    """The epochs of a run: those that are done, read from last.pt, and the files that each further one writes.

    A context manager that loads the networks' state from last.pt, and keeps the progress bar and TensorBoard's file.
    Where the bar or what is printed is not on a terminal (a pipe, a file, a batch system), each epoch prints a line.
    """

    def __init__(self, folder, step, data, options, role, save_best):
        self.folder, self.step, self.options, self.role, self.save_best = folder, step, options, role, save_best
        self.rows = []  # of history.csv, one an epoch
        self.steps_per_epoch = steps_per_epoch(step, data, options)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self._resume()
        first, done = distributed.first(), len(self.rows)
        if first:
            self.log = self.stack.enter_context(event_writer.opened(self.folder / "tb", done))
        self.bar = self.stack.enter_context(progress(
            description=self.folder.parent.name, unit="step", shown=first and draws(sys.stderr),
            initial=self.steps_per_epoch * done, total=self.steps_per_epoch * self.options["epochs"]))
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def _resume(self):
        """Load last.pt, where there is one, into student, objective and optimiser."""
        last = self.folder / "last.pt"
        way_out = f"Delete {last}, and the same command begins anew."

        def read_last():
            if not last.exists():
                return None
            if not (self.folder / "best.pt").exists():
                raise UserError(f"{self.folder} has last.pt but no best.pt to go on with", way_out)
            return safe_load(last)

        state = distributed.by_first(read_last)
        if state is None:
            return
        try:
            checkpoint.load_state(self.step.student.model, state["model"], last)
            self.step.objective.load_state_dict(state["objective"])
            if self.step.average:
                self.step.average.load_state_dict(state["average"])
            _load_optimizer(self.step.optimizer, state["optimizer"])
            if self.step.scaler.is_enabled():
                _load_scaler(self.step.scaler, state["scaler"])
            self.rows = state["history"]
            if [row["epoch"] for row in self.rows] != list(range(1, 1 + len(self.rows))) or not all(
                    text.is_defined(value) for row in self.rows for value in row.values()):
                raise ValueError
        except UserError as error:
            raise UserError(error.message, way_out) from None
        except Exception as error:  # a file of unknown origin may hold anything
            raise UserError(f"{last} is not the state of this run", way_out) from error
        print(f"{self.folder}: going on after epoch {len(self.rows)}")

    def epochs(self):
        """Yield the numbers of the epochs that are left, from 1; fewer where --patience ends the run early."""
        while len(self.rows) < self.options["epochs"]:
            best = selection.best(self.rows, self.options["select"])
            waited = len(self.rows) - (0 if best is None else best + 1)
            if waited >= self.options["patience"]:
                print(f"{self.folder}: no better {selection.named(self.options['select'])} in {waited} epochs, "
                      f"stopped after epoch {len(self.rows)}")
                break
            yield len(self.rows) + 1
        if distributed.first():
            write_csv(self.folder / "history.csv", self.rows)  # a kill after last.pt leaves it a row short

    def step_done(self):
        """Move the progress bar."""
        self.bar.update()

    def write(self, row):
        """Write an epoch: its row of history.csv, last.pt, and best.pt where it is the best so far."""
        self.rows.append(row)
        metric = self.options["select"]
        value, prefix = selection.score(row, metric)
        if distributed.first():
            is_best = selection.best(self.rows, metric) == len(self.rows) - 1
            if is_best:  # before last.pt: an epoch that last.pt counts has left its best.pt
                self.save_best(self.step.networks()[prefix])
            average = {"average": self.step.average.state_dict()} if self.step.average else {}
            checkpoint.save_tensors(self.folder / "last.pt", {
                "model": self.step.student.model.state_dict(), "objective": self.step.objective.state_dict(),
                "optimizer": self.step.optimizer.state_dict(), "scaler": self.step.scaler.state_dict(), **average,
                "history": self.rows})
            write_csv(self.folder / "history.csv", self.rows)
            self.log(row)
            if not (draws(sys.stderr) and draws(sys.stdout)):
                self.bar.clear()
                print(self._line(row, is_best), flush=True)
        self.bar.set_postfix({f"val_{metric}": f"{abs(value):.3f}"}, refresh=False)

    def _line(self, row, is_best):
        """An epoch in one line: mean loss of training, metrics on validation, time, and time until the last epoch."""
        model, epochs = "/".join(runs.describe(self.folder)[1:]), self.options["epochs"]
        scores = [f"{name} {value:.3f}" for name, value in selection.kept(row, self.options["select"]).items()
                  if name == "loss" or name.startswith("val_")]
        recent = self.rows[-3:]  # with --size-from the first epochs are short
        left = sum(row["seconds"] for row in recent) / len(recent) * (epochs - row["epoch"])
        return "  ".join([f"{model}: epoch {row['epoch']}/{epochs}", *scores, f"{row['seconds']:.1f} s",
                          f"{text.format_duration(left)} left", *(["best so far"] if is_best else [])])

    def last_checkpoint(self):
        """A sentence on the last good checkpoint, and how to go on from it; '' where there is none."""
        if not self.rows:
            return ""
        best, script = self.folder / "best.pt", runs.SCRIPTS[self.role]
        pretrained = ["--weights", "none"] if self.options["weights"] != "none" else []  # --init takes their place
        return " To go on from the last good checkpoint: " + text.command(
            script, "--config", self.folder / "config.yaml", "--init", best, "--lr", f"{self.options['lr'] / 10:g}",
            "--name", f"{self.folder.resolve().parent.name}_lower_lr", *pretrained)


def steps_per_epoch(step, data, options):
    """The batches of an epoch, of all processes together."""
    return len(batching.batch_sizes(data, options["batch"], distributed.world(), step.unlabelled_ratio))


def _load_optimizer(optimizer, state):
    """optimizer.load_state_dict(); ValueError where the state is not of such an optimiser of these parameters."""
    def settings():  # the learning rate is set in each step
        return [{key: group[key] for key in group.keys() - {"params", "lr"}} for group in optimizer.param_groups]

    before = settings()
    optimizer.load_state_dict(state)
    if settings() != before or not all(
            value.shape in (parameter.shape, ()) for parameter, values in optimizer.state.items()
            for value in (values["step"], values["exp_avg"], values["exp_avg_sq"])):
        raise ValueError


def _load_scaler(scaler, state):
    """scaler.load_state_dict(); ValueError where the state is not of a torch.amp.GradScaler."""
    if state.keys() != scaler.state_dict().keys() or not all(
            type(value) in (int, float) and 0 <= value < math.inf for value in state.values()):
        raise ValueError
    scaler.load_state_dict(state)


def _write_predictions(folder, network, data, device):
    """samples.npz, and the logits of validation and test."""
    if distributed.first():
        _write_samples(folder, data)
    for split in ("val", "test"):  # test.npz comes last: it says that the run is finished
        rows, logits = data.where(split), loop.predict(network, data, split, device)
        if distributed.first():
            write_npz(folder / "predictions" / f"{split}.npz", ids=data.ids[rows], labels=data.labels[rows],
                      logits=logits, groups=data.shown_groups(rows), class_names=np.array(data.class_names))


def input_of(network, data):
    """How pixels become what `network` computes on, as checkpoint and environment.json record it."""
    return {**data.input(), "mean": list(network.mean), "std": list(network.std)}


def _describe(folder, student, step, data, options, role, init):
    """The files that a run begins with; config.yaml last, since it marks the folder as taken."""
    write_csv(folder / "split.csv", data.table())
    write_json(folder / "environment.json", {
        **machine.environment(), "device": str(step.device), "precision": step.precision, "role": role,
        "processes": distributed.world(),
        "plugins": plugins.record(options["plugin"]), "steps_per_epoch": steps_per_epoch(step, data, options),
        "teacher": step.teacher_fingerprint, **step.teacher_record(), "init": init, "input": input_of(student, data),
        "arch": student.arch, "parameters": networks.parameters(student.model), "formula": step.objective.formula,
        "data": {"name": data.name, "synthetic": data.synthetic, "images": len(data.ids),
                 "classes": data.class_names, "groups": len(set(data.groups)) if data.grouped else None,
                 "fingerprint": data.fingerprint, "split": data.split_fingerprint, "skipped": data.skipped,
                 **({"labelled": labelled} if (labelled := data.label_counts()) else {}),
                 **({"unlabelled": data.unlabelled.record(), "unlabelled_fingerprint": data.unlabelled.fingerprint}
                    if data.unlabelled else {})},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")})
    write_yaml(folder / "config.yaml", options)


def _check_same_beginning(folder, data, teacher, init):
    """A run goes on only with the data, the split, the teacher and the --init that it was begun with; else UserError.

    init: what kd.train.setup.origin() says of --init, or None.
    """
    init = init and init["weights"]
    try:
        begun = read_json(folder / "environment.json")
        old = begun["data"]["fingerprint"], begun["data"]["split"], begun["teacher"]
        old += (begun["init"] and begun["init"]["weights"]) if "init" in begun else init,  # older versions have none
        old += begun["data"].get("unlabelled_fingerprint"),
    except (KeyError, TypeError, UserError):
        raise UserError(f"{folder / 'environment.json'} is missing or damaged",
                        "Restore it, or delete the folder, and the run begins anew.") from None
    now = data.fingerprint, data.split_fingerprint, teacher.fingerprint if teacher else None, init, (
        data.unlabelled.fingerprint if data.unlabelled else None)
    for what, before, after in zip(("other data", "other groups or split", "another teacher", "another --init",
                                    "other images without labels"), old, now):
        if before != after:
            raise UserError(f"{folder} was begun with {what} "
                            f"(fingerprint {before}, now {after})",
                            "Bring the same back, or give this run a --name or --study of its own.")


def _write_samples(folder, data, each=2):
    """A few test images of each class, as the network sees them."""
    test = data.where("test")
    test = test[np.unique(data.groups[test], return_index=True)[1]]  # one image a lesion
    chosen = np.concatenate([test[data.labels[test] == k][:each] for k in range(len(data.class_names))])
    pixels = image.centre_crop(data.pixels(chosen), data.size)
    write_npz(folder / "samples.npz", images=pixels, ids=data.ids[chosen])
    event_writer.image(folder / "tb", "samples", 0, pixels)
