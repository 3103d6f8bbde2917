"""Token blocks: the samples of a language model, cut from the concatenated items of a split, and their batches.

This is fairseq's `sample_break_mode`. Blocks depend on lengths only. N items, K blocks, B batch, T length.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, pad_rows
from seqtk.data.sources.base import Items
from seqtk.data.vocabulary import EOS, PAD
from seqtk.utils.errors import UserError

BreakMode = Literal["none", "complete", "complete_doc", "eos"]

Bounds = npt.NDArray[np.int64]

SEPARATOR_LENGTH = 1
"""The length of an item (an empty line with its end) that separates two documents."""


def block_bounds(sizes_N: npt.NDArray[Any], *, break_mode: BreakMode, tokens_per_sample: int) -> Bounds:
    """bounds_K2: where each block starts and ends in the stream of items of these sizes.

    - `none`: pieces of `tokens_per_sample`, the last one shorter;
    - `eos`: each item, however long;
    - `complete`: as many whole items as fit in `tokens_per_sample`; an item that does not fit gets a separate block;
    - `complete_doc`: the same, but a block ends before an item of length 1, which is in no block.
    """
    if tokens_per_sample < 1:
        raise UserError(f"task.tokens_per_sample={tokens_per_sample} must be at least 1.")
    if break_mode == "none":
        total = int(sizes_N.sum(dtype=np.int64))
        starts_K = np.arange(0, total, tokens_per_sample, dtype=np.int64)
        return np.stack([starts_K, np.minimum(starts_K + tokens_per_sample, total)], axis=1)
    sizes_N = sizes_N[sizes_N > 0]
    ends_N = np.cumsum(sizes_N, dtype=np.int64)
    starts_N = ends_N - sizes_N
    if break_mode == "eos":
        return np.stack([starts_N, ends_N], axis=1)
    item_N = np.arange(len(sizes_N))
    following_N = np.searchsorted(ends_N, starts_N + tokens_per_sample, side="right")  # the first excluded item
    if break_mode == "complete_doc":
        separators = np.flatnonzero(sizes_N == SEPARATOR_LENGTH)
        places = np.append(separators, len(sizes_N))
        following_N = np.minimum(following_N, places[np.searchsorted(places, item_N)])
    following_N = np.maximum(following_N, item_N + 1)
    first_K = _chain(following_N)
    if break_mode == "complete_doc":
        first_K = first_K[sizes_N[first_K] != SEPARATOR_LENGTH]
    return np.stack([starts_N[first_K], ends_N[following_N[first_K] - 1]], axis=1)


def _chain(following_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Returns 0, following[0], following[following[0]], … up to the end, one entry for each block."""
    following, found, place = following_N.tolist(), [], 0
    while place < len(following):
        found.append(place)
        place = following[place]
    return np.array(found, dtype=np.int64)


class TokenBlocks:
    """The blocks of one split as `(index, ids)`, memory-mapped: one id of context, then those to predict.

    The id before a block's first target is the one that precedes it in the stream, EOS at the start of the stream, and
    EOS for blocks that begin with an item, whether or not items end in it. `sizes_ND` counts the targets.
    """

    def __init__(self, items: Items, *, break_mode: BreakMode = "none", tokens_per_sample: int = 512) -> None:
        self.items, self.break_mode = items, break_mode
        sizes_N = items.sizes if break_mode != "none" else np.array([items.total], dtype=np.int64)
        self.bounds_K2 = block_bounds(sizes_N, break_mode=break_mode, tokens_per_sample=tokens_per_sample)
        self.sizes_ND = (self.bounds_K2[:, 1:] - self.bounds_K2[:, :1]).astype(np.int32)
        self.truncated = 0

    def __len__(self) -> int:
        return len(self.bounds_K2)

    def __getitem__(self, index: int) -> tuple[int, npt.NDArray[np.int64]]:
        start, end = self.bounds_K2[index].tolist()
        goes_on = self.break_mode == "none" and start > 0
        ids = self.items.stream(start - goes_on, end)
        return index, ids if goes_on else np.concatenate([[EOS], ids])


