"""Linear maps with Xavier-uniform weights."""

from torch import nn


def xavier_linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """Returns a linear map with Xavier-uniform weights and, if any, zero bias."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
