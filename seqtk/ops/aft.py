"""Means weighed by exponentials of any size, that can be merged: what Attention Free Transformers are made of.

Every sum of weights has a scale beside it, the largest of its keys, so that no sum overflows, and none that a later
position would dwarf is lost.

T length (or queries), S keys, D width; leading dimensions are free. A key that must not count is NOTHING, its value 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

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
    """At each position over all up to it, by the scale of the largest so far: O(T) work, in 2 log2 T rounds."""
    scale_TD = each.scale.clone()
    for source, target in _rounds(scale_TD.shape[-2]):
        scale_TD[..., target, :].clamp_(min=scale_TD[..., source, :])
    _, total_TD, sum_TD = each.at_scale(scale_TD)
    return Weighed(scale_TD, *_Running.apply(scale_TD, total_TD, sum_TD))  # type: ignore[no-untyped-call]


class _Running(torch.autograd.Function):
    """Sums that each have a scale of their own, over all up to each; backward the same rounds, turned round."""

    @staticmethod
    def forward(ctx: Any, scale_TD: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(scale_TD)
        sums = tuple(x_TD.clone() for x_TD in sums)
        for source, target in _rounds(scale_TD.shape[-2]):
            factor_TD = (scale_TD[..., source, :] - scale_TD[..., target, :]).exp_()
            for x_TD in sums:
                x_TD[..., target, :].addcmul_(x_TD[..., source, :], factor_TD)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale_TD,) = ctx.saved_tensors
        grads = tuple(grad_TD.clone() for grad_TD in grads)
        for source, target in reversed(_rounds(scale_TD.shape[-2])):
            factor_TD = (scale_TD[..., source, :] - scale_TD[..., target, :]).exp_()
            for grad_TD in grads:
                grad_TD[..., source, :].addcmul_(grad_TD[..., target, :], factor_TD)
        return None, *grads


def _rounds(length: int) -> list[tuple[slice, slice]]:
    """What is added to what, one round after the other, so that all are running sums (Brent and Kung 1982).

    First ever longer stretches that end at multiples of 2, 4, 8, …; then what lies before each, at shorter ones.
    """
    sizes = [1 << n for n in range((length - 1).bit_length())]
    pairs = [(size - 1, 2 * size - 1, 2 * size) for size in sizes]
    pairs += [(2 * size - 1, 3 * size - 1, 2 * size) for size in reversed(sizes)]
    return [
        (slice(source, length - (target - source), step), slice(target, length, step))
        for source, target, step in pairs
        if target < length
    ]


def weigh_all(weight_TS: Tensor, key_SD: Tensor, value_SD: Tensor) -> Weighed:
    """Each query over all keys, each exp(key) times a weight in 0 … 1: a matrix product.

    By the scale of the largest key. Exact while, in no channel, only weights of 10^-30 meet it.
    """
    scale_1D = key_SD.detach().amax(-2, keepdim=True)
    total_TD, sum_TD = (weight_TS @ exponentials(key_SD - scale_1D, value_SD)).chunk(2, -1)
    return Weighed(scale_1D.expand_as(total_TD), total_TD, sum_TD)


def exponentials(logit_SD: Tensor, value_SD: Tensor) -> Tensor:
    """exp(logit), and beside it exp(logit) value: S(2D), to be summed in one matrix product."""
    exp_SD = logit_SD.exp()
    return torch.cat([exp_SD, exp_SD * value_SD], -1)


def weigh_past(weight_TT: Tensor, key_TD: Tensor, value_TD: Tensor, *, before: Weighed | None = None) -> Weighed:
    """Each query over the keys up to its own place, each exp(key) times a weight in 0 … 1; and over what came `before`.

    By the scale of the largest key so far, in which no later key has a part. The later half of 2, 4, 8, … positions
    sees the earlier half by a matrix product: the work of half a T × T product, in log2 T rounds.
    """
    length = key_TD.shape[-2]
    earlier = 1 << (length - 1).bit_length() >> 1
    if 2 * earlier == length or length == 1:
        known = (None, None, None) if before is None else before
        return Weighed(*_WeighPast.apply(weight_TT, key_TD, value_TD, *known))  # type: ignore[no-untyped-call]
    weight_EE, key_ED, value_ED = (
        weight_TT[..., :earlier, :earlier],
        key_TD[..., :earlier, :],
        value_TD[..., :earlier, :],
    )
    across = weigh_all(weight_TT[..., earlier:, :earlier], key_ED, value_ED)
    if before is not None:
        across, before = across.merge(before.at(slice(earlier, None))), before.at(slice(0, earlier))
    first = weigh_past(weight_EE, key_ED, value_ED, before=before)
    own_LL, key_LD, value_LD = weight_TT[..., earlier:, earlier:], key_TD[..., earlier:, :], value_TD[..., earlier:, :]
    second = weigh_past(own_LL, key_LD, value_LD, before=across)
    return Weighed(*(torch.cat(halves, -2) for halves in zip(first, second, strict=True)))


class _WeighPast(torch.autograd.Function):
    """`weigh_past` of 2^n positions, with nothing kept of the rounds: they are gone through again backward.

    exp(key - scale of t) = exp(key - largest of the earlier half) × exp(that - scale of t), neither above 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight_TT: Tensor,
        key_TD: Tensor,
        value_TD: Tensor,
        before_TD: Tensor | None,
        before_total_TD: Tensor | None,
        before_sum_TD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale_TD = key_TD.clone() if before_TD is None else torch.maximum(key_TD, before_TD)
        for size in _sizes(key_TD):
            first, second = _halves(scale_TD, size)
            second.clamp_(min=first[..., -1:, :])
        total_TD = (key_TD - scale_TD).exp_().mul_(_own(weight_TT))
        sum_TD = total_TD * value_TD
        if before_TD is not None and before_total_TD is not None and before_sum_TD is not None:
            factor_TD = (before_TD - scale_TD).exp_()
            total_TD.addcmul_(before_total_TD, factor_TD)
            sum_TD.addcmul_(before_sum_TD, factor_TD)
        for size in _sizes(key_TD):
            both_HE, factor_HD = _across(key_TD, value_TD, scale_TD, size)
            seen = (_lower(weight_TT, size) @ both_HE).chunk(2, -1)
            for x_TD, seen_HD in zip((total_TD, sum_TD), seen, strict=True):
                _halves(x_TD, size)[1].addcmul_(seen_HD, factor_HD)
        ctx.save_for_backward(weight_TT, key_TD, value_TD, scale_TD, before_TD)
        ctx.mark_non_differentiable(scale_TD)
        return scale_TD, total_TD, sum_TD

    @staticmethod
    def backward(ctx: Any, _: Tensor, total_TD: Tensor, sum_TD: Tensor) -> tuple[Tensor | None, ...]:
        """Given the gradients of both sums."""
        weight_TT, key_TD, value_TD, scale_TD, before_TD = ctx.saved_tensors
        exp_TD = (key_TD - scale_TD).exp_()
        key_grad = torch.addcmul(total_TD, sum_TD, value_TD).mul_(exp_TD)
        weight_grad = torch.zeros_like(weight_TT)
        _own(weight_grad).copy_(key_grad.sum(-1, keepdim=True).sum_to_size(_own(weight_TT).shape))
        key_grad.mul_(_own(weight_TT))
        value_grad = exp_TD.mul_(sum_TD).mul_(_own(weight_TT))
        for size in _sizes(key_TD):
            both_HE, factor_HD = _across(key_TD, value_TD, scale_TD, size)
            grad_HE = torch.cat([_halves(x_TD, size)[1] * factor_HD for x_TD in (total_TD, sum_TD)], -1)
            lower_HH = _lower(weight_TT, size)
            _lower(weight_grad, size).copy_((grad_HE @ both_HE.mT).sum_to_size(lower_HH.shape))
            total_HD, sum_HD = (lower_HH.mT @ grad_HE).chunk(2, -1)
            exp_HD = both_HE.chunk(2, -1)[0]
            _halves(value_grad, size)[0].addcmul_(sum_HD, exp_HD)
            total_HD.addcmul_(sum_HD, _halves(value_TD, size)[0])
            _halves(key_grad, size)[0].addcmul_(total_HD, exp_HD)
        if before_TD is None:
            return weight_grad, key_grad, value_grad, None, None, None
        factor_TD = (before_TD - scale_TD).exp_()
        return weight_grad, key_grad, value_grad, None, total_TD * factor_TD, sum_TD * factor_TD


