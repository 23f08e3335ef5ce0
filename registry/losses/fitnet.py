"""The teacher's features by regression, pooled or of a stage: --term fitnet=5 or --term fitnet=100,stage=3"""

from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss

from kd.losses import check_stage, full
from registry import register


@register("loss", "fitnet")
class FitNet(nn.Module):
    """Squared distance of the student's features, mapped by a trained layer, to the teacher's. Romero et al. 2015.

    The mean over elements of (BN(W f_s) - f_t)^2; 1412.6550, eq. 3, without its factor of 1/2 and trained along with
    the rest, not in a stage of its own. W is a linear layer, or a 1 x 1 convolution for a stage; where H, W differ the
    larger feature is average-pooled to the smaller.

    stage: 0, for pooled features [N, D], or from 1 to 4, for a feature [N, C, H, W]. Usual weights beside cross-entropy
    of 1 are 5 for pooled features (timm) and 100 for a stage (RepDistiller). W and BN are trained with the student,
    kept for resuming, and no part of it. Pooled: exact with kept features up to their rounding; a stage needs the live
    teacher. BN normalises over the images of the batch, or of the share of each of several processes; of a single value
    (one image, pooled) by its running mean and deviation.
    """

    def __init__(self, shapes, *, stage=0):
        super().__init__()
        self.stage = stage
        key = "features" if stage else "pooled"
        student, teacher = (shapes[f"{role}_{key}"] for role in ("student", "teacher"))
        if stage:
            student, teacher = (features[check_stage(stage, features)] for features in (student, teacher))
        self.regressor = (nn.Conv2d(student[1], teacher[1], 1, bias=False) if stage
                          else nn.Linear(student[1], teacher[1], bias=False))
        self.norm = (nn.BatchNorm2d if stage else nn.BatchNorm1d)(teacher[1])

    @staticmethod
    def needs(stage):
        """A loss that names features cannot be used with kept targets, so the pooled form does not."""
        return [f"{role}_{'features' if stage else 'pooled'}" for role in ("student", "teacher")]

    def forward(self, student_pooled=None, teacher_pooled=None, student_features=None, teacher_features=None):
        if self.stage:
            student, teacher = (full(features[self.stage - 1]) for features in (student_features, teacher_features))
            size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
            student, teacher = adaptive_avg_pool2d(student, size), adaptive_avg_pool2d(teacher, size)
        else:
            student, teacher = full(student_pooled), full(teacher_pooled)
        mapped = self.regressor(student)
        self.norm.train(mapped.numel() > mapped.shape[1])  # a single value has no deviation
        return mse_loss(self.norm(mapped), teacher)
