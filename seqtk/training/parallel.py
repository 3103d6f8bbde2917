"""Engines: how the processes of a run share its work.

`none` is one process; `ddp` gives each process a copy of the model and averages gradients. An engine of a plug-in is
one file: a subclass of `Engine`, registered under the name that `parallel=` selects.
"""

import inspect
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class EngineConfig:
    """The base of every engine's config."""


engines: Registry["Engine"] = Registry("engine", EngineConfig)


@dataclass(frozen=True)
class NoneConfig(EngineConfig):
    """One process."""


@dataclass(frozen=True)
class DDPConfig(EngineConfig):
    """Data parallelism: each process holds the whole model, and gradients are averaged."""


@engines.register("none", NoneConfig)
class Engine:
    """One process, and the base class of all engines: what a run does differently when several processes share it.

    A subclass sets `rank` and `size`, and overrides what its processes have to do together. Every method except
    `gradient_sync` is called by all processes in the same order, so it may communicate.

    Raises:
        UserError: If the device is not available, or torchrun started several processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and type(self) is Engine:
            raise UserError(
                f"parallel=none trains in one process, but torchrun started {processes}.", "Set parallel=ddp."
            )
        self.device = local_device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, step: nn.Module) -> nn.Module:
        """Returns the train step as the loop calls it; the optimizer is built afterwards, from its parameters."""
        return step

    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        """Context in which a backward pass reduces gradients over the processes, if `enabled`, or only adds them up."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Returns `values` summed over the processes, on the device and without a read by the host."""
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        """Returns each number summed over the processes, in float64; the device is not involved."""
        return list(values)

    def gather(self, item: Any) -> list[Any]:
        """Returns the items of all processes, by rank."""
        return [item]

    def barrier(self) -> None:
        """Waits until every process has called this."""

    def full(self, tensor: Tensor) -> Tensor:
        """Returns a parameter, buffer, gradient norm or optimizer tensor as a whole, to be saved or read."""
        return tensor

    def local(self, full: Tensor, like: Tensor) -> Tensor:
        """Returns the part of `full` that this process holds where it holds `like`; the inverse of `full`."""
        return full.to(like.device)

    def close(self) -> None:
        """Leaves the group of processes."""


@engines.register("ddp", DDPConfig)
class DDP(Engine):
    """DistributedDataParallel between the processes that torchrun started: nccl between GPUs, gloo between CPUs."""

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        super().__init__(config, device=device)
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1 and not dist.is_initialized():
            # Numbers of the host travel by gloo in any case, so that adding them never waits for a GPU.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=30))

    def wrap(self, step: nn.Module) -> nn.Module:
        if self.size == 1:
            return step
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are functions of the config, or tables that grow with each process's input: they are not exchanged.
        known = inspect.signature(DistributedDataParallel).parameters
        exchange = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {exchange: False}
        return DistributedDataParallel(step, device_ids=ids, gradient_as_bucket_view=True, **options)

    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not enabled else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, item: Any) -> list[Any]:
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start_engine(config: EngineConfig | None = None, *, device: str = "auto") -> Engine:
    """Starts the engine that `config` selects; None is `ddp` under torchrun, and `none` otherwise."""
    if config is None:
        config = DDPConfig() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else NoneConfig()
    return engines.build(config, device=device)


def local_device(device: str) -> torch.device:
    """Returns this process's device for `device=auto|cpu|cuda`.

    Raises:
        UserError: If `device` is cuda and there is no GPU for this process.
    """
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device == "cuda" and local_rank >= gpus:
        raise UserError(
            f"device=cuda, but process {local_rank} of this machine has no GPU: there are {gpus}.",
            "Start fewer processes, or set device=cpu.",
        )
    if device == "cpu" or local_rank >= gpus:
        return torch.device("cpu")
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen
