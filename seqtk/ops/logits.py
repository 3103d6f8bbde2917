"""Where Synthesizer attention gets its logits from, if not from comparing tokens (Tay et al. 2021, arXiv 2005.00743).

A source gives each query a logit for every *absolute position* 0 … L - 1 of a key, L = `max_length`; it never looks at
the key itself. So the position of a token, not its place in a padded row, decides which logits it gets.

B batch, T query length, S key length, D width of the layer, H heads, E = D / H, L longest input, K rank of a factor.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.ops.blockwise_softmax import Factors, Tensors, table
from seqtk.utils.errors import UserError


class Logits(nn.Module):
    """A source of logits; `config` holds heads, bias, max_length and, where it matters, rank."""

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        """What makes the logits of queries x, at the positions `rows`, for the keys at 0 … `columns` - 1.

        They are linear in the first of the tensors by query.
        """
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Tensor:
        """The logits, BHTS or 1HTS (the same for the whole batch)."""
        return self.factors(x_BTD, rows=rows, columns=columns).logits(columns)


class DenseLogits(Logits):
    """W2 relu(W1 x + b1) + b2 per head: D² + D L (+ D + H L bias) parameters.

    The paper's W1 keeps all D dimensions in each head, H (D² + D L) in total; like the official code we project to the
    head's own E, which costs no more than the query projection it replaces. Unlike that code, which shares one E × L
    matrix among the heads, each head has its own, as in the paper. Xavier-uniform, biases zero.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.hidden = _hidden(config, dim)
        self.logits = _HeadLinear(config, dim, config.max_length)

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        hidden_BHTE = self.hidden(x_BTD).relu().unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
        return self.logits.factors(hidden_BHTE, columns=columns)


class FactorizedDenseLogits(Logits):
    """Logit p b + q of a query is A_p B_q, where A and B are dense with a and b columns and a b >= L.

    b = ceil(√L), or what `fine` says, and a = ceil(L / b): D² + D (a + b) (+ D + H (a + b) bias) parameters.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        a, b = factors(config.max_length, config.fine)
        self.hidden = _hidden(config, dim)
        self.coarse = _HeadLinear(config, dim, a)
        self.fine = _HeadLinear(config, dim, b)

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        hidden_BHTE = self.hidden(x_BTD).relu().unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
        coarse_BHTa = self.coarse(hidden_BHTE, columns=-(-columns // self.fine.outputs))
        return Factors(_outer, Tensors(by_query=(coarse_BHTa, self.fine(hidden_BHTE))))


class RandomLogits(Logits):
    """A trained matrix R per head, whatever the input: H L² parameters, N(0, 1 / L) at first.

    So attention starts nearly uniform. From N(0, 1) a small model is far slower to learn to reverse its input.
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        size = config.max_length
        self.matrix = nn.Parameter(torch.randn(config.heads, size, size) / math.sqrt(size))

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        return Factors(table, Tensors(by_both=(_rows(self.matrix, rows),)))


class FixedRandomLogits(Logits):
    """A matrix per head that stays as it was drawn, from N(0, 1), so that heads differ: no trained parameter."""

    matrix: Tensor

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(config.heads, config.max_length, config.max_length))

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        return Factors(table, Tensors(by_both=(_rows(self.matrix, rows),)))


class FactorizedRandomLogits(Logits):
    """R = R1 R2ᵀ per head, of rank K: 2 H L K parameters; an element of R has variance 1 / L at first."""

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        shape = config.heads, config.max_length, config.rank
        deviation = (config.rank * config.max_length) ** -0.25
        self.query = nn.Parameter(torch.randn(shape) * deviation)
        self.key = nn.Parameter(torch.randn(shape) * deviation)

    def factors(self, x_BTD: Tensor, *, rows: slice, columns: int) -> Factors:
        key_1HKS = _rows(self.key, slice(0, columns)).transpose(2, 3)
        return Factors(product, Tensors((_rows(self.query, rows),), (key_1HKS,)))


def factors(length: int, fine: int | None = None) -> tuple[int, int]:
    """(a, b), near each other, with a b >= length; b is `fine` if that is given."""
    if fine is not None and fine < 1:
        raise UserError(f"attention.fine={fine} must be at least 1.")
    b = math.isqrt(length - 1) + 1 if fine is None else fine
    return -(-length // b), b


def _hidden(config: Any, dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim, bias=config.bias)
    nn.init.xavier_uniform_(linear.weight)
    if config.bias:
        nn.init.zeros_(linear.bias)
    return linear


class _HeadLinear(nn.Module):
    """A linear map of its own for each head, of which the first `columns` outputs can be had alone."""

    def __init__(self, config: Any, dim: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        head_dim = dim // config.heads
        bound = math.sqrt(6 / (head_dim + outputs))
        self.weight = nn.Parameter(torch.empty(config.heads, head_dim, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(config.heads, 1, outputs)) if config.bias else None

    def factors(self, x_BHTE: Tensor, *, columns: int) -> Factors:
        """What makes the first `columns` outputs; the bias is the weight of a 1 at the end of x."""
        if self.bias is None:
            return Factors(product, Tensors((x_BHTE,), (self.weight[None, ..., :columns],)))
        weight_HFS = torch.cat([self.weight[..., :columns], self.bias[..., :columns]], 1)
        return Factors(product, Tensors((functional.pad(x_BHTE, (0, 1), value=1.0),), (weight_HFS[None],)))

    def forward(self, x_BHTE: Tensor, *, columns: int | None = None) -> Tensor:
        columns = self.outputs if columns is None else columns
        return self.factors(x_BHTE, columns=columns).logits(columns)


def product(tensors: Tensors, columns: int) -> Tensor:
    """Logits that are a matrix product."""
    return tensors.by_query[0] @ tensors.by_key[0]


def _outer(tensors: Tensors, columns: int) -> Tensor:
    coarse_BHTa, fine_BHTb = tensors.by_query
    coarse_BHTa = coarse_BHTa[..., : -(-columns // fine_BHTb.shape[-1])]
    return (coarse_BHTa[..., :, None] * fine_BHTb[..., None, :]).flatten(-2)[..., :columns]


def _rows(matrix_HLX: Tensor, rows: slice) -> Tensor:
    """The given rows of one matrix per head: 1HTX."""
    if rows.stop - rows.start == matrix_HLX.shape[1]:
        return matrix_HLX[None]  # a slice's gradient would be copied
    return matrix_HLX[None, :, rows]


SOURCES: dict[str, type[Logits]] = {
    "dense": DenseLogits,
    "random": RandomLogits,
    "fixed_random": FixedRandomLogits,
    "factorized_dense": FactorizedDenseLogits,
    "factorized_random": FactorizedRandomLogits,
}
"""Every source, by the name that a mixture's `parts` uses."""
