"""What layers share that see a pattern of positions: rows that start at 0, blocks of positions, blocks' neighbours.

B batch, T length, D width of the layer, E width of a head, N blocks of C positions, K keys that a block sees.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.attention.base import HeadedAttention
from seqtk.attention.parts.blocks import in_blocks, with_neighbours
from seqtk.attention.parts.by_heads import OfHeads, Projected, by_heads
from seqtk.attention.parts.dot_product import attend
from seqtk.attention.parts.rows import align


class PatternAttention(HeadedAttention):
    """Self-attention that counts positions, blocks and windows from each row's own first real position."""

    out: nn.Linear

    def mix(self, x_BTD: Tensor, absent_BT: Tensor) -> Tensor:
        """What `out` projects, of rows whose real positions come first; anything finite where `absent_BT` is True."""
        raise NotImplementedError

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        self.check_length(x_BTD.shape[1])
        rows = align(x_BTD, pad_BS, right_padded=positions_BT is None)
        if rows.pad_BT is None:
            return self.out(self.mix(x_BTD, torch.zeros_like(x_BTD[..., 0], dtype=torch.bool)))  # type: ignore[no-any-return]
        y_BTD = self.mix(rows.x_BTD, rows.pad_BT).masked_fill(rows.pad_BT[..., None], 0)
        return self.out(rows.restore(y_BTD))  # type: ignore[no-any-return]

    def some_heads_at_a_time(self, function: OfHeads, *sources: Tensor | Projected) -> Tensor:
        """y_BTD, as `by_heads`."""
        return by_heads(function, *sources, heads=self.heads, is_random=self.active_dropout > 0)

    @property
    def active_dropout(self) -> float:
        return float(self.config.dropout) if self.training else 0.0

    def attend_in_blocks(
        self, query_BNCD: Tensor, key_BNKD: Tensor, value_BNKD: Tensor, *, seen_BNCK: Tensor
    ) -> Tensor:
        """y_BTD, T = N C: each block's queries over the keys of that block. `seen_BNCK` may be 1 in any dimension."""
        query_MHCE, key_MHKE, value_MHKE = (self.split(x.flatten(0, 1)) for x in (query_BNCD, key_BNKD, value_BNKD))
        seen_MCK = seen_BNCK.expand(*query_BNCD.shape[:2], *seen_BNCK.shape[2:]).flatten(0, 1)
        y_MHCE = attend(query_MHCE, key_MHKE, value_MHKE, bias=seen_MCK[:, None], dropout=self.active_dropout)
        return self.join(y_MHCE).view(len(query_BNCD), -1, query_BNCD.shape[3])


@dataclass(frozen=True)
class Span:
    """The blocks around each block that its queries look into, and how far apart query and key may be."""

    block: int
    before: int
    after: int
    farthest_back: int | None = None  # t - s at most; None: whatever is in these blocks
    farthest_ahead: int | None = None  # s - t at most

    def within(self, length: int) -> "Span":
        """The same positions seen, in one block where the whole input fits in one."""
        if length > self.block:
            return self
        return Span(length, 0, 0, self.farthest_back, self.farthest_ahead)

    def keys_of(self, x_BTD: Tensor) -> Tensor:
        """x_BNKD: what each block looks into."""
        return with_neighbours(in_blocks(x_BTD, self.block), before=self.before, after=self.after)

    def seen(self, absent_BT: Tensor) -> Tensor:
        """seen_BNCK, or BN1K if all queries of a block see the same: True for keys that exist and are not too far."""
        absent_BNC = in_blocks(absent_BT, self.block, fill=True)
        absent_BNK = with_neighbours(absent_BNC, before=self.before, after=self.after, fill=True)
        query_C1 = torch.arange(self.block, device=absent_BT.device)[:, None] + self.before * self.block
        distance_CK = query_C1 - torch.arange(absent_BNK.shape[2], device=absent_BT.device)
        seen_BNCK = ~absent_BNK[:, :, None]
        if self.farthest_back is not None:
            seen_BNCK = seen_BNCK & (distance_CK <= self.farthest_back)
        if self.farthest_ahead is not None:
            seen_BNCK = seen_BNCK & (distance_CK >= -self.farthest_ahead)
        return seen_BNCK
