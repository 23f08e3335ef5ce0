"""Several processes train as one, and so do the parts of a batch: the same order and loss curve; a lost process costs
one epoch."""

import contextlib
import dataclasses
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import distill
import small
import train_teacher
from kd.data import batching
from kd.errors import UserError
from kd.files import read_csv, read_json, read_npz, read_yaml, write_yaml
from kd.train import checkpoint, distributed, loop
from kd.train.options import claim_folder
from kd.train.step import Step

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PLUGIN = '''
import os
import signal

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from registry import register


@register("architecture", "plain", stages=(), head="4")
def plain(num_classes, stem, weights):
    """Two convolutions without batch normalisation, which would differ between a share and a batch."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), pool, nn.Linear(16, num_classes))


@register("loss", "fatal")
def fatal(student_logits, labels, epoch):
    """Kills the second process in epoch 2, if the environment says so."""
    if epoch == 2 and os.environ.get("FATAL") and dist.is_initialized() and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(student_logits, labels) * 0
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The file of PLUGIN, one for all tests, since its names are registered once."""
    path = tmp_path_factory.mktemp("plugin") / "plain.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path, no_report, plugin):
    """(folder of a study with a teacher, function from the name of an output folder to a student's arguments)."""
    common = ["--data", "lesions,images=300", "--size", "32", "--epochs", "3", "--batch", "30", "--device", "cpu",
              "--precision", "fp32", "--workers", "0", "--cache", str(tmp_path / "cache")]
    train_teacher.main([*common, "--out", str(tmp_path), "--teacher", "tiny"])
    teacher = tmp_path / "lesions_32px" / "teacher_tiny" / "seed_0"
    of_student = ["--plugin", str(plugin), "--student", "plain", "--teacher", str(teacher),
                  "--term", "fatal=1", "--name", "plain_kd_fatal", "--unlabelled", "--teacher-cache", "3",
                  "--lr", "1e-3", "--hard", "logit_adjusted"]
    return tmp_path, lambda out: [*common, *of_student, "--out", str(tmp_path / out)]


def torchrun(arguments, **environment):
    """Run distill.py in two processes; returns the finished process of torchrun."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(ROOT / "distill.py"), *arguments], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def student(root, out):
    return root / out / "lesions_32px" / "plain_kd_fatal" / "seed_0"


@pytest.mark.parametrize("further", [[], [
    "--mixup", "0.4", "--cutmix", "1", "--ema", "0.8", "--sampling", "sqrt", "--size-from", "16", "--alpha", "0.5:0.1",
    "--unlabelled", "lesions,images=200", "--unlabelled-ratio", "0.3"],
    pytest.param(["--compile"], marks=pytest.mark.slow)], ids=["usual", "further", "compiled"])
def test_two_processes_give_the_loss_curve_of_one(study, further):
    root, arguments = study
    distill.main([*arguments("one"), *further])
    # With `further` the two processes compute each batch in three parts.
    process = torchrun([*arguments("two"), *further, *(["--accumulate", "3"] if "--mixup" in further else [])])
    assert process.returncode == 0, process.stderr
    assert (", not compiled" in process.stdout) != ("--compile" in further)
    single, double = (read_csv(student(root, out) / "history.csv") for out in ("one", "two"))
    assert len(single) == len(double) == 3
    for name in ("loss", "logit_adjusted", "kd", "val_loss", *(["ema_val_loss"] if "--ema" in further else [])):
        curves = [[float(row[name]) for row in history] for history in (single, double)]
        assert np.allclose(*curves, rtol=0, atol=1e-5), name
    assert read_json(student(root, "two") / "environment.json")["processes"] == 2
    logits = [read_npz(student(root, out) / "predictions" / "test.npz")["logits"] for out in ("one", "two")]
    assert logits[0].shape == logits[1].shape and np.allclose(*logits, atol=1e-3)
    assert process.stdout.count("\nnext: ") == 1  # only one process prints the result


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_the_same_command_goes_on_to_the_same_weights(study):
    root, arguments = study
    assert torchrun(arguments("two")).returncode == 0
    lost = torchrun(arguments("lost"), FATAL="1")
    assert lost.returncode != 0 and len(read_csv(student(root, "lost") / "history.csv")) == 1
    again = torchrun(arguments("lost"))
    assert again.returncode == 0 and "going on after epoch 1" in again.stdout, again.stderr
    states = [checkpoint.read(student(root, out) / "best.pt")["state_dict"] for out in ("two", "lost")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def _namespaces_are_allowed():
    """Whether this user may make network namespaces."""
    if not shutil.which("ip"):
        return False
    name = f"kd{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


@pytest.fixture
def hosts():
    """Two network namespaces, joined by a cable, with an address each; [(namespace, its interface, its address)]."""
    if not _namespaces_are_allowed():
        pytest.skip("network namespaces need root and iproute2")
    number = os.getpid()
    found = [(f"kd{number}{end}", f"kd{number}{end}", f"10.213.77.{k}") for k, end in ((1, "a"), (2, "b"))]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for namespace, _, _ in found:
            ip("netns", "add", namespace)
        (first, cable, _), (second, other_cable, _) = found
        ip("link", "add", cable, "netns", first, "type", "veth", "peer", "name", other_cable, "netns", second)
        for namespace, interface, address in found:
            ip("-n", namespace, "address", "add", f"{address}/30", "dev", interface)
            for name in ("lo", interface):
                ip("-n", namespace, "link", "set", name, "up")
        yield found
    finally:
        for namespace, _, _ in found:
            _kill(namespace)
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def _kill(namespace):
    """Kill all that runs on a host."""
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _start(hosts, number, arguments, log):
    """Start the process of one host of two, with the command of docs/scaling.md."""
    namespace, interface, address = hosts[number]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0][2]}:29500",
               "--rdzv-conf", f"is_host={int(number == 0)}",
               "--local-addr", address, str(ROOT / "distill.py"), *arguments]
    return subprocess.Popen(["ip", "netns", "exec", namespace, *command], stdout=log, stderr=log,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface})


@pytest.mark.slow
def test_a_host_that_is_lost_and_comes_back_costs_an_epoch_and_not_the_result(study, hosts, tmp_path):
    root, arguments = study

    def run(out, kill=False):
        """(status of each host, what both wrote); `kill`: the second host is lost when an epoch is written."""
        path = tmp_path / f"{out}_{kill}.log"
        with open(path, "w", encoding="utf-8") as log:
            running = [_start(hosts, number, [*arguments(out), "--epochs", "12"], log) for number in (0, 1)]
            deadline = time.monotonic() + 200
            while kill and not (student(root, out) / "history.csv").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            if kill:
                _kill(hosts[1][0])
            return [process.wait(timeout=240) for process in running], path.read_text(encoding="utf-8")

    statuses, text = run("unbroken")
    assert statuses == [0, 0], text
    statuses, text = run("lost", kill=True)
    assert 0 not in statuses and not (student(root, "lost") / "predictions" / "test.npz").exists(), text
    statuses, text = run("lost")
    assert statuses == [0, 0] and "going on after epoch" in text, text
    states = [checkpoint.read(student(root, out) / "best.pt")["state_dict"] for out in ("unbroken", "lost")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert read_json(student(root, "lost") / "environment.json")["processes"] == 2


@pytest.mark.parametrize("further", [[], [
    "--mixup", "0.4", "--ema", "0.8", "--sampling", "sqrt", "--unlabelled", "lesions,images=200",
    "--unlabelled-ratio", "0.3"]], ids=["usual", "further"])
def test_a_batch_in_parts_gives_the_loss_curve_and_the_network_of_the_whole_batch(study, further):
    root, arguments = study
    distill.main([*arguments("whole"), *further])
    distill.main([*arguments("parts"), *further, "--accumulate", "4"])  # 30 images: 8, 8, 7, 7
    whole, parts = (student(root, out) for out in ("whole", "parts"))
    for first, second in zip(*(read_csv(folder / "history.csv") for folder in (whole, parts)), strict=True):
        for name in first.keys() - {"seconds"}:
            assert np.allclose(float(first[name]), float(second[name]), rtol=0, atol=1e-5), name
    states = [checkpoint.read(folder / "best.pt")["state_dict"] for folder in (whole, parts)]
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-5) for key in states[0])
    assert read_yaml(parts / "config.yaml")["accumulate"] == 4


def test_a_run_goes_on_in_as_many_parts_as_it_began_and_an_older_one_in_whole_batches(study):
    root, arguments = study
    distill.main([*arguments("run"), "--epochs", "1"])
    folder = student(root, "run")
    options = read_yaml(folder / "config.yaml")
    with pytest.raises(UserError, match="accumulate was 1, now 2"):
        claim_folder(folder, {**options, "accumulate": 2}, "student")
    write_yaml(folder / "config.yaml", {key: value for key, value in options.items()
                                        if key not in ("accumulate", "sync_batch_norm")})
    assert claim_folder(folder, options, "student") is False


def test_more_parts_than_pairs_of_images_are_refused_before_anything_is_written(tmp_path, no_report):
    with pytest.raises(UserError, match="a batch of 30 has fewer than two images for each of 16 parts") as caught:
        train_teacher.main(["--data", "lesions,images=300", "--size", "32", "--batch", "30", "--teacher", "tiny",
                            "--accumulate", "16", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")])
    assert "--accumulate" in caught.value.hint and not list((tmp_path / "out").rglob("*.*"))


def _two_parts(rank, folder):
    """One of two processes: the gradients of a loss of two parts, of a module that reads its layers by turns."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # the first process's weights are copied
    layers = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("both", "second", "none")})
    forward = distributed.parallel(lambda x: ((layers["second"] if rank else layers["both"])(x).sum() +
                                              layers["both"](x).sum(), {"a": x}), [layers])
    for part in (1, 2):
        with distributed.exchange(forward, now=part == 2):
            forward(torch.full((1, 1), 10.0 * rank + part))[0].backward()
    torch.save([(layer.weight.detach(), layer.weight.grad) for layer in layers.values()], f"{folder}/{rank}.pt")
    distributed.end()


def test_gradients_are_means_over_processes_of_sums_over_parts_also_of_layers_that_one_process_reads(tmp_path):
    torch.multiprocessing.spawn(_two_parts, (str(tmp_path),), nprocs=2)
    (both, second, none), others = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for (weight, gradient), (other_weight, other_gradient) in zip((both, second, none), others, strict=True):
        assert torch.equal(weight, other_weight) and (gradient is None or torch.equal(gradient, other_gradient))
    assert both[1].item() == (2 * (1 + 2) + (11 + 12)) / 2 and second[1].item() == (11 + 12) / 2 and none[1] is None


def test_an_error_that_both_processes_find_is_printed_once_and_neither_is_aborted(tmp_path):
    arguments = ["--teacher", "tiny", "--data", "lesions,images=90", "--size", "32", "--epochs", "2", "--batch", "16",
                 "--device", "cpu", "--workers", "0", "--out", str(tmp_path), "--lr", "1e30", "--clip", "0"]
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--redirects", "3",
         "--log-dir", str(tmp_path / "log"), str(ROOT / "train_teacher.py"), *arguments], capture_output=True,
        text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    printed = "".join(file.read_text() for file in (tmp_path / "log").rglob("stderr.log"))
    assert printed.count("error: the loss is no longer a number") == 1 and "Traceback" not in printed
    assert "exitcode  : 2 " in process.stderr and "exitcode  : -6" not in process.stderr


@pytest.mark.parametrize("fault, status, said", [
    ("raise UserError('what is wrong', 'a hint')", 2, ["", "error: what is wrong\na hint\n"]),
    pytest.param("sys.stdout.flush(); os.kill(os.getpid(), 9)", -9,
                 ["error: another process of this training has ended\n", ""],
                 marks=pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does"))])
def test_an_error_of_one_process_ends_all_and_one_line_says_it_and_what_was_printed_is_not_lost(tmp_path, fault,
                                                                                              status, said):
    code = ("import os, sys, torch\nimport torch.distributed as dist\nfrom kd.errors import UserError\n"
            "from kd.train import distributed\nrank = int(sys.argv[1])\n"
            "def main():\n"
            f"    dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=rank, world_size=2)\n"
            "    dist.all_reduce(torch.zeros(1))\n    print('before')\n"
            f"    if rank:\n        {fault}\n    dist.all_reduce(torch.zeros(1))\n"
            "distributed.run(main)\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(rank)], cwd=ROOT, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, status]
    assert [out for out, _ in printed] == ["before\n"] * 2
    assert printed[1][1] == said[1] and printed[0][1].startswith(said[0]) and bool(printed[0][1]) == bool(said[0])
    assert "Traceback" not in printed[0][1]


def test_at_its_end_the_group_is_no_longer_held_by_a_training(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    gc.disable()  # else chance decides
    try:
        layer = nn.Linear(2, 1)
        forward = distributed.parallel(lambda x: layer(x).sum(), [layer])
        forward(torch.ones(1, 2)).backward()
        held = weakref.ref(forward)
        del forward
        distributed.end()
        assert held() is None and not dist.is_initialized()
    finally:
        gc.enable()


def _by_gradient_descent(rank, folder, world, accumulate):
    """One of `world` processes: two epochs of kd/train/loop.py by plain gradient descent, which, unlike Adam, takes
    smaller steps for smaller gradients. Writes the weights, and the images of each forward pass in training."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet_{accumulate}", rank=rank, world_size=world)
    data = small.data(folder=Path(folder))
    options = {**small.options("--alpha", "1", "--batch", "22", "--accumulate", str(accumulate)), "clip": 0.0}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    passes = []
    model.register_forward_hook(lambda module, inputs, _: passes.append(len(inputs[0])) if module.training else None)
    student = dataclasses.replace(small.network(options, data), model=model)
    step = Step(student, None, small.terms(options), data, options, CPU, "fp32")
    step.optimizer = torch.optim.SGD([{"params": step.parameters, "peak": 0.1}])
    loop.train(step, data, options, 0, small.Journal(2))
    torch.save((model.state_dict(), passes), f"{folder}/{world}_{accumulate}_{rank}.pt")
    if world > 1:
        distributed.end()


def test_the_update_of_processes_and_parts_is_that_of_the_whole_batch_and_each_computes_its_share(tmp_path):
    assert len(small.data(folder=tmp_path).train) == 66  # three whole batches
    for world, accumulate in ((1, 1), (1, 3), (2, 1), (2, 3)):
        arguments = str(tmp_path), world, accumulate
        if world > 1:
            torch.multiprocessing.spawn(_by_gradient_descent, arguments, nprocs=world)
        else:
            _by_gradient_descent(0, *arguments)
    one, passes = torch.load(tmp_path / "1_1_0.pt", weights_only=True)
    assert passes == 6 * [22]
    for name, expected in (("1_3_0", 6 * [8, 7, 7]), ("2_1_1", 6 * [11]), ("2_3_0", 6 * [4, 4, 3])):
        weights, passes = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert passes == expected
        assert all(torch.allclose(weights[key], one[key], atol=1e-6) for key in one), name


def test_synchronised_batch_normalisation_has_the_same_weights_and_the_same_answers_in_evaluation(tmp_path):
    data, options = small.data(folder=tmp_path), small.options()
    model = small.network(options, data).model.eval()
    images, before = torch.rand(4, 3, 32, 32), {key: value.clone() for key, value in model.state_dict().items()}
    logits = model(images)
    distributed.synchronise_batch_norm(model, "tiny")
    kinds = {type(module) for module in model.modules()}
    assert nn.SyncBatchNorm in kinds and nn.BatchNorm2d not in kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(images), logits)


def test_batch_normalisation_that_cannot_be_synchronised_is_refused(monkeypatch):
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match="net has WithActivation, which cannot be synchronised"):
        distributed.synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3), WithActivation(3)), "net")
    distributed.check_sync_batch_norm("cpu")  # in one process there is nothing to synchronise
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    distributed.check_sync_batch_norm("cuda")
    with pytest.raises(UserError, match="runs on GPUs alone, not on cpu"):
        distributed.check_sync_batch_norm("cpu")


def test_the_shares_of_all_processes_are_the_batches_of_one_in_their_order(tmp_path):
    data = small.data(folder=tmp_path)

    def indices(**share):
        batches = batching.training_batches(data, batch=20, seed=1, epoch=2, device=CPU, **share)
        return [batch.index for batch in batches]

    whole, shares = indices(), [indices(share=(rank, 3)) for rank in range(3)]
    assert [len(batch) for batch in whole] == [20, 20, 20, 6]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(torch.equal(batch[rank::3], part) for rank, part in enumerate(parts))


def test_the_parts_of_a_batch_hold_its_images_once_with_at_least_two_labelled_ones_each(tmp_path):
    data = small.data(folder=tmp_path)
    data.unlabelled = small.unlabelled(data, count=20)

    def batches(**options):
        return list(batching.training_batches(data, batch=20, seed=1, epoch=2, device=CPU, unlabelled_ratio=0.5,
                                              **options))

    whole, parts = batches(), batches(accumulate=4)
    assert [batch.is_last for batch in parts] == 3 * [False, False, False, True] + [False, False, True]
    assert [len(batch.labels) for batch in parts] == 12 * [5] + 3 * [2]
    assert [batch.whole for batch in parts] == 12 * [(20, 30)] + 3 * [(6, 9)]
    for batch in whole:
        own = [parts.pop(0) for _ in range(4 if len(batch.labels) == 20 else 3)]
        for k, part in enumerate(own):
            labelled = len(batch.labels)
            rows = [*range(labelled)[k::len(own)], *range(labelled, len(batch.index))[k::len(own)]]
            assert torch.equal(part.index, batch.index[rows]) and torch.equal(part.images, batch.images[rows])
    pair = [batches(accumulate=2, share=(rank, 2)) for rank in range(2)]  # divided as four processes divide it
    four = [batches(share=(rank, 4)) for rank in range(4)]
    for rank in range(2):
        for k in range(2):
            assert all(torch.equal(a.index[:len(a.labels)], b.index[:len(b.labels)])
                       for a, b in zip(pair[rank][k:6:2], four[rank + 2 * k], strict=True))


def test_a_last_batch_too_small_for_every_process_is_left_out():
    def sizes(count, *world):
        return batching.batch_sizes(SimpleNamespace(train=range(count), unlabelled=None), 10, *world)

    assert sizes(23) == [(10, 10), (10, 10), (3, 3)]
    assert sizes(23, 2) == sizes(21) == [(10, 10), (10, 10)]
