"""Attention Free Transformers (Zhai et al. 2021, arXiv 2105.14103): every channel has weights of its own.

B batch, T length (S as keys), D width, L longest input, K rank of the position biases, W window, N blocks of W.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, AttentionConfig, Role, State, attentions
from seqtk.attention.parts import cache
from seqtk.attention.parts.blocks import in_blocks
from seqtk.attention.parts.building import check_at_least_one, xavier_linear
from seqtk.attention.parts.by_heads import Projected, by_heads
from seqtk.attention.parts.precision import wide
from seqtk.attention.parts.rows import align
from seqtk.attention.parts.weighed import NOTHING, Weighed, running, weigh_all, weigh_one_by_one, weigh_past


@dataclass(frozen=True)
class AftSimpleConfig(AttentionConfig):
    """Each channel's mean of values, weighed by exp(key), times a gate: 4 D² weights, O(T D) beside its projections."""

    bias: bool = True  # of the projections


@attentions.register("aft_simple", AftSimpleConfig)
class AftSimple(Attention):
    """y_t = out(sigmoid(q_t) ⊙ Σ_s exp(k_s) ⊙ v_s / Σ_s exp(k_s)), s real (and <= t in the causal role), no heads.

    Zhai et al. 2021, section 3.2. Parameters: 4 D² (+ 4 D bias). O(T D) time and memory, a step is O(D); causal sums
    are scanned as means with logarithmic weights, so that no key, however large, spoils what comes before it.
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.query = xavier_linear(dim, dim, bias=config.bias)
        self.key = xavier_linear(dim, dim, bias=config.bias)
        self.value = xavier_linear(dim, dim, bias=config.bias)
        self.out = xavier_linear(dim, dim, bias=config.bias)

    @classmethod
    def parameter_count(cls, config: Any, *, dim: int, memory_dim: int | None = None) -> int:
        return int(4 * dim * (dim + config.bias))

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
        pad_BT1 = None if rows.pad_BT is None else rows.pad_BT[..., None]

        biases = self.biases(x_BTD.shape[1])

        def means(_: slice, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            key_BTD, value_BTD = wide(key_BTD), wide(value_BTD)
            if pad_BT1 is not None:
                key_BTD, value_BTD = key_BTD.masked_fill(pad_BT1, NOTHING), value_BTD.masked_fill(pad_BT1, 0)
            with torch.autocast(x_BTD.device.type, enabled=False):
                mean_BTD = self.means(key_BTD, value_BTD, biases)
            return mean_BTD if pad_BT1 is None else mean_BTD.masked_fill(pad_BT1, 0)

        of_keys, of_values = Projected(rows.x_BTD, self.key), Projected(rows.x_BTD, self.value)
        mean_BTD = by_heads(means, of_keys, of_values, heads=self.dim, through=biases)
        return rows.restore(self.gate(rows.x_BTD, mean_BTD))

    def biases(self, length: int) -> tuple[Tensor, ...]:
        """What positions add to the keys, for all channels alike, float32 or wider."""
        return ()

    def means(self, key_BTD: Tensor, value_BTD: Tensor, biases: tuple[Tensor, ...]) -> Tensor:
        """The weighed mean at each position, BTD, or B1D where it is the same at all."""
        if self.role is Role.CAUSAL:
            return running(Weighed(key_BTD, value_BTD)).mean
        return (key_BTD.softmax(1) * value_BTD).sum(1, keepdim=True)

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """In float32 or wider."""
        return wide(self.key(x_BTD)), wide(self.value(x_BTD))

    def gate(self, x_BTD: Tensor, mean_BTD: Tensor) -> Tensor:
        """The output, from the weighed means."""
        return self.out(self.query(x_BTD).sigmoid() * mean_BTD.to(self.out.weight.dtype))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        zeros_B1D = wide(self.key.weight).new_zeros(batch, 1, self.dim)
        return {"log": zeros_B1D + NOTHING, "mean": zeros_B1D}

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        now = Weighed(state["log"], state["mean"]).merge(Weighed(*self.keys_and_values(x_B1D)))
        return self.gate(x_B1D, now.mean), now._asdict()


@dataclass(frozen=True)
class AftFullConfig(AftSimpleConfig):
    """Each channel's mean of values, weighed by exp(key + position bias): 4 D² + 2 L K weights, O(T² D) time."""

    max_length: int = 256  # the longest input; the position biases are of this size
    rank: int = 128  # of the matrix of position biases


