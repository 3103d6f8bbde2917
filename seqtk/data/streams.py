"""The plan of an epoch: shuffled batches, or streams, samples side by side each of which goes on where its row ended.

K samples of a split, S streams.
"""

import numpy as np

from seqtk.data.batching import BatchingConfig, IndexArray, SizeArray, epoch_batches
from seqtk.data.loader import Position, Update, updates


def epoch_plan(
    sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, position: Position, **share: int
) -> list[Update]:
    """The remaining updates of an epoch for one rank; `share` is its `world`, `rank` and `update_freq`."""
    if config.streams is not None:
        return stream_updates(len(sizes_ND), config.streams, position=position, **share)
    batches = epoch_batches(sizes_ND, config, seed=seed, epoch=position.epoch)
    return updates(batches, position=position, **share)


def stream_rows(samples: int, streams: int) -> list[IndexArray]:
    """What each update of an epoch reads: the k-th update the k-th sample of every stream.

    The samples are dealt into S contiguous runs of ⌈K / S⌉ or ⌊K / S⌋, the longer ones first, so that each sample is
    read once, and an update in which some have ended has the first rows left.
    """
    least, longer = divmod(samples, streams)
    starts_S = np.arange(streams) * least + np.minimum(np.arange(streams), longer)
    updates = [starts_S + update for update in range(least)]
    return [*updates, starts_S[:longer] + least] if longer else updates


def part_of(streams: int, *, number: int, parts: int) -> slice:
    """The rows that part `number` of `parts` has of an update: contiguous, as equal as can be, larger ones first."""
    least, larger = divmod(streams, parts)
    start = number * least + min(number, larger)
    return slice(start, start + least + (number < larger))


def own_parts(streams: int, *, world: int = 1, rank: int = 0, update_freq: int = 1) -> list[slice]:
    """The rows of each micro-batch of one rank; micro-batch i on rank r is part i × world + r, whatever the update."""
    parts = world * update_freq
    return [part_of(streams, number=number, parts=parts) for number in range(rank, parts, world)]


def stream_updates(
    samples: int, streams: int, *, position: Position, world: int = 1, rank: int = 0, update_freq: int = 1
) -> list[Update]:
    """The remaining updates of an epoch for one rank, as `updates` gives them for batches.

    A stream is always in the micro-batch of the same number; which has None where none of its streams goes on.
    """
    parts = own_parts(streams, world=world, rank=rank, update_freq=update_freq)
    done = position.examples // streams
    plan, consumed = [], done * streams
    for rows in stream_rows(samples, streams)[done:]:
        consumed += len(rows)
        own = tuple(rows[part] if len(rows[part]) else None for part in parts)
        plan.append(Update(own, Position(position.epoch, consumed)))
    return plan
