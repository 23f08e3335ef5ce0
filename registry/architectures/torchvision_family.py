"""Any classifier of torchvision, by its own name: `torchvision:shufflenet_v2_x0_5`."""

from torch import nn
from torchvision import models

from kd.errors import UserError, nearest
from kd.train.networks import refuse_small_stem
from kd.train.weights import load_pretrained
from registry import register


def _last(model):
    """(path, module) of the last layer that gives logits: linear, or a convolution as in SqueezeNet."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]


def head(model):
    """The path of the last layer, where its input is one vector an image; else None."""
    path, module = _last(model)
    return path if isinstance(module, nn.Linear) else None


def members():
    """The names of all classifiers of torchvision."""
    return models.list_models(module=models)


@register("architecture", "torchvision:", stages=(), head=head, small_stem=False, members=members)
def torchvision_classifier(name, num_classes, stem, weights):
    """Any torchvision classifier; losses on features need --stages."""
    available = members()
    if name not in available:
        suggestion = nearest(name, available)
        raise UserError(f"torchvision has no classifier {name!r}" + (f"; {suggestion}" if suggestion else ""),
                        f"It has: {', '.join(available)}.")
    refuse_small_stem(stem, f"torchvision:{name}")
    arguments, drop = {}, ()
    if name in ("googlenet", "inception_v3"):
        # without auxiliary heads, which return more than logits in training; weights expect another normalisation
        arguments = {"aux_logits": False, "init_weights": True, "transform_input": True}
        drop = ("aux1.", "aux2.", "AuxLogits.")
    model = models.get_model(name, num_classes=num_classes, **arguments)
    imagenet = models.get_model_weights(name).DEFAULT
    return load_pretrained(model, weights, imagenet=imagenet, head=_last(model)[0], drop=drop)
