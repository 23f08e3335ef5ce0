"""The training loop."""

import math

import numpy as np
import torch

from kd import metrics
from kd.data import loader
from kd.errors import UserError
from kd.train import distributed, teacher_cache
from kd.train.step import normalise_for


def schedule(step, steps, warmup):
    """Share of the peak learning rate: a linear rise over the share `warmup` of all steps, then half a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@torch.no_grad()
def predict(network, data, split, device, batch=256):
    """Logits [N, C] float32 of a split, in its order, in fp32 and eval mode; the mode is put back.

    Several processes predict a share each, and all return the whole.
    """
    model, training = network.model, network.model.training
    model.eval()
    parts = [model(normalise_for(images, network)).float().cpu().numpy()
             for images in loader.evaluation_batches(data, split, batch=batch, device=device, share=distributed.share())]
    model.train(training)
    shares = distributed.gather(np.concatenate(parts) if parts else None)
    logits = np.empty((len(data.where(split)), next(x for x in shares if x is not None).shape[1]), np.float32)
    for k, part in enumerate(shares):
        if part is not None:
            logits[k::len(shares)] = part
    return logits


def validate(network, data, device):
    """Loss, accuracy and macro-F1 on validation, with column names of history.csv."""
    logits = predict(network, data, "val", device)
    labels = data.labels[data.where("val")]
    probabilities = metrics.softmax(logits)
    counts = metrics.confusion(labels, logits.argmax(1), logits.shape[1])
    likelihood = probabilities[np.arange(len(labels)), labels].clip(1e-300)
    return {"val_loss": float(-np.log(likelihood).mean()), "val_accuracy": float(metrics.accuracy(counts)),
            "val_macro_f1": float(metrics.macro_f1(counts))}


def train_epoch(step, data, options, *, seed, epoch, steps_before, steps, bar):
    """One pass over the training split. Returns the mean of the loss and of each term."""
    step.student.model.train()
    # dropout, too, follows from seed and epoch, and differs between processes
    torch.manual_seed((seed * 1_000_003 + epoch) * distributed.world() + distributed.rank())
    sizes = loader.batch_sizes(len(data.where("train")), options["batch"], distributed.world())
    watch = LossMeter(epoch, steps_before)
    batches = loader.training_batches(
        data, batch=options["batch"], seed=seed, epoch=epoch, device=step.device, workers=options["workers"],
        kind=options["augment"], view=step.targets and teacher_cache.view(epoch, step.targets.views), share=distributed.share())
    for done, ((_, size), (images, labels, index)) in enumerate(zip(sizes, batches), steps_before):
        rate = schedule(done, steps, options["warmup"])
        loss, values = step(images, labels, index, epoch, rate, len(images) / size)
        watch({"loss": loss, **values}, len(images))
        bar.update()
    step.check_teacher()
    distributed.average_buffers(step.student.model)
    return {"lr": rate * options["lr"], **watch.means()}


class LossMeter:
    """Sums of a loss and its terms, kept on the device: they are looked at every INTERVAL steps, since a look makes the device wait."""

    INTERVAL = 20

    def __init__(self, epoch, steps_before):
        self.epoch, self.before, self.steps, self.count, self.sums, self.bad = epoch, steps_before, 0, 0, None, None

    def __call__(self, values, count):
        """values: {name: scalar tensor} of a step, `loss` first; count: images."""
        row = torch.stack([value.float() for value in values.values()])
        row = row if row.device.type == "mps" else row.double()  # MPS has no float64
        if self.sums is None:
            self.names = list(values)
            self.sums, self.bad = torch.zeros_like(row), torch.full((1 + len(row),), -1.0, dtype=row.dtype, device=row.device)
        self.steps, self.count = self.steps + 1, self.count + count
        self.sums += row * count
        first_bad = (self.bad[0] < 0) & ~torch.isfinite(row[0])
        self.bad = torch.where(first_bad, torch.cat([row.new_full((1,), self.steps), row]), self.bad)
        if self.steps % self.INTERVAL == 0:
            self.look()

    def look(self):
        """An error that names the first step whose loss was no number, and its terms."""
        bad = self.bad.tolist()
        if bad[0] >= 0:
            shown = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.names, bad[1:]))
            raise UserError(f"the loss is no longer a number at epoch {self.epoch}, step {self.before + int(bad[0])}: {shown}",
                            "A lower --lr often helps.")

    def means(self):
        """{name: mean over the images of all processes}."""
        self.look()
        totals = torch.cat([self.sums, self.sums.new_tensor([self.count])])
        distributed.add_up([totals])
        *sums, count = totals.tolist()
        return {name: value / count for name, value in zip(self.names, sums)}
