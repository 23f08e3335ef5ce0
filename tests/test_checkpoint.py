"""Checkpoint files may be hostile or damaged, and weights are loaded whole or not at all."""

import pickle

import pytest
import torch

import registry
import small
from kd.errors import UserError
from kd.train import checkpoint, networks, setup, weights

CLASSES = ["a", "b", "c"]
INPUT = {"resize": 36, "size": 32, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def tiny(classes=3):
    return registry.create("architecture", "tiny", num_classes=classes, stem="small", weights=None)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = tiny()
    path = tmp_path / "best.pt"
    checkpoint.save(path, model, arch="tiny", stem="small", class_names=CLASSES, input=INPUT, provenance={})
    return path, model


def changed(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def refused(path, match, **expected):
    with pytest.raises(UserError, match=match) as caught:
        checkpoint.load(path, registry, **expected)
    assert "\n" not in caught.value.message


def test_a_saved_checkpoint_is_loaded(saved):
    path, model = saved
    loaded, content = checkpoint.load(path, registry, arch="tiny", class_names=CLASSES)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model.eval()(images))
    assert not loaded.training and content["class_names"] == CLASSES


def test_missing_keys_are_named(saved):
    changed(saved[0], lambda content: content["state_dict"].pop("head.weight"))
    refused(saved[0], r"missing 1 \(head.weight\)")


def test_unexpected_keys_are_named(saved):
    changed(saved[0], lambda content: content["state_dict"].update({"neck.weight": torch.zeros(1)}))
    refused(saved[0], r"unexpected 1 \(neck.weight\)")


def test_other_shapes_are_named(saved):
    changed(saved[0], lambda content: content["state_dict"].update({"head.bias": torch.zeros(9)}))
    refused(saved[0], r"other shapes 1 \(head.bias \[9\] for \[3\]\)")


def test_weights_of_another_architecture_are_refused(saved):
    refused(saved[0], "holds a tiny, not a resnet18", arch="resnet18")
    changed(saved[0], lambda content: content.update(arch="resnet18"))
    refused(saved[0], "does not fit this network: missing")


def test_an_unknown_architecture_is_named(saved):
    changed(saved[0], lambda content: content.update(arch="resnet_of_mine"))
    with pytest.raises((UserError, registry.RegistryError), match="unknown architecture 'resnet_of_mine'"):
        checkpoint.load(saved[0], registry)


def test_another_class_list_or_order_is_refused(saved):
    refused(saved[0], "knows the classes a, b, c, the data have a, b, d", class_names=["a", "b", "d"])
    refused(saved[0], "knows the classes a, b, c, the data have b, a, c", class_names=["b", "a", "c"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    whole = saved[0].read_bytes()
    saved[0].write_bytes(whole[:int(len(whole) * share)])
    refused(saved[0], "best.pt")


def test_one_flipped_byte_anywhere_in_the_weights_is_noticed(saved):
    whole = saved[0].read_bytes()
    state = torch.load(saved[0], weights_only=True)["state_dict"]
    for key in ("stem.0.weight", "stage4.1.running_var", "head.bias"):
        place = whole.index(state[key].numpy().tobytes())
        for position in (place, place + state[key].nbytes - 1):
            saved[0].write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1:])
            refused(saved[0], "is damaged: .* is not what was written")
    saved[0].write_bytes(whole)
    checkpoint.load(saved[0], registry)


def test_errors_of_reading_have_a_hint(saved, tmp_path):
    saved[0].write_bytes(saved[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or no checkpoint\nBring a whole copy"):
        checkpoint.load(saved[0], registry)
    with pytest.raises(UserError, match="is a folder, not a checkpoint file\nName the file in it: .*/best.pt"):
        checkpoint.load(tmp_path, registry)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, value):
    changed(saved[0], lambda content: content["state_dict"]["head.bias"].fill_(value))
    refused(saved[0], "weights that are no finite numbers: head.bias")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_of_other_kinds_are_refused(saved):
    for odd in (torch.zeros(3).to_sparse(), torch.zeros(3, device="meta"), [0.0, 0.0, 0.0]):
        changed(saved[0], lambda content: content["state_dict"].update({"head.bias": odd}))
        refused(saved[0], "other things than plain tensors|truncated or no checkpoint|refused")


@pytest.mark.parametrize("field, value", [
    ("stem", "large"), ("stem", ["small"]), ("class_names", []), ("class_names", ["a", "b", 3]),
    ("class_names", ["a", "b", "a"]), ("class_names", "abc"), ("input", {}), ("input", {**INPUT, "crop": 1}),
    ("input", {**INPUT, "size": "32"}), ("input", {**INPUT, "size": 40}), ("input", {**INPUT, "size": 0}),
    ("input", {**INPUT, "mean": [0.5]}), ("input", {**INPUT, "std": [0.25, 0.0, 0.25]}),
    ("input", {**INPUT, "mean": [0.5, float("nan"), 0.5]}), ("input", {**INPUT, "std": [0.25, None, 0.25]}),
    ("input", {**INPUT, "resize": True}), ("input", {key: INPUT[key] for key in ("resize", "size")}),
])
def test_invalid_metadata_are_refused_with_the_field(saved, field, value):
    changed(saved[0], lambda content: content.update({field: value}))
    refused(saved[0], f"is damaged: {field} is not what it should be")


class Trap:
    def __reduce__(self):
        return (open, ("/nonexistent/trap", "w"))


def test_code_in_a_file_is_not_run(saved, tmp_path):
    changed(saved[0], lambda content: content.update(provenance=Trap()))
    refused(saved[0], "refused: it is no checkpoint, or holds code to run")
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Trap()))
    refused(bare, "refused: it is no checkpoint, or holds code to run")


