"""What one optimisation step needs: networks whose stages can be read, objective, optimiser, precision."""

import contextlib
import dataclasses
import math

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd import losses, objective
from kd.data import augment, batching, sampling
from kd.data.batching import Views
from kd.data.mixing import mix_labels
from kd.errors import UserError
from kd.selection import AVERAGE
from kd.train import cpu_convolution, distributed, networks
from kd.train.stages import check_stages, proposed

SIZE_STEP = 16  # px, in which --size-from grows
NOT_OF_SEVERAL = {"teacher_features", "teacher_attention", "teacher_pooled"}  # what an ensemble of teachers has not


def memory_format(device):
    """Channels last, in which convolutions are fastest; MPS has kernels for the usual order only."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def multiplies_in_bf16(device):
    """Whether the hardware is known to have instructions for it; others compute the same, more slowly than fp32."""
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability() >= (8, 0)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def normalise_for(images, network):
    """Images [N, 3, H, W] in [0, 1] -> the same normalised by the mean and the std that `network` was trained with."""
    images = augment.normalise(images, network.mean, network.std)
    return images.contiguous(memory_format=memory_format(images.device))


def feature_extractor(network, needs, role, compiled=None):
    """A FeatureExtractor of what the losses read of a network.

    needs: a set of names of kd.objective.NEEDS. role: student or teacher. compiled: as FeatureExtractor has it.
    Raises UserError where a loss reads stages, or the input of the head, and these are not known.
    """
    reads_stages = bool({f"{role}_features", f"{role}_attention"} & needs)
    stages = network.stages if reads_stages else ()
    head = network.head if f"{role}_pooled" in needs else None
    if reads_stages and not stages:
        when = "" if role == "student" else " when it is trained"
        paths = " ".join(proposed(network.model) or "ABCD")
        raise UserError(f"the stages of {network.arch} are not known, and this loss reads them",
                        f"Name four of its modules{when}, --stages {paths}; a plugin of yours names them where it "
                        'registers the network, stages=("A", "B", "C", "D"). Or use losses on logits (--beta 0, no '
                        "such --term), or another network.")
    if f"{role}_pooled" in needs and not head:
        raise UserError(f"the head of {network.arch} is not known, and this loss reads its input",
                        "Use losses without it (no such --term), or another network.")
    return networks.FeatureExtractor(network.model, stages, head, compiled)


def network_outputs(role, network, extractor, images, needs):
    """What losses may read of a network for images [N, 3, H, W] in [0, 1]: {"student_logits": [N, C], ...}.

    role: student or teacher. Features are lists of [N, C, H, W], empty where the extractor keeps none. Attention maps,
    lists of [N, H, W], are computed where `needs` has them.
    """
    logits = extractor(normalise_for(images, network))
    outputs = {f"{role}_logits": logits, f"{role}_features": extractor.features, f"{role}_pooled": extractor.pooled}
    if f"{role}_attention" in needs:
        outputs[f"{role}_attention"] = [losses.attention(feature) for feature in extractor.features]
    return outputs


def dry_run(network, terms, data, options):
    """Run `network` and the losses on two images, so that what they cannot do is an error before anything is written.

    The teacher may not exist yet; the network's own outputs stand for the teacher's.
    """
    batching.batch_sizes(data, options["batch"], distributed.world(), options.get("unlabelled_ratio", 0.0))
    if options["batch"] < 2 * distributed.world() * options["accumulate"]:
        processes = f" in each of {distributed.world()} processes" if distributed.world() > 1 else ""
        raise UserError(f"a batch of {options['batch']} has fewer than two images for each of {options['accumulate']} "
                        f"parts{processes}", "Give a smaller --accumulate, or a larger --batch.")
    for size in dict.fromkeys((options["size_from"] or data.size, data.size)):
        networks.check_input(network.model, network.arch, size, len(data.class_names))
    if options["size_from"] and options["size_from"] > data.size:
        raise UserError(f"--size-from {options['size_from']} is above --size {data.size}",
                        "The images grow from the one to the other.")
    if options["select"] == "macro_auroc" and len(set(data.labels[data.where("val")].tolist())) < 2:
        raise UserError("validation has images of one class alone, and no AUROC", "Leave out --select.")
    if options["head_lr"] is not None and not network.head:
        raise UserError(f"the head of {network.arch} is not known, and --head-lr is for it", "Leave out --head-lr.")
    if network.stages:
        check_stages(network.model, network.arch, network.stages, data.size)
    needs = {need.replace("teacher_", "student_") for need in objective.needed(terms)}
    extractor = feature_extractor(network, needs, "student")
    training = network.model.training
    network.model.eval()
    with torch.random.fork_rng(devices=()):
        outputs = network_outputs("student", network, extractor, torch.rand(2, 3, data.size, data.size), needs)
        outputs.update({name.replace("student_", "teacher_"): value for name, value in outputs.items()})
        labels, index = torch.zeros(2, dtype=torch.int64), torch.arange(2)
        if options["mixup"] or options["cutmix"]:
            labels = mix_labels(labels, labels, np.full(2, 0.5), len(data.class_names))
        objective.Objective(terms, _shapes(outputs, data))(
            {**outputs, "labels": labels, "index": index, "epoch": 1, "epochs": options["epochs"],
             "class_counts": _class_counts(data, options["sampling"]), "student_tau": objective.tau(terms),
             "teacher_tau": 0.0})
    network.model.train(training)
    extractor.close()


def _class_counts(data, kind):
    """[C] labelled training images of each class that an epoch shows. kind: of kd.data.sampling.KINDS."""
    return torch.from_numpy(sampling.class_counts(data.labels[data.train], len(data.class_names), kind))


def _shapes(outputs, data):
    """The shapes of network outputs: {name: shape, or a list of shapes}; "index": (number of training images,)."""
    shapes = {name: [tuple(x.shape) for x in value] if isinstance(value, list) else tuple(value.shape)
              for name, value in outputs.items() if value is not None}
    return {**shapes, "index": (len(data.train),)}


class Step:
    """Student and teacher, ready for one optimisation step after the other.

    student, teacher: kd.train.networks.Network; the teacher may be an Ensemble, and is None where no loss reads one.
    terms: of kd.objective.plan. targets: kd.train.teacher_cache.Targets, where the teacher's outputs come from disk.
    The teacher is frozen: eval mode, no gradients, and check_teacher() raises where its batch statistics have moved.
    """

    def __init__(self, student, teacher, terms, data, options, device, precision, targets=None):
        self.student, self.teacher, self.targets = student, teacher, targets
        self.device, self.precision = device, precision
        self.needs = objective.needed(terms)
        if options["sync_batch_norm"] and distributed.world() > 1:
            distributed.synchronise_batch_norm(student.model, student.arch)
        share = len(range(distributed.rank(), options["batch"], distributed.world() * options["accumulate"]))
        self.compiled = share if options["compile"] else None  # the number of images that networks are compiled for
        members = self._members()
        self.average = None
        if options["ema"]:  # before hooks are added to the model that it copies
            self.average = AveragedModel(student.model, multi_avg_fn=get_ema_multi_avg_fn(options["ema"]),
                                         use_buffers=True)
        self.extractor = feature_extractor(student, self.needs, "student", self.compiled)
        if teacher and len(members) != 1 and (needs := sorted(self.needs & NOT_OF_SEVERAL)):
            raise UserError(f"a loss reads {', '.join(needs)}, and several teachers, or a file, give logits alone",
                            "Use losses on logits (--beta 0, no such --term), or one network as teacher.")
        self.teacher_extractors = [feature_extractor(member, self.needs, "teacher", self.compiled)
                                   for member in members]
        self.teacher_fingerprint = teacher.fingerprint if teacher else None
        for member in members:
            member.model.eval().requires_grad_(False)
        self.frozen_buffers = [buffer.clone() for buffer in self._teacher_buffers()]
        self.undo_adaptations = [cpu_convolution.adapt(network.model) for network in (student, *members)
                                 if device.type == "cpu"]
        self.class_counts = _class_counts(data, options["sampling"]).to(device)
        self.views = Views.of(options, kept=options["teacher_cache"] if targets else None)
        self.unlabelled_ratio = options["unlabelled_ratio"] if data.unlabelled else 0.0
        self.full_size, self.first_size = data.size, options["size_from"] or data.size
        self.teacher_sizes = () if targets else tuple(member.size or data.size for member in members)
        self.epochs = options["epochs"]
        self.taus = {"student_tau": objective.tau(terms), "teacher_tau": teacher.tau if teacher else None}
        if "teacher_tau" in self.needs and self.taus["teacher_tau"] is None:
            raise UserError("a loss reads the tau of the teacher's logit adjustment, which its checkpoint does not say",
                            "Say it to distill.py: --teacher-tau 0 for a teacher of plain cross-entropy.")
        learnable = any(isinstance(term.loss, type) for term in terms)
        shapes = self._output_shapes(data) if learnable else None
        self.objective = objective.Objective(terms, shapes).to(device)
        if options["sync_batch_norm"] and distributed.world() > 1:
            distributed.synchronise_batch_norm(self.objective, "a loss")
        self.optimizer = self._optimizer(options)
        # small gradients would be 0 in fp16, and are computed of a scaled loss (1710.03740); else this does nothing
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def _output_shapes(self, data):
        """The shapes of what both networks give for two images, in eval mode."""
        images = torch.zeros(2, 3, data.size, data.size, device=self.device)
        crops = {size: torch.zeros(2, 3, size, size, device=self.device) for member in self._members()
                 for size in [member.size or data.size]}
        training = self.student.model.training
        with torch.no_grad():
            self.student.model.eval()
            outputs = {**(self.teacher_forward(crops) if self.teacher else {}), **self.student_outputs(images)}
            self.student.model.train(training)
        return _shapes(outputs, data)

    def _members(self):
        return self.teacher.members if self.teacher else []

    def _teacher_buffers(self):
        return [buffer for member in self._members() for buffer in member.model.buffers()]

    def _optimizer(self, options):
        """AdamW; head and body apart, each with its learning rate; weights decay, biases and normalisation do not."""
        model = self.student.model
        head = list(model.get_submodule(self.student.head).parameters()) if options["head_lr"] is not None else []
        in_head = {id(parameter) for parameter in head}
        body = [p for p in [*model.parameters(), *self.objective.parameters()] if id(p) not in in_head]
        groups = []
        for part, peak in ((body, options["lr"]), (head, options["head_lr"])):
            for decays in (True, False):
                parameters = [p for p in part if p.requires_grad and (p.ndim > 1) == decays]
                weight_decay = options["weight_decay"] if decays else 0.0
                groups += [{"params": parameters, "weight_decay": weight_decay, "peak": peak}] if parameters else []
        return torch.optim.AdamW(groups, lr=options["lr"], fused=self.device.type != "mps")

    def autocast(self):
        """The context in which networks compute in this step's precision."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def begin_epoch(self, seed, epoch):
        """Train mode for the student; dropout follows from seed and epoch, and differs between processes."""
        self.student.model.train()
        torch.manual_seed((seed * 1_000_003 + epoch) * distributed.world() + distributed.rank())

    def size(self, epoch):
        """The side of the student's images in an epoch, px: it grows from --size-from in steps of SIZE_STEP.

        Each side is shown in as many epochs as the others, the last one at least in the last epoch.
        """
        sides = [*range(self.first_size, self.full_size, SIZE_STEP), self.full_size]
        return sides[-1 - (self.epochs - epoch) * len(sides) // self.epochs]

    def teacher_forward(self, crops):
        """What the losses read of the teacher: {"teacher_logits": [N, C], ...}.

        crops: {px: images [N, 3, px, px]}. Each teacher gets its own input size.
        """
        with torch.no_grad(), self.autocast():
            outputs = [network_outputs("teacher", member, extractor, crops[member.size or self.full_size], self.needs)
                       for member, extractor in zip(self._members(), self.teacher_extractors)]
        if len(outputs) == 1:
            return outputs[0]
        log_p = torch.stack([output["teacher_logits"].float().log_softmax(1) for output in outputs])
        return {"teacher_logits": log_p.logsumexp(0) - math.log(len(outputs)), "teacher_features": [],
                "teacher_pooled": None}

    def teacher_outputs(self, batch):
        """The same for a kd.data.batching.Batch, from disk where targets are kept; {} without a teacher."""
        if self.targets:
            return self.targets(batch.index.numpy(), batch.views, self.device)
        return self.teacher_forward(batch.crops) if self.teacher else {}

    def teacher_record(self):
        """What environment.json says of the teacher beside its fingerprint."""
        members = [member.fingerprint for member in self._members()]
        return {**({"teachers": members} if len(members) > 1 else {}),
                **({"teacher_is_foreign": True} if self.teacher and self.teacher.is_foreign else {})}

    def constants(self, epoch):
        """What losses may read beside images: the epoch, class counts and taus."""
        return {"epoch": epoch, "epochs": self.epochs, "class_counts": self.class_counts, **self.taus}

    def average_weights(self):
        """Add the weights to their moving average, where there is one."""
        if self.average:
            self.average.update_parameters(self.student.model)

    def networks(self):
        """{prefix of its scores in history.csv: Network}: the student, and that with the average of its weights."""
        averaged = self.average and dataclasses.replace(self.student, model=self.average.module)
        return {"": self.student, **({AVERAGE: averaged} if averaged else {})}

    def student_outputs(self, images):
        """What the losses read of the student: {"student_logits": [N, C], ...}."""
        with self.autocast():
            return network_outputs("student", self.student, self.extractor, images, self.needs)

    def set_learning_rate(self, share):
        """share: of the peak of each group of parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]

    def describe(self):
        """One line on device, threads, precision, memory layout and where the teacher's outputs come from."""
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if self.device.type == "cpu" else ""
        layout = "channels last" if memory_format(self.device) == torch.channels_last else "channels first"
        compiled = "compiled" if self.compiled else "not compiled"
        teacher = f", the teacher {'from disk' if self.targets else 'live'}" if self.teacher else ""
        slow = self.precision == "bf16" and not multiplies_in_bf16(self.device)
        precision = f"{self.precision} (no instructions for it found here: slower)" if slow else self.precision
        return f"{self.device}{threads}, {precision}, {layout}, {compiled}{teacher}"

    def close(self):
        """Leave both networks as they were."""
        for undo in self.undo_adaptations:
            undo()
        for extractor in (self.extractor, *self.teacher_extractors):
            extractor.close()
        if self.compiled:
            torch.compiler.reset()  # a process keeps the code of a few networks only, and a study trains many

    def check_teacher(self):
        """A teacher whose buffers moved was not frozen, and the run is worth nothing."""
        if not all(map(torch.equal, self.frozen_buffers, self._teacher_buffers())):
            raise RuntimeError("the teacher's batch statistics changed while its student was trained")
