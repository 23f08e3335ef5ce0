"""Multiply-accumulates of a network."""

import torch


def count(model, size):
    """Multiply-accumulates of all convolutions and linear layers for one image of `size` px: an int.

    Activations, normalisation and pooling are not counted, as in most papers; other tools count some
    of them. One multiply-accumulate is two floating-point operations.
    """
    total = 0

    def add(module, inputs, output):
        nonlocal total
        weights = module.weight.shape  # a convolution's are [out, in / groups, kh, kw], a linear layer's [out, in]
        places = output[0, 0].numel() if isinstance(module, torch.nn.Conv2d) else output[0].numel() // weights[0]
        total += places * weights.numel()

    layers = [module for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
