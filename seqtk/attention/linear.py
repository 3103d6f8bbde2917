"""Kernelised attention: a product of features in place of the softmax, so that keys and values are summed up once.

y_t = Σ_s (φ(q_t) · φ(k_s)) v_s / Σ_s φ(q_t) · φ(k_s) = φ(q_t)ᵀ (Σ_s φ(k_s) v_sᵀ) / φ(q_t)ᵀ (Σ_s φ(k_s)) over the s seen
(Katharopoulos et al. 2020, arXiv 2006.16236, section 3.2): O(T R E) time for R features, and no T × S matrix.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head,
R features of a head. Values carry a column of ones at their end, F = E + 1, whose sum is the denominator.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import probability, setting
from seqtk.modules.dropout import Dropout
from seqtk.ops.head_checkpoint import Projected, by_heads
from seqtk.ops.scan import CHUNK, causal_sums

ALL = slice(None)
"""Of the heads."""

PROJECTIONS = ("query", "key", "value", "out")

EPSILON = 1e-6
"""What keeps denominators from 0 in the kinds whose papers say so."""


@dataclass(frozen=True)
class KernelConfig(QKVConfig):
    """What all kernelised layers share."""

    dropout: float = probability(
        0.0, help="Dropout of the attention weights. A key is dropped for all queries of a head at once."
    )


class KernelAttention(HeadedAttention):
    """Σ_s φ(q) · φ(k_s) v_s / Σ_s φ(q) · φ(k_s) per head; a kind says what φ is.

    Parameters: 2 D² + 2 M D (+ 4 D bias) + those of φ. Padding is taken out after φ, since φ(0) is not 0; sums and
    denominators are float32 or wider, whatever autocast says; where the denominator is 0 so is the output. The state is
    Σ φ(k) [vᵀ 1]: a step takes O(R E), however long the past.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections()
        self.weight_dropout = Dropout(config.dropout)

    def features(self, x_BHTE: Tensor, *, some: slice = ALL, first: int = 0) -> Tensor:
        """φ of queries and of keys of `some` heads, BHTR, at least 0; they are at the positions from `first` on."""
        raise NotImplementedError

    def key_features(
        self, key_BHSE: Tensor, *, some: slice = ALL, pad_BS: Tensor | None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """φ of keys, 0 at padding, and what `query_features` has to know of them: BH1R or None."""
        key_BHSR = self.features(key_BHSE, some=some, first=first)
        return key_BHSR if pad_BS is None else key_BHSR.masked_fill(pad_BS[:, None, :, None], 0), None

    def query_features(
        self, query_BHTE: Tensor, *, some: slice = ALL, shift_BH1R: Tensor | None, first: int = 0
    ) -> Tensor:
        """φ of queries."""
        return self.features(query_BHTE, some=some, first=first)

    @property
    def is_random(self) -> bool:
        """Whether φ draws anything just now."""
        return False

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        """What the sum of weighted values is divided by: the sum of the weights, or 1 where nothing is seen."""
        return sum_BHT1.masked_fill(sum_BHT1 == 0, 1)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        keys_from = x_BTD if memory_BSM is None else memory_BSM
        self.check_length(max(x_BTD.shape[1], keys_from.shape[1]))

        def attend(some: slice, query_BTD: Tensor, key_BSD: Tensor, value_BSD: Tensor) -> Tensor:
            key_BHSR, value_BHSF, shift = self._keys(key_BSD, value_BSD, some, pad_BS=pad_BS)
            query_BHTR = self._queries(query_BTD, some, shift=shift)
            if self.role is Role.CAUSAL:
                chunk = balanced_chunk(query_BHTR.shape[-1], value_BHSF.shape[-1])
                return self._quotient(causal_sums(query_BHTR, key_BHSR, value_BHSF, chunk=chunk))
            return self._quotient(product(query_BHTR, product(key_BHSR.transpose(-1, -2), value_BHSF)))

        dropped = self.training and self.config.dropout
        y_BTD = by_heads(
            attend,
            Projected(x_BTD, self.query),
            Projected(keys_from, self.key),
            self._drop(self.value(keys_from)) if dropped else Projected(keys_from, self.value),
            heads=self.heads,
            through=[weight for name, weight in self.named_parameters() if name.split(".")[0] not in PROJECTIONS],
            is_random=self.is_random,
        )
        return self.out(y_BTD), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if self.role is not Role.CROSS:
            return StepState(dynamic={"sums": None, "shift": None})
        assert memory_BSM is not None
        self.check_length(memory_BSM.shape[1])
        sums_BHRF, shift = self._sums(memory_BSM, pad_BS=pad_BS)
        return StepState(static={"sums": sums_BHRF, "shift": shift})

    def step(self, x_B1D: Tensor, state: StepState, *, first: int = 0) -> tuple[Tensor, StepState]:
        seen = state.static
        if self.role is not Role.CROSS:
            new_BHRF, shift = self._sums(x_B1D, pad_BS=None, first=first)
            past_BHRF = state.dynamic["sums"]
            seen = {"sums": new_BHRF if past_BHRF is None else past_BHRF + new_BHRF, "shift": shift}
            state = state.advance(seen)
        query_BH1R = self._queries(self.query(x_B1D), ALL, shift=seen["shift"], first=first)
        return self.out(self._quotient(product(query_BH1R, seen["sums"]))), state

    def _sums(self, keys_from_BSM: Tensor, *, pad_BS: Tensor | None, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Σ φ(k) [vᵀ 1], BHRF, and what the queries have to know of the keys."""
        key_BSD, value_BSD = self.key(keys_from_BSM), self._drop(self.value(keys_from_BSM))
        key_BHSR, value_BHSF, shift = self._keys(key_BSD, value_BSD, ALL, pad_BS=pad_BS, first=first)
        return product(key_BHSR.transpose(-1, -2), value_BHSF), shift

    def _drop(self, value_BSD: Tensor) -> Tensor:
        """Values with dropout. Their column of ones, which is to come, stays: what is left is right on average."""
        kept_BSH1 = self.weight_dropout(torch.ones_like(value_BSD[..., : self.heads, None]))
        dropped_BSD: Tensor = value_BSD * kept_BSH1.expand(-1, -1, -1, self.head_dim).flatten(2)
        return dropped_BSD

    def _keys(
        self, key_BSD: Tensor, value_BSD: Tensor, some: slice, *, pad_BS: Tensor | None, first: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """φ of some heads' keys, their values with a column of ones, and what the queries have to know of the keys."""
        key_BHSR, shift = self.key_features(wide(self.split(key_BSD)), some=some, pad_BS=pad_BS, first=first)
        return wide(key_BHSR), functional.pad(wide(self.split(value_BSD)), (0, 1), value=1.0), shift

    def _queries(self, query_BTD: Tensor, some: slice, *, shift: Tensor | None, first: int = 0) -> Tensor:
        query_BHTE = wide(self.split(query_BTD))
        return wide(self.query_features(query_BHTE, some=some, shift_BH1R=shift, first=first))

    def _quotient(self, sums_BHTF: Tensor) -> Tensor:
        """The weighted values over the sum of their weights, joined."""
        return self.join(sums_BHTF[..., :-1] / self.denominator(sums_BHTF[..., -1:]))


@dataclass(frozen=True)
class LinearConfig(KernelConfig):
    """Linear attention, φ = elu + 1: the weights of dot-product attention, O(T D² / H) time in any role."""


@attentions.register("linear", LinearConfig)
class LinearAttention(KernelAttention):
    """φ(x) = elu(x) + 1, queries not scaled, 1e-6 added to denominators.

    Katharopoulos et al. 2020, arXiv 2006.16236, section 3.2.1; the causal form section 3.3. No parameters of its own;
    R = E features: O(T E D) time, O(T D) memory.
    """

    def features(self, x_BHTE: Tensor, *, some: slice = ALL, first: int = 0) -> Tensor:
        if torch.compiler.is_compiling():  # else the traced gradient of elu has other strides than the computed one
            x_BHTE = x_BHTE.contiguous()
        return functional.elu(x_BHTE) + 1

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        return sum_BHT1 + EPSILON


@dataclass(frozen=True)
class CosformerConfig(KernelConfig):
    """cosFormer: linear attention that prefers what is near; the weights of dot-product attention, O(T D² / H) time."""

    max_length: int = setting(
        1024, at_least=1, help="The longest input. The weight of a pair falls to 0 at this distance."
    )


@attentions.register("cosformer", CosformerConfig)
class CosformerAttention(KernelAttention):
    """Weights relu(q_t) · relu(k_s) cos(π/2 (t - s) / M), M = max_length; denominators are at least 1e-6.

    Qin et al. 2022, arXiv 2202.08791, section 3.2: cos(a - b) = cos a cos b + sin a sin b, hence
    φ(x_t) = [relu(x) cos(π t / 2M), relu(x) sin(π t / 2M)], R = 2 E. The official code takes M = the longest row of the
    batch, which lets a row depend on other rows and on its own future; a constant does not. In cross-attention t and s
    count from the starts of the two sequences. No parameters of its own; O(T E D) time, O(T D) memory.
    """

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_length)

    def features(self, x_BHTE: Tensor, *, some: slice = ALL, first: int = 0) -> Tensor:
        position_T1 = torch.arange(first, first + x_BHTE.shape[2], device=x_BHTE.device)[:, None]
        angle_T1 = position_T1.to(x_BHTE.dtype) * (math.pi / 2 / self.config.max_length)
        positive_BHTE = x_BHTE.relu()
        return torch.cat([positive_BHTE * angle_T1.cos(), positive_BHTE * angle_T1.sin()], dim=-1)

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        return sum_BHT1.clamp(min=EPSILON)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        # A tensor without elements counts the steps in its shape, which the host knows.
        state = super().start(batch, memory_BSM, pad_BS=pad_BS)
        return state.advance({**(state.dynamic or {}), "done": self.out.weight.new_empty(batch, 0, 0)})

    def step(self, x_B1D: Tensor, state: StepState, *, first: int = 0) -> tuple[Tensor, StepState]:
        done = state.dynamic["done"]
        self.check_length(done.shape[1] + 1)
        y_B1D, state = super().step(x_B1D, state, first=done.shape[1])
        return y_B1D, state.advance({**state.dynamic, "done": functional.pad(done, (0, 0, 0, 1))})


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in the operands' own precision, whatever autocast says."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def balanced_chunk(features: int, width: int) -> int:
    """The positions of a chunk whose weights, C for each of them, are about as many as its sums, R F / C for each."""
    return max(CHUNK, int(2 ** round(math.log2(features * width) / 2)))