class ContextBlocks:
    """Blocks with context, as `(index, ids, known)`: the first `known` ids are context.

    A block reads up to `context_window` ids of the stream more than it would alone, as long as it fits with them in
    `tokens_per_sample`; so blocks are cut for that many fewer. What precedes the stream or, with
    `complete_doc`, the document is EOS. With a window of 0 these are the blocks alone. `sizes_ND` counts the ids
    read. (fairseq's LMContextWindowDataset is the same but for documents, which see each other there.)
    """

    def __init__(self, items: Items, *, break_mode: BreakMode, tokens_per_sample: int, context_window: int = 0) -> None:
        if not 0 <= context_window < max(tokens_per_sample, 1):
            raise UserError(
                f"context_window={context_window} does not fit in tokens_per_sample={tokens_per_sample}.",
                "Set context_window to at least 0 and less than tokens_per_sample.",
            )
        self.alone = TokenBlocks(items, break_mode=break_mode, tokens_per_sample=tokens_per_sample - context_window)
        self.items, self.bounds_K2 = items, self.alone.bounds_K2
        starts_K, ends_K = self.bounds_K2[:, 0], self.bounds_K2[:, 1]
        context_K = np.clip(tokens_per_sample - (ends_K - starts_K), 0, context_window)
        floor_K = _document_starts(items.sizes, starts_K) if break_mode == "complete_doc" else np.zeros_like(starts_K)
        # The id before the first target is read in any case; one place before the floor stands for EOS.
        self._first_K = np.maximum(starts_K - context_K - 1, floor_K - 1)
        self._after_eos_K = self._first_K < floor_K
        self._alone_K = context_K == 0
        self.sizes_ND = np.where(self._alone_K, ends_K - starts_K, ends_K - self._first_K - 1)[:, None].astype(np.int32)
        self.truncated = 0

    def __len__(self) -> int:
        return len(self.bounds_K2)

    def __getitem__(self, index: int) -> tuple[int, npt.NDArray[np.int64], int]:
        if self._alone_K[index]:
            return *self.alone[index], 1
        (start, end), first = self.bounds_K2[index].tolist(), int(self._first_K[index])
        ids = self.items.stream(first + 1, end) if self._after_eos_K[index] else self.items.stream(first, end)
        return index, np.concatenate([[EOS], ids]) if self._after_eos_K[index] else ids, start - first


def _document_starts(sizes_N: npt.NDArray[Any], starts_K: Bounds) -> Bounds:
    """The start of the document of each place in the stream: after the last separator before it."""
    ends_N = np.cumsum(sizes_N, dtype=np.int64)
    separator_ends = np.concatenate([[0], ends_N[sizes_N == SEPARATOR_LENGTH]])
    return separator_ends[np.searchsorted(separator_ends, starts_K, side="right") - 1]


def collate_blocks(examples: Sequence[tuple[int, np.ndarray]]) -> LanguageBatch:
    """The batch of `(index, ids)`: the first id is context, all others are predicted."""
    return collate_windows([(index, ids, 1) for index, ids in examples])


def collate_windows(examples: Sequence[tuple[int, np.ndarray, int]]) -> LanguageBatch:
    """The batch of `(index, ids, known)`: the first `known` ids are context, all others are predicted."""
    indices, rows, known = zip(*examples, strict=True)
    target_BT = pad_rows([ids[1:] for ids in rows])
    context_B1 = torch.tensor(known)[:, None] - 1
    target_BT[torch.arange(target_BT.shape[1]) < context_B1] = PAD
    return LanguageBatch(
        ids_B=torch.tensor(indices),
        weight=sum(map(len, rows)) - sum(known),
        previous_BT=pad_rows([ids[:-1] for ids in rows]),
        target_BT=target_BT,
    )


def prompts(previous_BT: Tensor) -> LanguageBatch:
    """Rows of context only, with nothing to predict."""
    ids_B = torch.arange(len(previous_BT), device=previous_BT.device)
    return LanguageBatch(ids_B, weight=0, previous_BT=previous_BT, target_BT=torch.full_like(previous_BT, PAD))
