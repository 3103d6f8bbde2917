"""Plans an epoch of `batch.streams` contiguous streams, which are read in order.

All functions are pure. K samples of a split, S streams.
"""

import numpy as np

from seqtk.data.plan import IndexArray, Position, Update
from seqtk.data.static_shapes import Shape


def stream_rows(samples: int, streams: int) -> list[IndexArray]:
    """Returns the samples for each update of an epoch: update k reads sample k of each stream.

    The samples are split into S contiguous streams of ⌈K / S⌉ or ⌊K / S⌋ samples, the longer ones first. The last
    update has only the rows of the longer streams.
    """
    least, longer = divmod(samples, streams)
    starts_S = np.arange(streams) * least + np.minimum(np.arange(streams), longer)
    rows = [starts_S + update for update in range(least)]
    return [*rows, starts_S[:longer] + least] if longer else rows


def stream_slices(streams: int, *, world: int = 1, rank: int = 0, update_freq: int = 1) -> list[slice]:
    """Returns the rows (streams) of each micro-batch of one rank. The rows are the same in all updates.

    The rows are split into world × update_freq contiguous parts of nearly equal size, larger ones first. Micro-batch i
    on rank r is part i × world + r.
    """
    parts = world * update_freq
    least, larger = divmod(streams, parts)
    starts = [number * least + min(number, larger) for number in range(parts + 1)]
    return [slice(starts[number], starts[number + 1]) for number in range(rank, parts, world)]


def stream_updates(
    samples: int,
    streams: int,
    *,
    position: Position,
    world: int = 1,
    rank: int = 0,
    update_freq: int = 1,
    length: int | None = None,
) -> list[Update]:
    """Returns the remaining updates of an epoch for one rank. Like `updates`, but for streams.

    A stream is always read in the same micro-batch. A micro-batch is None after all of its streams have ended. With
    `length`, all micro-batches have the static shape (number of streams, `length`).
    """
    parts = stream_slices(streams, world=world, rank=rank, update_freq=update_freq)
    done = position.examples // streams
    plan, consumed = [], done * streams
    shapes = tuple(Shape(part.stop - part.start, (length,)) for part in parts) if length else ()
    for rows in stream_rows(samples, streams)[done:]:
        consumed += len(rows)
        own = tuple(rows[part] if len(rows[part]) else None for part in parts)
        plan.append(Update(own, Position(position.epoch, consumed), shapes, int(rows[0])))
    return plan
