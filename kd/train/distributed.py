"""Training in several processes, on one host or many, as `torchrun` starts them; in one process nothing here acts.

Each process trains on its share of every batch, and DistributedDataParallel (Li et al. 2020, 2006.15704) adds up
gradients while backward still runs, so that the update is that of one process with the whole batch. Batch normalisation
uses the share of its process, but with --sync-batch-norm. The first process writes the files; --out must be the same
folder for all.

What has no backward pass is exchanged here: the sums of an epoch's losses, the running statistics of batch
normalisation, which are averaged after each epoch, and the logits of validation and test.
"""

import contextlib
import datetime
import functools
import gc
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kd import errors
from kd.errors import UserError

# Long, because the others wait while the first process makes a teacher's targets. A lost process needs no short one:
# torchrun ends the rest.
TIMEOUT = datetime.timedelta(days=1)
LOST = ("by peer", "Broken pipe", "ncclRemoteError")  # what gloo and NCCL say where a process has ended


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
    """Leave the process group.

    DistributedDataParallel has references in a circle, and with it the group's threads would live on. Where they still
    let go of tensors while the interpreter ends, the process is aborted.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def run(main, *users):
    """Run a training script's main() as kd.errors.run() does, and leave the process group.

    An error that several processes find is printed by one of them, and that another has ended only where that one
    could not say why. After an error a process ends at once: what the error has come through still has references to
    the group, and another process may wait in it.
    """
    @functools.wraps(main)
    def among_others():
        try:
            main()
        except RuntimeError as error:
            if dist.is_initialized() and any(words in str(error) for words in LOST):
                raise UserError("another process of this training has ended",
                                "What it printed may say why. The same command goes on after the last epoch.") from None
            raise

    try:
        errors.run(among_others, *users, prints=is_first_with_error)
    except SystemExit as ending:
        if dist.is_initialized():
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(ending.code)
        raise
    end()


def is_first_with_error():
    """Whether no other process has asked this before: it is the one that prints its error."""
    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("errors", 1) == 1
    except RuntimeError:  # the process that has the store has ended: torchrun has not always one of its own
        return True


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


class _Function(torch.nn.Module):
    """A function as a module that has the parameters of trained modules, and not their buffers, for
    DistributedDataParallel: it would replace buffers by those of the first process in each step.
    """

    def __init__(self, function, modules):
        super().__init__()
        self.function = function
        self.trained = torch.nn.ParameterList(parameter for module in modules for parameter in module.parameters())

    def forward(self, *arguments):
        return self.function(*arguments)


def parallel(function, modules):
    """`function`; in several processes so wrapped that backward() of what it returns gives gradients of all processes.

    function: what computes a loss with the modules; it returns tensors, also in tuples and dicts. modules: a list, of
    all trained parameters; those of the first process are copied to the others. The gradients are means over the
    processes: a sum needs a loss times world(). A parameter that the loss of no process reads has no gradient.
    """
    if not dist.is_initialized():
        return function
    # Which parameters the loss reads may differ from step to step, such as with layers that are left out at random. As
    # this is looked up in each step, the buckets of gradients stay as they are: a run that goes on adds up in the same
    # order as the unbroken run. Where all are read, torch warns in the first step that it need not look.
    return DistributedDataParallel(_Function(function, modules), find_unused_parameters=True,
                                   gradient_as_bucket_view=True)


def exchange(function, now):
    """The context of a forward and a backward pass of parallel()'s function: gradients are exchanged if `now`.

    Otherwise they are kept, and are added to those of the next passes.
    """
    return function.no_sync() if dist.is_initialized() and not now else contextlib.nullcontext()


def check_sync_batch_norm(device):
    """UserError where several processes cannot synchronise batch normalisation. device: the type of the device."""
    if dist.is_initialized() and device != "cuda":
        raise UserError(f"batch normalisation over several processes runs on GPUs alone, not on {device}",
                        "Leave out --sync-batch-norm (--no-sync-batch-norm undoes that of a --config file), or train "
                        "in one process.")


def synchronise_batch_norm(model, arch):
    """Make the batch normalisation of a model, in place, use the shares of all processes.

    arch: its name, for the message. Raises UserError where it has layers that torch.nn.SyncBatchNorm does not replace,
    such as timm's, which have an activation inside.
    """
    usual = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d
    for module in model.modules():
        if isinstance(module, usual) and type(module) not in usual:
            raise UserError(f"{arch} has {type(module).__name__}, which cannot be synchronised",
                            "Leave out --sync-batch-norm.")
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


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
