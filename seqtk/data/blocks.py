"""Splits concatenated items into blocks, the samples of a language model, and collates blocks into batches.

The break modes are the values of fairseq's `sample_break_mode`. The blocks depend only on the lengths of the items.
N items, K blocks, B batch, T length.
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
"""The length of an item that separates two documents: an empty line, which consists of its end-of-line token."""


def block_bounds(sizes_N: npt.NDArray[Any], *, break_mode: BreakMode, tokens_per_sample: int) -> Bounds:
    """Returns bounds_K2, the start and the end of each block in the stream of concatenated items.

    - `none`: Blocks of `tokens_per_sample` tokens. The last block may be shorter.
    - `eos`: One item per block, of any length.
    - `complete`: As many whole items per block as fit in `tokens_per_sample`. A longer item is a separate block.
    - `complete_doc`: Like `complete`, but blocks end at items of length 1, which separate documents and are skipped.
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
    number_N = np.arange(len(sizes_N))
    following_N = np.searchsorted(ends_N, starts_N + tokens_per_sample, side="right")  # the first excluded item
    if break_mode == "complete_doc":
        separators = np.flatnonzero(sizes_N == SEPARATOR_LENGTH)
        document_ends = np.append(separators, len(sizes_N))
        following_N = np.minimum(following_N, document_ends[np.searchsorted(document_ends, number_N)])
    following_N = np.maximum(following_N, number_N + 1)
    first_K = _first_items(following_N)
    if break_mode == "complete_doc":
        first_K = first_K[sizes_N[first_K] != SEPARATOR_LENGTH]
    return np.stack([starts_N[first_K], ends_N[following_N[first_K] - 1]], axis=1)


def _first_items(following_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Returns the first item of each block. `following_N[i]` is the item after a block that starts at item i."""
    following, firsts, item = following_N.tolist(), [], 0
    while item < len(following):
        firsts.append(item)
        item = following[item]
    return np.array(firsts, dtype=np.int64)


class TokenBlocks:
    """The blocks of one split. Block i is `(i, ids)`: one id of context, then the ids to predict.

    With `break_mode="none"`, the context is the preceding id of the stream (EOS for the first block). In the other
    modes, it is EOS, even if items do not end in EOS. `sizes_ND` counts the targets.
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
        continues = self.break_mode == "none" and start > 0
        ids = self.items.stream(start - continues, end)
        return index, ids if continues else np.concatenate([[EOS], ids])


class ContextBlocks:
    """Blocks that begin with context. Block i is `(i, ids, known)`: the first `known` ids are context.

    The targets are the same as for `TokenBlocks` with `tokens_per_sample - context_window` tokens per block. Each block
    also reads up to `context_window` preceding ids of the stream, but at most `tokens_per_sample` ids in all. With
    `complete_doc` the context does not extend into the previous document. EOS precedes the stream and, with
    `complete_doc`, each document. `sizes_ND` counts the ids that are read.

    (fairseq's LMContextWindowDataset does the same, but its context extends into the previous document.)
    """

    def __init__(self, items: Items, *, break_mode: BreakMode, tokens_per_sample: int, context_window: int = 0) -> None:
        if not 0 <= context_window < max(tokens_per_sample, 1):
            raise UserError(
                f"context_window={context_window} does not fit in tokens_per_sample={tokens_per_sample}.",
                "Set context_window to at least 0 and less than tokens_per_sample.",
            )
        self.without_context = TokenBlocks(
            items, break_mode=break_mode, tokens_per_sample=tokens_per_sample - context_window
        )
        self.items, self.bounds_K2 = items, self.without_context.bounds_K2
        starts_K, ends_K = self.bounds_K2[:, 0], self.bounds_K2[:, 1]
        context_K = np.clip(tokens_per_sample - (ends_K - starts_K), 0, context_window)
        limit_K = _document_starts(items.sizes, starts_K) if break_mode == "complete_doc" else np.zeros_like(starts_K)
        # The id before the first target is always read. The position before the limit represents EOS.
        self._first_K = np.maximum(starts_K - context_K - 1, limit_K - 1)
        self._after_eos_K = self._first_K < limit_K
        self._no_context_K = context_K == 0
        sizes_K = np.where(self._no_context_K, ends_K - starts_K, ends_K - self._first_K - 1)
        self.sizes_ND = sizes_K[:, None].astype(np.int32)
        self.truncated = 0

    def __len__(self) -> int:
        return len(self.bounds_K2)

    def __getitem__(self, index: int) -> tuple[int, npt.NDArray[np.int64], int]:
        if self._no_context_K[index]:
            return *self.without_context[index], 1
        (start, end), first = self.bounds_K2[index].tolist(), int(self._first_K[index])
        ids = self.items.stream(first + 1, end) if self._after_eos_K[index] else self.items.stream(first, end)
        return index, np.concatenate([[EOS], ids]) if self._after_eos_K[index] else ids, start - first


def _document_starts(sizes_N: npt.NDArray[Any], starts_K: Bounds) -> Bounds:
    """Returns, for each position in `starts_K`, the start of its document: the end of the last separator before it."""
    ends_N = np.cumsum(sizes_N, dtype=np.int64)
    separator_ends = np.concatenate([[0], ends_N[sizes_N == SEPARATOR_LENGTH]])
    return separator_ends[np.searchsorted(separator_ends, starts_K, side="right") - 1]


def collate_blocks(examples: Sequence[tuple[int, np.ndarray]]) -> LanguageBatch:
    """Collates examples `(index, ids)`. The first id is context, the others are targets."""
    return collate_windows([(index, ids, 1) for index, ids in examples])


def collate_windows(examples: Sequence[tuple[int, np.ndarray, int]]) -> LanguageBatch:
    """Collates examples `(index, ids, known)`. The first `known` ids are context, the others are targets."""
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
    """Returns a batch of prompts, which has no targets."""
    ids_B = torch.arange(len(previous_BT), device=previous_BT.device)
    return LanguageBatch(ids_B, weight=0, previous_BT=previous_BT, target_BT=torch.full_like(previous_BT, PAD))
