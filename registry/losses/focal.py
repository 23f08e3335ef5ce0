"""Focal loss, for hard labels: --hard focal,gamma=1.5"""

import torch
import torch.nn.functional as F

from kd.errors import UserError
from kd.losses import at_labels, full
from registry import register


@register("loss", "focal")
def focal(student_logits, labels, *, gamma=2.0):
    """-(1 - p_y)^gamma log p_y, the mean over images. Lin et al. 2017 (1708.02002), eq. 4.

    student_logits: [N, C]; p_y is the softmax at the label. labels: int64 [N], or the share of each class, float
    [N, C]. gamma, from 0 on: at 0 it is cross-entropy; the larger, the less an image counts whose label is certain
    already. 2 is the paper's best value. Returns a scalar tensor. Raises UserError for a negative gamma.
    """
    if gamma < 0:
        raise UserError(f"gamma of the focal loss is a number from 0 on, not {gamma}")
    log_p = F.log_softmax(full(student_logits), dim=1)
    uncertainty = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)  # at 0 powers below 1 have no gradient
    return at_labels(-uncertainty.pow(gamma) * log_p, labels).mean()
