"""MobileNetV2 (Sandler et al. 2018, 1801.04381), as torchvision builds it."""

from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "mobilenetv2", "mobilenet_v2",
          stages=("features.3", "features.6", "features.13", "features.18"), head="classifier.1")
def mobilenetv2(num_classes, stem, weights):
    """MobileNetV2, 2.2 M parameters."""
    model = models.mobilenet_v2(num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: stem and second stage keep the resolution
        unit_stride(model.features[0][0], model.features[2].conv[1][0])
    return load_pretrained(model, weights, imagenet=models.MobileNet_V2_Weights.IMAGENET1K_V1,
                           head="classifier.1", first="features.0.0")
