"""gMLP: a perceptron with a gate that is a learned map over positions (Liu et al. 2021, arXiv 2105.08050).

B batch, T length, D width, I inner width, L longest input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, AttentionConfig, Role, State, StepState, attentions
from seqtk.attention.resizing import Resizable
from seqtk.config.fields import setting
from seqtk.modules.linear import xavier_linear
from seqtk.ops import cache
from seqtk.ops.tensors import zero_padding


@dataclass(frozen=True)
class GmlpConfig(AttentionConfig):
    """A perceptron gated by a learned matrix over positions: 3 D I + L² weights, O(T² I) time."""

    max_length: int = setting(256, at_least=1, help="Longest input, and size of the matrix over positions.")
    inner: int | None = setting(
        None, at_least=1, help="Width of the gate and of the gated half. null: the layer's width."
    )
    bias: bool = setting(True, help="Give the projections a bias.")


@attentions.register("gmlp", GmlpConfig)
class Gmlp(Resizable, Attention):
    """A perceptron with a spatial gating unit, out(u ⊙ (W norm(v) + b)), where (u, v) = gelu(expand(x)) (section 2.1).

    The matrix W combines positions. W starts near 0 and b at 1, so that the layer is initially a perceptron. The causal
    form uses W[t, s] with s <= t only.

    Parameters: 3 D I (+ (D + 2 I) bias) + 2 I of the norm + L² + L. O(T² I) time, O(L² + T I) memory; a step is O(t I).
    """

    roles = Role.ENCODER | Role.CAUSAL

    def __init__(self, config: GmlpConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        inner = config.inner or dim
        self.expand = xavier_linear(dim, 2 * inner, bias=config.bias)
        self.norm = nn.LayerNorm(inner)
        self.spatial = nn.Parameter(torch.randn(config.max_length, config.max_length) * 1e-3)
        self.spatial_bias = nn.Parameter(torch.ones(config.max_length))
        self.out = xavier_linear(inner, dim, bias=config.bias)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        length = x_BTD.shape[1]
        self.check_length(length)
        gated_BTI, value_BTI = (zero_padding(half_BTI, pad_BS) for half_BTI in self._halves(x_BTD))
        weights_TS = self.spatial[:length, :length]
        if self.role is Role.CAUSAL:
            weights_TS = weights_TS.tril()
        return self._gate(gated_BTI, weights_TS @ value_BTI, self.spatial_bias[:length]), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic=cache.empty("value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        gated_B1I, value_B1I = self._halves(x_B1D)
        kept = cache.remember(state.dynamic, value=value_B1I)
        length = cache.length(kept, "value")
        self.check_length(length)
        sum_B1I = cache.sum_over(self.spatial[length - 1 : length, :length], cache.segments(kept, "value"))
        return self._gate(gated_B1I, sum_B1I, self.spatial_bias[length - 1 : length]), state.advance(kept)

    def _halves(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns u and norm(v), each BTI, where u and v are the halves of gelu(expand(x))."""
        gated_BTI, value_BTI = functional.gelu(self.expand(x_BTD)).chunk(2, -1)
        return gated_BTI, self.norm(value_BTI).to(value_BTI.dtype)

    def _gate(self, gated_BTI: Tensor, sum_BTI: Tensor, bias_T: Tensor) -> Tensor:
        return self.out(gated_BTI * (sum_BTI + bias_T[:, None]))  # type: ignore[no-any-return]
