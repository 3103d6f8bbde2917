"""Nyström attention: softmax attention rebuilt from a few landmarks (Xiong et al. 2021, arXiv 2102.03902).

B batch, T length, D width of the layer, H heads, E width of a head, L landmarks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.depthwise import depthwise
from seqtk.ops.dot_product import attend
from seqtk.ops.head_checkpoint import Projected, by_heads
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class NystromConfig(QKVConfig):
    """Softmax attention rebuilt from `landmarks` mean queries and keys: O(T landmarks D) time; encoders only."""

    landmarks: int = setting(
        64,
        at_least=1,
        help="Segments of an input, each represented by its mean. A shorter input has one for each token.",
    )
    iterations: int = setting(6, at_least=1, help="Iterations towards the inverse of the matrix between landmarks.")
    kernel: int = setting(
        35, at_least=0, help="Kernel size of the convolution of the values that is added; odd. 0: none."
    )


@attentions.register("nystrom", NystromConfig)
class NystromAttention(HeadedAttention):
    """softmax(Q K̃ᵀ) softmax(Q̃ K̃ᵀ)⁺ softmax(Q̃ Kᵀ) V + conv(V) per head, all products over √e (equation 14).

    Q̃ and K̃ are the means of queries and keys over segments of each row's own tokens: token t of n is in segment ⌊t ·
    landmarks / n⌋, and in a row with fewer tokens than landmarks each is a segment of its own. The inverse comes from
    the paper's iteration (section 3.2), in float32 or wider, started for each matrix from its own norms: a norm taken
    over the batch, as in some public code, makes rows depend on each other. The convolution is depthwise, with one
    kernel a head. Dropout is that of the first factor.

    Parameters: 4 D² + kernel H (+ 4 D bias). Time O(T landmarks D + landmarks³ H). With as many landmarks as tokens, no
    convolution and enough iterations it is softmax attention. The landmarks mix all positions: no causal form.
    """

    roles = Role.ENCODER
    subquadratic = True

    def __init__(self, config: NystromConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        _check(config)
        self.add_projections()
        self.conv: nn.Conv2d | None = None
        if config.kernel:
            size, padding = (config.kernel, 1), (config.kernel // 2, 0)
            self.conv = nn.Conv2d(self.heads, self.heads, size, padding=padding, groups=self.heads, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        means_BLT = segment_means(pad_BS, min(self.config.landmarks, x_BTD.shape[1]), like=x_BTD)
        dropout = self.config.dropout if self.training else 0.0

        def attend_by_landmarks(some: slice, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            y_BHTE = self._attend(
                some,
                self.split(query_BTD),
                self.split(key_BTD),
                self.split(value_BTD),
                means_BLT,
                pad_BS,
                dropout=dropout,
            )
            return self.join(y_BHTE)

        y_BTD = by_heads(
            attend_by_landmarks,
            *(Projected(x_BTD, projection) for projection in (self.query, self.key, self.value)),
            heads=self.heads,
            through=[] if self.conv is None else [self.conv.weight],
            is_random=dropout > 0,
        )
        return self.out(y_BTD), None

    def _attend(
        self,
        some: slice,
        query_BHTE: Tensor,
        key_BHTE: Tensor,
        value_BHTE: Tensor,
        means_BLT: Tensor,
        pad_BT: Tensor | None,
        *,
        dropout: float,
    ) -> Tensor:
        """y_BHTE of `some` heads."""
        exists_BL = means_BLT.any(-1)
        means_B1LT, dtype = means_BLT[:, None], value_BHTE.dtype
        with torch.autocast(value_BHTE.device.type, enabled=False):
            few_queries_BHLE = means_B1LT @ query_BHTE.to(means_BLT.dtype)
            few_keys_BHLE = means_B1LT @ key_BHTE.to(means_BLT.dtype)
            among_BHLL = among_landmarks(few_queries_BHLE, few_keys_BHLE, exists_BL)
            inverse_BHLL = pseudo_inverse(among_BHLL, iterations=self.config.iterations)
        seen = None if pad_BT is None else ~pad_BT[:, None, None, :]
        gathered_BHLE = attend(few_queries_BHLE.to(dtype), key_BHTE, value_BHTE, bias=seen)
        mixed_BHLE = (inverse_BHLL @ gathered_BHLE.to(inverse_BHLL.dtype)).to(dtype)
        bias = None if pad_BT is None else exists_BL[:, None, None, :]
        y_BHTE = attend(query_BHTE, few_keys_BHLE.to(dtype), mixed_BHLE, bias=bias, dropout=dropout)
        if self.conv is None:
            return y_BHTE
        if pad_BT is not None:
            value_BHTE = value_BHTE.masked_fill(pad_BT[:, None, :, None], 0)
        kernel_HK, reach = self.conv.weight[some, 0, :, 0], self.config.kernel // 2
        return y_BHTE + self.split(depthwise(self.join(value_BHTE), kernel_HK, before=reach, after=reach))


def segment_means(pad_BT: Tensor | None, segments: int, *, like: Tensor) -> Tensor:
    """means_BLT: times x_BTD, the means over the segments of each row; rows of zeros for segments without tokens.

    A row with fewer tokens than `segments` has one for each of them.
    The rows' tokens come first. In float32 or wider; on the device of `like` and of its batch and length.
    """
    batch, length = like.shape[:2]
    place_T = torch.arange(length, device=like.device)
    segment_L = torch.arange(segments, device=like.device)
    if pad_BT is None:
        pad_BT = torch.zeros(1, length, dtype=torch.bool, device=like.device).expand(batch, -1)
    tokens_B1 = (~pad_BT).sum(1, keepdim=True).clamp(min=1)
    segments_B1 = tokens_B1.clamp(max=segments)
    segment_BT = (place_T * segments_B1).div(tokens_B1, rounding_mode="floor").masked_fill(pad_BT, -1)
    member_BLT = (segment_BT[:, None] == segment_L[:, None]).to(torch.promote_types(like.dtype, torch.float32))
    return member_BLT / member_BLT.sum(-1, keepdim=True).clamp(min=1)


def among_landmarks(query_BHLE: Tensor, key_BHLE: Tensor, exists_BL: Tensor) -> Tensor:
    """softmax(Q̃ K̃ᵀ / √e) among the landmarks that exist; 0 in the rows and columns of those that do not."""
    logits_BHLL = query_BHLE @ key_BHLE.transpose(-1, -2) / math.sqrt(query_BHLE.shape[-1])
    lowest = torch.finfo(logits_BHLL.dtype).min
    weights_BHLL = logits_BHLL.masked_fill(~exists_BL[:, None, None, :], lowest).softmax(-1)
    return weights_BHLL * (exists_BL[:, None, :, None] & exists_BL[:, None, None, :])


def pseudo_inverse(a_BHLL: Tensor, *, iterations: int) -> Tensor:
    """Z ≈ A⁺ of each matrix: Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Aᵀ / (‖A‖₁ ‖A‖∞).

    Rows and columns of zeros stay zeros, so a matrix within a larger one is inverted as if alone.
    """
    column_BH11, row_BH11 = (a_BHLL.abs().sum(axis, keepdim=True).amax((-1, -2), keepdim=True) for axis in (-2, -1))
    norms_BH11 = column_BH11 * row_BH11
    z_BHLL = a_BHLL.transpose(-1, -2) / torch.where(norms_BH11 > 0, norms_BH11, 1)
    one_LL = torch.eye(a_BHLL.shape[-1], dtype=a_BHLL.dtype, device=a_BHLL.device)
    for _ in range(iterations):
        az_BHLL = a_BHLL @ z_BHLL
        z_BHLL = z_BHLL @ (13 * one_LL - az_BHLL @ (15 * one_LL - az_BHLL @ (7 * one_LL - az_BHLL))) / 4
    return z_BHLL


def _check(config: NystromConfig) -> None:
    for key in ("landmarks", "iterations"):
        if getattr(config, key) < 1:
            raise UserError(f"attention.{key}={getattr(config, key)} must be at least 1.")
    if config.kernel < 0 or (config.kernel and config.kernel % 2 == 0):
        raise UserError(f"attention.kernel={config.kernel} must be an odd number, or 0 for no convolution.")
