"""One optimisation step, and what it may read of student and teacher."""

import contextlib

import numpy as np
import torch

from kd import losses, objective
from kd.data import augment
from kd.errors import UserError
from kd.train import cpu_convolution, distributed, networks


def memory_format(device):
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def normalise_for(images, network):
    """Images [N, 3, H, W] in [0, 1] as `network` expects them."""
    images = augment.normalise(images, network.mean, network.std)
    return images.contiguous(memory_format=memory_format(images.device))


def feature_extractor(network, needs, who, compiled=None):
    """A Reader of what the losses need of a network; who: student or teacher; compiled: as Reader has it."""
    reads_stages = bool({f"{who}_features", f"{who}_attention"} & needs)
    stages = network.stages if reads_stages else ()
    head = network.head if f"{who}_pooled" in needs else None
    if reads_stages and not stages or f"{who}_pooled" in needs and not head:
        raise UserError(f"the stages of {network.arch} are not known, and this loss reads them",
                        "Use losses on logits (--beta 0, no such --term), or another network.")
    return networks.FeatureExtractor(network.model, stages, head, compiled)


def network_outputs(who, network, see, images, needs):
    """What losses may read of the student or the teacher (`who`), whom a Reader `see` reads: {"student_logits": ...}.

    Attention is computed where `needs` has it; what the Reader does not keep is empty.
    """
    given = {"logits": see(normalise_for(images, network)), "features": see.features, "pooled": see.pooled}
    if f"{who}_attention" in needs:
        given["attention"] = [losses.attention(feature) for feature in see.features]
    return {f"{who}_{what}": value for what, value in given.items()}


def dry_run(network, terms, data, options):
    """Run `network` and the losses on two images: what they cannot do is an error before anything is trained or written.

    The teacher may not exist yet; the network's own outputs stand for the teacher's.
    """
    networks.check_input(network.model, network.arch, data.size, len(data.class_names))
    if options["head_lr"] is not None and not network.head:
        raise UserError(f"the head of {network.arch} is not known, and --head-lr is for it", "Leave out --head-lr.")
    needs = {need.replace("teacher_", "student_") for need in objective.needed(terms)}
    see = feature_extractor(network, needs, "student")
    training = network.model.training
    network.model.eval()
    with torch.random.fork_rng(devices=()):
        given = network_outputs("student", network, see, torch.rand(2, 3, data.size, data.size), needs)
        given.update({need.replace("student_", "teacher_"): value for need, value in given.items()})
        objective.Objective(terms, _shapes(given))(
            {**given, "labels": torch.zeros(2, dtype=torch.int64), "index": torch.arange(2), "epoch": 1,
             "class_counts": _class_counts(data)})
    network.model.train(training)
    see.close()


def _class_counts(data):
    """[C] training images a class."""
    return torch.from_numpy(np.bincount(data.labels[data.where("train")], minlength=len(data.class_names)))


def _shapes(given):
    """The shapes of what losses are given: {name: shape, or a list of shapes}."""
    return {name: [tuple(x.shape) for x in value] if isinstance(value, list) else tuple(value.shape)
            for name, value in given.items() if value is not None}


class Step:
    """One optimisation step: forward through student and teacher, the objective, backward."""

    def __init__(self, student, teacher, terms, data, options, device, precision, targets=None):
        self.needs = needs = objective.needed(terms)
        self.networks, self.targets = (student, teacher), targets
        self.compiled = len(range(distributed.rank(), options["batch"], distributed.world())) if options["compile"] else None
        self.student = feature_extractor(student, needs, "student", self.compiled)
        self.teacher = feature_extractor(teacher, needs, "teacher", self.compiled) if teacher else None
        self.teacher_fingerprint = teacher.fingerprint if teacher else None
        if teacher:
            teacher.model.eval().requires_grad_(False)
            self.frozen = [buffer.clone() for buffer in teacher.model.buffers()]
        self.device, self.precision, self.clip = device, precision, options["clip"]
        self.adapted = [cpu_convolution.adapt(network.model) for network in (student, teacher) if network and device.type == "cpu"]
        self.class_counts = _class_counts(data).to(device)
        learnable = any(isinstance(term.loss, type) for term in terms)
        self.objective = objective.Objective(terms, _shapes(self._look(data.size)) if learnable else None).to(device)
        self.optimizer = self._optimizer(student, options)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def _look(self, size):
        """What the networks give for two images, in eval mode."""
        images = torch.zeros(2, 3, size, size, device=self.device)
        modes = [(reader.model, reader.model.training) for reader in (self.student, self.teacher) if reader]
        with torch.no_grad():
            for model, _ in modes:
                model.eval()
            given = self._forward(images)
            for model, training in modes:
                model.train(training)
        return given

    def _optimizer(self, network, options):
        """Head and body apart, each with its learning rate; weights decay, biases and normalisation do not."""
        head = list(network.model.get_submodule(network.head).parameters()) if options["head_lr"] is not None else []
        of_head = {id(parameter) for parameter in head}
        body = [p for p in [*network.model.parameters(), *self.objective.parameters()] if id(p) not in of_head]
        groups = [{"params": [p for p in part if p.requires_grad and (p.ndim > 1) == decays],
                   "weight_decay": options["weight_decay"] if decays else 0.0, "peak": peak}
                  for part, peak in ((body, options["lr"]), (head, options["head_lr"])) for decays in (True, False)]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=options["lr"], fused=self.device.type != "mps")

    def autocast(self):
        """The context in which networks compute in this step's precision."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def teacher_forward(self, images):
        """What the losses may read of the teacher: {"teacher_logits": [N, C], ...}."""
        with torch.no_grad(), self.autocast():
            return network_outputs("teacher", self.networks[1], self.teacher, images, self.needs)

    def _forward(self, images, index=None, epoch=None):
        if self.targets and index is not None:
            given = self.targets(index, epoch, self.device)
        else:
            given = self.teacher_forward(images) if self.teacher else {}
        with self.autocast():
            return {**given, **network_outputs("student", self.networks[0], self.student, images, self.needs)}

    def __call__(self, images, labels, index, epoch, rate, part=1.0):
        """Update the student once. Returns the loss and the terms' values, on the device.

        rate: the share of the peak learning rate. part: the share of the batch that this process has.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        given = self._forward(images, index, epoch)
        given.update(labels=labels, index=augment.to_device(index.numpy(), self.device), epoch=epoch, class_counts=self.class_counts)
        loss, values = self.objective(given)
        self.optimizer.zero_grad(set_to_none=True)
        (part * loss).backward()
        distributed.add_up([p.grad for p in self.parameters if p.grad is not None])
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss.detach(), values

    def describe(self):
        """One line on what the hardware is asked for."""
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if self.device.type == "cpu" else ""
        layout = "channels last" if memory_format(self.device) == torch.channels_last else "channels first"
        asked = f", the teacher {'from disk' if self.targets else 'live'}" if self.teacher else ""
        return f"{self.device}{threads}, {self.precision}, {layout}, {'compiled' if self.compiled else 'not compiled'}{asked}"

    def close(self):
        """Leave both networks as they were."""
        for undo in self.adapted:
            undo()
        for reader in filter(None, (self.student, self.teacher)):
            reader.close()
        if self.compiled:
            torch.compiler.reset()  # a process keeps the code of a few networks only, and a study trains many

    def check_teacher(self):
        """A teacher whose buffers moved was not frozen, and the run is worth nothing."""
        if self.teacher and not all(torch.equal(a, b) for a, b in zip(self.frozen, self.teacher.model.buffers())):
            raise RuntimeError("the teacher's batch statistics changed while its student was trained")
