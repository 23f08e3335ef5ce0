"""Losses against implementations of others, where these packages are installed: torchdistill, mmrazor, timm."""

import importlib.util
import sys
import types
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import registry
from kd import losses

torch.manual_seed(0)
S, T = torch.randn(9, 7, dtype=torch.float64) * 3, torch.randn(9, 7, dtype=torch.float64) * 3
Y = torch.arange(9) % 7
PATHS = ["x", "output", "x", "output"]


def ours(name, *given, **options):
    return registry.get("loss", name).make(*given, **options)


def theirs():
    return pytest.importorskip("torchdistill.losses.mid_level", exc_type=ImportError)


def of_torchdistill(loss, student, teacher, targets=None):
    return loss({"x": {"output": student}}, {"x": {"output": teacher}}, targets)


def test_kd_is_that_of_torchdistill():
    loss = theirs().KDLoss(*PATHS, temperature=3.0, alpha=0.5)
    expected = 0.5 * F.cross_entropy(S, Y) + 0.5 * losses.knowledge_distillation(S, T, temperature=3.0)
    assert torch.allclose(of_torchdistill(loss, S, T, Y), expected, rtol=1e-9)


def test_logit_std_is_that_of_torchdistill():
    loss = theirs().LogitStdKDLoss(*PATHS, temperature=2.0, alpha=0.5, beta=9.0)
    expected = 0.5 * F.cross_entropy(S, Y) + 9 * ours("logit_std", S, T)
    assert torch.allclose(of_torchdistill(loss, S, T, Y), expected, rtol=1e-9)


def test_dist_is_that_of_torchdistill():
    loss = theirs().DISTLoss(*PATHS, beta=1.5, gamma=0.5, tau=4.0)
    expected = ours("dist", S, T, beta=1.5, gamma=0.5, temperature=4.0)
    assert torch.allclose(of_torchdistill(loss, S, T), expected, rtol=1e-8)


def test_rkd_is_that_of_torchdistill():
    student, teacher = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 8, dtype=torch.float64)
    loss = theirs().RKDLoss("x", "x", 1.0, 2.0, "mean")
    assert torch.allclose(of_torchdistill(loss, student, teacher), ours("rkd", student, teacher), rtol=1e-9)


def test_attention_transfer_is_that_of_torchdistill_times_the_places():
    student, teacher = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, 6, 4, 4, dtype=torch.float64)
    pair = {"teacher": {"io": "output", "path": "x"}, "student": {"io": "output", "path": "x"}, "weight": 1}
    expected = of_torchdistill(theirs().ATLoss({"pair": pair}, mode="code"), student, teacher)
    maps = [[losses.attention(x)] * 4 for x in (student, teacher)]
    value = losses.attention_transfer(*maps, weights=(1.0, 0.0, 0.0, 0.0))
    assert torch.allclose(value, expected * 16 / 3136, rtol=1e-9)  # ours is what it is at 56 x 56 places


def test_dkd_is_that_of_mmrazor():
    spec = importlib.util.find_spec("mmrazor")
    if spec is None:
        pytest.skip("mmrazor is not installed")
    file = f"{spec.submodule_search_locations[0]}/models/losses/decoupled_kd.py"  # the package itself imports mmcv
    registers = types.SimpleNamespace(register_module=lambda: lambda loss: loss)
    stub = types.ModuleType("mmrazor.registry")
    stub.MODELS = registers
    with mock.patch.dict(sys.modules, {"mmrazor": types.ModuleType("mmrazor"), "mmrazor.registry": stub}):
        spec = importlib.util.spec_from_file_location("decoupled_kd", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    expected = module.DKDLoss(tau=4.0, alpha=1.5, beta=8.0)(S, T, Y)
    assert torch.allclose(ours("dkd", S, T, Y, 1, 1, alpha=1.5, beta=8.0), expected, rtol=1e-9)


def test_kd_is_that_of_timm():
    timm = pytest.importorskip("timm")
    task = pytest.importorskip("timm.task", exc_type=ImportError).LogitDistillationTask
    student, teacher = (timm.create_model("test_resnet", num_classes=7).eval() for _ in range(2))
    loss = task(student, teacher, criterion=torch.nn.CrossEntropyLoss(), task_loss_weight=0.3, temperature=3.0,
                device=torch.device("cpu"), verbose=False)
    images = torch.randn(4, 3, 160, 160)
    with torch.no_grad():
        result = loss.eval()(images, Y[:4])
        s, t = student(images), teacher(images)
    assert torch.allclose(losses.knowledge_distillation(s, t, temperature=3.0), result["kd_loss"], rtol=1e-4, atol=1e-7)
    expected = 0.3 * losses.cross_entropy(s, Y[:4]) + 0.7 * losses.knowledge_distillation(s, t, temperature=3.0)
    assert torch.allclose(expected, result["loss"], rtol=1e-4)
