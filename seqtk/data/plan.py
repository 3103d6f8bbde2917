"""Plans an epoch: groups examples into batches, shuffles them, and distributes them over ranks.

All functions are pure, and depend only on the lengths of examples. The size of a batch, including padding, is (number
of examples) × (longest source or target). The position in an epoch is a number of examples, so that a run can be
resumed with a different number of ranks. `seqtk.data.streams` plans contiguous streams.

N examples, D sides of an example (source and target, or one), K micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from seqtk.config.fields import setting
from seqtk.data.static_shapes import IndexArray as IndexArray
from seqtk.data.static_shapes import Shape, static_batches, static_shapes
from seqtk.data.static_shapes import SizeArray as SizeArray
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    IntOrAuto: TypeAlias = int  # `seqtk.training.auto_batch` replaces `auto` before the value is used
else:
    IntOrAuto = int | Literal["auto"]


def is_auto(value: object) -> bool:
    """Returns True if a setting is `auto`."""
    return value == "auto"


@dataclass(frozen=True)
class BatchingConfig:
    """Settings of batches: their size on each device, bucketing by length, and loading."""

    max_tokens: IntOrAuto | None = setting(
        4096,
        at_least=1,
        help="Maximum number of tokens in a batch, including padding: examples × longest source or target. null: no "
        "limit. auto: as many as fit into memory.",
    )
    tokens_per_update: int | None = setting(
        None,
        at_least=1,
        help="With max_tokens=auto or update_freq=auto: tokens per update on all devices, including padding.",
    )
    max_sentences: int | None = setting(None, at_least=1, help="Maximum number of examples in a batch. null: no limit.")
    size_multiple: int = setting(
        1, at_least=1, help="The number of examples in a batch is a multiple of this number, if possible."
    )
    max_length: int | None = setting(
        None,
        at_least=1,
        help="Skip training examples whose source or target has more tokens, including EOS. null: no limit.",
    )
    bucket: int = setting(
        1000,
        at_least=1,
        help="Number of batches whose examples are sorted by length together. Higher values give less padding, and "
        "less random batches.",
    )
    shapes: int | None = setting(
        None,
        at_least=1,
        at_most=1024,
        help="Maximum number of static shapes (rows and lengths) to which training batches are padded. "
        "null: a batch is padded to its longest examples.",
    )
    streams: int | None = setting(
        None,
        at_least=1,
        help="Number of contiguous streams, over all devices, into which the text is split. Each stream is read in "
        "order. null: shuffled batches.",
    )
    workers: int | None = setting(
        None,
        at_least=0,
        help="Number of worker processes that prefetch batches. 0: the training process loads them. null: 1 on a GPU, "
        "0 on a CPU.",
    )


@dataclass(frozen=True)
class Position:
    """The position of a run: the epoch, from 1, and the number of its examples that all ranks together have read."""

    epoch: int = 1
    examples: int = 0
    earlier: tuple["Stretch", ...] = ()
    """The parts of this epoch that were read with different batch settings, in order."""


@dataclass(frozen=True)
class Stretch:
    """A part of an epoch that was read with the same batch settings."""

    examples: int
    """The number of examples of the epoch that were read before the end of this part."""
    batching: BatchingConfig
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Update:
    """The micro-batches of one rank for one update, and the position after the update."""

    indices: tuple[IndexArray | None, ...]
    """The examples of each micro-batch. None: the epoch has no examples left for this rank."""
    position_after: Position
    shapes: tuple[Shape, ...] = ()
    """The static shape of each micro-batch, if `batch.shapes` is set."""
    stand_in: int = 0
    """Micro-batches without examples read this example, with weight 0. It fits into their shape."""

    @property
    def micro_batches(self) -> list[tuple[IndexArray, Shape | None]]:
        """The indices of the examples to read, and the static shape or None, for each micro-batch."""
        read = (np.array([self.stand_in]) if indices is None else indices for indices in self.indices)
        return list(zip(read, self.shapes or [None] * len(self.indices), strict=True))


def epoch_plan(
    sizes_ND: SizeArray,
    config: BatchingConfig,
    *,
    seed: int,
    position: Position,
    world: int = 1,
    rank: int = 0,
    update_freq: int = 1,
    shapes: Sequence[Shape] = (),
) -> list[Update]:
    """Returns the remaining updates of an epoch for one of `world` ranks, in order. For streams, see `stream_updates`.

    `shapes` are the static shapes of the run (see `run_shapes`).
    """
    among = _stretches(sizes_ND, seed=seed, position=position)[1] if position.earlier else None
    batches, its_shapes = _batches(sizes_ND, config, seed=seed, epoch=position.epoch, shapes=shapes, among=among)
    return updates(batches, shapes=its_shapes, position=position, world=world, rank=rank, update_freq=update_freq)


def run_shapes(sizes_ND: SizeArray, config: BatchingConfig, *, joined: bool = False) -> tuple[Shape, ...]:
    """Returns the static shapes of a run, which depend on the lengths of its examples and its settings.

    The result is empty without `batch.shapes`, and for streams, whose shapes depend only on the settings. `joined`
    means that a batch pads all sides to the same length.
    """
    if config.shapes is None or config.streams is not None:
        return ()
    return static_shapes(sizes_ND[usable(sizes_ND, config)[0]], config, joined=joined)


def real_batches(plan: Sequence[Update]) -> list[tuple[IndexArray, Shape | None]]:
    """Returns (examples, shape) of each micro-batch of a plan, except micro-batches without examples."""
    pairs = (pair for update in plan for pair in zip(update.indices, update.micro_batches, strict=True))
    return [micro_batch for indices, micro_batch in pairs if indices is not None]


def positions(plan: Sequence[Update], sizes_ND: SizeArray, *, joined: bool = False) -> IndexArray:
    """Returns the number of positions in each batch of `real_batches`, including padding and filler rows.

    `joined`: True if a batch pads all sides to the same length.
    """
    batches = real_batches(plan)
    varying = [indices for indices, shape in batches if shape is None]
    cells: list[int] = []
    if varying:
        rows_K = np.array([len(indices) for indices in varying])
        longest_KD = np.maximum.reduceat(sizes_ND[np.concatenate(varying)], np.cumsum(rows_K) - rows_K, axis=0)
        if joined:
            longest_KD = np.broadcast_to(longest_KD.max(axis=1, keepdims=True), longest_KD.shape)
        cells = (rows_K * longest_KD.sum(axis=1)).tolist()
    following = iter(cells)
    return np.array([next(following) if shape is None else shape.rows * shape.positions for _, shape in batches])


def padding_share(plan: Sequence[Update], sizes_ND: SizeArray, *, joined: bool = False) -> float:
    """Returns the share of padding and filler rows among the positions of a plan's batches. See `positions`."""
    is_read_N = np.zeros(len(sizes_ND), dtype=bool)
    for indices, _ in real_batches(plan):
        is_read_N[indices] = True
    total = int(positions(plan, sizes_ND, joined=joined).sum())
    return 1 - int(sizes_ND[is_read_N].sum(dtype=np.int64)) / total if total else 0.0


