"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), on the fused kernel, and its common extensions.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, K heads of keys and values,
E width of a head.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.qkv import QKVAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.modules.distance_bias import AlibiBias, DistanceBias, T5Bias
from seqtk.ops import cache
from seqtk.ops.distance_bias import alibi_slopes
from seqtk.ops.dot_product import additive_padding, attend, attend_last, padding_bias
from seqtk.ops.flex import MIN_FLEX_WIDTH, alibi_score, attend_flex, flex_mask
from seqtk.ops.rotary import rotate
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SoftmaxConfig(QKVConfig):
    """Dot-product attention: 4 D² weights (2 D² + 2 M D with a memory of width M), O(T S D) time."""

    kv_heads: int | None = setting(
        None,
        at_least=1,
        help="Number of heads of keys and values; each serves heads / kv_heads query heads. null: equal to heads.",
    )
    positions: Literal["none", "rotary", "alibi", "t5"] = setting(
        "none", help="How self-attention encodes relative positions."
    )
    qk_norm: bool = setting(False, help="Normalize each query and key of a head by its RMS, with a learned scale.")
    backend: Literal["sdpa", "flex"] = setting(
        "sdpa", help="sdpa: torch's fused kernels. flex: torch's FlexAttention, compiled; it trains on CUDA only."
    )


@attentions.register("softmax", SoftmaxConfig)
class SoftmaxAttention(QKVAttention):
    """Dot-product attention: softmax(Q Kᵀ / √E + bias) V per head. Parameters: 2 D² + 2 M D (+ 4 D bias).

    `kv_heads`: with K heads of keys and values, query head h reads head ⌊h K / H⌋ (Ainslie et al. 2023, arXiv
    2305.13245; K = 1: Shazeer 2019, arXiv 1911.02150). There are 2 D² + 2 M E K (+ 2 D + 2 E K bias) parameters, and
    the cache has K heads.

    `positions`: `rotary` rotates queries and keys (`seqtk/ops/rotary.py`). `alibi` and `t5` add a bias that depends on
    the distance (`seqtk/modules/distance_bias.py`); `t5` has 32 H more parameters.

    `qk_norm`: replaces each query and key x of a head by g ⊙ x / rms(x) before rotation, so that logits stay bounded.
    The scales g of queries and keys are 2 E more parameters, shared by the heads (Henry et al. 2020, arXiv 2010.04245;
    the trained scale and the factor 1 / √E are from Dehghani et al. 2023, arXiv 2302.05442).

    `backend=flex`: `forward` on CUDA uses FlexAttention, with the same results. Training on other devices fails.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    is_wide_on_cpu = True  # see `attend`

    def __init__(self, config: SoftmaxConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim, kv_heads=config.kv_heads)
        _check(config, role=role, head_dim=self.head_dim)
        self.query_norm = HeadNorm(self.head_dim) if config.qk_norm else None
        self.key_norm = HeadNorm(self.head_dim) if config.qk_norm else None
        self.distance_bias: DistanceBias | None = None
        if config.positions == "alibi":
            self.distance_bias = AlibiBias(self.heads)
        elif config.positions == "t5":
            self.distance_bias = T5Bias(self.heads, causal=role is Role.CAUSAL)

    def query_heads(self, query_BTD: Tensor) -> Tensor:
        query_BHTE = super().query_heads(query_BTD)
        return query_BHTE if self.query_norm is None else self.query_norm(query_BHTE)

    def key_heads(self, key_BSD: Tensor) -> Tensor:
        key_BKSE = super().key_heads(key_BSD)
        return key_BKSE if self.key_norm is None else self.key_norm(key_BKSE)

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        causal, length, device = self.role is Role.CAUSAL, query_BHTE.shape[2], query_BHTE.device
        if self.config.positions == "rotary":
            position_1T = torch.arange(length, device=device)[None]
            query_BHTE, key_BHSE = rotate(query_BHTE, position_1T), rotate(key_BHSE, position_1T)
        if self._uses_flex(device):
            is_alibi = self.config.positions == "alibi"
            score = alibi_score(alibi_slopes(self.heads, device=device)) if is_alibi else None
            return attend_flex(query_BHTE, key_BHSE, value_BHSE, seen=flex_mask(pad_BS, causal=causal), score=score)
        if self.distance_bias is None:
            bias = padding_bias(pad_BS, causal_length=length) if causal else additive_padding(pad_BS, query_BHTE.dtype)
        else:
            bias = self.distance_bias.among(query_BHTE, causal=causal, pad_BT=pad_BS)
        is_causal = causal and bias is None
        return attend(query_BHTE, key_BHSE, value_BHSE, bias=bias, causal=is_causal, dropout=self.active_dropout)

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        bias, done = None, cache.length(state, "key")
        if self.config.positions == "rotary":
            position_11 = torch.full((1, 1), done, device=query_BH1E.device)
            query_BH1E, key_BH1E = rotate(query_BH1E, position_11), rotate(key_BH1E, position_11)
        elif self.distance_bias is not None:
            distance_S = torch.arange(-done, 1, device=query_BH1E.device)
            dtype = torch.promote_types(query_BH1E.dtype, torch.float32)
            bias = self.distance_bias(distance_S, dtype=dtype)[None, :, None]
        state = cache.remember(state, key=key_BH1E, value=value_BH1E)
        return attend_last(query_BH1E, state, bias=bias), state

    def _uses_flex(self, device: torch.device) -> bool:
        """Returns True if FlexAttention is used. Without CUDA, training raises UserError, and evaluation uses SDPA."""
        if self.config.backend == "flex" and device.type != "cuda" and self.training:
            raise UserError(
                f"{self.slot}.backend=flex cannot train on {device.type}, where FlexAttention has no backward pass.",
                f"Train on CUDA, or set {self.slot}.backend=sdpa, which gives the same results.",
            )
        return bool(self.config.backend == "flex") and device.type == "cuda"


class HeadNorm(nn.Module):
    """RMS norm over the width of a head, scale ⊙ x / √(mean x² + 1e-6), computed in float32 or wider."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))

    def forward(self, x_BHTE: Tensor) -> Tensor:
        wide = x_BHTE.to(torch.promote_types(x_BHTE.dtype, torch.float32))
        return functional.rms_norm(wide, self.scale.shape, self.scale.to(wide.dtype), 1e-6).to(x_BHTE.dtype)


