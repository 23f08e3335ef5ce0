"""Any classifier of timm, by its own name: `timm:mobilenetv3_small_050`, `timm:resnet50.a1_in1k`."""

import importlib.util

from kd.errors import UserError, listing, nearest, need
from kd.train import networks
from kd.train.stages import check_stages
from kd.train.weights import load_pretrained
from registry import register

STRIDES = (4, 8, 16, 32)


def stages(model):
    """The module paths at STRIDES, as timm's feature_info has them; () where one is missing or not [N, C, H, W]."""
    paths = {part["reduction"]: part["module"] for part in getattr(model, "feature_info", ())}
    found = tuple(paths[stride] for stride in STRIDES if stride in paths)
    if len(found) < len(STRIDES):
        return ()
    try:
        check_stages(model, "timm", found, model.pretrained_cfg["input_size"][-1])
    except UserError:  # channels last, as in Swin; names of timm's own feature extractor; rows of tokens
        return ()
    return found


def heads(model):
    """The paths of the classifying layers: one, or several whose logits are averaged (distilled transformers)."""
    named = model.pretrained_cfg.get("classifier") or ()
    named = (named,) if isinstance(named, str) else named
    modules = dict(model.named_modules())
    return tuple(path for path in named if path in modules)


def head(model):
    """The path of the classifying layer, where there is one; else None."""
    found = heads(model)
    return found[0] if len(found) == 1 else None


def members():
    """The names of timm's classifiers, without those of their weights; none where timm is not installed."""
    return need("timm", "timm").list_models() if importlib.util.find_spec("timm") else []


@register("architecture", "timm:", stages=stages, head=head, small_stem=False,
          members=members,
          mean=lambda model: tuple(model.pretrained_cfg["mean"]), std=lambda model: tuple(model.pretrained_cfg["std"]))
def timm_classifier(name, num_classes, stem, weights):
    """Any classifier of timm, which the extra timm installs; --weights imagenet downloads the weights of that name."""
    timm = need("timm", "timm")
    if not timm.is_model(name):
        suggestion = nearest(name, timm.list_models())
        raise UserError(f"timm has no classifier {name!r}" + (f"; {suggestion}" if suggestion else ""),
                        """List those like it: python -c "import timm; print(timm.list_models('*resnet*'))\"""")
    networks.refuse_small_stem(stem, f"timm:{name}")
    try:
        model = _create(name, num_classes=num_classes)
    except RuntimeError as error:  # the part after the point, which says of which training the weights are
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UserError(f"timm cannot build {name}: {error}", f"It has weights of: {listing(known, 20)}.") from error
    return load_pretrained(model, weights, imagenet=lambda: _download(name, num_classes, model), head=heads(model))


def _create(name, **options):
    """timm.create_model(); a transformer takes images of any size, to which its positions are interpolated."""
    timm = need("timm", "timm")
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # it has no such option, as most convolutional networks
        return timm.create_model(name, **options)


def _download(name, num_classes, model):
    """The state dict of the pretrained network, with a fresh head of `num_classes`."""
    place = model.pretrained_cfg.get("hf_hub_id")
    place = f"https://huggingface.co/{place}" if place else model.pretrained_cfg.get("url")
    if not place:
        raise UserError(f"timm has no pretrained weights of {name}", "Give a file with --weights FILE.")
    print(f"weights: timm:{name} is taken from {place}, unless an earlier download is kept")
    try:
        return _create(name, num_classes=num_classes, pretrained=True).state_dict()
    except Exception as error:  # of huggingface_hub, its client for HTTP, or a file that is cut short
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot download the weights of timm:{name} ({reason[:200]})",
                        f"Fetch pytorch_model.bin of {place} elsewhere and give it with --weights FILE.") from error
