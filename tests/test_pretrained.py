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
                                          ("mobilenetv2", "mobilenet_v2"), ("efficientnetb0", "efficientnet_b0"),
                                          ("mobilenetv3small", "mobilenet_v3_small"),
                                          ("mobilenetv3large", "mobilenet_v3_large"),
                                          ("regnety400mf", "regnet_y_400mf"), ("convnexttiny", "convnext_tiny"),
                                          ("shufflenetv2", "shufflenet_v2_x1_0"),
                                          ("efficientnetv2s", "efficientnet_v2_s")])
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
    other = {key.replace("features", "blocks"): value for key, value in sorted(state.items())}
    file = tmp_path / "sorted.pt"
    torch.save(other, file)
    with pytest.raises(UserError, match="does not fit this network: missing"):
        registry.create("architecture", "mobilenetv2", num_classes=5, stem="imagenet", weights=file)


# ---- what other programs write around a state dict, and before its names

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(1)
    return registry.create("architecture", "tiny", num_classes=7, stem="small", weights=None).state_dict()


def body(state):
    """The weights without the head, which starts fresh."""
    head = registry.get("architecture", "tiny").info["head"]
    return {key: value for key, value in state.items() if not key.startswith(f"{head}.")}


def loaded(content, path):
    torch.save(content, path)
    model = registry.create("architecture", "tiny", num_classes=3, stem="small", weights=path)
    return body(model.state_dict())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    *[lambda state, name=name: {name: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
      for name in ("net", "model", "model_state", "model_state_dict", "state_dict", "ema", "ema_state_dict", "params",
                   "params_ema", "network", "encoder", "student", "teacher", "weights", "state_dict_ema")],
    *[lambda state, prefix=prefix: {prefix + key: value for key, value in state.items()}
      for prefix in ("module.", "model.", "_orig_mod.", "module._orig_mod.", "net.", "_orig_mod.module.model.")],
    lambda state: {"ema": {"decay": 0.99, "module": {f"module.{key}": value for key, value in state.items()}}},
    lambda state: {"ema": {"decay": 0.99, "updates": 7}, "model": state},
    lambda state: {"state_dict": {**{f"model.{key}": value for key, value in state.items()},
                                  "criterion.weight": torch.ones(7)}, "hyper_parameters": {"lr": 0.1}},
    lambda state: {"teacher": {**{f"module.backbone.{key}": value for key, value in state.items()},
                               "module.head.mlp.weight": torch.ones(2, 2)}},
])
def test_weights_are_found_in_what_training_programs_save(wrap, tiny, tmp_path):
    assert equal(loaded(wrap(tiny), tmp_path / "theirs.pth"), body(tiny))


def test_averaged_weights_come_before_those_of_the_last_step(tiny, tmp_path, capsys):
    last = {key: torch.zeros_like(value) for key, value in tiny.items()}
    assert equal(loaded({"model": last, "ema": tiny}, tmp_path / "both.pth"), body(tiny))
    assert "taken from ema" in capsys.readouterr().out


@pytest.mark.parametrize("content", [{}, {"net": {}}, {"epoch": 3}, [1], {"net": {"net": {"net": {"net": {}}}}},
                                     {"optimizer": {"x": torch.ones(1)}}, {"net": {"a": 1}}])
def test_a_file_without_weights_says_what_it_holds(content, tmp_path):
    with pytest.raises(UserError, match="is not a state dict") as caught:
        loaded(content, tmp_path / "other.pth")
    assert not isinstance(content, dict) or all(repr(key) in caught.value.message for key in content)


def test_a_file_that_holds_itself_ends(tiny, tmp_path):
    content = {}
    content.update({name: content for name in ("net", "model", "ema")})
    with pytest.raises(UserError, match="is not a state dict"):
        loaded(content, tmp_path / "cycle.pth")


class Block(torch.nn.Module):
    """Of the ResNet-18 of MedMNIST's experiments (2110.14795): its names differ from torchvision's."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outer)
        self.conv2 = torch.nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outer)
        self.shortcut = torch.nn.Sequential() if inner == outer else torch.nn.Sequential(
            torch.nn.Conv2d(inner, outer, 1, stride, bias=False), torch.nn.BatchNorm2d(outer))

    def forward(self, x):
        inside = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inside + self.shortcut(x))


class MedMNISTResNet(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(channels, 64, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(64)
        for k, (inner, outer) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
            setattr(self, f"layer{k}", torch.nn.Sequential(Block(inner, outer, 1 + (k > 1)), Block(outer, outer, 1)))
        self.linear = torch.nn.Linear(512, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_checkpoint_of_medmnist_gives_the_logits_that_it_gives_there(channels, tmp_path):
    torch.manual_seed(0)
    source = MedMNISTResNet(channels, 9)
    source.train()(torch.randn(4, channels, 28, 28))
    torch.save({"net": source.eval().state_dict()}, tmp_path / "resnet18_28_1.pth")
    ours = registry.create("architecture", "resnet18", num_classes=9, stem="small",
                           weights=tmp_path / "resnet18_28_1.pth").eval()
    ours.fc.load_state_dict(source.linear.state_dict())
    images = torch.randn(2, 1, 28, 28).expand(2, channels, 28, 28)
    with torch.no_grad():
        assert torch.allclose(ours(images.expand(2, 3, 28, 28)), source(images), atol=1e-4)
