"""KD that agrees with logit adjustment: --hard logit_adjusted,tau=0.5 --soft prior_kd"""

from kd.losses import check_above_0, full, knowledge_distillation, log_prior
from registry import register


@register("loss", "prior_kd")
def prior_kd(student_logits, teacher_logits, class_counts, student_tau, teacher_tau, *, temperature=4.0):
    """KD from t + (tau_t - tau_s) log prior, what the teacher would say had it been trained with the student's tau.

    Derived in this project, from no paper: cross-entropy on z + tau log prior ends at z = log p(y | x) - tau log prior
    (Menon et al. 2021, 2007.07314, eq. 10), so the logits of one trained with tau_t are turned into those of tau_s by
    adding (tau_t - tau_s) log prior. Without it a teacher of plain cross-entropy pulls a student against its own
    --hard logit_adjusted. The prior is the share of the training images, where a class without any has half an image.

    student_logits, teacher_logits: [N, C]. class_counts: [C]. student_tau, teacher_tau: of the logit adjustment that
    each is trained with, 0 for none; where they are equal this is kd. temperature: T of KD, above 0; 4 as there. Exact
    with kept targets up to their rounding. Each image by itself: a small batch or several processes change nothing.
    Not 0 for equal logits where the taus differ.
    """
    check_above_0(temperature=temperature)
    teacher = full(teacher_logits) + (teacher_tau - student_tau) * log_prior(class_counts)
    return knowledge_distillation(student_logits, teacher, temperature=temperature)
