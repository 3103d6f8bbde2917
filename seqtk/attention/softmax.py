"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), on the fused kernel, and its common extensions.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, K heads of keys and values,
E width of a head.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import HeadedAttention, HeadedConfig, Role, State, StepState, attentions
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.dot_product import attend, attend_last, padding_bias
from seqtk.ops.flex import LEAST_HEAD_DIM, alibi_score, flex_attend, seen_by
from seqtk.ops.init import check_at_least_one
from seqtk.ops.positions import AlibiBias, DistanceBias, T5Bias, alibi_slopes, rotate
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SoftmaxConfig(HeadedConfig):
    """Dot-product attention: 4 D² weights (2 D² + 2 M D with a memory of width M), O(T S D) time."""

    kv_heads: int | None = setting(
        None, at_least=1, help="Heads of keys and values; each serves heads / kv_heads queries. null: heads."
    )
    positions: Literal["none", "rotary", "alibi", "t5"] = setting("none", help="Relative positions in self-attention.")
    qk_norm: bool = setting(False, help="Normalize queries and keys per head (RMS), with a learned scale.")
    backend: Literal["sdpa", "flex"] = setting(
        "sdpa", help="flex: torch's FlexAttention, compiled; it trains on CUDA only."
    )


@attentions.register("softmax", SoftmaxConfig)
class SoftmaxAttention(HeadedAttention):
    """softmax(Q Kᵀ / √E + bias) V per head. Parameters: 2 D² + 2 M D (+ 4 D bias); the options change that.

    `kv_heads` K: query head h reads keys and values of head ⌊h K / H⌋ (Ainslie et al. 2023, arXiv 2305.13245; K = 1:
    Shazeer 2019, arXiv 1911.02150); 2 D² + 2 M E K (+ 2 D + 2 E K bias), and a cache of K heads.
    `positions`: `rotary` turns queries and keys; `alibi` and `t5` (32 H more parameters) add a bias by distance
    (`seqtk/ops/positions.py`).
    `qk_norm`: g ⊙ x / rms(x) of each head's query and key before they are turned, so that logits stay bounded; 2 E more
    parameters, shared by the heads (Henry et al. 2020, arXiv 2010.04245, with the trained scale and the 1 / √E of
    Dehghani et al. 2023, arXiv 2302.05442).
    `backend=flex` computes the same; only `forward` on CUDA uses it, and training elsewhere is refused.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS

    def __init__(self, config: SoftmaxConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        _check(config, role=role, head_dim=self.head_dim)
        self.add_projections(kv_dim=(config.kv_heads or self.heads) * self.head_dim)
        self.query_norm = HeadNorm(self.head_dim) if config.qk_norm else None
        self.key_norm = HeadNorm(self.head_dim) if config.qk_norm else None
        self.distance_bias: DistanceBias | None = None
        if config.positions == "alibi":
            self.distance_bias = AlibiBias(self.heads)
        elif config.positions == "t5":
            self.distance_bias = T5Bias(self.heads, causal=role is Role.CAUSAL)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        causal = self.role is Role.CAUSAL
        keys_from = x_BTD if memory_BSM is None else memory_BSM
        query_BHTE, key_BKSE, value_BKSE = self._query(x_BTD), self._key(keys_from), self.split(self.value(keys_from))
        if self.config.positions == "rotary":
            turned_by = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
            query_BHTE, key_BKSE = rotate(query_BHTE, turned_by), rotate(key_BKSE, turned_by)
        if self.config.backend == "flex" and self._flexes(x_BTD.device):
            score = None
            if self.config.positions == "alibi":
                score = alibi_score(alibi_slopes(self.heads, device=x_BTD.device))
            seen = seen_by(pad_BS, causal=causal)
            y_BHTE = flex_attend(query_BHTE, key_BKSE, value_BKSE, seen=seen, score=score)
        else:
            if self.distance_bias is None:
                bias = padding_bias(pad_BS, causal_length=x_BTD.shape[1] if causal else None)
            else:
                bias = self.distance_bias.among(query_BHTE, causal=causal, pad_BT=pad_BS)
            y_BHTE = attend(
                query_BHTE,
                key_BKSE,
                value_BKSE,
                bias=bias,
                causal=causal and bias is None,
                dropout=self.config.dropout if self.training else 0.0,
            )
        return self.out(self.join(y_BHTE)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if self.role is not Role.CROSS:
            return StepState(dynamic=cache.empty("key", "value"))
        assert memory_BSM is not None
        return StepState(
            static={
                "key": self._key(memory_BSM),
                "value": self.split(self.value(memory_BSM)),
                "bias": padding_bias(pad_BS),
            }
        )

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E = self._query(x_B1D)
        if self.role is Role.CROSS:
            memory = state.static
            y_BH1E = attend(query_BH1E, memory["key"], memory["value"], bias=memory["bias"])
            return self.out(self.join(y_BH1E)), state
        key_BK1E, bias, done = self._key(x_B1D), None, cache.length(state.dynamic, "key")
        if self.config.positions == "rotary":
            position_11 = torch.full((1, 1), done, device=x_B1D.device)
            query_BH1E, key_BK1E = rotate(query_BH1E, position_11), rotate(key_BK1E, position_11)
        elif self.distance_bias is not None:
            distance_S = torch.arange(-done, 1, device=x_B1D.device)
            dtype = torch.promote_types(query_BH1E.dtype, torch.float32)
            bias = self.distance_bias(distance_S, dtype=dtype)[None, :, None]
        kept = cache.remember(state.dynamic, key=key_BK1E, value=self.split(self.value(x_B1D)))
        return self.out(self.join(attend_last(query_BH1E, kept, bias=bias))), state.advance(kept)

    def _query(self, x_BTD: Tensor) -> Tensor:
        query_BHTE = self.split(self.query(x_BTD))
        return query_BHTE if self.query_norm is None else self.query_norm(query_BHTE)

    def _key(self, keys_from_BSM: Tensor) -> Tensor:
        key_BKSE = self.split(self.key(keys_from_BSM))
        return key_BKSE if self.key_norm is None else self.key_norm(key_BKSE)

    def _flexes(self, device: torch.device) -> bool:
        """Whether `device` can. Elsewhere evaluation goes by SDPA, which gives the same; training is refused."""
        if device.type != "cuda" and self.training:
            raise UserError(
                f"attention.backend=flex cannot train on {device.type}: torch's FlexAttention has no backward there.",
                "Train on CUDA, or set attention.backend=sdpa, which computes the same.",
            )
        return device.type == "cuda"


class HeadNorm(nn.Module):
    """scale ⊙ x / √(mean x² + 1e-6) over a head's width; in float32 or wider."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))

    def forward(self, x_BHTE: Tensor) -> Tensor:
        wide = x_BHTE.to(torch.promote_types(x_BHTE.dtype, torch.float32))
        return functional.rms_norm(wide, self.scale.shape, self.scale.to(wide.dtype), 1e-6).to(x_BHTE.dtype)


