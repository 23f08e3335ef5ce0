"""Any classifier of torchvision, by its own name: `torchvision:shufflenet_v2_x1_0`."""

from torch import nn
from torchvision import models

from kd.errors import UserError, nearest
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "torchvision:", stages=(), head=None, small_stem=False)
def torchvision_classifier(name, num_classes, stem, weights):
    """Any torchvision classifier; losses on logits only, since its stages are not known."""
    available = models.list_models(module=models)
    if name not in available:
        suggestion = nearest(name, available)
        raise UserError(f"torchvision has no classifier {name!r}" + (f"; {suggestion}" if suggestion else ""),
                        f"It has: {', '.join(available)}.")
    if stem == "small":
        raise UserError(f"torchvision:{name} has no small stem", "Give --stem imagenet, or a larger --size.")
    arguments, drop = {}, ()
    if name in ("googlenet", "inception_v3"):
        # without auxiliary heads, which return more than logits in training; weights expect another normalisation
        arguments = {"aux_logits": False, "init_weights": True, "transform_input": True}
        drop = ("aux1.", "aux2.", "AuxLogits.")
    model = models.get_model(name, num_classes=num_classes, **arguments)
    head = [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    imagenet = models.get_model_weights(name).DEFAULT
    return load_pretrained(model, weights, imagenet=imagenet, head=head, drop=drop)
