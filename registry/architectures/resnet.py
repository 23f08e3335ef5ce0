"""ResNet (He et al. 2016, 1512.03385), as torchvision builds it."""

from torch import nn
from torchvision import models

from kd.train.weights import load_pretrained
from registry import register

STAGES = ("layer1", "layer2", "layer3", "layer4")


def _resnet(name, num_classes, stem, weights):
    model = models.get_model(name, num_classes=num_classes)
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return load_pretrained(model, weights, imagenet=imagenet, head="fc", first="conv1")


@register("architecture", "resnet18", stages=STAGES, head="fc")
def resnet18(num_classes, stem, weights):
    """ResNet-18, 11.2 M parameters."""
    return _resnet("resnet18", num_classes, stem, weights)


@register("architecture", "resnet34", stages=STAGES, head="fc")
def resnet34(num_classes, stem, weights):
    """ResNet-34, 21.3 M parameters."""
    return _resnet("resnet34", num_classes, stem, weights)


@register("architecture", "resnet50", stages=STAGES, head="fc")
def resnet50(num_classes, stem, weights):
    """ResNet-50, 23.5 M parameters."""
    return _resnet("resnet50", num_classes, stem, weights)
