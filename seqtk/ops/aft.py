"""Numerically stable sums and means with exponential weights, the core of Attention Free Transformers.

y_t = Σ_s w_ts exp(k_s) v_s / Σ_s w_ts exp(k_s) in each channel, over all s or over s <= t (Zhai et al. 2021, arXiv
2105.14103, section 3). Each sum is stored with a scale, the largest of its keys, as in the online log-sum-exp. No sum
overflows, and a much larger key at a later position does not round earlier sums to zero.

Where it runs: the fast forms run on every device. `cumulative` (w = 1) takes O(T) work in 2 log2 T in-place rounds,
forward and backward. `accumulate_causal` takes half the work of a T × T matrix product, in log2 T rounds. Its backward
pass recomputes the rounds, so only its inputs and the scale are kept. `accumulate` is one matrix product. The naive
form computes T × S × D exponentials.

T length (or queries), S keys, D width, E = 2 D, H half of a group of positions; before them any dimensions. Padding has
the key NEG_INF and value 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode

NEG_INF = -1e30
"""The logarithm of a weight of 0. Finite, so that differences of two of them, and gradients, are not NaN."""

SMALLEST = 1e-30
"""The smallest sum of weights that a mean divides by. A position that sees no key has a mean of 0."""


class LogSumExpAccumulator(NamedTuple):
    """Sums of weights and of weighted values, each of shape ...TD and stored divided by exp(scale).

    The scale has no gradient.
    """

    scale: Tensor
    total: Tensor
    sum: Tensor

    @classmethod
    def of(cls, key_TD: Tensor, value_TD: Tensor) -> "LogSumExpAccumulator":
        """Returns the sums over single keys: the sum at position t contains only key t."""
        scale_TD = key_TD.detach()
        total_TD = (key_TD - scale_TD).exp()
        return cls(scale_TD, total_TD, total_TD * value_TD)

    @property
    def log(self) -> Tensor:
        """The logarithm of the sum of weights."""
        return self.scale + self.total.clamp(min=SMALLEST).log()

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the values."""
        return self.sum / self.total.clamp(min=SMALLEST)

    def at_scale(self, scale: Tensor) -> "LogSumExpAccumulator":
        """Returns the same sums with a new scale, which must not be smaller than the current one."""
        factor = (self.scale - scale).exp()
        return LogSumExpAccumulator(scale, self.total * factor, self.sum * factor)

    def merge(self, other: "LogSumExpAccumulator") -> "LogSumExpAccumulator":
        """Returns the sums over the keys of both accumulators."""
        scale = torch.maximum(self.scale, other.scale)
        one, two = self.at_scale(scale), other.at_scale(scale)
        return LogSumExpAccumulator(scale, one.total + two.total, one.sum + two.sum)

    def at(self, positions: slice) -> "LogSumExpAccumulator":
        """Returns the sums at `positions`."""
        return LogSumExpAccumulator(*(x[..., positions, :] for x in self))

    def flip(self) -> "LogSumExpAccumulator":
        """Returns the sums with the positions in reverse order."""
        return LogSumExpAccumulator(*(x.flip(-2) for x in self))

    def shift(self, by: int) -> "LogSumExpAccumulator":
        """Shifts the sums by `by` positions to the right. The sums at the first `by` positions are empty."""
        length = self.scale.shape[-2]
        added = min(by, length)
        kept = self.at(slice(0, length - added))
        return LogSumExpAccumulator(
            *(functional.pad(x, (0, 0, added, 0), value=fill) for x, fill in zip(kept, (NEG_INF, 0, 0), strict=True))
        )


