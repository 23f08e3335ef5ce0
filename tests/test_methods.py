"""Each method of distillation against values computed without it, and its limits and invariances."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch

from kd import losses
from methods import COUNTS, GIVEN, C, N, S, T, Y, built, find, inputs, kl, softmax, value

# ---- values computed here, image by image

def test_dkd_by_hand():
    total = 0
    for s, t, y in zip(S, T, Y):
        p_s, p_t = softmax(s, 4), softmax(t, 4)
        rest_s, rest_t = softmax(np.delete(s, y), 4), softmax(np.delete(t, y), 4)
        total += 1.5 * kl((p_t[y], 1 - p_t[y]), (p_s[y], 1 - p_s[y])) + 3 * kl(rest_t, rest_s)
    assert float(value("dkd,alpha=1.5,beta=3", GIVEN)) == pytest.approx(16 * total / N, rel=1e-9)


def test_dkd_for_two_classes_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2), the label is 0: KL = 3/4 ln(3/2) + 1/4 ln(1/2), and the rest is one class
    given = {**GIVEN, "student_logits": torch.zeros(1, 2), "teacher_logits": torch.tensor([[math.log(3.0), 0.0]]),
             "labels": torch.tensor([0])}
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(value("dkd,temperature=1", given)) == pytest.approx(expected, abs=1e-6)


def test_kd_is_the_part_of_the_label_and_the_rest_times_what_the_teacher_leaves_it():
    for row in range(N):
        one = {key: given[row:row + 1] if key in ("student_logits", "teacher_logits", "labels") else given
               for key, given in GIVEN.items()}
        left = float(1 - softmax(T[row])[Y[row]])
        assert float(value(f"dkd,beta={left!r},temperature=1", one)) == pytest.approx(
            float(losses.knowledge_distillation(one["student_logits"], one["teacher_logits"], temperature=1.0)))


@pytest.mark.parametrize("name", ["dkd", "rld", "logit_std,of=dkd"])
def test_the_weight_rises_over_the_first_tenth_of_the_epochs(name):
    full = float(value(name, GIVEN, epoch=20, epochs=200))
    shares = [float(value(name, GIVEN, epoch=epoch, epochs=200)) / full for epoch in (1, 5, 19, 21, 200)]
    assert shares == pytest.approx([0.05, 0.25, 0.95, 1, 1])
    assert float(value(name, GIVEN, epoch=1, epochs=5)) == pytest.approx(full)
    if name != "logit_std,of=dkd":
        assert float(value(f"{name},warmup=0", GIVEN, epoch=1, epochs=200)) == pytest.approx(full)


def test_dist_by_hand():
    p_s, p_t = softmax(S, 2), softmax(T, 2)
    rows = np.mean([np.corrcoef(p_s[n], p_t[n])[0, 1] for n in range(N)])
    columns = np.mean([np.corrcoef(p_s[:, c], p_t[:, c])[0, 1] for c in range(C)])
    assert float(value("dist,beta=2,gamma=3,temperature=2", GIVEN)) == pytest.approx(
        4 * (2 * (1 - rows) + 3 * (1 - columns)), rel=1e-6)


def test_dist_ignores_shifts_of_logits_and_not_their_scale():
    first = value("dist", GIVEN)
    shifted = value("dist", GIVEN, student_logits=GIVEN["student_logits"] + torch.arange(N)[:, None])
    scaled = value("dist", GIVEN, student_logits=3 * GIVEN["student_logits"])
    assert float(shifted) == pytest.approx(float(first)) and abs(float(scaled - first)) > 1e-3
    p = torch.from_numpy(softmax(S))
    mixed = (0.3 * p + 0.7 / C).log()  # a positive affine map of the probabilities
    assert float(value("dist", GIVEN, student_logits=mixed)) == pytest.approx(float(first))


def test_logit_std_by_hand_and_of_dkd():
    def standardised(logits):
        return (logits - logits.mean(1, keepdims=True)) / (1e-7 + logits.std(1, ddof=1, keepdims=True))

    p_s, p_t = softmax(standardised(S), 2), softmax(standardised(T), 2)
    assert float(value("logit_std", GIVEN)) == pytest.approx(4 * np.mean([kl(a, b) for a, b in zip(p_t, p_s)]))
    z = {"student_logits": torch.from_numpy(standardised(S)), "teacher_logits": torch.from_numpy(standardised(T))}
    assert float(value("logit_std,of=dkd,beta=3,temperature=1.5", GIVEN)) == pytest.approx(
        float(value("dkd,beta=3,temperature=1.5", {**GIVEN, **z})))


def test_logit_std_ignores_shift_and_scale_of_each_image():
    changed = GIVEN["student_logits"] * torch.arange(1, N + 1)[:, None] + torch.arange(N)[:, None]
    assert float(value("logit_std", GIVEN, student_logits=changed)) == pytest.approx(float(value("logit_std", GIVEN)))


def test_logit_std_reads_labels_only_where_dkd_does():
    needs = {spec: built(spec, GIVEN).terms[0].needs for spec in ("logit_std", "logit_std,of=dkd")}
    assert "labels" not in needs["logit_std"] and "labels" in needs["logit_std,of=dkd"]
    two = {**GIVEN, "labels": GIVEN["labels"][:2]}  # of a batch with two labelled images
    assert value("logit_std", two) == value("logit_std", GIVEN)
    assert float(value("logit_std,of=dkd", two)) != float(value("logit_std,of=dkd", GIVEN))


def test_wttm_by_hand():
    total = 0
    for s, t in zip(S, T):
        powers = softmax(t) ** 0.3
        total += powers.sum() * kl(powers / powers.sum(), softmax(s))
    assert float(value("wttm,gamma=0.3", GIVEN)) == pytest.approx(total / N)


def test_wttm_with_gamma_1_is_kd_without_temperature_and_weighs_an_unsure_teacher_more():
    plain = losses.knowledge_distillation(GIVEN["student_logits"], GIVEN["teacher_logits"], temperature=1.0)
    assert float(value("wttm,gamma=1", GIVEN)) == pytest.approx(float(plain))
    student = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    target = torch.zeros(1, 4)  # even at any power: U = 4 (1/4)^gamma = 4^(1 - gamma), q = 1/4
    expected = 4 ** 0.9 * kl([0.25] * 4, softmax(student.numpy())[0])
    assert float(value("wttm", {**GIVEN, "student_logits": student, "teacher_logits": target})) == pytest.approx(
        expected, rel=1e-5)


def test_rld_by_hand():
    total = 0
    for s, t, y in zip(S, T, Y):
        p_s, p_t = softmax(s, 1.5), softmax(t, 1.5)
        total += 0.5 * 1.5 ** 2 * kl((p_t.max(), 1 - p_t.max()), (p_s[y], 1 - p_s[y]))
        below = [c for c in range(C) if t[c] < t[y]]
        if below:
            total += 3 * 16 * kl(softmax(t[below], 4), softmax(s[below], 4))
    assert any((t >= t[y]).all() for t, y in zip(T, Y)) or (T.argmin(1) != Y).all()
    assert float(value("rld,alpha=0.5,beta=3,confidence_temperature=1.5", GIVEN)) == pytest.approx(total / N)


def test_rld_does_not_learn_a_wrong_answer():
    # the teacher says class 0, the label is 1: only class 2 is below it, so nothing but the confidence is left
    given = {**GIVEN, "teacher_logits": torch.tensor([[5.0, 2.0, 0.0]]), "labels": torch.tensor([1]),
             "student_logits": torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)}
    loss = value("rld", given)
    p_s, sure = softmax([0.3, 0.1, -0.2]), softmax([5.0, 2.0, 0.0]).max()
    assert float(loss.detach()) == pytest.approx(kl((sure, 1 - sure), (p_s[1], 1 - p_s[1])), rel=1e-5)
    loss.backward()
    gradient = given["student_logits"].grad[0]
    assert gradient[1] < 0 < gradient[0]  # towards the label, away from the teacher's answer


def test_rld_leaves_out_what_the_teacher_puts_as_high_as_the_label():
    for dtype in (torch.float32, torch.float16):
        logits = torch.tensor([[1.0, 1.0, 0.0, -1.0]], dtype=dtype)
        student = torch.tensor([[0.0, 9.0, 0.0, 0.0]], dtype=dtype)
        given = {**GIVEN, "teacher_logits": logits, "student_logits": student, "labels": torch.tensor([0])}
        assert float(value("rld,alpha=0,temperature=1", given)) == pytest.approx(
            8 * kl(softmax([0.0, -1.0]), [0.5, 0.5]), rel=1e-3)


def test_bkd_by_hand():
    counts = COUNTS.numpy().astype(float)
    w = (1 - 0.999) / (1 - 0.999 ** counts)
    total = 0
    for s, t in zip(S, T):
        q = w * softmax(t, 2)
        total += kl(q / q.sum(), softmax(s, 2))
    assert float(value("bkd,beta=0.999", GIVEN)) == pytest.approx(4 * total / N, rel=1e-5)


def test_bkd_with_equal_weights_is_kd_and_a_class_without_images_is_no_target():
    kd = losses.knowledge_distillation(GIVEN["student_logits"], GIVEN["teacher_logits"], temperature=2.0)
    assert float(value("bkd,beta=0", GIVEN)) == pytest.approx(float(kd), rel=1e-5)
    assert float(value("bkd", GIVEN, class_counts=torch.full((7,), 50))) == pytest.approx(float(kd), rel=1e-5)
    counts = torch.tensor([10, 10, 0])
    given = {**GIVEN, "student_logits": torch.zeros(1, 3), "teacher_logits": torch.zeros(1, 3), "class_counts": counts}
    assert float(value("bkd", given)) == pytest.approx(4 * kl([0.5, 0.5, 0], [1 / 3] * 3), rel=1e-5)


def test_prior_kd_by_hand_and_from_its_derivation():
    prior = COUNTS.numpy() / COUNTS.sum().item()
    target = T + (0.0 - 0.5) * np.log(prior)
    expected = 16 * np.mean([kl(a, b) for a, b in zip(softmax(target, 4), softmax(S, 4))])
    assert float(value("prior_kd", GIVEN)) == pytest.approx(expected, rel=1e-6)
    posterior = softmax(S)  # both networks at the optimum of their own cross-entropy: nothing to learn
    student, teacher = (torch.from_numpy(np.log(posterior) - tau * np.log(prior)) for tau in (0.5, 1.0))
    assert float(value("prior_kd", GIVEN, student_logits=student, teacher_logits=teacher, teacher_tau=1.0)) == (
        pytest.approx(0, abs=1e-6))
    assert float(value("kd", GIVEN, student_logits=student, teacher_logits=teacher)) > 0.1
    assert value("prior_kd", GIVEN, teacher_tau=0.5) == value("kd", GIVEN)


# ---- ltkd

def ltkd_groups(counts):
    return inspect.getmodule(find("ltkd")).groups(torch.tensor(counts))


def test_the_groups_of_classes_are_equal_thirds_of_log_counts():
    ham10000 = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
    names = list(ham10000)
    for share in (1, 0.7):
        groups = [{names[c] for c in group} for group in ltkd_groups([int(share * n) for n in ham10000.values()])]
        assert groups == [{"nv"}, {"mel", "bkl", "bcc"}, {"akiec", "vasc", "df"}]
    assert ltkd_groups([1, 10, 100, 1000]) == [[2, 3], [1], [0]]
    assert ltkd_groups([5, 5, 5]) == [[0, 1, 2]] and ltkd_groups([900, 100]) == [[0], [1]]
    assert ltkd_groups([0, 900, 100]) == [[1], [0, 2]]


def ltkd_by_hand(s, t, groups, masses, temperature=4.0):
    total = 0
    for one_s, one_t in zip(softmax(s, temperature), softmax(t, temperature)):
        of_s, of_t = (np.array([p[group].sum() for group in groups]) for p in (one_s, one_t))
        balanced = of_t / masses
        total += kl(balanced / balanced.sum(), of_s)
        total += sum(kl(one_t[group] / one_t[group].sum(), one_s[group] / one_s[group].sum()) for group in groups)
    return temperature ** 2 * total / len(s)


def test_ltkd_by_hand_with_masses_of_the_epoch_so_far():
    groups = [[0], [1, 2, 3], [4, 5, 6]]
    second = inputs(seed=5)
    s2, t2 = second["student_logits"].numpy(), second["teacher_logits"].numpy()

    def masses(*teachers):
        p = np.concatenate([softmax(t, 4) for t in teachers])
        return np.array([p[:, group].sum(1).mean() for group in groups])

    loss = built("ltkd", GIVEN)
    assert float(loss(GIVEN)[0]) == pytest.approx(ltkd_by_hand(S, T, groups, masses(T)), rel=1e-6)
    assert float(loss(second)[0]) == pytest.approx(ltkd_by_hand(s2, t2, groups, masses(T, t2)), rel=1e-6)
    other = built("ltkd", GIVEN)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert other(GIVEN)[0] == loss(GIVEN)[0]
    assert float(loss({**second, "epoch": 4})[0]) == pytest.approx(ltkd_by_hand(s2, t2, groups, masses(t2)), rel=1e-6)


def test_ltkd_splits_kd_and_balances_both_parts():
    groups = [[0], [1, 2, 3], [4, 5, 6]]
    for p_s, p_t in zip(softmax(S), softmax(T)):  # the identity that it starts from
        of_s, of_t = (np.array([p[group].sum() for group in groups]) for p in (p_s, p_t))
        within = [kl(p_t[g] / p_t[g].sum(), p_s[g] / p_s[g].sum()) for g in groups]
        assert kl(p_t, p_s) == pytest.approx(kl(of_t, of_s) + (of_t * within).sum())
    one = {**GIVEN, "student_logits": torch.zeros(1, 7), "teacher_logits": torch.randn(1, 7)}
    even = [[1 / 3] * 3, [1 / 7, 3 / 7, 3 / 7]]  # one image: each group gets a third of it
    assert float(value("ltkd,beta=0,temperature=1", one)) == pytest.approx(kl(*even), rel=1e-5)
    equal = torch.full((7,), 9)
    assert float(value("ltkd,beta=0.5", GIVEN, class_counts=equal)) == pytest.approx(0.5 * float(value("kd", GIVEN)))


def test_ltkd_where_the_teacher_never_names_a_group():
    given = {**GIVEN, "teacher_logits": torch.tensor([[1e4, 0, 0, 0, -1e4, -1e4, -1e4]] * 2, dtype=torch.float64),
             "student_logits": torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)}
    loss = value("ltkd", given)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(given["student_logits"].grad).all()


# ---- losses on features

def rkd_by_hand(s, t):
    def relations(f):
        n = len(f)
        d = np.array([[math.dist(f[i], f[j]) for j in range(n)] for i in range(n)])
        angles = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if d[i, j] and d[i, k]:
                        angles[i, j, k] = (f[j] - f[i]) @ (f[k] - f[i]) / d[i, j] / d[i, k]
        return d / d[d > 0].mean(), angles

    def huber(a, b):
        difference = abs(a - b)
        return np.where(difference < 1, difference ** 2 / 2, difference - 0.5).mean()

    (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
    return huber(d_s, d_t), huber(a_s, a_t)


def test_rkd_by_hand():
    distance, angle = rkd_by_hand(GIVEN["student_pooled"].numpy(), GIVEN["teacher_pooled"].numpy())
    assert float(value("rkd", GIVEN)) == pytest.approx(distance + 2 * angle)
    assert float(value("rkd,distance=3,angle=0", GIVEN)) == pytest.approx(3 * distance)


def test_rkd_ignores_scale_shift_and_turns_of_features():
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    changed = 7 * GIVEN["student_pooled"] @ turn + 3
    assert float(value("rkd", GIVEN, student_pooled=changed)) == pytest.approx(float(value("rkd", GIVEN)))
    assert float(value("rkd", GIVEN, teacher_pooled=changed)) < 0.5
    assert float(value("rkd", GIVEN, teacher_pooled=2 * GIVEN["student_pooled"])) == pytest.approx(0, abs=1e-12)


def test_rkd_of_one_image_is_0_and_of_equal_images_finite():
    one = inputs(count=1)
    one["student_pooled"].requires_grad_()
    loss = value("rkd", one)
    loss.backward()
    assert float(loss.detach()) == 0 and not one["student_pooled"].grad.any()
    rows = GIVEN["student_pooled"][[0, 0, 1, 2, 2, 2]].clone().requires_grad_()
    loss = value("rkd", GIVEN, student_pooled=rows)
    loss.backward()
    assert torch.isfinite(loss) and rows.grad.abs().max() < 10
    same = torch.ones(4, 5, requires_grad=True)
    value("rkd", {**GIVEN, "student_pooled": same, "teacher_pooled": torch.randn(4, 8)}).backward()
    assert not same.grad.any()


def test_sp_by_hand_with_rows_of_euclidean_length_1():
    def similarities(feature):
        rows = feature.numpy().reshape(len(feature), -1)
        gram = rows @ rows.T
        return gram / np.sqrt((gram ** 2).sum(1, keepdims=True))  # torchdistill 1.1.5 divides by the sum of |values|

    expected = ((similarities(GIVEN["student_features"][3]) - similarities(GIVEN["teacher_features"][3])) ** 2).mean()
    assert float(value("sp", GIVEN)) == pytest.approx(expected)
    student, teacher = torch.eye(2).view(2, 2, 1, 1), torch.ones(2, 2, 1, 1)  # rows (1, 0) and (1, 1) / sqrt(2)
    given = {**inputs(dtype=torch.float32), "student_features": [student] * 4, "teacher_features": [teacher] * 4}
    half = math.sqrt(0.5)
    assert float(value("sp", given)) == pytest.approx(((1 - half) ** 2 + half ** 2) / 2, rel=1e-5)
    scaled = [5 * x for x in GIVEN["student_features"]]
    assert float(value("sp", GIVEN, student_features=scaled)) == pytest.approx(expected)
    assert float(value("sp,stage=1", GIVEN)) != pytest.approx(expected)


def test_fitnet_by_hand():
    loss = built("fitnet", GIVEN)
    weights = [p.detach().numpy() for p in loss.parameters()]
    assert sorted(w.shape for w in weights) == [(8,), (8,), (8, 5)]
    mapped = GIVEN["student_pooled"].numpy() @ next(w for w in weights if w.ndim == 2).T
    normed = (mapped - mapped.mean(0)) / np.sqrt(mapped.var(0) + 1e-5)
    expected = ((normed - GIVEN["teacher_pooled"].numpy()) ** 2).mean()
    assert float(loss(GIVEN)[0].detach()) == pytest.approx(expected)


def test_fitnet_of_a_stage_pools_the_larger_feature_and_learns():
    loss = built("fitnet,stage=3", GIVEN)
    weight = next(p for p in loss.parameters() if p.ndim == 4).detach().numpy()[:, :, 0, 0]
    student, teacher = (GIVEN[f"{role}_features"][2].numpy() for role in ("student", "teacher"))
    pooled = np.zeros((N, 4, 2, 2))  # 3 x 3 places to 2 x 2: each the mean of 2 x 2, which overlap
    for i in range(2):
        for j in range(2):
            pooled[:, :, i, j] = student[:, :, i:i + 2, j:j + 2].mean((2, 3))
    mapped = np.einsum("tc,nchw->nthw", weight, pooled)
    normed = (mapped - mapped.mean((0, 2, 3), keepdims=True)) / np.sqrt(mapped.var((0, 2, 3), keepdims=True) + 1e-5)
    assert float(loss(GIVEN)[0].detach()) == pytest.approx(((normed - teacher) ** 2).mean())
    history, parameters = [], list(loss.parameters())
    for _ in range(20):
        history.append(loss(GIVEN)[0])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(history[-1], parameters)):
                parameter -= gradient
    assert history[-1] < 0.9 * history[0]


def test_fitnet_reads_pooled_features_or_stages_not_both():
    assert built("fitnet", GIVEN).terms[0].needs == ["student_pooled", "teacher_pooled"]
    assert built("fitnet,stage=1", GIVEN).terms[0].needs == ["student_features", "teacher_features"]


def test_crd_by_hand():
    given = {**inputs(count=2, dtype=torch.float64), "labels": torch.tensor([0, 1]), "index": torch.tensor([0, 2])}
    loss = built("crd,dim=4,negatives=3,momentum=0.25", given, images=3)
    crd = loss.losses[0]
    crd.labels.copy_(torch.tensor([0, 0, 1]))
    for memory in (crd.student_memory, crd.teacher_memory):
        memory[1] = memory[0]  # so it does not matter which of the two is drawn
    memories = {"student": crd.student_memory.clone().numpy(), "teacher": crd.teacher_memory.clone().numpy()}
    embedded = {}
    for side in ("student", "teacher"):
        layer = getattr(crd, side)
        rows = given[f"{side}_pooled"].numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        embedded[side] = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def contrast(side, other, z=None):
        same, rest = {0: 0, 1: 2}, {0: 2, 1: 0}  # image of the batch -> row of the memory; of the negatives
        score = {n: (math.exp(embedded[side][n] @ memories[other][same[n]] / 0.07),
                     math.exp(embedded[side][n] @ memories[other][rest[n]] / 0.07)) for n in (0, 1)}
        z = z or 3 * np.mean([score[n][0] + 3 * score[n][1] for n in (0, 1)]) / 4
        odds = 3 / 3  # K / n
        total = 0
        for same_score, rest_score in score.values():
            total -= math.log(same_score / z / (same_score / z + odds))
            total -= 3 * math.log(odds / (rest_score / z + odds))
        return total / 2, z

    (first, z_s), (second, z_t) = contrast("student", "teacher"), contrast("teacher", "student")
    assert float(loss(given)[0].detach()) == pytest.approx(first + second, rel=1e-6)
    for side in ("student", "teacher"):
        moved = 0.25 * memories[side][[0, 2]] + 0.75 * embedded[side]
        memories[side][[0, 2]] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        assert np.allclose(getattr(crd, f"{side}_memory").numpy(), memories[side])
        memories[side][1] = memories[side][0]
        getattr(crd, f"{side}_memory")[1] = getattr(crd, f"{side}_memory")[0]
    again = contrast("student", "teacher", z_s)[0] + contrast("teacher", "student", z_t)[0]
    assert float(loss(given)[0].detach()) == pytest.approx(again, rel=1e-6)  # with Z of the first batch


def test_crd_draws_evenly_from_images_of_other_labels_and_from_those_not_seen():
    crd = built("crd,negatives=8", GIVEN, images=8).losses[0]
    crd.labels.copy_(torch.tensor([0, 1, 0, 2, 1, -1, 0, 0]))
    torch.manual_seed(0)
    drawn = torch.stack([crd._draw(torch.tensor([0, 1, 2])) for _ in range(2000)], 1).flatten(1)
    for row, allowed in zip(drawn, ({1, 3, 4, 5}, {0, 2, 3, 5, 6, 7}, {0, 1, 2, 4, 5, 6, 7})):
        counts = np.bincount(row.numpy(), minlength=8)
        assert set(np.flatnonzero(counts)) == allowed
        assert np.allclose(counts[list(allowed)] / len(row), 1 / len(allowed), atol=0.02)
    crd.labels.fill_(0)
    assert crd._draw(torch.tensor([0, 0])).shape == (2, 8)  # one class: nothing else is there to draw


def test_crd_has_no_more_negatives_than_images_and_its_memory_follows_from_the_seed():
    first, second = built("crd", GIVEN, images=20), built("crd", GIVEN, images=20)
    assert first.losses[0].negatives == 20
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert {"student_memory", "teacher_memory", "labels", "z"} <= {key.split(".")[-1] for key in first.state_dict()}


def test_crd_learns_to_tell_images_apart():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 6, generator=generator)
    teacher, labels = images @ torch.randn(6, 8, generator=generator), torch.arange(60) % 3
    shapes = {"student_pooled": (2, 6), "teacher_pooled": (2, 8), "index": (60,)}
    torch.manual_seed(0)
    crd = find("crd")(shapes, dim=16)
    parameters, history = list(crd.parameters()), []
    for _ in range(30):
        for rows in torch.randperm(60).split(20):
            loss = crd(images[rows], teacher[rows], labels[rows], rows)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                    parameter -= 0.05 * gradient
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[3]
    with torch.no_grad():
        student, teacher = (torch.nn.functional.normalize(layer(x), dim=1)
                            for layer, x in ((crd.student, images), (crd.teacher, teacher)))
    others = student @ teacher.T - 9 * (labels[:, None] == labels).float()  # of other labels
    assert ((student * teacher).sum(1) > others.max(1).values).float().mean() > 0.9
