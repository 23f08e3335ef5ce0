"""Refined logit distillation, from a teacher that errs: --soft rld"""

from torch.nn.functional import log_softmax

from kd.losses import check_above_0, check_from_0, full, mean_kl, one_against_rest, one_label, ramp_up
from registry import register


@register("loss", "rld")
def rld(student_logits, teacher_logits, labels, epoch, epochs, *, alpha=1.0, beta=8.0, confidence_temperature=1.0,
        temperature=4.0, warmup=0.1):
    """KD from what of the teacher does not contradict the label. Sun et al. 2024 (2408.07703), sec. 4.

    r [alpha T_a^2 KL(b_t || b_s) + beta T^2 KL(m_t || m_s)], the mean over images. b_t = (max p_t, the rest) and
    b_s = (p_s,y, the rest) at T_a: the student is to be as sure of the label as the teacher is of its answer (the
    paper's sample confidence). m is the softmax at T over the classes whose teacher logit is below that of the label
    (its masked correlation), and there is no such term for an image whose label the teacher puts last.

    student_logits, teacher_logits: [N, C]. labels: int64 [N]; UserError for mixed ones. alpha, beta: from 0; of the
    paper's code 1 and 8. confidence_temperature, temperature: T_a and T, above 0; 1 and 4 there. warmup: r rises to 1
    over this share of the epochs; that code takes 20 of 240. It is added to cross-entropy with a weight of 1:
    --alpha 0.5. With kept targets exact up to their rounding, by which logits nearly equal to the label's may become
    equal: such a class is left out. Each image by itself: a small batch or several processes change nothing. Equal
    logits give 0 only where the teacher is right; with two classes the second part is 0.
    """
    check_from_0(alpha=alpha, beta=beta)
    check_above_0(confidence_temperature=confidence_temperature, temperature=temperature)
    classes = one_label(labels)
    student, teacher = full(student_logits), full(teacher_logits)
    confidence = mean_kl(one_against_rest(teacher / confidence_temperature, teacher.argmax(1)),
                         one_against_rest(student / confidence_temperature, classes))
    masked = teacher >= teacher.gather(1, classes[:, None])
    correlation = mean_kl(*(log_softmax((logits / temperature).masked_fill(masked, -1e9), dim=1)
                            for logits in (teacher, student)))
    return ramp_up(epoch, epochs, warmup) * (
        alpha * confidence_temperature ** 2 * confidence + beta * temperature ** 2 * correlation)