def test_foreign_files_are_refused(saved, tmp_path):
    other = tmp_path / "other.pt"
    torch.save(tiny().state_dict(), other)
    refused(other, "no checkpoint of this project")
    torch.save([1, 2], other)
    refused(other, "no checkpoint of this project")
    other.write_text("hello")
    refused(other, "other.pt")
    refused(tmp_path / "nowhere.pt", "no such file")
    refused(tmp_path, "is a folder")
    changed(saved[0], lambda content: content.pop("input"))
    refused(saved[0], "lacks input")


def test_pretrained_weights_fill_all_but_the_head(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    source = tiny(classes=10)
    torch.save(source.state_dict(), path)
    model = registry.create("architecture", "tiny", num_classes=3, stem="small", weights=str(path))
    assert torch.equal(model.stage4[0].weight, source.stage4[0].weight) and model.head.weight.shape == (3, 128)
    assert "not taken from it: head.weight, head.bias" in capsys.readouterr().out


def test_pretrained_resnet_weights_go_into_a_small_stem_too(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    source = registry.create("architecture", "resnet18", num_classes=1000, stem="imagenet", weights=None)
    torch.save(source.state_dict(), path)
    registry.create("architecture", "resnet18", num_classes=7, stem="small", weights=str(path))
    assert "not taken from it: conv1.weight, fc.weight, fc.bias" in capsys.readouterr().out


def test_auxiliary_heads_in_a_file_are_left_where_the_network_goes_without_them(tmp_path, capsys):
    from torchvision import models as published
    torch.manual_seed(0)
    source = published.googlenet(num_classes=5, aux_logits=True, init_weights=False, transform_input=True)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")  # with auxiliary heads, as in torchvision's files
    model = registry.create("architecture", "torchvision:googlenet", num_classes=5, stem="imagenet",
                            weights=str(tmp_path / "googlenet.pth"))
    assert "not taken from it: fc.weight, fc.bias, aux1.conv.conv.weight" in capsys.readouterr().out
    model.fc.load_state_dict(source.fc.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model.eval()(images), source.eval()(images), atol=1e-5)
    state = {**tiny().state_dict(), "aux1.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=r"unexpected 1 \(aux1.weight\)"):
        registry.create("architecture", "tiny", num_classes=3, stem="small", weights=str(tmp_path / "tiny.pth"))


def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    state = tiny().state_dict()
    state.pop("stage2.0.weight")
    torch.save(state, path)
    with pytest.raises(UserError, match=r"missing 1 \(stage2.0.weight\)"):
        registry.create("architecture", "tiny", num_classes=3, stem="small", weights=str(path))
    with pytest.raises(UserError, match="does not fit this network"):
        registry.create("architecture", "resnet18", num_classes=3, stem="imagenet", weights=str(path))


def test_imagenet_weights_fail_offline_with_a_hint(monkeypatch, tmp_path):
    import urllib.error
    import urllib.request
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    for name in ("resnet18", "mobilenetv2", "efficientnetb0", "torchvision:shufflenet_v2_x1_0"):
        with pytest.raises(UserError, match="cannot download the ImageNet weights") as caught:
            registry.create("architecture", name, num_classes=7, stem="imagenet", weights="imagenet")
        assert "https://download.pytorch.org/" in caught.value.hint and "--weights FILE" in caught.value.hint
    with pytest.raises(UserError, match="no ImageNet weights"):
        registry.create("architecture", "tiny", num_classes=7, stem="imagenet", weights="imagenet")


def test_any_torchvision_classifier_can_be_named():
    options = {"num_classes": 5, "stem": "imagenet", "weights": None}
    model = registry.create("architecture", "torchvision:shufflenet_v2_x0_5", **options)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    for wrong in ("torchvision:shuflenet_v2_x0_5", "torchvision:fasterrcnn_resnet50_fpn"):
        with pytest.raises(UserError, match="no classifier"):
            registry.create("architecture", wrong, **options)


def test_an_input_that_a_network_cannot_take_is_found_before_training():
    model = registry.create("architecture", "torchvision:squeezenet1_1", num_classes=3, stem="imagenet", weights=None)
    with pytest.raises(UserError, match="squeezenet1_1 cannot take images of 8 px"):
        networks.check_input(model, "torchvision:squeezenet1_1", 8, 3)


def test_what_a_network_has_seen_may_be_a_million_images(tmp_path, monkeypatch):
    path, lists = tmp_path / "best.pt", {"images": [f"{k:016x}" for k in range(9999)], "groups": [], "pictures": ["f"]}
    seen = {"train": lists, "val": {**lists, "groups": ["a", "b"]}}
    monkeypatch.setattr(weights, "OBJECTS", 40_000)  # which the network alone needs
    checkpoint.save(path, tiny(), arch="tiny", stem="small", class_names=["a", "b"], input=INPUT,
                    provenance={"seen": seen})
    content = checkpoint.read(path)
    assert setup.seen(content, path) == seen
    content["provenance"]["seen"] = seen  # as older versions wrote it
    assert setup.seen(content, path) == seen


def test_a_checkpoint_has_plain_values_only(tmp_path):
    data = small.data(folder=tmp_path)
    from kd.data import splits
    checkpoint.save(tmp_path / "best.pt", tiny(), arch="tiny", stem="small", class_names=data.class_names,
                    input={**INPUT, **data.input()}, provenance={"seen": splits.seen_by(data)})

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return type(value) in (str, int, float, bool, type(None), torch.Tensor)

    content = checkpoint.read(tmp_path / "best.pt")
    assert plain({key: value for key, value in content.items() if key != "state_dict"})


def test_a_network_of_a_plugin_that_is_not_loaded_names_the_plugin(tmp_path):
    class Unknown:
        def get(self, kind, name):
            raise LookupError(f"unknown {kind} {name!r}; did you mean tiny?\nThere are: tiny.")

    model = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path / "best.pt", model, arch="mine", stem="imagenet", class_names=["a", "b"], provenance={},
                    input={"resize": 36, "size": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(LookupError):
        checkpoint.load(tmp_path / "best.pt", Unknown())
    (tmp_path / "config.yaml").write_text("plugin: [my nets.py]\n")
    with pytest.raises(UserError, match="unknown architecture 'mine'") as caught:
        checkpoint.load(tmp_path / "best.pt", Unknown())
    assert "--plugin 'my nets.py'" in caught.value.hint or '--plugin "my nets.py"' in caught.value.hint
