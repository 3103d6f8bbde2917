"""The plan of an epoch: which examples form a batch, in which order, on which rank; pure functions of their arguments.

Nothing here reads an example; only lengths are looked at. A batch costs (number of examples) × (longest source or
target in it), so padding counts. Position in the epoch is counted in examples, so a run can resume with another number
of ranks. N examples, D sides of an example (source and target, or one), K samples of a split, S streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from seqtk.config.fields import setting
from seqtk.data.static_shapes import IndexArray as IndexArray
from seqtk.data.static_shapes import Shape, static_batches, static_shapes
from seqtk.data.static_shapes import SizeArray as SizeArray
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    IntOrAuto: TypeAlias = int  # `seqtk.training.auto_batch` replaces `auto` before anything reads it
else:
    IntOrAuto = int | Literal["auto"]


def is_auto(value: object) -> bool:
    """Returns whether a setting is `auto`."""
    return value == "auto"


@dataclass(frozen=True)
class BatchingConfig:
    """Size of a batch on one device, how training examples are grouped by length, and how they are loaded."""

    max_tokens: IntOrAuto | None = setting(
        4096,
        at_least=1,
        help="Examples × longest source or target of a batch, padding counted. null: no limit. auto: what fits into "
        "memory.",
    )
    tokens_per_update: int | None = setting(
        None,
        at_least=1,
        help="For max_tokens=auto and update_freq=auto: the tokens of all batches of an update, with padding.",
    )
    max_sentences: int | None = setting(None, at_least=1, help="Examples in a batch. null: no limit.")
    size_multiple: int = setting(
        1, at_least=1, help="Batches of at least this many examples hold a multiple of it, where possible."
    )
    max_length: int | None = setting(
        None, at_least=1, help="Training skips examples whose source or target is longer, eos counted. null: no limit."
    )
    bucket: int = setting(
        1000, at_least=1, help="Training sorts the shuffled examples of this many batches by length together."
    )
    shapes: int | None = setting(
        None,
        at_least=1,
        at_most=1024,
        help="The most shapes of training batches in the whole run: length buckets of fixed rows, to which batches are "
        "padded. null: each batch is as long as its longest examples.",
    )
    streams: int | None = setting(
        None,
        at_least=1,
        help="Reads the text in order, as this many parallel streams over all devices, each of which continues where "
        "its last sample ended. null: shuffled batches.",
    )
    workers: int | None = setting(
        None,
        at_least=0,
        help="Processes that load batches ahead of time. 0: batches are loaded in the training process. "
        "null: 1 when a GPU computes, else 0.",
    )


@dataclass(frozen=True)
class Position:
    """Progress of training: the epoch, from 1, and how many of its examples all ranks together have consumed."""

    epoch: int = 1
    examples: int = 0
    earlier: tuple["Stretch", ...] = ()
    """What of this epoch was consumed with other batch settings than the current ones, in order."""

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Position":
        """The inverse of `asdict`. Raises TypeError or KeyError for another tree."""
        stretches = (
            Stretch(
                each["examples"],
                BatchingConfig(**each["batching"]),
                tuple(Shape(**{**shape, "lengths": tuple(shape["lengths"])}) for shape in each["shapes"]),
            )
            for each in tree.get("earlier", ())
        )
        return cls(**{**tree, "earlier": tuple(stretches)})

    def with_other_batches(self, before: BatchingConfig, shapes: Sequence[Shape] = ()) -> "Position":
        """The same position, from which a run continues with batch settings and static shapes other than these."""
        if not self.examples or (self.earlier and self.earlier[-1].examples == self.examples):
            return self
        return replace(self, earlier=(*self.earlier, Stretch(self.examples, before, tuple(shapes))))


@dataclass(frozen=True)
class Stretch:
    """A part of an epoch that was consumed with the same batch settings."""

    examples: int
    """How many examples of the epoch had been consumed at its end."""
    batching: BatchingConfig
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Update:
    """What one rank reads for one update, and the position after it."""

    indices: tuple[IndexArray | None, ...]
    """The examples of each micro-batch. None: the epoch has nothing left for this rank."""
    position_after: Position
    shapes: tuple[Shape, ...] = ()
    """The shape of each micro-batch, with `batch.shapes`."""
    stand_in: int = 0
    """The example that is read, with weight 0, where `indices` has None. It fits the shape."""

    @property
    def micro_batches(self) -> list[tuple[IndexArray, Shape | None]]:
        """The examples that are read for each micro-batch, and its shape."""
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
    """The remaining updates of an epoch for one rank of `world`, in their order.

    `shapes` are the run's static shapes, if it has some; see `run_shapes`.
    """
    if config.streams is not None:
        length = int(sizes_ND.max(initial=1)) if config.shapes else None
        return stream_updates(
            len(sizes_ND),
            config.streams,
            position=position,
            world=world,
            rank=rank,
            update_freq=update_freq,
            length=length,
        )
    among = _stretches(sizes_ND, seed=seed, position=position)[1] if position.earlier else None
    batches, its_shapes = _batches(sizes_ND, config, seed=seed, epoch=position.epoch, shapes=shapes, among=among)
    return updates(batches, shapes=its_shapes, position=position, world=world, rank=rank, update_freq=update_freq)


def run_shapes(sizes_ND: SizeArray, config: BatchingConfig, *, joined: bool = False) -> tuple[Shape, ...]:
    """The static shapes of a run, a function of the lengths of its examples and the settings. None: they vary.

    `joined`: whether a batch pads all sides to one length. Streams need no more than the settings: there are none here.
    """
    if config.shapes is None or config.streams is not None:
        return ()
    return static_shapes(sizes_ND[usable(sizes_ND, config)[0]], config, joined=joined)


def real_batches(plan: Sequence[Update]) -> list[tuple[IndexArray, Shape | None]]:
    """The micro-batches of a plan that have examples: these, and the shape."""
    pairs = (pair for update in plan for pair in zip(update.indices, update.micro_batches, strict=True))
    return [micro_batch for indices, micro_batch in pairs if indices is not None]


def positions(plan: Sequence[Update], sizes_ND: SizeArray) -> IndexArray:
    """The positions of each of the `real_batches`, padding and filler rows included."""
    batches = real_batches(plan)
    varying = [indices for indices, shape in batches if shape is None]
    cells: list[int] = []
    if varying:
        rows_K = np.array([len(indices) for indices in varying])
        longest_KD = np.maximum.reduceat(sizes_ND[np.concatenate(varying)], np.cumsum(rows_K) - rows_K, axis=0)
        cells = (rows_K * longest_KD.reshape(len(rows_K), -1).sum(axis=1)).tolist()
    following = iter(cells)
    return np.array([next(following) if shape is None else shape.rows * shape.positions for _, shape in batches])


def padding_share(plan: Sequence[Update], sizes_ND: SizeArray) -> float:
    """The share of the positions of a plan's batches that are padding or belong to filler rows."""
    is_read_N = np.zeros(len(sizes_ND), dtype=bool)
    for indices, _ in real_batches(plan):
        is_read_N[indices] = True
    return 1 - int(sizes_ND[is_read_N].sum(dtype=np.int64)) / max(int(positions(plan, sizes_ND).sum()), 1)


