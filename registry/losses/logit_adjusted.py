"""Logit adjustment for long-tailed classes: --hard logit_adjusted,tau=1"""

import torch.nn.functional as F

from kd.losses import check_share
from registry import register


@register("loss", "logit_adjusted")
def logit_adjusted(student_logits, labels, class_counts, *, tau=1.0, smoothing=0.0):
    """Cross-entropy of logits + tau log prior. Menon et al. 2021 (2007.07314), eq. 10."""
    counts = class_counts.float().clamp(min=0.5)
    prior = counts / counts.sum()
    return F.cross_entropy(student_logits.float() + tau * prior.log(), labels, label_smoothing=check_share("smoothing", smoothing))
