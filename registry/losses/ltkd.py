"""Long-tailed distillation from a biased teacher: --soft ltkd"""

import torch
from torch import nn
from torch.nn.functional import log_softmax

from kd.losses import check_above_0, check_from_0, full, mean_kl
from registry import register


def groups(class_counts):
    """Head, medium and tail: the classes in equal thirds of the range of log n_c, lists of class numbers.

    class_counts: [C]. Of HAM10000: {nv}, {mel, bkl, bcc}, {akiec, vasc, df}. A group without classes is left out; a
    class without training images belongs to the tail; a count on a border to the larger group.
    """
    counts = class_counts.cpu().double()
    logs = counts.clamp(min=float(counts[counts > 0].min())).log()
    third = 3 * (logs - logs.min()) / (logs.max() - logs.min()).clamp(min=1e-9) + 1e-6
    thirds = third.floor().clamp(max=2).tolist()
    members = [[c for c, k in enumerate(thirds) if k == number] for number in (2, 1, 0)]
    return [group for group in members if group]


@register("loss", "ltkd")
class LTKD(nn.Module):
    """KD in two parts, between groups of classes and within them, both balanced. Kim 2026 (2506.18496), CVPR 2026.

    With P_G the sum of p over a group of classes and ~p = p / P_G within it, KD is exactly
    KL(P_t || P_s) + sum over G of P_t,G KL(~p_t || ~p_s). Here P_t is replaced by w_G P_t,G, renormalised for each
    image, and the weights P_t,G of the second part by 1: T^2 [alpha KL(P'_t || P_s) + beta sum over G of
    KL(~p_t || ~p_s)], the mean over images, with p the softmax at T.

    Our reading, as only the abstract and notes on the paper could be read, and no code: w_G makes the groups' masses
    equal, each the mean of P_t,G over the images of the epoch so far (the notes: over the batch); alpha = beta = 1;
    T = 4; and the groups, which the notes take as thirds of the sorted classes: 7 classes are too few for that.

    student_logits, teacher_logits: [N, C]. class_counts: [C], see groups(). epoch: at a new one the means start anew.
    alpha, beta: from 0. temperature: above 0. Exact with kept targets up to their rounding. What depends on the batch
    is w_G: in the first batches of an epoch it is noisy (with one image P'_t is even), and each of several processes
    takes the mean over its own images. A mass below 1e-6 counts as 1e-6. With one group it is beta * kd. Not 0 for
    equal logits.
    """

    def __init__(self, shapes, *, alpha=1.0, beta=1.0, temperature=4.0):
        super().__init__()
        check_from_0(alpha=alpha, beta=beta)
        check_above_0(temperature=temperature)
        self.alpha, self.beta, self.temperature, self.groups = alpha, beta, temperature, None
        self.register_buffer("state", torch.zeros(5))  # epoch, images, masses of up to 3 groups

    def forward(self, student_logits, teacher_logits, class_counts, epoch):
        self.groups = self.groups or groups(class_counts)
        student, teacher = (log_softmax(full(logits) / self.temperature, dim=1)
                            for logits in (student_logits, teacher_logits))
        between = [torch.stack([log_p[:, group].logsumexp(1) for group in self.groups], dim=1)
                   for log_p in (teacher, student)]
        balanced = log_softmax(between[0] - self._masses(between[0].exp(), epoch).log(), dim=1)
        within = sum(mean_kl(log_softmax(teacher[:, group], dim=1), log_softmax(student[:, group], dim=1))
                     for group in self.groups)
        return self.temperature ** 2 * (self.alpha * mean_kl(balanced, between[1]) + self.beta * within)

    @torch.no_grad()
    def _masses(self, shares, epoch):
        """[G] the mean mass of each group over the images of the epoch so far, those of `shares` [N, G] included."""
        self.state *= self.state[0] == epoch
        self.state[0] = epoch
        self.state[1] += len(shares)
        self.state[2:2 + shares.shape[1]] += shares.sum(0)
        return (self.state[2:2 + shares.shape[1]] / self.state[1]).clamp(min=1e-6).to(shares.dtype)
