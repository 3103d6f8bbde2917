"""Attention Free Transformers (Zhai et al. 2021, arXiv 2105.14103): every channel has weights of its own.

B batch, T length (S as keys), D width, L longest input, K rank of the position biases, W window, N blocks of W.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, AttentionConfig, Role, State, StepState, attentions
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.aft import NOTHING, Weighed, exponentials, running, weigh_all, weigh_past
from seqtk.ops.blocks import in_blocks
from seqtk.ops.head_checkpoint import Projected, by_heads
from seqtk.ops.init import xavier_linear
from seqtk.ops.precision import wide


@dataclass(frozen=True)
class AftSimpleConfig(AttentionConfig):
    """Each channel's mean of values, weighed by exp(key), times a gate: 4 D² weights, O(T D) beside its projections."""

    bias: bool = setting(True, help="Use biases in the projections.")


@attentions.register("aft_simple", AftSimpleConfig)
class AftSimple(Attention):
    """y_t = out(sigmoid(q_t) ⊙ Σ_s exp(k_s) ⊙ v_s / Σ_s exp(k_s)), s real (and <= t in the causal role), no heads.

    Zhai et al. 2021, section 3.2. Parameters: 4 D² (+ 4 D bias). O(T D) time and memory, a step is O(D); each causal
    sum has the scale of its own largest key, so that no key, however large, spoils what comes before it.
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
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        self.check_length(x_BTD.shape[1])
        pad_BT1 = None if pad_BS is None else pad_BS[..., None]
        weights = self.weights(x_BTD.shape[1])

        def means(_: slice, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            key_BTD, value_BTD = wide(key_BTD), wide(value_BTD)
            if pad_BT1 is not None:
                key_BTD, value_BTD = key_BTD.masked_fill(pad_BT1, NOTHING), value_BTD.masked_fill(pad_BT1, 0)
            with torch.autocast(x_BTD.device.type, enabled=False):
                mean_BTD = self.means(key_BTD, value_BTD, weights)
            return mean_BTD if pad_BT1 is None else mean_BTD.masked_fill(pad_BT1, 0)

        of_keys, of_values = Projected(x_BTD, self.key), Projected(x_BTD, self.value)
        mean_BTD = by_heads(means, of_keys, of_values, heads=self.dim, through=weights)
        return self.gate(x_BTD, mean_BTD), None

    def weights(self, length: int) -> tuple[Tensor, ...]:
        """By what positions multiply exp(key), for all channels alike, float32 or wider."""
        return ()

    def means(self, key_BTD: Tensor, value_BTD: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The weighed mean at each position, BTD, or B1D where it is the same at all."""
        if self.role is Role.CAUSAL:
            return running(Weighed.of(key_BTD, value_BTD)).mean
        return (key_BTD.softmax(1) * value_BTD).sum(1, keepdim=True)

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """In float32 or wider."""
        return wide(self.key(x_BTD)), wide(self.value(x_BTD))

    def gate(self, x_BTD: Tensor, mean_BTD: Tensor) -> Tensor:
        """The output, from the weighed means."""
        return self.out(self.query(x_BTD).sigmoid() * mean_BTD.to(self.out.weight.dtype))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        zeros_B1D = wide(self.key.weight).new_zeros(batch, 1, self.dim)
        return StepState(dynamic={"log": zeros_B1D + NOTHING, "mean": zeros_B1D})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        now = Weighed.of(state.dynamic["log"], state.dynamic["mean"]).merge(Weighed.of(*self.keys_and_values(x_B1D)))
        return self.gate(x_B1D, now.mean), state.advance({"log": now.log, "mean": now.mean})


@dataclass(frozen=True)
class AftFullConfig(AftSimpleConfig):
    """Each channel's mean of values, weighed by exp(key + position bias): 4 D² + 2 L K weights, O(T² D) time."""

    max_length: int = setting(256, at_least=1, help="The longest input. The position biases have this size.")
    rank: int = setting(128, at_least=1, help="Rank of the matrix of position biases.")


