"""Dot-product attention: rotary positions."""

import pytest
import torch

from seqtk.attention import Role
from seqtk.attention.softmax import SoftmaxAttention, SoftmaxConfig, rotate
from seqtk.errors import UserError


def test_products_of_turned_vectors_depend_on_their_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    products = [
        rotate(query, torch.tensor([[t]])).flatten() @ rotate(key, torch.tensor([[t - 3]])).flatten()
        for t in (3, 10, 500)
    ]
    assert torch.allclose(products[0], products[1])
    assert torch.allclose(products[0], products[2])


def test_rotary_positions_make_order_matter() -> None:
    layer = SoftmaxAttention(SoftmaxConfig(heads=2, rotary=True), dim=8, role=Role.ENCODER)
    plain = SoftmaxAttention(SoftmaxConfig(heads=2), dim=8, role=Role.ENCODER)
    x_BTD = torch.randn(1, 5, 8)
    assert torch.allclose(plain(x_BTD).flip(1), plain(x_BTD.flip(1)), atol=1e-6)
    assert not torch.allclose(layer(x_BTD).flip(1), layer(x_BTD.flip(1)), atol=1e-3)


def test_rotary_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention\.rotary"):
        SoftmaxAttention(SoftmaxConfig(heads=2, rotary=True), dim=8, role=Role.CROSS)


def test_heads_must_be_known() -> None:
    with pytest.raises(UserError, match="needs its heads set"):
        SoftmaxAttention(SoftmaxConfig(), dim=8, role=Role.ENCODER)
