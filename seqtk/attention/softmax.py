"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), on the fused kernel.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import HeadedAttention, HeadedConfig, Role, State, attentions
from seqtk.errors import UserError


@dataclass(frozen=True)
class SoftmaxConfig(HeadedConfig):
    """Dot-product attention: 4 D² weights (D² + M D for keys and values of a memory of width M), O(T S D) time."""

    rotary: bool = False  # queries and keys are turned by their positions (self-attention only)


@attentions.register("softmax", SoftmaxConfig)
class SoftmaxAttention(HeadedAttention):
    """softmax(Q Kᵀ / √E) V per head. Parameters: 2 D² + 2 M D (+ 4 D bias)."""

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS

    def __init__(self, config: SoftmaxConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        key_dim = self.memory_dim if role is Role.CROSS else dim
        self.query = self.projection(dim, gain=1 / math.sqrt(2))
        self.key = self.projection(key_dim, gain=1 / math.sqrt(2))
        self.value = self.projection(key_dim, gain=1 / math.sqrt(2))
        self.out = self.projection(dim)
        if config.rotary and (role is Role.CROSS or self.head_dim % 2):
            raise UserError(
                "attention.rotary=true needs self-attention with an even width of each head.",
                f"This is {'cross-attention' if role is Role.CROSS else 'a head of width ' + str(self.head_dim)}.",
            )

    @classmethod
    def parameter_count(cls, config: SoftmaxConfig, *, dim: int, memory_dim: int | None = None) -> int:
        return 2 * dim * (dim + (memory_dim or dim)) + 4 * dim * config.bias

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        keys_from = x_BTD if memory_BSM is None else memory_BSM
        query_BHTE, key_BHSE = self.split(self.query(x_BTD)), self.split(self.key(keys_from))
        if self.config.rotary:
            positions = (
                torch.arange(x_BTD.shape[1], device=x_BTD.device)[None] if positions_BT is None else positions_BT
            )
            query_BHTE, key_BHSE = rotate(query_BHTE, positions), rotate(key_BHSE, positions)
        y_BHTE = attend(
            query_BHTE,
            key_BHSE,
            self.split(self.value(keys_from)),
            bias=padding_bias(pad_BS, causal_length=x_BTD.shape[1] if self.role is Role.CAUSAL else None),
            causal=self.role is Role.CAUSAL and pad_BS is None,
            dropout=self.config.dropout if self.training else 0.0,
        )
        return self.out(self.join(y_BHTE))  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        if self.role is not Role.CROSS:
            return {"key": None, "value": None, "bias": None}
        assert memory_BSM is not None
        return {
            "key": self.split(self.key(memory_BSM)),
            "value": self.split(self.value(memory_BSM)),
            "bias": padding_bias(pad_BS),
        }

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        query_BH1E = self.split(self.query(x_B1D))
        if self.role is not Role.CROSS:
            key_BH1E = self.split(self.key(x_B1D))
            if self.config.rotary:
                done = 0 if state["key"] is None else state["key"].shape[2]
                position_11 = torch.full((1, 1), done, device=x_B1D.device)
                query_BH1E, key_BH1E = rotate(query_BH1E, position_11), rotate(key_BH1E, position_11)
            state = {
                "key": append(state["key"], key_BH1E),
                "value": append(state["value"], self.split(self.value(x_B1D))),
                "bias": None,
            }
        y_BHTE = attend(query_BH1E, state["key"], state["value"], bias=state["bias"])
        return self.out(self.join(y_BHTE)), state


def attend(
    query_BHTE: Tensor,
    key_BHSE: Tensor,
    value_BHSE: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale + bias) V by torch's kernel; `bias` broadcasts to BHTS and is True (or finite) where seen.

    In float32 on a CPU even under autocast, where the backward of the bfloat16 kernel is ten times slower.
    """
    if query_BHTE.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(
                query_BHTE.float(), key_BHSE.float(), value_BHSE.float(),
                bias=bias, causal=causal, dropout=dropout, scale=scale,
            )  # fmt: skip
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query_BHTE.dtype)
    return functional.scaled_dot_product_attention(
        query_BHTE, key_BHSE, value_BHSE, attn_mask=bias, is_causal=causal, dropout_p=dropout, scale=scale
    )


def rotate(x_BHTE: Tensor, positions_BT: Tensor) -> Tensor:
    """Each pair (e, e + E/2) of a head turned by position · 10000^(-2e/E) (Su et al. 2021, RoFormer, section 3.2.2).

    The product of a query and a key so turned depends on their distance alone. Computed in float32 or wider.
    """
    half = x_BHTE.shape[-1] // 2
    dtype = torch.promote_types(x_BHTE.dtype, torch.float32)
    frequency_F = 10000.0 ** (-torch.arange(half, device=x_BHTE.device, dtype=dtype) / half)
    angle_B1TF = positions_BT[:, None, :, None].to(dtype) * frequency_F
    first, second = x_BHTE.to(dtype).chunk(2, dim=-1)
    sin, cos = angle_B1TF.sin(), angle_B1TF.cos()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHTE.dtype)


def padding_bias(pad_BS: Tensor | None, *, causal_length: int | None = None) -> Tensor | None:
    """The boolean mask, True where seen and of a shape that broadcasts to BHTS, of padding and the future."""
    if pad_BS is None:
        return None
    seen = ~pad_BS[:, None, None, :]
    return seen if causal_length is None else seen & causal_mask(causal_length, pad_BS.device)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """mask_TS: True where position t may see position s, s <= t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def append(cache_BHTE: Tensor | None, new_BH1E: Tensor) -> Tensor:
    """The cache with the new position at its end."""
    return new_BH1E if cache_BHTE is None else torch.cat([cache_BHTE, new_BH1E], dim=2)
