"""Convolutions on a CPU for which oneDNN has no fast kernel, computed in another way.

- Few pixels: the last stages of a network have 2 x 2 to 4 x 4 pixels of a small image. oneDNN reads all weights again
  for each image; one matrix product over the whole batch reads them once.
- Depthwise convolutions in bf16: their gradients are slower than in fp32, four times for 5 x 5 kernels and more than
  nine times for strides above 1. They are computed in fp32.

docs/speed.md has the gains.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

FEW = 16  # pixels of an output map (4 x 4): up to this many the matrix product is as fast or faster


def adapt(model):
    """Replace the forward of such convolutions of a model, in place; returns a function that undoes it.

    Layers that already have a forward of their own keep it.
    """
    adapted = []
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or "forward" in vars(module):
            continue
        if _is_depthwise(module):
            module.forward = functools.partial(_in_fp32, module, module.forward)
        elif _is_plain(module):
            module.forward = functools.partial(_by_matrix, module, module.forward)
        else:
            continue
        adapted.append(module)

    def undo():
        for module in adapted:
            vars(module).pop("forward", None)

    return undo


def _is_depthwise(module):
    return 1 < module.groups == module.in_channels


def _is_plain(module):
    """Whether it computes what nn.Conv2d does, with padding by zeros, without dilation and groups."""
    return (type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
            and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))


def _in_fp32(module, forward, images):
    if not torch.is_autocast_enabled("cpu"):
        return forward(images)
    with torch.autocast("cpu", enabled=False):
        return forward(images.float()).to(images.dtype)


def _by_matrix(module, forward, images):
    shape = [(side + 2 * pad - kernel) // stride + 1 for side, pad, kernel, stride in
             zip(images.shape[-2:], module.padding, module.kernel_size, module.stride)]
    if images.ndim != 4 or not len(images) or min(shape) < 1 or shape[0] * shape[1] > FEW:
        return forward(images)
    tensors = images, module.weight, module.bias
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]
    rows = _Product.apply(*tensors, module.stride, module.padding, shape)
    return rows.view(len(images), *shape, -1).permute(0, 3, 1, 2)


class _Product(torch.autograd.Function):
    """A convolution as rows of patches [N H W, k k C] times the weights (Chellapilla et al. 2006): [N H W, O]."""

    @staticmethod
    def forward(context, images, weight, bias, stride, padding, shape):
        context.save_for_backward(images, weight)
        context.geometry = stride, padding, shape
        return F.linear(_patches(images, weight.shape[2:], stride, padding, shape), _rows(weight), bias)

    @staticmethod
    def backward(context, gradient):
        images, weight = context.saved_tensors
        stride, padding, shape = context.geometry
        kernel = weight.shape[2:]
        grad_images = grad_weight = grad_bias = None
        if context.needs_input_grad[0]:
            grad_patches = (gradient @ _rows(weight)).view(len(images), *shape, *kernel, -1)
            grad_images = _add_patches(grad_patches, images.shape, stride, padding)
        if context.needs_input_grad[1]:
            grad_weight = gradient.t() @ _patches(images, kernel, stride, padding, shape)
            grad_weight = grad_weight.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
        if context.needs_input_grad[2]:
            grad_bias = gradient.sum(0)
        return grad_images, grad_weight, grad_bias, None, None, None


def _rows(weight):
    """[O, C, k, k] -> [O, k k C]."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _patches(images, kernel, stride, padding, shape):
    """[N, C, H, W] -> [N H' W', k k C], where `shape` is H', W'."""
    images = images.permute(0, 2, 3, 1)
    if any(padding):
        images = F.pad(images, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    images = images.contiguous()
    n, row, column, channel = images.stride()
    windows = images.as_strided((len(images), *shape, *kernel, images.shape[3]),
                                (n, row * stride[0], column * stride[1], row, column, channel))
    return windows.reshape(len(images) * shape[0] * shape[1], -1)


def _add_patches(patches, shape, stride, padding):
    """[N, H', W', k, k, C] -> [N, C, H, W]: for each pixel the sum, at least in fp32, over its patches."""
    count, channels, height, width = shape
    (tall, wide), (rows, columns) = patches.shape[1:3], patches.shape[3:5]
    if (rows, columns) == (1, 1) and stride == (1, 1) and not any(padding):
        return patches.view(count, height, width, channels).permute(0, 3, 1, 2)
    sums = patches.new_zeros(count, height + 2 * padding[0], width + 2 * padding[1], channels,
                             dtype=torch.promote_types(patches.dtype, torch.float32))
    for i in range(rows):
        for j in range(columns):
            sums[:, i:i + stride[0] * tall:stride[0], j:j + stride[1] * wide:stride[1]] += patches[:, :, :, i, j]
    sums = sums[:, padding[0]:padding[0] + height, padding[1]:padding[1] + width]
    return sums.contiguous().permute(0, 3, 1, 2).to(patches.dtype)
