"""Decoupled knowledge distillation: --soft dkd,beta=8"""

from torch.nn.functional import log_softmax

from kd.losses import check_above_0, check_from_0, full, mean_kl, one_against_rest, one_label, others, ramp_up
from registry import register


@register("loss", "dkd")
def dkd(student_logits, teacher_logits, labels, epoch, epochs, *, alpha=1.0, beta=8.0, temperature=4.0, warmup=0.1):
    """KD in two parts, the label against the rest and the rest among itself. Zhao et al. 2022 (2203.08679), sec. 3.

    r T^2 [alpha KL(b_t || b_s) + beta KL(n_t || n_s)], the mean over images. b = (p_y, 1 - p_y) is the softmax at T of
    the label and of the rest (the paper's TCKD), n the softmax at T over the classes other than the label (its NCKD).
    KD itself is TCKD + (1 - p_t,y) NCKD, so that NCKD counts little where the teacher is sure.

    student_logits, teacher_logits: [N, C]. labels: int64 [N]; UserError for mixed ones. alpha, beta: from 0; the paper
    has 1 and, of pair to pair, 1 to 8. temperature: T, above 0; the paper's is 4. warmup: r rises to 1 over this share
    of the epochs; the paper's code takes 20 of 240. The paper adds it to cross-entropy with weights of 1 each:
    --alpha 0.5. Exact with kept targets up to their rounding. Each image by itself: a small batch or several processes
    change nothing. Equal logits give 0; with two classes NCKD is 0.
    """
    check_from_0(alpha=alpha, beta=beta)
    check_above_0(temperature=temperature)
    classes = one_label(labels)
    student, teacher = full(student_logits) / temperature, full(teacher_logits) / temperature
    target = mean_kl(one_against_rest(teacher, classes), one_against_rest(student, classes))
    rest = mean_kl(*(log_softmax(others(logits, classes), dim=1) for logits in (teacher, student)))
    return ramp_up(epoch, epochs, warmup) * temperature ** 2 * (alpha * target + beta * rest)
