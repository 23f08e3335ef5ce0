"""Class weights by effective number: --hard class_balanced,beta=0.999"""

import torch
import torch.nn.functional as F

from kd.losses import check_share
from registry import register


def effective_number_weights(class_counts, beta):
    """[C] weights (1 - beta) / (1 - beta^n_c), scaled to sum to C. Cui et al. 2019 (1901.05555), eq. 2."""
    counts = (class_counts.cpu() if class_counts.device.type == "mps" else class_counts).double()  # MPS has no float64
    beta = check_share("beta", beta)
    weights = (1 - beta) / (1 - torch.pow(beta, counts))
    weights = torch.where(counts > 0, weights, torch.zeros_like(weights))
    return (weights * len(counts) / weights.sum()).float().to(class_counts.device)


@register("loss", "class_balanced")
def class_balanced(student_logits, labels, class_counts, *, beta=0.999, smoothing=0.0):
    """Cross-entropy weighted by the effective number of images a class. Cui et al. 2019, eq. 3."""
    losses = F.cross_entropy(student_logits.float(), labels, reduction="none", label_smoothing=check_share("smoothing", smoothing))
    return (effective_number_weights(class_counts, beta)[labels] * losses).mean()
