"""Where a position stands, told to dot-product attention: by turning queries and keys, or by a bias on the logits.

A bias depends on the head and on the distance s - t of a key from its query alone.

B batch, T length of queries and of keys alike, H heads, E width of a head, F = E / 2, N = 2 T - 1 distances.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BUCKETS, MAX_DISTANCE = 32, 128
"""Of T5: so many buckets of distances, the last of which holds all from MAX_DISTANCE on."""


def rotate(x_BHTE: Tensor, positions_BT: Tensor) -> Tensor:
    """Each pair (e, e + E/2) of a head turned by position · 10000^(-2e/E) (Su et al. 2021, RoFormer, section 3.2.2).

    The product of a query and a key so turned depends on their distance alone. Computed in float32 or wider.
    """
    half = x_BHTE.shape[-1] // 2
    dtype = torch.promote_types(x_BHTE.dtype, torch.float32)
    frequency_F = 10000.0 ** (-torch.arange(half, device=x_BHTE.device, dtype=dtype) / half)
    angle_B1TF = positions_BT[:, None, :, None].to(dtype) * frequency_F
    first, second = x_BHTE.to(dtype).chunk(2, dim=-1)
    sin, cos = angle_B1TF.sin(), angle_B1TF.cos()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHTE.dtype)


class DistanceBias(nn.Module):
    """A bias per head and distance; `among` spreads it over the queries and keys of a batch."""

    def forward(self, distance: Tensor, *, dtype: torch.dtype) -> Tensor:
        """The bias, [H, …], at whole distances […]."""
        raise NotImplementedError

    def among(self, x_BHTE: Tensor, *, causal: bool, pad_BT: Tensor | None = None) -> Tensor:
        """The bias among all positions of `x`, BHTT or 1HTT; -∞ at padding and, if `causal`, at later positions."""
        length, dtype = x_BHTE.shape[2], torch.promote_types(x_BHTE.dtype, torch.float32)
        distance_N = torch.arange(1 - length, length, device=x_BHTE.device)
        bias_HN: Tensor = self(distance_N, dtype=dtype)
        if causal:
            bias_HN = bias_HN.masked_fill(distance_N > 0, -math.inf)
        bias = bias_HN.unfold(1, length, 1).flip(1)[None]  # row t starts at distance -t
        return bias if pad_BT is None else bias.masked_fill(pad_BT[:, None, None], -math.inf)


class AlibiBias(DistanceBias):
    """-slope · |s - t|: nothing is trained (Press et al. 2022, arXiv 2108.12409, section 3)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, distance: Tensor, *, dtype: torch.dtype) -> Tensor:
        slope_H = alibi_slopes(self.heads, device=distance.device, dtype=dtype)
        return -slope_H.view(-1, *[1] * distance.dim()) * distance.abs()


def alibi_slopes(heads: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """slope_H: 2^(-8 i / p), i = 1 … p, for p heads, p a power of two.

    For another number, those of the next smaller p, then every second one, from the first on, of 2 p heads (as in the
    authors' code).
    """
    p = 1 << (heads.bit_length() - 1)
    head_H = torch.arange(heads, device=device)
    exponent_H = torch.where(head_H < p, (head_H + 1) * (8 / p), (2 * (head_H - p) + 1) * (4 / p))
    return torch.exp2(-exponent_H.to(dtype))


class T5Bias(DistanceBias):
    """A trained scalar per head and bucket of distances, 0 at first (Raffel et al. 2020, arXiv 1910.10683, 2.1).

    There one table serves all layers; here each layer has its own, of BUCKETS · H parameters.
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


def bucket_starts(buckets: int, max_distance: int) -> list[int]:
    """The least distance of each bucket but the first, which holds distance 0.

    Half of the buckets hold one distance each; the starts of the others grow geometrically, the k-th of m at
    m (max_distance / m)^(k / m), up to `max_distance`, which the last bucket would end at but does not. Exact, in whole
    numbers, where a logarithm in float32 is a matter of rounding.
    """
    m = buckets // 2
    starts = list(range(1, m + 1))
    for k in range(1, m):
        start = starts[-1]
        while start**m < m ** (m - k) * max_distance**k:
            start += 1
        starts.append(start)
    return starts
