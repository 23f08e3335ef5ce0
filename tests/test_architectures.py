"""Registered networks, the families torchvision: and timm:, and stages that are named with --stages."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

import distill
import registry
import train_teacher
from kd import image, onnx_model
from kd.errors import UserError
from kd.files import read_csv, read_yaml
from kd.train import checkpoint, networks, setup
from kd.train.stages import check_stages

# registered name -> torchvision's
NAMED = {"mobilenetv3small": "mobilenet_v3_small", "mobilenetv3large": "mobilenet_v3_large",
         "shufflenetv2": "shufflenet_v2_x1_0", "efficientnetv2s": "efficientnet_v2_s",
         "convnexttiny": "convnext_tiny", "regnety400mf": "regnet_y_400mf"}
MEMBERS = ("timm:mobilenetv3_small_050", "timm:resnet10t")


def built(name, stem="imagenet", classes=7, **options):
    """A kd.train.networks.Network in eval mode, from a fixed seed."""
    torch.manual_seed(0)
    model = registry.create("architecture", name, num_classes=classes, stem=stem, weights=None, **options)
    return networks.Network(model.eval(), name, stem, **setup.inside(registry.get("architecture", name), model))


def outputs(network, size):
    """(logits, features, pooled) for two random images of `size` px."""
    reader = networks.FeatureExtractor(network.model, network.stages, network.head)
    with torch.no_grad():
        logits = reader(torch.randn(2, 3, size, size))
    reader.close()
    return logits, reader.features, reader.pooled


# ---- the named architectures

@pytest.mark.parametrize("name", NAMED)
def test_stages_are_at_strides_4_to_32_and_with_the_small_stem_at_1_to_8(name):
    for stem, size, strides in (("imagenet", 224, [4, 8, 16, 32]), ("imagenet", 64, [4, 8, 16, 32]),
                                ("imagenet", 32, [4, 8, 16, 32]), ("small", 32, [1, 2, 4, 8])):
        network = built(name, stem)
        logits, features, pooled = outputs(network, size)
        assert [(f.shape[2], f.shape[3]) for f in features] == [(size // s, size // s) for s in strides]
        with torch.no_grad():
            assert torch.allclose(network.model.get_submodule(network.head)(pooled), logits, atol=1e-5)
        check_stages(network.model, name, network.stages, size)
        networks.check_input(network.model, name, size, 7)


@pytest.mark.parametrize("name", NAMED)
def test_names_and_shapes_of_the_weights_are_those_of_torchvision_but_for_the_head(name):
    network, theirs = built(name), models.get_model(NAMED[name]).state_dict()
    ours = network.model.state_dict()
    assert ours.keys() == theirs.keys() == built(name, "small").model.state_dict().keys()
    other = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert other == [f"{network.head}.weight", f"{network.head}.bias"] and ours[other[0]].shape[0] == 7
    assert networks.parameters(network.model) == sum(
        p.numel() for p in models.get_model(NAMED[name], num_classes=7).parameters())
    assert registry.get("architecture", NAMED[name]) is registry.get("architecture", name)


@pytest.mark.parametrize("name", NAMED)
def test_a_small_stem_takes_pretrained_weights_but_for_a_first_convolution_of_another_shape(name, tmp_path, capsys):
    network = built(name)
    theirs = {key: value + 1 for key, value in network.model.state_dict().items()}  # nowhere the initial values
    torch.save(theirs, tmp_path / "theirs.pt")
    ours = registry.create("architecture", name, num_classes=7, stem="small", weights=tmp_path / "theirs.pt")
    fresh = {key for key, value in ours.state_dict().items() if not torch.equal(value, theirs[key])}
    first = {"features.0.0.weight"} if name == "convnexttiny" else set()
    assert fresh == {f"{network.head}.weight", f"{network.head}.bias", *first}
    printed = capsys.readouterr().out
    assert all(key in printed for key in fresh)


def exported_logits(network, size, path):
    """(logits of a Deployed, logits of its ONNX file) for the same random uint8 images."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from kd.edge import convert
    content = {"class_names": [f"class {k}" for k in range(7)], "provenance": {}, "arch": network.arch,
               "state_dict": network.model.state_dict(),
               "input": {"resize": size, "size": size, "interpolation": image.INTERPOLATION,
                         "mean": list(network.mean), "std": list(network.std)}}
    metadata = convert.describe(network.model, content)
    deployed = convert.deployed(network.model, content)
    path.write_bytes(convert.to_onnx(deployed, size, metadata).SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    return convert.logits(deployed, pixels), onnx_model.Model(path).logits(pixels)


def assert_exports(name, folder):
    network = built(name)
    for module in network.model.modules():  # so that the logits of different images differ
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.05, 0.1)
    expected, logits = exported_logits(network, 64, folder / "model.onnx")
    assert expected.std(0).max() > 1e-4 and np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, *MEMBERS, "timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_an_onnx_file_of_each_network_has_its_logits(name, tmp_path):
    assert_exports(name, tmp_path)


