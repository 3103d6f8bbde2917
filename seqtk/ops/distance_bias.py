"""Biases of attention logits that depend on the head and on the distance s - t of a key from its query.

ALiBi: -slope · |s - t|, without parameters (Press et al. 2022, arXiv 2108.12409, section 3). T5: a learned scalar per
bucket of distances (Raffel et al. 2020, arXiv 1910.10683, section 2.1).

Where it runs: on every device. The bias is computed for the 2 T - 1 distances that exist, and the T × T bias is a view
of these values: row t starts at distance -t. The naive form computes the bias of each pair.

B batch, T length of queries and keys, H heads, N = 2 T - 1 distances.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seqtk.ops.dispatch import naive_mode

BiasOf = Callable[[Tensor], Tensor]
"""Function from integer distances […] to the bias of each head, [H, …]."""


def naive(bias_of: BiasOf, length: int, *, causal: bool, device: torch.device) -> Tensor:
    """Computes the bias of each pair of positions."""
    position_T = torch.arange(length, device=device)
    distance_TT = position_T - position_T[:, None]
    bias_HTT = bias_of(distance_TT)
    return (bias_HTT.masked_fill(distance_TT > 0, -math.inf) if causal else bias_HTT)[None]


def pairwise_bias(bias_of: BiasOf, length: int, *, causal: bool, device: torch.device) -> Tensor:
    """Returns bias_1HTT for T positions; -inf for later keys if `causal`."""
    if naive_mode():
        return naive(bias_of, length, causal=causal, device=device)
    distance_N = torch.arange(1 - length, length, device=device)
    bias_HN = bias_of(distance_N)
    if causal:
        bias_HN = bias_HN.masked_fill(distance_N > 0, -math.inf)
    return bias_HN.unfold(1, length, 1).flip(1)[None]


def alibi_slopes(heads: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns ALiBi's slope of each head, slope_H. For p heads, p a power of two, it is 2^(-8 i / p), i = 1 … p.

    For other numbers of heads, p is the next smaller power of two, and the remaining heads have every second of the 2 p
    slopes, starting with the first (as in the authors' code).
    """
    p = 1 << (heads.bit_length() - 1)
    head_H = torch.arange(heads, device=device)
    exponent_H = torch.where(head_H < p, (head_H + 1) * (8 / p), (2 * (head_H - p) + 1) * (4 / p))
    return torch.exp2(-exponent_H.to(dtype))


def bucket_starts(buckets: int, max_distance: int) -> list[int]:
    """Returns the smallest distance of each of T5's buckets except the first, which contains distance 0.

    Half of the buckets contain one distance each. The starts of the other m buckets grow geometrically up to
    `max_distance`: start k is m (max_distance / m)^(k / m). The last bucket also contains all larger distances.
    Computed in integers, because a float32 logarithm rounds.
    """
    m = buckets // 2
    starts = list(range(1, m + 1))
    for k in range(1, m):
        start = starts[-1]
        while start**m < m ** (m - k) * max_distance**k:
            start += 1
        starts.append(start)
    return starts
