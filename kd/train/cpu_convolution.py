"""Convolutions on a CPU, computed another way where oneDNN has no fast kernel for them.

- Few pixels: a network's last stages see 2 x 2 to 4 x 4 pixels of a small image. oneDNN goes through all weights for each
  image anew; one matrix product over the whole batch goes through them once.
- Depthwise convolutions in bf16: their gradients are slower than in fp32, those of 5 x 5 kernels four times and those
  through a stride more than nine times. They are computed in fp32.

docs/speed.md has what it gains.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

FEW = 16  # pixels of an output map, up to which the matrix product is as fast or faster (4 x 4)


def adapt(model):
    """Let the convolutions of `model` compute as above, in place; returns a function that undoes it.

    Layers whose forward is their own already are left to it.
    """
    chosen = {module: _in_fp32 if _depthwise(module) else _by_matrix for module in model.modules()
              if isinstance(module, nn.Conv2d) and "forward" not in vars(module) and (_depthwise(module) or _plain(module))}
    for module, way in chosen.items():
        module.forward = functools.partial(way, module, module.forward)

    def undo():
        for module in chosen:
            vars(module).pop("forward", None)

    return undo


def _depthwise(module):
    return 1 < module.groups == module.in_channels


def _plain(module):
    """Whether it is what nn.Conv2d computes, with zeros around and no holes."""
    return (type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
            and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))


def _in_fp32(module, usual, images):
    if not torch.is_autocast_enabled("cpu"):
        return usual(images)
    with torch.autocast("cpu", enabled=False):
        return usual(images.float()).to(images.dtype)


def _by_matrix(module, usual, images):
    shape = [(side + 2 * pad - kernel) // stride + 1 for side, pad, kernel, stride in
             zip(images.shape[-2:], module.padding, module.kernel_size, module.stride)]
    if images.ndim != 4 or not len(images) or min(shape) < 1 or shape[0] * shape[1] > FEW:
        return usual(images)
    given = images, module.weight, module.bias
    if torch.is_autocast_enabled("cpu"):
        given = [tensor if tensor is None else tensor.to(torch.get_autocast_dtype("cpu")) for tensor in given]
    rows = _Product.apply(*given, module.stride, module.padding, shape)
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
        of_images = of_weight = of_bias = None
        if context.needs_input_grad[0]:
            of_patches = (gradient @ _rows(weight)).view(len(images), *shape, *kernel, -1)
            of_images = _add_patches(of_patches, images.shape, stride, padding)
        if context.needs_input_grad[1]:
            of_weight = gradient.t() @ _patches(images, kernel, stride, padding, shape)
            of_weight = of_weight.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
        if context.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_images, of_weight, of_bias, None, None, None


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
    """[N, H', W', k, k, C] -> [N, C, H, W], the sum, at least in fp32, of what each pixel has in the patches that see it."""
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
