"""Convolutions that are computed another way give what nn.Conv2d gives."""

import copy

import pytest
import torch
from torch import nn

import registry
from kd import convolution

# in, out, kernel, stride, padding, height, width, bias
FEW = [(5, 7, 3, 1, 1, 2, 2, False), (5, 7, 3, 2, 1, 4, 4, True), (5, 7, 3, 2, 1, 7, 8, False), (5, 7, 1, 1, 0, 4, 4, True),
       (5, 7, 1, 2, 0, 5, 3, False), (5, 7, 5, 1, 2, 1, 1, True), (3, 4, (1, 3), (2, 1), (0, 1), 4, 5, True), (3, 4, 4, 3, 0, 9, 9, False)]


def pair(*arguments):
    """A convolution and its adapted twin, in float64 and channels last."""
    plain = nn.Conv2d(*arguments[:3], **arguments[3]).double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(plain)
    return plain, other, convolution.adapt(other)


def through(module, images):
    """The output and the gradients of a sum that weighs every pixel otherwise: of the images and of the parameters."""
    images = images.clone().requires_grad_()
    result = module(images)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    (result * weights).sum().backward()
    return [result, images.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_a_convolution_over_few_pixels_and_its_gradients_are_those_of_torch(case, monkeypatch):
    channels, out, kernel, stride, padding, height, width, bias = case
    plain, other, _ = pair(channels, out, kernel, {"stride": stride, "padding": padding, "bias": bias})
    images = torch.randn(6, channels, height, width, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = through(plain, images)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", None)  # torch's own convolution would be noticed
    for ours, theirs in zip(through(other, images), expected, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [
    nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding=2, dilation=2), nn.Conv2d(4, 6, 3, padding=1, groups=2)], ids=lambda module: str(module)[20:])
def test_all_others_are_computed_as_they_are(module):
    other = copy.deepcopy(module)
    convolution.adapt(other)
    plain_at_few = module.groups > 1 or module.dilation != (1, 1) or module.padding != (1, 1) or module.padding_mode != "zeros"
    for side in (4, 5) if plain_at_few else (5,):  # 4 x 4 pixels are few, 5 x 5 are not
        images = torch.randn(3, 4, side, side)
        assert torch.equal(module(images), other(images))


def test_in_bf16_a_depthwise_convolution_has_the_gradients_of_fp32():
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    other = copy.deepcopy(plain)
    convolution.adapt(other)
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
    undo = convolution.adapt(other)
    images = torch.randn(2, 3, 64, 64)
    ours, theirs = through(other, images), through(model, images)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.detach().abs().max() + 1e-6))
    undo()
    assert torch.equal(other(images), model(images)) and not any("forward" in vars(module) for module in other.modules())


def test_bf16_reaches_the_matrix_product():
    module = nn.Conv2d(4, 6, 3, padding=1)
    convolution.adapt(module)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(torch.randn(2, 4, 2, 2))
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert module.weight.grad.dtype == module.bias.grad.dtype == torch.float32
