"""SimpleTRON: attention without a softmax, so that the product can be taken from the right.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E = D / H (also as R).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.modules.block import Dropout
from seqtk.ops.head_checkpoint import Projected, by_heads
from seqtk.ops.precision import as_autocast, wide
from seqtk.ops.scan import causal_sums


@dataclass(frozen=True)
class SimpleTronConfig(QKVConfig):
    """Dot-product attention without softmax: 3 D² weights (D² + 2 M D for a memory of width M), O((T + S) D E) time.

    Its dropout is of Kᵀ V; a causal layer drops whole rows of it, drawn afresh at each position.
    """

    length_factor: Literal["sqrt", "none"] = setting(
        "sqrt",
        help="Divide by the square root of the number of visible keys (sqrt), or not. Without it training is unstable.",
    )
    head_scale: bool = setting(True, help="Divide by the square root of a head's width, as dot-product attention does.")
    out_projection: bool = setting(False, help="Add an output projection.")


@attentions.register("simpletron", SimpleTronConfig)
class SimpleTron(HeadedAttention):
    """Q (Kᵀ V) · c per head, c = 1 / √(n E), n the keys seen (Yorsh et al. 2021, arXiv 2111.15588).

    No softmax, no feature map, no denominator and no output projection. The sources have two factors: 1 / √n
    (`head_scale=false`), and 1 / √(n E). Each row counts its own real keys. The causal form, in which position t sums
    over s <= t and divides by √t, and the cross form are ours: a factor of the whole length would leak it.
    Parameters: D² + 2 M D (+ 3 D bias), and D² (+ D bias) with `out_projection`. O((T + S) D E) time; a step is O(D E).
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    subquadratic = True

    def __init__(self, config: SimpleTronConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        key_dim = self.memory_dim if role is Role.CROSS else dim
        self.query = self.projection(dim, gain=1 / math.sqrt(2))
        self.key = self.projection(key_dim, gain=1 / math.sqrt(2))
        self.value = self.projection(key_dim, gain=1 / math.sqrt(2))
        self.out = self.projection(dim) if config.out_projection else nn.Identity()  # type: ignore[assignment]
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        if self.role is not Role.CAUSAL:
            keys_from = x_BTD if memory_BSM is None else memory_BSM
            return self._output(wide(self.split(self.query(x_BTD))), self._product(keys_from, pad_BS)), None
        seen_BT = torch.ones_like(x_BTD[..., 0]) if pad_BS is None else ~pad_BS
        factor_B1T1 = self._factor(wide(seen_BT.cumsum(1, dtype=self.query.weight.dtype)))[:, None, :, None]

        def sums(_: slice, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            key_BHTE = self._real(wide(self.split(key_BTD)), pad_BS)
            y_BHTE = causal_sums(self.dropout(wide(self.split(query_BTD))), key_BHTE, wide(self.split(value_BTD)))
            return self.join(y_BHTE * factor_B1T1)

        sources = (Projected(x_BTD, projection) for projection in (self.query, self.key, self.value))
        is_random = self.training and self.config.dropout > 0
        return self._project_out(by_heads(sums, *sources, heads=self.heads, is_random=is_random)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if memory_BSM is not None:
            return StepState(static={"product": self._product(memory_BSM, pad_BS)})
        weight = wide(self.query.weight)
        zeros_BHRE = weight.new_zeros(batch, self.heads, self.head_dim, self.head_dim)
        return StepState(dynamic={"product": zeros_BHRE, "count": weight.new_zeros(batch, 1)})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E = wide(self.split(self.query(x_B1D)))
        if self.role is Role.CROSS:
            return self._output(query_BH1E, state.static["product"]), state
        key_BH1E, value_BH1E = self._keys_and_values(x_B1D, None)
        count_B1 = state.dynamic["count"] + 1
        product_BHRE = state.dynamic["product"] + key_BH1E.transpose(-1, -2) * value_BH1E
        scaled_BHRE = product_BHRE * self._factor(count_B1)[..., None, None]
        return self._output(query_BH1E, scaled_BHRE), state.advance({"product": product_BHRE, "count": count_B1})

    def _keys_and_values(self, keys_from: Tensor, pad_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._real(wide(self.split(self.key(keys_from))), pad_BS), wide(self.split(self.value(keys_from)))

    def _real(self, key_BHSE: Tensor, pad_BS: Tensor | None) -> Tensor:
        return key_BHSE if pad_BS is None else key_BHSE.masked_fill(pad_BS[:, None, :, None], 0)

    def _product(self, keys_from: Tensor, pad_BS: Tensor | None) -> Tensor:
        """Kᵀ V · c over all real keys, BHRE."""
        key_BHSE, value_BHSE = self._keys_and_values(keys_from, pad_BS)
        if pad_BS is None:
            count_B1 = key_BHSE.new_full((len(keys_from), 1), keys_from.shape[1])
        else:
            count_B1 = (~pad_BS).sum(1, keepdim=True).to(key_BHSE.dtype)
        with torch.autocast(key_BHSE.device.type, enabled=False):
            product_BHRE: Tensor = key_BHSE.transpose(-1, -2) @ value_BHSE
            return product_BHRE * self._factor(count_B1)[..., None, None]

    def _factor(self, seen: Tensor) -> Tensor:
        """c, by how many keys are seen; of a query that sees none, that of one."""
        size = self.head_dim if self.config.head_scale else 1
        return (size * (seen.clamp(min=1) if self.config.length_factor == "sqrt" else torch.ones_like(seen))).rsqrt()

    def _output(self, query_BHTE: Tensor, product_BHRE: Tensor) -> Tensor:
        with torch.autocast(query_BHTE.device.type, enabled=False):
            y_BHTE = query_BHTE @ self.dropout(product_BHRE)
        return self._project_out(self.join(y_BHTE))

    def _project_out(self, y_BTD: Tensor) -> Tensor:
        return as_autocast(self.out(y_BTD.to(self.query.weight.dtype)))
