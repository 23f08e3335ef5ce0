"""Training in several processes, on one host or many, as `torchrun` starts them; in one process nothing here acts.

Each process trains on its share of every batch, and gradients are added up, so that the update is that of one
process with the whole batch. Batch normalisation uses the share of its process; its running statistics are averaged
after each epoch. The first process writes the files; --out must be the same folder for all.
"""

import datetime
import os
import sys

import torch
import torch.distributed as dist

from kd.errors import UserError

# Long, because the others wait while the first process makes a teacher's targets. A lost process needs no short one:
# torchrun ends the rest.
TIMEOUT = datetime.timedelta(days=1)


def begin(device):
    """Join the process group if torchrun started several processes. Only the first process prints after this.

    device: the type of the device, as --device has it; "cuda" selects the GPU of this process.
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        return
    missing = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if not os.environ.get(name, "").isdecimal()]
    missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"the environment has TORCHELASTIC_RUN_ID, but {', '.join(missing)} is missing or no number",
                        "Start several processes with torchrun; for one process, unset TORCHELASTIC_RUN_ID.")
    if os.environ["WORLD_SIZE"] == "1":
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def end():
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """The number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share():
    """(rank, world): this process takes the items rank, rank + world ... of each batch and of each split."""
    return rank(), world()


def first():
    """Whether this is the first process, which writes the files."""
    return rank() == 0


def by_first(function):
    """Call function() in the first process and return its result, or raise its UserError, in all processes."""
    if not dist.is_initialized():
        return function()
    message = [None]  # a list, since the other processes receive the object into it
    if first():
        try:
            message = [("result", function())]
        except UserError as error:
            message = [("error", (error.message, error.hint))]
    dist.broadcast_object_list(message)
    kind, value = message[0]
    if kind == "error":
        raise UserError(*value)
    return value


def add_up(tensors):
    """Replace each tensor of a list by its sum over all processes, in place, in one exchange."""
    if not dist.is_initialized() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def average_buffers(model):
    """Replace the floating-point buffers of a model by their means over all processes, in place."""
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    add_up(buffers)
    for buffer in buffers:
        buffer.div_(world())


def gather(part):
    """A list of the objects that all processes pass as `part`, in the order of their ranks; the same in each."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * world()
    dist.all_gather_object(parts, part)
    return parts
