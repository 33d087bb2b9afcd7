"""Training by several processes that `torchrun` starts, one for each GPU: each computes a part of every batch.

    torchrun --nproc-per-node 2 -m Miniproject_1 train first/ second/ -o mine.pth

All processes draw the same batches and hold the same weights. Gradients are summed over the processes, so a step is
the same as in one process, except for rounding.
"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

from Miniproject_1.model import Training, default_device

LONGEST_WAIT = datetime.timedelta(hours=6)  # of the others, while the first process validates


@contextlib.contextmanager
def process_group(device=None):
    """Joins the other processes, if `torchrun` started any; yields the device that this one computes on.

    By default each process has a GPU of its own, or all of them use the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device is None:
        device = default_device().type
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)  # NCCL's default
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=LONGEST_WAIT)
    try:
        yield device
        wait_for_others()  # one that leaves early can abort those that still talk to it
    finally:
        dist.destroy_process_group()


def in_group():
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()


def is_first():
    """Whether this process is the one that prints and writes files."""
    return not in_group() or dist.get_rank() == 0


def from_first(number, device):
    """A whole number as the first process has it."""
    if not in_group():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return shared.item()


def wait_for_others():
    if in_group():
        dist.barrier()


class SharedTraining(Training):
    """A `Training` whose batches are divided among the processes of the group."""

    def backward(self, noisy_a, noisy_b, done):
        mine = [images[dist.get_rank() :: dist.get_world_size()] for images in (noisy_a, noisy_b)]
        share = len(mine[0]) / len(noisy_a)
        loss = super().backward(*mine, done) if share else noisy_a.new_zeros(())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        total = torch.cat([*map(torch.flatten, gradients), loss.view(1)]) * share
        dist.all_reduce(total)
        *sums, loss = total.split([*map(torch.numel, gradients), 1])
        for parameter, gradient in zip(self.parameters, sums, strict=True):
            parameter.grad = gradient.view(parameter.shape)
        return loss.view(())
