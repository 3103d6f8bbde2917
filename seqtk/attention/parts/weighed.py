"""Means weighed by exponentials of any size, that can be merged: what Attention Free Transformers are made of.

Every sum of weights has a scale beside it, near the largest of its keys, so that no sum overflows, and none that a later
position would dwarf is lost.

T length (or queries), S keys, D width; leading dimensions are free. A key that must not count is NOTHING, its value 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.parts.blocks import in_blocks

NOTHING = -1e30
"""The logarithm of no weight: finite, so that differences of two of them, and gradients, are no NaN."""


SMALLEST = 1e-30
"""A sum of weights below it counts as this: what has nothing to see has a mean of 0."""


class Weighed(NamedTuple):
    """Sums of weights, and of values times weights, to be multiplied by exp(scale); each of shape ...TD.

    A scale is a number like any other to its sums: it has no gradient.
    """

    scale: Tensor
    total: Tensor
    sum: Tensor

    @classmethod
    def of(cls, key_TD: Tensor, value_TD: Tensor) -> "Weighed":
        """Each key alone."""
        scale_TD = key_TD.detach()
        total_TD = (key_TD - scale_TD).exp()
        return cls(scale_TD, total_TD, total_TD * value_TD)

    @property
    def log(self) -> Tensor:
        """Logarithm of the weights' sum."""
        return self.scale + self.total.clamp(min=SMALLEST).log()

    @property
    def mean(self) -> Tensor:
        return self.sum / self.total.clamp(min=SMALLEST)

    def at_scale(self, scale: Tensor) -> "Weighed":
        """The same by another scale, that is not smaller."""
        factor = (self.scale - scale).exp()
        return Weighed(scale, self.total * factor, self.sum * factor)

    def merge(self, other: "Weighed") -> "Weighed":
        """Over the keys of both."""
        scale = torch.maximum(self.scale, other.scale)
        one, two = self.at_scale(scale), other.at_scale(scale)
        return Weighed(scale, one.total + two.total, one.sum + two.sum)

    def at(self, rows: slice) -> "Weighed":
        """At some positions."""
        return Weighed(*(x[..., rows, :] for x in self))

    def flip(self) -> "Weighed":
        """In the opposite order of positions."""
        return Weighed(*(x.flip(-2) for x in self))

    def delayed(self, by: int) -> "Weighed":
        """Each position with what stood `by` places before; the first with nothing."""
        length = self.scale.shape[-2]
        added = min(by, length)
        kept = self.at(slice(0, length - added))
        return Weighed(
            *(functional.pad(x, (0, 0, added, 0), value=fill) for x, fill in zip(kept, (NOTHING, 0, 0), strict=True))
        )


def running(each: Weighed) -> Weighed:
    """At each position over all up to it: O(T) work, in 2 log2 T rounds (Brent and Kung 1982)."""
    length = each.scale.shape[-2]
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


def weigh_all(weight_TS: Tensor, key_SD: Tensor, value_SD: Tensor, *, scale_1D: Tensor | None = None) -> Weighed:
    """Each query over all keys, each exp(key) times a weight in 0 … 1: a matrix product.

    By the scale of the largest key, if no other is given. Exact while, in no channel, only weights of 10^-30 meet it.
    """
    scale_1D = key_SD.detach().amax(-2, keepdim=True) if scale_1D is None else scale_1D
    exp_SD = (key_SD - scale_1D).exp()
    total_TD, sum_TD = (weight_TS @ torch.cat([exp_SD, exp_SD * value_SD], -1)).chunk(2, -1)
    return Weighed(scale_1D, total_TD, sum_TD)


def weigh_past(weight_TT: Tensor, key_TD: Tensor, value_TD: Tensor) -> Weighed:
    """Each query over the keys up to its own place, with no scale that a later key has a part in.

    The later half over the earlier half by `weigh_all`, and each half within itself the same way: the work of half a
    T × T product, in log2 T rounds.
    """
    length = key_TD.shape[-2]
    if length == 1:
        alone = Weighed.of(key_TD, value_TD)
        return Weighed(alone.scale, alone.total * weight_TT, alone.sum * weight_TT)
    half = (length + 1) // 2
    lack = 2 * half - length
    weight_TT = functional.pad(weight_TT, (0, lack, 0, lack)) if lack else weight_TT
    key_2HD, value_2HD = in_blocks(key_TD, half, dim=-2, fill=NOTHING), in_blocks(value_TD, half, dim=-2)
    own_2HH = torch.stack([weight_TT[..., :half, :half], weight_TT[..., half:, half:]], -3)
    within = weigh_past(own_2HH, key_2HD, value_2HD)
    first, second = (Weighed(*halves) for halves in zip(*(x.unbind(-3) for x in within), strict=True))
    across = weigh_all(weight_TT[..., half:, :half], key_2HD.unbind(-3)[0], value_2HD.unbind(-3)[0])
    both = zip(first, second.merge(across), strict=True)
    return Weighed(*(torch.cat(halves, -2)[..., :length, :] for halves in both))
