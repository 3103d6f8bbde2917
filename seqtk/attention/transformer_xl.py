"""Dot-product attention with relative positions and a memory across segments (Dai et al. 2019, arXiv 1901.02860).

    y_t = softmax(((q_t + u) · k_s + (q_t + v) · W R_{t-s}) / √E) v_s        over 0 <= t - s <= memory_length

B batch, T length of a segment, S key length (memory and segment), D width, H heads, E width of a head, N distances.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, Scope, State, attentions
from seqtk.attention.qkv import QKVAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.cache import keep_last
from seqtk.ops.dot_product import attend
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TransformerXLConfig(QKVConfig):
    """Dot products with relative positions and a memory: 5 D² + 2 D weights, O(T (T + memory_length) D) time."""

    bias: bool = setting(False, help="Give the projections a bias.")
    memory_length: int = setting(
        512, at_least=1, help="Number of earlier positions that each position sees, across segments."
    )
    evaluation_memory_length: int | None = setting(
        None, at_least=1, help="memory_length in evaluation. null: the same as in training."
    )
    clamp_length: int | None = setting(
        None, at_least=1, help="Distances above this value count as this value. null: no limit."
    )


@attentions.register("transformer_xl", TransformerXLConfig)
class TransformerXLAttention(QKVAttention):
    """Attention with relative positions to a segment and the memory of earlier segments (section 3.3).

        y_t = softmax(((q_t + u) · k_s + (q_t + v) · W R_{t-s}) / √E) v_s per head    over 0 <= t - s <= memory_length

    R_d is the sinusoid of a distance, [sin(d ω_i) | cos(d ω_i)], ω_i = 10000^(-2i/D). W, u and v (a vector per head)
    are learned in each layer. Parameters: 5 D² + 2 D (+ 4 D bias).

    The memory is the input of the layer at earlier positions, without a gradient; its keys and values are computed
    again. Every position of a segment sees the same number of earlier positions (`same_length` in the official code),
    so the segmentation does not change the outputs. Otherwise late positions of a segment would see more than early
    ones. A step costs O(memory_length · D · H): the state holds the visible keys and values.
    """

    roles = Role.CAUSAL
    scope = Scope.SEGMENT

    def __init__(self, config: TransformerXLConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if dim % 2:
            raise UserError(f"Attention 'transformer_xl' requires an even width, but it is {dim}.")
        self.distance = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.distance.weight)
        self.content_bias = nn.Parameter(torch.randn(self.heads, 1, self.head_dim) * 0.02)
        self.distance_bias = nn.Parameter(torch.randn(self.heads, 1, self.head_dim) * 0.02)

    @property
    def memory_length(self) -> int:
        """The number of earlier positions that each position sees."""
        in_evaluation: int | None = None if self.training else self.config.evaluation_memory_length
        return in_evaluation or int(self.config.memory_length)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        x_BSD = x_BTD
        if state is not None:
            x_BSD = torch.cat([state[:, -self.memory_length :], x_BTD], dim=1)
            if pad_BS is not None:
                pad_BS = functional.pad(pad_BS, (x_BSD.shape[1] - x_BTD.shape[1], 0))
        y_BHTE = self.mix(self.queries(x_BTD), self.keys(x_BSD), self.values(x_BSD), pad_BS=pad_BS)
        return self.out(self.join(y_BHTE)), x_BSD[:, -self.memory_length :].detach()

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        length, keys = query_BHTE.shape[2], key_BHSE.shape[2]
        place_S = torch.arange(keys, device=query_BHTE.device)
        relative_HNE = self.split(self.distance(self._sinusoids(place_S.flip(0), like=query_BHTE)[None]))[0]
        bias_BHTN = (query_BHTE + self.distance_bias) @ relative_HNE.transpose(1, 2)
        bias_BHTS = _by_key(bias_BHTN) / math.sqrt(self.head_dim)
        distance_TS = place_S[keys - length :, None] - place_S
        hidden = (distance_TS < 0) | (distance_TS > self.memory_length)
        if pad_BS is not None:
            hidden = hidden | pad_BS[:, None, None]
        bias_BHTS = bias_BHTS.masked_fill(hidden, -math.inf)
        query_BHTE = query_BHTE + self.content_bias
        return attend(query_BHTE, key_BHSE, value_BHSE, bias=bias_BHTS, dropout=self.active_dropout)

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        state = keep_last(state, self.memory_length + 1, key=key_BH1E, value=value_BH1E)
        # (q + v) · W R = Wᵀ(q + v) · R: apply W to one query, not to every distance.
        weight_HED = self.distance.weight.view(self.heads, self.head_dim, self.dim)
        mapped_BH1D = (query_BH1E + self.distance_bias) @ weight_HED
        distance_N = torch.arange(state["key"].shape[2] - 1, -1, -1, device=query_BH1E.device)
        bias_BH1S = mapped_BH1D @ self._sinusoids(distance_N, like=query_BH1E).T / math.sqrt(self.head_dim)
        return attend(query_BH1E + self.content_bias, state["key"], state["value"], bias=bias_BH1S), state

    def _sinusoids(self, distance_N: Tensor, *, like: Tensor) -> Tensor:
        """Returns the sinusoids R_ND of the distances, computed in float32 or wider."""
        if self.config.clamp_length is not None:
            distance_N = distance_N.clamp(max=self.config.clamp_length)
        dtype = torch.promote_types(like.dtype, torch.float32)
        even = torch.arange(0, self.dim, 2, device=like.device, dtype=dtype)
        angle = distance_N[:, None].to(dtype) * 10000.0 ** (-even / self.dim)
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(like.dtype)


def _by_key(x_BHTN: Tensor) -> Tensor:
    """Returns x_BHTS from x_BHTN, whose columns are distances, farthest first: shifts row t left by T - 1 - t.

    This is the shift of appendix B. The columns that enter from the right belong to keys after the query.
    """
    batch, heads, length, distances = x_BHTN.shape
    padded = functional.pad(x_BHTN, (1, 0)).view(batch, heads, distances + 1, length)
    return padded[:, :, 1:].reshape(x_BHTN.shape)