# ---- the families

@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_timm_has_stages_and_a_head(name):
    pytest.importorskip("timm")
    network = built(name)
    logits, features, pooled = outputs(network, 224)
    assert [feature.shape[2] for feature in features] == [56, 28, 14, 7]
    with torch.no_grad():
        assert torch.allclose(network.model.get_submodule(network.head)(pooled), logits, atol=1e-5)


@pytest.mark.parametrize("name, flat", [("mobilenetv3_small_050", False), ("convnext_atto", True),
                                        ("mobilenetv4_conv_small", False), ("repvgg_a0", True)])
def test_the_stages_of_timm_give_what_its_own_feature_extractor_gives(name, flat):
    timm = pytest.importorskip("timm")
    network = built(f"timm:{name}")
    theirs = timm.create_model(name, features_only=True).eval()
    ours = {key.replace(".", "_"): value for key, value in network.model.state_dict().items()}  # it flattens modules
    theirs.load_state_dict({key: ours[key.replace(".", "_")] for key in theirs.state_dict()})
    images = torch.randn(1, 3, 96, 96)
    reader = networks.FeatureExtractor(network.model, network.stages)
    with torch.no_grad():
        reader(images)
        expected = dict(zip(theirs.feature_info.reduction(), theirs(images)))
    for stride, feature in zip((4, 8, 16, 32), reader.features, strict=True):
        assert torch.allclose(feature, expected[stride], atol=1e-4)


@pytest.mark.parametrize("name, head", [
    ("vit_tiny_patch16_224", "head"),                # one stride in all blocks
    ("hiera_tiny_224", "head.fc"),                   # rows of tokens
    ("swin_tiny_patch4_window7_224", "head.fc"),     # channels last
    ("hrnet_w18_small", "classifier"),               # names that only timm's feature extractor has
    ("deit_tiny_distilled_patch16_224", None),       # two heads
])
def test_stages_and_heads_that_are_not_as_losses_read_them_are_not_known(name, head):
    pytest.importorskip("timm")
    network = built(f"timm:{name}")
    assert network.stages == () and network.head == head


def test_a_member_of_timm_is_normalised_as_its_weights_expect():
    pytest.importorskip("timm")
    network = built("timm:vit_tiny_patch16_224")
    assert network.mean == network.std == (0.5, 0.5, 0.5)
    assert built("timm:resnet10t").mean == image.MEAN


def test_a_transformer_of_timm_takes_images_of_other_sizes_than_its_own():
    timm = pytest.importorskip("timm")
    network, images = built("timm:vit_tiny_patch16_224").model, torch.randn(1, 3, 224, 224)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    theirs.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.allclose(network(images), theirs(images), atol=1e-5)
        assert network(images[..., :64, :64]).shape == (1, 7)


def test_a_head_of_torchvision_is_known_where_it_takes_one_vector_an_image():
    assert built("torchvision:shufflenet_v2_x0_5").head == "fc" and built("torchvision:squeezenet1_1").head is None


def test_weights_of_a_network_with_two_heads_leave_both_fresh(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "theirs.pth")
    model = registry.create("architecture", "timm:deit_tiny_distilled_patch16_224", num_classes=7, stem="imagenet",
                            weights=tmp_path / "theirs.pth")
    state = source.state_dict()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, state[key])}
    assert state.keys() - same == {f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}
    assert "not taken from it: head.weight, head.bias, head_dist.weight, head_dist.bias" in capsys.readouterr().out


def test_a_mistake_in_a_name_of_timm_is_one_line():
    pytest.importorskip("timm")
    for name, words, hint in (
            ("resnet10", "no classifier 'resnet10'; did you mean resnet10t", "list_models"),
            ("hf-hub:timm/resnet10t", "no classifier", "list_models"),  # would be read from the net
            ("resnet10t.no_such", "cannot build resnet10t.no_such: Invalid pretrained tag", "resnet10t.c3_in1k")):
        with pytest.raises(UserError, match=words) as caught:
            built(f"timm:{name}")
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="timm:resnet10t has no small stem"):
        built("timm:resnet10t", "small")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs the package timm") as caught:
        built("timm:resnet10t")
    assert 'pip install -e ".[timm]"' in caught.value.hint
    assert "timm:NAME" in registry.table()


