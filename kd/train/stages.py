"""The stages of a network, four modules whose outputs losses on features read: checked, and proposed where unknown."""

import difflib

import torch

from kd.errors import UserError, listing
from kd.train.networks import outputs_of_black


def check_stages(model, arch, stages, size):
    """Run two images of `size` px through a model; raises UserError unless it has and runs each of its stages once, in
    this order, with an output [2, C, H, W].

    stages: module paths. arch: the name of the architecture for the message.
    """
    modules = dict(model.named_modules())
    for path in stages:
        if path not in modules:
            close = difflib.get_close_matches(path, [name for name in modules if name])
            outer = listing([name for name, _ in model.named_children()], 20)
            raise UserError(f"{arch} has no module {path!r}, which its stages name (--stages, or the registry)",
                            f"The nearest are: {listing(close)}." if close else f"Its outer modules are: {outer}.")
    outputs = _outputs({path: modules[path] for path in stages}, model, size)
    for path in stages:
        count = len(outputs.get(path, ()))
        if count != 1:
            raise UserError(f"{arch} runs {path} {count} times for a batch of images, not once",
                            "Name a module around it, or another one, in --stages or the registry.")
        output, = outputs[path]
        shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        # of a square image each stage is square; otherwise the channels are the last dimension
        if not isinstance(shape, list) or len(shape) != 4 or shape[2] != shape[3]:
            raise UserError(f"{path} of {arch} gives {shape} for two images of {size} px, not [2, channels, height, "
                            "width]", "Name another module in --stages or the registry.")
    if list(outputs) != list(stages):
        raise UserError(f"{arch} runs its stages in the order {' '.join(outputs)}, not {' '.join(stages)}",
                        "Stages are four modules, in the order in which they are run.")


def proposed(model, size=224):
    """Four module paths that --stages could name: the last outer module at each of the last four resolutions of a
    model for images of `size` px. None where it has fewer, or cannot take them.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    try:
        outputs = _outputs(modules, model, size)
    except (RuntimeError, AssertionError, ValueError):
        return None
    last = {}  # side of the output -> path, in the order in which they are run
    for path, found in outputs.items():
        if len(found) == 1 and isinstance(found[0], torch.Tensor) and found[0].dim() == 4 and (
                found[0].shape[2] == found[0].shape[3] > 1):
            last.pop(side := found[0].shape[2], None)
            last[side] = path
    paths = list(last.values())[-4:]
    try:
        check_stages(model, "", paths, size)
    except UserError:
        return None
    return paths if len(paths) == 4 else None


def _outputs(modules, model, size):
    """{path: its outputs for two black images of `size` px}, in the order in which they are run.

    modules: {path: a module of the model}.
    """
    outputs = {}

    def hook(path):
        return lambda module, inputs, output: outputs.setdefault(path, []).append(output)

    hooks = [module.register_forward_hook(hook(path)) for path, module in modules.items()]
    try:
        outputs_of_black(model, size)
    finally:
        for handle in hooks:
            handle.remove()
    return outputs
