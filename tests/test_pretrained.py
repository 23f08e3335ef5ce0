"""Pretrained weights: files of torchvision and timm fit the registered networks, and other files are refused."""

import json
import struct

import pytest
import torch
from torchvision import models as torchvision

import registry
from kd.errors import UserError
from kd.train import weights


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


# ---- files without a head, and in other formats

def of(state, path, names=None):
    """Write a state dict as .safetensors by the description of the format, not with our reader's code."""
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for key, value in state.items():
        data = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes()
        header[key] = {"dtype": kinds[value.dtype], "shape": list(value.shape),
                       "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps({**header, **(names or {})}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.backbone."])
def test_a_file_without_the_head_gives_its_body_and_the_head_starts_fresh(tiny, tmp_path, capsys, suffix, prefix):
    state = {f"{prefix}{key}": value for key, value in body(tiny).items()}
    path = tmp_path / f"x{suffix}"
    of(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = registry.create("architecture", "tiny", num_classes=3, stem="small", weights=path)
    taken = body(model.state_dict())
    assert all(torch.equal(taken[key], value) for key, value in body(tiny).items())
    assert "it has no head (" in capsys.readouterr().out
    del state[next(iter(state))]
    of(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(UserError, match="does not fit this network: missing"):
        registry.create("architecture", "tiny", num_classes=3, stem="small", weights=path)


def test_a_network_of_timm_without_head_is_matched_by_order(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    source = statistics(timm.create_model("resnet18", num_classes=0))
    theirs = timm.create_model("mobilenetv2_100", num_classes=0)
    for name, model in (("resnet18", source), ("mobilenetv2", theirs)):
        file = of(model.state_dict(), tmp_path / f"{name}.safetensors")
        ours = registry.create("architecture", name, num_classes=5, stem="imagenet", weights=file).eval()
        first, last = (list(model.state_dict().values()) for model in (model, ours))
        same = [torch.equal(a, b) for a, b in zip(first, last) if a.ndim == 4]
        assert len(same) > 15 and all(same)


def test_safetensors_are_read_as_they_are_written(tiny, tmp_path):
    package = pytest.importorskip("safetensors.torch")
    package.save_file(tiny, tmp_path / "x.safetensors", metadata={"a": "b"})
    whole = {**tiny, "half": torch.randn(3, 2).half(), "brain": torch.randn(2).bfloat16(), "none": torch.zeros(0, 4)}
    package.save_file(whole, tmp_path / "y.safetensors")
    for state, name in ((tiny, "x"), (whole, "y")):
        found = weights.safe_load(tmp_path / f"{name}.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)


@pytest.mark.parametrize("change", [
    lambda data: data[:-1], lambda data: data[:20], lambda data: b"",
    lambda data: struct.pack("<Q", 2 ** 60) + data[8:],
    lambda data: data.replace(b'"F32"', b'"F99"'), lambda data: data.replace(b'"dtype"', b'"dtypo"'),
    lambda data: struct.pack("<Q", 2) + b"[]" + data[8:], lambda data: b"PK\x03\x04" + data[4:]])
def test_damaged_safetensors_are_one_line(tiny, tmp_path, change):
    path = of(tiny, tmp_path / "x.safetensors")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        weights.safe_load(path)
    assert "\n" not in caught.value.message and caught.value.hint


def test_parts_that_overlap_are_refused_before_they_fill_the_memory(tiny, tmp_path):
    size = sum(value.numel() * value.element_size() for value in tiny.values())
    many = {f"x{k}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]} for k in range(100)}
    with pytest.raises(UserError, match="its parts are longer than the file"):
        weights.safe_load(of(tiny, tmp_path / "x.safetensors", many))


def test_of_a_whole_model_it_is_said_how_to_save_its_weights(tmp_path):
    model = torch.nn.Linear(3, 2)
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UserError, match="is refused") as caught:
        weights.safe_load(tmp_path / "model.pt")
    assert "torch.save(model.state_dict(), FILE)" in caught.value.hint
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert weights.safe_load(tmp_path / "model.pt").keys() == {"weight", "bias"}
