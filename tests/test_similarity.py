"""Linear CKA, and the similarity of student and teacher that a run records."""

import itertools

import numpy as np
import pytest
import torch

import distill
import small
import train_teacher
from kd import image, losses
from kd.files import read_npz
from kd.train import networks, similarity

pytestmark = pytest.mark.usefixtures("no_report")
COMMON = [
    "--data", "lesions,images=200", "--size", "32", "--epochs", "1", "--batch", "32", "--workers", "0", "--device",
    "cpu", "--precision", "fp32",
]


def gram(x):
    x = x - x.mean(0)
    return x @ x.T


def linear_cka(x, y):
    return similarity.cka(gram(x), gram(y))


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12))
    return x, x[:, :5] @ rng.normal(size=(5, 9)) + rng.normal(size=(40, 9))


def test_it_is_one_with_itself_and_the_same_under_rotation_shift_and_scale_of_either(pair):
    x, y = pair
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert linear_cka(x, x) == pytest.approx(1) and linear_cka(x, 3 * x @ rotation - 7) == pytest.approx(1)
    assert .2 < linear_cka(x, y) < .9
    assert linear_cka(-.01 * x @ rotation + 5, y) == pytest.approx(linear_cka(x, y)) == pytest.approx(linear_cka(y, x))
    assert linear_cka(x * np.arange(1, 13), y) != pytest.approx(linear_cka(x, y), abs=1e-3)  # not under any linear map


def u_statistic(a, b):
    """Unbiased HSIC as the mean over all ordered quadruples of different images; a, b: Gram matrices."""
    terms = [a[i][j] * (b[i][j] + b[q][r] - 2 * b[i][q]) for i, j, q, r in itertools.permutations(range(len(a)), 4)]
    return sum(terms) / len(terms)


def test_it_is_the_mean_over_all_quadruples_of_different_images():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    a, b = gram(x), gram(y)
    expected = u_statistic(a, b) / np.sqrt(u_statistic(a, a) * u_statistic(b, b))
    assert linear_cka(x, y) == pytest.approx(expected)
    a, b = x @ x.T, y @ y.T  # without centring
    assert linear_cka(x, y) == pytest.approx(u_statistic(a, b) / np.sqrt(u_statistic(a, a) * u_statistic(b, b)))


def test_a_case_by_hand():
    # x = 0 0 2 2: the one entry off the diagonal is K34 = 4, row sums 0 0 4 4; y = 0 2 0 2: L24 = 4, row sums 0 4 0 4.
    # HSIC(K, L) = (0 + 8 * 8 / 6 - 2 * 16 / 2) / 4 = -4/3, and HSIC(K, K) = (32 + 64 / 6 - 32) / 4 = 8/3 = HSIC(L, L).
    x, y = (np.outer(v, v) for v in ([0, 0, 2, 2], [0, 2, 0, 2]))
    assert similarity.cka(x, y) == pytest.approx(-1 / 2)


def test_many_images_and_few_features_give_what_the_plain_formula_gives():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1500, 4))
    y = x @ rng.normal(size=(4, 3)) + rng.normal(size=(1500, 3))
    a, b = x - x.mean(0), y - y.mean(0)
    by_features = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(by_features, abs=.005)


def test_unrelated_representations_are_near_zero_for_any_number_of_features():
    rng = np.random.default_rng(4)
    values = [linear_cka(rng.normal(size=(50, 2000)), rng.normal(size=(50, 3000))) for _ in range(20)]
    assert abs(np.mean(values)) < .02 and min(values) < 0


def test_what_does_not_vary_or_is_too_small_has_no_similarity(pair):
    x, _ = pair
    assert np.isnan(linear_cka(x, np.ones((40, 3)))) and np.isnan(linear_cka(x[:3], x[:3]))
    assert np.isnan(similarity.cka_interval(gram(x[:3]), gram(x[:3]), range(3))).all()


