"""An attention layer: retention (Sun et al. 2023, arXiv 2307.08621), without rotation and output gate.

    y_t = Σ_{s <= t} γ^(t - s) (q_t · k_s / √E) v_s        γ_h = 1 - 2^(-5 - h), for head h

B batch, H heads, T length, S positions so far, E width of a head.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqtk.attention import QKVAttention, QKVConfig, Role, State, attentions
from seqtk.modules.block import Dropout
from seqtk.testing.reference import Problem


@dataclass(frozen=True)
class RetentionConfig(QKVConfig):
    """Config of retention."""


@attentions.register("retention", RetentionConfig)
class Retention(QKVAttention):
    """Computes a decaying sum over earlier positions. The state of its step form is the matrix Σ γ^(t - s) k_sᵀ v_s."""

    roles = Role.CAUSAL

    def __init__(self, config: RetentionConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        decay_H = 1 - 2.0 ** (-5 - torch.arange(self.heads))
        self.register_buffer("decay_H11", decay_H[:, None, None], persistent=False)
        self.dropout = Dropout(config.dropout)

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        if pad_BS is not None:
            value_BHSE = value_BHSE.masked_fill(pad_BS[:, None, :, None], 0)
        position_S = torch.arange(key_BHSE.shape[2], device=key_BHSE.device)
        age_SS = position_S[:, None] - position_S
        weight_HSS = (self.decay_H11 ** age_SS.clamp(min=0)).tril()
        logits_BHTS = query_BHTE @ key_BHSE.transpose(2, 3) / math.sqrt(self.head_dim)
        return self.dropout(logits_BHTS * weight_HSS.to(logits_BHTS.dtype)) @ value_BHSE

    def start_mix(self, batch: int) -> State:
        return self.out.weight.new_zeros(batch, self.heads, self.head_dim, self.head_dim)

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        sum_BHEE = self.decay_H11.to(state.dtype) * state + key_BH1E.transpose(2, 3) @ value_BH1E
        return query_BH1E @ sum_BHEE / math.sqrt(self.head_dim), sum_BHEE


def naive(problem: Problem) -> np.ndarray:
    """Computes the formula at the top of the file with loops, as the reference for the laws."""
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
