"""Attention to a sparse pattern that joins any two positions in a few layers: strided, fixed and BigBird's.

Positions and blocks are counted from each row's first real position, and no T × T tensor is made.

B batch, T length, D width of the layer, H heads, E width of a head, N blocks of C positions, L stride, S keys, K keys
that a block looks into, P blocks of them, R random blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.qkv import QKVConfig
from seqtk.attention.windows import NearAttention, window_span
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.block_pattern import Span, absent
from seqtk.ops.blocks import in_blocks
from seqtk.ops.cache import append
from seqtk.ops.dot_product import attend, causal_mask
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class StridedSparseConfig(QKVConfig):
    """Half the heads see the nearest positions, half every stride-th: 4 D² weights, O(T (stride + T / stride) D)."""

    stride: int = setting(
        32,
        at_least=1,
        help="Distance of the positions of a column. The square root of the usual length is a good value.",
    )


@attentions.register("strided_sparse", StridedSparseConfig)
class StridedSparseAttention(NearAttention):
    """softmax(Q Kᵀ / √E) V, the first half of the heads over near keys, the others over a column of keys.

    Column: (t - s) mod L = 0, L = `stride`. Near: 0 <= t - s < L, CAUSAL. Child et al. 2019, arXiv 1904.10509, section
    4.3, with one of the two factors to a head (section 4.2, third way). The paper has no bidirectional form; ours,
    ENCODER, has |t - s| <= L / 2 and the whole column, so that two layers still join any two positions. Parameters:
    4 D² (+ 4 D bias). O(T (L + T / L) D) time; O(T (L + T / L)) memory at most. A step costs O(L + t / L).
    """

    subquadratic = False

    def __init__(self, config: StridedSparseConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if self.heads < 2:
            raise UserError("Attention 'strided_sparse' needs two heads or more: each sees one half of the pattern.")
        self.span = window_span(config.stride, causal=role is Role.CAUSAL)
        self.near_heads = (self.heads + 1) // 2

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        projected = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        width = self.near_heads * self.head_dim
        query_BTF, key_BTF, value_BTF = (y_BTD[..., :width] for y_BTD in projected)
        near = self.attend_near(query_BTF, key_BTF, value_BTF, self.window_mask(x_BTD, pad_BT))
        far = self._attend_columns([y_BTD[..., width:] for y_BTD in projected], absent(x_BTD, pad_BT))
        return torch.cat([near, far], dim=2)

    def _attend_columns(self, projected: Sequence[Tensor], absent_BT: Tensor) -> Tensor:
        """y_BTD: the blocks under one another, each of the columns attends within itself."""
        length = projected[0].shape[1]
        stride = min(self.config.stride, length)
        query, key, value = (self.split(_columns(y_BTD, stride)) for y_BTD in projected)
        causal = self.role is Role.CAUSAL
        seen = None
        if not causal:  # else padding, which comes last, is in the future of all that count
            seen = _columns(~absent_BT, stride)[:, None, None]
        y_MHNE = attend(query, key, value, bias=seen, causal=causal, dropout=self.active_dropout)
        return _rows(self.join(y_MHNE), stride)[:, :length]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("key", "value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept = cache.remember(state.dynamic, key=self.split(self.key(x_B1D)), value=self.split(self.value(x_B1D)))
        query_BH1E = self.split(self.query(x_B1D))
        near, stride, length = self.near_heads, self.config.stride, cache.length(kept, "key")
        first_near, first = max(length - stride, 0), (length - 1) % stride
        near_BHSE = [cache.picked(kept, name, first=first_near)[:, :near] for name in ("key", "value")]
        column_BHSE = [cache.picked(kept, name, first=first, stride=stride)[:, near:] for name in ("key", "value")]
        y_BH1E = torch.cat(
            [attend(query_BH1E[:, :near], *near_BHSE), attend(query_BH1E[:, near:], *column_BHSE)], dim=1
        )
        return self.out(self.join(y_BH1E)), state.advance(kept)


def _columns(x_BT: Tensor, stride: int) -> Tensor:
    """x_MN (and any dimensions after T), M = B L: position i L + j at place i of column j."""
    return in_blocks(x_BT, stride).transpose(1, 2).flatten(0, 1)


def _rows(x_MND: Tensor, stride: int) -> Tensor:
    """x_BTD, T = N L: what `_columns` took apart."""
    return x_MND.view(-1, stride, *x_MND.shape[1:]).transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True)
class FixedSparseConfig(QKVConfig):
    """A block, and the last positions of each other: 4 D² weights, O(T (block + summary T / block) D)."""

    block: int = setting(32, at_least=1, help="Positions in a block.")
    summary: int = setting(4, at_least=1, help="The last positions of each block, which every later block sees too.")


@attentions.register("fixed_sparse", FixedSparseConfig)
class FixedSparseAttention(NearAttention):
    """softmax(Q Kᵀ / √E) V over the keys of a query's own block and the last `summary` = c positions of others.

    CAUSAL: the past of the own block of `block` = L positions, and s mod L >= L - c in every earlier block. Child et
    al. 2019, arXiv 1904.10509, section 4.3, with both factors in each head (section 4.2, second way), since those who
    come before the first summary would have nothing to see in the second factor alone. The paper has no bidirectional
    form; ours, ENCODER, sees the whole own block and the summaries of all others. Parameters: 4 D² (+ 4 D bias).
    O(T (L + c T / L) D) time, O((T + c (T / L)²) D) memory: the summaries are copied to each block. A step costs
    O(L + c t / L): the state holds the keys and values of the own block and of the summaries.
    """

    subquadratic = False

    def __init__(self, config: FixedSparseConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.summary > config.block:
            raise UserError(
                f"attention.summary={config.summary} is more than a block has: attention.block={config.block}."
            )
        self.span = Span(config.block, 0, 0, farthest_ahead=0 if role is Role.CAUSAL else None)

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        length, block, summary = x_BTD.shape[1], self.config.block, self.config.summary
        if length <= block:
            return super().mix(x_BTD, pad_BT)
        blocks = -(-length // block)
        real_BNC = ~in_blocks(absent(x_BTD, pad_BT), block, fill=True)
        causal = self.role is Role.CAUSAL
        own_BNCC = real_BNC[:, :, None].expand(-1, -1, block, -1)
        if causal:
            own_BNCC = own_BNCC & causal_mask(block, x_BTD.device)
        index_N = torch.arange(blocks, device=x_BTD.device)
        others_NN = index_N[:, None] > index_N if causal else index_N[:, None] != index_N
        far_BNNc = others_NN[..., None] & real_BNC[:, None, :, -summary:]
        far_BNCS = far_BNNc.flatten(2)[:, :, None].expand(-1, -1, block, -1)

        def keys(y_BNCD: Tensor) -> Tensor:
            far_BSD = y_BNCD[:, :, -summary:].flatten(1, 2)
            return torch.cat([y_BNCD, far_BSD[:, None].expand(-1, blocks, -1, -1)], dim=2)

        seen_BNCK = torch.cat([own_BNCC, far_BNCS], dim=3)

        def attend_in_blocks(_: slice, *projected: Tensor) -> Tensor:
            query_BNCD, key_BNCD, value_BNCD = (in_blocks(y_BTD, block) for y_BTD in projected)
            return self.attend_in_blocks(query_BNCD, keys(key_BNCD), keys(value_BNCD), seen_BNCK=seen_BNCK)[:, :length]

        return self.some_heads_at_a_time(attend_in_blocks, *self.projected(x_BTD))

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=dict.fromkeys(("key", "value", "far_key", "far_value")))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        after: dict[str, Tensor | None] = {}
        seen: list[Tensor] = []
        for name, projection in (("key", self.key), ("value", self.value)):
            own_BHSE, far_BHSE = state.dynamic[name], state.dynamic[f"far_{name}"]
            if own_BHSE is not None and own_BHSE.shape[2] == self.config.block:
                far_BHSE, own_BHSE = append(far_BHSE, own_BHSE[:, :, -self.config.summary :]), None
            own_BHSE = append(own_BHSE, self.split(projection(x_B1D)))
            after |= {name: own_BHSE, f"far_{name}": far_BHSE}
            seen.append(append(far_BHSE, own_BHSE))
        return self.out(self.join(attend(self.split(self.query(x_B1D)), *seen))), state.advance(after)


@dataclass(frozen=True)
class BigBirdConfig(QKVConfig):
    """Near, global and random blocks: 4 D² weights, O(T block (3 + global_blocks + random_blocks) D)."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    global_blocks: int = setting(1, at_least=1, help="The first blocks, which see every position and are seen by all.")
    random_blocks: int = setting(3, at_least=1, help="Further blocks that each block sees, drawn for each head.")
    seed: int = setting(0, at_least=0, help="Seed of the random blocks. Layers with other seeds see other blocks.")


