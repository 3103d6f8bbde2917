"""Dropout: rate and scale, independence of elements, seeds, evaluation mode and gradients."""

import pytest
import torch

from seqtk.modules.block import Dropout
from seqtk.ops.dropout import keep_mask
from seqtk.utils.errors import UserError


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_has_the_rate_and_keeps_the_mean(rate: float) -> None:
    count = 400_001  # not a multiple of the four elements of one draw
    mask = keep_mask(torch.ones(count), rate)
    assert mask.shape == (count,)
    kept = mask[mask != 0]
    assert kept.unique().tolist() == [pytest.approx(1 / (1 - rate), rel=2e-4)]  # the rate is a multiple of 2⁻¹⁶
    five_sigma = 5 * (rate * (1 - rate) / count) ** 0.5
    assert 1 - len(kept) / count == pytest.approx(rate, abs=five_sigma + 2**-16)
    assert mask.mean().item() == pytest.approx(1, abs=five_sigma / (1 - rate))


def test_elements_are_dropped_independently() -> None:
    """Four neighbors share a random 64-bit number, but their masks must be independent."""
    dropped = (keep_mask(torch.ones(400_000), 0.5) == 0).float() - 0.5
    for distance in (1, 2, 3, 4):
        correlation = (dropped[distance:] * dropped[:-distance]).mean() / 0.25
        assert abs(correlation.item()) < 5 / 400_000**0.5


def test_seed_determines_the_dropout_mask() -> None:
    dropout, x = Dropout(0.5), torch.ones(3, 5)
    torch.manual_seed(3)
    first = dropout(x)
    second = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_dropout_in_eval_or_with_rate_0_has_no_effect() -> None:
    x = torch.randn(4, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_is_nonzero_for_kept_elements_only(dtype: torch.dtype) -> None:
    x = torch.randn(50, 7, dtype=dtype).abs().add(1).requires_grad_()
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == dtype
    assert torch.equal(x.grad != 0, y != 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_rates_outside_0_to_1_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match="less than 1"):
        Dropout(rate)
