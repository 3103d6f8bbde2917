"""Batches read and collated in order, and the plan of an epoch: which of them each update of each rank takes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from seqtk.data.batching import IndexArray

E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")
B = TypeVar("B")


class Examples(Protocol[E_co]):
    """Anything with a length and examples by number; picklable, where workers are to read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> E_co: ...


@dataclass(frozen=True)
class Position:
    """How far training has come: the epoch, from 1, and how many of its examples all ranks together have consumed."""

    epoch: int = 1
    examples: int = 0


@dataclass(frozen=True)
class Update:
    """What one rank reads for one update, and the position once all ranks have made it."""

    indices: tuple[IndexArray | None, ...]
    """One micro-batch each; None where the epoch has nothing left for this rank."""
    position_after: Position


def updates(
    batches: Sequence[IndexArray], *, position: Position, world: int = 1, rank: int = 0, update_freq: int = 1
) -> list[Update]:
    """The remaining updates of an epoch for one rank; `batches` are all batches of the epoch, the same for every rank.

    An update takes the next world × update_freq batches; its micro-batch i on rank r is number i × world + r of these.
    `position` may have been reached with another world or update_freq: what was consumed is a prefix of the epoch's
    examples, so nothing is lost or repeated; a batch of which a part was consumed is continued with its rest.
    """
    ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
    first = int(ends.searchsorted(position.examples, side="right"))
    remaining = list(batches[first:])
    if remaining:
        remaining[0] = remaining[0][len(remaining[0]) - (int(ends[first]) - position.examples) :]
    taken = world * update_freq
    plan = []
    for start in range(0, len(remaining), taken):
        places = range(start + rank, start + taken, world)
        indices = tuple(remaining[place] if place < len(remaining) else None for place in places)
        examples = int(ends[min(first + start + taken, len(batches)) - 1])
        plan.append(Update(indices, Position(position.epoch, examples)))
    return plan


class Loader(Generic[E, B]):
    """Collated batches in the order of `batches`, read in this process or ahead of time by `num_workers` others.

    Each iteration starts anew. It draws from no random generator and what it yields does not depend on `num_workers`.
    `pin_memory` (batches that have that method, on a machine with a GPU) counts only where there are workers.
    """

    def __init__(
        self,
        dataset: Examples[E],
        collate: Callable[[list[E]], B],
        batches: Sequence[IndexArray],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.collate, self.batches = dataset, collate, batches
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[B]:
        indices = (batch.tolist() for batch in self.batches)
        if self.num_workers == 0:
            return (self.collate([self.dataset[index] for index in batch]) for batch in indices)
        # Workers are forked from a small server, not from this process, whose threads may hold locks (of OpenMP, CUDA).
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        return iter(
            DataLoader(
                cast("Dataset[E]", self.dataset),
                batch_sampler=indices,
                collate_fn=self.collate,
                num_workers=min(self.num_workers, max(1, len(self.batches))),
                multiprocessing_context=context,
                worker_init_fn=_end_with_parent,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # else it would draw a seed from the global one
            )
        )


def _end_with_parent(worker: int) -> None:
    """Let this worker end when the training process does, were it by kill -9.

    torch's own watch looks at the worker's parent, which is the server here; and that lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def load_updates(
    plan: Sequence[Update],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Update, list[B | None]]]:
    """Each update of the plan with its micro-batches read; None where there is nothing left for this rank."""
    batches = [indices for update in plan for indices in update.indices if indices is not None]
    loaded = iter(Loader(dataset, collate, batches, num_workers=num_workers, pin_memory=pin_memory))
    for update in plan:
        yield update, [None if indices is None else next(loaded) for indices in update.indices]
