"""Each kind of feed-forward network equals its formula, and has the documented number of parameters."""

import math
import typing
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqtk.modules.block import Activation, FeedForward, Residual

D, F = 6, 10
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "glu": lambda x: 1 / (1 + torch.exp(-x)),
    "geglu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
}


def test_every_activation_is_tested() -> None:
    assert set(KINDS) == set(typing.get_args(Activation))


@pytest.mark.parametrize("kind", typing.get_args(Activation))
def test_every_activation_equals_its_formula(kind: Activation) -> None:
    layer = FeedForward(D, F, activation=kind, dropout=0.5).double().eval()
    x_BTD = torch.randn(2, 3, D, dtype=torch.float64)
    expanded = x_BTD @ layer.expand.weight.T + layer.expand.bias
    count = sum(parameter.numel() for parameter in layer.parameters())
    if layer.gate is None:
        inner = KINDS[kind](expanded)
        assert count == 2 * D * F + F + D
    else:
        inner = KINDS[kind](x_BTD @ layer.gate.weight.T + layer.gate.bias) * expanded
        assert count == 3 * D * F + 2 * F + D
    torch.testing.assert_close(layer(x_BTD), inner @ layer.contract.weight.T + layer.contract.bias)


def test_dropout_acts_on_the_hidden_layer() -> None:
    layer = FeedForward(D, 1000, activation="relu", dropout=0.5)
    with torch.no_grad():
        layer.expand.weight.zero_()
        layer.expand.bias.fill_(1)
        layer.contract.weight.fill_(1)
        layer.contract.bias.zero_()
    values = layer(torch.zeros(1, 1, D))
    assert (values - values[..., :1]).abs().max() == 0  # all outputs use the same hidden mask
    assert 700 < values[0, 0, 0].item() < 1300  # about half of 1000 units are kept, scaled by 2
    assert values[0, 0, 0].item() != 1000


@pytest.mark.parametrize("pre_norm", [False, True])
def test_residual_block_supports_pre_norm_and_post_norm(pre_norm: bool) -> None:
    block = Residual(D, dropout=0.0, pre_norm=pre_norm)
    x = torch.randn(2, 3, D)
    normalized = torch.nn.functional.layer_norm
    wanted = x + 2 * normalized(x, (D,)) if pre_norm else normalized(x + 2 * x, (D,))
    torch.testing.assert_close(block.post(x, 2 * block.pre(x)), wanted)
