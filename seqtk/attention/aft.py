"""Attention Free Transformers: attention weights per channel, without heads (Zhai et al. 2021, arXiv 2105.14103).

    y_t = out(σ(q_t) ⊙ Σ_s exp(k_s + w_ts) ⊙ v_s / Σ_s exp(k_s + w_ts))

The sums are over all positions s that are not padding, or over s <= t in a decoder. The position bias w_ts is 0 in
`aft_simple`, and the product of two learned vectors in `aft_full`. In `aft_local`, it is 0 for |t - s| >= W.

B batch, T length (S as keys), D width, L longest input, K rank of the position biases, W window, N blocks of W, J keys
of a block and its neighbors.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, AttentionConfig, Role, State, StepState, attentions
from seqtk.attention.resizing import Resizable
from seqtk.config.fields import setting
from seqtk.modules.linear import xavier_linear
from seqtk.ops import cache
from seqtk.ops.aft import NEG_INF, LogSumExpAccumulator, accumulate, accumulate_causal, cumulative, exponentials
from seqtk.ops.head_checkpoint import LazyProjection, checkpoint_over_heads
from seqtk.ops.tensors import in_blocks, to_fp32, without_autocast


@dataclass(frozen=True)
class AftSimpleConfig(AttentionConfig):
    """A mean of values per channel, weighted by exp(key), times a gate: 4 D² weights, O(T D) time and memory."""

    bias: bool = setting(True, help="Give the projections a bias.")


@attentions.register("aft_simple", AftSimpleConfig)
class AftSimple(Attention):
    """AFT-simple: the mean of the values in each channel, weighted by exp(key), times a gate (section 3.2).

        y_t = out(σ(q_t) ⊙ Σ_s exp(k_s) ⊙ v_s / Σ_s exp(k_s))

    Parameters: 4 D² (+ 4 D bias). O(T D) time and memory besides the projections; a step takes O(D). Each causal sum is
    scaled by the largest key so far, so no key, however large, affects earlier positions.
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.query = xavier_linear(dim, dim, bias=config.bias)
        self.key = xavier_linear(dim, dim, bias=config.bias)
        self.value = xavier_linear(dim, dim, bias=config.bias)
        self.out = xavier_linear(dim, dim, bias=config.bias)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        self.check_length(x_BTD.shape[1])
        pad_BT1 = None if pad_BS is None else pad_BS[..., None]
        weights = self.weights(x_BTD.shape[1])

        def means(_: slice, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            key_BTD, value_BTD = to_fp32(key_BTD), to_fp32(value_BTD)
            if pad_BT1 is not None:
                key_BTD, value_BTD = key_BTD.masked_fill(pad_BT1, NEG_INF), value_BTD.masked_fill(pad_BT1, 0)
            with without_autocast(x_BTD):
                mean_BTD = self.means(key_BTD, value_BTD, weights)
            return mean_BTD if pad_BT1 is None else mean_BTD.masked_fill(pad_BT1, 0)

        mean_BTD = checkpoint_over_heads(
            means,
            LazyProjection(x_BTD, self.key),
            LazyProjection(x_BTD, self.value),
            heads=self.dim,  # channels are independent
            extra_params=weights,
        )
        return self.gate(x_BTD, mean_BTD), None

    def weights(self, length: int) -> tuple[Tensor, ...]:
        """Returns the weights exp(w_ts) for pairs of positions, in float32 or wider, or () if all w_ts are 0.

        All channels share the weights.
        """
        return ()

    def means(self, key_BTD: Tensor, value_BTD: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Returns the weighted mean of the values at each position, BTD, or B1D if all positions have the same mean."""
        if self.role is Role.CAUSAL:
            return cumulative(LogSumExpAccumulator.of(key_BTD, value_BTD)).mean
        return (key_BTD.softmax(1) * value_BTD).sum(1, keepdim=True)

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns key_BTD and value_BTD in float32 or wider."""
        return to_fp32(self.key(x_BTD)), to_fp32(self.value(x_BTD))

    def gate(self, x_BTD: Tensor, mean_BTD: Tensor) -> Tensor:
        """Returns the outputs y_BTD: the weighted means times the gates, after the output projection."""
        return self.out(self.query(x_BTD).sigmoid() * mean_BTD.to(self.out.weight.dtype))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        zeros_B1D = to_fp32(self.key.weight).new_zeros(batch, 1, self.dim)
        return StepState(dynamic={"log": zeros_B1D + NEG_INF, "mean": zeros_B1D})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        past = LogSumExpAccumulator.of(state.dynamic["log"], state.dynamic["mean"])
        now = past.merge(LogSumExpAccumulator.of(*self.keys_and_values(x_B1D)))
        return self.gate(x_B1D, now.mean), state.advance({"log": now.log, "mean": now.mean})


@dataclass(frozen=True)
class AftFullConfig(AftSimpleConfig):
    """A mean of values per channel, weighted by exp(key + position bias): 4 D² + 2 L K weights, O(T² D) time."""

    max_length: int = setting(256, at_least=1, help="Longest input, and size of the position biases.")
    rank: int = setting(128, at_least=1, help="Rank of the matrix of position biases.")


@attentions.register("aft_full", AftFullConfig)
class AftFull(Resizable, AftSimple):
    """AFT-full: like AFT-simple, but the weights exp(k_s + w_ts) have a learned bias w_ts (section 3.1).

    The matrix w = u vᵀ has rank K. Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T² D) time as matrix products, O(T² + T D)
    memory; a step is O(t D).
    """

    subquadratic = False

    def __init__(self, config: AftFullConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        deviation = (0.01 / config.rank) ** 0.25  # gives the elements of u vᵀ a standard deviation of 0.1
        self.position_query = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)
        self.position_key = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)

    def weights(self, length: int) -> tuple[Tensor, ...]:
        """Returns exp(w_TT), each row divided by its largest element or by 1, whichever is larger."""
        with without_autocast(self.position_key):
            query_TK, key_TK = (to_fp32(factor[:length]) for factor in (self.position_query, self.position_key))
            bias_TT = query_TK @ key_TK.T
            bias_TT = bias_TT.tril() if self.role is Role.CAUSAL else bias_TT
            return ((bias_TT - _top(bias_TT)).exp(),)

    def means(self, key_BTD: Tensor, value_BTD: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        total = accumulate_causal if self.role is Role.CAUSAL else accumulate
        return total(weights[0], key_BTD, value_BTD).mean

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("key", "value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        key_B1D, value_B1D = self.keys_and_values(x_B1D)
        kept = cache.remember(state.dynamic, key=key_B1D, value=value_B1D)
        length = cache.length(kept, "key")
        self.check_length(length)
        keys, values = cache.segments(kept, "key"), cache.segments(kept, "value")
        bias_1S = self.last_bias(length, first=0)
        weights = torch.split((bias_1S - _top(bias_1S)).exp(), [key.shape[1] for key in keys], -1)
        now = functools.reduce(LogSumExpAccumulator.merge, map(accumulate, weights, keys, values))
        return self.gate(x_B1D, now.mean), state.advance(kept)

    def last_bias(self, length: int, *, first: int) -> Tensor:
        """Returns the biases w_1S of query position `length` - 1 for the key positions `first` … `length` - 1."""
        return to_fp32(self.position_query[length - 1 : length]) @ to_fp32(self.position_key[first:length]).T


@dataclass(frozen=True)
class AftLocalConfig(AftFullConfig):
    """Like aft_full, but only positions closer than `window` have a bias: 4 D² + 2 L K weights, O(T window D) time."""

    window: int = setting(32, at_least=1, help="Only positions closer than this have a position bias.")


@attentions.register("aft_local", AftLocalConfig)
class AftLocal(AftFull):
    """AFT-local: `AftFull` with w_ts = 0 for |t - s| >= W (section 3.2). All positions remain visible.

    Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T W D) time, O(T W + T D) memory; a step is O(W D). Inputs longer than W
    are split into blocks of W. Positions in the block and its neighbors have biases; each block farther away
    contributes one sum.
    """

    subquadratic = True

    def weights(self, length: int) -> tuple[Tensor, ...]:
        """Returns the weights of `AftFull`, or, if `length` exceeds W, the weights for blocks of keys.

        The weights for blocks are one tensor of exp(w) for near blocks, one for far blocks and, in the causal role, one
        for the query's own block.
        """
        window, causal = self.config.window, self.role is Role.CAUSAL
        if length <= window:
            return super().weights(length)
        with without_autocast(self.position_key):
            query_NWK, own_NWK = (
                in_blocks(to_fp32(factor[:length]), window, dim=-2)
                for factor in (self.position_query, self.position_key)
            )
            before_NWW = (query_NWK @ _shift_blocks(own_NWK, 1).mT).triu(1)
            own_NWW = query_NWK @ own_NWK.mT
            if causal:
                own_NWW = own_NWW.tril()
                top_NW1 = torch.maximum(_top(before_NWW), _top(own_NWW))
                return (before_NWW - top_NW1).exp(), (-top_NW1).exp(), (own_NWW - top_NW1).exp()
            after_NWW = (query_NWK @ _shift_blocks(own_NWK, -1).mT).tril(-1)
            near_NWJ = torch.cat([before_NWW, own_NWW, after_NWW], -1)
            top_NW1 = _top(near_NWJ)
            return (near_NWJ - top_NW1).exp(), (-top_NW1).exp()

    def means(self, key_BTD: Tensor, value_BTD: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        if len(weights) == 1:
            return super().means(key_BTD, value_BTD, weights)
        key_BNWD = in_blocks(key_BTD, self.config.window, dim=-2, fill=NEG_INF)
        value_BNWD = in_blocks(value_BTD, self.config.window, dim=-2)
        seen = self._other_blocks(key_BNWD, value_BNWD, *weights[:2])
        if self.role is Role.CAUSAL:
            seen = accumulate_causal(weights[2], key_BNWD, value_BNWD, before=seen)
        return seen.mean.flatten(1, 2)[:, : key_BTD.shape[1]]

    def _other_blocks(
        self, key_BNWD: Tensor, value_BNWD: Tensor, near_NWJ: Tensor, far_NW1: Tensor
    ) -> LogSumExpAccumulator:
        """Returns the sums over the keys of all blocks (causal: earlier blocks). Only near blocks have position biases.

        The scale is the largest key of all blocks (causal: of all earlier blocks).
        """
        causal = self.role is Role.CAUSAL
        scale_BND = key_BNWD.detach().amax(2)
        scale_BND = scale_BND.cummax(1).values if causal else scale_BND.amax(1, keepdim=True).expand_as(scale_BND)
        sums_BNWE = exponentials(key_BNWD - scale_BND[:, :, None], value_BNWD)
        blocks = LogSumExpAccumulator(scale_BND, *sums_BNWE.sum(2).chunk(2, -1))
        far = cumulative(blocks).shift(2)
        if causal:
            scale_BND = blocks.shift(1).scale
        else:
            far = far.merge(cumulative(blocks.flip()).shift(2).flip())
        far_BN1E = torch.cat(far.at_scale(scale_BND)[1:], -1)[:, :, None]
        beside_BNWE = functional.pad(sums_BNWE, (0, 0, 0, 0, 1, -1 if causal else 1))
        near_BNJE = beside_BNWE.flatten(1, 2).unfold(1, near_NWJ.shape[-1], self.config.window).mT
        total_BNWD, sum_BNWD = (near_NWJ @ near_BNJE + far_NW1 @ far_BN1E).chunk(2, -1)
        return LogSumExpAccumulator(scale_BND[:, :, None].expand_as(total_BNWD), total_BNWD, sum_BNWD)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        empty_B0D = to_fp32(self.key.weight).new_zeros(batch, 0, self.dim)
        # The state: keys and values of the window, sums over older positions, and `past`, whose length is their number.
        return StepState(
            dynamic={"key": empty_B0D, "value": empty_B0D, "past": empty_B0D[..., :0], "log": None, "mean": None}
        )

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept = state.dynamic
        length = kept["past"].shape[1] + 1
        past_Bt0 = kept["past"].new_empty(len(x_B1D), length, 0)
        self.check_length(length)
        key_B1D, value_B1D = self.keys_and_values(x_B1D)
        key_BSD, value_BSD = torch.cat([kept["key"], key_B1D], 1), torch.cat([kept["value"], value_B1D], 1)
        bias_1S = self.last_bias(length, first=length - key_BSD.shape[1])
        top_11 = _top(bias_1S)
        now = accumulate((bias_1S - top_11).exp(), key_BSD, value_BSD)
        older = None if kept["log"] is None else LogSumExpAccumulator.of(kept["log"], kept["mean"])
        if older is not None:
            now = now.merge(LogSumExpAccumulator(older.scale - top_11, older.total, older.sum))
        if key_BSD.shape[1] == self.config.window:  # add the position that leaves the window to the sums
            oldest = LogSumExpAccumulator.of(key_BSD[:, :1], value_BSD[:, :1])
            older = oldest if older is None else older.merge(oldest)
            key_BSD, value_BSD = key_BSD[:, 1:], value_BSD[:, 1:]
        log, mean = (None, None) if older is None else (older.log, older.mean)
        kept = {"key": key_BSD, "value": value_BSD, "past": past_Bt0, "log": log, "mean": mean}
        return self.gate(x_B1D, now.mean), state.advance(kept)


def _top(bias_TS: Tensor) -> Tensor:
    """Returns the largest bias of each row, or 0 (the bias outside the window) if that is larger."""
    return bias_TS.detach().amax(-1, keepdim=True).clamp(min=0)


def _shift_blocks(x_NWK: Tensor, by: int) -> Tensor:
    """Shifts the blocks by one: each block is replaced by the block before it (`by` = 1) or after it (`by` = -1)."""
    return functional.pad(x_NWK, (0, 0, 0, 0, by, -by))
