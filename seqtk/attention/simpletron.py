"""SimpleTRON: attention without a softmax, so Kᵀ V can be computed first (Yorsh et al. 2021, arXiv 2111.15588).

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E = D / H (also as R).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.headwise import HeadwiseAttention
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import probability, setting
from seqtk.ops.dropout import dropout
from seqtk.ops.scan import causal_sums
from seqtk.ops.tensors import to_fp32, without_autocast, zero_padding


@dataclass(frozen=True)
class SimpleTronConfig(QKVConfig):
    """Dot-product attention without softmax: 3 D² weights (D² + 2 M D for a memory of width M), O((T + S) D E) time."""

    dropout: float = probability(
        0.0, help="Dropout of Kᵀ V. A causal layer drops whole rows of it, different ones at each position."
    )
    length_factor: Literal["sqrt", "none"] = setting(
        "sqrt",
        help="sqrt: divide by the square root of the number of visible keys. none: training is unstable.",
    )
    head_scale: bool = setting(True, help="Divide by the square root of a head's width, as dot-product attention does.")
    out_projection: bool = setting(False, help="Add an output projection.")


@attentions.register("simpletron", SimpleTronConfig)
class SimpleTron(HeadwiseAttention):
    """Attention without a softmax: Q (Kᵀ V) · c per head, where c = 1 / √(n E) for n visible keys.

    No softmax, no feature map, no denominator and no output projection. The paper has c = 1 / √n (`head_scale=false`),
    the authors' code 1 / √(n E). Padding does not count in n. The paper has no causal form and no cross-attention. In
    seqtk's causal form, position t sums over s <= t and divides by √t, since a factor of the whole length would reveal
    the future. Parameters: D² + 2 M D (+ 3 D bias), and D² (+ D bias) with `out_projection`. O((T + S) D E) time; a
    step is O(D E).
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    subquadratic = True

    def __init__(self, config: SimpleTronConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim, out_projection=config.out_projection)

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        if self.role is not Role.CAUSAL:
            return self.read(query_BHTE, self.compress(key_BHSE, value_BHSE, pad_BS=pad_BS))
        query = dropout(to_fp32(query_BHTE), self.active_dropout)
        count_T1 = torch.arange(1, query.shape[2] + 1, dtype=query.dtype, device=query.device)[:, None]
        return (causal_sums(query, zero_padding(key_BHSE, pad_BS), value_BHSE) * self.factor(count_T1)).to(
            value_BHSE.dtype
        )

    def start_mix(self, batch: int) -> State:
        weight = to_fp32(self.query.weight)
        product_BHRE = weight.new_zeros(batch, self.heads, self.head_dim, self.head_dim)
        return {"product": product_BHRE, "count": weight.new_zeros(batch, 1)}

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        product_BHRE, count_B1 = state["product"] + to_fp32(key_BH1E).mT * to_fp32(value_BH1E), state["count"] + 1
        y_BH1E = self.read(query_BH1E, product_BHRE * self.factor(count_B1)[..., None, None])
        return y_BH1E, {"product": product_BHRE, "count": count_B1}

    def compress(self, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> State:
        """Returns Kᵀ V · c over the real keys, BHRE, in float32 or wider."""
        key_BHSE, value_BHSE = zero_padding(to_fp32(key_BHSE), pad_BS), to_fp32(value_BHSE)
        if pad_BS is None:
            count_B1 = key_BHSE.new_full((len(key_BHSE), 1), key_BHSE.shape[2])
        else:
            count_B1 = (~pad_BS).sum(1, keepdim=True).to(key_BHSE.dtype)
        with without_autocast(key_BHSE):
            return key_BHSE.mT @ value_BHSE * self.factor(count_B1)[..., None, None]

    def read(self, query_BHTE: Tensor, memory: State) -> Tensor:
        with without_autocast(query_BHTE):
            y_BHTE = to_fp32(query_BHTE) @ dropout(memory, self.active_dropout)
        return y_BHTE.to(query_BHTE.dtype)

    def factor(self, count: Tensor) -> Tensor:
        """Returns the factor c for `count` visible keys. A count of 0 is replaced by 1."""
        size = self.head_dim if self.config.head_scale else 1
        return (size * (count.clamp(min=1) if self.config.length_factor == "sqrt" else torch.ones_like(count))).rsqrt()
