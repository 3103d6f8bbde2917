"""Synthesizer attention: the weights come from one source that compares no tokens (Tay et al. 2021, arXiv 2005.00743).

Each kind is softmax(logits) V and an output projection; the sources, with their equations and parameter counts, are in
`logits.py`. All biases are on unless `bias=False`, as in the dot-product layer they are compared with. Self-attention
only: in the published systems cross-attention stays dot-product, and replacing it costs 4 to 6 BLEU.

B batch, T query length, S key length, D width of the layer, H heads, E = D / H.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqtk.attention import cache
from seqtk.attention.base import HeadedAttention, HeadedConfig, Role, State, attentions
from seqtk.attention.logits import SOURCES, factors
from seqtk.attention.resizing import Resizable
from seqtk.attention.softmax import causal_mask, padding_bias
from seqtk.modules.dropout import Dropout


@dataclass(frozen=True)
class SynthesizerConfig(HeadedConfig):
    """What all Synthesizers share."""

    max_length: int = 256  # the longest input; the logits' matrices are of this size


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

    def seen(self, x_BTD: Tensor, pad_BS: Tensor | None) -> Tensor | None:
        """The mask, True where seen and of a shape that broadcasts to BHTS, of padding and the future."""
        if self.role is not Role.CAUSAL:
            return padding_bias(pad_BS)
        length = x_BTD.shape[1]
        return (
            causal_mask(length, x_BTD.device)[None, None]
            if pad_BS is None
            else padding_bias(pad_BS, causal_length=length)
        )

    @property
    def active_dropout(self) -> float:
        return float(self.config.dropout) if self.training else 0.0


class Synthesizer(SynthesizedAttention):
    """softmax(logits) V per head, the logits from one source."""

    source: ClassVar[str]

    def __init__(self, config: SynthesizerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.logits = SOURCES[self.source](config, dim)

    @classmethod
    def parameter_count(cls, config: SynthesizerConfig, *, dim: int, memory_dim: int | None = None) -> int:
        return 2 * dim * (dim + config.bias) + SOURCES[cls.source].parameter_count(config, dim)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        self.check_length(x_BTD.shape[1])
        y_BHTE = weigh(
            self.logits.at(x_BTD, positions_BT),
            self.split(self.value(x_BTD)),
            seen=self.seen(x_BTD, pad_BS),
            dropout=self.active_dropout,
        )
        return self.out(self.join(y_BHTE))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        return cache.empty("value")

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        state = cache.remember(state, value=self.split(self.value(x_B1D)))
        length = cache.length(state, "value")
        self.check_length(length)
        logits_BH1S = self.logits(x_B1D, rows=slice(length - 1, length), columns=length)
        return self.out(self.join(cache.average(logits_BH1S, state))), state


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

    fine: int | None = None  # b, the length of the factor that repeats along a row of logits; null: ceil(√max_length)


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

    rank: int = 8  # of the matrix


@attentions.register("synthesizer_factorized_random", SynthesizerFactorizedRandomConfig)
class SynthesizerFactorizedRandom(Synthesizer):
    """The logits are a trained matrix of low rank per head (`FactorizedRandomLogits`)."""

    source = "factorized_random"


def keeping_fine(config: Any, resized: Any) -> Any:
    """`resized` with the factor b of `config`, since logit p b + q has to stay A_p B_q."""
    return dataclasses.replace(resized, fine=factors(config.max_length, config.fine)[1])


def weigh(logits_BHTS: Tensor, value_BHSE: Tensor, *, seen: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(logits where `seen`) V; a query that sees nothing gets 0. The logits may be 1HTS: the same for all rows.

    In float32 on a CPU even under autocast, as is dot-product attention.
    """
    if value_BHSE.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return weigh(logits_BHTS.float(), value_BHSE.float(), seen=seen, dropout=dropout)
    if _can_share(logits_BHTS, value_BHSE, seen) and not dropout:
        y_BHTE = _weigh_alike(logits_BHTS[0], value_BHSE, seen[:, 0, 0])  # type: ignore[index]
        if y_BHTE is not None:
            return y_BHTE
    if seen is not None:
        logits_BHTS = logits_BHTS.masked_fill(~seen, torch.finfo(logits_BHTS.dtype).min)
    weights_BHTS = logits_BHTS.softmax(-1)
    if dropout:
        weights_BHTS = Dropout(dropout)(weights_BHTS.expand(len(value_BHSE), -1, -1, -1))
    weights_BHTS = weights_BHTS.to(value_BHSE.dtype)
    if len(weights_BHTS) == 1:  # one product per head, of its matrix with the values of all rows side by side
        y_BHTE = torch.einsum("hts,bhse->bhte", weights_BHTS[0], value_BHSE)
    else:
        y_BHTE = weights_BHTS @ value_BHSE
    return y_BHTE if seen is None else y_BHTE.masked_fill(~seen.any(-1, keepdim=True), 0)


def _can_share(logits_BHTS: Tensor, value_BHSE: Tensor, seen: Tensor | None) -> bool:
    """Whether rows that differ only in their padding are better weighed by `_weigh_alike`.

    It pays from some 64 positions on, and where it costs nothing to look at a result: on a CPU.
    """
    only_padding = seen is not None and seen.shape[1:3] == (1, 1)
    return only_padding and len(logits_BHTS) == 1 and value_BHSE.shape[2] >= 64 and value_BHSE.device.type == "cpu"


def _weigh_alike(logits_HTS: Tensor, value_BHSE: Tensor, seen_BS: Tensor) -> Tensor | None:
    """As `weigh`, but never makes BHTS weights: exp(logits) is the same for all rows, only its sum over s is not.

    None where the largest logits all belong to padding, and those of some row's own tokens are so far below that their
    exponentials are lost.
    """
    exp_HTS = (logits_HTS - logits_HTS.detach().amax(-1, keepdim=True)).exp()
    seen_BS = seen_BS.to(exp_HTS.dtype)
    sum_BHT = torch.einsum("hts,bs->bht", exp_HTS, seen_BS)
    nothing_seen_B11 = seen_BS.sum(-1)[:, None, None] == 0
    if torch.where(nothing_seen_B11, 1, sum_BHT).min() < 1e-20:
        return None
    y_BHTE = torch.einsum("hts,bhse->bhte", exp_HTS, value_BHSE * seen_BS[:, None, :, None])
    return y_BHTE / torch.where(nothing_seen_B11, 1, sum_BHT)[..., None]
