"""Linear-time attention: a product of features replaces the softmax, so all queries share one sum over keys and values.

    y_t = Σ_s (φ(q_t) · φ(k_s)) v_s / Σ_s φ(q_t) · φ(k_s) = φ(q_t)ᵀ (Σ_s φ(k_s) v_sᵀ) / φ(q_t)ᵀ Σ_s φ(k_s)

over the positions s that t sees (Katharopoulos et al. 2020, arXiv 2006.16236, section 3.2): O(T R E) time per head for
R features, and no T × S matrix. Subclasses define φ.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head,
R features of a head, F = E + 1: values followed by a column of ones, whose weighted sum is the denominator.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState
from seqtk.attention.headwise import ALL_HEADS, HeadwiseAttention
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import probability
from seqtk.ops.dropout import dropout
from seqtk.ops.head_checkpoint import LazyProjection
from seqtk.ops.scan import CHUNK, causal_sums
from seqtk.ops.tensors import to_fp32, zero_padding

EPSILON = 1e-6
"""Added to denominators, in the layers whose papers do so."""


@dataclass(frozen=True)
class KernelConfig(QKVConfig):
    """The settings of linear-time attention layers with a feature map."""

    dropout: float = probability(
        0.0, help="Dropout of the attention weights. A key is dropped for all queries of a head at once."
    )


class KernelAttention(HeadwiseAttention):
    """Base class of linear-time attention: Σ_s φ(q) · φ(k_s) v_s / Σ_s φ(q) · φ(k_s) per head.

    Subclasses define φ by `features`. Parameters: 2 D² + 2 M D (+ 4 D bias) + the parameters of φ. Keys at padding are
    zeroed after φ, because φ(0) is not 0. Sums and denominators are in float32 or wider, also under autocast. The
    output is 0 where the denominator is 0. The state is Σ φ(k) [vᵀ 1], so a step takes O(R E) per head at any position.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    subquadratic = True

    def features(self, x_BHTE: Tensor, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        """Returns φ(x)_BHTR >= 0 for the queries or keys of `heads` at the positions `first`, `first` + 1, …"""
        raise NotImplementedError

    def key_features(
        self, key_BHSE: Tensor, *, heads: slice = ALL_HEADS, pad_BS: Tensor | None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (φ(k)_BHSR, shift). φ(k) is 0 at padding. `query_features` requires the shift, which may be None."""
        key_BHSR = self.features(key_BHSE, heads=heads, first=first)
        return zero_padding(key_BHSR, pad_BS), None

    def query_features(
        self, query_BHTE: Tensor, *, heads: slice = ALL_HEADS, shift_BH1R: Tensor | None, first: int = 0
    ) -> Tensor:
        """Returns φ(q)_BHTR. `shift_BH1R` is the second result of `key_features`."""
        return self.features(query_BHTE, heads=heads, first=first)

    @property
    def is_random(self) -> bool:
        """False, because `values` applies the dropout, and `mix_heads` draws no random numbers."""
        return False

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        """Returns the divisor of the weighted values: the sum of the weights, or 1 if a query sees no key."""
        return sum_BHT1.masked_fill(sum_BHT1 == 0, 1)

    def values(self, x_BSM: Tensor) -> Tensor:
        """Returns value_BHSE after dropout. The column of ones has no dropout, so the outputs are unbiased."""
        value_BHSE = super().values(x_BSM)
        if not self.active_dropout:
            return value_BHSE
        ones_BSH1 = torch.ones_like(value_BHSE[..., :1].transpose(1, 2))
        return value_BHSE * dropout(ones_BSH1, self.active_dropout).transpose(1, 2)

    def sources(self, x_BTD: Tensor, source_BSM: Tensor) -> tuple[Tensor | LazyProjection, ...]:
        query, key, value = super().sources(x_BTD, source_BSM)
        return query, key, self.join(self.values(source_BSM)) if self.active_dropout else value

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        if self.role is not Role.CAUSAL:
            return self.read(query_BHTE, self.compress(key_BHSE, value_BHSE, pad_BS=pad_BS, heads=heads), heads=heads)
        key_BHSR, shift = self.key_features(to_fp32(key_BHSE), heads=heads, pad_BS=pad_BS)
        query_BHTR = self.query_features(to_fp32(query_BHTE), heads=heads, shift_BH1R=shift)
        value_BHSF = with_ones(value_BHSE)
        chunk = balanced_chunk(query_BHTR.shape[-1], value_BHSF.shape[-1])
        return self.divide(causal_sums(query_BHTR, key_BHSR, value_BHSF, chunk=chunk))

    def start_mix(self, batch: int) -> State:
        return {"sums": None, "shift": None}

    def step(self, x_B1D: Tensor, state: StepState, *, first: int = 0) -> tuple[Tensor, StepState]:
        """Computes the next position. `first` is its index, which layers need if their features depend on positions."""
        seen = state.static
        if self.role is Role.CAUSAL:
            seen = self.compress(self.keys(x_B1D), self.values(x_B1D), pad_BS=None, first=first)
            if state.dynamic["sums"] is not None:
                seen["sums"] = state.dynamic["sums"] + seen["sums"]
            state = state.advance(seen)
        return self.out(self.join(self.read(self.queries(x_B1D), seen, first=first))), state

    def compress(
        self, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None, heads: slice = ALL_HEADS, first: int = 0
    ) -> State:
        """Returns a dict of `sums`, Σ_s φ(k_s) [v_sᵀ 1], BHRF, and `shift`, the second result of `key_features`."""
        key_BHSR, shift = self.key_features(to_fp32(key_BHSE), heads=heads, pad_BS=pad_BS, first=first)
        return {"sums": product(key_BHSR.mT, with_ones(value_BHSE)), "shift": shift}

    def read(self, query_BHTE: Tensor, memory: State, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        query_BHTE = to_fp32(query_BHTE)
        query_BHTR = self.query_features(query_BHTE, heads=heads, shift_BH1R=memory["shift"], first=first)
        return self.divide(product(query_BHTR, memory["sums"]))

    def divide(self, sums_BHTF: Tensor) -> Tensor:
        """Returns y_BHTE, the weighted values divided by the sum of their weights."""
        return sums_BHTF[..., :-1] / self.denominator(sums_BHTF[..., -1:])


def with_ones(value_BHSE: Tensor) -> Tensor:
    """Returns value_BHSF, the values with a column of ones."""
    return functional.pad(to_fp32(value_BHSE), (0, 1), value=1.0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the matrix product in the precision of the operands, even under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def balanced_chunk(features: int, width: int) -> int:
    """Returns the chunk size C at which weights (C per position) and sums (R F / C per position) take equal memory."""
    return max(CHUNK, int(2 ** round(math.log2(features * width) / 2)))
