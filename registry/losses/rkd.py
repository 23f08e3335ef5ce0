"""Relational distillation of distances and angles between images: --term rkd=25"""

import torch
from torch.nn.functional import smooth_l1_loss

from kd.losses import check_from_0, full
from registry import register


@register("loss", "rkd")
def rkd(student_pooled, teacher_pooled, *, distance=1.0, angle=2.0):
    """Distances of pairs and angles of triples of images, as the teacher has them. Park et al. 2019 (1904.05068).

    distance * Huber(d_s / mean d_s, d_t / mean d_t) + angle * Huber(a_s, a_t), sec. 3.2: d_ij is the Euclidean distance
    of the features of two images, its mean that of the distances above 0, and a_ijk the cosine of the angle at i. Huber
    is quadratic up to 1; it is the mean over all N^2 pairs and all N^3 triples.

    student_pooled, teacher_pooled: [N, D], where D may differ. distance, angle: from 0; 1 and 2 with --term rkd=25 are
    the paper's weights of 25 and 50. Exact with kept pooled features up to their rounding. All depends on the batch: in
    a small last one the N entries that are always 0 count more, and each of several processes relates the images of its
    share alone. Memory grows with N^2 D and N^3: 67 MB a network for the angles of 256 images. 0 for one image. Images
    with the same features have the distance 0 and no angles; features times a factor give the same loss.
    """
    check_from_0(distance=distance, angle=angle)
    (student_distances, student_angles), (teacher_distances, teacher_angles) = (
        _relations(full(features)) for features in (student_pooled, teacher_pooled))
    return (distance * smooth_l1_loss(student_distances, teacher_distances)
            + angle * smooth_l1_loss(student_angles, teacher_angles))


def _relations(features):
    """Distances [N, N], divided by their mean, and cosines of angles [N, N, N] of features [N, D]."""
    differences = features[None] - features[:, None]
    squares = differences.pow(2).sum(2)
    differs = squares > 1e-12  # elsewhere the root has no gradient
    distances = torch.where(differs, squares.clamp(min=1e-12).sqrt(), 0)
    directions = differences * torch.where(differs, 1 / squares.clamp(min=1e-12).sqrt(), 0)[:, :, None]
    mean = distances.sum() / differs.sum().clamp(min=1)
    return distances / mean.clamp(min=1e-6), directions @ directions.transpose(1, 2)
