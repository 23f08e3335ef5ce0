"""The losses of the objective: the cross-entropy family, knowledge distillation, attention transfer.

All compute in fp32 whatever the network ran in, and return the mean over the batch.
student_logits, teacher_logits: [N, C]; labels: [N] int64; class_counts: [C] training images a class.
"""

import torch
import torch.nn.functional as F

from kd.errors import UserError

STAGE_WEIGHTS = (1 / 3136, 1 / 784, 1 / 196, 1 / 49)  # 1 / (H W) of the four stages at 224 px


def _share(name, value):
    if not 0 <= value < 1:
        raise UserError(f"{name} is a number from 0 to below 1, not {value}")
    return value


def cross_entropy(student_logits, labels, *, smoothing=0.0):
    """Cross-entropy, with label smoothing (Szegedy et al. 2016, 1512.00567, sec. 7)."""
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=_share("smoothing", smoothing))


def focal(student_logits, labels, *, gamma=2.0):
    """-(1 - p_y)^gamma log p_y. Lin et al. 2017 (1708.02002), eq. 4."""
    if gamma < 0:
        raise UserError(f"gamma of the focal loss is a number from 0 on, not {gamma}")
    log_p = F.log_softmax(student_logits.float(), dim=1).gather(1, labels[:, None])[:, 0]
    return (-(1 - log_p.exp()).clamp(min=0).pow(gamma) * log_p).mean()


def effective_number_weights(class_counts, beta):
    """[C] weights (1 - beta) / (1 - beta^n_c), scaled to sum to C. Cui et al. 2019 (1901.05555), eq. 2."""
    counts = (class_counts.cpu() if class_counts.device.type == "mps" else class_counts).double()  # MPS has no float64
    beta = _share("beta", beta)
    weights = (1 - beta) / (1 - torch.pow(beta, counts))
    weights = torch.where(counts > 0, weights, torch.zeros_like(weights))
    return (weights * len(counts) / weights.sum()).float().to(class_counts.device)


def class_balanced(student_logits, labels, class_counts, *, beta=0.999, smoothing=0.0):
    """Cross-entropy weighted by the effective number of images a class. Cui et al. 2019, eq. 3."""
    losses = F.cross_entropy(student_logits.float(), labels, reduction="none", label_smoothing=_share("smoothing", smoothing))
    return (effective_number_weights(class_counts, beta)[labels] * losses).mean()


def logit_adjusted(student_logits, labels, class_counts, *, tau=1.0, smoothing=0.0):
    """Cross-entropy of logits + tau log prior. Menon et al. 2021 (2007.07314), eq. 10."""
    counts = class_counts.float().clamp(min=0.5)
    prior = counts / counts.sum()
    return F.cross_entropy(student_logits.float() + tau * prior.log(), labels, label_smoothing=_share("smoothing", smoothing))


def knowledge_distillation(student_logits, teacher_logits, *, temperature=4.0):
    """T^2 KL(p_t || p_s) at temperature T, summed over classes. Hinton et al. 2015 (1503.02531), sec. 2.

    T^2 keeps the gradient's size when T changes, and so the meaning of alpha.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature ** 2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def attention(feature):
    """Where a stage looks: the mean over channels of the squared feature [N, C, H, W], of length 1. -> [N, H, W]."""
    maps = feature.float().pow(2).mean(1)
    return F.normalize(maps.flatten(1), dim=1).view_as(maps)


def attention_transfer(student_attention, teacher_attention, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Squared distance of normalised spatial attention, summed over stages.

    student_attention, teacher_attention: four [N, H, W] each, one a stage, as attention() gives them;
    where H, W differ the larger map is average-pooled to the smaller.
    Per stage weights[s] * w_s * mean over n of ||q_s - q_t||^2 with w_s = 1/3136, 1/784,
    1/196, 1/49: the element mean at 224 px, and so the same loss at any input size.
    Returns a scalar tensor. Zagoruyko & Komodakis 2017 (1612.03928), eq. 2.
    """
    total = 0
    for student, teacher, weight, unit in zip(student_attention, teacher_attention, weights, STAGE_WEIGHTS,
                                              strict=True):
        size = [min(pair) for pair in zip(student.shape[1:], teacher.shape[1:])]
        student, teacher = (F.adaptive_avg_pool2d(maps, size).flatten(1) for maps in (student, teacher))
        distance = (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).pow(2).sum(1).mean()
        total = total + weight * unit * distance
    return total