def test_weights_of_timm_are_downloaded_for_imagenet_alone(monkeypatch, capsys):
    timm = pytest.importorskip("timm")
    create, asked = timm.create_model, []

    def create_model(name, pretrained=False, dynamic_img_size=None, **options):
        asked.append(pretrained)
        model = create(name, **options)
        if pretrained:
            torch.nn.init.constant_(model.layer1[0].conv1.weight, 0.25)
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    make = {"num_classes": 7, "stem": "imagenet"}
    registry.create("architecture", "timm:resnet10t", weights=None, **make)
    assert asked == [False] and "huggingface" not in capsys.readouterr().out
    model = registry.create("architecture", "timm:resnet10t", weights="imagenet", **make)
    printed = capsys.readouterr().out
    assert asked[1:] == [False, True] and (model.layer1[0].conv1.weight == 0.25).all()
    assert "from https://huggingface.co/timm/resnet10t" in printed and "fc.weight, fc.bias" in printed

    def offline(name, pretrained=False, dynamic_img_size=None, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"cannot download the weights of timm:resnet10t \(no network\)") as caught:
        registry.create("architecture", "timm:resnet10t", weights="imagenet", **make)
    assert "--weights FILE" in caught.value.hint
    with pytest.raises(UserError, match="no pretrained weights of botnet50ts_256"):
        registry.create("architecture", "timm:botnet50ts_256", weights="imagenet", **make)


# ---- --stages

