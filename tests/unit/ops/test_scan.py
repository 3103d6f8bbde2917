"""Causal sums in chunks equal the masked product, at lengths that the chunks do and do not divide."""

import pytest
import torch

from seqtk.ops.scan import causal_sums


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
def test_chunks_equal_the_whole_masked_product(length: int) -> None:
    query, key, value = (torch.randn(2, 3, length, width, dtype=torch.float64) for width in (5, 5, 7))
    expected = (query @ key.transpose(-1, -2)).tril() @ value
    torch.testing.assert_close(causal_sums(query, key, value, chunk=4), expected)


def test_sums_are_float32_under_autocast() -> None:
    x = torch.randn(1, 1, 9, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = causal_sums(x.bfloat16(), x.bfloat16(), x, chunk=4)
    assert y.dtype is torch.float32