def _check(config: SoftmaxConfig, *, role: Role, head_dim: int) -> None:
    """Raises UserError if settings exclude each other."""
    heads, kv_heads = config.heads or 1, config.kv_heads
    if kv_heads is not None and heads % kv_heads:
        raise UserError(
            f"attention.kv_heads={kv_heads} does not divide attention.heads={heads}.",
            f"Set it to one of {', '.join(str(size) for size in range(1, heads + 1) if heads % size == 0)}.",
        )
    if config.positions != "none" and role is Role.CROSS:
        raise UserError(
            f"attention.positions={config.positions} is not possible in cross-attention.",
            "A query and a memory position have no distance. Set attention.positions=none.",
        )
    if config.positions == "rotary" and head_dim % 2:
        raise UserError(
            f"attention.positions=rotary requires an even head width, but it is {head_dim}.",
            "Change the width or the heads, or set attention.positions=none.",
        )
    if config.backend == "flex":
        if config.dropout:
            raise UserError(
                "attention.backend=flex does not support dropout of the attention weights.",
                "Set attention.dropout=0, or attention.backend=sdpa.",
            )
        if config.positions == "t5":
            raise UserError(
                "attention.backend=flex cannot train the bias of attention.positions=t5.",
                "Set attention.backend=sdpa, or attention.positions=alibi.",
            )
        if head_dim < MIN_FLEX_WIDTH:
            raise UserError(
                f"attention.backend=flex requires a head width of at least {MIN_FLEX_WIDTH}, but it is {head_dim}.",
                "Use fewer heads, or attention.backend=sdpa.",
            )
