"""Linformer: linear maps over the length give a fixed number of keys and values (Wang et al. 2020, arXiv 2006.04768).

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head,
L longest input, K rank, G maps along the length: H, or 1 if heads share them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.attention.resizing import Resizable
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend
from seqtk.ops.tensors import zero_padding


@dataclass(frozen=True)
class LinformerConfig(QKVConfig):
    """Attention to `rank` mixtures of all positions: O(T rank D) time, and rank × max_length weights per map."""

    rank: int = setting(128, at_least=1, help="The number of keys and values after the projection.")
    max_length: int = setting(256, at_least=1, help="The longest input, or encoder output in cross-attention.")
    sharing: Literal["none", "headwise", "key_value"] = setting(
        "headwise",
        help="Sharing of the maps along the length. none: two per head, for keys and for values. headwise: two for all "
        "heads. key_value: one for keys and values of all heads.",
    )


@attentions.register("linformer", LinformerConfig)
class LinformerAttention(Resizable, HeadedAttention):
    """Attention to `rank` mixtures of all positions, softmax(Q (E K)ᵀ / √e) (F V) per head (section 4, equation 7).

    E and F are rank × max_length matrices, and e is the width of a head. Parameters: 2 D² + 2 M D (+ 4 D bias), and 2
    H, 2 or 1 maps of rank × max_length weights, depending on `sharing`. O(T rank) time and memory. There is no causal
    form, because each of the `rank` keys mixes all positions. Padding is zeroed before the maps, so no mask is needed
    after them.

    Maps that heads share are applied to the input instead of the keys: E (X W) = (E X) W, so only `rank` positions are
    projected. This saves more time than the attention itself takes.
    """

    roles = Role.ENCODER | Role.CROSS
    subquadratic = True

    def __init__(self, config: LinformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections()
        self.key_map = self._map()
        self.value_map = None if config.sharing == "key_value" else self._map()

    def _map(self) -> nn.Parameter:
        """Returns a parameter of shape G K L with variance 1 / (K + L)."""
        maps = self.heads if self.config.sharing == "none" else 1
        rank, length = self.config.rank, self.config.max_length
        return nn.Parameter(torch.randn(maps, rank, length) / math.sqrt(rank + length))

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        return self._read(x_BTD, self._compress(x_BTD if memory_BSM is None else memory_BSM, pad_BS)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        assert memory_BSM is not None, "only cross-attention has steps"
        return StepState(static=self._compress(memory_BSM, pad_BS))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        return self._read(x_B1D, state.static), state

    def _read(self, x_BTD: Tensor, memory: dict[str, Tensor]) -> Tensor:
        query_BHTE = self.split(self.query(x_BTD))
        y_BHTE = attend(query_BHTE, memory["key"], memory["value"], dropout=self.active_dropout)
        return self.out(self.join(y_BHTE))  # type: ignore[no-any-return]

    def _compress(self, source_BSM: Tensor, pad_BS: Tensor | None) -> dict[str, Tensor]:
        """Returns the `rank` keys and values of each row, BHKE."""
        length = source_BSM.shape[1]
        self.check_length(length)
        key_map_GKS = self.key_map[..., :length]
        value_map_GKS = key_map_GKS if self.value_map is None else self.value_map[..., :length]
        if self.config.sharing == "none":
            key_BHSE = self.split(zero_padding(self.key(source_BSM), pad_BS))
            value_BHSE = self.split(zero_padding(self.value(source_BSM), pad_BS))
            return {"key": key_map_GKS @ key_BHSE, "value": value_map_GKS @ value_BHSE}
        x_BSM = zero_padding(source_BSM, pad_BS)
        key_input_BKM = key_map_GKS @ x_BSM
        value_input_BKM = key_input_BKM if self.value_map is None else value_map_GKS @ x_BSM
        key_BKD = _projected(self.key, key_input_BKM, key_map_GKS, pad_BS)
        value_BKD = _projected(self.value, value_input_BKM, value_map_GKS, pad_BS)
        return {"key": self.split(key_BKD), "value": self.split(value_BKD)}


def _projected(linear: nn.Linear, mixed_BKM: Tensor, map_GKS: Tensor, pad_BS: Tensor | None) -> Tensor:
    """Returns map(linear(x)), BKD, computed from map(x).

    The bias of `linear` is multiplied by the sum of the map's weights over the real positions.
    """
    y_BKD = nn.functional.linear(mixed_BKM, linear.weight)
    if linear.bias is None:
        return y_BKD
    if pad_BS is None:
        return y_BKD + map_GKS.sum(-1, keepdim=True) * linear.bias
    return y_BKD + map_GKS @ (~pad_BS)[..., None].to(map_GKS.dtype) * linear.bias
