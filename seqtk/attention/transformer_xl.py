"""Dot-product attention with relative positions and a memory across segments (Dai et al. 2019, arXiv 1901.02860).

B batch, T length of a segment, S length of what is attended to (memory and segment), D width, H heads, E width of a
head, N distances.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, Scope, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.cache import append
from seqtk.ops.dot_product import attend
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TransformerXLConfig(QKVConfig):
    """Dot products with relative positions and a memory: 5 D² + 2 D weights, O(T (T + memory_length) D) time."""

    bias: bool = setting(False, help="Use biases in the projections.")
    memory_length: int = setting(
        512, at_least=1, help="Earlier positions that each position sees, those of earlier segments included."
    )
    evaluation_memory_length: int | None = setting(
        None, at_least=1, help="The same in evaluation. null: memory_length."
    )
    clamp_length: int | None = setting(None, at_least=1, help="Larger distances count as this one. null: no limit.")


@attentions.register("transformer_xl", TransformerXLConfig)
class TransformerXLAttention(HeadedAttention):
    """softmax(((q_t + u) · k_s + (q_t + v) · W R_{t-s}) / √E) v_s per head over 0 <= t - s <= `memory_length`.

    R_d is the sinusoid of a distance, [sin(d ω_i) | cos(d ω_i)], ω_i = 10000^(-2i/D); W, u and v (a vector per head)
    are trained, and each layer has its own (section 3.3). Parameters: 5 D² + 2 D (+ 4 D bias).

    Memory is what the layer read in segments before, without gradient; its keys and values are made anew. Every
    position sees as many before itself, whichever segment they are in (`same_length` of the official code), so where
    segments end makes no difference. Without that, the late positions of a segment would see more than the early ones.
    A step costs O(memory_length · D · H): the state holds the keys and values of the positions seen.
    """

    roles = Role.CAUSAL
    scope = Scope.SEGMENT

    def __init__(self, config: TransformerXLConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if dim % 2:
            raise UserError(f"Attention 'transformer_xl' needs an even width, which is {dim} here.")
        self.add_projections()
        self.distance = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.distance.weight)
        self.content_bias = nn.Parameter(torch.randn(self.heads, 1, self.head_dim) * 0.02)
        self.distance_bias = nn.Parameter(torch.randn(self.heads, 1, self.head_dim) * 0.02)

    @property
    def memory_length(self) -> int:
        """The positions that each one sees before itself."""
        longer: int | None = None if self.training else self.config.evaluation_memory_length
        return longer or int(self.config.memory_length)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        if state is None:
            x_BSD = x_BTD
        else:
            x_BSD = torch.cat([state[:, -self.memory_length :], x_BTD], dim=1)
            if pad_BS is not None:
                pad_BS = functional.pad(pad_BS, (x_BSD.shape[1] - x_BTD.shape[1], 0))
        return self._among(x_BTD, x_BSD, pad_BS=pad_BS), x_BSD[:, -self.memory_length :].detach()

    def _among(self, x_BTD: Tensor, x_BSD: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """The outputs at the last T of S positions."""
        length, seen = x_BTD.shape[1], x_BSD.shape[1]
        query_BHTE = self.split(self.query(x_BTD))
        place_S = torch.arange(seen, device=x_BTD.device)
        relative_HNE = self.split(self.distance(self._sinusoids(place_S.flip(0), like=x_BTD)[None]))[0]
        by_distance_BHTN = (query_BHTE + self.distance_bias) @ relative_HNE.transpose(1, 2)
        bias_BHTS = _shifted(by_distance_BHTN) / math.sqrt(self.head_dim)
        distance_TS = place_S[seen - length :, None] - place_S
        hidden = (distance_TS < 0) | (distance_TS > self.memory_length)
        if pad_BS is not None:
            hidden = hidden | pad_BS[:, None, None]
        y_BHTE = attend(
            query_BHTE + self.content_bias,
            self.split(self.key(x_BSD)),
            self.split(self.value(x_BSD)),
            bias=bias_BHTS.masked_fill(hidden, -math.inf),
            dropout=self.config.dropout if self.training else 0.0,
        )
        return self.out(self.join(y_BHTE))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic={"key": None, "value": None})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        key_BHSE = append(state.dynamic["key"], self.split(self.key(x_B1D)))[:, :, -self.memory_length - 1 :]
        value_BHSE = append(state.dynamic["value"], self.split(self.value(x_B1D)))[:, :, -self.memory_length - 1 :]
        query_BH1E = self.split(self.query(x_B1D))
        # (q + v) · W R = Wᵀ(q + v) · R: one query is mapped instead of every distance.
        weight_HED = self.distance.weight.view(self.heads, self.head_dim, self.dim)
        mapped_BH1D = (query_BH1E + self.distance_bias) @ weight_HED
        distance_N = torch.arange(key_BHSE.shape[2] - 1, -1, -1, device=x_B1D.device)
        bias_BH1S = mapped_BH1D @ self._sinusoids(distance_N, like=x_B1D).T / math.sqrt(self.head_dim)
        y_BH1E = attend(query_BH1E + self.content_bias, key_BHSE, value_BHSE, bias=bias_BH1S)
        return self.out(self.join(y_BH1E)), state.advance({"key": key_BHSE, "value": value_BHSE})

    def _sinusoids(self, distance_N: Tensor, *, like: Tensor) -> Tensor:
        """R_ND of these distances; computed in float32 or wider."""
        if self.config.clamp_length is not None:
            distance_N = distance_N.clamp(max=self.config.clamp_length)
        dtype = torch.promote_types(like.dtype, torch.float32)
        even = torch.arange(0, self.dim, 2, device=like.device, dtype=dtype)
        angle = distance_N[:, None].to(dtype) * 10000.0 ** (-even / self.dim)
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(like.dtype)


def _shifted(x_BHTN: Tensor) -> Tensor:
    """x_BHTS: row t moved left by T - 1 - t places, so that what stood by distance, the farthest first, stands by key.

    The last row stays as it is. What comes in from the right belongs to keys that are later than the query.
    """
    batch, heads, length, distances = x_BHTN.shape
    lengthened = functional.pad(x_BHTN, (1, 0)).view(batch, heads, distances + 1, length)
    return lengthened[:, :, 1:].reshape(x_BHTN.shape)
