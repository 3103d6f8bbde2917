"""Synthesizer attention: the weights come from one source that compares no tokens (Tay et al. 2021, arXiv 2005.00743).

Each kind is softmax(logits) V and an output projection; the sources, with their equations and parameter counts, are in
`parts/logits.py`. All biases are on unless `bias=False`, as in the dot-product layer they are compared with.
Self-attention only: in the published systems cross-attention stays dot-product, and replacing it costs 4 to 6 BLEU.

B batch, T query length, S key length, D width of the layer, H heads, E = D / H.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.blockwise_softmax import Factors, weigh
from seqtk.ops.logits import SOURCES, factors
from seqtk.ops.resizing import Resizable


@dataclass(frozen=True)
class SynthesizerConfig(QKVConfig):
    """What all Synthesizers share."""

    max_length: int = setting(256, at_least=1, help="The longest input. The matrices of logits have this size.")


class SynthesizedAttention(Resizable, HeadedAttention):
    """The value path, and the masks, that all Synthesizers share. Parameters: 2 D² (+ 2 D bias) + the sources'."""

    roles = Role.ENCODER | Role.CAUSAL

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.value = self.projection(dim)
        self.out = self.projection(dim)

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_length)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        self.check_length(x_BTD.shape[1])
        return self.out(self.join(self.mix(x_BTD, pad_BS))), None

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        """The heads' outputs, BHTE."""
        return weigh(
            self.factors(x_BTD, rows=slice(0, x_BTD.shape[1]), columns=x_BTD.shape[1]),
            self.split(self.value(x_BTD)).contiguous(),
            pad_BS=pad_BT,
            causal=self.role is Role.CAUSAL,
            dropout=self.active_dropout,
        )

    @property
    def active_dropout(self) -> float:
        return float(self.config.dropout) if self.training else 0.0

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        """What makes the logits of queries x, at the positions `rows`, for the keys at 0 … `columns` - 1."""
        raise NotImplementedError


class Synthesizer(SynthesizedAttention):
    """softmax(logits) V per head, the logits from one source."""

    source: ClassVar[str]

    def __init__(self, config: SynthesizerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.logits = SOURCES[self.source](config, dim)

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        return self.logits.factors(x_BTD, rows=rows, columns=columns)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept = cache.remember(state.dynamic, value=self.split(self.value(x_B1D)))
        length = cache.length(kept, "value")
        self.check_length(length)
        logits_BH1S = self.logits(x_B1D, rows=slice(length - 1, length), columns=length)
        return self.out(self.join(cache.average(logits_BH1S, kept))), state.advance(kept)


@dataclass(frozen=True)
class SynthesizerDenseConfig(SynthesizerConfig):
    """Logits from each query alone, by a perceptron per head."""


@attentions.register("synthesizer_dense", SynthesizerDenseConfig)
class SynthesizerDense(Synthesizer):
    """Each token predicts the logits of its row (`DenseLogits`)."""

    source = "dense"


@dataclass(frozen=True)
class SynthesizerRandomConfig(SynthesizerConfig):
    """Logits that are a trained matrix per head, the same for every input."""


@attentions.register("synthesizer_random", SynthesizerRandomConfig)
class SynthesizerRandom(Synthesizer):
    """The logits are a trained matrix per head (`RandomLogits`)."""

    source = "random"


@dataclass(frozen=True)
class SynthesizerFixedRandomConfig(SynthesizerConfig):
    """Logits that are a random matrix per head and never trained."""


@attentions.register("synthesizer_fixed_random", SynthesizerFixedRandomConfig)
class SynthesizerFixedRandom(Synthesizer):
    """The logits are a matrix per head that is drawn once and never trained (`FixedRandomLogits`)."""

    source = "fixed_random"


@dataclass(frozen=True)
class SynthesizerFactorizedDenseConfig(SynthesizerConfig):
    """Logits from each query alone, as the outer product of two short vectors."""

    fine: int | None = setting(
        None, at_least=1, help="Length of the factor that repeats along a row of logits. null: ceil(√max_length)."
    )


@attentions.register("synthesizer_factorized_dense", SynthesizerFactorizedDenseConfig)
class SynthesizerFactorizedDense(Synthesizer):
    """Each token predicts two factors of the logits of its row (`FactorizedDenseLogits`)."""

    source = "factorized_dense"

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        return keeping_fine(config, super().resized(config, max_length=max_length))


@dataclass(frozen=True)
class SynthesizerFactorizedRandomConfig(SynthesizerConfig):
    """Logits that are a trained matrix of low rank per head."""

    rank: int = setting(8, at_least=1, help="Rank of the matrix.")


@attentions.register("synthesizer_factorized_random", SynthesizerFactorizedRandomConfig)
class SynthesizerFactorizedRandom(Synthesizer):
    """The logits are a trained matrix of low rank per head (`FactorizedRandomLogits`)."""

    source = "factorized_random"


def keeping_fine(config: Any, resized: Any) -> Any:
    """`resized` with the factor b of `config`, since logit p b + q has to stay A_p B_q."""
    return dataclasses.replace(resized, fine=factors(config.max_length, config.fine)[1])
