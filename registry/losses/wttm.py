"""Weighted matching of a transformed teacher: --term wttm=45"""

from torch.nn.functional import log_softmax

from kd.losses import check_above_0, full
from registry import register


@register("loss", "wttm")
def wttm(student_logits, teacher_logits, *, gamma=0.1):
    """The teacher is smoothed by a power, the student has no temperature. Zheng & Yang 2024 (2402.11148), sec. 3, 4.

    The mean over images of U KL(q || p_s): q = p_t^gamma / U with U = sum over c of p_t,c^gamma, p the softmax at T of
    1. So q is the softmax at the temperature 1 / gamma, and an image on which the teacher is unsure counts more, up to
    C^(1 - gamma).

    student_logits, teacher_logits: [N, C]. gamma: above 0; at 1 it is kd at T = 1. An example of the paper's code has
    .1 with the weight 45 beside cross-entropy of weight 1; both are chosen for each pair. Exact with kept targets up to
    their rounding. Each image by itself: a small batch or several processes change nothing. Not 0 for equal logits
    unless gamma is 1. Equal teacher logits have q even and the largest U.
    """
    check_above_0(gamma=gamma)
    powers = gamma * log_softmax(full(teacher_logits), dim=1)
    target, student = log_softmax(powers, dim=1), log_softmax(full(student_logits), dim=1)
    divergence = (target.exp() * (target - student)).sum(1)
    return (powers.logsumexp(1).exp() * divergence).mean()
