"""The objective is the sum that its formula says, of losses that get what their parameters name."""

import pytest
import torch

import distill
import registry
from kd import objective
from kd.errors import UserError
from kd.objective import Objective, Term, check_options, method, parse_spec
from kd.train.options import parse_options

GIVEN = {
    "student_logits": torch.tensor([[1.0, 2.0], [0.5, -1.0]]),
    "teacher_logits": torch.tensor([[0.0, 3.0], [1.0, 1.0]]), "labels": torch.tensor([1, 0]), "epoch": 4,
    "class_counts": torch.tensor([9, 1]),
}


def find(name):
    return registry.get("loss", name).make


def plan(*argv, find=find):
    return objective.plan(parse_options(distill.parser(), ["--student", "tiny", "--hard", "ce", *argv]), find)


def formula(*argv):
    return Objective(plan(*argv)).formula


def refused(words, *argv, find=find):
    with pytest.raises((UserError, registry.RegistryError), match=f"(?s){words}"):
        plan(*argv, find=find)


# ---- the sum

def test_the_formula_is_written_out():
    assert formula() == "loss = 0.5 * ce(smoothing=0.0) + 0.5 * kd(temperature=4.0)"
    assert formula("--alpha", "0.9", "--temperature", "2", "--beta", "1000", "--stage-weights", "1", "0", "0", "2",
                 "--hard", "focal,gamma=1.5", "--term", "class_balanced=0.25,beta=0.99") == (
        "loss = 0.9 * focal(gamma=1.5) + 0.1 * kd(temperature=2.0) + 1000 * at(weights=(1.0, 0.0, 0.0, 2.0))"
        " + 0.25 * class_balanced(beta=0.99, smoothing=0.0)")


def test_what_weighs_nothing_is_not_computed():
    assert formula("--alpha", "0") == "loss = 1 * kd(temperature=4.0)"
    assert formula("--alpha", "1") == "loss = 1 * ce(smoothing=0.0)"
    assert formula("--alpha", "1", "--beta", "5").startswith("loss = 1 * ce(smoothing=0.0) + 5 * at(")


@pytest.mark.parametrize(
    "argv, teacher",
    [
        (["--alpha", "1"], False), (["--alpha", "1", "--hard", "focal"], False),
        (["--alpha", "1", "--term", "focal=2"], False), (["--alpha", "0.99"], True), (["--alpha", "0"], True),
        (["--alpha", "1", "--beta", "1"], True), (["--alpha", "1", "--term", "kd=1"], True),
    ],
)
def test_a_teacher_is_needed_only_where_a_loss_reads_it(argv, teacher):
    assert any(need.startswith("teacher_") for need in objective.needed(plan(*argv))) is teacher


def test_a_teachers_own_training_knows_the_hard_loss_alone():
    assert [(term.name, term.weight) for term in objective.plan({"hard": "ce"}, find)] == [("ce", 1.0)]


def test_the_loss_is_the_weighted_sum_and_each_term_is_logged_without_its_weight():
    total, values = Objective(
        [
            Term("a", 0.25, lambda student_logits: student_logits.sum(), {}),
            Term("b", 3.0, lambda labels, epoch, *, plus: labels.sum() * epoch + plus, {"plus": 0.5}),
        ]
    )(GIVEN)
    assert {name: float(value) for name, value in values.items()} == {"a": 2.5, "b": 4.5}
    assert float(total) == 0.25 * 2.5 + 3.0 * 4.5


def test_weights_and_hyperparameters_of_the_command_line_reach_the_losses():
    total, values = Objective(plan("--alpha", "0.3", "--temperature", "2", "--term", "focal=2,gamma=0"))(GIVEN)
    log_p = GIVEN["student_logits"].log_softmax(1)
    hard = -(log_p[0, 1] + log_p[1, 0]) / 2
    q, p = (GIVEN[key].div(2).softmax(1) for key in ("student_logits", "teacher_logits"))
    soft = 4 * (p * (p / q).log()).sum(1).mean()
    assert float(values["ce"]) == pytest.approx(float(hard)) and float(values["kd"]) == pytest.approx(float(soft))
    assert float(total) == pytest.approx(
        float(0.3 * hard + 0.7 * soft + 2 * hard), rel=1e-6
    )  # focal with gamma 0 is ce
    assert not any(value.requires_grad for value in values.values())


