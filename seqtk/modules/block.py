"""The modules of a block other than attention: dropout, residual connection and feed-forward network.

B batch, T length, D width, F inner width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.modules.linear import Linear, has_hooks
from seqtk.ops.dropout import dropout
from seqtk.ops.residual import add_residual
from seqtk.utils.errors import UserError

Activation = Literal["relu", "gelu", "glu", "geglu", "swiglu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "glu": torch.sigmoid,
    "geglu": functional.gelu,
    "swiglu": functional.silu,
}
_GATED = {"glu", "geglu", "swiglu"}


class Dropout(nn.Module):
    """In training, sets each element to 0 with probability `rate` and scales the others by 1 / (1 - rate).

    Raises UserError if `rate` is not a probability less than 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_rate(rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.training else x


def check_rate(rate: float) -> None:
    """Raises UserError if `rate` is not a probability less than 1."""
    if not 0 <= rate < 1:
        raise UserError(f"dropout={rate}: must be a probability less than 1.")


class Residual(nn.Module):
    """A residual connection, x + dropout(sublayer(x)), with a layer norm before the sublayer or after the sum.

    The caller runs the sublayer between `pre` and `post`, so a sublayer can have a state.
    """

    def __init__(self, dim: int, *, dropout: float, pre_norm: bool, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def pre(self, x_BTD: Tensor) -> Tensor:
        """Returns the input of the sublayer: x, normalized if `pre_norm` is set."""
        return self.norm(x_BTD) if self.pre_norm else x_BTD

    def post(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Returns the output of the residual block, from its input x and the output y of the sublayer."""
        if has_hooks(self.norm) or has_hooks(self.dropout):
            sum_BTD: Tensor = x_BTD + self.dropout(y_BTD)
            return sum_BTD if self.pre_norm else self.norm(sum_BTD)
        weight, bias = (None, None) if self.pre_norm else (self.norm.weight, self.norm.bias)
        rate = self.dropout.rate if self.training else 0.0
        return add_residual(x_BTD, y_BTD, rate=rate, weight=weight, bias=bias, eps=self.norm.eps)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them (Vaswani et al. 2017, section 3.3).

    Gated activations multiply the result by a third map of the input (Shazeer 2020). The maps have torch's default
    initialization, as in fairseq. Parameters: 2 D F weights and F + D biases; gated: 3 D F weights and 2 F + D biases.
    """

    def __init__(self, dim: int, inner_dim: int, *, activation: Activation, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.expand = Linear(dim, inner_dim, bias=bias)
        self.gate = Linear(dim, inner_dim, bias=bias) if activation in _GATED else None
        self.contract = Linear(inner_dim, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            inner_BTF = self.activation(self.expand(x_BTD))
        else:
            inner_BTF = self.activation(self.gate(x_BTD)) * self.expand(x_BTD)
        return self.contract(self.dropout(inner_BTF))  # type: ignore[no-any-return]
