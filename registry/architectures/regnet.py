"""RegNet (Radosavovic et al. 2020, 2003.13678), as torchvision builds it."""

from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "regnety400mf", "regnet_y_400mf",
          stages=tuple(f"trunk_output.block{k}" for k in (1, 2, 3, 4)), head="fc")
def regnety400mf(num_classes, stem, weights):
    """RegNetY-400MF, 3.9 M parameters."""
    model = models.regnet_y_400mf(num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: stem and first stage keep the resolution
        block = model.trunk_output.block1[0]
        unit_stride(model.stem[0], block.proj[0], block.f.b[0])
    return load_pretrained(model, weights, imagenet=models.RegNet_Y_400MF_Weights.IMAGENET1K_V1,
                           head="fc", first="stem.0")