def _sizes(x_TD: Tensor) -> list[int]:
    """Of the halves in each round: 1, 2, 4, … T / 2."""
    return [1 << n for n in range(x_TD.shape[-2].bit_length() - 1)]


def _halves(x_TD: Tensor, size: int) -> tuple[Tensor, ...]:
    """The earlier and the later half of every two times `size` positions: views."""
    return x_TD.unflatten(-2, (-1, 2, size)).unbind(-3)  # type: ignore[no-any-return, no-untyped-call]


def _lower(x_TT: Tensor, size: int) -> Tensor:
    """Later halves as rows, each with its earlier half as columns: a view."""
    later_earlier = x_TT.unflatten(-1, (-1, 2, size)).unflatten(-4, (-1, 2, size)).select(-2, 0).select(-4, 1)  # type: ignore[no-untyped-call]
    return later_earlier.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # type: ignore[no-any-return]


def _own(x_TT: Tensor) -> Tensor:
    """The diagonal, as a column: a view."""
    return x_TT.diagonal(dim1=-2, dim2=-1)[..., None]


def _across(key_TD: Tensor, value_TD: Tensor, scale_TD: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of every earlier half the exponentials, and beside them these times values; and the later half's factor."""
    (key_HD, _), (value_HD, _), (scale_HD, later_HD) = (_halves(x, size) for x in (key_TD, value_TD, scale_TD))
    largest_1D = scale_HD[..., -1:, :]
    return exponentials(key_HD - largest_1D, value_HD), (largest_1D - later_HD).exp_()
