"""Worker processes that read and collate batches before they are needed."""

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from seqtk.data.batch import Batch, Examples, read_batch
from seqtk.data.plan import IndexArray
from seqtk.data.static_shapes import Shape
from seqtk.utils.errors import UserError

E = TypeVar("E")
B = TypeVar("B", bound=Batch)


def read_ahead(
    batches: Sequence[tuple[IndexArray, Shape | None]],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[B]:
    """Yields batches that worker processes read and collate. Each worker prefetches about two batches.

    Raises:
        UserError: If the dataset cannot be pickled, a worker ends unexpectedly, or reading fails with a UserError.
    """
    check_picklable(dataset, collate, workers=workers)
    # Workers are forked from a server process, not from this one, whose threads (OpenMP, CUDA) may hold locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(dataset).__module__])
    with _no_main_module():
        loaded = iter(
            DataLoader(
                cast("Dataset[B]", _Reader(dataset, collate)),
                batch_size=None,
                sampler=[(indices.tolist(), shape) for indices, shape in batches],
                collate_fn=_unchanged,
                num_workers=min(workers, len(batches)),
                multiprocessing_context=context,
                worker_init_fn=_exit_with_parent,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # otherwise the loader would draw a seed from the global generator
            )
        )
    try:
        for batch in loaded:
            if isinstance(batch, _Failed):
                raise UserError(*batch.lines)
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise UserError(
            "A process that loads training data ended unexpectedly.",
            str(error).splitlines()[0],
            "If memory ran out, lower batch.workers. With batch.workers=0, the training process loads the data.",
        ) from error


@dataclass(frozen=True)
class _Failed:
    """The lines of a UserError in a worker. Workers return it, because torch adds a traceback to raised exceptions."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Reader(Generic[E, B]):
    """A dataset for torch's DataLoader in a worker. Its items are complete batches."""

    dataset: Examples[E]
    collate: Callable[[list[E]], B]

    def __getitem__(self, request: tuple[list[int], Shape | None]) -> B | _Failed:
        try:
            return read_batch(self.dataset, self.collate, *request)
        except UserError as error:
            return _Failed(tuple(str(error).splitlines()))


def _unchanged(batch: B) -> B:
    return batch


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Context manager in which new processes do not import the main module, which would run a training script again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def check_picklable(dataset: object, collate: object, *, workers: int) -> None:
    """Raises UserError if `dataset` and `collate` cannot be pickled, which worker processes require."""
    problem = pickling_error(dataset, collate)
    if problem is not None:
        raise UserError(
            f"batch.workers={workers}: the dataset cannot be sent to a worker process.", problem, "Set batch.workers=0."
        )


def pickling_error(dataset: object, collate: object) -> str | None:
    """Returns the error of pickling `dataset` and `collate`, or None if they can be pickled."""
    with _no_main_module():
        try:
            pickle.dumps((dataset, collate))
        except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _exit_with_parent(worker: int) -> None:
    """Ends this worker when the training process ends, even by SIGKILL.

    torch only checks that the worker's parent is running. The parent is the fork server, which runs as long as its
    workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
