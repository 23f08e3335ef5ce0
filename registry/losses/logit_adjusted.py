"""Logit adjustment for long-tailed classes: --hard logit_adjusted,tau=1"""

import torch.nn.functional as F

from kd.losses import check_share, full, log_prior, shares_as
from registry import register


@register("loss", "logit_adjusted")
def logit_adjusted(student_logits, labels, class_counts, *, tau=1.0, smoothing=0.0):
    """Cross-entropy of logits + tau log prior, the mean over images. Menon et al. 2021 (2007.07314), eq. 10.

    student_logits: [N, C]. labels: int64 [N], or the share of each class, float [N, C]. class_counts: [C], the training
    images of each class; the prior is their share, where a class without images counts as half an image. tau: at 0 it
    is cross-entropy; 1 is consistent for the balanced error. smoothing, from 0 to below 1: as in
    kd.losses.cross_entropy(). Returns a scalar tensor.
    """
    logits = full(student_logits) + tau * log_prior(class_counts)
    return F.cross_entropy(logits, shares_as(logits, labels), label_smoothing=check_share("smoothing", smoothing))