class Parts(torch.nn.Module):
    """Modules with outputs of many shapes: maps, tokens, channels last, a pair; one of them runs twice, one never."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 1, 1)
        self.twice, self.never = torch.nn.ReLU(), torch.nn.ReLU()
        self.tokens, self.last = torch.nn.Flatten(2), Last()
        self.head = torch.nn.Linear(4, 7)

    def forward(self, images):
        x = self.twice(self.second(self.twice(self.first(images))))
        self.last(x)
        return self.head(self.tokens(x).mean(2))


class Last(torch.nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("stages, words", [
    (("first", "sekond", "twice", "head"), r"has no module 'sekond', which .*\nThe nearest are: second"),
    (("first", "xyz", "twice", "head"), r"no module 'xyz', .*\nIts outer modules are: first, second, twice"),
    (("first", "twice", "second", "head"), "runs twice 2 times"),
    (("first", "second", "never", "head"), "runs never 0 times"),
    (("first", "second", "tokens", "head"), r"tokens of x gives \[2, 4, 64\] for two images of 16 px"),
    (("first", "second", "last", "head"), r"last of x gives \[2, 8, 8, 4\]"),
    (("second", "first"), "in the order first second, not second first"),
    (("first", "first"), "in the order first, not first first"),
])
def test_stages_that_cannot_be_read_are_named(stages, words):
    model = Parts()
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        check_stages(model, "x", stages, 16)
    assert "\n" not in caught.value.message and model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [*MEMBERS, "timm:tf_efficientnetv2_b0", "timm:repvgg_a0"])
def test_a_folded_teacher_of_timm_says_the_same(name):
    pytest.importorskip("timm")
    network = built(name)
    for module in network.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.manual_seed(1)
    logits, features, _ = outputs(network, 96)
    networks.fold_batch_norm(network.model, network.stages)
    torch.manual_seed(1)
    folded, folded_features, _ = outputs(network, 96)
    for before, after in zip([logits, *features], [folded, *folded_features], strict=True):
        assert (before - after).abs().max() < 1e-4 * before.abs().max()


def test_a_convolution_that_is_a_stage_is_not_folded():
    network = built("resnet18")
    network.stages = ("layer1.0.conv1", "layer2", "layer3", "layer4")
    torch.nn.init.constant_(network.model.layer1[0].bn1.weight, 3)
    torch.manual_seed(1)
    _, before, _ = outputs(network, 32)
    networks.fold_batch_norm(network.model, network.stages)
    torch.manual_seed(1)
    _, after, _ = outputs(network, 32)
    assert torch.allclose(before[0], after[0], atol=1e-5) and isinstance(network.model.bn1, torch.nn.Identity)


DATA = ["--data=lesions,images=140", "--epochs=1", "--train-only", "--workers=0", "--study=s", "--cache=cache"]
UNKNOWN = "torchvision:shufflenet_v2_x0_5"
STAGES = ["maxpool", "stage2", "stage3", "conv5"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_members_of_timm_are_trained_with_attention_transfer(here, no_report):
    pytest.importorskip("timm")
    teacher, = train_teacher.main([*DATA, "--size=32", "--teacher=timm:resnet10t"])
    student, = distill.main([*DATA, "--size=32", "--student=timm:mobilenetv3_small_050", "--beta=10",
                             f"--teacher={teacher}"])
    row, = read_csv(student / "history.csv")
    assert 0 < float(row["at"]) < float("inf")
    assert (student / "attention.npz").exists()  # stages of both were read again from the checkpoints
    for run in (teacher, student):
        network, content = setup.load_network(run / "best.pt", registry)
        assert len(network.stages) == 4 and network.head and "stages" not in content["provenance"]


def test_losses_on_stages_refuse_a_transformer_until_modules_are_named(here):
    pytest.importorskip("timm")
    start = [*DATA, "--size=32", "--student=timm:vit_tiny_patch16_224", "--beta=1"]
    with pytest.raises(UserError, match="stages of timm:vit_tiny_patch16_224 are not known") as caught:
        distill.main(start)
    assert "--stages" in caught.value.hint
    with pytest.raises(UserError, match=r"blocks.0 of timm:vit_\S+ gives \[2, 5, 192\]"):
        distill.main([*start, "--stages", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    assert not (here / "runs").exists()


def test_named_stages_are_used_kept_and_found_again(here, no_report, capsys):
    start = [*DATA, "--size=32", "--stages", *STAGES]
    teacher, = train_teacher.main([*start, f"--teacher={UNKNOWN}"])
    assert read_yaml(teacher / "config.yaml")["stages"] == STAGES
    assert checkpoint.read(teacher / "best.pt")["provenance"]["stages"] == STAGES
    alone = here / "elsewhere.pt"
    alone.write_bytes((teacher / "best.pt").read_bytes())  # without its run folder
    network, _ = setup.load_network(alone, registry)
    assert network.stages == tuple(STAGES)

    student, = distill.main([*DATA, "--size=32", f"--teacher={alone}", "--student=tiny", "--beta=10"])
    assert (student / "attention.npz").exists() and read_yaml(student / "config.yaml")["stages"] is None
    student, = distill.main([*start, f"--teacher={alone}", f"--student={UNKNOWN}", "--beta=10"])
    assert (student / "attention.npz").exists()
    capsys.readouterr()
    distill.main(["--config", str(student / "config.yaml"), "--train-only"])
    assert "left as it is" in capsys.readouterr().out
    with pytest.raises(UserError, match="stages was .*maxpool.*, now .*stage4"):
        distill.main(["--config", str(student / "config.yaml"), "--stages", "maxpool", "stage2", "stage3", "stage4"])
    longer, = distill.main([*DATA, "--size=32", f"--student={UNKNOWN}", "--alpha=1", "--name=longer",
                            f"--init={student / 'best.pt'}"])
    assert checkpoint.read(longer / "best.pt")["provenance"]["stages"] == STAGES  # of --init, whose network it is


def test_a_teacher_without_stages_is_refused_before_anything_is_written(here):
    teacher, = train_teacher.main([*DATA, "--size=32", f"--teacher={UNKNOWN}"])
    with pytest.raises(UserError, match=f"stages of {UNKNOWN} are not known") as caught:
        distill.main([*DATA, "--size=32", f"--teacher={teacher}", "--student=tiny", "--beta=10", "--name=x"])
    assert "when it is trained" in caught.value.hint and "--stages" in caught.value.hint
    assert [path.name for path in Path("runs/s").iterdir()] == [teacher.parent.name]


def test_the_teacher_that_is_trained_first_has_stages_of_its_own(here, monkeypatch):
    called = []
    monkeypatch.setattr(train_teacher, "main", lambda argv: called.append(argv) or pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        distill.main([*DATA, "--size=32", f"--student={UNKNOWN}", "--beta=1", "--stages", *STAGES])
    assert not any("stages" in word for word in called[0])


@pytest.mark.parametrize("stages", ["maxpool", ["maxpool"], [1, 2, 3, 4], ["maxpool", "stage2", "stage3", "x"], {}])
def test_damaged_stages_of_a_checkpoint_are_an_error(stages, tmp_path):
    network = built(UNKNOWN)
    checkpoint.save(tmp_path / "best.pt", network.model, arch=UNKNOWN, stem="imagenet",
                    class_names=[f"class {k}" for k in range(7)], provenance={"stages": stages},
                    input={"resize": 32, "size": 32, "interpolation": image.INTERPOLATION, "mean": list(image.MEAN),
                           "std": list(image.STD)})
    with pytest.raises(UserError, match="its stages are not four modules"):
        setup.load_network(tmp_path / "best.pt", registry)


def test_a_mistake_in_stages_is_found_before_training(here):
    for script, start in ((distill, ["--student=tiny"]), (train_teacher, ["--teacher=tiny"])):
        for stages, words in ((["stage1", "stage2", "stage3", "stage5"], "tiny has no module 'stage5'"),
                              (["stage1", "stage2", "stage3", "pool"], None), (["stage1"], "expected 4"),
                              (["stage1", "stage2", "stage3", "head"], r"head of tiny gives \[2, 7\]")):
            if words:
                with pytest.raises(UserError, match=words) as caught:
                    script.main([*DATA, "--size=16", *start, "--stages", *stages])
                assert not re.search("nearest", caught.value.hint) or "stage4" in caught.value.hint
    assert not (here / "runs").exists()
