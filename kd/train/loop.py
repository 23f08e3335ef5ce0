"""The whole of distillation, from a batch of images to the epoch whose weights are kept. Read `loss_of` and `train`.

Machinery stands elsewhere: kd/train/step.py prepares networks, objective and optimiser, kd/train/engine.py writes the
run's files and resumes it, kd/train/distributed.py adds up what several processes compute.
"""

import functools
import math
import time

import numpy as np
import torch

from kd import metrics
from kd.data import batching
from kd.errors import UserError
from kd.train import distributed
from kd.train.step import normalise_for


class Diverged(UserError):
    """The loss or the outputs of the network are no numbers any more: its last good checkpoint is worth something."""


def loss_of(step, batch, epoch):
    """The loss of a batch, of a part of it, or of the share of one of several processes; all parts and shares add up.

    step: kd.train.step.Step. batch: kd.data.batching.Batch. epoch: from 1. Returns the loss and {name: value} of its
    terms, scalar tensors, and the counts for LossMeter.
    """
    # The teacher sees the same views as the student, in eval mode and without gradients.
    with torch.no_grad():
        outputs = step.teacher_outputs(batch)

    # The student: logits, and the features of its stages where a loss reads them.
    outputs.update(step.student_outputs(batch.images))

    # The objective: alpha * hard + (1 - alpha) * soft + beta * attention + further terms.
    inputs = {**outputs, "labels": batch.labels, "index": batch.index.to(step.device), **step.constants(epoch)}
    loss, terms = step.objective(inputs, batch.whole)
    return loss, terms, step.objective.counts(inputs, batch.whole)


def train(step, data, options, seed, journal):
    """Train the student on the training split, with or without a teacher, and select its best epoch on validation.

    step: kd.train.step.Step, both networks with the objective and the optimiser. data: kd.data.loader.Data.
    options: those of the command line, resolved. journal: kd.train.engine.Journal, the epochs of the run so far.
    Raises Diverged where the loss is no longer a number.
    """
    forward = distributed.parallel(functools.partial(loss_of, step), [step.student.model, step.objective])
    steps_per_epoch = len(batching.batch_sizes(data, options["batch"], distributed.world(), step.unlabelled_ratio))
    steps = steps_per_epoch * options["epochs"]
    for epoch in journal.epochs():  # those that are left: a run that was stopped goes on after its last whole epoch
        start = time.monotonic()
        number = steps_per_epoch * (epoch - 1)  # of the step, counted over all epochs
        meter = LossMeter(epoch)
        step.begin_epoch(seed, epoch)

        # A batch: augmented views of the images. Every random number follows from seed, epoch and image.
        batches = batching.training_batches(
            data, batch=options["batch"], seed=seed, epoch=epoch, device=step.device, workers=options["workers"],
            views=step.views, size=step.size(epoch), other_sizes=step.teacher_sizes, share=distributed.share(),
            unlabelled_ratio=step.unlabelled_ratio, accumulate=options["accumulate"])
        for batch in batches:

            # Forward and backward. Of several processes each has a share of the batch, and backward gives the mean of
            # their gradients: that of the loss times their number is the gradient of the whole batch.
            with distributed.exchange(forward, now=batch.is_last):
                loss, terms, counts = forward(batch, epoch)
                step.scaler.scale(loss * distributed.world()).backward()

            # What is logged: the loss and each of its terms, as a mean over the images of the epoch.
            meter.add(number + 1, {"loss": loss.detach(), **terms}, counts)
            if not batch.is_last:  # with --accumulate it has several parts, whose gradients add up
                continue

            # The optimiser: AdamW; the gradient's norm is limited to `clip`, and the learning rate warms up and decays.
            step.scaler.unscale_(step.optimizer)
            if options["clip"]:
                torch.nn.utils.clip_grad_norm_(step.parameters, options["clip"])
            rate = schedule(number, steps, options["warmup"])
            step.set_learning_rate(rate)
            step.scaler.step(step.optimizer)  # with fp16 not where a gradient is too large for it
            step.scaler.update()
            step.optimizer.zero_grad(set_to_none=True)
            step.average_weights()
            number += 1
            journal.step_done()

        # Validation, with the running statistics of all processes. The teacher must be as it was.
        step.check_teacher()
        row = {"epoch": epoch, "lr": rate * options["lr"], **meter.means()}
        for prefix, network in step.networks().items():  # the student, and the average of its weights
            distributed.average_buffers(network.model)
            scores = validate(network, data, step.device)
            row.update({prefix + name: value for name, value in scores.items()})
        row["seconds"] = round(time.monotonic() - start, 2)

        # Selection: the weights of the epoch that is best on validation are kept; test is never looked at.
        journal.write(row)


