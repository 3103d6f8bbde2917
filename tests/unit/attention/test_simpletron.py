"""Tests of SimpleTRON. The tests that all attention layers share are in tests/laws."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Attention, Role, attentions
from seqtk.attention.simpletron import SimpleTron, SimpleTronConfig

DIM = 8


def build(role: Role = Role.ENCODER, **fields: Any) -> SimpleTron:
    layer = SimpleTron(SimpleTronConfig(**{"heads": 2, **fields}), dim=DIM, role=role)
    return layer.double().eval()


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL, Role.CROSS])
def test_order_of_matrix_products_has_no_effect(role: Role) -> None:
    """(Q Kᵀ) V equals Q (Kᵀ V), also over several chunks."""
    layer = build(role)
    x_BTD = torch.randn(2, 150, DIM, dtype=torch.float64)
    memory_BSD = torch.randn(2, 70, DIM, dtype=torch.float64) if role is Role.CROSS else None
    source = x_BTD if memory_BSD is None else memory_BSD
    query, key, value = (layer.split(linear(of)) for linear, of in zip(
        (layer.query, layer.key, layer.value), (x_BTD, source, source), strict=True))  # fmt: skip
    weights_BHTS = query @ key.transpose(-1, -2)
    seen = torch.full((150,), source.shape[1], dtype=torch.float64)
    if role is Role.CAUSAL:
        weights_BHTS, seen = weights_BHTS.tril(), torch.arange(1.0, 151, dtype=torch.float64)
    expected = layer.join(weights_BHTS @ value / (seen[:, None] * layer.head_dim).sqrt())
    torch.testing.assert_close(layer(x_BTD, memory_BSD)[0], expected)


def test_output_is_linear_in_the_values() -> None:
    layer = build(bias=False)
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.float64)
    once = layer(x_BTD)[0]
    with torch.no_grad():
        layer.value.weight *= 3
    torch.testing.assert_close(layer(x_BTD)[0], 3 * once)


def test_scale_factors_agree_with_paper_and_code() -> None:
    x_BTD = torch.randn(1, 9, DIM, dtype=torch.float64)
    layer = build(length_factor="none", head_scale=False)
    bare = layer(x_BTD)[0]
    for fields, factor in (({"head_scale": False}, 9), ({}, 9 * DIM // 2)):
        layer.config = dataclasses.replace(SimpleTronConfig(heads=2), **fields)
        torch.testing.assert_close(layer(x_BTD)[0], bare / factor**0.5)


def test_layer_has_three_projections_only() -> None:
    def count(role: Role = Role.ENCODER, memory_dim: int | None = None, **fields: Any) -> int:
        config = SimpleTronConfig(heads=8, bias=False, **fields)
        layer = attentions.build(config, dim=64, role=role, memory_dim=memory_dim)
        return sum(p.numel() for p in layer.parameters())

    assert count() == 3 * 64**2
    assert count(Role.CROSS, memory_dim=32) == 64**2 + 2 * 64 * 32
    assert count(out_projection=True) == 4 * 64**2


def run_steps(layer: Attention, x_BTD: Tensor) -> Tensor:
    state, outputs = layer.start(len(x_BTD)), []
    for t in range(x_BTD.shape[1]):
        y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    return torch.cat(outputs, 1)


def test_decoding_steps_equal_forward_with_constant_state() -> None:
    layer = build(Role.CAUSAL)
    x_BTD = torch.randn(2, 200, DIM, dtype=torch.float64)
    torch.testing.assert_close(run_steps(layer, x_BTD), layer(x_BTD)[0], atol=1e-10, rtol=1e-10)
    _, state = layer.step(x_BTD[:, :1], layer.start(2))
    assert {leaf.shape for leaf in state.dynamic.values()} == {(2, 2, 4, 4), (2, 1)}