@attentions.register("aft_full", AftFullConfig)
class AftFull(AftSimple):
    """y_t = out(sigmoid(q_t) ⊙ Σ_s exp(k_s + w_ts) ⊙ v_s / Σ_s exp(k_s + w_ts)), w = u vᵀ over positions.

    Zhai et al. 2021, section 3.1; w of rank K as in the paper. Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T² D) time as
    matrix products, O(T² + T D) memory; a step is O(t D).
    """

    subquadratic = False

    def __init__(self, config: AftFullConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        check_at_least_one(config, "max_length", "rank")
        deviation = (0.01 / config.rank) ** 0.25  # an element of u vᵀ then has one of 0.1
        self.position_query = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)
        self.position_key = nn.Parameter(torch.randn(config.max_length, config.rank) * deviation)

    @classmethod
    def parameter_count(cls, config: Any, *, dim: int, memory_dim: int | None = None) -> int:
        return super().parameter_count(config, dim=dim) + int(2 * config.max_length * config.rank)

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_length)

    @property
    def window(self) -> int:
        """Positions s with |t - s| below it have a bias."""
        return int(self.config.max_length)

    def biases(self, length: int) -> tuple[Tensor, ...]:
        """w_TT; of longer inputs, in blocks as long as the window: w with the block before, itself and the next."""
        with torch.autocast(self.position_key.device.type, enabled=False):
            query_TK, key_TK = (wide(factor[:length]) for factor in (self.position_query, self.position_key))
            if length <= self.window:
                return (query_TK @ key_TK.T,)
            query_NWK, place_NWK = in_blocks(query_TK, self.window, dim=-2), in_blocks(key_TK, self.window, dim=-2)
            before, own, after = (
                query_NWK @ _shifted(place_NWK, by, 0).transpose(-1, -2)
                if by
                else query_NWK @ place_NWK.transpose(-1, -2)
                for by in (1, 0, -1)
            )
        return before.triu(1), own, after.tril(-1)

    def means(self, key_BTD: Tensor, value_BTD: Tensor, biases: tuple[Tensor, ...]) -> Tensor:
        if len(biases) > 1:
            return self._means_by_block(key_BTD, value_BTD, *biases)
        weigh = weigh_past if self.role is Role.CAUSAL else weigh_all
        return weigh(biases[0], key_BTD, value_BTD).mean

    def _means_by_block(self, key_BTD: Tensor, value_BTD: Tensor, before: Tensor, own: Tensor, after: Tensor) -> Tensor:
        """By blocks as long as the window: own block and neighbours with their biases, and the rest, which has none."""
        size, length = self.window, key_BTD.shape[1]
        key_BNWD, value_BNWD = in_blocks(key_BTD, size, dim=-2, fill=NOTHING), in_blocks(value_BTD, size, dim=-2)
        whole = weigh_all(key_BTD.new_zeros(1, size), key_BNWD, value_BNWD)
        blocks = Weighed(whole.log[..., 0, :], whole.mean[..., 0, :])
        rest = running(blocks).delayed(2)
        key_before, value_before = _shifted(key_BNWD, 1, NOTHING), _shifted(value_BNWD, 1, 0)
        if self.role is Role.CAUSAL:
            near = weigh_past(own, key_BNWD, value_BNWD).merge(weigh_all(before, key_before, value_before))
        else:
            near = weigh_all(
                torch.cat([before, own, after], -1),
                torch.cat([key_before, key_BNWD, _shifted(key_BNWD, -1, NOTHING)], -2),
                torch.cat([value_before, value_BNWD, _shifted(value_BNWD, -1, 0)], -2),
            )
            rest = rest.merge(running(blocks.flip()).delayed(2).flip())
        near = near.merge(Weighed(rest.log[..., None, :], rest.mean[..., None, :]))
        return near.mean.flatten(1, 2)[:, :length]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        return cache.empty("key", "value")

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        key_B1D, value_B1D = self.keys_and_values(x_B1D)
        state = cache.remember(state, key=key_B1D, value=value_B1D)
        length = cache.length(state, "key")
        self.check_length(length)
        bias_1S = wide(self.position_query[length - 1 : length]) @ wide(self.position_key[:length]).T
        keys, values = cache.segments(state, "key"), cache.segments(state, "value")
        biases = torch.split(bias_1S, [key.shape[1] for key in keys], -1)
        now = functools.reduce(Weighed.merge, map(weigh_all, biases, keys, values))
        return self.gate(x_B1D, now.mean), state


@dataclass(frozen=True)
class AftLocalConfig(AftFullConfig):
    """As aft_full, but only positions nearer than a window have a bias: 4 D² + 2 L K weights, O(T W D) time."""

    window: int = 32  # positions s with |t - s| < window have a bias


@attentions.register("aft_local", AftLocalConfig)
class AftLocal(AftFull):
    """As `AftFull`, with w_ts = 0 where |t - s| >= W: all are still seen (Zhai et al. 2021, section 3.2).

    Parameters: 4 D² (+ 4 D bias) + 2 L K. O(T W D) time, O(T W + T D) memory; a step is O(W D).
    """

    subquadratic = True

    def __init__(self, config: AftLocalConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        check_at_least_one(config, "window")

    @property
    def window(self) -> int:
        return int(self.config.window)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        empty_B0D = wide(self.key.weight).new_zeros(batch, 0, self.dim)
        # `past` is as long as the positions so far, and holds nothing.
        return {"key": empty_B0D, "value": empty_B0D, "past": empty_B0D[..., :0], "log": None, "mean": None}

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        past_Bt0 = functional.pad(state["past"], (0, 0, 0, 1))
        length = past_Bt0.shape[1]
        self.check_length(length)
        key_BSD, value_BSD = (
            torch.cat([state[name], new], 1)
            for name, new in zip(("key", "value"), self.keys_and_values(x_B1D), strict=True)
        )
        first = length - key_BSD.shape[1]
        bias_1S = wide(self.position_query[length - 1 : length]) @ wide(self.position_key[first:length]).T
        older = None if state["log"] is None else Weighed(state["log"], state["mean"])
        now = weigh_one_by_one(bias_1S, key_BSD, value_BSD)
        now = now if older is None else now.merge(older)
        if key_BSD.shape[1] == self.window:  # the oldest leaves the window
            left = Weighed(key_BSD[:, :1], value_BSD[:, :1])
            older = left if older is None else older.merge(left)
            key_BSD, value_BSD = key_BSD[:, 1:], value_BSD[:, 1:]
        log, mean = older or (None, None)
        after = {"key": key_BSD, "value": value_BSD, "past": past_Bt0, "log": log, "mean": mean}
        return self.gate(x_B1D, now.mean), after


def _shifted(x_NWD: Tensor, by: int, filler: float) -> Tensor:
    """At each block the one before (`by` = 1) or after it (-1)."""
    if by > 0:
        return functional.pad(x_NWD[..., :-1, :, :], (0, 0, 0, 0, 1, 0), value=filler)
    return functional.pad(x_NWD[..., 1:, :, :], (0, 0, 0, 0, 0, 1), value=filler)
