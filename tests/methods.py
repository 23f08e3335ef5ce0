"""Parts for tests of losses: random input for each, and softmax and KL without torch."""

import math

import numpy as np
import torch

import registry
from kd import losses, objective

SPECS = ["kd", "dkd", "dist", "logit_std", "logit_std,of=dkd", "bkd", "ltkd", "prior_kd", "wttm", "rld", "rkd", "sp",
         "at", "crd,negatives=12,dim=5", "fitnet", "fitnet,stage=3"]
NOT_OF_TWO = ("dist", "logit_std", "logit_std,of=dkd")
HARD = ("ce", "focal", "class_balanced", "logit_adjusted")
COUNTS = torch.tensor([4694, 778, 769, 360, 229, 100, 80])  # nv, bkl, mel, bcc, akiec, vasc, df of a training split



def find(name):
    return registry.get("loss", name).make


def inputs(count=6, classes=7, dtype=torch.float64, scale=1.0, seed=0):
    """What a step gives to the losses, with random tensors: {need: value}."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * scale

    features = {"student_features": [random(count, c, side, side) for c, side in ((2, 8), (3, 4), (4, 3), (5, 2))],
                "teacher_features": [random(count, c, side, side) for c, side in ((3, 8), (4, 4), (6, 2), (7, 1))]}
    return {
        "student_logits": random(count, classes), "teacher_logits": random(count, classes),
        "labels": torch.arange(count) % classes, "index": torch.arange(count) * 2, **features,
        **{key.replace("features", "attention"): list(map(losses.attention, maps)) for key, maps in features.items()},
        "student_pooled": random(count, 5), "teacher_pooled": random(count, 8), "epoch": 3, "epochs": 3,
        "class_counts": COUNTS[:classes], "student_tau": 0.5, "teacher_tau": 0.0}


def built(spec, given, images=20):
    """An Objective of one loss with the weight 1, in the precision of the inputs."""
    torch.manual_seed(0)
    name, settings = objective.parse_spec(spec)
    term = objective.Term(name, 1.0, find(name), objective.check_options(find(name), settings, name))
    shapes = {key: [tuple(x.shape) for x in value] if isinstance(value, list) else tuple(value.shape)
              for key, value in given.items() if isinstance(value, (list, torch.Tensor))}
    made = objective.Objective([term], {**shapes, "index": (images,)})
    return made.double() if given["student_logits"].dtype == torch.float64 else made


def value(spec, given, **changes):
    torch.manual_seed(1)
    return built(spec, given)({**given, **changes})[0]


def softmax(logits, temperature=1.0):
    logits = np.asarray(logits, dtype=np.float64) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


GIVEN = inputs()
S, T = GIVEN["student_logits"].numpy(), GIVEN["teacher_logits"].numpy()
Y, N, C = GIVEN["labels"].numpy(), 6, 7