def reading_order(
    sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, position: Position, shapes: Sequence[Shape] = ()
) -> IndexArray:
    """The examples of the epoch of `position`, in the order in which all ranks together consume them, without streams.

    The first `position.examples` of them have been consumed.
    """
    read, left_N = _stretches(sizes_ND, seed=seed, position=position)
    batches, _ = _batches(sizes_ND, config, seed=seed, epoch=position.epoch, shapes=shapes, among=left_N)
    return np.concatenate([*read, *batches])


def _stretches(sizes_ND: SizeArray, *, seed: int, position: Position) -> tuple[list[IndexArray], IndexArray]:
    """The examples that were consumed with each of the earlier batch settings, and those that were not."""
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
    """The examples to train on, and those that are skipped: longer than `max_length` or than `max_tokens`.

    Streams skip nothing.
    """
    _check(config)
    limits = [limit for limit in (config.max_length, config.max_tokens) if limit is not None]
    if config.streams is not None or not limits:
        return np.arange(len(sizes_ND)), np.empty(0, dtype=np.int64)
    fits_N = _longest_side(sizes_ND) <= min(limits)
    return np.flatnonzero(fits_N), np.flatnonzero(~fits_N)


def epoch_batches(
    sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, epoch: int, among: IndexArray | None = None
) -> list[IndexArray]:
    """The training batches of an epoch, in their order: every usable example exactly once, new batches each epoch.

    The examples are permuted by (seed, epoch) and cut into windows of about `bucket` batches. Each window is sorted by
    length, the target's and then the source's; the result is packed into batches, and their order is shuffled. A larger
    `bucket` pads less and mixes less. The random stream is one that NumPy has frozen, so a run resumed under another
    version sees the same batches. `among` limits them to these examples.

    Raises UserError if no example is usable.
    """
    indices_N, random = _usable(sizes_ND, config, among), _random(seed, epoch)
    order_N: IndexArray = indices_N[random.permutation(len(indices_N))]
    longest_N = _longest_side(sizes_ND)
    share_N = np.zeros(len(order_N))  # the share of a batch that each example fills
    if config.max_tokens is not None:
        share_N = longest_N[order_N] / config.max_tokens
    if config.max_sentences is not None:
        share_N = np.maximum(share_N, 1 / config.max_sentences)
    window_N = (np.cumsum(share_N) / config.bucket).astype(np.int64)
    key_N = _snake_order(sizes_ND[order_N], first_N=window_N)
    batches = _pack(order_N[np.argsort(key_N, kind="stable")], longest_N, config)
    return [batches[place] for place in random.permutation(len(batches))]


