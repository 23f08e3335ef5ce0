"""Parts of training without a run folder: a kd.train.step.Step of two networks, and kd/train/loop.py for one epoch."""

from unittest import mock

import registry
from kd import objective
from kd.data import batching
from kd.train import loop, networks, teacher_cache
from kd.train.step import Step, memory_format


class Epoch:
    """Takes the place of kd.train.engine.Journal: a single epoch, without files."""

    def __init__(self, number=1):
        self.number = number

    def epochs(self):
        yield self.number

    def step_done(self):
        pass

    def write(self, row):
        pass


def make_step(student, teacher, data, options, device, precision, targets_folder=None):
    """The Step of a distillation: student and teacher on the device, the teacher folded as setup.load_teacher does.

    targets_folder: where the teacher's targets of one view are, if they come from disk; call targets.build() for them.
    """
    networks.fold_batch_norm(teacher.model.eval())
    for network in (student, teacher):
        network.model.to(device, memory_format=memory_format(device))
    terms = objective.plan(options, lambda name: registry.get("loss", name).make)
    targets = None
    if targets_folder:
        options = {**options, "teacher_cache": 1, "precision": precision, "device": str(device)}
        targets = teacher_cache.kept(targets_folder, teacher, data, options, objective.needed(terms))
    return Step(student, teacher, terms, data, options, device, precision, targets)


def train_on(batches, step, data, options):
    """Train on `batches`, an iterator over Batch, with a Step; there is no validation.

    The learning rate is that of a single epoch of `data`, however many batches there are.
    """
    validation = {"val_loss": 0.0, "val_accuracy": 0.0, "val_macro_f1": 0.0}
    with mock.patch.object(batching, "training_batches", lambda *_, **options: batches), \
            mock.patch.object(loop, "validate", lambda *_: validation):
        loop.train(step, data, {**options, "epochs": 1}, 0, Epoch())
