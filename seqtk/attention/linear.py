"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236).

B batch, H heads, T length, E width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import attentions
from seqtk.attention.headwise import ALL_HEADS
from seqtk.attention.kernel import EPSILON, KernelAttention, KernelConfig


@dataclass(frozen=True)
class LinearConfig(KernelConfig):
    """Linear attention with φ = elu + 1: as many weights as dot-product attention, O(T D² / H) time in any role."""


@attentions.register("linear", LinearConfig)
class LinearAttention(KernelAttention):
    """Linear attention with the feature map φ(x) = elu(x) + 1 (section 3.2.1; causal: section 3.3).

    Queries and keys are not scaled, and 1e-6 is added to denominators. No parameters besides the projections. R = E
    features: O(T E D) time, O(T D) memory.
    """

    def features(self, x_BHTE: Tensor, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        if torch.compiler.is_compiling():  # without it, torch.compile's gradient of elu has different strides
            x_BHTE = x_BHTE.contiguous()
        return functional.elu(x_BHTE) + 1

    def denominator(self, sum_BHT1: Tensor) -> Tensor:
        return sum_BHT1 + EPSILON
