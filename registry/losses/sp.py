"""Similarity-preserving distillation: --term sp=3000"""

from torch.nn.functional import normalize

from kd.losses import check_stage, full
from registry import register


@register("loss", "sp")
def sp(student_features, teacher_features, *, stage=4):
    """Images are to be as similar to each other as the teacher finds them. Tung & Mori 2019 (1907.09682), sec. 3.

    ||G_s - G_t||^2 / N^2, eqs. 1 to 3: G = F F^T of the features F [N, C H W] of a stage, each row of G divided by its
    Euclidean norm.

    student_features, teacher_features: lists of [N, C, H, W], where C, H, W may differ. stage: from 1; the last, 4, as
    in the paper. The weight of the paper is 3000 for this loss beside cross-entropy of 1. It needs the live teacher:
    features are not kept on disk. All depends on the batch: each of several processes compares the images of its share
    alone, and for one image the loss is 0. An image whose features are 0 has similarity 0 to all. Features times a
    factor give the same loss.
    """
    student, teacher = (_similarities(full(features[check_stage(stage, features)]))
                        for features in (student_features, teacher_features))
    return (student - teacher).pow(2).mean()


def _similarities(feature):
    """[N, N] the similarities of the images of a feature [N, C, H, W], each row with the Euclidean norm 1."""
    rows = feature.flatten(1)
    return normalize(rows @ rows.T, dim=1)