def reading_order(
    sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, position: Position, shapes: Sequence[Shape] = ()
) -> IndexArray:
    """Returns the examples of the epoch of `position` in the order in which the ranks read them. Not for streams.

    At `position`, the first `position.examples` of them have been read.
    """
    read, left_N = _stretches(sizes_ND, seed=seed, position=position)
    batches, _ = _batches(sizes_ND, config, seed=seed, epoch=position.epoch, shapes=shapes, among=left_N)
    return np.concatenate([*read, *batches])


def _stretches(sizes_ND: SizeArray, *, seed: int, position: Position) -> tuple[list[IndexArray], IndexArray]:
    """Returns (examples that were read with each of the earlier batch settings, all other examples)."""
    left_N: IndexArray = np.arange(len(sizes_ND))
    read: list[IndexArray] = []
    before = 0
    for stretch in position.earlier:
        batches, _ = _batches(
            sizes_ND, stretch.batching, seed=seed, epoch=position.epoch, shapes=stretch.shapes, among=left_N
        )
        read.append(np.concatenate(batches)[: stretch.examples - before])
        left_N = np.setdiff1d(left_N, read[-1], assume_unique=True)
        before = stretch.examples
    return read, left_N


def usable(sizes_ND: SizeArray, config: BatchingConfig) -> tuple[IndexArray, IndexArray]:
    """Returns (examples to train on, examples to skip because they are longer than `max_length` or `max_tokens`).

    With `streams`, no example is skipped.
    """
    _check(config)
    limits = [limit for limit in (config.max_length, config.max_tokens) if limit is not None]
    if config.streams is not None or not limits:
        return np.arange(len(sizes_ND)), np.empty(0, dtype=np.int64)
    fits_N = sizes_ND.max(axis=1) <= min(limits)
    return np.flatnonzero(fits_N), np.flatnonzero(~fits_N)


