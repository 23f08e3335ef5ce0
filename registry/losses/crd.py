"""Contrastive representation distillation: --term crd=0.8"""

import math

import torch
from torch import nn
from torch.nn.functional import logsigmoid, normalize

from kd.losses import check_above_0, check_share, full, one_label
from registry import register


@register("loss", "crd")
class CRD(nn.Module):
    """Tell the teacher's view of the same image from those of images of other labels. Tian et al. 2020 (1910.10699).

    Both networks' pooled features are embedded by a linear layer and scaled to length 1, f_s and f_t. With
    h = exp(f_s f_t / tau) / Z, sec. 3.1 and 3.2: -log h / (h + K/n) for the same image, summed with
    -log (1 - h / (h + K/n)) over K negatives; the mean over images; and the same with the roles exchanged. The other
    side comes from a memory of n images, which moves with each image seen: m <- momentum m + (1 - momentum) f,
    to length 1. Z is n times the mean of exp(f_s f_t / tau) in the first batch, and fixed from then on.

    student_pooled, teacher_pooled: [N, D], where D may differ. labels: int64 [N]; UserError for mixed ones. index: [N],
    positions among the n labelled training images. dim 128, temperature (tau) .07, momentum .5 and negatives 16384 are
    the paper's; its weight is .8 beside cross-entropy of 1. K = min(negatives, n), drawn with replacement from the
    images known to have other labels and from those not seen yet, whose memory is a random direction; where there is
    none of either, from the same label. The layers and the memory, 8 n dim bytes, are kept for resuming, and are no
    part of the student. Exact with kept pooled features up to their rounding. The memory and so the loss depend on the
    order of batches; each of several processes has a memory of its own, of the images of its share, and a resumed run
    gives that of the first to all. Features of 0 are embedded by the bias alone.
    """

    def __init__(self, shapes, *, dim=128, negatives=16384, temperature=0.07, momentum=0.5):
        super().__init__()
        check_above_0(dim=dim, negatives=negatives, temperature=temperature)
        self.temperature, self.momentum = temperature, check_share("momentum", momentum)
        count, = shapes["index"]
        self.negatives = min(negatives, count)
        self.student, self.teacher = (nn.Linear(shapes[f"{role}_pooled"][1], dim) for role in ("student", "teacher"))
        for side in ("student_memory", "teacher_memory"):
            self.register_buffer(side, normalize(torch.randn(count, dim), dim=1))
        self.register_buffer("labels", torch.full((count,), -1))  # of the images in the memory; -1: not seen yet
        self.register_buffer("z", torch.zeros(2))  # of both directions; 0 before the first batch

    def forward(self, student_pooled, teacher_pooled, labels, index):
        self.labels[index] = one_label(labels)
        rows = torch.cat([index[:, None], self._draw(labels)], dim=1)  # [N, 1 + K], the image itself first
        student = normalize(self.student(full(student_pooled)), dim=1)
        teacher = normalize(self.teacher(full(teacher_pooled)), dim=1)
        loss = self._contrast(student, self.teacher_memory, rows, 0) + self._contrast(
            teacher, self.student_memory, rows, 1)
        with torch.no_grad():
            for memory, side in ((self.student_memory, student), (self.teacher_memory, teacher)):
                moved = self.momentum * memory[index] + (1 - self.momentum) * side
                memory[index] = normalize(moved, dim=1).to(memory.dtype)
        return loss

    def _draw(self, labels):
        """[N, K] rows of the memory for images with these labels, none of the same label."""
        order = self.labels.argsort(stable=True)  # each label is a block of it, which is passed over
        start, end = (torch.searchsorted(self.labels[order], labels, right=right)[:, None] for right in (False, True))
        free = len(order) - (end - start)
        drawn = torch.rand(len(labels), self.negatives, device=labels.device)
        place = torch.minimum((drawn * free).long(), free - 1)
        return order[place + (place >= start) * (end - start)]

    def _contrast(self, embedded, memory, rows, direction):
        """The contrast of embedded [N, dim] with a memory [n, dim], a scalar tensor; sets Z in the first batch."""
        # A copy, since the memory moves on before the backward pass reads it.
        scores = (embedded @ memory.clone().to(embedded.dtype).T).gather(1, rows) / self.temperature
        with torch.no_grad():
            z, estimate = self.z[direction], scores.exp().mean() * len(memory)
            self.z[direction] = torch.where(z > 0, z, estimate)
        log_odds = scores - self.z[direction].log() - math.log(self.negatives / len(memory))
        return -(logsigmoid(log_odds[:, 0]) + logsigmoid(-log_odds[:, 1:]).sum(1)).mean()
