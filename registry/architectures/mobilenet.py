"""MobileNetV2 (Sandler et al. 2018, 1801.04381) and V3 (Howard et al. 2019, 1905.02244), as torchvision builds them."""

from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


def _mobilenet(name, num_classes, stem, weights, *, second, head):
    """second: a function of the model that returns the convolution of stride 2 after the first one."""
    model = models.get_model(name, num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8: these two convolutions keep the resolution
        unit_stride(model.features[0][0], second(model))
    imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return load_pretrained(model, weights, imagenet=imagenet, head=head, first="features.0.0")


@register("architecture", "mobilenetv2", "mobilenet_v2",
          stages=("features.3", "features.6", "features.13", "features.18"), head="classifier.1")
def mobilenetv2(num_classes, stem, weights):
    """MobileNetV2, 2.2 M parameters."""
    return _mobilenet("mobilenet_v2", num_classes, stem, weights, head="classifier.1",
                      second=lambda model: model.features[2].conv[1][0])


@register("architecture", "mobilenetv3small", "mobilenet_v3_small",
          stages=("features.1", "features.3", "features.8", "features.12"), head="classifier.3")
def mobilenetv3small(num_classes, stem, weights):
    """MobileNetV3-Small, 1.5 M parameters."""
    return _mobilenet("mobilenet_v3_small", num_classes, stem, weights, head="classifier.3",
                      second=lambda model: model.features[1].block[0][0])


@register("architecture", "mobilenetv3large", "mobilenet_v3_large",
          stages=("features.3", "features.6", "features.12", "features.16"), head="classifier.3")
def mobilenetv3large(num_classes, stem, weights):
    """MobileNetV3-Large, 4.2 M parameters."""
    return _mobilenet("mobilenet_v3_large", num_classes, stem, weights, head="classifier.3",
                      second=lambda model: model.features[2].block[1][0])
