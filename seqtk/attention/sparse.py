"""Sparse Transformers: strided and fixed patterns (Child et al. 2019, arXiv 1904.10509, section 4.3).

Both patterns connect any two positions within two layers. No T × T tensor is created.

B batch, T length, S key length, D width of the layer, H heads, E width of a head, N blocks of C positions, L stride,
c summary positions of a block, K keys that a block sees. M = B L columns: each has every L-th position of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.qkv import QKVConfig
from seqtk.attention.windows import WindowAttention, sliding_window
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.block_pattern import WindowSpec, attend_in_blocks
from seqtk.ops.cache import append
from seqtk.ops.dot_product import attend, causal_mask
from seqtk.ops.tensors import in_blocks, padding_or_zeros, zero_padding
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class StridedSparseConfig(QKVConfig):
    """Half the heads see near keys, half see every stride-th key: 4 D² weights, O(T (stride + T / stride) D)."""

    stride: int = setting(
        32,
        at_least=1,
        help="Distance between two keys of a column. The square root of the usual length is a good value.",
    )


@attentions.register("strided_sparse", StridedSparseConfig)
class StridedSparseAttention(WindowAttention):
    """Attention in which half the heads see near keys, and half see a column: every L-th key, where L is `stride`.

    Column: (t - s) mod L = 0. Near, CAUSAL: 0 <= t - s < L. Each head has one of the two patterns (section 4.2, third
    way). The paper has no bidirectional form. In seqtk's bidirectional form, near keys have |t - s| <= L / 2 and a
    column is visible as a whole, so two layers still connect any two positions. Parameters: 4 D² (+ 4 D bias). O(T (L +
    T / L) D) time; O(T (L + T / L)) memory at most. A step costs O(L + t / L).
    """

    subquadratic = False

    def __init__(self, config: StridedSparseConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if self.heads < 2:
            raise UserError("attention.heads=1: strided_sparse requires two heads or more, one for each pattern.")
        self.window = sliding_window(config.stride, causal=role is Role.CAUSAL)
        self.near_heads = (self.heads + 1) // 2

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        # The number of the computed heads that see near keys.
        near = min(max(self.near_heads - (heads.start or 0), 0), query_BHTE.shape[1])
        parts = []
        if near:
            of_near = (x_BHTE[:, :near] for x_BHTE in (query_BHTE, key_BHSE, value_BHSE))
            parts.append(super().mix_heads(heads, *of_near, pad_BS=pad_BS))
        if near < query_BHTE.shape[1]:
            of_far = (x_BHTE[:, near:] for x_BHTE in (query_BHTE, key_BHSE, value_BHSE))
            parts.append(zero_padding(self._attend_in_columns(*of_far, pad_BS=pad_BS), pad_BS))
        return torch.cat(parts, dim=1)

    def _attend_in_columns(self, *heads_BHTE: Tensor, pad_BS: Tensor | None) -> Tensor:
        """Computes attention within each column. `heads_BHTE` are queries, keys and values. Returns y_BHTE."""
        length = heads_BHTE[0].shape[2]
        stride = min(self.config.stride, length)
        query, key, value = (self.split(_columns(self.join(x_BHTE), stride)) for x_BHTE in heads_BHTE)
        seen, causal = None, self.role is Role.CAUSAL
        if not causal:  # in a causal layer padding comes after every token
            seen = _columns(~padding_or_zeros(self.join(heads_BHTE[0]), pad_BS), stride)[:, None, None]
        y_MHNE = attend(query, key, value, bias=seen, causal=causal, dropout=self.active_dropout)
        return self.split(_rows(self.join(y_MHNE), stride)[:, :length])

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        state = cache.remember(state, key=key_BH1E, value=value_BH1E)
        near, stride, length = self.near_heads, self.config.stride, cache.length(state, "key")
        first_near, first = max(length - stride, 0), (length - 1) % stride
        near_BHSE = [cache.picked(state, name, first=first_near)[:, :near] for name in ("key", "value")]
        column_BHSE = [cache.picked(state, name, first=first, stride=stride)[:, near:] for name in ("key", "value")]
        y_BH1E = [attend(query_BH1E[:, :near], *near_BHSE), attend(query_BH1E[:, near:], *column_BHSE)]
        return torch.cat(y_BH1E, dim=1), state


def _columns(x_BT: Tensor, stride: int) -> Tensor:
    """Splits each row into L columns, x_MN. Element i of column j is position i L + j. Later dimensions are kept."""
    return in_blocks(x_BT, stride).transpose(1, 2).flatten(0, 1)


def _rows(x_MND: Tensor, stride: int) -> Tensor:
    """Converts columns to rows, x_BTD with T = N L: the inverse of `_columns`."""
    return x_MND.view(-1, stride, *x_MND.shape[1:]).transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True)
class FixedSparseConfig(QKVConfig):
    """Attention to a block and the last keys of other blocks: 4 D² weights, O(T (block + summary T / block) D)."""

    block: int = setting(32, at_least=1, help="Positions in a block.")
    summary: int = setting(4, at_least=1, help="Number of positions at the end of a block that other blocks see.")


@attentions.register("fixed_sparse", FixedSparseConfig)
class FixedSparseAttention(WindowAttention):
    """Attention to the query's block and to the last c = `summary` positions of other blocks.

    In the role CAUSAL, a position sees (1) the positions up to itself in its block of C = `block` positions, and (2)
    the last c positions of every earlier block, its summary. Each head has both patterns, the second way of the paper's
    section 4.2, since positions before the first summary would see nothing with pattern (2) alone. The paper has no
    bidirectional form. In seqtk's bidirectional form, a position sees its whole block and the summaries of all other
    blocks. Parameters: 4 D² (+ 4 D bias). O(T (C + c T / C) D) time, O((T +
    c (T / C)²) D) memory: the summaries are copied to each block. A step costs O(C + c t / C): the state holds the keys
    and values of the block and of the summaries.
    """

    subquadratic = False

    def __init__(self, config: FixedSparseConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.summary > config.block:
            raise UserError(
                f"attention.summary={config.summary}: must be at most attention.block={config.block}.",
                "Lower attention.summary or raise attention.block.",
            )
        self.window = WindowSpec(config.block, 0, 0, farthest_ahead=0 if role is Role.CAUSAL else None)

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        length, block = query_BHTE.shape[2], self.config.block
        if length <= block:
            return super().mix_heads(heads, query_BHTE, key_BHSE, value_BHSE, pad_BS=pad_BS)
        query_BNCD, key_BNCD, value_BNCD = (
            in_blocks(self.join(x_BHTE), block) for x_BHTE in (query_BHTE, key_BHSE, value_BHSE)
        )
        y_BTD = attend_in_blocks(
            query_BNCD,
            self._with_summaries(key_BNCD),
            self._with_summaries(value_BNCD),
            seen_BNCK=self._seen(padding_or_zeros(self.join(query_BHTE), pad_BS)),
            head_dim=self.head_dim,
            dropout=self.active_dropout,
        )
        return zero_padding(self.split(y_BTD[:, :length]), pad_BS)

    def _with_summaries(self, x_BNCD: Tensor) -> Tensor:
        """Returns x_BNKD, the positions of each block followed by the summaries of all blocks."""
        summary_BSD = x_BNCD[:, :, -self.config.summary :].flatten(1, 2)
        return torch.cat([x_BNCD, summary_BSD[:, None].expand(-1, x_BNCD.shape[1], -1, -1)], dim=2)

    def _seen(self, pad_BT: Tensor) -> Tensor:
        """Returns seen_BNCK, True for real keys of the block and summaries of other (causal: earlier) blocks."""
        block, causal = self.config.block, self.role is Role.CAUSAL
        real_BNC = ~in_blocks(pad_BT, block, fill=True)
        own_BNCC = real_BNC[:, :, None].expand(-1, -1, block, -1)
        if causal:
            own_BNCC = own_BNCC & causal_mask(block, pad_BT.device)
        index_N = torch.arange(real_BNC.shape[1], device=pad_BT.device)
        others_NN = index_N[:, None] > index_N if causal else index_N[:, None] != index_N
        summary_BNNc = others_NN[..., None] & real_BNC[:, None, :, -self.config.summary :]
        return torch.cat([own_BNCC, summary_BNNc.flatten(2)[:, :, None].expand(-1, -1, block, -1)], dim=3)

    def start_mix(self, batch: int) -> State:
        return dict.fromkeys(("key", "value", "summary_key", "summary_value"))

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        after: State = {}
        seen: list[Tensor] = []
        for name, new_BH1E in (("key", key_BH1E), ("value", value_BH1E)):
            own_BHSE, summary_BHSE = state[name], state[f"summary_{name}"]
            if own_BHSE is not None and own_BHSE.shape[2] == self.config.block:  # the next block begins
                summary_BHSE, own_BHSE = append(summary_BHSE, own_BHSE[:, :, -self.config.summary :]), None
            own_BHSE = append(own_BHSE, new_BH1E)
            after |= {name: own_BHSE, f"summary_{name}": summary_BHSE}
            seen.append(append(summary_BHSE, own_BHSE))
        return attend(query_BH1E, *seen), after
