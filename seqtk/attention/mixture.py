"""A mixture of Synthesizers, with each other and with dot-product attention (Tay et al. 2021, arXiv 2005.00743).

The logits are mixed, S = Σ w_i S_i, and one softmax over them weighs one set of values.

B batch, T query length, S key length, D width of the layer, H heads, E = D / H.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.synthesizer import SynthesizedAttention, SynthesizerConfig, keeping_fine
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.blockwise_softmax import Factors, Tensors, added_up, seen_of
from seqtk.ops.dot_product import attend, attend_last
from seqtk.ops.logits import SOURCES, product
from seqtk.utils.errors import UserError

Part = Literal["dot", "dense", "random", "fixed_random", "factorized_dense", "factorized_random"]


@dataclass(frozen=True)
class SynthesizerMixtureConfig(SynthesizerConfig):
    """Logits that are the sum of several sources', for example `parts: [random, dot], mix: sigmoid`."""

    parts: tuple[Part, ...] = setting(("random", "dot"), help="Sources of the logits, two or more.")
    mix: Literal["sum", "sigmoid", "softmax"] = setting(
        "softmax", help="Weights of the parts. sum: all 1. sigmoid: a and 1 - a of two parts. softmax: they sum to 1."
    )
    per_head: bool = setting(False, help="Learn the weights for each head.")
    rank: int = setting(8, at_least=1, help="Rank of factorized_random's matrix.")
    fine: int | None = setting(
        None, at_least=1, help="Length of the factor of factorized_dense that repeats. null: ceil(√max_length)."
    )


@attentions.register("synthesizer_mixture", SynthesizerMixtureConfig)
class SynthesizerMixture(SynthesizedAttention):
    """softmax(Σ w_i S_i) V per head.

    The weights w: `sum` 1 each; `softmax` that of one trained scalar a part (the paper); `sigmoid` a = sigmoid(one
    trained scalar) for the first of two parts and 1 - a for the second (the official code). The scalars start at 0, so
    that the parts weigh the same. Parameters: those of the value path, of each source, 2 D² (+ 2 D bias) for `dot`, and
    the scalars: one for `sigmoid`, one a part for `softmax`, times H where each head has its own.
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
        self.mixing = nn.Parameter(torch.zeros(_scalars(config))) if config.mix != "sum" else None

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        resized = super().resized(config, max_length=max_length)
        return keeping_fine(config, resized) if "factorized_dense" in config.parts else resized

    def weights(self) -> dict[str, Tensor | float]:
        """Each part's weight, of a shape that broadcasts to HTS."""
        if self.mixing is None:
            return dict.fromkeys(self.config.parts, 1.0)
        if self.config.mix == "sigmoid":
            weights = torch.cat([self.mixing.sigmoid(), (-self.mixing).sigmoid()])
        else:
            weights = self.mixing.softmax(0)
        return dict(zip(self.config.parts, weights[..., None, None], strict=True))

    def monitored(self) -> dict[str, float]:
        """The parts' weights, by part, and by head where each has its own."""
        if self.mixing is None:
            return {}
        by_part = {part: torch.as_tensor(weight).flatten().tolist() for part, weight in self.weights().items()}
        if not self.config.per_head:
            return {part: values[0] for part, values in by_part.items()}
        return {f"{part}.{head}": value for part, values in by_part.items() for head, value in enumerate(values)}

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        """On a GPU the fused kernel compares the tokens; the other logits are its bias."""
        if not self.has_dot or x_BTD.device.type == "cpu":
            return super().mix(x_BTD, pad_BT)
        length, weights = x_BTD.shape[1], self.weights()
        bias_BHTS = added_up(self._synthetic(x_BTD, weights, slice(0, length), length)).logits(length)
        seen = seen_of(pad_BT, causal=self.role is Role.CAUSAL, length=length, device=x_BTD.device)
        if seen is not None:
            bias_BHTS = torch.where(seen, bias_BHTS, -math.inf)
        query, key, value = (self.split(projection(x_BTD)) for projection in (self.query, self.key, self.value))
        return attend(query * weights["dot"], key, value, bias=bias_BHTS, dropout=self.active_dropout)

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        weights = self.weights()
        terms = self._synthetic(x_BTD, weights, rows, columns)
        if self.has_dot:
            query_BHTE = self.split(self.query(x_BTD)).contiguous() / math.sqrt(self.head_dim)
            key_BHES = self.split(self.key(x_BTD)).transpose(2, 3).contiguous()
            terms.append(Factors(product, Tensors((query_BHTE,), (key_BHES,))).scaled(weights["dot"]))
        return added_up(terms)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty(*(["key"] if self.has_dot else []), "value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        names = ("key", "value") if self.has_dot else ("value",)
        kept = cache.remember(state.dynamic, **{name: self.split(getattr(self, name)(x_B1D)) for name in names})
        length = cache.length(kept, "value")
        self.check_length(length)
        weights, rows = self.weights(), slice(length - 1, length)
        logits_BH1S = added_up(self._synthetic(x_B1D, weights, rows, length)).logits(length)
        if self.has_dot:
            query_BH1E = self.split(self.query(x_B1D)) * weights["dot"]
            y_BH1E = attend_last(query_BH1E, kept, bias=logits_BH1S)
        else:
            y_BH1E = cache.average(logits_BH1S, kept)
        return self.out(self.join(y_BH1E)), state.advance(kept)

    def _synthetic(self, x_BTD: Tensor, weights: dict[str, Tensor | float], rows: slice, columns: int) -> list[Factors]:
        """The weighed factors of each part but `dot`."""
        return [
            source.factors(x_BTD, rows=rows, columns=columns).scaled(weights[part])  # type: ignore[operator]
            for part, source in self.sources.items()
        ]


def _scalars(config: Any) -> tuple[int, int]:
    """The shape of the trained scalars."""
    rows = {"sum": 0, "sigmoid": 1, "softmax": len(config.parts)}[config.mix]
    return rows, config.heads if config.per_head else 1


def _check(config: SynthesizerMixtureConfig) -> None:
    parts = ", ".join(config.parts)
    if len(config.parts) < 2 or len(set(config.parts)) < len(config.parts):
        raise UserError(f"attention.parts=[{parts}] must be two or more different sources of logits.")
    if config.mix == "sigmoid" and len(config.parts) != 2:
        raise UserError(
            f"attention.mix=sigmoid weighs two parts, not {len(config.parts)}: attention.parts=[{parts}].",
            "Use attention.mix=softmax, or sum.",
        )
