"""ShuffleNetV2 (Ma et al. 2018, 1807.11164), as torchvision builds it."""

from torch import nn
from torchvision import models

from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "shufflenetv2", "shufflenet_v2_x1_0", stages=("maxpool", "stage2", "stage3", "conv5"),
          head="fc")
def shufflenetv2(num_classes, stem, weights):
    """ShuffleNetV2 x1.0, 1.3 M parameters."""
    model = models.shufflenet_v2_x1_0(num_classes=num_classes)
    if stem == "small":  # stages at strides 1, 2, 4 and 8
        unit_stride(model.conv1[0])
        model.maxpool = nn.Identity()
    return load_pretrained(model, weights, imagenet=models.ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1,
                           head="fc", first="conv1.0")
