"""ConvNeXt (Liu et al. 2022, 2201.03545), as torchvision builds it."""

from torch import nn
from torchvision import models

from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "convnexttiny", "convnext_tiny",
          stages=("features.1", "features.3", "features.5", "features.7"), head="classifier.2")
def convnexttiny(num_classes, stem, weights):
    """ConvNeXt-Tiny, 27.8 M parameters."""
    model = models.convnext_tiny(num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: overlapping windows in place of patches of 4 x 4 px
        model.features[0][0] = nn.Conv2d(3, model.features[0][0].out_channels, 3, padding=1)
        nn.init.trunc_normal_(model.features[0][0].weight, std=0.02)
        nn.init.zeros_(model.features[0][0].bias)
    return load_pretrained(model, weights, imagenet=models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
                           head="classifier.2", first="features.0.0")
