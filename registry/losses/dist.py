"""Correlation with a stronger teacher: --soft dist"""

from torch.nn.functional import cosine_similarity

from kd.losses import check_above_0, check_from_0, check_three_classes, full
from registry import register


@register("loss", "dist")
def dist(student_logits, teacher_logits, *, beta=1.0, gamma=1.0, temperature=1.0):
    """1 - Pearson's correlation of probabilities, over classes and over images. Huang et al. 2022 (2205.10536), sec. 4.

    T^2 [beta (1 - mean over n of r(p_s[n, :], p_t[n, :])) + gamma (1 - mean over c of r(p_s[:, c], p_t[:, c]))],
    where p is the softmax at T. Shifts of logits and positive affine maps of probabilities change nothing; a factor on
    logits does.

    student_logits, teacher_logits: [N, C] with C above 2; UserError for two classes, whose rows correlate at 1 or -1
    whatever the logits. beta, gamma: from 0; 1 in the authors' code, 2 for their ImageNet runs. temperature: T, above
    0; 1 there, 4 for CIFAR. Exact with kept targets up to their rounding. The columns depend on the batch: each of
    several processes correlates over its share, a small last batch is noisier, and for one image, or a class to which
    all images give the same probability, r is 0 and has no gradient to speak of.
    """
    check_from_0(beta=beta, gamma=gamma)
    check_above_0(temperature=temperature)
    check_three_classes(student_logits)
    student, teacher = ((full(logits) / temperature).softmax(1) for logits in (student_logits, teacher_logits))
    return temperature ** 2 * (beta * _distance(student, teacher) + gamma * _distance(student.T, teacher.T))


def _distance(a, b):
    """1 - the mean over rows of the correlation of a and b; 0 counts for a row that is constant."""
    return 1 - cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8).mean()
