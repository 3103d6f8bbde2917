"""Attention within a window of positions: softmax(q_t · k_s / √E) v_s over the s near t, in O(T · window).

A window is a number of blocks around the query's own block, cut to a largest distance (Beltagy et al. 2020, arXiv
2004.05150, section 3.1; Parmar et al. 2018, arXiv 1802.05751, section 3.3). All queries may also see the `first`
positions.

Where it runs: in blocks on every device. `attend` (the fused kernel) computes each block of queries over the keys that
it reaches. Blocks with windows of equal size form one batch. Blocks near an end of the input are computed one at a
time, so keys are never padded. The naive form is dot-product attention with a T × T mask.

B batch, T length, S keys, D width of some heads side by side, E width of a head, N blocks of C positions, K keys that a
block sees, F first positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.dot_product import attend
from seqtk.ops.dot_product import naive as naive_attend
from seqtk.ops.tensors import join_heads, split_heads


@dataclass(frozen=True)
class BlockRange:
    """Adjacent blocks whose windows have the same size and do not exceed the input."""

    start: int  # start of the first block
    end: int  # end of the last block
    block: int
    back: int = 0  # positions that a block reaches before its start
    ahead: int = 0

    def queries_of(self, x_BTD: Tensor) -> Tensor:
        """Returns a view x_BNCD of the positions of each block."""
        return x_BTD[:, self.start : self.end].unflatten(1, (-1, self.block))  # type: ignore[no-any-return, no-untyped-call]

    def keys_of(self, x_BT: Tensor) -> Tensor:
        """Returns a view x_BNK of the positions that each block reaches. Dimensions after T are kept."""
        reached_BT = x_BT[:, self.start - self.back : self.end + self.ahead]
        return reached_BT.unfold(1, self.back + self.block + self.ahead, self.block).movedim(-1, 2)


@dataclass(frozen=True)
class WindowSpec:
    """The window of a query: the number of blocks around its own block, and the largest distance to a key."""

    block: int
    before: int  # blocks
    after: int  # blocks
    farthest_back: int | None = None  # the largest t - s; None: no limit within these blocks
    farthest_ahead: int | None = None  # the largest s - t

    def sees(self, query_T1: Tensor, key_S: Tensor) -> Tensor:
        """Returns seen_TS, True where a query at position t sees a key at position s."""
        blocks_back_TS = query_T1 // self.block - key_S // self.block
        seen_TS = (blocks_back_TS <= self.before) & (blocks_back_TS >= -self.after)
        if self.farthest_back is not None:
            seen_TS &= query_T1 - key_S <= self.farthest_back
        if self.farthest_ahead is not None:
            seen_TS &= key_S - query_T1 <= self.farthest_ahead
        return seen_TS

    def runs(self, length: int, *, first: int = 0) -> Iterator[BlockRange]:
        """Yields ranges that cover all positions: single blocks near the start and the end, equal blocks between.

        A block is near the start if its window would reach beyond it or into the `first` positions.
        """
        back, ahead = self.before * self.block, self.after * self.block
        start = back + -(-first // self.block) * self.block
        end = start + (length - ahead - start) // self.block * self.block
        if end <= start:
            yield BlockRange(0, length, length)
            return
        if start:
            yield BlockRange(0, start, start, ahead=ahead)
        yield BlockRange(start, end, self.block, back, ahead)
        if end < length:
            yield BlockRange(end, length, length - end, back)


@dataclass(frozen=True)
class WindowMask:
    """The mask of the keys that each query sees: the keys of its window and the `first` positions, without padding."""

    window: WindowSpec
    x_BTD: Tensor
    """The input, from which the mask takes its length, device and dtype."""
    pad_BT: Tensor | None = None
    first: int = 0

    @property
    def dense(self) -> Tensor:
        """The whole mask, BTT or 1TT, True where a query sees a key."""
        position_T = torch.arange(self.x_BTD.shape[1], device=self.x_BTD.device)
        seen_1TS = (self.window.sees(position_T[:, None], position_T) | (position_T < self.first))[None]
        return seen_1TS if self.pad_BT is None else seen_1TS & ~self.pad_BT[:, None]

    @property
    def ranges(self) -> list[tuple[BlockRange, Tensor]]:
        """A list of pairs (range of blocks, mask of their keys). The last F keys are the `first` positions.

        The mask is seen_BNCK, True where a query sees a key. Without padding it is bias_11CK, 0 or -inf, which the
        kernel need not convert.
        """
        return [(blocks, self._of(blocks)) for blocks in self.window.runs(self.x_BTD.shape[1], first=self.first)]

    def _of(self, blocks: BlockRange) -> Tensor:
        query_C1 = torch.arange(blocks.block, device=self.x_BTD.device)[:, None] + blocks.back
        key_K = torch.arange(blocks.back + blocks.block + blocks.ahead, device=self.x_BTD.device)
        seen_CK = self.window.sees(query_C1, key_K) & (key_K >= self.first + blocks.back - blocks.start)
        seen_BNCK = seen_CK[None, None]
        if self.pad_BT is not None:
            seen_BNCK = seen_BNCK & ~blocks.keys_of(self.pad_BT)[:, :, None]
        if self.first:
            first_BF = torch.zeros_like(self.x_BTD[:1, : self.first, 0], dtype=torch.bool)
            first_BF = first_BF if self.pad_BT is None else self.pad_BT[:, : self.first]
            first_BNCF = ~first_BF[:, None, None].expand(*seen_BNCK.shape[:3], -1)
            seen_BNCK = torch.cat([seen_BNCK, first_BNCF], dim=3)
        if self.pad_BT is None:
            return torch.zeros_like(seen_BNCK, dtype=self.x_BTD.dtype).masked_fill(~seen_BNCK, -torch.inf)
        return seen_BNCK


def naive(
    query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, mask: WindowMask, *, head_dim: int, dropout: float = 0.0
) -> Tensor:
    """Computes the attention of all queries with one T × T mask."""
    query_BHTE, key_BHTE, value_BHTE = (split_heads(x, head_dim) for x in (query_BTD, key_BTD, value_BTD))
    return join_heads(naive_attend(query_BHTE, key_BHTE, value_BHTE, bias=mask.dense[:, None], dropout=dropout))


def window_attention(
    query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, mask: WindowMask, *, head_dim: int, dropout: float = 0.0
) -> Tensor:
    """Returns y_BTD, the attention of each query to the keys that `mask` allows. D may cover some heads only."""
    if naive_mode():
        return naive(query_BTD, key_BTD, value_BTD, mask, head_dim=head_dim, dropout=dropout)
    first = mask.first

    def keys(blocks: BlockRange, x_BTD: Tensor) -> Tensor:
        reached_BNKD = blocks.keys_of(x_BTD)
        if not first:
            return reached_BNKD
        return torch.cat([reached_BNKD, x_BTD[:, None, :first].expand(-1, reached_BNKD.shape[1], -1, -1)], dim=2)

    parts = [
        attend_in_blocks(
            blocks.queries_of(query_BTD), keys(blocks, key_BTD), keys(blocks, value_BTD),
            seen_BNCK=seen_BNCK, head_dim=head_dim, dropout=dropout,
        )
        for blocks, seen_BNCK in mask.ranges
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def attend_in_blocks(
    query_BNCD: Tensor,
    key_BNKD: Tensor,
    value_BNKD: Tensor,
    *,
    seen_BNCK: Tensor,
    head_dim: int,
    dropout: float = 0.0,
) -> Tensor:
    """Returns y_BTD, T = N C, the attention within each block. The mask may be seen_11CK, the same for all blocks."""
    query_MHCE, key_MHKE, value_MHKE = (
        split_heads(x.flatten(0, 1), head_dim) for x in (query_BNCD, key_BNKD, value_BNKD)
    )
    y_MHCE = attend(query_MHCE, key_MHKE, value_MHKE, bias=seen_BNCK.flatten(0, 1)[:, None], dropout=dropout)
    return join_heads(y_MHCE).view(len(query_BNCD), -1, query_BNCD.shape[3])