def test_the_temperature_of_the_command_line_is_that_of_kd_wherever_it_stands():
    assert formula("--alpha", "1", "--term", "kd=0.5", "--temperature", "3").endswith(" + 0.5 * kd(temperature=3.0)")
    for argv in (["--soft", "kd,temperature=3"], ["--alpha", "1", "--term", "kd=1,temperature=3"]):
        refused("temperature of kd has an option of its own\nGive --temperature", *argv)
    refused("weights of at has an option of its own\nGive --stage-weights", "--term", "at=1,weights=[1, 1, 1, 1]")


# ---- losses with parts that learn

LEARNABLE = '''
import torch
from torch import nn
from registry import register

@register("loss", "fit.net")
class FitNet(nn.Module):
    """A regressor from the student's stage to the teacher's."""

    def __init__(self, shapes, *, stage=2):
        super().__init__()
        self.stage = stage
        self.regressor = nn.Conv2d(shapes["student_features"][stage][1], shapes["teacher_features"][stage][1], 1)

    def forward(self, student_features, teacher_features):
        return (self.regressor(student_features[self.stage]) - teacher_features[self.stage]).pow(2).mean()
'''


@pytest.fixture
def fitnet(tmp_path, monkeypatch):
    (tmp_path / "fitnet.py").write_text(LEARNABLE)
    registry.names("loss")
    monkeypatch.setitem(registry._entries, "loss", dict(registry._entries["loss"]))
    registry.load_plugin(tmp_path / "fitnet.py")


def test_a_plugin_whose_parts_learn_is_built_from_shapes_and_trains_along(fitnet):
    terms = plan("--alpha", "1", "--term", "fit.net=10,stage=1")
    features = {"student_features": [torch.rand(2, c, 4, 4) for c in (3, 5)],
                "teacher_features": [torch.rand(2, c, 4, 4) for c in (8, 9)]}
    built = Objective(terms, {key: [tuple(x.shape) for x in value] for key, value in features.items()})
    assert sorted(map(tuple, (p.shape for p in built.parameters()))) == [(9,), (9, 5, 1, 1)]
    assert built.formula == "loss = 1 * ce(smoothing=0.0) + 10 * fit.net(stage=1)"
    optimizer = torch.optim.SGD(built.parameters(), lr=0.05)
    history = []
    for _ in range(20):
        loss, values = built({**GIVEN, **features})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(values["fit.net"]))
    assert history[-1] < 0.5 * history[0]
    other = Objective(terms, {key: [tuple(x.shape) for x in value] for key, value in features.items()})
    other.load_state_dict(built.state_dict())  # as a resumed run does
    with torch.no_grad():
        assert torch.equal(other({**GIVEN, **features})[0], built({**GIVEN, **features})[0])
    assert not list(Objective(plan()).parameters())


# ---- the words of the command line

def test_a_spec_is_a_name_with_hyperparameters():
    assert parse_spec("ce") == ("ce", {})
    assert parse_spec("focal,gamma=1.5") == ("focal", {"gamma": 1.5})
    assert parse_spec(" x , a = 1 ,b=1e-3,c=true,d=text,e=[1, 2e1],f=-3") == (
        "x", {"a": 1, "b": 0.001, "c": True, "d": "text", "e": [1, 20.0], "f": -3})


@pytest.mark.parametrize(
    "spec",
    [
        "focal,gamma", "focal,=1", "focal,", "focal,gamma=[", "focal,gamma=[1,b=2", "focal,gamma={",
        "focal,gamma=2020-13-45", "focal,gamma=!!python/name:os.system", "focal,gamma=1,gamma=2",
    ],
)
def test_a_spec_that_cannot_be_read_is_refused(spec):
    with pytest.raises(UserError) as caught:
        parse_spec(spec)
    assert "\n" not in caught.value.message


