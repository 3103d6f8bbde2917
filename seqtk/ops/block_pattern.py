"""What layers share that see a pattern of positions: rows that start at 0, blocks of positions, blocks' neighbours.

B batch, T length, D width of the layer, E width of a head, N blocks of C positions, K keys that a block sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.attention.base import State
from seqtk.attention.qkv import HeadedAttention
from seqtk.ops.dot_product import attend
from seqtk.ops.head_checkpoint import OfHeads, Projected, by_heads


class PatternAttention(HeadedAttention):
    """Self-attention in blocks and windows of positions."""

    out: nn.Linear

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        """What `out` projects, anything finite where `pad_BT` is True."""
        raise NotImplementedError

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        self.check_length(x_BTD.shape[1])
        y_BTD = self.mix(x_BTD, pad_BS)
        if pad_BS is not None:
            y_BTD = y_BTD.masked_fill(pad_BS[..., None], 0)
        return self.out(y_BTD), None

    def some_heads_at_a_time(self, function: OfHeads, *sources: Tensor | Projected) -> Tensor:
        """y_BTD, as `by_heads`."""
        return by_heads(function, *sources, heads=self.heads, is_random=self.active_dropout > 0)

    @property
    def active_dropout(self) -> float:
        return float(self.config.dropout) if self.training else 0.0

    def attend_in_blocks(
        self, query_BNCD: Tensor, key_BNKD: Tensor, value_BNKD: Tensor, *, seen_BNCK: Tensor
    ) -> Tensor:
        """y_BTD, T = N C: each block's queries over the keys of that block. `seen_11CK`, if all blocks see the same."""
        query_MHCE, key_MHKE, value_MHKE = (self.split(x.flatten(0, 1)) for x in (query_BNCD, key_BNKD, value_BNKD))
        seen_M1CK = seen_BNCK.flatten(0, 1)[:, None]
        y_MHCE = attend(query_MHCE, key_MHKE, value_MHKE, bias=seen_M1CK, dropout=self.active_dropout)
        return self.join(y_MHCE).view(len(query_BNCD), -1, query_BNCD.shape[3])


def absent(x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
    """absent_BT: the padding, also where there is none."""
    return torch.zeros_like(x_BTD[..., 0], dtype=torch.bool) if pad_BT is None else pad_BT


@dataclass(frozen=True)
class Run:
    """Blocks side by side, each of which looks equally far back and ahead and never over an end of the input."""

    start: int  # of the first block
    end: int  # of the last
    block: int
    back: int = 0  # positions before each block that are looked into
    ahead: int = 0

    def queries_of(self, x_BTD: Tensor) -> Tensor:
        """x_BNCD: what is in each block."""
        return x_BTD[:, self.start : self.end].unflatten(1, (-1, self.block))  # type: ignore[no-any-return, no-untyped-call]

    def keys_of(self, x_BT: Tensor) -> Tensor:
        """x_BNK (and any dimensions after T): what each block looks into, a view."""
        reached_BT = x_BT[:, self.start - self.back : self.end + self.ahead]
        return reached_BT.unfold(1, self.back + self.block + self.ahead, self.block).movedim(-1, 2)


@dataclass(frozen=True)
class Span:
    """The blocks around each block that its queries look into, and how far apart query and key may be."""

    block: int
    before: int
    after: int
    farthest_back: int | None = None  # t - s at most; None: whatever is in these blocks
    farthest_ahead: int | None = None  # s - t at most

    def runs(self, length: int, *, first: int = 0) -> Iterator[Run]:
        """All positions: those near the start or the end in one block each, so that all blocks between see the same.

        Near the start are those that would look over it, or at one of the `first` positions.
        """
        back, ahead = self.before * self.block, self.after * self.block
        start = back + -(-first // self.block) * self.block
        end = start + (length - ahead - start) // self.block * self.block
        if end <= start:
            yield Run(0, length, length)
            return
        if start:
            yield Run(0, start, start, ahead=ahead)
        yield Run(start, end, self.block, back, ahead)
        if end < length:
            yield Run(end, length, length - end, back)

    def seen(self, run: Run, *, pad_BT: Tensor | None, device: torch.device, first: int = 0) -> Tensor:
        """seen_BNCK, or seen_11CK without padding: True for keys that exist, are not too far and not of the `first`."""
        query_C1 = torch.arange(run.block, device=device)[:, None] + run.back
        key_K = torch.arange(run.back + run.block + run.ahead, device=device)
        blocks_back_CK = query_C1 // self.block - key_K // self.block
        seen_CK = (blocks_back_CK <= self.before) & (blocks_back_CK >= -self.after)
        seen_CK &= key_K >= first + run.back - run.start
        if self.farthest_back is not None:
            seen_CK &= query_C1 - key_K <= self.farthest_back
        if self.farthest_ahead is not None:
            seen_CK &= key_K - query_C1 <= self.farthest_ahead
        return seen_CK[None, None] if pad_BT is None else seen_CK & ~run.keys_of(pad_BT)[:, :, None]
