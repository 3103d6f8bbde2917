"""Distributed data parallelism between the processes that torchrun started."""

import inspect
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# DDP imports this module, whose functions would keep the process group as a default argument. So it is imported before
# the group exists.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

from seqtk.config.fields import setting
from seqtk.training.heartbeat import Heartbeat
from seqtk.training.parallel import Engine, EngineConfig, engines, world
from seqtk.training.rendezvous import meet
from seqtk.utils.errors import UserError

REPORTING = 3.0
"""When a process is lost, all other processes report an error within this many seconds."""


@dataclass(frozen=True)
class DDPConfig(EngineConfig):
    """Data parallelism: each process has a full copy of the model, and gradients are averaged over processes."""

    timeout: float = setting(
        300.0, at_least=1, at_most=1e6, help="If a process does not respond for this many seconds, all processes end."
    )


@engines.register("ddp", DDPConfig)
class DDP(Engine):
    """Uses DistributedDataParallel between the processes that torchrun started, with nccl (GPUs) or gloo (CPUs)."""

    is_distributed = True

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        super().__init__(config, device=device)
        self._wrapped: nn.Module | None = None
        self.rank, self.size = world()
        self.timeout = config.timeout if isinstance(config, DDPConfig) else DDPConfig().timeout
        self._heartbeat: Heartbeat | None = None
        if not dist.is_initialized():
            # gloo reduces values that are on the host, which never waits for a GPU.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            try:
                store, prefix = meet(rank=self.rank, size=self.size, timeout=self.timeout)
                dist.init_process_group(
                    backend,
                    store=PrefixStore(prefix, store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=self.timeout),
                )
            except (dist.DistStoreError, dist.DistNetworkError, ValueError) as error:
                place = ":".join(
                    os.environ.get(name, f"({name} is not set)") for name in ("MASTER_ADDR", "MASTER_PORT")
                )
                raise UserError(
                    f"Process {self.rank} of {self.size} could not connect to the other processes at {place}.",
                    str(error).splitlines()[0][:200],
                    "Start all processes at the same time, with torchrun or srun.",
                ) from error
            if int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) < self.size:  # on several hosts
                host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                self._heartbeat = Heartbeat(rank=self.rank, size=self.size, host=host, port=port, prefix=prefix)

    def wrap(self, step: nn.Module) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are not synchronized: they depend only on the config, or are tables that grow with the process's
        # input.
        known = inspect.signature(DistributedDataParallel).parameters
        exchange = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {exchange: False}
        self._wrapped = DistributedDataParallel(step, device_ids=ids, gradient_as_bucket_view=True, **options)
        return self._wrapped

    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not enabled else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, item: Any) -> list[Any]:
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        dist.barrier()

    def lost_processes(self, error: RuntimeError) -> str | None:
        text = str(error).lower()
        if not (isinstance(error, dist.DistError) or "gloo" in text):
            return None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun may end this process while it waits
        others = self._silent_processes()
        several = len(others) > 1
        named = f"Process{'es' if several else ''} {', '.join(map(str, others))}" if others else "Another process"
        if "timed out" in text or "timeout" in text:
            limit = f"parallel.timeout={self.timeout:g} seconds"
            return f"{named} did not respond to process {self.rank} within {limit}."
        return f"{named} {'have' if several else 'has'} ended, so process {self.rank} also ends."

    def _silent_processes(self) -> list[int]:
        """Returns the ranks of the processes that have ended or hang: they report no error within REPORTING seconds."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        with suppress(RuntimeError):  # the store may have ended with its process
            store = dist.distributed_c10d._get_default_store()
            store.set(f"seqtk/lost/{self.rank}", "")
            end = time.monotonic() + REPORTING
            while time.monotonic() < end and others:
                time.sleep(0.1)
                others = [rank for rank in others if not store.check([f"seqtk/lost/{rank}"])]
        return others

    def close(self) -> None:
        if not dist.is_initialized():
            return
        if self._heartbeat is not None:
            self._heartbeat.close()
        # Gloo's threads end when the last reference to the group is deleted. If one still runs when Python exits, and
        # waits for the interpreter to release a tensor, the process aborts: "terminate called without an active
        # exception".
        if self._wrapped is not None:
            del self._wrapped.reducer, self._wrapped.logger, self._wrapped.process_group
            self._wrapped = None
        dist.destroy_process_group()