def loss(student_logits, *, number=1.0, count=2, text="a", switch=False, values=(1.0, 2.0), free=None, names=()):
    """A loss with every kind of hyperparameter."""


def test_hyperparameters_take_the_type_of_their_defaults():
    checked = check_options(loss, {"number": 3, "count": 2.0, "values": [1, 2, 3], "free": "x", "names": ["b"]}, "x")
    assert checked == {"number": 3.0, "count": 2, "text": "a", "switch": False, "values": (1.0, 2.0, 3.0), "free": "x",
                       "names": ("b",)}
    assert {type(checked[key]) for key in ("number", "count", "values")} == {float, int, tuple}


@pytest.mark.parametrize("options, words", [
    ({"nunber": 1}, "has no option 'nunber'\ndid you mean number"), ({"zzz": 1}, "It has: number, count, text"),
    ({"number": "fast"}, "number is a number, not 'fast'"), ({"number": True}, "number is a number, not True"),
    ({"number": None}, "is a number"), ({"number": float("nan")}, "is a number, not nan"),
    ({"number": float("inf")}, "is a number, not inf"), ({"number": 10 ** 400}, "is a number"),
    ({"count": 2.5}, "count is a whole number, not 2.5"), ({"count": float("inf")}, "is a whole number"),
    ({"switch": 1}, "switch is true or false, not 1"), ({"text": 3}, "text is text, not 3"),
    ({"values": 3}, "values is a list like"), ({"values": [1, "x"]}, "values is a number, not"),
    ({"student_logits": 1}, "has no option 'student_logits'"),
])
def test_a_wrong_hyperparameter_is_refused(options, words):
    with pytest.raises(UserError, match=f"(?s){words}"):
        check_options(loss, options, "x")


def test_no_hyperparameter_of_any_loss_takes_nan_or_infinity():
    for value in (".nan", ".inf", "-.inf", "1e999", "nan", "inf"):
        refused("gamma is a number, not", "--hard", f"focal,gamma={value}")


@pytest.mark.parametrize(
    "term", ["focal", "focal=", "focal=x", "focal=nan", "focal=inf", "focal=-1", "focal=0", "focal=1=2", "=1"]
)
def test_a_term_has_a_name_and_a_finite_weight_above_0(term):
    refused("cannot read a weight above 0|unknown loss ''", "--term", term)


def test_a_loss_named_twice_is_refused():
    for argv in (["--term", "kd=1"], ["--term", "ce=1"], ["--term", "focal=1", "focal=2,gamma=1"],
                 ["--beta", "1", "--term", "at=1"]):
        refused(r"the loss \w+ is named twice", *argv)


def test_hard_and_soft_losses_are_not_exchanged():
    refused("--hard kd reads a teacher", "--hard", "kd", "--alpha", "1")
    refused("--soft focal reads no teacher", "--soft", "focal")


def test_a_plugin_that_asks_for_what_nothing_gives_is_refused():
    def wrong(student_logit, labels): ...
    def sloppy(student_logits, teacher_logits, gamma=2.0): ...
    def demanding(teacher_logits, *, gamma): return teacher_logits.sum() * gamma
    refused("asks for 'student_logit', which nothing gives\ndid you mean student_logits", find=lambda name: wrong)
    refused("asks for 'gamma'.*Hyperparameters stand after a \\*", "--alpha", "0", "--soft", "mine",
            find=lambda name: sloppy)
    refused("mine needs gamma\nWrite mine,gamma=value", "--alpha", "0", "--soft", "mine", find=lambda name: demanding)
    assert plan("--alpha", "0", "--soft", "mine,gamma=3", find=lambda name: demanding)[0].hyperparameters == {
        "gamma": 3
    }


