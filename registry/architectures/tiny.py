"""A small convolutional network for tests and teaching, which can be read in a minute."""

from collections import OrderedDict

from torch import nn

from kd.train.weights import load_pretrained
from registry import register


def block(channels_in, channels_out, stride):
    """Convolution 3 x 3, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


@register("architecture", "tiny", stages=("stage1", "stage2", "stage3", "stage4"), head="head")
def tiny(num_classes, stem, weights):
    """Five convolutions, 0.1 M parameters."""
    stride = 1 if stem == "small" else 2
    model = nn.Sequential(OrderedDict(
        stem=block(3, 16, stride),
        stage1=block(16, 16, stride),
        stage2=block(16, 32, 2),
        stage3=block(32, 64, 2),
        stage4=block(64, 128, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(128, num_classes),
    ))
    return load_pretrained(model, weights, head="head", first="stem.0")
