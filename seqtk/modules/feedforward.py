"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3; gated: Shazeer 2020).

B batch, T length, D width, F inner width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.modules.dropout import Dropout

Activation = Literal["relu", "gelu", "glu", "geglu", "swiglu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "glu": torch.sigmoid,
    "geglu": functional.gelu,
    "swiglu": functional.silu,
}
_GATED = {"glu", "geglu", "swiglu"}


class FeedForward(nn.Module):
    """Two linear maps with an activation between them; the gated kinds multiply it by a third map of the input.

    The maps keep torch's default initialisation, as fairseq's do. Parameters: 2 D F + F + D; gated: 3 D F + 2 F + D;
    without `bias` only the products.
    """

    def __init__(self, dim: int, inner_dim: int, *, activation: Activation, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.expand = nn.Linear(dim, inner_dim, bias=bias)
        self.gate = nn.Linear(dim, inner_dim, bias=bias) if activation in _GATED else None
        self.contract = nn.Linear(inner_dim, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            inner_BTF = self.activation(self.expand(x_BTD))
        else:
            inner_BTF = self.activation(self.gate(x_BTD)) * self.expand(x_BTD)
        return self.contract(self.dropout(inner_BTF))  # type: ignore[no-any-return]
