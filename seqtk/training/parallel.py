"""The processes of a run: one, or those that torchrun started. With one process nothing here does anything."""

import inspect
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes, by rank, on every process."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the processes."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are functions of the config, or tables that grow with each process's own input: never exchanged.
        known = inspect.signature(DistributedDataParallel).parameters
        exchange = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {exchange: False}
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **options)

    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        """Within it, backward averages gradients over the processes, or (not enabled) leaves that to a later one."""
        if enabled or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()


def start_world(device: str) -> World:
    """Join the processes that torchrun's environment describes: nccl between GPUs, gloo between CPUs.

    Raises UserError if `device` is cuda and there is no GPU for this process.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if device == "cuda" and local_rank >= gpus:
        raise UserError(
            f"device=cuda, but process {local_rank} of this machine has no GPU: there are {gpus}.",
            "Start fewer processes, or set device=cpu.",
        )
    use_gpu = device != "cpu" and local_rank < gpus
    place = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(minutes=30))
    return World(rank=rank, size=size, device=place)


def end_world(world: World) -> None:
    """Leave the other processes in good order."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