def _check(config: SoftmaxConfig, *, role: Role, head_dim: int) -> None:
    heads, kv_heads = config.heads or 1, config.kv_heads
    check_at_least_one(config, "kv_heads")
    if kv_heads is not None and heads % kv_heads:
        raise UserError(
            f"attention.kv_heads={kv_heads} does not divide attention.heads={heads}.",
            f"These do: {', '.join(str(size) for size in range(1, heads + 1) if heads % size == 0)}.",
        )
    if config.positions != "none" and role is Role.CROSS:
        raise UserError(
            f"attention.positions={config.positions} is for self-attention; this is cross-attention.",
            "The positions of a query and of a memory have no distance: set attention.positions=none here.",
        )
    if config.positions == "rotary" and head_dim % 2:
        raise UserError(f"attention.positions=rotary needs an even width of each head, which is {head_dim} here.")
    if config.backend == "flex":
        if config.dropout:
            raise UserError(
                "attention.backend=flex has no dropout of the attention weights.",
                "Set attention.dropout=0, or attention.backend=sdpa.",
            )
        if config.positions == "t5":
            raise UserError(
                "attention.backend=flex cannot train the bias of attention.positions=t5.",
                "Set attention.backend=sdpa, or attention.positions=alibi.",
            )
        if head_dim < LEAST_HEAD_DIM:
            raise UserError(
                f"attention.backend=flex needs heads at least {LEAST_HEAD_DIM} wide; these are {head_dim} wide.",
                "Use fewer heads, or attention.backend=sdpa.",
            )
