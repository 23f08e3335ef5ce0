"""EfficientNet-B0 (Tan and Le 2019, 1905.11946), as torchvision builds it."""

from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "efficientnetb0", "efficientnet_b0",
          stages=("features.2", "features.3", "features.5", "features.8"), head="classifier.1")
def efficientnetb0(num_classes, stem, weights):
    """EfficientNet-B0, 4.0 M parameters."""
    model = models.efficientnet_b0(num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: stem and second stage keep the resolution
        unit_stride(model.features[0][0], model.features[2][0].block[1][0])
    return load_pretrained(model, weights, imagenet=models.EfficientNet_B0_Weights.IMAGENET1K_V1,
                           head="classifier.1", first="features.0.0")
