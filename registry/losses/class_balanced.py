"""Cross-entropy with class weights by the effective number of images: --hard class_balanced,beta=0.999"""

import torch
import torch.nn.functional as F

from kd.losses import check_share
from registry import register


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


@register("loss", "class_balanced")
def class_balanced(student_logits, labels, class_counts, *, beta=0.999, smoothing=0.0):
    """Cross-entropy times (1 - beta) / (1 - beta^n_y), the mean over images. Cui et al. 2019 (1901.05555), eq. 3.

    student_logits: [N, C]. labels: int64 [N]. class_counts, beta: as for effective_number_weights(). smoothing, from 0
    to below 1: as in kd.losses.cross_entropy(). Returns a scalar tensor. Raises UserError for other values.
    """
    smoothing = check_share("smoothing", smoothing)
    losses = F.cross_entropy(student_logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return (effective_number_weights(class_counts, beta)[labels] * losses).mean()