def test_the_interval_covers_what_many_images_give_and_groups_widen_it():
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(6, 6))

    def drawn(count):
        x = rng.normal(size=(count, 6))
        return x, x @ mix + 2 * rng.normal(size=(count, 6))

    truth, inside = linear_cka(*drawn(1000)), 0
    for _ in range(30):
        x, y = drawn(50)
        value, lo, hi = similarity.cka_interval(gram(x), gram(y), np.arange(50))
        assert lo <= value <= hi <= 1
        inside += lo <= truth <= hi
    assert 25 <= inside <= 30
    doubled = [np.repeat(z, 2, axis=0) + .01 * rng.normal(size=(100, 6)) for z in (x, y)]
    widths = [np.diff(similarity.cka_interval(gram(doubled[0]), gram(doubled[1]), groups)[1:])[0]
              for groups in (np.arange(100), np.arange(100) // 2)]
    assert widths[1] > 1.2 * widths[0]


class Pooled(torch.nn.Module):
    """A stage of two channels, given by hand, then global average pooling and a linear head."""

    def __init__(self, channels, weights):
        super().__init__()
        self.channels, self.stage = channels, torch.nn.Identity()
        self.relu, self.head = torch.nn.ReLU(inplace=True), torch.nn.Linear(len(weights[0]), len(weights))
        self.head.weight.data, self.head.bias.data = torch.tensor(weights), torch.zeros(len(weights))

    def forward(self, images):
        features = self.stage(self.channels * images.mean((1, 2, 3), keepdim=True))
        return self.head(self.relu(features).mean((2, 3)))


def test_grad_cam_of_a_linear_head_after_average_pooling_is_the_class_activation_map():
    # The channels A = 3 1 / 1 5 and B = 2 3 / 2 1 have the means 5/2 and 2, and the logits are 2 * 5/2 - 2 = 3 and 2.
    # So the map is that of class 0, relu(2 A - B) = 4 0 / 0 9, over its maximum.
    channels = torch.tensor([[[[3., 1], [1, 5]], [[2, 3], [2, 1]]]])
    model = Pooled(channels, [[2., -1], [0, 1]]).eval().requires_grad_(False)  # frozen, as a teacher is
    with torch.no_grad():
        maps = similarity.grad_cam(model, "stage", torch.tensor([1., 2, 5]).view(3, 1, 1, 1).expand(3, 3, 2, 2))
    assert maps.numpy() == pytest.approx(np.array([[[4 / 9, 0], [0, 1]]] * 3))
    assert not model.stage._forward_hooks and not maps.requires_grad


def test_grad_cam_shows_nothing_where_nothing_speaks_for_the_class():
    model = Pooled(torch.ones(1, 2, 2, 2), [[-1., -1], [-2, -2]]).eval()
    assert not similarity.grad_cam(model, "stage", torch.ones(1, 3, 2, 2)).any()


@pytest.fixture
def run(tmp_path):
    """(folder, student, teacher, data)."""
    data, options = small.data(folder=tmp_path / "cache"), small.options("--alpha", "0.5")
    return tmp_path, small.network(options, data), small.network(options, data, seed=1), data


def logits(network, pixels):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (network.mean, network.std))
    with torch.no_grad():
        return network.model.eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)


