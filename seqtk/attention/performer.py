"""Performer: random features whose products are the weights of softmax attention on average (FAVOR+).

Choromanski et al. 2021, arXiv 2009.14794. B batch, T query length, S key length, H heads, E width of a head,
R features of a head.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, attentions
from seqtk.attention.linear import ALL, KernelAttention, KernelConfig, product
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError

HEADROOM = 64.0
"""The logarithm that the largest possible feature of a causal key is brought to; float32 ends at 88."""


@dataclass(frozen=True)
class PerformerConfig(KernelConfig):
    """Performer: softmax attention by R random features; the weights of dot-product attention, O(T R D) time."""

    features: int | None = setting(
        None, at_least=1, help="Random features of each head. null: E ln E for heads of width E."
    )
    kernel: Literal["softmax", "relu"] = setting(
        "softmax", help="softmax, or relu: generalized attention with relu(W x) + 0.001."
    )
    redraw_every: int | None = setting(1000, at_least=1, help="Updates between new random features. null: never.")


@attentions.register("performer", PerformerConfig)
class PerformerAttention(KernelAttention):
    """φ(x) = exp(W x' - |x'|²/2) / √R, x' = x / E^¼, so that φ(q) · φ(k) is exp(q · k / √E) on average over W.

    Section 2.3 (positive features) and 2.4 (orthogonal features): the rows of W (R × E, one for all heads) are
    Gaussian, orthogonal within each E of them. W is a buffer, saved with the weights; no parameters of its own. With
    `kernel: relu` φ(x) = relu(W x') + 0.001 (section 2.2, generalised attention).

    Exponents are kept in range by factors that cancel in the quotient, there being no epsilon; the result does not
    depend on them. A query's: its own largest feature. A key's in the ENCODER and CROSS roles: for each feature its
    largest value among the real keys of the row, which the queries give back, so that a denominator is never less than
    1. A key's in the CAUSAL role: one constant of W, since anything taken from a row's keys would show the future to
    the past where numbers run out. As no feature exceeds exp(|w|²/2), with it none overflows; keys with |k'| above some
    15 vanish in float32. O(T R D) time, O(T R H) memory.
    """

    projection_RE: Tensor

    def __init__(self, config: PerformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        for key in ("features", "redraw_every"):
            if (value := getattr(config, key)) is not None and value < 1:
                raise UserError(f"attention.{key}={value} must be at least 1, or null.")
        self.feature_count = config.features or max(1, int(self.head_dim * math.log(self.head_dim)))
        self.register_buffer("projection_RE", orthogonal_gaussian(self.feature_count, self.head_dim))

    def after_update(self, update: int, generator: torch.Generator) -> None:
        """Draw new features if it is time to. Called after each update of the weights, numbered from 1, with a
        generator on the CPU that is the same in all processes and differs from layer to layer."""
        if self.config.redraw_every is not None and update % self.config.redraw_every == 0:
            self.projection_RE.copy_(orthogonal_gaussian(self.feature_count, self.head_dim, generator=generator))

    def key_features(
        self, key_BHSE: Tensor, *, some: slice = ALL, pad_BS: Tensor | None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.kernel == "relu":
            return super().key_features(key_BHSE, some=some, pad_BS=pad_BS, first=first)
        causal = self.role is Role.CAUSAL
        less = self.projection_RE.square().sum(-1).amax() / 2 - HEADROOM if causal else 0.0
        logs_BHSR = log_features(key_BHSE, self.projection_RE, less=less)
        if pad_BS is not None:  # before the exponential: inf · 0 would be NaN
            logs_BHSR.masked_fill_(pad_BS[:, None, :, None], -math.inf)
        if causal:
            return logs_BHSR.exp_(), None
        shift_BH1R = logs_BHSR.detach().amax(2, keepdim=True)
        shift_BH1R = shift_BH1R.masked_fill(shift_BH1R == -math.inf, 0)  # of rows that are all padding
        return logs_BHSR.sub_(shift_BH1R).exp_(), shift_BH1R

    def query_features(
        self, query_BHTE: Tensor, *, some: slice = ALL, shift_BH1R: Tensor | None, first: int = 0
    ) -> Tensor:
        if self.config.kernel == "relu":
            return self.features(query_BHTE, some=some, first=first)
        # |q'|²/2 is the same for all of a query's features, and so cancels.
        scaled_RE = self.projection_RE.to(query_BHTE.dtype) * query_BHTE.shape[-1] ** -0.25
        logs_BHTR = product(query_BHTE, scaled_RE.T)
        if shift_BH1R is not None:
            logs_BHTR.add_(shift_BH1R)
        return logs_BHTR.sub_(logs_BHTR.detach().amax(-1, keepdim=True)).exp_()

    def features(self, x_BHTE: Tensor, *, some: slice = ALL, first: int = 0) -> Tensor:
        return product(x_BHTE * x_BHTE.shape[-1] ** -0.25, self.projection_RE.to(x_BHTE.dtype).T).relu() + 1e-3


def log_features(x_BHTE: Tensor, projection_RE: Tensor, *, less: Tensor | float = 0.0) -> Tensor:
    """ln φ(x) + ln √R - less = W x' - |x'|²/2 - less, x' = x / E^¼, BHTR: of [x', the rest] times [W, 1]."""
    x_BHTE = x_BHTE * x_BHTE.shape[-1] ** -0.25
    with_norm = torch.cat([x_BHTE, -x_BHTE.square().sum(-1, keepdim=True) / 2 - less], dim=-1)
    return product(with_norm, functional.pad(projection_RE.to(x_BHTE.dtype), (0, 1), value=1.0).T)


def orthogonal_gaussian(rows: int, width: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gaussian rows, each orthogonal to the others of its block of `width` rows (section 2.4).

    Directions from the QR decomposition of a Gaussian matrix, with the signs that make them uniform; lengths those of
    independent Gaussian vectors.
    """
    blocks = -(-rows // width)
    directions, triangles = torch.linalg.qr(torch.randn(blocks, width, width, generator=generator))
    directions = directions * triangles.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    lengths = torch.randn(blocks * width, width, generator=generator).norm(dim=-1, keepdim=True)
    matrix: Tensor = directions.transpose(-1, -2).reshape(-1, width) * lengths
    return matrix[:rows]