def naive(weight_TS: Tensor, keys: LogSumExpAccumulator, *, causal: bool = False) -> LogSumExpAccumulator:
    """Computes the weighted sums of each query over all S keys, or over the keys up to its position if `causal`."""
    future_TS1 = torch.ones_like(weight_TS, dtype=torch.bool).triu(1)[..., None] & causal
    scale_TSD = (keys.scale[..., None, :, :] + 0 * weight_TS[..., None]).masked_fill(future_TS1, NEG_INF).detach()
    scale_TD = scale_TSD.amax(-2)
    factor_TSD = weight_TS[..., None] * (scale_TSD - scale_TD[..., None, :]).exp()
    factor_TSD = factor_TSD.masked_fill(future_TS1, 0)
    total_TD, sum_TD = (torch.einsum("...tsd,...sd->...td", factor_TSD, x_SD) for x_SD in keys[1:])
    return LogSumExpAccumulator(scale_TD, total_TD, sum_TD)


def cumulative(each: LogSumExpAccumulator) -> LogSumExpAccumulator:
    """Returns cumulative sums over positions, each divided by exp(largest key so far)."""
    if naive_mode():
        length = each.scale.shape[-2]
        return naive(each.scale.new_ones(length, length), each, causal=True)
    scale_TD = each.scale.clone()
    for source, target in _rounds(scale_TD.shape[-2]):
        scale_TD[..., target, :].clamp_(min=scale_TD[..., source, :])
    _, total_TD, sum_TD = each.at_scale(scale_TD)
    return LogSumExpAccumulator(scale_TD, *_Cumulative.apply(scale_TD, total_TD, sum_TD))  # type: ignore[no-untyped-call]


class _Cumulative(torch.autograd.Function):
    """Computes cumulative sums at given scales. The backward pass runs the steps of the forward pass in reverse."""

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
    """Returns (source, target) slices for each round of a parallel prefix sum (Brent and Kung 1982).

    The first rounds sum segments of 2, 4, 8, … positions. The later rounds, from long to short segments, add the sum of
    all earlier positions.
    """
    sizes = [1 << n for n in range((length - 1).bit_length())]
    pairs = [(size - 1, 2 * size - 1, 2 * size) for size in sizes]
    pairs += [(2 * size - 1, 3 * size - 1, 2 * size) for size in reversed(sizes)]
    return [
        (slice(source, length - (target - source), step), slice(target, length, step))
        for source, target, step in pairs
        if target < length
    ]


def accumulate(weight_TS: Tensor, key_SD: Tensor, value_SD: Tensor) -> LogSumExpAccumulator:
    """Returns the weighted sums of each query over all keys, as one matrix product. The weights are in 0 … 1.

    The scale is the largest key. The result is exact unless that key has only weights below 1e-30 in some channel.
    """
    if naive_mode():
        return naive(weight_TS, LogSumExpAccumulator.of(key_SD, value_SD))
    scale_1D = key_SD.detach().amax(-2, keepdim=True)
    total_TD, sum_TD = (weight_TS @ exponentials(key_SD - scale_1D, value_SD)).chunk(2, -1)
    return LogSumExpAccumulator(scale_1D.expand_as(total_TD), total_TD, sum_TD)


def exponentials(logit_SD: Tensor, value_SD: Tensor) -> Tensor:
    """Returns exp(logit) and exp(logit) · value concatenated, SE, so that one matrix product sums both."""
    exp_SD = logit_SD.exp()
    return torch.cat([exp_SD, exp_SD * value_SD], -1)


