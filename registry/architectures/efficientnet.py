"""EfficientNet-B0 (Tan and Le 2019, 1905.11946) and V2-S (2021, 2104.00298), as torchvision builds them."""

from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


def _efficientnet(name, num_classes, stem, weights, *, second):
    """second: a function of the model that returns the convolution of stride 2 after the first one."""
    model = models.get_model(name, num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: stem and second stage keep the resolution
        unit_stride(model.features[0][0], second(model))
    imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return load_pretrained(model, weights, imagenet=imagenet, head="classifier.1", first="features.0.0")


@register("architecture", "efficientnetb0", "efficientnet_b0",
          stages=("features.2", "features.3", "features.5", "features.8"), head="classifier.1")
def efficientnetb0(num_classes, stem, weights):
    """EfficientNet-B0, 4.0 M parameters."""
    return _efficientnet("efficientnet_b0", num_classes, stem, weights,
                         second=lambda model: model.features[2][0].block[1][0])


@register("architecture", "efficientnetv2s", "efficientnet_v2_s",
          stages=("features.2", "features.3", "features.5", "features.7"), head="classifier.1")
def efficientnetv2s(num_classes, stem, weights):
    """EfficientNetV2-S, 20.2 M parameters."""
    return _efficientnet("efficientnet_v2_s", num_classes, stem, weights,
                         second=lambda model: model.features[2][0].block[0][0])