@attentions.register("aft_full", AftFullConfig)
class AftFull(AftSimple):
    """y_t = out(sigmoid(q_t) ⊙ Σ_s exp(k_s + w_ts) ⊙ v_s / Σ_s exp(k_s + w_ts)), w = u vᵀ over positions.

    Zhai et al. 2021, section 3.1; w of rank K as in the paper. Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T² D) time as
    matrix products, O(T² + T D) memory; a step is O(t D).
    """

    subquadratic = False

    def __init__(self, config: AftFullConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        deviation = (0.01 / config.rank) ** 0.25  # an element of u vᵀ then has one of 0.1
        self.position_query = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)
        self.position_key = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_length)

    @property
    def window(self) -> int:
        """Positions s with |t - s| below it have a bias."""
        return int(self.config.max_length)

    def weights(self, length: int) -> tuple[Tensor, ...]:
        """exp(w_TT); of longer inputs, by blocks as long as the window: of near blocks, of all others, of the own past.

        Each row is divided by its largest, or by 1 if that is larger: a position without a bias has a weight, too.
        """
        causal = self.role is Role.CAUSAL
        with torch.autocast(self.position_key.device.type, enabled=False):
            query_TK, key_TK = (wide(factor[:length]) for factor in (self.position_query, self.position_key))
            if length <= self.window:
                bias_TT = query_TK @ key_TK.T
                bias_TT = bias_TT.tril() if causal else bias_TT
                return ((bias_TT - _top(bias_TT)).exp(),)
            query_NWK, own_NWK = in_blocks(query_TK, self.window, dim=-2), in_blocks(key_TK, self.window, dim=-2)
            before_NWW = (query_NWK @ _shifted(own_NWK, 1).mT).triu(1)
            own_NWW = query_NWK @ own_NWK.mT
            if causal:
                own_NWW = own_NWW.tril()
                top_NW1 = torch.maximum(_top(before_NWW), _top(own_NWW))
                return (before_NWW - top_NW1).exp(), (-top_NW1).exp(), (own_NWW - top_NW1).exp()
            after_NWW = (query_NWK @ _shifted(own_NWK, -1).mT).tril(-1)
            near_NWJ = torch.cat([before_NWW, own_NWW, after_NWW], -1)
            top_NW1 = _top(near_NWJ)
            return (near_NWJ - top_NW1).exp(), (-top_NW1).exp()

    def means(self, key_BTD: Tensor, value_BTD: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        weigh = weigh_past if self.role is Role.CAUSAL else weigh_all
        if len(weights) == 1:
            return weigh(weights[0], key_BTD, value_BTD).mean
        size, length = self.window, key_BTD.shape[1]
        key_BNWD, value_BNWD = in_blocks(key_BTD, size, dim=-2, fill=NOTHING), in_blocks(value_BTD, size, dim=-2)
        seen = self._of_blocks(key_BNWD, value_BNWD, *weights[:2])
        if self.role is Role.CAUSAL:
            seen = weigh_past(weights[2], key_BNWD, value_BNWD, before=seen)
        return seen.mean.flatten(1, 2)[:, :length]

    def _of_blocks(self, key_BNWD: Tensor, value_BNWD: Tensor, near_NWJ: Tensor, far_NW1: Tensor) -> Weighed:
        """Each position over near blocks with their biases and over all others without; or over blocks before its own.

        The scale is that of the largest key seen: of all, or of all earlier blocks.
        """
        causal = self.role is Role.CAUSAL
        scale_BND = key_BNWD.detach().amax(2)
        scale_BND = scale_BND.cummax(1).values if causal else scale_BND.amax(1, keepdim=True).expand_as(scale_BND)
        sums_BNWE = exponentials(key_BNWD - scale_BND[:, :, None], value_BNWD)
        blocks = Weighed(scale_BND, *sums_BNWE.sum(2).chunk(2, -1))
        far = running(blocks).delayed(2)
        if causal:
            scale_BND = blocks.delayed(1).scale
        else:
            far = far.merge(running(blocks.flip()).delayed(2).flip())
        far_BN1E = torch.cat(far.at_scale(scale_BND)[1:], -1)[:, :, None]
        beside_BNWE = functional.pad(sums_BNWE, (0, 0, 0, 0, 1, -1 if causal else 1))
        near_BNJE = beside_BNWE.flatten(1, 2).unfold(1, near_NWJ.shape[-1], self.window).mT
        total_BNWD, sum_BNWD = (near_NWJ @ near_BNJE + far_NW1 @ far_BN1E).chunk(2, -1)
        return Weighed(scale_BND[:, :, None].expand_as(total_BNWD), total_BNWD, sum_BNWD)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("key", "value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        key_B1D, value_B1D = self.keys_and_values(x_B1D)
        kept = cache.remember(state.dynamic, key=key_B1D, value=value_B1D)
        length = cache.length(kept, "key")
        self.check_length(length)
        keys, values = cache.segments(kept, "key"), cache.segments(kept, "value")
        bias_1S = self._bias_at(length, 0)
        weights = torch.split((bias_1S - _top(bias_1S)).exp(), [key.shape[1] for key in keys], -1)
        now = functools.reduce(Weighed.merge, map(weigh_all, weights, keys, values))
        return self.gate(x_B1D, now.mean), state.advance(kept)

    def _bias_at(self, length: int, first: int) -> Tensor:
        """Of the last of `length` positions, for those from the `first` to itself: 1S."""
        return wide(self.position_query[length - 1 : length]) @ wide(self.position_key[first:length]).T


@dataclass(frozen=True)
class AftLocalConfig(AftFullConfig):
    """As aft_full, but only positions nearer than a window have a bias: 4 D² + 2 L K weights, O(T W D) time."""

    window: int = setting(32, at_least=1, help="Only positions nearer than this have a position bias.")


@attentions.register("aft_local", AftLocalConfig)
class AftLocal(AftFull):
    """As `AftFull`, with w_ts = 0 where |t - s| >= W: all are still seen (Zhai et al. 2021, section 3.2).

    Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T W D) time, O(T W + T D) memory; a step is O(W D).
    """

    subquadratic = True

    def __init__(self, config: AftLocalConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)

    @property
    def window(self) -> int:
        return int(self.config.window)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        empty_B0D = wide(self.key.weight).new_zeros(batch, 0, self.dim)
        # `past` has no elements; its length counts the positions so far.
        return StepState(
            dynamic={"key": empty_B0D, "value": empty_B0D, "past": empty_B0D[..., :0], "log": None, "mean": None}
        )

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept = state.dynamic
        past_Bt0 = functional.pad(kept["past"], (0, 0, 0, 1))
        length = past_Bt0.shape[1]
        self.check_length(length)
        key_BSD, value_BSD = (
            torch.cat([kept[name], new], 1)
            for name, new in zip(("key", "value"), self.keys_and_values(x_B1D), strict=True)
        )
        bias_1S = self._bias_at(length, length - key_BSD.shape[1])
        older = None if kept["log"] is None else Weighed.of(kept["log"], kept["mean"])
        top_11 = _top(bias_1S)
        now = weigh_all((bias_1S - top_11).exp(), key_BSD, value_BSD)
        if older is not None:
            now = now.merge(Weighed(older.scale - top_11, older.total, older.sum))
        if key_BSD.shape[1] == self.window:  # the oldest leaves the window
            left = Weighed.of(key_BSD[:, :1], value_BSD[:, :1])
            older = left if older is None else older.merge(left)
            key_BSD, value_BSD = key_BSD[:, 1:], value_BSD[:, 1:]
        log, mean = (None, None) if older is None else (older.log, older.mean)
        kept = {"key": key_BSD, "value": value_BSD, "past": past_Bt0, "log": log, "mean": mean}
        return self.gate(x_B1D, now.mean), state.advance(kept)


def _top(bias_TS: Tensor) -> Tensor:
    """Each row's largest bias, or 0 if that is larger."""
    return bias_TS.detach().amax(-1, keepdim=True).clamp(min=0)


def _shifted(x_NWK: Tensor, by: int) -> Tensor:
    """At each block the one before (`by` = 1) or after it (-1)."""
    return functional.pad(x_NWK, (0, 0, 0, 0, by, -by))
