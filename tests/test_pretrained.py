"""Pretrained weights: files of torchvision and timm fit the registered networks, and other files are refused."""

import pytest
import torch
from torchvision import models as torchvision

import registry
from kd.errors import UserError


def statistics(model, size=64):
    """The model in eval mode, with statistics of batch normalisation that differ from layer to layer."""
    model.train()(torch.randn(8, 3, size, size))
    return model.eval()


def same_logits(name, source, file):
    """Whether the network `name` with the weights of `file` computes the logits of `source` under the same head."""
    ours = registry.create("architecture", name, num_classes=5, stem="imagenet", weights=file).eval()
    head = ours.get_submodule(registry.get("architecture", name).info["head"])
    theirs = [module for module in source.modules() if isinstance(module, torch.nn.Linear)][-1]
    head.load_state_dict({key: value[:5] for key, value in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return torch.allclose(ours(images), source(images)[:, :5], atol=1e-4)


@pytest.mark.parametrize("name, theirs", [("resnet18", "resnet18"), ("resnet34", "resnet34"), ("resnet50", "resnet50"),
                                          ("mobilenetv2", "mobilenet_v2"), ("efficientnetb0", "efficientnet_b0")])
def test_a_state_dict_of_torchvision_gives_the_logits_that_it_gives_in_torchvision(name, theirs, tmp_path):
    torch.manual_seed(0)
    source = statistics(torchvision.get_model(theirs))  # 1,000 classes
    torch.save(source.state_dict(), tmp_path / "torchvision.pth")
    assert same_logits(name, source, tmp_path / "torchvision.pth")


@pytest.mark.parametrize("name, theirs", [("resnet18", "resnet18"), ("resnet50", "resnet50"),
                                          ("mobilenetv2", "mobilenetv2_100"), ("efficientnetb0", "efficientnet_b0"),
                                          ("efficientnetlite0", "tf_efficientnet_lite0")])
def test_a_state_dict_of_timm_gives_the_logits_that_it_gives_in_timm(name, theirs, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    source = statistics(timm.create_model(theirs, num_classes=11))
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    assert same_logits(name, source, tmp_path / "timm.pth")


def test_tensors_in_alphabetical_order_are_not_taken_for_those_of_the_network(tmp_path):
    state = registry.create("architecture", "mobilenetv2", num_classes=5, stem="imagenet", weights=None).state_dict()
    other = {f"x.{key}": value for key, value in sorted(state.items())}
    file = tmp_path / "sorted.pt"
    torch.save(other, file)
    with pytest.raises(UserError, match="does not fit this network: missing"):
        registry.create("architecture", "mobilenetv2", num_classes=5, stem="imagenet", weights=file)