def test_the_images_are_those_on_which_student_and_teacher_differ_most_one_of_a_group(run):
    folder, student, teacher, data = run
    test = data.where("test")
    data.groups[test[:2 * len(test) // 3]] = "one"
    similarity.write(folder, student, teacher, data, "cpu")
    arrays = read_npz(folder / "attention.npz")
    pixels = image.centre_crop(data.pixels(test), 32)
    both = [logits(network, pixels).softmax(1).numpy() for network in (student, teacher)]
    distances, expected, groups = np.abs(both[0] - both[1]).sum(1) / 2, [], set()
    for k in np.argsort(-distances):
        if data.groups[test[k]] not in groups:
            expected.append(k)
            groups.add(data.groups[test[k]])
    expected = expected[:similarity.SHOWN]
    assert "one" in {data.groups[test[k]] for k in expected}
    assert arrays["ids"].tolist() == data.ids[test[expected]].tolist()
    assert arrays["difference"] == pytest.approx(distances[expected], abs=1e-6)
    assert np.array_equal(arrays["images"], pixels[expected]) and arrays["candidates"] == len(test)


def test_a_network_has_similarity_1_and_equal_maps_with_itself(run):
    folder, student, _, data = run
    similarity.write(folder, student, student, data, "cpu")
    arrays = read_npz(folder / "attention.npz")
    maps = arrays["student"]
    assert arrays["cka"] == pytest.approx(np.ones(4)) and arrays["cka_lo"] == pytest.approx(np.ones(4), abs=1e-6)
    assert np.array_equal(maps, arrays["teacher"]) and maps.shape == (similarity.SHOWN, 4, 32, 32)
    assert np.array_equal(arrays["student_cam"], arrays["teacher_cam"])
    assert arrays["student_cam"].shape == maps[:, 0].shape and arrays["student_cam"].max() <= 1
    assert maps.dtype == np.float16 and arrays["cka_images"] == len(data.where("val"))
    assert np.square(maps.astype(float)).sum((2, 3)) == pytest.approx(np.ones((similarity.SHOWN, 4)), abs=.01)


def test_maps_and_similarity_are_those_of_the_stages(run):
    folder, student, teacher, data = run
    similarity.write(folder, student, teacher, data, "cpu")
    arrays = read_npz(folder / "attention.npz")
    cka, lo, hi = arrays["cka"], arrays["cka_lo"], arrays["cka_hi"]
    assert (cka < .999).all() and (lo < cka).all() and (cka < hi).all()

    def stage(network, pixels):
        model, features = network.model.eval(), []
        hook = model.stage1.register_forward_hook(lambda module, inputs, output: features.append(output))
        logits(network, pixels)
        hook.remove()
        return features[0]

    expected = losses.attention(stage(teacher, arrays["images"])).numpy()  # 32 x 32 already
    assert arrays["teacher"][:, 0].astype(float) == pytest.approx(expected, abs=1e-3)
    pixels = image.centre_crop(data.pixels(data.where("val")), 32)
    blocks = [stage(network, pixels).view(len(pixels), 16, 4, 8, 4, 8).mean((3, 5)).flatten(1).numpy().astype(float)
              for network in (student, teacher)]
    assert cka[0] == pytest.approx(linear_cka(*blocks), abs=1e-4)


def test_a_large_validation_split_is_sampled_evenly_and_the_same_each_time(run, monkeypatch):
    folder, student, teacher, data = run
    monkeypatch.setattr(similarity, "IMAGES", 5)
    files = []
    for _ in range(2):
        similarity.write(folder, student, teacher, data, "cpu")
        files.append(read_npz(folder / "attention.npz"))
    assert 4 <= files[0]["cka_images"] <= 5 and np.array_equal(files[0]["cka"], files[1]["cka"])
    assert files[0]["candidates"] <= 5 and len(files[0]["ids"]) <= similarity.SHOWN


def test_without_known_stages_a_line_says_so(run, capsys):
    folder, student, teacher, data = run
    teacher = networks.Network(teacher.model, "torchvision:alexnet", "imagenet")
    similarity.write(folder, student, teacher, data, "cpu")
    assert not (folder / "attention.npz").exists()
    assert "the stages of torchvision:alexnet are not known: no attention maps" in capsys.readouterr().out


def test_a_run_with_a_teacher_has_the_file_a_finished_one_gets_it_and_others_have_none(tmp_path, capsys):
    common = [*COMMON, "--out", str(tmp_path), "--student", "tiny"]
    teacher, = train_teacher.main([*COMMON, "--out", str(tmp_path), "--teacher", "tiny"])
    student, = distill.main([*common, "--alpha", "0.5"])
    assert "similarity to the teacher by stage (linear CKA, " in capsys.readouterr().out
    first = read_npz(student / "attention.npz")
    (student / "attention.npz").unlink()
    distill.main([*common, "--alpha", "0.5"])
    again = read_npz(student / "attention.npz")
    assert all(np.array_equal(first[key], again[key]) for key in first)
    baseline, = distill.main([*common, "--alpha", "1"])
    assert not (baseline / "attention.npz").exists() and not (teacher / "attention.npz").exists()