def schedule(step, steps, warmup):
    """The learning rate of a step as a share of its peak: a linear rise, then half a cosine to 0.

    step: from 0; steps: of all epochs; warmup: the share of the steps in which it rises. Returns a float in [0, 1].
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class LossMeter:
    """Means over an epoch of the loss and its terms.

    Sums stay on the device. They are checked every INTERVAL steps only, since reading them makes the device wait.
    """

    INTERVAL = 20

    def __init__(self, epoch):
        self.epoch, self.copies = epoch, {}
        self.added, self.images, self.sums, self.first_bad = 0, 0, None, None

    def add(self, step, values, counts):
        """values: {name: scalar tensor} of a step, or of a part of it, `loss` first. step: its number, from 1 on.

        counts: of kd.objective.Objective.counts().
        """
        weights, images = np.array([counts[name] for name in values]).T
        row = torch.stack([value.float() for value in values.values()])
        row = row if row.device.type == "mps" else row.double()  # MPS has no float64
        if self.sums is None:
            self.names = list(values)
            self.sums = torch.zeros_like(row)
            self.first_bad = torch.full((1 + len(row),), -1.0, dtype=row.dtype, device=row.device)  # step, values
        self.added, self.images = self.added + 1, self.images + images
        self.sums += row * self._weights(tuple(weights.tolist()), row)
        is_first_bad = (self.first_bad[0] < 0) & ~torch.isfinite(row[0])
        self.first_bad = torch.where(is_first_bad, torch.cat([row.new_full((1,), step), row]), self.first_bad)
        if self.added % self.INTERVAL == 0:
            self.check_finite()

    def _weights(self, weights, row):
        """Weights as a tensor like `row`: the same one for all batches of a size, since a copy makes a GPU wait."""
        if weights not in self.copies:
            self.copies[weights] = row.new_tensor(weights)
        return self.copies[weights]

    def check_finite(self):
        """Raise Diverged, which names the first step whose loss was no number, and its terms."""
        step, *values = self.first_bad.tolist()
        if step >= 0:
            terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.names, values))
            raise Diverged(f"the loss is no longer a number at epoch {self.epoch}, "
                           f"step {int(step)}: {terms}", "A lower --lr often helps.")

    def means(self):
        """{name: mean over the images of all processes}."""
        self.check_finite()
        totals = torch.cat([self.sums, self.sums.new_tensor(self.images)])
        distributed.add_up([totals])
        sums, images = totals.reshape(2, -1).tolist()
        return {name: value / count for name, value, count in zip(self.names, sums, images)}


@torch.no_grad()
def predict(network, data, split, device, batch=256):
    """Logits [N, C] float32 of a split, in its order, in fp32 and eval mode; the mode is put back.

    Several processes predict a share each, and all return the whole.
    """
    model, training = network.model, network.model.training
    model.eval()
    parts = [model(normalise_for(images, network)).float().cpu().numpy() for images in batching.evaluation_batches(
        data, split, batch=batch, device=device, share=distributed.share())]
    model.train(training)
    shares = distributed.gather(np.concatenate(parts) if parts else None)
    classes = next(share.shape[1] for share in shares if share is not None)
    logits = np.empty((len(data.where(split)), classes), np.float32)
    for rank, share in enumerate(shares):
        if share is not None:
            logits[rank::len(shares)] = share
    return logits


def validate(network, data, device):
    """Loss, accuracy, macro-F1, balanced accuracy and macro AUROC on validation, as history.csv names them.

    The AUROC is missing where validation has images of one class alone. Raises Diverged where the network no longer
    gives numbers: the last step of an epoch can be the bad one.
    """
    logits = predict(network, data, "val", device)
    labels = data.labels[data.where("val")]
    probabilities = metrics.softmax(logits)
    counts = metrics.confusion(labels, logits.argmax(1), logits.shape[1])
    likelihood = probabilities[np.arange(len(labels)), labels].clip(1e-300)
    loss = float(-np.log(likelihood).mean())
    if not math.isfinite(loss):
        raise Diverged("the network no longer gives numbers on validation", "A lower --lr often helps.")
    auroc = float(metrics.mean_defined(metrics.auroc(labels, probabilities)))
    return {"val_loss": loss, "val_accuracy": float(metrics.accuracy(counts)),
            "val_macro_f1": float(metrics.macro_f1(counts)),
            "val_balanced_accuracy": float(metrics.balanced_accuracy(counts)),
            **({} if math.isnan(auroc) else {"val_macro_auroc": auroc})}
