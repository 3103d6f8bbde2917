"""Tests of gMLP. The tests that all attention layers share are in tests/laws."""

import pytest
import torch
from torch.nn import functional

from seqtk.attention import Role
from seqtk.attention.gmlp import Gmlp, GmlpConfig


def build(role: Role = Role.ENCODER, **fields: int) -> Gmlp:
    return Gmlp(GmlpConfig(**{"max_length": 10, **fields}), dim=8, role=role).double()


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_initial_gmlp_is_near_a_perceptron(role: Role) -> None:
    layer = build(role)
    x_BTD = torch.randn(2, 10, 8, dtype=torch.float64)
    perceptron = layer.out(functional.gelu(layer.expand(x_BTD)).chunk(2, -1)[0])
    assert (layer(x_BTD)[0] - perceptron).abs().max() < 0.05
    torch.nn.init.zeros_(layer.spatial)
    torch.testing.assert_close(layer(x_BTD)[0], perceptron)


def test_lower_triangular_encoder_equals_causal_layer() -> None:
    encoder, causal = build(), build(Role.CAUSAL)
    torch.nn.init.normal_(encoder.spatial)
    causal.load_state_dict(encoder.state_dict())
    x_BTD = torch.randn(2, 10, 8, dtype=torch.float64)
    assert not torch.allclose(encoder(x_BTD)[0], causal(x_BTD)[0])
    with torch.no_grad():
        encoder.spatial.tril_()
    torch.testing.assert_close(encoder(x_BTD)[0], causal(x_BTD)[0])


def test_shift_matrix_gates_values_by_the_previous_value() -> None:
    """W has ones below the diagonal and b = 0, so the gate is the previous value."""
    layer = build(Role.CAUSAL)
    with torch.no_grad():
        layer.spatial.copy_(torch.ones(10, 10).tril(-1).triu(-1))
        layer.spatial_bias.zero_()
    x_BTD = torch.randn(1, 10, 8, dtype=torch.float64)
    gated, value = functional.gelu(layer.expand(x_BTD)).chunk(2, -1)
    before = functional.pad(layer.norm(value)[:, :-1], (0, 0, 1, 0))
    torch.testing.assert_close(layer(x_BTD)[0], layer.out(gated * before))