def ordered_batches(sizes_ND: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    """Batches for validation and decoding: every example exactly once, longest first, always the same.

    An example over the budget is alone in its batch. The longest come first, so that a lack of memory shows at once.
    """
    _check(config)
    first_N = np.zeros(len(sizes_ND), dtype=np.int64)
    return _pack(np.argsort(-_snake_order(sizes_ND, first_N=first_N), kind="stable"), _longest_side(sizes_ND), config)


def pack(
    order: IndexArray,
    sizes_N: SizeArray,
    *,
    max_tokens: int | None,
    max_sentences: int | None = None,
    multiple: int = 1,
) -> list[IndexArray]:
    """`order` cut into consecutive batches, each as long as the budget allows; `sizes_N[i]` is the length of example i.

    With `multiple` > 1 a batch ends after a multiple of it (or after fewer examples than it). The examples between
    that end and the first one that did not fit start the next batch; if they alone exceed the budget, they are a
    batch. fairseq's batch_by_size cuts in the same way, but drops a last batch that is not a multiple; here
    it is kept. An example over the budget gets a separate batch.
    """
    lengths = np.maximum(sizes_N[order], 1).astype(np.int64)
    most = min(len(order), max_sentences or len(order))
    counts = np.arange(1, most + 1)
    batches = []
    start = deferred_end = 0  # the batch starts at `start`; its examples up to `deferred_end` did not fit the last one
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
    """The remaining updates of an epoch for one rank; `batches` are all batches of the epoch, the same for every rank.

    An update takes the next world × update_freq batches; micro-batch i on rank r is number i × world + r of them.
    `position` may have been reached with another world or update_freq: the consumed examples are a prefix of the epoch,
    so none is lost or repeated. A batch that was consumed in part is continued with its rest. `shapes` are the static
    shapes of the batches, if they have some; a micro-batch without examples has that of the last one.
    `batches` are of the examples that remained after `position.earlier`.
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


def stream_rows(samples: int, streams: int) -> list[IndexArray]:
    """The samples that each update of an epoch reads: update k reads sample k of every stream.

    The samples are split into S contiguous runs of ⌈K / S⌉ or ⌊K / S⌋, longer ones first. So each sample is read once,
    and when the shorter runs have ended an update has the first rows only.
    """
    least, longer = divmod(samples, streams)
    starts_S = np.arange(streams) * least + np.minimum(np.arange(streams), longer)
    rows = [starts_S + update for update in range(least)]
    return [*rows, starts_S[:longer] + least] if longer else rows


def stream_slices(streams: int, *, world: int = 1, rank: int = 0, update_freq: int = 1) -> list[slice]:
    """The rows of an update that each micro-batch of one rank reads, the same in every update.

    The rows are split into world × update_freq contiguous parts, as equal as possible, larger ones first; micro-batch i
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
    """The remaining updates of an epoch for one rank, like `updates`, for streams instead of shuffled batches.

    A stream stays in the same micro-batch. A micro-batch is None when all of its streams have ended. With `length`,
    the shape of a micro-batch is all of its streams × `length`, in every update.
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


def _batches(
    sizes_ND: SizeArray,
    config: BatchingConfig,
    *,
    seed: int,
    epoch: int,
    shapes: Sequence[Shape],
    among: IndexArray | None,
) -> tuple[list[IndexArray], Sequence[Shape]]:
    """The training batches of an epoch, `among` these examples, and the static shape of each if there are `shapes`."""
    if not shapes:
        return epoch_batches(sizes_ND, config, seed=seed, epoch=epoch, among=among), ()
    return static_batches(sizes_ND, _usable(sizes_ND, config, among), shapes, _random(seed, epoch))


def _usable(sizes_ND: SizeArray, config: BatchingConfig, among: IndexArray | None) -> IndexArray:
    """The examples to train on, `among` these. Raises UserError if there are examples, but none is usable."""
    kept_N, too_long = usable(sizes_ND, config)
    if len(kept_N) == 0 and len(too_long) > 0:
        limits = {"max_tokens": config.max_tokens, "max_length": config.max_length}
        named = " and ".join(f"batch.{key}={limit}" for key, limit in limits.items() if limit is not None)
        raise UserError(
            f"No training example fits {named}.",
            f"The shortest has {how_many(int(_longest_side(sizes_ND).min()), 'token')}: allow at least that many.",
        )
    return kept_N if among is None else np.intersect1d(kept_N, among, assume_unique=True)


def _random(seed: int, epoch: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))


def _pack(order: IndexArray, sizes_N: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    return pack(
        order,
        sizes_N,
        max_tokens=config.max_tokens,
        max_sentences=config.max_sentences,
        multiple=config.size_multiple,
    )


def _longest_side(sizes_ND: SizeArray) -> SizeArray:
    return sizes_ND if sizes_ND.ndim == 1 else sizes_ND.max(axis=1)


def _snake_order(sizes_ND: SizeArray, *, first_N: IndexArray) -> IndexArray:
    """A number per example that sorts by `first_N`, then by the last side, then by the side before it, and so on.

    Each key rises and falls in turn (boustrophedon), so that neighbours are alike across the borders of the key before
    it too: batches that straddle such a border are padded less.
    """
    key_N, base = first_N, int(sizes_ND.max(initial=0)) + 1
    sides = [sizes_ND] if sizes_ND.ndim == 1 else [sizes_ND[:, side] for side in reversed(range(sizes_ND.shape[1]))]
    for side_N in sides:
        key_N = key_N * base + np.where(key_N % 2 == 0, side_N, base - 1 - side_N)
    return key_N


def _check(config: BatchingConfig) -> None:
    if config.streams is not None and config.max_length is not None:
        raise UserError(
            "batch.streams reads every sample, but batch.max_length skips some.", "Set one of them to null."
        )
    if config.max_tokens is None and config.max_sentences is None and config.streams is None:
        raise UserError(
            "batch.max_tokens and batch.max_sentences are both null: a batch needs a limit.", "Set one of them."
        )