@pytest.mark.parametrize(
    "argv, name",
    [
        ([], "kd"), (["--alpha", "0"], "kd"), (["--alpha", "1"], "alone"), (["--beta", "1000"], "kd_at"),
        (["--alpha", "1", "--beta", "1"], "at"), (["--soft", "dist,beta=2", "--term", "rkd=25,p=2"], "dist_rkd"),
        (["--soft", "a/b:c d", "--beta", "1", "--term", "../x = 1"], "a_b_c_d_at_.._x"),
        (["--alpha", "1", "--hard", "focal"], "alone"),
    ],
)
def test_a_method_is_named_after_what_is_learned_beside_the_labels(argv, name):
    assert method(parse_options(distill.parser(), ["--student", "tiny", *argv])) == name


# ---- schedules, and images without labels

def test_a_weight_and_a_temperature_change_linearly_over_the_epochs():
    objective_ = Objective(plan("--alpha", "0.5:0.1", "--temperature", "4:1"))
    assert objective_.formula == "loss = (0.5:0.1) * ce(smoothing=0.0) + (0.5:0.9) * kd(temperature=(4:1))"
    for epoch, alpha, temperature in ((1, 0.5, 4.0), (3, 0.3, 2.5), (5, 0.1, 1.0)):
        total, values = objective_({**GIVEN, "epoch": epoch, "epochs": 5})
        fixed, fixed_values = Objective(plan("--alpha", str(alpha), "--temperature", str(temperature)))(GIVEN)
        assert float(total) == pytest.approx(float(fixed))
        assert {name: float(value) for name, value in values.items()} == pytest.approx(
            {name: float(value) for name, value in fixed_values.items()})
    assert float(objective_({**GIVEN, "epoch": 1, "epochs": 1})[0]) == float(Objective(plan())(GIVEN)[0])


def test_a_schedule_between_equal_ends_is_a_number():
    assert formula("--alpha", "0.5:0.5", "--temperature", "2:2") == formula("--temperature", "2")


def test_a_teacher_is_read_if_alpha_is_below_one_in_any_epoch():
    assert [term.name for term in plan("--alpha", "1:0.5")] == ["ce", "kd"] and method(
        parse_options(distill.parser(), ["--alpha", "0.5:1"])) == "kd"


@pytest.mark.parametrize("argv", [["--alpha", "0.5:2"], ["--alpha", "1:2:3"], ["--temperature", "4:0"],
                                  ["--temperature", ":1"]])
def test_a_schedule_that_is_none_is_refused(argv):
    refused("is not a number", *argv)


def test_losses_on_labels_get_the_labelled_images_and_all_others_every_image():
    inputs = {**GIVEN, "labels": torch.tensor([1])}
    _, values = Objective(plan())(inputs)
    labelled = {key: value[:1] for key, value in inputs.items() if key.endswith("logits")}
    _, of_labelled = Objective(plan())({**inputs, **labelled})
    _, of_all = Objective(plan())(GIVEN)
    assert values["ce"] == of_labelled["ce"] and values["kd"] == of_all["kd"] != of_labelled["kd"]


def test_the_losses_of_several_processes_add_up_to_that_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 2, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 1])
    rest = {"epoch": 1, "epochs": 1, "class_counts": torch.tensor([1, 1])}
    whole, _ = Objective(plan())({**rest, "student_logits": student, "teacher_logits": teacher, "labels": labels})
    parts = []
    for rows in ([0, 2, 3, 5], [1, 4, 6]):  # of the labelled images, 0 to 2, and of the others
        share = {"student_logits": student[rows], "teacher_logits": teacher[rows],
                 "labels": labels[[row for row in rows if row < 3]]}
        parts.append(Objective(plan())({**rest, **share}, batch=(3, 7))[0])
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_the_name_of_a_run_says_what_it_shows_and_averages():
    def name(*argv):
        return method(parse_options(distill.parser(), argv))
    assert name() == "kd" and name("--alpha", "1") == "alone"
    assert name("--augment=light", "--mixup=0.2", "--sampling=sqrt", "--ema=0.9") == "kd_light_sqrt_mixup_ema"
    assert name("--unlabelled", "x", "--cutmix", "1") == "kd_cutmix_unlabelled"
