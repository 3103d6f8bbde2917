"""Dot-product attention with dropout of the attention weights, computed in blocks."""

import pytest
import torch
from torch import Tensor

from seqtk.ops import dot_product, dropout, dropout_attention

RATE = 0.3
SIZES = {"one block": (20, 20, 2**20), "rows": (20, 17, 800), "heads": (20, 17, 600), "queries": (150, 131, 2**13)}
"""Query length, key length, and the size of a block, which splits the named dimension."""
CASES = ("plain", "scaled", "causal", "padding", "padding and causal", "boolean", "relative positions")


def settings_of(case: str, length: int, keys: int) -> dict[str, Tensor | bool | float | None]:
    """Returns the keyword arguments of `attend` for a case, two rows and three heads."""
    padding = torch.arange(keys) < torch.tensor([keys - 3, 0])[:, None, None, None]  # the second row is empty
    if case == "relative positions":
        return {"bias": torch.randn(1, 3, length, keys, dtype=torch.double).requires_grad_()}
    if case == "boolean":
        return {"bias": torch.rand(length, keys) < 0.5}
    bias = padding if "padding" in case else None
    return {"bias": bias, "causal": "causal" in case, "scale": 0.7 if case == "scaled" else None}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_attend_equals_attention_with_a_dropout_mask(case: str, size: str) -> None:
    length, keys, block = SIZES[size]
    query = torch.randn(2, 3, length, 4, dtype=torch.double, requires_grad=True)
    key, value = (torch.randn(2, 3, keys, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    settings = settings_of(case, length, keys)
    identity = torch.eye(keys, dtype=torch.double).expand(2, 3, -1, -1)
    with torch.random.fork_rng():
        kept = dropout_attention.attend(query, key, identity, rate=RATE, block=block, **settings)  # type: ignore[arg-type]
    mask = (kept != 0) * dropout.keep_scale(RATE, query.device)
    expected = (dot_product.naive(query, key, identity, **settings) * mask) @ value  # type: ignore[arg-type]
    y = dropout_attention.attend(query, key, value, rate=RATE, block=block, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(y, expected)
    inputs = [x for x in (query, key, value, settings.get("bias")) if isinstance(x, Tensor) and x.requires_grad]
    direction = torch.randn_like(y)
    for found, right in zip(*(torch.autograd.grad(each, inputs, direction) for each in (y, expected)), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("size", SIZES)
def test_dropout_has_the_rate_and_keeps_the_mean(size: str) -> None:
    length, keys, block = SIZES[size]
    query, key = torch.randn(2, 3, length, 4), torch.randn(2, 3, keys, 4)
    identity = torch.eye(keys).expand(2, 3, -1, -1)
    weights = dot_product.naive(query, key, identity)
    draws = [dropout_attention.attend(query, key, identity, rate=RATE, block=block) for _ in range(30)]
    kept = torch.stack(draws) / weights
    assert abs(float((kept == 0).float().mean()) - RATE) < 0.01
    assert abs(float(kept.mean()) - 1) < 0.01
    dropped = (kept == 0).float().flatten(1)
    assert torch.corrcoef(dropped).fill_diagonal_(0).abs().max() < 6 / dropped.shape[1] ** 0.5


def test_blocks_have_different_dropout_masks() -> None:
    identity = torch.eye(64)[None, None]
    query = torch.randn(1, 1, 256, 4)
    kept = dropout_attention.attend(query, torch.randn(1, 1, 64, 4), identity, rate=0.5, block=64 * 64)
    dropped = (kept == 0).float().unflatten(2, (4, 64)).flatten(3)[0, 0]
    assert torch.corrcoef(dropped).fill_diagonal_(0).abs().max() < 0.1


def test_backward_stores_no_attention_weights() -> None:
    saved: list[int] = []

    def count(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    query, key, value = (torch.randn(1, 1, 300, 4, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        dot_product.attend(query, key, value, dropout=RATE)
    assert max(saved) == query.numel()
