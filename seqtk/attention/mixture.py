"""Mixtures of Synthesizers and dot-product attention (Tay et al. 2021, arXiv 2005.00743, section 3.3).

    y = softmax(Σ w_i S_i) V per head        S_dot = Q Kᵀ / √E; the other S_i are the sources of `synthesizer.py`

B batch, T query length, S key length, D width of the layer, H heads, E = D / H.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.synthesizer import SOURCES, SynthesizerAttention, SynthesizerConfig, keep_fine, product
from seqtk.config.fields import setting
from seqtk.modules.linear import Linear
from seqtk.ops import cache
from seqtk.ops.blockwise_softmax import SHORT, LogitSpec, LogitTensors, attention_mask, sum_logits
from seqtk.ops.dot_product import attend, attend_last
from seqtk.utils.errors import UserError

Part = Literal["dot", "dense", "random", "fixed_random", "factorized_dense", "factorized_random"]
Weights = Mapping[str, Tensor | float]
"""The weight of each part, broadcastable to HTS."""


@dataclass(frozen=True)
class SynthesizerMixtureConfig(SynthesizerConfig):
    """Attention whose logits are a weighted sum of several sources, as in `parts: [random, dot], mix: sigmoid`."""

    parts: tuple[Part, ...] = setting(("random", "dot"), help="Sources of the logits, two or more.")
    mix: Literal["sum", "sigmoid", "softmax"] = setting(
        "softmax",
        help="Weights of the parts. sum: all 1. sigmoid: a and 1 - a, for two parts. softmax: learned, with sum 1.",
    )
    per_head: bool = setting(False, help="Learn separate weights for each head.")
    rank: int = setting(8, at_least=1, help="Rank of factorized_random's matrix.")
    fine: int | None = setting(
        None,
        at_least=1,
        help="Length b of factorized_dense's vector B (key p b + q: A_p B_q). null: ceil(√max_length).",
    )


@attentions.register("synthesizer_mixture", SynthesizerMixtureConfig)
class SynthesizerMixture(SynthesizerAttention):
    """Attention with a weighted sum of logits: softmax(Σ w_i S_i) V per head.

    The setting `mix` selects the weights w_i. `sum`: all weights are 1. `softmax`: the softmax of one trained scalar
    per part (the paper). `sigmoid`: a and 1 - a for two parts, where a is the sigmoid of a trained scalar (the official
    code). The scalars start at 0, so all parts start with the same weight.

    Parameters: 2 D² (+ 2 D bias) for values and output, the parameters of each source, 2 D² (+ 2 D bias) for `dot`, and
    the scalars: one for `sigmoid`, one per part for `softmax`, times H with `per_head`. A step costs O(t D).
    """

    def __init__(
        self, config: SynthesizerMixtureConfig, *, dim: int, role: Role, memory_dim: int | None = None
    ) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        _check(config)
        self.sources = nn.ModuleDict({part: SOURCES[part](config, dim) for part in config.parts if part != "dot"})
        self.has_dot = "dot" in config.parts
        if self.has_dot:
            self.query = self.projection(dim, gain=1 / math.sqrt(2))
            self.key = self.projection(dim, gain=1 / math.sqrt(2))
        self.mixing: nn.Parameter | None = None
        if config.mix != "sum":
            scalars = 1 if config.mix == "sigmoid" else len(config.parts)
            self.mixing = nn.Parameter(torch.zeros(scalars, self.heads if config.per_head else 1))

    def weights(self) -> Weights:
        """Returns a dict from each part to its weight w_i."""
        if self.mixing is None:
            return dict.fromkeys(self.config.parts, 1.0)
        if self.config.mix == "sigmoid":
            weights = torch.cat([self.mixing.sigmoid(), (-self.mixing).sigmoid()])
        else:
            weights = self.mixing.softmax(0)
        return dict(zip(self.config.parts, weights[..., None, None], strict=True))

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        self.check_length(x_BTD.shape[1])
        if self.has_dot and x_BTD.device.type != "cpu":
            y_BHTE = self._fused(x_BTD, pad_BS=pad_BS)
        else:
            y_BHTE = self._mixed(x_BTD, pad_BS=pad_BS)
        return self.out(self.join(y_BHTE)), None

    def joint_maps(self) -> list[tuple[Linear, ...]]:
        return [(self.query, self.key, self.value)] if self.has_dot else []

    def _mixed(self, x_BTD: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Returns softmax(Σ w_i S_i) V as y_BHTE."""
        if not self.has_dot:
            value_BHSE = self.split(self.value(x_BTD)).contiguous()
            return self.average(self.mixed_logits(x_BTD), value_BHSE, pad_BS=pad_BS)
        query_BHTE, key_BHSE, value_BHSE = self.joint_heads(x_BTD, (self.query, self.key, self.value), wide=True)
        return self.average(self.mixed_logits(x_BTD, query_BHTE, key_BHSE), value_BHSE, pad_BS=pad_BS)

    def mixed_logits(self, x_BTD: Tensor, *query_and_key: Tensor) -> LogitSpec:
        """Returns a `LogitSpec` of the logits Σ w_i S_i. `query_and_key` are the query_BHTE and key_BHSE of `dot`."""
        length, weights = x_BTD.shape[1], self.weights()
        terms = self._synthetic(x_BTD, weights, rows=slice(0, length), columns=length)
        if self.has_dot:
            query_BHTE, key_BHSE = query_and_key
            key_BHES = key_BHSE.transpose(2, 3)
            key_BHES = key_BHES if length <= SHORT else key_BHES.contiguous()
            dot = LogitSpec(product, LogitTensors((query_BHTE,), (key_BHES,)))
            terms.append(dot.scaled(weights["dot"] / math.sqrt(self.head_dim)))
        return sum_logits(terms)

    def _synthetic(self, x_BTD: Tensor, weights: Weights, *, rows: slice, columns: int) -> list[LogitSpec]:
        """Returns a `LogitSpec` of the weighted logits w_i S_i for each part except `dot`."""
        return [
            source(x_BTD, rows=rows, columns=columns).scaled(weights[part]) for part, source in self.sources.items()
        ]

    def _fused(self, x_BTD: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Returns y_BHTE from a GPU's fused kernel. The logits of all parts except `dot` are the bias of the kernel."""
        length, weights = x_BTD.shape[1], self.weights()
        bias_BHTS = sum_logits(self._synthetic(x_BTD, weights, rows=slice(0, length), columns=length)).logits(length)
        seen = attention_mask(pad_BS, causal=self.role is Role.CAUSAL, length=length, device=x_BTD.device)
        if seen is not None:
            bias_BHTS = torch.where(seen, bias_BHTS, -math.inf)
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        return attend(query * weights["dot"], key, value, bias=bias_BHTS, dropout=self.active_dropout)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty(*(["key"] if self.has_dot else []), "value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        cached = {"key": self.key, "value": self.value} if self.has_dot else {"value": self.value}
        kept = cache.remember(state.dynamic, **{name: self.split(linear(x_B1D)) for name, linear in cached.items()})
        length, weights = cache.length(kept, "value"), self.weights()
        self.check_length(length)
        terms = self._synthetic(x_B1D, weights, rows=slice(length - 1, length), columns=length)
        logits_BH1S = sum_logits(terms).logits(length)
        if self.has_dot:
            query_BH1E = self.split(self.query(x_B1D)) * weights["dot"]
            y_BH1E = attend_last(query_BH1E, kept, bias=logits_BH1S)
        else:
            y_BH1E = cache.average(logits_BH1S, kept)
        return self.out(self.join(y_BH1E)), state.advance(kept)

    def monitored(self) -> dict[str, float]:
        """Returns the mixing weight of each part, or of each part and head with `per_head`."""
        if self.mixing is None:
            return {}
        by_part = {part: torch.as_tensor(weight).flatten().tolist() for part, weight in self.weights().items()}
        if not self.config.per_head:
            return {part: values[0] for part, values in by_part.items()}
        return {f"{part}.{head}": value for part, values in by_part.items() for head, value in enumerate(values)}

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        resized = super().resized(config, max_length=max_length)
        return keep_fine(config, resized) if "factorized_dense" in config.parts else resized


def _check(config: SynthesizerMixtureConfig) -> None:
    """Raises UserError if the parts cannot be mixed."""
    parts = ", ".join(config.parts)
    if len(config.parts) < 2 or len(set(config.parts)) < len(config.parts):
        raise UserError(f"attention.parts=[{parts}]: must be two or more different sources of logits.")
    if config.mix == "sigmoid" and len(config.parts) != 2:
        raise UserError(
            f"attention.mix=sigmoid requires two parts, but attention.parts=[{parts}] has {len(config.parts)}.",
            "Set attention.mix=softmax or attention.mix=sum.",
        )
