"""Multiply-accumulates of a network."""

import torch
from torch.utils.flop_counter import FlopCounterMode

COUNTED = ("aten.convolution", "aten.addmm", "aten.mm")  # what convolutions and linear layers call


def count(model, size):
    """Multiply-accumulates of all convolutions and linear layers for one image of `size` px: an int.

    Activations, normalisation, pooling and the products inside attention are not counted, as in most papers; other
    tools count some of them. One multiply-accumulate is two floating-point operations.
    """
    training = model.training
    device = next(model.parameters()).device
    try:  # with gradients, since transformers take one fused operation without
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
    return sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if str(operation) in COUNTED) // 2
