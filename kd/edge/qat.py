"""Quantisation-aware fine-tuning: the weights and ranges of an INT8 network, learned from the float network.

The student is the quantised graph, which rounds in training as its file will; its teacher is the checkpoint's network.
Both see the training images with the augmentation of the run, and the loss is that of knowledge distillation at
temperature 1: the divergence by which INT8 recipes are judged. No labels are read.
"""

import copy

import numpy as np
import torch

from kd import errors, losses
from kd.data import augment, batching
from kd.edge import parity, quantize
from kd.edge.onnx_network import OnnxNetwork
from kd.errors import progress
from kd.text import format_count
from kd.train import loop, networks

LR = 1e-4         # of weights: the scale of Adam's steps; a channel whose largest weight is 0.1 has steps of 0.0016
LR_SCALES = 1e-3  # of the logarithms of scales
WARMUP = 0.05     # share of the steps in which the rates rise


def train(source, model, ranges, *, full, keep, epochs, max_flips):
    """(float model, ranges) of an INT8 network after fine-tuning, as quantize.quantize() takes them.

    source: a kd.edge.checked_export.Source. model, ranges, full, keep: of the network before. epochs: over the training
    split. Those weights are returned, of the epochs' ends and of the start, that are best on validation: the nearest
    to the checkpoint of those that change at most `max_flips` of its labels, if there are any.
    """
    device, data = networks.device("auto"), source.data
    student = OnnxNetwork(model, quantize.quantize(model, ranges, keep=keep, full=full), full).to(device)
    teacher = copy.deepcopy(source.network.model).to(device)
    optimizer = torch.optim.Adam([{"params": list(student.trained), "lr": LR},
                                  {"params": list(student.log_scales), "lr": LR_SCALES}])
    mean, std = (source.metadata["input"][key] for key in ("mean", "std"))
    options = {"mixup": 0.0, "cutmix": 0.0, "sampling": "natural", **source.run.options}  # older runs have not all
    steps, step = epochs * len(batching.batch_sizes(data, options["batch"])), 0
    print(f"quantisation-aware training: {format_count(epochs, 'epoch')}, {format_count(steps, 'step')} of "
          f"{options['batch']} images, on {device}; a step runs the checkpoint, and trains the rounded network")

    def normalised(images):
        return augment.normalise(images, mean, std)

    @torch.no_grad()
    def validate():
        """(flips too many labels, divergence) of the student."""
        batches = [normalised(images) for images in batching.evaluation_batches(data, "val", batch=64, device=device)]
        reference, logits = (np.concatenate([network(images).float().cpu().numpy() for images in batches])
                             for network in (teacher, student))
        return parity.flips(reference, logits) > max_flips, parity.divergence(reference, logits)

    best, weights, learned = validate(), student.weights(), student.ranges()
    with progress(description="quantisation-aware training", total=steps, leave=False) as bar:
        for epoch in range(1, epochs + 1):
            for batch in batching.training_batches(data, batch=options["batch"], seed=0, epoch=epoch, device=device,
                                                   views=batching.Views.of(options)):
                images = normalised(batch.images)
                with torch.no_grad():
                    targets = teacher(images)
                loss = losses.knowledge_distillation(student(images), targets, temperature=1.0)
                optimizer.zero_grad()
                loss.backward()
                share, step = loop.schedule(step, steps, WARMUP), step + 1
                for group, lr in zip(optimizer.param_groups, (LR, LR_SCALES)):
                    group["lr"] = share * lr
                optimizer.step()
                bar.update()
            found = validate()
            if found < best:
                best, weights, learned = found, student.weights(), student.ranges()
    return _with_weights(model, weights), {**ranges, **learned}


def _with_weights(model, weights):
    """A copy of an onnx.ModelProto with these initializers, {name: array}."""
    onnx = errors.need("onnx", "edge")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return result