def accumulate_causal(
    weight_TT: Tensor, key_TD: Tensor, value_TD: Tensor, *, before: LogSumExpAccumulator | None = None
) -> LogSumExpAccumulator:
    """Returns the weighted sums of each query over all keys up to its position. The weights are in 0 … 1.

    `before` has the sums over other keys, such as the keys of earlier blocks. They are added to the result.

    The scale is the largest key so far, so no later key influences it. Round n splits the positions into groups of 2^n.
    In each group, a matrix product adds the keys of the earlier half to the sums of the later half.
    """
    if naive_mode():
        own = naive(weight_TT, LogSumExpAccumulator.of(key_TD, value_TD), causal=True)
        return own if before is None else own.merge(before)
    length = key_TD.shape[-2]
    earlier = 1 << (length - 1).bit_length() >> 1
    if 2 * earlier == length or length == 1:
        known = (None, None, None) if before is None else before
        return LogSumExpAccumulator(*_AccumulateCausal.apply(weight_TT, key_TD, value_TD, *known))  # type: ignore[no-untyped-call]
    weight_EE, key_ED, value_ED = (
        weight_TT[..., :earlier, :earlier],
        key_TD[..., :earlier, :],
        value_TD[..., :earlier, :],
    )
    across = accumulate(weight_TT[..., earlier:, :earlier], key_ED, value_ED)
    if before is not None:
        across, before = across.merge(before.at(slice(earlier, None))), before.at(slice(0, earlier))
    first = accumulate_causal(weight_EE, key_ED, value_ED, before=before)
    own_LL, key_LD, value_LD = weight_TT[..., earlier:, earlier:], key_TD[..., earlier:, :], value_TD[..., earlier:, :]
    second = accumulate_causal(own_LL, key_LD, value_LD, before=across)
    return LogSumExpAccumulator(*(torch.cat(halves, -2) for halves in zip(first, second, strict=True)))


class _AccumulateCausal(torch.autograd.Function):
    """Computes `accumulate_causal` for 2^n positions. The backward pass recomputes the rounds.

    exp(key - scale of t) = exp(key - m) × exp(m - scale of t), where m is the largest key of the earlier half. Neither
    factor exceeds 1.
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
        total_TD = (key_TD - scale_TD).exp_().mul_(_diagonal(weight_TT))
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
        """Returns the gradients of the inputs; `total_TD` and `sum_TD` are the gradients of both sums."""
        weight_TT, key_TD, value_TD, scale_TD, before_TD = ctx.saved_tensors
        exp_TD = (key_TD - scale_TD).exp_()
        key_grad = torch.addcmul(total_TD, sum_TD, value_TD).mul_(exp_TD)
        weight_grad = torch.zeros_like(weight_TT)
        _diagonal(weight_grad).copy_(key_grad.sum(-1, keepdim=True).sum_to_size(_diagonal(weight_TT).shape))
        key_grad.mul_(_diagonal(weight_TT))
        value_grad = exp_TD.mul_(sum_TD).mul_(_diagonal(weight_TT))
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
    """Returns the number of positions in a half, for each round: 1, 2, 4, … T / 2."""
    return [1 << n for n in range(x_TD.shape[-2].bit_length() - 1)]


def _halves(x_TD: Tensor, size: int) -> tuple[Tensor, ...]:
    """Returns views of the earlier and the later half of each group of 2 `size` positions."""
    return x_TD.unflatten(-2, (-1, 2, size)).unbind(-3)  # type: ignore[no-any-return, no-untyped-call]


def _lower(x_TT: Tensor, size: int) -> Tensor:
    """Returns a view of the blocks of `x_TT` whose rows are a later half and whose columns are the earlier half."""
    later_earlier = x_TT.unflatten(-1, (-1, 2, size)).unflatten(-4, (-1, 2, size)).select(-2, 0).select(-4, 1)  # type: ignore[no-untyped-call]
    return later_earlier.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # type: ignore[no-any-return]


def _diagonal(x_TT: Tensor) -> Tensor:
    """Returns a view of the diagonal of `x_TT` as a column."""
    return x_TT.diagonal(dim1=-2, dim2=-1)[..., None]


def _across(key_TD: Tensor, value_TD: Tensor, scale_TD: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Splits exp(key - scale), for keys of an earlier half and scales of its later half, into two factors <= 1.

    Returns:
        The `exponentials` of the earlier half, HE, at the scale of its last position, and the factor, HD, that converts
        them to the scale of each position of the later half.
    """
    (key_HD, _), (value_HD, _), (scale_HD, later_HD) = (_halves(x, size) for x in (key_TD, value_TD, scale_TD))
    largest_1D = scale_HD[..., -1:, :]
    return exponentials(key_HD - largest_1D, value_HD), (largest_1D - later_HD).exp_()
