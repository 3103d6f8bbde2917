"""Where a sublayer meets the residual stream."""

from collections.abc import Callable

from torch import Tensor, nn

from seqtk.modules.dropout import Dropout


class Residual(nn.Module):
    """x + dropout(sublayer(x)) with a layer norm before the sublayer or after the sum.

    The sublayer is an argument of the call, so that one that is stepped, or reads a memory, needs no wrapper.
    """

    def __init__(self, dim: int, *, dropout: float, pre_norm: bool, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x_BTD: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x_BTD + self.dropout(sublayer(self.norm(x_BTD)))  # type: ignore[no-any-return]
        return self.norm(x_BTD + self.dropout(sublayer(x_BTD)))  # type: ignore[no-any-return]
