"""Batches under a budget of tokens: which examples go together, as index arrays; pure functions of the lengths.

A batch is charged (number of examples) × (longest source or target in it), so that padding is paid for. Nothing here
reads an example. N examples, D sides an example has (source and target, or one).
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError, how_many

IndexArray: TypeAlias = npt.NDArray[np.int64]
SizeArray: TypeAlias = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class BatchingConfig:
    """The budget of one batch, on one device, and how training examples of like length are brought together."""

    max_tokens: int | None = 4096  # examples × longest source or target in the batch, padding counted; null: no limit
    max_sentences: int | None = None  # examples in a batch; null: no limit
    size_multiple: int = 1  # batches of at least so many examples hold a multiple of it, where possible
    max_length: int | None = None  # longer examples (source or target, eos counted) are left out of training
    bucket: int = 1000  # training: so many batches' worth of shuffled examples are sorted by length together
    streams: int | None = None  # samples in an update on all devices, each going on where its row ended; null: shuffled


def usable(sizes_ND: SizeArray, config: BatchingConfig) -> tuple[IndexArray, IndexArray]:
    """The examples that can be trained on, and those too long for it: over `max_length`, or alone over `max_tokens`.

    Streams have no gaps: nothing is too long for them.
    """
    _check(config)
    limits = [limit for limit in (config.max_length, config.max_tokens) if limit is not None]
    if config.streams is not None or not limits:
        return np.arange(len(sizes_ND)), np.empty(0, dtype=np.int64)
    fits_N = _charged(sizes_ND) <= min(limits)
    return np.flatnonzero(fits_N), np.flatnonzero(~fits_N)


def epoch_batches(sizes_ND: SizeArray, config: BatchingConfig, *, seed: int, epoch: int) -> list[IndexArray]:
    """The training batches of an epoch, in their order: every usable example exactly once, new batches each epoch.

    The examples are permuted by (seed, epoch) and cut into windows of about `bucket` batches; each window is sorted by
    length, the target's and then the source's; the whole is packed, and the order of the batches is shuffled. A larger
    `bucket` pads less and mixes less.

    The random stream is one that numpy has frozen, so a run resumed under another version of it sees the same batches.
    """
    indices_N, too_long = usable(sizes_ND, config)
    if len(indices_N) == 0 and len(too_long) > 0:
        limits = {"max_tokens": config.max_tokens, "max_length": config.max_length}
        named = " and ".join(f"batch.{key}={limit}" for key, limit in limits.items() if limit is not None)
        raise UserError(
            f"None of {how_many(len(too_long), 'training example')} fits {named}.",
            f"The shortest has length {_charged(sizes_ND).min()}; allow at least so much.",
        )
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
    order_N: IndexArray = indices_N[random.permutation(len(indices_N))]
    charged_N = _charged(sizes_ND)
    share_N = np.zeros(len(order_N))  # of a batch that this example fills
    if config.max_tokens is not None:
        share_N = charged_N[order_N] / config.max_tokens
    if config.max_sentences is not None:
        share_N = np.maximum(share_N, 1 / config.max_sentences)
    window_N = (np.cumsum(share_N) / config.bucket).astype(np.int64)
    key_N = _back_and_forth(sizes_ND[order_N], first_N=window_N)
    batches = _pack(order_N[np.argsort(key_N, kind="stable")], charged_N, config)
    return [batches[place] for place in random.permutation(len(batches))]


def ordered_batches(sizes_ND: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    """Batches for validation and decoding: every example exactly once, longest first, the same whenever called.

    An example over the budget is alone in its batch. The longest come first, so that a lack of memory shows at once.
    """
    _check(config)
    first_N = np.zeros(len(sizes_ND), dtype=np.int64)
    return _pack(np.argsort(-_back_and_forth(sizes_ND, first_N=first_N), kind="stable"), _charged(sizes_ND), config)


def pack(
    order: IndexArray,
    sizes_N: SizeArray,
    *,
    max_tokens: int | None,
    max_sentences: int | None = None,
    multiple: int = 1,
) -> list[IndexArray]:
    """`order` cut into consecutive batches, each as long as the budget allows; `sizes_N[i]` is the length of example i.

    With `multiple` > 1 a batch ends after a multiple of it (or after fewer examples than it), and what lies between
    that end and the first example that did not fit starts the next batch; if that alone is over the budget, it is a
    batch. These are the cuts of fairseq's batch_by_size, which then drops its last batch if that is no multiple: here
    it stays. An example over the budget is a batch of its own.
    """
    lengths = np.maximum(sizes_N[order], 1).astype(np.int64)
    most = min(len(order), max_sentences or len(order))
    counts = np.arange(1, most + 1)
    batches = []
    start = carried = 0  # the batch starts at `start`; up to `carried` it came whole from the batch before
    while start < len(order):
        room = most if max_tokens is None else min(most, max(1, max_tokens // int(lengths[start])))
        stop = start + room
        if max_tokens is not None:
            tokens = np.maximum.accumulate(lengths[start:stop])
            tokens *= counts[: len(tokens)]
            stop = start + max(1, int(tokens.searchsorted(max_tokens, side="right")))
        stop = min(stop, len(order))
        fitting = stop - start
        end = stop if fitting < multiple else max(stop - fitting % multiple, carried)
        batches.append(order[start:end])
        rest_fits = max_tokens is None or (stop + 1 - end) * int(lengths[end : stop + 1].max(initial=0)) <= max_tokens
        if end < stop and (stop == len(order) or not rest_fits):
            batches.append(order[end:stop])
            end = stop
        start, carried = end, stop + 1
    return batches


def _pack(order: IndexArray, sizes_N: SizeArray, config: BatchingConfig) -> list[IndexArray]:
    return pack(
        order,
        sizes_N,
        max_tokens=config.max_tokens,
        max_sentences=config.max_sentences,
        multiple=config.size_multiple,
    )


def _charged(sizes_ND: SizeArray) -> SizeArray:
    return sizes_ND if sizes_ND.ndim == 1 else sizes_ND.max(axis=1)


def _back_and_forth(sizes_ND: SizeArray, *, first_N: IndexArray) -> IndexArray:
    """A number per example that sorts by `first_N`, then by the last side, then by the one before it, and so on.

    Each of them rises and falls in turn with every step of what stands before it, as an ox ploughs, so that neighbours
    are alike across such a step too: batches that straddle one are padded less.
    """
    key_N, base = first_N, int(sizes_ND.max(initial=0)) + 1
    sides = [sizes_ND] if sizes_ND.ndim == 1 else [sizes_ND[:, side] for side in reversed(range(sizes_ND.shape[1]))]
    for side_N in sides:
        key_N = key_N * base + np.where(key_N % 2 == 0, side_N, base - 1 - side_N)
    return key_N


def _check(config: BatchingConfig) -> None:
    if config.streams is not None and config.max_length is not None:
        raise UserError(
            "batch.streams reads every sample, and batch.max_length leaves some out.", "Set one of them to null."
        )
    if config.max_tokens is None and config.max_sentences is None and config.streams is None:
        raise UserError("max_tokens and max_sentences are both null: a batch needs one limit at least.")
    for name in ("max_tokens", "max_sentences", "size_multiple", "max_length", "bucket", "streams"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
