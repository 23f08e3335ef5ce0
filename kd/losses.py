"""The losses of the objective: cross-entropy, knowledge distillation, attention transfer; and what others share.

Each computes in fp32 at least, whatever precision the network ran in, and returns a scalar tensor: the mean over the
batch. Further methods are in registry/losses/, one file each.
"""

import torch
import torch.nn.functional as F

from kd.errors import UserError

STAGE_WEIGHTS = (1 / 3136, 1 / 784, 1 / 196, 1 / 49)  # 1 / (H W) of the four stages at 224 px


def cross_entropy(student_logits, labels, *, smoothing=0.0):
    """Cross-entropy of student_logits [N, C] with labels: int64 [N], or the share of each class, float [N, C].

    smoothing, from 0 to below 1: the share of each label that is spread evenly over all classes
    (label smoothing, Szegedy et al. 2016, 1512.00567, sec. 7).
    """
    logits = full(student_logits)
    return F.cross_entropy(logits, shares_as(logits, labels), label_smoothing=check_share("smoothing", smoothing))


def knowledge_distillation(student_logits, teacher_logits, *, temperature=4.0):
    """T^2 KL(p_t || p_s), where p_s and p_t are the softmax of student_logits / T and teacher_logits / T, [N, C].

    temperature: T, above 0. The factor T^2 keeps the size of the gradient when T changes, and so the meaning of alpha.
    Hinton et al. 2015 (1503.02531), sec. 2.
    """
    student = F.log_softmax(full(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(full(teacher_logits) / temperature, dim=1)
    return temperature ** 2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def attention(feature):
    """The spatial attention [N, H, W] of a feature [N, C, H, W].

    It is the mean of the squares over channels, scaled to length 1 for each image.
    Zagoruyko & Komodakis 2017 (1612.03928).
    """
    maps = full(feature).pow(2).mean(1)
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


# ---- what losses share

def full(x):
    """A tensor in half precision (float16, bfloat16) as float32; any other as it is, so that float64 stays float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def mean_kl(teacher, student):
    """KL(teacher || student) of log-probabilities [N, C], the mean over images, a scalar tensor."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def others(values, classes):
    """The columns [N, C - 1] of values [N, C] without that of a class of each image, int64 [N]; in a rotated order."""
    count = values.shape[1]
    return values.gather(1, (classes[:, None] + torch.arange(1, count, device=classes.device)) % count)


def one_against_rest(logits, classes):
    """[N, 2]: log p_c and log(1 - p_c) of the softmax of logits [N, C] at a class of each image, int64 [N].

    The second is a logsumexp over the other classes: 1 - p_c itself is 0 in fp32 where p_c is nearly 1.
    """
    log_p = F.log_softmax(logits, dim=1)
    return torch.stack([log_p.gather(1, classes[:, None])[:, 0], others(log_p, classes).logsumexp(1)], dim=1)


def shares_as(logits, labels):
    """Labels as they are, int64 [N]; shares of classes, float [N, C], in the precision of the logits."""
    return labels.to(logits.dtype) if labels.is_floating_point() else labels


def at_labels(losses, labels):
    """The loss [N] of each image, from the losses [N, C] that each class would give as its label.

    labels: int64 [N], or float [N, C], the share of each class: then the losses are mixed in these shares.
    """
    if labels.is_floating_point():
        return (labels.to(losses.dtype) * losses).sum(1)
    return losses.gather(1, labels[:, None])[:, 0]


def one_label(labels):
    """Labels int64 [N] as they are. UserError for float [N, C], the shares of classes that mixed images have."""
    if labels.is_floating_point():
        raise UserError("needs one label an image, and mixed images have two",
                        "Leave out --mixup and --cutmix, or use a loss without labels.")
    return labels


def effective_number_weights(class_counts, beta):
    """Class weights [C] float32, (1 - beta) / (1 - beta^n_c), scaled to sum to C. Cui et al. 2019 (1901.05555), eq. 2.

    class_counts: [C], the training images n_c of each class; a class without images has weight 0. beta: from 0, for
    equal weights, to below 1; the nearer to 1, the nearer the weights to 1 / n_c. Raises UserError for other values.
    """
    counts = (class_counts.cpu() if class_counts.device.type == "mps" else class_counts).double()  # MPS has no float64
    beta = check_share("beta", beta)
    weights = (1 - beta) / (1 - torch.pow(beta, counts))
    weights = torch.where(counts > 0, weights, torch.zeros_like(weights))
    return (weights * len(counts) / weights.sum()).float().to(class_counts.device)


def log_prior(class_counts):
    """[C] float32: the log of each class's share of the training images, class_counts [C].

    A class without images counts as half an image.
    """
    counts = class_counts.float().clamp(min=0.5)
    return (counts / counts.sum()).log()


def ramp_up(epoch, epochs, warmup):
    """A factor that rises linearly to 1 over the first epochs: min(1, epoch / (warmup * epochs)).

    epoch: from 1 to `epochs`. warmup: a share of the epochs, from 0, for a factor of 1 throughout, to below 1.
    """
    return min(1.0, epoch / max(1.0, check_share("warmup", warmup) * epochs))


# ---- values of hyperparameters

def check_share(name, value):
    """`value` if it is from 0 to below 1; otherwise a UserError about the hyperparameter `name`."""
    if not 0 <= value < 1:
        raise UserError(f"{name} is a number from 0 to below 1, not {value}")
    return value


def check_from_0(**values):
    """UserError about the first of the hyperparameters {name: value} that is below 0."""
    for name, value in values.items():
        if value < 0:
            raise UserError(f"{name} is a number from 0 on, not {value}")


def check_above_0(**values):
    """UserError about the first of the hyperparameters {name: value} that is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} is a number above 0, not {value}")


def check_stage(stage, features):
    """The index, from 0, of a stage that counts from 1, in a list of features or of their shapes. UserError if none."""
    if not 1 <= stage <= len(features):
        raise UserError(f"stage is a whole number from 1 to {len(features)}, not {stage}")
    return stage - 1


def check_three_classes(logits):
    """UserError if logits [N, C] are of fewer than three classes, for losses on what is left after standardisation."""
    if logits.shape[1] < 3:
        raise UserError("cannot learn from two classes, whose standardised logits are the same for all images",
                        "Give --soft kd, and no such --term.")
