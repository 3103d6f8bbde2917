"""An attention layer: retention (Sun et al. 2023, arXiv 2307.08621), without rotation and output gate.

    y_t = Σ_{s <= t} γ^(t - s) (q_t · k_s / √E) v_s        γ_h = 1 - 2^(-5 - h), for head h

B batch, H heads, T length, E width of a head.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqtk.attention import HeadedAttention, HeadedConfig, Role, State, StepState, attentions
from seqtk.modules.block import Dropout
from seqtk.testing.reference import Problem


@dataclass(frozen=True)
class RetentionConfig(HeadedConfig):
    """Sums over the past that decay."""


@attentions.register("retention", RetentionConfig)
class Retention(HeadedAttention):
    """A decaying sum; its step form needs the matrix Σ γ^(t - s) k_sᵀ v_s only."""

    roles = Role.CAUSAL

    def __init__(self, config: RetentionConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections()
        decay_H = 1 - 2.0 ** (-5 - torch.arange(self.heads))
        self.register_buffer("decay_H11", decay_H[:, None, None], persistent=False)
        self.dropout = Dropout(config.dropout)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BHTE, key_BHTE, value_BHTE = (self.split(f(x_BTD)) for f in (self.query, self.key, self.value))
        return query_BHTE / math.sqrt(self.head_dim), key_BHTE, value_BHTE

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        query_BHTE, key_BHTE, value_BHTE = self.project(x_BTD)
        if pad_BS is not None:
            value_BHTE = value_BHTE.masked_fill(pad_BS[:, None, :, None], 0)
        position_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        age_TT = position_T[:, None] - position_T
        weight_HTT = (self.decay_H11 ** age_TT.clamp(min=0)).tril()
        logits_BHTT = query_BHTE @ key_BHTE.transpose(2, 3) * weight_HTT.to(x_BTD.dtype)
        return self.out(self.join(self.dropout(logits_BHTT) @ value_BHTE)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        weight = self.out.weight
        return StepState(dynamic=weight.new_zeros(batch, self.heads, self.head_dim, self.head_dim))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E, key_BH1E, value_BH1E = self.project(x_B1D)
        sum_BHEE = self.decay_H11.to(x_B1D.dtype) * state.dynamic + key_BH1E.transpose(2, 3) @ value_BH1E
        return self.out(self.join(query_BH1E @ sum_BHEE)), state.advance(sum_BHEE)


def naive(problem: Problem) -> np.ndarray:
    """The formula at the top, as loops: what the laws compare the layer with."""
    y_BTD = np.zeros_like(problem.x_BTD)
    for row, x_TD in enumerate(problem.x_BTD):
        query, key, value = ([problem.linear(name, x_D) for x_D in x_TD] for name in ("query", "key", "value"))
        for t in range(len(x_TD)):
            heads = []
            for head in range(problem.config.heads):
                q = problem.head(query[t], head)
                k, v = (np.stack([problem.head(x_D, head) for x_D in side[: t + 1]]) for side in (key, value))
                decay = (1 - 2.0 ** (-5 - head)) ** np.arange(t, -1, -1)
                heads.append((decay * (k @ q) / math.sqrt(len(q))) @ v)
            y_BTD[row, t] = problem.linear("out", np.concatenate(heads))
    return y_BTD
