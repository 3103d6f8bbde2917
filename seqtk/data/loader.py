"""Batches in the order of a plan: read, collated and copied to the device, ahead of time where there are workers."""

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from seqtk.data.batch import Batch
from seqtk.data.plan import IndexArray, Update
from seqtk.utils.errors import UserError

E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")
B = TypeVar("B", bound=Batch)
CPU = torch.device("cpu")


class Examples(Protocol[E_co]):
    """Anything with a length and examples by number; picklable if workers are to read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> E_co: ...


def load_updates(
    plan: Sequence[Update],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    device: torch.device = CPU,
    workers: int | None = 0,
) -> Iterator[tuple[Update, list[B]]]:
    """Yields each update of the plan with its micro-batches on `device`.

    Where the plan has nothing left for this rank, the micro-batch is an empty one. `device` and `workers` as in
    `load_batches`.
    """
    batches = [indices for update in plan for indices in update.indices if indices is not None]
    loaded = load_batches(batches, dataset, collate, device=device, workers=workers)
    empty: B | None = None
    for update in plan:
        micro_batches = [None if indices is None else next(loaded) for indices in update.indices]
        if empty is None:
            first = next((batch for batch in micro_batches if batch is not None), None)
            empty = (collate([dataset[0]]).to(device) if first is None else first).as_empty()
        yield update, [empty if batch is None else batch for batch in micro_batches]


def load_batches(
    batches: Sequence[IndexArray],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    device: torch.device = CPU,
    workers: int | None = 0,
) -> Iterator[B]:
    """Yields the collated batches on `device`, in their order; draws no random number.

    Args:
        batches: The indices of the examples of each batch.
        dataset: Read by `dataset[index]`.
        collate: Turns examples into a batch.
        device: A GPU gets each batch by a copy from pinned memory that overlaps with what it computes.
        workers: The number of processes that load ahead. 0: nothing is loaded before it is asked for. None: 1 for a
            GPU if the dataset can be sent to another process, else 0.

    Raises:
        UserError: If a worker ends without an exception, as when it is killed, or cannot be started. An exception of
            `dataset` or `collate` is raised here, with the worker's traceback.
    """
    if workers is None:
        workers = int(device.type == "cuda" and _why_not_picklable(dataset, collate) is None)
    read: Iterator[B]
    if workers == 0 or not batches:
        read = (collate([dataset[index] for index in batch.tolist()]) for batch in batches)
    else:
        read = _read_ahead(batches, dataset, collate, workers=workers, pin_memory=device.type == "cuda")
    return _copy_ahead(read, device) if device.type == "cuda" else (batch.to(device) for batch in read)


def _copy_ahead(batches: Iterator[B], device: torch.device) -> Iterator[B]:
    """Copies each batch to a GPU on a stream of its own, one batch before it is needed."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: B | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = (batch if batch.ids_B.is_pinned() else batch.pin_memory()).to(device)
            arrived = stream.record_event()
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_event(arrived)
        copied.record_stream(torch.cuda.current_stream(device))
        ahead = copied
    if ahead is not None:
        yield ahead


def _read_ahead(
    batches: Sequence[IndexArray],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[B]:
    """Batches that worker processes read and collate, each some two batches ahead."""
    reason = _why_not_picklable(dataset, collate)
    if reason is not None:
        raise UserError(
            f"batch.workers={workers}: the dataset cannot be sent to a worker process.", reason, "Set batch.workers=0."
        )
    # Workers are forked from a server process, not from this one, whose threads (OpenMP, CUDA) may hold locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(dataset).__module__])
    with _no_main_module():
        loaded = iter(
            DataLoader(
                cast("Dataset[B]", _Reader(dataset, collate)),
                batch_size=None,
                sampler=[batch.tolist() for batch in batches],
                collate_fn=_unchanged,
                num_workers=min(workers, len(batches)),
                multiprocessing_context=context,
                worker_init_fn=_exit_with_parent,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # else it would draw a seed from the global one
            )
        )
    while True:
        try:
            batch = next(loaded)
        except StopIteration:
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
                raise
            raise UserError(
                "A process that loads training data ended unexpectedly.",
                str(error).splitlines()[0],
                "If memory ran out, set batch.workers lower; batch.workers=0 loads in the training process.",
            ) from error
        if isinstance(batch, _Failed):
            raise UserError(*batch.lines)
        yield batch


@dataclass(frozen=True)
class _Failed:
    """A UserError of a worker: torch would make its traceback part of the message."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Reader(Generic[E, B]):
    """The dataset of a worker: its examples are whole batches."""

    dataset: Examples[E]
    collate: Callable[[list[E]], B]

    def __getitem__(self, indices: list[int]) -> B | _Failed:
        try:
            return self.collate([self.dataset[index] for index in indices])
        except UserError as error:
            return _Failed(tuple(str(error).splitlines()))


def _unchanged(batch: B) -> B:
    return batch


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Lets new processes not import the main module: a script that trains would train again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _why_not_picklable(dataset: object, collate: object) -> str | None:
    """Why dataset and collate cannot be sent to another process; None: they can."""
    with _no_main_module():
        try:
            pickle.dumps((dataset, collate))
        except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _exit_with_parent(worker: int) -> None:
    """Ends this worker when the training process ends, even by kill -9.

    torch's own check watches the worker's parent, which here is the server, and that lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
