"""Cross-entropy with class weights by the effective number of images: --hard class_balanced,beta=0.999"""

import torch.nn.functional as F

from kd.losses import at_labels, check_share, effective_number_weights, full
from registry import register


@register("loss", "class_balanced")
def class_balanced(student_logits, labels, class_counts, *, beta=0.999, smoothing=0.0):
    """Cross-entropy times (1 - beta) / (1 - beta^n_y), the mean over images. Cui et al. 2019 (1901.05555), eq. 3.

    student_logits: [N, C]. labels: int64 [N], or the share of each class, float [N, C]. class_counts, beta: as for
    kd.losses.effective_number_weights(). smoothing, from 0 to below 1: as in kd.losses.cross_entropy(). Returns a
    scalar tensor. Raises UserError for other values.
    """
    smoothing = check_share("smoothing", smoothing)
    log_p = F.log_softmax(full(student_logits), dim=1)
    losses = -(1 - smoothing) * log_p - smoothing * log_p.mean(1, keepdim=True)  # [N, C], of each class as the label
    return at_labels(effective_number_weights(class_counts, beta) * losses, labels).mean()
