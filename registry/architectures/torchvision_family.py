"""Any classifier of torchvision, by its own name: `torchvision:shufflenet_v2_x1_0`."""

import difflib

from torch import nn
from torchvision import models

from kd.errors import UserError
from kd.train.weights import load_pretrained
from registry import register


@register("architecture", "torchvision:", stages=(), head=None, small_stem=False)
def torchvision_classifier(name, num_classes, stem, weights):
    """Any torchvision classifier; losses on logits only, since its stages are not known."""
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"torchvision has no classifier {name!r}" + (f"; did you mean {close[0]}?" if close else ""),
                        f"It has: {', '.join(known)}.")
    if stem == "small":
        raise UserError(f"torchvision:{name} has no small stem", "Give --stem imagenet, or a larger --size.")
    # these two have auxiliary heads, which return more than logits while training, and weights for pixels normalised otherwise
    old = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": True, "transform_input": True} if old else {}
    model = models.get_model(name, num_classes=num_classes, **extra)
    head = [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    imagenet = models.get_model_weights(name).DEFAULT
    return load_pretrained(model, weights, imagenet=imagenet, head=head, drop=("aux1.", "aux2.", "AuxLogits.") if old else ())
