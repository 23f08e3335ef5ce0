"""Several processes, on one host or many, as `torchrun` starts them; alone, everything here does nothing.

Each process trains on its share of every batch, and gradients are added up, so that the update is that of one
process with the whole batch. Batch normalisation sees its process's share; its running statistics are averaged
after each epoch. The first process writes the files; all must see the same --out.
"""

import datetime
import os
import sys

import torch
import torch.distributed as dist

from kd.errors import UserError

# The others wait while the first makes a teacher's targets. A lost process does not need it: torchrun ends the rest.
PATIENCE = datetime.timedelta(days=1)


def begin(device):
    """Join the other processes, if there are any. Only the first prints."""
    if not dist.is_torchelastic_launched() or dist.is_initialized() or os.environ["WORLD_SIZE"] == "1":
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def end():
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def share():
    """(rank, world): which share of each batch, and of each split, is this process's."""
    return rank(), world()


def first():
    """Whether this process is the one that writes."""
    return rank() == 0


def by_first(function):
    """What `function()` gives in the first process, or the UserError that it raises there, in all of them."""
    if not dist.is_initialized():
        return function()
    box = [None]
    if first():
        try:
            box = [("result", function())]
        except UserError as error:
            box = [("error", (error.message, error.hint))]
    dist.broadcast_object_list(box)
    kind, value = box[0]
    if kind == "error":
        raise UserError(*value)
    return value


def add_up(tensors):
    """Replace each tensor by its sum over all processes, in one exchange."""
    if not dist.is_initialized() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def average_buffers(model):
    """Give all processes the mean of their running statistics."""
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    add_up(buffers)
    for buffer in buffers:
        buffer.div_(world())


def gather(part):
    """The objects `part` of all processes, in a list, in all of them."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * world()
    dist.all_gather_object(parts, part)
    return parts
