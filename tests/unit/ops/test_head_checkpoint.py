"""Some heads at a time are as all at once, under autocast too; a law says so of every kind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.ops import head_checkpoint as by_heads
from seqtk.ops.head_checkpoint import Projected

HEADS, WIDTH, LENGTH = 4, 8, 6


def build(kind: str, role: Role, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = from_dict(attentions.config_type(kind), {"heads": HEADS, **fields})
    return attentions.build(config, dim=HEADS * WIDTH, role=role)


def gradients(
    layer: Any, x_BTD: Tensor, monkeypatch: pytest.MonkeyPatch, *, longest: int, rough: bool = True
) -> list[Tensor]:
    """Of the input and all parameters, after the output; inputs of `longest` positions and more by heads."""
    monkeypatch.setattr(by_heads, "MIN_LENGTH", longest)
    monkeypatch.setattr(by_heads, "CHUNK_ELEMENTS", {"cpu": 1})
    x_BTD = x_BTD.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=rough):
        y_BTD = layer(x_BTD)[0]
    y_BTD.float().square().sum().backward()
    return [y_BTD, x_BTD.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize(
    "kind", ["linear", "feedforward_kernel", "simpletron", "luna", "sliding_window", "dynamic_conv"]
)
def test_under_autocast_gradients_are_those_of_all_heads_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build(kind, Role.CAUSAL)
    x_BTD = torch.randn(2, LENGTH, HEADS * WIDTH)
    at_once = gradients(layer, x_BTD, monkeypatch, longest=LENGTH + 1)
    in_turn = gradients(layer, x_BTD, monkeypatch, longest=LENGTH)
    exact = gradients(layer, x_BTD, monkeypatch, longest=LENGTH + 1, rough=False)
    for whole, made, right in zip(at_once, in_turn, exact, strict=True):
        assert made.dtype == whole.dtype
        # What bfloat16 costs either way; a key's bias has a gradient of nothing but rounding.
        least = 0.005 * float(max(gradient.detach().norm() for gradient in exact[2:]))
        assert (made - right).norm() <= max(1.5 * (whole - right).norm(), least)
        assert (made - right).norm() <= max(0.03 * right.norm(), least)


@pytest.mark.parametrize("piece", [1, 2 * LENGTH * WIDTH, 3 * LENGTH * WIDTH, 10**6])
def test_pieces_cover_all_heads_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_heads, "MIN_LENGTH", 0)
    monkeypatch.setattr(by_heads, "CHUNK_ELEMENTS", {"cpu": piece})
    seen: list[slice] = []

    def double(some: slice, x_BTd: Tensor) -> Tensor:
        seen.append(some)
        return 2 * x_BTd

    x_BTD = torch.randn(1, LENGTH, HEADS * WIDTH)
    assert torch.equal(by_heads.by_heads(double, x_BTD, heads=HEADS), 2 * x_BTD)
    heads = [head for some in seen for head in range(some.start, some.stop)]
    assert heads == list(range(HEADS))
    assert all(LENGTH * WIDTH * (some.stop - some.start) <= max(piece, LENGTH * WIDTH) for some in seen)


def test_what_draws_at_random_goes_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_heads, "MIN_LENGTH", 0)
    monkeypatch.setattr(by_heads, "CHUNK_ELEMENTS", {"cpu": 1})
    seen = []
    by_heads.by_heads(lambda some, x: seen.append(some) or x, torch.ones(1, 2, 4), heads=4, is_random=True)  # type: ignore[func-returns-value]
    assert seen == [slice(0, 4)]


def test_a_frozen_projection_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_heads, "MIN_LENGTH", 0)
    monkeypatch.setattr(by_heads, "CHUNK_ELEMENTS", {"cpu": 1})
    linear = torch.nn.Linear(3, 8).requires_grad_(False)
    x_BTI = torch.randn(1, 2, 3, requires_grad=True)
    by_heads.by_heads(lambda _, x: x.exp(), Projected(x_BTI, linear), heads=4).sum().backward()
    found = x_BTI.grad
    x_BTI.grad = None
    linear(x_BTI).exp().sum().backward()
    torch.testing.assert_close(found, x_BTI.grad)
    assert linear.weight.grad is None
