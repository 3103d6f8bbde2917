"""Means weighed by exponentials of any size, that can be merged: what Attention Free Transformers are made of.

Every weight is kept as its logarithm, so that no sum overflows, and none that a later position would dwarf is lost.

T length (or queries), S keys, D width; leading dimensions are free. A key that must not count is NOTHING, its value 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.parts.blocks import in_blocks

NOTHING = -1e30
"""The logarithm of no weight: finite, so that differences of two of them, and gradients, are no NaN."""

LEAF = 4
"""Positions that `weigh_past` compares one by one, in every channel."""


class Weighed(NamedTuple):
    """Σ exp(logit) value / Σ exp(logit), and the logarithm of its denominator; each of shape ...TD."""

    log: Tensor
    mean: Tensor

    def merge(self, other: "Weighed") -> "Weighed":
        """Over the keys of both."""
        share = (other.log - self.log).sigmoid()
        return Weighed(torch.logaddexp(self.log, other.log), torch.lerp(self.mean, other.mean, share))

    def at(self, rows: slice) -> "Weighed":
        """At some positions."""
        return Weighed(self.log[..., rows, :], self.mean[..., rows, :])

    def flip(self) -> "Weighed":
        """In the opposite order of positions."""
        return Weighed(self.log.flip(-2), self.mean.flip(-2))

    def delayed(self, by: int) -> "Weighed":
        """Each position with what stood `by` places before; the first with nothing."""
        length = self.log.shape[-2]
        kept = self.at(slice(0, max(length - by, 0)))
        added = min(by, length)
        return Weighed(
            functional.pad(kept.log, (0, 0, added, 0), value=NOTHING), functional.pad(kept.mean, (0, 0, added, 0))
        )


def running(each: Weighed) -> Weighed:
    """At each position over all up to it: O(T) work, in 2 log2 T rounds (Brent and Kung 1982)."""
    length = each.log.shape[-2]
    if length == 1:
        return each
    even, odd = each.at(slice(0, None, 2)), each.at(slice(1, None, 2))
    pairs = length // 2
    at_odd = running(even.at(slice(0, pairs)).merge(odd))
    later = at_odd.at(slice(0, (length - 1) // 2)).merge(even.at(slice(1, None)))
    at_even = Weighed(*(torch.cat([first[..., :1, :], rest], -2) for first, rest in zip(even, later, strict=True)))
    return Weighed(*(_interleaved(*places) for places in zip(at_even, at_odd, strict=True)))


def _interleaved(even_TD: Tensor, odd_TD: Tensor) -> Tensor:
    """One of each in turn; of the first there may be one more."""
    pairs = odd_TD.shape[-2]
    return torch.cat([torch.stack([even_TD[..., :pairs, :], odd_TD], -2).flatten(-3, -2), even_TD[..., pairs:, :]], -2)


def weigh_one_by_one(bias_TS: Tensor, key_SD: Tensor, value_SD: Tensor, *, causal: bool = False) -> Weighed:
    """Each query over all keys (up to its own place if `causal`), by T S D logits: for a few positions."""
    logits_TSD = bias_TS[..., None] + key_SD[..., None, :, :]
    if causal:
        later_TS = torch.ones(bias_TS.shape[-2:], dtype=torch.bool, device=bias_TS.device).triu(1)
        logits_TSD = logits_TSD.masked_fill(later_TS[..., None], NOTHING)
    return Weighed(logits_TSD.logsumexp(-2), (logits_TSD.softmax(-2) * value_SD[..., None, :, :]).sum(-2))


def weigh_all(bias_TS: Tensor, key_SD: Tensor, value_SD: Tensor) -> Weighed:
    """Each query over all keys, exp(bias + key) as the product of two exponentials: a matrix product.

    Both are scaled by their largest. Exact while, in no channel, the largest of one meets only what is 10^30 times
    smaller in the other.
    """
    key_1D, bias_T1 = key_SD.detach().amax(-2, keepdim=True), bias_TS.detach().amax(-1, keepdim=True)
    exp_SD = (key_SD - key_1D).exp()
    both_T2D = (bias_TS - bias_T1).exp() @ torch.cat([exp_SD, exp_SD * value_SD], -1)
    total_TD, sum_TD = both_T2D.chunk(2, -1)
    total_TD = total_TD.clamp(min=1e-30)
    return Weighed(total_TD.log() + key_1D + bias_T1, sum_TD / total_TD)


def weigh_past(bias_TT: Tensor, key_TD: Tensor, value_TD: Tensor) -> Weighed:
    """Each query over the keys up to its own place, with no scale that a later key has a part in.

    The later half over the earlier half by `weigh_all`, and each half within itself the same way: the work of half a
    T × T product, in log2 T rounds.
    """
    length = key_TD.shape[-2]
    if length <= LEAF:
        return weigh_one_by_one(bias_TT, key_TD, value_TD, causal=True)
    half = (length + 1) // 2
    later = length - half
    across = weigh_all(bias_TT[..., half:, :half], key_TD[..., :half, :], value_TD[..., :half, :])
    lack = half - later
    within = weigh_past(
        torch.stack([bias_TT[..., :half, :half], functional.pad(bias_TT[..., half:, half:], (0, lack, 0, lack))], -3),
        in_blocks(key_TD, half, dim=-2, fill=NOTHING),
        in_blocks(value_TD, half, dim=-2),
    )
    second = Weighed(*(x[..., 1, :later, :] for x in within)).merge(across)
    return Weighed(*(torch.cat([x[..., 0, :, :], y], -2) for x, y in zip(within, second, strict=True)))
