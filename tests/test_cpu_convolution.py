"""Convolutions that are computed in another way have the results of nn.Conv2d."""

import copy

import pytest
import torch
from torch import nn

import registry
from kd.train import cpu_convolution

# in, out, kernel, stride, padding, height, width, bias
FEW = [
    (5, 7, 3, 1, 1, 2, 2, False), (5, 7, 3, 2, 1, 4, 4, True), (5, 7, 3, 2, 1, 7, 8, False),
    (5, 7, 1, 1, 0, 4, 4, True), (5, 7, 1, 2, 0, 5, 3, False), (5, 7, 5, 1, 2, 1, 1, True),
    (3, 4, (1, 3), (2, 1), (0, 1), 4, 5, True), (3, 4, 4, 3, 0, 9, 9, False),
]


def through(module, images):
    """[output, gradient of the images, gradients of the parameters] of a sum that weighs each pixel differently."""
    images = images.clone().requires_grad_()
    result = module(images)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    (result * weights).sum().backward()
    return [result.detach(), images.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_a_convolution_over_few_pixels_and_its_gradients_are_those_of_torch(case, monkeypatch):
    channels, out, kernel, stride, padding, height, width, bias = case
    plain = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias).double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(plain)
    cpu_convolution.adapt(other)
    images = torch.randn(6, channels, height, width, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = through(plain, images)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", None)  # a call of torch's convolution would fail
    for ours, theirs in zip(through(other, images), expected, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


# (module, whether it is never adapted)
OTHERS = [
    (nn.Conv2d(4, 6, 3, padding=1), False), (nn.Conv2d(4, 6, 3, padding="same"), True),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), True), (nn.Conv2d(4, 6, 3, padding=2, dilation=2), True),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), True),
]


@pytest.mark.parametrize("module, never", OTHERS, ids=str)
def test_all_others_are_computed_by_torch(module, never):
    other = copy.deepcopy(module)
    cpu_convolution.adapt(other)
    for side in (4, 5) if never else (5,):  # 4 x 4 pixels are few, 5 x 5 are not
        images = torch.randn(3, 4, side, side)
        assert torch.equal(module(images), other(images))


def test_in_bf16_a_depthwise_convolution_has_the_gradients_of_fp32():
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    other = copy.deepcopy(plain)
    cpu_convolution.adapt(other)
    images = torch.randn(4, 8, 9, 9).bfloat16()
    exact = nn.functional.conv2d(images.double(), plain.weight.double(), padding=2, groups=8).sum()
    exact, = torch.autograd.grad(exact, plain.weight)
    errors = []
    for module in (plain, other):
        with torch.autocast("cpu", torch.bfloat16):
            result = module(images)
        assert result.dtype == torch.bfloat16
        result.sum().backward()
        errors.append(float((module.weight.grad - exact).abs().max() / exact.abs().max()))
    assert errors[1] < 1e-5 < 1e-4 < errors[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "efficientnetb0", "efficientnetlite0"])
def test_a_network_gives_the_same_logits_and_gradients_and_is_put_back(name):
    torch.manual_seed(0)
    model = registry.get("architecture", name).make(5, "imagenet", None).eval()
    other = copy.deepcopy(model)
    undo = cpu_convolution.adapt(other)
    images = torch.randn(2, 3, 64, 64)
    ours, theirs = through(other, images), through(model, images)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1e-6))
    undo()
    assert torch.equal(other(images), model(images))
    assert not any("forward" in vars(module) for module in other.modules())


@pytest.mark.parametrize("bias", [True, False])
def test_bf16_over_few_pixels_is_as_exact_as_that_of_torch(bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(32, 24, 5, padding=2, bias=bias).bfloat16().double()
    images = torch.randn(8, 32, 4, 4).bfloat16().double()
    exact = through(plain, images)
    errors = []
    for adapted in (False, True):
        module = copy.deepcopy(plain).float()
        if adapted:
            cpu_convolution.adapt(module)
            module._conv_forward = None  # a call of torch's convolution would fail
        with torch.autocast("cpu", torch.bfloat16):
            results = through(module, images.float())
        assert results[0].dtype == torch.bfloat16 and {value.dtype for value in results[1:]} == {torch.float32}
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True)])
    assert all(ours < 1.5 * theirs + 1e-4 for theirs, ours in zip(*errors))


def test_a_model_that_is_adapted_twice_can_be_undone_in_any_order():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.ReLU(inplace=True))
    images = torch.randn(2, 4, 4, 4)
    expected = model(images)
    undo, again = cpu_convolution.adapt(model), cpu_convolution.adapt(model)
    assert torch.allclose(model(images), expected, atol=1e-6)  # in-place layers may follow
    again(), undo(), undo()
    assert torch.equal(model(images), expected) and "forward" not in vars(model[0])


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    class Doubled(nn.Conv2d):
        def _conv_forward(self, *arguments):
            return 2 * super()._conv_forward(*arguments)

    identity, doubled = nn.Conv2d(3, 3, 1), Doubled(3, 4, 1)
    identity.forward = lambda images: images
    undo = cpu_convolution.adapt(nn.Sequential(identity, doubled))
    images = torch.rand(2, 3, 2, 2)
    assert identity(images) is images
    assert torch.equal(doubled(images), 2 * nn.functional.conv2d(images, doubled.weight, doubled.bias))
    undo()
    assert identity(images) is images


def test_no_images_single_ones_and_float64_are_computed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    cpu_convolution.adapt(model)
    assert model(torch.rand(0, 3, 4, 4)).shape == (0, 4, 4, 4) and model(torch.rand(3, 4, 4)).shape == (4, 4, 4)
    assert model.double()(torch.rand(2, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64
