"""A teacher with batch normalisation folded into its convolutions says the same."""

import pytest
import torch
from torch import nn

import registry
from kd.train import networks


def used(name):
    """A network with statistics that differ from layer to layer, in eval mode, and its registered inside."""
    torch.manual_seed(0)
    entry = registry.get("architecture", name)
    model = registry.create("architecture", name, num_classes=3, stem="imagenet", weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval(), entry.info["stages"], entry.info["head"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2", "mobilenetv3small", "efficientnetb0",
                                  "efficientnetlite0", "shufflenetv2", "regnety400mf", "tiny"])
def test_logits_features_and_pooled_stay_and_no_normalisation_is_left(name):
    model, stages, head = used(name)
    images, reader = torch.randn(2, 3, 64, 64), networks.FeatureExtractor(model, stages, head)
    with torch.no_grad():
        logits, features, pooled = reader(images), reader.features, reader.pooled
        count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        reader.close()
        assert networks.fold_batch_norm(model) == count > 0
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        reader = networks.FeatureExtractor(model, stages, head)
        for before, after in zip(
            [logits, pooled, *features], [reader(images), reader.pooled, *reader.features], strict=True
        ):
            assert (before - after).abs().max() < 1e-4 * before.abs().max()


class Shared(nn.Module):
    """Two normalisations of one convolution's output, and a normalisation of no convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm1, self.norm2, self.norm3 = (
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4),
        )

    def forward(self, x):
        x = self.conv(x)
        return self.norm3(torch.relu(self.norm1(x) + self.norm2(x)))


class Twice(nn.Module):
    """One convolution and one normalisation, called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class Branching(nn.Module):
    """What it computes depends on the values, so its graph cannot be followed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


@pytest.mark.parametrize("kind", [Shared, Twice, Branching])
def test_what_cannot_be_folded_is_left_as_it_is(kind):
    model, images = kind().eval(), torch.rand(2, 3, 8, 8)
    before = model(images)
    assert networks.fold_batch_norm(model) == 0 and torch.equal(model(images), before)
