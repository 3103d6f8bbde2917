"""cosFormer: linear attention that prefers near positions (Qin et al. 2022, arXiv 2202.08791).

B batch, D width of the layer, H heads, T length, E width of a head, R features of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import StepState, attentions
from seqtk.attention.headwise import ALL_HEADS
from seqtk.attention.kernel import EPSILON, KernelAttention, KernelConfig
from seqtk.config.fields import setting


@dataclass(frozen=True)
class CosformerConfig(KernelConfig):
    """Linear attention that prefers near positions: as many weights as dot-product attention, O(T D² / H) time."""

    max_length: int = setting(
        1024, at_least=1, help="The longest input. The weight of a pair falls to 0 at this distance."
    )


@attentions.register("cosformer", CosformerConfig)
class CosformerAttention(KernelAttention):
    """Linear attention with the weights relu(q_t) · relu(k_s) cos(π/2 (t - s) / L), where L = max_length (section 3.2).

    Denominators are at least 1e-6. Since cos(a - b) = cos a cos b + sin a sin b, the feature map is φ(x_t) = [relu(x)
    cos(π t / 2L), relu(x) sin(π t / 2L)], with R = 2 E features. The official code sets L to the longest row of the
    batch, which makes a row depend on other rows and on the future; seqtk's L is a constant. In cross-attention t and s
    count from the starts of the two sequences. No parameters besides the projections. O(T E D) time, O(T D) memory.
    """

    def features(self, x_BHTE: Tensor, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        position_T1 = torch.arange(first, first + x_BHTE.shape[2], device=x_BHTE.device)[:, None]
        angle_T1 = position_T1.to(x_BHTE.dtype) * (math.pi / 2 / self.config.max_length)
        positive_BHTE = x_BHTE.relu()
        return torch.cat([positive_BHTE * angle_T1.cos(), positive_BHTE * angle_T1.sin()], dim=-1)

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        return sum_BHT1.clamp(min=EPSILON)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        # `done` has no elements. Its length is the number of steps, because reading a shape does not wait for the
        # device.
        state = super().start(batch, memory_BSM, pad_BS=pad_BS)
        return state.advance({**(state.dynamic or {}), "done": self.out.weight.new_empty(batch, 0, 0)})

    def step(self, x_B1D: Tensor, state: StepState, *, first: int = 0) -> tuple[Tensor, StepState]:
        done = state.dynamic["done"]
        self.check_length(done.shape[1] + 1)
        y_B1D, state = super().step(x_B1D, state, first=done.shape[1])
        return y_B1D, state.advance({**state.dynamic, "done": done.new_empty(len(done), done.shape[1] + 1, 0)})
