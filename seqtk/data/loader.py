"""Loads the batches of a plan: reads and collates examples, and copies batches to the device. Workers can prefetch."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from seqtk.data.batch import Batch, Examples, read_batch
from seqtk.data.plan import IndexArray, Update
from seqtk.data.prefetch import pickling_error, read_ahead
from seqtk.data.static_shapes import Shape

E = TypeVar("E")
B = TypeVar("B", bound=Batch)
CPU = torch.device("cpu")


def load_updates(
    plan: Sequence[Update],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    device: torch.device = CPU,
    workers: int | None = 0,
) -> Iterator[tuple[Update, list[B]]]:
    """Yields each update of the plan with its micro-batches on `device`.

    If no examples are left for a micro-batch of this rank, it has weight 0. For `device` and `workers`, see
    `load_batches`.
    """
    read = [micro_batch for update in plan for micro_batch in update.micro_batches]
    batches, shapes = [indices for indices, _ in read], [shape for _, shape in read]
    loaded = load_batches(batches, dataset, collate, shapes=shapes, device=device, workers=workers)
    for update in plan:
        micro_batches = [next(loaded) for _ in update.indices]
        pairs = zip(micro_batches, update.indices, strict=True)
        yield update, [batch.as_empty() if indices is None else batch for batch, indices in pairs]


def load_batches(
    batches: Sequence[IndexArray],
    dataset: Examples[E],
    collate: Callable[[list[E]], B],
    *,
    shapes: Sequence[Shape | None] | None = None,
    device: torch.device = CPU,
    workers: int | None = 0,
) -> Iterator[B]:
    """Yields the collated batches on `device`, in order. Does not use the global random generators.

    Args:
        batches: The indices of the examples of each batch.
        dataset: The examples.
        collate: Collates examples into a batch.
        shapes: The shape to which each batch is padded. None: a batch is padded to its longest examples.
        device: The device. Copies to a GPU use pinned memory, and overlap with computation.
        workers: The number of worker processes that prefetch batches. 0: no prefetching. None: 1 for a GPU if the
            dataset is picklable, else 0.

    Raises:
        UserError: If a worker cannot be started, or ends unexpectedly. Exceptions of `dataset` or `collate` are raised
            with the worker's traceback.
    """
    if workers is None:
        workers = int(device.type == "cuda" and pickling_error(dataset, collate) is None)
    requests = list(zip(batches, shapes or [None] * len(batches), strict=True))
    read: Iterator[B]
    if workers == 0 or not batches:
        read = (read_batch(dataset, collate, indices.tolist(), shape) for indices, shape in requests)
    else:
        read = read_ahead(requests, dataset, collate, workers=workers, pin_memory=device.type == "cuda")
    return _copy_ahead(read, device) if device.type == "cuda" else (batch.to(device) for batch in read)


def _copy_ahead(batches: Iterator[B], device: torch.device) -> Iterator[B]:
    """Copies batches to a GPU on a separate CUDA stream, one batch ahead."""
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
