"""Balanced knowledge distillation, for long-tailed classes: --soft bkd"""

from kd.losses import check_above_0, effective_number_weights, full, knowledge_distillation
from registry import register


@register("loss", "bkd")
def bkd(student_logits, teacher_logits, class_counts, *, beta=0.9999, temperature=2.0):
    """KD from the teacher's probabilities times class weights, renormalised. Zhang et al. 2021 (2104.10510), sec. 3.

    T^2 KL(q || p_s), the mean over images, with q = w p_t / sum over c of w_c p_t,c and p the softmax at T. The weights
    are those of the effective number, w_c = (1 - beta) / (1 - beta^n_c), Cui et al. 2019 (1901.05555), eq. 2. This is
    KD from the logits t + T log w.

    student_logits, teacher_logits: [N, C]. class_counts: [C], training images of each class; the target of a class
    without any is 0. beta: from 0, for plain KD, to below 1; the authors' code has .9999, with which w is nearly
    1 / n_c for a few thousand images; .999 is milder. temperature: T, above 0; 2 there. The paper adds it to
    cross-entropy with weights of 1 each: --alpha 0.5. A teacher or student with logit adjustment is corrected already.
    Exact with kept targets up to their rounding. Each image by itself: a small batch or several processes change
    nothing. Not 0 for equal logits unless all classes have as many images.
    """
    check_above_0(temperature=temperature)
    log_weights = effective_number_weights(class_counts, beta).clamp(min=1e-30).log()
    return knowledge_distillation(student_logits, full(teacher_logits) + temperature * log_weights,
                                  temperature=temperature)
