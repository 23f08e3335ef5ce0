"""The losses of the objective: cross-entropy, knowledge distillation, attention transfer.

All compute in fp32 whatever the network ran in, and return the mean over the batch.
student_logits, teacher_logits: [N, C]; labels: [N] int64.
"""

import torch.nn.functional as F

from kd.errors import UserError

STAGE_WEIGHTS = (1 / 3136, 1 / 784, 1 / 196, 1 / 49)  # 1 / (H W) of the four stages at 224 px


def check_share(name, value):
    """`value`, a share from 0 to below 1; UserError of the hyperparameter `name` otherwise."""
    if not 0 <= value < 1:
        raise UserError(f"{name} is a number from 0 to below 1, not {value}")
    return value


def cross_entropy(student_logits, labels, *, smoothing=0.0):
    """Cross-entropy, with label smoothing (Szegedy et al. 2016, 1512.00567, sec. 7)."""
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=check_share("smoothing", smoothing))


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
