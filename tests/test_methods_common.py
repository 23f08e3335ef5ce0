"""What holds for all losses: gradients, equal logits, odd input, half precision, refusals, mixed labels, the docs."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import registry
from kd import objective
from kd.errors import UserError
from methods import GIVEN, HARD, NOT_OF_TWO, SPECS, N, S, T, built, find, inputs, kl, softmax, value

# ---- what holds for all

@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_is_that_of_the_loss(spec):
    reads = [need for need in built(spec, GIVEN).needs[0] if need.startswith("student_") and need != "student_tau"]
    tensors = [x.clone().requires_grad_() for need in reads
               for x in (GIVEN[need] if isinstance(GIVEN[need], list) else [GIVEN[need]])]

    def run(*values):
        values, given = list(values), dict(GIVEN)
        for need in reads:
            given[need] = ([values.pop(0) for _ in GIVEN[need]] if isinstance(GIVEN[need], list) else values.pop(0))
        loss = built(spec, GIVEN)
        if spec.startswith("crd"):
            loss.losses[0].z.fill_(30.0)  # a constant after the first batch
        torch.manual_seed(1)
        return loss(given)[0]

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("spec, zero", [
    ("kd", True), ("dkd", True), ("logit_std", True), ("logit_std,of=dkd", True), ("dist", True), ("rkd", True),
    ("sp", True), ("at", True), ("rld", False), ("bkd", False), ("ltkd", False), ("wttm", False),
    ("prior_kd", False), ("crd", False)])
def test_a_student_like_its_teacher_has_the_loss_0_or_not_by_design(spec, zero):
    like = {key.replace("student_", "teacher_"): given for key, given in GIVEN.items()
            if key.startswith("student_") and key != "student_tau"}
    loss = float(value(spec, {**GIVEN, **like}).detach())
    assert (abs(loss) < 1e-7) == zero


def test_rld_is_0_for_equal_logits_where_the_teacher_is_right():
    right = torch.from_numpy(S.argmax(1))
    loss = value("rld", GIVEN, teacher_logits=GIVEN["student_logits"], labels=right)
    assert float(loss) == pytest.approx(0, abs=1e-9)


def finite(spec, given):
    """Whether loss and gradients are finite; the loss is float32 for half precision."""
    given = {key: x.clone().requires_grad_() if key in ("student_logits", "student_pooled") else x
             for key, x in given.items()}
    given["student_features"] = [x.clone().requires_grad_() for x in given["student_features"]]
    loss = value(spec, given)
    trained = [given["student_logits"], given["student_pooled"], *given["student_features"]]
    if not loss.requires_grad:  # attention maps come from elsewhere
        return bool(torch.isfinite(loss))
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return bool(torch.isfinite(loss)) and all(torch.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("spec", SPECS)
def test_odd_input_gives_finite_losses_and_gradients(spec):
    assert finite(spec, inputs(scale=1e4, dtype=torch.float32)), "logits of 1e4"
    assert finite(spec, inputs(count=1)), "one image"
    assert finite(spec, inputs(count=4)), "a batch without some classes"
    if spec not in NOT_OF_TWO:
        assert finite(spec, inputs(classes=2)), "two classes"
    for dtype in (torch.float16, torch.bfloat16):
        given = inputs(scale=30, dtype=dtype)
        assert finite(spec, given) and value(spec, given).dtype == torch.float32, dtype
    plain = inputs(dtype=torch.float32)
    equal, sure, same = torch.zeros(6, 7), 200 * torch.eye(7)[:6], 200 * torch.eye(7)[[0] * 6]
    for student, teacher in ((equal, equal), (equal, plain["teacher_logits"]), (plain["student_logits"], equal),
                             (sure, -sure), (same, same)):
        assert finite(spec, {**plain, "student_logits": student, "teacher_logits": teacher}), (student[0], teacher[0])
    dead = [0 * x for x in plain["student_features"]]
    empty = {**plain, "student_pooled": torch.zeros(6, 5), "student_features": dead}
    assert finite(spec, empty), "features of 0"


@pytest.mark.parametrize("spec", ["kd", "dkd", "logit_std", "bkd", "prior_kd", "wttm", "rld"])
def test_a_loss_of_each_image_by_itself_is_the_mean_over_images(spec):
    of_each = [float(value(spec, {key: x[n:n + 1] if key in ("student_logits", "teacher_logits", "labels") else x
                                  for key, x in GIVEN.items()})) for n in range(N)]
    assert float(value(spec, GIVEN)) == pytest.approx(np.mean(of_each))


def test_the_column_term_of_dist_is_constant_for_one_image():
    one = inputs(count=1)
    one["student_logits"].requires_grad_()
    loss = value("dist,beta=0", one)
    assert float(loss.detach()) == pytest.approx(1)
    assert float(torch.autograd.grad(loss, one["student_logits"])[0].abs().max()) == 0


def test_half_precision_costs_only_its_rounding():
    half = {key: x.half() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in GIVEN.items()}
    for key in ("student_features", "teacher_features"):
        half[key] = [x.half() for x in GIVEN[key]]
    for spec in SPECS:
        if not spec.startswith(("crd", "fitnet", "rld")):
            exact = float(value(spec, GIVEN))
            assert float(value(spec, half)) == pytest.approx(exact, rel=2e-2, abs=2e-3), spec


def test_kd_without_labels_keeps_its_factor():
    """Known to be lost in torchdistill 1.1.5, whose KD at alpha 0 is not multiplied by T^2."""
    student, teacher = GIVEN["student_logits"], GIVEN["teacher_logits"]
    options = {"alpha": 0, "hard": "ce", "soft": "kd", "temperature": 4.0}
    total, _ = objective.Objective(objective.plan(options, find))(GIVEN)
    expected = 16 * np.mean([kl(a, b) for a, b in zip(softmax(teacher.numpy(), 4), softmax(student.numpy(), 4))])
    assert float(total) == pytest.approx(expected)


# ---- what is refused

@pytest.mark.parametrize("spec, words", [
    ("dkd,alpha=-1", "alpha is a number from 0 on, not -1"), ("dkd,temperature=0", "temperature is a number above 0"),
    ("dkd,warmup=1", "warmup is a number from 0 to below 1"), ("dist,gamma=-1", "gamma is a number from 0"),
    ("dist,temperature=-1", "temperature is a number above 0"), ("logit_std,temperature=0", "temperature is a number"),
    ("logit_std,beta=-2", "beta is a number from 0"), ("logit_std,of=dist", "of is kd or dkd, not 'dist'"),
    ("bkd,beta=1", "beta is a number from 0 to below 1"), ("bkd,temperature=0", "temperature is a number above 0"),
    ("prior_kd,temperature=0", "temperature is a number above 0"), ("wttm,gamma=0", "gamma is a number above 0"),
    ("rld,confidence_temperature=0", "confidence_temperature is a number above 0"), ("rld,beta=-1", "beta is a number"),
    ("ltkd,alpha=-1", "alpha is a number from 0"), ("ltkd,temperature=0", "temperature is a number above 0"),
    ("rkd,angle=-1", "angle is a number from 0"), ("sp,stage=5", "stage is a whole number from 1 to 4, not 5"),
    ("sp,stage=0", "stage is a whole number from 1 to 4"), ("fitnet,stage=5", "stage is a whole number from 1 to 4"),
    ("fitnet,stage=-1", "stage is a whole number from 1 to 4"), ("crd,dim=0", "dim is a number above 0"),
    ("crd,negatives=0", "negatives is a number above 0"), ("crd,momentum=1", "momentum is a number from 0 to below 1"),
    ("crd,temperature=0", "temperature is a number above 0")])
def test_values_that_mean_nothing_are_refused(spec, words):
    with pytest.raises(UserError) as caught:
        value(spec, GIVEN)
    assert words in caught.value.message and "\n" not in caught.value.message
    assert objective.parse_spec(spec)[0] in caught.value.message


@pytest.mark.parametrize("spec", NOT_OF_TWO)
def test_standardised_logits_of_two_classes_are_refused(spec):
    with pytest.raises(UserError, match="cannot learn from two classes") as caught:
        value(spec, inputs(classes=2))
    assert "--soft kd" in caught.value.hint


@pytest.mark.parametrize("spec", ["dkd", "rld", "crd", "logit_std,of=dkd"])
def test_losses_of_one_label_an_image_refuse_mixed_ones(spec):
    shares = nn.functional.one_hot(GIVEN["labels"], 7).double()
    with pytest.raises(UserError, match="needs one label an image, and mixed images have two") as caught:
        value(spec, {**GIVEN, "labels": shares})
    assert "Leave out --mixup and --cutmix" in caught.value.hint
    for other in ("kd", "dist", "logit_std", "ltkd", "bkd", "wttm", "rkd", "sp", "fitnet"):
        assert value(other, {**GIVEN, "labels": shares}) == value(other, GIVEN)


# ---- hard losses on shares of classes

@pytest.mark.parametrize("spec", [*HARD, "ce,smoothing=0.1", "class_balanced,smoothing=0.2",
                                  "logit_adjusted,smoothing=0.1", "focal,gamma=0.5"])
def test_a_loss_on_labels_takes_the_shares_of_classes_and_is_linear_in_them(spec):
    first, second = GIVEN["labels"], GIVEN["labels"].flip(0)
    one_hot = [nn.functional.one_hot(labels, 7).float() for labels in (first, second)]
    of_first, of_second = (float(value(spec, GIVEN, labels=labels)) for labels in (first, second))
    assert float(value(spec, GIVEN, labels=one_hot[0])) == pytest.approx(of_first, rel=1e-6)
    mixed = 0.25 * one_hot[0] + 0.75 * one_hot[1]
    assert float(value(spec, GIVEN, labels=mixed)) == pytest.approx(0.25 * of_first + 0.75 * of_second, rel=1e-6)
    with torch.no_grad():
        single = {**GIVEN, "student_logits": GIVEN["student_logits"].half()}
        assert value(spec, single, labels=mixed.half()).dtype == torch.float32


@pytest.mark.parametrize("spec", [*HARD, "ce,smoothing=0.1", "focal,gamma=0.5"])
def test_the_gradient_of_a_loss_on_labels_is_that_of_the_loss(spec):
    shares = torch.softmax(GIVEN["teacher_logits"], 1)
    for labels in (GIVEN["labels"], shares):
        logits = GIVEN["student_logits"].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y=labels: value(spec, GIVEN, student_logits=x, labels=y), logits,
                                        fast_mode=True)


def test_focal_with_a_power_below_1_has_a_gradient_where_the_label_is_certain():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    find("focal")(logits, torch.tensor([0]), gamma=0.5).backward()
    assert torch.isfinite(logits.grad).all()


# ---- docs/methods.md

DOCS = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")

def test_the_docs_have_each_method_in_the_table_and_as_a_run_prints_it():
    for name in registry.names("loss"):
        if name not in HARD and Path(registry.__file__).parent in registry.get("loss", name).path.parents:
            assert f"| `{name}`" in DOCS, name
            term = objective.Term(name, 1.0, find(name), objective.check_options(find(name), {}, name))
            assert str(term).removeprefix("1 ") in DOCS, term
    for name in HARD:
        assert f"`{name}`" in DOCS
    assert all(f"`{need}`" in DOCS for need in objective.NEEDS)


@pytest.fixture
def own_registry(monkeypatch):
    """The registered losses, to which a test may add."""
    registry.names("loss")
    monkeypatch.setitem(registry._entries, "loss", dict(registry._entries["loss"]))


def test_the_losses_that_the_docs_show_work(tmp_path, own_registry):
    sources = re.findall(r"\n\n((?:    from .*\n)(?:(?:    .*)?\n)+)", DOCS)
    assert len(sources) == 2
    for number, source in enumerate(sources):
        path = tmp_path / f"mine{number}.py"
        path.write_text(textwrap.dedent(source))
        registry.load_plugin(path)
    s, t = S - S.mean(1, keepdims=True), T - T.mean(1, keepdims=True)
    cosine = np.mean((s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1))
    assert float(value("cosine", GIVEN)) == pytest.approx(1 - cosine)
    loss = built("mapped_logits,bias=false", GIVEN)
    assert [tuple(p.shape) for p in loss.parameters()] == [(7, 7)] and loss(GIVEN)[0] > 0