def epoch_batches(
    sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, epoch: int, among: IndexArray | None = None
) -> list[IndexArray]:
    """Returns the training batches of an epoch, in order. Each usable example is in exactly one batch.

    The examples are permuted by (seed, epoch) and split into windows of about `bucket` batches. Each window is sorted
    by the length of the target, then of the source, and packed into batches, whose order is shuffled. A larger `bucket`
    gives less padding and less random batches. NumPy guarantees the same random numbers in all versions, so that
    resumed runs have the same batches. If `among` is given, only these examples are used.
    """
    indices_N, random = _usable(sizes_ND, config, among), _random(seed, epoch)
    order_N: IndexArray = indices_N[random.permutation(len(indices_N))]
    longest_N = sizes_ND.max(axis=1)
    share_N = np.zeros(len(order_N))  # the share of a batch that each example fills
    if config.max_tokens is not None:
        share_N = longest_N[order_N] / config.max_tokens
    if config.max_sentences is not None:
        share_N = np.maximum(share_N, 1 / config.max_sentences)
    window_N = (np.cumsum(share_N) / config.bucket).astype(np.int64)
    key_N = _snake_order(sizes_ND[order_N], first_N=window_N)
    batches = pack(order_N[np.argsort(key_N, kind="stable")], longest_N, config)
    return [batches[place] for place in random.permutation(len(batches))]


