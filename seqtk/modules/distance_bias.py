"""ALiBi and T5's bias: biases of attention logits that depend on the distance s - t of a key from its query.

B batch, T length of queries and keys, H heads, E width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.ops.distance_bias import alibi_slopes, bucket_starts, pairwise_bias

BUCKETS, MAX_DISTANCE = 32, 128
"""T5's number of buckets, and the distance from which all distances share the last bucket."""


class DistanceBias(nn.Module):
    """Base class of biases per head and distance. `among` returns the bias of all queries and keys of a batch."""

    def forward(self, distance: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Returns the bias for a tensor of integer distances, with one more dimension, H, at the start."""
        raise NotImplementedError

    def among(self, x_BHTE: Tensor, *, causal: bool, pad_BT: Tensor | None = None) -> Tensor:
        """Returns the bias for all pairs of positions, BHTT or 1HTT; -∞ at padding and, if `causal`, for later keys."""
        length, dtype = x_BHTE.shape[2], torch.promote_types(x_BHTE.dtype, torch.float32)
        bias = pairwise_bias(lambda distance: self(distance, dtype=dtype), length, causal=causal, device=x_BHTE.device)
        return bias if pad_BT is None else bias.masked_fill(pad_BT[:, None, None], -math.inf)


class AlibiBias(DistanceBias):
    """ALiBi: the bias -slope · |s - t|, without parameters (Press et al. 2022, arXiv 2108.12409, section 3)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, distance: Tensor, *, dtype: torch.dtype) -> Tensor:
        slope_H = alibi_slopes(self.heads, device=distance.device, dtype=dtype)
        return -slope_H.view(-1, *[1] * distance.dim()) * distance.abs()


class T5Bias(DistanceBias):
    """T5's bias: a learned scalar per head and bucket of distances, initially 0.

    (Raffel et al. 2020, arXiv 1910.10683, section 2.1.) In T5, all layers share one table; here, each layer has a table
    of BUCKETS · H parameters.
    """

    starts: Tensor

    def __init__(self, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.table = nn.Parameter(torch.zeros(BUCKETS, heads))
        starts = bucket_starts(BUCKETS if causal else BUCKETS // 2, MAX_DISTANCE)
        self.register_buffer("starts", torch.tensor(starts), persistent=False)

    def forward(self, distance: Tensor, *, dtype: torch.dtype) -> Tensor:
        far = (-distance).clamp(min=0) if self.causal else distance.abs()
        bucket = torch.bucketize(far, self.starts, right=True)
        if not self.causal:
            bucket = bucket + (distance > 0) * (BUCKETS // 2)
        return functional.embedding(bucket, self.table).movedim(-1, 0).to(dtype)
