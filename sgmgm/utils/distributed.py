"""Several processes, as `accelerate launch` or torchrun start them: one answer, less waiting."""

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # it takes a second to import, and one process alone needs none of it
    from accelerate import PartialState

LOST = re.compile(r"gloo|connection|by peer|broken pipe|remote|time[sd]? ?out", re.IGNORECASE)


def launched() -> bool:
    """Whether a launcher started this process with others; WORLD_SIZE alone may be a leftover."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdigit() and int(size) > 1 and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def meet(device: str | torch.device) -> "PartialState | None":
    """Wait until all processes of this launch are there; None if there is only this one."""
    if not launched():
        for name in ("WORLD_SIZE", "LOCAL_RANK"):  # accelerate would wait for others
            os.environ.pop(name, None)
        return None
    from accelerate import PartialState

    if not dist.is_initialized():
        size, rank, where = (os.environ[name] for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"))
        sys.stderr.write(f"process {rank} of {size}: waits at {where} for the others.\n")
    return PartialState(cpu=str(device).startswith("cpu"))


def rank_and_size() -> tuple[int, int]:
    """Which process this is, of how many that have met."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def main_first() -> AbstractContextManager:
    """A block that the first process of each machine runs before the others do."""
    if rank_and_size()[1] == 1:
        return nullcontext()
    from accelerate import PartialState

    return PartialState().local_main_process_first()


def in_turn(x: Tensor) -> Tensor:
    """Equal parts (B, ...) of all processes as (P B, ...): row i came from process i mod P."""
    if rank_and_size()[1] == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(rank_and_size()[1])]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


class Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is that of the sum of their losses."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return Sum.forward(ctx, gradient)


def total(x: Tensor) -> Tensor:
    """The sum over all processes, same shape."""
    return Sum.apply(x) if rank_and_size()[1] > 1 else x


def is_loss_of_another(error: Exception) -> bool:
    """Whether an error says that another process of this launch has gone."""
    return rank_and_size()[1] > 1 and LOST.search(str(error)) is not None