@attentions.register("bigbird", BigBirdConfig)
class BigBirdAttention(NearAttention):
    """softmax(Q Kᵀ / √E) V over a query's block and its neighbours, the global blocks, and R random blocks.

    Zaheer et al. 2020, arXiv 2007.14062, section 2 and appendix D, the global blocks being the first (ITC). The random
    blocks of block n and head h are a function of (`seed`, h, n) and of how many blocks the row has, no table that ends
    at some length: those that are neither near nor global, in their order, are cut into R equal ranges, and each range
    gives one, as a 32-bit hash says. Parameters: 4 D² (+ 4 D bias). O(T C (3 + G + R) D) time and memory for G global
    blocks of C positions. ENCODER alone: the paper has no causal form.
    """

    roles = Role.ENCODER

    def __init__(self, config: BigBirdConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        length = x_BTD.shape[1]
        absent_BT = absent(x_BTD, pad_BT)
        first = min(self.config.global_blocks * self.config.block, length)
        index_BHNP, seen_BHNK = self._seen_blocks(absent_BT)

        def attend_to_both(some: slice, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            y_BHGE = attend(
                self.split(query_BTD[:, :first]),
                self.split(key_BTD),
                self.split(value_BTD),
                bias=~absent_BT[:, None, None],
                dropout=self.active_dropout,
            )
            if length == first:
                return self.join(y_BHGE)
            y_BHTE = self._attend_in_blocks(
                self.split(query_BTD),
                self.split(key_BTD),
                self.split(value_BTD),
                index_BHNP[:, some],
                seen_BHNK[:, some],
            )
            return self.join(torch.cat([y_BHGE, y_BHTE[:, :, first:length]], dim=2))

        return self.some_heads_at_a_time(attend_to_both, *self.projected(x_BTD))

    def _attend_in_blocks(
        self, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, index_BHNP: Tensor, seen_BHNK: Tensor
    ) -> Tensor:
        """The outputs of all positions as if none were global but as keys."""

        def keys(x_BHTE: Tensor) -> Tensor:
            return _gather_blocks(in_blocks(x_BHTE, self.config.block, dim=2), index_BHNP).flatten(1, 2)[:, None]

        query_M1CE = in_blocks(query_BHTE, self.config.block, dim=2).flatten(0, 2)[:, None]
        y_M1CE = attend(
            query_M1CE,
            keys(key_BHTE),
            keys(value_BHTE),
            bias=seen_BHNK.flatten(0, 2)[:, None, None],
            dropout=self.active_dropout,
        )
        return y_M1CE.view(*query_BHTE.shape[:2], -1, query_BHTE.shape[3])

    def _seen_blocks(self, absent_BT: Tensor) -> tuple[Tensor, Tensor]:
        """block_BHNP, those each block looks into, near, global and random; and which of their positions it sees."""
        real_BNC = ~in_blocks(absent_BT, self.config.block, fill=True)
        batch, blocks = real_BNC.shape[:2]
        random_BHNR, chosen_BHNR = self._random_blocks((~absent_BT).sum(1), blocks)
        near_N3 = torch.arange(blocks, device=absent_BT.device)[:, None] + torch.arange(-1, 2, device=absent_BT.device)
        # Global positions are seen once: as such, and no more as part of a neighbour.
        is_near_N3 = (near_N3 >= self.config.global_blocks) & (near_N3 < blocks)
        global_NG = torch.arange(min(self.config.global_blocks, blocks), device=absent_BT.device).expand(blocks, -1)
        fixed_NF = torch.cat([near_N3.clamp(0, blocks - 1), global_NG], 1)
        is_fixed_NF = torch.cat([is_near_N3, torch.ones_like(global_NG, dtype=torch.bool)], 1)
        shape = (*random_BHNR.shape[:3], -1)
        index_BHNP = torch.cat([fixed_NF.expand(shape), random_BHNR], 3)
        is_seen_BHNP = torch.cat([is_fixed_NF.expand(shape), chosen_BHNR], 3)
        row_B111 = torch.arange(batch, device=absent_BT.device)[:, None, None, None]
        return index_BHNP, (real_BNC[row_B111, index_BHNP] & is_seen_BHNP[..., None]).flatten(3)

    def _random_blocks(self, length_B: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """block_BHNR and chosen_BHNR, False where a row has too few blocks for as many."""
        config, device = self.config, length_B.device
        block_N1 = torch.arange(blocks, device=device)[:, None]
        range_R = torch.arange(config.random_blocks, device=device)
        head_H11 = torch.arange(self.heads, device=device)[:, None, None]
        last_B111 = (-(-length_B // config.block) - 1)[:, None, None, None]
        near_from = (block_N1 - 1).clamp(min=config.global_blocks)
        near_count = (torch.minimum(block_N1 + 1, last_B111) - near_from + 1).clamp(min=0)
        count = (last_B111 + 1 - config.global_blocks - near_count).clamp(min=0)  # to choose from
        noise_HNR = hashed(
            hashed(hashed(hashed(torch.zeros_like(head_H11) + config.seed) + head_H11) + block_N1) + range_R
        )
        index_BHNR = ((range_R << 32) + noise_HNR) * count // (config.random_blocks << 32)
        again_BHNR = torch.zeros_like(index_BHNR, dtype=torch.bool)
        again_BHNR[..., 1:] = index_BHNR[..., 1:] == index_BHNR[..., :-1]
        place_BHNR = index_BHNR + config.global_blocks
        place_BHNR = place_BHNR + near_count * (place_BHNR >= near_from)
        return place_BHNR.clamp(max=blocks - 1), (count > 0) & ~again_BHNR


def hashed(x: Tensor) -> Tensor:
    """32 bits from each integer's lowest 32, that look random: two rounds of shift, exclusive or and product."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _gather_blocks(x_BHNCE: Tensor, index_BHNP: Tensor) -> Tensor:
    """x_MPCE, M = B H N: for each block those at its indices, copied whole."""
    batch, heads, blocks, picks = index_BHNP.shape
    before_BH11 = torch.arange(0, batch * heads * blocks, blocks, device=index_BHNP.device).view(batch, heads, 1, 1)
    place_I = (before_BH11 + index_BHNP).flatten()
    picked_IF = x_BHNCE.flatten(0, 2).flatten(1).index_select(0, place_I)
    return picked_IF.view(-1, picks, *x_BHNCE.shape[3:])
