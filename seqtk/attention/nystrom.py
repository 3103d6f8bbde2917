"""Nyström attention: approximates softmax attention with a few landmarks (Xiong et al. 2021, arXiv 2102.03902).

B batch, T length, D width of the layer, H heads, E width of a head, L landmarks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.attention.base import Role, attentions
from seqtk.attention.headwise import HeadwiseAttention
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.depthwise import depthwise
from seqtk.ops.dot_product import attend, padding_bias
from seqtk.ops.tensors import to_fp32, without_autocast, zero_padding
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class NystromConfig(QKVConfig):
    """Softmax attention approximated from `landmarks` mean queries and keys: O(T landmarks D) time; encoders only."""

    landmarks: int = setting(
        64,
        at_least=1,
        help="Number of segments of an input. The mean of a segment is a landmark. A segment has at least one token.",
    )
    iterations: int = setting(6, at_least=1, help="Iterations of the pseudo-inverse of the attention among landmarks.")
    kernel: int = setting(
        35, at_least=0, help="Kernel size (odd) of the convolution of the values that is added to the output. 0: none."
    )


@attentions.register("nystrom", NystromConfig)
class NystromAttention(HeadwiseAttention):
    """Softmax attention approximated with landmarks, which are mean queries Q̃ and mean keys K̃ (equation 14).

        y = softmax(Q K̃ᵀ) softmax(Q̃ K̃ᵀ)⁺ softmax(Q̃ Kᵀ) V + conv(V)        per head, each product divided by √E

    The means are over segments of each row's tokens: token t of n is in segment ⌊t · landmarks / n⌋. In a row with
    fewer tokens than landmarks, each token is a segment. The pseudo-inverse (⁺) comes from the paper's iteration
    (section 3.2), in float32 or wider. The initial matrix of the iteration is scaled by norms of the matrix to invert.
    (Norms over the batch, as in some public code, would make rows depend on each other.) The convolution is depthwise,
    with one kernel per head. Dropout is applied to the first factor.

    Parameters: 4 D² + kernel H (+ 4 D bias). O(T landmarks D + landmarks³ H) time. With as many landmarks as tokens, no
    convolution and enough iterations it equals softmax attention. There is no causal form, because the landmarks mix
    all positions.
    """

    roles = Role.ENCODER
    subquadratic = True

    def __init__(self, config: NystromConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.conv: nn.Conv2d | None = None
        if config.kernel:
            if config.kernel % 2 == 0:
                raise UserError(f"attention.kernel={config.kernel}: must be an odd number, or 0 for no convolution.")
            size, padding = (config.kernel, 1), (config.kernel // 2, 0)
            self.conv = nn.Conv2d(self.heads, self.heads, size, padding=padding, groups=self.heads, bias=False)

    def mix_parameters(self) -> Iterable[Tensor]:
        return () if self.conv is None else self.conv.parameters()

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        dtype = value_BHSE.dtype
        means_B1LT = segment_means(pad_BS, self.config.landmarks, like=value_BHSE[:, 0])[:, None]
        exists_BL = means_B1LT[:, 0].any(-1)
        with without_autocast(value_BHSE):
            mean_query_BHLE, mean_key_BHLE = (means_B1LT @ to_fp32(x) for x in (query_BHTE, key_BHSE))
            among_BHLL = among_landmarks(mean_query_BHLE, mean_key_BHLE, exists_BL)
            inverse_BHLL = pseudo_inverse(among_BHLL, iterations=self.config.iterations)
        mixed_BHLE = attend(mean_query_BHLE.to(dtype), key_BHSE, value_BHSE, bias=padding_bias(pad_BS))
        mixed_BHLE = (inverse_BHLL @ mixed_BHLE.to(inverse_BHLL.dtype)).to(dtype)
        bias = None if pad_BS is None else exists_BL[:, None, None, :]
        y_BHTE = attend(query_BHTE, mean_key_BHLE.to(dtype), mixed_BHLE, bias=bias, dropout=self.active_dropout)
        if self.conv is None:
            return y_BHTE
        kernel_HK, reach = self.conv.weight[heads, 0, :, 0], self.config.kernel // 2
        value_BSd = self.join(zero_padding(value_BHSE, pad_BS))
        return y_BHTE + self.split(depthwise(value_BSd, kernel_HK, before=reach, after=reach))


def segment_means(pad_BT: Tensor | None, segments: int, *, like: Tensor) -> Tensor:
    """Returns the matrix means_BLT that averages x_BTD over L <= T segments of each row: means_BLT @ x_BTD.

    In a row with fewer tokens than segments, each token is one of the first segments, and the matrix is 0 for the other
    segments. The matrix has the batch size, length and device of `like`, which is x_BTD, and is in float32 or wider.
    """
    batch, length = like.shape[:2]
    position_T = torch.arange(length, device=like.device)
    segment_L1 = torch.arange(min(segments, length), device=like.device)[:, None]
    tokens_B1 = position_T.new_full((batch, 1), length) if pad_BT is None else (~pad_BT).sum(1, keepdim=True)
    segment_BT = position_T * tokens_B1.clamp(max=len(segment_L1)) // tokens_B1.clamp(min=1)
    is_member_BLT = (segment_BT[:, None] == segment_L1) & (position_T < tokens_B1)[:, None]
    member_BLT = is_member_BLT.to(torch.promote_types(like.dtype, torch.float32))
    return member_BLT / member_BLT.sum(-1, keepdim=True).clamp(min=1)


def among_landmarks(query_BHLE: Tensor, key_BHLE: Tensor, exists_BL: Tensor) -> Tensor:
    """Returns softmax(Q̃ K̃ᵀ / √E) over the landmarks that a row has. Rows and columns of missing landmarks are 0."""
    logits_BHLL = query_BHLE @ key_BHLE.transpose(-1, -2) / math.sqrt(query_BHLE.shape[-1])
    lowest = torch.finfo(logits_BHLL.dtype).min
    weights_BHLL = logits_BHLL.masked_fill(~exists_BL[:, None, None, :], lowest).softmax(-1)
    return weights_BHLL * (exists_BL[:, None, :, None] & exists_BL[:, None, None, :])


def pseudo_inverse(a_BHLL: Tensor, *, iterations: int) -> Tensor:
    """Returns Z ≈ A⁺, the pseudo-inverse of each matrix.

    Starts with Z = Aᵀ / (‖A‖₁ ‖A‖∞), and iterates Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4. Zero rows and
    columns stay zero, so padding a matrix with zeros does not change its inverse.
    """
    column_BH11, row_BH11 = (a_BHLL.abs().sum(axis, keepdim=True).amax((-1, -2), keepdim=True) for axis in (-2, -1))
    norms_BH11 = column_BH11 * row_BH11
    z_BHLL = a_BHLL.transpose(-1, -2) / torch.where(norms_BH11 > 0, norms_BH11, 1)
    one_LL = torch.eye(a_BHLL.shape[-1], dtype=a_BHLL.dtype, device=a_BHLL.device)
    for _ in range(iterations):
        az_BHLL = a_BHLL @ z_BHLL
        z_BHLL = z_BHLL @ (13 * one_LL - az_BHLL @ (15 * one_LL - az_BHLL @ (7 * one_LL - az_BHLL))) / 4
    return z_BHLL
