"""Engines. An engine runs the training step in one or several processes.

`none` is a single process. With `ddp` (`seqtk.training.ddp`) each process has a copy of the model, and with `fsdp2`
(`seqtk.training.fsdp2`) a shard of it. To add an engine, a plug-in registers a subclass of `Engine` under the name for
`parallel=`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import Attention, State
from seqtk.checkpoint.model_file import Tensors
from seqtk.checkpoint.run_state import Pieces
from seqtk.config.registry import Registry
from seqtk.criterions import Criterion
from seqtk.criterions.base import Stats
from seqtk.models import Model
from seqtk.training.precision import WeightCopies
from seqtk.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class EngineConfig:
    """Base class of the configs of engines."""


class LostProcessError(Exception):
    """Raised if another process of the run has ended or does not respond, so that this process must also end."""


engines: Registry["Engine"] = Registry("engine", EngineConfig, replaced={"gathered": "collect"})


@dataclass(frozen=True)
class NoneConfig(EngineConfig):
    """Trains in a single process."""


@engines.register("none", NoneConfig)
class Engine:
    """The engine of a single process, and the base class of all engines.

    A subclass sets `rank` and `size`, and overrides the methods that differ with several processes. All methods except
    `gradient_sync` and `empty` are collective: all processes call them in the same order, so they may communicate.

    Raises:
        UserError: If the device is not available, or torchrun started several processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device
    compiles: ClassVar[Literal["blocks", "step"]] = "step"
    """The largest part of a step that can be compiled into one graph."""
    is_distributed: ClassVar[bool] = False
    """True if the engine needs several processes. A single process uses the engine `none` instead."""
    shards: ClassVar[bool] = False
    """True if each process saves and loads a part of the optimizer's state; False if the first saves all of it."""

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        _, processes = world()
        if processes > 1 and type(self) is Engine:
            raise UserError(
                f"parallel=none trains in one process, but torchrun started {processes} processes.",
                "Set parallel=ddp or parallel=fsdp2.",
            )
        self.device = local_device(device)

    @property
    def is_first(self) -> bool:
        """True if this is the process that writes files and prints."""
        return self.rank == 0

    def wrap(self, step: nn.Module) -> nn.Module:
        """Wraps the train step for the training loop. The optimizer is built from the parameters of the result."""
        return step

    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        """Context manager in which backward passes reduce gradients over processes if `enabled` is true."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Returns `values` summed over the processes, on the device, without synchronizing with the host."""
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        """Returns the sum of each number over the processes, in float64 on the host."""
        return list(values)

    def unsharded(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Context manager in which all modules have full weights, so that processes may call them independently."""
        return nullcontext()

    def gather(self, item: Any) -> list[Any]:
        """Returns the items of all processes, by rank."""
        return [item]

    def barrier(self) -> None:
        """Waits until every process has called this."""

    def collect(self, tensors: Tensors, *, copies: bool = False) -> Tensors:
        """Returns full tensors on the CPU in the first process, and an empty dict in all other processes.

        Args:
            tensors: The tensors of this process. All processes have the same names.
            copies: True to return copies, which do not share memory with `tensors`.
        """
        whole: Tensors = {}
        for name, tensor in tensors.items():  # one at a time, to limit device memory; only the first process keeps them
            full = self.full(tensor)
            if self.is_first:
                copy = copies and full is tensor
                whole[name] = full.detach().to("cpu", copy=copy, non_blocking=True)  # from a GPU: into pinned memory
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return whole

    def full(self, tensor: Tensor) -> Tensor:
        """Returns a full (unsharded) parameter, buffer, gradient norm or optimizer tensor."""
        return tensor

    def local(self, full: Tensor, like: Tensor) -> Tensor:
        """Returns this process's shard of `full`, sharded like `like`. The inverse of the method `full`."""
        return full.to(like.device)

    def pieces(self, tensors: Tensors, *, copies: bool = False) -> Pieces:
        """Returns the optimizer's tensors, or pieces of tensors, that this process saves. Arguments as in `collect`."""
        return Pieces(self.collect(tensors, copies=copies))

    def empty(self, full: Tensor, like: Tensor) -> Tensor:
        """Returns an uninitialized tensor for this process's shard of `full`, sharded like `like`. Not collective."""
        return torch.empty_like(full, device="cpu")

    def together(self, step: Callable[[], T]) -> T:
        """Calls `step` in every process. If it fails in one process, all processes raise an exception.

        With `shards`, the threads that write checkpoints call this method while the training loop communicates.
        """
        return step()

    def lost_processes(self, error: RuntimeError) -> str | None:
        """Returns a message about lost processes if they caused `error`, otherwise None."""
        return None

    def close(self) -> None:
        """Leaves the process group."""


def local_part(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a sharded tensor, as a view. Returns other tensors unchanged."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


@contextmanager
def lost_process_errors(engine: Engine) -> Iterator[None]:
    """Context manager that converts communication errors into a LostProcessError with the ranks of lost processes."""
    try:
        yield
    except RuntimeError as error:
        lost = engine.lost_processes(error)
        if lost is None:
            raise
        raise LostProcessError(lost) from error


class TrainStep(nn.Module):
    """Computes the loss of a micro-batch with the model and the criterion, in the precision of the run.

    Auxiliary losses of attention layers are multiplied by the weight of the micro-batch before they are added. Because
    the loss of an update is divided by its total weight, they do not depend on the number of micro-batches.
    """

    def __init__(self, model: Model, criterion: Criterion, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.criterion, self.autocast = model, criterion, autocast
        self.copies = None if autocast is None else WeightCopies(model, autocast)
        self._penalized = penalized_layers(model)

    def forward(self, batch: Any, state: State = None) -> tuple[Tensor, Stats, State]:
        """Computes the loss of a micro-batch.

        Args:
            batch: The micro-batch.
            state: The recurrent state of the rows before the micro-batch. None: each row is the start of a text.

        Returns:
            (loss, summed over the targets; statistics for metrics; detached recurrent state after the micro-batch).
        """
        total, stats, state = self.compute(batch, state)
        if not batch.weight:  # a rank without examples only participates in the all-reduce
            total, stats = total * 0, {name: (value * 0, weight * 0) for name, (value, weight) in stats.items()}
        return total, stats, state

    def compute(self, batch: Any, state: State) -> tuple[Tensor, Stats, State]:
        """Computes the loss of a micro-batch whose weight is not 0. See `forward`.

        `seqtk.training.compiling` compiles this method, and passes the weight of the batch as a tensor.
        """
        dtype = self.autocast or torch.bfloat16
        copies = nullcontext() if self.copies is None or torch.compiler.is_compiling() else self.copies.in_use()
        with torch.autocast(batch.ids_B.device.type, dtype=dtype, enabled=self.autocast is not None), copies:
            loss = self.criterion(self.model, batch, state)
        total = loss.total
        for layer in self._penalized:
            aux_loss = layer.aux_loss()
            if aux_loss is not None:
                total = total + (aux_loss * loss.weight).to(total.dtype)
        return total, loss.stats, tree_map(lambda leaf: None if leaf is None else leaf.detach().clone(), loss.state)


def penalized_layers(module: nn.Module) -> list[Attention]:
    """Returns the attention layers of a module that may have an auxiliary loss."""
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    return [layer for layer in layers if type(layer).aux_loss is not Attention.aux_loss]


def seed_dropout(seed: int, update: int, rank: int, *, device: torch.device) -> None:
    """Seeds dropout for one rank in one update, from the run's seed.

    `torch.manual_seed` would seed the same generators, but it takes 0.2 ms longer, because it looks for other devices.
    """
    derived = int(np.random.SeedSequence([seed, update, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(derived)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(derived)


def start_engine(config: EngineConfig | None = None, *, device: str) -> Engine:
    """Starts the engine of `config`, or `ddp` if it is None. A single process uses `none` instead of such engines."""
    if config is None:
        config = engines.config_type("ddp")()
    if world()[1] == 1 and engines.class_of(type(config)).is_distributed:
        config = NoneConfig()
    return engines.build(config, device=device)


def world() -> tuple[int, int]:
    """Returns the rank and the world size, from the environment variables that torchrun sets.

    Raises:
        UserError: If the variables are invalid.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={size} are not a valid rank and world size.",
            "Start the processes with torchrun or srun.",
        )
    return int(rank), int(size)


def local_device(device: str) -> torch.device:
    """Returns this process's device for `device=auto|cpu|cuda`.

    Raises:
        UserError: If `device` is cuda and there is no GPU for this process.
    """
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpus == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank):  # with srun, a process sees only one GPU
        local_rank = 0
    if device == "cpu" or (device == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise UserError(
            f"device={device}: process {local_rank} of this machine has no GPU, because the number of GPUs is {gpus}.",
            "Start fewer processes, or set device=cpu.",
        )
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen
