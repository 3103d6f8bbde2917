"""Synthesizer attention: logits that do not compare tokens (Tay et al. 2021, arXiv 2005.00743, section 3).

    y = softmax(logits) V per head, and an output projection

A source computes a logit for each query and each absolute key position 0 … L - 1, L = `max_length`, without reading the
key. `mixture.py` sums several sources. Self-attention only: in the published systems cross-attention stays dot-product,
and replacing it costs 4 to 6 BLEU. Biases are on unless `bias=False`, as in `softmax`.

On a CPU, only one block of the T × T logits is in memory at a time (`seqtk/ops/blockwise_softmax.py`).

B batch, T query length, S key length, D width of the layer, H heads, E = D / H, L longest input, K rank of a factor.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.attention.resizing import Resizable
from seqtk.config.fields import setting
from seqtk.modules.linear import xavier_linear
from seqtk.ops import cache
from seqtk.ops.blockwise_softmax import LogitSpec, LogitTensors, blockwise_softmax, table


@dataclass(frozen=True)
class SynthesizerConfig(QKVConfig):
    """The settings that all Synthesizers have."""

    source: ClassVar[type["LogitSource"]]
    """The source of the logits, unless the layer mixes several."""
    max_length: int = setting(256, at_least=1, help="Longest input, and size of the matrices of logits.")


class LogitSource(nn.Module):
    """Base class of sources of logits. `config` has heads, bias, max_length and the settings of the source."""

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        """Returns a `LogitSpec` of the logits of queries x at the positions `rows` for the keys at 0 … `columns` - 1.

        The logits are BHTS or 1HTS. They must be linear in the first query tensor of the `LogitSpec`.
        """
        raise NotImplementedError


class SynthesizerAttention(Resizable, HeadedAttention):
    """Base class of all Synthesizers, with the value and output projections.

    Parameters: 2 D² (+ 2 D bias), and the parameters of the source.
    """

    roles = Role.ENCODER | Role.CAUSAL

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.value = self.projection(dim)
        self.out = self.projection(dim)

    def average(self, logits: LogitSpec, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Returns y_BHTE = softmax(logits) V over the visible positions."""
        causal = self.role is Role.CAUSAL
        return blockwise_softmax(logits, value_BHSE, pad_BS=pad_BS, causal=causal, dropout=self.active_dropout)


class DenseLogits(LogitSource):
    """Logits that a perceptron per head predicts from the query: W2 relu(W1 x + b1) + b2 (section 3.1).

    Parameters: D² + D L (+ D + H L bias). The paper's W1 keeps all D dimensions in each head, H (D² + D L) in total.
    Like the official code, seqtk projects to the E dimensions of the head, which costs no more than the query
    projection it replaces. Unlike the official code, which shares one E × L matrix among the heads, each head has its
    own W2, as in the paper. Weights are Xavier-uniform, biases 0.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.hidden = xavier_linear(dim, dim, bias=config.bias)
        self.logits = HeadLinear(config, dim, config.max_length)

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        hidden_BHTE = self.hidden(x_BTD).relu().unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
        return self.logits(hidden_BHTE, columns=columns)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SynthesizerDenseConfig(SynthesizerConfig):
    """Attention whose logits a perceptron per head predicts from each query alone."""

    source = DenseLogits


class RandomLogits(LogitSource):
    """Logits that are a learned matrix per head, the same for every input (section 3.2). Parameters: H L².

    Initialized from N(0, 1 / L), so that attention is nearly uniform at first. With N(0, 1), a small model learns to
    reverse its input far more slowly.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        size = config.max_length
        self.matrix = nn.Parameter(torch.randn(config.heads, size, size) / math.sqrt(size))

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        return LogitSpec(table, LogitTensors(by_both=(select_rows(self.matrix, rows),)))


@dataclass(frozen=True)
class SynthesizerRandomConfig(SynthesizerConfig):
    """Attention whose logits are a learned matrix per head, the same for every input."""

    source = RandomLogits


class FixedRandomLogits(LogitSource):
    """Logits that are a random matrix per head, never trained but saved with the model (section 3.2). No parameters.

    The elements are from N(0, 1).
    """

    matrix: Tensor

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(config.heads, config.max_length, config.max_length))

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        return LogitSpec(table, LogitTensors(by_both=(select_rows(self.matrix, rows),)))


@dataclass(frozen=True)
class SynthesizerFixedRandomConfig(SynthesizerConfig):
    """Attention whose logits are a random matrix per head, never trained."""

    source = FixedRandomLogits


class FactorizedDenseLogits(LogitSource):
    """Logits that are products of two predicted vectors A and B: the key p b + q has the logit A_p B_q (section 3.1).

    A and B are predicted as in `DenseLogits`, and have a and b elements, a b >= L. b = `fine`, or ceil(√L), and a =
    ceil(L / b). Parameters: D² + D (a + b) (+ D + H (a + b) bias).
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        a, b = factor_lengths(config.max_length, config.fine)
        self.hidden = xavier_linear(dim, dim, bias=config.bias)
        self.coarse = HeadLinear(config, dim, a)
        self.fine = HeadLinear(config, dim, b)

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        hidden_BHTE = self.hidden(x_BTD).relu().unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
        coarse, fine = -(-columns // self.fine.outputs), self.fine.outputs
        coarse_BHTa = self.coarse(hidden_BHTE, columns=coarse).logits(coarse)
        fine_BHTb = self.fine(hidden_BHTE, columns=fine).logits(fine)
        return LogitSpec(outer, LogitTensors(by_query=(coarse_BHTa, fine_BHTb)))


@dataclass(frozen=True)
class SynthesizerFactorizedDenseConfig(SynthesizerConfig):
    """Attention whose logits are the outer product of two short vectors, A and B, predicted from each query alone."""

    source = FactorizedDenseLogits

    fine: int | None = setting(
        None,
        at_least=1,
        help="Length b of the vector B: the key p b + q has the logit A_p B_q. null: ceil(√max_length).",
    )


def factor_lengths(length: int, fine: int | None = None) -> tuple[int, int]:
    """Returns the lengths (a, b) of two factors with a b >= length. b is `fine`, or √length rounded up by default."""
    b = math.isqrt(length - 1) + 1 if fine is None else fine
    return -(-length // b), b


def keep_fine(config: Any, resized: Any) -> Any:
    """Returns a copy of `resized` with the factor length `fine` of `config`.

    A different `fine`, which is b, would give the logit A_p B_q to a different key, p b + q.
    """
    return dataclasses.replace(resized, fine=factor_lengths(config.max_length, config.fine)[1])


class FactorizedRandomLogits(LogitSource):
    """Logits that are a learned matrix R1 R2ᵀ of rank K per head (section 3.2). Parameters: 2 H L K.

    Initially each element has variance 1 / L.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        shape = config.heads, config.max_length, config.rank
        deviation = (config.rank * config.max_length) ** -0.25
        self.query = nn.Parameter(torch.randn(shape) * deviation)
        self.key = nn.Parameter(torch.randn(shape) * deviation)

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> LogitSpec:
        key_1HKS = select_rows(self.key, slice(0, columns)).transpose(2, 3)
        return LogitSpec(product, LogitTensors((select_rows(self.query, rows),), (key_1HKS,)))


@dataclass(frozen=True)
class SynthesizerFactorizedRandomConfig(SynthesizerConfig):
    """Attention whose logits are a learned low-rank matrix per head."""

    source = FactorizedRandomLogits

    rank: int = setting(8, at_least=1, help="Rank of the matrix.")


@attentions.register("synthesizer_dense", SynthesizerDenseConfig)
@attentions.register("synthesizer_random", SynthesizerRandomConfig)
@attentions.register("synthesizer_fixed_random", SynthesizerFixedRandomConfig)
@attentions.register("synthesizer_factorized_dense", SynthesizerFactorizedDenseConfig)
@attentions.register("synthesizer_factorized_random", SynthesizerFactorizedRandomConfig)
class Synthesizer(SynthesizerAttention):
    """A Synthesizer with one source of logits: softmax(logits) V per head."""

    def __init__(self, config: SynthesizerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.logits = config.source(config, dim)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        length = x_BTD.shape[1]
        self.check_length(length)
        logits = self.logits(x_BTD, rows=slice(0, length), columns=length)
        value_BHSE = self.split(self.value(x_BTD)).contiguous()
        return self.out(self.join(self.average(logits, value_BHSE, pad_BS=pad_BS))), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept = cache.remember(state.dynamic, value=self.split(self.value(x_B1D)))
        length = cache.length(kept, "value")
        self.check_length(length)
        logits_BH1S = self.logits(x_B1D, rows=slice(length - 1, length), columns=length).logits(length)
        return self.out(self.join(cache.average(logits_BH1S, kept))), state.advance(kept)

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        resized = super().resized(config, max_length=max_length)
        return keep_fine(config, resized) if isinstance(config, SynthesizerFactorizedDenseConfig) else resized


SOURCES: dict[str, type[LogitSource]] = {
    "dense": DenseLogits,
    "random": RandomLogits,
    "fixed_random": FixedRandomLogits,
    "factorized_dense": FactorizedDenseLogits,
    "factorized_random": FactorizedRandomLogits,
}
"""Name in a mixture's `parts` → source of logits."""


class HeadLinear(nn.Module):
    """A linear map per head that can compute only its first `columns` outputs."""

    def __init__(self, config: Any, dim: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        head_dim = dim // config.heads
        bound = math.sqrt(6 / (head_dim + outputs))
        self.weight = nn.Parameter(torch.empty(config.heads, head_dim, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(config.heads, 1, outputs)) if config.bias else None

    def forward(self, x_BHTE: Tensor, *, columns: int) -> LogitSpec:
        """Returns a `LogitSpec` of the outputs, a matrix product. A 1 is appended to x for the bias."""
        weight_HES = self.weight[..., :columns]
        if self.bias is not None:
            weight_HES = torch.cat([weight_HES, self.bias[..., :columns]], 1)
            x_BHTE = functional.pad(x_BHTE, (0, 1), value=1.0)
        return LogitSpec(product, LogitTensors((x_BHTE,), (weight_HES[None],)))


def product(tensors: LogitTensors, columns: int) -> Tensor:
    """Returns the logits as a matrix product of two tensors."""
    return tensors.by_query[0] @ tensors.by_key[0]


def outer(tensors: LogitTensors, columns: int) -> Tensor:
    """Returns the logits of each query as the outer product of a coarse and a fine factor."""
    coarse_BHTa, fine_BHTb = tensors.by_query
    coarse_BHTa = coarse_BHTa[..., : -(-columns // fine_BHTb.shape[-1])]
    return (coarse_BHTa[..., :, None] * fine_BHTb[..., None, :]).flatten(-2)[..., :columns]


def select_rows(matrix_HLX: Tensor, rows: slice) -> Tensor:
    """Returns the given rows of the matrix of each head: 1HTX."""
    if rows.stop - rows.start == matrix_HLX.shape[1]:
        return matrix_HLX[None]  # avoids a copy of the gradient of a slice
    return matrix_HLX[None, :, rows]
