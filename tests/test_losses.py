"""The losses against hand-computed values, limits and independent formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kd import losses
from kd.losses import effective_number_weights
from registry.losses.class_balanced import class_balanced
from registry.losses.focal import focal
from registry.losses.logit_adjusted import logit_adjusted

torch.manual_seed(0)
STUDENT, TEACHER = torch.randn(6, 4), torch.randn(6, 4)
LABELS = torch.tensor([0, 1, 2, 3, 1, 1])


def numpy_softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_kd_is_the_batch_mean_of_kl_summed_over_classes_times_t_squared():
    for temperature in (1.0, 4.0):
        p = numpy_softmax(TEACHER.numpy() / temperature)
        q = numpy_softmax(STUDENT.numpy() / temperature)
        expected = temperature ** 2 * (p * (np.log(p) - np.log(q))).sum() / len(p)
        assert float(losses.knowledge_distillation(STUDENT, TEACHER, temperature=temperature)) == pytest.approx(
            expected, rel=1e-5
        )


def test_kd_by_hand_for_two_classes():
    # teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    value = losses.knowledge_distillation(torch.zeros(1, 2), teacher, temperature=1.0)
    assert float(value) == pytest.approx(expected, abs=1e-7)


def test_kd_is_zero_for_equal_logits_and_for_logits_that_differ_by_a_constant():
    assert float(losses.knowledge_distillation(STUDENT, STUDENT)) == pytest.approx(0, abs=1e-6)
    assert float(losses.knowledge_distillation(STUDENT, STUDENT + 5)) == pytest.approx(0, abs=1e-5)


def test_kd_does_not_change_when_the_batch_is_repeated():
    once = losses.knowledge_distillation(STUDENT, TEACHER)
    twice = losses.knowledge_distillation(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1))
    assert torch.allclose(once, twice)


def test_t_squared_keeps_the_size_of_the_gradient():
    # for high T the gradient tends to (z_s - z_t) / (N C) for centred logits, whatever T (Hinton et al., sec. 2.1)
    student = (STUDENT - STUDENT.mean(1, keepdim=True)).requires_grad_()
    teacher = TEACHER - TEACHER.mean(1, keepdim=True)
    for temperature in (50.0, 500.0):
        student.grad = None
        losses.knowledge_distillation(student, teacher, temperature=temperature).backward()
        expected = (student.detach() - teacher) / student.numel()
        assert torch.allclose(student.grad, expected, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_finite_losses_and_gradients(dtype):
    student = torch.tensor([[300.0, -300.0, 0.0], [-250.0, 10.0, 250.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-300.0, 300.0, 0.0], [250.0, -10.0, -250.0]], dtype=dtype)
    labels, counts = torch.tensor([1, 0]), torch.tensor([10, 5, 1])
    for value in (losses.knowledge_distillation(student, teacher, temperature=1.0),
                  losses.cross_entropy(student, labels), focal(student, labels),
                  class_balanced(student, labels, counts), logit_adjusted(student, labels, counts)):
        assert value.dtype == torch.float32 and torch.isfinite(value)
        gradient, = torch.autograd.grad(value, student)
        assert torch.isfinite(gradient).all()
    assert float(losses.cross_entropy(student, labels).detach()) == pytest.approx(550, rel=1e-3)


def test_cross_entropy_smoothing_mixes_in_the_mean_over_classes():
    log_p = F.log_softmax(STUDENT, 1)
    of_labels, mean = -log_p[range(6), LABELS].mean(), -log_p.mean()
    assert torch.allclose(losses.cross_entropy(STUDENT, LABELS, smoothing=0.1), 0.9 * of_labels + 0.1 * mean)


def test_focal_with_gamma_0_is_cross_entropy_and_by_hand_with_gamma_2():
    assert torch.allclose(focal(STUDENT, LABELS, gamma=0.0), losses.cross_entropy(STUDENT, LABELS))
    logits = torch.tensor([[math.log(3.0), 0.0]])  # p = 3/4
    expected = -0.25 ** 2 * math.log(0.75)
    assert float(focal(logits, torch.tensor([0]), gamma=2.0)) == pytest.approx(expected, rel=1e-5)


def test_focal_gradient_is_finite_where_the_label_is_certain():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), gamma=1.5).backward()
    assert torch.isfinite(logits.grad).all()


def test_effective_numbers_by_hand_and_in_their_limits():
    # beta = .5: effective numbers of 1 and 2 images are 1 and 1.5; weights 1 and 2/3, scaled to sum to 2
    assert effective_number_weights(torch.tensor([1, 2]), 0.5).tolist() == pytest.approx([1.2, 0.8])
    assert effective_number_weights(torch.tensor([5, 500]), 0.0).tolist() == pytest.approx([1, 1])
    near_inverse = effective_number_weights(torch.tensor([10, 30]), 0.999999)
    assert float(near_inverse[0] / near_inverse[1]) == pytest.approx(3, rel=1e-3)


def test_class_balanced_with_beta_0_is_cross_entropy():
    counts = torch.tensor([7, 1, 3, 2])
    assert torch.allclose(class_balanced(STUDENT, LABELS, counts, beta=0.0), losses.cross_entropy(STUDENT, LABELS))


def test_class_balanced_weighs_each_image_by_its_class():
    counts = torch.tensor([7, 1, 3, 2])
    weights = effective_number_weights(counts, 0.9)
    log_p = F.log_softmax(STUDENT, 1)
    expected = -(weights[LABELS] * log_p[range(6), LABELS]).mean()
    assert torch.allclose(class_balanced(STUDENT, LABELS, counts, beta=0.9), expected)
    smooth = (weights[LABELS] * F.cross_entropy(STUDENT, LABELS, label_smoothing=0.1, reduction="none")).mean()
    assert torch.allclose(class_balanced(STUDENT, LABELS, counts, beta=0.9, smoothing=0.1), smooth)


def test_logit_adjustment_adds_the_log_prior():
    counts = torch.tensor([70, 10, 15, 5])
    prior = torch.tensor([0.70, 0.10, 0.15, 0.05])
    expected = F.cross_entropy(STUDENT + prior.log(), LABELS)
    assert torch.allclose(logit_adjusted(STUDENT, LABELS, counts), expected)
    equal = torch.tensor([9, 9, 9, 9])
    assert torch.allclose(logit_adjusted(STUDENT, LABELS, equal), losses.cross_entropy(STUDENT, LABELS))


def stages(channels=(3, 5, 7, 9), sides=(8, 4, 2, 2), batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, s, s, generator=generator) for c, s in zip(channels, sides)]


def transfer(student, teacher, **options):
    """Attention transfer between features, as the engine computes it."""
    student, teacher = ([losses.attention(feature) for feature in features] for features in (student, teacher))
    return losses.attention_transfer(student, teacher, **options)


def test_attention_transfer_by_hand():
    # one place lit in the teacher, another in the student: two unit vectors at right angles, distance 2
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, 0, 0, 0], teacher[0, 2, 1, 1] = 7.0, -3.0
    same = torch.ones(1, 1, 2, 2)
    value = transfer([student, same, same, same], [teacher, same, same, same])
    assert float(value) == pytest.approx(2 / 3136)
    value = transfer([same, same, same, student], [same, same, same, teacher], weights=(1, 1, 1, 3))
    assert float(value) == pytest.approx(3 * 2 / 49)


def test_attention_transfer_of_half_precision_features_whose_squares_overflow():
    # as by hand above; 300^2 is above the largest fp16, 65504, and 0.0001^2 below the smallest
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, :, 0, 0], teacher[0, 2, 1, 1] = 300.0, -300.0
    low = torch.full((1, 1, 2, 2), 1e-4)
    for a, b in ((student, teacher), (student / 3e6, teacher / 3e6)):
        a, b, same = a.half().requires_grad_(), b.half(), low.half()
        value = transfer([a, same, same, same], [b, same, same, same])
        assert value.dtype == torch.float32 and float(value) == pytest.approx(2 / 3136, rel=1e-5)
        gradient, = torch.autograd.grad(value, a)
        assert torch.isfinite(gradient).all()
    torch.manual_seed(0)
    student, teacher = [300 * x for x in stages(seed=1)], [300 * x for x in stages(seed=2)]
    half = [x.half().requires_grad_() for x in student]
    value = transfer(half, [x.half() for x in teacher])
    whole = [x.half().float().requires_grad_() for x in student]
    expected = transfer(whole, [x.half().float() for x in teacher])
    assert torch.allclose(value, expected, rtol=1e-5)
    scale = 2.0 ** 20  # as a gradient scaler does: these gradients themselves are below the smallest fp16
    for gradient, right in zip(torch.autograd.grad(scale * value, half), torch.autograd.grad(scale * expected, whole)):
        assert torch.isfinite(gradient).all() and torch.allclose(gradient.float(), right, rtol=2e-3, atol=1e-3)


def test_attention_transfer_is_the_published_element_mean_at_224_px():
    student, teacher = (stages(sides=(56, 28, 14, 7), seed=s) for s in (1, 2))

    def published(a, b):  # the mean over images and places of the squared difference
        a, b = (F.normalize(x.pow(2).mean(1).view(len(x), -1)) for x in (a, b))
        return (a - b).pow(2).mean()

    expected = sum(published(a, b) for a, b in zip(student, teacher))
    assert torch.allclose(transfer(student, teacher), expected, rtol=1e-5)


def test_attention_transfer_means_the_same_at_another_resolution():
    student, teacher = stages(seed=1), stages(seed=2)
    larger = [[F.interpolate(x, scale_factor=2, mode="nearest") for x in side] for side in (student, teacher)]
    assert torch.allclose(transfer(student, teacher), transfer(*larger), rtol=1e-5)


def test_attention_transfer_pools_the_larger_map():
    student, teacher = stages(seed=1), stages(seed=2)
    larger_teacher = [F.interpolate(x, scale_factor=2, mode="nearest") for x in teacher]
    assert torch.allclose(transfer(student, teacher),
                          transfer(student, larger_teacher), rtol=1e-5)


def test_attention_transfer_ignores_scale_and_sign_and_is_zero_for_equal_maps():
    student, teacher = stages(seed=1), stages(seed=2)
    assert float(transfer(student, [-3 * x for x in student])) == pytest.approx(0, abs=1e-9)
    assert torch.allclose(transfer(student, teacher),
                          transfer(student, [2 * x for x in teacher]), rtol=1e-5)
