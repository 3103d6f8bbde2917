"""Performer: random features whose products equal the weights of softmax attention in expectation (FAVOR+).

Choromanski et al. 2021, arXiv 2009.14794.

B batch, T query length, S key length, H heads, E width of a head,
R features of a head.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, attentions
from seqtk.attention.headwise import ALL_HEADS
from seqtk.attention.kernel import KernelAttention, KernelConfig, product
from seqtk.config.fields import setting

MAX_LOG_FEATURE = 64.0
"""The limit of the logarithm of a causal key's feature. exp(x) overflows in float32 for x > 88."""


@dataclass(frozen=True)
class PerformerConfig(KernelConfig):
    """Softmax attention approximated by R random features: as many weights as dot-product attention, O(T R D) time."""

    features: int | None = setting(
        None, at_least=1, help="Random features of each head. null: E ln E for heads of width E."
    )
    kernel: Literal["softmax", "relu"] = setting(
        "softmax", help="softmax, or relu: generalized attention with relu(W x) + 0.001."
    )
    redraw_every: int | None = setting(
        1000, at_least=1, help="Draw new random features after this many updates. null: never."
    )


@attentions.register("performer", PerformerConfig)
class PerformerAttention(KernelAttention):
    """Linear attention with random features: φ(q) · φ(k) is exp(q · k / √E) in expectation over the random matrix W.

    The features are positive (section 2.3): φ(x) = exp(W x' - |x'|²/2) / √R, where x' = x / E^¼. The rows of W (R × E,
    shared by the heads) are Gaussian, and orthogonal within each block of E rows (section 2.4). W is a buffer, saved
    with the weights; no parameters besides the projections. `kernel=relu`: φ(x) = relu(W x') + 0.001 (generalized
    attention, section 2.2). O(T R D) time, O(T R H) memory.

    Exponents are shifted to stay in range; the shifts cancel in the quotient, as there is no epsilon. A query's shift
    is its largest exponent. In ENCODER and CROSS, the keys have one shift per feature, the largest exponent among the
    real keys of the row; adding this shift to the queries' exponents keeps denominators at 1 or more. In CAUSAL, the
    shift is a constant computed from W, because a shift computed from the keys would let later keys affect earlier
    outputs through rounding. No feature exceeds exp(|w|²/2), so none overflows, but keys with |k'| above about 15
    underflow in float32.
    """

    projection_RE: Tensor

    def __init__(self, config: PerformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.feature_count = config.features or max(1, int(self.head_dim * math.log(self.head_dim)))
        self.register_buffer("projection_RE", orthogonal_gaussian(self.feature_count, self.head_dim))

    @property
    def redraw_every(self) -> int | None:
        every: int | None = self.config.redraw_every
        return every

    def redraw(self, generator: torch.Generator) -> None:
        self.projection_RE.copy_(orthogonal_gaussian(self.feature_count, self.head_dim, generator=generator))

    def key_features(
        self, key_BHSE: Tensor, *, heads: slice = ALL_HEADS, pad_BS: Tensor | None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.kernel == "relu":
            return super().key_features(key_BHSE, heads=heads, pad_BS=pad_BS, first=first)
        causal = self.role is Role.CAUSAL
        shift = self.projection_RE.square().sum(-1).amax() / 2 - MAX_LOG_FEATURE if causal else 0.0
        logs_BHSR = log_features(key_BHSE, self.projection_RE, shift=shift)
        if pad_BS is not None:  # before the exponential: inf · 0 would be NaN
            logs_BHSR.masked_fill_(pad_BS[:, None, :, None], -math.inf)
        if causal:
            return logs_BHSR.exp_(), None
        shift_BH1R = logs_BHSR.detach().amax(2, keepdim=True)
        shift_BH1R = shift_BH1R.masked_fill(shift_BH1R == -math.inf, 0)  # rows that are all padding
        return logs_BHSR.sub_(shift_BH1R).exp_(), shift_BH1R

    def query_features(
        self, query_BHTE: Tensor, *, heads: slice = ALL_HEADS, shift_BH1R: Tensor | None, first: int = 0
    ) -> Tensor:
        if self.config.kernel == "relu":
            return self.features(query_BHTE, heads=heads, first=first)
        # |q'|²/2 is the same for all features of a query, so it cancels.
        scaled_RE = self.projection_RE.to(query_BHTE.dtype) * query_BHTE.shape[-1] ** -0.25
        logs_BHTR = product(query_BHTE, scaled_RE.T)
        if shift_BH1R is not None:
            logs_BHTR.add_(shift_BH1R)
        return logs_BHTR.sub_(logs_BHTR.detach().amax(-1, keepdim=True)).exp_()

    def features(self, x_BHTE: Tensor, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        return product(x_BHTE * x_BHTE.shape[-1] ** -0.25, self.projection_RE.to(x_BHTE.dtype).T).relu() + 1e-3


def log_features(x_BHTE: Tensor, projection_RE: Tensor, *, shift: Tensor | float = 0.0) -> Tensor:
    """Returns ln φ(x) + ln √R - shift, BHTR, computed as one product of [x', -|x'|²/2 - shift] and [W, 1]."""
    x_BHTE = x_BHTE * x_BHTE.shape[-1] ** -0.25
    with_norm = torch.cat([x_BHTE, -x_BHTE.square().sum(-1, keepdim=True) / 2 - shift], dim=-1)
    return product(with_norm, functional.pad(projection_RE.to(x_BHTE.dtype), (0, 1), value=1.0).T)


def orthogonal_gaussian(rows: int, width: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns standard Gaussian rows that are orthogonal within each block of `width` rows (section 2.4).

    Directions come from the QR decomposition of a Gaussian matrix, with signs chosen so that they are uniformly
    distributed. Lengths are the norms of independent Gaussian vectors.
    """
    blocks = -(-rows // width)
    directions, triangles = torch.linalg.qr(torch.randn(blocks, width, width, generator=generator))
    directions = directions * triangles.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    lengths = torch.randn(blocks * width, width, generator=generator).norm(dim=-1, keepdim=True)
    matrix: Tensor = directions.transpose(-1, -2).reshape(-1, width) * lengths
    return matrix[:rows]
