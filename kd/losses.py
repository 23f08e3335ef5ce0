"""The losses of the objective: cross-entropy, knowledge distillation, attention transfer.

Each computes in fp32, whatever precision the network ran in, and returns a scalar tensor: the mean over the batch.
Further methods are in registry/losses/, one file each.
"""

import torch.nn.functional as F

from kd.errors import UserError

STAGE_WEIGHTS = (1 / 3136, 1 / 784, 1 / 196, 1 / 49)  # 1 / (H W) of the four stages at 224 px


def check_share(name, value):
    """`value` if it is from 0 to below 1; otherwise a UserError about the hyperparameter `name`."""
    if not 0 <= value < 1:
        raise UserError(f"{name} is a number from 0 to below 1, not {value}")
    return value


def cross_entropy(student_logits, labels, *, smoothing=0.0):
    """Cross-entropy of student_logits [N, C] with labels [N] int64.

    smoothing, from 0 to below 1: the share of each label that is spread evenly over all classes
    (label smoothing, Szegedy et al. 2016, 1512.00567, sec. 7).
    """
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=check_share("smoothing", smoothing))


def knowledge_distillation(student_logits, teacher_logits, *, temperature=4.0):
    """T^2 KL(p_t || p_s), where p_s and p_t are the softmax of student_logits / T and teacher_logits / T, [N, C].

    temperature: T, above 0. The factor T^2 keeps the size of the gradient when T changes, and so the meaning of alpha.
    Hinton et al. 2015 (1503.02531), sec. 2.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature ** 2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def attention(feature):
    """The spatial attention [N, H, W] of a feature [N, C, H, W].

    It is the mean of the squares over channels, scaled to length 1 for each image.
    Zagoruyko & Komodakis 2017 (1612.03928).
    """
    maps = feature.float().pow(2).mean(1)
    return F.normalize(maps.flatten(1), dim=1).view_as(maps)


def attention_transfer(student_attention, teacher_attention, *, weights=(1.0, 1.0, 1.0, 1.0)):
    """Squared distance of normalised spatial attention, summed over stages.

    student_attention, teacher_attention: four tensors [N, H, W] each, one for each stage, from attention();
    where H, W differ the larger map is average-pooled to the smaller.
    weights: a factor for each stage. The loss of stage s is weights[s] * w_s * mean over n of ||q_s - q_t||^2 with
    w_s = 1/3136, 1/784, 1/196, 1/49: the mean over elements at 224 px, and so the same loss at any input size.
    Zagoruyko & Komodakis 2017 (1612.03928), eq. 2.
    """
    total = 0
    stages = zip(student_attention, teacher_attention, weights, STAGE_WEIGHTS, strict=True)
    for student, teacher, weight, stage_weight in stages:
        size = [min(sides) for sides in zip(student.shape[1:], teacher.shape[1:])]
        student, teacher = (F.adaptive_avg_pool2d(maps, size).flatten(1) for maps in (student, teacher))
        distance = (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).pow(2).sum(1).mean()
        total = total + weight * stage_weight * distance
    return total