def ordered_batches(sizes_ND: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    """Returns the batches for validation and decoding. Each example is in exactly one batch.

    An example that exceeds the limits is a separate batch. The longest examples come first, so that running out of
    memory happens early.
    """
    _check(config)
    first_N = np.zeros(len(sizes_ND), dtype=np.int64)
    return pack(np.argsort(-_snake_order(sizes_ND, first_N=first_N), kind="stable"), sizes_ND.max(axis=1), config)


def pack(order: IndexArray, sizes_N: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    """Splits `order` into consecutive batches, each as large as the limits of `config` allow.

    `sizes_N[i]` is the length of example i.

    With `size_multiple` > 1, the number of examples in a batch is rounded down to a multiple of it, unless it is
    smaller than the multiple. The remaining examples start the next batch or, if the next example does not fit, are a
    separate batch. An example that exceeds the limits is a separate batch. fairseq's batch_by_size does the same, but
    drops a last batch whose size is not a multiple.
    """
    max_tokens, multiple = config.max_tokens, config.size_multiple
    lengths = np.maximum(sizes_N[order], 1).astype(np.int64)
    most = min(len(order), config.max_sentences or len(order))
    counts = np.arange(1, most + 1)
    batches = []
    start = deferred_end = 0  # the batch starts at `start`; examples before `deferred_end` did not fit the batch before
    while start < len(order):
        room = most if max_tokens is None else min(most, max(1, max_tokens // int(lengths[start])))
        stop = start + room
        if max_tokens is not None:
            tokens = np.maximum.accumulate(lengths[start:stop])
            tokens *= counts[: len(tokens)]
            stop = start + max(1, int(tokens.searchsorted(max_tokens, side="right")))
        stop = min(stop, len(order))
        fitting = stop - start
        end = stop if fitting < multiple else max(stop - fitting % multiple, deferred_end)
        batches.append(order[start:end])
        rest_fits = max_tokens is None or (stop + 1 - end) * int(lengths[end : stop + 1].max(initial=0)) <= max_tokens
        if end < stop and (stop == len(order) or not rest_fits):
            batches.append(order[end:stop])
            end = stop
        start, deferred_end = end, stop + 1
    return batches


def updates(
    batches: Sequence[IndexArray],
    *,
    position: Position,
    world: int = 1,
    rank: int = 0,
    update_freq: int = 1,
    shapes: Sequence[Shape] = (),
) -> list[Update]:
    """Returns the remaining updates of an epoch for one rank.

    An update reads the next world × update_freq batches. Micro-batch i on rank r is batch i × world + r of these. If
    `position` was reached with a different world or update_freq, it may be inside a batch. Then the rest of this batch
    is read first, so that no example is lost or repeated.

    Args:
        batches: All batches of the epoch, without the examples of `position.earlier`, the same for all ranks.
        position: The position from which to continue.
        world: The number of ranks.
        rank: The rank.
        update_freq: The number of micro-batches of each rank in an update.
        shapes: The static shape of each batch, or empty. A micro-batch without examples has the last shape.
    """
    before = position.earlier[-1].examples if position.earlier else 0
    ends = before + np.cumsum([len(batch) for batch in batches], dtype=np.int64)
    first = int(ends.searchsorted(position.examples, side="right"))
    remaining, its_shapes = list(batches[first:]), list(shapes[first:])
    if remaining:
        remaining[0] = remaining[0][len(remaining[0]) - (int(ends[first]) - position.examples) :]
    taken = world * update_freq
    plan = []
    for start in range(0, len(remaining), taken):
        places = range(start + rank, start + taken, world)
        indices = tuple(remaining[place] if place < len(remaining) else None for place in places)
        examples = int(ends[min(first + start + taken, len(batches)) - 1])
        own = tuple(its_shapes[min(place, len(remaining) - 1)] for place in places) if shapes else ()
        plan.append(Update(indices, replace(position, examples=examples), own, int(remaining[-1][0])))
    return plan


def _batches(
    sizes_ND: SizeArray,
    config: BatchingConfig,
    *,
    seed: int,
    epoch: int,
    shapes: Sequence[Shape],
    among: IndexArray | None,
) -> tuple[list[IndexArray], Sequence[Shape]]:
    """Returns the training batches of an epoch, restricted to `among`, and their shapes (empty without `shapes`)."""
    if not shapes:
        return epoch_batches(sizes_ND, config, seed=seed, epoch=epoch, among=among), ()
    return static_batches(sizes_ND, _usable(sizes_ND, config, among), shapes, _random(seed, epoch))


def _usable(sizes_ND: SizeArray, config: BatchingConfig, among: IndexArray | None) -> IndexArray:
    """Returns the examples to train on, restricted to `among`."""
    kept_N, _ = usable(sizes_ND, config)
    return kept_N if among is None else np.intersect1d(kept_N, among, assume_unique=True)


def _random(seed: int, epoch: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))


def _snake_order(sizes_ND: SizeArray, *, first_N: IndexArray) -> IndexArray:
    """Returns a sort key for each example: `first_N`, then the lengths of its sides, the last side first.

    The lengths of a side are sorted in alternating directions: the direction changes whenever the previous key changes.
    So neighbors have similar lengths also where that key changes, and a batch that contains both has less padding.
    """
    key_N, base = first_N, int(sizes_ND.max(initial=0)) + 1
    for side_N in sizes_ND.T[::-1]:
        key_N = key_N * base + np.where(key_N % 2 == 0, side_N, base - 1 - side_N)
    return key_N


def _check(config: BatchingConfig) -> None:
    if config.streams is not None and config.max_length is not None:
        raise UserError(
            "batch.streams must read all samples, but batch.max_length skips some.", "Set one of them to null."
        )
    if config.max_tokens is None and config.max_sentences is None and config.streams is None:
        raise UserError(
            "batch.max_tokens and batch.max_sentences are both null, so batches have no limit.", "Set one of them."
        )
